"""Tests of xir_tfrs.tasks.SampledSoftmaxRetrieval (SSL and SSL-Pop)."""

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests import reference
from xir_tfrs import tasks

_COUNTS = np.array([5, 1, 0, 40, 7, 2, 0, 3])


def _problem(batch, dim=3, seed=0):
  """Query and candidate embeddings, and ids with repeats."""
  rng = np.random.default_rng(seed)
  ids = rng.integers(0, 4, batch)
  return (
    rng.normal(size=[batch, dim]).astype(np.float32),
    rng.normal(size=[batch, dim]).astype(np.float32),
    ids,
  )


def _loss(task, query, candidates, ids, **kwargs):
  return task(
    tf.constant(query, tf.float32),
    tf.constant(candidates, tf.float32),
    candidate_ids=tf.constant(ids, tf.int64),
    **kwargs,
  )


class SampledSoftmaxRetrievalTest(tf.test.TestCase, parameterized.TestCase):
  def test_ssl_hand_value(self):
    # <u, v>: row 0 is [log 2, 0], row 1 is [0, log 3].
    # Row 0: 2 / (2 + 1); row 1: 3 / (1 + 3).
    loss = _loss(
      tasks.SampledSoftmaxRetrieval(),
      np.diag([np.log(2.0), np.log(3.0)]),
      np.eye(2),
      [0, 1],
    )
    self.assertAllClose(loss, (np.log(3 / 2) + np.log(4 / 3)) / 2)

  def test_ssl_pop_hand_value(self):
    # The same with pop = 1/4 and 3/4: e^s / pop.
    # Row 0: 2 * 4 = 8 against 4/3; row 1: 4 against 3 * 4/3 = 4.
    loss = _loss(
      tasks.SampledSoftmaxRetrieval(candidate_counts=[1, 3]),
      np.diag([np.log(2.0), np.log(3.0)]),
      np.eye(2),
      [0, 1],
    )
    self.assertAllClose(
      loss, (np.log((8 + 4 / 3) / 8) + np.log((4 + 4) / 4)) / 2
    )

  def test_positive_in_pool_hand_value(self):
    # The positive twice in the partition: (2 + 2 + 1) / 2 and (3 + 3 + 1) / 3.
    loss = _loss(
      tasks.SampledSoftmaxRetrieval(positive_in_pool=True),
      np.diag([np.log(2.0), np.log(3.0)]),
      np.eye(2),
      [0, 1],
    )
    self.assertAllClose(loss, (np.log(5 / 2) + np.log(7 / 3)) / 2)

  def test_accidental_hits_hand_value(self):
    # Candidates 4, 4, 1, all scores 0. Rows 0 and 1 see themselves and
    # candidate 1: log 2. Row 2 sees all three: log 3.
    loss = _loss(
      tasks.SampledSoftmaxRetrieval(remove_accidental_hits=True),
      np.zeros([3, 2]),
      np.ones([3, 2]),
      [4, 4, 1],
    )
    self.assertAllClose(loss, (2 * np.log(2) + np.log(3)) / 3)

  @parameterized.product(
    batch=(1, 7),
    counts=(None, _COUNTS),
    scores=((0.3, False), (0.05, True)),
    remove_accidental_hits=(False, True),
    positive_in_pool=(False, True),
  )
  def test_reference(self, batch, counts, scores, **options):
    problem = _problem(batch)
    options.update(temperature=scores[0], normalize=scores[1])
    task = tasks.SampledSoftmaxRetrieval(candidate_counts=counts, **options)
    self.assertAllClose(
      _loss(task, *problem),
      reference.sampled_softmax_task(*problem, counts, **options),
      rtol=1e-5,
      atol=1e-5,
    )

  @parameterized.product(
    counts=(None, _COUNTS),
    positive_in_pool=(False, True),
    normalize=(False, True),
  )
  def test_gradient_is_the_numeric_one(self, counts, **options):
    query, candidates, ids = _problem(5)
    task = tasks.SampledSoftmaxRetrieval(
      candidate_counts=counts, temperature=0.7, **options
    )
    query, candidates = tf.constant(query), tf.constant(candidates)
    with tf.GradientTape() as tape:
      tape.watch([query, candidates])
      loss = _loss(task, query, candidates, ids)
    by_query, by_candidates = tape.gradient(loss, [query, candidates])

    def slow(q, c):
      return reference.sampled_softmax_task(
        q, c, ids, counts, temperature=0.7, **options
      )

    self.assertAllClose(
      by_query,
      reference.numeric_gradient(lambda q: slow(q, candidates), query),
      atol=1e-5,
    )
    self.assertAllClose(
      by_candidates,
      reference.numeric_gradient(lambda c: slow(query, c), candidates),
      atol=1e-5,
    )

  def test_equal_counts_are_no_correction(self):
    problem = _problem(6)
    self.assertAllClose(
      _loss(tasks.SampledSoftmaxRetrieval(candidate_counts=[9] * 8), *problem),
      _loss(tasks.SampledSoftmaxRetrieval(), *problem),
      rtol=1e-5,
    )

  def test_pool_of_the_whole_corpus_is_the_full_softmax(self):
    rng = np.random.default_rng(1)
    query, candidates = rng.normal(size=[2, 6, 4]).astype(np.float32)
    exact = tf.nn.sparse_softmax_cross_entropy_with_logits(
      tf.range(6), query @ candidates.T
    )
    self.assertAllClose(
      _loss(tasks.SampledSoftmaxRetrieval(), query, candidates, range(6)),
      tf.reduce_mean(exact),
      rtol=1e-5,
    )


if __name__ == "__main__":
  tf.test.main()
