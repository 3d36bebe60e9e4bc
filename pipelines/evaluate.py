r"""Measures a trained model by ranking the whole catalogue.

    xir-tfrs evaluate --data DATA --model_dir MODEL

prints one table with the model beside the popularity ranking (and, for
generated data, the generator's own), and writes MODEL/metrics.json, what each
query got (by_query.npz, by which `xir-tfrs compare` pairs runs) and a page to
look at, MODEL/report.html. Candidates that a query was trained on are masked;
on the test split those of the validation split too. A model with a ranker has
a second column: its --rerank_depth best candidates of each query, re-ranked.

Queries and candidates without training rows are ranked as an exported bundle
answers them: by their side features, or else by popularity. Metrics of queries
with and without training rows stand apart below the total.

For a model of histories each held-out row is a query of its own, encoded from
what was before it; --history_ties ranks a model of ids in the same way. The
table has the untrained rule of `evaluation.neighbours` beside it, the metrics
with nothing masked, and those by length of the history.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
from typing import TYPE_CHECKING

from pipelines.evaluation import places
from xir_tfrs.data import errors, json_files
from xir_tfrs.programs import main, settings

if TYPE_CHECKING:
  import numpy as np

  from pipelines.evaluation import examples, past, report
  from xir_tfrs.data import runs

METRICS_FILE = places.METRICS_FILE
RERANK_DEPTH = 100


@dataclasses.dataclass(frozen=True)
class EvaluateConfig(settings.Settings):
  """What to evaluate."""

  model_dir: str = settings.setting("Directory made by xir-tfrs train.")
  data: str | None = settings.setting(
    "Directory made by xir-tfrs prepare. Not given: the model's.", None
  )
  split: str = settings.setting(
    "What to rank.", "test", choices=("validation", "test")
  )
  checkpoint: str = settings.setting(
    "Which to restore; without a validation the best is the latest.",
    "best",
    choices=("best", "latest"),
  )
  ks: tuple[int, ...] = settings.setting("Cut-offs.", (10, 20, 50), minimum=1)
  rerank_depth: int | None = settings.setting(
    "Candidates of each query that a model's ranker ranks again. Not given: "
    f"{RERANK_DEPTH}.",
    None,
    minimum=1,
  )
  history_ties: str | None = settings.setting(
    "What rows see of their query's events of the same time; see "
    "xir-tfrs train. Not given: as the model was validated. Given for a model "
    "of ids: ranks it as one of histories is, row by row.",
    None,
    choices=("strict", "order"),
  )
  output: str | None = settings.setting(
    f"File to write. Not given: MODEL_DIR/{METRICS_FILE}. The other files "
    "stand beside it.",
    None,
  )
  report: bool = settings.setting(
    "Write report.html too: curves, metrics with confidence intervals, example "
    "queries. Needs the extra `plots`.",
    True,
  )
  bundle: str | None = settings.setting(
    "Bundle of the model: the report shows recall and latency of its index.",
    None,
    only={"report": True},
  )

  def __post_init__(self) -> None:
    super().__post_init__()
    if not self.ks or len(set(self.ks)) < len(self.ks):
      raise settings.SettingsError(
        "--ks must be different numbers, at least one. Received: "
        f"{','.join(map(str, self.ks))}."
      )


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """What `rank` finds.

  Attributes:
    results: The content of metrics.json.
    by_query: The model's recall and NDCG of each query.
    users: [num_queries] dense ids of the queries.
    examples: The content of examples.json; None: without a report.
  """

  results: report.Results
  by_query: dict[str, np.ndarray]
  users: np.ndarray
  examples: examples.Examples | None

  def write(self, place: places.Place) -> None:
    """Writes the files of an evaluation."""
    from pipelines.evaluation import by_query as by_query_lib

    by_query_lib.write(place.by_query, self.users, self.by_query)
    if self.examples is not None:
      json_files.write(place.examples, self.examples)
    json_files.write(place.metrics, self.results)


def evaluate(config: EvaluateConfig) -> report.Results:
  """Evaluates a trained model beside what it is measured against.

  Raises:
    DataError: Data or model cannot be read, or do not belong together.
    SettingsError: --rerank_depth is given for a model without a ranker.
  """
  return rank(dataclasses.replace(config, report=False, bundle=None)).results


def rank(config: EvaluateConfig) -> Evaluation:
  """Does the same, and keeps what the files beside metrics.json hold."""
  # Here, as they import TensorFlow: --help does not wait for it.
  from pipelines.evaluation import (
    drawn,
    examples,
    neighbours,
    rankings,
    report,
    split,
  )
  from xir_tfrs.data import runs

  model, run, restored = runs.load_model(config.model_dir, config.checkpoint)
  data_dir = runs.data_of(run, config.model_dir, config.data)
  if run.train.get("rows") == "all":
    raise errors.DataError(
      "was trained on all rows (--refit, or --rows all), so nothing is held "
      "out to evaluate it on; evaluate the run that it was refitted from",
      path=config.model_dir,
    )
  rule = _rule(config, run)
  data = split.load_evaluation_data(data_dir, config.split, rule)
  vectors = rankings.of_model(model, data)
  others: dict[str, rankings.Ranker] = {}
  reranked, depth = None, config.rerank_depth
  if model.ranker is not None:
    depth = depth or RERANK_DEPTH
    first = vectors.with_popularity(data.counts)
    reranked = rankings.second_stage(model, first, data, depth)
    others["reranked"] = reranked
  elif depth is not None:
    raise settings.SettingsError(
      "--rerank_depth belongs to models with a ranker (xir-tfrs train --task "
      f"corr); {config.model_dir} has none."
    )
  others["popularity"] = rankings.of_popularity(data, vectors.indexed)
  if rule is not None:
    others["neighbours"] = neighbours.Neighbours.of_data(data_dir, data)
  oracle = rankings.of_oracle(data_dir.path, data)
  if oracle is not None:
    others["oracle"] = oracle
  results, by_query = report.results(
    vectors,
    others,
    data,
    ks=config.ks,
    checkpoint=os.path.relpath(restored, config.model_dir),
    rerank_depth=depth,
    occurrence=drawn.in_checkpoint(restored, data.counts),
  )
  shown = None
  if config.report:
    shown = examples.of_rankings(vectors, reranked, data, data_dir)
  return Evaluation(results, by_query["model"], data.query_ids, shown)


def _rule(config: EvaluateConfig, run: runs.RunConfig) -> past.Rule | None:
  """What rows see, where each is a query of its own."""
  from pipelines.evaluation import past

  given = {"history_ties": config.history_ties} if config.history_ties else {}
  return past.Rule.of_training({"query_tower": "id"} | run.train | given)


def run(config: EvaluateConfig) -> None:
  """Prints and writes what `rank` finds."""
  from pipelines.evaluation import report
  from pipelines.pages import found as pages
  from pipelines.pages import writing

  index = None
  if config.bundle is not None:
    index = pages.index_of(config.bundle, config.model_dir, config.checkpoint)
    if index is None:
      print(
        f"{config.bundle} has exact search alone, so the report has no section "
        "on its recall and latency.",
        file=sys.stderr,
      )
  place = places.Place.of(config.model_dir, config.output)
  evaluation = rank(config)
  found = evaluation.results
  print(report.summary(found))
  print(report.table(found))
  print("\n".join(report.verdict(found)))
  for warning in found.warnings:
    print(f"Warning: {warning}", file=sys.stderr)
  evaluation.write(place)
  print(f"Written to {place.metrics}")
  if config.report and writing.write_run(config.model_dir, place, index):
    print(f"Report: {place.report}")
  print(f"Next: {_following(config, found)}")


def _following(config: EvaluateConfig, found: report.Results) -> str:
  """The command to run next."""
  from xir_tfrs.data import runs

  run = os.path.normpath(config.model_dir)
  k = max(found.ks)
  ours, popularity = (
    found.metrics[name][f"ndcg@{k}"] for name in ("model", "popularity")
  )
  if ours > popularity:
    bundle = shlex.quote(f"bundles/{os.path.basename(run)}")
    return f"xir-tfrs export --model_dir {shlex.quote(run)} --output {bundle}"
  data = config.data or runs.RunDir(run).read_config().data
  return f"xir-tfrs tune --data {shlex.quote(data)} --output runs/tuned"


if __name__ == "__main__":
  sys.exit(main.run(EvaluateConfig, run))
