"""The exact softmax over all candidates."""

import tensorflow as tf

from xir_tfrs.ops import full_softmax
from xir_tfrs.tasks import retrieval
from xir_tfrs.types import CandidateEncoder


class FullSoftmaxRetrieval(retrieval.RetrievalTask):
  """Cross entropy of the positive against the whole catalogue.

      -log( e^{s_p} / sum_{j in all candidates} e^{s_j} )

  What sampled losses estimate, and what they are measured against. Every
  candidate is encoded twice at each step, chunk by chunk (see
  `ops.full_softmax`), so a step costs in proportion to the catalogue, and the
  encoder must be a function: dropout would draw anew the second time. In the
  partition the positive is the embedding that the caller gives.

  Nothing is sampled, so most of what the tasks share has nothing to act on:
  every candidate stands in the pool once, there are no accidental hits, the
  pool of each replica is the catalogue whether `cross_replica` or not, and
  `row_chunk_size` and `seed` change nothing.
  """

  def __init__(
    self,
    *,
    candidate_encoder: CandidateEncoder,
    num_candidates: int | None = None,
    candidate_chunk_size: int | None = None,
    positive_in_pool: bool = False,
    cross_replica: bool = True,
    **shared,
  ) -> None:
    """Builds the task.

    Args:
      candidate_encoder: [n] dense candidate ids -> [n, dim]; the candidate
        tower.
      num_candidates: Size of the catalogue; None: as the encoder says.
      candidate_chunk_size: Candidates whose logits are held at a time; None
        chooses it from the size of the batch. Changes memory and speed, not
        the result.
      positive_in_pool: Whether the positive counts twice, which is no longer
        the exact softmax; not with `remove_accidental_hits`.
      cross_replica: Changes nothing.
      **shared: See `RetrievalTask`.

    Raises:
      ValueError: An argument out of its range, or a size of the catalogue
        that cannot be told.
    """
    # Nothing is to be gathered.
    super().__init__(
      positive_in_pool=positive_in_pool, cross_replica=False, **shared
    )
    retrieval.require_cross_entropy(
      self._robustness, self._positive_in_partition, type(self).__name__
    )
    retrieval.require_encoder(candidate_encoder)
    if candidate_chunk_size is not None:
      retrieval.require_positive("candidate_chunk_size", candidate_chunk_size)
    self._candidate_encoder = candidate_encoder
    self._num_candidates = retrieval.require_num_candidates(
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

  def _loss(self, batch: retrieval.Batch, training: bool) -> tf.Tensor:
    retrieval.refuse_known(batch, type(self).__name__)

    def encode(ids: tf.Tensor) -> tf.Tensor:
      return self._encoded(
        self._candidate_encoder, ids, batch.queries.dtype, training
      )

    return full_softmax.full_softmax(
      batch.queries,
      batch.positives,
      batch.ids,
      batch.row_weights,
      encode,
      self._num_candidates,
      positive_in_pool=(
        self._positive_in_pool and not self._remove_accidental_hits
      ),
      candidate_chunk_size=self._candidate_chunk_size,
    )
