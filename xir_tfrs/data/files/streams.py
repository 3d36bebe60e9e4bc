"""Reads files as UTF-8: decompresses them and converts other encodings."""

from __future__ import annotations

import contextlib
import lzma
import os
import zipfile
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa

from xir_tfrs.data import errors
from xir_tfrs.data.files import addresses

COMPRESSIONS = ("gzip", "bz2", "zip", "zstd", "xz")
UTF8 = "utf-8"
SET_ENCODING = (
  "write it as UTF-8, or set --encoding, e.g. latin-1 (for side features "
  "--item_layout encoding=latin-1)"
)
# The first bytes of compressed files.
_MAGIC = {
  b"\x1f\x8b": "gzip",
  b"BZh": "bz2",
  b"PK\x03\x04": "zip",
  b"PK\x05\x06": "zip",
  b"\x28\xb5\x2f\xfd": "zstd",
  b"\xfd7zXZ\x00": "xz",
}


def compression_of(first_bytes: bytes) -> str | None:
  """The compression of a file by its first bytes, or None."""
  for magic, name in _MAGIC.items():
    # Text may start with BZh; in a bzip2 file, pi or sqrt(pi) follows.
    if first_bytes.startswith(magic) and (
      name != "bz2" or first_bytes[4:5] in (b"1", b"\x17")
    ):
      return name
  return None


@contextlib.contextmanager
def reading(address: addresses.Address) -> Iterator[None]:
  """Turns errors of libraries about a broken file into a `DataError`."""
  try:
    yield
  except errors.DataError:
    raise
  except UnicodeError as error:
    raise errors.DataError(
      f"is not all in one encoding ({error}); {SET_ENCODING}",
      path=address,
    ) from None
  except (
    OSError,
    EOFError,
    RuntimeError,
    NotImplementedError,
    lzma.LZMAError,
    zipfile.BadZipFile,
    pa.ArrowException,
  ) as error:
    raise errors.DataError(
      f"cannot be unpacked ({' '.join(str(error).split())}): damaged or"
      " truncated; write or download the file again",
      path=address,
    ) from None


def in_arrow(data: bytes) -> pa.BufferReader:
  """Copies `data` to Arrow's own memory, for its parser threads.

  A thread that frees Python memory needs the interpreter lock, and requesting
  it while Python shuts down aborts the process.
  """
  buffer = pa.allocate_buffer(len(data))
  memoryview(buffer).cast("B")[:] = data
  return pa.BufferReader(buffer)


class Stream:
  """Reads a file from its start to its end, as UTF-8.

  Attributes:
    raw: The raw file; its position shows the progress.
  """

  def __init__(
    self,
    address: addresses.Address,
    compression: str | None,
    encoding: str = UTF8,
  ):
    self._address = address
    self.raw = addresses.open_binary(address)
    with reading(address):
      stream = _unpacked(self.raw, compression, address)
      if encoding != UTF8:
        if not isinstance(stream, pa.NativeFile):
          stream = pa.PythonFile(stream, mode="r")
        stream = pa.transcoding_input_stream(stream, encoding, UTF8)
    self._stream = stream

  def read(self, num_bytes: int) -> bytes:
    """Reads `num_bytes` bytes, or fewer at the end of the file only."""
    parts, missing = [], num_bytes
    with reading(self._address):
      # Streams may return less than requested long before their end.
      while missing and (part := self._stream.read(missing)):
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)

  def __enter__(self) -> Stream:
    return self

  def __exit__(self, *unused_exception: object) -> None:
    self.raw.close()


def _unpacked(
  raw: BinaryIO, compression: str | None, address: addresses.Address
) -> Any:
  if compression is None:
    return raw
  if compression == "xz":
    return lzma.open(raw)
  if compression == "zip":
    return _only_member(raw, address)
  return pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), compression)


def _only_member(raw: BinaryIO, address: addresses.Address) -> Any:
  archive = zipfile.ZipFile(raw)
  names = [n for n in archive.namelist() if not n.endswith("/")]
  if "[Content_Types].xml" in names:
    raise errors.DataError(
      "is a spreadsheet file; save its sheet as CSV", path=address
    )
  if len(names) != 1:
    shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
    example = f"zip://{names[0] if names else 'NAME'}::{os.fspath(address)}"
    raise errors.DataError(
      f"holds {len(names)} files ({shown}); name one of them as {example}",
      path=address,
    )
  return archive.open(names[0])
