"""Run directories: round trips, refused content, and no foreign files."""

import errno
import json
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf

import xir_tfrs as xir
from xir_tfrs.data import directory, errors, records, runs, schema, tables

SIZES = {"queries": 5, "candidates": 40}


def write_data(path, name="tiny"):
  path.mkdir()
  shards = {}
  for table, size in SIZES.items():
    ids = np.array([f"é{i}" for i in range(size)], object)
    counts = np.zeros(size, np.int64)
    counts[0] = 1
    shards[table] = tables.write_table(
      path, table, tables.Table(ids, counts, {}), ()
    )
  with records.BlockWriter(path / "train") as writer:
    writer.append(
      {"query_id": np.zeros(1, int), "candidate_id": np.zeros(1, int)}
    )
  schema.Schema(
    name=name,
    num_queries=5,
    num_candidates=40,
    rows={"train": 1},
    shards=shards | {"train": (schema.Shard("train", 1),)},
  ).save(path)
  return directory.DataDir(path)


def model(seed=0):
  return xir.models.TwoTower(
    *(
      xir.models.Tower(vocabulary_size=size, dim=4, seed=seed + size, name=name)
      for name, size in SIZES.items()
    )
  )


def config(**changes):
  return runs.RunConfig(
    **{
      "data": "data",
      "schema_sha256": "0",
      "model": model().get_config(),
      "train": {"task": "xir", "ks": [1, 2]},
    }
    | changes
  )


def save(path, trained, step=1, name=runs.CHECKPOINTS):
  checkpoint = tf.train.Checkpoint(model=trained, step=tf.Variable(step))
  tf.train.CheckpointManager(checkpoint, str(path / name), 1).save(step)


def new_run(path, **checkpoints):
  run = runs.RunDir(path)
  with run.locked():
    run.create(config(), overwrite=False)
  for name, seed in checkpoints.items():
    save(path, model(seed), seed, name)
  return run


def first_weight(trained):
  return trained.query_tower.trainable_variables[0].numpy()


def test_config_round_trip(tmp_path):
  run = new_run(tmp_path / "run")
  assert run.read_config() == config()
  fields = json.loads((tmp_path / "run" / "config.json").read_text())
  assert fields["format"] == 1 and fields["train"]["ks"] == [1, 2]
  assert os.listdir(tmp_path / "run") == ["config.json"]
  # A changed config is another run; older versions wrote no hash.
  fields["model"]["normalize"] = True
  (tmp_path / "run" / "config.json").write_text(json.dumps(fields))
  with pytest.raises(errors.DataError, match="config.json: its content has c"):
    run.read_config()
  del fields["sha256"]
  (tmp_path / "run" / "config.json").write_text(json.dumps(fields))
  assert run.read_config().model["normalize"] is True


def test_a_run_is_not_overwritten_by_accident(tmp_path):
  run = new_run(tmp_path / "run", checkpoints=1, best=2)
  run.append_metrics({"kind": "train", "step": 3})
  with pytest.raises(errors.DataError, match="--resume, start again with --o"):
    run.create(config(), overwrite=False)
  (run.path / "notes").write_text("mine")
  run.create(config(data="other"), overwrite=True)
  assert set(os.listdir(run.path)) == {"config.json", "notes"}
  assert run.read_config().data == "other"


@pytest.mark.parametrize(
  "left", [runs.CHECKPOINTS, runs.BEST, runs.EVENTS, runs.METRICS]
)
def test_a_run_that_lost_its_config_is_not_overwritten(tmp_path, left):
  (tmp_path / left).mkdir()
  run = runs.RunDir(tmp_path)
  for start in (run.require_new, lambda over: run.create(config(), over)):
    with pytest.raises(errors.DataError, match=f"holds {left}, but no config"):
      start(False)
  assert (tmp_path / left).is_dir()
  run.require_new(True)


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (None, "config.json: not found, so this directory holds no training run"),
    ("{", "config.json: not valid JSON"),
    ('{"format": 0}', "field format: this version reads format 1"),
    ('{"format": 1, "data": 1}', "field data: Expected `str`, got `int`"),
    ('{"format": 1, "data": "a", "schema_sha": ""}', "field `schema_sha`"),
  ],
)
def test_a_config_that_cannot_be_read(tmp_path, content, message):
  if content is not None:
    (tmp_path / "config.json").write_text(content)
  for read in (
    runs.RunDir(tmp_path).read_config,
    lambda: runs.load_model(tmp_path),
  ):
    with pytest.raises(errors.DataError) as caught:
      read()
    assert message in str(caught.value) and "train" in str(caught.value)


