"""Tests of xir_tfrs.tasks.CrossBatchRetrieval (CBNS)."""

import numpy as np
import pytest
import tensorflow as tf
from absl.testing import parameterized

from tests import reference
from xir_tfrs import layers, models, tasks

_COUNTS = np.array([5, 1, 0, 40, 7, 2, 0, 3, 11, 0])
_LOG_POP = np.log(reference.popularity(_COUNTS))
_DIM = 3


def _tower(seed=0):
  return models.Tower(
    vocabulary_size=len(_COUNTS), dim=_DIM, init_stddev=1.0, seed=seed
  )


def _problem(batch, seed=1):
  """Query and candidate embeddings, and ids with repeats."""
  rng = np.random.default_rng(seed)
  return (
    rng.normal(size=[batch, _DIM]).astype(np.float32),
    rng.normal(size=[batch, _DIM]).astype(np.float32),
    rng.integers(0, 5, batch),
  )


def _task(**kwargs):
  return tasks.CrossBatchRetrieval(
    **{
      "candidate_counts": _COUNTS,
      "bank_size": 8,
      "warmup_steps": 0,
      **kwargs,
    }
  )


def _loss(task, query, candidates, ids, **kwargs):
  return task(
    tf.convert_to_tensor(query),
    tf.convert_to_tensor(candidates),
    candidate_ids=tf.constant(ids, tf.int64),
    **kwargs,
  )


def _rows(candidates, ids, normalize=False):
  """The rows that a batch adds to the bank."""
  if normalize:
    candidates = [v / np.sqrt(sum(v * v)) for v in candidates]
  return [
    (v, int(i), _LOG_POP[i]) for v, i in zip(candidates, ids, strict=True)
  ]


