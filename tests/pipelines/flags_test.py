"""Flags of training are used or refused by name; files of settings."""

import json
import subprocess
import sys
import types

import numpy as np
import pytest

from pipelines import quickstart, train
from pipelines.training import build, config, methods
from xir_tfrs.data import errors, tables
from xir_tfrs.programs import main, settings

_COUNTS = np.array([5, 1, 0, 40, 7, 2, 0, 3, 11, 4])
# Settings of a task that are not arguments of its constructor.
_INDIRECT = {
  "log_q",  # Selects counts or estimator: log_q_test.
  "mask_known_positives",  # A column of the batches: train_test.
  "num_buckets",  # An argument of the estimator: log_q_test.
  "ranker_dim",  # An argument of the ranker: below.
  "ranker_hidden",
}
_OF_THE_DATA = {
  "candidate_counts",
  "candidate_encoder",
  "frequency_estimator",
  "ranker",
}


def build_task(**given):
  table = tables.Table(
    ids=np.array([str(i) for i in range(len(_COUNTS))], object),
    counts=_COUNTS,
    columns={},
  )
  schema = types.SimpleNamespace(
    rows={"train": 0}, query_features=(), candidate_features=()
  )
  made = config.from_preset(dim=4, use_features=False, **given)
  return build.build(made, schema, table, table).task


# Given and not used ----------------------------------------------------------


@pytest.mark.parametrize(
  ("given", "message"),
  [
    (
      {"task": "ssl", "cache_weight": 0.9},
      "--cache_weight belongs to --task xir. Received: --task ssl.",
    ),
    (
      {"task": "corr", "cache_size": 8},
      "--cache_size belongs to --task xir, or --task corr and "
      "--negative_sampler xir. Received: --task corr --negative_sampler midx.",
    ),
    (
      {"learning_rate_schedule": "cosine", "learning_rate_decay": 0.9},
      "--learning_rate_decay belongs to --learning_rate_schedule step.",
    ),
    (
      {"learning_rate_schedule": "cosine", "decay_epochs": 3},
      "--decay_epochs belongs to --learning_rate_schedule step.",
    ),
    (
      {"preset": "plain", "decay_epochs": 3},
      "--decay_epochs belongs to a --learning_rate_decay other than 1.",
    ),
    ({"l2": 1e-3}, "--l2 belongs to --optimizer coupled_l2_adam."),
    ({"ranker_dim": 8}, "--ranker_dim belongs to --task corr."),
    ({"task": "bir", "log_q": "none"}, "--log_q belongs to --task ssl or"),
    (
      {"task": "ssl", "num_buckets": 8},
      "--num_buckets belongs to --task g_tower, or --log_q streaming.",
    ),
    ({"cpu_replicas": 2}, "--cpu_replicas belongs to --strategy mirrored."),
    (
      {"task": "corr", "mask_known_positives": True},
      "--mask_known_positives belongs to --task",
    ),
    (
      {"task": "full_softmax", "remove_accidental_hits": True},
      "--remove_accidental_hits belongs to --task",
    ),
  ],
)
def test_a_flag_without_effect_is_refused(given, message):
  with pytest.raises(settings.SettingsError) as caught:
    config.from_preset(**given)
  assert message in str(caught.value)


def test_a_preset_may_set_unused_settings():
  for task in methods.TASKS:
    made = config.from_preset(preset="paper", task=task, optimizer="adam")
    assert ("cache_weight" in settings.as_dict(made)) == (task == "xir")


