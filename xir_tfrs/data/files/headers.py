"""Column names with kinds: ``price:float``."""

from __future__ import annotations

from collections.abc import Sequence

from xir_tfrs.data import errors
from xir_tfrs.data import schema as schema_lib

_EXPECTED = f"NAME:KIND, KIND one of {', '.join(schema_lib.KINDS)}"
_REPEATED = "appears twice in the header; rename one of the columns"
# Names that table records already use.
_RESERVED = ("query_id", "candidate_id", "count")


def typed(
  fields: Sequence[str],
  path: str,
  required: bool,
  line: int | None = 1,
  repeated: str = _REPEATED,
) -> dict[str, str | None]:
  """Splits the fields of a header into name -> kind.

  Args:
    fields: The fields of the first line.
    path: The file, for errors.
    required: Whether every field must have a kind, as in atomic files. If not,
      a field without a kind gets None.
    line: The line of the header.
    repeated: What is wrong with a name that occurs twice.

  Returns:
    name -> kind, in file order.
  """
  pairs: list[tuple[str, str | None]] = []
  for field in fields:
    kind: str | None
    name, colon, kind = field.rpartition(":")
    if kind not in schema_lib.KINDS or not name:
      if required:
        problem = "unknown kind" if colon else "no kind"
        raise errors.DataError(
          f"{problem} in the header; expected {_EXPECTED}",
          path=path,
          line=line,
          column=field,
        )
      name, kind = field, None
    pairs.append((name, kind))
  require_distinct([name for name, _ in pairs], path, line, repeated)
  return dict(pairs)


def require_distinct(
  names: Sequence[str],
  path: str,
  line: int | None,
  repeated: str = _REPEATED,
) -> None:
  """Raises `DataError` if a name occurs twice, because it is ambiguous."""
  seen = set()
  for name in names:
    if name in seen:
      raise errors.DataError(repeated, path=path, line=line, column=name)
    seen.add(name)


def side_kinds(
  header: dict[str, str | None],
  id_column: str,
  wanted: Sequence[str],
  path: str,
  flag: str,
  line: int | None = 1,
  may_be_none: bool = False,
) -> dict[str, str]:
  """Selects the features to read from a side table: name -> kind.

  Args:
    header: Columns of the file and their kinds, from `typed`.
    id_column: The column of ids, which is not a feature.
    wanted: NAME or NAME:KIND for each; if empty, all columns with a kind.
    path: The file, for errors.
    flag: The flag that gave `wanted`, for errors.
    line: The line of the header, or None if the file has no lines.
    may_be_none: Whether there may be no features.
  """
  chosen = (
    typed(
      wanted,
      path,
      required=False,
      line=line,
      repeated=f"{flag} names it twice; give it one kind",
    )
    if wanted
    else {
      name: kind for name, kind in header.items() if kind and name != id_column
    }
  )
  if not chosen and not may_be_none:
    raise errors.DataError(
      f"no column has a kind; name the features with {flag} {_EXPECTED}",
      path=path,
      line=line,
    )
  kinds: dict[str, str] = {}
  for name, kind in chosen.items():
    is_there = name in header and name != id_column
    if name[-1:] == "*":
      if kind not in (None, "token_seq"):
        raise errors.DataError(
          f"several columns of 0 and 1 form a token_seq. Received: {kind}",
          path=path,
          line=line,
          column=name,
        )
      kind = "token_seq"
      is_there = any(column.startswith(name[:-1]) for column in header)
    if not is_there:
      raise errors.DataError(
        f"no such feature; the file has {', '.join(map(repr, header))}"
        f" (see {flag})",
        path=path,
        line=line,
        column=name,
      )
    kind = kind or header.get(name)
    if kind is None:
      raise errors.DataError(
        f"has no kind; write {flag} {_EXPECTED}",
        path=path,
        line=line,
        column=name,
      )
    if name in _RESERVED or "/" in name:
      raise errors.DataError(
        f"cannot be the name of a feature ({', '.join(_RESERVED)} are reserved,"
        " and '/' is not allowed); rename the column",
        path=path,
        line=line,
        column=name,
      )
    kinds[name] = kind
  return kinds


def require_column(
  name: str, available: list[str], path: str, line: int | None = 1
) -> None:
  if name not in available:
    raise errors.DataError(
      f"no such column; the file has {', '.join(map(repr, available))}; name"
      " the right one with --user_column, --item_column, --time_column,"
      " --weight_column, --rating_column, --item_title, --user_features or"
      " --item_features",
      path=path,
      line=line,
      column=name,
    )
