"""G-Tower: log-Q correction by streaming frequency estimation."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from xir_tfrs.layers.frequency_estimator import FrequencyEstimator
from xir_tfrs.ops import frequency
from xir_tfrs.tasks import arguments, sampled_softmax


class StreamingFrequencyRetrieval(sampled_softmax.SampledSoftmaxRetrieval):
  """G-Tower: SSL-Pop whose popularity is learnt from the batches.

      -log( e^{s_p - log p_p} / sum_{j in batch} e^{s_j - log p_j} )

  where p_j, the probability that a batch has candidate j, comes from a
  `layers.FrequencyEstimator` (Yi et al. 2019). It follows a changing
  stream and needs no counts beforehand, nor dense ids: `candidate_ids` may be
  any int64 numbers, or strings.

  To start from counts: `task.frequency_estimator.warm_start(...)`.

  Attributes:
    frequency_estimator: The `layers.FrequencyEstimator`.

  Examples:
    >>> task = xir.tasks.StreamingFrequencyRetrieval(num_buckets=1024)
    >>> names = tf.constant(["tea", "milk"])  # Ids may be strings.
    >>> loss = task(tf.eye(2), tf.eye(2), candidate_ids=names)
    >>> bool(loss > 0), int(task.frequency_estimator.step)
    (True, 1)
  """

  def __init__(
    self,
    *,
    num_buckets: int,
    num_hashes: int = 2,
    learning_rate: float = 0.01,
    initial_gap: float | None = None,
    count_appearances: bool = False,
    read_before_update: bool = False,
    candidate_counts: Sequence[int] | None = None,
    **shared: Any,
  ) -> None:
    """Builds the task; see `FrequencyEstimator` for how it estimates.

    Args:
      num_buckets: Cells per table; four times the number of candidates for
        two tables, twice for four.
      num_hashes: Number of tables.
      learning_rate: Weight of a new gap in the estimate, in (0, 1].
      initial_gap: First estimate of every gap, in steps; None: start with
        running means.
      count_appearances: Whether p_j is the expected appearances of j in a
        batch, which for frequent candidates exceeds 1. The paper's p does not.
      read_before_update: Whether p is the estimate from before the batch.
      candidate_counts: [num_candidates] training counts of the dense ids 0,
        1, ..., where they are known: `readout` reports how far the estimate
        is from them. The loss does not use them.
      **shared: See `SampledSoftmaxRetrieval` and `RetrievalTask`.

    Raises:
      ValueError: An argument out of its range.
    """
    if shared.get("frequency_estimator") is not None:
      raise ValueError(
        f"{type(self).__name__} makes its own `frequency_estimator`. To give "
        "one, use SampledSoftmaxRetrieval."
      )
    estimator = FrequencyEstimator(
      num_buckets=num_buckets,
      num_hashes=num_hashes,
      learning_rate=learning_rate,
      initial_gap=initial_gap,
      count_appearances=count_appearances,
      read_before_update=read_before_update,
      seed=shared.get("seed", 0),
    )
    super().__init__(**(shared | {"frequency_estimator": estimator}))
    if candidate_counts is not None:
      self._candidate_counts = arguments.as_counts(candidate_counts)

  def readout(self) -> dict[str, tf.Tensor]:
    """The estimator's, and its error against `candidate_counts`."""
    found = super().readout()
    if self._candidate_counts is None:
      return found
    error = self._made_estimator().error(
      tf.range(len(self._candidate_counts), dtype=tf.int64),
      self._candidate_counts,
    )
    return found | {f"frequency_{name}": x for name, x in error.items()}

  def get_config(self) -> dict:
    config = super().get_config()
    del config["frequency_estimator"]
    estimator = self._made_estimator().get_config()
    del estimator["name"], estimator["seed"]
    return config | estimator

  def _made_estimator(self) -> FrequencyEstimator:
    assert self.frequency_estimator is not None  # `__init__` has made it.
    return self.frequency_estimator

  def _as_ids(self, candidate_ids: tf.Tensor) -> tf.Tensor:
    return frequency.as_keys(candidate_ids)