def test_on_resuming_the_flags_are_refused_too():
  old = config.from_preset(task="ssl")
  assert config.resumed(old, {"epochs": 3}).epochs == 3
  with pytest.raises(settings.SettingsError, match="--cache_weight belongs"):
    config.resumed(old, {"cache_weight": 0.3})


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"bank_size": 8}, "--task_arguments: bank_size has a flag, --bank_size"),
    (
      {"power": 1},
      "^--task_arguments: .* has no argument 'power'. It has: cache_p",
    ),
    ({"num_hashes": 2}, "no argument 'num_hashes'"),
    ({"cache_policy": "age"}, "--task xir: `cache_policy` must be"),
    ({"popularity": "age"}, "popularity must be rows or log_rows"),
  ],
)
def test_wrong_task_arguments(arguments, message):
  with pytest.raises(settings.SettingsError, match=message):
    build_task(task="xir", task_arguments=arguments)


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ({"task": "mns", "log_q": "none"}, "^--task mns needs --log_q popularity"),
    (
      {"task": "ssl", "loss": "logq_corrected"},
      "^--loss logq_corrected needs .* Received: --task ssl --log_q none",
    ),
  ],
)
def test_popularity_that_is_needed_names_the_flag(given, message):
  with pytest.raises(settings.SettingsError, match=message):
    build_task(**given)


# From settings to arguments --------------------------------------------------


def _tasks_of(setting):
  """The tasks that use a setting, according to its declaration."""
  if not setting.about.only:
    return set(methods.TASKS)
  named = [only.get("task", ()) for only in setting.about.only]
  return {
    task
    for tasks in named
    for task in ((tasks,) if isinstance(tasks, str) else tasks)
  }


@pytest.mark.parametrize("task", methods.TASKS)
def test_every_task_argument_has_a_setting(task):
  method = methods.TASKS[task]
  arguments = {
    method.settings.get(name, name) for name in build.parameters(method.task)
  }
  flags = {one.name: one for one in settings.settings_of(config.TrainConfig)}
  of_tasks = {
    name
    for name, one in flags.items()
    if any("task" in only for only in one.about.only)
  }
  # A flag that belongs to the task is an argument of it.
  for name in of_tasks - _INDIRECT:
    if task in _tasks_of(flags[name]):
      assert name in arguments, f"--{name} reaches no argument of {task}"
  # An argument with a flag is set by the flag, unless it has no effect.
  if task == "full_softmax":
    arguments -= {"remove_accidental_hits"}
  for name in arguments & flags.keys():
    assert task in _tasks_of(flags[name]), f"--{name} does not name {task}"
  # --task_arguments sets all others.
  known = build.task_argument_names(config.from_preset(task=task))
  assert arguments - flags.keys() - _OF_THE_DATA == set(known) - {"popularity"}


@pytest.mark.parametrize(
  ("task", "name", "value"),
  [
    ("xir", "cache_policy", "recency"),
    ("xir", "cache_scope", "all"),
    ("corr", "cache_scope", "all"),
    ("mns", "logq_positive", "mixture"),
    ("g_tower", "num_hashes", 3),
    ("g_tower", "frequency_learning_rate", 0.2),
    ("corr", "num_codewords", 2),
    ("corr", "kl_weight", 0.5),
    ("cbns", "warmup_drift", 0.25),
    ("bir", "row_chunk_size", 3),
    ("bir", "popularity", "log_rows"),
  ],
)
def test_settings_of_one_ablation_are_task_arguments(task, name, value):
  found = build_task(task=task, task_arguments={name: value}).get_config()
  argument = {
    "frequency_learning_rate": "learning_rate",
    "popularity": "candidate_counts",
  }.get(name, name)
  if name == "popularity":
    value = np.rint(1e6 * np.log1p(_COUNTS)).tolist()
  assert found[argument] == value


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ({"loss": "hinge"}, "--loss must be one of cross_entropy, "),
    (
      {"loss": "decoupled", "loss_arguments": {"power": 0.1}},
      "--loss_arguments: --loss decoupled has no setting 'power'. It has: none",
    ),
    (
      {"loss": "psl", "loss_arguments": {"power": 0.1}},
      "--loss_arguments: --loss psl has no setting 'power'. It has: .*tau",
    ),
    ({"loss_arguments": {"power": 7}}, "--loss generalized_cross_entropy: `po"),
    ({"task": "bir", "loss": "logq_corrected"}, "--task bir: .*logq_corrected"),
  ],
)
def test_wrong_forms_of_the_loss(given, message):
  with pytest.raises(settings.SettingsError, match=f"^{message}"):
    build_task(**given)


