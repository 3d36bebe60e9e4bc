"""Tests of xir_tfrs.layers.EmbeddingHistory."""

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from xir_tfrs import layers


def _walk(steps, watched=4, dim=3):
  """[steps, watched, dim] embeddings of a random walk."""
  rng = np.random.default_rng(0)
  return np.cumsum(rng.normal(size=[steps, watched, dim]), axis=0).astype("f")


def _distance(first, second):
  return np.mean([np.sqrt(sum(d * d)) for d in first - second])


def _relative_drift(walk):
  recent = walk[-11:]
  per_step = [
    _distance(a, b) for a, b in zip(recent[:-1], recent[1:], strict=True)
  ]
  return np.mean(per_step) / _distance(walk[-1], 0 * walk[-1])


class EmbeddingHistoryTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters(11, 12, 17, 30)
  def test_drift_is_the_distance_to_so_many_steps_ago(self, steps):
    walk = _walk(steps)
    history = layers.EmbeddingHistory(4, 3)
    update = tf.function(history.update)
    for embeddings in walk:
      update(tf.constant(embeddings))
    for back in (1, 5, 10):
      self.assertAllClose(
        history.drift(back), _distance(walk[-1], walk[-1 - back]), rtol=1e-5
      )
    self.assertAllClose(
      history.relative_drift(), _relative_drift(walk), rtol=1e-5
    )
    self.assertTrue(history.is_full())

  def test_early_on_over_as_many_steps_as_there_are(self):
    walk = _walk(4)
    history = layers.EmbeddingHistory(4, 3)
    self.assertEqual(float(history.drift(10)), 0.0)
    self.assertEqual(float(history.relative_drift()), 0.0)
    for number, embeddings in enumerate(walk):
      history.update(tf.constant(embeddings))
      self.assertAllClose(
        history.drift(5), _distance(walk[number], walk[0]), rtol=1e-5
      )
    self.assertAllClose(
      history.drift(1), _distance(walk[3], walk[2]), rtol=1e-5
    )
    self.assertAllClose(
      history.relative_drift(), _relative_drift(walk), rtol=1e-5
    )
    self.assertFalse(history.is_full())

  def test_constant_embeddings_do_not_drift(self):
    history = layers.EmbeddingHistory(4, 3)
    for _ in range(12):
      history.update(tf.ones([4, 3]))
    self.assertEqual(float(history.drift(10)), 0.0)
    self.assertEqual(float(history.relative_drift()), 0.0)

  def test_embeddings_of_length_zero_are_no_nan(self):
    history = layers.EmbeddingHistory(4, 3)
    for _ in range(12):
      history.update(tf.zeros([4, 3]))
    self.assertEqual(float(history.relative_drift()), 0.0)

  def test_checkpoint_config_and_reset(self):
    walk = _walk(15)
    history = layers.EmbeddingHistory(4, 3, name="a_history")
    for embeddings in walk[:13]:
      history.update(tf.constant(embeddings))
    again = layers.EmbeddingHistory.from_config(history.get_config())
    path = tf.train.Checkpoint(h=history).save(self.get_temp_dir() + "/h")
    tf.train.Checkpoint(h=again).restore(path).assert_consumed()
    for embeddings in walk[13:]:
      for h in (history, again):
        h.update(tf.constant(embeddings))
    self.assertAllEqual(history.drift(10), again.drift(10))
    again.reset()
    for variable in again.variables:
      self.assertFalse(np.any(variable.numpy()))

  @parameterized.parameters((0, 3, "num_watched"), (4, -1, "dim"))
  def test_bad_sizes_name_the_argument(self, num_watched, dim, name):
    with self.assertRaisesRegex(ValueError, name):
      layers.EmbeddingHistory(num_watched, dim)


if __name__ == "__main__":
  tf.test.main()
