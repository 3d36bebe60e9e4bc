"""Stopped, killed or damaged runs resume bit-identically."""

import pathlib
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from pipelines.evaluation import rankings, split
from pipelines.training import checkpoints, strategies
from pipelines.training import config as configs
from pipelines.training import loop as training
from tests import synthetic_data
from tests.distributed import cluster
from xir_tfrs.data import errors, runs
from xir_tfrs.data import schema as schema_lib

# About 40 steps: 1,824 training rows in batches of 128.
_SETTINGS = {
  "task": "xir",
  "dim": 8,
  "global_batch_size": 128,
  "cache_size": 64,
  "epochs": 4,
  "checkpoint_steps": 5,
  "average_epochs": 1.5,
  "log_steps": 1,
  "patience": 0,
  "seed": 5,
}
_KILLED_AT = 17


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  output = tmp_path_factory.mktemp("data") / "small"
  synthetic_data.prepare_synthetic(
    output,
    num_users=80,
    num_items=150,
    num_interactions=1800,
    seed=3,
    validation_fraction=0.1,
  )
  return output


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
  """An uninterrupted run of 3 epochs."""
  path = tmp_path_factory.mktemp("runs") / "whole"
  run(data, path, epochs=3)
  return path


@pytest.fixture(scope="module")
def stopped(data, tmp_path_factory):
  """The same, stopped after 2 epochs; copy it before use."""
  path = tmp_path_factory.mktemp("runs") / "stopped"
  run(data, path, epochs=2)
  return path


def run(data, path, *, resume=False, strategy=None, **settings):
  config = configs.from_preset(
    data=str(data), model_dir=str(path), **_SETTINGS | settings
  )
  return training.train(
    config, resume=resume, progress=False, strategy=strategy
  )


def flags(data, path, **settings):
  settings = {"data": data, "model_dir": path} | _SETTINGS | settings
  return [f"--{name}={value}" for name, value in settings.items()]


def variables(path):
  """All values in the newest checkpoint, by name."""
  checkpoint = tf.train.latest_checkpoint(str(path / "checkpoints"))
  reader = tf.train.load_checkpoint(checkpoint)
  return {
    name: reader.get_tensor(name)
    for name in reader.get_variable_to_shape_map()
    if "SAVE_COUNTER" not in name.upper() and "GRAPH" not in name
  }


def assert_same_state(a, b):
  expected, got = variables(a), variables(b)
  assert expected.keys() == got.keys()
  for name, value in expected.items():
    np.testing.assert_array_equal(value, got[name], err_msg=name)


def steps_logged(path):
  rows = runs.RunDir(path).read_metrics()
  return [row["step"] for row in rows if row["kind"] == "train"]


def test_a_checkpoint_serves_the_average_of_the_weights(data, tmp_path):
  run(data, tmp_path, epochs=2, checkpoint_steps=1, keep_checkpoints=100)
  num_rows = schema_lib.Schema.load(data).rows["train"]
  expected = None
  for step in range(1, len(steps_logged(tmp_path)) + 1):
    saved = tf.train.load_checkpoint(str(tmp_path / f"checkpoints/ckpt-{step}"))
    value = "{}/.ATTRIBUTES/VARIABLE_VALUE".format
    last = saved.get_tensor(value("average/averages/0"))
    served = saved.get_tensor(
      value("model/query_tower/_id_embedding/embeddings")
    )
    if expected is not None:
      # 1/20 of 1.5 epochs is a step here.
      n = step - 1
      decay = min(np.exp(-128 / num_rows / 1.5), (1 + n) / (10 + n))
      expected = decay * expected + (1 - decay) * last
      np.testing.assert_allclose(served, expected, rtol=1e-4, atol=1e-6)
    expected = served
  assert np.abs(served - last).max() > 1e-3
  trained, _, _ = runs.load_model(tmp_path, "latest")
  np.testing.assert_array_equal(
    trained.query_tower.trainable_weights[0], served
  )
  rows = runs.RunDir(tmp_path).read_metrics()
  (validated,) = [
    row for row in rows if row["kind"] == "validation" and row["step"] == step
  ]
  validation = split.load_evaluation_data(data, "validation")
  metrics = rankings.rank(trained, validation, (20,)).means()
  assert metrics["ndcg@20"] == pytest.approx(validated["ndcg@20"])


