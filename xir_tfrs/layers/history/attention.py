"""Causal self-attention over the events."""

from typing import Any

import tensorflow as tf

from xir_tfrs import checks
from xir_tfrs.layers.history import encoder
from xir_tfrs.ops import history

# Enough for a century in milliseconds.
_NUM_BUCKETS = 100


class AttentionHistory(encoder.HistoryEncoder):
  """Pre-norm Transformer blocks, causal, with positions from the end.

      x = sqrt(dim) v + P[events after it]
      x = x + Attention(LayerNorm(x));  x = x + W2 relu(W1 LayerNorm(x))
      state = LayerNorm(x)

  SASRec (Kang and McAuley 2018), with the residual connections of a pre-norm
  Transformer (Vaswani et al. 2017 have the other kind). The vectors
  are scaled by sqrt(dim): otherwise the blocks and positions dominate them in
  the first epochs.

  With `ages`, each block adds a learned bias to the logits of an event, by its
  age when the answer is asked for, as in HSTU (Zhai et al. 2024); see
  `ops.history.age_buckets`. Training hides the times of 10% of the histories,
  so that the encoder can also do without. If the time of the request or of an
  event is unknown, no ages are used.

  Examples:
    >>> encoder = xir.layers.AttentionHistory(dim=4, length=3, num_heads=2)
    >>> vectors = tf.ones([2, 3, 4])  # Two histories of up to three events.
    >>> encoder.last(vectors, lengths=tf.constant([3, 1])).shape
    TensorShape([2, 4])
  """

  def __init__(
    self,
    *,
    num_blocks: int = 2,
    num_heads: int = 1,
    hidden_multiple: int = 4,
    ages: bool = False,
    **shared: Any,
  ) -> None:
    """Builds the layer.

    Args:
      num_blocks: Blocks, one after another.
      num_heads: Heads of the attention; they divide `dim`.
      hidden_multiple: Width of the blocks' hidden layer, in multiples of
        `dim`.
      ages: Whether the encoder takes the times of the events and the request.
      **shared: See `HistoryEncoder`.

    Raises:
      ValueError: An argument out of its range.
    """
    super().__init__(**shared)
    checks.require_sizes(
      num_blocks=num_blocks,
      num_heads=num_heads,
      hidden_multiple=hidden_multiple,
    )
    if self.dim % num_heads:
      raise ValueError(
        "`num_heads` must divide `dim`. Received: `num_heads` = "
        f"{num_heads}, `dim` = {self.dim}."
      )
    self._num_blocks = num_blocks
    self._num_heads = num_heads
    self._hidden_multiple = hidden_multiple
    self.takes_times = bool(ages)
    self._positions = self.add_weight(
      name="positions",
      shape=(self.length, self.dim),
      initializer=tf.keras.initializers.RandomNormal(
        stddev=0.02, seed=self._seed + 50
      ),
    )
    self._blocks = [
      _Block(self, 10 * number) for number in range(1, num_blocks + 1)
    ]
    self._norm = _norm("norm")

  def states(
    self,
    vectors: tf.Tensor,
    lengths: tf.Tensor,
    dropout: encoder.Dropout,
    times: tf.Tensor | None = None,
  ) -> tf.Tensor:
    x = dropout(self._inputs(vectors, lengths))
    columns = tf.range(vectors.shape[1])[tf.newaxis]
    ages = self._ages(times)
    for block in self._blocks:
      x = block(x, x, columns, ages, dropout)
    return self._norm(x)

  def last(
    self,
    vectors: tf.Tensor,
    lengths: tf.Tensor,
    times: tf.Tensor | None = None,
  ) -> tf.Tensor:
    """[n, dim] states after the last events; see `HistoryEncoder.last`.

    The last block computes only these columns.
    """
    x = self._inputs(vectors, lengths)
    columns = tf.range(vectors.shape[1])[tf.newaxis]
    ages = self._ages(times)
    for block in self._blocks[:-1]:
      x = block(x, x, columns, ages, _no_dropout)
    newest = tf.maximum(lengths - 1, 0)[:, tf.newaxis]
    own = tf.gather(x, newest, batch_dims=1)
    if ages is not None:
      ages = tf.gather(ages, newest, batch_dims=1)
    return self._norm(self._blocks[-1](own, x, newest, ages, _no_dropout))[:, 0]

  def get_config(self) -> dict:
    return super().get_config() | {
      "num_blocks": self._num_blocks,
      "num_heads": self._num_heads,
      "hidden_multiple": self._hidden_multiple,
      "ages": self.takes_times,
    }

  def _inputs(self, vectors: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
    """[n, length, dim] scaled vectors with their positions."""
    columns = tf.range(vectors.shape[1])[tf.newaxis]
    # Padding takes the position of the newest event; any position would do.
    after = tf.maximum(lengths[:, tf.newaxis] - 1 - columns, 0)
    return vectors * self.dim**0.5 + tf.gather(self._positions, after)

  def _ages(self, times: tf.Tensor | None) -> tf.Tensor | None:
    """[n, length, length] buckets of the ages, if the encoder uses them."""
    if self.takes_times != (times is not None):
      raise ValueError(
        "An encoder takes `times` if and only if it has `ages`. Received: "
        f"`ages` = {self.takes_times}, `times` = {times!r}."
      )
    return None if times is None else history.age_buckets(times, _NUM_BUCKETS)


class _Block(tf.keras.layers.Layer):
  """Attention and a hidden layer, each added to what goes in."""

  def __init__(self, of: AttentionHistory, number: int) -> None:
    super().__init__(name=f"block_{number // 10}", autocast=False)
    self._num_heads = of._num_heads
    self._query, self._key, self._value, self._output = (
      of._dense(number + i, of.dim) for i in range(4)
    )
    self._hidden = of._dense(number + 4, of._hidden_multiple * of.dim, "relu")
    self._hidden_output = of._dense(number + 5, of.dim)
    self._norms = _norm("attention_norm"), _norm("hidden_norm")
    self._age_bias = None
    if of.takes_times:
      self._age_bias = self.add_weight(
        name="age_bias", shape=(_NUM_BUCKETS,), initializer="zeros"
      )

  def call(
    self,
    own: tf.Tensor,
    everyone: tf.Tensor,
    columns: tf.Tensor,
    ages: tf.Tensor | None,
    dropout: encoder.Dropout,
  ) -> tf.Tensor:
    """The columns `own`, [n, m, dim], after a look at all, [n, length, dim]."""
    normed = self._norms[0](everyone)
    own_normed = normed if own is everyone else self._norms[0](own)
    bias = None
    if ages is not None:
      bias = tf.gather(self._age_bias, ages)[:, tf.newaxis]
    attended = history.causal_attention(
      self._heads(self._query(own_normed)),
      self._heads(self._key(normed)),
      self._heads(self._value(normed)),
      columns,
      bias,
    )
    attended = tf.transpose(attended, [0, 2, 1, 3])
    attended = tf.reshape(attended, tf.shape(own))
    own += dropout(self._output(attended))
    hidden = dropout(self._hidden(self._norms[1](own)))
    return own + dropout(self._hidden_output(hidden))

  def _heads(self, x: tf.Tensor) -> tf.Tensor:
    """[n, m, dim] -> [n, heads, m, dim / heads]."""
    shape = tf.shape(x)
    x = tf.reshape(
      x, [shape[0], shape[1], self._num_heads, x.shape[2] // self._num_heads]
    )
    return tf.transpose(x, [0, 2, 1, 3])


def _norm(name: str) -> tf.keras.layers.LayerNormalization:
  return tf.keras.layers.LayerNormalization(epsilon=1e-6, name=name)


def _no_dropout(x: tf.Tensor) -> tf.Tensor:
  return x
