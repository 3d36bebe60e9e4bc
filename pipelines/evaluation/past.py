"""Held-out rows one by one, each with what was before it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from xir_tfrs.data import directory, errors, histories

# Events that a row sees where no model says how many.
_NEWEST_EVENTS = 50


@dataclasses.dataclass(frozen=True)
class Rule:
  """What a row sees of its query's rows.

  Attributes:
    length: Newest events that a model encodes.
    ties: One of `histories.TIES`.
  """

  length: int
  ties: str

  @classmethod
  def of_training(cls, settings: Mapping[str, Any]) -> Rule | None:
    """That of a run's settings; None: its rows are not ranked one by one."""
    ties = settings.get("history_ties")
    if settings["query_tower"] != "id":
      return cls(settings["history_length"], ties or "strict")
    # No model encodes these events, but the rule of neighbours goes by them.
    return None if ties is None else cls(_NEWEST_EVENTS, ties)


@dataclasses.dataclass(frozen=True)
class Past:
  """Held-out rows, by query and time, and what was before each.

  Attributes:
    rule: What they see.
    query_ids: [rows] dense ids.
    targets: [rows] dense ids of their candidates.
    events: [rows, length] dense ids of the newest candidates that they see,
      the oldest first, -1 in front.
    num_events: [rows] how many they see, the older ones included.
    tied: [rows] bool, whether the query's row before has the same time.
    held_out_before: [rows, None] candidates of the same split that they see.
  """

  rule: Rule
  query_ids: np.ndarray
  targets: np.ndarray
  events: np.ndarray
  num_events: np.ndarray
  tied: np.ndarray
  held_out_before: tf.RaggedTensor

  @classmethod
  def of_split(
    cls, data: directory.DataDir, splits: Sequence[str], rule: Rule
  ) -> Past:
    """The rows of the last of `splits`, after those of all of them.

    Raises:
      DataError: The order of the rows is not known.
    """
    asking = data.rows(splits[-1], in_order=True)["query_id"]
    parts = [events(data, split, asking) for split in splits]
    held_out = np.repeat(
      [False] * (len(parts) - 1) + [True],
      [len(part["query_id"]) for part in parts],
    )
    columns = {
      name: np.concatenate([part[name] for part in parts]) for name in parts[-1]
    }
    rows = in_order({**columns, "held_out": held_out}, data, rule.ties)
    chosen = np.flatnonzero(rows.columns["held_out"])
    own = {name: column[chosen] for name, column in rows.columns.items()}
    return cls(
      rule=rule,
      query_ids=own["query_id"].astype(np.int64),
      targets=own["candidate_id"].astype(np.int64),
      events=rows.before(chosen, rule.length),
      num_events=rows.visible[chosen],
      tied=_tied(rows.columns)[chosen],
      # In order already, so rows stay where they are.
      held_out_before=_visible(in_order(own, data, rule.ties)),
    )


def in_order(
  columns: Mapping[str, np.ndarray], data: directory.DataDir, ties: str
) -> histories.Histories:
  """Rows of a data directory by query and time.

  Raises:
    DataError: Their order is not known.
  """
  try:
    return histories.Histories.of_rows(columns, ties)
  except errors.DataError as error:
    raise errors.DataError(str(error), path=data.path) from None


def events(
  data: directory.DataDir, split: str, query_ids: np.ndarray | None = None
) -> dict[str, np.ndarray]:
  """Rows of a split, without those that training leaves out.

  Args:
    data: The data.
    split: The split.
    query_ids: Queries whose rows are enough; None: those of all.
  """
  if query_ids is None:
    columns = dict(data.rows(split, in_order=True))
  else:
    columns = dict(data.rows_of(split, query_ids, in_order=True))
  weights = columns.pop("sample_weight", None)
  if weights is None or split != "train":
    return columns
  return {name: column[weights > 0] for name, column in columns.items()}


def _visible(rows: histories.Histories) -> tf.RaggedTensor:
  """[rows, None] candidates that each row sees."""
  starts = np.cumsum(rows.visible) - rows.visible
  places = np.arange(rows.visible.sum()) - np.repeat(
    starts - rows.first, rows.visible
  )
  return tf.RaggedTensor.from_row_lengths(
    rows.columns["candidate_id"][places].astype(np.int64), rows.visible
  )


def _tied(columns: Mapping[str, np.ndarray]) -> np.ndarray:
  """[rows] bool, of rows in order."""
  tied = np.zeros(len(columns["query_id"]), bool)
  if "timestamp" in columns:
    tied[1:] = np.logical_and(
      *(np.diff(columns[name]) == 0 for name in ("query_id", "timestamp"))
    )
  return tied
