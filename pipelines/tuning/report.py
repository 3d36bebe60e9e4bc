"""Reports a search: a table, the effect of settings, a file for `--config`."""

from __future__ import annotations

import csv
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import optuna

from pipelines.tuning import search
from xir_tfrs.data import atomic, errors, json_files

BEST_FILE = "best.json"
TABLE_FILE = "trials.csv"
IMPORTANCE_FILE = "importance.png"
_MOST_ROWS = 20
# With fewer trials, the effect of settings is guesswork.
_FEWEST_TRIALS = 8

State = optuna.trial.TrialState


def write(study: optuna.Study, order: search.Order) -> list[str]:
  """Writes the files and returns lines about them."""
  found = rows(study, order)
  _write_table(order.output / TABLE_FILE, found)
  best = study.best_trial
  json_files.write(
    order.output / BEST_FILE,
    {"data": order.data, **order.space.settings(best.params)},
  )
  lines = [table(found, order.defaults.metric), ""]
  lines += _importance(study, order.output / IMPORTANCE_FILE)
  run = search.trial_dir(order.output, best.number)
  name = order.output / BEST_FILE
  lines += [
    f"All trials: {order.output / TABLE_FILE}",
    f"Best: trial {best.number}, its run in {run}, its settings in {name}",
    "Next: " + errors.command("evaluate", data=order.data, model_dir=run),
    "Deploy: " + errors.command("train", refit=run, model_dir="LIVE"),
  ]
  return lines


def rows(study: optuna.Study, order: search.Order) -> list[dict[str, Any]]:
  """Returns the trials, best first, those without a value last."""
  found = []
  for trial in study.get_trials(deepcopy=False):
    if trial.state == State.WAITING:
      continue
    found.append(
      {
        "trial": trial.number,
        "state": _STATES[trial.state],
        order.defaults.metric: _value(trial),
        "epoch": trial.user_attrs.get("epoch"),
        "epochs": trial.user_attrs.get("epochs"),
        "seconds": trial.user_attrs.get("seconds"),
        **{name: trial.params.get(name) for name in order.space.searched},
        "message": trial.user_attrs.get("message"),
      }
    )

  def place(row: Mapping[str, Any]) -> tuple[bool, bool, float]:
    value = row[order.defaults.metric]
    given_up = row["state"] != _STATES[State.COMPLETE]
    return value is None, given_up, -(value or 0.0)

  return sorted(found, key=place)


_STATES = {
  State.COMPLETE: "finished",
  State.PRUNED: "given up",
  State.FAIL: "failed",
  State.RUNNING: "under way",
}


def _value(trial: optuna.trial.FrozenTrial) -> float | None:
  return max(trial.intermediate_values.values(), default=trial.value)


def table(found: Sequence[Mapping[str, Any]], metric: str) -> str:
  """Formats the best trials as a table, without constant columns."""
  shown = found[:_MOST_ROWS]
  names = [
    name
    for name in shown[0]
    if name in ("trial", metric)
    or len({row[name] for row in shown}) > 1
    and name != "message"
  ]
  cells = [names]
  for row in shown:
    cells.append([_cell(name, row[name], metric) for name in names])
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  lines = [
    "  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True))
    for row in cells
  ]
  if len(found) > len(shown):
    lines.append(f"... and {len(found) - len(shown)} more")
  return "\n".join(lines)


def _cell(name: str, value: Any, metric: str) -> str:
  if value is None:
    return "-"
  if name == metric:
    return f"{value:.4f}"
  return f"{value:.3g}" if isinstance(value, float) else str(value)


def _write_table(
  path: pathlib.Path, found: Sequence[Mapping[str, Any]]
) -> None:
  text = io.StringIO()
  writer = csv.DictWriter(text, list(found[0]), lineterminator="\n")
  writer.writeheader()
  writer.writerows(found)
  atomic.write_text(path, text.getvalue())


def importance(study: optuna.Study) -> dict[str, float]:
  """Computes the effect of each setting that all trials have.

  Uses PED-ANOVA (Watanabe et al., IJCAI 2023), which compares the best tenth of
  the trials with all of them. The shares sum to 1.
  """
  evaluator = optuna.importance.PedAnovaImportanceEvaluator()
  return optuna.importance.get_param_importances(study, evaluator=evaluator)


def _importance(study: optuna.Study, path: pathlib.Path) -> list[str]:
  """Draws the effect of settings; returns lines about it."""
  finished = study.get_trials(deepcopy=False, states=[State.COMPLETE])
  path.unlink(missing_ok=True)
  if len(finished) < _FEWEST_TRIALS:
    return [
      f"{len(finished)} finished trials do not show which settings matter; "
      f"{_FEWEST_TRIALS} would."
    ]
  shares = importance(study)
  shares = {name: x for name, x in shares.items() if x >= 0.005}
  said = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
  lines = [f"Effect of settings (PED-ANOVA): {said}"]
  try:
    _draw(shares, path)
  except ImportError as error:
    return [*lines, f"No plot: {error}; pip install 'xir-tfrs[tune]'."]
  return [*lines, f"Plot: {path}"]


def _draw(shares: Mapping[str, float], path: pathlib.Path) -> None:
  from matplotlib import figure

  drawing = figure.Figure(figsize=(6, 0.6 + 0.35 * len(shares)))
  axes = drawing.add_subplot()
  names = list(shares)[::-1]
  axes.barh(names, [shares[name] for name in names])
  axes.set_xlabel("importance (PED-ANOVA)")
  with atomic.new_file(path) as partial:
    drawing.savefig(partial, format="png", bbox_inches="tight")
