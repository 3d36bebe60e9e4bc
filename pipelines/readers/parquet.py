"""Interactions from Parquet files; positions are rows, not lines."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence

from pipelines.readers import blocks, inputs, source
from xir_tfrs.data import errors
from xir_tfrs.data.files import parquet, places, text

_ROWS_PER_BLOCK = 1 << 19


class ParquetSource(source.FileSource):
  """One or more Parquet files with the same columns."""

  def __init__(
    self,
    paths: Sequence[pathlib.Path],
    roles: inputs.Columns,
    side_files: source.SideFiles,
    rows_per_block: int = _ROWS_PER_BLOCK,
  ):
    super().__init__("parquet", paths[0].stem, roles, side_files)
    self._paths, self._rows_per_block = tuple(paths), rows_per_block
    files = [parquet.open_file(path) for path in paths]
    # [files][row groups]
    self._rows = [
      [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
      for file, _ in files
    ]
    self.num_files = len(files)
    self.size = sum(map(sum, self._rows)) * blocks.ROW_BYTES
    kinds = [
      roles.interaction_kinds(names, str(path), line=None)
      for path, (_, names) in zip(paths, files, strict=True)
    ]
    for path, used in zip(paths, kinds, strict=True):
      if used != kinds[0]:
        raise errors.DataError(f"has other columns than {paths[0]}", path=path)
    self._used = list(kinds[0])
    names = files[0][1]
    self.has_times = roles.time_column(names) is not None
    self.ignored = tuple(n for n in names if n not in self._used)

  def pieces(self) -> list[blocks.Piece]:
    """Row groups, as many together as a block holds."""
    pieces = []
    for number, groups in enumerate(self._rows):
      start = rows = 0
      position = self._before(number)
      for group, of_group in enumerate(groups, 1):
        rows += of_group
        if rows >= self._rows_per_block or group == len(groups):
          pieces.append(blocks.Piece(number, start, group, position))
          position, start, rows = position + rows, group, 0
    return pieces

  def no_rows(self, file: int) -> errors.DataError:
    return errors.DataError("no rows", path=self._paths[file])

  def fingerprint(self, file: int) -> source.Fingerprint:
    return text.fingerprint(self._paths[file])

  def _before(self, file: int) -> int:
    """Rows of the files before it."""
    return sum(map(sum, self._rows[:file]))

  def _whole(self, file: int) -> blocks.Piece:
    return blocks.Piece(file, 0, len(self._rows[file]), self._before(file))

  def _read(
    self, piece: blocks.Piece, count_lines: bool
  ) -> Iterator[tuple[int, blocks.Block]]:
    del count_lines  # The file itself tells how many rows are before.
    path, before = str(self._paths[piece.file]), self._before(piece.file)
    file, _ = parquet.open_file(path)
    position = piece.position
    batches = file.iter_batches(
      self._rows_per_block,
      row_groups=list(range(piece.start, piece.stop)),
      columns=self._used,
    )
    while True:
      with parquet.reading(path):
        batch = next(batches, None)
      if batch is None:
        return
      where = places.Places(path, position - before + 1, "row")
      end = position + len(batch)
      yield (
        position,
        blocks.from_arrow(batch, self.roles, where, end * blocks.ROW_BYTES),
      )
      position = end
