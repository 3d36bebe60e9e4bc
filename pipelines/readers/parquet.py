"""Interactions from Parquet files; positions are rows, not lines."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence

import pyarrow as pa
from pyarrow import parquet as pq

from pipelines import errors
from pipelines.readers import base, columns, side_tables, text

_ROWS_PER_BLOCK = 1 << 19


class ParquetSource(side_tables.FileSource):
  """One or more Parquet files with the same columns."""

  def __init__(
    self,
    paths: Sequence[pathlib.Path],
    roles: base.Columns,
    side_files: side_tables.SideFiles,
    rows_per_block: int = _ROWS_PER_BLOCK,
  ):
    super().__init__("parquet", paths[0].stem, roles, side_files)
    self._paths, self._rows_per_block = tuple(paths), rows_per_block
    self.size = sum(_open(p).metadata.num_rows for p in paths)
    names = _open(paths[0]).schema_arrow.names
    used = roles.interaction_kinds(names, str(paths[0]), line=None)
    self.has_times = roles.time_column(names) is not None
    self.ignored = tuple(n for n in names if n not in used)

  def blocks(self) -> Iterator[base.Block]:
    progress = 0
    for path in self._paths:
      file = _open(path)
      if not file.metadata.num_rows:
        raise errors.DataError("no rows", path=path)
      names = file.schema_arrow.names
      used = self.roles.interaction_kinds(names, str(path), line=None)
      row = 0
      for batch in file.iter_batches(self._rows_per_block, columns=list(used)):
        progress += len(batch)
        yield columns.block(batch, self.roles, str(path), row, progress)
        row += len(batch)

  def interaction_files(self) -> tuple[dict[str, str | int], ...]:
    return tuple(text.fingerprint(path) for path in self._paths)


def _open(path: pathlib.Path) -> pq.ParquetFile:
  try:
    return pq.ParquetFile(path)
  except pa.ArrowInvalid as e:
    raise errors.DataError(
      f"empty, truncated or not a Parquet file ({e})", path=path
    ) from None
