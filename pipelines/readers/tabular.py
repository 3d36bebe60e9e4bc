"""Interactions from delimited text: RecBole atomic files, CSV and TSV."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence

from pipelines.readers import blocks, inputs, source
from xir_tfrs.data import errors
from xir_tfrs.data.files import columns, delimited, headers, text


class TabularSource(source.TextSource):
  """One or more delimited files with the same columns."""

  def __init__(
    self,
    kind: str,
    paths: Sequence[pathlib.Path],
    roles: inputs.Columns,
    side_files: source.SideFiles,
    chunk_bytes: int = text.CHUNK_BYTES,
  ):
    self._files = [delimited.DelimitedFile(path, kind) for path in paths]
    texts = [file.file for file in self._files]
    super().__init__(kind, texts, roles, side_files, chunk_bytes)
    self._names = [
      list(headers.typed(f.header, f.path, required=kind == "atomic"))
      for f in self._files
    ]
    kinds = [self._kinds(file) for file in range(self.num_files)]
    for file, used in zip(self._files, kinds, strict=True):
      if used != kinds[0]:
        raise errors.DataError(
          f"has other columns than {self._files[0].path}",
          path=file.path,
          line=1,
        )
    self.has_times = roles.time_column(self._names[0]) is not None
    self.ignored = tuple(n for n in self._names[0] if n not in kinds[0])

  def no_rows(self, file: int) -> errors.DataError:
    return errors.DataError(
      "no rows below the header", path=self._files[file].path, line=1
    )

  def _kinds(self, file: int) -> dict[str, str]:
    """What the values of the columns to read must be."""
    path = self._files[file].path
    return self.roles.interaction_kinds(self._names[file], path)

  def _read(
    self, piece: blocks.Piece, count_lines: bool
  ) -> Iterator[tuple[int, blocks.Block]]:
    file, names = self._files[piece.file], self._names[piece.file]
    before = self._before(piece.file)
    for rows in file.rows(
      names,
      self._kinds(piece.file),
      self._chunk_bytes,
      start=piece.start,
      stop=piece.stop,
      count_lines=count_lines,
    ):
      yield before + rows.begin, self._block(rows, names, before)
    self.warnings["blank_lines"] += file.blank_lines
    self.warnings["last_line_without_newline"] += not file.file.ends_in_newline

  def _block(
    self, rows: delimited.Rows, names: list[str], before: int
  ) -> blocks.Block:
    roles, weights = self.roles, None
    if roles.weight is not None:
      weights = columns.weights(
        rows.columns[roles.weight], roles.weight, rows.places
      )
    return blocks.Block(
      places=rows.places,
      users=rows.columns[roles.user],
      items=rows.columns[roles.item],
      progress=before + rows.end,
      times=rows.columns.get(roles.time_column(names)),
      weights=weights,
      ratings=rows.columns.get(roles.rating),
    )
