"""Embeddings of the last batches' candidates, kept for later steps."""

import tensorflow as tf

from xir_tfrs import checks
from xir_tfrs.layers import state


class MemoryBank(tf.keras.layers.Layer):
  """First in, first out: the newest `bank_size` embeddings, as constants.

  The bank M of Wang et al. 2021a (CBNS), with the ids, which its masks need.
  Slots fill up from 0 and are then overwritten in turn, so slots
  [0, filled) are in use.

  Attributes:
    embeddings: [bank_size, dim] float32 variable; zeros where not in use.
    ids: [bank_size] int64 variable; -1 where not in use.
    log_q: [bank_size] float32 variable: log proposal of the candidates at the
      time they were added.
    head: int64 variable, the slot that is written next.
    filled: int64 variable, slots in use.

  Examples:
    >>> bank = xir.layers.MemoryBank(bank_size=3, dim=2)
    >>> ids, log_q = tf.constant([7, 8], tf.int64), tf.zeros([2])
    >>> bank.update(tf.ones([2, 2]), ids, log_q)
    >>> int(bank.filled), bank.ids.numpy()
    (2, array([ 7,  8, -1]))
  """

  def __init__(
    self, bank_size: int, dim: int, *, name: str = "memory_bank"
  ) -> None:
    """Builds the variables.

    Args:
      bank_size: Candidates held, M.
      dim: Size of the embeddings.
      name: Name of the layer.

    Raises:
      ValueError: An argument out of its range.
    """
    super().__init__(name=name, autocast=False)
    checks.require_sizes(bank_size=bank_size, dim=dim)
    self._bank_size = bank_size
    self._dim = dim
    self.embeddings = state.add_state(
      self, "embeddings", (bank_size, dim), tf.float32
    )
    self.ids = state.add_state(
      self, "ids", (bank_size,), tf.int64, self._no_ids
    )
    self.log_q = state.add_state(self, "log_q", (bank_size,), tf.float32)
    self.head = state.add_state(self, "head", (), tf.int64)
    self.filled = state.add_state(self, "filled", (), tf.int64)

  @property
  def bank_size(self) -> int:
    return self._bank_size

  @property
  def dim(self) -> int:
    return self._dim

  def read(
    self, num_slots: tf.Tensor
  ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Embeddings [num_slots, dim], ids and log_q of slots [0, num_slots)."""
    # A copy, so that the update of the same step does not change it.
    return (
      tf.identity(self.embeddings)[:num_slots],
      tf.identity(self.ids)[:num_slots],
      tf.identity(self.log_q)[:num_slots],
    )

  def update(
    self, embeddings: tf.Tensor, ids: tf.Tensor, log_q: tf.Tensor
  ) -> None:
    """Adds new candidates, which replace the oldest.

    Of more than `bank_size` only the last are kept. Call it at the top level
    of the step function: variables that all replicas agree on cannot be
    written inside `tf.cond` or `tf.while_loop`.

    Args:
      embeddings: [n, dim] embeddings, the same on all replicas.
      ids: [n] their ids.
      log_q: [n] their log proposal.
    """
    rows = tf.size(ids, tf.int64)
    kept = tf.minimum(rows, self._bank_size)
    slots = (self.head + tf.range(rows - kept, rows)) % self._bank_size
    for variable, values in (
      (self.embeddings, embeddings),
      (self.ids, ids),
      (self.log_q, log_q),
    ):
      newest = tf.cast(tf.stop_gradient(values), variable.dtype)[rows - kept :]
      variable.scatter_update(tf.IndexedSlices(newest, slots))
    self.head.assign((self.head + rows) % self._bank_size)
    self.filled.assign(tf.minimum(self.filled + rows, self._bank_size))

  def reset(self) -> None:
    """Back to the state after construction."""
    self.ids.assign(self._no_ids())
    for variable in (self.embeddings, self.log_q, self.head, self.filled):
      variable.assign(tf.zeros_like(variable))

  def get_config(self) -> dict:
    return {
      "bank_size": self._bank_size,
      "dim": self._dim,
      "name": self.name,
    }

  def _no_ids(self) -> tf.Tensor:
    return tf.fill([self._bank_size], tf.constant(-1, tf.int64))
