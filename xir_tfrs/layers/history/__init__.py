"""Encoders of a history: vectors of events to a state after each event."""

from xir_tfrs.layers.history.attention import AttentionHistory
from xir_tfrs.layers.history.encoder import HistoryEncoder
from xir_tfrs.layers.history.gru import GRUHistory
from xir_tfrs.layers.history.interests import InterestHistory
from xir_tfrs.layers.history.mean import MeanHistory

# By the name that settings use.
ENCODERS: dict[str, type[HistoryEncoder]] = {
  "mean": MeanHistory,
  "gru": GRUHistory,
  "attention": AttentionHistory,
  "mind": InterestHistory,
}

__all__ = [
  "ENCODERS",
  "AttentionHistory",
  "GRUHistory",
  "HistoryEncoder",
  "InterestHistory",
  "MeanHistory",
]
