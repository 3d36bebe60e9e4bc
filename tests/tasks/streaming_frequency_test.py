"""Tests of xir_tfrs.tasks.StreamingFrequencyRetrieval (G-Tower)."""

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests import reference
from xir_tfrs import layers, tasks

_COUNTS = np.array([5, 1, 0, 40, 7, 2, 0, 3])


def _task(**kwargs):
  return tasks.StreamingFrequencyRetrieval(**{"num_buckets": 997, **kwargs})


def _problem(batch, dim=3, seed=0):
  """Query and candidate embeddings, and ids with repeats."""
  rng = np.random.default_rng(seed)
  return (
    rng.normal(size=[batch, dim]).astype(np.float32),
    rng.normal(size=[batch, dim]).astype(np.float32),
    rng.integers(0, 5, batch),
  )


def _loss(task, query, candidates, ids, **kwargs):
  if not tf.is_tensor(ids):
    ids = tf.constant(ids, tf.int64)
  return task(
    tf.convert_to_tensor(query, tf.float32),
    tf.convert_to_tensor(candidates, tf.float32),
    candidate_ids=ids,
    **kwargs,
  )


def _slow_loss(
  query,
  candidates,
  ids,
  log_q,
  *,
  temperature=1.0,
  normalize=False,
  remove_accidental_hits=False,
  positive_in_pool=False,
):
  """The loss from the formula, with log q [batch] given."""
  batch = len(ids)
  corrected = reference.logits(query, candidates, temperature, normalize)
  corrected -= np.asarray(log_q, np.float64)
  keep = np.ones([batch, batch], bool)
  if not positive_in_pool:
    keep &= ~reference.own_columns(batch, batch)
  if remove_accidental_hits:
    keep &= ~reference.accidental_hits(ids, ids)
  return reference.weighted_mean(
    reference.sampled_softmax(corrected, np.diag(corrected), keep)
  )


class LossTest(tf.test.TestCase, parameterized.TestCase):
  def test_hand_value(self):
    # Initial gap 4, rate 1/2: after the first batch candidates 0 and 1 have
    # gaps 4/2 + 1/2 = 5/2. After the second, of candidates 0 and 2, steps 1
    # and 2 after the last: 5/4 + 1/2 = 7/4, and 4/2 + 2/2 = 3.
    task = _task(initial_gap=4.0, learning_rate=0.5)
    query, candidates = np.diag([np.log(2.0), np.log(3.0)]), np.eye(2)
    # Row 0: 2 against 1; row 1: 3 against 1, with p alike.
    self.assertAllClose(
      _loss(task, query, candidates, [0, 1]),
      (np.log(3 / 2) + np.log(4 / 3)) / 2,
    )
    # e^s / p: row 0: 2 * 7/4 against 3; row 1: 3 * 3 against 7/4.
    self.assertAllClose(
      _loss(task, query, candidates, [0, 2]),
      (np.log(6.5 / 3.5) + np.log(10.75 / 9)) / 2,
    )

  @parameterized.product(
    scores=((0.7, False), (0.1, True)),
    remove_accidental_hits=(False, True),
    positive_in_pool=(False, True),
    count_appearances=(False, True),
  )
  def test_value_and_gradient(self, scores, count_appearances, **options):
    options |= {"temperature": scores[0], "normalize": scores[1]}
    task = _task(count_appearances=count_appearances, **options)
    for seed in range(3):
      _loss(task, *_problem(6, seed=seed))
    query, candidates, ids = _problem(6, seed=9)
    query, candidates = tf.constant(query), tf.constant(candidates)
    with tf.GradientTape() as tape:
      tape.watch([query, candidates])
      loss = _loss(task, query, candidates, ids)
    # Read after the update: a constant on all columns cancels.
    log_q = np.log(
      task.frequency_estimator.per_batch(ids)
      if count_appearances
      else task.frequency_estimator.probability(ids)
    )
    self.assertGreater(np.ptp(log_q), 0.2)

    def slow(query, candidates):
      return _slow_loss(query, candidates, ids, log_q, **options)

    query_, candidates_ = query.numpy(), candidates.numpy()
    self.assertAllClose(loss, slow(query_, candidates_), rtol=1e-5)
    by_query, by_candidates = tape.gradient(loss, [query, candidates])
    self.assertAllClose(
      by_query,
      reference.numeric_gradient(lambda q: slow(q, candidates_), query_),
      atol=1e-5,
    )
    self.assertAllClose(
      by_candidates,
      reference.numeric_gradient(lambda c: slow(query_, c), candidates_),
      atol=1e-5,
    )

  @parameterized.parameters("cross_entropy", "logq_corrected")
  def test_is_sampled_softmax_with_an_estimator(self, loss):
    options = {"num_hashes": 3, "learning_rate": 0.2, "seed": 4}
    task = _task(loss=loss, **options)
    other = tasks.SampledSoftmaxRetrieval(
      frequency_estimator=layers.FrequencyEstimator(num_buckets=997, **options),
      loss=loss,
    )
    for seed in range(4):
      problem = _problem(6, seed=seed)
      self.assertAllEqual(_loss(task, *problem), _loss(other, *problem))

  def test_with_the_true_shares_it_is_ssl_pop(self):
    counts = np.maximum(_COUNTS, 1)
    task = _task(num_buckets=2**16, count_appearances=True)
    task.frequency_estimator.warm_start(
      range(len(counts)), counts, batch_size=16
    )
    ssl_pop = tasks.SampledSoftmaxRetrieval(candidate_counts=counts)
    for seed in range(3):
      problem = _problem(6, seed=seed)
      self.assertAllClose(
        _loss(task, *problem, training=False), _loss(ssl_pop, *problem)
      )

  @parameterized.parameters(False, True)
  def test_string_ids(self, remove_accidental_hits):
    names = np.array(["", "b", "ü", "日本", "e"])
    by_id, by_name = (
      _task(num_buckets=2**16, remove_accidental_hits=remove_accidental_hits)
      for _ in range(2)
    )
    for seed in range(3):
      query, candidates, ids = _problem(6, seed=seed)
      self.assertAllClose(
        _loss(by_name, query, candidates, tf.constant(names[ids].tolist())),
        _loss(by_id, query, candidates, ids),
      )
    self.assertAllEqual(
      by_name.frequency_estimator.per_batch(names.tolist()),
      by_id.frequency_estimator.per_batch(range(5)),
    )

  def test_ids_need_not_be_dense(self):
    dense, sparse = (_task(num_buckets=2**16) for _ in range(2))
    far = np.array([-(2**63), -1, 0, 2**62, 2**63 - 1])
    for seed in range(3):
      query, candidates, ids = _problem(6, seed=seed)
      self.assertAllClose(
        _loss(sparse, query, candidates, far[ids]),
        _loss(dense, query, candidates, ids),
      )


