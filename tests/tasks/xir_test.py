"""Tests of xir_tfrs.tasks.XIRRetrieval."""

from unittest import mock

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests import reference, ten
from xir_tfrs import layers, tasks
from xir_tfrs.tasks import xir

_CACHE_SIZE = 6


def _table(encoder):
  return encoder.embeddings.numpy()


def _task(encoder, resampler="expected", **kwargs):
  return tasks.XIRRetrieval(
    candidate_counts=ten.COUNTS,
    candidate_encoder=encoder,
    resampler=resampler,
    **{"cache_size": _CACHE_SIZE, **kwargs},
  )


def _cache(task):
  """The cache of the task."""
  (cache,) = [
    m for m in task.submodules if isinstance(m, layers.CandidateCache)
  ]
  return cache


def _with_cache(task, encoder, ids):
  """Builds the task and puts `ids` into its cache."""
  ten.loss(task, encoder, *ten.problem(2), training=False)
  _cache(task).ids.assign(ids)
  return task


class LossTest(tf.test.TestCase, parameterized.TestCase):
  def test_hand_value(self):
    # Scores e^s: positive 2; batch pool [2]; cache pool [1, 3], pop 1/4 each
    # of two and 1/2 of the positive. Two draws each.
    # Batch: 2 + 2 * 2 = 6, over 2. Cache: w = 1/4, 3/4:
    # 2 + 2 (1/4 * 1 + 3/4 * 3) = 7, over 2.
    encoder = tf.keras.layers.Embedding(
      3,
      1,
      embeddings_initializer=tf.keras.initializers.Constant(
        np.log([[2.0], [1.0], [3.0]])
      ),
    )
    encoder.build(None)
    task = tasks.XIRRetrieval(
      candidate_counts=[2, 1, 1],
      candidate_encoder=encoder,
      cache_size=2,
      num_resampled=2,
      cache_weight=0.25,
      resampler="expected",
    )
    query = np.ones([1, 1], np.float32)
    ten.loss(task, encoder, query, [0], training=False)
    _cache(task).ids.assign([1, 2])
    self.assertAllClose(
      ten.loss(task, encoder, query, [0], training=False),
      0.25 * np.log(7 / 2) + 0.75 * np.log(3),
    )

  @parameterized.product(
    batch=(1, 5),
    num_resampled=(None, 20),
    cache_weight=(0.3, 1.0),
    scores=((0.7, False), (0.1, True)),
    remove_accidental_hits=(False, True),
  )
  def test_reference(
    self, batch, num_resampled, cache_weight, scores, remove_accidental_hits
  ):
    options = dict(
      num_resampled=num_resampled,
      cache_weight=cache_weight,
      temperature=scores[0],
      normalize=scores[1],
      remove_accidental_hits=remove_accidental_hits,
    )
    encoder = ten.encoder()
    query, ids = ten.problem(batch)
    # Has duplicates, the rows' positives, and candidates without training rows.
    cache_ids = [2, 9, 3, 3, 0, 8]
    task = _with_cache(_task(encoder, **options), encoder, cache_ids)
    table = _table(encoder)
    expected = reference.xir_task(
      query,
      table[ids],
      ids,
      table[cache_ids],
      cache_ids,
      ten.COUNTS,
      **options,
    )[0]
    for training in (False, True):
      self.assertAllClose(
        ten.loss(task, encoder, query, ids, training=training),
        expected,
        rtol=1e-5,
        atol=1e-5,
      )

  def test_defaults(self):
    encoder = ten.encoder()
    query, ids = ten.problem(5)
    cache_ids = [2, 9, 3, 3, 0, 8]
    arguments = dict(
      candidate_counts=ten.COUNTS,
      candidate_encoder=encoder,
      cache_size=6,
    )
    losses = [
      ten.loss(_with_cache(task, encoder, cache_ids), encoder, query, ids)
      for task in (
        tasks.XIRRetrieval(**arguments),
        tasks.XIRRetrieval(
          **arguments,
          num_resampled=3,
          cache_weight=0.2,
          cache_scope="step",
          occurrence_decay=1.0,
          temperature=1.0,
          normalize=False,
          resampler="expected",
          remove_accidental_hits=False,
          positive_in_pool=True,
          cross_replica=True,
          seed=0,
        ),
      )
    ]
    self.assertAllEqual(*losses)

  @parameterized.parameters(True, False)
  def test_no_cache_weight_is_bir(self, positive_in_pool):
    encoder = ten.encoder()
    query, ids = ten.problem(5)
    options = dict(
      num_resampled=4, temperature=0.5, positive_in_pool=positive_in_pool
    )
    bir = tasks.BIRRetrieval(
      candidate_counts=ten.COUNTS, resampler="expected", **options
    )
    self.assertAllClose(
      ten.loss(
        _task(encoder, cache_weight=0.0, **options), encoder, query, ids
      ),
      ten.loss(bir, encoder, query, ids),
      rtol=1e-6,
    )

  def test_loss_is_linear_in_the_cache_weight(self):
    encoder = ten.encoder()
    query, ids = ten.problem(5)
    batch_part, mixed, cache_part = (
      float(ten.loss(_task(encoder, cache_weight=w), encoder, query, ids))
      for w in (0.0, 0.3, 1.0)
    )
    self.assertNotAllClose(batch_part, cache_part, atol=1e-2)
    self.assertAllClose(mixed, 0.3 * cache_part + 0.7 * batch_part, rtol=1e-5)

  def test_a_cache_of_nothing_but_the_positive(self):
    encoder = ten.encoder()
    task = _with_cache(
      _task(encoder, remove_accidental_hits=True), encoder, [3] * _CACHE_SIZE
    )
    # Both pools are fully masked: only the positive is left, with loss 0.
    with tf.GradientTape() as tape:
      loss = ten.loss(task, encoder, ten.problem(2)[0], [3, 3])
    self.assertAllClose(loss, 0.0)
    gradient = tf.convert_to_tensor(tape.gradient(loss, encoder.embeddings))
    self.assertAllClose(gradient, np.zeros([len(ten.COUNTS), ten.DIM]))


