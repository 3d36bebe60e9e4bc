"""Tests of xir_tfrs.layers.InvertedMultiIndex."""

import json

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests import reference
from xir_tfrs import layers

_N, _DIM = 40, 5


def _embeddings(seed=0, n=_N, dim=_DIM):
  return np.random.default_rng(seed).normal(size=[n, dim]).astype(np.float32)


def _queries(batch=4, seed=9):
  return tf.constant(_embeddings(seed, batch))


def _index(num_codewords=4, **kwargs):
  return layers.InvertedMultiIndex(
    _N, _DIM, num_codewords=num_codewords, **kwargs
  )


def _everyone(batch):
  return tf.tile(tf.range(_N)[tf.newaxis], [batch, 1])


class InvertedMultiIndexTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters(False, True)
  def test_before_the_first_refresh_only_weights_count(self, weighted):
    weights = np.arange(1.0, _N + 1) if weighted else None
    index = _index(weights=weights)
    expected = np.ones(_N) if weights is None else weights
    expected = np.tile(expected / expected.sum(), [4, 1])
    self.assertAllClose(
      np.exp(index.log_prob(_queries(), _everyone(4))), expected, rtol=1e-5
    )
    ids, log_q = index.sample(_queries(), 7, seed=1)
    self.assertAllClose(
      np.exp(log_q), np.take_along_axis(expected, ids.numpy(), 1), rtol=1e-5
    )

  @parameterized.parameters(
    *((1, 1, False), (1, 4, True), (1, 50, False)),
    *((_DIM, 1, True), (_DIM, 4, False), (_DIM, 50, True)),
    *((6, 1, False), (6, 4, True), (6, 50, False)),
  )
  def test_log_prob_is_exact_after_a_refresh(
    self, dim, num_codewords, weighted
  ):
    weights = np.arange(1.0, _N + 1) if weighted else None
    index = layers.InvertedMultiIndex(
      _N, dim, num_codewords=num_codewords, weights=weights
    )
    index.refresh(_embeddings(dim=dim))
    queries = tf.constant(_embeddings(9, 4, dim))
    expected = [
      reference.midx_probabilities(
        q, index.codebooks.numpy(), index.codes.numpy(), weights
      )
      for q in queries.numpy()
    ]
    self.assertAllClose(
      np.exp(index.log_prob(queries, _everyone(4))), expected, rtol=1e-4
    )
    ids, log_q = index.sample(queries, 7, seed=1)
    self.assertAllClose(
      np.exp(log_q), np.take_along_axis(np.array(expected), ids.numpy(), 1)
    )

  def test_refresh_is_k_means_of_each_half(self):
    index = _index()
    embeddings = _embeddings()
    index.refresh(embeddings)
    padded = np.pad(embeddings, [(0, 0), (0, 1)])
    for half in range(2):
      points = padded[:, 3 * half : 3 * half + 3]
      codewords = index.codebooks.numpy()[half]
      _, codes = reference.lloyd(points, codewords, 0)
      self.assertAllEqual(index.codes[:, half], codes)
      for k in range(4):
        self.assertAllClose(
          codewords[k], points[np.array(codes) == k].mean(0), atol=1e-5
        )
    ids = index.order.numpy()
    buckets = index.codes.numpy() @ [4, 1]
    self.assertAllEqual(np.sort(ids), np.arange(_N))
    self.assertAllEqual(buckets[ids], np.sort(buckets))

  def test_draws_come_close_to_the_softmax(self):
    # With a codeword for each half of each candidate, Q is the softmax.
    embeddings = _embeddings()
    softmax = tf.nn.log_softmax(_queries() @ embeddings.T)
    divergences = []
    for num_codewords in (1, 4, 8, _N):
      index = _index(num_codewords)
      index.refresh(embeddings)
      log_q = index.log_prob(_queries(), _everyone(4))
      divergences.append(
        float(tf.reduce_mean(tf.exp(softmax) * (softmax - log_q)))
      )
    self.assertAllEqual(divergences, sorted(divergences, reverse=True))
    self.assertLess(divergences[2], 0.5 * divergences[0])
    self.assertAllClose(divergences[3], 0.0, atol=1e-6)

  def test_a_second_refresh_goes_on_from_the_first(self):
    index, fresh = _index(), _index()
    index.refresh(_embeddings())
    before = [v.numpy() for v in index.variables]
    index.refresh(_embeddings())
    for value, variable in zip(before, index.variables, strict=True):
      self.assertAllEqual(value, variable)
    # Other initial codewords could lead to another optimum.
    moved = _embeddings() + 0.05 * _embeddings(1)
    index.refresh(moved)
    fresh.codebooks.assign(before[0])
    fresh.refresh(moved)
    self.assertAllEqual(index.codebooks, fresh.codebooks)
    self.assertGreater(np.mean(index.codes.numpy() == before[1]), 0.8)

  def test_a_restored_index_is_the_same(self):
    index = _index(weights=np.arange(1.0, _N + 1))
    index.refresh(_embeddings())
    path = tf.train.Checkpoint(index=index).save(self.get_temp_dir() + "/c")
    config = json.loads(json.dumps(index.get_config()))
    restored = layers.InvertedMultiIndex.from_config(config)
    self.assertEqual(restored.get_config(), index.get_config())
    tf.train.Checkpoint(index=restored).restore(path).assert_consumed()
    for i in (index, restored):
      i.refresh(_embeddings(2))
    self.assertAllEqual(
      index.sample(_queries(), 9, seed=3)[0],
      restored.sample(_queries(), 9, seed=3)[0],
    )

  def test_rows_draw_alike_wherever_they_are(self):
    index = _index()
    index.refresh(_embeddings())
    queries = _queries(6)
    ids, log_q = index.sample(queries, 5, seed=(3, 4))
    part, part_log_q = index.sample(queries[2:], 5, seed=(3, 4), first_row=2)
    self.assertAllEqual(ids[2:], part)
    self.assertAllClose(log_q[2:], part_log_q, rtol=1e-6)
    self.assertNotAllEqual(ids, index.sample(queries, 5, seed=(3, 5))[0])
    self.assertEqual(index.sample(queries[:0], 5, seed=1)[0].shape, [0, 5])

  def test_no_gradient_and_no_training(self):
    index = _index()
    index.refresh(_embeddings())
    self.assertEmpty(index.trainable_variables)
    for variable in index.variables:
      self.assertEqual(
        variable.aggregation, tf.VariableAggregation.ONLY_FIRST_REPLICA
      )
    queries = _queries()
    with tf.GradientTape() as tape:
      tape.watch(queries)
      log_q = index.sample(queries, 5, seed=1)[1]
      log_q += index.log_prob(queries, tf.zeros([4, 5], tf.int64))
    self.assertIsNone(tape.gradient(log_q, queries))

  @parameterized.parameters(
    ({"num_codewords": 0}, "`num_codewords` = 0"),
    ({"weights": np.ones(3)}, r"\(3,\)"),
    ({"weights": np.arange(_N)}, r"weights\[0\]` = 0"),
    ({"weights": np.full(_N, np.nan)}, "nan"),
  )
  def test_bad_arguments_name_the_value(self, arguments, message):
    with self.assertRaisesRegex(ValueError, message):
      _index(**arguments)

  def test_embeddings_of_another_shape(self):
    with self.assertRaisesRegex(ValueError, r"\[40, 5\].*\(39, 5\)"):
      _index().refresh(_embeddings(n=39))


if __name__ == "__main__":
  tf.test.main()
