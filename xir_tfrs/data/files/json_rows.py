"""Reads JSON rows: one object per line, or one array of objects.

pyarrow reads lines. If it refuses some, and for arrays and for lines that
Python's `print` wrote ({u'user': 1}), objects are read one by one.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import json as arrow_json

from xir_tfrs.data import errors
from xir_tfrs.data.files import columns, layouts, places, rows, streams, text

_DECODER = json.JSONDecoder()
# A longer object counts as one that never ends.
_MAX_OBJECT = 64 << 20


def open_file(path: str, layout: layouts.Layout) -> rows.RowFile:
  """Opens a JSON file; its first objects define the columns.

  Raises:
    DataError: The file is empty, or does not start with objects.
  """
  with streams.Stream(path, layout.compression, layout.encoding) as stream:
    head = stream.read(layouts.SAMPLE_BYTES)
  is_whole = len(head) < layouts.SAMPLE_BYTES
  start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
  if not start:
    raise errors.DataError("empty; expected objects", path=path, line=1)
  kind: type[_JsonFile] = _ArrayFile if start[:1] == b"[" else _LineFile
  return kind(path, layout, head, is_whole)


class _JsonFile(rows.TextRowFile):
  """Base of both kinds of JSON file."""

  def __init__(
    self, path: str, layout: layouts.Layout, head: bytes, is_whole: bool
  ):
    self.path = path
    self._text = text.TextFile(path, layout.compression, layout.encoding)
    self._schema = self._infer(head, is_whole)
    super().__init__(path, layout, rows.leaves(self._schema))

  def _infer(self, head: bytes, is_whole: bool) -> pa.Schema:
    """The schema of the first objects."""
    raise NotImplementedError

  def _narrow(self, wanted: rows.Wanted) -> pa.Schema:
    """The schema of the file's columns that hold the wanted ones."""
    names = dict.fromkeys(rows.outer(n, self._schema.names) for n in wanted)
    return pa.schema([self._schema.field(name) for name in names])

  def _of_objects(
    self, objects: list[dict[str, Any]], where: places.Places, names: list[str]
  ) -> pa.Table:
    """A table of objects that were read one by one."""
    return pa.table(
      {
        name: _array([one.get(name) for one in objects], name, where)
        for name in names
      }
    )


class _LineFile(_JsonFile):
  """An object on each line."""

  def __init__(
    self, path: str, layout: layouts.Layout, head: bytes, is_whole: bool
  ):
    super().__init__(path, layout, head, is_whole)
    self.can_be_cut = self._text.can_be_cut

  def _infer(self, head: bytes, is_whole: bool) -> pa.Schema:
    whole, _, cut_off = head.rpartition(b"\n")
    if is_whole or not whole:
      whole += b"\n" + cut_off
    whole = whole.removeprefix(b"\xef\xbb\xbf")
    self._load: Callable[[str], Any] = json.loads
    try:
      return _as_text(arrow_json.read_json(streams.in_arrow(whole)).schema)
    except (pa.ArrowException, UnicodeDecodeError):
      pass
    first = whole.lstrip().partition(b"\n")[0].decode("utf-8", "replace")
    if first.startswith(("{'", "{u'", "{}")):
      self._load = ast.literal_eval
    lines = [line for line in whole.split(b"\n") if line.strip()]
    objects = [self._object(line, k + 1) for k, line in enumerate(lines)]
    names = list(dict.fromkeys(name for one in objects for name in one))
    where = places.Places(self.path, 1)
    return self._of_objects(objects, where, names).schema

  def _read(
    self, chunks: Iterator[text.Chunk], wanted: rows.Wanted
  ) -> Iterator[rows.Rows]:
    schema = self._narrow(wanted)
    for chunk in chunks:
      table, where = self._table(chunk, schema)
      if len(table):
        found = {name: rows.field(table, name) for name in wanted}
        yield rows.Rows(found, where, chunk.begin, chunk.progress)

  def _table(
    self, chunk: text.Chunk, schema: pa.Schema
  ) -> tuple[pa.Table, places.Places]:
    expected = chunk.data.count(b"\n") + (not chunk.data.endswith(b"\n"))
    if self._load is json.loads:
      try:
        table = arrow_json.read_json(
          streams.in_arrow(chunk.data),
          read_options=arrow_json.ReadOptions(block_size=4 << 20),
          parse_options=arrow_json.ParseOptions(
            explicit_schema=schema, unexpected_field_behavior="ignore"
          ),
        )
        table.validate(full=True)  # pyarrow does not check for UTF-8.
        if len(table) == expected:  # Else some lines are not one object.
          return table, places.Places(self.path, chunk.first_line)
      except (pa.ArrowException, UnicodeDecodeError):
        pass
    objects, numbers = [], []
    for number, line in enumerate(chunk.data.split(b"\n"), chunk.first_line):
      if line.strip():
        objects.append(self._object(line, number))
        numbers.append(number)
    self.warnings["blank_lines"] += expected - len(objects)
    where = places.Places(self.path, np.array(numbers, np.int64))
    return self._of_objects(objects, where, schema.names), where

  def _object(self, line: bytes, number: int) -> dict[str, Any]:
    decoded = self._text.decode(line, number)
    try:
      found = self._load(decoded)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
      reason = getattr(error, "msg", None) or type(error).__name__
      raise errors.DataError(
        f"is not a JSON object ({reason}); expected one on each line",
        path=self.path,
        line=number,
      ) from None
    if not isinstance(found, dict):
      raise errors.DataError(
        "is not a JSON object; expected one on each line",
        path=self.path,
        line=number,
      )
    return found


