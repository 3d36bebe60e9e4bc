"""Optimizers, compared with Adam and with their formulas."""

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from xir_tfrs import optimizers


def table(rows=6, dim=3):
  values = np.random.default_rng(0).normal(size=(rows, dim))
  return tf.Variable(values.astype(np.float32))


def step(optimizer, variable, ids):
  """A step on the weighted sum of squares of looked-up rows."""
  with tf.GradientTape() as tape:
    rows = tf.gather(variable, ids)
    loss = tf.reduce_sum(rows**2 * tf.constant([1.0, 2.0, 3.0]))
  optimizer.apply_gradients([(tape.gradient(loss, variable), variable)])


def steps(optimizer, variable, batches):
  for ids in batches:
    step(optimizer, variable, ids)
  return variable.numpy()


class LazyAdamTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters(False, True)
  def test_is_adam_where_all_rows_are_touched(self, in_graph):
    batches = [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0, 0, 0], [1, 2, 3, 4, 5, 0]]
    schedule = tf.keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)
    results = []
    for make in (optimizers.LazyAdam, tf.keras.optimizers.Adam):
      optimizer, variable = make(schedule), table()
      optimizer.build([variable])
      run = tf.function(step) if in_graph else step
      for ids in batches:
        run(optimizer, variable, tf.constant(ids))
      results.append(variable.numpy())
    self.assertAllClose(*results, rtol=1e-5, atol=1e-6)

  @parameterized.parameters(False, True)
  def test_compiled_once_whatever_the_number_of_distinct_rows(self, vector):
    batches = [[0, 0, 0, 5], [1, 2, 3, 4], [5, 4, 5, 4], [2, 0, 2, 0]]
    results = []
    for jit in (False, True):
      variable = tf.Variable(table()[:, 0] if vector else table())
      optimizer = optimizers.LazyAdam(0.1)
      optimizer.build([variable])

      @tf.function(jit_compile=jit)
      def run(ids, optimizer=optimizer, variable=variable):
        with tf.GradientTape() as tape:
          loss = tf.reduce_sum(tf.gather(variable, ids) ** 2)
        gradient = tape.gradient(loss, variable)
        optimizer.apply_gradients([(gradient, variable)])

      for ids in batches:
        run(tf.constant(ids))
      self.assertEqual(run.experimental_get_tracing_count(), 1)
      results.append(
        [variable.numpy(), *(v.numpy() for v in optimizer.variables)]
      )
    for plain, compiled in zip(*results, strict=True):
      self.assertAllClose(plain, compiled, rtol=1e-5, atol=1e-6)

  def test_untouched_rows_and_their_moments_stay(self):
    variable = table()
    before = variable.numpy()
    optimizer = optimizers.LazyAdam(0.1)
    after = steps(optimizer, variable, [[1, 3], [1]])
    self.assertAllEqual(after[[0, 2, 4, 5]], before[[0, 2, 4, 5]])
    self.assertNotAllClose(after[[1, 3]], before[[1, 3]])
    once = steps(optimizers.LazyAdam(0.1), table(), [[1, 3]])
    self.assertAllEqual(after[3], once[3])

  def test_rows_make_the_moves_they_missed(self):
    rate, eps = 0.1, 1e-7
    batches = [[0, 1], [1], [1, 2], [1], [0, 1, 3], [2]]
    variable = table()
    w = variable.numpy().astype(np.float64)
    got = steps(optimizers.LazyAdam(rate), variable, batches)
    m, v, last = np.zeros_like(w), np.zeros_like(w), np.zeros(len(w), int)
    for t, ids in enumerate(batches, start=1):
      alpha = rate * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
      for i in ids:
        g = 2 * w[i] * [1, 2, 3]
        for k in range(1, t - last[i]):
          w[i] -= (
            alpha * (0.9 / np.sqrt(0.999)) ** k * m[i] / (np.sqrt(v[i]) + eps)
          )
        idle = t - last[i]
        m[i] = 0.9**idle * m[i] + 0.1 * g
        v[i] = 0.999**idle * v[i] + 0.001 * g * g
        w[i] -= alpha * m[i] / (np.sqrt(v[i]) + eps)
        last[i] = t
    self.assertAllClose(got, w, rtol=1e-4, atol=1e-5)

  def test_rare_rows_end_near_adams(self):
    rng = np.random.default_rng(1)
    # Each row about every tenth step; then all rows, to catch up.
    batches = [rng.choice(60, 6) for _ in range(300)] + [np.arange(60)]
    moved = []
    for make in (tf.keras.optimizers.Adam, optimizers.LazyAdam):
      optimizer, variable = make(0.001), table(rows=60)
      optimizer.build([variable])
      before, run = variable.numpy(), tf.function(step)
      for ids in batches:
        run(optimizer, variable, tf.constant(ids, tf.int32))
      moved.append(variable.numpy() - before)
    adam, lazy = moved
    self.assertLess(np.abs(lazy - adam).mean(), 0.05 * np.abs(adam).mean())

  def test_state_is_saved(self):
    variable, other = table(), table()
    optimizer, again = optimizers.LazyAdam(0.1), optimizers.LazyAdam(0.1)
    steps(optimizer, variable, [[0, 1], [2]])
    path = tf.train.Checkpoint(o=optimizer, v=variable).save(
      self.get_temp_dir()
    )
    again.build([other])
    tf.train.Checkpoint(o=again, v=other).restore(path).assert_consumed()
    self.assertAllEqual(
      steps(optimizer, variable, [[0], [1, 2]]),
      steps(again, other, [[0], [1, 2]]),
    )

  def test_dense_gradients_are_adams_also_between_others(self):
    results = []
    for make in (optimizers.LazyAdam, tf.keras.optimizers.Adam):
      optimizer, variable = make(0.1), table()
      for _ in range(3):
        for _ in range(3):
          optimizer.apply_gradients([(2.0 * variable, variable)])
        step(optimizer, variable, range(6))
      results.append(variable.numpy())
    self.assertAllClose(*results, rtol=1e-5, atol=1e-6)

  def test_amsgrad_is_refused(self):
    with self.assertRaisesRegex(ValueError, "amsgrad"):
      optimizers.LazyAdam(amsgrad=True)

  def test_config_round_trip(self):
    optimizer = optimizers.LazyAdam(0.3, beta_1=0.8, epsilon=1e-3)
    config = optimizer.get_config()
    again = optimizers.LazyAdam.from_config(config)
    self.assertEqual(again.get_config(), config)


