"""Parquet files, with errors that name the file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pyarrow as pa
from pyarrow import parquet as pq

from xir_tfrs.data import errors
from xir_tfrs.data.files import headers


@contextlib.contextmanager
def reading(
  path: str | os.PathLike[str], problem: str = "cannot be read as Parquet"
) -> Iterator[None]:
  """Turns what pyarrow raises into a `DataError`."""
  try:
    yield
  except (pa.ArrowException, OSError) as e:
    raise errors.DataError(
      f"{problem} ({' '.join(str(e).split())}); write the file again", path=path
    ) from None


def open_file(path: str | os.PathLike[str]) -> tuple[pq.ParquetFile, list[str]]:
  """The file, and the names of its columns, which are distinct."""
  with reading(path, "empty, truncated or not a Parquet file"):
    file = pq.ParquetFile(path)
    names = file.schema_arrow.names
  headers.require_distinct(names, os.fspath(path), line=None)
  return file, names
