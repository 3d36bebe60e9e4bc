"""The error for files and directories that cannot be used as requested."""

from __future__ import annotations

import errno
import os
import re
import shlex

# The parts of a TensorFlow message about its graph: {{node ...}}, [Op:...].
_OF_GRAPH = re.compile(r"\{\{[^}]*\}\} ?| ?\[Op:\w+\].*")

# A disk that is full, read-only or broken.
_OF_DISK = (
  *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
  *(errno.EROFS, errno.EIO),
)

# Where a line ends, and what stands around it.
_LINES = re.compile(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*")


class DataError(ValueError):
  """A file or directory cannot be used: where, what is wrong, and the remedy.

  The message reads ``FILE, line N, column 'NAME': what is wrong``, without the
  parts that are unknown. Programs print it without a traceback and exit with a
  non-zero status.

  Attributes:
    path: the file or directory, or None.
    line: 1-based line of a text file, or None.
    row: 1-based row of a file that has no lines (Parquet, TFRecord), or None.
    column: name of the column, or None.
    field: field of a JSON file, such as `shards.train[0].rows`, or None.

  Examples:
    >>> from xir_tfrs.data import errors
    >>> error = errors.DataError("is not a number", path="x.csv", line=3)
    >>> print(error)
    x.csv, line 3: is not a number
  """

  def __init__(
    self,
    message: str,
    *,
    path: str | os.PathLike[str] | None = None,
    line: int | None = None,
    row: int | None = None,
    column: str | None = None,
    field: str | None = None,
  ):
    self.path = None if path is None else os.fspath(path)
    self.line, self.row = line, row
    self.column, self.field = column, field
    where = [] if self.path is None else [self.path]
    if line is not None:
      where.append(f"line {line}")
    if row is not None:
      where.append(f"row {row}")
    if column is not None:
      where.append(f"column {column!r}")
    if field is not None:
      where.append(f"field {field}")
    text = f"{', '.join(where)}: {message}" if where else message
    super().__init__(_printable(text))


def _printable(text: str) -> str:
  """Puts a text on one line, and escapes what would steer a terminal."""
  text = _LINES.sub(" ", text)
  if text.isprintable():
    return text
  return "".join(
    char if char.isprintable() else char.encode("unicode_escape").decode()
    for char in text
  )


def first_line(error: BaseException) -> str:
  """The first line of a message, without TensorFlow's graph details."""
  line = (str(error).strip() or repr(error)).splitlines()[0]
  return _OF_GRAPH.sub("", line)[:300]


def command(name: str, *, resume: bool = False, **flags: object) -> str:
  """A command that a message recommends, as a shell takes it.

  Args:
    name: The sub-command of `xir-tfrs`.
    resume: Whether to add --resume.
    **flags: Values by flag.
  """
  words = ["xir-tfrs", name]
  for flag, value in flags.items():
    words += [f"--{flag}", str(value)]
  return shlex.join([*words, "--resume"] if resume else words)


def of_disk(error: BaseException) -> int | None:
  """The number of an error of the disk, such as ENOSPC; None for other errors.

  TensorFlow and other libraries only have the system's message in their own.
  """
  if isinstance(error, OSError) and error.errno is not None:
    return error.errno if error.errno in _OF_DISK else None
  text = str(error)
  return next((x for x in _OF_DISK if os.strerror(x) in text), None)
