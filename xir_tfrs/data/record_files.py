"""Writes TFRecords of blocks of rows, without TensorFlow.

`records` describes the files and reads them.
"""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Mapping
from typing import Any

import google_crc32c
import numpy as np
from google.protobuf import (
  descriptor_pb2,
  descriptor_pool,
  message,
  message_factory,
)

BLOCK_ROWS = 4096


class BlockWriter:
  """Appends rows to one shard; a context manager.

  Attributes:
    rows: rows appended so far.

  Examples:
    >>> from xir_tfrs.data import records
    >>> ids = np.arange(2)
    >>> with records.BlockWriter("train-0") as writer:
    ...   writer.append({"query_id": ids, "candidate_id": ids})
    >>> writer.rows
    2
  """

  def __init__(
    self, path: str | os.PathLike[str], block_rows: int = BLOCK_ROWS
  ):
    self.rows = 0
    self._block_rows = block_rows
    self._pending: list[dict[str, np.ndarray]] = []
    self._pending_rows = 0
    self._writer = RecordWriter(path)

  def append(self, columns: Mapping[str, np.ndarray]) -> None:
    """Appends `columns`: name -> [n] array, with the same names each time."""
    n = len(next(iter(columns.values())))
    self.rows += n
    self._pending.append(dict(columns))
    self._pending_rows += n
    if self._pending_rows >= self._block_rows:
      self._flush(keep=self._pending_rows % self._block_rows)

  def end_block(self) -> None:
    """Ends the current block; rows appended later start a new one."""
    self._flush(keep=0)

  def close(self) -> None:
    self.end_block()
    self._writer.close()

  def _flush(self, keep: int) -> None:
    if not self._pending_rows:
      return
    rows = {
      name: np.concatenate([block[name] for block in self._pending])
      for name in self._pending[0]
    }
    end = self._pending_rows - keep
    for start in range(0, end, self._block_rows):
      block = slice(start, min(start + self._block_rows, end))
      self._writer.write(encode({k: v[block] for k, v in rows.items()}))
    # Copies, so that a few pending rows do not keep a large array alive.
    self._pending = [{k: v[end:].copy() for k, v in rows.items()}]
    self._pending_rows = keep

  def __enter__(self) -> BlockWriter:
    return self

  def __exit__(self, *unused_exception: object) -> None:
    self.close()


class RecordWriter:
  """Writes a TFRecord file; a context manager."""

  def __init__(self, path: str | os.PathLike[str]):
    self._file = open(path, "wb")  # noqa: SIM115

  def write(self, record: bytes) -> None:
    """Appends a record: its length, its bytes, and a checksum of each."""
    length = struct.pack("<Q", len(record))
    self._file.write(length + _checksum(length))
    self._file.write(record)
    self._file.write(_checksum(record))

  def close(self) -> None:
    self._file.close()

  def __enter__(self) -> RecordWriter:
    return self

  def __exit__(self, *unused_exception: object) -> None:
    self.close()


def _checksum(data: bytes) -> bytes:
  """The masked CRC-32C of TFRecords."""
  crc = google_crc32c.value(data)
  return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def encode(columns: Mapping[str, np.ndarray]) -> bytes:
  """Serializes [n] int, float or bytes arrays as a `tf.train.Example`."""
  example = _example_type()()
  for name, values in columns.items():
    feature = example.features.feature[name]
    if values.dtype.kind in "iu":
      feature.int64_list.value.extend(values.tolist())
    elif values.dtype.kind == "f":
      feature.float_list.value.extend(values.tolist())
    else:
      feature.bytes_list.value.extend(values.tolist())
  return example.SerializeToString(deterministic=True)


# Message -> its fields: name, number, type, whether it is repeated. As in
# tensorflow/core/example/example.proto and feature.proto.
_FIELD = descriptor_pb2.FieldDescriptorProto
_MESSAGES: dict[str, list[tuple[str, int, Any, bool]]] = {
  "BytesList": [("value", 1, _FIELD.TYPE_BYTES, True)],
  "FloatList": [("value", 1, _FIELD.TYPE_FLOAT, True)],
  "Int64List": [("value", 1, _FIELD.TYPE_INT64, True)],
  "Feature": [
    ("bytes_list", 1, "BytesList", False),
    ("float_list", 2, "FloatList", False),
    ("int64_list", 3, "Int64List", False),
  ],
  "Features": [("feature", 1, "Features.FeatureEntry", True)],
  "Example": [("features", 1, "Features", False)],
}


@functools.cache
def _example_type() -> type[message.Message]:
  """Returns the type `tf.train.Example`.

  It is in a pool of its own, because TensorFlow may define it once more.
  """
  file = descriptor_pb2.FileDescriptorProto(
    name="example.proto", package="tensorflow", syntax="proto3"
  )
  for name, fields in _MESSAGES.items():
    of_message = file.message_type.add(name=name)
    for field in fields:
      _add(of_message, *field)
    if name == "Feature":
      of_message.oneof_decl.add(name="kind")
      for field in of_message.field:
        field.oneof_index = 0
    if name == "Features":
      entry = of_message.nested_type.add(name="FeatureEntry")
      entry.options.map_entry = True
      _add(entry, "key", 1, _FIELD.TYPE_STRING, False)
      _add(entry, "value", 2, "Feature", False)
  pool = descriptor_pool.DescriptorPool()
  pool.Add(file)
  return message_factory.GetMessageClass(
    pool.FindMessageTypeByName("tensorflow.Example")
  )


def _add(
  to: descriptor_pb2.DescriptorProto,
  name: str,
  number: int,
  kind: Any,
  repeated: bool,
) -> None:
  label = _FIELD.LABEL_REPEATED if repeated else _FIELD.LABEL_OPTIONAL
  field = to.field.add(name=name, number=number, label=label)
  if isinstance(kind, str):
    field.type, field.type_name = _FIELD.TYPE_MESSAGE, f".tensorflow.{kind}"
  else:
    field.type = kind


def shard_name(part: str, shard: int, num_shards: int) -> str:
  return f"{part}-{shard:05d}-of-{num_shards:05d}.tfrecord"