class JointPartitionTest(tf.test.TestCase, parameterized.TestCase):
  def joint(self, encoder, cache_ids, policy):
    """(task, share of each candidate in the cache)."""
    task = _with_cache(
      _task(
        encoder,
        joint_partition=True,
        cache_policy=policy,
        cache_scope="all",
        num_resampled=7,
        temperature=0.7,
      ),
      encoder,
      cache_ids,
    )
    draws = np.array([2.0, 0, 4, 9, 0, 0, 0, 1, 3, 5])
    _cache(task).occurrence_counts.assign(draws)
    if policy == "recency":
      return task, reference.popularity(ten.COUNTS)
    return task, draws / draws.sum()

  @parameterized.parameters("occurrence", "recency")
  def test_reference(self, policy):
    encoder = ten.encoder()
    query, ids = ten.problem(5)
    cache_ids = [2, 9, 3, 3, 0, 8]
    task, share = self.joint(encoder, cache_ids, policy)
    before = _cache(task).occurrence_counts.numpy()
    table = _table(encoder)

    def slow(query, table, draws=None):
      return reference.xir_joint_task(
        query,
        table[ids],
        ids,
        table[cache_ids],
        cache_ids,
        ten.COUNTS,
        share,
        num_resampled=7,
        temperature=0.7,
        draws=draws,
      )

    query = tf.constant(query)
    with tf.GradientTape() as tape:
      tape.watch(query)
      loss = ten.loss(task, encoder, query, ids)
    expected, draws = slow(query, table)
    self.assertAllClose(loss, expected, rtol=1e-5)
    by_query, by_table = tape.gradient(loss, [query, encoder.embeddings])
    self.assertAllClose(
      by_query,
      reference.numeric_gradient(lambda q: slow(q, table, draws)[0], query),
      atol=1e-5,
    )
    self.assertAllClose(
      tf.convert_to_tensor(by_table),
      reference.numeric_gradient(lambda t: slow(query, t, draws)[0], table),
      atol=1e-5,
    )
    self.assertAllClose(
      _cache(task).occurrence_counts - before,
      reference.occurrence_counts(
        len(ten.COUNTS), [(np.concatenate([ids, cache_ids]), draws)]
      ),
      rtol=1e-5,
    )
    if policy == "recency":
      self.assertAllEqual(_cache(task).ids, [*ids, cache_ids[0]])

  def test_needs_a_cache_whose_proposal_is_known(self):
    with self.assertRaisesRegex(ValueError, "(?s)joint_partition.*cache_scope"):
      _task(ten.encoder(), joint_partition=True)


class GradientTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.product(normalize=(False, True), cache_weight=(0.0, 0.4, 1.0))
  def test_cached_candidates_are_encoded_with_gradient(self, **options):
    options["temperature"] = 0.7
    encoder = ten.encoder()
    query, ids = ten.problem(5)
    cache_ids = [2, 9, 3, 3, 0, 8]
    task = _with_cache(_task(encoder, **options), encoder, cache_ids)
    query = tf.constant(query)
    with tf.GradientTape() as tape:
      tape.watch(query)
      loss = ten.loss(task, encoder, query, ids)
    by_query, by_table = tape.gradient(loss, [query, encoder.embeddings])
    table = _table(encoder)

    def slow(query, table, draws):
      return reference.xir_task(
        query,
        table[ids],
        ids,
        table[cache_ids],
        cache_ids,
        ten.COUNTS,
        draws=draws[0],
        cache_draws=draws[1],
        **options,
      )

    draws = slow(query, table, (None, None))[1:]
    self.assertAllClose(
      by_query,
      reference.numeric_gradient(lambda q: slow(q, table, draws)[0], query),
      atol=1e-5,
    )
    by_table = tf.convert_to_tensor(by_table)
    self.assertAllClose(
      by_table,
      reference.numeric_gradient(lambda t: slow(query, t, draws)[0], table),
      atol=1e-5,
    )
    # Candidates 8 and 9 are only in the cache.
    self.assertEqual(np.any(by_table.numpy()[8:]), options["cache_weight"] > 0)


class StateTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.product(
    cache_weight=(0.0, 0.5, 1.0), remove_accidental_hits=(False, True)
  )
  def test_occurrences_are_the_draws_of_both_pools(self, **options):
    encoder = ten.encoder()
    query, ids = ten.problem(5)
    cache_ids = [2, 9, 3, 3, 0, 8]
    task = _with_cache(_task(encoder, **options), encoder, cache_ids)
    table = _table(encoder)
    _, draws, cache_draws = reference.xir_task(
      query,
      table[ids],
      ids,
      table[cache_ids],
      cache_ids,
      ten.COUNTS,
      **options,
    )
    once = reference.occurrence_counts(
      len(ten.COUNTS), [(ids, draws), (cache_ids, cache_draws)]
    )
    ten.loss(task, encoder, query, ids)
    self.assertAllClose(_cache(task).occurrence_counts, once, rtol=1e-5)
    _cache(task).ids.assign(cache_ids)
    ten.loss(task, encoder, query, ids)
    self.assertAllClose(_cache(task).occurrence_counts, 2 * once, rtol=1e-5)

  @parameterized.parameters("multinomial", "systematic")
  def test_occurrences_grow_by_the_number_of_draws(self, resampler):
    # ALGORITHMS 7.3: batch * num_resampled from each of two pools per step.
    encoder = ten.encoder()
    task = _task(encoder, resampler, num_resampled=7)
    for step in range(1, 4):
      ten.loss(task, encoder, *ten.problem(5, seed=step))
      self.assertAllEqual(
        tf.reduce_sum(_cache(task).occurrence_counts), 2 * 5 * 7 * step
      )
      self.assertEqual(int(_cache(task).step), step)

  def test_default_number_of_draws_is_half_the_cache(self):
    encoder = ten.encoder()
    task = _task(encoder, "multinomial", cache_size=9)
    ten.loss(task, encoder, *ten.problem(5))
    self.assertAllEqual(
      tf.reduce_sum(_cache(task).occurrence_counts), 2 * 5 * 4
    )

  @parameterized.parameters({}, {"joint_partition": True, "cache_scope": "all"})
  def test_copies_in_the_cache_are_encoded_once(self, **options):
    found, encoded = [], []
    for resampler in ("expected", "copies"):
      encoder = ten.encoder()

      def watched(ids, encoder=encoder):
        encoded.append(len(ids))
        return encoder(ids)

      task = _with_cache(
        _task(watched, cache_weight=0.5, seed=3, **options),
        encoder,
        [7, 2, 7, 7, 2, 1],
      )
      if resampler == "copies":
        # As in compiled steps, whose shapes are static.
        self.enter_context(
          mock.patch.object(xir.xla, "compiling", lambda: True)
        )
      query, ids = ten.problem(4)
      query = tf.constant(query)
      with tf.GradientTape() as tape:
        tape.watch(query)
        loss = ten.loss(task, encoder, query, ids)
      gradient = tf.convert_to_tensor(
        tape.gradient(loss, encoder.trainable_variables[0])
      )
      cache = _cache(task)
      found.append((loss, gradient, cache.occurrence_counts, cache.ids))
    self.assertEqual(encoded[1::2], [3, 6])
    for merged, copies in zip(*found, strict=True):
      self.assertAllClose(merged, copies, rtol=1e-5, atol=1e-6)

  def test_the_first_cache_is_uniform_over_all_candidates(self):
    encoder = ten.encoder()
    task = _task(encoder, cache_size=5000)
    ten.loss(task, encoder, *ten.problem(2), training=False)
    observed = np.bincount(_cache(task).ids.numpy(), minlength=len(ten.COUNTS))
    self.assertLen(observed, len(ten.COUNTS))
    # Chi-square, 9 degrees of freedom, 0.9999 quantile.
    self.assertLess(np.sum((observed - 500) ** 2 / 500), 33.72)

  def test_the_next_cache_follows_accumulated_occurrence(self):
    encoder = ten.encoder()
    task = _task(encoder, cache_size=20000, num_resampled=50)
    for step in range(3):
      pools = set(_cache(task).ids.numpy()) if step else None
      query, ids = ten.problem(5, seed=step)
      ten.loss(task, encoder, query, ids)
      if step:
        self.assertContainsSubset(
          set(_cache(task).ids.numpy()), pools | set(ids)
        )
    in_pools = sorted(pools | set(ids))
    occurrences = _cache(task).occurrence_counts.numpy()[in_pools]
    self.assertAllClose(
      np.bincount(_cache(task).ids, minlength=len(ten.COUNTS))[in_pools]
      / 20000,
      occurrences / occurrences.sum(),
      atol=5 * 0.5 / np.sqrt(20000),
    )

  @parameterized.parameters(("step", False), ("all", True))
  def test_scope(self, cache_scope, comes_back):
    encoder = ten.encoder()
    task = _with_cache(
      _task(encoder, cache_scope=cache_scope), encoder, [0] * _CACHE_SIZE
    )
    # Candidate 9 has been drawn very often, but is in neither pool now.
    occurrences = np.zeros(len(ten.COUNTS))
    occurrences[9] = 1e9
    _cache(task).occurrence_counts.assign(occurrences)
    ten.loss(task, encoder, *ten.problem(5))
    self.assertEqual(9 in _cache(task).ids.numpy(), comes_back)

  def test_occurrence_decay(self):
    # Two equal steps: o + o/2 instead of 2 o. With scope "step", decay must not
    # visit all candidates, so only ratios are tested.
    encoder = ten.encoder()
    tasks_ = [
      _with_cache(
        _task(encoder, occurrence_decay=decay), encoder, [8, 9, 2, 2, 3, 0]
      )
      for decay in (1.0, 0.25)
    ]
    first, second = (
      ten.problem(5, seed=3),
      ten.problem(5, seed=4),
    )
    history = []
    for task in tasks_:
      ten.loss(task, encoder, *first)
      once = _cache(task).occurrence_counts.numpy().copy()
      _cache(task).ids.assign([1, 1, 1, 5, 6, 7])
      ten.loss(task, encoder, *second)
      history.append((once, _cache(task).occurrence_counts.numpy()))
    (once, twice), (_, decayed) = history
    expected = 0.25 * once + (twice - once)
    self.assertAllClose(
      decayed / decayed.sum(), expected / expected.sum(), rtol=1e-5
    )

  def test_evaluation_leaves_the_state(self):
    encoder = ten.encoder()
    task = _task(encoder, "multinomial")
    ten.loss(task, encoder, *ten.problem(5))
    before = [v.numpy() for v in task.non_trainable_variables]
    first = ten.loss(task, encoder, *ten.problem(5), training=False)
    self.assertAllEqual(
      first,
      ten.loss(task, encoder, *ten.problem(5), training=False),
    )
    for value, variable in zip(
      before, task.non_trainable_variables, strict=True
    ):
      self.assertAllEqual(value, variable)

  def test_readout_tells_of_the_cache(self):
    encoder = ten.encoder()
    task = _with_cache(_task(encoder), encoder, [2, 9, 3, 3, 0, 8])
    self.assertEqual(
      {k: float(v) for k, v in task.readout().items()},
      {
        "cache_distinct": np.float32(5 / 6),
        "cache_coverage": 0.5,
        "cache_turnover": 1.0,
        "cache_age": 0.0,
      },
    )

  def test_batch_and_cache_draw_from_different_streams(self):
    # The same pool twice: with a single stream, both parts would draw the same.
    encoder = ten.encoder()
    query, ids = ten.problem(6)
    parts = []
    for cache_weight in (0.0, 1.0):
      task = _with_cache(
        _task(encoder, "multinomial", cache_weight=cache_weight), encoder, ids
      )
      parts.append(float(ten.loss(task, encoder, query, ids)))
    self.assertNotAllClose(*parts, atol=1e-6)

  def test_zero_weight_queries_still_draw(self):
    # sample_weight weights the loss, not the draws.
    encoder = ten.encoder()
    task = _task(encoder, "systematic", num_resampled=7)
    loss = ten.loss(task, encoder, *ten.problem(5), sample_weight=tf.zeros([5]))
    self.assertAllClose(loss, 0.0)
    self.assertAllEqual(tf.reduce_sum(_cache(task).occurrence_counts), 70)


class ArgumentsTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters(
    ("cache_size", 0),
    ("cache_size", -3),
    ("num_resampled", 0),
    ("cache_weight", 1.5),
    ("cache_weight", -0.1),
    ("cache_scope", "epoch"),
    ("occurrence_decay", 0.0),
    ("occurrence_decay", 1.1),
    ("cache_policy", "age"),
  )
  def test_bad_arguments_name_the_value(self, name, value):
    with self.assertRaisesRegex(ValueError, f"(?s){name}.*{value}"):
      _task(ten.encoder(), **{name: value})

  @parameterized.parameters(None, 3)
  def test_the_encoder_must_be_callable(self, encoder):
    with self.assertRaisesRegex(ValueError, "candidate_encoder"):
      _task(encoder)


if __name__ == "__main__":
  tf.test.main()
