"""Reads side features of users and items from any file of rows.

Besides the formats of `layouts`, FILE.tfrecord may hold `tf.train.Example`s;
see `examples`. Tables are held in memory, so the size of the tables, not the
number of interactions, determines the memory of `pipelines.prepare`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xir_tfrs.data import errors
from xir_tfrs.data.files import (
  addresses,
  columns,
  examples,
  headers,
  layouts,
  opening,
)
from xir_tfrs.data.files import names as names_lib
from xir_tfrs.data.files import places as places_lib
from xir_tfrs.data.files import rows as rows_lib

Column: TypeAlias = pa.Array | np.ndarray


@dataclasses.dataclass(frozen=True)
class SideTable:
  """Raw side features of users or items.

  Attributes:
    ids: [rows] distinct original ids.
    kinds: feature -> kind.
    columns: feature -> token, text: string array; token_seq: list array of
      strings; float: float32 [rows]; float_seq: float32 [rows, length]. Missing
      values are "", an empty list or NaN.
    places: Positions of the rows; None if they do not come from a file.
    separators: sequence -> separator of its values, if it is text.
    titles: [rows] string array of titles, if requested.
    ignored: Columns of the file that were not read.
  """

  ids: list[str]
  kinds: dict[str, str]
  columns: dict[str, Column]
  places: places_lib.Places | None = None
  separators: dict[str, str] = dataclasses.field(default_factory=dict)
  titles: pa.Array | None = None
  ignored: tuple[str, ...] = ()


# Loads columns (column -> kind, with the ids first as kind "id"): returns the
# values of each and the places of the rows.
_Load = Callable[[dict[str, str]], tuple[dict[str, Column], places_lib.Places]]


@dataclasses.dataclass(frozen=True)
class TableFile:
  """A file of side features with a known header; see `open_file`.

  Attributes:
    path: The file, as errors name it.
    header: column -> its kind according to the file, or None.
    header_line: The line of the header, for errors; None if there is none.
    format: Format of the file, as in `layouts`.
  """

  path: str
  header: dict[str, str | None]
  header_line: int | None
  _load: _Load
  format: str

  def read(
    self,
    id_column: str,
    kinds: Mapping[str, str],
    separator: str | None = " ",
    lengths: Mapping[str, int] | None = None,
    separators: Mapping[str, str] | None = None,
    title: str | None = None,
  ) -> SideTable:
    """Reads the ids and some features.

    Args:
      id_column: The column of ids; it may also be a token feature.
      kinds: column -> kind to read it as. `PREFIX*` of kind token_seq means all
        columns that start with PREFIX and hold 0 or 1; its tokens are the rest
        of the names of the columns with 1.
      separator: Separator of the values of a sequence in text; by default it is
        guessed from the values.
      lengths: float_seq -> numbers per row; by default the longest row decides.
      separators: sequence -> its own separator.
      title: The column of titles; it may also be a feature.

    Raises:
      DataError: A value does not match its kind, an id is empty or appears
        twice, or there are no rows.
    """
    if separator == "":
      raise ValueError("`separator` must not be empty.")
    several = {name: self._columns(name) for name in kinds if name[-1:] == "*"}
    plain = {name: kind for name, kind in kinds.items() if name not in several}
    single = {name: "float" for names in several.values() for name in names}
    shown = {} if title is None else {title: "token"}
    wanted = {**shown, **single, **plain, id_column: "id"}
    values, places = self._load(wanted)
    ids = columns.id_strings(values[id_column], id_column, places)
    if not len(ids):
      raise errors.DataError(
        "no rows" if self.header_line is None else "no rows below the header",
        path=self.path,
        line=self.header_line,
      )
    _require_distinct(ids, id_column, places)
    values[id_column] = ids
    if self.format == "atomic":
      separator = separator or " "
    convert = _Convert(places, separator, lengths or {}, dict(separators or {}))
    found: dict[str, Column] = {}
    for name, kind in kinds.items():
      if name in several:
        found[feature_name(name)] = _one_hot(
          values, several[name], name, places
        )
      else:
        found[name] = convert(values[name], name, kind)
    return SideTable(
      ids.to_pylist(),
      {feature_name(name): kind for name, kind in kinds.items()},
      found,
      places,
      {
        name: mark for name, mark in convert.separators.items() if name in kinds
      },
      None if title is None else columns.titles(values[title], title, places),
      tuple(name for name in self.header if name not in wanted),
    )

  def _columns(self, pattern: str) -> list[str]:
    return [name for name in self.header if name.startswith(pattern[:-1])]


def feature_name(name: str) -> str:
  """The name of a feature; `genre` for `genre_*`."""
  return name[:-1].rstrip("_-.: ") or "tokens" if name[-1:] == "*" else name


def _one_hot(
  values: dict[str, Column],
  names: Sequence[str],
  pattern: str,
  places: places_lib.Places,
) -> pa.ListArray:
  """The names of the columns with a 1, without their prefix."""
  there = []
  for name in names:
    numbers = columns.numbers(values[name], name, places)
    wrong = np.flatnonzero(~(np.isnan(numbers) | np.isin(numbers, (0, 1))))
    if wrong.size:
      raise places.error(
        int(wrong[0]), name, f"{numbers[wrong[0]]:g} is neither 0 nor 1"
      )
    there.append(numbers == 1)
  mask = np.stack(there, axis=1)
  tokens = pa.array([name[len(pattern) - 1 :] for name in names], pa.string())
  return _list_array(
    tokens.take(pa.array(np.nonzero(mask)[1])), mask.sum(axis=1)
  )


def open_file(
  path: addresses.Address, wish: layouts.Wish | None = None
) -> TableFile:
  """Opens a file of side features; see `layouts.detect`."""
  wish = dataclasses.replace(wish or layouts.Wish(), expects_header=True)
  layout = layouts.detect(path, wish)
  if layout.format == "adjacency":
    raise errors.DataError(
      "not a table of side features: its lines hold different numbers of words",
      path=path,
    )
  if layout.format == "tfrecord":
    file = _open_examples(path)
  else:
    file = _of_rows(opening.open_rows(path, layout))
  if not file.header:
    raise errors.DataError("empty; expected rows with named columns", path=path)
  return file


def read(
  path: addresses.Address,
  id_column: str,
  wanted: Sequence[str],
  flag: str,
  separator: str | None = None,
  *,
  separators: Mapping[str, str] | None = None,
  wish: layouts.Wish | None = None,
  title: str | None = None,
) -> SideTable:
  """Reads the features that a flag names; see `headers.side_kinds`.

  Args:
    path: The file.
    id_column: Name of the id column in the interactions or in the file.
    wanted: NAME or NAME:KIND for each; if empty, all columns with a kind.
    flag: The flag that gave `wanted`, for errors.
    separator: As for `TableFile.read`.
    separators: As for `TableFile.read`.
    wish: Settings of the user for the file.
    title: The column of titles (`--item_title`); if given, there may be no
      features.
  """
  file = open_file(path, wish)
  line = file.header_line
  id_column = id_of(file, id_column, flag)
  if title is not None:
    title = title_of(file, title)
  kinds = headers.side_kinds(
    file.header,
    id_column,
    wanted,
    file.path,
    flag,
    line,
    may_be_none=title is not None,
  )
  if title is not None and not wanted:
    kinds.pop(title, None)  # It is shown, and trains nothing.
  for name in separators or {}:
    if name not in kinds:
      raise errors.DataError(
        "has a separator but is not read; name it among the features, see"
        f" {flag}",
        path=file.path,
        column=name,
      )
  return file.read(
    id_column, kinds, separator, separators=separators, title=title
  )


def id_of(file: TableFile, name: str, flag: str) -> str:
  """The column of ids: `name`, or one with a similar name."""
  found = names_lib.matching(name, list(file.header))
  if found is not None:
    return found
  role = flag.strip("-").partition("_")[0]
  near = names_lib.guesses(role, file.header)
  if not near:
    near = names_lib.guesses("key", file.header)
  if names_lib.are_numbers(file.header):
    near = ["1"]  # The first column of a file without a header.
  if len(near) == 1:
    return near[0]
  there = ", ".join(map(repr, file.header))
  raise errors.DataError(
    f"no such column; the file has {there}; name its column of ids with"
    f" --{role}_key",
    path=file.path,
    line=file.header_line,
    column=name,
  )


def title_of(file: TableFile, name: str) -> str:
  """The column of titles, from the user's name for it."""
  found = names_lib.matching(name, list(file.header))
  if found is None:
    there = ", ".join(map(repr, file.header))
    raise errors.DataError(
      f"no such column; the file has {there}: name the column of titles with"
      " --item_title; it is in the item file if there is one",
      path=file.path,
      line=file.header_line,
      column=name,
    )
  return found


