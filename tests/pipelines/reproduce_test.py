"""The grids of runs behind the published tables, and their reports."""

import dataclasses
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import types

import msgspec
import numpy as np
import pytest

from pipelines import evaluate, reproduce
from pipelines.evaluation import intervals
from pipelines.reproduction import experiments, files, report, results, runs
from pipelines.training import config as configs
from tests import tiny_runs
from xir_tfrs.data import errors, json_files
from xir_tfrs.programs import settings

ROOT = pathlib.Path(__file__).parents[2]
PLANNED = (
  "table2",
  "curves",
  "occurrence",
  "resample_size",
  "cache_size",
  "cache_weight",
  "batch_size",
  "features",
  "settings",
  "beyond",
)


CASES = ("paper-ssl_pop", "paper-xir-resampler=systematic")


def config_of(data, output, **given):
  """Two methods, two seeds, two epochs."""
  defaults = {"cases": CASES, "seeds": (0, 3), "epochs": 2}
  return reproduce.ReproduceConfig(
    **{"experiment": "table2", "data": str(data), "output": str(output)}
    | defaults
    | given
  )


@pytest.fixture(scope="module")
def output(small_data, tmp_path_factory):
  """Runs in this process."""
  folder = tmp_path_factory.mktemp("reproduce")
  config = config_of(small_data, folder)
  for run in reproduce.planned(
    config.experiment,
    config.data,
    config.output,
    seeds=config.seeds,
    epochs=config.epochs,
    cases=config.cases,
  ):
    runs.carry_out(run, progress=False)
  results.collect(config.experiment, config.data, config.output, config.epochs)
  return folder


def load(output):
  return files.read_result(output / "table2_small.json")


def changed(result, **fields):
  return msgspec.structs.replace(result, **fields)


def folder_of(output, name, seed):
  return output / "runs" / "small" / f"{name}-seed{seed}"


@pytest.mark.parametrize("name", PLANNED)
def test_every_experiment_can_be_planned(name, small_data, tmp_path):
  plan = reproduce.planned(name, str(small_data), str(tmp_path), seeds=(0, 1))
  folders = [run.folder for run in plan]
  assert len(set(folders)) == len(folders) >= 4
  assert not any(re.search(r"[^\w=.,\-/]", folder) for folder in folders)
  for run in plan:
    # The settings exist and are valid.
    assert run.config().task == run.case.task
  experiment = experiments.EXPERIMENTS[name]
  titles = [experiment.title_of(case) for case in experiment.cases]
  assert len(set(titles)) == len(titles)


def test_row_titles_show_differing_settings():
  experiment = experiments.EXPERIMENTS["features"]
  titles = [experiment.title_of(case) for case in experiment.cases]
  assert titles[0] == "SSL-Pop use_features=True"
  assert titles[-1] == "SSL-Pop"


def test_a_baseline_on_the_axis_is_that_of_the_same_place():
  experiment = experiments.EXPERIMENTS["batch_size"]
  for case in experiment.cases:
    baseline = experiment.baseline_of(case)
    assert baseline.task == "ssl_pop"
    size = case.settings["global_batch_size"]
    assert baseline.settings["global_batch_size"] == size
  assert experiment.baseline_title == "SSL-Pop"
  experiment = experiments.EXPERIMENTS["cache_size"]
  for case in experiment.cases:
    assert experiment.baseline_of(case) is experiment.cases[0]


def test_published_runs_are_those_of_the_grids():
  """The experiment, by names, titles and settings of its results.

  Results of older versions have settings with other names.
  """
  checked = 0
  for path in (ROOT / "results").glob("*.json"):
    result = files.read_result(path)
    plan = experiments.EXPERIMENTS[result.experiment]
    cases = {case.name: case for case in plan.cases}
    for published in result.cases:
      case = cases[published.name]
      assert plan.title_of(case) == published.title
      checked += 1
      if published.settings == case.settings:
        continue
      old = configs.of_run(
        configs.PRESETS[published.preset]
        | {"preset": published.preset, "task": published.task}
        | published.settings,
        path,
      )
      now = runs.Run(case, 0, "", "", 1, plan.split).settings
      assert settings.as_dict(now) == settings.as_dict(old), published.name
  assert checked > 100