class ReadoutTest(tf.test.TestCase):
  def test_error_against_the_counts(self):
    task = _task(num_buckets=2**12, candidate_counts=_COUNTS)
    plain = _task(num_buckets=2**12)
    rng = np.random.default_rng(0)
    epoch = np.repeat(np.arange(len(_COUNTS)), _COUNTS)
    # All equal in the first batch: nothing is known about the frequencies.
    query, candidates, _ = _problem(6)
    _loss(task, query, candidates, [0, 1, 3, 4, 5, 7])
    first = task.readout()
    self.assertAllClose(first["frequency_log_correlation"], 0.0)
    for _ in range(40):
      ids = rng.choice(epoch, 6)
      _loss(task, query, candidates, ids)
    readout = {name: float(value) for name, value in task.readout().items()}
    self.assertEqual(readout["frequency_steps"], 41)
    self.assertGreater(readout["frequency_log_correlation"], 0.9)
    for name in ("candidate_log_error", "row_log_error"):
      self.assertLess(
        readout[f"frequency_{name}"], 0.8 * float(first[f"frequency_{name}"])
      )
    # The counts are only for the diagnostics.
    self.assertEqual(
      set(plain.readout()), {"frequency_steps", "frequency_cells_hit"}
    )
    self.assertAllEqual(
      _loss(_task(candidate_counts=_COUNTS), *_problem(6)),
      _loss(_task(), *_problem(6)),
    )

  def test_under_tf_function(self):
    task = _task(candidate_counts=_COUNTS)
    _loss(task, *_problem(6))
    for name, value in tf.function(task.readout)().items():
      self.assertAllClose(value, task.readout()[name])


class ArgumentsTest(tf.test.TestCase, parameterized.TestCase):
  def test_the_estimator_is_its_own(self):
    estimator = layers.FrequencyEstimator(num_buckets=5)
    with self.assertRaisesRegex(ValueError, "frequency_estimator"):
      _task(frequency_estimator=estimator)

  def test_number_of_buckets_is_needed(self):
    with self.assertRaisesRegex(TypeError, "num_buckets"):
      tasks.StreamingFrequencyRetrieval()

  @parameterized.parameters(
    ("num_buckets", 0),
    ("num_hashes", 0),
    ("learning_rate", 0.0),
    ("initial_gap", -1.0),
    ("temperature", 0.0),
    ("candidate_counts", [[1, 2]]),
  )
  def test_bad_arguments_name_the_argument(self, name, value):
    with self.assertRaisesRegex(ValueError, name):
      _task(**{name: value})

  def test_the_seed_draws_the_hash_functions(self):
    first, same, other = (
      _task(seed=seed).frequency_estimator.hash_coefficients
      for seed in (7, 7, 8)
    )
    self.assertAllEqual(first, same)
    self.assertNotAllEqual(first, other)

  def test_config_round_trip(self):
    options = {
      "num_buckets": 50,
      "num_hashes": 3,
      "learning_rate": 0.2,
      "initial_gap": 4.5,
      "count_appearances": True,
      "read_before_update": True,
      "candidate_counts": _COUNTS.tolist(),
      "loss": {"name": "logq_corrected"},
      "temperature": 0.3,
      "seed": 7,
      "name": "a_name",
    }
    task = _task(**options)
    self.assertEqual(task.get_config() | options, task.get_config())
    again = type(task).from_config(task.get_config())
    self.assertEqual(again.get_config(), task.get_config())
    for seed in range(3):
      problem = _problem(6, seed=seed)
      self.assertAllEqual(_loss(task, *problem), _loss(again, *problem))


if __name__ == "__main__":
  tf.test.main()
