"""Files of `tf.train.Example`s with raw values as columns.

A record is one row, or a block of n rows as packed columns: n ids, n values of
a token or a float, n * length of a float_seq, and of a token_seq NAME/values
and NAME/lengths.
"""

from __future__ import annotations

import itertools
import os
import pathlib

import pyarrow as pa
from google.protobuf import message as protobuf

from xir_tfrs.data import errors

_RECORDS_PER_BATCH = 256


class ExampleFile:
  """A TFRecord file of examples, which is held in memory.

  Attributes:
    path: the file.
    names: the columns of all records.
  """

  def __init__(self, path: pathlib.Path):
    import tensorflow as tf  # The other formats do without.

    self.path = path
    self._records: list[dict[str, list]] = []
    try:
      dataset = tf.data.TFRecordDataset(os.fspath(path))
      for batch in dataset.batch(_RECORDS_PER_BATCH).as_numpy_iterator():
        for record in batch:
          example = tf.train.Example.FromString(record)
          self._records.append(
            {
              name: _values(feature)
              for name, feature in example.features.feature.items()
            }
          )
    except (protobuf.DecodeError, tf.errors.OpError) as error:
      raise errors.DataError(
        f"record {len(self._records) + 1} or a later one is truncated or not a"
        f" tf.train.Example ({type(error).__name__}); write the file again",
        path=path,
      ) from None
    self.names = list(
      dict.fromkeys(
        name.removesuffix("/values").removesuffix("/lengths")
        for record in self._records
        for name in sorted(record)
      )
    )

  def read(self, id_column: str, kinds: dict[str, str]) -> dict[str, pa.Array]:
    """The columns of ids and features, a value or a list per row.

    Args:
      id_column: the column of ids, which says how many rows a record holds.
      kinds: feature -> kind.
    """
    columns: dict[str, list] = {name: [] for name in [id_column, *kinds]}
    row = 0
    for record in self._records:
      size = len(record.get(id_column, ()))
      for name, column in columns.items():
        # An id is one value per row, whatever it is as a feature.
        kind = "token" if name == id_column else kinds[name]
        values = _block(record, name, kind, size)
        if values is None:
          raise errors.DataError(
            f"the values of this record do not fit its {size} ids",
            path=self.path,
            row=row + 1,
            column=name,
          )
        column.extend(values)
      row += size
    return {name: self._array(name, column) for name, column in columns.items()}

  def _array(self, name: str, values: list) -> pa.Array:
    try:
      return pa.array(values)
    except pa.ArrowException as error:
      raise errors.DataError(
        f"holds values of different types ({error})",
        path=self.path,
        column=name,
      ) from None


def _values(feature) -> list:
  """The values of a `tf.train.Feature`."""
  kind = feature.WhichOneof("kind")
  return list(getattr(feature, kind).value) if kind else []


def _block(
  record: dict[str, list], name: str, kind: str, size: int
) -> list | None:
  """The values of `size` rows of a record; None if it holds others."""
  if not size:
    return None
  values = record.get(name, [])
  if f"{name}/lengths" in record:
    values = record.get(f"{name}/values", [])
    lengths = record[f"{name}/lengths"]
    if len(lengths) != size or min(lengths) < 0 or sum(lengths) != len(values):
      return None
    rest = iter(values)
    return [list(itertools.islice(rest, length)) for length in lengths]
  if not values:
    return [None] * size
  if kind.endswith("_seq"):
    if size == 1:
      return [values]
    if kind == "token_seq" or len(values) % size:
      return None
    width = len(values) // size
    return [values[i * width : (i + 1) * width] for i in range(size)]
  return values if len(values) == size else None
