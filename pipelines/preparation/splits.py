"""Splits of rows, as pure functions of arrays.

Rows are grouped by user. Every split function returns one int8 label per row:
TRAIN, VALIDATION or TEST. The labels do not depend on how rows are divided into
blocks or buckets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np

TRAIN, VALIDATION, TEST = range(3)

_BINS = 1 << 16


def random_per_user(
  users: np.ndarray,
  items: np.ndarray,
  *,
  seed: int,
  test_fraction: float,
  validation_fraction: float,
) -> np.ndarray:
  """Labels a random share of every user's rows.

  A user with n rows keeps round((1 - test_fraction) n) of them, rounded half
  to even like Python's `round`. Of these, the last share of
  `validation_fraction` is for validation, but never all. Rows are ordered by a
  hash of (seed, user, item), so a label does not depend on neighbouring rows in
  the file. Repeats of a pair have the same hash and stay together, in order,
  unless a share ends between them.

  Args:
    users: [n] dense ids, ascending.
    items: [n] dense ids.
    seed: Seed of the split.
    test_fraction: Share of all rows, in [0, 1].
    validation_fraction: Share of the rows that are not test, in [0, 1].

  Returns:
    [n] int8 labels.
  """
  # Sorts the rows of a user by hash. Among equal hashes, the stable sort keeps
  # the given order, which does not depend on buckets.
  keys = users.astype(np.int64) << 32 | _hash(seed, users, items)
  order = np.argsort(keys, kind="stable")
  rank, size = rank_in_group(users)
  kept, train = _sizes(size, test_fraction, validation_fraction)
  labels = np.empty(len(users), np.int8)
  labels[order] = np.where(
    rank < train, TRAIN, np.where(rank < kept, VALIDATION, TEST)
  )
  return labels


def leave_last(users: np.ndarray) -> np.ndarray:
  """Labels each user's last row as test and the one before as validation.

  A user with two rows has no validation row; a single row is for training.

  Args:
    users: [n] dense ids, ascending; each user's rows in order of time.
  """
  rank, size = rank_in_group(users)
  from_end = size - 1 - rank
  labels = np.full(len(users), TRAIN, np.int8)
  labels[(from_end == 1) & (size > 2)] = VALIDATION
  labels[(from_end == 0) & (size > 1)] = TEST
  return labels


def temporal(
  times: np.ndarray, validation_start: int, test_start: int
) -> np.ndarray:
  """Labels rows before, between and after the cuts of `temporal_cuts`."""
  labels = np.full(len(times), TRAIN, np.int8)
  labels[times >= validation_start] = VALIDATION
  labels[times >= test_start] = TEST
  return labels


def temporal_cuts(
  times: Callable[[], Iterable[np.ndarray]],
  *,
  test_fraction: float,
  validation_fraction: float,
) -> tuple[int, int]:
  """Finds the times at which validation and test start.

  With n rows in order of time, rows from number round((1 - test_fraction) n)
  on are test. The cut is the time of that row, and all rows of exactly this
  time are in the later part, so no training row is as late as a test row. Equal
  times can therefore make the later part larger than its fraction.

  Args:
    times: Returns all times, in chunks and in any order; called several times.
    test_fraction: Share of all rows.
    validation_fraction: Share of the rows that are not test.

  Returns:
    validation_start <= test_start.
  """
  searches = temporal_searches(
    *joined_ranges(time_range(chunk) for chunk in times()),
    test_fraction=test_fraction,
    validation_fraction=validation_fraction,
  )
  while not all(search.done for search in searches):
    counts = sum(search_counts(searches, chunk) for chunk in times())
    searches = narrowed(searches, counts)
  return cuts_found(searches)


@dataclasses.dataclass(frozen=True)
class Search:
  """Searches for the k-th smallest (from 0) of many values.

  Counts values in equal bins and continues with the bin of the k-th value, so
  that memory does not grow with the number of values.

  Attributes:
    k: Rank of the value among the values in [low, high].
    low, high: The range of the value; if both are equal, the value.
  """

  k: int
  low: int
  high: int

  @property
  def done(self) -> bool:
    return self.low == self.high

  @property
  def _width(self) -> int:
    return -(-(self.high - self.low + 1) // _BINS)

  def counts(self, values: np.ndarray) -> np.ndarray:
    """Returns [bins] number of `values` in each bin."""
    values = values[(values >= self.low) & (values <= self.high)]
    # Subtracts as unsigned, because the range may exceed int64.
    offsets = values.astype(np.uint64) - np.uint64(self.low % 2**64)
    bins = (offsets // np.uint64(self._width)).astype(np.int64)
    return np.bincount(bins, minlength=_BINS)

  def narrowed(self, counts: np.ndarray) -> Search:
    """Returns the search in one bin, given the `counts` of all values."""
    before = np.cumsum(counts)
    chosen = int(np.searchsorted(before, self.k, side="right"))
    low = self.low + chosen * self._width
    return Search(
      self.k - (int(before[chosen - 1]) if chosen else 0),
      low,
      min(low + self._width - 1, self.high),
    )


# Each round divides the range by `_BINS`, and ranges have at most 64 bits.
SEARCH_ROUNDS = 4
Searches = tuple[Search, Search]


def temporal_searches(
  low: int,
  high: int,
  total: int,
  *,
  test_fraction: float,
  validation_fraction: float,
) -> Searches:
  """Returns the searches for the first times of validation and test.

  Args:
    low: The smallest time.
    high: The largest time.
    total: Number of times.
    test_fraction: As for `temporal_cuts`.
    validation_fraction: As for `temporal_cuts`.
  """
  kept, train = _sizes(np.array([total]), test_fraction, validation_fraction)
  return tuple(
    Search(int(rank), low, high)
    if rank < total
    else Search(0, high + 1, high + 1)
    for rank in (train[0], kept[0])
  )


def search_counts(searches: Searches, times: np.ndarray) -> np.ndarray:
  """[searches, bins] counts for `narrowed`, summed over all times."""
  return np.stack(
    [
      np.zeros(_BINS, np.int64) if search.done else search.counts(times)
      for search in searches
    ]
  )


def narrowed(searches: Searches, counts: np.ndarray) -> Searches:
  return tuple(
    search if search.done else search.narrowed(row)
    for search, row in zip(searches, counts, strict=True)
  )


def cuts_found(searches: Searches) -> tuple[int, int]:
  """The result of `temporal_cuts`, from finished searches."""
  return tuple(search.low for search in searches)


def splits_of_pairs(pairs: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Returns the splits that contain each pair.

  Args:
    pairs: [n] int64 keys of (user, item).
    labels: [n] labels.

  Returns:
    [distinct pairs] uint8; bit `label` is set if a row with the label has the
    pair.
  """
  order = np.argsort(pairs, kind="stable")
  sorted_pairs = pairs[order]
  starts = np.concatenate([[True], sorted_pairs[1:] != sorted_pairs[:-1]])
  bits = np.left_shift(1, labels[order]).astype(np.uint8)
  if not len(bits):
    return bits
  return np.bitwise_or.reduceat(bits, np.flatnonzero(starts))


