"""The search: its files, resuming, and its results.

Most tests use fake trials: threads of this process whose results depend on
their settings.
"""

import csv
import dataclasses
import json
import multiprocessing.connection
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import optuna
import pytest

from pipelines import train, tune
from pipelines.training import config as configs
from pipelines.tuning import report, search, trials
from tests import program
from xir_tfrs.data import atomic, errors, runs
from xir_tfrs.programs import main, settings


class _Thread(threading.Thread):
  """Replaces the process of a trial."""

  exitcode = 3

  def kill(self):
    self.join()


def in_threads(monkeypatch, run):
  """Runs trials in threads of this process."""

  def start(unused_target, arguments):
    theirs, config, _ = arguments
    # The program closes its own copy.
    copy = multiprocessing.connection.Connection(os.dup(theirs.fileno()))
    thread = _Thread(target=run, args=(copy, config))
    thread.start()
    return thread

  monkeypatch.setattr(trials, "start_process", start)


def value_of(config):
  return 1 / (1 + abs(config.resolved.temperature - 0.4) + config.learning_rate)


def untrained(connection, config):
  """A trial whose value grows to a limit, which its settings determine."""
  values = {}
  for epoch in range(1, config.epochs + 1):
    values[epoch] = value_of(config) * epoch / config.epochs
    connection.send(trials.Validated(values))
    if connection.recv():
      outcome = "paused"
      break
  else:
    outcome = "finished"
  folder = pathlib.Path(config.model_dir)
  for name in ("best", "checkpoints"):
    (folder / name).mkdir(parents=True)
    (folder / name / "checkpoint").touch()
  (folder / runs.METRICS).touch()
  connection.send(trials.Ended(outcome, values[epoch], epoch, epoch, 1.0))
  connection.close()


@pytest.fixture
def searched(monkeypatch, small_data, tmp_path):
  """Runs a search; returns its study and the order of trials."""
  in_threads(monkeypatch, untrained)
  monkeypatch.setattr(search, "_RANDOM", 2)
  fixed = {"query_tower": "id", "loss": "cross_entropy", "use_features": True}
  fixed |= {"popularity_weight": 0, "learning_rate_schedule": "step"}
  fixed |= {"global_batch_size": 256}

  def run(num_trials, output=None, **given):
    given = {"epochs": 4, **fixed, **given}
    ours = {"data": str(small_data), "output": str(output or tmp_path / "out")}
    order = tune._search(tune._order(ours | given | {"trials": num_trials}))
    return search.run(order), order

  return run


def chosen(study):
  return [trial.params for trial in study.trials]


def test_ctrl_c_does_not_reach_the_fork_server(monkeypatch):
  before, found = signal.getsignal(signal.SIGINT), []
  monkeypatch.setattr(
    trials.forkserver,
    "ensure_running",
    lambda: found.append(signal.getsignal(signal.SIGINT)),
  )
  trials._ensure_fork_server()
  assert found == [signal.SIG_IGN]
  assert signal.getsignal(signal.SIGINT) == before


def test_an_interrupted_search_equals_an_uninterrupted_one(searched, tmp_path):
  whole, _ = searched(5, tmp_path / "whole")
  searched(1)
  parts, _ = searched(5)
  assert chosen(parts) == chosen(whole) and len(chosen(whole)) == 5
  assert len({str(params) for params in chosen(whole)}) == 5
  assert [trial.params["task"] for trial in whole.trials[:2]] == [
    "ssl_pop",
    "xir",
  ]
  # The default for data as dense as these.
  assert whole.trials[0].params["temperature"] == 0.2
  assert whole.best_value >= max(trial.value for trial in whole.trials[:2])
  again, _ = searched(5)
  assert chosen(again) == chosen(whole)


