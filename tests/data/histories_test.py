"""Histories: the events that each row sees, and their batches."""

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from xir_tfrs.data import errors, histories


def columns(num_rows=600, queries=20, times=150, seed=0):
  """Rows in any order, with tied times and histories of all lengths."""
  rng = np.random.default_rng(seed)
  skewed = (queries * rng.random(num_rows) ** 3).astype(np.int32)
  return {
    "query_id": skewed,
    "candidate_id": rng.integers(0, 50, num_rows).astype(np.int32),
    "timestamp": rng.integers(0, times, num_rows),
    "event": rng.permutation(num_rows),
  }


def seen(given, row, ties):
  """The candidates before a row, by a loop over all rows."""
  mine = [
    (given["timestamp"][j], given["event"][j], given["candidate_id"][j])
    for j in range(len(given["event"]))
    if given["query_id"][j] == given["query_id"][row]
  ]
  time, event = given["timestamp"][row], given["event"][row]
  return [
    int(candidate)
    for t, e, candidate in sorted(mine)
    if t < time or (ties == "order" and t == time and e < event)
  ]


class HistoriesTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.product(ties=histories.TIES, length=(1, 4, 300))
  def test_a_row_sees_what_came_before(self, ties, length):
    given = columns()
    rows = histories.Histories.of_rows(given, ties)
    before = rows.before(np.arange(600), length)
    place = {event: row for row, event in enumerate(given["event"])}
    for row in range(0, 600, 7):
      expected = seen(given, place[rows.columns["event"][row]], ties)[-length:]
      self.assertEqual(
        before[row].tolist(), [-1] * (length - len(expected)) + expected
      )

  def test_rows_without_times_are_ordered_by_event(self):
    given = {
      "query_id": np.array([1, 0, 1, 1]),
      "candidate_id": np.array([8, 6, 5, 7]),
    }
    rows = histories.Histories.of_rows(
      given | {"event": np.array([2, 0, 0, 1])}
    )
    self.assertAllEqual(
      rows.before(np.arange(4), 2), [[-1, -1], [-1, -1], [-1, 5], [5, 7]]
    )
    self.assertEqual(rows.num_tied, 0)

  def test_rows_without_an_order_are_refused(self):
    given = columns()
    del given["event"]
    histories.Histories.of_rows(given)
    with self.assertRaisesRegex(errors.DataError, "which is not stored.*again"):
      histories.Histories.of_rows(given, "order")
    del given["timestamp"]
    with self.assertRaisesRegex(errors.DataError, "neither times nor.*again"):
      histories.Histories.of_rows(given)

  def test_ties_are_counted_and_hidden(self):
    given = {
      "query_id": np.array([0, 0, 0]),
      "candidate_id": np.array([5, 7, 6]),
      "timestamp": np.array([1, 3, 3]),
      "event": np.array([0, 2, 1]),
    }
    strict, order = (
      histories.Histories.of_rows(given, ties) for ties in histories.TIES
    )
    self.assertEqual((strict.num_tied, order.num_tied), (1, 1))
    self.assertAllEqual(strict.before(np.array([2]), 2), [[-1, 5]])
    self.assertAllEqual(order.before(np.array([2]), 2), [[5, 6]])

  def test_unknown_ties(self):
    with self.assertRaisesRegex(ValueError, "one of strict, order.*'first'"):
      histories.Histories.of_rows(columns(), "first")

  def test_no_rows(self):
    rows = histories.Histories.of_rows(columns(0))
    self.assertEqual(rows.before(np.zeros(0, int), 3).shape, (0, 3))
    windows = histories.Windows.of_histories(rows, 3)
    self.assertEqual(windows.num_rows, 0)
    with self.assertRaisesRegex(ValueError, "no training rows"):
      histories.PositionBatches(rows, windows, global_batch_size=4, seed=0)


