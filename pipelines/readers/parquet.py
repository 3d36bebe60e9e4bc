"""Interactions from Parquet files; positions are rows, not lines."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence

import pyarrow as pa
from pyarrow import parquet as pq

from pipelines.readers import base
from xir_tfrs.data import errors
from xir_tfrs.data.files import text

_ROWS_PER_BLOCK = 1 << 19


class ParquetSource(base.FileSource):
  """One or more Parquet files with the same columns."""

  def __init__(
    self,
    paths: Sequence[pathlib.Path],
    roles: base.Columns,
    side_files: base.SideFiles,
    rows_per_block: int = _ROWS_PER_BLOCK,
  ):
    super().__init__("parquet", paths[0].stem, roles, side_files)
    self._paths, self._rows_per_block = tuple(paths), rows_per_block
    self._rows = [_open(p).metadata.num_rows for p in paths]
    self.num_files, self.size = len(self._paths), sum(self._rows)
    names = _open(paths[0]).schema_arrow.names
    used = roles.interaction_kinds(names, str(paths[0]), line=None)
    self.has_times = roles.time_column(names) is not None
    self.ignored = tuple(n for n in names if n not in used)

  def blocks(self) -> Iterator[base.Block]:
    before = 0
    for number, rows in enumerate(self._rows):
      if not rows:
        raise self.no_rows(number)
      yield from self._blocks(number, None, 0, before)
      before += rows

  def pieces(self) -> list[base.Piece]:
    """Row groups, as many together as a block holds."""
    pieces, before = [], 0
    for number, path in enumerate(self._paths):
      metadata = _open(path).metadata
      start = rows = 0
      for group in range(metadata.num_row_groups):
        rows += metadata.row_group(group).num_rows
        if rows >= self._rows_per_block or group + 1 == metadata.num_row_groups:
          pieces.append(base.Piece(number, start, group + 1, before))
          before, start, rows = before + rows, group + 1, 0
    return pieces

  def read(
    self, piece: base.Piece, count_lines: bool = False
  ) -> Iterator[tuple[int, base.Block]]:
    del count_lines  # The file itself tells how many rows are before.
    before = sum(self._rows[: piece.file])
    groups = list(range(piece.start, piece.stop))
    row = piece.position - before
    for block in self._blocks(piece.file, groups, row, before):
      yield before + row, block
      row += len(block.users)

  def _blocks(
    self, number: int, groups: list[int] | None, row: int, before: int
  ) -> Iterator[base.Block]:
    """Blocks of some row groups, or of all, from the 0-based `row` on."""
    file, path = _open(self._paths[number]), str(self._paths[number])
    names = file.schema_arrow.names
    used = self.roles.interaction_kinds(names, path, line=None)
    for batch in file.iter_batches(
      self._rows_per_block, row_groups=groups, columns=list(used)
    ):
      end = row + len(batch)
      yield base.arrow_block(batch, self.roles, path, row, before + end)
      row = end

  def no_rows(self, file: int) -> errors.DataError:
    return errors.DataError("no rows", path=self._paths[file])

  def fingerprint(self, file: int) -> dict[str, str | int]:
    return text.fingerprint(self._paths[file])


def _open(path: pathlib.Path) -> pq.ParquetFile:
  try:
    return pq.ParquetFile(path)
  except pa.ArrowInvalid as e:
    raise errors.DataError(
      f"empty, truncated or not a Parquet file ({e})", path=path
    ) from None
