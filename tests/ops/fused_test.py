"""The fused kernel, compared with the dense losses that it computes."""

import dataclasses

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests import reference
from xir_tfrs.ops import forms, fused, losses, masking, resampling

SEED = tf.constant([3, 5], tf.int64)


def problem(batch, pool, dim, dtype, seed=0):
  """Random rows whose positives are the first columns of the pool."""
  rng = np.random.default_rng(seed)
  ids = rng.integers(0, max(pool // 2, 1), pool)
  embeddings = rng.normal(size=(pool, dim))
  return {
    "queries": tf.constant(rng.normal(size=(batch, dim)), dtype),
    "positives": tf.constant(embeddings[:batch], dtype),
    "positive_ids": tf.constant(ids[:batch], tf.int64),
    "row_weights": tf.constant(rng.uniform(0.5, 2.0, batch), dtype),
    "pool": fused.Pool(
      tf.constant(embeddings, dtype),
      tf.constant(ids, tf.int64),
      tf.constant(rng.uniform(-9, -1, pool), dtype),
      tf.constant(0, tf.int64),
    ),
  }


def dense(
  queries,
  positives,
  positive_ids,
  row_weights,
  pool,
  positive_log_q=None,
  resampler=None,
  mask_own_column=False,
  mask_accidental_hits=False,
  known_ids=None,
):
  """The cross entropy from the functions of `losses` and `resampling`."""
  logits = tf.matmul(queries, pool.embeddings, transpose_b=True)
  if pool.gradient_scale is not None:
    scale = tf.cast(pool.gradient_scale, logits.dtype)
    scaled = scale * pool.embeddings
    scaled -= tf.stop_gradient(scaled - pool.embeddings)
    logits = tf.where(
      masking.own_columns(*logits.shape),
      logits,
      tf.matmul(queries, scaled, transpose_b=True),
    )
  positive = tf.reduce_sum(queries * positives, axis=1)
  keep = tf.ones(logits.shape, bool)
  if mask_own_column:
    keep &= ~masking.own_columns(*logits.shape)
  if mask_accidental_hits:
    keep &= ~masking.accidental_hits(positive_ids, pool.ids)
  if known_ids is not None:
    keep &= ~reference.known_positives(known_ids, positive_ids, pool.ids)
  draws = tf.zeros(logits.shape[1:], tf.float64)
  if resampler is None:
    if positive_log_q is not None:
      positive -= positive_log_q
    rows = losses.sampled_softmax(logits - pool.log_q, positive, keep)
  else:
    counts = resampling.resample_counts(
      resampling.log_importance_weights(logits, pool.log_q, keep),
      resampler.num_resampled,
      seed=resampler.seed,
      method=resampler.method,
    )
    rows = losses.resampled_softmax(logits, positive, counts)
    draws = tf.reduce_sum(tf.cast(counts, tf.float64), axis=0)
  return tf.reduce_sum(row_weights * rows), draws


def value_and_gradients(function, arguments):
  watched = [
    arguments["queries"],
    arguments["positives"],
    arguments["pool"].embeddings,
  ]
  with tf.GradientTape() as tape:
    tape.watch(watched)
    loss, draws = function(**arguments)
  return loss, draws, tape.gradient(loss, watched)


def whole_gradient(results):
  """Adds the gradients of positives to those of the same columns."""
  loss, draws, (queries, positives, pool) = results
  missing = len(pool) - len(positives)
  return loss, draws, queries, pool + tf.pad(positives, [[0, missing], [0, 0]])


class FusedTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.product(
    # Sizes, rows per chunk, and whether in a graph.
    given=[
      ((1, 1, 3), None, False),
      ((6, 6, 1), 4, False),
      ((10, 33, 8), 4, True),
    ],
    method=[None, *resampling.METHODS],
    masks=[(False, False), (True, False), (False, True), (True, True)],
  )
  def test_equals_dense(self, given, method, masks):
    sizes, row_chunk_size, in_graph = given
    arguments = problem(*sizes, tf.float64)
    arguments["mask_own_column"], arguments["mask_accidental_hits"] = masks
    if method is None:
      arguments["positive_log_q"] = arguments["pool"].log_q[: sizes[0]]
    else:
      arguments["resampler"] = fused.Resampler(9, method, SEED)
    expected = value_and_gradients(dense, arguments)
    arguments["row_chunk_size"] = row_chunk_size

    def run():
      return value_and_gradients(fused.pool_softmax, arguments)

    got = tf.function(run)() if in_graph else run()
    if method is None and masks[0]:
      expected, got = whole_gradient(expected), whole_gradient(got)
    for e, g in zip(
      tf.nest.flatten(expected), tf.nest.flatten(got), strict=True
    ):
      # "expected" counts pass through float32 on both sides.
      tolerance = 1e-6 if method == "expected" else 1e-10
      self.assertAllClose(e, g, rtol=tolerance, atol=tolerance)

  @parameterized.product(
    method=[None, "expected", "systematic"],
    masked=[False, True],
    chunk=[None, 4],
  )
  def test_the_gradient_of_the_pool_is_scaled(self, method, masked, chunk):
    arguments = problem(10, 33, 8, tf.float64)
    pool = arguments["pool"]
    arguments["pool"] = dataclasses.replace(
      pool, gradient_scale=tf.constant(3.5)
    )
    arguments["mask_own_column"] = masked
    if method is None:
      arguments["positive_log_q"] = pool.log_q[:10]
    else:
      arguments["resampler"] = fused.Resampler(9, method, SEED)
    expected = whole_gradient(value_and_gradients(dense, arguments))
    got = whole_gradient(
      value_and_gradients(
        fused.pool_softmax, arguments | {"row_chunk_size": chunk}
      )
    )
    for e, g in zip(expected, got, strict=True):
      # "expected" counts pass through float32 on both sides.
      tolerance = 1e-6 if method == "expected" else 1e-10
      self.assertAllClose(e, g, rtol=tolerance, atol=tolerance)

  @parameterized.product(
    method=[None, "expected"],
    form=tuple(forms.FORMS),
    masked=[False, True],
  )
  def test_a_column_counts_as_its_copies(self, method, form, masked):
    form = forms.FORMS[form]()
    kind = forms.SAMPLED if method is None else forms.RESAMPLED
    if kind not in form.suits:
      self.skipTest("not for resampled pools")
    arguments = problem(4, 7, 3, tf.float64) | {"form": form}
    arguments["mask_accidental_hits"] = masked
    pool = dataclasses.replace(arguments["pool"], own_offset=None)
    if method is None:
      arguments["positive_log_q"] = pool.log_q[:4]
    else:
      arguments["resampler"] = fused.Resampler(9, method, SEED)
    copies = tf.constant([1, 3, 1, 1, 2, 5, 1])
    merged = dataclasses.replace(pool, copies=copies)
    columns = tf.repeat(tf.range(7), copies)
    repeated = fused.Pool(
      *(tf.gather(x, columns) for x in (pool.embeddings, pool.ids, pool.log_q))
    )
    self.assertEqual(int(merged.num_columns()), 14)
    got, expected = (
      value_and_gradients(fused.pool_softmax, arguments | {"pool": each})
      for each in (merged, repeated)
    )
    loss, draws, (queries, positives, embeddings) = expected
    expected = (
      loss,
      tf.math.unsorted_segment_sum(draws, columns, 7),
      (
        queries,
        positives,
        tf.math.unsorted_segment_sum(embeddings, columns, 7),
      ),
    )
    for g, e in zip(
      tf.nest.flatten(got), tf.nest.flatten(expected), strict=True
    ):
      # "expected" counts pass through float32.
      tolerance = 1e-6 if method else 1e-10
      self.assertAllClose(g, e, rtol=tolerance, atol=tolerance)

  @parameterized.product(
    method=[None, *resampling.METHODS],
    masks=[(False, False), (True, True)],
  )
  def test_known_positives_are_left_out_as_in_dense(self, method, masks):
    arguments = problem(10, 33, 8, tf.float64)
    # Rows with no known positives, with some, with ids that are not in the
    # pool, and one whose query wants everything.
    known = [
      [],
      [3, 1, 99],
      [5],
      [16],
      list(range(20)),
      [2, 4],
      [],
      [7],
      [],
      [1],
    ]
    arguments["known_ids"] = tf.ragged.constant(known, tf.int64)
    arguments["mask_own_column"], arguments["mask_accidental_hits"] = masks
    own_log_q = arguments["pool"].log_q[:10]
    if method is None:
      arguments["positive_log_q"] = own_log_q
    else:
      arguments["resampler"] = fused.Resampler(9, method, SEED)
    expected = whole_gradient(value_and_gradients(dense, arguments))
    without = value_and_gradients(dense, arguments | {"known_ids": None})
    self.assertNotAllClose(expected[0], without[0], rtol=1e-6)
    arguments["row_chunk_size"] = 4
    got = whole_gradient(value_and_gradients(fused.pool_softmax, arguments))
    tolerance = 1e-6 if method == "expected" else 1e-10
    for e, g in zip(expected, got, strict=True):
      self.assertAllClose(e, g, rtol=tolerance, atol=tolerance)

  @parameterized.product(
    sizes=[(1, 1, 3), (6, 6, 1), (10, 33, 8)],
    masks=[(False, False), (True, False), (False, True), (True, True)],
    row_chunk_size=[None, 4],
  )
  def test_positives_without_correction_equal_dense(
    self, sizes, masks, row_chunk_size
  ):
    # The corrected own column cannot be the positive then.
    arguments = problem(*sizes, tf.float64)
    arguments["mask_own_column"], arguments["mask_accidental_hits"] = masks
    expected = value_and_gradients(dense, arguments)
    arguments["row_chunk_size"] = row_chunk_size
    got = value_and_gradients(fused.pool_softmax, arguments)
    for e, g in zip(
      tf.nest.flatten(expected), tf.nest.flatten(got), strict=True
    ):
      self.assertAllClose(e, g, rtol=1e-10, atol=1e-10)

  @parameterized.parameters(*forms.FORMS, "systematic")
  def test_unused_columns_are_ignored(self, name):
    arguments = problem(10, 33, 8, tf.float64)
    method = name in resampling.METHODS
    if method:
      arguments["resampler"] = fused.Resampler(9, name, SEED)
    else:
      arguments["form"] = forms.FORMS[name]()
      if name == "sl_at_k":
        arguments["form"] = forms.SoftmaxAtK(k=3)
      arguments["positive_log_q"] = arguments["pool"].log_q[:10]
    arguments["mask_own_column"] = name in ("cross_entropy", "logq_corrected")
    pool = arguments.pop("pool")
    in_use = tf.range(33) < 21
    expected, got = (
      value_and_gradients(fused.pool_softmax, arguments | {"pool": one})
      for one in (
        fused.Pool(
          pool.embeddings[:21], pool.ids[:21], pool.log_q[:21], pool.own_offset
        ),
        fused.Pool(
          pool.embeddings, pool.ids, pool.log_q, pool.own_offset, in_use
        ),
      )
    )
    for e, g in zip(
      tf.nest.flatten(expected), tf.nest.flatten(got), strict=True
    ):
      if g.shape[:1] == [33]:
        self.assertAllEqual(g[21:], tf.zeros_like(g[21:]))
        g = g[:21]
      self.assertAllClose(e, g, rtol=1e-10, atol=1e-10)

  def test_corrected_logq_needs_a_proposal_and_no_resampler(self):
    arguments = problem(3, 3, 2, tf.float32) | {"form": forms.LogQCorrected()}
    with self.assertRaisesRegex(ValueError, "positive_log_q"):
      fused.pool_softmax(**arguments)
    with self.assertRaisesRegex(ValueError, "resampler.*cross_entropy"):
      fused.pool_softmax(
        **arguments,
        positive_log_q=arguments["pool"].log_q,
        resampler=fused.Resampler(4, "systematic", SEED),
      )

  def test_float32_is_close_to_float64(self):
    for method in (None, "expected"):
      results = []
      for dtype in (tf.float32, tf.float64):
        arguments = problem(50, 80, 16, dtype)
        if method:
          arguments["resampler"] = fused.Resampler(40, method, SEED)
        loss, _, gradients = value_and_gradients(fused.pool_softmax, arguments)
        results.append([loss, *gradients])
      for low, high in zip(*results, strict=True):
        self.assertAllClose(low, high, rtol=1e-4, atol=1e-4)

  def test_gradient_is_numeric_gradient(self):
    arguments = problem(5, 9, 3, tf.float64)
    pool = arguments.pop("pool")

    def loss(queries, positives, embeddings):
      moved = fused.Pool(embeddings, pool.ids, pool.log_q, pool.own_offset)
      return fused.pool_softmax(
        queries,
        positives,
        arguments["positive_ids"],
        arguments["row_weights"],
        moved,
        row_chunk_size=2,
      )[0]

    analytic, numeric = tf.test.compute_gradient(
      loss,
      [arguments["queries"], arguments["positives"], pool.embeddings],
    )
    for a, n in zip(analytic, numeric, strict=True):
      self.assertAllClose(a, n, rtol=1e-6, atol=1e-6)

  @parameterized.parameters(1e4, -1e4)
  def test_extreme_scores_stay_finite(self, scale):
    arguments = problem(8, 8, 4, tf.float32)
    arguments["queries"] *= scale
    for option in (
      {},
      {"resampler": fused.Resampler(4, "systematic", SEED)},
    ):
      loss, _, gradients = value_and_gradients(
        fused.pool_softmax, arguments | option
      )
      for value in (loss, *gradients):
        self.assertTrue(np.isfinite(value.numpy()).all())

  def test_rare_candidates_do_not_overflow(self):
    arguments = problem(4, 6, 2, tf.float32)
    pool = arguments["pool"]
    # One in e^100: 1 / q is beyond float32.
    rare = fused.Pool(
      pool.embeddings, pool.ids, tf.constant([-100.0] + [-1.0] * 5), None
    )
    arguments["pool"] = rare
    arguments["resampler"] = fused.Resampler(10, "systematic", SEED)
    loss, draws = fused.pool_softmax(**arguments)
    self.assertTrue(np.isfinite(loss))
    self.assertAllEqual(draws, [40, 0, 0, 0, 0, 0])

  @parameterized.parameters(None, "expected")
  def test_nan_in_one_column_shows(self, method):
    arguments = problem(3, 6, 2, tf.float32)
    pool = arguments["pool"]
    embeddings = tf.tensor_scatter_nd_update(
      pool.embeddings, [[5, 0]], [float("nan")]
    )
    arguments["pool"] = dataclasses.replace(pool, embeddings=embeddings)
    if method:
      arguments["resampler"] = fused.Resampler(4, method, SEED)
    loss, _ = fused.pool_softmax(**arguments)
    self.assertFalse(np.isfinite(loss))

  def test_row_with_every_column_masked_has_loss_zero(self):
    arguments = problem(3, 3, 2, tf.float32)
    arguments["positive_ids"] = tf.zeros([3], tf.int64)
    pool = arguments["pool"]
    arguments["pool"] = fused.Pool(
      pool.embeddings, tf.zeros([3], tf.int64), pool.log_q, pool.own_offset
    )
    for option in (
      {},
      {"resampler": fused.Resampler(5, "multinomial", SEED)},
      {"resampler": fused.Resampler(5, "expected", SEED)},
    ):
      loss, draws, gradients = value_and_gradients(
        lambda **kw: fused.pool_softmax(mask_accidental_hits=True, **kw),
        arguments | option,
      )
      self.assertAllClose(loss, 0.0)
      self.assertAllEqual(draws, [0, 0, 0])
      for gradient in gradients:
        self.assertAllClose(gradient, tf.zeros_like(gradient))

  def test_counting_draws_changes_nothing_else(self):
    arguments = problem(5, 9, 3, tf.float64)
    arguments["resampler"] = fused.Resampler(6, "systematic", SEED)
    loss, draws, gradients = value_and_gradients(fused.pool_softmax, arguments)
    arguments["count_draws"] = False
    again, none, others = value_and_gradients(fused.pool_softmax, arguments)
    self.assertAllEqual(loss, again)
    self.assertAllEqual(tf.reduce_sum(draws), 5 * 6)
    self.assertAllEqual(none, np.zeros(9))
    for a, b in zip(gradients, others, strict=True):
      self.assertAllEqual(a, b)

  def test_nothing_flows_through_weights_and_proposals(self):
    arguments = problem(4, 6, 2, tf.float32)
    pool = arguments["pool"]
    watched = [arguments["row_weights"], pool.log_q]
    with tf.GradientTape() as tape:
      tape.watch(watched)
      loss, _ = fused.pool_softmax(**arguments, positive_log_q=pool.log_q[:4])
    self.assertEqual(tape.gradient(loss, watched), [None, None])
