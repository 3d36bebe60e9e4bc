"""Rows on disk that are read into memory one part at a time."""

import dataclasses
import functools

import numpy as np
import pytest

from xir_tfrs.data import blocks as blocks_lib
from xir_tfrs.data import (
  datasets,
  directory,
  errors,
  histories,
  parts,
  records,
)
from xir_tfrs.data import schema as schema_lib

QUERIES, CANDIDATES, ROWS, BATCH = 300, 90, 6000, 70
FEATURES = tuple(
  schema_lib.InteractionFeature(name, dtype)
  for name, dtype in {
    "query_id": "int64",
    "candidate_id": "int64",
    "event": "int64",
    "timestamp": "int64",
    "sample_weight": "float32",
  }.items()
)


def some_rows(seed=0):
  rng = np.random.default_rng(seed)
  return {
    "query_id": (QUERIES * rng.random(ROWS) ** 2).astype(np.int64),
    "candidate_id": rng.integers(CANDIDATES, size=ROWS),
    # Identifies a row.
    "event": np.arange(ROWS),
    "timestamp": rng.integers(500, size=ROWS),
    "sample_weight": rng.integers(0, 4, ROWS).astype(np.float32),
  }


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """Rows in buckets by query, in two files, as prepare writes them."""
  path = tmp_path_factory.mktemp("data")
  rows = some_rows()
  shards = []
  for shard in range(2):
    name = records.shard_name("train", shard, 2)
    with records.BlockWriter(path / name, block_rows=50) as writer:
      for bucket in range(12):
        mine = np.flatnonzero(rows["query_id"] % 12 == bucket)[shard::2]
        writer.append({name: column[mine] for name, column in rows.items()})
        writer.end_block()
      shards.append(schema_lib.Shard(name, writer.rows))
  schema = schema_lib.Schema(
    name="parts",
    num_queries=QUERIES,
    num_candidates=CANDIDATES,
    rows={"train": ROWS},
    shards={"train": tuple(shards)},
    interaction_features=FEATURES,
  ).with_hashes(path)
  schema.save(path)
  return path, schema


@pytest.fixture(scope="module")
def blocks(data):
  opened = directory.DataDir(data[0])
  return opened.training_blocks(in_order=True, by_query=True)


def trained():
  rows = some_rows()
  kept = rows["sample_weight"] > 0
  return {name: column[kept] for name, column in rows.items()}


KINDS = {
  "rows": parts.ShuffledRows,
  "rows before": functools.partial(parts.ShuffledRows, history_length=5),
  "positions": functools.partial(parts.ShuffledPositions, history_length=8),
}


def make(blocks, kind="rows", **given):
  arguments = {
    "rows_in_memory": 3000,
    "global_batch_size": BATCH,
    "seed": 7,
  }
  return parts.Parts(blocks, KINDS[kind], **arguments | given)


def batches(made, count, **which):
  """Batches as NumPy arrays, or lists where they are ragged."""
  return [
    {
      name: value.to_list() if name == "known_candidate_ids" else value.numpy()
      for name, value in batch.items()
    }
    for batch in made.dataset(**which).take(count)
  ]


def assert_same(one, other):
  assert one.keys() == other.keys()
  for name, value in one.items():
    if name == "known_candidate_ids":
      assert value == other[name]
    else:
      np.testing.assert_array_equal(value, other[name])


