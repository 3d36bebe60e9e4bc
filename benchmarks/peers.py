r"""Tunes other recommenders and ours on the same data.

    python -m benchmarks.peers --data data/sports --name sports

Optuna tunes popularity, item neighbours, EASE, and the ALS and BPR of
`implicit`; pipelines.tune tunes methods of this project. Each gets the same
number of trials, starting with the defaults, and is selected by NDCG@20 on the
validation split. The best of each is evaluated once on the test split, by the
same code. The table shows its metrics, its training time, and the time of all
trials.

Results are written after each method; existing results with the same sizes are
kept. Times need an idle machine. Needs `pip install 'xir-tfrs[bench]'`.
"""

import csv
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import optuna
from absl import app, flags

from benchmarks import harness, recommenders
from pipelines.evaluation import report as evaluations
from pipelines.evaluation import split
from pipelines.training import methods
from pipelines.tuning import report
from xir_tfrs.data import directory

_SIZES = {
  "trials": (20, "Trials of each method."),
  "epochs": (20, "Epochs of a trial of ours."),
  "dim": (64, "Size of the embeddings."),
}
_METRICS = ("recall@10", "recall@20", "ndcg@10", "ndcg@20")
_METRIC = "ndcg@20"
_KS = (10, 20)
_ROOT = pathlib.Path(__file__).parent.parent
_OURS = ("ssl_pop", "xir")


def run(
  data: str,
  sizes: dict[str, int],
  runs: pathlib.Path,
  *,
  names: Sequence[str] = (*recommenders.PEERS, *_OURS),
  done: dict[str, Any] | None = None,
  after_each: Callable[[dict[str, Any]], None] = lambda results: None,
) -> dict[str, Any]:
  """Tunes and evaluates each method.

  Args:
    data: Directory written by `pipelines.prepare`, with a validation split.
    sizes: The keys of `_SIZES`.
    runs: Directory for the searches of ours; an existing search continues.
    names: Names of peers and of our tasks.
    done: Existing results to keep.
    after_each: Called with the results so far.

  Returns:
    name -> `_METRICS` of the test split, `validation`, `train_s`, `tuning_s`
    and `settings`; or `left_out`, the reason.
  """
  results = dict(done or {})
  for name in names:
    if name not in results:
      if name in recommenders.PEERS:
        results[name] = _tuned(recommenders.PEERS[name], data, sizes)
      else:
        results[name] = _ours(name, data, sizes, runs / name)
      after_each(results)
  return {name: results[name] for name in names}


def _tuned(
  peer: recommenders.Peer, data: str, sizes: dict[str, int]
) -> dict[str, Any]:
  """Tunes a peer and evaluates the best trial on the test split."""
  opened = directory.DataDir(data)
  pairs = recommenders.training_pairs(opened)
  validation = split.load_evaluation_data(opened, "validation")
  optuna.logging.set_verbosity(optuna.logging.WARNING)
  study = optuna.create_study(
    direction="maximize",
    sampler=optuna.samplers.TPESampler(n_startup_trials=5, seed=0),
  )
  study.enqueue_trial(dict(peer.defaults))

  def value(trial: optuna.Trial) -> float:
    chosen = {
      name: trial.suggest_float(name, tried.low, tried.high, log=tried.log)
      if isinstance(tried, recommenders.Span)
      else trial.suggest_categorical(name, tried)
      for name, tried in peer.tried.items()
    }
    ranker = peer.fit(pairs, sizes["dim"], chosen)
    return ranker.rank(validation, _KS).means()[_METRIC]

  start = time.monotonic()
  try:
    study.optimize(
      value,
      n_trials=sizes["trials"] if peer.tried else 1,
      # With such settings the factors grow beyond all numbers.
      catch=recommenders.Diverged,
    )
  except recommenders.LeftOut as error:
    return {"left_out": str(error)}
  tuning = time.monotonic() - start
  start = time.monotonic()
  ranker = peer.fit(pairs, sizes["dim"], study.best_params)
  seconds = time.monotonic() - start
  test = ranker.rank(split.load_evaluation_data(opened, "test"), _KS).means()
  return {
    **{name: test[name] for name in _METRICS},
    "validation": study.best_value,
    "train_s": round(seconds, 1),
    "tuning_s": round(tuning, 1),
    "settings": study.best_params,
  }


