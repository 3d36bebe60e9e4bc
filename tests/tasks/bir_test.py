"""Tests of xir_tfrs.tasks.BIRRetrieval."""

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests import reference
from xir_tfrs import tasks

_COUNTS = np.array([5, 1, 0, 40, 7, 2, 0, 3])
_SAMPLED = ("multinomial", "systematic", "lattice")


def _problem(batch, dim=3, seed=0):
  """Query and candidate embeddings, and ids with repeats."""
  rng = np.random.default_rng(seed)
  return (
    rng.normal(size=[batch, dim]).astype(np.float32),
    rng.normal(size=[batch, dim]).astype(np.float32),
    rng.integers(0, 4, batch),
  )


def _task(resampler="expected", counts=_COUNTS, **kwargs):
  return tasks.BIRRetrieval(
    candidate_counts=counts, resampler=resampler, **kwargs
  )


def _loss(task, query, candidates, ids, **kwargs):
  return task(
    tf.constant(query, tf.float32),
    tf.constant(candidates, tf.float32),
    candidate_ids=tf.constant(ids, tf.int64),
    **kwargs,
  )


class BIRRetrievalTest(tf.test.TestCase, parameterized.TestCase):
  def test_hand_value(self):
    # <u, v>: row 0 is [log 2, 0], row 1 is [0, log 3]; pop = 1/4, 3/4.
    # e^s / pop: row 0 is 8, 4/3: w = 6/7, 1/7; row 1 is 4, 4: w = 1/2, 1/2.
    # Two draws. Row 0: 2 + 2 (6/7 * 2 + 1/7 * 1) = 2 + 26/7 = 40/7, over 2.
    # Row 1: 3 + 2 (1/2 * 1 + 1/2 * 3) = 7, over 3.
    loss = _loss(
      _task(counts=[1, 3]),
      np.diag([np.log(2.0), np.log(3.0)]),
      np.eye(2),
      [0, 1],
    )
    self.assertAllClose(loss, (np.log(20 / 7) + np.log(7 / 3)) / 2)

  def test_hand_value_without_the_positive(self):
    # Only the other column can be drawn, twice: (2 + 2) / 2, (3 + 2) / 3.
    for options in (
      {"positive_in_pool": False},
      {"remove_accidental_hits": True},
    ):
      loss = _loss(
        _task(counts=[1, 3], **options),
        np.diag([np.log(2.0), np.log(3.0)]),
        np.eye(2),
        [0, 1],
      )
      self.assertAllClose(loss, (np.log(2) + np.log(5 / 3)) / 2)

  @parameterized.product(
    batch=(1, 7),
    num_resampled=(None, 20),
    scores=((0.3, False), (0.1, True)),
    remove_accidental_hits=(False, True),
    positive_in_pool=(False, True),
  )
  def test_reference(self, batch, num_resampled, scores, **options):
    problem = _problem(batch)
    options.update(
      num_resampled=num_resampled, temperature=scores[0], normalize=scores[1]
    )
    expected, _ = reference.bir_task(*problem, _COUNTS, **options)
    task = _task(**options)
    for training in (False, True):
      self.assertAllClose(
        _loss(task, *problem, training=training),
        expected,
        rtol=1e-5,
        atol=1e-5,
      )

  @parameterized.product(
    normalize=(False, True), positive_in_pool=(False, True)
  )
  def test_gradient_holds_the_counts_fixed(self, **options):
    options["temperature"] = 0.7
    query, candidates, ids = _problem(5)
    query, candidates = tf.constant(query), tf.constant(candidates)
    with tf.GradientTape() as tape:
      tape.watch([query, candidates])
      loss = _loss(_task(**options), query, candidates, ids)
    by_query, by_candidates = tape.gradient(loss, [query, candidates])
    _, draws = reference.bir_task(query, candidates, ids, _COUNTS, **options)

    def slow(q, c, draws):
      return reference.bir_task(q, c, ids, _COUNTS, draws=draws, **options)[0]

    self.assertAllClose(
      by_query,
      reference.numeric_gradient(lambda q: slow(q, candidates, draws), query),
      atol=1e-5,
    )
    self.assertAllClose(
      by_candidates,
      reference.numeric_gradient(lambda c: slow(query, c, draws), candidates),
      atol=1e-5,
    )
    # With gradients through the weights, the derivative would differ.
    through_weights = reference.numeric_gradient(
      lambda q: slow(q, candidates, None), query
    )
    self.assertNotAllClose(by_query, through_weights, atol=1e-2)

  def test_equal_counts_weigh_by_the_softmax(self):
    # A uniform proposal is a constant shift: m sum_j softmax_j e^{s_j}.
    query, candidates, ids = _problem(4)
    s = query.astype(np.float64) @ candidates.T
    softmax = np.exp(s) / np.exp(s).sum(-1, keepdims=True)
    partition = np.exp(np.diag(s)) + 4 * np.sum(softmax * np.exp(s), -1)
    self.assertAllClose(
      _loss(_task(counts=[6] * 8), query, candidates, ids),
      np.mean(np.log(partition) - np.diag(s)),
      rtol=1e-5,
    )

  @parameterized.parameters(*_SAMPLED)
  def test_a_large_draw_tends_to_the_expected_loss(self, resampler):
    problem = _problem(64, dim=4)
    num_resampled = 4096
    exact = _loss(_task(num_resampled=num_resampled), *problem)
    drawn = _loss(_task(resampler, num_resampled=num_resampled), *problem)
    self.assertAllClose(drawn, exact, atol=0.02)
    if resampler == "multinomial":
      self.assertNotAllClose(drawn, exact, atol=1e-6)

  @parameterized.parameters(*_SAMPLED)
  def test_draws_follow_seed_and_step(self, resampler):
    problem = _problem(16)
    tasks_ = [_task(resampler, seed=seed) for seed in (1, 1, 2)]
    runs = [[float(_loss(t, *problem)) for _ in range(4)] for t in tasks_]
    self.assertEqual(runs[0], runs[1])
    self.assertNotEqual(runs[0], runs[2])
    self.assertLen(set(runs[0]), 4)

  @parameterized.parameters(*_SAMPLED)
  def test_evaluation_does_not_move_the_draws(self, resampler):
    problem = _problem(16)
    plain, watched = _task(resampler), _task(resampler)
    for _ in range(3):
      first = _loss(watched, *problem, training=False)
      self.assertAllEqual(first, _loss(watched, *problem, training=False))
      self.assertAllEqual(_loss(watched, *problem), _loss(plain, *problem))

  @parameterized.parameters(*_SAMPLED)
  def test_finite_when_little_or_nothing_is_drawn(self, resampler):
    # A lattice draw of one may be empty. The partition of row 0 then only has
    # the positive, far below columns that were not drawn.
    query, candidates = [[1.0], [0.0], [0.0]], [[-100.0], [100.0], [100.0]]
    query, candidates = tf.constant(query), tf.constant(candidates)
    for seed in range(30):
      task = _task(resampler, num_resampled=1, seed=seed)
      with tf.GradientTape() as tape:
        tape.watch([query, candidates])
        loss = _loss(task, query, candidates, [0, 1, 2])
      self.assertAllInRange(loss, 0.0, 100.0)
      for gradient in tape.gradient(loss, [query, candidates]):
        self.assertTrue(np.isfinite(gradient).all())

  @parameterized.parameters((None, "expected"), (7, "systematic"))
  def test_draws_unless_their_number_is_given_are_averages(
    self, number, method
  ):
    problem = _problem(16)
    default = tasks.BIRRetrieval(candidate_counts=_COUNTS, num_resampled=number)
    self.assertEqual(default.get_config()["resampler"], method)
    self.assertAllEqual(
      _loss(default, *problem),
      _loss(_task(method, num_resampled=number), *problem),
    )


if __name__ == "__main__":
  tf.test.main()