def test_one_partition_needs_a_scope():
  arguments = "joint_partition=true,cache_scope=all"
  found = build_task(task="xir", task_arguments=arguments).get_config()
  assert found["joint_partition"] is True
  with pytest.raises(settings.SettingsError, match="--task xir: "):
    build_task(task="xir", task_arguments="joint_partition=true")


def test_flags_of_the_ranker():
  ranker = build_task(task="corr", ranker_dim=3, ranker_hidden=(5,)).ranker
  found = ranker.get_config()
  assert (found["dim"], list(found["hidden_units"])) == (3, [5])


# Files -----------------------------------------------------------------------

_GIVEN = {
  "xir": {"cache_weight": 0.3, "task_arguments": {"cache_scope": "all"}},
  "corr": {"ranker_hidden": (4, 2), "negative_sampler": "bir"},
  "mns": {"num_uniform": 3, "log_q": "streaming", "num_buckets": 5},
  "full_softmax": {"optimizer": "coupled_l2_adam", "l2": 1e-3},
}


@pytest.mark.parametrize("task", _GIVEN)
def test_a_config_of_a_run_is_a_file_for_config(tmp_path, task):
  given = {"data": "d", "model_dir": "m", "preset": "paper", "task": task}
  made = config.from_preset(**given, **_GIVEN[task])
  path = tmp_path / "config.json"
  written = {"format": 1, "data": "/d", "train": settings.as_dict(made)}
  path.write_text(json.dumps(written))
  again = config.from_preset(**settings.read_file(path, config.TrainConfig))
  assert settings.as_dict(again) == settings.as_dict(made) | {"data": "/d"}


# Version 0.1.0 wrote all 64 settings of every run.
_OLD = {
  "task_arguments": ["probe_size=3"],
  "task": "cbns",
  "warmup_drift": 0.5,
  "popularity": "log_rows",
  "joint_partition": False,
  "cache_policy": "recency",
  "cache_scope": "step",
  "logq_positive": "none",
  "num_hashes": 7,
  "frequency_learning_rate": 0.01,
  "num_codewords": 8,
  "kl_weight": 2.0,
  "row_chunk_size": None,
  "cache_weight": 0.9,
  "mask_known_positives": True,
  "robustness": 0.1,
}


def test_settings_of_older_runs(tmp_path):
  old = config.of_run(_OLD, "config.json", "/d")
  # Settings that the task used and that differed from the default.
  assert old.task_arguments == {
    "probe_size": 3,
    "warmup_drift": 0.5,
    "popularity": "log_rows",
  }
  assert (old.data, old.mask_known_positives) == ("/d", True)
  assert old.loss == "generalized_cross_entropy"
  assert old.loss_arguments == {"power": 0.1, "positive_in_partition": True}
  streaming = config.of_run(_OLD | {"log_q": "streaming"}, "config.json")
  assert streaming.task_arguments["num_hashes"] == 7
  # A run from before forms of the loss existed.
  older = config.of_run({"task": "bir"}, "config.json")
  for name, value in config.CROSS_ENTROPY.items():
    assert getattr(older, name) == value
  with pytest.raises(errors.DataError, match="config.json, field train: can"):
    config.of_run(_OLD | {"task_arguments": False}, "config.json")
  # As a file of settings, unused settings are left out.
  (tmp_path / "config.json").write_text(json.dumps({"train": _OLD}))
  found = settings.read_file(tmp_path / "config.json", config.TrainConfig)
  assert "cache_weight" not in found
  config.from_preset(**found)


def test_a_resumed_run_may_use_other_devices():
  old = config.from_preset(strategy="mirrored", cpu_replicas=2)
  assert config.resumed(old, {"epochs": 3}).cpu_replicas == 2
  now = config.resumed(old, {"strategy": "one"})
  assert now.cpu_replicas == 0
  assert config.changed(old, now) is None
  with pytest.raises(settings.SettingsError, match="--cpu_replicas belongs"):
    config.resumed(old, {"strategy": "one", "cpu_replicas": 2})


