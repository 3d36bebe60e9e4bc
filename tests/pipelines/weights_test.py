"""Weights of training rows, including weight 0."""

import numpy as np
import pytest

from pipelines import prepare
from pipelines.readers import inputs
from pipelines.training import batches, build
from pipelines.training import config as configs
from pipelines.training import loop as training
from xir_tfrs.data import directory, errors, runs

_ROWS = {
  "query_id": np.array([0, 0, 1, 1, 2], np.int32),
  "candidate_id": np.array([3, 1, 3, 2, 3], np.int32),
}


def weighted(*weights):
  return _ROWS | {"sample_weight": np.array(weights, np.float32)}


def test_without_weights_all_rows_are_trained_on():
  assert batches.training_rows(_ROWS, "d") is _ROWS
  rows = weighted(1, 2, 0.5, 1, 3)
  assert batches.training_rows(rows, "d") is rows


def test_a_row_of_weight_0_is_left_out():
  rows = batches.training_rows(weighted(1, 0, 2, 0, 3), "d")
  np.testing.assert_array_equal(rows["query_id"], [0, 1, 2])
  np.testing.assert_array_equal(rows["candidate_id"], [3, 3, 3])
  np.testing.assert_array_equal(rows["sample_weight"], [1, 2, 3])


@pytest.mark.parametrize(
  ("weights", "message"),
  [
    ((1, -1, 1, 1, 1), "row 2 of the train split has -1.0"),
    ((1, 1, np.nan, 1, 1), "row 3 of the train split has nan"),
    ((1, 1, 1, np.inf, 1), "row 4 of the train split has inf"),
    ((0, 0, 0, 0, 0), "all training rows have weight 0"),
  ],
)
def test_invalid_weights_are_refused(weights, message):
  with pytest.raises(errors.DataError, match=f"^d.*{message}"):
    batches.training_rows(weighted(*weights), "d")


def test_weights_multiply_with_popularity_and_keep_their_sum():
  own = np.array([10, 20, 0.5, 40, 5], np.float64)
  found = batches.with_popularity(weighted(*own), 0.5)["sample_weight"]
  # Candidate 3 has three rows, the others one.
  product = own * np.sqrt([3, 1, 3, 1, 3])
  np.testing.assert_allclose(
    found, product * own.sum() / product.sum(), rtol=1e-6
  )
  assert found.dtype == np.float32
  # Without given weights, their mean is 1.
  alone = batches.with_popularity(_ROWS, 0.5)["sample_weight"]
  expected = np.sqrt([3, 1, 3, 1, 3])
  np.testing.assert_allclose(alone, expected / expected.mean(), rtol=1e-6)
  # Without a power, the weights are unchanged.
  rows = weighted(*own)
  assert batches.with_popularity(rows, 0.0) is rows


def _data(folder, rows):
  """A data directory of rows (user, item, weight), all of them to train on."""
  folder.mkdir()
  path = folder / "rows.csv"
  path.write_text(
    "user_id,item_id,w\n"
    + "".join(f"{user},{item},{weight}\n" for user, item, weight in rows)
  )
  prepare.prepare(
    prepare.PrepareConfig(
      input=inputs.Input(
        paths=(str(path),), columns=inputs.Columns(weight="w")
      ),
      output=folder / "data",
      test_fraction=0.0,
      validation_fraction=0.0,
    )
  )
  return folder / "data"


def _config(data, path, **settings):
  return configs.from_preset(
    data=str(data),
    model_dir=str(path),
    dim=4,
    global_batch_size=16,
    epochs=3,
    **settings,
  )


def _embeddings(model):
  return [
    tower.trainable_variables[0].numpy()
    for tower in (model.query_tower, model.candidate_tower)
  ]


def test_rows_on_disk_have_the_same_weights(tmp_path):
  rng = np.random.default_rng(0)
  rows = np.unique(rng.integers(20, size=[120, 2]), axis=0)
  weights = rng.integers(0, 3, len(rows))
  path = _data(tmp_path / "weighted", np.column_stack([rows, weights]))
  config = _config(path, tmp_path / "model", rows_in_memory=20)
  given = (True, 0.5)
  held = batches.InMemory.of_data(config, directory.DataDir(path), *given)
  with pytest.raises(
    errors.DataError, match="prepare it again with --overwrite"
  ):
    batches.OnDisk.of_data(config, directory.DataDir(path, 20), *given)
  config = _config(path, tmp_path / "model", rows_in_memory=240)
  opened = directory.DataDir(path, 20)
  on_disk = batches.OnDisk.of_data(config, opened, *given)
  columns = on_disk.parts.share(0, 0, 16)
  expected = {
    (query, candidate): weight
    for query, candidate, weight in zip(*held.columns.values(), strict=True)
  }
  assert on_disk.num_rows == held.num_rows
  found = zip(*(columns[name] for name in held.columns), strict=True)
  for query, candidate, weight in found:
    assert weight == pytest.approx(expected[query, candidate])
  for table, counts in (
    (opened.queries, on_disk.blocks.counts["query_id"]),
    (opened.candidates, on_disk.blocks.counts["candidate_id"]),
  ):
    np.testing.assert_array_equal(table.counts, counts)


@pytest.mark.parametrize("optimizer", ["lazy_adam", "adam"])
def test_rows_of_weight_0_move_no_weight(tmp_path, optimizer):
  rng = np.random.default_rng(0)
  rows = [(u, i, 1) for u in range(9) for i in rng.choice(8, 4, False)]
  # User 9 and item 8 only have rows with weight 0.
  rows += [(9, i, 0) for i in range(5)] + [(u, 8, 0) for u in range(9)]
  data = _data(tmp_path / "d", rows)
  config = _config(data, tmp_path / "m", task="ssl_pop", optimizer=optimizer)
  training.train(config, progress=False)
  trained, _, _ = runs.load_model(tmp_path / "m")
  opened = directory.DataDir(data)
  initial = build.build(
    config, opened.schema, opened.queries, opened.candidates
  )
  for name, original, before, after in zip(
    ("queries", "candidates"),
    (b"9", b"8"),
    _embeddings(initial),
    _embeddings(trained),
    strict=True,
  ):
    moved = np.any(before != after, axis=1)
    untouched = opened.ids(name) == original
    np.testing.assert_array_equal(moved, ~untouched)
    # So they count as unknown in evaluation, export and serving.
    counts = getattr(opened, name).counts
    np.testing.assert_array_equal(counts > 0, moved)


def test_weights_reach_the_loss_by_default(tmp_path):
  """With popularity weights, which are the default, and in proportion."""
  rng = np.random.default_rng(1)
  pairs = [(u, i) for u in range(9) for i in rng.choice(8, 4, False)]
  losses = {}
  for weight in (1, 3):
    folder = tmp_path / str(weight)
    data = _data(folder, [(u, i, weight) for u, i in pairs])
    config = _config(data, folder / "m", task="ssl_pop", log_steps=1)
    training.train(config, progress=False)
    losses[weight] = runs.RunDir(folder / "m").read_metrics()[0]["loss"]
  assert losses[3] == pytest.approx(3 * losses[1], rel=1e-5)
