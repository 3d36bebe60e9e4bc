"""A table of original ids and their rows."""

from __future__ import annotations

import collections
import reprlib
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import tensorflow as tf

TensorLike: TypeAlias = tf.Tensor | np.ndarray | Sequence

# A typed constant: in a graph, `tf.where` does not widen a Python -1 to int64.
NO_ROW = np.int64(-1)


class IdTable(tf.Module):
  """Maps ids to rows and back; row -1 maps to the id "" or -1.

  A table is a `tf.Module`: several modules may share one, and it is saved once.

  Examples:
    >>> table = xir.indexes.IdTable(["tea", "milk"])
    >>> table.rows(tf.constant(["milk", "coffee"])).numpy()
    array([ 1, -1])
    >>> table.ids(tf.constant([0, -1], tf.int64)).numpy()
    array([b'tea', b''], dtype=object)
  """

  def __init__(self, ids: TensorLike, name: str | None = None):
    """Builds the table.

    Args:
      ids: `[n]` unique strings or integers. The empty string and -1 are
        reserved for padding.
      name: Name of the module.

    Raises:
      ValueError: The ids have another shape or type, or an id is repeated or
        reserved.
    """
    super().__init__(name=name)
    try:
      ids = tf.convert_to_tensor(ids)
    except (TypeError, ValueError) as error:
      raise ValueError(
        "`ids` must all be strings, or all be integers. Received: "
        f"{reprlib.repr(ids)}."
      ) from error
    _check(ids)
    self._size = len(ids)
    with tf.device("cpu:0"):  # Strings and hash tables have no GPU kernels.
      self._ids = tf.Variable(ids, trainable=False, name="ids")
      keys = _keys(ids)
      self._table = tf.lookup.experimental.MutableHashTable(
        keys.dtype, tf.int64, default_value=NO_ROW
      )
      self._table.insert(keys, tf.range(self._size, dtype=tf.int64))

  @property
  def size(self) -> int:
    """Number of ids."""
    return self._size

  @property
  def dtype(self) -> tf.DType:
    """`tf.string`, `tf.int32` or `tf.int64`."""
    return self._ids.dtype

  @property
  def padding(self) -> tf.Tensor:
    """The id that means no id: "" or -1."""
    return tf.constant("" if self.dtype == tf.string else -1, self.dtype)

  def rows(self, ids: tf.Tensor) -> tf.Tensor:
    """Returns int64 rows of ids, in the same shape; -1 for an unknown id."""
    rows = self._table.lookup(_keys(ids))
    rows.set_shape(ids.shape)  # The op does not infer it.
    return rows

  def ids(self, rows: tf.Tensor) -> tf.Tensor:
    """Returns ids of int64 rows, in the same shape; padding for row -1."""
    ids = tf.gather(self._ids, tf.maximum(rows, 0))
    return tf.where(rows >= 0, ids, self.padding)


def _keys(ids: tf.Tensor) -> tf.Tensor:
  return ids if ids.dtype == tf.string else tf.cast(ids, tf.int64)


def _check(ids: tf.Tensor) -> None:
  if ids.dtype not in (tf.string, tf.int32, tf.int64) or ids.shape.rank != 1:
    raise ValueError(
      "`ids` must be [n] strings, int32 or int64. Received: `ids` of type "
      f"{ids.dtype.name} and shape {ids.shape}."
    )
  ids = ids.numpy().tolist()
  if len(set(ids)) < len(ids):
    repeated = next(i for i, n in collections.Counter(ids).items() if n > 1)
    raise ValueError(
      f"`ids` must be unique. Received: {show(repeated)} more than once."
    )
  for reserved in (b"", -1):
    if reserved in ids:
      raise ValueError(
        f"The id {show(reserved)} is reserved for padding. Received it at "
        f"row {ids.index(reserved)}."
      )


def show(value: bytes | int) -> str:
  """Formats an id for error messages."""
  return repr(value.decode() if isinstance(value, bytes) else int(value))
