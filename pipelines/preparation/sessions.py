"""Replaces users by sessions, which end at long pauses."""

from __future__ import annotations

import numpy as np

from pipelines.preparation import spill, vocabulary
from pipelines.readers import source as source_lib
from xir_tfrs.data import errors
from xir_tfrs.data.files import times


def divide(
  buckets: spill.Buckets,
  users: vocabulary.Vocabulary,
  source: source_lib.Source,
  gap: float,
) -> vocabulary.Vocabulary:
  """Gives the rows of each session their own user code.

  Args:
    buckets: Rows by user; they are rewritten.
    users: The ids of the users.
    source: The input, which knows the unit of times.
    gap: Pause in seconds after which a new session starts.

  Returns:
    The ids of the sessions: `USER#1`, `USER#2`, ..., in the order of the users.

  Raises:
    DataError: There are no times, or their unit is unknown.
  """
  found = source.roles.times if source.roles else None
  if found is None or found.unit is None:
    raise errors.DataError(
      "--session_gap needs times of a known unit; name them with --time_column,"
      " and the unit of numbers with --time_unit",
      path=source.name,
    )
  pause = int(gap * times.UNITS[found.unit])
  counts = np.zeros(len(users), np.int64)
  for bucket in range(buckets.count):
    rows = buckets.read(bucket)
    np.maximum.at(counts, rows["user"], _sessions(rows, pause) + 1)
  first = np.concatenate([[0], np.cumsum(counts)[:-1]])
  for bucket in range(buckets.count):
    rows = buckets.read(bucket)
    rows["user"] = first[rows["user"]] + _sessions(rows, pause)
    buckets.replace(bucket, rows)
  divided = vocabulary.Vocabulary()
  divided.add(
    f"{user}#{k + 1}"
    for user, count in zip(users.ids(), counts.tolist(), strict=True)
    for k in range(count)
  )
  if len(divided) != counts.sum():
    raise errors.DataError(
      "users have names like sessions (USER#1); rename them", path=source.name
    )
  return divided


def _sessions(rows: np.ndarray, pause: int) -> np.ndarray:
  """[rows] number of each row's session among those of the user."""
  order = spill.stable_argsort(rows["time"])
  order = order[spill.stable_argsort(rows["user"][order])]
  user, time = rows["user"][order], rows["time"][order]
  is_new_user = np.concatenate([[True], user[1:] != user[:-1]])[: len(rows)]
  begins = np.concatenate([[True], time[1:] - time[:-1] > pause])[: len(rows)]
  total = np.cumsum(is_new_user | begins)
  starts = np.flatnonzero(is_new_user)
  sizes = np.diff(np.append(starts, len(rows)))
  number = np.empty(len(rows), np.int64)
  number[order] = total - np.repeat(total[starts], sizes)
  return number