def test_metrics_round_trip_and_a_torn_last_line(tmp_path):
  run = new_run(tmp_path / "run")
  assert run.read_metrics() == []
  rows = [
    {"kind": "train", "step": step, "loss": np.float32(0.5)}
    for step in (1, 2, 3)
  ]
  for row in rows:
    run.append_metrics(row)
  with open(run.path / "metrics.jsonl", "a") as file:
    file.write('{"kind": "train", "step": 4, "lo')
  assert run.read_metrics() == rows
  run.forget_metrics_after(2)
  assert run.read_metrics() == rows[:2]
  run.append_metrics({"kind": "train", "step": 3, "loss": np.nan})
  assert run.read_metrics()[-1] == {"kind": "train", "step": 3, "loss": None}


@pytest.mark.parametrize(
  "line", ["{", "[]", '{"step": 1}', '{"kind": "a", "step": "1"}', ""]
)
def test_a_damaged_line_of_metrics_is_named(tmp_path, line):
  good = '{"kind": "train", "step": 1}\n'
  (tmp_path / "metrics.jsonl").write_text(good + line + "\n" + good)
  with pytest.raises(errors.DataError, match="jsonl, line 2.*remove the"):
    runs.RunDir(tmp_path).read_metrics()


def test_a_disk_without_room_for_metrics_is_named(tmp_path):
  run = new_run(tmp_path / "run")
  path = run.path / "metrics.jsonl"
  path.symlink_to("/dev/full")
  with pytest.raises(OSError) as found:
    run.append_metrics({"kind": "train", "step": 1})
  assert found.value.errno == errno.ENOSPC
  assert found.value.filename == str(path)


def test_only_the_chief_writes(tmp_path):
  run = runs.RunDir(tmp_path / "run", writable=False)
  with run.locked():
    run.create(config(), overwrite=False)
    run.append_metrics({"kind": "train", "step": 1})
    run.forget_metrics_after(0)
    run.event_writer()
  assert not run.path.exists()


def test_which_checkpoint_is_loaded(tmp_path):
  run = new_run(tmp_path / "run", checkpoints=1)
  # Without validation there is no best checkpoint.
  for which in ("best", "latest"):
    trained, read, path = runs.load_model(run.path, which)
    np.testing.assert_array_equal(first_weight(trained), first_weight(model(1)))
    assert path == str(run.path / "checkpoints" / "ckpt-1")
    assert read == config()
  save(run.path, model(2), 2, "best")
  for which, seed in (("best", 2), ("latest", 1)):
    trained, _, path = runs.load_model(run.path, which)
    np.testing.assert_array_equal(
      first_weight(trained), first_weight(model(seed))
    )
  with pytest.raises(ValueError, match="must be one of best, latest"):
    runs.load_model(run.path, "newest")


def test_a_checkpoint_that_was_replaced_is_read_again(tmp_path):
  """The run is overwritten after this process has read its checkpoint."""
  run = new_run(tmp_path / "run", checkpoints=1)
  runs.load_model(run.path)
  run.create(config(), overwrite=True)
  save(run.path, model(7), 1)
  trained, _, _ = runs.load_model(run.path)
  np.testing.assert_array_equal(first_weight(trained), first_weight(model(7)))


def test_a_checkpoint_that_training_replaces_meanwhile(tmp_path, monkeypatch):
  run = new_run(tmp_path / "run", best=1)
  latest = tf.train.latest_checkpoint

  def replaced(folder):
    monkeypatch.setattr(tf.train, "latest_checkpoint", latest)
    found = latest(folder)
    shutil.rmtree(run.path / runs.BEST)
    save(run.path, model(7), 2, runs.BEST)
    return found

  monkeypatch.setattr(tf.train, "latest_checkpoint", replaced)
  trained, _, found = runs.load_model(run.path)
  assert found.endswith("ckpt-2")
  np.testing.assert_array_equal(first_weight(trained), first_weight(model(7)))