def test_a_run_of_another_version_is_a_sentence(tmp_path):
  path = tmp_path / "config.json"
  with pytest.raises(errors.DataError, match="does not know .*'warp'") as e:
    config.of_run({"warp": 9}, path)
  assert e.value.path == str(path)


def test_what_a_resumed_run_may_change():
  old = config.from_preset(task="ssl", preset="paper")
  assert config.changed(old, config.resumed(old, {"epochs": 3})) is None
  arguments = {"task_arguments": {"row_chunk_size": 7}}
  assert config.changed(old, config.resumed(old, arguments)) is None
  assert config.changed(old, config.resumed(old, {"dim": 3})) == "dim"
  arguments = {"task_arguments": {"popularity": "log_rows"}}
  assert config.changed(old, config.resumed(old, arguments)) == "task_arguments"
  # Settings that the task does not use are ignored.
  assert config.changed(old, config.resumed(old, {"preset": "paper"})) is None
  cosine = config.from_preset(learning_rate_schedule="cosine")
  assert config.changed(cosine, config.resumed(cosine, {"epochs": 3})) == (
    "epochs"
  )


# The program -----------------------------------------------------------------

_WRONG = [
  (["--task=xyz"], "--task must be one of ssl, "),
  (["--dim=-3"], "--dim must be positive. Received: -3."),
  (["--seed=-1"], "--seed must not be negative. Received: -1."),
  (["--model_dir=m", "--data=d", "--task=ssl", "--cache_weight=1"], "belongs"),
  (["--data=d"], "--model_dir is required"),
  (["--model_dir=m"], "--data is required"),
  (["--model_dir=m", "--resume", "--overwrite"], "--resume and --overwrite"),
]
_WITHOUT_TENSORFLOW = """
import sys
from pipelines import quickstart, train
from xir_tfrs.programs import main
for arguments in {calls!r}:
  print(main.run(train.TrainFlags, train.train, make=train._order,
                 argv=["train", *arguments]))
assert "tensorflow" not in sys.modules
"""


@pytest.mark.parametrize(
  ("tasks", "message"),
  [
    (("ssl_pop", "irx"), "--tasks must be one of ssl, ssl_pop.*'irx'"),
    ((), "--tasks must name at least one method"),
    (("bir", "bir"), "and each once. Received: 'bir,bir'"),
  ],
)
def test_quickstart_refuses_wrong_methods_before_any_work(tasks, message):
  given = {"input": "a.csv", "output": "o", "tasks": tasks}
  with pytest.raises(settings.SettingsError, match=message):
    quickstart._config(given)


def test_help_and_wrong_flags_do_not_wait_for_tensorflow():
  calls = [["--helpfull"], *(arguments for arguments, _ in _WRONG)]
  done = subprocess.run(
    [sys.executable, "-c", _WITHOUT_TENSORFLOW.format(calls=calls)],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert "--cache_weight: Share of the cache in the loss." in done.stdout
  assert done.stdout.split()[-len(calls) :] == ["0"] + ["2"] * len(_WRONG)
  lines = done.stderr.splitlines()
  assert len(lines) == len(_WRONG)
  for line, (_, message) in zip(lines, _WRONG, strict=True):
    assert line.startswith("train: Error: ") and message in line


def test_a_misspelt_key_names_the_file(tmp_path, capsys):
  path = tmp_path / "run.yaml"
  path.write_text("model_dir: m\ndata: d\nlerning_rate: 0.1\n")
  status = main.run(
    train.TrainFlags,
    train.train,
    make=train._order,
    argv=["train", f"--config={path}"],
  )
  assert status == 2
  assert capsys.readouterr().err == (
    f"train: Error: {path}: there is no setting 'lerning_rate'; did you mean "
    "'learning_rate'?\n"
  )
