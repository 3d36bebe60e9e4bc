"""The training program: its files, and how it resumes."""

import dataclasses
import json
import shlex
import shutil
import signal
import subprocess
import time
import types

import msgspec
import numpy as np
import pytest
import tensorflow as tf

import xir_tfrs as xir
from pipelines import train
from pipelines.training import batches, health, methods
from pipelines.training import build as model
from pipelines.training import config as configs
from pipelines.training import loop as training
from xir_tfrs.data import datasets, directory, errors, records, runs, tables
from xir_tfrs.data import schema as schema_lib
from xir_tfrs.ops import forms
from xir_tfrs.programs import settings as settings_lib


@pytest.fixture(scope="module")
def data(small_data):
  return small_data


def config(data, model_dir_, **settings):
  return configs.from_preset(
    **{
      "data": str(data),
      "model_dir": str(model_dir_),
      "task": "xir",
      "dim": 8,
      "global_batch_size": 256,
      "epochs": 2,
      "log_steps": 4,
      "metric": "recall@20",
      "seed": 5,
    }
    | ({"cache_size": 64} if settings.get("task", "xir") == "xir" else {})
    | settings
  )


def run(*arguments, **keywords):
  return training.train(*arguments, progress=False, **keywords)


def variables(path, which="checkpoints"):
  """All values in the newest checkpoint, by name."""
  checkpoint = tf.train.latest_checkpoint(str(path / which))
  reader = tf.train.load_checkpoint(checkpoint)
  return {
    name: reader.get_tensor(name)
    for name in reader.get_variable_to_shape_map()
    if "SAVE_COUNTER" not in name.upper() and "GRAPH" not in name
  }


