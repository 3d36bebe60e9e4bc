"""Metrics of a trained retriever's rankings."""

from xir_tfrs.metrics.at_k import METRICS, NAMES
from xir_tfrs.metrics.full_ranking import full_ranking, full_ranking_by_query
from xir_tfrs.metrics.list_ranking import list_ranking

__all__ = [
  "METRICS",
  "NAMES",
  "full_ranking",
  "full_ranking_by_query",
  "list_ranking",
]
