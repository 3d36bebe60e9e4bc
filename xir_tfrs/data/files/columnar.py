"""Reads files with typed columns: Parquet, Arrow (Feather, IPC) and ORC."""

from __future__ import annotations

import abc
import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.ipc
from pyarrow import orc
from pyarrow import parquet as pq

from xir_tfrs.data import errors
from xir_tfrs.data.files import addresses, layouts, places, rows

_ROWS_PER_BATCH = 1 << 19
# Estimated bytes of text per row; at least what a row takes in a bucket.
ROW_BYTES = 32
_NAMES = {"parquet": "a Parquet", "arrow": "an Arrow", "orc": "an ORC"}


@contextlib.contextmanager
def reading(path: str | os.PathLike[str], problem: str) -> Iterator[None]:
  """Turns errors of pyarrow into a `DataError`."""
  try:
    yield
  except errors.DataError:
    raise
  except (pa.ArrowException, OSError, ValueError) as e:
    raise errors.DataError(
      f"{problem} ({' '.join(str(e).split())}); write the file again", path=path
    ) from None


class ColumnFile(rows.RowFile):
  """A file with typed columns, cut at its groups of rows."""

  def __init__(self, path: str, layout: layouts.Layout):
    what = _NAMES[layout.format]
    self._problem = f"cannot be read as {what.split()[1]}"
    with reading(path, f"empty, truncated or not {what} file"):
      source: Any = path
      if addresses.is_remote(path):
        source = addresses.open_binary(path)
      self._groups = _GROUPS[layout.format](source)
      names = rows.leaves(self._groups.schema)
    super().__init__(path, layout, names)
    self.can_be_cut = layout.format == "parquet"

  def __reduce__(self):  # The reader cannot be pickled; reopen the file.
    return type(self), (self.path, self.layout)

  @property
  def size(self) -> int:
    return sum(self._groups.sizes) * ROW_BYTES

  @property
  def text_bytes(self) -> int:
    return self.size

  def pieces(self, chunk_bytes: int) -> list[tuple[int, int]]:
    """Joins row groups until they fill a chunk."""
    pieces, start, there = [], 0, 0
    enough = max(chunk_bytes // ROW_BYTES, 1)
    for group, size in enumerate(self._groups.sizes, 1):
      there += size
      if there >= enough or group == len(self._groups.sizes):
        pieces.append((start, group))
        start, there = group, 0
    return pieces

  def position(self, start: int) -> int:
    return sum(self._groups.sizes[:start])

  def rows(
    self,
    wanted: rows.Wanted,
    chunk_bytes: int = rows.CHUNK_BYTES,
    start: int = 0,
    stop: int | None = None,
    count_lines: bool = False,
  ) -> Iterator[rows.Rows]:
    del count_lines  # The file knows the number of rows before each group.
    sizes = self._groups.sizes
    stop = len(sizes) if stop is None else min(stop, len(sizes))
    position = self.position(start)
    names = list(
      dict.fromkeys(rows.outer(n, self._groups.schema.names) for n in wanted)
    )
    size = min(_ROWS_PER_BATCH, max(chunk_bytes // ROW_BYTES, 1))
    batches = self._groups.batches(range(start, stop), names, size)
    while True:
      with reading(self.path, self._problem):
        batch = next(batches, None)
      if batch is None:
        return
      if not len(batch):
        continue
      end = position + len(batch)
      yield rows.Rows(
        {name: rows.field(batch, name) for name in wanted},
        places.Places(self.path, position + 1, "row"),
        position,
        end * ROW_BYTES,
      )
      position = end


class _Groups(abc.ABC):
  """Groups of rows of an open file.

  Attributes:
    schema: Schema of the file.
    sizes: Number of rows of each group.
  """

  schema: pa.Schema
  sizes: Sequence[int]

  @abc.abstractmethod
  def __init__(self, source: Any):
    """Takes a path or an open file."""

  @abc.abstractmethod
  def batches(
    self, groups: range, names: list[str], rows: int
  ) -> Iterator[pa.RecordBatch]:
    """Yields columns of some groups, at most `rows` rows at a time."""


class _Parquet(_Groups):
  """The row groups of a Parquet file."""

  def __init__(self, source: Any):
    # Otherwise all that was read stays in memory until the end.
    self._file = pq.ParquetFile(source, pre_buffer=False)
    self.schema = self._file.schema_arrow
    self.sizes = [
      self._file.metadata.row_group(g).num_rows
      for g in range(self._file.num_row_groups)
    ]

  def batches(
    self, groups: range, names: list[str], rows: int
  ) -> Iterator[pa.RecordBatch]:
    return self._file.iter_batches(rows, row_groups=list(groups), columns=names)


class _Arrow(_Groups):
  """The batches of an Arrow file, as Feather writes it."""

  def __init__(self, source: Any):
    if isinstance(source, str):
      source = pa.memory_map(source)
    self._file = pa.ipc.open_file(source)
    self.schema = self._file.schema
    self.sizes = [
      len(self._file.get_batch(k)) for k in range(self._file.num_record_batches)
    ]

  def batches(
    self, groups: range, names: list[str], rows: int
  ) -> Iterator[pa.RecordBatch]:
    for group in groups:
      batch = self._file.get_batch(group).select(names)
      batch.validate(full=True)  # Damaged data may crash later functions.
      for start in range(0, max(len(batch), 1), rows):
        yield batch.slice(start, rows)


class _Orc(_Groups):
  """The stripes of an ORC file."""

  def __init__(self, source: Any):
    self._file = orc.ORCFile(source)
    self.schema = self._file.schema
    self._stripes = range(self._file.nstripes)
    # Reading the first columns of a stripe is enough to count its rows.
    first = self.schema.names[:1]
    self.sizes = [
      self._file.read_stripe(k, columns=first).num_rows for k in self._stripes
    ]

  def batches(
    self, groups: range, names: list[str], rows: int
  ) -> Iterator[pa.RecordBatch]:
    for group in groups:
      batch = self._file.read_stripe(group, columns=names)
      for start in range(0, max(len(batch), 1), rows):
        yield batch.slice(start, rows)


_GROUPS: dict[str, type[_Groups]] = {
  "parquet": _Parquet,
  "arrow": _Arrow,
  "orc": _Orc,
}
