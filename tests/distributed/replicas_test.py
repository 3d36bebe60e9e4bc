"""Behaviour on two replicas in one process, on two logical CPUs."""

import numpy as np
import pytest
import tensorflow as tf
from absl.testing import parameterized

from tests.distributed import problems
from xir_tfrs import layers, optimizers


def _tensors(features):
  return {name: tf.constant(column) for name, column in features.items()}


def _rows(features, first, end):
  return {name: column[first:end] for name, column in features.items()}


def _cache(model):
  (cache,) = [m for m in model.submodules if type(m) is layers.CandidateCache]
  return cache


class TwoReplicasTest(tf.test.TestCase, parameterized.TestCase):
  @pytest.fixture(autouse=True)
  def _use(self, two_replicas):
    self.strategy = two_replicas

  def build(self, method, strategy=None, **kwargs):
    strategy = strategy or self.strategy
    with strategy.scope():
      return problems.build(method, **kwargs)

  def shared_out(self, features, cut):
    """Rows [0, cut) for the first replica and the others for the second."""
    parts = ((0, cut), (cut, len(features["query_id"])))
    return self.strategy.experimental_distribute_values_from_function(
      lambda context: _tensors(
        _rows(features, *parts[context.replica_id_in_sync_group])
      )
    )

  def losses(self, model, features, cut, training=True):
    """Loss of each replica."""
    shares = self.strategy.run(
      lambda own: model.compute_loss(own, training=training),
      args=(self.shared_out(features, cut),),
    )
    return [float(x) for x in self.strategy.experimental_local_results(shares)]


class LocalNegativesTest(TwoReplicasTest):
  # conformance/tasks_test.py has all methods, with shares of the same size.
  @parameterized.parameters("ssl_pop", "xir_expected")
  def test_each_replica_has_the_loss_of_its_rows_alone(self, method):
    # 3 and 5 of 8 rows: their shares of the global mean.
    features = problems.batch(8, seed=0)
    got = self.losses(
      self.build(method, cross_replica=False), features, 3, training=False
    )
    model = problems.build(method)
    expected = [
      rows / 8 * float(model.compute_loss(_tensors(own), training=False))
      for rows, own in (
        (3, _rows(features, 0, 3)),
        (5, _rows(features, 3, 8)),
      )
    ]
    self.assertAllClose(got, expected, rtol=1e-5)
    # It differs from that of the global pool.
    self.assertNotAllClose(
      got, self.losses(self.build(method), features, 3, training=False), 1e-3
    )

  def test_draws_from_two_pools_are_counted_once_each(self):
    model = self.build("xir", cross_replica=False)
    self.losses(model, problems.batch(8, seed=0), 3)
    counts = _cache(model).occurrence_counts
    # 8 rows draw 6 from their batch and 6 from the cache.
    self.assertEqual(float(tf.reduce_sum(counts)), 8 * 12)
    self.assertEqual(problems.apart(model.variables), 0.0)


class CacheTest(TwoReplicasTest):
  @parameterized.parameters(
    {"cache_scope": "all", "joint_partition": True},
    {"occurrence_decay": 0.9},
    {"cache_policy": "recency", "joint_partition": True},
  )
  def test_options_of_the_cache(self, **options):
    one = self.build("xir", tf.distribute.get_strategy(), **options)
    two = self.build("xir", **options)
    for number, cut in enumerate((5, 8)):
      features = problems.batch(8, seed=number)
      loss = one.compute_loss(_tensors(features), training=True)
      self.assertAllClose(sum(self.losses(two, features, cut)), loss, 1e-5)
      self.assertAllEqual(_cache(one).ids, _cache(two).ids)
      self.assertAllClose(
        _cache(one).occurrence_counts,
        _cache(two).occurrence_counts,
        rtol=1e-12,
        atol=0,
      )
    self.assertEqual(problems.apart(two.variables), 0.0)

  def test_counts_beyond_float32_stay_exact(self):
    # 2^24 + 1 is the first integer that float32 cannot represent, and 2^53 + 1
    # the first that float64 cannot.
    base = 2.0 ** np.arange(24, 34) + 1
    batches = [problems.batch(8, seed=number) for number in range(2)]
    models = [self.build("xir", tf.distribute.get_strategy())]
    models.append(self.build("xir"))
    for model in models:
      _cache(model).occurrence_counts.assign(base)
    for features in batches:
      models[0].compute_loss(_tensors(features), training=True)
      self.losses(models[1], features, 5)
    path = tf.train.Checkpoint(model=models[1]).save(
      self.get_temp_dir() + "/ckpt"
    )
    models.append(self.build("xir", tf.distribute.get_strategy()))
    tf.train.Checkpoint(model=models[2]).restore(path).assert_consumed()
    counts = [_cache(model).occurrence_counts.numpy() for model in models]
    self.assertEqual((counts[0] - base).sum(), 2 * 8 * 12)
    self.assertAllEqual(counts[0], counts[1])
    self.assertAllEqual(counts[0], counts[2])
    self.assertAllEqual(_cache(models[0]).ids, _cache(models[2]).ids)


class MixedPrecisionTest(TwoReplicasTest):
  @parameterized.parameters(
    ("ssl_pop", "mixed_bfloat16"), ("xir", "mixed_float16")
  )
  def test_two_replicas_are_one_device(self, method, policy):
    tf.keras.mixed_precision.set_global_policy(policy)
    features = problems.batch(8, seed=0)
    one = self.build(method, tf.distribute.get_strategy())
    two = self.build(method)
    tower = two.candidate_tower(tf.constant([1], tf.int64))
    self.assertEqual(tower.dtype.name, policy.removeprefix("mixed_"))

    def gradients(model, own):
      with tf.GradientTape() as tape:
        loss = model.compute_loss(own, training=True)
      return loss, [
        tf.convert_to_tensor(g)
        for g in tape.gradient(loss, model.trainable_variables)
      ]

    loss, expected = gradients(one, _tensors(features))
    shares, parts = self.strategy.run(
      lambda own: gradients(two, own), args=(self.shared_out(features, 3),)
    )
    self.assertAllClose(
      self.strategy.reduce("SUM", shares, axis=None), loss, rtol=1e-5
    )
    # Each replica's gradients were rounded to the policy's precision.
    atol = 1e-3 if policy == "mixed_float16" else 1e-2
    for part, whole in zip(parts, expected, strict=True):
      total = self.strategy.reduce("SUM", part, axis=None)
      self.assertAllClose(total, whole, rtol=0, atol=atol)


class LoopTest(TwoReplicasTest):
  def test_a_custom_training_loop(self):
    models = []
    for strategy in (tf.distribute.get_strategy(), self.strategy):
      with strategy.scope():
        model = problems.build("ssl_pop")
        model.compile(optimizers.LazyAdam(0.05))
        model.optimizer.build(model.trainable_variables)
      dataset = strategy.experimental_distribute_dataset(
        tf.data.Dataset.from_tensor_slices(problems.batch(24, 0)).batch(8)
      )

      @tf.function(autograph=False)
      def step(features, strategy=strategy, model=model):
        strategy.run(model.train_step, args=(features,))

      for features in dataset:
        step(features)
      models.append(model)
    one, two = models
    self.assertAllEqual(two.optimizer.iterations, 3)
    for first, second in zip(one.variables, two.variables, strict=True):
      if first.dtype.is_integer or first.dtype == tf.float64:
        self.assertAllEqual(first, second, first.name)
      else:
        self.assertAllClose(first, second, 1e-5, 1e-6, first.name)


del TwoReplicasTest  # Has no tests of its own.

if __name__ == "__main__":
  tf.test.main()
