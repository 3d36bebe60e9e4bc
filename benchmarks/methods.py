r"""Trains every method on the same data for the same number of epochs.

    python -m benchmarks.methods --data data/gowalla --name gowalla

Each method is trained and evaluated by the user programs with --preset plain,
one after another, each in its own process. The table shows the metrics on the
test split (full ranking). One more epoch, after all evaluations, gives the
median time of a step and the peak resident memory.
This compares methods at equal effort, not at their best: nothing is tuned, and
few epochs favour methods that learn fast.

Results are written after each method; existing results with the same sizes are
kept. Times need an idle machine; `--untimed` defers them to a later run.
"""

import json
import math
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import Any

from absl import app, flags

from benchmarks import harness
from pipelines.evaluation import report
from pipelines.training import methods

_SIZES = {
  "epochs": (3, "Epochs of each method."),
  "dim": (64, "Size of the embeddings."),
}
_METRICS = ("recall@10", "recall@20", "ndcg@10", "ndcg@20")
_ROOT = pathlib.Path(__file__).parent.parent


def run(
  data: str,
  sizes: dict[str, int],
  *,
  tasks: tuple[str, ...] = tuple(methods.TASKS),
  timed: bool = True,
  done: dict[str, dict[str, float]] | None = None,
  after_each=lambda results: None,
) -> dict[str, dict[str, float]]:
  """Trains and ranks the methods, and then times them.

  Args:
    data: Directory written by `pipelines.prepare`.
    sizes: `epochs` and `dim`.
    tasks: The methods.
    timed: Whether to time them.
    done: Existing results to keep.
    after_each: Called with the results so far.

  Returns:
    method -> `_METRICS`, `step_ms`, `peak_gib`, `examples_per_s`; for methods
    with a ranker also `reranked` metrics.
  """
  results = dict(done or {})
  passes = [(_METRICS[0], _train_and_rank)]
  if timed:
    passes.append(("step_ms", _time))
  for key, make in passes:
    for task in tasks:
      if key not in results.get(task, {}):
        with tempfile.TemporaryDirectory() as folder:
          found = make(task, data, sizes, folder)
        results[task] = results.get(task, {}) | found
        after_each(results)
  return {task: results[task] for task in tasks}


def _train_and_rank(task, data, sizes, folder) -> dict[str, Any]:
  _train(task, data, sizes, folder)
  output = pathlib.Path(folder) / "test.json"
  _program(
    "pipelines.evaluate", [f"--model_dir={folder}", f"--output={output}"]
  )
  found = report.load(output).metrics
  result = {name: found["model"][name] for name in _METRICS}
  if "reranked" in found:
    result["reranked"] = {name: found["reranked"][name] for name in _METRICS}
  return result


def _time(task, data, sizes, folder) -> dict[str, float]:
  output = _train(task, data, sizes | {"epochs": 1}, folder)
  speed, step, peak = re.search(
    r"([\d,]+) examples/s, ([\d.]+) ms/step, peak memory ([\d.]+) GiB", output
  ).groups()
  return {
    "step_ms": float(step),
    "peak_gib": float(peak),
    "examples_per_s": float(speed.replace(",", "")),
  }


def _train(task, data, sizes, folder) -> str:
  settings = [f"--{name}={value}" for name, value in sizes.items()]
  return _program(
    "pipelines.train",
    [
      f"--data={pathlib.Path(data).resolve()}",
      f"--model_dir={folder}",
      f"--task={task}",
      "--preset=plain",
      "--patience=0",
      *settings,
    ],
  )


def _program(name: str, arguments: list[str]) -> str:
  process = subprocess.run(
    [sys.executable, "-m", name, *arguments],
    cwd=_ROOT,
    stdout=subprocess.PIPE,
    check=True,
    text=True,
  )
  return process.stdout


def _done(path: pathlib.Path, sizes, tasks) -> dict[str, dict[str, float]]:
  """Reads the results of an earlier run from `path`."""
  if not path.exists():
    return {}
  old = json.loads(path.read_text(encoding="utf-8"))
  if old["parameters"] != sizes:
    return {}
  return {t: row for t, row in old["results"].items() if t in tasks}


def show(
  name: str, results: dict[str, dict[str, float]], sizes: dict[str, int]
) -> None:
  """Prints the table."""
  harness.print_table(
    f"{name}: {sizes['epochs']} epochs, dim {sizes['dim']}",
    ("", *_METRICS, "ms/step", "GiB"),
    [
      (
        task,
        *(f"{result[name]:.4f}" for name in _METRICS),
        f"{result.get('step_ms', math.nan):.1f}",
        f"{result.get('peak_gib', math.nan):.2f}",
      )
      for task, result in results.items()
    ],
  )


def main(argv: list[str]) -> int:
  del argv
  if not flags.FLAGS.data or not flags.FLAGS.name:
    print("--data and --name are required; see --help.", file=sys.stderr)
    return 2
  sizes = harness.given(_SIZES)
  tasks = tuple(flags.FLAGS.tasks)
  benchmark = f"methods_{flags.FLAGS.name}"
  path = pathlib.Path(
    flags.FLAGS.output or harness.RESULTS / f"{benchmark}.json"
  )

  def write(results):
    harness.write_json(path, benchmark, sizes, results)

  results = run(
    flags.FLAGS.data,
    sizes,
    tasks=tasks,
    timed=not flags.FLAGS.untimed,
    done=_done(path, sizes, tasks),
    after_each=write,
  )
  show(flags.FLAGS.name, results, sizes)
  print(f"Written to {path}")
  return 0


if __name__ == "__main__":
  harness.define_flags(_SIZES)
  flags.DEFINE_string("data", None, "Directory written by pipelines.prepare.")
  flags.DEFINE_string("name", None, "Name of the data, in the results' file.")
  flags.DEFINE_list("tasks", list(methods.TASKS), "Methods, by --task.")
  flags.DEFINE_boolean("untimed", False, "Train and rank; time them later.")
  app.run(main)
