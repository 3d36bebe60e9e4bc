"""First pass: reads the input, numbers the ids, and fills the buckets.

Ids are numbered in order of first appearance, and no worker holds them all.
Each block of rows has its own codes for its ids. Ids are cut into shares; the
worker that has a share reads its ids of all blocks, with the position of the
first row of each. The smallest position is where the id first appears in the
input; its rank among the smallest positions of all ids is the dense id. These
positions, 8 bytes per id, are in a file that workers map into memory. Each
share writes its answers for each block, which then gets its dense ids.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import pathlib
from collections.abc import Iterable, Iterator

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.options import pipeline_options
from pyarrow import feather

from pipelines.beam import handover, stages
from pipelines.beam.work import KINDS, Work
from pipelines.preparation import passes, spill, vocabulary
from pipelines.preparation.config import PrepareConfig
from pipelines.readers import blocks
from pipelines.readers import source as source_lib
from xir_tfrs.data import errors

# Kind of ids, and number of a share of them.
Share = tuple[str, int]
_MENTIONS = pa.schema({"id": pa.string(), "first": pa.int64()})


@dataclasses.dataclass(frozen=True)
class Seen:
  """Statistics of some or all pieces of the input.

  Attributes:
    blocks: Positions of the blocks.
    warnings: What was skipped -> how often.
    rows: Number of a file -> its rows.
    files: Number of a file -> its fingerprint.
    largest: Kind -> the largest dense id and the first piece that has it.
    error: The first piece with an error and the error, or None.
  """

  blocks: list[int] = dataclasses.field(default_factory=list)
  warnings: dict[str, int] = dataclasses.field(default_factory=dict)
  rows: dict[int, int] = dataclasses.field(default_factory=dict)
  files: dict[int, dict[str, str | int]] = dataclasses.field(
    default_factory=dict
  )
  largest: dict[str, tuple[int, blocks.Piece]] = dataclasses.field(
    default_factory=dict
  )
  error: tuple[blocks.Piece, errors.DataError] | None = None

  def first_error(self, source: source_lib.Source) -> errors.DataError | None:
    """The error that reading the files in order would raise."""
    if self.error:
      return self.error[1]
    return source.missing_rows(self.rows, self.warnings)


def joined(seen: Iterable[Seen]) -> Seen:
  """Combines the statistics of pieces."""
  seen = list(seen)
  largest: dict[str, tuple[int, blocks.Piece]] = {}
  for kind, found in itertools.chain(*(s.largest.items() for s in seen)):
    known = largest.setdefault(kind, found)
    if (-found[0], found[1].position) < (-known[0], known[1].position):
      largest[kind] = found
  return Seen(
    sorted(itertools.chain(*(s.blocks for s in seen))),
    handover.summed(s.warnings for s in seen),
    handover.summed(s.rows for s in seen),
    dict(itertools.chain(*(s.files.items() for s in seen))),
    largest,
    min(
      (s.error for s in seen if s.error),
      key=lambda error: error[0].position,
      default=None,
    ),
  )


def run(
  config: PrepareConfig,
  source: source_lib.Source,
  work: Work,
  options: pipeline_options.PipelineOptions,
) -> Seen:
  """Writes the rows of each block by bucket, and the ids; see `read_ids`."""
  first = _FirstPass(config, source, work)
  with beam.Pipeline(options=options) as pipeline:
    tasks = stages.tasks(pipeline, [*source.pieces(), *range(source.num_files)])
    read = stages.stage(tasks, "Read", first.read)
    shares = stages.after(read, "Shares", first.shares)
    found = stages.stage(shares, "Distinct", first.distinct)
    ranked = stages.after(found, "Rank", first.rank)
    numbered = stages.stage(ranked, "Number", first.number)
    encoded = stages.after(numbered, "Blocks", first.to_encode)
    stages.stage(encoded, "Encode", first.encode)
  return handover.load(work.seen)


def read_ids(work: Work, kind: str) -> vocabulary.Vocabulary:
  """Reads all ids of the interactions into memory."""
  table = pa.concat_tables(
    feather.read_table(work.ids(kind, share), memory_map=False)
    for share in range(work.buckets)
  )
  vocab = vocabulary.Vocabulary()
  vocab.encode_all(table.sort_by("first").column("id").chunks)
  return vocab


@dataclasses.dataclass(frozen=True)
class _FirstPass:
  """The stages, in order, and what to do between them."""

  config: PrepareConfig
  source: source_lib.Source
  work: Work

  def read(self, task: blocks.Piece | int) -> Seen:
    """Writes the blocks of a piece, or takes the fingerprint of a file."""
    if isinstance(task, int):
      return Seen(files={task: self.source.fingerprint(task)})
    # Errors are results. If raised, the runner would retry and wrap them, and
    # the first one raised might not be the first in the input.
    try:
      return self._read(task, count_lines=False)
    except errors.DataError:
      try:
        return self._read(task, count_lines=True)
      except errors.DataError as e:
        return Seen(error=(task, e))

  def _read(self, piece: blocks.Piece, count_lines: bool) -> Seen:
    dense = {
      kind: found
      for kind, side in KINDS.items()
      if (found := vocabulary.dense_ids(self.config, self.source, side))
    }
    warnings: collections.Counter[str] = collections.Counter()
    positions, read = [], 0
    for position, block in self.source.read(piece, count_lines):
      for kind, check in dense.items():
        check.check(block, getattr(block, kind))
      codes = [self._mentions(kind, position, block) for kind in KINDS]
      rows = passes.encoded(
        block,
        *codes,
        position,
        self.work.rows,
        self.source.split_of(piece.file),
      )
      read += len(rows)
      rows = passes.well_rated(
        rows, block, self.config.input.columns.min_rating, warnings
      )
      self.work.block(position).write([len(rows)], rows)
      positions.append(position)
    warnings.update(self.source.warnings)
    largest = {kind: (dense[kind].largest, piece) for kind in dense}
    return Seen(positions, dict(warnings), {piece.file: read}, largest=largest)

  def _mentions(
    self, kind: str, position: int, block: blocks.Block
  ) -> np.ndarray:
    """Writes the distinct ids of a block; returns [rows] their codes.

    Codes are in the order of the file, share after share.
    """
    ids = pc.dictionary_encode(getattr(block, kind))
    names = ids.dictionary.cast(pa.string())
    share = shares_of(names, self.work.buckets)
    order = np.argsort(share, kind="stable")
    codes = np.empty(len(order), np.int32)
    codes[order] = np.arange(len(order), dtype=np.int32)
    indices = ids.indices.to_numpy()
    firsts = position + _first_places(indices, len(order))
    batch = pa.record_batch(
      [names.take(pa.array(order)), firsts[order]], schema=_MENTIONS
    )
    ends = np.cumsum(np.bincount(share, minlength=self.work.buckets)).tolist()

    def write(partial: pathlib.Path) -> None:
      with pa.ipc.new_file(str(partial), _MENTIONS) as writer:
        for start, end in itertools.pairwise([0, *ends]):
          writer.write_batch(batch.slice(start, end - start))

    handover.write(self.work.mentions(kind, position), write)
    return codes[indices]

  def shares(self, seen: list[Seen]) -> Iterator[Share]:
    """Saves the statistics; without an error, there is more to do."""
    total = joined(seen)
    handover.save(self.work.seen, total)
    if total.first_error(self.source) is None:
      yield from itertools.product(KINDS, range(self.work.buckets))

  def distinct(self, task: Share) -> Share:
    """Finds the distinct ids of a share, and where each first appears."""
    kind, share = task
    batches = []
    positions = self.work.blocks
    for position in positions:
      with pa.OSFile(str(self.work.mentions(kind, position))) as file:
        batches.append(pa.ipc.open_file(file).get_batch(share))
    mentions = pa.Table.from_batches(batches, _MENTIONS).combine_chunks()
    ids = pc.dictionary_encode(mentions.column("id").combine_chunks())
    indices = ids.indices.to_numpy()
    # Blocks are in order of position, so the first mention has the first row.
    places = _first_places(indices, len(ids.dictionary))
    table = pa.table(
      {
        "id": ids.dictionary,
        "first": mentions.column("first").to_numpy()[places],
      }
    )
    handover.write(
      self.work.ids(*task),
      lambda partial: feather.write_feather(
        table, str(partial), compression="uncompressed"
      ),
    )
    self.work.indices(*task, len(positions)).write(
      [len(batch) for batch in batches], indices
    )
    return task

  def rank(self, shares: list[Share]) -> Iterator[Share]:
    """Sorts the positions at which ids first appear."""
    for kind in KINDS:
      firsts = [
        self._firsts(share) for share in sorted(shares) if share[0] == kind
      ]
      handover.save_array(
        self.work.firsts(kind), np.sort(np.concatenate(firsts))
      )
    yield from shares

  def _firsts(self, share: Share) -> np.ndarray:
    table = feather.read_table(self.work.ids(*share), columns=["first"])
    return table.column("first").to_numpy()

  def number(self, task: Share) -> None:
    """Writes the dense ids of a share's mentions, by block."""
    # Positions are unique per kind: a row has one user and one item.
    ranks = np.load(self.work.firsts(task[0]), mmap_mode="r")
    dense = np.searchsorted(ranks, self._firsts(task)).astype(np.int32)
    positions = self.work.blocks
    indices = self.work.indices(*task, len(positions))
    self.work.codes(*task, len(positions)).write(
      indices.lengths(), dense[indices.read_all()]
    )

  def to_encode(self, unused_numbered: list[None]) -> Iterator[tuple[int, int]]:
    yield from enumerate(self.work.blocks)

  def encode(self, task: tuple[int, int]) -> None:
    """Gives the rows of a block their dense ids, and sorts them by bucket."""
    number, position = task
    blocks_read = len(self.work.blocks)
    rows = self.work.block(position).read(0)
    for kind, field in KINDS.items():
      dense = np.concatenate(
        [
          self.work.codes(kind, share, blocks_read).read(number)
          for share in range(self.work.buckets)
        ]
      )
      rows[field] = dense[rows[field]]
    lengths, parts = np.zeros(self.work.buckets, np.int64), [rows[:0]]
    for bucket, part in spill.by_bucket(rows["user"], rows, self.work.buckets):
      lengths[bucket] = len(part)
      parts.append(part)
    self.work.spilled(position).write(lengths, np.concatenate(parts))