class LossTest(tf.test.TestCase, parameterized.TestCase):
  def test_hand_value(self):
    # Bank: candidate 1 of pop 1/4, score log 3. Row: candidate 0 of pop 3/4,
    # score log 2. e^s / pop: 8/3 against 12.
    task = _task(candidate_counts=[3, 1])
    one = np.ones([1, 1], np.float32)
    _loss(task, one, np.log(3.0) * one, [1])
    self.assertAllClose(
      _loss(task, one, np.log(2.0) * one, [0]),
      np.log((8 / 3 + 12) / (8 / 3)),
    )

  @parameterized.product(
    sizes=((3, 3, 3, 3), (7, 2, 5, 4), (1, 20, 3)),
    loss=("cross_entropy", "logq_corrected"),
    scores=((0.7, False), (0.1, True)),
  )
  def test_reference(self, sizes, loss, scores):
    # The bank wraps around; the batch of 20 is larger than it.
    options = dict(loss=loss, temperature=scores[0], normalize=scores[1])
    task = _task(**options)
    seen = []
    for step, size in enumerate(sizes):
      query, candidates, ids = _problem(size, seed=step)
      expected, _ = reference.cbns_task(
        query,
        candidates,
        ids,
        reference.memory_bank(8, seen),
        _COUNTS,
        **options,
      )
      for training in (False, True):
        self.assertAllClose(
          _loss(task, query, candidates, ids, training=training),
          expected,
          rtol=1e-5,
          atol=1e-5,
        )
      seen.append(_rows(candidates, ids, scores[1]))

  @parameterized.parameters(True, False)
  def test_reference_of_accidental_hits(self, remove_accidental_hits):
    options = dict(remove_accidental_hits=remove_accidental_hits)
    task = _task(**options)
    first, second = _problem(8, seed=0), _problem(6, seed=1)
    self.assertNotEmpty(set(first[2]) & set(second[2]))
    _loss(task, *first)
    expected, _ = reference.cbns_task(
      *second, _rows(*first[1:]), _COUNTS, **options
    )
    self.assertAllClose(_loss(task, *second), expected, rtol=1e-5)

  def test_frozen_tower_and_a_bank_of_one_batch(self):
    # ALGORITHMS 7.4: the in-batch loss of the last rows of both batches
    # together, whose first candidates are constants.
    first, second = _problem(4, seed=0), _problem(4, seed=1)
    task = _task(bank_size=4, balance_gradients=False)
    _loss(task, *first)
    both = tasks.SampledSoftmaxRetrieval(
      candidate_counts=_COUNTS, remove_accidental_hits=True
    )
    query, candidates = (tf.constant(x) for x in second[:2])
    results = []
    for use_bank in (True, False):
      with tf.GradientTape() as tape:
        tape.watch([query, candidates])
        if use_bank:
          loss = _loss(task, query, candidates, second[2])
        else:
          loss = 2 * _loss(
            both,
            tf.concat([first[0], query], 0),
            tf.concat([first[1], candidates], 0),
            np.concatenate([first[2], second[2]]),
            sample_weight=tf.constant([0.0] * 4 + [1.0] * 4),
          )
      results.append((loss, *tape.gradient(loss, [query, candidates])))
    for with_bank, in_batch in zip(*results, strict=True):
      self.assertAllClose(with_bank, in_batch, rtol=1e-5, atol=1e-6)

  @parameterized.parameters(True, False)
  def test_balanced_gradients_are_those_of_a_larger_batch(self, normalize):
    # The bank holds the batch itself, three times.
    query, candidates, ids = _problem(4, seed=1)
    query, candidates = tf.constant(query), tf.constant(candidates)
    options = dict(remove_accidental_hits=True, normalize=normalize)
    task = _task(bank_size=12, **options)
    for _ in range(3):
      _loss(task, query, candidates, ids)
    larger = tasks.SampledSoftmaxRetrieval(candidate_counts=_COUNTS, **options)
    results = []
    for use_bank in (True, False):
      with tf.GradientTape() as tape:
        tape.watch([query, candidates])
        if use_bank:
          loss = _loss(task, query, candidates, ids, training=False)
        else:
          loss = 4 * _loss(
            larger,
            tf.concat([query] * 4, 0),
            tf.concat([candidates] * 4, 0),
            np.concatenate([ids] * 4),
            sample_weight=tf.constant([1.0] * 4 + [0.0] * 12),
          )
      results.append((loss, *tape.gradient(loss, [query, candidates])))
    for with_bank, in_batch in zip(*results, strict=True):
      self.assertAllClose(with_bank, in_batch, rtol=1e-5, atol=1e-6)

  def test_no_gradient_reaches_the_bank(self):
    tower = _tower()
    task = _task()
    ids = np.array([7, 8, 9])
    with tf.GradientTape() as tape:
      first = _loss(task, _problem(3)[0], tower(ids), ids)
      second = _loss(task, _problem(3)[0], tower(ids - 7), ids - 7)
    del first
    gradient = tf.convert_to_tensor(
      tape.gradient(second, tower.trainable_variables[0])
    ).numpy()
    self.assertAllEqual(np.any(gradient, axis=1), [True] * 3 + [False] * 7)

  def test_the_bank_keeps_the_log_q_of_its_time(self):
    estimator = layers.FrequencyEstimator(num_buckets=1000)
    task = _task(candidate_counts=None, frequency_estimator=estimator)
    query, candidates, _ = _problem(3)
    _loss(task, query, candidates, [7, 8, 9])
    before = task.bank.log_q.numpy()[:3]
    # Candidate 7 returns after four steps, so it is rarer than estimated.
    for i in (1, 2, 3, 7):
      _loss(task, query[:1], candidates[:1], [i])
    self.assertAllEqual(task.bank.ids, [7, 8, 9, 1, 2, 3, 7, -1])
    self.assertAllEqual(task.bank.log_q[:3], before)
    now = estimator.log_shares(
      tf.constant([7], tf.int64),
      gathered=True,
      training=False,
      num_rows=tf.constant(3, tf.int64),
    )
    self.assertLess(float(now[0]), before[0] - 0.1)

  def test_without_counts_nothing_is_corrected(self):
    task, level = _task(candidate_counts=None), _task(candidate_counts=[7] * 10)
    for seed in range(3):
      self.assertAllClose(
        _loss(task, *_problem(4, seed)),
        _loss(level, *_problem(4, seed)),
        rtol=1e-5,
      )


