"""Tests of xir_tfrs.diagnostics.EstimatorProbe."""

import numpy as np
import pytest
import tensorflow as tf
from absl.testing import parameterized

from tests import reference
from xir_tfrs import diagnostics, models, tasks
from xir_tfrs.diagnostics import estimator
from xir_tfrs.ops import forms

_DIM = 6
_NUM_QUERIES = 20
_COUNTS = np.array([400, 200, 100, 80, 60, 50, 40, 30, 20, 10, 5, 5])
_NUM_CANDIDATES = len(_COUNTS)
_GRADIENTS = {
  "bias",
  "bias_half_temperature",
  "cosine",
  "cosine_half_temperature",
  "deviation",
  "length",
  "sharpness",
}
_WEIGHTS = {
  "kl_weights",
  "kl_weights_half_temperature",
  "kl_step",
  "positive_weight",
  "positive_weight_full",
  "pool_mass",
}
_DRAWS = {
  "kl_draws",
  "kl_draws_half_temperature",
  "effective_sample_size",
  "positive_draws",
}
_CACHE = {"cache_mass", "cache_effective_sample_size"}


class _FullSoftmaxTask(tasks.RetrievalTask):
  """The full softmax as one cross entropy, to compare every task with."""

  def __init__(self, candidate_encoder, **shared):
    super().__init__(**shared)
    self._encoder = candidate_encoder

  def _loss(self, batch, training):
    table = self._scored(self._encoder(tf.range(_NUM_CANDIDATES)))
    logits = tf.matmul(batch.queries, table, transpose_b=True)
    loss = tf.reduce_sum(
      batch.row_weights
      * tf.nn.sparse_softmax_cross_entropy_with_logits(batch.ids, logits)
    )
    return loss, ()


def _rows(seed=0):
  """Training rows in which candidates appear as often as in `_COUNTS`."""
  candidates = np.repeat(np.arange(_NUM_CANDIDATES), _COUNTS)
  queries = np.random.default_rng(seed).integers(
    _NUM_QUERIES, size=len(candidates)
  )
  return {"query_id": queries, "candidate_id": candidates}


def _known(first=0):
  """Known positives of each query."""
  return tf.ragged.constant(
    [[(q + first) % 5, (q + first) % 5 + 6] for q in range(_NUM_QUERIES)],
    tf.int64,
  )


def _towers(stddev=0.7):
  return (
    models.Tower(
      vocabulary_size=_NUM_QUERIES, dim=_DIM, init_stddev=stddev, seed=1
    ),
    models.Tower(
      vocabulary_size=_NUM_CANDIDATES, dim=_DIM, init_stddev=stddev, seed=2
    ),
  )


def _resampling(**kwargs):
  return tasks.BIRRetrieval(**{"candidate_counts": _COUNTS, **kwargs})


def _cached(tower, **kwargs):
  return tasks.XIRRetrieval(
    candidate_counts=_COUNTS,
    candidate_encoder=tower,
    **{"cache_size": 8, **kwargs},
  )


def _softmax(**kwargs):
  return tasks.SampledSoftmaxRetrieval(**kwargs)


# Name -> function from the candidate tower to the task.
_TASKS = {
  "ssl": lambda _: _softmax(),
  "ssl_pop": lambda _: _softmax(candidate_counts=_COUNTS),
  "positive_twice": lambda _: _softmax(
    candidate_counts=_COUNTS, positive_in_pool=True
  ),
  "no_hits": lambda _: _softmax(
    candidate_counts=_COUNTS, remove_accidental_hits=True
  ),
  "logq_corrected": lambda _: _softmax(
    candidate_counts=_COUNTS, loss="logq_corrected"
  ),
  "bir": lambda _: _resampling(),
  "bir_expected": lambda _: _resampling(resampler="expected"),
  "bir_no_positive": lambda _: _resampling(positive_in_pool=False),
  "bir_no_hits": lambda _: _resampling(remove_accidental_hits=True),
  "xir": lambda tower: _cached(tower, cache_weight=0.3),
  "xir_masked": lambda tower: _cached(
    tower, positive_in_pool=False, remove_accidental_hits=True
  ),
  "mns": lambda tower: tasks.MixedNegativeRetrieval(
    candidate_counts=_COUNTS, candidate_encoder=tower, num_uniform=16
  ),
  "cbns": lambda tower: tasks.CrossBatchRetrieval(
    candidate_counts=_COUNTS,
    candidate_encoder=tower,
    bank_size=16,
    warmup_steps=0,
  ),
  "full_softmax": lambda tower: tasks.FullSoftmaxRetrieval(
    candidate_encoder=tower
  ),
  "g_tower": lambda _: tasks.StreamingFrequencyRetrieval(num_buckets=64),
}
_STATEFUL = ("bir", "xir", "mns", "cbns", "g_tower")


