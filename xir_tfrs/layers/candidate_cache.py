"""The cache of informative candidates, carried from step to step."""

import tensorflow as tf

from xir_tfrs import checks
from xir_tfrs.layers import state
from xir_tfrs.ops import cache, seeds

SCOPES = ("step", "all")
POLICIES = ("occurrence", "recency")


class CandidateCache(tf.keras.layers.Layer):
  """Candidates that were drawn often, and how often.

  Algorithm 2 of Chen et al. 2022.

      o <- occurrence_decay * o + draws of this step
      cache <- cache_size candidates, in proportion to o

  or, by recency, the last `cache_size` candidates of the batches.

  Attributes:
    ids: [cache_size] int64 variable, the cached candidates; uniform at first.
    occurrence_counts: [num_candidates] float64 variable, the paper's o; zero at
      first. float64 counts exactly up to 2^53, where float32 stalls at 2^24.
    entered: [cache_size] int64 variable, the update that brought each id in;
      it is only reported, and does not affect the draws.
    step: int64 variable, updates so far.

  Examples:
    >>> cache = xir.layers.CandidateCache(num_candidates=100, cache_size=4)
    >>> pool_ids = tf.constant([5, 6, 7, 8, 9], tf.int64)
    >>> cache.update(pool_ids, draws=tf.constant([2.0, 1.0, 0.0, 1.0, 3.0]))
    >>> cache.ids.shape, set(cache.ids.numpy()) <= {5, 6, 8, 9}
    (TensorShape([4]), True)
    >>> cache.occurrence_counts.numpy()[5:10]
    array([2., 1., 0., 1., 3.])
  """

  def __init__(
    self,
    num_candidates: int,
    cache_size: int,
    *,
    cache_scope: str = "step",
    occurrence_decay: float = 1.0,
    cache_policy: str = "occurrence",
    seed: int = 0,
    name: str = "candidate_cache",
  ) -> None:
    """Builds the variables.

    Args:
      num_candidates: Size of the catalogue.
      cache_size: Candidates held; may exceed the catalogue (ids repeat).
      cache_scope: The candidates that the next cache is drawn from: `"step"`,
        those of this step's pools (as in the released code), or `"all"`, the
        catalogue (as the paper prints it; costs a pass over it each step).
      occurrence_decay: Factor of the old counts at each step. Less than 1
        follows a changing model, and costs a pass over the catalogue each step.
      cache_policy: `"occurrence"`, as above, or `"recency"`: the candidates
        of the last batches, whatever was drawn. Draws are still counted, for
        the readout.
      seed: Base seed of the draws.
      name: Name of the layer.

    Raises:
      ValueError: An argument out of its range.
    """
    super().__init__(name=name, autocast=False)
    checks.require_sizes(num_candidates=num_candidates, cache_size=cache_size)
    if cache_scope not in SCOPES:
      raise ValueError(
        f"`cache_scope` must be one of {SCOPES}. "
        f"Received: `cache_scope` = {cache_scope!r}."
      )
    if not 0.0 < occurrence_decay <= 1.0:
      raise ValueError(
        "`occurrence_decay` must lie in (0, 1]. "
        f"Received: `occurrence_decay` = {occurrence_decay}."
      )
    if cache_policy not in POLICIES:
      raise ValueError(
        f"`cache_policy` must be one of {POLICIES}. "
        f"Received: `cache_policy` = {cache_policy!r}."
      )
    self._num_candidates = num_candidates
    self._cache_size = cache_size
    self._cache_scope = cache_scope
    self._occurrence_decay = occurrence_decay
    self._cache_policy = cache_policy
    self._seed = seed

    self.ids = state.add_state(
      self, "ids", (cache_size,), tf.int64, self._initial_ids
    )
    self.occurrence_counts = state.add_state(
      self, "occurrence_counts", (num_candidates,), tf.float64
    )
    self.entered = state.add_state(self, "entered", (cache_size,), tf.int64)
    self.step = state.add_state(self, "step", (), tf.int64)

  def update(
    self,
    pool_ids: tf.Tensor,
    draws: tf.Tensor,
    arrived: tf.Tensor | None = None,
  ) -> None:
    """Counts the draws of a step and draws the next cache.

    Call it at the top level of the step function: variables that all replicas
    agree on cannot be written inside `tf.cond` or `tf.while_loop`.

    Args:
      pool_ids: [n] candidates of this step's pools, on all replicas.
      draws: [n] how often each was drawn, on all replicas together.
      arrived: [batch] candidates of this step's batch, on all replicas; only
        recency needs it.
    """
    seed = seeds.step_seed(self._seed, self.step, seeds.NEXT_CACHE)
    if self._occurrence_decay < 1.0:
      self.occurrence_counts.assign(
        self._occurrence_decay * self.occurrence_counts
      )
    self.occurrence_counts.scatter_add(
      tf.IndexedSlices(tf.cast(draws, tf.float64), pool_ids)
    )
    if self._cache_policy == "recency":
      next_ids = tf.concat([arrived, self.ids], 0)[: self._cache_size]
    else:
      if self._cache_scope == "all":
        pool_ids = tf.range(self._num_candidates, dtype=tf.int64)
      counts = tf.gather(self.occurrence_counts, pool_ids)
      next_ids = cache.next_cache(
        pool_ids,
        counts,
        self._cache_size,
        seed=seed,
        distinct=self._cache_scope == "all",
      )
    self.entered.assign(
      cache.entry_steps(self.ids, self.entered, next_ids, self.step + 1)
    )
    self.ids.assign(next_ids)
    self.step.assign_add(1)

  def log_proposal(self, ids: tf.Tensor) -> tf.Tensor:
    """Log of the distribution that the cache was drawn from, scope `"all"`.

    Args:
      ids: [n] candidates.

    Returns:
      [n] float32 log( o_j / sum o ); -inf for candidates never drawn, and
      log( 1 / num_candidates ) before the first draw.
    """
    total = tf.reduce_sum(self.occurrence_counts)
    counts = tf.gather(self.occurrence_counts, ids)
    share = tf.where(
      total > 0, counts / total, tf.ones_like(counts) / self._num_candidates
    )
    return tf.cast(tf.math.log(share), tf.float32)

  def readout(self) -> dict[str, tf.Tensor]:
    """Reports the health of the cache.

    Returns:
      Scalars float32. `distinct`: distinct ids / `cache_size`. `coverage`:
      distinct ids / candidates of the catalogue. `turnover`: share of the
      entries whose id was not in the cache before the last update. `age`:
      updates since an entry's id came in, mean.
    """
    distinct = tf.cast(tf.size(tf.unique(self.ids)[0]), tf.float32)
    ages = tf.cast(self.step - self.entered, tf.float32)
    return {
      "distinct": distinct / self._cache_size,
      "coverage": distinct / self._num_candidates,
      "turnover": tf.reduce_mean(tf.cast(tf.equal(ages, 0.0), tf.float32)),
      "age": tf.reduce_mean(ages),
    }

  def reset(self) -> None:
    """Back to the state after construction."""
    self.ids.assign(self._initial_ids())
    self.occurrence_counts.assign(tf.zeros_like(self.occurrence_counts))
    self.entered.assign(tf.zeros_like(self.entered))
    self.step.assign(0)

  def get_config(self) -> dict:
    return {
      "num_candidates": self._num_candidates,
      "cache_size": self._cache_size,
      "cache_scope": self._cache_scope,
      "occurrence_decay": self._occurrence_decay,
      "cache_policy": self._cache_policy,
      "seed": self._seed,
      "name": self.name,
    }

  def _initial_ids(self) -> tf.Tensor:
    return tf.random.stateless_uniform(
      [self._cache_size],
      seed=seeds.step_seed(self._seed, 0, seeds.INITIAL_CACHE),
      maxval=self._num_candidates,
      dtype=tf.int64,
    )
