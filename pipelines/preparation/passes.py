"""The two passes of `pipelines.prepare` over the interactions.

The first pass reads blocks, assigns dense ids and writes encoded rows to
buckets by user. The second pass takes one bucket at a time: it sorts, splits,
counts, checks for leakage and writes. Neither holds all rows in memory.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import pathlib
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from pipelines.preparation import spill, splits, vocabulary
from pipelines.readers import blocks
from pipelines.readers import source as source_lib
from xir_tfrs.data import record_files
from xir_tfrs.data import schema as schema_lib
from xir_tfrs.programs import progress

_ROWS_PER_SHARD = 1 << 20
# Three splits are written at once; more open files may exceed a limit.
_MAX_SHARDS = 64
_LABELS = {
  "train": splits.TRAIN,
  "validation": splits.VALIDATION,
  "test": splits.TEST,
}


@dataclasses.dataclass(frozen=True)
class Ids:
  """The vocabularies of the first pass, and the checks for dense ids.

  Attributes:
    users, items: Original ids.
    dense_users, dense_items: The checks, if requested.
    titles: Titles of the items, if the interactions have them.
  """

  users: vocabulary.Vocabulary
  items: vocabulary.Vocabulary
  dense_users: vocabulary.DenseIds | None
  dense_items: vocabulary.DenseIds | None
  titles: vocabulary.Titles = dataclasses.field(
    default_factory=vocabulary.Titles
  )


@dataclasses.dataclass(frozen=True)
class Written:
  """The output of the second pass.

  Attributes:
    shards: Split -> its shards.
    user_counts, item_counts: [rows] training interactions by dense id.
    user_rows, item_rows: [rows] interactions in any split by dense id.
    leakage: Check -> number of offending rows.
  """

  shards: dict[str, tuple[schema_lib.Shard, ...]]
  user_counts: np.ndarray
  item_counts: np.ndarray
  user_rows: np.ndarray
  item_rows: np.ndarray
  leakage: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Arranged:
  """Statistics of the sorted rows of one or all buckets.

  Attributes:
    rows: Number of rows.
    dropped: Number of dropped rows, which repeat a pair.
    tied: Number of rows with the time of the user's previous row.
    times: `splits.time_range` of all rows; None without times.
  """

  rows: int
  dropped: int
  tied: int
  times: tuple[int, int, int] | None


def joined(parts: Iterable[Arranged]) -> Arranged:
  """Combines the statistics of buckets."""
  parts = list(parts)
  return Arranged(
    sum(p.rows for p in parts),
    sum(p.dropped for p in parts),
    sum(p.tied for p in parts),
    splits.joined_ranges(p.times for p in parts),
  )


def spill_rows(
  source: source_lib.Source,
  buckets: spill.Buckets,
  ids: Ids,
  min_rating: float | None,
  warnings: collections.Counter[str],
) -> None:
  """Runs the first pass."""
  read = 0
  with progress.Progress("reading", source.size) as report:
    for file, block, users, items in _numbered(source.blocks(), ids):
      if block.titles is not None:
        ids.titles.add(items, block.titles)
      split = source.split_of(file)
      rows = encoded(block, users, items, read, buckets.dtype, split)
      read += len(rows)
      report.update_rows(block.progress, len(rows))
      buckets.append(well_rated(rows, block, min_rating, warnings))


def _numbered(
  found: Iterable[tuple[int, blocks.Block]], ids: Ids
) -> Iterator[tuple[int, blocks.Block, np.ndarray, np.ndarray]]:
  """Yields each block with the codes of its users and items.

  Blocks wait until they have as many rows as there are users or items, which is
  when `Vocabulary.encode_all` is fast. So memory grows with the ids only.
  """
  waiting: list[tuple[int, blocks.Block]] = []
  rows = 0
  for file, block in found:
    for dense, column in (
      (ids.dense_users, block.users),
      (ids.dense_items, block.items),
    ):
      if dense is not None:
        dense.check(block, column)
    waiting.append((file, block))
    rows += len(block.users)
    if rows >= max(len(ids.users), len(ids.items)):
      yield from _encoded_ids(waiting, ids)
      waiting, rows = [], 0
  if waiting:
    yield from _encoded_ids(waiting, ids)


def _encoded_ids(
  waiting: list[tuple[int, blocks.Block]], ids: Ids
) -> Iterator[tuple[int, blocks.Block, np.ndarray, np.ndarray]]:
  users = ids.users.encode_all([block.users for _, block in waiting])
  items = ids.items.encode_all([block.items for _, block in waiting])
  for (file, block), *codes in zip(waiting, users, items, strict=True):
    yield file, block, *codes


def encoded(
  block: blocks.Block,
  users: np.ndarray,
  items: np.ndarray,
  position: int,
  dtype: np.dtype,
  split: str | None = None,
) -> np.ndarray:
  """Encodes the rows of a block as `spill.row_dtype`.

  Args:
    block: The block.
    users: [n] codes of the users.
    items: [n] codes of the items.
    position: Position of the first row.
    dtype: Type of the rows.
    split: Split of the file, if the user gave the splits.
  """
  rows = np.empty(len(users), dtype)
  rows["user"], rows["item"] = users, items
  rows["row"] = np.arange(position, position + len(rows))
  if block.times is not None:
    rows["time"] = block.times
  if block.weights is not None:
    rows["weight"] = block.weights
  if split is not None:
    rows["split"] = _LABELS[split]
  return rows


def well_rated(
  rows: np.ndarray,
  block: blocks.Block,
  min_rating: float | None,
  warnings: collections.Counter[str],
) -> np.ndarray:
  """Drops and counts the rows of `block` rated below `min_rating`."""
  if min_rating is None:
    return rows
  keep = block.ratings >= min_rating
  warnings["rows_below_min_rating"] += int((~keep).sum())
  return rows[keep]


def arrange(
  buckets: spill.Buckets,
  num_items: int,
  user_permutation: np.ndarray | None,
  item_permutation: np.ndarray | None,
  repeats: str,
) -> Arranged:
  """Sorts the rows of each bucket; see `arranged`."""
  parts = []
  with progress.Progress("sorting", buckets.count) as report:
    for bucket in range(buckets.count):
      rows, found = arranged(
        buckets.read(bucket),
        num_items,
        user_permutation,
        item_permutation,
        repeats,
      )
      buckets.replace(bucket, rows)
      parts.append(found)
      report.update_rows(bucket + 1, found.rows + found.dropped)
  return joined(parts)


def arranged(
  rows: np.ndarray,
  num_items: int,
  user_permutation: np.ndarray | None,
  item_permutation: np.ndarray | None,
  repeats: str,
) -> tuple[np.ndarray, Arranged]:
  """Sorts the rows of a bucket by user and time, and numbers them per user.

  Args:
    rows: Rows in order of position.
    num_items: Number of items.
    user_permutation: Code -> dense id of users; None if they are the same.
    item_permutation: Code -> dense id of items; None if they are the same.
    repeats: How to treat rows of the same pair: `spill.KEPT`, or as
      `spill.merged` takes it. The first row is the earliest in time; among
      equal times, the first in the file.
  """
  if user_permutation is not None:
    rows["user"] = user_permutation[rows["user"]]
    rows["item"] = item_permutation[rows["item"]]
  rows, read = spill.by_user(rows), len(rows)
  if repeats != spill.KEPT:
    rows = spill.merged(rows, num_items, repeats)
  rows["row"] = splits.rank_in_group(rows["user"])[0]
  tied, times = 0, None
  if "time" in rows.dtype.names:
    times = splits.time_range(rows["time"])
    tied = int(
      ((rows["row"] > 0)[1:] & (rows["time"][1:] == rows["time"][:-1])).sum()
    )
  return rows, Arranged(len(rows), read - len(rows), tied, times)


def write_splits(
  directory: pathlib.Path,
  buckets: spill.Buckets,
  num_rows: int,
  num_users: int,
  num_items: int,
  split: schema_lib.Split,
  seed: int,
) -> Written:
  """Runs the second pass: labels, counts, checks and writes the rows.

  Args:
    directory: The data directory.
    buckets: The sorted rows from `arrange`; they are removed.
    num_rows: Number of rows.
    num_users: Number of users.
    num_items: Number of items.
    split: How to split the rows.
    seed: Seed of the order of training rows.
  """
  cuts = None
  if split.kind == "temporal":
    cuts = splits.temporal_cuts(
      lambda: (buckets.read(b)["time"] for b in range(buckets.count)),
      test_fraction=split.test_fraction,
      validation_fraction=split.validation_fraction,
    )
  user_counts = np.zeros(num_users, np.int64)
  user_rows = np.zeros(num_users, np.int64)
  item_counts = np.zeros(num_items, np.int64)
  item_rows = np.zeros(num_items, np.int64)
  leakage: collections.Counter[str] = collections.Counter()
  shards = shard_count(num_rows)
  with contextlib.ExitStack() as stack:
    writers = {
      name: stack.enter_context(_SplitWriter(directory, name, shards))
      for name in schema_lib.SPLITS
    }
    report = stack.enter_context(progress.Progress("writing", num_rows))
    for bucket in range(buckets.count):
      rows = buckets.read(bucket)
      parts, found = divide(bucket, rows, num_items, split, cuts, seed)
      leakage.update(found)
      train = parts["train"]
      user_counts += np.bincount(train["user"], minlength=num_users)
      item_counts += np.bincount(train["item"], minlength=num_items)
      user_rows += np.bincount(rows["user"], minlength=num_users)
      item_rows += np.bincount(rows["item"], minlength=num_items)
      for name, part in parts.items():
        writers[name].append(part)
      buckets.remove(bucket)
      report.update_rows(report.rows + len(rows), len(rows))
    shards = {name: writer.finish() for name, writer in writers.items()}
  return Written(
    shards, user_counts, item_counts, user_rows, item_rows, dict(leakage)
  )


def divide(
  bucket: int,
  rows: np.ndarray,
  num_items: int,
  split: schema_lib.Split,
  cuts: tuple[int, int] | None,
  seed: int,
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
  """Splits the rows of a bucket and shuffles the training rows.

  Returns:
    split -> its rows in the order to write, and leakage check -> number of
    offending rows.
  """
  labels = _labels(rows, split, cuts)
  parts = {name: rows[labels == _LABELS[name]] for name in schema_lib.SPLITS}
  # The rows are sorted by user, but batches of training rows must be mixed.
  rng = np.random.default_rng([seed % 2**64, bucket])
  order = rng.permutation(len(parts["train"]))
  parts["train"] = np.take(parts["train"], order)
  return parts, _leakage(rows, labels, num_items, split)


def shard_count(num_rows: int) -> int:
  """Number of shards of each split."""
  return min(max(-(-num_rows // _ROWS_PER_SHARD), 1), _MAX_SHARDS)


def share(rows: int, shard: int, shards: int) -> tuple[int, int]:
  """The rows [start, stop) of a bucket that a shard takes."""
  each, more = divmod(rows, shards)
  start = shard * each + min(shard, more)
  return start, start + each + (shard < more)


def partial_name(split: str, shard: int) -> str:
  """Name of a shard's file until all shards are written."""
  return f"{split}-{shard:05d}.partial"


