"""What files of rows have in common, whatever their format."""

from __future__ import annotations

import abc
import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from xir_tfrs.data import errors
from xir_tfrs.data.files import addresses, columns, headers, places
from xir_tfrs.data.files import layouts as layouts_lib

CHUNK_BYTES = 16 << 20
SAMPLE_BYTES = layouts_lib.SAMPLE_BYTES


@dataclasses.dataclass(frozen=True)
class Rows:
  """Columns of consecutive rows.

  Attributes:
    columns: name -> array.
    places: where the rows stand.
    begin: a number that no row before has reached: rows may count from it.
    progress: how much of the file has been read, in its own `size`.
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
    path: the file, as errors name it.
    layout: how it is read.
    names: its columns; those within others as `OUTER.INNER`.
    header_line: the line of the header, for errors; None without one.
    warnings: what was skipped in the rows that were read -> how often.
    can_be_cut: whether `rows` reads parts of it.
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
    """How much there is to read: bytes, or rows."""
    return addresses.num_bytes(self.path)

  @property
  def text_bytes(self) -> int:
    """About how many bytes the rows take as text."""
    return self.size * (4 if self.layout.compression else 1)

  @property
  def header(self) -> dict[str, str | None]:
    """Column -> the kind that the file gives it, or None."""
    return dict.fromkeys(self.names)

  @abc.abstractmethod
  def rows(
    self,
    wanted: Mapping[str, pa.DataType | None],
    chunk_bytes: int = CHUNK_BYTES,
    start: int = 0,
    stop: int | None = None,
    count_lines: bool = False,
  ) -> Iterator[Rows]:
    """Yields columns of the file.

    Args:
      wanted: column -> the type to read it as where all of a chunk is of it.
      chunk_bytes: about how much is parsed at a time.
      start, stop: the part to read, of a file that can be cut.
      count_lines: give rows their true lines, which takes reading what is
        before the part; else lines count from `start`.
    """

  def pieces(self, chunk_bytes: int) -> list[tuple[int, int]]:
    """Parts that can be read by themselves, as (start, stop)."""
    step = chunk_bytes if self.can_be_cut else max(self.size, 1)
    return [
      (start, min(start + step, self.size))
      for start in range(0, max(self.size, 1), step)
    ]

  def position(self, start: int) -> int:
    """The `Rows.begin` that a part which begins at `start` counts from."""
    return start

  def fingerprint(self) -> dict[str, str | int]:
    return addresses.fingerprint(self.path)

  def sample(self) -> Rows | None:
    """The first rows, all columns; None if there are none."""
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


def leaves(schema: pa.Schema) -> list[str]:
  """The names of the columns, and `OUTER.INNER` of those with fields."""
  within = []
  for field in schema:
    kind = field.type
    if columns.is_list_type(kind):
      kind = kind.value_type
    if pa.types.is_struct(kind):
      within += [f"{field.name}.{inner.name}" for inner in kind]
  # A column that stands twice stays so, to be refused.
  return schema.names + [
    name for name in dict.fromkeys(within) if name not in schema.names
  ]


def outer(name: str, names: Sequence[str]) -> str:
  """The column of the file that holds `name`."""
  before = name.rpartition(".")[0]
  return before if before and before in names else name


def field(table: pa.Table | pa.RecordBatch, name: str) -> pa.Array:
  """A column, or the field `OUTER.INNER` of one, of each value of a list."""
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
