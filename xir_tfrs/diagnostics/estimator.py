"""Compares the loss of a task with the full softmax.

For each row of a batch, every loss of the library has the gradient

    sum_j P_j grad s_j - grad s_p

for the query, with s the scores after temperature and p the positive. The full
softmax has P_j = e^{s_j} / sum_i e^{s_i}. A task sees a pool instead of the
catalogue, and its weights may be those of another softmax: in BIR and XIR both
the draws and the loss favour high scores, so P_j is proportional to e^{2 s_j},
the softmax at half the temperature. `EstimatorProbe` measures the distance of a
loss from both.

Axes: batch (rows of a batch), rows (probe rows), distinct (distinct ids of a
step's pools), dim.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from xir_tfrs.diagnostics import divergence, full_softmax, pool_weights
from xir_tfrs.ops import resampling
from xir_tfrs.tasks import arguments
from xir_tfrs.tasks.batch import Term

# Factors of the scores in the full softmaxes to compare with.
_SHARPNESSES = tuple(2.0 ** (i / 3) for i in range(-3, 7))
_TARGETS = {"": 1.0, "_half_temperature": 2.0}
# Probe rows return at every repetition, so they are not random companions of
# each other. With k of n probe rows in a batch of B, mixed each time, this
# looks like a squared bias of k^2 / (n B) of the variance; it is kept below
# this value.
_COMPANY = 1e-3
_IDS_PER_CALL = 1 << 14


class EstimatorProbe:
  """Compares a model's loss with the full softmax, on fixed training rows.

  A measurement runs batches with fixed weights; each has some probe rows and
  random other training rows. The state of the task (cache, bank, estimate,
  step) changes as in training and is restored at the end, so the measurement
  does not affect training. Because the weights are fixed, the staleness of a
  bank shows in the first batches only.

  A measurement runs on one device, with a whole global batch at a time. Call
  it outside the scope of a strategy.

  Examples:
    >>> query_tower = xir.models.Tower(vocabulary_size=8, dim=4)
    >>> candidate_tower = xir.models.Tower(vocabulary_size=9, dim=4)
    >>> task = xir.tasks.SampledSoftmaxRetrieval(candidate_counts=[1] * 9)
    >>> model = xir.models.TwoTower(query_tower, candidate_tower, task)
    >>> rows = {"query_id": np.arange(8), "candidate_id": np.arange(8)}
    >>> probe = xir.diagnostics.EstimatorProbe(
    ...   model, rows, probe_size=4, batch_size=4, repetitions=2
    ... )
    >>> found = probe.measure()
    >>> sorted(found)[:3]
    ['bias', 'bias_half_temperature', 'cosine']
  """

  def __init__(
    self,
    model: tf.keras.Model,
    rows: Mapping[str, np.ndarray],
    *,
    probe_size: int = 64,
    batch_size: int = 2048,
    repetitions: int = 16,
    warmup_steps: int = 0,
    num_candidates: int | None = None,
    known: tf.RaggedTensor | None = None,
    seed: int = 0,
  ) -> None:
    """Draws the probe rows.

    Args:
      model: A `models.TwoTower` with a task.
      rows: The training rows: [n] arrays `query_id` and `candidate_id`, and
        `sample_weight` if the loss is weighted.
      probe_size: Number of probe rows; all rows if there are fewer.
      batch_size: Rows per batch, i.e. the global batch size.
      repetitions: Batches that contain each probe row; even.
      warmup_steps: Earlier batches that only update the state; for a task that
        the model was not trained with.
      num_candidates: Size of the catalogue; by default the candidate tower's
        `vocabulary_size`.
      known: [num_queries, None] known candidates of each query, if the loss
        leaves them out as `known_candidate_ids`; the full softmax then leaves
        them out too.
      seed: Seed of the probe rows and of the batches.

    Raises:
      ValueError: An argument is out of range, or the model has no task or
        encodes queries from histories.
    """
    for name, value, least in (
      ("probe_size", probe_size, 1),
      ("batch_size", batch_size, 2),
      ("repetitions", repetitions, 2),
      ("warmup_steps", warmup_steps, 0),
      ("rows", len(rows["query_id"]), 1),
    ):
      if value < least:
        raise ValueError(
          f"`{name}` must be at least {least}. Received: `{name}` = {value}."
        )
    if repetitions % 2:
      raise ValueError(
        f"`repetitions` must be even. Received: `repetitions` = {repetitions}."
      )
    if getattr(model, "task", None) is None:
      raise ValueError(
        "An estimator probe needs a model with a `task`, such as "
        f"`models.TwoTower`. Received: {model!r}."
      )
    if getattr(model, "takes_histories", False):
      raise ValueError(
        "An estimator probe encodes queries by their ids alone: it does not "
        "support models with histories."
      )
    self._model, self._task = model, model.task
    self._queries = np.asarray(rows["query_id"])
    self._candidates = np.asarray(rows["candidate_id"])
    self._weights = np.asarray(
      rows.get("sample_weight", np.ones(len(self._queries))), np.float32
    )
    self._known = known
    self._batch_size = batch_size
    self._repetitions = repetitions
    self._warmup_steps = warmup_steps
    self._num_candidates = arguments.require_num_candidates(
      num_candidates, model.candidate_tower
    )
    self._seed = seed
    self._probe = np.random.default_rng([seed, 0]).choice(
      len(self._queries), min(probe_size, len(self._queries)), replace=False
    )
    together = int((_COMPANY * len(self._probe) * batch_size) ** 0.5)
    self._rows_per_batch = min(max(together, 1), len(self._probe))
    self._move = tf.function(self._move_state, autograph=False)
    self._look = tf.function(
      self._look_at, autograph=False, reduce_retracing=True
    )

  def measure(self) -> dict[str, float]:
    """Compares the loss of the current model and task with the full softmax.

    The loss is the one in training, with its form, masks, known positives and
    row weights. The exact gradient of a row is that of the cross entropy of the
    full softmax, times the row's weight. Forms of the loss that weight rows by
    the confidence of the model change the length of gradients; this counts as
    bias but does not affect the cosine.

    Returns:
      Gradients for the queries of the probe rows, as `divergence` defines them.
      Values with the suffix `_half_temperature` compare with the full softmax
      at half the temperature.
        `bias`, `cosine`: Of the mean over the batches; also with the suffix.
        `deviation`: Of a single batch.
        `length`: Of the mean over the batches.
        `sharpness`: The k for which the mean has the direction of the full
          softmax of k times the scores: 1 for an estimate of the softmax, 2
          for an estimate of the one at half the temperature.
      Weights that the loss gives to candidates:
        `kl_weights`: KL of their mean over the batches to the full softmax;
          also with the suffix.
        `kl_step`: Mean KL of the weights of a single batch.
        `positive_weight`: Weight of the positive; `positive_weight_full` is
          its weight in the full softmax.
        `pool_mass`: Share of the full softmax on the candidates of a step.
      Only for tasks that resample:
        `kl_draws`: KL of the distribution of the draws, mean over the batches,
          to the full softmax; also with the suffix.
        `effective_sample_size`: Of the importance weights of the batch;
          `cache_effective_sample_size` is that of the cache.
        `positive_draws`: Share of the draws that are the row's positive.
      Only for tasks with a cache:
        `cache_mass`: Share of the full softmax on the cached candidates, at
          the start.
      Tasks whose loss has no pools report only the gradients.
    """
    full = full_softmax.full_softmax(
      self._model.query_tower(tf.constant(self._queries[self._probe])),
      self._encode_candidates(),
      self._candidates[self._probe],
      temperature=self._task.temperature,
      normalize=self._task.normalize,
      sharpnesses=_SHARPNESSES,
      known=self._known_of(self._queries[self._probe]),
    )
    readout = _Readout(full, self._weights[self._probe])
    if not self._task.built:
      # State that the task creates at its first call is restored too.
      batch = self._batch(np.random.default_rng(self._seed), self._probe[:1])
      self._task(
        self._model.query_tower(batch["query_ids"]),
        self._model.candidate_tower(batch["candidate_ids"]),
        **batch,
        training=False,
      )
    state = [(v, tf.identity(v)) for v in self._task.non_trainable_variables]
    try:
      self._run(readout)
    finally:
      for variable, value in state:
        variable.assign(value)
    return readout.results()

  def _run(self, readout: "_Readout") -> None:
    # Every call uses the same batches, so only the model differs.
    rng = np.random.default_rng([self._seed, 1])
    for _ in range(self._warmup_steps):
      self._move(self._batch(rng, self._probe[:0]))
    cache = getattr(self._task, "cache", None)
    if cache is not None:
      readout.add_cache(np.unique(cache.ids.numpy()))
    together = self._rows_per_batch
    for repetition in range(self._repetitions):
      order = rng.permutation(len(self._probe))
      for first in range(0, len(order), together):
        rows = order[first : first + together]
        # The last batch may have fewer probe rows. It evaluates other rows in
        # their place and discards them, which avoids another trace.
        seen = self._look(self._batch(rng, self._probe[rows]), together)
        readout.add(
          repetition,
          rows,
          {name: value.numpy() for name, value in seen.items()},
        )

  def _batch(
    self, rng: np.random.Generator, probe_rows: np.ndarray
  ) -> dict[str, tf.Tensor | tf.RaggedTensor]:
    """The inputs of a task: probe rows, then others."""
    others = rng.integers(
      len(self._queries), size=self._batch_size - len(probe_rows)
    )
    rows = np.concatenate([probe_rows, others])
    batch = {
      "query_ids": tf.constant(self._queries[rows], tf.int64),
      "candidate_ids": tf.constant(self._candidates[rows], tf.int64),
      "sample_weight": tf.constant(self._weights[rows]),
    }
    known = self._known_of(self._queries[rows])
    return batch if known is None else batch | {"known_candidate_ids": known}

  def _known_of(self, queries: np.ndarray) -> tf.RaggedTensor | None:
    """[n, None] int64 known candidates of queries."""
    if self._known is None:
      return None
    return tf.cast(tf.gather(self._known, queries), tf.int64)

  def _encode_candidates(self) -> np.ndarray:
    """[candidates, dim] float32 vectors, normalised if scores are cosines."""
    ids = np.arange(self._num_candidates)
    return np.concatenate(
      [
        self._model.encode_candidates(ids[start : start + _IDS_PER_CALL])
        for start in range(0, len(ids), _IDS_PER_CALL)
      ]
    )

  def _loss(
    self, queries: tf.Tensor, batch: dict[str, tf.Tensor]
  ) -> tuple[tf.Tensor, Sequence[Term]]:
    """(loss, terms) of a batch; updates the state of the task."""
    candidates = self._model.candidate_tower(batch["candidate_ids"])
    return self._task.loss_terms(queries, candidates, **batch, training=True)

  def _move_state(self, batch: dict[str, tf.Tensor]) -> None:
    self._loss(self._model.query_tower(batch["query_ids"]), batch)

  def _look_at(
    self, batch: dict[str, tf.Tensor], num_rows: int
  ) -> dict[str, tf.Tensor]:
    """Measures the first rows of a batch.

    Returns:
      `gradients` [rows, dim]; if the loss has pools, `weight_ids` and `weights`
      from `pool_weights.loss_weights`; if the task resamples, `draw_ids` and
      `draws` from `pool_weights.draw_weights`, and [rows] effective sample
      sizes.
    """
    queries = self._model.query_tower(batch["query_ids"])
    queries = tf.convert_to_tensor(queries)
    with tf.GradientTape() as tape:
      tape.watch(queries)
      loss, terms = self._loss(queries, batch)
    gradients = tf.convert_to_tensor(tape.gradient(loss, queries))
    # The loss is a mean over the batch.
    scale = tf.cast(tf.shape(queries)[0], gradients.dtype)
    seen = {"gradients": scale * gradients[:num_rows]}
    if terms:
      seen["weight_ids"], seen["weights"] = pool_weights.loss_weights(
        terms, num_rows
      )
    terms = [term for term in terms if term.resampler is not None]
    if terms:
      seen["draw_ids"], seen["draws"] = pool_weights.draw_weights(
        terms, num_rows
      )
    for term in terms:
      prefix = "cache_" if term.pool.own_offset is None else ""
      seen[f"{prefix}effective_sample_size"] = resampling.effective_sample_size(
        term.first(num_rows).log_importance_weights()
      )
    return seen


class _Readout:
  """Collects and summarises the measurements of the batches."""

  def __init__(
    self, full: full_softmax.FullSoftmax, row_weights: np.ndarray
  ) -> None:
    self._full = full
    self._exact = {
      k: row_weights[:, np.newaxis] * gradient
      for k, gradient in full.gradients.items()
    }
    self._samples: dict[int, np.ndarray] = {}
    self._mixtures: dict[str, _Mixture] = {}
    self._means: dict[str, list[np.ndarray]] = {}

  def add_cache(self, ids: np.ndarray) -> None:
    """Adds the [distinct] ids of the cache at the start."""
    self._add_mean("cache_mass", self._full.mass(ids))

  def add(
    self, repetition: int, rows: np.ndarray, seen: dict[str, np.ndarray]
  ) -> None:
    """Adds the results of `EstimatorProbe._look_at` for some probe rows."""
    seen = dict(seen)
    samples = self._samples.setdefault(
      repetition, np.zeros_like(self._exact[1.0])
    )
    samples[rows] = seen.pop("gradients")[: len(rows)]
    if "weights" in seen:
      ids, weights = seen.pop("weight_ids"), seen.pop("weights")
      weights = weights[:, : len(rows)]
      self._add_mixture("weights", repetition, rows, ids, weights)
      self._add_mean("positive_weight", self._of_positive(rows, ids, weights))
      log_full = self._full.log_probabilities(ids, rows)
      self._add_mean("kl_step", divergence.kl_divergence(weights, log_full))
      self._add_mean("pool_mass", np.exp(log_full).sum(axis=0))
    if "draws" in seen:
      ids, draws = seen.pop("draw_ids"), seen.pop("draws")
      draws = draws[:, : len(rows)]
      self._add_mixture("draws", repetition, rows, ids, draws)
      self._add_mean("positive_draws", self._of_positive(rows, ids, draws))
    for name, values in seen.items():
      self._add_mean(name, values[: len(rows)])

  def results(self) -> dict[str, float]:
    """Returns the results for `EstimatorProbe.measure`."""
    samples = np.stack(list(self._samples.values()))
    exact = self._exact
    results = divergence.gradient_error(samples, exact[1.0])
    half = divergence.gradient_error(samples, exact[2.0])
    results["bias_half_temperature"] = half["bias"]
    for suffix, k in _TARGETS.items():
      results[f"cosine{suffix}"] = divergence.mean_cosine(samples, exact[k])
    results["sharpness"] = divergence.best_sharpness(samples, exact)
    for kind, mixture in self._mixtures.items():
      ids, even, odd = mixture.halves(len(self._full.positive_ids))
      for suffix, k in _TARGETS.items():
        results[f"kl_{kind}{suffix}"] = divergence.kl_of_mean(
          even, odd, self._full.log_probabilities(ids, sharpness=k)
        )
    for name, values in self._means.items():
      results[name] = float(np.mean(np.concatenate(values)))
    if "weights" in self._mixtures:
      positives = self._full.positive_weights()
      results["positive_weight_full"] = float(np.mean(positives))
    return results

  def _of_positive(
    self, rows: np.ndarray, ids: np.ndarray, shares: np.ndarray
  ) -> np.ndarray:
    is_positive = np.equal.outer(ids, self._full.positive_ids[rows])
    return np.sum(shares * is_positive, axis=0)

  def _add_mixture(
    self,
    kind: str,
    repetition: int,
    rows: np.ndarray,
    ids: np.ndarray,
    shares: np.ndarray,
  ) -> None:
    mixture = self._mixtures.setdefault(kind, _Mixture())
    mixture.add(repetition, rows, ids, shares)

  def _add_mean(self, name: str, values: np.ndarray) -> None:
    self._means.setdefault(name, []).append(values)


class _Mixture:
  """Sums distributions over candidates, separately for even and odd batches."""

  def __init__(self) -> None:
    self._parts: list[tuple[int, np.ndarray, np.ndarray, np.ndarray]] = []

  def add(
    self,
    repetition: int,
    rows: np.ndarray,
    ids: np.ndarray,
    shares: np.ndarray,
  ) -> None:
    """Adds [distinct] ids and [distinct, rows] shares of a batch."""
    self._parts.append((repetition % 2, rows, ids, shares))

  def halves(self, num_rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns [n] ids, and [n, rows] sums of even and of odd batches."""
    all_ids = np.unique(np.concatenate([ids for _, _, ids, _ in self._parts]))
    sums = np.zeros([2, len(all_ids), num_rows])
    for half, rows, ids, shares in self._parts:
      places = np.searchsorted(all_ids, ids)
      sums[half, places[:, np.newaxis], rows] += shares
    return all_ids, sums[0], sums[1]
