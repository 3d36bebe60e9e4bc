"""Retrieval indexes: top-k candidates by inner product, with exclusions."""

from xir_tfrs.indexes.base import RetrievalIndex, hits_by_query, recall
from xir_tfrs.indexes.brute_force import BruteForceIndex
from xir_tfrs.indexes.exact_search import top_rows
from xir_tfrs.indexes.id_table import NO_ROW, IdTable
from xir_tfrs.indexes.scann import (
  ScannIndex,
  ScannSettings,
  TuningPoint,
  load_ops,
  scann_version,
)

__all__ = [
  "NO_ROW",
  "BruteForceIndex",
  "IdTable",
  "RetrievalIndex",
  "ScannIndex",
  "ScannSettings",
  "TuningPoint",
  "hits_by_query",
  "load_ops",
  "recall",
  "scann_version",
  "top_rows",
]


def __dir__() -> list[str]:
  return list(__all__)
