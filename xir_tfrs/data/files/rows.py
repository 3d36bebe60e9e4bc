"""The common interface of files of rows."""

from __future__ import annotations

import abc
import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from xir_tfrs.data import errors
from xir_tfrs.data.files import addresses, columns, headers, places, text
from xir_tfrs.data.files import layouts as layouts_lib

CHUNK_BYTES = 16 << 20
SAMPLE_BYTES = layouts_lib.SAMPLE_BYTES
# Column -> type to read it as, if a whole chunk has this type, or None.
Wanted: TypeAlias = Mapping[str, pa.DataType | None]


@dataclasses.dataclass(frozen=True)
class Rows:
  """Columns of consecutive rows.

  Attributes:
    columns: name -> array.
    places: Positions of the rows.
    begin: A number above those of all earlier rows, to count rows from.
    progress: How much of the file has been read, in units of its `size`.
  """

  columns: dict[str, pa.Array]
  places: places.Places
  begin: int
  progress: int

  def __len__(self) -> int:
    return len(next(iter(self.columns.values()), ()))


class RowFile(abc.ABC):
  """A file of rows with named columns.

  Attributes:
    path: The file, as errors name it.
    layout: The layout.
    names: The columns; nested ones as `OUTER.INNER`.
    header_line: The line of the header, for errors; None without a header.
    warnings: What was skipped while reading -> how often.
    can_be_cut: Whether `rows` can read parts of the file.
  """

  header_line: int | None = None
  can_be_cut = False

  def __init__(
    self, path: str, layout: layouts_lib.Layout, names: Sequence[str]
  ):
    headers.require_distinct(names, path, self.header_line)
    self.path, self.layout, self.names = path, layout, list(names)
    self.warnings: collections.Counter[str] = collections.Counter()

  @property
  def size(self) -> int:
    """Total amount to read, in bytes or rows."""
    return addresses.num_bytes(self.path)

  @property
  def text_bytes(self) -> int:
    """Approximate size of the rows as text, in bytes."""
    return self.size * (4 if self.layout.compression else 1)

  @property
  def header(self) -> dict[str, str | None]:
    """Column -> its kind according to the file, or None."""
    return dict.fromkeys(self.names)

  @abc.abstractmethod
  def rows(
    self,
    wanted: Wanted,
    chunk_bytes: int = CHUNK_BYTES,
    start: int = 0,
    stop: int | None = None,
    count_lines: bool = False,
  ) -> Iterator[Rows]:
    """Yields columns of the file.

    Args:
      wanted: The columns to read.
      chunk_bytes: Approximate bytes to parse at a time.
      start: Start of the part to read, if the file can be cut.
      stop: End of the part.
      count_lines: Whether to give rows their true lines, which requires reading
        the file before the part; otherwise lines count from `start`.
    """

  def pieces(self, chunk_bytes: int) -> list[tuple[int, int]]:
    """Returns parts that can be read independently, as (start, stop)."""
    step = chunk_bytes if self.can_be_cut else max(self.size, 1)
    return [
      (start, min(start + step, self.size))
      for start in range(0, max(self.size, 1), step)
    ]

  def position(self, start: int) -> int:
    """Returns the `Rows.begin` of the part that starts at `start`."""
    return start

  def fingerprint(self) -> dict[str, str | int]:
    return addresses.fingerprint(self.path)

  def sample(self) -> Rows | None:
    """Reads the first rows with all columns; None if there are none."""
    for rows in self.rows(dict.fromkeys(self.names), SAMPLE_BYTES):
      if len(rows):
        return rows
    return None

  def no_rows(self) -> errors.DataError:
    return errors.DataError(
      "no rows below the header" if self.layout.header else "no rows",
      path=self.path,
      line=self.header_line,
    )


class TextRowFile(RowFile):
  """A file of rows that is text: `_text` reads its lines, `_read` its rows."""

  _text: text.TextFile

  def fingerprint(self) -> dict[str, str | int]:
    return self._text.fingerprint()

  def rows(
    self,
    wanted: Wanted,
    chunk_bytes: int = CHUNK_BYTES,
    start: int = 0,
    stop: int | None = None,
    count_lines: bool = False,
  ) -> Iterator[Rows]:
    self.warnings.clear()
    chunks = self._text.chunks(
      chunk_bytes, start=start, stop=stop, count_lines=count_lines
    )
    yield from self._read(chunks, wanted)
    if not self._text.ends_in_newline:
      self.warnings["last_line_without_newline"] += 1

  def _read(
    self, chunks: Iterator[text.Chunk], wanted: Wanted
  ) -> Iterator[Rows]:
    """Yields the wanted columns of chunks of lines, see `rows`."""
    raise NotImplementedError


def leaves(schema: pa.Schema) -> list[str]:
  """The names of the columns, as `OUTER.INNER` for structs."""
  within = []
  for field in schema:
    kind = field.type
    if columns.is_list_type(kind):
      kind = kind.value_type
    if pa.types.is_struct(kind):
      within += [f"{field.name}.{inner.name}" for inner in kind]
  # Duplicate columns stay, so that the caller can refuse them.
  return schema.names + [
    name for name in dict.fromkeys(within) if name not in schema.names
  ]


def outer(name: str, names: Sequence[str]) -> str:
  """The column of the file that holds `name`."""
  before = name.rpartition(".")[0]
  return before if before and before in names else name


def field(table: pa.Table | pa.RecordBatch, name: str) -> pa.Array:
  """A column, or the field `OUTER.INNER`; maps over the values of lists."""
  if name in table.schema.names:
    return columns.plain(table.column(name))
  before, _, inner = name.rpartition(".")
  column = columns.plain(table.column(before))
  if not columns.is_list(column):
    return pc.struct_field(column, inner)
  values = pc.struct_field(column.values, inner)
  return pa.ListArray.from_arrays(
    column.offsets, values, mask=column.is_null() if column.null_count else None
  )
