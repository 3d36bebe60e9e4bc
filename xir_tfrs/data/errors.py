"""The one error of data that cannot be used as it is."""

from __future__ import annotations

import os


class DataError(ValueError):
  """Data that cannot be used as it is: where, what, and the remedy.

  The message reads ``FILE, line N, column 'NAME': what is wrong``; parts that
  are not known are left out. Entry points print it and exit non-zero without
  a traceback.

  Attributes:
    path: the file, or None.
    line: 1-based line of a text file, or None.
    row: 1-based row of a file that has no lines (Parquet, TFRecord), or None.
    column: name of the column, or None.
  """

  def __init__(
    self,
    message: str,
    *,
    path: str | os.PathLike[str] | None = None,
    line: int | None = None,
    row: int | None = None,
    column: str | None = None,
  ):
    self.path = None if path is None else os.fspath(path)
    self.line, self.row, self.column = line, row, column
    where = [] if self.path is None else [self.path]
    if line is not None:
      where.append(f"line {line}")
    if row is not None:
      where.append(f"row {row}")
    if column is not None:
      where.append(f"column {column!r}")
    super().__init__(f"{', '.join(where)}: {message}" if where else message)
