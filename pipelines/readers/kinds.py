"""Guesses the kinds of the features in a table from its values."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from xir_tfrs.data.files import columns, names, side_tables

# At most this many distinct whole numbers count as codes, not as amounts.
_CODES = 20
# A column with a larger share of distinct values does not hold tokens.
_DIFFERENT = 0.5
_WORDS_OF_A_TITLE = 8


def guess(
  file: side_tables.TableFile, id_column: str
) -> tuple[dict[str, str], str | None]:
  """Returns column -> kind of feature, and the column of titles or None.

  Leaves out columns that are no use as features, such as other ids.

  Args:
    file: A table whose header names no kinds.
    id_column: Its column of ids.

  Raises:
    DataError: The table cannot be read.
  """
  others = [name for name in file.header if name != id_column]
  table = file.read(id_column, dict.fromkeys(others, "token"))
  values = {}
  for name in others:
    column = pc.utf8_trim_whitespace(table.columns[name])
    missing = pc.is_in(column, value_set=pa.array(columns.MISSING))
    values[name] = column.filter(pc.invert(missing))
  kinds = {name: _kind(column) for name, column in values.items()}
  texts = [name for name, kind in kinds.items() if kind == "text"]
  titles = names.guesses("item_title", others) or [
    name for name in texts if _words(values[name]) <= _WORDS_OF_A_TITLE
  ]
  found = {name: kind for name, kind in kinds.items() if kind is not None}
  return found, titles[0] if titles else None


def _kind(values: pa.Array) -> str | None:
  """The kind of a column; `values` are those that are not missing."""
  if not len(values):
    return None
  number_of_kinds = pc.count_distinct(values).as_py()
  plain = columns.decimal_points(values)
  if all(columns.parse_number(x) is not None for x in plain.to_pylist()):
    whole = pc.all(pc.match_substring_regex(plain, r"^\d+$")).as_py()
    return "token" if whole and number_of_kinds <= _CODES else "float"
  if pc.any(pc.match_substring(values, "|")).as_py():
    return "token_seq"
  if number_of_kinds <= max(_DIFFERENT * len(values), 1):
    return "token"
  return "text" if _words(values) > 1 else None


def _words(values: pa.Array) -> float:
  """The average number of words of a value."""
  return pc.mean(pc.add(pc.count_substring(values, " "), 1)).as_py()
