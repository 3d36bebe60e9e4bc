"""First pass: reads the input, numbers the ids, and fills the buckets.

Ids are numbered in order of first appearance, and no worker holds them all.
Each block of rows has its own codes for its ids. To get the dense ids, it sends
each id, with the position of its first row, to the worker that has all mentions
of that id. The smallest position is where the id first appears in the input;
its rank among the smallest positions of all ids is the dense id. These
positions, 8 bytes per id, are in a file that workers map into memory. The
answers are joined with the rows of the block by the block's position.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import pathlib
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.options import pipeline_options
from pyarrow import feather

from pipelines.beam import handover
from pipelines.preparation import convert, passes, spill, vocabulary
from pipelines.preparation.config import PrepareConfig
from pipelines.readers import blocks
from pipelines.readers import source as source_lib
from xir_tfrs.data import errors

_SEEN, _IDS, _ROWS = "seen", "ids", "rows"
KINDS = ("users", "items")
# Kind of ids, and number of a share of them.
Share = tuple[str, int]


@dataclasses.dataclass(frozen=True)
class Mentions:
  """The ids of a block that are in one share.

  Attributes:
    block: Position of the block.
    codes: [ids] codes within the block.
    ids: [ids] original ids.
    firsts: [ids] positions of their first rows.
  """

  block: int
  codes: np.ndarray
  ids: list[str]
  firsts: np.ndarray


@dataclasses.dataclass(frozen=True)
class Seen:
  """Statistics of some or all pieces of the input.

  Attributes:
    warnings: What was skipped -> how often.
    rows: Number of a file -> its rows.
    files: Number of a file -> its fingerprint.
    largest: Kind -> the largest dense id and the first piece that has it.
    error: The first piece with an error and the error, or None.
  """

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
    return self.error[1] if self.error else source.missing_rows(self.rows)


def joined(seen: Iterable[Seen]) -> Seen:
  """Combines the statistics of pieces."""
  seen = list(seen)
  largest: dict[str, tuple[int, blocks.Piece]] = {}
  for kind, found in itertools.chain(*(s.largest.items() for s in seen)):
    known = largest.setdefault(kind, found)
    if (-found[0], found[1].position) < (-known[0], known[1].position):
      largest[kind] = found
  return Seen(
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
  work: pathlib.Path,
  buckets: spill.Buckets,
  options: pipeline_options.PipelineOptions,
) -> Seen:
  """Fills `buckets` and writes the ids to `work`; see `read_ids`."""
  with beam.Pipeline(options=options) as pipeline:
    read = (
      pipeline
      | "Pieces" >> beam.Create(source.pieces())
      | "SpreadPieces" >> beam.Reshuffle()
      | "Read"
      >> beam.ParDo(_Read(source, config, buckets)).with_outputs(
        _SEEN, _IDS, _ROWS
      )
    )
    files = (
      pipeline
      | "Files" >> beam.Create(range(source.num_files))
      | "SpreadFiles" >> beam.Reshuffle()
      | "Fingerprint" >> beam.ParDo(_Fingerprint(source))
    )
    _ = (
      (read[_SEEN], files)
      | "AllSeen" >> beam.Flatten()
      | "JoinSeen" >> beam.CombineGlobally(joined)
      | "SaveSeen" >> beam.ParDo(handover.Save(work / "seen"))
    )
    mentions = read[_IDS] | "ByShare" >> beam.GroupByKey()
    firsts = (
      mentions
      | "Firsts" >> beam.ParDo(_Firsts())
      | "ByKind" >> beam.GroupByKey()
      | "Sort" >> beam.ParDo(_Sort(work))
    )
    codes = mentions | "Number" >> beam.ParDo(
      _Number(work), beam.pvalue.AsDict(firsts)
    )
    _ = (
      {"rows": read[_ROWS], "codes": codes}
      | "ByBlock" >> beam.CoGroupByKey()
      | "Encode" >> beam.ParDo(_Encode(buckets.count))
      | "ByBucket" >> beam.GroupByKey()
      | "Spill" >> beam.ParDo(_Spill(buckets))
    )
  return handover.load(work / "seen")


def read_ids(work: pathlib.Path, kind: str) -> vocabulary.Vocabulary:
  """Reads all ids of the interactions into memory."""
  tables = [
    feather.read_table(path, memory_map=False)
    for path in handover.parts(work, kind, "ids")
  ]
  vocab = vocabulary.Vocabulary()
  if tables:
    table = pa.concat_tables(tables).sort_by("code")
    vocab.add(table.column("id").to_pylist())
  return vocab


class _Read(beam.DoFn):
  """Piece -> `Seen`, ids by share, rows by block."""

  def __init__(
    self,
    source: source_lib.Source,
    config: PrepareConfig,
    buckets: spill.Buckets,
  ):
    self._source = source
    self._config = config
    self._shares, self._dtype = buckets.count, buckets.dtype

  def process(self, piece: blocks.Piece) -> Iterator[Any]:
    # Errors are outputs. If raised, the runner would retry and wrap them, and
    # the first one raised might not be the first in the input.
    try:
      yield from self._read(piece, count_lines=False)
    except errors.DataError:
      try:
        collections.deque(self._read(piece, count_lines=True), maxlen=0)
      except errors.DataError as e:
        yield beam.pvalue.TaggedOutput(_SEEN, Seen(error=(piece, e)))

  def _read(self, piece: blocks.Piece, count_lines: bool) -> Iterator[Any]:
    dense = {
      kind: found
      for kind in KINDS
      for found in [
        convert.dense_ids(self._config, self._source, kind.removesuffix("s"))
      ]
      if found is not None
    }
    warnings: collections.Counter[str] = collections.Counter()
    read = 0
    for position, block in self._source.read(piece, count_lines):
      for kind, check in dense.items():
        check.check(block, getattr(block, kind))
      codes = {}
      for kind in KINDS:
        ids = pc.dictionary_encode(getattr(block, kind))
        codes[kind] = ids.indices.to_numpy()
        for share, mentions in _mentions(ids, position, self._shares):
          yield beam.pvalue.TaggedOutput(_IDS, ((kind, share), mentions))
      rows = passes.encoded(
        block,
        codes["users"],
        codes["items"],
        position,
        self._dtype,
        self._source.split_of(piece.file),
      )
      read += len(rows)
      rows = passes.well_rated(
        rows, block, self._config.input.columns.min_rating, warnings
      )
      if len(rows):
        yield beam.pvalue.TaggedOutput(_ROWS, (position, rows))
    warnings.update(self._source.warnings)
    largest = {kind: (dense[kind].largest, piece) for kind in dense}
    yield beam.pvalue.TaggedOutput(
      _SEEN, Seen(dict(warnings), {piece.file: read}, largest=largest)
    )


def _mentions(
  ids: pa.DictionaryArray, block: int, shares: int
) -> Iterator[tuple[int, Mentions]]:
  """The distinct ids of a block by share."""
  distinct = ids.dictionary.to_pylist()
  # Codes are 0, 1, ... in order of appearance.
  firsts = block + np.unique(ids.indices.to_numpy(), return_index=True)[1]
  # Not `hash`: its value for a string differs between processes.
  share = np.array([zlib.crc32(i.encode()) % shares for i in distinct], int)
  order = np.argsort(share, kind="stable")
  starts = np.searchsorted(share[order], np.arange(shares + 1))
  for number in np.unique(share).tolist():
    codes = order[starts[number] : starts[number + 1]]
    yield (
      number,
      Mentions(block, codes, [distinct[c] for c in codes], firsts[codes]),
    )


class _Fingerprint(beam.DoFn):
  """Number of a file -> its name, size and hash."""

  def __init__(self, source: source_lib.Source):
    self._source = source

  def process(self, file: int) -> Iterator[Seen]:
    yield Seen(files={file: self._source.fingerprint(file)})


def _distinct(
  mentions: Iterable[Mentions],
) -> tuple[pa.Array, np.ndarray, np.ndarray]:
  """The distinct ids of a share and their first positions.

  Returns:
    [ids] original ids, [ids] positions, [mentions of ids] indices into both.
  """
  mentions = list(mentions)
  ids = pc.dictionary_encode(
    pa.array(itertools.chain(*(m.ids for m in mentions)), pa.string())
  )
  indices = ids.indices.to_numpy()
  firsts = np.full(len(ids.dictionary), np.iinfo(np.int64).max)
  np.minimum.at(firsts, indices, np.concatenate([m.firsts for m in mentions]))
  return ids.dictionary, firsts, indices


class _Firsts(beam.DoFn):
  """Share -> first positions of its ids, by kind."""

  def process(
    self, element: tuple[Share, Iterable[Mentions]]
  ) -> Iterator[tuple[str, np.ndarray]]:
    (kind, _), mentions = element
    yield kind, _distinct(mentions)[1]


class _Sort(beam.DoFn):
  """Kind -> file of the sorted first positions of its ids."""

  def __init__(self, work: pathlib.Path):
    self._work = work

  def process(
    self, element: tuple[str, Iterable[np.ndarray]]
  ) -> Iterator[tuple[str, pathlib.Path]]:
    kind, firsts = element
    path = self._work / f"{kind}.firsts"
    handover.save_array(path, np.sort(np.concatenate(list(firsts))))
    yield kind, path


class _Number(beam.DoFn):
  """Share -> answers by block: kind, codes of the block, dense ids."""

  def __init__(self, work: pathlib.Path):
    self._work = work

  def process(
    self,
    element: tuple[Share, Iterable[Mentions]],
    all_firsts: dict[str, pathlib.Path],
  ) -> Iterator[tuple[int, tuple[str, np.ndarray, np.ndarray]]]:
    (kind, share), mentions = element
    mentions = list(mentions)
    ids, firsts, indices = _distinct(mentions)
    # Positions are unique per kind: a row has one user and one item.
    dense = np.searchsorted(
      np.load(all_firsts[kind], mmap_mode="r"), firsts
    ).astype(np.int32)
    table = pa.table({"id": ids, "code": dense})
    handover.write(
      self._work / f"{kind}-{share:05d}.ids",
      lambda partial: feather.write_feather(table, str(partial)),
    )
    dense, start = dense[indices], 0
    for asked in mentions:
      stop = start + len(asked.codes)
      yield asked.block, (kind, asked.codes, dense[start:stop])
      start = stop


class _Encode(beam.DoFn):
  """Block with its answers -> its rows with dense ids, by bucket."""

  def __init__(self, num_buckets: int):
    self._num_buckets = num_buckets

  def process(
    self, element: tuple[int, dict[str, Iterable]]
  ) -> Iterator[tuple[int, tuple[int, np.ndarray]]]:
    position, found = element
    answers: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {
      kind: [] for kind in KINDS
    }
    for kind, codes, dense in found["codes"]:
      answers[kind].append((codes, dense))
    for rows in found["rows"]:  # One, or none if all ratings are too low.
      rows = rows.copy()
      for kind, field in (("users", "user"), ("items", "item")):
        codes, dense = map(np.concatenate, zip(*answers[kind], strict=True))
        by_code = np.empty(len(codes), np.int32)
        by_code[codes] = dense
        rows[field] = by_code[rows[field]]
      for bucket, part in spill.by_bucket(
        rows["user"], rows, self._num_buckets
      ):
        yield bucket, (position, part)


class _Spill(beam.DoFn):
  """Bucket -> its file."""

  def __init__(self, buckets: spill.Buckets):
    self._buckets = buckets

  def process(
    self, element: tuple[int, Iterable[tuple[int, np.ndarray]]]
  ) -> None:
    bucket, parts = element
    parts = sorted(parts, key=lambda part: part[0])
    self._buckets.replace(bucket, np.concatenate([rows for _, rows in parts]))
