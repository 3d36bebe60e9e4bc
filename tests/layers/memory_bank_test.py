"""Tests of xir_tfrs.layers.MemoryBank."""

import numpy as np
import pytest
import tensorflow as tf
from absl.testing import parameterized

from tests import reference
from xir_tfrs import distribute, layers

_DIM = 2


def _rows(first, count):
  """Rows in which embedding, id and log_q each identify the row."""
  ids = np.arange(first, first + count)
  return (
    np.stack([ids, -ids], axis=1).astype(np.float32),
    ids,
    (-0.5 * ids).astype(np.float32),
  )


def _update(bank, rows):
  embeddings, ids, log_q = rows
  bank.update(
    tf.constant(embeddings), tf.constant(ids, tf.int64), tf.constant(log_q)
  )


def _contents(bank):
  """Rows in the bank, oldest first."""
  filled, head = int(bank.filled.numpy()), int(bank.head.numpy())
  embeddings, ids, log_q = (x.numpy() for x in bank.read(bank.filled))
  first = head if filled == bank.bank_size else 0
  order = [(first + i) % bank.bank_size for i in range(filled)]
  return embeddings[order], ids[order], log_q[order]


class MemoryBankTest(tf.test.TestCase, parameterized.TestCase):
  def test_starts_empty(self):
    bank = layers.MemoryBank(3, _DIM)
    self.assertAllEqual(bank.ids, [-1] * 3)
    self.assertAllEqual(bank.embeddings, np.zeros([3, _DIM]))
    self.assertEqual((int(bank.head), int(bank.filled)), (0, 0))
    self.assertEqual([len(x) for x in bank.read(bank.filled)], [0, 0, 0])

  def test_variables_are_named_untrained_and_aggregated(self):
    bank = layers.MemoryBank(3, _DIM)
    self.assertLen(bank.variables, 5)
    for variable in bank.variables:
      self.assertFalse(variable.trainable)
      self.assertNotIn("Variable", variable.name)
      self.assertEqual(
        variable.aggregation, tf.VariableAggregation.ONLY_FIRST_REPLICA
      )

  @parameterized.product(
    # The last batch has more rows than there are slots.
    sizes=((2, 2), (3, 3, 3), (4, 1, 5, 2), (5, 0, 1), (7, 12, 3)),
    graph=(False, True),
  )
  def test_the_bank_keeps_the_newest_rows(self, sizes, graph):
    bank = layers.MemoryBank(5, _DIM)
    update = tf.function(bank.update) if graph else bank.update
    batches, first = [], 0
    for size in sizes:
      embeddings, ids, log_q = _rows(first, size)
      update(
        tf.constant(embeddings), tf.constant(ids, tf.int64), tf.constant(log_q)
      )
      batches.append(list(range(first, first + size)))
      first += size
      expected = reference.memory_bank(5, batches)
      embeddings, ids, log_q = _contents(bank)
      self.assertAllEqual(ids, expected)
      self.assertAllEqual(embeddings[:, 0], expected)
      self.assertAllEqual(log_q, [-0.5 * i for i in expected])
      self.assertEqual(int(bank.filled), len(expected))

  def test_read_is_of_before_the_update(self):
    bank = layers.MemoryBank(3, _DIM)
    _update(bank, _rows(0, 3))

    @tf.function
    def step():
      _, ids, _ = bank.read(bank.filled)
      bank.update(*(tf.constant(x) for x in _rows(7, 2)))
      return ids

    self.assertAllEqual(step(), [0, 1, 2])
    self.assertAllEqual(bank.ids, [7, 8, 2])

  def test_takes_other_float_types(self):
    bank = layers.MemoryBank(3, _DIM)
    embeddings, ids, log_q = _rows(0, 2)
    bank.update(
      tf.constant(embeddings, tf.float64),
      tf.constant(ids, tf.int32),
      tf.constant(log_q, tf.float16),
    )
    self.assertAllEqual(_contents(bank)[0], embeddings)

  def test_checkpoint_config_and_reset(self):
    bank = layers.MemoryBank(3, _DIM, name="a_bank")
    _update(bank, _rows(0, 4))
    again = layers.MemoryBank.from_config(bank.get_config())
    self.assertEqual(again.name, "a_bank")
    path = tf.train.Checkpoint(bank=bank).save(self.get_temp_dir() + "/bank")
    tf.train.Checkpoint(bank=again).restore(path).assert_consumed()
    for rows in (_rows(4, 1), _rows(5, 3)):
      _update(bank, rows)
      _update(again, rows)
    for first, second in zip(bank.variables, again.variables, strict=True):
      self.assertAllEqual(first, second)
    again.reset()
    new = layers.MemoryBank(3, _DIM)
    for first, second in zip(again.variables, new.variables, strict=True):
      self.assertAllEqual(first, second)

  @parameterized.parameters((0, 2), (-1, 2), (3, 0))
  def test_bad_sizes_name_the_value(self, bank_size, dim):
    name, value = ("dim", dim) if not dim else ("bank_size", bank_size)
    with self.assertRaisesRegex(ValueError, f"{name}` = {value}"):
      layers.MemoryBank(bank_size, dim)


class TwoReplicasTest(tf.test.TestCase, parameterized.TestCase):
  @pytest.fixture(autouse=True)
  def _use(self, two_replicas):
    self.strategy = two_replicas

  @parameterized.parameters(False, True)
  def test_replicas_hold_the_same(self, graph):
    with self.strategy.scope():
      bank = layers.MemoryBank(5, _DIM)

    def step(rows):
      bank.update(*(distribute.all_gather(x) for x in rows))

    run = tf.function(lambda rows: self.strategy.run(step, args=(rows,)))
    if not graph:
      run = run.python_function
    # Uneven shares: three rows and one row.
    for first in (0, 4):
      parts = (_rows(first, 3), _rows(first + 3, 1))
      run(
        self.strategy.experimental_distribute_values_from_function(
          lambda context, parts=parts: tuple(
            tf.constant(x) for x in parts[context.replica_id_in_sync_group]
          )
        )
      )
    self.assertAllEqual(_contents(bank)[1], [3, 4, 5, 6, 7])
    for variable in bank.variables:
      self.assertAllEqual(*variable.values)


if __name__ == "__main__":
  tf.test.main()