def name_shards(
  written: pathlib.Path,
  directory: pathlib.Path,
  split: str,
  rows: Mapping[int, int],
) -> tuple[schema_lib.Shard, ...]:
  """Renames the shards of a split to their final names.

  Args:
    written: The folder of their `partial_name`s.
    directory: The data directory.
    split: Name of the split.
    rows: Shard -> its number of rows, for shards with rows.
  """
  shards = []
  for number, shard in enumerate(sorted(rows)):
    name = record_files.shard_name(split, number, len(rows))
    (written / partial_name(split, shard)).rename(directory / name)
    shards.append(schema_lib.Shard(name, rows[shard]))
  return tuple(shards)


class _SplitWriter:
  """Distributes rows over the shards of a split; a context manager."""

  def __init__(self, directory: pathlib.Path, split: str, num_shards: int):
    self._directory, self._split = directory, split
    self._paths = [
      directory / partial_name(split, shard) for shard in range(num_shards)
    ]
    self._writers = [record_files.BlockWriter(path) for path in self._paths]

  def append(self, rows: np.ndarray) -> None:
    """Appends the rows of a bucket, in separate blocks."""
    for shard, writer in enumerate(self._writers):
      start, stop = share(len(rows), shard, len(self._writers))
      if start < stop:
        append_bucket(writer, rows[start:stop])

  def finish(self) -> tuple[schema_lib.Shard, ...]:
    """Closes the shards and names those that have rows."""
    for writer in self._writers:
      writer.close()
    rows = {shard: writer.rows for shard, writer in enumerate(self._writers)}
    for shard, path in enumerate(self._paths):
      if not rows[shard]:
        path.unlink()
        del rows[shard]
    return name_shards(self._directory, self._directory, self._split, rows)

  def __enter__(self) -> _SplitWriter:
    return self

  def __exit__(self, *unused_exception) -> None:
    for writer in self._writers:
      writer.close()