def _of_rows(file: rows_lib.RowFile) -> TableFile:
  def load(
    kinds: dict[str, str],
  ) -> tuple[dict[str, Column], places_lib.Places]:
    parts = list(file.rows(dict.fromkeys(kinds)))
    if not parts:
      return dict.fromkeys(kinds, pa.array([], pa.string())), places_lib.Places(
        file.path, 1
      )
    values = {
      name: columns.plain(pa.chunked_array([p.columns[name] for p in parts]))
      for name in kinds
    }
    lines = np.concatenate([part.places.all(len(part)) for part in parts])
    return values, places_lib.Places(file.path, lines, parts[0].places.unit)

  return TableFile(
    file.path, file.header, file.header_line, load, file.layout.format
  )


def _open_examples(path: addresses.Address) -> TableFile:
  file = examples.ExampleFile(path)

  def load(
    kinds: dict[str, str],
  ) -> tuple[dict[str, Column], places_lib.Places]:
    (id_column,) = (name for name, kind in kinds.items() if kind == "id")
    values = file.read(id_column, kinds)
    return values, places_lib.Places(file.path, 1, "row")

  return TableFile(file.path, dict.fromkeys(file.names), None, load, "tfrecord")


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
        f"{value!r} appears twice, first in {places.unit}"
        f" {places.number(first[value])}; keep one row per id",
      )
    first[value] = row