def test_poor_trials_are_stopped_early(searched, tmp_path, monkeypatch):
  monkeypatch.setattr(report, "_FEWEST_TRIALS", 5)
  study, order = searched(12, jobs=2)
  states = [trial.state.name for trial in study.trials]
  assert "PRUNED" in states and set(states) == {"PRUNED", "COMPLETE"}
  for trial in study.trials:
    if trial.state.name == "PRUNED":
      assert trial.last_step in (2, 3)
  lines = "\n".join(report.write(study, order))
  best = study.best_trial.number
  assert f"Best: trial {best}, its run in {tmp_path / 'out'}" in lines
  assert "Effect of settings (PED-ANOVA)" in lines and "given up" in lines
  assert sum(report.importance(study).values()) == pytest.approx(1)
  picture = (tmp_path / "out" / report.IMPORTANCE_FILE).read_bytes()
  assert picture.startswith(b"\x89PNG")
  with open(tmp_path / "out" / report.TABLE_FILE, newline="") as file:
    rows = list(csv.DictReader(file))
  assert sorted(int(row["trial"]) for row in rows) == list(range(12))
  assert int(rows[0]["trial"]) == best
  assert float(rows[0]["ndcg@20"]) == pytest.approx(study.best_value)
  # Only the checkpoints of the best trial are kept.
  kept = {path.parent.parent.name for path in order.output.rglob("checkpoint")}
  assert kept == {f"{best:04d}"}
  assert (search.trial_dir(order.output, 0) / runs.METRICS).exists()


def test_trials_that_fail(searched, monkeypatch):
  def fails(connection, config):
    if config.task != "xir":
      connection.send(trials.Ended("failed", message="it diverged"))
      connection.close()
    else:
      untrained(connection, config)

  in_threads(monkeypatch, fails)
  study, order = searched(3)
  assert {trial.state.name for trial in study.trials} == {"FAIL", "COMPLETE"}
  assert study.best_trial.params["task"] == "xir"
  assert "it diverged" in report.rows(study, order)[-1]["message"]
  with pytest.raises(main.ProgramError, match="none of .* it diverged"):
    searched(1, order.output / "a", task="bir")

  def dies(connection, config):
    connection.close()

  in_threads(monkeypatch, dies)
  with pytest.raises(main.ProgramError, match="status 3; see .*log.txt"):
    searched(1, order.output / "b")
  _Thread.exitcode = -signal.SIGKILL
  try:
    with pytest.raises(main.ProgramError, match="memory ran out"):
      searched(2, order.output / "c")
  finally:
    _Thread.exitcode = 3


def test_a_search_resumes_with_its_original_settings(searched, tmp_path):
  searched(2)
  with pytest.raises(errors.DataError, match="another epochs .4 then, 5 now"):
    searched(3, epochs=5)
  with pytest.raises(
    errors.DataError, match="another temperature .*, 0.1..0.2 now"
  ):
    searched(3, space=("temperature=0.1..0.2",))
  with pytest.raises(errors.DataError, match="another dim .64,128,256 then, 3"):
    searched(3, dim=3)
  study, order = searched(3, epochs=5, overwrite=True)
  assert len(study.trials) == 3
  other = dataclasses.replace(order, schema_sha256="of others", overwrite=False)
  with pytest.raises(errors.DataError, match="another hash of the data's sch"):
    search.run(other)
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine" / "thesis.tex").touch()
  for overwrite in (False, True):
    with pytest.raises(
      errors.DataError, match="thesis.tex, which is not part of"
    ):
      searched(3, tmp_path / "mine", overwrite=overwrite)


def test_a_search_without_its_settings_is_not_deleted(searched, tmp_path):
  study, _ = searched(1)
  output = tmp_path / "out"
  (output / search.SEARCH_FILE).unlink()
  with pytest.raises(errors.DataError, match="holds study.db without its sear"):
    searched(2)
  assert search.trial_dir(output, 0).exists() and len(study.trials) == 1
  study, _ = searched(2, overwrite=True)
  assert len(study.trials) == 2


@pytest.mark.parametrize("killed_in", ["rmtree", "write"])
def test_a_search_that_was_overwritten_in_part(
  searched, tmp_path, monkeypatch, killed_in
):
  searched(1)

  def killed(*unused_arguments, **unused_keywords):
    raise KeyboardInterrupt

  module = {"rmtree": search.shutil, "write": search.json_files}[killed_in]
  with monkeypatch.context() as patch:
    patch.setattr(module, killed_in, killed)
    with pytest.raises(KeyboardInterrupt):
      searched(1, epochs=3, overwrite=True)
  study, _ = searched(1, epochs=3, overwrite=True)
  assert len(study.trials) == 1
  assert os.listdir(tmp_path / "out" / search.TRIALS) == ["0000"]


def test_trials_without_validation_are_refused(searched):
  for given in ({"eval_epochs": 5}, {"eval_epochs": 2, "stop_epoch": 1}):
    with pytest.raises(settings.SettingsError, match="of a trial, which would"):
      searched(1, **given)


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ({"output": "o"}, "--data is required"),
    ({"data": "d"}, "--output is required"),
    ({"data": "d", "output": "o", "model_dir": "m"}, "--model_dir is not"),
    (
      {"data": "d", "output": "o", "rows": "all"},
      "--rows all is not supported",
    ),
    (
      {"data": "d", "output": "o", "strategy": "multi_worker"},
      "--strategy multi_worker is not supported",
    ),
  ],
)
def test_flags_that_are_refused(given, message):
  with pytest.raises(settings.SettingsError, match=message):
    tune._order(given)