def append_bucket(writer: record_files.BlockWriter, rows: np.ndarray) -> None:
  """Appends the rows of a bucket to a shard.

  No block mixes two buckets. A bucket has all rows of its users, so training
  finds these together without reading everything (`data.blocks`).
  """
  writer.append(columns(rows))
  writer.end_block()


def columns(rows: np.ndarray) -> dict[str, np.ndarray]:
  """Returns the columns of the records of rows."""
  named = {
    "query_id": rows["user"],
    "candidate_id": rows["item"],
    "event": rows["row"],
  }
  if "time" in rows.dtype.names:
    named["timestamp"] = rows["time"]
  if "weight" in rows.dtype.names:
    named["sample_weight"] = rows["weight"]
  return named


def _labels(
  rows: np.ndarray, split: schema_lib.Split, cuts: tuple[int, int] | None
) -> np.ndarray:
  if split.kind == "random":
    return splits.random_per_user(
      rows["user"],
      rows["item"],
      seed=split.seed,
      test_fraction=split.test_fraction,
      validation_fraction=split.validation_fraction,
    )
  if split.kind == "temporal":
    return splits.temporal(rows["time"], *cuts)
  if split.kind == "given" and split.validation_fraction:
    labels = rows["split"].copy()
    trains = np.flatnonzero(labels == splits.TRAIN)
    labels[trains] = splits.random_per_user(
      rows["user"][trains],
      rows["item"][trains],
      seed=split.seed,
      test_fraction=0.0,
      validation_fraction=split.validation_fraction,
    )
    return labels
  if split.kind == "given":
    return rows["split"]
  return splits.leave_last(rows["user"])


def _leakage(
  rows: np.ndarray, labels: np.ndarray, num_items: int, split: schema_lib.Split
) -> dict[str, int]:
  """Counts what must not be, from the rows as they are written."""
  of_pairs = splits.splits_of_pairs(spill.pair_keys(rows, num_items), labels)
  found = {}
  for first, second in (
    ("train", "validation"),
    ("train", "test"),
    ("validation", "test"),
  ):
    both = 1 << _LABELS[first] | 1 << _LABELS[second]
    found[f"pairs_in_{first}_and_{second}"] = int(
      ((of_pairs & both) == both).sum()
    )
  has_times = "time" in rows.dtype.names
  # Rows without times go by the order of the files, training files first.
  if split.kind != "random" and (has_times or split.kind != "given"):
    moments = rows["time" if has_times else "row"]
    drawn = split.kind == "given" and split.validation_fraction
    for later in ("test",) if drawn else ("validation", "test"):
      found[f"train_rows_after_{later}"] = splits.rows_after(
        rows["user"],
        moments,
        labels == splits.TRAIN,
        labels == _LABELS[later],
      )
  return found
