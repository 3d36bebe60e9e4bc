"""Tests of xir_tfrs.tasks.MixedNegativeRetrieval (MNS)."""

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests import reference, ten
from xir_tfrs import layers, tasks
from xir_tfrs.ops import seeds

_NUM_UNIFORM = 6


def _task(encoder, **kwargs):
  return tasks.MixedNegativeRetrieval(
    candidate_encoder=encoder,
    **{
      "candidate_counts": ten.COUNTS,
      "num_uniform": _NUM_UNIFORM,
      **kwargs,
    },
  )


def _uniform_ids(seed=0, step=0, count=_NUM_UNIFORM):
  """The expected draws: the task has its own stream, folded with the step."""
  return tf.random.stateless_uniform(
    [count],
    seed=seeds.step_seed(seed, step, seeds.UNIFORM_CANDIDATES),
    maxval=len(ten.COUNTS),
    dtype=tf.int64,
  ).numpy()


class LossTest(tf.test.TestCase, parameterized.TestCase):
  def test_hand_value(self):
    # One candidate in all but the positive's mask: scores e^s = 2 for the
    # positive (0, pop 3/4), 3 for candidate 1 (pop 1/4). One row, so all of
    # the pool but the positive's columns is k copies of candidate 1, out of
    # 4 uniform draws: Q* = 1/5 * 1/4 + 4/5 * 1/2 = 0.45.
    encoder = tf.keras.layers.Embedding(
      2,
      1,
      embeddings_initializer=tf.keras.initializers.Constant(
        np.log([[2.0], [3.0]])
      ),
    )
    encoder.build(None)
    task = _task(encoder, candidate_counts=[3, 1], num_uniform=4, seed=5)
    k = np.sum(
      tf.random.stateless_uniform(
        [4],
        seed=seeds.step_seed(5, 0, seeds.UNIFORM_CANDIDATES),
        maxval=2,
        dtype=tf.int64,
      )
    )
    self.assertBetween(k, 1, 4)
    self.assertAllClose(
      ten.loss(task, encoder, np.ones([1, 1], np.float32), [0]),
      np.log((2 + k * 3 / 0.45) / 2),
    )

  @parameterized.product(
    batch=(1, 7),
    logq_positive=("none", "mixture"),
    scores=((0.7, False), (0.1, True)),
    remove_accidental_hits=(True, False),
    positive_in_pool=(False, True),
  )
  def test_reference(self, batch, scores, **options):
    options.update(temperature=scores[0], normalize=scores[1])
    encoder = ten.encoder()
    query, ids = ten.problem(batch)
    table = encoder.embeddings.numpy()
    task = _task(encoder, **options)
    for step in range(2):
      uniform_ids = _uniform_ids(step=step)
      expected, _ = reference.mns_task(
        query,
        table[ids],
        ids,
        table[uniform_ids],
        uniform_ids,
        ten.COUNTS,
        **options,
      )
      self.assertAllClose(
        ten.loss(task, encoder, query, ids, training=True),
        expected,
        rtol=1e-5,
      )

  @parameterized.product(
    batch=(1, 7),
    logq_positive=("none", "mixture"),
    scores=((0.7, False), (0.1, True)),
  )
  def test_reference_of_logq_corrected(self, batch, logq_positive, scores):
    options = dict(
      loss="logq_corrected", temperature=scores[0], normalize=scores[1]
    )
    encoder = ten.encoder()
    query, ids = ten.problem(batch)
    table, uniform_ids = encoder.embeddings.numpy(), _uniform_ids()
    task = _task(encoder, logq_positive=logq_positive, **options)
    expected, _ = reference.mns_task(
      query,
      table[ids],
      ids,
      table[uniform_ids],
      uniform_ids,
      ten.COUNTS,
      **options,
    )
    self.assertAllClose(
      ten.loss(task, encoder, query, ids),
      expected,
      rtol=1e-5,
      atol=1e-5,
    )

  @parameterized.product(
    loss=("cross_entropy", "logq_corrected"), normalize=(False, True)
  )
  def test_gradient_reaches_batch_and_uniform_candidates(self, **options):
    options["temperature"] = 0.7
    encoder = ten.encoder()
    query, ids = ten.problem(5)
    query = tf.constant(query)
    with tf.GradientTape() as tape:
      tape.watch(query)
      loss = ten.loss(_task(encoder, **options), encoder, query, ids)
    by_query, by_table = tape.gradient(loss, [query, encoder.embeddings])
    uniform_ids = _uniform_ids()

    def slow(query, table, confidence):
      return reference.mns_task(
        query,
        table[ids],
        ids,
        table[uniform_ids],
        uniform_ids,
        ten.COUNTS,
        confidence=confidence,
        **options,
      )

    table = encoder.embeddings.numpy()
    _, confidence = slow(query, table, None)
    self.assertAllClose(
      by_query,
      reference.numeric_gradient(
        lambda q: slow(q, table, confidence)[0], query
      ),
      atol=1e-5,
    )
    self.assertAllClose(
      tf.convert_to_tensor(by_table),
      reference.numeric_gradient(
        lambda t: slow(query, t, confidence)[0], table
      ),
      atol=1e-5,
    )
    # A candidate that only the uniform draw added.
    only_uniform = sorted(set(uniform_ids) - set(ids))
    self.assertNotEmpty(only_uniform)
    by_table = tf.convert_to_tensor(by_table).numpy()
    self.assertTrue(np.any(by_table[only_uniform], axis=1).all())

  def test_no_uniform_candidates_is_ssl_pop_with_the_positive_uncorrected(self):
    # ALGORITHMS 3.3, the first oracle.
    encoder = ten.encoder()
    query, ids = ten.problem(6)
    candidates = encoder.embeddings.numpy()[ids].astype(np.float64)
    s = query.astype(np.float64) @ candidates.T
    log_pop = np.log(reference.popularity(ten.COUNTS))[ids]
    losses = []
    for i in range(6):
      negatives = [
        np.exp(s[i, j] - log_pop[j]) for j in range(6) if ids[j] != ids[i]
      ]
      losses.append(np.log(np.exp(s[i, i]) + sum(negatives)) - s[i, i])
    self.assertAllClose(
      ten.loss(_task(encoder, num_uniform=0), encoder, query, ids),
      np.mean(losses),
      rtol=1e-5,
    )
    # With the positive corrected: SSL-Pop itself.
    self.assertAllClose(
      ten.loss(
        _task(encoder, num_uniform=0, logq_positive="mixture"),
        encoder,
        query,
        ids,
      ),
      ten.loss(
        tasks.SampledSoftmaxRetrieval(
          candidate_counts=ten.COUNTS, remove_accidental_hits=True
        ),
        encoder,
        query,
        ids,
      ),
      rtol=1e-5,
    )

  def test_mostly_uniform_candidates_tend_to_the_full_softmax(self):
    # B' >> B: Q* -> 1/N, and (B + B') times the partition of all candidates.
    encoder = ten.encoder()
    query, ids = ten.problem(1)
    num_uniform = 200_000
    loss = ten.loss(
      _task(encoder, num_uniform=num_uniform), encoder, query, ids
    )
    s = encoder.embeddings.numpy() @ query[0]
    negatives = sum(np.exp(x) for j, x in enumerate(s) if j != ids[0])
    expected = np.log(np.exp(s[ids[0]]) + num_uniform * negatives) - s[ids[0]]
    self.assertAllClose(loss, expected, atol=0.02)