class _ArrayFile(_JsonFile):
  """One array of objects, read one by one."""

  def _infer(self, head: bytes, is_whole: bool) -> pa.Schema:
    found = _Objects(self.path)
    objects = [one for one, _ in found.add(head)]
    if not objects and not is_whole:
      raise errors.DataError("its first object never ends", path=self.path)
    if is_whole:
      found.end()
    names = list(dict.fromkeys(name for one in objects for name in one))
    where = places.Places(self.path, 1)
    return self._of_objects(objects, where, names).schema

  def rows(
    self,
    wanted: rows.Wanted,
    chunk_bytes: int = rows.CHUNK_BYTES,
    start: int = 0,
    stop: int | None = None,
    count_lines: bool = False,
  ) -> Iterator[rows.Rows]:
    del start, stop, count_lines  # The file is always read as a whole.
    self.warnings.clear()
    names = self._narrow(wanted).names
    begin, objects = 0, _Objects(self.path)
    layout = self.layout
    with streams.Stream(
      self.path, layout.compression, layout.encoding
    ) as stream:
      while block := stream.read(chunk_bytes):
        found = list(objects.add(block))
        if found:
          where = places.Places(self.path, np.array([n for _, n in found]))
          table = self._of_objects([one for one, _ in found], where, names)
          yield rows.Rows(
            {name: rows.field(table, name) for name in wanted},
            where,
            begin,
            stream.raw.tell(),
          )
        begin += len(block)
    objects.end()


class _Objects:
  """Parses the text of an array incrementally into objects."""

  def __init__(self, path: str):
    self._path, self._rest, self._line = path, "", 1
    self._pending = b""
    self._begun = self._ended = False

  def add(self, block: bytes) -> Iterator[tuple[dict[str, Any], int]]:
    """Adds text; yields the objects that it completes, and their lines."""
    data = self._pending + block
    cut = len(data)
    while cut and len(data) - cut < 4 and data[cut - 1] & 0xC0 == 0x80:
      cut -= 1  # A character may continue in the next block.
    if cut and data[cut - 1] >= 0xC0:
      cut -= 1
    else:
      cut = len(data)
    self._pending = data[cut:]
    try:
      whole = self._rest + data[:cut].decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError:
      raise errors.DataError(
        f"not UTF-8; {streams.SET_ENCODING}", path=self._path
      ) from None
    at = 0
    while True:
      after = self._skip(whole, at)
      self._line += whole.count("\n", at, after)
      at = after
      if at == len(whole) or self._ended:
        break
      try:
        found, after = _DECODER.raw_decode(whole, at)
      except ValueError:
        break  # Incomplete or invalid: `end` finds out.
      if not isinstance(found, dict):
        raise self._error("is not a JSON object; expected an array of objects")
      yield found, self._line
      self._line += whole.count("\n", at, after)
      at = after
    self._rest = whole[at:]
    if len(self._rest) > _MAX_OBJECT:
      self.end()

  def end(self) -> None:
    """Raises `DataError` unless the array is complete."""
    if not self._ended:
      raise self._error("is not a JSON object, or the array is cut off here")

  def _skip(self, whole: str, at: int) -> int:
    """Skips white space, commas and the brackets of the array."""
    while at < len(whole) and whole[at] in " \t\r\n,[]":
      if whole[at] == "[" and self._begun:
        break
      self._begun |= whole[at] == "["
      self._ended |= whole[at] == "]"
      at += 1
    return at

  def _error(self, message: str) -> errors.DataError:
    return errors.DataError(message, path=self._path, line=self._line)


def _as_text(schema: pa.Schema) -> pa.Schema:
  """The schema with text instead of times that pyarrow inferred from text."""
  return pa.schema([(field.name, _text_type(field.type)) for field in schema])


def _text_type(kind: pa.DataType) -> pa.DataType:
  if pa.types.is_timestamp(kind) or pa.types.is_null(kind):
    return pa.string()
  if columns.is_list_type(kind):
    return pa.list_(_text_type(kind.value_type))
  if pa.types.is_struct(kind):
    return pa.struct([(f.name, _text_type(f.type)) for f in kind])
  return kind


def _array(values: list[Any], name: str, where: places.Places) -> pa.Array:
  """An array of one type, or of text if the types differ."""
  try:
    array = pa.array(values)
  except (pa.ArrowException, OverflowError, TypeError):
    if any(isinstance(v, dict | list) for v in values):
      raise where.error(
        None, name, "holds lists or objects in some rows and not in others"
      ) from None
    array = pa.array([None if v is None else str(v) for v in values])
  return array.cast(pa.string()) if pa.types.is_null(array.type) else array
