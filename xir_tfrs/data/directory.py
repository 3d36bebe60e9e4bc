"""The data directory: made in one step, and opened once."""

from __future__ import annotations

import contextlib
import os
import pathlib

from xir_tfrs.data import atomic, errors
from xir_tfrs.data import schema as schema_lib


def new_directory(
  output: str | os.PathLike[str], overwrite: bool
) -> contextlib.AbstractContextManager[pathlib.Path]:
  """A new directory that becomes the data directory `output` at the end.

  See `atomic.new_directory`.
  """
  return atomic.new_directory(
    output, what="data directory", foreign=_foreign, overwrite=overwrite
  )


def check_output(output: str | os.PathLike[str], overwrite: bool) -> None:
  """Raises `DataError` if a data directory may not be written to `output`."""
  atomic.check_output(
    output, what="data directory", foreign=_foreign, overwrite=overwrite
  )


def _foreign(directory: pathlib.Path) -> str | None:
  """A file that is not part of a data directory, or None."""
  names = {path.name for path in directory.iterdir()}
  try:
    schema = schema_lib.Schema.load(directory)
  except errors.DataError:
    # Without a schema that can be read nothing proves that files are ours.
    return min(names)
  ours = {schema_lib.FILE_NAME, schema_lib.ORACLE_FILE}
  ours |= {s.file for shards in schema.shards.values() for s in shards}
  return min(names - ours, default=None)