def rows_after(
  users: np.ndarray,
  moments: np.ndarray,
  earlier: np.ndarray,
  later: np.ndarray,
) -> int:
  """Counts rows of the earlier split that come after the later split starts.

  Args:
    users: [n] ascending dense ids.
    moments: [n] times, or positions in the file if there are no times.
    earlier: [n] bool, membership in the earlier split.
    later: [n] bool, membership in the later split.

  Returns:
    Number of `earlier` rows after the first `later` row of the same user.
  """
  if not later.any():
    return 0
  group = np.cumsum(np.concatenate([[0], users[1:] != users[:-1]]))
  first = np.full(group[-1] + 1, np.iinfo(np.int64).max)
  np.minimum.at(first, group[later], moments[later])
  return int((moments[earlier] > first[group[earlier]]).sum())


def rank_in_group(users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """[n] position of each row among its user's rows, and [n] their number."""
  starts = np.flatnonzero(np.concatenate([[True], users[1:] != users[:-1]]))
  starts = starts[: len(users)]
  sizes = np.diff(np.append(starts, len(users)))
  rank = np.arange(len(users)) - np.repeat(starts, sizes)
  return rank, np.repeat(sizes, sizes)


def _sizes(
  size: np.ndarray, test_fraction: float, validation_fraction: float
) -> tuple[np.ndarray, np.ndarray]:
  """Number of `size` rows that are not test, and of those that train."""
  # rint rounds half to even, as round() does.
  kept = np.rint((1 - test_fraction) * size)
  validation = np.rint(validation_fraction * kept)
  validation = np.minimum(validation, np.maximum(kept - 1, 0))
  return kept.astype(np.int64), (kept - validation).astype(np.int64)


def _hash(seed: int, users: np.ndarray, items: np.ndarray) -> np.ndarray:
  """32 bits per row, as int64; SplitMix64 over seed, user and item."""
  state = _mix(np.full(1, seed % 2**64, np.uint64))
  state = _mix(state ^ users.astype(np.uint64))
  state = _mix(state ^ items.astype(np.uint64))
  return (state >> np.uint64(32)).astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
  x = x + np.uint64(0x9E3779B97F4A7C15)
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


def time_range(times: np.ndarray) -> tuple[int, int, int] | None:
  """Returns minimum, maximum and number of times; None if there are none."""
  if not len(times):
    return None
  return int(times.min()), int(times.max()), len(times)


def joined_ranges(
  ranges: Iterable[tuple[int, int, int] | None],
) -> tuple[int, int, int]:
  """Returns `time_range` of all times; zeros if there are none."""
  there = [r for r in ranges if r] or [(0, 0, 0)]
  lows, highs, totals = zip(*there, strict=True)
  return min(lows), max(highs), sum(totals)
