"""Reads JSON files into declared types and writes them atomically.

A type is a `msgspec.Struct` or a dataclass. A file that is missing, damaged or
of another shape raises a `DataError` that names the file and the field:

    schema.json, field shards.train[0].rows: Expected `int`, got `str`; ...

This module does not need TensorFlow.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import re
from typing import Any, TypeVar

import msgspec

from xir_tfrs.data import atomic, errors

_T = TypeVar("_T")
# A struct with a field `sha256`.
_Sealed = TypeVar("_Sealed", bound=msgspec.Struct)
_INDENT = 1
# The end of msgspec's messages: "Expected `int`, got `str` - at `$.rows[0]`".
_AT = re.compile(r" - at `(?P<key>key in )?\$?(?P<path>.*)`$", re.DOTALL)
# A step of such a path: `.name`, `[3]`, or `[...]` for any key of a dict.
_STEP = re.compile(
  r"\.(?P<name>[^.\[]+)|\[(?P<index>\d+)\]|(?P<any>\[\.\.\.\])"
)


def read(
  path: str | os.PathLike[str],
  type: type[_T],
  *,
  remedy: str,
  missing: str | None = None,
  format: int | None = None,
) -> _T:
  """Reads a JSON file into a `type`.

  Args:
    path: The file.
    type: A `msgspec.Struct`, a dataclass or any other type that msgspec
      decodes.
    remedy: What to do about a file that cannot be used; ends the messages.
    missing: What a missing file means and what to do, instead of `remedy`.
    format: The required value of the field `format`, if there is one.

  Raises:
    DataError: The file is missing, unreadable, not JSON or not a `type`.
  """
  return decode(
    read_bytes(path, remedy=remedy, missing=missing),
    type,
    path=path,
    remedy=remedy,
    format=format,
  )


def read_bytes(
  path: str | os.PathLike[str], *, remedy: str, missing: str | None = None
) -> bytes:
  """Reads the content of a file with the errors of `read`, e.g. to hash it."""
  try:
    return pathlib.Path(path).read_bytes()
  except (FileNotFoundError, NotADirectoryError):
    raise errors.DataError(
      f"not found{missing or '; ' + remedy}", path=path
    ) from None
  except OSError as error:
    raise errors.DataError(
      f"cannot be read ({error.strerror or error}); {remedy}", path=path
    ) from None


def decode(
  content: bytes,
  type: type[_T],
  *,
  path: str | os.PathLike[str],
  remedy: str,
  format: int | None = None,
  line: int | None = None,
) -> _T:
  """Decodes the content of a file, or of one of its lines, into a `type`.

  Raises:
    DataError: It is not JSON, or not a `type`.
  """
  field = None
  try:
    if format is not None:
      _check_format(content, format)
    value = msgspec.json.decode(content, type=type)
    # msgspec silently uses the last value of a repeated key.
    json.loads(content, object_pairs_hook=_check_keys)
    return value
  except msgspec.ValidationError as error:
    message, field = _located(error, content, type)
  except RecursionError:
    message = "nested too deeply"
  except (msgspec.DecodeError, ValueError) as error:  # Also: not UTF-8.
    message = f"not valid JSON ({error})"
  raise errors.DataError(
    f"{message}; {remedy}", path=path, line=line, field=field
  )


def seal(value: _Sealed) -> _Sealed:
  """Returns the value with its own hash in the field `sha256`."""
  # Hashes the value as it will be read back: NumPy numbers, for example, are
  # written as plain numbers.
  value = msgspec.json.decode(encode(value).encode(), type=type(value))
  return msgspec.structs.replace(value, sha256=_digest(value))


def read_sealed(
  path: str | os.PathLike[str],
  type: type[_Sealed],
  *,
  remedy: str,
  missing: str,
  format: int,
) -> _Sealed:
  """Reads a value that `seal` returned; arguments as of `read`.

  Raises:
    DataError: The file is missing, damaged or of another format.
  """
  value = read(path, type, remedy=remedy, missing=missing, format=format)
  require_seal(path, value, remedy=remedy)
  return value


def require_seal(
  path: str | os.PathLike[str], value: msgspec.Struct, *, remedy: str
) -> None:
  """Raises a `DataError` unless a value has the hash that `seal` gave it."""
  if getattr(value, "sha256") != _digest(value):  # noqa: B009
    raise errors.DataError(
      f"its content has changed since it was written; {remedy}", path=path
    )


def _digest(value: msgspec.Struct) -> str:
  content = msgspec.json.encode(msgspec.structs.replace(value, sha256=""))
  return hashlib.sha256(content).hexdigest()


def write(path: str | os.PathLike[str], value: Any) -> None:
  """Writes `value` as indented JSON; the file appears complete or not at all.

  Non-finite numbers become null, because JSON cannot hold them.
  """
  atomic.write_text(path, encode(value))


def encode(value: Any) -> str:
  """The content that `write` writes."""
  content = msgspec.json.encode(value, enc_hook=_to_builtin)
  return msgspec.json.format(content, indent=_INDENT).decode() + "\n"


def encode_line(value: Any) -> str:
  """`value` as a line of a .jsonl file, including the line feed."""
  return msgspec.json.encode(value, enc_hook=_to_builtin).decode() + "\n"


def _to_builtin(value: Any) -> Any:
  """Converts NumPy scalars and arrays, and paths."""
  if isinstance(value, os.PathLike):
    return os.fspath(value)
  if hasattr(value, "tolist"):
    return value.tolist()
  raise TypeError(f"JSON cannot hold a {type(value).__name__}: {value!r}")


class _Format(msgspec.Struct):
  format: Any = None


def _check_format(content: bytes, expected: int) -> None:
  """Checks the format first: other formats may have other fields."""
  found = msgspec.json.decode(content, type=_Format).format
  if found != expected or isinstance(found, bool):
    raise msgspec.ValidationError(
      f"this version reads format {expected}, the file has {found!r} - at"
      " `$.format`"
    )


def _check_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    keys = [key for key, _ in pairs]
    twice = next(key for key in keys if keys.count(key) > 1)
    raise ValueError(f"the key {twice!r} appears twice")
  return found


def _located(
  error: msgspec.ValidationError, content: bytes, type: type
) -> tuple[str, str | None]:
  """The error and its field, including keys that msgspec leaves out."""
  message = str(error)
  found = _AT.search(message)
  if not found:
    return message, None
  field = found["path"]
  if "[...]" in field:
    try:
      field = _with_keys(field, json.loads(content), type, message)
    except (LookupError, ValueError, RecursionError):
      pass  # A later part of the file is damaged; the path stays vague.
  message = message[: found.start()]
  if found["key"]:
    message += ", as a key"
  return message, field.lstrip(".") or None


def _with_keys(path: str, root: Any, type: type, message: str) -> str:
  """Replaces each `[...]` in `path` with the key."""
  field = ""
  node = root
  for step in _STEP.finditer(path):
    key: str | int
    if step["any"]:
      key = _failing_key(root, node, type, message)
      field += f".{key}"
    else:
      key = step["name"] or int(step["index"])
      field += step[0]
    node = node[key]
  return field


def _failing_key(
  root: Any, node: dict[str, Any], type: type, message: str
) -> str:
  """The key of `node`, a part of `root`, that causes the error `message`.

  Leaves nothing else in `node`.
  """
  for key, value in list(node.items()):
    node.clear()
    node[key] = value
    try:
      msgspec.json.decode(json.dumps(root), type=type)
    except msgspec.DecodeError as error:
      if str(error) == message:
        return key
  raise LookupError(message)
