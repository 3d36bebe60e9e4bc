r"""Runs all steps, from raw interactions to recommendations.

    xir-tfrs quickstart
    xir-tfrs quickstart --input FILE.csv --user_column U ...

prepares data (generated, or the file of --input), trains SSL-Pop, BIR and XIR
with the same settings, evaluates each on the whole catalogue, prints one table,
exports XIR with a ScaNN index, and recommends for three users. If the
interactions have times, it also trains XIR with histories instead of user ids,
and recommends for an unknown visitor. Each step prints the command that it
runs. With --input, the flags of xir-tfrs prepare apply.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipelines import evaluate, prepare
from pipelines.evaluation import places
from pipelines.preparation import config as prepare_config
from pipelines.training import config as configs
from pipelines.training import methods
from xir_tfrs.data import json_files
from xir_tfrs.programs import command, settings
from xir_tfrs.programs import main as main_lib
from xir_tfrs.programs.settings import setting

if TYPE_CHECKING:
  from pipelines.evaluation import report as report_lib
  from xir_tfrs.data import directory

ROOT = pathlib.Path(__file__).parents[1]
TASKS = ("ssl_pop", "bir", "xir")
METRICS = ("recall@10", "recall@20", "ndcg@10", "ndcg@20", "coverage@20")
RESULTS = "results.json"
# Compares the methods as published, without tuning.
_PRESET = "plain"
_NUM_ANSWERS = 3
# Name and settings of the model of histories.
HISTORY = "history"
_HISTORY_SETTINGS: dict[str, Any] = {
  "query_tower": "history",
  "history_length": 20,
  "optimizer": "adam",
  "learning_rate": 0.003,
}
_SESSION = 3


@dataclasses.dataclass(frozen=True)
class QuickstartConfig(prepare_config.PrepareConfig):
  """Settings of the preparation and of all later steps."""

  common = (
    *("input", "user_column", "item_column", "time_column", "min_rating"),
    *("output", "tasks", "epochs", "dim"),
  )

  output: str = setting(
    "directory for all results.", "runs/quickstart", section="Output"
  )
  overwrite: bool = setting("replace earlier results in --output.", True)
  tasks: tuple[str, ...] = setting(
    "methods; the last is exported.",
    TASKS,
    choices=tuple(methods.TASKS),
    section="Models",
  )
  epochs: int = setting("maximum number of epochs.", 10, minimum=1)
  dim: int = setting("size of the embeddings.", 32, minimum=1)
  report: bool = setting("write report.html.", True, section="Output")

  def __post_init__(self) -> None:
    super().__post_init__()
    if len(set(self.tasks)) < max(len(self.tasks), 1):
      raise settings.SettingsError(
        "--tasks must name at least one method, and each once. Received: "
        f"{','.join(self.tasks)!r}."
      )

  @property
  def preparation(self) -> prepare_config.PrepareConfig:
    """The settings of the preparation, into a folder of the output."""
    fields = dataclasses.fields(prepare_config.PrepareConfig)
    given = {field.name: getattr(self, field.name) for field in fields}
    output = os.path.join(self.output, "data")
    return prepare_config.PrepareConfig(**given | {"output": output})


def quickstart(
  config: QuickstartConfig,
) -> dict[str, dict[str, dict[str, float]]]:
  """Runs the steps one after another.

  Returns:
    Test metrics of each ranking, as in the tables: "queries", where each query
    should find all of its test rows; and, if interactions have times, "rows",
    where each test row is found from the events before it.

  Raises:
    DataError: The input or a directory cannot be used.
    ProgramError: A step fails; the message gives the reason.
  """
  # Imported here, because TensorFlow is slow: --help does not need it.
  from pipelines.preparation import summary
  from xir_tfrs.data import directory

  start = time.monotonic()
  output = pathlib.Path(config.output)
  data = output / "data"
  flags = settings.as_flags(
    prepare_config.PrepareConfig, settings.changed(config.preparation)
  )
  _announce("Prepare", shlex.join(["xir-tfrs", "prepare", *flags]))
  began = time.monotonic()
  schema = prepare.prepare(config.preparation)
  print(summary.text(schema, time.monotonic() - began))
  prepared = directory.DataDir(data)

  found: dict[str, dict[str, dict[str, float]]] = {"queries": {}}
  for task in config.tasks:
    found["queries"] |= _train(config, task, {})
  last = config.tasks[-1]
  _compare(data, output / last, found["queries"])
  with_times = "timestamp" in prepared.rows("train", in_order=True)
  if with_times:
    found["rows"] = _train(config, HISTORY, _HISTORY_SETTINGS)
    _compare(data, output / HISTORY, found["rows"])
  json_files.write(output / RESULTS, found)

  queries = _some_queries(prepared, _NUM_ANSWERS)
  asked = [x for query in queries for x in ("--query_id", query)]
  bundle = output / "bundle"
  _answer(data, output / last, bundle, asked)
  session = _a_session(prepared) if with_times else []
  if session:
    of_history = output / "history_bundle"
    asked = ["--history", ",".join(session)]
    _answer(data, output / HISTORY, of_history, asked)
  if config.report:
    _report(config, bundle, with_times)
  _announce(f"Done in {time.monotonic() - start:.0f} s. What next", None)
  print(_what_next(output, last, queries[0], config.report))
  return found


def _train(
  config: QuickstartConfig, name: str, given: Mapping[str, Any]
) -> dict[str, dict[str, float]]:
  """Trains and evaluates a model; returns metrics by ranking.

  Args:
    config: The settings.
    name: A task; or another name for a model of the last task. The metrics of
      the model are under this name.
    given: Settings that override the preset.
  """
  from pipelines.training import loop

  output = pathlib.Path(config.output)
  given = {
    "data": str(output / "data"),
    "model_dir": str(output / name),
    "preset": _PRESET,
    "task": name if name in config.tasks else config.tasks[-1],
    "dim": config.dim,
    "epochs": config.epochs,
    **given,
  }
  flags = " ".join(f"--{key} {value}" for key, value in given.items())
  _announce(f"Train {name}", f"xir-tfrs train {flags}")
  train = configs.from_preset(**given)
  trained = loop.train(train, overwrite=True)
  if trained.outcome == "interrupted":
    raise KeyboardInterrupt
  evaluated = _evaluate(train.model_dir, config.report)
  table = {
    name if ranking == "model" else ranking: {m: metrics[m] for m in METRICS}
    for ranking, metrics in evaluated.metrics.items()
  }
  table[name]["ms/step"] = trained.step_milliseconds
  return table


def _evaluate(model_dir: str, report: bool) -> report_lib.Results:
  """Evaluates a model and writes the results for the pages."""
  asked = evaluate.EvaluateConfig(model_dir=model_dir, report=report)
  evaluation = evaluate.rank(asked)
  evaluation.write(places.Place.of(model_dir))
  return evaluation.results


def _report(
  config: QuickstartConfig, bundle: pathlib.Path, with_times: bool
) -> None:
  """Writes the page of all methods and that of the model of histories."""
  from pipelines.pages import found, writing

  output = pathlib.Path(config.output)
  _announce("Report", None)
  runs = [output / task for task in config.tasks]
  written = [output / places.REPORT_FILE]
  index = found.index_of(bundle, runs[-1])
  done = writing.write_comparison(runs, written[0], runs[-1], index)
  if done and with_times:
    place = places.Place.of(output / HISTORY)
    writing.write_run(output / HISTORY, place)
    written.append(place.report)
  if done:
    print("\n".join(f"  {path}" for path in written))


def _compare(
  data: pathlib.Path,
  model_dir: pathlib.Path,
  table: dict[str, dict[str, float]],
) -> None:
  what = "Compare"
  if model_dir.name == HISTORY:
    what = "Compare: find each test row from the user's earlier events"
  _announce(what, f"xir-tfrs evaluate --data {data} --model_dir {model_dir}")
  print(format_table(table))
  if "oracle" in table:
    print("oracle: by what generated the data; no model can do better.")


def _answer(
  data: pathlib.Path,
  model_dir: pathlib.Path,
  bundle: pathlib.Path,
  asked: list[str],
) -> None:
  """Exports a model and recommends candidates that the user has not seen."""
  _run(
    f"Export {model_dir.name}",
    "export",
    *("--data", data, "--model_dir", model_dir, "--output", bundle),
    *("--overwrite", *_indexes()),
  )
  title = "Recommend for a visitor" if "--history" in asked else "Recommend"
  answer = ["--bundle", bundle, "--k", "10", "--exclude_seen", *asked]
  _run(title, "query", *answer)


def format_table(table: dict[str, dict[str, float]]) -> str:
  """Formats rankings as rows: baselines first, then methods as trained."""
  first, last = ("popularity", "neighbours"), ("oracle",)
  methods = [name for name in table if name not in first + last]
  names = [name for name in (*first, *methods, *last) if name in table]
  columns = [*METRICS, "ms/step"]
  rows = [["", *columns]]
  for name in names:
    cells = [f"{table[name][metric]:.4f}" for metric in METRICS]
    speed = table[name].get("ms/step")
    rows.append([name, *cells, "" if speed is None else f"{speed:.1f}"])
  return "\n".join(
    row[0].ljust(12) + "".join(cell.rjust(13) for cell in row[1:])
    for row in rows
  )


def _some_queries(data: directory.DataDir, count: int) -> list[str]:
  """Original ids of queries of different activity."""
  counts = data.queries.counts
  by_activity = counts.argsort(kind="stable")[::-1]
  by_activity = by_activity[counts[by_activity] > 0]
  picked = [
    by_activity[(2 * i + 1) * len(by_activity) // (2 * count)]
    for i in range(min(count, len(by_activity)))
  ]
  return [x.decode() for x in data.ids("queries")[picked]]


def _a_session(data: directory.DataDir) -> list[str]:
  """Original ids of the candidates that one user chose in sequence."""
  from xir_tfrs.data import histories

  rows = histories.Histories.of_rows(data.rows("train", in_order=True)).columns
  of_one = rows["query_id"] == data.queries.counts.argmax()
  chosen = data.ids("candidates")[rows["candidate_id"][of_one][-_SESSION:]]
  # --history is split at commas, so ids must not contain any.
  return [x.decode() for x in chosen if b"," not in x]


def _announce(title: str, line: str | None) -> None:
  print(f"\n=== {title}")
  if line:
    print(f"    {line}")


def _run(title: str, name: str, *arguments: object) -> None:
  arguments = [str(argument) for argument in arguments]
  _announce(title, shlex.join(["xir-tfrs", name, *arguments]))
  # Runs in its own process, as a user would: pipelines and export share
  # directories, not code.
  done = subprocess.run(
    [sys.executable, "-m", command.__name__, name, *arguments],
    env=os.environ | {"PYTHONPATH": _search_path()},
    check=False,
  )
  if done.returncode:
    raise main_lib.ProgramError(
      f"xir-tfrs {name} failed with exit status {done.returncode}."
    )


def _search_path() -> str:
  """Where the parts find the programs, and what they found before."""
  before = os.environ.get("PYTHONPATH")
  return os.pathsep.join([str(ROOT), *([before] if before else [])])


def _indexes() -> list[str]:
  """Flags of `export`: without ScaNN, exact search alone."""
  import xir_tfrs as xir  # Loads TensorFlow.

  if xir.indexes.scann_version() is None:
    print("ScaNN is not installed (the extra `scann`): the index is exact.")
    return ["--index", "brute_force"]
  return []


def _what_next(
  output: pathlib.Path, task: str, query: str, report: bool
) -> str:
  ask = f"--bundle {output / 'bundle'} --query_id {shlex.quote(query)}"
  page = f"  report             open {output / places.REPORT_FILE} in a browser"
  return "\n".join(
    [
      *([page] if report else []),
      f"  try it             xir-tfrs serve --bundle {output / 'bundle'}, and "
      "open http://127.0.0.1:8501/",
      "  your own data      xir-tfrs inspect FILE, then xir-tfrs quickstart "
      "--input FILE --output runs/mine",
      f"  train longer       xir-tfrs train --model_dir "
      f"{output / task} --resume --epochs 30",
      "  best settings      xir-tfrs tune --data "
      f"{output / 'data'} --output runs/tuned",
      f"  curves             tensorboard --logdir {output}",
      f"  recommend again    xir-tfrs query {ask} --k 20",
      "  guides             README.md and docs/",
    ]
  )


def main(config: QuickstartConfig) -> None:
  quickstart(config)


def _config(given: Mapping[str, Any]) -> QuickstartConfig:
  """Builds the config; generates data if no input is given."""
  if "input" not in given:
    given = {"format": "synthetic", **given}
  return settings.build(QuickstartConfig, given)


if __name__ == "__main__":
  sys.exit(main_lib.run(QuickstartConfig, main, make=_config))
