"""Optimizers on two replicas match one device.

At each step, replicas have sparse gradients of the same table: for rows that
both use, that one uses, that none uses, and for no row at all.
"""

import numpy as np
import pytest
import tensorflow as tf
from absl.testing import parameterized

from tests.distributed import problems
from xir_tfrs import optimizers

_ROWS, _DIM = 7, 3

# Looked-up rows per step: (first replica, second replica).
_STEPS = (
  ([0, 1, 2], [2, 3]),
  ([4], [4, 4]),
  ([0, 0], [5]),
  ([2], []),
  ([], [1, 0]),
  ([1, 3, 5], [2, 2, 4]),
)


def _optimizer(name):
  if name == "coupled_l2_adam":
    return optimizers.CoupledL2Adam(0.1, l2=0.05)
  schedule = tf.keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.9)
  return optimizers.LazyAdam(schedule)


class TwoReplicasTest(tf.test.TestCase, parameterized.TestCase):
  @pytest.fixture(autouse=True)
  def _use(self, two_replicas):
    self.strategy = two_replicas

  def make(self, name, strategy):
    """(optimizer, table, dense weight, function of a step)."""
    rng = np.random.default_rng(0)
    with strategy.scope():
      table = tf.Variable(rng.normal(size=[_ROWS, _DIM]).astype(np.float32))
      dense = tf.Variable(rng.normal(size=[_DIM]).astype(np.float32))
      optimizer = _optimizer(name)
      optimizer.build([table, dense])

    def on_replica(ids, upto):
      number = tf.distribute.get_replica_context().replica_id_in_sync_group
      ids = ids[upto[number] : upto[number + 1]]
      with tf.GradientTape() as tape:
        rows = tf.gather(table, ids)
        loss = tf.reduce_sum(rows**2 * dense)
      gradients = tape.gradient(loss, [table, dense])
      assert isinstance(gradients[0], tf.IndexedSlices)
      optimizer.apply_gradients(zip(gradients, [table, dense], strict=True))

    @tf.function(
      input_signature=[tf.TensorSpec([None], tf.int64)] * 2, autograph=False
    )
    def step(ids, upto):
      strategy.run(on_replica, args=(ids, upto))

    return optimizer, table, dense, step

  def steps(self, step, strategy, batches):
    for first, second in batches:
      both = len(first) + len(second)
      if strategy.num_replicas_in_sync == 1:
        upto = [0, both]
      else:
        upto = [0, len(first), both]
      step(tf.constant(first + second, tf.int64), tf.constant(upto, tf.int64))

  def assert_same(self, one, two):
    optimizer_1, table_1, dense_1, _ = one
    optimizer_2, table_2, dense_2, _ = two
    pairs = zip(
      [table_1, dense_1, *optimizer_1.variables],
      [table_2, dense_2, *optimizer_2.variables],
      strict=True,
    )
    for first, second in pairs:
      if first.dtype.is_integer:
        self.assertAllEqual(first, second, first.name)
      else:
        self.assertAllClose(first, second, 1e-5, 1e-6, first.name)
    self.assertEqual(
      problems.apart([table_2, dense_2, *optimizer_2.variables]), 0.0
    )

  @parameterized.parameters("lazy_adam", "coupled_l2_adam")
  def test_two_replicas_are_one_device(self, name):
    default = tf.distribute.get_strategy()
    one, two = self.make(name, default), self.make(name, self.strategy)
    for count, batch in enumerate(_STEPS, start=1):
      self.steps(one[-1], default, [batch])
      self.steps(two[-1], self.strategy, [batch])
      self.assert_same(one, two)
      self.assertAllEqual(two[0].iterations, count)

  def test_each_row_remembers_the_step_it_was_last_touched_at(self):
    two = self.make("lazy_adam", self.strategy)
    self.steps(two[-1], self.strategy, _STEPS)
    (last,) = [
      v
      for v in two[0].variables
      if "last_touched" in v.name and v.shape == [_ROWS]
    ]
    # The steps of each row in `_STEPS`, from 1; row 6 has none.
    for copy in last.values:
      self.assertAllEqual(copy, [5, 6, 6, 6, 6, 6, 0])

  @parameterized.product(
    name=("lazy_adam", "coupled_l2_adam"), onto=("one", "two")
  )
  def test_a_checkpoint_of_two_replicas_goes_on_anywhere(self, name, onto):
    default = tf.distribute.get_strategy()
    before = self.make(name, self.strategy)
    self.steps(before[-1], self.strategy, _STEPS[:3])
    path = tf.train.Checkpoint(
      optimizer=before[0], table=before[1], dense=before[2]
    ).save(self.get_temp_dir() + "/ckpt")

    strategy = default if onto == "one" else self.strategy
    after = self.make(name, strategy)
    tf.train.Checkpoint(
      optimizer=after[0], table=after[1], dense=after[2]
    ).restore(path).assert_consumed()
    self.steps(after[-1], strategy, _STEPS[3:])
    whole = self.make(name, default)
    self.steps(whole[-1], default, _STEPS)
    if onto == "one":
      self.assertAllClose(whole[1], after[1], rtol=1e-5, atol=1e-6)
    else:
      self.assert_same(whole, after)


if __name__ == "__main__":
  tf.test.main()