class WarmUpTest(tf.test.TestCase, parameterized.TestCase):
  def test_cold_it_is_the_in_batch_loss(self):
    cold, warm = _task(warmup_steps=3), _task(warmup_steps=0)
    in_batch = tasks.SampledSoftmaxRetrieval(
      candidate_counts=_COUNTS, remove_accidental_hits=True
    )
    for step in range(5):
      batch = _problem(4, seed=step)
      loss = _loss(cold, *batch)
      # Meanwhile the bank fills up.
      expected = _loss(warm if step >= 3 else in_batch, *batch)
      if step < 3:
        _loss(warm, *batch)
      self.assertAllClose(loss, expected, rtol=1e-6)
      self.assertEqual(float(cold.readout()["warm"]), 1.0 if step >= 2 else 0.0)

  def test_evaluation_does_not_count_as_a_step(self):
    task = _task(warmup_steps=1)
    for _ in range(3):
      _loss(task, *_problem(4), training=False)
    self.assertEqual(float(task.readout()["warm"]), 0.0)
    self.assertEqual(int(task.bank.filled), 0)

  def test_warm_up_ends_when_drift_is_small(self):
    tower = _tower()
    task = _task(
      warmup_steps=1000,
      warmup_drift=0.01,
      candidate_encoder=tower,
      probe_size=6,
    )
    (table,) = tower.trainable_variables
    rng = np.random.default_rng(0)
    warm = []
    for step in range(20):
      _loss(task, *_problem(4, seed=step))
      warm.append(float(task.readout()["warm"]))
      # Fast at first, then standing still, then fast again.
      if step < 5 or step > 16:
        table.assign_add(rng.normal(size=table.shape))
    self.assertEqual(warm, sorted(warm))
    first_warm = warm.index(1.0)
    # All ten steps of the mean must be after the last change.
    self.assertEqual(first_warm, 5 + 10)

  def test_large_drift_does_not_end_the_warm_up_but_steps_do(self):
    tower = _tower()
    task = _task(warmup_steps=13, warmup_drift=0.01, candidate_encoder=tower)
    (table,) = tower.trainable_variables
    for step in range(13):
      self.assertEqual(float(task.readout()["warm"]), 0.0)
      _loss(task, *_problem(4, seed=step))
      table.assign_add(np.random.default_rng(step).normal(size=table.shape))
    self.assertEqual(float(task.readout()["warm"]), 1.0)


class ReadoutTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters(False, True)
  def test_drift_and_staleness(self, normalize):
    tower = _tower()
    (table,) = tower.trainable_variables
    # With as many probes as candidates, every row of the table is watched.
    task = _task(
      bank_size=5,
      candidate_encoder=tower,
      probe_size=50,
      normalize=normalize,
    )
    scored = _unit if normalize else (lambda x: x)
    tables, rows = [], []
    rng = np.random.default_rng(0)
    for step in range(13):
      ids = np.array([step % 10, (3 * step) % 10])
      _loss(task, _problem(2)[0], tower(ids), ids)
      tables.append(scored(table.numpy()))
      rows.append([(tables[-1][i], i) for i in ids])
      table.assign_add(0.1 * rng.normal(size=table.shape))
    readout = {name: float(x) for name, x in task.readout().items()}
    for steps in (1, 5, 10):
      distances = np.linalg.norm(tables[-1] - tables[-1 - steps], axis=1)
      self.assertAllClose(
        readout[f"drift_{steps}"], np.mean(distances), rtol=1e-4
      )
    now = scored(table.numpy())
    stale = [
      np.sum((v - now[i]) ** 2) / np.sum(now[i] ** 2)
      for v, i in reference.memory_bank(5, rows)
    ]
    self.assertAllClose(readout["staleness"], np.mean(stale), rtol=1e-4)
    self.assertEqual(readout["bank_filled"], 1.0)
    self.assertGreater(readout["relative_drift"], 0.0)

  def test_finite_from_the_first_step_on(self):
    task = _task(candidate_encoder=_tower())
    for step in range(3):
      for name, value in task.readout().items():
        self.assertTrue(np.isfinite(value), name)
      self.assertAllClose(task.readout()["bank_filled"], min(3 * step / 8, 1.0))
      _loss(task, *_problem(3, seed=step))

  def test_readout_without_encoder_or_probes(self):
    task = _task()
    self.assertEqual(set(task.readout()), {"warm"})
    _loss(task, *_problem(3))
    self.assertEqual(set(task.readout()), {"warm", "bank_filled"})
    task = _task(candidate_encoder=_tower(), probe_size=0)
    self.assertEqual(set(task.readout()), {"warm", "bank_filled", "staleness"})

  def test_probes_are_distinct_and_popular(self):
    counts = np.ones(1000, np.int64)
    counts[:20] = 100_000
    asked = []

    def watched(ids):
      asked.append(ids.numpy())
      return tf.zeros([len(ids), _DIM])

    task = _task(
      candidate_counts=counts, candidate_encoder=watched, probe_size=16
    )
    _loss(task, *_problem(3))
    self.assertLen(set(asked[-1]), 16)
    self.assertContainsSubset(set(asked[-1]), set(range(20)))