def _model(name, stddev=0.7):
  queries, candidates = _towers(stddev)
  make = _TASKS[name] if isinstance(name, str) else name
  return models.TwoTower(queries, candidates, make(candidates))


def _measure(model, **kwargs):
  sizes = {"probe_size": 2, "batch_size": 64, "repetitions": 2}
  return diagnostics.EstimatorProbe(
    model, _rows(), **(sizes | kwargs)
  ).measure()


def _shares(seen, kind):
  """[distinct] ids and [distinct, rows] shares from a batch."""
  return seen[f"{kind}_ids"].numpy(), seen[f"{kind}s"].numpy()


def _values(variables):
  return [v.numpy() for v in variables]


@pytest.fixture
def _eager():
  """Runs eagerly, because tracing these small steps takes longer."""
  tf.config.run_functions_eagerly(True)
  yield
  tf.config.run_functions_eagerly(False)


@pytest.mark.usefixtures("_eager")
class WeightsTest(tf.test.TestCase, parameterized.TestCase):
  def look(self, model, num_rows=5, steps=2, **kwargs):
    """The results of the probe at the last of a few batches, and that batch."""
    probe = estimator.EstimatorProbe(
      model, _rows(), probe_size=num_rows, batch_size=32, **kwargs
    )
    rng = np.random.default_rng(7)
    for _ in range(steps):
      batch = probe._batch(rng, probe._probe)
      seen = probe._look_at(batch, num_rows)
    return seen, (batch["query_ids"], batch["candidate_ids"])

  @parameterized.parameters(
    *(name for name in _TASKS if name != "full_softmax")
  )
  def test_weights_make_up_the_gradient(self, name):
    model = _model(name)
    seen, (queries, positives) = self.look(model)
    ids, weights = _shares(seen, "weight")
    self.assertLen(set(ids), len(ids))
    table = model.candidate_tower(tf.range(_NUM_CANDIDATES)).numpy()
    for row in range(5):
      gradient = weights[:, row] @ table[ids] - table[positives[row]]
      self.assertAllClose(seen["gradients"][row], gradient, atol=2e-5)
    self.assertAllClose(weights.sum(axis=0), np.ones(5), atol=1e-5)
    self.assertAllGreaterEqual(weights, -1e-6)
    del queries

  @parameterized.product(
    loss=tuple(forms.FORMS), make=(_softmax, _resampling), known=(False, True)
  )
  def test_weights_of_every_form_make_up_the_gradient(self, loss, make, known):
    if make is _resampling and forms.RESAMPLED not in forms.FORMS[loss].suits:
      self.skipTest("not for resampled pools")
    model = _model(lambda _: make(candidate_counts=_COUNTS, loss=loss))
    wanted = _known() if known else None
    seen, (_, positives) = self.look(model, steps=1, known=wanted)
    ids, weights = _shares(seen, "weight")
    table = model.candidate_tower(tf.range(_NUM_CANDIDATES)).numpy()
    for row in range(5):
      gradient = weights[:, row] @ table[ids] - table[positives[row]]
      self.assertAllClose(seen["gradients"][row], gradient, atol=2e-5)

  @parameterized.parameters("decoupled", "generalized_cross_entropy")
  def test_candidates_that_cannot_be_drawn_have_no_draws(self, loss):
    model = _model(lambda _: _resampling(loss=loss))
    wanted = _known()
    seen, (queries, positives) = self.look(model, steps=1, known=wanted)
    ids, draws = _shares(seen, "draw")
    self.assertAllClose(draws.sum(axis=0), np.ones(5), rtol=1e-5)
    for row in range(5):
      self.assertAllEqual(draws[ids == positives[row], row], [0.0])
      for candidate in wanted[int(queries[row])].numpy():
        self.assertAllEqual(
          draws[ids == candidate, row], np.zeros(np.sum(ids == candidate))
        )
    self.assertEqual(_measure(model)["positive_draws"], 0.0)
    # The difference is large enough to notice.
    self.assertGreater(_measure(_model("bir"))["positive_draws"], 0.01)

  @parameterized.parameters(
    ("bir_expected", False, True),
    ("bir_no_positive", False, False),
    ("bir_no_hits", True, True),
  )
  def test_weights_and_draws_of_bir_reference(self, name, no_hits, own):
    many = 10**5
    model = _model(
      lambda _: _resampling(
        resampler="expected",
        num_resampled=many,
        remove_accidental_hits=no_hits,
        positive_in_pool=own,
      )
    )
    seen, (queries, positives) = self.look(model)
    positives = positives.numpy()
    u = model.query_tower(queries).numpy()[:5]
    v = model.candidate_tower(positives).numpy()
    logits = reference.logits(u, v)
    keep = np.ones(logits.shape, bool)
    if no_hits:
      keep &= ~reference.accidental_hits(positives[:5], positives)
    if not own:
      keep &= ~reference.own_columns(5, 32)
    log_q = np.log(reference.popularity(_COUNTS))[positives]
    log_w = reference.log_importance_weights(logits, log_q, keep)
    by_logit, by_positive = reference.resampled_softmax_gradient(
      logits,
      np.diagonal(logits),
      reference.expected_counts(log_w, many),
    )
    expected = np.zeros([2, _NUM_CANDIDATES, 5])
    for row in range(5):
      for column, candidate in enumerate(positives):
        expected[0, candidate, row] += by_logit[row, column]
        expected[1, candidate, row] += np.exp(log_w[row, column])
      expected[0, positives[row], row] += 1 + by_positive[row]
    for (ids, found), wanted in zip(
      (_shares(seen, "weight"), _shares(seen, "draw")), expected, strict=True
    ):
      dense = np.zeros([_NUM_CANDIDATES, 5])
      dense[ids] = found
      self.assertAllClose(dense, wanted, atol=1e-5)
    self.assertAllClose(
      seen["effective_sample_size"],
      reference.effective_sample_size(log_w),
      rtol=1e-4,
    )
    # With so many draws, the positive's own term in the partition is
    # negligible: the weights are a softmax of twice the scores, divided by
    # popularity.
    twice = np.where(keep, 2 * logits - log_q, -np.inf)
    twice = np.exp(twice - twice.max(axis=1, keepdims=True))
    twice /= twice.sum(axis=1, keepdims=True)
    limit = np.zeros([_NUM_CANDIDATES, 5])
    np.add.at(limit, positives, twice.T)
    self.assertAllClose(expected[0], limit, atol=1e-3)

  def test_draws_are_those_of_the_loss(self):
    model = _model(
      lambda _: _resampling(resampler="multinomial", num_resampled=40_000)
    )
    seen, (_, positives) = self.look(model)
    ids, draws = _shares(seen, "draw")
    # Weights of the loss are draws times e^s if the positive is negligible.
    table = model.candidate_tower(tf.range(_NUM_CANDIDATES)).numpy()
    queries = model.query_tower(self.look(model)[1][0]).numpy()[:5]
    ids_2, weights = _shares(seen, "weight")
    self.assertAllEqual(ids, ids_2)
    expected = draws * np.exp(table[ids] @ queries.T)
    self.assertAllClose(
      weights, expected / expected.sum(axis=0), rtol=0.1, atol=5e-3
    )

  def test_draws_of_both_pools_of_xir_are_mixed(self):
    model = _model("xir")
    seen, (_, positives) = self.look(model, steps=1)
    ids, draws = _shares(seen, "draw")
    self.assertAllClose(draws.sum(axis=0), np.ones(5), rtol=1e-5)
    only_in_cache = set(ids) - set(positives.numpy())
    in_batch = np.isin(ids, positives)
    if not only_in_cache:
      self.assertAllInRange(draws[in_batch].sum(axis=0), 0.99, 1.01)
    else:
      self.assertAllInRange(draws[in_batch].sum(axis=0), 0.5, 1.0)

  def test_cache_weight_weights_the_pools(self):
    # The cache only holds candidate 11, which is in no batch: its weight is
    # lambda times the part that is not the positive's.
    rows = _rows()
    keep = rows["candidate_id"] < 11
    rows = {name: column[keep] for name, column in rows.items()}
    model = _model(
      lambda tower: _cached(tower, cache_weight=0.3, num_resampled=10**6)
    )
    model.task.cache.ids.assign([11] * 8)
    probe = estimator.EstimatorProbe(model, rows, probe_size=4, batch_size=16)
    seen = probe._look_at(
      probe._batch(np.random.default_rng(0), probe._probe), 4
    )
    ids, weights = _shares(seen, "weight")
    (of_cache,) = weights[ids == 11]
    self.assertAllClose(of_cache, np.full(4, 0.3), atol=1e-3)