def test_blocks_know_their_rows(blocks):
  rows = trained()
  assert blocks.rows.sum() == len(rows["event"])
  assert blocks.rows_on_disk.sum() == ROWS
  for name, counts in blocks.counts.items():
    np.testing.assert_array_equal(
      counts, np.bincount(rows[name], minlength=len(counts))
    )
  np.testing.assert_allclose(
    blocks.weights, np.bincount(rows["candidate_id"], rows["sample_weight"])
  )
  # A bucket has all rows of its queries, and a block only has rows of one.
  assert blocks.unit.max() + 1 == 12
  found = blocks.read(np.flatnonzero(blocks.unit == 3))
  (bucket,) = set(found["query_id"] % 12)
  expected = rows["event"][rows["query_id"] % 12 == bucket]
  assert sorted(found["event"]) == sorted(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_comes_once_in_an_epoch(blocks, kind):
  made = make(blocks, kind)
  rows = trained()
  num_rows = len(rows["event"])
  assert made.num_rows == num_rows
  stream = np.concatenate(
    [b["event"] for b in batches(made, 2 * num_rows // BATCH + 1)]
  )
  first, second = stream[:num_rows], stream[num_rows : 2 * num_rows]
  for epoch in (first, second):
    assert sorted(epoch) == sorted(rows["event"])
  assert (first != second).mean() > 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_batches_follow_from_their_step(blocks, kind):
  """Across parts and epochs: resumed, and shared by replicas."""
  given = {"masks_known": True}
  count = 2 * make(blocks).num_rows // BATCH
  whole = batches(make(blocks, kind, **given), count)
  for start in (1, count // 3, count - 4):
    again = batches(make(blocks, kind, **given), 4, start_step=start)
    for one, other in zip(whole[start:], again, strict=False):
      assert_same(one, other)
  shares = datasets.shares(BATCH, 3)
  shared = batches(make(blocks, kind, **given), 3 * count, shares=shares)
  for step, batch in enumerate(whole):
    of_step = shared[3 * step : 3 * step + 3]
    for name in ("event", "sample_weight"):
      np.testing.assert_array_equal(
        batch[name], np.concatenate([b[name] for b in of_step])
      )
    for (low, high), part in zip(shares, of_step, strict=True):
      for one, other in (
        (known_of(batch)[low:high], known_of(part)),
        (seen_of(batch)[low:high], seen_of(part)),
      ):
        assert one == other


def known_of(batch):
  return [batch["known_candidate_ids"][row] for row in batch["known_row"]]


def seen_of(batch):
  """The history of each row, for both forms of batches."""
  if "history_position" in batch:
    rows, ends = batch["history_row"], batch["history_position"]
    ids = batch["history_ids"][rows]
    return [one[:end].tolist() for one, end in zip(ids, ends, strict=True)]
  if "history_ids" in batch:
    return batch["history_ids"].tolist()
  return [None] * len(batch["event"])


def test_rows_have_their_histories_and_known_candidates(blocks):
  """The same as with all rows in memory."""
  rows = histories.Histories.of_rows(trained())
  place = {event: row for row, event in enumerate(rows.columns["event"])}
  known = datasets.candidates_by_query(rows.columns, QUERIES).to_list()
  factors = np.linspace(1, 3, CANDIDATES)
  for kind in ("rows before", "positions"):
    made = make(blocks, kind, masks_known=True, weights=factors)
    for batch in batches(made, 70):
      at = np.array([place[event] for event in batch["event"]])
      for name in ("query_id", "candidate_id", "timestamp"):
        np.testing.assert_array_equal(batch[name], rows.columns[name][at])
      np.testing.assert_allclose(
        batch["sample_weight"],
        rows.columns["sample_weight"][at] * factors[batch["candidate_id"]],
        rtol=1e-6,
      )
      assert known_of(batch) == [known[query] for query in batch["query_id"]]
      length = 5 if kind == "rows before" else 4
      before = rows.before(at, length)
      for seen, expected in zip(seen_of(batch), before, strict=True):
        expected = expected[expected >= 0].tolist()
        seen = [x for x in seen if x >= 0]
        # Positions in windows see at least half of the window's length.
        assert seen[len(seen) - len(expected) :] == expected


@pytest.mark.parametrize("by_query", [False, True])
def test_neighbouring_rows_are_as_different_as_in_a_full_permutation(
  blocks, by_query
):
  """Except that a part has fewer units than all rows."""
  if not by_query:
    blocks = dataclasses.replace(blocks, unit=np.arange(len(blocks.rows)))
  num_rows = int(blocks.rows.sum())
  made = make(blocks, global_batch_size=num_rows)
  on_disk = blocks.read(np.arange(len(blocks.rows)))["event"]
  unit, place = np.empty([2, ROWS])
  unit[on_disk] = np.repeat(blocks.unit, blocks.rows)
  place[on_disk] = np.arange(num_rows) % 50
  rng = np.random.default_rng(0)
  in_parts, in_full = [], []
  for epoch in range(10):
    events = made.share(epoch, 0, num_rows)["event"]
    places, units = place[events], unit[events]
    assert abs(np.corrcoef(places[1:], places[:-1])[0, 1]) < 0.06
    in_parts.append((np.diff(units) == 0).mean())
    in_full.append((np.diff(rng.permutation(units)) == 0).mean())
  num_parts = len(made._epoch(0).row_ends)
  assert 3 < num_parts < 12
  ratio = np.mean(in_parts) / np.mean(in_full)
  assert 0.8 * num_parts < ratio < 1.2 * num_parts


def test_no_more_than_two_parts_are_in_memory(blocks, monkeypatch):
  made = make(blocks)
  held, most = [], 0
  read = blocks_lib.Blocks.read

  def counting(self, numbers):
    found = read(self, numbers)
    assert self.rows_on_disk[numbers].sum() <= 1500
    return found

  monkeypatch.setattr(blocks_lib.Blocks, "read", counting)
  for step in range(2 * made.num_rows // BATCH):
    made.share(step, 0, BATCH)
    held.append(len(made._held))
    most = max(most, held[-1])
  assert most == 2


def test_blocks_may_split_queries_if_nothing_needs_whole_queries(data):
  blocks = directory.DataDir(data[0]).training_blocks(in_order=True)
  made = make(blocks, rows_in_memory=400)
  stream = np.concatenate(
    [b["event"] for b in batches(made, -(-made.num_rows // BATCH))]
  )
  assert sorted(stream[: made.num_rows]) == sorted(trained()["event"])


def test_too_few_rows_in_memory(blocks):
  with pytest.raises(errors.DataError, match="rows_in_memory 400 is too few"):
    make(blocks, rows_in_memory=400)


def test_a_file_that_disappears_is_named(data, tmp_path):
  path, schema = data
  for shard in schema.shards["train"]:
    (tmp_path / shard.file).write_bytes((path / shard.file).read_bytes())
  schema.save(tmp_path)
  blocks = directory.DataDir(tmp_path).training_blocks()
  name = schema.shards["train"][1].file
  (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:1000])
  with pytest.raises(errors.DataError, match=f"{name}.*was changed"):
    blocks.read(np.arange(len(blocks.rows)))