def test_without_a_validation_split(tmp_path):
  (tmp_path / "a.tsv").write_text("".join(f"{n}\t{n % 3}\n" for n in range(9)))
  arguments = ["--input", tmp_path / "a.tsv", "--header=false"]
  arguments += ["--validation_fraction=0", "--output", tmp_path / "data"]
  assert program.run("pipelines.prepare", *arguments).returncode == 0
  order = tune._order({"data": str(tmp_path / "data"), "output": "o"})
  with pytest.raises(errors.DataError, match="no validation split.*--split"):
    tune._search(order)


@pytest.mark.slow
def test_a_killed_search_resumes(monkeypatch, small_data, tmp_path):
  """With real trials: none is lost, and none starts twice."""
  output = tmp_path / "out"
  arguments = [f"--data={small_data}", f"--output={output}", "--trials=2"]
  arguments += ["--epochs=6", "--patience=0", "--query_tower=id", "--dim=4"]
  arguments += ["--task=ssl_pop", "--space=global_batch_size=256"]
  process = subprocess.Popen(
    [sys.executable, "-m", "pipelines.tune", *arguments]
  )
  second = search.trial_dir(output, 1)
  give_up = time.monotonic() + 240
  while not (second / "checkpoints" / "checkpoint").exists():
    assert process.poll() is None and time.monotonic() < give_up
    time.sleep(0.02)
  process.kill()
  process.wait()
  first = (search.trial_dir(output, 0) / runs.METRICS).read_bytes()
  # Its trial ends with it.
  while True:
    try:
      with atomic.locked(second):
        break
    except errors.DataError:
      assert time.monotonic() < give_up
  before = [row["step"] for row in runs.RunDir(second).read_metrics()]

  in_threads(monkeypatch, trials.run)
  done = program.run("pipelines.tune", *arguments)
  assert done.returncode == 0, done.stderr
  assert "1 trials are finished, 1 were interrupted" in done.stdout
  study = optuna.load_study(
    study_name="tune", storage=f"sqlite:///{output / search.STUDY_FILE}"
  )
  assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 2
  assert (search.trial_dir(output, 0) / runs.METRICS).read_bytes() == first
  for number, trial in enumerate(study.trials):
    assert sorted(trial.intermediate_values) == list(range(1, 7))
    run = runs.RunDir(search.trial_dir(output, number))
    epochs = [
      int(row["epoch"])
      for row in run.read_metrics()
      if row["kind"] == "validation"
    ]
    assert epochs == list(range(1, 7))
    assert run.read_config().train["temperature"] == pytest.approx(
      trial.params["temperature"], rel=1e-3
    )
  assert 0 < len(before) < len(runs.RunDir(second).read_metrics())

  best = json.loads((output / report.BEST_FILE).read_text())
  again = settings.read_file(output / report.BEST_FILE, train.TrainFlags)
  made = settings.as_dict(configs.from_preset(**again, model_dir="m"))
  run = search.trial_dir(output, study.best_trial.number)
  kept = runs.RunDir(run).read_config().train
  assert made == kept | {"model_dir": "m", "data": best["data"]}
  assert runs.RunDir(run).checkpoint("best")
  _run_the_guide(output, tmp_path)


def _run_the_guide(tuned, folder):
  """Runs the commands of docs/choosing_a_method.md after the first one."""
  guide = pathlib.Path(__file__).parents[2] / "docs/choosing_a_method.md"
  (block,) = re.findall(
    r"```bash\n(xir-tfrs tune .*?)```", guide.read_text(), re.S
  )
  first, *others = (line.split()[1:] for line in block.splitlines())
  assert first[0] == "tune" and first[3:5] == ["--output", "tuned"]
  for name, *arguments in others:
    arguments = [
      re.sub("^tuned", str(tuned), re.sub("^runs", str(folder), x))
      for x in arguments
    ]
    done = program.run(f"pipelines.{name}", *arguments)
    assert done.returncode == 0, done.stderr
  live = runs.RunDir(folder / "live")
  assert live.read_config().train["rows"] == "all"
  assert live.checkpoint("best")
