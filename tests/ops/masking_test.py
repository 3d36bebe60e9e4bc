"""Tests of xir_tfrs.ops.masking."""

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests import reference
from xir_tfrs.ops import masking


class MaskLogitsTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters(tf.float16, tf.float32, tf.float64)
  def test_masked_logits_get_no_probability(self, dtype):
    logits = tf.constant([[1.0, 2.0, 3.0]], dtype)
    masked = masking.mask_logits(logits, [[True, False, True]])
    self.assertEqual(masked.dtype, dtype)
    self.assertAllEqual(masked, [[1.0, -np.inf, 3.0]])
    self.assertAllEqual(tf.nn.softmax(masked)[0, 1], 0.0)

  def test_a_masked_overflow_stays_out_of_value_and_gradient(self):
    logits = tf.constant([[1.0, np.inf, np.nan]])
    with tf.GradientTape() as tape:
      tape.watch(logits)
      total = tf.reduce_logsumexp(
        masking.mask_logits(logits, [[True, False, False]])
      )
    self.assertAllClose(total, 1.0)
    self.assertAllClose(tape.gradient(total, logits), [[1.0, 0.0, 0.0]])


class AccidentalHitsTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.product(
    batch=(1, 4), pool=(1, 7), dtype=(np.int32, np.int64), graph=(False, True)
  )
  def test_reference(self, batch, pool, dtype, graph):
    rng = np.random.default_rng(5)
    positive_ids = rng.integers(0, 4, batch).astype(dtype)
    pool_ids = rng.integers(0, 4, pool).astype(dtype)
    function = masking.accidental_hits
    hits = (tf.function(function) if graph else function)(
      tf.constant(positive_ids), tf.constant(pool_ids)
    )
    self.assertEqual(hits.dtype, tf.bool)
    self.assertAllEqual(hits, reference.accidental_hits(positive_ids, pool_ids))

  def test_large_ids_are_compared_exactly(self):
    # 2^24 and 2^24 + 1 are the same float32; 2^40 and 0 the same int32.
    hits = masking.accidental_hits(
      tf.constant([2**24, 2**40], tf.int64),
      tf.constant([2**24 + 1, 2**24, 0, 2**40], tf.int64),
    )
    self.assertAllEqual(
      hits, [[False, True, False, False], [False, False, False, True]]
    )


class KnownColumnsTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.product(pool=(1, 7, 40), dtype=(np.int32, np.int64))
  def test_reference(self, pool, dtype):
    rng = np.random.default_rng(pool)
    pool_ids = rng.integers(0, 12, pool).astype(dtype)
    positive_ids = rng.integers(0, 12, 5).astype(dtype)
    known = [
      rng.choice(15, size, replace=False).tolist() for size in (0, 3, 15, 1, 6)
    ]
    columns = tf.function(masking.known_columns)(
      tf.ragged.constant(known, tf.int64), positive_ids, pool_ids
    )
    self.assertAllEqual(
      masking.columns_mask(columns, pool),
      reference.known_positives(known, positive_ids, pool_ids),
    )

  def test_ids_that_end_alike_are_told_apart(self):
    pool_ids = tf.constant([5, 2**16 + 5, 2**40 + 5, -1], tf.int64)
    columns = masking.known_columns(
      tf.ragged.constant([[5], [2**17 + 5], [2**40 + 5, -1]], tf.int64),
      tf.zeros([3], tf.int64),
      pool_ids,
    )
    self.assertAllEqual(columns.row_lengths(), [1, 0, 2])
    self.assertAllEqual(columns.values[0], 0)
    self.assertCountEqual(columns.values[1:].numpy(), [2, 3])

  def test_no_rows_and_nothing_known(self):
    for known, rows in (([], 0), ([[], []], 2)):
      columns = masking.known_columns(
        tf.ragged.constant(known, tf.int64, ragged_rank=1),
        tf.zeros([rows], tf.int64),
        tf.constant([1, 2], tf.int64),
      )
      self.assertAllEqual(columns.row_lengths(), [0] * rows)
      self.assertEqual(masking.columns_mask(columns, 2).shape, [rows, 2])


class InUseTest(tf.test.TestCase):
  def test_columns_that_are_not_there_never_count(self):
    mask = masking.ColumnMask(
      tf.constant([1, 2]),
      tf.constant([1, 2, 1, 0]),
      own_offset=tf.constant(0),
      own="kept",
      accidental_hits=True,
      in_use=tf.constant([True, True, True, False]),
    )
    self.assertAllEqual(
      mask.keep(0, 2), [[True, True, False, False], [True, True, True, False]]
    )
    alone = masking.ColumnMask(
      tf.constant([1, 2]),
      tf.constant([1, 2]),
      in_use=tf.constant([True, False]),
    )
    self.assertAllEqual(alone.keep(0, 2), [[True, False]] * 2)


class SharedKnownTest(tf.test.TestCase, parameterized.TestCase):
  """Rows that share known positives have the same mask as separate rows."""

  @parameterized.product(
    accidental_hits=(False, True),
    padded=(False, True),
    run=("eager", "graph", "compiled"),
  )
  def test_reference(self, accidental_hits, padded, run):
    rng = np.random.default_rng(3)
    pool_ids = rng.integers(0, 12, 20)
    positive_ids = rng.integers(0, 12, 7)
    known = [[], [0, 3, 5, 9], list(range(12))]
    entries = [1, 2, 2, 0, 1, 2, 1]
    ids = tf.ragged.constant(known, tf.int64)
    if padded:
      ids = ids.to_tensor(-1)

    def keep():
      mask = masking.ColumnMask(
        tf.constant(positive_ids),
        tf.constant(pool_ids),
        accidental_hits=accidental_hits,
        known_ids=ids,
        known_rows=tf.constant(entries),
      )
      # In parts, as in the kernel.
      return tf.concat([mask.keep(0, 3), mask.keep(3, 4)], axis=0)

    expected = ~reference.known_positives(
      [known[entry] for entry in entries], positive_ids, pool_ids
    )
    if accidental_hits:
      expected &= ~reference.accidental_hits(positive_ids, pool_ids)
    if run != "eager":
      keep = tf.function(keep, jit_compile=run == "compiled")
    self.assertAllEqual(keep(), expected)


class OwnColumnsTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters(
    (1, 1, 0), (3, 3, 0), (2, 6, 0), (2, 6, 4), (3, 5, 1)
  )
  def test_reference(self, batch, pool, offset):
    expected = reference.own_columns(batch, pool, offset)
    self.assertAllEqual(
      masking.own_columns(batch, pool, offset=offset), expected
    )
    dynamic = tf.function(masking.own_columns)(
      tf.constant(batch), tf.constant(pool), offset=tf.constant(offset)
    )
    self.assertEqual(dynamic.dtype, tf.bool)
    self.assertAllEqual(dynamic, expected)

  def test_no_offset_is_the_diagonal(self):
    self.assertAllEqual(masking.own_columns(3, 3), np.eye(3, dtype=bool))


if __name__ == "__main__":
  tf.test.main()
