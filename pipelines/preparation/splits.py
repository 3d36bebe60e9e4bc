"""Which rows train, validate and test, as pure functions of arrays.

Rows come grouped by user. Every function gives one int8 label per row: TRAIN,
VALIDATION or TEST. None of them depends on how rows were cut into blocks or
buckets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

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
  """A random share of every user's rows.

  A user with n rows keeps round((1 - test_fraction) n) of them, rounded half
  to even as Python's `round` does; of these the last share of
  `validation_fraction` validates, but never all. Which rows: those first by a
  hash of (seed, user, item), so a row's place does not depend on its
  neighbours in the file.

  Args:
    users: [n] dense ids, ascending.
    items: [n] dense ids; a pair (user, item) stands once.
    seed: another seed gives another split.
    test_fraction: share of all rows, in [0, 1].
    validation_fraction: share of the rows that are not test, in [0, 1].

  Returns:
    [n] int8 labels.
  """
  # The rows of a user in the order of their hashes. Among equal hashes the
  # stable sort keeps the given order, which no bucket changes either.
  keys = users.astype(np.int64) << 32 | _hash(seed, users, items)
  order = np.argsort(keys, kind="stable")
  rank, size = _rank_in_group(users)
  kept, train = _sizes(size, test_fraction, validation_fraction)
  labels = np.empty(len(users), np.int8)
  labels[order] = np.where(
    rank < train, TRAIN, np.where(rank < kept, VALIDATION, TEST)
  )
  return labels


def leave_last(users: np.ndarray) -> np.ndarray:
  """Each user's last row tests and the one before validates.

  A user with two rows has no validation row, and one with a single row only
  trains.

  Args:
    users: [n] dense ids, ascending; each user's rows in order of time.
  """
  rank, size = _rank_in_group(users)
  from_end = size - 1 - rank
  labels = np.full(len(users), TRAIN, np.int8)
  labels[(from_end == 1) & (size > 2)] = VALIDATION
  labels[(from_end == 0) & (size > 1)] = TEST
  return labels


def temporal(
  times: np.ndarray, validation_start: int, test_start: int
) -> np.ndarray:
  """Rows before, between and from the two cuts of `temporal_cuts`."""
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
  """The times at which validation and test begin.

  With n rows in order of time, rows from number round((1 - test_fraction) n)
  on are test; the cut is that row's time, and all rows of that very time are
  on its later side, so that no training row is as late as a test row. Equal
  times can therefore make the later part larger than its fraction.

  Args:
    times: gives all times, in chunks and in any order; called several times.
    test_fraction: share of all rows.
    validation_fraction: share of the rows that are not test.

  Returns:
    validation_start <= test_start.
  """
  chunks = [(c.min(), c.max(), len(c)) for c in times() if len(c)]
  low = int(min(c[0] for c in chunks))
  high = int(max(c[1] for c in chunks))
  total = np.array([sum(c[2] for c in chunks)])
  kept, train = _sizes(total, test_fraction, validation_fraction)

  def cut(rank: int) -> int:
    if rank >= total[0]:
      return high + 1
    return _kth_smallest(times, int(rank), low, high)

  test_start = cut(kept[0])
  return (
    min(cut(train[0]), test_start) if train[0] < kept[0] else test_start
  ), test_start


def splits_of_pairs(pairs: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """The splits that each pair is in.

  Args:
    pairs: [n] int64 keys of (user, item).
    labels: [n] labels.

  Returns:
    [distinct pairs] uint8, bit `label` set if a row with it has the pair.
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
  """Rows of the earlier split that are later than the user's later split.

  Args:
    users: [n] ascending dense ids.
    moments: [n] times, or positions in the file where there are no times.
    earlier, later: [n] bool, membership in the two splits.

  Returns:
    How many `earlier` rows have a moment after the first `later` row of the
    same user.
  """
  if not later.any():
    return 0
  group = np.cumsum(np.concatenate([[0], users[1:] != users[:-1]]))
  first = np.full(group[-1] + 1, np.iinfo(np.int64).max)
  np.minimum.at(first, group[later], moments[later])
  return int((moments[earlier] > first[group[earlier]]).sum())


def _sizes(
  size: np.ndarray, test_fraction: float, validation_fraction: float
) -> tuple[np.ndarray, np.ndarray]:
  """How many of `size` rows are not test, and how many of those train."""
  # rint rounds half to even, as round() does.
  kept = np.rint((1 - test_fraction) * size)
  validation = np.rint(validation_fraction * kept)
  validation = np.minimum(validation, np.maximum(kept - 1, 0))
  return kept.astype(np.int64), (kept - validation).astype(np.int64)


def _rank_in_group(users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """[n] position of each row among its user's rows, and their number."""
  starts = np.flatnonzero(np.concatenate([[True], users[1:] != users[:-1]]))
  starts = starts[: len(users)]
  sizes = np.diff(np.append(starts, len(users)))
  rank = np.arange(len(users)) - np.repeat(starts, sizes)
  return rank, np.repeat(sizes, sizes)


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


def _kth_smallest(
  chunks: Callable[[], Iterable[np.ndarray]], k: int, low: int, high: int
) -> int:
  """The k-th smallest (from 0) value, all lying in [low, high].

  Counts values in equal bins and goes on with the bin that holds the k-th,
  so that memory does not grow with the number of values. Each round divides
  the range by 65536.
  """
  while low < high:
    width = -(-(high - low + 1) // _BINS)
    counts = np.zeros(_BINS, np.int64)
    for values in _within(chunks(), low, high):
      # Subtracting as unsigned: the range may exceed what int64 holds.
      offsets = values.astype(np.uint64) - np.uint64(low % 2**64)
      bins = (offsets // np.uint64(width)).astype(np.int64)
      counts += np.bincount(bins, minlength=_BINS)
    before = np.cumsum(counts)
    chosen = int(np.searchsorted(before, k, side="right"))
    k -= int(before[chosen - 1]) if chosen else 0
    low += chosen * width
    high = min(low + width - 1, high)
  return low


def _within(
  chunks: Iterable[np.ndarray], low: int, high: int
) -> Iterator[np.ndarray]:
  for values in chunks:
    yield values[(values >= low) & (values <= high)]
