"""Files by address: a path, or a URL for fsspec, such as gs://bucket/a.csv."""

from __future__ import annotations

import functools
import glob
import hashlib
import os
import pathlib
import posixpath
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import fsspec

from xir_tfrs.data import errors

Address = str | os.PathLike[str]
# Names of files that programs write beside their data files.
_NOT_DATA = re.compile(r"^[._]|\.crc$|\.md5$|^README|^LICENSE", re.IGNORECASE)
_MAGIC = re.compile(r"[*?\[]")


def is_remote(address: Address) -> bool:
  """Whether fsspec opens the address."""
  return "://" in os.fspath(address)


def open_binary(address: Address) -> BinaryIO:
  """Opens a file for seekable binary reading.

  Raises:
    DataError: It cannot be read.
  """
  try:
    if not is_remote(address):
      return open(address, "rb")
    system, path = _system(os.fspath(address))
    return system.open(path, "rb")
  except errors.DataError:
    raise
  except (OSError, ValueError, KeyError) as error:
    raise _unreadable(address, error) from None


def num_bytes(address: Address) -> int:
  if not is_remote(address):
    return os.stat(address).st_size
  system, path = _system(os.fspath(address))
  return int(system.size(path))


def name(address: Address) -> str:
  """The file name, which is the last part of an address."""
  return posixpath.basename(os.fspath(address).split("::")[0].rstrip("/"))


def stem(address: Address) -> str:
  """The name of a file up to its first dot."""
  whole = name(address)
  return whole.partition(".")[0] or whole


def fingerprint(address: Address) -> dict[str, str | int]:
  """Name, size and SHA-256 of a file."""
  digest = hashlib.sha256()
  with open_binary(address) as file:
    while block := file.read(1 << 20):
      digest.update(block)
  return {
    "path": name(address),
    "bytes": num_bytes(address),
    "sha256": digest.hexdigest(),
  }


def expand(given: Address) -> list[str]:
  """Returns the files of an address: a file, a pattern or a folder.

  A folder means all files in it and its subfolders, except those whose names
  mark them as no data, such as `_SUCCESS` and `.part-0.crc`.

  Raises:
    DataError: There is no file, or a file cannot be read twice.
  """
  given = os.fspath(given)
  found = list(_remote(given) if is_remote(given) else _local(given))
  if not found:
    raise errors.DataError(
      "holds no file; name a file, a pattern or a folder with files",
      path=given,
    )
  return found


def _local(given: str) -> Iterator[str]:
  path = pathlib.Path(given)
  if path.is_dir():
    yield from _in_folder(path)
    return
  paths = [path] if path.exists() else map(pathlib.Path, _matches(given))
  for path in paths:
    if path.is_fifo() or path.is_char_device():
      raise errors.DataError(
        "is a pipe, which cannot be read twice; save it to a file first",
        path=path,
      )
    if path.is_dir():
      yield from _in_folder(path)
      continue
    if not os.access(path, os.R_OK):
      raise errors.DataError("cannot be read as a file", path=path)
    yield str(path)


def _matches(pattern: str) -> list[str]:
  found = sorted(glob.glob(pattern, recursive=True))
  if not found:
    raise errors.DataError(
      "no such file; for a TFDS data set use --format tfds", path=pattern
    )
  return found


def _in_folder(folder: pathlib.Path) -> Iterator[str]:
  for path in sorted(folder.rglob("*")):
    parts = path.relative_to(folder).parts
    if path.is_file() and not any(map(_NOT_DATA.search, parts)):
      yield str(path)


def _remote(given: str) -> Iterator[str]:
  system, path = _system(given)
  try:
    if _MAGIC.search(path):
      found = system.glob(path)
    elif system.isdir(path):
      found = [
        name
        for name in system.find(path)
        if not any(map(_NOT_DATA.search, name[len(path) :].split("/")))
      ]
    else:
      system.info(path)
      found = [path]
  except (OSError, ValueError) as error:
    raise _unreadable(given, error) from None
  _, *chained = given.split("::")
  for one in sorted(found):
    yield "::".join([system.unstrip_protocol(one), *chained])


@functools.lru_cache(maxsize=64)  # Unreferenced archives are closed.
def _system(address: str) -> tuple[Any, str]:
  try:
    return fsspec.core.url_to_fs(address)
  except (OSError, ValueError, ImportError, KeyError) as error:
    raise _unreadable(address, error) from None


def _unreadable(address: Address, error: Exception) -> errors.DataError:
  reason = getattr(error, "strerror", None) or " ".join(str(error).split())
  return errors.DataError(
    f"cannot be read ({reason or type(error).__name__})", path=address
  )
