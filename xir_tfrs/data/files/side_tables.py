"""Side features of users and items from text, Parquet or TFRecord files.

    FILE.item, FILE.user       RecBole's atomic format: `price:float`
    FILE.csv, FILE.tsv         delimited text with a header line
    FILE.parquet, FILE.pq      lists for sequences
    FILE.tfrecord              `tf.train.Example`s; see `examples`

These tables are held in memory; the size of a data set's tables, not of its
interactions, is what bounds the memory of `pipelines.prepare`.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xir_tfrs.data import errors
from xir_tfrs.data.files import columns, delimited, examples, headers, parquet
from xir_tfrs.data.files import places as places_lib

Column: TypeAlias = pa.Array | np.ndarray


@dataclasses.dataclass(frozen=True)
class SideTable:
  """Side features of users or items as they stand in the input.

  Attributes:
    ids: [rows] original ids, each once.
    kinds: feature -> kind.
    columns: feature -> token: string array; token_seq: list array of strings;
      float: float32 [rows]; float_seq: float32 [rows, length]. Missing: "", an
      empty list, NaN.
    places: where the rows stand; None if they come from no file.
  """

  ids: list[str]
  kinds: dict[str, str]
  columns: dict[str, Column]
  places: places_lib.Places | None = None


# Column -> its kind, the ids first with kind "id"; the values of each, and
# where the rows stand.
_Load = Callable[[dict[str, str]], tuple[dict[str, Column], places_lib.Places]]


@dataclasses.dataclass(frozen=True)
class TableFile:
  """A file of side features whose header has been read; see `open_file`.

  Attributes:
    path: the file, as errors name it.
    header: column -> the kind that the file gives it, or None.
    header_line: the line of the header, for errors; None if there is none.
  """

  path: str
  header: dict[str, str | None]
  header_line: int | None
  _load: _Load

  def read(
    self,
    id_column: str,
    kinds: Mapping[str, str],
    separator: str = " ",
    lengths: Mapping[str, int] | None = None,
  ) -> SideTable:
    """Reads the ids and some features.

    Args:
      id_column: the column of ids; it may be a token feature, too.
      kinds: column -> the kind it is read as.
      separator: between the values of a sequence in text.
      lengths: float_seq -> how many numbers a row has; else as many as the
        longest.

    Raises:
      DataError: a value is not what its column holds, an id is empty or stands
        twice, or there are no rows.
    """
    if not separator:
      raise ValueError("`separator` must not be empty.")
    kinds = dict(kinds)
    values, places = self._load({**kinds, id_column: "id"})
    ids = columns.id_strings(values[id_column], id_column, places)
    if not len(ids):
      raise errors.DataError(
        "no rows" if self.header_line is None else "no rows below the header",
        path=self.path,
        line=self.header_line,
      )
    _require_distinct(ids, id_column, places)
    values[id_column] = ids
    convert = _Convert(places, separator, lengths or {})
    return SideTable(
      ids.to_pylist(),
      kinds,
      {name: convert(values[name], name, kind) for name, kind in kinds.items()},
      places,
    )


def open_file(path: str | os.PathLike[str]) -> TableFile:
  """Opens a file of side features; the ending of its name tells its format."""
  path = pathlib.Path(path)
  opener = _OPENERS.get(path.suffix.lower())
  if opener is None:
    raise errors.DataError(
      "not a file of side features: its name must end in"
      f" {', '.join(_OPENERS)}",
      path=path,
    )
  try:
    path.open("rb").close()
  except OSError as e:
    raise errors.DataError(
      f"cannot be read ({e.strerror})", path=path
    ) from None
  file = opener(path)
  if not file.header:
    raise errors.DataError("empty; expected rows with named columns", path=path)
  return file


def read(
  path: str | os.PathLike[str],
  id_column: str,
  wanted: Sequence[str],
  flag: str,
  separator: str,
) -> SideTable:
  """Reads the features that a flag names; see `headers.side_kinds`."""
  file = open_file(path)
  line = file.header_line
  headers.require_column(id_column, list(file.header), file.path, line)
  kinds = headers.side_kinds(
    file.header, id_column, wanted, file.path, flag, line
  )
  return file.read(id_column, kinds, separator=separator)


def _open_text(path: pathlib.Path, kind: str) -> TableFile:
  file = delimited.DelimitedFile(path, kind)
  header = headers.typed(file.header, file.path, required=kind == "atomic")

  def load(
    kinds: dict[str, str],
  ) -> tuple[dict[str, Column], places_lib.Places]:
    wanted = {
      name: {"id": "id", "float": "float?"}.get(kind, "string")
      for name, kind in kinds.items()
    }
    parts = list(file.rows(list(header), wanted))
    values = {
      name: _joined([part.columns[name] for part in parts]) for name in wanted
    }
    lines = [p.places.all(len(next(iter(p.columns.values())))) for p in parts]
    return values, places_lib.Places(
      file.path, np.concatenate(lines) if lines else 1
    )

  return TableFile(file.path, header, 1, load)


def _open_parquet(path: pathlib.Path) -> TableFile:
  _, names = parquet.open_file(path)

  def load(
    kinds: dict[str, str],
  ) -> tuple[dict[str, Column], places_lib.Places]:
    file, _ = parquet.open_file(path)
    with parquet.reading(path):
      table = file.read(columns=list(kinds))
    values = {name: columns.plain(table.column(name)) for name in kinds}
    return values, places_lib.Places(str(path), 1, "row")

  return TableFile(str(path), dict.fromkeys(names), None, load)


def _open_examples(path: pathlib.Path) -> TableFile:
  file = examples.ExampleFile(path)

  def load(
    kinds: dict[str, str],
  ) -> tuple[dict[str, Column], places_lib.Places]:
    (id_column,) = (name for name, kind in kinds.items() if kind == "id")
    values = file.read(id_column, kinds)
    return values, places_lib.Places(file.path, 1, "row")

  return TableFile(file.path, dict.fromkeys(file.names), None, load)


_OPENERS: dict[str, Callable[[pathlib.Path], TableFile]] = {
  ".user": functools.partial(_open_text, kind="atomic"),
  ".item": functools.partial(_open_text, kind="atomic"),
  ".csv": functools.partial(_open_text, kind="csv"),
  ".tsv": functools.partial(_open_text, kind="tsv"),
  ".parquet": _open_parquet,
  ".pq": _open_parquet,
  ".tfrecord": _open_examples,
}


def _joined(parts: list[Column]) -> Column:
  if not parts:
    return pa.array([], pa.string())
  if isinstance(parts[0], np.ndarray):
    return np.concatenate(parts)
  return pa.concat_arrays(parts)


def _require_distinct(
  ids: pa.Array, name: str, places: places_lib.Places
) -> None:
  if pc.count_distinct(ids).as_py() == len(ids):
    return
  first: dict[str, int] = {}
  for row, value in enumerate(ids.to_pylist()):
    if value in first:
      raise places.error(
        row,
        name,
        f"{value!r} stands twice, first in {places.unit}"
        f" {places.number(first[value])}; keep one row per id",
      )
    first[value] = row


@dataclasses.dataclass(frozen=True)
class _Convert:
  """Makes a column what `SideTable` wants it to be."""

  places: places_lib.Places
  separator: str
  lengths: Mapping[str, int]

  def __call__(self, column: Column, name: str, kind: str) -> Column:
    if kind in ("token", "float") and columns.is_list(column):
      raise self.places.error(
        None, name, f"holds lists, which kind {kind!r} cannot be"
      )
    if kind == "token":
      return columns.strings(column, name, self.places)
    if kind == "float":
      values = (
        column
        if isinstance(column, np.ndarray)
        else columns.numbers(column, name, self.places)
      )
      return columns.float32(values, name, self.places)
    values, lengths = self._values(column, name)
    if kind == "token_seq":
      values = columns.strings(values, name, self.places.of_values(lengths))
      return _list_array(*_without_empty(values, lengths))
    if pa.types.is_string(values.type):
      values, lengths = _without_empty(values, lengths)
    return self._vectors(values, lengths, name)

  def _values(self, column: pa.Array, name: str) -> tuple[pa.Array, np.ndarray]:
    """The values of all rows, one after another, and how many each has."""
    if not columns.is_list(column):
      text = columns.strings(column, name, self.places)
      column = pc.split_pattern(text, self.separator)
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    return columns.plain(column.flatten()), lengths.astype(np.int64)

  def _vectors(
    self, values: pa.Array, lengths: np.ndarray, name: str
  ) -> np.ndarray:
    """Lists of numbers as float32 [rows, length]; an empty list is missing."""
    length = self.lengths.get(name, int(lengths.max(initial=0)))
    wrong = np.flatnonzero((lengths != length) & (lengths != 0))
    if not length:
      raise self.places.error(
        0, name, "no row of this float_seq column has a value"
      )
    if wrong.size:
      raise self.places.error(
        int(wrong[0]),
        name,
        f"{lengths[wrong[0]]} numbers, expected {length}; a float_seq has"
        " the same length in every row",
      )
    of_values = self.places.of_values(lengths)
    numbers = columns.numbers(values, name, of_values)
    out = np.full([len(lengths), length], np.nan, np.float32)
    out[lengths > 0] = columns.float32(numbers, name, of_values).reshape(
      -1, length
    )
    return out


def _without_empty(
  values: pa.Array, lengths: np.ndarray
) -> tuple[pa.Array, np.ndarray]:
  """Leaves out empty strings, such as those between two separators."""
  values = pc.fill_null(values, "")
  keep = pc.not_equal(values, "").to_numpy(zero_copy_only=False)
  rows = np.repeat(np.arange(len(lengths)), lengths)[keep]
  return values.filter(pa.array(keep)), np.bincount(
    rows, minlength=len(lengths)
  )


def _list_array(values: pa.Array, lengths: np.ndarray) -> pa.ListArray:
  offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
  return pa.ListArray.from_arrays(offsets, values)
