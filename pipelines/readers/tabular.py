"""Interactions with one row per line: atomic files, CSV and TSV."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence

from pipelines.readers import base
from xir_tfrs.data import errors
from xir_tfrs.data.files import delimited, headers, text


class TabularSource(base.FileSource):
  """One or more delimited files with the same columns."""

  def __init__(
    self,
    kind: str,
    paths: Sequence[pathlib.Path],
    roles: base.Columns,
    side_files: base.SideFiles,
    chunk_bytes: int = text.CHUNK_BYTES,
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
    self._bytes = [f.file.bytes for f in self._files]
    self.num_files, self.size = len(self._files), sum(self._bytes)
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
    for number, file in enumerate(self._files):
      file.blank_lines = 0
      empty = True
      for rows in file.rows(*self._columns(number), self._chunk_bytes):
        empty = False
        yield self._block(number, rows, done)
      if empty:
        raise self.no_rows(number)
      done += self._bytes[number]
      self._count_warnings(file)

  def pieces(self) -> list[base.Piece]:
    return base.byte_pieces(self._bytes, self._chunk_bytes)

  def read(
    self, piece: base.Piece, count_lines: bool = False
  ) -> Iterator[tuple[int, base.Block]]:
    self.warnings.clear()
    file = self._files[piece.file]
    for rows in file.piece(
      *self._columns(piece.file), piece.start, piece.stop, count_lines
    ):
      yield piece.position, self._block(piece.file, rows, 0)
    self._count_warnings(file)

  def no_rows(self, file: int) -> errors.DataError:
    return errors.DataError(
      "no rows below the header", path=self._files[file].path, line=1
    )

  def fingerprint(self, file: int) -> dict[str, str | int]:
    return self._files[file].file.fingerprint()

  def _columns(self, file: int) -> tuple[list[str], dict[str, str]]:
    """The names of all columns, and the kinds of those to read."""
    names = self._names[file]
    return names, self.roles.interaction_kinds(names, self._files[file].path)

  def _block(self, file: int, rows: delimited.Rows, done: int) -> base.Block:
    roles = self.roles
    block = base.Block(
      path=self._files[file].path,
      lines=rows.lines,
      users=rows.columns[roles.user],
      items=rows.columns[roles.item],
      progress=done + rows.end,
      times=rows.columns.get(roles.time_column(self._names[file])),
      weights=rows.columns.get(roles.weight),
      ratings=rows.columns.get(roles.rating),
    )
    base.check_weights(block, roles.weight)
    return block

  def _count_warnings(self, file: delimited.DelimitedFile) -> None:
    self.warnings["blank_lines"] += file.blank_lines
    self.warnings["last_line_without_newline"] += not file.file.ends_in_newline
