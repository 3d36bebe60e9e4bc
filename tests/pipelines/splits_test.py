"""Splits, compared with slow twins in plain Python."""

import collections

import numpy as np
import pytest

from pipelines.preparation import splits

_MASK = 2**64 - 1


def _slow_mix(x):
  x = (x + 0x9E3779B97F4A7C15) & _MASK
  x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
  x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
  return x ^ (x >> 31)


def _slow_random(users, items, seed, test, validation):
  by_user = collections.defaultdict(list)
  for row, (user, item) in enumerate(zip(users, items, strict=True)):
    key = _slow_mix(_slow_mix(_slow_mix(seed) ^ user) ^ item) >> 32
    by_user[user].append((key, row))
  labels = [None] * len(users)
  for rows in by_user.values():
    kept = round((1 - test) * len(rows))
    held = min(round(validation * kept), max(kept - 1, 0))
    for place, (_, row) in enumerate(sorted(rows)):
      labels[row] = (
        splits.TRAIN
        if place < kept - held
        else splits.VALIDATION
        if place < kept
        else splits.TEST
      )
  return labels


def _rows(num_users=40, seed=0):
  rng = np.random.default_rng(seed)
  users = np.sort(rng.integers(num_users, size=400).astype(np.int32))
  items = rng.permutation(1000)[:400].astype(np.int32)
  return users, items


@pytest.mark.parametrize("seed", [0, 10, 2**40])
@pytest.mark.parametrize(
  ("test", "validation"), [(0.2, 0), (0.2, 0.1), (0.5, 0.5), (0, 0), (0.9, 0)]
)
def test_random_equals_its_twin(seed, test, validation):
  users, items = _rows()
  labels = splits.random_per_user(
    users, items, seed=seed, test_fraction=test, validation_fraction=validation
  )
  assert labels.tolist() == _slow_random(
    users.tolist(), items.tolist(), seed, test, validation
  )


def test_random_rounds_half_to_even():
  # (1 - 0.2) n for n = 1 ... 13; 0.5 n for odd n tests rounding of halves.
  for n in range(1, 14):
    users = np.zeros(n, np.int32)
    for test in (0.2, 0.5):
      labels = splits.random_per_user(
        users,
        np.arange(n),
        seed=1,
        test_fraction=test,
        validation_fraction=0,
      )
      assert (labels == splits.TRAIN).sum() == round((1 - test) * n)


def test_random_labels_of_a_user_do_not_depend_on_others():
  """A user's labels do not depend on the other rows of the bucket."""
  users, items = _rows()
  kwargs = dict(seed=3, test_fraction=0.3, validation_fraction=0.2)
  labels = splits.random_per_user(users, items, **kwargs)
  odd = users % 2 == 1
  np.testing.assert_array_equal(
    splits.random_per_user(users[odd], items[odd], **kwargs), labels[odd]
  )
  other = splits.random_per_user(users, items, **{**kwargs, "seed": 4})
  assert (labels != other).any()


def test_random_positions_are_uniform():
  """Every row of a user is equally likely to be in the test split."""
  users = np.repeat(np.arange(4000, dtype=np.int32), 5)
  items = np.tile(np.arange(5, dtype=np.int32), 4000)
  labels = splits.random_per_user(
    users, items, seed=0, test_fraction=0.2, validation_fraction=0
  )
  counts = np.bincount(items[labels == splits.TEST], minlength=5)
  assert counts.sum() == 4000
  # Chi-square with 4 degrees of freedom: 18.5 has p = 0.001.
  assert ((counts - 800) ** 2 / 800).sum() < 18.5


def test_leave_last():
  users = np.array([0, 1, 1, 2, 2, 2, 5, 5, 5, 5])
  train, validation, test = splits.TRAIN, splits.VALIDATION, splits.TEST
  assert splits.leave_last(users).tolist() == [
    *(train,),
    *(train, test),
    *(train, validation, test),
    *(train, train, validation, test),
  ]


@pytest.mark.parametrize("high", [3, 10**3, 2**62])
@pytest.mark.parametrize(
  ("test", "validation"), [(0.2, 0.25), (0.2, 0), (0, 0), (0.5, 0.9)]
)
@pytest.mark.parametrize("chunk", [7, 500])
def test_temporal_equals_sorting(high, test, validation, chunk):
  rng = np.random.default_rng(0)
  times = rng.integers(-high, high, size=500)
  chunks = np.array_split(times, range(chunk, 500, chunk))
  cuts = splits.temporal_cuts(
    lambda: chunks, test_fraction=test, validation_fraction=validation
  )
  ordered = sorted(times.tolist())
  kept = round((1 - test) * 500)
  train = kept - round(validation * kept)
  expected_test = ordered[kept] if kept < 500 else ordered[-1] + 1
  expected_validation = (
    min(ordered[train], expected_test) if train < kept else expected_test
  )
  assert cuts == (expected_validation, expected_test)
  labels = splits.temporal(times, *cuts)
  for earlier, later in ((0, 1), (1, 2), (0, 2)):
    if (labels == earlier).any() and (labels == later).any():
      assert times[labels == earlier].max() < times[labels == later].min()


def test_no_search_takes_more_rounds_than_the_longest():
  low, high = -(2**63), 2**63 - 1
  times = np.array([low, -5, -4, high])
  searches = splits.temporal_searches(
    low, high, 4, test_fraction=0.25, validation_fraction=0.4
  )
  for _ in range(splits.SEARCH_ROUNDS):
    assert not all(search.done for search in searches)
    counts = splits.search_counts(searches, times)
    searches = splits.narrowed(searches, counts)
  assert all(search.done for search in searches)
  assert splits.cuts_found(searches) == (-4, high)


def test_leaked_pairs_are_found():
  pairs = np.array([5, 3, 5, 9, 3, 7, 5])
  labels = np.array([0, 0, 2, 1, 1, 2, 1])
  assert splits.splits_of_pairs(pairs, labels).tolist() == [
    0b011,  # 3: train and validation
    0b111,  # 5: all three
    0b100,  # 7
    0b010,  # 9
  ]
  assert splits.splits_of_pairs(pairs[:0], labels[:0]).tolist() == []


def test_rows_after():
  users = np.array([0, 0, 0, 1, 1, 4, 4])
  times = np.array([1, 5, 3, 9, 2, 4, 4])
  earlier = np.array([1, 1, 0, 1, 0, 1, 0], bool)
  # User 0: 5 > 3. User 1: 9 > 2. User 4: 4 is not after 4.
  assert splits.rows_after(users, times, earlier, ~earlier) == 2
  assert splits.rows_after(users, times, earlier, earlier & False) == 0
