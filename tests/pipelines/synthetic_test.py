"""The generator: properties of its data, and its oracle."""

import numpy as np
import pytest

from pipelines import prepare
from pipelines.readers import inputs, synthetic
from xir_tfrs.data import records, schema, tables

_SMALL = inputs.SyntheticConfig(
  num_users=700, num_items=300, num_interactions=14_000
)


def _pairs(source):
  users, items, times = [], [], []
  for _, block in source.blocks():
    users += block.users.to_pylist()
    items += block.items.to_pylist()
    times += block.times.tolist()
  return users, items, times


def test_rows_are_distinct_deterministic_and_of_the_right_number():
  users, items, times = _pairs(synthetic.SyntheticSource(_SMALL))
  assert len(set(zip(users, items, strict=True))) == len(users)
  assert abs(len(users) - 14_000) < 400
  assert len(set(users)) == 700
  assert min(np.unique(users, return_counts=True)[1]) >= 5
  again = synthetic.SyntheticSource(_SMALL)
  assert _pairs(again) == (users, items, times) == _pairs(again)
  # The approximate size of a row as text.
  assert again.size == 32 * len(users)
  other = inputs.SyntheticConfig(
    num_users=700, num_items=300, num_interactions=14_000, seed=1
  )
  assert _pairs(synthetic.SyntheticSource(other))[1] != items


def test_popularity_has_a_long_tail():
  _, items, _ = _pairs(synthetic.SyntheticSource(inputs.SyntheticConfig()))
  counts = np.zeros(4000, int)
  found = np.unique(items, return_counts=True)[1]
  counts[: len(found)] = np.sort(found)[::-1]
  assert counts[:40].sum() > 0.15 * counts.sum()
  assert (counts <= 6).sum() > 200


def test_draws_follow_the_affinity():
  """For many users with the same taste, first picks follow exp(affinity)."""
  config = inputs.SyntheticConfig(
    num_users=5120, num_items=6, num_interactions=1, strength=1.0
  )
  source = synthetic.SyntheticSource(config)
  source._users[:] = source._users[0]
  source._row_counts[:] = 1
  items = [int(i[1:]) for i in _pairs(source)[1]]
  affinity = source._users[0] @ source._items.T + source._log_popularity
  expected = 5120 * np.exp(affinity) / np.exp(affinity).sum()
  counts = np.bincount(items, minlength=6)
  # Chi-square with 5 degrees of freedom: 20.5 has p = 0.001.
  assert ((counts - expected) ** 2 / expected).sum() < 20.5


def test_oracle_ranks_better_than_popularity(tmp_path):
  made = prepare.prepare(
    prepare.PrepareConfig(
      input=inputs.Input(format="synthetic", synthetic=_SMALL),
      output=tmp_path / "out",
    )
  )
  assert made.warnings["users_without_training_rows"] == 0
  oracle = np.load(tmp_path / "out" / schema.ORACLE_FILE)
  queries, candidates = (
    oracle[f"{name}_embeddings"] for name in ("query", "candidate")
  )
  assert queries.dtype == candidates.dtype == np.float32
  assert len(queries) == made.num_queries == 700
  assert len(candidates) == made.num_candidates == 300
  table = tables.read_table(tmp_path / "out", "candidates")
  train = records.read_interactions(tmp_path / "out", "train")
  test = records.read_interactions(tmp_path / "out", "test")

  def recall_at_10(scores):
    scores = scores.copy()
    scores[train["query_id"], train["candidate_id"]] = -np.inf
    top = np.argsort(-scores, axis=1)[:, :10]
    hits = (top[test["query_id"]] == test["candidate_id"][:, None]).sum()
    return hits / len(test["query_id"])

  popularity = np.tile(table.counts.astype(float), (700, 1))
  assert recall_at_10(queries @ candidates.T) > 1.3 * recall_at_10(popularity)


def test_features_tell_about_the_latent_structure():
  source = synthetic.SyntheticSource(_SMALL)
  users, items = source.side_tables()
  assert users.kinds == {"segment": "token"}
  assert items.kinds == {
    "category": "token",
    "tags": "token_seq",
    "price": "float",
  }
  assert set(map(len, items.columns["tags"].to_pylist())) == {3}
  price = items.columns["price"]
  there = np.isfinite(price)
  assert 0 < (~there).sum() < 60
  first_axis = source._items[there, 0]
  assert np.corrcoef(np.log(price[there]), first_axis)[0, 1] > 0.8
  segments = users.columns["segment"].to_pylist()
  assert 0.1 < segments.count("") / len(segments) < 0.3


def test_sizes_are_checked():
  with pytest.raises(ValueError, match="--synthetic_users must be at least 1"):
    inputs.SyntheticConfig(num_users=0)
