"""Bytes of a file as UTF-8: unpacked, and decoded from other encodings."""

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
# The first bytes of packed files.
_MAGIC = {
  b"\x1f\x8b": "gzip",
  b"BZh": "bz2",
  b"PK\x03\x04": "zip",
  b"PK\x05\x06": "zip",
  b"\x28\xb5\x2f\xfd": "zstd",
  b"\xfd7zXZ\x00": "xz",
}


def compression_of(first_bytes: bytes) -> str | None:
  """How a file that begins so is packed; None if it is not."""
  for magic, name in _MAGIC.items():
    # Text may begin with BZh; a packed file goes on with pi or sqrt(pi).
    if first_bytes.startswith(magic) and (
      name != "bz2" or first_bytes[4:5] in (b"1", b"\x17")
    ):
      return name
  return None


@contextlib.contextmanager
def reading(address: addresses.Address) -> Iterator[None]:
  """Turns what libraries raise about a broken file into a DataError."""
  try:
    yield
  except errors.DataError:
    raise
  except UnicodeError as error:
    raise errors.DataError(
      f"is not all in one encoding ({error}); say which it is in with"
      " --encoding, or write the file again",
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
      f"cannot be unpacked ({' '.join(str(error).split())}): damaged or cut"
      " off; write or download the file again",
      path=address,
    ) from None


def in_arrow(data: bytes) -> pa.BufferReader:
  """A copy of `data` in Arrow's own memory, to be parsed by its threads.

  A thread that frees memory of Python needs Python's lock, and one that asks
  for it while Python is shutting down aborts the process.
  """
  buffer = pa.allocate_buffer(len(data))
  memoryview(buffer).cast("B")[:] = data
  return pa.BufferReader(buffer)


class Stream:
  """Reads a file from its start to its end, as UTF-8.

  Attributes:
    raw: the file as it lies there; its position tells how far reading came.
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
    """So many bytes, or fewer at the end of the file alone."""
    parts, missing = [], num_bytes
    with reading(self._address):
      # Streams may give less than they are asked for long before their end.
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
      "is a workbook of Excel or the like; save its sheet as CSV", path=address
    )
  if len(names) != 1:
    shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
    example = f"zip://{names[0] if names else 'NAME'}::{os.fspath(address)}"
    raise errors.DataError(
      f"holds {len(names)} files ({shown}); name one of them as {example}",
      path=address,
    )
  return archive.open(names[0])
