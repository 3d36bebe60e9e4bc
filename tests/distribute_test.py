"""Tests of xir_tfrs.distribute, on two logical CPUs."""

import numpy as np
import pytest
import tensorflow as tf
from absl.testing import parameterized

from xir_tfrs import distribute


class OutsideAStrategyTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters(False, True)
  def test_everything_is_the_identity(self, graph):
    def compute(x):
      return (
        distribute.all_gather(x),
        distribute.all_reduce_sum(x),
        distribute.num_replicas(),
        distribute.replica_id(),
      )

    x = tf.constant([[1.0, 2.0], [3.0, 4.0]])
    gathered, total, replicas, replica = (
      tf.function(compute) if graph else compute
    )(x)
    self.assertAllEqual(gathered, x)
    self.assertAllEqual(total, x)
    self.assertAllEqual(replicas, 1)
    self.assertAllEqual(replica, 0)

  def test_one_replica_strategy(self):
    strategy = tf.distribute.OneDeviceStrategy("CPU:0")
    x = tf.constant([1.0, 2.0])
    self.assertAllEqual(strategy.run(distribute.all_gather, (x,)), x)
    self.assertAllEqual(strategy.run(distribute.all_reduce_sum, (x,)), x)


class TwoReplicasTest(tf.test.TestCase, parameterized.TestCase):
  @pytest.fixture(autouse=True)
  def _use(self, two_replicas):
    self.strategy = two_replicas

  def run_on_both(self, function, *per_replica_values):
    """Results of `function` on 2 replicas, given a pair per argument."""
    arguments = [
      self.strategy.experimental_distribute_values_from_function(
        lambda context, pair=pair: pair[context.replica_id_in_sync_group]
      )
      for pair in per_replica_values
    ]

    @tf.function
    def step(*arguments):
      return self.strategy.run(function, args=arguments)

    return self.strategy.experimental_local_results(step(*arguments))

  @parameterized.parameters(
    tf.bfloat16, tf.float16, tf.float32, tf.float64, tf.int64
  )
  def test_all_gather_is_in_replica_order_everywhere(self, dtype):
    pair = tf.constant([[1], [2]], dtype), tf.constant([[3], [4]], dtype)
    for gathered in self.run_on_both(distribute.all_gather, pair):
      self.assertEqual(gathered.dtype, dtype)
      self.assertAllEqual(gathered, [[1], [2], [3], [4]])

  def test_all_gather_of_uneven_rows(self):
    pair = tf.constant([1.0, 2.0, 3.0]), tf.constant([4.0])
    for gathered in self.run_on_both(distribute.all_gather, pair):
      self.assertAllEqual(gathered, [1.0, 2.0, 3.0, 4.0])

  def test_all_gather_of_a_captured_tensor(self):
    # tf.distribute itself returns the local value here, which is half as long.
    captured = tf.constant([1.0, 2.0])
    for gathered in self.run_on_both(lambda: distribute.all_gather(captured)):
      self.assertAllEqual(gathered, [1.0, 2.0, 1.0, 2.0])

  def test_all_reduce_sum(self):
    for total in self.run_on_both(
      distribute.all_reduce_sum,
      (tf.constant([1.0, 2.0]), tf.constant([3.0, 5.0])),
    ):
      self.assertAllEqual(total, [4.0, 7.0])
    for total in self.run_on_both(
      distribute.all_reduce_sum,
      (tf.constant(2**40, tf.int64), tf.constant(1, tf.int64)),
    ):
      self.assertAllEqual(total, 2**40 + 1)

  def test_replica_id_and_number(self):
    replicas = self.run_on_both(
      lambda: (
        tf.convert_to_tensor(distribute.replica_id()),
        tf.convert_to_tensor(distribute.num_replicas()),
      )
    )
    self.assertAllEqual(replicas, [(0, 2), (1, 2)])

  def test_gradient_through_all_gather_is_the_sum_over_replicas(self):
    # Loss of replica r: sum over the gathered x of a_r x^2, a = (1, 10). d/dx
    # of the sum of both losses: 2 (1 + 10) x = 22 x, on both replicas.
    def gradient(x, a):
      with tf.GradientTape() as tape:
        tape.watch(x)
        loss = a * tf.reduce_sum(distribute.all_gather(x) ** 2)
      return tape.gradient(loss, x)

    first, second = self.run_on_both(
      gradient,
      (tf.constant([1.0, 2.0]), tf.constant([3.0])),
      (tf.constant(1.0), tf.constant(10.0)),
    )
    self.assertAllClose(first, [22.0, 44.0])
    self.assertAllClose(second, [66.0])

  @parameterized.parameters(0, 1, 2, 5)
  def test_encode_together(self, size):
    # Replica r weights row i by a_r: the gradient of the table, summed over
    # replicas, is sum_r a_r at each id, as if each had encoded all rows.
    table = tf.reshape(tf.range(20.0), [10, 2])
    ids = tf.constant([7, 0, 3, 3, 9][:size], tf.int64)

    def gradient(weight):
      encoded = []
      with tf.GradientTape() as tape:
        tape.watch(table)

        def encode(ids):
          encoded.append(ids)
          return tf.gather(table, ids)

        embeddings = distribute.encode_together(encode, ids)
        loss = weight * tf.reduce_sum(embeddings)
      rows = tf.size(encoded[-1])
      grads = tape.gradient(
        loss, table, unconnected_gradients=tf.UnconnectedGradients.ZERO
      )
      return embeddings, tf.convert_to_tensor(grads), rows

    (first, a, rows_a), (second, b, rows_b) = self.run_on_both(
      gradient, (tf.constant(1.0), tf.constant(10.0))
    )
    self.assertAllEqual(first, tf.gather(table, ids))
    self.assertAllEqual(second, first)
    expected = np.zeros([10, 2])
    np.add.at(expected, ids.numpy(), 11.0)
    self.assertAllClose(a + b, expected)
    # No replica does the work of the other.
    self.assertEqual(rows_a + rows_b, size)


if __name__ == "__main__":
  tf.test.main()