def test_the_newest_checkpoint_does_not_replace_a_missing_best_one(tmp_path):
  run = new_run(tmp_path / "run", checkpoints=1, best=2)
  state = run.path / "best" / "checkpoint"
  right = state.read_text()
  for damaged, message in (
    ("", "best/checkpoint: cannot be read"),
    ("model_checkp", "best/checkpoint: names a checkpoint that does not"),
    (right.replace("ckpt-2", "ckpt-3"), "best/checkpoint: names a checkpoint"),
    (None, "best/checkpoint: names a checkpoint"),
  ):
    state.unlink() if damaged is None else state.write_text(damaged)
    with pytest.raises(errors.DataError, match=message):
      run.checkpoint()
    assert run.checkpoint("latest") == str(run.path / "checkpoints" / "ckpt-1")


def test_checkpoints_that_cannot_be_loaded(tmp_path):
  run = new_run(tmp_path / "none")
  with pytest.raises(errors.DataError, match="holds no checkpoint.*--resume"):
    runs.load_model(run.path)
  run = new_run(tmp_path / "other", checkpoints=1)
  wide = config().model | {
    "query_tower": config().model["query_tower"] | {"dim": 8}
  }
  run.write_config(config(model=wide))
  with pytest.raises(errors.DataError, match="ckpt-1: cannot be restored"):
    runs.load_model(run.path)
  run.write_config(config(model={"query_tower": {}}))
  with pytest.raises(errors.DataError, match="config.json, field model: this"):
    runs.load_model(run.path)
  run = new_run(tmp_path / "cut", checkpoints=1)
  data = run.path / "checkpoints" / "ckpt-1.data-00000-of-00001"
  data.write_bytes(data.read_bytes()[:-8])
  with pytest.raises(errors.DataError, match="ckpt-1: cannot be restored"):
    runs.load_model(run.path)


def test_a_weight_that_is_not_finite_is_named(tmp_path):
  run = new_run(tmp_path / "run")
  broken = model()
  table = broken.candidate_tower.trainable_variables[0]
  table.scatter_nd_update([[17, 2]], [np.nan])
  save(run.path, broken)
  with pytest.raises(errors.DataError, match=r"not finite at \[17, 2\]"):
    runs.load_model(run.path)


@pytest.mark.parametrize(
  ("first", "second"), [("run1", "run[1]"), ("axb", "a*b"), ("a", "a\\b")]
)
def test_a_path_with_pattern_characters_is_read_literally(
  tmp_path, first, second
):
  new_run(tmp_path / first, checkpoints=1)
  new_run(tmp_path / second)
  # Written elsewhere, because TensorFlow would read the path as a pattern.
  new_run(tmp_path / "plain", checkpoints=2)
  shutil.copytree(
    tmp_path / "plain" / "checkpoints", tmp_path / second / "checkpoints"
  )
  trained, _, path = runs.load_model(tmp_path / second)
  np.testing.assert_array_equal(first_weight(trained), first_weight(model(2)))
  assert path == str(tmp_path / second / "checkpoints" / "ckpt-2")


def test_a_run_only_accepts_its_own_data(tmp_path):
  data, other = (write_data(tmp_path / name, name) for name in ("a", "b"))
  fitting = config(schema_sha256=data.schema_sha256)
  runs.check_fit(fitting, data, "run")
  with pytest.raises(errors.DataError, match="schema.json: is not the data th"):
    runs.check_fit(fitting, other, "run")


@pytest.mark.parametrize("count", [0, 1, 5, 12])
def test_encoding_in_batches(count):
  trained = model()
  ids = np.arange(count) * 3
  reports = []
  vectors = runs.encode_in_batches(
    trained.encode_candidates, ids, reports.append, ids_per_batch=5
  )
  assert vectors.shape == (count, 4) and vectors.dtype == np.float32
  np.testing.assert_allclose(
    vectors, trained.encode_candidates(tf.constant(ids, tf.int64)), rtol=1e-6
  )
  assert len(reports) == -(-count // 5) and reports[-1:] == [count][:count]
