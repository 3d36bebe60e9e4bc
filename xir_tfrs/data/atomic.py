"""Files and directories that appear complete or not at all, and their locks.

A new file or directory is written to a hidden name beside its destination,
which ends in the host and a random number, and is then moved in one step:

    .NAME.partial-HOST-RANDOM     is being written
    .NAME.old-HOST-RANDOM         the previous NAME, for a moment
    .NAME.lock, DIRECTORY/.lock   names the program that writes here

A lock is a file that is locked with flock and names its holder. The operating
system releases it when the holder ends, even if it is killed. Because flock may
not reach other hosts, a holder also touches its lock file, and the directory
that it writes, every `_BEAT` seconds. After `_LAPSE` seconds without a touch,
another host takes the lock and removes the leftovers. Process ids appear in
messages only: in containers many programs have the same one.

This module does not need TensorFlow.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import errno
import fcntl
import glob
import os
import pathlib
import re
import secrets
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator

import msgspec

from xir_tfrs.data import errors

LOCK_FILE = ".lock"  # In a directory that is `locked`.
_BEAT = 20.0
_LAPSE = 120.0
# Files are written quickly; a partial file of this age is a leftover.
_STALE_FILE = 3600.0
# Arguments of the system call renameat2: AT_FDCWD and RENAME_EXCHANGE.
_HERE, _EXCHANGE = -100, 2


def write_text(path: str | os.PathLike[str], text: str) -> None:
  """Writes a utf-8 file that appears complete or not at all."""
  with new_file(path) as partial:
    partial.write_text(text, encoding="utf-8")


def append_text(path: str | os.PathLike[str], text: str) -> None:
  """Appends to a utf-8 file; errors of the disk name it.

  If the program is killed or the disk is full, a part of `text` may stay.
  """
  path = pathlib.Path(path)
  with _disk_errors_name(path, path), open(path, "a", encoding="utf-8") as file:
    file.write(text)


def check_file(path: str | os.PathLike[str]) -> None:
  """Raises an error unless `new_file` may write `path`; for before long work.

  Raises:
    DataError: `path` is a directory, or its folder cannot be one.
    PermissionError: Its folder is read-only.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    raise errors.DataError(
      "is a directory; choose a file as --output", path=path
    )
  folder = next(x for x in path.absolute().parents if x.exists())
  if not folder.is_dir():
    raise errors.DataError(
      f"cannot be written, because {folder} is not a directory; choose another"
      " --output",
      path=path,
    )
  if not os.access(folder, os.W_OK | os.X_OK):
    raise PermissionError(
      errno.EACCES, os.strerror(errno.EACCES), os.fspath(folder)
    )


