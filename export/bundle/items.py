"""Reads new or changed items: ids, and the features a candidate tower knows.

    FILE.item              RecBole's atomic format, `item_id:token  price:float`
    FILE.csv, FILE.tsv     delimited text with a header line
    FILE.parquet, FILE.pq  lists for sequences (needs the extra `data`)
    FILE.tfrecord          `tf.train.Example`s: a row each, or packed columns of
                           n rows, with a token_seq as NAME/values and
                           NAME/lengths

Tokens are strings as they stood in the training data, not codes.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from export.bundle import item_files
from xir_tfrs.data import errors

_ID_COLUMNS = ("candidate_id", "item_id", "id")
_LARGEST = float(np.finfo(np.float32).max)
_MISSING = ("", "nan", "NaN", "NA", "null", "NULL", "None")

Column = np.ndarray | list[list[str]]


@dataclasses.dataclass(frozen=True)
class Items:
  """The n rows of a file.

  Attributes:
    ids: unique original ids, str or int.
    columns: every feature -> token: `[n]` object array of str, "" where not
      given; token_seq: n lists of str; float: `[n]` float32, NaN where not
      given; float_seq: `[n, length]` float32 likewise.
    missing: features that the file does not have.
    ignored: columns of the file that are no feature.
  """

  ids: list[str] | list[int]
  columns: dict[str, Column]
  missing: tuple[str, ...]
  ignored: tuple[str, ...]


def read_items(
  path: str | os.PathLike[str],
  features: Sequence[dict],
  id_column: str | None = None,
  id_type: str = "string",
  separator: str = " ",
) -> Items:
  """Reads a file of items; its name says the format.

  Args:
    path: the file.
    features: `name`, `kind` and `length` of each feature of the tower, as in
      the manifest of a bundle.
    id_column: the column of ids. Default: the first `:token` column of an
      atomic file, else that of `candidate_id`, `item_id` and `id` which is
      there.
    id_type: "string" or "int64".
    separator: between the values of a sequence in text.

  Raises:
    DataError: the file is missing, broken or empty, or a value
      in it is not what its column must hold.
  """
  path = pathlib.Path(path)
  header, load = item_files.open_file(path)
  if not header:
    raise errors.DataError(f"{path}: is empty; give a file of items")
  id_column = _choose_id(path, header, id_column)
  kinds = {f["name"]: f["kind"] for f in features}
  there = {name: kind for name, kind in kinds.items() if name in header}
  # Last, as the id may be a feature too; then it is read as a string.
  table = load({**there, id_column: "id"})
  if not table.positions:
    raise errors.DataError(f"{path}: has no items; give it at least one row")
  ids = _ids(table, id_column, id_type)
  _require_distinct(table, id_column, ids)
  return Items(
    ids=ids,
    columns={f["name"]: _convert(table, f, separator) for f in features},
    missing=tuple(name for name in kinds if name not in header),
    ignored=tuple(x for x in header if x not in kinds and x != id_column),
  )


def read_ids(
  path: str | os.PathLike[str], id_type: str = "string"
) -> list[str] | list[int]:
  """Ids of a text file, one per line; blank lines and repeats are dropped."""
  path = pathlib.Path(path)
  # Not `splitlines`: an id may hold one of the rarer ends of lines.
  lines = [
    line.removesuffix("\r") for line in item_files.read_utf8(path).split("\n")
  ]
  places = [i for i, line in enumerate(lines, start=1) if line]
  table = item_files.Table(
    path, "line", places, {"id": [lines[i - 1] for i in places]}
  )
  return list(dict.fromkeys(_ids(table, "id", id_type)))


def _choose_id(
  path: pathlib.Path, header: dict[str, str | None], id_column: str | None
) -> str:
  found = f"the file has {', '.join(map(repr, header)) or 'no columns'}"
  if id_column is not None:
    if id_column not in header:
      raise errors.DataError(
        f"{path}: has no column {id_column!r} for --id_column; {found}"
      )
    return id_column
  tokens = [name for name, kind in header.items() if kind == "token"]
  there = tokens[:1] or [name for name in _ID_COLUMNS if name in header]
  if len(there) != 1:
    raise errors.DataError(
      f"{path}: which column holds the ids? {found}; name it with --id_column"
    )
  return there[0]


def _ids(
  table: item_files.Table, name: str, id_type: str
) -> list[str] | list[int]:
  ids = []
  for row, value in enumerate(table.columns[name]):
    try:
      value = _string(value)
    except ValueError:
      raise table.error(row, name, f"{value!r} is not an id") from None
    if not value:
      raise table.error(row, name, "empty id; every item needs one")
    if id_type == "int64":
      value = _integer(table, row, name, value)
    ids.append(value)
  return ids


def _integer(table: item_files.Table, row: int, name: str, value: str) -> int:
  digits = value.removeprefix("-")
  fits = digits.isdecimal() and len(digits) < 20
  if not fits or not -(2**63) <= int(value) < 2**63:
    raise table.error(
      row, name, f"{value!r} is not an id; those of this bundle are int64"
    )
  if int(value) == -1:
    raise table.error(row, name, "-1 is no id; it stands for padding")
  return int(value)


def _require_distinct(
  table: item_files.Table, name: str, ids: Sequence
) -> None:
  if len(set(ids)) == len(ids):
    return
  first = {}
  for row, value in enumerate(ids):
    if value in first:
      raise table.error(
        row,
        name,
        f"{value!r} stands twice, first in {table.unit} "
        f"{table.positions[first[value]]}; keep one row per id",
      )
    first[value] = row


def _convert(table: item_files.Table, feature: dict, separator: str) -> Column:
  """The column of a feature, as `Items` has it."""
  name, kind = feature["name"], feature["kind"]
  values = table.columns.get(name, [None] * len(table.positions))

  def floats(value, length=None):
    values = [value] if length is None else _sequence(value, separator)
    if length and len(values) not in (0, length):
      raise ValueError(f"{len(values)} numbers, must be {length}")
    return [_number(x) for x in values] or [math.nan] * length

  converters = {
    "token": _string,
    "token_seq": lambda x: [_string(y) for y in _sequence(x, separator)],
    "float": floats,
    "float_seq": functools.partial(floats, length=feature.get("length")),
  }
  convert, rows = converters[kind], []
  for row, value in enumerate(values):
    try:
      rows.append(convert(value))
    except ValueError as error:
      raise table.error(row, name, f"{error} (kind {kind})") from None
  if kind == "token_seq":
    return [[token for token in tokens if token] for tokens in rows]
  if kind == "token":
    return np.array(rows, object)
  numbers = np.array(rows, np.float32)
  return numbers[:, 0] if kind == "float" else numbers


def _sequence(value, separator: str) -> list:
  if isinstance(value, str | bytes):
    return [x for x in _string(value).split(separator) if x]
  if value is None:
    return []
  return value if isinstance(value, list) else [value]


def _string(value) -> str:
  if value is None:
    return ""
  if isinstance(value, bytes):
    try:
      return value.decode()
    except UnicodeDecodeError:
      raise ValueError(f"{value!r} is not UTF-8") from None
  if isinstance(value, str | int):
    return str(value)
  raise ValueError(f"{value!r} is not a string")


def _number(value) -> float:
  """A number that float32 can hold; NaN where there is none."""
  if value is None or value in _MISSING:
    return math.nan
  try:
    number = float(_string(value) if isinstance(value, bytes) else value)
  except (TypeError, ValueError):
    raise ValueError(f"{value!r} is not a number") from None
  # NaN passes: it is a number not given.
  if abs(number) > _LARGEST:
    raise ValueError(f"{value!r} is too large or infinite")
  return number
