"""The exact softmax over all candidates."""

from collections.abc import Sequence
from typing import Any, ClassVar

import tensorflow as tf

from xir_tfrs import checks
from xir_tfrs.ops import forms, full_softmax
from xir_tfrs.tasks import arguments, retrieval
from xir_tfrs.tasks import batch as batches
from xir_tfrs.types import CandidateEncoder


class FullSoftmaxRetrieval(retrieval.RetrievalTask):
  """A loss of the positive against the whole catalogue.

      -log( e^{s_p} / sum_{j in all candidates} e^{s_j} )

  This is what sampled losses estimate. Every candidate is encoded twice at
  each step, chunk by chunk (see `ops.full_softmax`), so the cost of a step is
  proportional to the catalogue. The encoder must return the same both times,
  which excludes dropout. In the partition the positive is the embedding that
  the caller gives. The sum leaves out `known_candidate_ids` of the call, as
  the other tasks do.

  Nothing is sampled, so most shared arguments have no effect: every candidate
  is in the pool once, there are no accidental hits, the pool of each replica is
  the catalogue with or without `cross_replica`, and `row_chunk_size` and `seed`
  are ignored.

  Examples:
    >>> vectors = tf.constant([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    >>> task = xir.tasks.FullSoftmaxRetrieval(
    ...   candidate_encoder=lambda ids: tf.gather(vectors, ids),
    ...   num_candidates=3,
    ... )
    >>> ids = tf.constant([0])
    >>> loss = task(tf.ones([1, 2]), tf.gather(vectors, ids), candidate_ids=ids)
    >>> print(f"{loss:.4f} = {np.log(2 * np.e + 1) - 1:.4f}")
    0.8620 = 0.8620
  """

  pool_kind: ClassVar[str] = forms.CATALOGUE
  _num_candidates: int
  _positive_in_pool_by_default: ClassVar[bool] = False

  def __init__(
    self,
    *,
    candidate_encoder: CandidateEncoder,
    num_candidates: int | None = None,
    candidate_chunk_size: int | None = None,
    cross_replica: bool = True,
    **shared: Any,
  ) -> None:
    """Builds the task.

    Args:
      candidate_encoder: [n] dense candidate ids -> [n, dim]; the candidate
        tower.
      num_candidates: Size of the catalogue; None: that of the encoder.
      candidate_chunk_size: Candidates whose logits are held at a time; None
        chooses it from the size of the batch. Changes memory and speed, not
        the result.
      cross_replica: Has no effect.
      **shared: See `RetrievalTask`. `positive_in_pool`, not the default here,
        counts the positive twice, which is no longer the exact softmax; not
        with `remove_accidental_hits`.

    Raises:
      ValueError: An argument out of its range, or an unknown size of the
        catalogue.
    """
    # Nothing is to be gathered.
    super().__init__(cross_replica=False, **shared)
    arguments.require_encoder(candidate_encoder)
    checks.require_sizes(candidate_chunk_size=candidate_chunk_size)
    self._candidate_encoder = candidate_encoder
    self._num_candidates = arguments.require_num_candidates(
      num_candidates, candidate_encoder
    )
    self._candidate_chunk_size = candidate_chunk_size
    self._given_cross_replica = cross_replica

  def get_config(self) -> dict:
    """The arguments; `candidate_encoder` is the object itself."""
    return super().get_config() | {
      "candidate_encoder": self._candidate_encoder,
      "num_candidates": self._num_candidates,
      "candidate_chunk_size": self._candidate_chunk_size,
      "cross_replica": self._given_cross_replica,
    }

  def _loss(
    self, batch: batches.Batch, training: bool
  ) -> tuple[tf.Tensor, Sequence[batches.Term]]:
    loss = full_softmax.full_softmax(
      batch.queries,
      batch.positives,
      batch.ids,
      batch.row_weights,
      self._encoder_for(self._candidate_encoder, batch, training),
      self._num_candidates,
      form=self.form,
      positive_in_pool=(
        self._positive_in_pool and not self._remove_accidental_hits
      ),
      candidate_chunk_size=self._candidate_chunk_size,
      known_ids=batch.known_ids,
      known_rows=batch.known_rows,
    )
    return loss, ()
