"""Paths that TensorFlow reads as they are.

TensorFlow takes the path of a checkpoint for a pattern wherever it looks for
or removes one: a run in `run[1]` would delete the checkpoints of `run1`, and
one in `a\\b` would not find its own (tensorflow#34290). Nothing here needs
TensorFlow.
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
  """A path of `directory` that is no pattern: its own, or that of a link.

  The link is one of this process and goes with it. The directory need not
  exist yet, but the one above it must when files are written.
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