def test_a_killed_process_resumes_bit_identically(data, whole, tmp_path, fast):
  path = tmp_path / "killed"
  killed = subprocess.run(
    ["python", "-m", "tests.pipelines.killed_train", str(_KILLED_AT)]
    + ["--", *flags(data, path, epochs=3)],
    env=fast,
    capture_output=True,
    text=True,
  )
  assert killed.returncode == 128 + 9, killed.stderr
  assert steps_logged(path)[-1] == _KILLED_AT
  saved = tf.train.latest_checkpoint(str(path / "checkpoints"))
  assert saved.endswith("-15")
  with open(path / "metrics.jsonl", "a", encoding="utf-8") as file:
    file.write('{"kind": "train", "st')  # Killed while it wrote.

  result = run(data, path, resume=True, epochs=3)
  assert result.outcome == "finished" and result.step > _KILLED_AT
  assert_same_state(whole, path)
  assert steps_logged(path) == list(range(1, result.step + 1))
  rows = [runs.RunDir(one).read_metrics() for one in (whole, path)]
  expected, got = (
    [row for row in part if row["kind"] == "validation"] for part in rows
  )
  assert got == expected


# By day, data/parts_test.py compares the batches.
@pytest.mark.slow
def test_runs_on_disk_resume_bit_identically(tmp_path):
  data = synthetic_data.prepare_synthetic(
    tmp_path / "data",
    num_users=80,
    num_items=150,
    num_interactions=1800,
    seed=3,
    validation_fraction=0.1,
    num_buckets=8,
  )
  settings = {
    "rows_in_memory": 900,
    "average_epochs": 0.0,
    "eval_epochs": 4,
  }
  run(data, tmp_path / "whole", epochs=2, **settings)
  run(data, tmp_path / "stopped", epochs=1, **settings)
  run(data, tmp_path / "stopped", epochs=2, resume=True, **settings)
  assert_same_state(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.slow
def test_a_killed_worker_stops_the_others_and_all_resume_bit_identically(
  data, whole, tmp_path
):
  settings = {"strategy": "multi_worker", "epochs": 3}
  two, path = tmp_path / "two", tmp_path / "killed"
  cluster.run("pipelines.train", flags(data, two, **settings))
  with cluster.start(
    "tests.pipelines.killed_train",
    [str(_KILLED_AT), "1", "--", *flags(data, path, **settings)],
  ) as workers:
    workers[0].wait_for("Another worker has stopped", timeout=120)
    chief, killed = workers.wait(check=False)
  assert killed.returncode == -9
  # It neither hangs nor continues alone.
  assert chief.returncode == 1, chief.output
  assert "--resume" in chief.output
  assert "Traceback" not in chief.output

  cluster.run("pipelines.train", [*flags(data, path, **settings), "--resume"])
  assert_same_state(two, path)
  steps = steps_logged(path)
  assert steps == list(range(1, steps[-1] + 1))

  # Two workers match one device with the whole batch.
  losses = [
    [r["loss"] for r in runs.RunDir(p).read_metrics() if "loss" in r]
    for p in (whole, path)
  ]
  np.testing.assert_allclose(losses[0][:3], losses[1][:3], rtol=1e-5)


class TestOtherDevices:
  @pytest.fixture(autouse=True)
  def _use(self, two_replicas):
    self.strategy = two_replicas

  @pytest.mark.slow
  def test_a_run_of_two_replicas_resumes_on_one(self, data, tmp_path):
    # Without draws, because rounding may change a draw.
    settings = {"resampler": "expected", "cache_weight": 0.0}
    run(data, tmp_path / "one", **settings)
    path = tmp_path / "moved"
    two = run(data, path, strategy=self.strategy, **settings | {"epochs": 1})
    assert two.step < 20
    run(data, path, resume=True, **settings)
    expected, got = variables(tmp_path / "one"), variables(path)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
      if "cache" not in name:
        np.testing.assert_allclose(
          value, got[name], rtol=1e-3, atol=1e-4, err_msg=name
        )
    losses = [
      [r["loss"] for r in runs.RunDir(p).read_metrics() if "loss" in r]
      for p in (tmp_path / "one", path)
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)

  @pytest.mark.slow
  def test_every_task_setting_survives_two_replicas(self, data, tmp_path):
    # Including draws: killed and resumed on two replicas, bit for bit.
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(data, whole, strategy=self.strategy, epochs=2)
    shutil.copytree(whole, parts)
    newest = tf.train.latest_checkpoint(str(parts / "checkpoints"))
    damage_delete(pathlib.Path(newest))
    run(data, parts, resume=True, strategy=self.strategy, epochs=2)
    assert tf.train.latest_checkpoint(str(parts / "checkpoints")) == newest
    assert_same_state(whole, parts)

  @pytest.mark.slow
  def test_shares_need_not_be_even(self, data, tmp_path):
    settings = {"global_batch_size": 125, "epochs": 1, "resampler": "expected"}
    run(data, tmp_path / "one", **settings)
    run(data, tmp_path / "two", strategy=self.strategy, **settings)
    for name, value in variables(tmp_path / "one").items():
      if "cache" not in name:
        np.testing.assert_allclose(
          value,
          variables(tmp_path / "two")[name],
          rtol=1e-3,
          atol=1e-4,
          err_msg=name,
        )

  def test_fewer_rows_than_replicas_are_refused(self, data, tmp_path):
    with pytest.raises(ValueError, match="1 rows for 2 replicas"):
      run(data, tmp_path / "m", strategy=self.strategy, global_batch_size=1)
    assert not (tmp_path / "m").exists()

  @pytest.mark.slow
  def test_batch_of_more_rows_than_there_are(self, data, tmp_path):
    settings = {"global_batch_size": 5000, "epochs": 6}
    result = run(data, tmp_path / "m", strategy=self.strategy, **settings)
    assert result.outcome == "finished"


def damage_truncate(path):
  for suffix in (".data-00000-of-00001", ".index"):
    file = path.with_name(path.name + suffix)
    with open(file, "r+b") as stream:
      stream.truncate(file.stat().st_size // 2)


def damage_data(path):
  file = path.with_name(path.name + ".data-00000-of-00001")
  with open(file, "r+b") as stream:
    stream.truncate(file.stat().st_size - 100)


def damage_delete(path):
  for file in path.parent.glob(path.name + ".*"):
    file.unlink()


def damage_delete_data(path):
  path.with_name(path.name + ".data-00000-of-00001").unlink()


def damage_state(path):
  damage_data(path)
  (path.parent / "checkpoint").write_text("model_checkp")


@pytest.mark.parametrize(
  "damage",
  [
    damage_truncate,
    damage_data,
    damage_delete,
    damage_delete_data,
    damage_state,
  ],
)
def test_damaged_checkpoint_falls_back_to_the_one_before(
  tmp_path, capsys, damage
):
  value = tf.Variable(tf.ones([100]))
  state = tf.train.Checkpoint(x=value)
  saved = checkpoints.Checkpoints(runs.RunDir(tmp_path), state, 3)
  for step in (3, 4):
    value.assign(tf.fill([100], float(step)))
    saved.save(step)
  damage(tmp_path / "checkpoints/ckpt-4")
  again = checkpoints.Checkpoints(runs.RunDir(tmp_path), state, 3)
  assert again.restore() == 3
  np.testing.assert_array_equal(value, np.full(100, 3.0))
  printed = capsys.readouterr().err
  assert "ckpt-4" in printed and "falling back to" in printed
  assert not list((tmp_path / "checkpoints").glob("ckpt-4*"))


def test_a_run_with_a_damaged_checkpoint_resumes_bit_identically(
  data, whole, stopped, tmp_path, capsys
):
  path = tmp_path / "m"
  shutil.copytree(stopped, path)
  newest = tf.train.latest_checkpoint(str(path / "checkpoints"))
  damage_truncate(pathlib.Path(newest))
  run(data, path, epochs=3, resume=True)
  printed = capsys.readouterr()
  name = newest.rpartition("/")[2]
  assert name in printed.err and "falling back to" in printed.err
  assert "Resuming from step" in printed.out
  assert_same_state(whole, path)
  steps = steps_logged(path)
  assert steps == list(range(1, steps[-1] + 1))


def test_no_readable_checkpoint_is_an_error_not_a_new_start(
  data, stopped, tmp_path
):
  shutil.copytree(stopped, tmp_path / "m")
  for file in (tmp_path / "m/checkpoints").glob("*.index"):
    file.write_bytes(b"nothing")
  with pytest.raises(errors.DataError, match="(?s)damaged.*--overwrite"):
    run(data, tmp_path / "m", resume=True)


def test_a_lost_list_of_checkpoints_is_rebuilt(tmp_path, capsys):
  directory = runs.RunDir(tmp_path)
  value = tf.Variable(1.0)
  checkpoints.Checkpoints(directory, tf.train.Checkpoint(x=value), 2).save(3)
  value.assign(2.0)
  # As after a power failure.
  (tmp_path / "checkpoints/checkpoint").write_bytes(b"")
  again = checkpoints.Checkpoints(directory, tf.train.Checkpoint(x=value), 2)
  assert again.restore() == 3 and value.numpy() == 1.0
  assert "checkpoint is damaged: falling back to" in capsys.readouterr().err
  again.save(4)
  assert directory.checkpoint("latest").endswith("ckpt-4")


def test_resuming_keeps_no_more_checkpoints(tmp_path):
  for start in range(0, 9, 3):
    saved = tf.train.Checkpoint(x=tf.Variable(1.0))
    saver = checkpoints.Checkpoints(runs.RunDir(tmp_path), saved, 2)
    assert saver.restore() == (start or None)
    for step in range(start + 1, start + 4):
      saver.save(step)
      left = sorted(f.stem for f in (tmp_path / "checkpoints").glob("*.index"))
      assert left == [f"ckpt-{n}" for n in range(max(step - 1, 1), step + 1)]


def test_checkpoint_of_another_model_is_an_error(data, tmp_path):
  directory = runs.RunDir(tmp_path)
  saved = tf.train.Checkpoint(x=tf.Variable(1.0))
  checkpoints.Checkpoints(directory, saved, 2).save(3)
  for wrong in ({"x": tf.Variable([1.0, 2.0])}, {"y": tf.Variable(1.0)}):
    other = tf.train.Checkpoint(**wrong)
    with pytest.raises(errors.DataError, match="belongs to another model"):
      checkpoints.Checkpoints(directory, other, 2).restore()
  assert (tmp_path / "checkpoints/ckpt-3.index").exists()


def test_full_disk_leaves_the_previous_checkpoint(data, stopped, tmp_path):
  path = tmp_path / "m"
  shutil.copytree(stopped, path)
  before, state = variables(path), steps_logged(path)[-1]
  # A limit on the size of files stops writes like a full disk.
  size = max(f.stat().st_size for f in (path / "checkpoints").glob("*.data*"))
  limit = size // 2
  process = subprocess.run(
    [sys.executable, "-m", "pipelines.train", "--resume"]
    + flags(data, path, epochs=3),
    capture_output=True,
    text=True,
    preexec_fn=lambda: resource.setrlimit(
      resource.RLIMIT_FSIZE, (limit, limit)
    ),
  )
  assert process.returncode == 1, process.stderr
  assert "could not be written" in process.stderr
  assert f"ckpt-{state} is untouched" in process.stderr
  assert "Traceback" not in process.stderr
  left = {file.name.split(".")[0] for file in (path / "checkpoints").iterdir()}
  assert left == {"checkpoint", f"ckpt-{state}", f"ckpt-{(state - 1) // 5 * 5}"}
  for name, value in variables(path).items():
    np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize(
  "tf_config, message",
  [
    (None, "needs the environment variable TF_CONFIG"),
    ("{", "not describe a cluster and a task"),
    ('{"cluster": {"worker": ["a:1"]}}', "not describe a cluster and a task"),
    (
      '{"cluster": {"worker": ["a:1"]}, '
      '"task": {"type": "worker", "index": 1}}',
      "names task worker 1",
    ),
    (
      '{"cluster": {"ps": ["a:1"]}, "task": {"type": "ps", "index": 0}}',
      "names task ps 0",
    ),
  ],
)
def test_wrong_tf_config_is_explained(monkeypatch, tf_config, message):
  monkeypatch.delenv("TF_CONFIG", raising=False)
  if tf_config is not None:
    monkeypatch.setenv("TF_CONFIG", tf_config)
  with pytest.raises(ValueError, match=message) as raised:
    strategies.create("multi_worker")
  assert '"cluster"' in str(raised.value)


def test_cpu_cannot_be_split_late():
  with pytest.raises(ValueError, match="--cpu_replicas=99 comes too late"):
    tf.zeros([])
    strategies.create("mirrored", cpu_replicas=99)


@pytest.mark.parametrize(
  ("error", "is_lost"),
  [
    (tf.errors.UnavailableError(None, None, "Socket closed"), True),
    (
      tf.errors.InternalError(None, None, "Collective ops is aborted by: ..."),
      True,
    ),
    # Errors of this worker itself do not mention others.
    (tf.errors.InternalError(None, None, "cuBLAS has failed"), False),
    (tf.errors.UnknownError(None, None, "disk quota exceeded"), False),
  ],
)
def test_only_a_lost_worker_is_called_lost(monkeypatch, error, is_lost):
  class TwoWorkers:
    count = 2

    def __init__(self, strategy):
      del strategy

  monkeypatch.setattr(strategies, "Workers", TwoWorkers)
  expected = strategies.WorkerLost if is_lost else type(error)
  with pytest.raises(expected) as caught:
    with strategies.lost_workers(tf.distribute.get_strategy()):
      raise error
  # Any cause is reported.
  assert error.message in str(caught.value)
