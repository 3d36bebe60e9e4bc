"""Metrics of a trained retriever."""

from xir_tfrs.metrics.full_ranking import full_ranking

__all__ = ["full_ranking"]
