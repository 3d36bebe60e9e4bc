"""Reads new or changed items: ids and the features of a candidate tower.

The file formats are those of `xir_tfrs.data.files.side_tables`. Tokens are
strings as in the training data, not codes.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from xir_tfrs.data import errors
from xir_tfrs.data.files import text
from xir_tfrs.serving import manifest

if TYPE_CHECKING:
  import pyarrow as pa

_ID_COLUMNS = ("candidate_id", "item_id", "id")

Column = np.ndarray | list[list[str]]


@dataclasses.dataclass(frozen=True)
class Items:
  """The n rows of a file.

  Attributes:
    ids: Unique original ids, str or int.
    columns: Every feature -> token, text: `[n]` object array of str, "" if not
      given; token_seq: n lists of str; float: `[n]` float32, NaN if not given;
      float_seq: `[n, length]` float32, likewise.
    missing: Features that the file lacks.
    ignored: Columns of the file that are not features.
    titles: n titles, "" for none; empty if they were not requested, or the file
      has none.
  """

  ids: list[str] | list[int]
  columns: dict[str, Column]
  missing: tuple[str, ...]
  ignored: tuple[str, ...]
  titles: tuple[str, ...] = ()


def read_items(
  path: str | os.PathLike[str],
  features: Sequence[manifest.Feature],
  id_column: str | None = None,
  id_type: str = "string",
  separator: str | None = None,
  title: str | None = None,
  item_column: str | None = None,
) -> Items:
  """Reads a file of items.

  Args:
    path: The file.
    features: Features of the tower, as in the manifest of a bundle.
    id_column: The column of ids. Default: `item_column`, else the first
      `:token` column, else `candidate_id`, `item_id` or `id`.
    id_type: "string" or "int64".
    separator: Separator of sequences in text. Default: that of each feature,
      else a space.
    title: The column of titles, which is read if it exists.
    item_column: Name of the id column in the data, which is used if it exists.

  Raises:
    DataError: The file is missing, broken or empty, or a value does not match
      its column.
  """
  try:
    from xir_tfrs.data.files import names, side_tables
  except ImportError as error:
    raise errors.DataError(
      f"reading items needs pyarrow ({error}); pip install 'xir-tfrs[data]'",
      path=path,
    ) from None
  path = pathlib.Path(path)
  file = side_tables.open_file(path)
  if title is not None:
    title = names.matching(title, list(file.header))
  id_column = _choose_id(path, file.header, id_column, item_column)
  kinds = {x.name: x.kind for x in features}
  wanted = _columns(file.header, features)
  table = file.read(
    id_column,
    wanted,
    separator or " ",
    {x.name: x.length for x in features if x.kind == "float_seq"},
    {} if separator else {x.name: x.separator for x in features if x.separator},
    title,
  )
  ids: list = table.ids
  if id_type == "int64":
    ids = integers(
      table.ids,
      lambda row, message: table.places.error(row, id_column, message),
    )
  return Items(
    ids=ids,
    columns={
      x.name: _column(table.columns.get(x.name), x, len(ids)) for x in features
    },
    missing=tuple(name for name in kinds if name not in table.columns),
    ignored=table.ignored,
    titles=() if table.titles is None else tuple(table.titles.to_pylist()),
  )


def only(items: Items, rows: np.ndarray) -> Items:
  """The items of the given rows."""

  def chosen(column):
    if isinstance(column, np.ndarray):
      return column[rows]
    return type(column)(column[row] for row in rows)

  return dataclasses.replace(
    items,
    ids=chosen(items.ids),
    columns={name: chosen(x) for name, x in items.columns.items()},
    titles=chosen(items.titles) if items.titles else (),
  )


def _columns(
  header: dict[str, str | None], features: Sequence[manifest.Feature]
) -> dict[str, str]:
  """Column (`NAME_*` for columns of 0 and 1) -> kind of the feature."""
  found: dict[str, str] = {}
  for x in features:
    if x.name in header:
      found[x.name] = x.kind
    elif x.kind == "token_seq" and any(
      column.startswith(f"{x.name}_") for column in header
    ):
      found[f"{x.name}_*"] = x.kind
  return found


def read_ids(
  path: str | os.PathLike[str], id_type: str = "string"
) -> list[str] | list[int]:
  """Reads ids from a text file, one per line, without blanks and repeats."""
  lines = text.read_lines(pathlib.Path(path))
  numbers = [number for number, line in enumerate(lines, start=1) if line]
  ids = [lines[number - 1] for number in numbers]
  if id_type == "int64":
    ids = integers(
      ids,
      lambda row, message: errors.DataError(
        message, path=path, line=numbers[row]
      ),
    )
  return list(dict.fromkeys(ids))


def _choose_id(
  path: pathlib.Path,
  header: dict[str, str | None],
  id_column: str | None,
  item_column: str | None,
) -> str:
  from xir_tfrs.data.files import names

  found = f"the file has {', '.join(map(repr, header)) or 'no columns'}"
  if id_column is not None:
    if id_column not in header:
      raise errors.DataError(
        f"has no column {id_column!r} for --id_column; {found}", path=path
      )
    return id_column
  tokens = [name for name, kind in header.items() if kind == "token"]
  if item_column is not None:
    as_in_data = names.matching(item_column, list(header))
    if as_in_data is not None:
      return as_in_data
  there = tokens[:1] or [name for name in _ID_COLUMNS if name in header]
  if len(there) != 1:
    raise errors.DataError(
      f"which column holds the ids? {found}; name it with --id_column",
      path=path,
    )
  return there[0]


def integers(
  ids: Sequence[str], error: Callable[[int, str], errors.DataError]
) -> list[int]:
  """Returns the ids as int64; `error` makes exceptions."""
  integers: list[int] = []
  for row, value in enumerate(ids):
    digits = value.removeprefix("-")
    fits = digits.isdecimal() and len(digits) < 20
    if not fits or not -(2**63) <= int(value) < 2**63:
      raise error(
        row, f"{value!r} is not an id; the ids of this bundle are int64"
      )
    if int(value) == -1:
      raise error(row, "-1 is not an id; it is reserved for padding")
    integers.append(int(value))
  return integers


def _column(
  values: pa.Array | np.ndarray | None, feature: manifest.Feature, n: int
) -> Column:
  """The column of a feature, as in `Items`; None if it is not in the file."""
  kind = feature.kind
  if kind == "token_seq":
    return [[] for _ in range(n)] if values is None else values.to_pylist()
  if kind in ("token", "text"):
    if values is None:
      return np.full(n, "", object)
    return values.to_numpy(zero_copy_only=False)
  if values is not None:
    return values
  return np.full([n, feature.length] if kind == "float_seq" else n, np.nan)