@dataclasses.dataclass(frozen=True)
class _Convert:
  """Converts a column for `SideTable`.

  Attributes:
    places: Positions of the rows.
    separator: Separator of the values of a sequence; None to guess it.
    lengths: float_seq -> numbers per row.
    separators: sequence -> its own separator; filled during conversion.
  """

  places: places_lib.Places
  separator: str | None
  lengths: Mapping[str, int]
  separators: dict[str, str]

  def __call__(self, column: Column, name: str, kind: str) -> Column:
    if kind in ("token", "float") and columns.is_list(column):
      raise self.places.error(
        None, name, f"holds lists, which kind {kind!r} cannot be"
      )
    if kind == "text" and isinstance(column, pa.Array):
      column = _joined(column)
    if kind in ("token", "text"):
      return columns.strings(column, name, self.places)
    if kind == "float":
      values = (
        column
        if isinstance(column, np.ndarray)
        else columns.numbers(columns.decimal_points(column), name, self.places)
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
    """The concatenated values of all rows, and the number per row."""
    if not columns.is_list(column):
      text = columns.strings(column, name, self.places)
      mark = self.separators.get(name) or self.separator or _separator(text)
      self.separators[name] = mark
      column = pc.split_pattern(text, mark)
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    return columns.plain(column.flatten()), lengths.astype(np.int64)

  def _vectors(
    self, values: pa.Array, lengths: np.ndarray, name: str
  ) -> np.ndarray:
    """Lists of numbers as float32 [rows, length]; empty lists become NaN."""
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


def _joined(column: pa.Array) -> pa.Array:
  """Joins the texts of each list into one."""
  if not columns.is_list(column):
    return column
  return pc.binary_join(column.cast(pa.list_(pa.string())), " ")


def _separator(text: pa.Array) -> str:
  """Guesses the separator of sequences from their values."""
  for mark in ("|", ";", ","):
    if pc.any(pc.match_substring(text, mark)).as_py():
      return mark
  return " "


def _without_empty(
  values: pa.Array, lengths: np.ndarray
) -> tuple[pa.Array, np.ndarray]:
  """Drops empty strings, such as those between two separators."""
  values = pc.fill_null(values, "")
  keep = pc.not_equal(values, "").to_numpy(zero_copy_only=False)
  rows = np.repeat(np.arange(len(lengths)), lengths)[keep]
  return values.filter(pa.array(keep)), np.bincount(
    rows, minlength=len(lengths)
  )


def _list_array(values: pa.Array, lengths: np.ndarray) -> pa.ListArray:
  offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
  return pa.ListArray.from_arrays(offsets, values)
