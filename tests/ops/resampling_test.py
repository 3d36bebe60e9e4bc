"""Tests of xir_tfrs.ops.resampling that need no statistics."""

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests import reference
from xir_tfrs.ops import losses, resampling

_METHODS = ("multinomial", "systematic", "lattice", "expected")
_SAMPLED = ("multinomial", "systematic", "lattice")
_SEED = (11, 23)


def _problem(batch, pool, seed=0):
  rng = np.random.default_rng(seed)
  return (
    rng.normal(scale=2, size=[batch, pool]),
    np.log(rng.dirichlet(np.ones(pool))),
    rng.random([batch, pool]) < 0.7,
  )


def _draw(log_weights, num_resampled, method, seed=_SEED, **kwargs):
  return resampling.resample_counts(
    tf.convert_to_tensor(log_weights),
    num_resampled,
    seed=seed,
    method=method,
    **kwargs,
  )


class LogImportanceWeightsTest(tf.test.TestCase, parameterized.TestCase):
  def test_hand_value(self):
    # Row 0: e^s / q = 1/.25, 2/.25, 3/.5 = 4, 8, 6 of 18.
    # Row 1: all e^s equal, so 1/q = 4, 4, 2 of 10.
    log_weights = resampling.log_importance_weights(
      tf.constant([[0.0, np.log(2.0), np.log(3.0)], [7.0, 7.0, 7.0]]),
      tf.constant(np.log([0.25, 0.25, 0.5]), tf.float32),
    )
    self.assertAllClose(
      tf.exp(log_weights),
      [[4 / 18, 8 / 18, 6 / 18], [0.4, 0.4, 0.2]],
      rtol=1e-5,
    )

  @parameterized.product(
    batch=(1, 5),
    pool=(1, 9),
    dtype=(tf.float32, tf.float64),
    masked=(False, True),
    graph=(False, True),
  )
  def test_reference(self, batch, pool, dtype, masked, graph):
    logits, log_q, keep = _problem(batch, pool)
    keep = keep if masked else None
    function = resampling.log_importance_weights
    log_weights = (tf.function(function) if graph else function)(
      tf.constant(logits, dtype),
      tf.constant(log_q, dtype),
      keep=None if keep is None else tf.constant(keep),
    )
    self.assertEqual(log_weights.dtype, dtype)
    expected = reference.log_importance_weights(logits, log_q, keep)
    log_weights = self.evaluate(log_weights)
    self.assertAllEqual(np.isneginf(log_weights), np.isneginf(expected))
    self.assertAllClose(np.exp(log_weights), np.exp(expected), rtol=1e-5)

  def test_a_uniform_proposal_corrects_nothing(self):
    logits, _, _ = _problem(4, 6)
    self.assertAllClose(
      resampling.log_importance_weights(logits, np.full(6, -8.5)),
      tf.nn.log_softmax(logits),
      rtol=1e-10,
    )

  def test_uniform_scores_weigh_by_the_inverse_proposal(self):
    # ALGORITHMS 5.4 (d).
    q = np.array([0.5, 0.3, 0.2])
    weights = np.exp(
      resampling.log_importance_weights(np.full([1, 3], 4.0), np.log(q))
    )
    self.assertAllClose(weights[0], (1 / q) / np.sum(1 / q))

  @parameterized.parameters((0.0, 900.0), (250.0, 0.0), (-1e3, 3.0))
  def test_shifts_leave_the_weights(self, by_logit, by_log_q):
    logits, log_q, keep = _problem(4, 6)
    self.assertAllClose(
      np.exp(
        resampling.log_importance_weights(
          logits + by_logit, log_q + by_log_q, keep=keep
        )
      ),
      np.exp(resampling.log_importance_weights(logits, log_q, keep=keep)),
      rtol=1e-9,
    )

  def test_extreme_scores_and_proposals(self):
    logits = tf.constant([[1e4, -1e4, 9990.0], [0.0, 0.0, 1e4]])
    log_q = tf.constant([0.0, -20.0, -20.0])
    # Row 0: 1e4 against 9990 + 20, ten apart; row 1: all on the last.
    weights = np.exp(resampling.log_importance_weights(logits, log_q))
    last = 1 / (1 + np.exp(-10.0))
    self.assertAllClose(
      weights, [[1 - last, 0, last], [0, 0, 1]], rtol=2e-2, atol=1e-6
    )

  def test_a_fully_masked_row(self):
    logits, log_q, keep = _problem(3, 4)
    keep[1] = False
    log_weights = self.evaluate(
      resampling.log_importance_weights(logits, log_q, keep=keep)
    )
    self.assertAllEqual(log_weights[1], [-np.inf] * 4)
    self.assertFalse(np.isnan(log_weights).any())

  def test_no_gradient(self):
    logits, log_q, _ = _problem(3, 4)
    logits, log_q = tf.constant(logits), tf.constant(log_q)
    with tf.GradientTape() as tape:
      tape.watch([logits, log_q])
      log_weights = resampling.log_importance_weights(logits, log_q)
      total = tf.reduce_sum(log_weights * tf.range(4, dtype=tf.float64))
    for gradient in tape.gradient(total, [logits, log_q]):
      if gradient is not None:
        self.assertAllEqual(gradient, tf.zeros_like(gradient))


class ResampleCountsTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.product(
    batch=(1, 5),
    pool=(1, 9),
    num_resampled=(1, 4, 50),
    dtype=(tf.float32, tf.float64),
  )
  def test_expected_is_the_reference(self, batch, pool, num_resampled, dtype):
    log_weights = np.where(
      _problem(batch, pool)[2], _problem(batch, pool)[0], -np.inf
    )
    self.assertAllClose(
      _draw(tf.constant(log_weights, dtype), num_resampled, "expected"),
      reference.expected_counts(log_weights, num_resampled),
      rtol=1e-5,
      atol=1e-6,
    )

  @parameterized.product(
    method=_METHODS, dtype=(tf.float32, tf.float64), graph=(False, True)
  )
  def test_shape_type_and_sign(self, method, dtype, graph):
    function = tf.function(_draw) if graph else _draw
    counts = function(tf.constant(_problem(4, 7)[0], dtype), 20, method)
    self.assertEqual(counts.dtype, tf.float32)
    self.assertEqual(counts.shape, [4, 7])
    self.assertAllGreaterEqual(counts, 0.0)
    if method != "expected":
      self.assertAllEqual(counts, tf.round(counts))

  @parameterized.product(
    method=("multinomial", "systematic"),
    pool=(1, 7, 300),
    num_resampled=(1, 20, 1000),
  )
  def test_total_is_the_number_drawn(self, method, pool, num_resampled):
    counts = _draw(_problem(6, pool)[0], num_resampled, method)
    self.assertAllEqual(tf.reduce_sum(counts, -1), [num_resampled] * 6)

  @parameterized.product(
    method=("systematic", "lattice"),
    dtype=(tf.float32, tf.float64),
    shift=(0.0, 300.0, -300.0),
  )
  def test_counts_stay_within_one_of_the_expected(self, method, dtype, shift):
    log_weights = _problem(50, 40)[0]
    for num_resampled in (1, 7, 640):
      counts = _draw(
        tf.constant(log_weights + shift, dtype), num_resampled, method
      )
      expected = reference.expected_counts(log_weights, num_resampled)
      # 0.05 % for the rounding of a shifted float32.
      self.assertAllLess(np.abs(counts - expected), 1.0 + 5e-4 * num_resampled)
      if dtype == tf.float64:
        self.assertAllLess(np.abs(counts - expected), 1.0 + 1e-3)

  @parameterized.parameters(*_METHODS)
  def test_masked_columns_are_never_drawn(self, method):
    logits, _, keep = _problem(8, 12)
    keep[3, :] = False
    keep[3, 5] = True
    counts = self.evaluate(_draw(np.where(keep, logits, -np.inf), 64, method))
    self.assertAllEqual(counts[~keep], np.zeros((~keep).sum()))
    # The only candidate of row 3 takes every draw.
    self.assertAllClose(counts[3, 5], 64.0, rtol=1e-6)

  @parameterized.product(method=_METHODS, dtype=(tf.float32, tf.float64))
  def test_a_fully_masked_row_draws_nothing(self, method, dtype):
    log_weights = _problem(3, 4)[0]
    log_weights[1] = -np.inf
    counts = self.evaluate(_draw(tf.constant(log_weights, dtype), 10, method))
    self.assertAllEqual(counts[1], np.zeros(4))
    self.assertAllEqual(np.isfinite(counts), np.ones([3, 4], bool))
    self.assertAllClose(counts[[0, 2]].sum(-1), [10, 10], atol=4.0)

  @parameterized.parameters(*_METHODS)
  def test_log_weights_far_apart(self, method):
    # All weight is on column 2 in row 0, and on two equal columns in row 1.
    log_weights = tf.constant([[-1e4, 0.0, 1e4], [1e4, 1e4, -1e4]], tf.float32)
    counts = self.evaluate(_draw(log_weights, 16, method))
    self.assertAllClose(counts[0], [0, 0, 16])
    self.assertAllEqual(counts[1, 2], 0.0)
    self.assertAllGreater(counts[1, :2], 0.0)

  @parameterized.parameters(*_METHODS)
  def test_first_and_last_columns_without_weight(self, method):
    # An interval search that is off by one would draw an empty edge column.
    log_weights = np.full([400, 5], -np.inf)
    log_weights[:, 1:4] = 0.0
    counts = self.evaluate(
      _draw(tf.constant(log_weights, tf.float32), 9, method)
    )
    self.assertAllEqual(counts[:, [0, 4]], np.zeros([400, 2]))

  @parameterized.parameters(*_METHODS)
  def test_is_deterministic_in_the_seed(self, method):
    log_weights = _problem(5, 30)[0]
    first = _draw(log_weights, 20, method)
    self.assertAllEqual(first, _draw(log_weights, 20, method))
    self.assertAllEqual(
      first, tf.function(_draw)(tf.constant(log_weights), 20, method)
    )
    if method != "expected":
      self.assertNotAllEqual(
        first, _draw(log_weights, 20, method, seed=(11, 24))
      )

  @parameterized.parameters(*_SAMPLED)
  def test_equal_rows_draw_differently(self, method):
    counts = self.evaluate(
      _draw(np.tile(_problem(1, 30)[0], [6, 1]), 20, method)
    )
    self.assertGreater(len({tuple(row) for row in counts}), 1)

  @parameterized.product(method=_METHODS, split=(1, 3, 5))
  def test_rows_of_a_larger_draw(self, method, split):
    # A replica draws the same for its rows as one device.
    log_weights = _problem(6, 30)[0]
    whole = _draw(log_weights, 20, method)
    first = _draw(log_weights[:split], 20, method, first_row=0)
    rest = _draw(log_weights[split:], 20, method, first_row=split)
    self.assertAllEqual(tf.concat([first, rest], 0), whole)

  @parameterized.parameters(*_METHODS)
  def test_rows_of_a_larger_draw_with_traced_offsets(self, method):
    log_weights = tf.constant(_problem(6, 30)[0])

    @tf.function(
      input_signature=[
        tf.TensorSpec([None, None], tf.float64),
        tf.TensorSpec([], tf.int32),
      ]
    )
    def traced(rows, first_row):
      return _draw(rows, 20, method, first_row=first_row)

    self.assertAllEqual(
      traced(log_weights[2:5], 2), _draw(log_weights, 20, method)[2:5]
    )

  def test_unknown_method(self):
    with self.assertRaisesRegex(ValueError, "method.*stratified"):
      _draw(_problem(2, 3)[0], 4, "stratified")

  @parameterized.parameters(*_METHODS)
  def test_no_gradient_through_the_whole_chain(self, method):
    # logits -> weights -> counts -> loss: gradients only flow through the
    # loss's own logits.
    logits, log_q, _ = (tf.constant(x) for x in _problem(3, 5))
    with tf.GradientTape() as tape:
      tape.watch([logits, log_q])
      counts = _draw(
        resampling.log_importance_weights(logits, log_q), 16, method
      )
      loss = losses.resampled_softmax(
        logits, logits[:, 0], tf.cast(counts, tf.float64)
      )
    by_logits, by_log_q = tape.gradient(loss, [logits, log_q])
    if by_log_q is not None:
      self.assertAllEqual(by_log_q, tf.zeros_like(by_log_q))
    expected, by_positive = reference.resampled_softmax_gradient(
      logits.numpy(), logits.numpy()[:, 0], counts.numpy()
    )
    expected[:, 0] += by_positive
    self.assertAllClose(by_logits, expected, rtol=1e-6, atol=1e-8)


class MemoryTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters(*_METHODS)
  def test_no_tensor_of_batch_by_samples_by_pool(self, method):
    batch, pool, num_resampled = 6, 50, 40
    function = tf.function(
      lambda log_weights: _draw(log_weights, num_resampled, method)
    ).get_concrete_function(tf.TensorSpec([batch, pool], tf.float32))
    definition = function.graph.as_graph_def(add_shapes=True)
    nodes = list(definition.node)
    for body in definition.library.function:
      nodes.extend(body.node_def)
    # TensorFlow's own sampler makes [batch, samples, pool] noise on a GPU.
    self.assertEmpty([n.op for n in nodes if "Multinomial" in n.op])
    sizes = {}
    for node in nodes:
      for shape in node.attr["_output_shapes"].list.shape:
        sizes[node.name] = tf.TensorShape(shape).num_elements()
    unknown = [name for name, size in sizes.items() if size is None]
    self.assertEmpty(unknown, "their size cannot be checked")
    self.assertGreaterEqual(max(sizes.values()), batch * pool)
    self.assertLess(max(sizes.values()), batch * num_resampled * pool / 4)


class WideRowsTest(tf.test.TestCase, parameterized.TestCase):
  """Pools of whole blocks of 32, whose cumulative sums are taken in blocks."""

  @parameterized.product(
    pool=(32, 128, 1024),
    scale=(0.1, 3.0, 30.0),
    dtype=(np.float32, np.float64),
  )
  def test_counts_are_whole_and_complete(self, pool, scale, dtype):
    rng = np.random.default_rng(pool)
    log_weights = (rng.normal(size=(200, pool)) * scale).astype(dtype)
    masked = rng.random(log_weights.shape) < 0.3
    masked[:, 0] = False
    log_weights[masked] = -np.inf
    weights = np.exp(log_weights - log_weights.max(1, keepdims=True))
    expected = 300 * weights / weights.sum(1, keepdims=True)
    for method in ("systematic", "multinomial"):
      counts = resampling.resample_counts(
        log_weights, 300, seed=5, method=method
      ).numpy()
      self.assertAllEqual(counts, np.round(counts))
      self.assertGreaterEqual(counts.min(), 0)
      self.assertAllEqual(counts.sum(1), np.full(200, 300))
      self.assertAllEqual(counts[masked], np.zeros(masked.sum()))
      if method == "systematic":
        self.assertLess(np.abs(counts - expected).max(), 1.01)

  def test_widths_agree(self):
    # The same rows in a pool of 64 columns, and of 65 with a masked one.
    log_weights = np.random.default_rng(0).normal(size=(50, 64))
    wider = np.pad(log_weights, [[0, 0], [0, 1]], constant_values=-np.inf)
    a, b = (
      resampling.resample_counts(x, 40, seed=5, method="systematic").numpy()
      for x in (log_weights, wider)
    )
    self.assertAllEqual(a, b[:, :64])


if __name__ == "__main__":
  tf.test.main()
