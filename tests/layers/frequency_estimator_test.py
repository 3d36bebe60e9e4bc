"""Tests of xir_tfrs.layers.FrequencyEstimator."""

import numpy as np
import pytest
import tensorflow as tf
from absl.testing import parameterized

from tests import reference
from xir_tfrs import distribute, layers

_EXTREME = (0, -1, 2**62, 2**63 - 1, -(2**63), 17)


def _estimator(num_buckets=997, **kwargs):
  return layers.FrequencyEstimator(num_buckets=num_buckets, **kwargs)


def _batches(number, size=12, seed=0):
  """Batches of skewed ids with many repeats."""
  rng = np.random.default_rng(seed)
  return [rng.geometric(0.15, size) * 2**40 - 2**41 for _ in range(number)]


def _update(estimator, ids):
  estimator.update(
    ids if tf.is_tensor(ids) else tf.constant(np.asarray(ids, np.int64))
  )


def _state(estimator):
  return {v.name: v.numpy() for v in estimator.variables}


def _tables(variable, num_hashes=2):
  return variable.numpy().reshape([num_hashes, -1])


class EstimateTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.product(
    every=(1, 3), learning_rate=(0.01, 0.2, 1.0), initial_gap=(1.0, 25.0)
  )
  def test_every_kth_batch_tends_to_k_geometrically(
    self, every, learning_rate, initial_gap
  ):
    # ALGORITHMS 4.5: B_n = k + (1 - alpha)^n (B_0 - k).
    estimator = _estimator(learning_rate=learning_rate, initial_gap=initial_gap)
    update = tf.function(estimator.update)
    for step in range(1, 40 * every + 1):
      update(tf.constant([5 if step % every == 0 else 6], tf.int64))
      if step % every == 0:
        left = (1 - learning_rate) ** (step // every)
        gap = every + left * (initial_gap - every)
        self.assertAllClose(estimator.per_batch([5]), [1 / gap], rtol=1e-5)

  @parameterized.parameters(1, 4)
  def test_without_an_initial_gap_k_is_known_at_once(self, every):
    estimator = _estimator()
    for step in range(1, 5 * every + 1):
      _update(estimator, [5 if step % every == 0 else 6])
      if step % every == 0:
        self.assertAllClose(estimator.probability([5]), [1 / every])

  def test_running_mean_turns_into_the_learning_rate(self):
    # In batches 1, 2 and 5: gaps 1, 1, 3. Means 1, 1, then of weight
    # max(1/3, 1/2): 1/2 * 1 + 1/2 * 3.
    estimator = _estimator(learning_rate=0.5)
    for ids in ([5], [5], [6], [6], [5]):
      _update(estimator, ids)
    self.assertAllClose(estimator.per_batch([5]), [1 / 2])
    # With a low learning rate, the mean of all three.
    estimator = _estimator(learning_rate=0.01)
    for ids in ([5], [5], [6], [6], [5]):
      _update(estimator, ids)
    self.assertAllClose(estimator.per_batch([5]), [3 / 5])

  @parameterized.product(
    num_buckets=(1, 3, 101),
    num_hashes=(1, 3),
    initial_gap=(None, 7.0),
    count_appearances=(False, True),
  )
  def test_reference(self, num_buckets, **options):
    # Few cells: different ids share one in most batches.
    batches = _batches(25)
    options["learning_rate"] = 0.1
    estimator = _estimator(num_buckets, **options)
    for ids in batches:
      _update(estimator, ids)
    num_hashes = options.pop("num_hashes")
    gaps, last_seen = reference.frequency_tables(
      batches, estimator.hash_coefficients.numpy(), num_buckets, **options
    )
    self.assertAllClose(_tables(estimator.gaps, num_hashes), gaps, rtol=1e-5)
    self.assertAllEqual(_tables(estimator.last_seen, num_hashes), last_seen)
    self.assertEqual(int(estimator.step), 25)
    ids = np.unique(np.concatenate(batches))
    longest = [
      max(
        gaps[table][reference.hash_cell(i, hashes, num_buckets)]
        for table, hashes in enumerate(estimator.hash_coefficients.numpy())
      )
      for i in ids
    ]
    self.assertAllClose(
      estimator.per_batch(ids), 1 / np.array(longest), rtol=1e-5
    )

  def test_four_appearances_per_batch(self):
    # The paper's p is the probability of being in the batch; TFRS issue 635.
    paper, counting = _estimator(), _estimator(count_appearances=True)
    for estimator in (paper, counting):
      for _ in range(10):
        _update(estimator, [5, 5, 6, 5, 5])
    self.assertAllClose(paper.per_batch([5, 6]), [1.0, 1.0])
    self.assertAllClose(counting.per_batch([5, 6]), [4.0, 1.0])
    self.assertAllClose(counting.probability([5, 6]), [1.0, 1.0])
    self.assertAllClose(
      counting.log_shares([5, 6], gathered=True, training=False, num_rows=5),
      np.log([4 / 5, 1 / 5]),
    )

  def test_unseen_candidates(self):
    estimator = _estimator()
    self.assertAllEqual(estimator.probability([1, 2]), [1.0, 1.0])
    for _ in range(8):
      _update(estimator, [1])
    # Absent from 8 batches.
    self.assertAllClose(estimator.probability([1, 2]), [1.0, 1 / 8])
    estimator = _estimator(initial_gap=50.0)
    self.assertAllClose(estimator.probability([1, 2]), [1 / 50, 1 / 50])

  def test_the_least_disturbed_table_counts(self):
    # Two ids that share a cell of one table only.
    estimator = _estimator(num_buckets=10)
    cells = np.array(
      [
        [reference.hash_cell(i, hashes, 10) for i in range(100)]
        for hashes in estimator.hash_coefficients.numpy()
      ]
    )
    rare = next(
      i
      for i in range(1, 100)
      if (cells[0, i] == cells[0, 0]) != (cells[1, i] == cells[1, 0])
    )
    for step in range(1, 31):
      _update(estimator, [0, rare] if step % 10 == 0 else [0])
    self.assertAllClose(estimator.per_batch([0, rare]), [1.0, 1 / 10])
    gaps = _tables(estimator.gaps)
    self.assertEqual(
      sorted(gaps[[0, 1], cells[:, rare]].round(5).tolist()), [1.0, 10.0]
    )

  @parameterized.parameters(False, True)
  def test_order_and_shares_of_a_batch_do_not_matter(self, count_appearances):
    # One cell per three ids: identical also when ids share cells.
    one, other = (
      _estimator(4, count_appearances=count_appearances) for _ in range(2)
    )
    rng = np.random.default_rng(1)
    for ids in _batches(10):
      _update(one, ids)
      _update(other, rng.permutation(ids))
    for name, value in _state(one).items():
      self.assertAllEqual(_state(other)[name], value)


class IdsTest(tf.test.TestCase, parameterized.TestCase):
  def test_extreme_ids_are_learnt_apart(self):
    estimator = _estimator(num_buckets=2**16)
    for step in range(1, 13):
      _update(
        estimator, [i for k, i in enumerate(_EXTREME) if not step % (k + 1)]
      )
    self.assertAllClose(
      estimator.per_batch(np.array(_EXTREME)),
      [1 / k for k in range(1, len(_EXTREME) + 1)],
    )

  def test_strings(self):
    ids = ["", "a", "ä", "日本", "a" * 1000]
    estimator = _estimator(num_buckets=2**16)
    for step in range(1, 21):
      _update(
        estimator,
        tf.constant([i for k, i in enumerate(ids) if step % (k + 1) == 0]),
      )
    expected = [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5]
    self.assertAllClose(estimator.per_batch(ids), expected)
    self.assertAllClose(estimator.per_batch(np.array(ids, object)), expected)

  def test_int32_and_int64_are_the_same_ids(self):
    estimator = _estimator()
    for dtype in (tf.int32, tf.int64):
      _update(estimator, tf.constant([5], dtype))
    self.assertAllEqual(estimator.per_batch(tf.constant([5], tf.int32)), [1.0])
    self.assertEqual(np.count_nonzero(_tables(estimator.gaps)), 2)

  def test_a_batch_with_a_single_id(self):
    estimator = _estimator(initial_gap=9.0, learning_rate=0.5)
    _update(estimator, [3] * 500)
    # One appearance, not 500: 9/2 + 1/2.
    self.assertAllClose(estimator.per_batch([3]), [1 / 5])

  @parameterized.parameters(None, 9.0)
  def test_a_batch_of_no_rows_is_no_step(self, initial_gap):
    estimator = _estimator(initial_gap=initial_gap)
    _update(estimator, [3, 4])
    before = _state(estimator)
    log_shares = estimator.log_shares(
      tf.zeros([0], tf.int64), gathered=True, training=True
    )
    self.assertEqual(log_shares.shape, [0])
    for name, value in before.items():
      self.assertAllEqual(_state(estimator)[name], value)


class LogSharesTest(tf.test.TestCase, parameterized.TestCase):
  def test_learns_then_reads(self):
    estimator = _estimator(initial_gap=8.0, learning_rate=0.25)
    # 3/4 * 8 + 1/4 * 1 = 6.25, of 4 rows; then 3/4 * 6.25 + 1/4.
    shares = estimator.log_shares([5, 6, 5, 7], gathered=True, training=True)
    self.assertEqual(shares.dtype, tf.float32)
    self.assertAllClose(shares, [-np.log(6.25 * 4)] * 4)
    shares = estimator.log_shares([5, 6], gathered=True, training=True)
    self.assertAllClose(shares, [-np.log(4.9375 * 2)] * 2)

  def test_read_before_update(self):
    estimator = _estimator(
      initial_gap=8.0, learning_rate=0.25, read_before_update=True
    )
    shares = estimator.log_shares([5, 6, 5, 7], gathered=True, training=True)
    self.assertAllClose(shares, [-np.log(8.0 * 4)] * 4)
    shares = estimator.log_shares([5, 8], gathered=True, training=True)
    self.assertAllClose(shares, -np.log([6.25 * 2, 8.0 * 2]))

  def test_evaluation_moves_nothing(self):
    estimator = _estimator()
    _update(estimator, [5, 6])
    before = _state(estimator)
    estimator.log_shares([5, 9], gathered=True, training=False)
    estimator.error([5, 6], [1, 1])
    estimator.readout()
    for name, value in before.items():
      self.assertAllEqual(_state(estimator)[name], value)

  def test_ids_outside_of_the_table(self):
    estimator = _estimator()
    for _ in range(10):
      _update(estimator, [5])
    self.assertAllClose(
      estimator.log_shares(
        [5, 6, 7],
        gathered=True,
        training=False,
        num_rows=tf.constant(4, tf.int64),
      ),
      -np.log([4.0, 40.0, 40.0]),
    )
    with self.assertRaisesRegex(ValueError, "num_rows"):
      estimator.log_shares([5], gathered=True, training=True, num_rows=4)

  def test_a_shorter_batch_changes_a_constant_only(self):
    # If shares were clipped at 1, the correction of candidate 5 would be too
    # small.
    estimator = _estimator(count_appearances=True)
    _update(estimator, [5, 5, 5, 5, 5, 6])
    shares = estimator.log_shares([5, 6], gathered=True, training=False)
    self.assertAllClose(shares, np.log([5 / 2, 1 / 2]))

  def test_the_papers_probability_is_at_most_one(self):
    estimator = _estimator(initial_gap=0.25)
    self.assertAllClose(estimator.per_batch([5]), [4.0])
    self.assertAllClose(estimator.probability([5]), [1.0])
    shares = estimator.log_shares([5, 6], gathered=True, training=False)
    self.assertAllClose(shares, -np.log([2.0, 2.0]))

  def test_no_gradient(self):
    estimator = _estimator()
    with tf.GradientTape() as tape:
      tape.watch(estimator.gaps)
      loss = tf.reduce_sum(
        estimator.log_shares([5, 6], gathered=True, training=False)
      )
    self.assertIsNone(tape.gradient(loss, estimator.gaps))
    self.assertEmpty(estimator.trainable_variables)


class WarmStartTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.product(
    strings=(False, True), count=(False, True), initial_gap=(None, 3.0)
  )
  def test_true_shares_at_once(self, strings, count, initial_gap):
    counts = np.array([600, 300, 90, 10])
    ids = [f"item {i}" for i in range(4)] if strings else 2**62 - np.arange(4)
    estimator = _estimator(count_appearances=count, initial_gap=initial_gap)
    _update(estimator, [77] * 5)
    estimator.warm_start(ids, counts, batch_size=20)
    q = counts / 1000
    self.assertAllClose(
      estimator.per_batch(ids),
      20 * q if count else 1 - (1 - q) ** 20,
      rtol=1e-5,
    )
    # Unseen candidates, such as 77, were in none of 50 batches.
    self.assertEqual(int(estimator.step), 50)
    self.assertAllClose(estimator.per_batch([77]), [1 / (initial_gap or 50.0)])
    if count:
      error = estimator.error(ids, counts)
      self.assertAllClose(error["log_correlation"], 1.0)
      self.assertAllClose(error["candidate_log_error"], 0.0, atol=1e-5)

  def test_learning_continues_after_a_warm_start(self):
    # q = 1/2 in batches of one: gap 2, as the mean over 50 batches. The next
    # gap is 1, with weight 1/51 in a running mean, or 0.01.
    for options, gap in (
      ({}, (50 * 2 + 1) / 51),
      ({"initial_gap": 3.0}, 0.99 * 2 + 0.01),
    ):
      estimator = _estimator(**options)
      estimator.warm_start([5, 6], [50, 50], batch_size=1)
      _update(estimator, [5])
      self.assertAllClose(estimator.per_batch([5, 6]), [1 / gap, 1 / 2])

  def test_candidates_in_one_cell_add_up(self):
    estimator = _estimator(num_buckets=1, count_appearances=True)
    estimator.warm_start([5, 6, 5], [10, 20, 30], batch_size=6, total_rows=120)
    self.assertAllClose(estimator.per_batch([5]), [3.0])

  def test_part_of_the_counts(self):
    estimator = _estimator()
    estimator.warm_start([5], [50], batch_size=1, total_rows=200)
    self.assertAllClose(estimator.per_batch([5, 6]), [1 / 4, 1 / 200])

  @parameterized.parameters(
    ({"counts": [1]}, r"\(2,\) and \(1,\)"),
    ({"counts": [[1, 2]]}, r"\(1, 2\)"),
    ({"counts": [3, -2]}, "count of -2"),
    ({"counts": [0, 0]}, "sum of 0"),
    ({"ids": [], "counts": []}, "sum of 0"),
    ({"total_rows": 2}, "`total_rows` = 2"),
    ({"batch_size": 0}, "`batch_size` = 0"),
  )
  def test_bad_arguments(self, arguments, message):
    arguments = {"ids": [5, 6], "counts": [1, 2], "batch_size": 4} | arguments
    with self.assertRaisesRegex(ValueError, message):
      _estimator().warm_start(**arguments)


class StateTest(tf.test.TestCase, parameterized.TestCase):
  def test_variables_are_named_untrained_and_aggregated(self):
    estimator = _estimator()
    names = {v.name.split("/")[-1] for v in estimator.variables}
    self.assertEqual(
      names,
      {
        f"{name}:0"
        for name in (
          "gaps",
          "last_seen",
          "appearances",
          "step",
          "hash_coefficients",
        )
      },
    )
    for variable in estimator.variables:
      self.assertFalse(variable.trainable)
      self.assertEqual(
        variable.aggregation, tf.VariableAggregation.ONLY_FIRST_REPLICA
      )
    self.assertEqual(estimator.last_seen.dtype, tf.int64)
    self.assertEqual(estimator.step.dtype, tf.int64)

  @parameterized.parameters(None, 9.0)
  def test_checkpoint_continues_as_if_never_stopped(self, initial_gap):
    batches = _batches(8)
    estimator = _estimator(50, initial_gap=initial_gap, seed=1)
    for ids in batches[:4]:
      _update(estimator, ids)
    path = tf.train.Checkpoint(layer=estimator).save(
      self.get_temp_dir() + "/ckpt"
    )
    # With another seed, because the hash functions are saved with the tables.
    restored = _estimator(50, initial_gap=initial_gap, seed=2)
    tf.train.Checkpoint(layer=restored).restore(path).assert_consumed()
    for ids in batches[4:]:
      _update(estimator, ids)
      _update(restored, ids)
    for name, value in _state(estimator).items():
      self.assertAllEqual(_state(restored)[name], value)

  def test_reset_is_a_new_estimator(self):
    for options in ({}, {"initial_gap": 9.0}):
      estimator, new = _estimator(**options), _estimator(**options)
      _update(estimator, [1, 2])
      estimator.reset()
      for name, value in _state(new).items():
        self.assertAllEqual(_state(estimator)[name], value)

  def test_under_tf_function_with_unknown_batch_size(self):
    eager, traced = _estimator(20), _estimator(20)
    step = tf.function(
      lambda ids: traced.log_shares(ids, gathered=False, training=True),
      input_signature=[tf.TensorSpec([None], tf.int64)],
    )
    for ids in ([3, 1, 3], [], [9, 8, 7, 6, 5], [3]):
      ids = tf.constant(ids, tf.int64)
      self.assertAllEqual(
        step(ids), eager.log_shares(ids, gathered=False, training=True)
      )
    for name, value in _state(eager).items():
      self.assertAllEqual(_state(traced)[name], value)

  def test_readout(self):
    estimator = _estimator(num_buckets=50)
    self.assertEqual(int(estimator.readout()["frequency_steps"]), 0)
    for _ in range(3):
      _update(estimator, [4])
    readout = estimator.readout()
    self.assertEqual(int(readout["frequency_steps"]), 3)
    self.assertAllClose(readout["frequency_cells_hit"], 1 / 50)

  def test_config_round_trip(self):
    options = {
      "num_buckets": 50,
      "num_hashes": 3,
      "learning_rate": 0.2,
      "initial_gap": 4.5,
      "count_appearances": True,
      "read_before_update": True,
      "seed": 7,
      "name": "a_name",
    }
    estimator = layers.FrequencyEstimator(**options)
    self.assertEqual(estimator.get_config(), options)
    again = layers.FrequencyEstimator.from_config(estimator.get_config())
    for ids in _batches(3):
      self.assertAllEqual(
        *(
          e.log_shares(ids, gathered=True, training=True)
          for e in (estimator, again)
        )
      )

  @parameterized.parameters(
    ("num_buckets", 0),
    ("num_buckets", -5),
    ("num_buckets", 2**31 - 1),
    ("num_hashes", 0),
    ("learning_rate", 0.0),
    ("learning_rate", 1.5),
    ("initial_gap", 0.0),
    ("initial_gap", -2.0),
  )
  def test_bad_arguments(self, name, value):
    with self.assertRaisesRegex(ValueError, f"{name}.*{value}"):
      _estimator(**{name: value})


class TwoReplicasTest(tf.test.TestCase, parameterized.TestCase):
  """Two replicas with half of the rows each match one replica with all."""

  @pytest.fixture(autouse=True)
  def _use(self, two_replicas):
    self.strategy = two_replicas

  def run_both(self, batches, gathered, cut, **options):
    """Returns (estimators, log shares) of one replica and of two."""
    one = _estimator(20, **options)
    with self.strategy.scope():
      two = _estimator(20, **options)

    @tf.function(autograph=False)
    def step(ids):
      def replica(ids):
        if gathered:
          ids = distribute.all_gather(ids)
        return two.log_shares(ids, gathered=gathered, training=True)

      return self.strategy.run(replica, args=(ids,))

    for ids in batches:
      expected = one.log_shares(ids, gathered=True, training=True)
      parts = (ids[:cut], ids[cut:])
      shares = step(
        self.strategy.experimental_distribute_values_from_function(
          lambda context, parts=parts: tf.constant(
            parts[context.replica_id_in_sync_group]
          )
        )
      ).values
      if not gathered:
        shares = [tf.concat(shares, 0)]
      for of_replica in shares:
        self.assertAllEqual(of_replica, expected)
    return one, two

  def assert_same_state(self, one, two):
    for name, variable in ((v.name, v) for v in two.variables):
      for copy in variable.values:
        self.assertAllEqual(copy, _state(one)[name])

  @parameterized.product(
    gathered=(False, True),
    count_appearances=(False, True),
    read_before_update=(False, True),
  )
  def test_state_is_the_same_bit_for_bit(self, gathered, **options):
    self.assert_same_state(
      *self.run_both(_batches(5), gathered, cut=5, **options)
    )

  def test_strings_of_this_replica(self):
    batches = [[f"id {i}" for i in ids] for ids in _batches(3)]
    self.assert_same_state(*self.run_both(batches, gathered=False, cut=6))

  def test_a_replica_without_rows(self):
    self.assert_same_state(
      *self.run_both(_batches(3), gathered=False, cut=12, initial_gap=4.0)
    )

  def test_warm_start(self):
    one = _estimator()
    with self.strategy.scope():
      two = _estimator()
      two.warm_start([1, 2], [3, 4], batch_size=2)
    one.warm_start([1, 2], [3, 4], batch_size=2)
    self.assert_same_state(one, two)
    two.reset()
    two.warm_start([1, 2], [3, 4], batch_size=2)
    self.assert_same_state(one, two)


if __name__ == "__main__":
  tf.test.main()
