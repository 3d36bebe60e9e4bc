"""The inverted multi-index of MIDX, rebuilt from time to time."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from xir_tfrs import checks
from xir_tfrs.layers import state
from xir_tfrs.ops import kmeans, midx, seeds

_MAX_ITERATIONS = 30


class InvertedMultiIndex(tf.keras.layers.Layer):
  """Draws candidates from Q(i | q) in proportion to weight_i e^{q c(i)}.

  c(i) are the two codewords that stand for the vector of candidate i since
  the last `refresh`; `ops.midx` has the equations. Before the first refresh
  all candidates share one bucket, and are drawn in proportion to their
  weights alone. `log_prob` is exact in any case, however old the index: the
  index decides how good the draws are, not whether they are corrected right.

  Attributes:
    codebooks: [2, K, half] float32 variable, codewords of the halves.
    codes: [num_candidates, 2] int64 variable, each candidate's codewords.
    order, offsets, cumulative_weights: variables, the candidates by bucket;
      see `ops.midx.InvertedLists`.

  Examples:
    >>> index = xir.layers.InvertedMultiIndex(num_candidates=6, dim=2)
    >>> index.refresh(tf.reshape(tf.range(12.0), [6, 2]))
    >>> ids, log_prob = index.sample(tf.ones([1, 2]), 3, seed=0)
    >>> ids.shape, log_prob.shape
    (TensorShape([1, 3]), TensorShape([1, 3]))
  """

  def __init__(
    self,
    num_candidates: int,
    dim: int,
    *,
    num_codewords: int = 8,
    weights: Sequence[float] | None = None,
    seed: int = 0,
    name: str = "inverted_multi_index",
  ) -> None:
    """Builds the variables.

    Args:
      num_candidates: Size of the catalogue, N.
      dim: Size of the vectors.
      num_codewords: Codewords per half, K. There are K^2 buckets, and a step
        costs batch x K^2; CoRR has 8.
      weights: [num_candidates] weights > 0 of the candidates, such as their
        popularity; None: 1 each.
      seed: Seed of the first codewords.
      name: Name of the layer.

    Raises:
      ValueError: An argument out of its range.
    """
    super().__init__(name=name, autocast=False)
    checks.require_sizes(
      num_candidates=num_candidates, dim=dim, num_codewords=num_codewords
    )
    self._num_candidates = num_candidates
    self._dim = dim
    self._num_codewords = num_codewords
    self._seed = seed
    self._weights = None
    if weights is not None:
      self._weights = checked = _checked(weights, num_candidates)
      self._log_weights = state.add_state(
        self,
        "log_weights",
        (num_candidates,),
        tf.float32,
        lambda: tf.constant(np.log(checked), tf.float32),
      )
    self.codebooks = state.add_state(
      self, "codebooks", (2, num_codewords, (dim + 1) // 2), tf.float32
    )
    self.codes = state.add_state(self, "codes", (num_candidates, 2), tf.int64)
    self.order = state.add_state(
      self,
      "order",
      (num_candidates,),
      tf.int64,
      lambda: tf.range(num_candidates, dtype=tf.int64),
    )
    self.offsets = state.add_state(
      self,
      "offsets",
      (num_codewords**2 + 1,),
      tf.int64,
      lambda: tf.constant([0] + [num_candidates] * num_codewords**2, tf.int64),
    )
    self.cumulative_weights = state.add_state(
      self,
      "cumulative_weights",
      (num_candidates + 1,),
      tf.float64,
      lambda: tf.pad(tf.cumsum(self._weights_or_ones()), [[1, 0]]),
    )
    self._build_index = tf.function(self._index_of, autograph=False)

  def refresh(self, embeddings: tf.Tensor) -> None:
    """Rebuilds the index from the candidates' vectors as they are now.

    k-means starts from the previous codewords, so little changes where the
    vectors have changed little. The result is a function of the vectors and of
    the previous codewords, which are in the checkpoint.

    Args:
      embeddings: [num_candidates, dim] float tensor, such that inner products
        with queries are the scores.

    Raises:
      ValueError: Another shape.
    """
    embeddings = tf.cast(embeddings, tf.float32)
    if embeddings.shape != (self._num_candidates, self._dim):
      raise ValueError(
        f"`embeddings` must be [{self._num_candidates}, {self._dim}], a row "
        f"for each candidate. Received: {embeddings.shape}."
      )
    codebooks, codes, lists = self._build_index(
      embeddings,
      tf.convert_to_tensor(self.codebooks),
      tf.constant(self._weights_or_ones()),
    )
    self.codebooks.assign(codebooks)
    self.codes.assign(codes)
    self.order.assign(lists.order)
    self.offsets.assign(lists.offsets)
    self.cumulative_weights.assign(lists.cumulative_weights)

  def sample(
    self,
    queries: tf.Tensor,
    num_sampled: int,
    *,
    seed: int | tf.Tensor,
    first_row: int | tf.Tensor = 0,
  ) -> tuple[tf.Tensor, tf.Tensor]:
    """Draws candidates for each query, with replacement.

    Args:
      queries: [batch, dim] float tensor.
      num_sampled: Draws per query, n.
      seed: [2] integer seed, or a scalar.
      first_row: Number of row 0 in the global batch: rows draw the same
        whichever replica holds them.

    Returns:
      (ids, log_q): [batch, n] int64 candidates, and log Q(i | q) of each,
      without gradient.
    """
    queries = tf.stop_gradient(queries)
    batch = tf.shape(queries)[0]
    uniform = tf.reshape(
      seeds.uniform_rows(seed, batch, 4 * num_sampled, first_row),
      [batch, num_sampled, 4],
    )
    lists = self._lists()
    scores = midx.codeword_scores(queries, self.codebooks)
    ids = midx.draw(scores, lists, uniform)
    return ids, self._log_prob(scores, lists, ids)

  def log_prob(self, queries: tf.Tensor, ids: tf.Tensor) -> tf.Tensor:
    """log Q(i | q) of given candidates.

    Args:
      queries: [batch, dim] float tensor.
      ids: [batch, n] integer candidates.

    Returns:
      [batch, n] logs, without gradient.
    """
    queries = tf.stop_gradient(queries)
    scores = midx.codeword_scores(queries, self.codebooks)
    return self._log_prob(scores, self._lists(), ids)

  def get_config(self) -> dict:
    weights = self._weights
    return {
      "num_candidates": self._num_candidates,
      "dim": self._dim,
      "num_codewords": self._num_codewords,
      "weights": None if weights is None else weights.tolist(),
      "seed": self._seed,
      "name": self.name,
    }

  def _lists(self) -> midx.InvertedLists:
    return midx.InvertedLists(
      *(
        tf.convert_to_tensor(variable)
        for variable in (self.order, self.offsets, self.cumulative_weights)
      )
    )

  def _log_prob(
    self, scores: tf.Tensor, lists: midx.InvertedLists, ids: tf.Tensor
  ) -> tf.Tensor:
    log_omega = midx.log_bucket_weights(lists, self._num_codewords)
    codes = tf.gather(self.codes, ids)
    log_weights = 0.0
    if self._weights is not None:
      log_weights = tf.gather(self._log_weights, ids)
    return tf.stop_gradient(
      midx.log_prob(scores, log_omega, codes, log_weights)
    )

  def _weights_or_ones(self) -> np.ndarray:
    if self._weights is None:
      return np.ones([self._num_candidates])
    return self._weights

  def _index_of(self, embeddings, codebooks, weights):
    """(codebooks, codes, lists) of vectors, from the codewords before."""
    points = midx.halves(embeddings)
    # All zero: there was no refresh before.
    first = tf.reduce_all(codebooks == 0.0)
    parts = []
    for half in range(2):
      start = tf.where(
        first,
        kmeans.initial_codewords(
          points[:, half],
          self._num_codewords,
          seed=seeds.step_seed(self._seed, half, seeds.FIRST_CODEWORDS),
        ),
        codebooks[half],
      )
      parts.append(kmeans.lloyd(points[:, half], start, _MAX_ITERATIONS))
    codes = tf.stack([codes for _, codes in parts], axis=1)
    lists = midx.invert(codes, weights, self._num_codewords)
    return tf.stack([codewords for codewords, _ in parts]), codes, lists


def _checked(given: Sequence[float], num_candidates: int) -> np.ndarray:
  weights = np.asarray(given, np.float64)
  if weights.shape != (num_candidates,):
    raise ValueError(
      f"`weights` must be [num_candidates] = [{num_candidates}]. "
      f"Received: shape {weights.shape}."
    )
  bad = np.flatnonzero(~((weights > 0) & (weights < np.inf)))
  if bad.size:
    raise ValueError(
      "`weights` must be positive and finite. "
      f"Received: `weights[{bad[0]}]` = {weights[bad[0]]}."
    )
  return weights
