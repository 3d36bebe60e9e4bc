"""Paths that TensorFlow does not read as patterns.

TensorFlow treats the path of a checkpoint as a glob pattern when it looks for
checkpoints or removes them: a run in `run[1]` would delete the checkpoints of
`run1`, and a run in `a\\b` would not find its own (tensorflow#34290). This
module does not need TensorFlow.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pathlib
import re
import tempfile

from xir_tfrs.data import errors

_PATTERN = re.compile(r"[*?\[\]\\]")


def literal(directory: str | os.PathLike[str]) -> pathlib.Path:
  """A path to `directory` that is not a pattern: its own, or that of a link.

  The link is removed when this process ends. The directory need not exist yet,
  but its parent must exist when files are written.
  """
  directory = pathlib.Path(directory)
  if not _PATTERN.search(os.fspath(directory)):
    return directory
  target = os.fspath(directory.absolute())
  name = hashlib.sha256(os.fsencode(target)).hexdigest()[:16]
  link = pathlib.Path(_links().name, name)
  if not link.is_symlink():
    link.symlink_to(target, target_is_directory=True)
  return link


def literal_file(path: str | os.PathLike[str]) -> str:
  """The same of a file, or of the first part of a checkpoint's names."""
  folder, name = os.path.split(path)
  return os.fspath(literal(folder) / name)


@functools.cache
def _links() -> tempfile.TemporaryDirectory:
  folder = tempfile.TemporaryDirectory(prefix="xir-paths-")
  if _PATTERN.search(folder.name):
    raise errors.DataError(
      "TensorFlow cannot use a directory whose path has one of *?[]\\; set"
      " TMPDIR to another one",
      path=tempfile.gettempdir(),
    )
  return folder