class PositionBatchesTest(tf.test.TestCase, parameterized.TestCase):
  def batches(self, length, ties="strict", batch=64, seed=3):
    rows = histories.Histories.of_rows(columns(), ties)
    windows = histories.Windows.of_histories(rows, length)
    return histories.PositionBatches(
      rows, windows, global_batch_size=batch, seed=seed, with_times=True
    )

  @parameterized.product(ties=histories.TIES, length=(2, 5, 400))
  def test_times_are_those_of_the_events_and_of_the_row(self, ties, length):
    batch = self.batches(length, ties).share(1, 0, 64)
    rows = histories.Histories.of_rows(columns(), ties)
    place = {event: row for row, event in enumerate(rows.columns["event"])}
    own = np.array([place[event] for event in batch["event"]])
    expected = rows.times_before(own, length)
    self.assertAllEqual(expected[:, -1], batch["timestamp"])
    for row, times in enumerate(expected):
      position = batch["history_position"][row]
      found = batch["history_times"][batch["history_row"][row]]
      self.assertEqual(found.shape, (length + 1,))
      self.assertAllEqual(found[:position], times[length - position : length])
      # The request for the row comes at its time.
      self.assertEqual(found[position], times[-1])
      # The state after all events of a window asks at its last column.
      if (
        position == (batch["history_ids"][batch["history_row"][row]] >= 0).sum()
      ):
        self.assertEqual(found[-1], times[-1])

  @parameterized.product(ties=histories.TIES, length=(2, 5, 400))
  def test_each_row_sees_its_history(self, ties, length):
    given = columns()
    place = {event: row for row, event in enumerate(given["event"])}
    batch = self.batches(length, ties).share(1, 0, 64)
    self.assertLen(batch["candidate_id"], 64)
    for row in range(64):
      window = batch["history_row"][row]
      events = batch["history_ids"][window][: batch["history_position"][row]]
      expected = seen(given, place[batch["event"][row]], ties)
      self.assertEqual(events.tolist(), expected[len(expected) - len(events) :])
      # A long history is truncated, but to no less than half of a window.
      self.assertGreaterEqual(len(events), min(len(expected), length // 2))
      self.assertEqual(
        batch["history_query_ids"][window], batch["query_id"][row]
      )

  @parameterized.parameters(2, 5, 400)
  def test_an_epoch_contains_each_row_once(self, length):
    batches = self.batches(length)
    events = [batches.share(step, 0, 64)["event"] for step in range(20)]
    events = np.concatenate(events)
    self.assertAllEqual(np.sort(events[:600]), np.arange(600))
    self.assertAllEqual(np.sort(events[600:1200]), np.arange(600))
    self.assertNotAllClose(events[:600], events[600:1200])

  def test_a_batch_is_the_same_in_any_order_and_on_any_replicas(self):
    first, again = self.batches(5), self.batches(5)
    whole = first.share(7, 0, 64)
    for step in (30, 7, 2, 9):
      again.share(step, 0, 64)
    parts = [again.share(7, 0, 20), again.share(7, 20, 64)]
    for name in ("query_id", "candidate_id", "event", "timestamp"):
      self.assertAllEqual(
        whole[name], np.concatenate([part[name] for part in parts])
      )
    # So are windows, even if two replicas share their targets: dropout depends
    # on their number in the batch, and ages on their newest event.
    self.assertEqual(whole["history_first_row"], 0)
    for part in parts:
      first = part["history_first_row"]
      own = slice(first, first + len(part["history_ids"]))
      self.assertAllEqual(whole["history_ids"][own], part["history_ids"])
    self.assertAllEqual(
      whole["history_row"],
      np.concatenate(
        [p["history_row"] + p["history_first_row"] for p in parts]
      ),
    )
    other = self.batches(5, seed=4).share(7, 0, 64)
    self.assertNotAllClose(whole["event"], other["event"])

  def test_dataset_resumes_at_a_step(self):
    batches = self.batches(5)
    shares = [(0, 20), (20, 64)]
    found = list(
      batches.dataset(start_step=3, shares=shares).take(4).as_numpy_iterator()
    )
    for element, batch in enumerate(found):
      expected = batches.share(3 + element // 2, *shares[element % 2])
      self.assertAllEqual(batch["candidate_id"], expected["candidate_id"])
      self.assertAllEqual(batch["history_ids"], expected["history_ids"])
      self.assertAllEqual(
        batch["history_position"], expected["history_position"]
      )


class RowsBeforeDatasetTest(tf.test.TestCase):
  def test_each_row_comes_with_its_history(self):
    rows = histories.Histories.of_rows(columns())
    dataset = histories.rows_before_dataset(
      rows,
      length=4,
      with_times=True,
      global_batch_size=32,
      seed=1,
      start_step=2,
    )
    (batch,) = dataset.take(1).as_numpy_iterator()
    self.assertNotIn("row", batch)
    place = {event: row for row, event in enumerate(rows.columns["event"])}
    own = np.array([place[e] for e in batch["event"]])
    self.assertAllEqual(batch["history_ids"], rows.before(own, 4))
    self.assertAllEqual(batch["history_times"], rows.times_before(own, 4))

  def test_times_are_needed(self):
    given = columns()
    del given["timestamp"]
    rows = histories.Histories.of_rows(given)
    with self.assertRaisesRegex(errors.DataError, "have no times, and ages"):
      histories.rows_before_dataset(
        rows, length=4, with_times=True, global_batch_size=32, seed=1
      )