@pytest.mark.usefixtures("_eager")
class MeasureTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters(
    ("ssl_pop", _GRADIENTS | _WEIGHTS),
    ("bir", _GRADIENTS | _WEIGHTS | _DRAWS),
    ("xir", _GRADIENTS | _WEIGHTS | _DRAWS | _CACHE),
    ("mns", _GRADIENTS | _WEIGHTS),
    ("cbns", _GRADIENTS | _WEIGHTS),
    ("full_softmax", _GRADIENTS),
  )
  def test_names_and_ranges(self, name, expected):
    found = _measure(_model(name))
    self.assertEqual(found.keys(), expected)
    for key, value in found.items():
      self.assertIsInstance(value, float)
      self.assertTrue(np.isfinite(value), key)
      if key.startswith("cosine"):
        self.assertBetween(value, -1.0, 1.0)
      else:
        self.assertGreaterEqual(value, 0.0)
      if key.startswith(("positive", "pool")) or key == "cache_mass":
        self.assertLessEqual(value, 1.0 + 1e-6)

  @parameterized.product(
    task=(_FullSoftmaxTask, tasks.FullSoftmaxRetrieval),
    scores=((1.0, False), (0.3, False), (0.2, True)),
  )
  def test_the_full_softmax_is_exact(self, task, scores):
    found = _measure(
      _model(
        lambda tower: task(
          candidate_encoder=tower, temperature=scores[0], normalize=scores[1]
        )
      )
    )
    self.assertAllClose(found["bias"], 0.0, atol=1e-5)
    self.assertAllClose(found["deviation"], 0.0, atol=1e-5)
    self.assertAllClose(found["length"], 1.0, atol=1e-5)
    self.assertAllClose(found["cosine"], 1.0, atol=1e-5)
    self.assertAllClose(found["sharpness"], 1.0, atol=0.05)
    self.assertGreater(found["bias_half_temperature"], 0.05)

  def test_the_full_softmax_of_weighted_rows_and_known_positives(self):
    class Masked(_FullSoftmaxTask):
      def _loss(self, batch, training):
        del training
        table = self._scored(self._encoder(tf.range(_NUM_CANDIDATES)))
        logits = tf.matmul(batch.queries, table, transpose_b=True)
        known = reference.known_positives(
          batch.known_ids, batch.ids, np.arange(_NUM_CANDIDATES)
        )
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
          batch.ids, tf.where(known, -np.inf, logits)
        )
        return tf.reduce_sum(batch.row_weights * losses), ()

    rows = _rows()
    rows["sample_weight"] = np.linspace(0.2, 3.0, len(rows["query_id"]))
    found = {}
    for name, known, columns in (
      ("both", _known(), rows),
      ("no weights", _known(), _rows()),
      ("other known", _known(1), rows),
    ):
      model = _model(lambda tower: Masked(candidate_encoder=tower))
      probe = diagnostics.EstimatorProbe(
        model, columns, probe_size=4, batch_size=32, repetitions=2, known=known
      )
      if name == "other known":
        # The loss and the full softmax have different known positives.
        probe._batch = lambda *a, batch=probe._batch: batch(*a) | {
          "known_candidate_ids": tf.ragged.constant([[]] * 32, tf.int64)
        }
      found[name] = probe.measure()
    self.assertAllClose(found["both"]["bias"], 0.0, atol=1e-5)
    self.assertAllClose(found["both"]["sharpness"], 1.0, atol=0.05)
    self.assertAllClose(found["no weights"]["bias"], 0.0, atol=1e-5)
    self.assertGreater(found["other known"]["bias"], 0.01)

  def test_the_full_softmax_at_half_the_temperature(self):
    # Only the temperature differs: the task has 0.5, so its gradient is twice
    # as long, and the probe assumes 1.
    class HalfTemperature(_FullSoftmaxTask):
      def _loss(self, batch, training):
        del training
        table = self._scored(self._encoder(tf.range(_NUM_CANDIDATES)))
        logits = 2 * tf.matmul(batch.queries, table, transpose_b=True)
        loss = 0.5 * tf.reduce_sum(
          batch.row_weights
          * tf.nn.sparse_softmax_cross_entropy_with_logits(batch.ids, logits)
        )
        return loss, ()

    found = _measure(_model(HalfTemperature))
    self.assertAllClose(found["bias_half_temperature"], 0.0, atol=1e-5)
    self.assertAllClose(found["cosine_half_temperature"], 1.0, atol=1e-5)
    self.assertAllClose(found["sharpness"], 2.0, rtol=0.05)
    self.assertGreater(found["bias"], 0.05)

  def test_ssl_pop_comes_closer_with_the_batch(self):
    small, large = (
      _measure(
        _model("ssl_pop", stddev=1.0),
        probe_size=4,
        batch_size=batch,
        repetitions=8,
      )
      for batch in (16, 1024)
    )
    self.assertLess(large["bias"], 0.5 * small["bias"])
    self.assertLess(large["deviation"], 0.5 * small["deviation"])
    self.assertLess(large["kl_step"], 0.5 * small["kl_step"])
    self.assertLess(large["kl_weights"], 0.01)
    self.assertGreater(large["cosine"], 0.99)
    self.assertAllClose(large["sharpness"], 1.0, rtol=0.1)
    self.assertAllClose(
      large["positive_weight"], large["positive_weight_full"], atol=0.02
    )

  def test_ssl_without_correction_stays_off(self):
    off, corrected = (
      _measure(_model(name, stddev=1.0), batch_size=512, repetitions=4)
      for name in ("ssl", "ssl_pop")
    )
    self.assertGreater(off["bias"], 3 * corrected["bias"])
    self.assertGreater(off["kl_weights"], 0.1)

  def test_bir_is_a_softmax_at_half_the_temperature(self):
    # With so many rows, the batch is the population (ALGORITHMS 5.4).
    found = _measure(
      _model(
        lambda _: _resampling(resampler="expected", num_resampled=10**6),
        stddev=1.0,
      ),
      probe_size=6,
      batch_size=2048,
      repetitions=8,
    )
    self.assertLess(found["bias_half_temperature"], 0.03)
    self.assertGreater(found["bias"], 10 * found["bias_half_temperature"])
    self.assertAllClose(found["sharpness"], 2.0, rtol=0.1)
    self.assertLess(found["kl_weights_half_temperature"], 0.01)
    self.assertGreater(found["kl_weights"], 0.1)
    # Its draws follow the full softmax; only the loss sharpens them.
    self.assertLess(found["kl_draws"], 0.01)
    self.assertGreater(found["kl_draws_half_temperature"], 0.1)

  def test_draws_of_bir_are_the_weights_of_ssl_pop(self):
    # ALGORITHMS 5.4: the mean of the draws would be SSL-Pop's gradient.
    bir, ssl_pop = (_measure(_model(name)) for name in ("bir", "ssl_pop"))
    self.assertAllClose(bir["kl_draws"], ssl_pop["kl_weights"], rtol=1e-4)
    self.assertAllClose(
      bir["positive_draws"], ssl_pop["positive_weight"], rtol=1e-4
    )

  def test_uniform_weights_by_hand(self):
    # All scores are 0 and all candidates equally popular, so all columns have
    # the same weight and the full softmax is uniform over 4 candidates.
    queries, candidates = _towers(stddev=1.0)
    candidates.trainable_variables[0].assign(np.zeros([_NUM_CANDIDATES, _DIM]))
    rows = {"query_id": np.arange(8) % 4, "candidate_id": np.arange(8) % 4}
    task = tasks.BIRRetrieval(candidate_counts=[1, 1, 1, 1])
    found = diagnostics.EstimatorProbe(
      models.TwoTower(queries, candidates, task),
      rows,
      probe_size=1,
      batch_size=16,
      repetitions=2,
      num_candidates=4,
    ).measure()
    self.assertAllClose(found["effective_sample_size"], 16.0, rtol=1e-5)
    self.assertAllClose(found["positive_weight_full"], 0.25, rtol=1e-5)
    self.assertAllClose(found["pool_mass"], 1.0, rtol=1e-5)

  def test_cache_mass_is_that_of_the_distinct_cached_candidates(self):
    model = _model(lambda tower: _cached(tower, cache_size=3))
    model.task.cache.ids.assign([4, 0, 4])
    probe = diagnostics.EstimatorProbe(
      model, _rows(), probe_size=5, batch_size=16, repetitions=2
    )
    queries = model.query_tower(_rows()["query_id"][probe._probe]).numpy()
    table = model.candidate_tower(tf.range(_NUM_CANDIDATES)).numpy()
    scores = np.exp(queries @ table.T)
    expected = np.mean(scores[:, [0, 4]].sum(1) / scores.sum(1))
    self.assertAllClose(probe.measure()["cache_mass"], expected, rtol=1e-5)

  def test_gradients_reference(self):
    # A task that adds a known error to the exact gradient.
    class Off(_FullSoftmaxTask):
      def _loss(self, batch, training):
        exact, _ = super()._loss(batch, training)
        off = 0.1 * tf.reduce_sum(
          batch.row_weights[:, tf.newaxis] * batch.queries
        )
        return exact + off, ()

    model = _model(Off)
    probe = diagnostics.EstimatorProbe(
      model, _rows(), probe_size=5, batch_size=16, repetitions=2
    )
    queries = model.query_tower(_rows()["query_id"][probe._probe]).numpy()
    table = model.candidate_tower(tf.range(_NUM_CANDIDATES)).numpy()
    exact = np.stack(
      [
        reference.full_softmax_gradient(u, table, _rows()["candidate_id"][i])
        for u, i in zip(queries, probe._probe, strict=True)
      ]
    )
    expected = reference.gradient_error([exact + 0.1] * 2, exact)
    found = probe.measure()
    for name, value in expected.items():
      self.assertAllClose(found[name], value, rtol=1e-4, atol=1e-6)

  @parameterized.parameters(1e-4, 1e4)
  def test_extreme_temperatures(self, temperature):
    for make in (_softmax, _resampling, None):
      model = _model(
        lambda tower, make=make: (
          _cached(tower, temperature=temperature)
          if make is None
          else make(temperature=temperature)
        )
      )
      for name, value in _measure(model).items():
        self.assertTrue(np.isfinite(value), name)

  def test_probe_rows_are_spread_over_batches(self):
    # 7 probe rows; a batch of 1000 takes 2, each time with other rows.
    model = _model("bir")
    probe = diagnostics.EstimatorProbe(
      model, _rows(), probe_size=7, batch_size=1000, repetitions=4
    )
    company = []
    look = probe._look

    def watched(batch, num_rows):
      self.assertEqual(num_rows, 2)
      self.assertEqual(batch["query_ids"].shape, [1000])
      pairs = zip(
        batch["query_ids"].numpy()[:2],
        batch["candidate_ids"].numpy()[:2],
        strict=True,
      )
      company.append(tuple(pairs))
      return look(batch, num_rows)

    probe._look = watched
    probe.measure()
    self.assertLen(company, 4 * 4)
    rows = _rows()
    expected = sorted(
      zip(
        rows["query_id"][probe._probe],
        rows["candidate_id"][probe._probe],
        strict=True,
      )
    )
    for repetition in range(4):
      seen = company[4 * repetition : 4 * repetition + 4]
      self.assertEqual(
        sorted([*seen[0], *seen[1], *seen[2], seen[3][0]]), expected
      )
    self.assertGreater(len(set(company)), 10)

  def test_measurements_are_deterministic(self):
    model = _model("xir")
    probe = diagnostics.EstimatorProbe(
      model, _rows(), probe_size=1, batch_size=32, repetitions=2
    )
    self.assertEqual(probe.measure(), probe.measure())
    # A new probe draws the same rows; another seed draws other rows.
    first, same, other = (_measure(model, seed=seed) for seed in (3, 3, 4))
    self.assertEqual(first, same)
    self.assertNotEqual(first, other)

  def test_warmup_moves_the_state(self):
    model = _model("xir")
    cold, warm = (_measure(model, warmup_steps=steps) for steps in (0, 3))
    self.assertNotEqual(cold["cache_mass"], warm["cache_mass"])
    self.assertEqual(int(model.task.cache.step), 0)