# The test of `paper` below trains the other tasks. docs_test.py trains with
# `plain`.
@pytest.mark.parametrize(
  ("task", "preset"),
  [*((task, "default") for task in methods.TASKS), ("xir", "paper")],
)
def test_every_task_trains_and_leaves_its_files(data, tmp_path, task, preset):
  settings = {"task": task, "preset": preset}
  if preset == "paper":
    settings |= {"l2": 1e-4, "decay_epochs": 1}
  result = run(config(data, tmp_path / "m", **settings))
  schema = schema_lib.Schema.load(data)
  steps = -(-2 * schema.rows["train"] // 256)
  assert (result.step, result.outcome) == (steps, "finished")
  assert result.examples_per_second > 0

  written = json.loads((tmp_path / "m/config.json").read_text())
  assert written["train"]["task"] == task
  assert written["data"] == str(data.resolve())
  rows = runs.RunDir(tmp_path / "m").read_metrics()
  losses = [row["loss"] for row in rows if row["kind"] == "train"]
  validations = [row for row in rows if row["kind"] == "validation"]
  assert losses[-1] < losses[0]
  assert len(validations) == 2
  assert {"recall@20", "ndcg@20", "mrr@10"} <= validations[0].keys()
  best = max(validations, key=lambda row: row["recall@20"])
  assert result.validation == best
  saved = tf.train.latest_checkpoint(str(tmp_path / "m/best"))
  assert saved.endswith(f"-{best['step']}")
  assert list((tmp_path / "m/events").glob("events.out.tfevents.*"))


@pytest.mark.parametrize(
  "task", [task for task in methods.TASKS if task != "xir"]
)
def test_every_task_learns_with_the_paper_s_settings(data, tmp_path, task):
  settings = config(
    data, tmp_path, task=task, preset="paper", l2=1e-4, learning_rate=0.1
  )
  opened = directory.DataDir(data)
  rows = opened.rows("train")
  trained = model.build(
    settings, opened.schema, opened.queries, opened.candidates
  )
  trained.compile(model.optimizer(settings, steps_per_epoch=10.0))
  (batch,) = batches.InMemory(rows, None).examples(settings, 1)().take(1)
  losses = [float(trained.gradient_step(batch)["loss"]) for _ in range(4)]
  assert losses[-1] < losses[0]


def test_early_stop_keeps_the_best(data, tmp_path, capsys):
  # A large learning rate, so that validation soon gets worse.
  result = training.train(
    config(
      data, tmp_path / "m", epochs=200, patience=2, learning_rate=0.5, dim=4
    )
  )
  lines = capsys.readouterr().err.splitlines()
  assert f"rows of {data}: up to 200 epochs, " in lines[0]
  assert "stopped early: 2 validations without a better recall@20" in lines[-1]
  assert result.outcome == "stopped early"
  rows = runs.RunDir(tmp_path / "m").read_metrics()
  validations = [row for row in rows if row["kind"] == "validation"]
  assert validations.index(result.validation) == len(validations) - 3
  # It stays stopped.
  again = run(
    config(
      data, tmp_path / "m", epochs=200, patience=2, learning_rate=0.5, dim=4
    ),
    resume=True,
  )
  assert (again.outcome, again.step) == ("stopped early", result.step)


def test_diverged_loss_stops_the_run_and_keeps_the_checkpoint(
  data, tmp_path, monkeypatch
):
  path = tmp_path / "m"
  settings = {"normalize": False, "optimizer": "adagrad", "epochs": 1}
  run(config(data, path, **settings))
  before = variables(path)

  class Broken(xir.tasks.XIRRetrieval):
    def call(self, *arguments, **keywords):
      return super().call(*arguments, **keywords) * float("inf")

  monkeypatch.setattr(xir.tasks, "XIRRetrieval", Broken)
  with pytest.raises(health.TrainingDiverged) as caught:
    run(config(data, path, **settings | {"epochs": 3}), resume=True)
  message = str(caught.value)
  assert "step 13" in message and "learning rate is 0.02" in message
  # It does not mention files that it has not read.
  assert "temperature" not in message and "init_stddev" not in message
  assert "all side features are" in message
  assert str(path / "checkpoints") in message
  for name, value in variables(path).items():
    np.testing.assert_array_equal(value, before[name])


def test_ctrl_c_saves_and_says_how_to_resume(data, tmp_path, fast):
  command = ["python", "-m", "pipelines.train", "--task=bir"]
  command += [f"--data={data}", f"--model_dir={tmp_path / 'm'}"]
  command += ["--epochs=100000", "--log_steps=2", "--patience=0", "--dim=4"]
  command += ["--eval_epochs=10000", "--global_batch_size=64"]
  process = subprocess.Popen(
    command,
    env=fast,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  metrics = tmp_path / "m/metrics.jsonl"
  give_up = time.monotonic() + 120
  while not metrics.exists() or metrics.stat().st_size < 500:
    assert process.poll() is None and time.monotonic() < give_up
    time.sleep(0.1)
  process.send_signal(signal.SIGINT)
  output, _ = process.communicate(timeout=120)
  assert process.returncode == 130, output
  assert "--resume" in output
  assert "Traceback" not in output
  steps = [json.loads(x)["step"] for x in metrics.read_text().splitlines()]
  saved = tf.train.latest_checkpoint(str(tmp_path / "m/checkpoints"))
  assert saved.endswith(f"-{steps[-1]}")


def test_without_validation_the_newest_checkpoint_is_the_result(
  data, tmp_path, capsys
):
  rows = schema_lib.Schema.load(data).rows
  bare = tmp_path / "bare"
  bare.mkdir()
  for file in data.iterdir():
    if file.is_file():
      (bare / file.name).write_bytes(file.read_bytes())
  schema = schema_lib.Schema.load(data)
  msgspec.structs.replace(
    schema,
    rows=rows | {"validation": 0, "test": 0},
    shards=schema.shards | {"validation": (), "test": ()},
  ).save(bare)
  given = config(bare, tmp_path / "my run", epochs=1)
  result = run(given)
  assert result.validation == {}
  assert "no validation split" in capsys.readouterr().err
  assert tf.train.latest_checkpoint(str(tmp_path / "my run/best")) is None
  # Without a test split there is nothing to evaluate.
  assert shlex.split(train._following(given, result.outcome)) == [
    *("xir-tfrs", "export", "--data", str(bare), "--model_dir"),
    *(str(tmp_path / "my run"), "--output", "bundles/my run"),
  ]
  assert "evaluate" in train._following(config(data, "m"), result.outcome)


@pytest.fixture(scope="module")
def made(data, tmp_path_factory):
  """The directory of a run of one epoch; tests must not change it."""
  path = tmp_path_factory.mktemp("made") / "m"
  run(config(data, path, epochs=1))
  return path


def test_wrong_use_is_refused(data, made, tmp_path):
  with pytest.raises(errors.DataError, match="--resume.*--overwrite"):
    run(config(data, made, epochs=1))
  with pytest.raises(errors.DataError, match="cannot change --dim"):
    run(config(data, made, dim=4), resume=True)
  with pytest.raises(errors.DataError, match="schema.json"):
    run(config(tmp_path / "nothing", tmp_path / "n"))
  with pytest.raises(ValueError, match="--task must be one of"):
    run(config(data, tmp_path / "n", task="svd"))
  with pytest.raises(ValueError, match="--metric must be one of"):
    run(config(data, tmp_path / "n", metric="accuracy"))
  assert not (tmp_path / "n").exists()


def test_two_runs_cannot_share_a_directory(data, made, tmp_path):
  first = config(data, tmp_path / "m", epochs=1)
  # Immediately: the second run does not read its data.
  second = config(tmp_path / "nothing", tmp_path / "m", epochs=1)
  with runs.RunDir(first.model_dir).locked():
    for choice in ({}, {"resume": True}, {"overwrite": True}):
      with pytest.raises(errors.DataError, match="is writing here"):
        run(second, **choice)
  assert not (tmp_path / "m").exists()
  shutil.copytree(made, tmp_path / "m")
  with pytest.raises(errors.DataError, match="already holds a training run"):
    run(second)
  assert run(first, resume=True).outcome == "finished"


def test_a_model_dir_that_is_a_file(data, tmp_path):
  (tmp_path / "m").write_text("mine")
  with pytest.raises(errors.DataError, match="is not a directory"):
    run(config(data, tmp_path / "m"))
  assert (tmp_path / "m").read_text() == "mine"


def test_data_that_changed_is_refused(data, made, tmp_path):
  moved = tmp_path / "data"
  moved.mkdir()
  for file in data.iterdir():
    if file.is_file():
      (moved / file.name).write_bytes(file.read_bytes())
  shutil.copytree(made, tmp_path / "m")
  schema = schema_lib.Schema.load(moved)
  msgspec.structs.replace(schema, name="another").save(moved)
  with pytest.raises(errors.DataError, match="schema.json differs"):
    run(config(moved, tmp_path / "m", epochs=2), resume=True)


@pytest.mark.parametrize(
  "settings, message",
  [
    ({"dim": 0}, "--dim must be positive"),
    ({"preset": "fast"}, "--preset must be one of"),
    ({"optimizer": "sgd"}, "--optimizer must be one of"),
    ({"l2": 0.1}, "--l2 belongs to --optimizer coupled_l2_adam"),
    ({"learning_rate": float("nan")}, "--learning_rate must be a finite"),
    ({"cache_weight": 1.5}, "--cache_weight must be at most 1"),
    ({"patience": -1}, "--patience must not be negative"),
    ({"learning_rate_schedule": "linear"}, "--learning_rate_schedule must be"),
  ],
)
def test_bad_settings_name_the_flag(settings, message):
  with pytest.raises(ValueError, match=message):
    configs.from_preset(**settings)


def test_paper_preset_is_the_released_run():
  paper = configs.from_preset(preset="paper")
  assert (paper.dim, paper.init_stddev, paper.global_batch_size) == (
    32,
    1,
    2048,
  )
  assert (paper.normalize, paper.temperature) == (False, 1.0)
  assert (paper.optimizer, paper.learning_rate_decay) == (
    "coupled_l2_adam",
    0.95,
  )
  assert configs.from_preset(preset="paper", dim=16).dim == 16


def test_config_survives_json():
  before = configs.from_preset(candidate_hidden=("32", "16"))
  fields = json.loads(json.dumps(settings_lib.as_dict(before)))
  assert configs.TrainConfig(**fields) == before


def plain_config(data, model_dir_, **settings):
  plain = {"task": "ssl_pop", "preset": "plain", "epochs": 1, "log_steps": 1}
  return config(data, model_dir_, **plain | settings)


@pytest.fixture(scope="module")
def plain(data, tmp_path_factory):
  """The directory of such a run; tests must not change it."""
  path = tmp_path_factory.mktemp("plain") / "m"
  run(plain_config(data, path))
  return path


def test_known_positives_reach_the_task(data, plain, tmp_path):
  """The loss of the first steps falls as negatives are left out."""
  run(plain_config(data, tmp_path, mask_known_positives=True))
  without, masked = (
    np.mean([row["loss"] for row in runs.RunDir(path).read_metrics()[:4]])
    for path in (plain, tmp_path)
  )
  # There are fewer negatives, and those left out have high scores.
  assert masked < without


def test_candidates_by_query():
  columns = {
    "query_id": np.array([2, 0, 2, 2, 0]),
    "candidate_id": np.array([7, 1, 3, 7, 1]),
  }
  known = datasets.candidates_by_query(columns, 4)
  assert known.to_list() == [[1], [], [3, 7], []]
  batches = datasets.training_dataset(
    columns, global_batch_size=3, seed=0, known=known
  )
  for batch in batches.take(3):
    entries = batch["known_candidate_ids"].to_list()
    assert len(entries) == len(set(batch["query_id"].numpy()))
    assert [entries[row] for row in batch["known_row"].numpy()] == [
      known.to_list()[query] for query in batch["query_id"].numpy()
    ]


def test_popularity_weights_reach_the_task(data, plain, tmp_path):
  """The first step's loss is the weighted mean of the rows' losses."""
  run(plain_config(data, tmp_path, popularity_weight=2.0))
  losses = {
    power: runs.RunDir(path).read_metrics()[0]["loss"]
    for power, path in ((0.0, plain), (2.0, tmp_path))
  }
  columns = records.read_interactions(data, "train")
  batch = next(
    iter(datasets.training_dataset(columns, global_batch_size=256, seed=5))
  )
  ids = columns["candidate_id"]
  squares = np.bincount(ids) ** 2.0
  by_candidate = squares / squares[ids].mean()
  trained = model.build(
    plain_config(data, tmp_path),
    schema_lib.Schema.load(data),
    tables.read_table(data, "queries"),
    tables.read_table(data, "candidates"),
  )
  weights = by_candidate[batch["candidate_id"].numpy()]
  for power, weight in ((0.0, np.ones(256)), (2.0, weights)):
    loss = trained.compute_loss(
      dict(batch, sample_weight=tf.constant(weight, tf.float32))
    )
    np.testing.assert_allclose(losses[power], loss, rtol=1e-5)


def test_known_positives_are_refused_where_they_cannot_be_masked(
  data, tmp_path
):
  with pytest.raises(ValueError, match="--mask_known_positives belongs to"):
    config(data, tmp_path, task="corr", mask_known_positives=True)


def test_cosine_ends_at_zero_after_a_pause(data, tmp_path):
  settings = {"learning_rate_schedule": "cosine", "epochs": 3, "log_steps": 1}
  paused = config(data, tmp_path / "paused", **settings)
  result = run(paused, stop_after=1)
  assert result.outcome == "paused"
  again = run(paused, resume=True)
  assert again.outcome == "finished"
  rates = [
    row["learning_rate"]
    for row in runs.RunDir(paused.model_dir).read_metrics()
    if row["kind"] == "train"
  ]
  total = len(rates)
  assert total == again.step > result.step
  expected = [
    0.02 * 0.5 * (1 + np.cos(np.pi * step / total)) for step in range(total)
  ]
  np.testing.assert_allclose(rates, expected, rtol=1e-3, atol=1e-6)
  # The learning rates of all steps depend on the last step.
  with pytest.raises(errors.DataError, match="--epochs"):
    run(dataclasses.replace(paused, epochs=5), resume=True)


def test_runs_older_than_loss_forms_use_cross_entropy(data, plain, tmp_path):
  """A run from before forms of the loss resumes unchanged."""
  shutil.copytree(plain, tmp_path / "m")
  first = plain_config(data, tmp_path / "m")
  path = tmp_path / "m" / runs.CONFIG
  old = json.loads(path.read_text("utf-8"))
  for name in (*configs.CROSS_ENTROPY, "loss_arguments"):
    del old["train"][name]
  del old["sha256"]  # Such runs also had no hash.
  del old["defaults"]  # The temperature did not depend on the data.
  path.write_text(json.dumps(old), encoding="utf-8")
  with pytest.raises(errors.DataError, match="give --temperature 0.1"):
    run(dataclasses.replace(first, epochs=2), resume=True)
  first = dataclasses.replace(first, temperature=0.1)
  run(dataclasses.replace(first, epochs=2), resume=True)
  with pytest.raises(errors.DataError, match="mask_known_positives"):
    run(
      dataclasses.replace(first, epochs=3, mask_known_positives=True),
      resume=True,
    )


@pytest.mark.parametrize(
  "rows, queries, candidates, expected",
  [
    (637_318, 29_858, 40_981, 0.1),  # Gowalla
    (719_676, 6_040, 3_416, 0.15),  # MovieLens 1M: 0.5 / log(28.67)
    (90, 10, 10, 0.2),
    (0, 10, 10, None),
  ],
)
def test_the_default_temperature_grows_with_the_density(
  rows, queries, candidates, expected
):
  schema = types.SimpleNamespace(
    rows={"train": rows}, num_queries=queries, num_candidates=candidates
  )

  def temperature(**settings):
    return configs.from_preset(**settings).for_data(schema).temperature

  assert temperature(task="ssl_pop") == expected
  assert temperature(task="ssl_pop", temperature=0.07) == 0.07
  assert temperature(task="ssl_pop", normalize=False) is None
  assert temperature(task="ssl_pop", query_tower="history") is None
  if expected:
    assert temperature(task="xir") == pytest.approx(2 * expected, abs=0.005)


@pytest.mark.parametrize("task", methods.TASKS)
def test_every_task_can_be_built_with_the_default_shape(data, tmp_path, task):
  settings = config(data, tmp_path, task=task)
  used = settings.resolved
  plain = task in ("full_softmax", "corr")
  assert used.mask_known_positives is not plain
  assert used.popularity_weight == (0 if plain else 0.15)
  built = model.build(
    settings,
    schema_lib.Schema.load(data),
    tables.read_table(data, "queries"),
    tables.read_table(data, "candidates"),
  ).task.get_config()
  expected = (
    {"name": "cross_entropy"}
    if plain
    else {
      "name": "generalized_cross_entropy",
      "power": 0.07,
      "positive_in_partition": False,
    }
  )
  assert built["loss"] == expected
  assert model.form_of_loss(settings).get_config() == expected


@pytest.mark.parametrize("name", forms.FORMS)
def test_every_form_reaches_the_task(data, tmp_path, name):
  form = forms.FORMS[name]
  arguments = [
    f"{field.name}={json.dumps(field.default)}"
    for field in dataclasses.fields(form)
  ]
  settings = config(data, tmp_path, loss=name, loss_arguments=arguments)
  assert model.form_of_loss(settings) == form()
  with pytest.raises(ValueError, match="--loss_arguments.*sharpness"):
    model.form_of_loss(
      config(data, tmp_path, loss=name, loss_arguments=["sharpness=1"])
    )


@pytest.mark.parametrize(
  "old, expected",
  [
    ({}, {"name": "cross_entropy"}),
    ({"loss": "logq_corrected"}, {"name": "logq_corrected"}),
    (
      {"robustness": None, "positive_in_partition": None},
      {
        "name": "generalized_cross_entropy",
        "power": 0.07,
        "positive_in_partition": False,
      },
    ),
    ({"robustness": 0.0, "positive_in_partition": None}, {"name": "decoupled"}),
    (
      {"robustness": 0.2, "positive_in_partition": True},
      {
        "name": "generalized_cross_entropy",
        "power": 0.2,
        "positive_in_partition": True,
      },
    ),
    (
      {
        "task": "corr",
        "robustness": 0.0,
        "positive_in_partition": None,
      },
      {"name": "cross_entropy"},
    ),
  ],
)
def test_runs_from_before_there_were_forms(old, expected):
  given = {"task": "ssl_pop", "loss": "sampled_softmax"} | old
  form = model.form_of_loss(configs.of_run(given, "config.json"))
  assert form.get_config() == expected


def test_estimator_probe_measures_at_each_validation(data, tmp_path):
  run(config(data, tmp_path, estimator_probe=32))
  rows = runs.RunDir(tmp_path).read_metrics()
  validated, probed = (
    [row for row in rows if row["kind"] == kind]
    for kind in ("validation", "estimator")
  )
  assert [row["step"] for row in probed] == [row["step"] for row in validated]
  assert len(probed) == 2
  for row in probed:
    assert row["bias"] > 0
    assert all(np.isfinite(v) for k, v in row.items() if k != "kind")