def test_experiments_share_runs(small_data, tmp_path):
  table, curves = (
    reproduce.planned(name, str(small_data), str(tmp_path))
    for name in ("table2", "curves")
  )
  assert [run.folder for run in table] == [run.folder for run in curves]


def test_unknown_case_is_explained(tmp_path):
  with pytest.raises(settings.SettingsError, match="--cases.*paper-ssl_pop"):
    reproduce.planned("table2", "data", str(tmp_path), cases=("nothing",))


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ({"experiment": "table3"}, "--experiment must be one of table2"),
    ({"experiment": "table2"}, "--data is required"),
    ({"data": "d"}, "--experiment is required, or --report"),
    ({"report": True, "data": "d"}, "--data is for runs"),
  ],
)
def test_wrong_settings_are_refused_by_name(given, message):
  with pytest.raises(settings.SettingsError, match=message):
    reproduce.ReproduceConfig(output="o", **given)


@pytest.mark.slow
@pytest.mark.slow
def test_metrics_are_those_of_evaluate(small_data, output):
  (case,) = [c for c in load(output).cases if c.task == "xir"]
  assert [run.seed for run in case.runs] == [0, 3]
  for run in case.runs:
    folder = folder_of(output, case.name, run.seed)
    found = evaluate.evaluate(evaluate.EvaluateConfig(model_dir=str(folder)))
    assert [point["epoch"] for point in run.curve] == [1, 2]
    for name in results.METRICS:
      expected = found.metrics["model"][name]
      assert run.curve[-1][name] == pytest.approx(expected, abs=1e-6)
    assert run.seconds_per_epoch > 0
    assert run.peak_gib > 0.1


@pytest.mark.slow
def test_comparison_is_a_paired_test_by_query(output):
  (comparison,) = load(output).comparisons
  assert comparison.case == "paper-xir-resampler=systematic"
  assert comparison.seeds == (0, 3)
  for metric in runs.PAIRED:
    ours, base = (
      np.mean(
        [
          runs.by_query(str(folder_of(output, name, seed)), 2)[metric].astype(
            float
          )
          for seed in (0, 3)
        ],
        axis=0,
      )
      for name in (comparison.case, "paper-ssl_pop")
    )
    test = comparison.metrics[metric]
    assert test.difference == pytest.approx(ours.mean() - base.mean())
    error = np.sqrt(np.sum((ours - base - (ours - base).mean()) ** 2))
    error /= np.sqrt(len(ours) * (len(ours) - 1))
    assert test.standard_error == pytest.approx(error)


@pytest.mark.slow
def test_finished_runs_are_not_repeated(small_data, output, capsys):
  before = {p: p.stat().st_mtime_ns for p in output.rglob("run.json")}
  assert reproduce.run(config_of(small_data, output)) == 0
  assert "4 runs, 4 of them finished" in capsys.readouterr().out
  assert {p: p.stat().st_mtime_ns for p in output.rglob("run.json")} == before


@pytest.mark.slow
@pytest.mark.slow
def test_a_killed_run_resumes_identically(small_data, output, tmp_path):
  process = subprocess.Popen(
    [
      *(sys.executable, "-m", "pipelines.reproduce", "--experiment=table2"),
      *(f"--data={small_data}", f"--output={tmp_path}", f"--cases={CASES[1]}"),
      *("--seeds=3", "--epochs=2"),
    ],
    start_new_session=True,
  )
  run = folder_of(tmp_path, CASES[1], 3) / files.RUN_FILE
  deadline = time.monotonic() + 120
  while not run.exists() and time.monotonic() < deadline:
    time.sleep(0.02)
  # Kills the program and its worker after the first epoch.
  subprocess.run(["kill", "-9", "--", f"-{process.pid}"], check=True)
  process.wait()
  assert process.returncode == -signal.SIGKILL
  config = config_of(small_data, tmp_path, cases=CASES[1:], seeds=(3,), jobs=2)
  assert reproduce.run(config) == 0  # In a process for the run.
  expected = files.read_run(folder_of(output, CASES[1], 3))
  got = files.read_run(run.parent)
  assert got.curve == expected.curve
  assert got.occurrence == expected.occurrence is not None