class StateTest(tf.test.TestCase, parameterized.TestCase):
  def train(self, probe_after=None):
    """Values of all variables after some steps, with a probe in between."""
    tf.keras.utils.set_random_seed(1)
    model = _model("xir")
    model.compile(optimizer=tf.keras.optimizers.Adam(0.1))
    step = tf.function(model.train_step)
    rows, rng = _rows(), np.random.default_rng(0)
    found = None
    for i in range(6):
      batch = rng.integers(len(rows["query_id"]), size=32)
      step({k: tf.constant(column[batch]) for k, column in rows.items()})
      if i == probe_after:
        found = _measure(model)
    return _values(model.variables + model.optimizer.variables), found

  def test_training_goes_on_as_if_nothing_had_been_measured(self):
    plain, _ = self.train()
    watched, found = self.train(probe_after=2)
    self.assertIsNotNone(found)
    for first, second in zip(plain, watched, strict=True):
      self.assertAllEqual(first, second)

  @parameterized.parameters(*_STATEFUL)
  @pytest.mark.usefixtures("_eager")
  def test_state_is_put_back(self, name):
    model = _model(name)
    before = _values(model.variables)
    _measure(model)
    for first, second in zip(before, model.variables, strict=True):
      self.assertAllEqual(first, second)

  @pytest.mark.usefixtures("_eager")
  def test_state_is_put_back_after_a_failure(self):
    model = _model("xir")
    before = _values(model.variables)
    probe = diagnostics.EstimatorProbe(
      model, _rows(), probe_size=4, batch_size=32, repetitions=2
    )
    look = probe._look

    def fails(*arguments):
      look(*arguments)
      raise KeyboardInterrupt

    probe._look = fails
    with self.assertRaises(KeyboardInterrupt):
      probe.measure()
    for first, second in zip(before, model.variables, strict=True):
      self.assertAllEqual(first, second)