# Random weights of the bytes of an id, by place; longer ids use them again.
_WEIGHTS = np.random.default_rng(0).integers(1 << 32, size=256, dtype=np.uint32)


def shares_of(ids: pa.StringArray, count: int) -> np.ndarray:
  """Spreads ids over shares, the same in every process.

  Args:
    ids: [n] ids, none of them empty.
    count: Number of shares.

  Returns:
    [n] uint16 shares: a weighted sum of the bytes of each id, modulo `count`.
  """
  if not len(ids):
    return np.empty(0, np.uint16)
  _, offsets, data = ids.buffers()
  ends = np.frombuffer(offsets, np.int32)[ids.offset :][: len(ids) + 1]
  text = np.frombuffer(data, np.uint8)[ends[0] : ends[-1]]
  starts = ends[:-1] - ends[0]
  places = np.arange(len(text), dtype=np.int32)
  places -= np.repeat(starts, np.diff(ends))
  weighted = _WEIGHTS[places & 255] * (text.astype(np.uint32) + 1)
  # The upper bits depend on all bits of the bytes.
  mixed = np.add.reduceat(weighted, starts, dtype=np.uint32) >> 16
  return (mixed % count).astype(np.uint16)


def _first_places(indices: np.ndarray, count: int) -> np.ndarray:
  """[count] places where each of 0, ..., count - 1 is first in `indices`."""
  places = np.empty(count, np.int64)
  # Of equal indices, the last assignment holds.
  places[indices[::-1]] = np.arange(len(indices))[::-1]
  return places
