"""Files and directories that appear complete or not at all, and their locks.

Nothing here needs TensorFlow.
"""

from __future__ import annotations

import os
import pathlib
import secrets


def write_text(path: str | os.PathLike[str], text: str) -> None:
  """Writes a utf-8 file in one step: it appears complete or not at all."""
  path = pathlib.Path(path)
  partial = path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")
  try:
    with open(partial, "w", encoding="utf-8") as file:
      file.write(text)
      file.flush()
      os.fsync(file.fileno())
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)
  _sync(path.parent)


def _sync(path: pathlib.Path) -> None:
  """Writes a file, or the names in a directory, through to the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  except OSError:
    pass  # Some file systems cannot do this for directories.
  finally:
    os.close(descriptor)
