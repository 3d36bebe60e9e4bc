"""Opens a file of rows, whatever its format."""

from __future__ import annotations

from xir_tfrs.data.files import (
  addresses,
  adjacency,
  columnar,
  delimited,
  json_rows,
  layouts,
  rows,
)


def open_rows(
  address: addresses.Address, layout: layouts.Layout
) -> rows.RowFile:
  """The file, its header read; `layouts.detect` tells the layout.

  Raises:
    DataError: It is not what its layout says, or a column stands twice.
    ValueError: Of a "tfrecord" layout.
  """
  path = str(address)
  if layout.is_delimited:
    return delimited.DelimitedFile(path, layout)
  if layout.format == "adjacency":
    return adjacency.AdjacencyFile(path, layout)
  if layout.format == "json":
    return json_rows.open_file(path, layout)
  if layout.format in ("parquet", "arrow", "orc"):
    return columnar.ColumnFile(path, layout)
  raise ValueError(f"{layout.format} is not a format of rows.")
