"""Training batches as a pure function of (seed, step)."""

import itertools

import numpy as np
import pytest

from xir_tfrs.data import datasets

ROWS = 23
COLUMNS = {
  "query_id": np.arange(ROWS, dtype=np.int32),
  "candidate_id": np.arange(ROWS, dtype=np.int32) * 2,
  "sample_weight": np.linspace(0, 1, ROWS).astype(np.float32),
}


def batches(count, **arguments):
  arguments = {"global_batch_size": 5, "seed": 1} | arguments
  dataset = datasets.training_dataset(COLUMNS, **arguments)
  return list(itertools.islice(dataset.as_numpy_iterator(), count))


def test_every_epoch_is_a_permutation_of_its_own():
  stream = np.concatenate([b["query_id"] for b in batches(23)])
  epochs = stream[: 5 * ROWS].reshape(5, ROWS)
  for epoch in epochs:
    assert sorted(epoch) == list(range(ROWS))
  assert len({tuple(epoch) for epoch in epochs}) == 5
  # In shuffled data, consecutive rows are rarely neighbours.
  assert (np.diff(epochs, axis=1) == 1).mean() < 0.2


def test_rows_stay_together():
  for batch in batches(5):
    np.testing.assert_array_equal(batch["candidate_id"], 2 * batch["query_id"])
    np.testing.assert_allclose(
      batch["sample_weight"], batch["query_id"] / (ROWS - 1), rtol=1e-6
    )


def test_any_step_can_be_resumed():
  whole = batches(30)
  for start in (1, 7, 29):
    resumed = batches(30 - start, start_step=start)
    for a, b in zip(whole[start:], resumed, strict=True):
      np.testing.assert_array_equal(a["query_id"], b["query_id"])


@pytest.mark.parametrize("replicas", [1, 2, 3, 5])
def test_shares_make_up_the_global_batch(replicas):
  whole = batches(4, start_step=3)
  shares = datasets.shares(5, replicas)
  parts = batches(4 * replicas, start_step=3, shares=shares)
  for step, expected in enumerate(whole):
    got = parts[step * replicas : (step + 1) * replicas]
    np.testing.assert_array_equal(
      expected["query_id"], np.concatenate([part["query_id"] for part in got])
    )
  # A host with some of the replicas only makes their shares.
  (first, *_) = batches(1, start_step=3, shares=shares[-1:])
  np.testing.assert_array_equal(
    first["query_id"], parts[replicas - 1]["query_id"]
  )


def test_shares_are_even_and_never_empty():
  sizes = [high - low for low, high in datasets.shares(2048, 3)]
  assert sum(sizes) == 2048 and max(sizes) - min(sizes) == 1
  with pytest.raises(ValueError, match="3 rows for 4 replicas"):
    datasets.shares(3, 4)


def test_seeds_differ():
  a, b = (batches(4, seed=seed) for seed in (1, 2))
  assert any(
    (x["query_id"] != y["query_id"]).any() for x, y in zip(a, b, strict=True)
  )


def test_batch_may_exceed_the_rows():
  (batch,) = batches(1, global_batch_size=60)
  assert np.bincount(batch["query_id"]).min() >= 2


@pytest.mark.parametrize(
  "rows, batch, epochs, steps",
  [
    (23, 5, 1, 5),
    (23, 5, 2, 10),
    (25, 5, 2, 10),
    (3, 10, 4, 2),
    (1, 1, 1, 1),
  ],
)
def test_steps_to_finish(rows, batch, epochs, steps):
  assert datasets.steps_to_finish(rows, batch, epochs) == steps


def test_errors_name_the_argument():
  with pytest.raises(ValueError, match="`global_batch_size` = 0"):
    batches(1, global_batch_size=0)
  with pytest.raises(ValueError, match="no training rows"):
    datasets.training_dataset(
      {"query_id": np.zeros(0)}, global_batch_size=1, seed=0
    )
