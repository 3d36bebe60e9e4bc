"""Single held-out rows with the events before each of them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from xir_tfrs.data import directory, errors, histories

# Number of events that a row sees if the model does not define it.
_NEWEST_EVENTS = 50


@dataclasses.dataclass(frozen=True)
class Rule:
  """The rule for the events that a row sees.

  Attributes:
    length: Number of most recent events that a model encodes.
    ties: One of `histories.TIES`.
  """

  length: int
  ties: str

  @classmethod
  def of_training(
    cls, settings: Mapping[str, Any], ties: str | None = None
  ) -> Rule | None:
    """The rule of a run; None if its queries are not single rows.

    Args:
      settings: Settings of the training.
      ties: Overrides its `history_ties`.
    """
    ties = ties or settings.get("history_ties")
    # Runs of old versions do not name their query tower.
    if settings.get("query_tower", "id") != "id":
      return cls(settings["history_length"], ties or "strict")
    # No model encodes these events, but the baseline of neighbours uses them.
    return None if ties is None else cls(_NEWEST_EVENTS, ties)


@dataclasses.dataclass(frozen=True)
class Past:
  """Held-out rows, sorted by query and time, and the events before each.

  Attributes:
    rule: The rule for the events that rows see.
    query_ids: [rows] dense ids of the queries.
    targets: [rows] dense ids of the candidates.
    events: [rows, length] dense ids of the newest candidates that rows see,
      oldest first, left-padded with -1.
    num_events: [rows] number of events that rows see, including older ones.
    tied: [rows] bool, whether the query's previous row has the same time.
    held_out_before: [rows, None] candidates of the same split that rows see.
    seen_rows: All rows that these may see, and themselves.
    places: [rows] their places in `seen_rows`.
  """

  rule: Rule
  query_ids: np.ndarray
  targets: np.ndarray
  events: np.ndarray
  num_events: np.ndarray
  tied: np.ndarray
  held_out_before: tf.RaggedTensor
  seen_rows: histories.Histories
  places: np.ndarray

  @classmethod
  def of_split(
    cls, data: directory.DataDir, splits: Sequence[str], rule: Rule
  ) -> Past:
    """Returns the rows of the last split; they see those of all `splits`.

    Raises:
      DataError: The order of the rows is unknown.
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
      # The rows are sorted already, so their positions do not change.
      held_out_before=_visible(in_order(own, data, rule.ties)),
      seen_rows=rows,
      places=chosen,
    )

  @functools.cached_property
  def times(self) -> np.ndarray | None:
    """[rows, length + 1] times of `events` and of the rows; None without times.

    They are as large as `events`, and only ages of events need them.
    """
    if "timestamp" not in self.seen_rows.columns:
      return None
    return self.seen_rows.times_before(self.places, self.rule.length)


def in_order(
  columns: Mapping[str, np.ndarray], data: directory.DataDir, ties: str
) -> histories.Histories:
  """Sorts the rows of a data directory by query and time.

  Raises:
    DataError: Their order is unknown.
  """
  try:
    return histories.Histories.of_rows(columns, ties)
  except errors.DataError as error:
    raise errors.DataError(str(error), path=data.path) from None


def events(
  data: directory.DataDir, split: str, query_ids: np.ndarray | None = None
) -> dict[str, np.ndarray]:
  """Returns the rows of a split, without those that training leaves out.

  Args:
    data: The data directory.
    split: Name of the split.
    query_ids: Queries whose rows are needed; None for all.
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
  """[rows] bool for sorted rows: same query and time as the previous row."""
  tied = np.zeros(len(columns["query_id"]), bool)
  if "timestamp" in columns:
    tied[1:] = np.logical_and(
      *(np.diff(columns[name]) == 0 for name in ("query_id", "timestamp"))
    )
  return tied