@pytest.mark.slow
def test_report_of_finished_runs(output):
  reproduce.run(reproduce.ReproduceConfig(report=True, output=str(output)))
  text = (output / report.FILE_NAME).read_text("utf-8")
  result = load(output)
  for case in result.cases:
    values = [run.curve[-1]["ndcg@20"] for run in case.runs]
    cell = f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}"
    assert f"| {case.title} |" in text
    assert cell in text


def test_report_needs_results(tmp_path):
  with pytest.raises(errors.DataError, match="--experiment"):
    report.write(str(tmp_path))
  (tmp_path / "table2_x.json").write_text('{"format": 99}', encoding="utf-8")
  with pytest.raises(errors.DataError, match="table2_x.json.*99"):
    report.write(str(tmp_path))


def case_of(task, ndcg, x):
  """A finished case of "cache" in group `x`: batches of 128 or 256."""
  run = files.RunSummary(
    seed=0,
    epochs=1,
    steps_per_epoch=1,
    seconds_per_epoch=1.0,
    peak_gib=1.0,
    curve=({"epoch": 1} | dict.fromkeys(results.METRICS, ndcg),),
  )
  return files.CaseResult(
    name=f"{task}-{x}",
    title=task,
    task=task,
    preset="default",
    settings={"query_tower": "id", "global_batch_size": 128 * (1 + x)},
    x=x,
    runs=(run,),
  )


def result_of(*cases, **comparisons):
  """The result of "cache"; comparisons are p-values by task, for `x` = 0."""
  first = cases[0].runs[0].curve[0]["ndcg@20"]
  return files.Result(
    experiment="cache",
    title="",
    data=files.Data(
      name="any", split="random", split_seed=0, rows={}, queries=1, candidates=1
    ),
    ranked="validation",
    shows="table",
    axis=None,
    cases=cases,
    epoch=1,
    baseline="SSL-Pop",
    comparisons=tuple(
      files.Comparison(
        case.name,
        (0,),
        {
          "ndcg@20": intervals.PairedTest(
            case.runs[0].curve[0]["ndcg@20"] - first,
            0.0,
            comparisons[case.task],
          )
        },
      )
      for case in cases[1:]
      if case.task in comparisons
    ),
  )


@pytest.mark.parametrize(
  ("best", "shown"), [(0.22, "| 150% |"), (0.2039, "| short |")]
)
def test_the_way_to_the_ceiling(best, shown):
  """From 0.2 of the first of the same `x` to `best` of the full softmax."""
  result = result_of(
    case_of("ssl_pop", 0.2, 0),
    case_of("xir", 0.23, 0),
    case_of("full_softmax", best, 0),
    case_of("ssl_pop", 0.1, 1),
  )
  _, _, first, xir, last, other = report.table(result).splitlines()
  assert shown in xir
  assert not any(shown in line for line in (first, last, other))


def test_cells_of_the_experiments_with_a_ceiling():
  result = result_of(
    case_of("ssl_pop", 0.2, 0),
    case_of("xir", 0.21, 0),
    case_of("full_softmax", 0.19, 0),
    case_of("ssl_pop", 0.1, 1),
    xir=0.009,
    full_softmax=0.011,
  )
  assert report.cells({"cache_any": result}).splitlines() == [
    "| data | tower | batch | SSL-Pop | XIR | full softmax | seeds |",
    "| --- | --- | --- | --- | --- | --- | --- |",
    "| any | id | 128 | 0.2000 | **+5.0%** | -5.0% | 1 |",
    "| any | id | 256 | 0.1000 |  |  | 1 |",
  ]
  without = msgspec.structs.replace(result, experiment="table2")
  assert report.cells({"table2_any": without}) == ""


