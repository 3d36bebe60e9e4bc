"""What all retrieval tasks share: arguments, scores, the global batch."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from xir_tfrs import checks, distribute
from xir_tfrs.layers import state
from xir_tfrs.ops import forms, fused, proposals
from xir_tfrs.ops import ids as ids_lib
from xir_tfrs.tasks import arguments
from xir_tfrs.tasks import batch as batches
from xir_tfrs.tasks.batch import Batch, Inputs, Term
from xir_tfrs.types import CandidateEncoder


class RetrievalTask(tf.keras.layers.Layer):
  """Base of the tasks. A method is `_terms`: from a `Batch` to its pools.

  Called as `task(query_embeddings, candidate_embeddings, candidate_ids=...)`
  it returns this replica's share of the mean loss over the global batch: the
  sum of its rows' losses / the number of rows on all replicas. So the
  gradients that an optimizer sums over replicas are those of the global mean,
  and outside a strategy it is simply the mean.

  Attributes:
    pool_kind: The kind of its pools, such as `ops.forms.SAMPLED`; it determines
      the forms of the loss that the task can train with.

  Examples:
    >>> task = xir.tasks.SampledSoftmaxRetrieval(loss="psl", temperature=0.1)
    >>> isinstance(task, xir.tasks.RetrievalTask)
    True
    >>> task.temperature, task.form.name
    (0.1, 'psl')
  """

  pool_kind: ClassVar[str] = forms.SAMPLED
  # Size of the catalogue; None: any id is one of it.
  _num_candidates: int | None = None
  # Where the argument is not given.
  _positive_in_pool_by_default: ClassVar[bool] = True

  def __init__(
    self,
    *,
    loss: str | Mapping[str, Any] | forms.Form = "cross_entropy",
    temperature: float = 1.0,
    normalize: bool = False,
    remove_accidental_hits: bool = False,
    positive_in_pool: bool | None = None,
    cross_replica: bool = True,
    row_chunk_size: int | None = None,
    seed: int = 0,
    name: str | None = None,
  ) -> None:
    """Takes the shared arguments.

    Args:
      loss: Form of the loss: a name in `ops.forms.FORMS`, a dict of that
        `name` and the form's settings, or the form.
      temperature: Divisor of the scores, > 0.
      normalize: Whether scores are cosines instead of inner products.
      remove_accidental_hits: Whether pool columns with the id of the row's
        positive are left out, its own column included. A `loss` without the
        positive in the partition leaves them out in any case.
      positive_in_pool: Whether the row's own positive is also a candidate of
        its pool, beside its place as the positive. None: as in the method's
        paper, if the `loss` allows it.
      cross_replica: Whether the pool is the global batch; otherwise each
        replica's rows are scored against its own candidates only.
      row_chunk_size: Number of rows whose logits are in memory at a time; None
        chooses it from the sizes. Changes memory and speed, not the result.
      seed: Base seed of the draws.
      name: Name of the layer.

    Raises:
      ValueError: An argument out of its range, or a `loss` that the task
        cannot train with.
    """
    # The loss is computed in float32 whatever the policy of the towers.
    super().__init__(name=name, autocast=False)
    checks.require_sizes(row_chunk_size=row_chunk_size)
    checks.require_positive(temperature=temperature)
    self._form = forms.build(loss)
    self._require_form_that_suits()
    if positive_in_pool and not self._form.positive_in_partition:
      raise ValueError(
        f"`loss` = {self._form.name!r} leaves out the columns of the row's "
        "positive. Received: `positive_in_pool` = True."
      )
    self._temperature = temperature
    self._normalize = normalize
    self._remove_accidental_hits = remove_accidental_hits
    self._given_positive_in_pool = positive_in_pool
    self._positive_in_pool = (
      self._positive_in_pool_by_default
      if positive_in_pool is None
      else positive_in_pool
    )
    self._cross_replica = cross_replica
    self._row_chunk_size = row_chunk_size
    self._seed = seed

  @property
  def normalize(self) -> bool:
    """Whether scores are cosines."""
    return self._normalize

  @property
  def temperature(self) -> float:
    """Divisor of the scores."""
    return self._temperature

  @property
  def form(self) -> forms.Form:
    """Form of the loss."""
    return self._form

  def call(
    self,
    query_embeddings: tf.Tensor,
    candidate_embeddings: tf.Tensor,
    *,
    candidate_ids: tf.Tensor | None = None,
    query_ids: tf.Tensor | None = None,
    known_candidate_ids: tf.Tensor | tf.RaggedTensor | None = None,
    known_rows: tf.Tensor | None = None,
    sample_weight: tf.Tensor | None = None,
    history_ids: tf.Tensor | tf.RaggedTensor | None = None,
    training: bool = True,
  ) -> tf.Tensor:
    """Loss of a batch whose rows are (query, positive candidate) pairs.

    Args:
      query_embeddings: [batch, dim] float tensor.
      candidate_embeddings: [batch, dim] float tensor: row i is the positive of
        query i, and a negative of the others.
      candidate_ids: [batch] dense integer ids of the candidates.
      query_ids: [batch] dense integer ids of the queries, for tasks that score
        with more than the embeddings; others ignore them.
      known_candidate_ids: [batch, None] integer ids of the candidates that
        each query is known to want, such as its training interactions: they
        are not negatives of its row. The row's own positive may be among
        them; only `remove_accidental_hits` leaves out its columns. Ragged, or
        padded with -1. None: nothing more is left out.
      known_rows: [batch] integer, for each row its entry in
        `known_candidate_ids`, which is then [queries, None]: the rows of a
        query share one. None: row i has entry i.
      sample_weight: [batch] weight of each row's loss; None: 1.
      history_ids: [batch, None] integer ids of candidates that each query
        chose before, the oldest first, for tasks that score with more than the
        embeddings; others ignore them.
      training: Whether to update the state of the task, such as a cache; a
        Python bool.

    Returns:
      Scalar float32 (float64 for float64 embeddings): this replica's share of
      the weighted mean, sum_i sample_weight_i loss_i / global batch size.

    Raises:
      ValueError: `candidate_ids` are missing or no integers, shapes do not
        agree, or `training` is a tensor.
      tf.errors.InvalidArgumentError: Numbers of rows that do not agree are
        found at run time, or ids outside the catalogue where its size is known.
    """
    loss, _ = self.loss_terms(
      query_embeddings,
      candidate_embeddings,
      candidate_ids=candidate_ids,
      query_ids=query_ids,
      known_candidate_ids=known_candidate_ids,
      known_rows=known_rows,
      sample_weight=sample_weight,
      history_ids=history_ids,
      training=training,
    )
    return loss

  def loss_terms(
    self,
    query_embeddings: tf.Tensor,
    candidate_embeddings: tf.Tensor,
    *,
    training: bool = True,
    **others: Any,
  ) -> tuple[tf.Tensor, Sequence[Term]]:
    """The loss, with the terms that it is made of.

    For those who want to see inside, such as `diagnostics`. The task must be
    built: call it once before.

    Args:
      query_embeddings: See `call`.
      candidate_embeddings: See `call`.
      training: See `call`.
      **others: The other arguments of `call`.

    Returns:
      (loss, terms): what `call` returns, and its terms, one for each pool: the
      loss is the sum of `term.share * term.loss()[0]`. No terms for a task
      whose loss is not made of pools.

    Raises:
      ValueError: As `call` does.
    """
    inputs = Inputs(query_embeddings, candidate_embeddings, **others)
    if inputs.candidate_ids is None:
      raise ValueError(
        f"{type(self).__name__} needs `candidate_ids`, the dense ids of the "
        "candidates in the batch: task(query_embeddings, "
        "candidate_embeddings, candidate_ids=features['candidate_id'])."
      )
    if not isinstance(training, bool):
      raise ValueError(
        "`training` must be a Python bool: it decides when the step function "
        f"is traced whether state moves. Received: `training` = {training!r}."
      )
    return self._evaluated(inputs, training)

  def readout(self) -> dict[str, tf.Tensor]:
    """Scalars worth a line in the log of a run, by name; reads state only."""
    return {}

  def refresh(self) -> None:
    """Recomputes what is too expensive to recompute at every step.

    Call it before each epoch. It must leave the task as a function of the
    weights and the step, so that a run resumed at the start of an epoch goes
    on exactly.
    """

  def get_config(self) -> dict:
    return {
      "loss": self._form.get_config(),
      "temperature": self._temperature,
      "normalize": self._normalize,
      "remove_accidental_hits": self._remove_accidental_hits,
      "positive_in_pool": self._given_positive_in_pool,
      "cross_replica": self._cross_replica,
      "row_chunk_size": self._row_chunk_size,
      "seed": self._seed,
      "name": self.name,
    }

  def _clear_losses(self) -> None:
    """Keras calls it before the task; the batch is already encoded."""
    with arguments.losses_kept(getattr(self, "_candidate_encoder", None)):
      super()._clear_losses()

  def _terms(self, batch: Batch, training: bool) -> Sequence[Term]:
    """The terms of a batch's loss, made by `_term`."""
    raise NotImplementedError

  def _advance(
    self, batch: Batch, terms: Sequence[Term], draws: Sequence[tf.Tensor]
  ) -> None:
    """Moves the state of the task, after the loss of a training step.

    Args:
      batch: The batch.
      terms: What `_terms` returned.
      draws: For each term, [pool] how often each column was drawn.
    """

  def _term(self, batch: Batch, pool: fused.Pool, **settings: Any) -> Term:
    """A term in the form of `loss`, with the masks of the shared arguments."""
    return Term(
      batch,
      pool,
      self._form,
      mask_own_column=not self._positive_in_pool,
      mask_accidental_hits=self._remove_accidental_hits,
      row_chunk_size=self._row_chunk_size,
      **settings,
    )

  def _loss(
    self, batch: Batch, training: bool
  ) -> tuple[tf.Tensor, Sequence[Term]]:
    """Loss and terms of a batch."""
    terms = self._terms(batch, training)
    losses, draws = zip(*(term.loss() for term in terms), strict=True)
    if training:
      self._advance(batch, terms, draws)
    shares = [
      term.share * loss for term, loss in zip(terms, losses, strict=True)
    ]
    return tf.add_n(shares), terms

  # Nothing below needs AutoGraph, which would double the time of tracing. Not
  # at `call`: Keras would no longer see the default of `training`.
  @tf.autograph.experimental.do_not_convert
  def _evaluated(
    self, inputs: Inputs, training: bool
  ) -> tuple[tf.Tensor, Sequence[Term]]:
    distribute.require_scope(self.variables, self.name)
    batch = batches.make(
      inputs,
      self._as_ids(inputs.candidate_ids),
      self._scored,
      temperature=self._temperature,
      cross_replica=self._cross_replica,
    )
    # Where a dataset ends unannounced, `fit` finds out by a step whose batch
    # never comes. TensorFlow still runs what needs no batch, so without this
    # counters would count that step.
    with tf.control_dependencies([batch.ids]):
      return self._loss(batch, training)

  def _as_ids(self, candidate_ids: tf.Tensor) -> tf.Tensor:
    """[batch] int64 ids, of what the caller gave."""
    ids = tf.cast(ids_lib.dense("candidate_ids", candidate_ids), tf.int64)
    if self._num_candidates is None:
      return ids
    # On a GPU, a look-up of another id is zero without an error.
    lowest, highest = tf.reduce_min(ids), tf.reduce_max(ids)
    within = tf.debugging.Assert(
      (lowest >= 0) & (highest < self._num_candidates),
      [
        f"`candidate_ids` must be dense ids below {self._num_candidates}, the "
        f"size of the catalogue of {type(self).__name__}. Received: ids from",
        lowest,
        "to",
        highest,
      ],
    )
    with tf.control_dependencies([within]):
      return tf.identity(ids)

  def _scored(self, embeddings: tf.Tensor) -> tf.Tensor:
    """Embeddings whose inner product is the score, before the temperature."""
    if self._normalize:
      return tf.math.l2_normalize(embeddings, axis=1)
    return embeddings

  def _encoded(
    self,
    candidate_encoder: CandidateEncoder,
    ids: tf.Tensor,
    dtype: tf.DType,
    training: bool,
    dim: int | None = None,
  ) -> tf.Tensor:
    """[n, dim] embeddings of [n] ids, as they are scored."""
    embeddings = arguments.encode(candidate_encoder, ids, training, dim)
    return self._scored(tf.cast(embeddings, dtype))

  def _encoder_for(
    self, candidate_encoder: CandidateEncoder, batch: Batch, training: bool
  ) -> CandidateEncoder:
    """[n] ids -> [n, dim] embeddings to score with the queries of a batch."""
    dtype, dim = batch.queries.dtype, batch.queries.shape[-1]
    return lambda ids: self._encoded(
      candidate_encoder, ids, dtype, training, dim
    )

  def _log_popularity_table(self, counts: np.ndarray) -> tf.Variable:
    """[num_candidates] variable, so that a step gathers only its pool's.

    Other ids than those of the counts are refused from now on.
    """
    self._num_candidates = len(counts)
    return state.add_state(
      self,
      "log_popularity",
      counts.shape,
      tf.float32,
      lambda: proposals.log_popularity(counts),
    )

  def _refuse_known(self, batch: Batch) -> None:
    """Raises ValueError for ids that the task would not leave out."""
    if batch.known_ids is not None:
      raise ValueError(
        f"{type(self).__name__} scores candidates that `known_candidate_ids` "
        "cannot be left out of: do not give any."
      )

  def _require_form_that_suits(self) -> None:
    if self.pool_kind in self._form.suits:
      return
    raise ValueError(
      f"{type(self).__name__} cannot train with `loss` = "
      f"{self._form.name!r}. It can with: "
      f"{', '.join(forms.names_for(self.pool_kind))}. "
      f"{', '.join(_tasks_for(self._form))} can with that one."
    )


def _tasks_for(form: forms.Form) -> list[str]:
  """Names of the tasks that can train with a form."""
  found, tasks = [], [*RetrievalTask.__subclasses__()]
  while tasks:
    task = tasks.pop()
    tasks += task.__subclasses__()
    # Bases in between are no methods.
    if task.pool_kind in form.suits and task.__name__.endswith("Retrieval"):
      found.append(task.__name__)
  return sorted(found)
