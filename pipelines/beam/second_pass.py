"""Second pass: sorts, splits and writes the rows of each bucket.

One worker processes a bucket, with the functions of `pipelines.prepare`.
Buckets are combined for the counts, for the cuts of a temporal split, and for
the shards, which take their rows bucket after bucket.
"""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.options import pipeline_options

from pipelines.beam import handover
from pipelines.preparation import convert, passes, spill, splits
from pipelines.preparation.config import PrepareConfig
from xir_tfrs.data import records
from xir_tfrs.data import schema as schema_lib

_FOUND, _COUNTS, _SHARES = "found", "counts", "shares"
# Number of ids whose counts one worker sums.
_RANGE = 1 << 20
Shard = tuple[str, int]


def run(
  config: PrepareConfig,
  directory: pathlib.Path,
  work: pathlib.Path,
  buckets: spill.Buckets,
  users: convert.Table,
  items: convert.Table,
  options: pipeline_options.PipelineOptions,
) -> tuple[passes.Written, passes.Arranged]:
  """Writes the splits; returns the files and overall statistics."""
  (work / "shards").mkdir()
  in_order = spill.Buckets(work / "in_order", buckets.count, buckets.dtype)
  arrange = _Arrange(buckets, in_order, len(items.ids), config.kept_repeats)
  if users.permutation is not None:
    arrange.save_permutations(work, users.permutation, items.permutation)
  split = config.row_split
  with beam.Pipeline(options=options) as pipeline:
    arranged = (
      pipeline
      | "Buckets" >> beam.Create(range(buckets.count))
      | "SpreadBuckets" >> beam.Reshuffle()
      | "Arrange" >> beam.ParDo(arrange)
    )
    total = (
      arranged
      | "Arranged" >> beam.Values()
      | "Total" >> beam.CombineGlobally(passes.joined)
    )
    sorted_buckets = arranged | "Sorted" >> beam.Keys()
    if split.kind == "temporal":
      cuts = _cuts(sorted_buckets, total, in_order, split)
    else:
      cuts = pipeline | "NoCuts" >> beam.Create([None])
    divided = sorted_buckets | "Divide" >> beam.ParDo(
      _Divide(in_order, len(items.ids), split, config.seed),
      beam.pvalue.AsSingleton(total),
      beam.pvalue.AsSingleton(cuts),
    ).with_outputs(_FOUND, _COUNTS, _SHARES)
    _ = (
      divided[_COUNTS]
      | "SumCounts" >> beam.CombinePerKey(_SumCounts())
      | "SaveCounts" >> beam.ParDo(_SaveCounts(work))
    )
    shards = (
      divided[_SHARES]
      | "ByShard" >> beam.GroupByKey()
      | "WriteShards" >> beam.ParDo(_WriteShard(work / "shards", buckets.dtype))
    )
    for name, collection in (
      ("total", total),
      (
        "leakage",
        divided[_FOUND] | "Leakage" >> beam.CombineGlobally(handover.summed),
      ),
      ("rows", shards | "Rows" >> beam.CombineGlobally(handover.summed)),
    ):
      _ = collection | f"Save_{name}" >> beam.ParDo(handover.Save(work / name))
  rows: dict[str, dict[int, int]] = {name: {} for name in schema_lib.SPLITS}
  for (name, shard), count in handover.load(work / "rows").items():
    rows[name][shard] = count
  written = passes.Written(
    {
      name: passes.name_shards(work / "shards", directory, name, of_split)
      for name, of_split in rows.items()
    },
    _read_counts(work, "user_counts", len(users.ids)),
    _read_counts(work, "item_counts", len(items.ids)),
    _read_counts(work, "user_rows", len(users.ids)),
    _read_counts(work, "item_rows", len(items.ids)),
    handover.load(work / "leakage"),
  )
  return written, handover.load(work / "total")


class _Arrange(beam.DoFn):
  """Bucket -> bucket, with its rows sorted, and statistics of them."""

  def __init__(
    self,
    buckets: spill.Buckets,
    in_order: spill.Buckets,
    num_items: int,
    repeats: str,
  ):
    self._buckets, self._in_order = buckets, in_order
    self._num_items, self._repeats = num_items, repeats
    self._permutations: list[pathlib.Path] = []

  def save_permutations(
    self, work: pathlib.Path, users: np.ndarray, items: np.ndarray
  ) -> None:
    """Saves permutations of dense ids, if not in order of appearance."""
    for kind, permutation in (("users", users), ("items", items)):
      path = work / f"{kind}.permutation"
      handover.save_array(path, permutation)
      self._permutations.append(path)

  def process(self, bucket: int) -> Iterator[tuple[int, passes.Arranged]]:
    permutations = [np.load(p, mmap_mode="r") for p in self._permutations]
    rows, found = passes.arranged(
      self._buckets.read(bucket),
      self._num_items,
      *(permutations or (None, None)),
      self._repeats,
    )
    # Writes to another file: a bucket may be processed twice, and permuting its
    # ids twice would be wrong.
    self._in_order.replace(bucket, rows)
    yield bucket, found


def _cuts(
  buckets: beam.PCollection[int],
  total: beam.PCollection[passes.Arranged],
  in_order: spill.Buckets,
  split: schema_lib.Split,
) -> beam.PCollection[tuple[int, int]]:
  """`splits.temporal_cuts`, with one pass over all times per round."""
  searches = total | "Searches" >> beam.Map(
    lambda found: splits.temporal_searches(
      *found.times,
      test_fraction=split.test_fraction,
      validation_fraction=split.validation_fraction,
    )
  )
  for number in range(splits.SEARCH_ROUNDS):
    counts = (
      buckets
      | f"Look{number}"
      >> beam.ParDo(_CountTimes(in_order), beam.pvalue.AsSingleton(searches))
      | f"Sum{number}" >> beam.CombineGlobally(_SumArrays())
    )
    searches = searches | f"Narrow{number}" >> beam.Map(
      splits.narrowed, beam.pvalue.AsSingleton(counts)
    )
  return searches | "Cuts" >> beam.Map(splits.cuts_found)


