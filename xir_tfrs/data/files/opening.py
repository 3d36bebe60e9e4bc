"""Opens a file of rows of any format."""

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
  """Opens a file and reads its header; `layouts.detect` gives the layout.

  Raises:
    DataError: The file does not match its layout, or a column appears twice.
    ValueError: The layout is "tfrecord".
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