class ReplicasTest(tf.test.TestCase, parameterized.TestCase):
  @pytest.fixture(autouse=True)
  def _use(self, two_replicas):
    self.strategy = two_replicas

  @parameterized.parameters(("xir", False), ("cbns", True), ("g_tower", True))
  def test_a_model_of_two_replicas_measures_as_one_of_one(self, name, eager):
    tf.config.run_functions_eagerly(eager)
    self.addCleanup(tf.config.run_functions_eagerly, False)
    with self.strategy.scope():
      model = _model(name)
    before = [
      [v.numpy() for v in self.strategy.experimental_local_results(variable)]
      for variable in model.variables
    ]
    found = _measure(model)
    tf.config.run_functions_eagerly(True)
    self.assertAllClose(found, _measure(_model(name)), rtol=1e-4, atol=1e-6)
    for values, variable in zip(before, model.variables, strict=True):
      for value, part in zip(
        values,
        self.strategy.experimental_local_results(variable),
        strict=True,
      ):
        self.assertAllEqual(value, part)


class ArgumentsTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters(
    ("probe_size", 0),
    ("batch_size", 1),
    ("repetitions", 0),
    ("repetitions", 3),
    ("warmup_steps", -1),
  )
  def test_bad_arguments_name_the_value(self, name, value):
    with self.assertRaisesRegex(ValueError, f"{name}.*{value}"):
      diagnostics.EstimatorProbe(_model("ssl"), _rows(), **{name: value})

  def test_no_rows(self):
    rows = {name: column[:0] for name, column in _rows().items()}
    with self.assertRaisesRegex(ValueError, "rows.*0"):
      diagnostics.EstimatorProbe(_model("ssl"), rows)

  def test_a_model_without_a_task(self):
    with self.assertRaisesRegex(ValueError, "task"):
      diagnostics.EstimatorProbe(models.TwoTower(*_towers()), _rows())

  def test_a_tower_that_does_not_say_its_size(self):
    queries, candidates = _towers()
    model = models.TwoTower(
      queries, tf.keras.Sequential([candidates]), _softmax()
    )
    with self.assertRaisesRegex(ValueError, "num_candidates"):
      diagnostics.EstimatorProbe(model, _rows())
    diagnostics.EstimatorProbe(model, _rows(), num_candidates=_NUM_CANDIDATES)


if __name__ == "__main__":
  tf.test.main()