class CoupledL2AdamTest(tf.test.TestCase):
  def test_every_row_decays_through_the_moments(self):
    learning_rate, l2 = 0.1, 0.05
    variable = table()
    w = variable.numpy().astype(np.float64)
    batches = [[1, 3, 3], [0], [2, 5]]
    got = steps(
      optimizers.CoupledL2Adam(learning_rate, l2=l2), variable, batches
    )
    m = v = np.zeros_like(w)
    for t, ids in enumerate(batches, start=1):
      g = l2 * w
      for i in ids:
        g[i] += 2 * w[i] * [1, 2, 3]
      m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
      w = w - learning_rate * (m / (1 - 0.9**t)) / (
        np.sqrt(v / (1 - 0.999**t)) + 1e-7 / np.sqrt(1 - 0.999**t)
      )
    self.assertAllClose(got, w, rtol=1e-4, atol=1e-5)

  def test_wrong_arguments_are_refused(self):
    for l2 in (-1, float("nan")):
      with self.assertRaisesRegex(ValueError, f"`l2` = {l2}"):
        optimizers.CoupledL2Adam(l2=l2)
    with self.assertRaisesRegex(ValueError, "amsgrad"):
      optimizers.CoupledL2Adam(amsgrad=True)

  def test_config_round_trip(self):
    config = optimizers.CoupledL2Adam(0.3, l2=0.25).get_config()
    again = optimizers.CoupledL2Adam.from_config(config)
    self.assertEqual(again.get_config(), config)


class WeightAverageTest(tf.test.TestCase, parameterized.TestCase):
  def test_by_hand(self):
    weights = [tf.Variable([1.0, 2.0]), tf.Variable(3.0, dtype=tf.float64)]
    average = optimizers.WeightAverage(weights)
    expected = [np.array([1.0, 2.0]), np.array(3.0)]
    for n in range(40):
      for weight in weights:
        weight.assign(0.9 * weight + n)
      decay = min(0.6, (1 + n) / (10 + n))
      expected = [
        decay * e + (1 - decay) * w.numpy()
        for e, w in zip(expected, weights, strict=True)
      ]
      average.update(0.6)
      for e, a in zip(expected, average.averages, strict=True):
        self.assertAllClose(a, e, rtol=1e-5)
    self.assertEqual(int(average.num_updates), 40)

  def test_in_place_of_the_weights_and_back(self):
    weight = tf.Variable([1.0, 2.0])
    average = optimizers.WeightAverage([weight])
    weight.assign([5.0, 7.0])
    with self.assertRaises(KeyError), average.in_place():
      self.assertAllEqual(weight, [1.0, 2.0])
      self.assertAllEqual(average.averages[0], [5.0, 7.0])
      raise KeyError
    self.assertAllEqual(weight, [5.0, 7.0])
    self.assertAllEqual(average.averages[0], [1.0, 2.0])

  def test_a_checkpoint_has_the_averages_alone(self):
    average = optimizers.WeightAverage([tf.Variable([1.0, 2.0])])
    path = tf.train.Checkpoint(average=average).write(
      self.get_temp_dir() + "/average"
    )
    shapes = [shape for _, shape in tf.train.list_variables(path)]
    self.assertEqual(shapes.count([2]), 1)

  @parameterized.parameters(-0.1, 1.0)
  def test_decay_out_of_range(self, decay):
    with self.assertRaisesRegex(ValueError, f"decay.*{decay}"):
      optimizers.WeightAverage([tf.Variable(1.0)]).update(decay)
