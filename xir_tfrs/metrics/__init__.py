"""Ranking metrics of a trained retriever."""

from xir_tfrs.metrics.at_k import METRICS, NAMES
from xir_tfrs.metrics.callback import RankingCallback
from xir_tfrs.metrics.full_ranking import (
  Ranking,
  full_ranking,
  full_ranking_by_query,
  rank_all,
)
from xir_tfrs.metrics.list_ranking import list_ranking, rank_lists

__all__ = [
  "METRICS",
  "NAMES",
  "Ranking",
  "RankingCallback",
  "full_ranking",
  "full_ranking_by_query",
  "list_ranking",
  "rank_all",
  "rank_lists",
]


def __dir__() -> list[str]:
  return list(__all__)
