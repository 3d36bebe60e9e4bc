"""How far the embeddings of a few candidates have moved recently."""

import tensorflow as tf

from xir_tfrs import checks
from xir_tfrs.layers import state

# Steps over which drift is reported, the paper's Delta t.
DRIFT_STEPS = (1, 5, 10)
_KEPT = max(DRIFT_STEPS) + 1


class EmbeddingHistory(tf.keras.layers.Layer):
  """Embeddings of the same candidates at each of the last 11 steps.

      D(t; dt) = mean_i || g(i; theta_t) - g(i; theta_{t - dt}) ||_2

  The feature drift of Wang et al. 2021a (CBNS), as a mean over the candidates
  that are watched instead of a sum over those of a batch.

  Attributes:
    embeddings: [11, num_watched, dim] float32 variable; step t is in slot
      t mod 11.
    recorded: int64 variable, updates so far.

  Examples:
    >>> history = xir.layers.EmbeddingHistory(num_watched=3, dim=2)
    >>> history.update(tf.zeros([3, 2]))
    >>> history.update(tf.constant([[3.0, 4.0]] * 3))
    >>> float(history.drift(1))
    5.0
  """

  def __init__(
    self, num_watched: int, dim: int, *, name: str = "embedding_history"
  ) -> None:
    """Builds the variables.

    Args:
      num_watched: Candidates watched.
      dim: Size of the embeddings.
      name: Name of the layer.

    Raises:
      ValueError: An argument out of its range.
    """
    super().__init__(name=name, autocast=False)
    checks.require_sizes(num_watched=num_watched, dim=dim)
    self._num_watched = num_watched
    self._dim = dim
    self.embeddings = state.add_state(
      self, "embeddings", (_KEPT, num_watched, dim), tf.float32
    )
    self.recorded = state.add_state(self, "recorded", (), tf.int64)

  def update(self, embeddings: tf.Tensor) -> None:
    """Records the embeddings of a step.

    Call it at the top level of the step function, at every step: variables
    that all replicas agree on cannot be written inside `tf.cond` or
    `tf.while_loop`.

    Args:
      embeddings: [num_watched, dim] embeddings, the same on all replicas.
    """
    newest = tf.cast(tf.stop_gradient(embeddings), tf.float32)
    self.embeddings.scatter_update(
      tf.IndexedSlices(newest[tf.newaxis], [self.recorded % _KEPT])
    )
    self.recorded.assign_add(1)

  def drift(self, steps: int) -> tf.Tensor:
    """Scalar D(t; steps); over fewer steps where no more are recorded."""
    newest_first = self._newest_first()
    then = tf.minimum(tf.constant(steps, tf.int64), self._steps_back())
    distance = tf.norm(newest_first[0] - newest_first[then], axis=-1)
    return tf.reduce_mean(distance)

  def relative_drift(self) -> tf.Tensor:
    """Scalar: mean drift per step, in units of the mean length.

    A mean over the last 10 steps, or over those recorded: a single batch may
    hold few of the watched candidates.
    """
    newest_first = self._newest_first()
    recorded = tf.range(_KEPT - 1, dtype=tf.int64) < self._steps_back()
    # Slots that are not recorded yet do not count.
    moved = tf.norm(newest_first[:-1] - newest_first[1:], axis=-1)
    moved = tf.reduce_mean(tf.where(recorded[:, tf.newaxis], moved, 0.0), -1)
    per_step = tf.math.divide_no_nan(
      tf.reduce_sum(moved), tf.cast(self._steps_back(), tf.float32)
    )
    length = tf.reduce_mean(tf.norm(newest_first[0], axis=-1))
    return tf.math.divide_no_nan(per_step, length)

  def is_full(self) -> tf.Tensor:
    """Scalar bool: whether as many steps are recorded as are kept."""
    return self.recorded >= _KEPT

  def reset(self) -> None:
    """Back to the state after construction."""
    self.embeddings.assign(tf.zeros_like(self.embeddings))
    self.recorded.assign(0)

  def get_config(self) -> dict:
    return {
      "num_watched": self._num_watched,
      "dim": self._dim,
      "name": self.name,
    }

  def _newest_first(self) -> tf.Tensor:
    """[11, num_watched, dim]; zeros where nothing is recorded yet."""
    slots = (self.recorded - 1 - tf.range(_KEPT, dtype=tf.int64)) % _KEPT
    return tf.gather(self.embeddings, slots)

  def _steps_back(self) -> tf.Tensor:
    """Number of recorded steps before the newest one."""
    return tf.clip_by_value(self.recorded - 1, 0, _KEPT - 1)
