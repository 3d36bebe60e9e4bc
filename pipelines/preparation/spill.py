"""Encoded rows on disk, in buckets by user.

All rows of a user are in one bucket, and a bucket fits in memory. So work per
user never needs more memory than a bucket.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

# A bucket has this share of inputs of 128 GiB and more.
MAX_BUCKETS = 4096
_BYTES_PER_BUCKET = 32 << 20


def row_dtype(
  has_times: bool, has_weights: bool, has_splits: bool = False
) -> np.dtype:
  """The type of a row: user and item codes, position, and optional fields.

  The position (`row`) is the one in the input; after `passes.arranged` it is
  the position among the rows of the user.
  """
  fields = [("user", "<i4"), ("item", "<i4"), ("row", "<i8")]
  if has_times:
    fields.append(("time", "<i8"))
  if has_weights:
    fields.append(("weight", "<f4"))
  if has_splits:
    fields.append(("split", "<i1"))
  return np.dtype(fields)


def bucket_count(input_size: int) -> int:
  """Number of buckets for an input of `input_size` bytes."""
  return min(max(-(-input_size // _BYTES_PER_BUCKET), 1), MAX_BUCKETS)


def by_bucket(
  users: np.ndarray, rows: np.ndarray, count: int
) -> Iterator[tuple[int, np.ndarray]]:
  """Yields (bucket, its rows in order) for buckets with rows.

  Args:
    users: [n] codes of the users in order of first appearance.
    rows: [n] array of rows.
    count: Number of buckets.
  """
  if count == 1:
    yield 0, rows
    return
  # NumPy uses radix sort for 16-bit integers.
  bucket = (users % count).astype(np.uint16)
  order = np.argsort(bucket, kind="stable")
  ends = np.cumsum(np.bincount(bucket, minlength=count))
  rows, start = np.take(rows, order), 0
  for number, end in enumerate(ends.tolist()):
    if end > start:
      yield number, rows[start:end]
    start = end


class Buckets:
  """Files of rows in their own directory, one per bucket.

  Files are not kept open, so there can be more than a process may open.
  """

  def __init__(self, directory: pathlib.Path, count: int, dtype: np.dtype):
    directory.mkdir()
    self.count = count
    self.dtype = dtype
    self._paths = [directory / f"{b:04d}.rows" for b in range(count)]
    for path in self._paths:
      path.touch()

  def append(self, rows: np.ndarray) -> None:
    """Appends `rows` (of `dtype`) to the buckets of their users, in order."""
    for bucket, part in by_bucket(rows["user"], rows, self.count):
      with open(self._paths[bucket], "ab") as file:
        _write(file, part)

  def read(self, bucket: int) -> np.ndarray:
    return np.fromfile(self._paths[bucket], self.dtype)

  def replace(self, bucket: int, rows: np.ndarray) -> None:
    """Replaces all rows of a bucket."""
    with open(self._paths[bucket], "wb") as file:
      _write(file, rows)

  def remove(self, bucket: int) -> None:
    self._paths[bucket].unlink()


def _write(file: BinaryIO, rows: np.ndarray) -> None:
  # Not `tofile`: its error hides that the disk is full.
  file.write(np.ascontiguousarray(rows).view(np.uint8))


def by_user(rows: np.ndarray) -> np.ndarray:
  """Sorts rows by user, then time (if any), then position.

  Args:
    rows: Rows in order of position, as in `Buckets`.
  """
  if "time" in rows.dtype.names:
    rows = np.take(rows, stable_argsort(rows["time"]))
  return np.take(rows, stable_argsort(rows["user"]))


# How to treat rows with the same user and item; KEPT keeps all.
REPEATS = ("first", "last", "sum", "max")
KEPT = "all"


def merged(rows: np.ndarray, num_items: int, repeats: str) -> np.ndarray:
  """Keeps one row for each pair of user and item.

  If the user gave the splits, keeps one row per pair and split.

  Args:
    rows: Rows as sorted by `by_user`.
    num_items: Number of item codes.
    repeats: One of `REPEATS`: keep the first or the last row of a pair; the
      first, with the sum of the weights; or the first with the largest weight.
  """
  if not len(rows):
    return rows
  order = np.arange(len(rows))
  if "split" in rows.dtype.names:
    order = stable_argsort(rows["split"])
  pairs = np.take(pair_keys(rows, num_items), order)
  # Timsort is faster than `stable_argsort` here, as users are in order.
  by_pair = np.argsort(pairs, kind="stable")
  pairs, order = np.take(pairs, by_pair), np.take(order, by_pair)
  begins = np.concatenate([[True], pairs[1:] != pairs[:-1]])
  if "split" in rows.dtype.names:
    of_row = np.take(rows["split"], order)
    begins[1:] |= of_row[1:] != of_row[:-1]
  starts = np.flatnonzero(begins)
  if repeats == "last":
    kept = order[np.append(starts[1:], len(rows)) - 1]
  elif repeats == "max":
    weights = np.take(rows["weight"], order)
    pair = np.cumsum(begins) - 1
    largest = np.flatnonzero(
      weights == np.maximum.reduceat(weights, starts)[pair]
    )
    kept = order[largest[np.unique(pair[largest], return_index=True)[1]]]
  else:
    kept = order[starts]
  if repeats == "sum":
    weights = np.take(rows["weight"], order).astype(np.float64)
    total = np.add.reduceat(weights, starts)
    rows = rows.copy()
    rows["weight"][kept] = np.minimum(total, np.finfo(np.float32).max)
  return np.take(rows, np.sort(kept))


def stable_argsort(keys: np.ndarray) -> np.ndarray:
  """`np.argsort(keys, kind="stable")`, but several times faster.

  Packs key and position into one integer if 63 bits hold both.
  """
  if not len(keys):
    return np.empty(0, np.int64)
  low, high = int(keys.min()), int(keys.max())
  bits = (len(keys) - 1).bit_length()
  if (high - low).bit_length() + bits > 63:
    return np.argsort(keys, kind="stable")
  packed = (keys.astype(np.int64) - low) << bits | np.arange(len(keys))
  packed.sort()
  return packed & ((1 << bits) - 1)


def pair_keys(rows: np.ndarray, num_items: int) -> np.ndarray:
  """[rows] int64 key of (user, item)."""
  return rows["user"].astype(np.int64) * num_items + rows["item"]
