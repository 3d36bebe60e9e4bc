"""Interactions with one row per line: atomic files, CSV and TSV."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence

from pipelines import errors
from pipelines.readers import base, delimited, headers, side_tables


class TabularSource(side_tables.FileSource):
  """One or more delimited files with the same columns."""

  def __init__(
    self,
    kind: str,
    paths: Sequence[pathlib.Path],
    roles: base.Columns,
    side_files: side_tables.SideFiles,
    chunk_bytes: int = base.CHUNK_BYTES,
  ):
    super().__init__(kind, paths[0].stem, roles, side_files)
    self._chunk_bytes = chunk_bytes
    self._files = [
      delimited.DelimitedFile(path, *delimited.DIALECTS[kind]) for path in paths
    ]
    self._names = [
      list(headers.typed(f.header, f.path, required=kind == "atomic"))
      for f in self._files
    ]
    self.size = sum(f.file.bytes for f in self._files)
    kinds = [
      roles.interaction_kinds(names, file.path)
      for file, names in zip(self._files, self._names, strict=True)
    ]
    for file, used in zip(self._files, kinds, strict=True):
      if used != kinds[0]:
        raise errors.DataError(
          f"has other columns than {self._files[0].path}",
          path=file.path,
          line=1,
        )
    self.has_times = roles.time_column(self._names[0]) is not None
    self.ignored = tuple(n for n in self._names[0] if n not in kinds[0])

  def blocks(self) -> Iterator[base.Block]:
    self.warnings.clear()
    done = 0
    for file, names in zip(self._files, self._names, strict=True):
      file.blank_lines = 0
      yield from self._file_blocks(file, names, done)
      done += file.file.bytes
      self.warnings["blank_lines"] += file.blank_lines
      self.warnings[
        "last_line_without_newline"
      ] += not file.file.ends_in_newline

  def _file_blocks(
    self, file: delimited.DelimitedFile, names: list[str], done: int
  ) -> Iterator[base.Block]:
    roles = self.roles
    kinds = roles.interaction_kinds(names, file.path)
    empty = True
    for rows in file.rows(names, kinds, self._chunk_bytes):
      empty = False
      block = base.Block(
        path=file.path,
        lines=rows.lines,
        users=rows.columns[roles.user],
        items=rows.columns[roles.item],
        progress=done + rows.end,
        times=rows.columns.get(roles.time_column(names)),
        weights=rows.columns.get(roles.weight),
        ratings=rows.columns.get(roles.rating),
      )
      base.check_weights(block, roles.weight)
      yield block
    if empty:
      raise errors.DataError("no rows below the header", path=file.path, line=1)

  def interaction_files(self) -> tuple[dict[str, str | int], ...]:
    return tuple(f.file.fingerprint() for f in self._files)