class _CountTimes(beam.DoFn):
  """Bucket -> counts of its times that the searches need."""

  def __init__(self, in_order: spill.Buckets):
    self._in_order = in_order

  def process(
    self, bucket: int, searches: splits.Searches
  ) -> Iterator[np.ndarray]:
    yield splits.search_counts(searches, self._in_order.read(bucket)["time"])


class _SumArrays(beam.CombineFn):
  """Sums arrays of one shape."""

  def create_accumulator(self) -> np.ndarray | int:
    return 0

  def add_input(
    self, total: np.ndarray | int, array: np.ndarray
  ) -> np.ndarray | int:
    return total + array

  def merge_accumulators(
    self, totals: Iterable[np.ndarray | int]
  ) -> np.ndarray | int:
    return sum(totals)

  def extract_output(self, total: np.ndarray | int) -> np.ndarray | int:
    return total


class _Divide(beam.DoFn):
  """Bucket -> leaked rows, counts by range of ids, rows by shard."""

  def __init__(
    self,
    in_order: spill.Buckets,
    num_items: int,
    split: schema_lib.Split,
    seed: int,
  ):
    self._in_order, self._num_items = in_order, num_items
    self._split, self._seed = split, seed

  def process(
    self, bucket: int, total: passes.Arranged, cuts: tuple[int, int] | None
  ) -> Iterator[Any]:
    rows = self._in_order.read(bucket)
    parts, leaked = passes.divide(
      bucket, rows, self._num_items, self._split, cuts, self._seed
    )
    yield beam.pvalue.TaggedOutput(_FOUND, leaked)
    for name, ids in (
      ("user_counts", parts["train"]["user"]),
      ("item_counts", parts["train"]["item"]),
      ("user_rows", rows["user"]),
      ("item_rows", rows["item"]),
    ):
      for number, counted in _ranges(*np.unique(ids, return_counts=True)):
        yield beam.pvalue.TaggedOutput(_COUNTS, ((name, number), counted))
    shards = passes.shard_count(total.rows)
    for name, part in parts.items():
      for shard, share in passes.deal(part, shards):
        yield beam.pvalue.TaggedOutput(
          _SHARES, ((name, shard), (bucket, share))
        )


Counted = tuple[np.ndarray, np.ndarray]


def _ranges(
  ids: np.ndarray, counts: np.ndarray
) -> Iterator[tuple[int, Counted]]:
  """Splits ascending ids and their counts into ranges: offsets, counts."""
  number = ids // _RANGE
  for found in np.unique(number).tolist():
    of_range = number == found
    yield found, (ids[of_range] % _RANGE, counts[of_range])


class _SumCounts(beam.CombineFn):
  """Sums counts of ids; the total is an array by id."""

  def create_accumulator(self) -> np.ndarray:
    return np.zeros(0, np.int64)

  def add_input(self, total: np.ndarray, counted: Counted) -> np.ndarray:
    ids, counts = counted
    return self.merge_accumulators(
      [total, np.bincount(ids, counts).astype(np.int64)]
    )

  def merge_accumulators(self, totals: Iterable[np.ndarray]) -> np.ndarray:
    totals = sorted(totals, key=len)
    longest = totals[-1].copy()
    for total in totals[:-1]:
      longest[: len(total)] += total
    return longest

  def extract_output(self, total: np.ndarray) -> np.ndarray:
    return total


class _SaveCounts(beam.DoFn):
  """Name and range -> a file of counts by id."""

  def __init__(self, work: pathlib.Path):
    self._work = work

  def process(self, element: tuple[tuple[str, int], np.ndarray]) -> None:
    (name, number), counts = element
    handover.save_array(self._work / f"{name}-{number:05d}.counts", counts)


def _read_counts(work: pathlib.Path, name: str, size: int) -> np.ndarray:
  counts = np.zeros(size, np.int64)
  for path in handover.parts(work, name, "counts"):
    start = int(path.stem.rpartition("-")[2]) * _RANGE
    part = np.load(path)
    counts[start : start + len(part)] = part
  return counts


class _WriteShard(beam.DoFn):
  """Shard -> its file and number of rows."""

  def __init__(self, directory: pathlib.Path, dtype: np.dtype):
    self._directory, self._dtype = directory, dtype

  def process(
    self, element: tuple[Shard, Iterable[tuple[int, np.ndarray]]]
  ) -> Iterator[dict[Shard, int]]:
    (name, shard), shares = element
    with tempfile.TemporaryFile() as file:
      # Shares arrive in any order and need not fit in memory together.
      places = {}
      for bucket, share in shares:
        places[bucket] = file.tell(), len(share)
        file.write(share.tobytes())

      def write(path: pathlib.Path) -> None:
        with records.BlockWriter(path) as writer:
          for bucket in sorted(places):
            start, count = places[bucket]
            file.seek(start)
            share = np.frombuffer(
              file.read(count * self._dtype.itemsize), self._dtype
            )
            passes.append_bucket(writer, share)

      handover.write(self._directory / passes.partial_name(name, shard), write)
    yield {(name, shard): sum(count for _, count in places.values())}
