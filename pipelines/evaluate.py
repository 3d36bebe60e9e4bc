r"""Evaluates a trained model by ranking the whole catalogue.

    xir-tfrs evaluate --data DATA --model_dir MODEL

prints a table that compares the model with the popularity ranking (and, for
generated data, with the generator). It writes MODEL/metrics.json, by_query.npz
(metrics of each query, which `xir-tfrs compare` uses to pair runs) and the page
MODEL/report.html. Candidates in the training rows of a query are masked; on the
test split also those in its validation rows. A model with a ranker has a second
column, in which the ranker re-ranks the --rerank_depth best candidates.

Queries and candidates without training rows are ranked as an exported bundle
answers them: by their side features, or by popularity. The table also lists
the metrics of queries with and without training rows.

For a model of histories, each held-out row is a query of its own, encoded from
the events before it; --history_ties evaluates a model of ids in the same way.
The table then also has the untrained baseline of `evaluation.neighbours`,
metrics without masking, and metrics by length of the history.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from typing import TYPE_CHECKING

from pipelines.evaluation import places
from xir_tfrs.data import atomic, errors, json_files
from xir_tfrs.programs import main, settings

if TYPE_CHECKING:
  import numpy as np

  from pipelines.evaluation import examples, report

RERANK_DEPTH = 100


@dataclasses.dataclass(frozen=True)
class EvaluateConfig(settings.Settings):
  """Settings of an evaluation."""

  model_dir: str = settings.setting("Directory written by xir-tfrs train.")
  data: str | None = settings.setting(
    "Directory written by xir-tfrs prepare. Not given: the model's.", None
  )
  split: str = settings.setting(
    "Split to rank.", "test", choices=("validation", "test")
  )
  checkpoint: str = settings.setting(
    "Checkpoint to restore. Without validation the best one is the latest.",
    "best",
    choices=("best", "latest"),
  )
  ks: tuple[int, ...] = settings.setting("Cut-offs.", (10, 20, 50), minimum=1)
  rerank_depth: int | None = settings.setting(
    "Candidates per query that a model's ranker re-ranks. Not given: "
    f"{RERANK_DEPTH}.",
    None,
    minimum=1,
  )
  history_ties: str | None = settings.setting(
    "Which events of the same time a row sees; see xir-tfrs train. Not given: "
    "as the model was validated. For a model of ids: ranks it row by row, like "
    "a model of histories.",
    None,
    choices=("strict", "order"),
  )
  output: str | None = settings.setting(
    f"File to write. Not given: MODEL_DIR/{places.METRICS_FILE}. The other "
    "files are written beside it.",
    None,
  )
  report: bool = settings.setting(
    "Write report.html with curves, metrics with confidence intervals and "
    "example queries. Needs the extra `plots`.",
    True,
  )
  bundle: str | None = settings.setting(
    "Bundle of the model. The report shows recall and latency of its index.",
    None,
    only={"report": True},
  )

  def __post_init__(self) -> None:
    super().__post_init__()
    if not self.ks or len(set(self.ks)) < len(self.ks):
      raise settings.SettingsError(
        "--ks must be one or more distinct numbers. Received: "
        f"{','.join(map(str, self.ks))}."
      )


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """The results of `rank`.

  Attributes:
    results: The content of metrics.json.
    by_query: The model's recall and NDCG of each query.
    users: [num_queries] dense ids of the queries.
    examples: The content of examples.json; None without a report.
  """

  results: report.Results
  by_query: dict[str, np.ndarray]
  users: np.ndarray
  examples: examples.Examples | None

  def write(self, place: places.Place) -> None:
    """Writes the files of an evaluation."""
    from pipelines.evaluation import by_query as by_query_lib

    # The page of an earlier evaluation has other figures.
    place.report.unlink(missing_ok=True)
    by_query_lib.write(place.by_query, self.users, self.by_query)
    if self.examples is None:
      place.examples.unlink(missing_ok=True)
    else:
      json_files.write(place.examples, self.examples)
    json_files.write(place.metrics, self.results)


def evaluate(config: EvaluateConfig) -> report.Results:
  """Evaluates a trained model and its baselines.

  Raises:
    DataError: Data or model cannot be read, or do not match.
    SettingsError: --rerank_depth is given for a model without a ranker.
  """
  return rank(dataclasses.replace(config, report=False, bundle=None)).results


def rank(config: EvaluateConfig) -> Evaluation:
  """Like `evaluate`; also returns the content of the other files."""
  # Imported here, because TensorFlow is slow: --help does not need it.
  from pipelines.evaluation import (
    drawn,
    examples,
    neighbours,
    past,
    rankings,
    report,
    split,
  )
  from xir_tfrs.data import runs

  model, run, restored = runs.load_model(config.model_dir, config.checkpoint)
  data_dir = runs.data_of(run, config.model_dir, config.data)
  if run.train.get("rows") == "all":
    raise errors.DataError(
      "was trained on all rows (--refit, or --rows all), so no rows are held "
      "out; evaluate the run that it was refitted from",
      path=config.model_dir,
    )
  rule = past.Rule.of_training(run.train, config.history_ties)
  data = split.load_evaluation_data(data_dir, config.split, rule)
  vectors = rankings.of_model(model, data, show=True)
  others: dict[str, rankings.Ranker] = {}
  reranked, depth = None, config.rerank_depth
  if model.ranker is not None:
    depth = depth or RERANK_DEPTH
    first = vectors.with_popularity(data.counts)
    reranked = rankings.second_stage(model, first, data, depth, show=True)
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


def run(config: EvaluateConfig) -> None:
  """Prints and writes the results of `rank`."""
  from pipelines.evaluation import report
  from pipelines.pages import found as pages
  from pipelines.pages import writing

  index = None
  if config.bundle is not None:
    index = pages.index_of(config.bundle, config.model_dir, config.checkpoint)
    if index is None:
      print(
        f"{config.bundle} only has exact search, so the report has no section "
        "on recall and latency.",
        file=sys.stderr,
      )
  place = places.Place.of(config.model_dir, config.output)
  atomic.check_file(place.metrics)
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
  from pipelines.evaluation import report
  from xir_tfrs.data import runs

  run = os.path.normpath(config.model_dir)
  metric = f"ndcg@{report.main_k(found.ks)}"
  ours, popularity = (
    found.metrics[name][metric] for name in ("model", "popularity")
  )
  if ours > popularity:
    bundle = f"bundles/{os.path.basename(run)}"
    return errors.command("export", model_dir=run, output=bundle)
  data = config.data or runs.RunDir(run).read_config().data
  return errors.command("tune", data=data, output="runs/tuned")


if __name__ == "__main__":
  sys.exit(main.run(EvaluateConfig, run))