def _unit(x):
  return x / np.linalg.norm(x, axis=1, keepdims=True)


class StateTest(tf.test.TestCase, parameterized.TestCase):
  def test_the_bank_is_built_when_its_dimension_is_known(self):
    self.assertIsNone(_task().bank)
    self.assertEqual(_task(embedding_dim=5).bank.embeddings.shape, [8, 5])
    bank = _task(candidate_encoder=_tower()).bank
    self.assertEqual(bank.embeddings.shape, [8, _DIM])
    task = _task()
    _loss(task, *_problem(2), training=False)
    self.assertEqual(task.bank.embeddings.shape, [8, _DIM])

  def test_a_bank_built_late_is_restored_late(self):
    task = _task()
    for seed in range(3):
      _loss(task, *_problem(3, seed))
    path = tf.train.Checkpoint(task=task).save(self.get_temp_dir() + "/task")
    again = _task()
    status = tf.train.Checkpoint(task=again).restore(path)
    self.assertAllEqual(_loss(again, *_problem(4)), _loss(task, *_problem(4)))
    status.assert_consumed()

  def test_weights_of_a_bank_not_yet_built_are_refused(self):
    # Keras loads what is there, and leaves the rest out without a word.
    path, models = f"{self.get_temp_dir()}/model.weights.h5", []
    for _ in range(2):
      models.append(tf.keras.Model())
      models[-1].task = _task()
    _loss(models[0].task, *_problem(4))
    models[0].save_weights(path)
    with self.assertRaisesRegex(ValueError, "no bank yet.*`embedding_dim`"):
      models[1].load_weights(path)

  def test_embeddings_of_another_size_are_refused(self):
    with self.assertRaisesRegex(ValueError, "dim.*5"):
      _loss(_task(embedding_dim=5), *_problem(2))


class TwoReplicasTest(tf.test.TestCase, parameterized.TestCase):
  @pytest.fixture(autouse=True)
  def _use(self, two_replicas):
    self.strategy = two_replicas

  @parameterized.parameters(True, False)
  def test_the_bank_takes_the_rows_of_all_replicas(self, cross_replica):
    with self.strategy.scope():
      task = _task(cross_replica=cross_replica, embedding_dim=_DIM)
    # Uneven shares: four rows and two rows.
    batch, cuts = _problem(6), (slice(0, 4), slice(4, 6))

    shares = self.strategy.experimental_distribute_values_from_function(
      lambda context: tuple(
        tf.constant(x[cuts[context.replica_id_in_sync_group]]) for x in batch
      )
    )
    self.strategy.run(lambda share: _loss(task, *share), args=(shares,))
    for bank_ids, embeddings in zip(
      task.bank.ids.values, task.bank.embeddings.values, strict=True
    ):
      self.assertAllEqual(bank_ids[:6], batch[2])
      self.assertAllEqual(embeddings[:6], batch[1])


class ArgumentsTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters(
    ("bank_size", 0),
    ("bank_size", -3),
    ("warmup_steps", -1),
    ("probe_size", -1),
    ("embedding_dim", 0),
  )
  def test_bad_arguments_name_the_value(self, name, value):
    name_in_error = "dim" if name == "embedding_dim" else name
    with self.assertRaisesRegex(ValueError, f"{name_in_error}` = {value}"):
      _task(**{name: value})

  def test_warmup_drift_needs_something_to_watch(self):
    with self.assertRaisesRegex(ValueError, "candidate_encoder"):
      _task(warmup_drift=0.1)
    with self.assertRaisesRegex(ValueError, "probe_size"):
      _task(warmup_drift=0.1, candidate_encoder=_tower(), probe_size=0)
    with self.assertRaisesRegex(ValueError, "warmup_drift` = 0"):
      _task(warmup_drift=0.0, candidate_encoder=_tower())

  def test_probes_need_a_catalogue_of_known_size(self):
    options = dict(
      candidate_counts=None,
      candidate_encoder=lambda ids: tf.ones([len(ids), 2]),
    )
    with self.assertRaisesRegex(ValueError, "probe_size"):
      _task(**options)
    self.assertIsNone(_task(probe_size=0, **options).history)


if __name__ == "__main__":
  tf.test.main()
