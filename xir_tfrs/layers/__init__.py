"""State: one small class per kind of variable."""

from xir_tfrs import keras  # noqa: F401  Keras 2, or an error.
from xir_tfrs.layers.candidate_cache import CandidateCache
from xir_tfrs.layers.candidate_table import CandidateTable
from xir_tfrs.layers.embedding_history import EmbeddingHistory
from xir_tfrs.layers.frequency_estimator import FrequencyEstimator
from xir_tfrs.layers.history import (
  AttentionHistory,
  GRUHistory,
  HistoryEncoder,
  InterestHistory,
  MeanHistory,
)
from xir_tfrs.layers.inverted_multi_index import InvertedMultiIndex
from xir_tfrs.layers.memory_bank import MemoryBank
from xir_tfrs.layers.target_attention import TargetAttention

__all__ = [
  "AttentionHistory",
  "CandidateCache",
  "CandidateTable",
  "EmbeddingHistory",
  "FrequencyEstimator",
  "GRUHistory",
  "HistoryEncoder",
  "InterestHistory",
  "InvertedMultiIndex",
  "MeanHistory",
  "MemoryBank",
  "TargetAttention",
]


def __dir__() -> list[str]:
  return list(__all__)