def _ours(
  task: str, data: str, sizes: dict[str, int], output: pathlib.Path
) -> dict[str, Any]:
  """Tunes and evaluates one of our methods with the user programs."""
  start = time.monotonic()
  _program(
    "pipelines.tune",
    f"--data={pathlib.Path(data).resolve()}",
    f"--output={output.resolve()}",
    f"--task={task}",
    "--query_tower=id",
    f"--metric={_METRIC}",
    *(f"--{name}={value}" for name, value in sizes.items()),
  )
  tuning = time.monotonic() - start
  with open(output / report.TABLE_FILE, newline="", encoding="utf-8") as file:
    trials = list(csv.DictReader(file))
  metrics = output.resolve() / "test.json"
  best = output.resolve() / "trials" / f"{int(trials[0]['trial']):04d}"
  _program("pipelines.evaluate", f"--model_dir={best}", f"--output={metrics}")
  test = evaluations.load(metrics).metrics["model"]
  settings = json.loads((output / report.BEST_FILE).read_text("utf-8"))
  del settings["data"]
  return {
    **{name: test[name] for name in _METRICS},
    "validation": float(trials[0][_METRIC]),
    "train_s": float(trials[0]["seconds"]),
    # Time of this session, if it continues an earlier one.
    "tuning_s": round(tuning, 1),
    "settings": settings,
  }


def _program(name: str, *arguments: str) -> None:
  subprocess.run(
    [sys.executable, "-m", name, *arguments],
    cwd=_ROOT,
    env=os.environ | {"PYTHONPATH": str(_ROOT)},
    stdout=subprocess.DEVNULL,
    check=True,
  )


def show(name: str, results: dict[str, Any], sizes: dict[str, int]) -> None:
  """Prints the table."""
  columns = (*_METRICS, "train_s", "tuning_s")
  harness.print_table(
    f"{name}: {sizes['trials']} trials each, dim {sizes['dim']}",
    ("", *_METRICS, "train s", "all trials s"),
    [
      (
        method,
        *(f"{result[c]:.4f}" for c in _METRICS),
        *(f"{result[c]:.1f}" for c in columns[-2:]),
      )
      for method, result in results.items()
      if "left_out" not in result
    ],
  )
  for method, result in results.items():
    if "left_out" in result:
      print(f"{method} is left out: {result['left_out']}.")


def _done(path: pathlib.Path, sizes: dict[str, int]) -> dict[str, Any]:
  """Reads the results of an earlier run from `path`."""
  if not path.exists():
    return {}
  old = json.loads(path.read_text("utf-8"))
  if old["parameters"] != sizes:
    return {}
  # More memory may be free by now.
  found = old["results"].items()
  return {name: row for name, row in found if "left_out" not in row}


def main(argv: list[str]) -> int:
  del argv
  data, name = flags.FLAGS.data, flags.FLAGS.name
  if not data or not name:
    print("--data and --name are required; see --help.", file=sys.stderr)
    return 2
  known = (*recommenders.PEERS, *methods.TASKS)
  names = tuple(flags.FLAGS.methods)
  if unknown := set(names) - set(known):
    print(
      f"--methods must be among {', '.join(known)}. Received: {min(unknown)}.",
      file=sys.stderr,
    )
    return 2
  sizes = harness.given(_SIZES)
  benchmark = f"peers_{name}"
  path = pathlib.Path(
    flags.FLAGS.output or harness.RESULTS / f"{benchmark}.json"
  )
  results = run(
    data,
    sizes,
    pathlib.Path(flags.FLAGS.runs or f"runs/{benchmark}"),
    names=names,
    done=_done(path, sizes),
    after_each=lambda found: harness.write_json(path, benchmark, sizes, found),
  )
  show(name, results, sizes)
  print(f"Written to {path}")
  return 0


if __name__ == "__main__":
  harness.define_flags(_SIZES)
  flags.DEFINE_string("data", None, "Directory written by pipelines.prepare.")
  flags.DEFINE_string("name", None, "Name of the data, in the results' file.")
  flags.DEFINE_list(
    "methods", [*recommenders.PEERS, *_OURS], "Peers, and methods by --task."
  )
  flags.DEFINE_string(
    "runs", None, "Directory of our searches. Default: runs/peers_NAME."
  )
  app.run(main)