@contextlib.contextmanager
def new_file(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
  """Yields a path to write to; the new file replaces `path` at the end.

  Its folder is created. On an exception the new file is removed and `path` is
  unchanged.
  """
  path = pathlib.Path(path)
  with _folder(path.parent):
    for leftover in _leftovers(path, "partial"):
      if _is_silent(leftover, _STALE_FILE):
        leftover.unlink(missing_ok=True)
    partial = _hidden(path, "partial")
    try:
      with _disk_errors_name(path, partial):
        yield partial
        _sync(partial)
        os.replace(partial, path)
        _sync(path.parent)
    finally:
      partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _folder(path: pathlib.Path) -> Iterator[None]:
  """Makes a folder; removes it and the parents it made if they stay empty."""
  path = path.resolve()  # The target of a link may not exist yet.
  made = [one for one in (path, *path.parents) if not one.exists()]
  path.mkdir(parents=True, exist_ok=True)
  try:
    yield
  finally:
    with contextlib.suppress(OSError):  # It is no longer empty.
      for one in made:
        one.rmdir()


@contextlib.contextmanager
def _disk_errors_name(
  path: pathlib.Path, partial: pathlib.Path
) -> Iterator[None]:
  """Gives the errors of a full or read-only disk the path that is written.

  They name no file, a hidden one, or, if TensorFlow writes, are no `OSError`.

  Raises:
    OSError: An error of the disk; `filename` is `path`, unless it is about a
      file outside of `partial`.
  """
  try:
    yield
  except Exception as error:
    number = errors.of_disk(error)
    named = str(getattr(error, "filename", None) or partial)
    # An I/O error without a name may be one of reading.
    if number in (None, errno.EIO) or partial.name not in named:
      raise
    raise OSError(number, os.strerror(number), os.fspath(path)) from error


@contextlib.contextmanager
def new_directory(
  output: str | os.PathLike[str],
  *,
  what: str,
  foreign: Callable[[pathlib.Path], str | None],
  overwrite: bool = False,
) -> Iterator[pathlib.Path]:
  """Yields a new directory that replaces `output` at the end.

  On an exception, Ctrl-C included, the new directory is removed and `output`
  is unchanged. A program that is killed leaves a hidden directory behind. The
  next program that writes to `output` removes it: at once on the same host,
  after two minutes on another host.

  Args:
    output: The destination. If it is a link, the link stays and its target is
      replaced.
    what: The kind of directory, for messages, e.g. "bundle".
    foreign: Returns the name of a file in a directory that does not belong to
      a `what`, or None. Only a directory without such files is replaced.
    overwrite: Whether a `what` at `output` may be replaced.

  Yields:
    The empty directory to write into.

  Raises:
    DataError: Another program writes to `output`, or `output` exists and must
      not be replaced; also checked again at the end.
  """
  output = pathlib.Path(output).resolve()

  def check() -> None:
    check_output(output, what=what, foreign=foreign, overwrite=overwrite)

  check()
  lock = output.with_name(f".{output.name}.lock")
  with _folder(output.parent), _claim(lock, output) as claim:
    _tidy(output)
    check()
    partial = _hidden(output, "partial")
    try:
      partial.mkdir()
      claim.keep_alive(partial)
      with _disk_errors_name(output, partial):
        yield partial
        _sync_all(partial)
      claim.confirm()
      _take_place(partial, output, check)
      _sync(output.parent)
    finally:
      _remove(partial)


def check_output(
  output: str | os.PathLike[str],
  *,
  what: str,
  foreign: Callable[[pathlib.Path], str | None],
  overwrite: bool = False,
) -> None:
  """Raises a `DataError` unless `new_directory` may write to `output`."""
  output = pathlib.Path(output)
  if not output.is_dir():
    if output.exists() or output.is_symlink():
      raise errors.DataError(
        "is not a directory; choose another --output", path=output
      )
    return
  if not any(output.iterdir()):
    return
  name = foreign(output)
  if name is not None:
    raise errors.DataError(
      f"holds {name!r}, which is not part of a {what}; choose a new or empty"
      " --output",
      path=output,
    )
  if not overwrite:
    raise errors.DataError(
      f"holds a {what} already; replace it with --overwrite, or choose"
      " another --output",
      path=output,
    )


@contextlib.contextmanager
def locked(
  directory: str | os.PathLike[str], flag: str = "--output"
) -> Iterator[None]:
  """Holds a lock that keeps other programs from writing to `directory`.

  Args:
    directory: Created if it does not exist; removed again if it stays empty.
    flag: The option that names the directory, for messages.

  Raises:
    DataError: Another program holds the lock, or `directory` is no directory.
  """
  directory = pathlib.Path(directory)
  if directory.exists() and not directory.is_dir():
    raise errors.DataError(
      f"is not a directory; choose another {flag}", path=directory
    )
  lock = directory / LOCK_FILE
  with _folder(directory), _claim(lock, directory, flag):
    yield


class _Holder(msgspec.Struct, frozen=True):
  """The holder of a lock.

  Attributes:
    host, process, program, since: Shown in messages.
    kernel: The boot id; programs that share it see each other's locks.
    token: Unique to this holder.
  """

  host: str
  process: int
  program: str
  since: str
  kernel: str
  token: str

  def __str__(self) -> str:
    return (
      f"{self.program} (process {self.process} on host {self.host}, since"
      f" {self.since})"
    )


def _this_program() -> _Holder:
  spec = getattr(sys.modules.get("__main__"), "__spec__", None)
  return _Holder(
    host=socket.gethostname(),
    process=os.getpid(),
    program=spec.name if spec else os.path.basename(sys.argv[0]) or "python",
    since=datetime.datetime.now().astimezone().isoformat(" ", "seconds"),
    kernel=_kernel(),
    token=secrets.token_hex(8),
  )


def _kernel() -> str:
  try:
    text = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text("ascii")
  except OSError:
    return socket.gethostname()
  return text.strip()


class _Claim:
  """A lock file that this program holds."""

  def __init__(self, path: pathlib.Path, owner: _Holder, descriptor: int):
    self._path, self._owner, self._descriptor = path, owner, descriptor
    self._over = threading.Event()
    self._touched: list[int | pathlib.Path] = [descriptor]
    content = msgspec.json.encode(owner)
    try:
      os.ftruncate(descriptor, 0)
      os.pwrite(descriptor, content, 0)
    except OSError:  # A full disk has room for names, but not for contents.
      path.unlink(missing_ok=True)
      raise
    self._beat = threading.Thread(target=self._touch, daemon=True)
    self._beat.start()

  def keep_alive(self, path: pathlib.Path) -> None:
    """Keeps touching `path` until the release, so other hosts leave it."""
    self._touched.append(path)

  def confirm(self) -> None:
    """Raises a `DataError` if another program has taken over."""
    found = _holder(self._descriptor)
    ours = found is not None and found.token == self._owner.token
    if not (ours and _is_at(self._descriptor, self._path)):
      raise errors.DataError(
        "this program stopped for so long that another one could take its"
        " lock; nothing was written, run it again",
        path=self._path,
      )

  def release(self) -> None:
    self._over.set()
    self._beat.join()
    with contextlib.suppress(errors.DataError, OSError):
      self.confirm()
      self._path.unlink()
    os.close(self._descriptor)

  def _touch(self) -> None:
    while not self._over.wait(_BEAT):
      for path in self._touched:
        with contextlib.suppress(OSError):
          os.utime(path)


@contextlib.contextmanager
def _claim(
  path: pathlib.Path, subject: pathlib.Path, flag: str = "--output"
) -> Iterator[_Claim]:
  """Holds the lock file `path`, which protects `subject`.

  Raises:
    DataError: Another program holds it.
  """
  owner = _this_program()
  while True:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
      _take_lock(descriptor, path, owner, subject, flag)
      # The previous holder may have removed the file after we opened it.
      if _is_at(descriptor, path):
        with _disk_errors_name(subject, path):
          claim = _Claim(path, owner, descriptor)
        break
    except BaseException:
      os.close(descriptor)
      raise
    os.close(descriptor)
  try:
    yield claim
  finally:
    claim.release()


def _take_lock(
  descriptor: int,
  path: pathlib.Path,
  owner: _Holder,
  subject: pathlib.Path,
  flag: str,
) -> None:
  """Takes the flock; raises a `DataError` if another program is alive."""
  held, reliable = False, True
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    # Any other error: some network file systems have no locks.
    held = error.errno in (errno.EWOULDBLOCK, errno.EACCES)
    reliable = held
  holder = _holder(descriptor)
  hint = ""
  if not held:
    if holder is None or (reliable and holder.kernel == owner.kernel):
      return  # No holder, or left by a program that was killed.
    silent = _now(path.parent) - os.fstat(descriptor).st_mtime
    if silent >= _LAPSE:
      return
    hint = f" (if it was killed, try again in {_LAPSE - silent:.0f} seconds)"
  raise errors.DataError(
    f"{holder or 'another program'} is writing here{hint}: wait for it, stop"
    f" it, or choose another {flag}",
    path=subject,
  )


def _holder(descriptor: int) -> _Holder | None:
  """The holder that a lock file names; None if it names none or is damaged."""
  try:
    return msgspec.json.decode(os.pread(descriptor, 4096, 0), type=_Holder)
  except (OSError, ValueError, msgspec.DecodeError):
    return None


def _is_at(descriptor: int, path: pathlib.Path) -> bool:
  """Whether the open file is the one at `path`."""
  try:
    return os.path.samestat(os.fstat(descriptor), os.stat(path))
  except FileNotFoundError:
    return False


def _now(directory: pathlib.Path) -> float:
  """The current time by the clock that stamps the files of `directory`."""
  with tempfile.TemporaryFile(dir=directory) as file:
    return os.fstat(file.fileno()).st_mtime


def _host() -> str:
  """The host name in a form that is safe in a file name."""
  return re.sub(r"[^\w.-]", "_", socket.gethostname())


def _hidden(path: pathlib.Path, role: str) -> pathlib.Path:
  """A new hidden name beside `path`."""
  return path.with_name(f".{path.name}.{role}-{_host()}-{secrets.token_hex(4)}")


def _leftovers(path: pathlib.Path, role: str) -> list[pathlib.Path]:
  """Hidden siblings of `path` that programs on any host have left."""
  prefix = glob.escape(f".{path.name}.{role}-")
  return list(path.parent.glob(f"{prefix}*-????????"))


def _is_silent(path: pathlib.Path, seconds: float) -> bool:
  """Whether `path` was not touched for `seconds`, or no longer exists."""
  try:
    # A copy may set the modification time, but nothing sets the change time.
    return _now(path.parent) - path.stat().st_ctime >= seconds
  except FileNotFoundError:
    return True


def _is_of_this_host(leftover: pathlib.Path) -> bool:
  return leftover.name[:-9].endswith(f"-{_host()}")


def _tidy(output: pathlib.Path) -> None:
  """Cleans up what killed programs left of `output`; needs its lock."""
  old = max(
    _leftovers(output, "old"),
    key=lambda path: path.stat().st_ctime,
    default=None,
  )
  if old is not None and not output.exists():
    # A program was killed between the two renames of `_take_place`.
    os.rename(old, output)
  for role in ("partial", "old"):
    for leftover in _leftovers(output, role):
      if _is_of_this_host(leftover) or _is_silent(leftover, _LAPSE):
        _remove(leftover)


def _remove(directory: pathlib.Path) -> None:
  """Removes a directory, if this program may."""
  shutil.rmtree(directory, ignore_errors=True)
  if directory.exists():
    # Folders may be read-only, as in a copy of what somebody protected.
    for folder, _, _ in os.walk(directory):
      with contextlib.suppress(OSError):
        os.chmod(folder, 0o700)
    shutil.rmtree(directory, ignore_errors=True)


def _take_place(
  new: pathlib.Path, output: pathlib.Path, check: Callable[[], None]
) -> None:
  """Moves `new` to `output`; moves the old `output` to `new` or removes it."""
  try:
    os.rename(new, output)  # Works if `output` is missing or empty.
    return
  except OSError:
    check()  # `output` may have appeared since the start.
    if not output.exists():
      raise
  if _exchange(new, output):
    return
  # This file system cannot exchange: for a moment `output` does not exist. If
  # the program is killed then, `_tidy` of the next program repairs it.
  old = _hidden(output, "old")
  os.rename(output, old)
  try:
    os.rename(new, output)
  except OSError:
    os.rename(old, output)
    raise
  _remove(old)


def _exchange(one: pathlib.Path, other: pathlib.Path) -> bool:
  """Swaps two directories in one step; False if the system cannot."""
  try:
    rename = ctypes.CDLL(None, use_errno=True).renameat2
  except (AttributeError, OSError):
    return False
  paths = [os.fsencode(path) for path in (one, other)]
  return rename(_HERE, paths[0], _HERE, paths[1], _EXCHANGE) == 0


def _sync_all(directory: pathlib.Path) -> None:
  """Flushes all files below `directory` to the disk."""
  for folder, _, names in os.walk(directory):
    for name in names:
      path = pathlib.Path(folder, name)
      if path.is_file() and not path.is_symlink():
        _sync(path)
    _sync(pathlib.Path(folder))


def _sync(path: pathlib.Path) -> None:
  """Flushes a file, or the names in a directory, to the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  except OSError as error:
    # Some file systems cannot sync directories.
    if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
      raise
  finally:
    os.close(descriptor)
