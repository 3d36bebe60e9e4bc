"""Dense ids: whole numbers from 0, as towers and tasks take them."""

from typing import Any

import tensorflow as tf


def dense(name: str, ids: Any, rank: int | None = None) -> tf.Tensor:
  """`ids` as a tensor of integers.

  Args:
    name: What they are called, for the message.
    ids: Integer tensor, array or list.
    rank: Their number of axes; None: any.

  Raises:
    ValueError: They are names, or other things that are no integers. It shows
      while a step is traced, and says how to look names up. Or they have
      another rank.

  Examples:
    >>> xir.ops.ids.dense("ids", [0, 3]).numpy()
    array([0, 3], dtype=int32)
  """
  ids = tf.convert_to_tensor(ids)
  if rank is not None and ids.shape.rank not in (None, rank):
    raise ValueError(
      f"`{name}` must be a tensor of rank {rank}. Received: shape {ids.shape}."
    )
  if ids.dtype.is_integer:
    return ids
  hint = ""
  if ids.dtype == tf.string:
    hint = (
      " Look names up before they come to a tower or a task: lookup ="
      " tf.keras.layers.StringLookup(vocabulary=names, num_oov_indices=0),"
      " then lookup(names)."
    )
  raise ValueError(
    f"`{name}` must be dense ids, whole numbers from 0. Received: dtype"
    f" {ids.dtype.name}.{hint}"
  )