@pytest.mark.slow
def test_runs_not_ranked_at_the_epoch_are_left_out(small_data, output):
  before = load(output)
  for epochs in (1, 2, 100):
    path = results.collect("table2", str(small_data), str(output), epochs)
    result = files.read_result(path)
    assert result.epoch == epochs
    assert len(result.cases) == (2 if epochs <= 2 else 0)
    shown = report.table(result)
    for case in result.cases:
      values = []
      for run in case.runs:
        state = files.read_run(folder_of(output, case.name, run.seed))
        (point,) = [p for p in state.curve if p["epoch"] == epochs]
        values.append(point["recall@20"])
      assert f"| {np.mean(values):.4f} ±" in shown
  assert load(output).comparisons == ()
  results.collect("table2", str(small_data), str(output), 2)
  assert load(output) == before


@pytest.fixture
def ranked(tmp_path):
  """A run that was ranked after epochs 1 and 5 says so, without training."""
  data = tiny_runs.write_data(tmp_path / "tiny")
  (run,) = reproduce.planned(
    "table2", str(data), str(tmp_path / "output"), cases=CASES[:1], epochs=5
  )
  folder = pathlib.Path(run.folder)
  tiny_runs.write_model(folder, tiny_runs.two_tower(), data, checkpoints=())
  state = files.RunState(
    name=run.case.name,
    task=run.case.task,
    preset=run.case.preset,
    settings={},
    seed=0,
    split="test",
    steps_per_epoch=1,
    curve=tuple(
      {"epoch": epoch} | dict.fromkeys(results.METRICS, 0.5) for epoch in (1, 5)
    ),
    stages=(files.Stage(until_epoch=5, step_ms=1.0, peak_gib=1.0),),
  )
  json_files.write(folder / files.RUN_FILE, state)
  return run


def test_fewer_epochs_than_were_trained_need_a_ranking(ranked):
  def finished(epochs):
    return runs.is_finished(dataclasses.replace(ranked, epochs=epochs))

  assert [finished(epochs) for epochs in (1, 5, 6)] == [True, True, False]
  # It would be left out of the table without a word.
  message = "beyond epoch 4 without a ranking"
  with pytest.raises(errors.DataError, match=message):
    finished(4)


def test_runs_on_data_that_was_prepared_again_do_not_count(ranked, tmp_path):
  output = str(tmp_path / "output")
  results.collect("table2", ranked.data, output, 5)
  shutil.rmtree(ranked.data)
  rows = tiny_runs.ROWS | {"test": [(0, 30)]}
  tiny_runs.write_data(pathlib.Path(ranked.data), rows)
  for use in (
    lambda: runs.is_finished(ranked),
    lambda: results.collect("table2", ranked.data, output, 5),
  ):
    with pytest.raises(errors.DataError, match="is not the data that"):
      use()


def test_a_checkpoint_between_rankings_is_not_an_earlier_epoch(
  ranked, monkeypatch
):
  run = dataclasses.replace(ranked, epochs=6)
  # An earlier start with more epochs was killed in the seventh.
  end = run.calendar.end_of_epoch(6)
  killed = types.SimpleNamespace(outcome="finished", step=end + 1)
  monkeypatch.setattr(runs.training, "train", lambda *_, **__: killed)
  with pytest.raises(errors.DataError, match="beyond epoch 6"):
    runs.carry_out(run, progress=False)


@pytest.mark.parametrize("shows", ["curves", "sweep", "occurrence"])
@pytest.mark.slow
def test_figures_are_drawn(output, tmp_path, shows):
  result = load(output)
  cases = [case for case in result.cases if case.task == "xir"]
  cases = [changed(case, x=place) for place, case in enumerate(cases, 1)]
  result = changed(result, shows=shows, axis="epochs", cases=cases)
  report.draw(result, tmp_path / "figure.png")
  assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
  if shows == "occurrence":
    assert "distinct" in report.table(result)


@pytest.mark.slow
def test_a_sweep_with_only_the_baseline(output, tmp_path):
  result = load(output)
  cases = [case for case in result.cases if case.x is None]
  result = changed(result, shows="sweep", axis="num_resampled", cases=cases)
  report.draw(result, tmp_path / "figure.png")
  assert (tmp_path / "figure.png").exists()
