"""Metrics of a trained retriever, and of what its training estimates."""

from xir_tfrs.metrics.estimator import EstimatorProbe
from xir_tfrs.metrics.full_ranking import full_ranking, full_ranking_by_query
from xir_tfrs.metrics.list_ranking import list_ranking

__all__ = [
  "EstimatorProbe",
  "full_ranking",
  "full_ranking_by_query",
  "list_ranking",
]