class DrawsTest(tf.test.TestCase, parameterized.TestCase):
  def watch_ids(self, **kwargs):
    """A task whose encoder records its calls."""
    encoder, asked = ten.encoder(), []

    def watched(ids):
      asked.append(ids.numpy().tolist())
      return encoder(ids)

    return _task(watched, **kwargs), encoder, asked

  def test_draws_follow_seed_and_step(self):
    runs = []
    for seed in (1, 1, 2):
      task, encoder, asked = self.watch_ids(seed=seed)
      for _ in range(3):
        ten.loss(task, encoder, *ten.problem(4), training=True)
      runs.append(asked)
    self.assertEqual(runs[0], runs[1])
    self.assertNotEqual(runs[0], runs[2])
    self.assertNotEqual(runs[0][0], runs[0][1])

  def test_evaluation_repeats_the_draw(self):
    task, encoder, asked = self.watch_ids()
    for training in (False, False, True, False):
      ten.loss(task, encoder, *ten.problem(4), training=training)
    self.assertEqual(asked[0], asked[1])
    self.assertEqual(asked[1], asked[2])
    self.assertNotEqual(asked[2], asked[3])

  def test_draws_are_uniform(self):
    task, encoder, asked = self.watch_ids(num_uniform=20_000)
    ten.loss(task, encoder, *ten.problem(2))
    observed = np.bincount(asked[0], minlength=len(ten.COUNTS))
    self.assertLen(observed, len(ten.COUNTS))
    # Chi-square, 9 degrees of freedom, 0.9999 quantile.
    self.assertLess(np.sum((observed - 2000) ** 2 / 2000), 33.72)


class ProposalTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters("none", "mixture")
  def test_an_estimator_that_knows_the_counts_is_as_good(self, logq_positive):
    # 1,000 rows in 100 batches of 10: no candidate in more than one row of ten.
    counts = np.array([50, 10, 90, 40, 70, 20, 80, 30, 60, 50]) * 2
    encoder = ten.encoder()
    estimator = layers.FrequencyEstimator(
      num_buckets=1000, count_appearances=True
    )
    estimator.warm_start(np.arange(10), counts, batch_size=5)
    query, ids = ten.problem(5)
    options = dict(candidate_encoder=encoder, num_uniform=4)
    options["logq_positive"] = logq_positive
    learnt = tasks.MixedNegativeRetrieval(
      frequency_estimator=estimator, **options
    )
    known = tasks.MixedNegativeRetrieval(candidate_counts=counts, **options)
    self.assertAllClose(
      ten.loss(learnt, encoder, query, ids, training=False),
      ten.loss(known, encoder, query, ids, training=False),
      rtol=1e-4,
    )

  def test_uniform_candidates_teach_the_estimator_nothing(self):
    encoder = ten.encoder()
    estimator = layers.FrequencyEstimator(num_buckets=1000)
    task = _task(encoder, candidate_counts=None, frequency_estimator=estimator)
    twin = layers.FrequencyEstimator(num_buckets=1000)
    for step in range(3):
      query, ids = ten.problem(4, seed=step)
      ten.loss(task, encoder, query, ids, training=True)
      twin.update(tf.constant(ids, tf.int64))
    for first, second in zip(estimator.variables, twin.variables, strict=True):
      self.assertAllEqual(first, second)


class ArgumentsTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters(
    ("num_uniform", -1),
    ("logq_positive", "unigram"),
    ("num_candidates", 7),
    ("loss", "hinge"),
  )
  def test_bad_arguments_name_the_value(self, name, value):
    with self.assertRaisesRegex(ValueError, f"(?s){name}.*{value}"):
      _task(ten.encoder(), **{name: value})

  @parameterized.parameters(None, 3)
  def test_the_encoder_must_be_callable(self, encoder):
    with self.assertRaisesRegex(ValueError, "candidate_encoder"):
      _task(encoder)

  def test_a_source_of_popularity_is_needed(self):
    with self.assertRaisesRegex(
      ValueError, "candidate_counts.*frequency_estimator"
    ):
      _task(ten.encoder(), candidate_counts=None)

  def test_size_of_the_catalogue_without_counts(self):
    options = dict(
      candidate_counts=None,
      frequency_estimator=layers.FrequencyEstimator(num_buckets=9),
    )
    task = _task(ten.encoder(), **options)
    self.assertEqual(task.get_config()["num_candidates"], len(ten.COUNTS))
    with self.assertRaisesRegex(ValueError, "num_candidates"):
      _task(lambda ids: ids, **options)
    task = _task(lambda ids: ids, num_candidates=33, **options)
    self.assertEqual(task.get_config()["num_candidates"], 33)


if __name__ == "__main__":
  tf.test.main()
