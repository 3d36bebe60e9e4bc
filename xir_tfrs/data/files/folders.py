"""Columns in the names of folders, as in `day=2023-05-01/part-0`."""

from __future__ import annotations

import collections
import dataclasses
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from xir_tfrs.data.files import names as names_lib
from xir_tfrs.data.files import rows as rows_lib

# The name that Hive and Spark use for a missing value.
_MISSING = "__HIVE_DEFAULT_PARTITION__"


def values(path: str) -> dict[str, str | None]:
  """Returns column -> value from the folder names in the path of a file."""
  found: dict[str, str | None] = {}
  for folder in path.split("::")[0].split("/")[:-1]:
    name, equals, value = folder.partition("=")
    if name and equals:
      value = urllib.parse.unquote(value)
      found[urllib.parse.unquote(name)] = None if value == _MISSING else value
  return found


def opened(file: rows_lib.RowFile, wanted: Sequence[str]) -> rows_lib.RowFile:
  """Adds the columns in `wanted` that the folders of a file provide.

  A column of the file overrides a folder's column of the same name.
  """
  there = values(file.path)
  used: dict[str, str | None] = {}
  for name in wanted:
    found = names_lib.matching(name, list(there))
    if found is not None and names_lib.matching(name, file.names) is None:
      used[found] = there[found]
  return _InFolders(file, used) if used else file


class _InFolders(rows_lib.RowFile):
  """A file with additional columns that are constant."""

  def __init__(
    self, file: rows_lib.RowFile, constant: Mapping[str, str | None]
  ):
    self.header_line = file.header_line
    self.can_be_cut = file.can_be_cut
    super().__init__(file.path, file.layout, [*file.names, *constant])
    self._file, self._constant = file, dict(constant)

  @property
  def size(self) -> int:
    return self._file.size

  @property
  def text_bytes(self) -> int:
    return self._file.text_bytes

  def rows(
    self,
    wanted: Mapping[str, pa.DataType | None],
    chunk_bytes: int = rows_lib.CHUNK_BYTES,
    start: int = 0,
    stop: int | None = None,
    count_lines: bool = False,
  ) -> Iterator[rows_lib.Rows]:
    within = {
      name: kind for name, kind in wanted.items() if name not in self._constant
    }
    for part in self._file.rows(within, chunk_bytes, start, stop, count_lines):
      more = {
        name: pa.repeat(pa.scalar(self._constant[name], pa.string()), len(part))
        for name in wanted
        if name in self._constant
      }
      yield dataclasses.replace(part, columns={**part.columns, **more})
    self.warnings = collections.Counter(self._file.warnings)

  def pieces(self, chunk_bytes: int) -> list[tuple[int, int]]:
    return self._file.pieces(chunk_bytes)

  def position(self, start: int) -> int:
    return self._file.position(start)

  def fingerprint(self) -> dict[str, str | int]:
    return self._file.fingerprint()
