"""Checks that every task must pass if queries are histories.

Rows have two forms: each with its history, or as positions of shared
windows; see `models.TwoTower`. A new task needs a row in
`tests.distributed.problems`.
"""

import numpy as np
import pytest
import tensorflow as tf
from absl.testing import parameterized

from tests.distributed import problems
from xir_tfrs import models
from xir_tfrs.data import histories

_LENGTH, _ROWS = 4, 12
_METHODS = tuple(x for x in problems.METHODS if not x.endswith("_expected"))
# Rows of the two replicas: some windows have targets on both.
_SHARES = ((0, 7), (7, _ROWS))


def _batches():
  rng = np.random.default_rng(0)
  lengths = [9, 5, 1, 6, 3, 7, 2]
  rows = histories.Histories.of_rows(
    {
      "query_id": np.repeat(np.arange(problems.NUM_QUERIES), lengths),
      "candidate_id": rng.integers(0, problems.NUM_CANDIDATES, sum(lengths)),
      "event": np.arange(sum(lengths)),
      "timestamp": np.cumsum(rng.integers(0, 99, sum(lengths))),
      "sample_weight": rng.uniform(0.5, 2, sum(lengths)).astype(np.float32),
    }
  )
  return histories.PositionBatches(
    rows,
    histories.Windows.of_histories(rows, _LENGTH),
    global_batch_size=_ROWS,
    seed=0,
    with_times=True,
  )


def _batch(step, low, high, examples):
  """Rows [low, high) of a batch, in one of the two forms."""
  batch = _batches().share(step, low, high)
  if examples == "rows":
    row, position = batch["history_row"], batch["history_position"]
    windows, times = batch["history_ids"][row], batch["history_times"][row]
    before = np.arange(_LENGTH) < position[:, np.newaxis]
    times[:, -1] = times[np.arange(len(times)), position]
    batch = {k: v for k, v in batch.items() if not k.startswith("history")}
    batch["history_ids"] = np.where(before, windows, -1)
    batch["history_times"] = times
  return {name: tf.constant(value) for name, value in batch.items()}


def _model(method, encoder, dropout=0.0):
  candidates = models.Tower(
    vocabulary_size=problems.NUM_CANDIDATES, dim=problems.DIM, init_stddev=1.0
  )
  queries = models.HistoryTower(
    candidates,
    encoder,
    _LENGTH,
    encoder_arguments=(
      {"num_blocks": 1, "ages": True} if encoder == "attention" else {}
    ),
    dropout=dropout,
    seed=1,
  )
  given = {"history_length": _LENGTH} if method == "corr" else {}
  task = problems.METHODS[method].make(candidates, problems.COUNTS, **given)
  return models.TwoTower(queries, candidates, task)


def _step(model, batch):
  """Loss, and gradients of all trainable variables."""
  with tf.GradientTape() as tape:
    loss = model.compute_loss(batch, training=True)
  gradients = tape.gradient(loss, model.trainable_variables)
  return loss, [tf.convert_to_tensor(gradient) for gradient in gradients]


def _descend(model, gradients):
  for variable, gradient in zip(
    model.trainable_variables, gradients, strict=True
  ):
    variable.assign_sub(0.1 * gradient)


@pytest.mark.parametrize("method", _METHODS)
def test_rows_and_positions_are_the_same_rows(method):
  # Attention counts positions from the end of a window, which they share.
  single, shared = (_model(method, "gru") for _ in range(2))
  for step in range(2):
    losses, gradients = [], []
    for model, examples in ((single, "rows"), (shared, "positions")):
      model.task.refresh()
      batch = _batch(step, 0, _ROWS, examples)
      found = _step(model, batch)
      losses.append(found[0])
      gradients.append(found[1])
      _descend(model, found[1])
    np.testing.assert_allclose(*losses, rtol=1e-5)
    for of_rows, of_positions in zip(*gradients, strict=True):
      np.testing.assert_allclose(of_rows, of_positions, rtol=1e-3, atol=1e-5)


class TwoReplicasTest(tf.test.TestCase, parameterized.TestCase):
  @pytest.fixture(autouse=True)
  def _use(self, two_replicas):
    self.strategy = two_replicas

  # Only CoRR's ranker sees in which form the histories of its rows are.
  @parameterized.parameters(
    *((method, "positions") for method in _METHODS),
    ("ssl_pop", "rows"),
    ("corr", "rows"),
  )
  def test_two_replicas_are_one_device(self, method, examples):
    one = _model(method, "attention", dropout=0.4)
    with self.strategy.scope():
      two = _model(method, "attention", dropout=0.4)
    for step in range(2):
      for model in (one, two):
        model.task.refresh()
      loss, gradients = _step(one, _batch(step, 0, _ROWS, examples))
      shares = self.strategy.experimental_distribute_values_from_function(
        lambda context, step=step: _batch(
          step, *_SHARES[context.replica_id_in_sync_group], examples
        )
      )
      found = self.strategy.run(lambda own: _step(two, own), args=(shares,))
      total, sums = self.strategy.reduce("SUM", found, axis=None)
      self.assertAllClose(total, loss, rtol=1e-5)
      for first, second in zip(gradients, sums, strict=True):
        self.assertAllClose(first, second, rtol=1e-3, atol=1e-5)
      _descend(one, gradients)
      _descend(two, sums)
    self.assertEqual(problems.apart(two.variables), 0.0)


if __name__ == "__main__":
  tf.test.main()
