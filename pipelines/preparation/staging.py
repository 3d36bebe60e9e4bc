"""An output directory that appears complete or not at all."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator

from pipelines.readers import synthetic
from xir_tfrs.data import errors
from xir_tfrs.data import schema as schema_lib


@contextlib.contextmanager
def staged(output: pathlib.Path, overwrite: bool) -> Iterator[pathlib.Path]:
  """Gives a new directory beside `output` that takes its place at the end.

  Whatever ends the block early, Ctrl-C included, removes the new directory
  and leaves `output` as it was.
  """
  check_output(output, overwrite)
  output = output.absolute()
  output.parent.mkdir(parents=True, exist_ok=True)
  partial = output.with_name(f".{output.name}.partial-{os.getpid()}")
  shutil.rmtree(partial, ignore_errors=True)
  try:
    partial.mkdir()
    yield partial
    _take_place(partial, output)
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def check_output(output: pathlib.Path, overwrite: bool) -> None:
  """Raises unless `output` may be written or replaced."""
  if output.is_symlink() or (output.exists() and not output.is_dir()):
    raise errors.DataError(
      "is not a directory; name another --output", path=output
    )
  if not output.exists() or not any(output.iterdir()):
    return
  foreign = _foreign_files(output)
  if foreign:
    raise errors.DataError(
      f"holds {foreign!r}, which pipelines.prepare did not write; name a new"
      " or empty --output",
      path=output,
    )
  if not overwrite:
    raise errors.DataError(
      "holds a data directory already; name another --output, or replace it"
      " with --overwrite",
      path=output,
    )


def _foreign_files(output: pathlib.Path) -> str | None:
  """A file that is not part of a data directory, or None."""
  names = {p.name for p in output.iterdir()}
  try:
    schema = schema_lib.Schema.load(output)
  except errors.DataError:
    # Without a schema that can be read nothing proves that files are ours.
    return min(names)
  ours = {schema_lib.FILE_NAME, synthetic.ORACLE_FILE}
  ours |= {s.file for shards in schema.shards.values() for s in shards}
  return min(names - ours, default=None)


def _take_place(partial: pathlib.Path, output: pathlib.Path) -> None:
  if not output.exists() or not any(output.iterdir()):
    os.replace(partial, output)
    return
  old = output.with_name(f"{partial.name}-old")
  os.replace(output, old)
  try:
    os.replace(partial, output)
  except OSError:
    os.replace(old, output)
    raise
  shutil.rmtree(old)
