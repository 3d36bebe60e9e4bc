"""Reads TFRecords of `tf.train.Example`s without a schema as columns.

A record is one row, or packed columns of n rows with a token_seq as NAME/values
and NAME/lengths, as `xir_tfrs.data.records` writes them.
"""

from __future__ import annotations

import itertools
import os
from typing import Any

import pyarrow as pa

from xir_tfrs.data import errors
from xir_tfrs.data.files import places


class ExampleFile:
  """All records of a file, in memory.

  Attributes:
    path: The file.
    names: The columns that occur in any record.
  """

  def __init__(self, path: str | os.PathLike[str]):
    self.path = os.fspath(path)
    self._records = _read(self.path)
    self.names = list(
      dict.fromkeys(
        name.removesuffix("/values").removesuffix("/lengths")
        for record in self._records
        for name in sorted(record)
      )
    )

  def read(self, id_column: str, kinds: dict[str, str]) -> dict[str, pa.Array]:
    """Reads columns, with one row per id.

    Args:
      id_column: The column with exactly one value per row.
      kinds: column -> kind of the columns to read.

    Returns:
      name -> array; lists for sequences, null if a row has no value.
    """
    columns: dict[str, list] = {name: [] for name in kinds}
    start = 0
    for record in self._records:
      size = len(record.get(id_column, ()))
      for name, column in columns.items():
        values = _block(record, name, kinds[name], size)
        if values is None:
          raise self._places(start).error(
            0, name, f"the values of this record do not fit its {size} ids"
          )
        column.extend(values)
      start += size
    return {name: self._array(name, values) for name, values in columns.items()}

  def _array(self, name: str, values: list) -> pa.Array:
    try:
      return pa.array(values)
    except (pa.ArrowException, TypeError):
      raise self._places(0).error(
        None, name, "records hold values of different types"
      ) from None

  def _places(self, before: int) -> places.Places:
    return places.Places(self.path, before + 1, "row")


def _read(path: str) -> list[dict[str, list]]:
  import tensorflow as tf  # Only these files need TensorFlow.

  records: list[dict[str, list]] = []
  try:
    dataset = tf.data.TFRecordDataset(path).batch(256)
    for record in itertools.chain.from_iterable(dataset.as_numpy_iterator()):
      values = tf.train.Example.FromString(record).features.feature
      records.append({name: _values(values[name]) for name in values})
  except Exception as e:  # An error of protobuf or TensorFlow.
    raise errors.DataError(
      f"record {len(records) + 1} or a later one is truncated or not a"
      f" tf.train.Example ({type(e).__name__}); write the file again",
      path=path,
    ) from None
  return records


def _values(feature: Any) -> list:
  kind = feature.WhichOneof("kind")
  return list(getattr(feature, kind).value) if kind else []


def _block(
  record: dict[str, list], name: str, kind: str, size: int
) -> list | None:
  """The values of a record's `size` rows; None if their number differs."""
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
    # Without lengths, all rows must have the same number of values.
    width, left = divmod(len(values), size)
    if left or (kind == "token_seq" and size > 1):
      return None
    return [values[i * width : (i + 1) * width] for i in range(size)]
  return values if len(values) == size else None
