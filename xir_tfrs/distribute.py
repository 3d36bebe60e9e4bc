"""Collectives across replicas; each is the identity outside a strategy."""

from collections.abc import Callable, Iterable

import tensorflow as tf


def num_replicas() -> int:
  """Number of replicas that train in step; 1 outside a strategy.

  Raises:
    RuntimeError: In cross-replica context, where "this replica" means nothing.

  Examples:
    >>> xir.distribute.num_replicas()
    1
  """
  return _context().num_replicas_in_sync


def replica_id() -> tf.Tensor:
  """Scalar int64: which of `num_replicas()` this one is.

  Examples:
    >>> int(xir.distribute.replica_id())
    0
  """
  return tf.cast(_context().replica_id_in_sync_group, tf.int64)


def require_scope(variables: Iterable[tf.Variable], owner: str) -> None:
  """Checks that variables have a copy on every replica.

  Args:
    variables: Variables that a step reads or writes.
    owner: Name of their owner, for the message.

  Raises:
    ValueError: One was made outside the scope of the strategy that is used.

  Examples:
    >>> xir.distribute.require_scope([tf.Variable(1.0)], "tower")
  """
  if num_replicas() == 1:
    return
  extended = tf.distribute.get_strategy().extended
  for variable in variables:
    if not extended.variable_created_in_scope(variable):
      raise ValueError(
        f"{owner!r} was built outside the scope of the strategy it is trained "
        f"under ({variable.name} belongs to no replica): what it learns would "
        "be lost or differ between replicas. Build towers, task, model and "
        "optimizer inside `with strategy.scope():`."
      )


def all_gather(x: tf.Tensor) -> tf.Tensor:
  """Concatenates `x` of all replicas along axis 0, in replica order.

  Replicas may hold different numbers of rows. The gradient of a gathered
  tensor is the sum over replicas, handed back to the rows' owner.

  Args:
    x: [rows, ...] float or integer tensor. At least one replica must have rows:
      gathering zero rows from all replicas crashes TensorFlow.

  Returns:
    [sum of rows, ...] tensor, the same on every replica.

  Examples:
    >>> xir.distribute.all_gather(tf.constant([1, 2])).numpy()
    array([1, 2], dtype=int32)
  """
  context = _context()
  if context.num_replicas_in_sync == 1:
    return x
  if x.dtype == tf.bfloat16:
    # TensorFlow cannot gather it. float32 holds each of its values.
    return tf.cast(all_gather(tf.cast(x, tf.float32)), tf.bfloat16)
  # Without the identity, a tensor captured from outside `strategy.run` comes
  # back as its local value (Mirrored), and a raw input raises "destinations
  # can not be empty" (MultiWorkerMirrored).
  return context.all_gather(tf.identity(x), axis=0)


def encode_together(
  encode: Callable[[tf.Tensor], tf.Tensor], ids: tf.Tensor
) -> tf.Tensor:
  """Embeddings of ids that are the same on all replicas.

  Each replica encodes a share of them. Otherwise R replicas would do the work R
  times, and send gradients of the same rows R times.

  Args:
    encode: [n] ids -> [n, dim].
    ids: [n] integer ids, the same on every replica.

  Returns:
    [n, dim] tensor, the same on every replica.

  Examples:
    >>> table = tf.constant([[1.0], [2.0], [3.0]])
    >>> xir.distribute.encode_together(
    ...   lambda ids: tf.gather(table, ids), tf.constant([2, 0])
    ... ).numpy()
    array([[3.],
           [1.]], dtype=float32)
  """
  replicas = num_replicas()
  if replicas == 1 or ids.shape[0] == 0:
    return encode(ids)
  size = tf.size(ids, out_type=tf.int64)
  first, end = (size * (replica_id() + i) // replicas for i in (0, 1))
  return all_gather(encode(ids[first:end]))


def all_reduce_sum(x: tf.Tensor) -> tf.Tensor:
  """Sum of `x` over all replicas, the same on every replica.

  Examples:
    >>> xir.distribute.all_reduce_sum(tf.constant([1, 2])).numpy()
    array([1, 2], dtype=int32)
  """
  context = _context()
  if context.num_replicas_in_sync == 1:
    return x
  return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(x))


def global_rows(num_rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
  """Position of this replica's rows in the global batch.

  Args:
    num_rows: Scalar integer, rows on this replica.

  Returns:
    (first, total): scalars int64. This replica holds rows
    `[first, first + num_rows)` of `total`.

  Examples:
    >>> first, total = xir.distribute.global_rows(tf.constant(32))
    >>> int(first), int(total)
    (0, 32)
  """
  num_rows = tf.cast(num_rows, tf.int64)
  if num_replicas() == 1:
    return tf.zeros([], tf.int64), num_rows
  rows = all_gather(num_rows[tf.newaxis])
  first = tf.cumsum(rows, exclusive=True)[replica_id()]
  return first, tf.reduce_sum(rows)


def _context() -> tf.distribute.ReplicaContext:
  context = tf.distribute.get_replica_context()
  if context is None:
    raise RuntimeError(
      "This needs a replica context, but was called in cross-replica context "
      "(inside `strategy.scope()` and outside `strategy.run`). Call it from "
      "the function that is given to `strategy.run`, or outside the scope."
    )
  return context
