r"""The main job, end to end: raw interactions to top-k answers.

    python -m pipelines.quickstart
    python -m pipelines.quickstart --input FILE.csv --user_column U ...

prepares data (generated, or the file of --input), trains SSL, SSL-Pop, BIR and
XIR with the same settings, ranks the whole catalogue with each, prints one
table, exports XIR with a ScaNN index, and asks it for three users' candidates.
Each part is a program of its own, and is named before it runs; --input takes
the flags of pipelines.prepare.
"""

import dataclasses
import os
import pathlib
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from pipelines import evaluate, prepare
from pipelines.preparation import config as prepare_config
from pipelines.preparation import summary
from pipelines.training import checkpoints
from pipelines.training import config as configs
from pipelines.training import loop as training
from xir_tfrs.data import json_files, tables
from xir_tfrs.programs import main as main_lib
from xir_tfrs.programs import settings
from xir_tfrs.programs.settings import setting

ROOT = pathlib.Path(__file__).parents[1]
TASKS = ("ssl", "ssl_pop", "bir", "xir")
METRICS = ("recall@10", "recall@20", "ndcg@10", "ndcg@20", "coverage@20")
RESULTS = "results.json"
# Methods are compared as they were published, with nothing tuned.
_PRESET = "plain"
_NUM_ANSWERS = 3


@dataclasses.dataclass(frozen=True)
class QuickstartConfig(prepare_config.PrepareConfig):
  """What to prepare, and what to make of it; the flags."""

  output: str = setting(
    "directory for everything that is made.", "runs/quickstart"
  )
  tasks: tuple[str, ...] = setting("methods; the last is exported.", TASKS)
  epochs: int = setting("most epochs to train each.", 10, minimum=1)
  dim: int = setting("size of the embeddings.", 32, minimum=1)

  @property
  def preparation(self) -> prepare_config.PrepareConfig:
    """What to prepare, into a folder of the output."""
    fields = dataclasses.fields(prepare_config.PrepareConfig)
    given = {field.name: getattr(self, field.name) for field in fields}
    output = os.path.join(self.output, "data")
    return prepare_config.PrepareConfig(
      **given | {"output": output, "overwrite": True}
    )


def quickstart(config: QuickstartConfig) -> dict[str, dict[str, float]]:
  """Runs the parts one after another.

  Returns:
    Test metrics of each ranking, as the table has them.

  Raises:
    DataError: The input or a directory cannot be used.
    ProgramError: A part cannot do its work; the message says why.
  """
  start = time.monotonic()
  output = pathlib.Path(config.output)
  data, bundle = output / "data", output / "bundle"
  _announce("Prepare", f"pipelines.prepare --output {data} ...")
  began = time.monotonic()
  schema = prepare.prepare(config.preparation)
  print(summary.text(schema, data, time.monotonic() - began))

  table: dict[str, dict[str, float]] = {}
  for task in config.tasks:
    train = configs.from_preset(
      preset=_PRESET,
      data=str(data),
      model_dir=str(output / task),
      task=task,
      dim=config.dim,
      epochs=config.epochs,
    )
    _announce(
      f"Train {task}",
      f"pipelines.train --data {data} --model_dir {train.model_dir} --preset "
      f"{_PRESET} --task {task} --dim {config.dim} --epochs {config.epochs}",
    )
    trained = training.train(train, overwrite=True)
    if trained.outcome == "interrupted":
      raise KeyboardInterrupt
    evaluated = evaluate.evaluate(
      evaluate.EvaluateConfig(model_dir=train.model_dir)
    )
    for name, metrics in evaluated.metrics.items():
      row = task if name == "model" else name
      table[row] = {metric: metrics[metric] for metric in METRICS}
    table[task]["ms/step"] = trained.step_milliseconds
  exported = output / config.tasks[-1]
  _announce(
    "Compare", f"pipelines.evaluate --data {data} --model_dir {exported}"
  )
  print(format_table(table))
  json_files.write(output / RESULTS, table)

  _run(
    f"Export {config.tasks[-1]}",
    "export.export_retriever",
    *("--data", data, "--model_dir", exported, "--output", bundle),
    "--overwrite",
  )
  queries = _some_queries(data, _NUM_ANSWERS)
  answer = ["--bundle", bundle, "--k", "10", "--exclude_seen"]
  for query in queries:
    answer += ["--query_id", query]
  _run("Answer", "export.query", *answer)
  _announce(f"Done in {time.monotonic() - start:.0f} s. What next", None)
  print(_what_next(output, config.tasks[-1], queries[0]))
  return table


def format_table(table: dict[str, dict[str, float]]) -> str:
  """Rankings as rows, baselines first, methods in order of training."""
  references = ("popularity", "oracle")
  names = [n for n in table if n not in references]
  names = [n for n in references[:1] if n in table] + names
  names += [n for n in references[1:] if n in table]
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


def _some_queries(data: pathlib.Path, count: int) -> list[str]:
  """Original ids of queries of different activity."""
  queries = tables.read_table(data, "queries")
  by_activity = queries.counts.argsort(kind="stable")[::-1]
  by_activity = by_activity[queries.counts[by_activity] > 0]
  picked = [
    by_activity[(2 * i + 1) * len(by_activity) // (2 * count)]
    for i in range(min(count, len(by_activity)))
  ]
  return [str(queries.ids[i]) for i in picked]


def _announce(title: str, command: str | None) -> None:
  print(f"\n=== {title}", flush=True)
  if command:
    print(f"    python -m {command}", flush=True)


def _run(title: str, module: str, *arguments: object) -> None:
  arguments = [str(argument) for argument in arguments]
  _announce(title, shlex.join([module, *arguments]))
  # A process of its own, as a user would run it: pipelines and export share
  # directories, not code.
  done = subprocess.run(
    [sys.executable, "-m", module, *arguments],
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    check=False,
  )
  if done.returncode:
    raise main_lib.ProgramError(
      f"{module} failed with exit status {done.returncode}."
    )


def _what_next(output: pathlib.Path, task: str, query: str) -> str:
  ask = f"--bundle {output / 'bundle'} --query_id {shlex.quote(query)}"
  return "\n".join(
    [
      "  your own file      make quickstart ARGS='--input FILE.csv "
      "--user_column U --item_column I'",
      f"  train longer       python -m pipelines.train --model_dir "
      f"{output / task} --resume --epochs 30",
      f"  every figure       python -m pipelines.evaluate --model_dir "
      f"{output / task}",
      f"  curves             tensorboard --logdir {output}",
      f"  ask again          python -m export.query {ask} --k 20",
      "  guides             docs/",
    ]
  )


def main(config: QuickstartConfig) -> None:
  try:
    quickstart(config)
  except (training.TrainingDiverged, checkpoints.CheckpointNotSaved) as error:
    raise main_lib.ProgramError(str(error)) from error


def _config(given: Mapping[str, Any]) -> QuickstartConfig:
  """Generates data where no input is named."""
  if "input" not in given:
    given = {"format": "synthetic", **given}
  return settings.build(QuickstartConfig, given)


if __name__ == "__main__":
  sys.exit(main_lib.run(QuickstartConfig, main, make=_config))
