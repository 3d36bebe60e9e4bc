"""Second pass: sorts, splits and writes the rows of each bucket.

One worker processes a bucket, with the functions of `pipelines.prepare`.
Buckets are combined for the statistics, for the cuts of a temporal split, and
for the shards, which take their rows bucket after bucket.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Sequence

import apache_beam as beam
import numpy as np
from apache_beam.options import pipeline_options

from pipelines.beam import handover, stages
from pipelines.beam.work import KINDS, Work
from pipelines.preparation import passes, splits
from pipelines.preparation.config import PrepareConfig
from xir_tfrs.data import record_files
from xir_tfrs.data import schema as schema_lib

# Split, number of a shard, and number of shards.
Shard = tuple[str, int, int]


def run(
  config: PrepareConfig,
  directory: pathlib.Path,
  work: Work,
  sizes: Sequence[int],
  permutations: Sequence[np.ndarray | None],
  options: pipeline_options.PipelineOptions,
) -> tuple[passes.Written, passes.Arranged]:
  """Writes the splits.

  Args:
    config: The settings.
    directory: The data directory.
    work: The files of the first pass.
    sizes: Number of users and of items.
    permutations: Code -> dense id, of users and of items; None if they are the
      same.
    options: The options of Beam.

  Returns:
    The files and overall statistics.
  """
  for kind, permutation in zip(KINDS, permutations, strict=True):
    if permutation is not None:
      handover.save_array(work.permutation(kind), permutation)
  second = _SecondPass(
    work,
    sizes[1],
    permutations[0] is not None,
    config.kept_repeats,
    config.row_split,
    config.seed,
  )
  with beam.Pipeline(options=options) as pipeline:
    tasks = stages.tasks(pipeline, map(Bucket, range(work.buckets)))
    if config.row_split.kind == "temporal":
      tasks = _with_cuts(tasks, second)
    divided = stages.stage(tasks, "Divide", second.divide)
    shards = stages.after(divided, "Shards", second.shards)
    stages.stage(shards, "Write", second.write)
  totals: Totals = handover.load(work.written)
  rows: dict[str, dict[int, int]] = {name: {} for name in schema_lib.SPLITS}
  for (name, shard), count in totals.rows.items():
    rows[name][shard] = count
  written = passes.Written(
    {
      name: passes.name_shards(work.shards, directory, name, of_split)
      for name, of_split in rows.items()
    },
    *_read_counts(work, sizes),
    totals.leakage,
  )
  return written, totals.arranged


@dataclasses.dataclass(frozen=True)
class Bucket:
  """A bucket and what is known of it.

  Attributes:
    number: Number of the bucket.
    found: Statistics of its rows; None until they are sorted.
    searches: The state of the searches for the cuts of a temporal split.
  """

  number: int
  found: passes.Arranged | None = None
  searches: splits.Searches | None = None


@dataclasses.dataclass(frozen=True)
class Divided:
  """What came of a bucket.

  Attributes:
    found: Statistics of its rows.
    leaked: Leakage check -> number of offending rows.
    rows: Split -> number of rows.
  """

  found: passes.Arranged
  leaked: dict[str, int]
  rows: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Totals:
  """What came of all buckets.

  Attributes:
    arranged: Statistics of the rows.
    leakage: Leakage check -> number of offending rows.
    rows: Split and shard -> number of rows, if there are any.
  """

  arranged: passes.Arranged
  leakage: dict[str, int]
  rows: dict[tuple[str, int], int]


def _with_cuts(
  tasks: beam.PCollection, second: _SecondPass
) -> beam.PCollection:
  """`splits.temporal_cuts`, with one pass over all times per round."""
  arranged = stages.stage(tasks, "Arrange", second.arrange)
  tasks = stages.after(arranged, "Searches", second.searches)
  for turn in range(splits.SEARCH_ROUNDS):
    looked = stages.stage(
      tasks, f"Look{turn}", functools.partial(second.look, turn)
    )
    tasks = stages.after(
      looked, f"Narrow{turn}", functools.partial(second.narrow, turn)
    )
  return tasks


@dataclasses.dataclass(frozen=True)
class _SecondPass:
  """The stages, in order, and what to do between them."""

  work: Work
  num_items: int
  is_permuted: bool
  repeats: str
  split: schema_lib.Split
  seed: int

  def arrange(self, bucket: Bucket) -> Bucket:
    """Writes the sorted rows of a bucket."""
    rows, found = self._arranged(bucket.number)
    self.work.sorted(bucket.number).write([len(rows)], rows)
    return dataclasses.replace(bucket, found=found)

  def _arranged(self, bucket: int) -> tuple[np.ndarray, passes.Arranged]:
    permutations = [
      np.load(self.work.permutation(kind), mmap_mode="r")
      if self.is_permuted
      else None
      for kind in KINDS
    ]
    rows = np.concatenate(
      [self.work.spilled(block).read(bucket) for block in self.work.blocks]
    )
    return passes.arranged(rows, self.num_items, *permutations, self.repeats)

  def searches(self, buckets: list[Bucket]) -> Iterator[Bucket]:
    """Starts the searches for the cuts."""
    searches = splits.temporal_searches(
      *splits.joined_ranges(b.found.times for b in buckets),
      test_fraction=self.split.test_fraction,
      validation_fraction=self.split.validation_fraction,
    )
    for bucket in buckets:
      yield dataclasses.replace(bucket, searches=searches)

  def look(self, turn: int, bucket: Bucket) -> Bucket:
    """Writes the counts of a bucket's times that the searches need."""
    if not _are_done(bucket.searches):
      times = self.work.sorted(bucket.number).read(0)["time"]
      handover.save_array(
        self.work.bins(bucket.number, turn),
        splits.search_counts(bucket.searches, times),
      )
    return bucket

  def narrow(self, turn: int, buckets: list[Bucket]) -> Iterator[Bucket]:
    """Continues the searches."""
    searches = buckets[0].searches
    if not _are_done(searches):
      counts = sum(np.load(self.work.bins(b.number, turn)) for b in buckets)
      searches = splits.narrowed(searches, counts)
    for bucket in buckets:
      yield dataclasses.replace(bucket, searches=searches)

  def divide(self, bucket: Bucket) -> Divided:
    """Writes the rows of a bucket by split, and the counts of its ids."""
    if bucket.found is None:
      rows, found = self._arranged(bucket.number)
    else:
      rows, found = self.work.sorted(bucket.number).read(0), bucket.found
    cuts = bucket.searches and splits.cuts_found(bucket.searches)
    parts, leaked = passes.divide(
      bucket.number, rows, self.num_items, self.split, cuts, self.seed
    )
    counts = {
      kind: [
        np.unique(ids, return_counts=True)
        for ids in (parts["train"][field], rows[field])
      ]
      for kind, field in KINDS.items()
    }
    handover.save(self.work.counts(bucket.number), counts)
    lengths = {name: len(parts[name]) for name in schema_lib.SPLITS}
    self.work.divided(bucket.number).write(
      list(lengths.values()),
      np.concatenate([parts[name] for name in schema_lib.SPLITS]),
    )
    return Divided(found, leaked, lengths)

  def shards(self, buckets: list[Divided]) -> Iterator[Shard]:
    """Saves the statistics; yields the shards that have rows."""
    total = passes.joined(bucket.found for bucket in buckets)
    shards = passes.shard_count(total.rows)
    rows = {}
    for shard in range(shards):
      for name in schema_lib.SPLITS:
        ranges = (passes.share(b.rows[name], shard, shards) for b in buckets)
        if count := sum(stop - start for start, stop in ranges):
          rows[name, shard] = count
          yield name, shard, shards
    leakage = handover.summed(bucket.leaked for bucket in buckets)
    handover.save(self.work.written, Totals(total, leakage, rows))

  def write(self, task: Shard) -> None:
    """Writes a shard."""
    split, shard, shards = task
    number = schema_lib.SPLITS.index(split)
    of_shard = functools.partial(passes.share, shard=shard, shards=shards)

    def write(path: pathlib.Path) -> None:
      with record_files.BlockWriter(path) as writer:
        for bucket in range(self.work.buckets):
          rows = self.work.divided(bucket).read(number, of_shard)
          passes.append_bucket(writer, rows)

    handover.write(self.work.shards / passes.partial_name(split, shard), write)


def _are_done(searches: splits.Searches) -> bool:
  return all(search.done for search in searches)


def _read_counts(work: Work, sizes: Sequence[int]) -> list[np.ndarray]:
  """The counts of `passes.Written`: of training rows, then of all rows."""
  counts = [np.zeros(size, np.int64) for _ in range(2) for size in sizes]
  for bucket in range(work.buckets):
    found = handover.load(work.counts(bucket))
    for number, kind in enumerate(KINDS):
      for of_all, (ids, count) in enumerate(found[kind]):
        counts[number + len(KINDS) * of_all][ids] += count
  return counts
