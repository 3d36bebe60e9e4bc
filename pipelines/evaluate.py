r"""Ranks the whole catalogue with a trained model, and says how well it does.

    python -m pipelines.evaluate --data DATA --model_dir MODEL

prints one table with the model beside the popularity ranking (and, for
generated data, the generator's own) and writes MODEL/metrics.json. Candidates
that a query was trained on are masked; when testing, those of the validation
split too. A model with a ranker has a second column: its --rerank_depth best
candidates of each query, re-ranked.
"""

import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from absl import app, flags

import xir_tfrs as xir
from pipelines.evaluation import split as evaluation_data
from xir_tfrs.data import directory, json_files, runs
from xir_tfrs.data import schema as schema_lib

EvaluationData = evaluation_data.EvaluationData
load_evaluation_data = evaluation_data.load_evaluation_data

METRICS_FILE = "metrics.json"
FORMAT = 1
# Candidates by their training interactions: (name, fewest, most).
BANDS = (
  ("at most 5", 0, 5),
  ("6 to 20", 6, 20),
  ("more than 20", 21, np.iinfo(np.int64).max),
)
# Queries whose lists are re-ranked at a time.
_LISTS_PER_BATCH = 256

# Metrics of a ranking, from data of some queries and their rows among all.
_Ranking = Callable[[EvaluationData, np.ndarray | slice], dict[str, float]]


def encode(
  model: xir.models.TwoTower, query_ids: np.ndarray, num_candidates: int
) -> tuple[np.ndarray, np.ndarray]:
  """Embeddings whose inner products are the model's scores.

  Returns:
    [num_queries, dim] and [num_candidates, dim] float32 arrays.
  """
  return (
    runs.encode_in_batches(model.encode_queries, query_ids),
    runs.encode_in_batches(model.encode_candidates, np.arange(num_candidates)),
  )


def rank(
  model: xir.models.TwoTower, data: EvaluationData, ks: Sequence[int]
) -> dict[str, float]:
  """`xir.metrics.full_ranking` of a model on a split."""
  return _full_ranking(
    *encode(model, data.query_ids, len(data.counts)), data, ks
  )


def rank_by_query(
  model: xir.models.TwoTower, data: EvaluationData, ks: Sequence[int]
) -> dict[str, np.ndarray]:
  """`xir.metrics.full_ranking_by_query` of a model on a split."""
  return xir.metrics.full_ranking_by_query(
    *encode(model, data.query_ids, len(data.counts)),
    relevant=data.relevant,
    seen=data.seen,
    ks=ks,
  )


def rank_by_popularity(
  data: EvaluationData, ks: Sequence[int]
) -> dict[str, float]:
  """The same of training counts, which every model has to beat."""
  return _full_ranking(*_popularity(data), data, ks)


def _full_ranking(queries, candidates, data, ks) -> dict[str, float]:
  return xir.metrics.full_ranking(
    queries, candidates, relevant=data.relevant, seen=data.seen, ks=ks
  )


def rerank(
  model: xir.models.TwoTower,
  queries: np.ndarray,
  candidates: np.ndarray,
  data: EvaluationData,
  depth: int,
) -> tuple[np.ndarray, np.ndarray]:
  """The best candidates by the retriever, with the scores of the ranker.

  Args:
    model: With a ranker.
    queries: [num_queries, dim] embeddings of the queries of `data`.
    candidates: [num_candidates, dim] embeddings.
    data: What is masked.
    depth: Candidates per query.

  Returns:
    [num_queries, depth] dense ids, best first by the retriever, -1 where fewer
    are left, and [num_queries, depth] scores.
  """
  index = xir.indexes.BruteForceIndex().index(
    np.arange(len(candidates)), candidates
  )
  score = tf.function(
    model.rerank_scores,
    input_signature=[
      tf.TensorSpec([None], tf.int64),
      tf.TensorSpec([None, None], tf.int64),
    ],
  )
  ids, scores = [], []
  for start in range(0, len(queries), _LISTS_PER_BATCH):
    rows = slice(start, start + _LISTS_PER_BATCH)
    found, _ = index.search(queries[rows], depth, exclude=data.seen[rows])
    ids.append(found.numpy())
    scores.append(score(tf.constant(data.query_ids[rows]), found).numpy())
  return np.concatenate(ids), np.concatenate(scores)


def _by_embeddings(queries, candidates, ks) -> _Ranking:
  return lambda data, rows: _full_ranking(queries[rows], candidates, data, ks)


def _by_lists(ids, scores, ks) -> _Ranking:
  return lambda data, rows: xir.metrics.list_ranking(
    ids[rows],
    scores[rows],
    relevant=data.relevant,
    num_candidates=len(data.counts),
    ks=ks,
  )


def _popularity(data: EvaluationData) -> tuple[np.ndarray, np.ndarray]:
  # The order of the counts, as counts beyond 2^24 are not exact in float32.
  _, order = np.unique(data.counts, return_inverse=True)
  queries = np.ones([len(data.query_ids), 1], np.float32)
  return queries, order.astype(np.float32)[:, np.newaxis]


def _oracle(
  data_dir: str | os.PathLike[str], data: EvaluationData
) -> tuple[np.ndarray, np.ndarray] | None:
  """The generator's embeddings, or None if the data was not generated."""
  path = pathlib.Path(data_dir) / schema_lib.ORACLE_FILE
  if not path.exists():
    return None
  with np.load(path) as arrays:
    return (
      arrays["query_embeddings"][data.query_ids],
      arrays["candidate_embeddings"],
    )


def evaluate(
  data_dir: str | os.PathLike[str] | None,
  path: str | os.PathLike[str],
  *,
  split: str = "test",
  checkpoint: str = "best",
  ks: Sequence[int] = (10, 20, 50),
  rerank_depth: int = 100,
) -> dict[str, Any]:
  """Evaluates a trained model beside what it is measured against.

  Args:
    data_dir: Directory made by `pipelines.prepare`; None: the one that the
      model was trained on.
    path: Directory made by `pipelines.train`.
    split: `"validation"` or `"test"`.
    checkpoint: `"best"` or `"latest"`.
    ks: Cut-offs.
    rerank_depth: If the model has a ranker: how many candidates of each query
      it ranks again.

  Returns:
    What metrics.json holds: `metrics` maps a ranking (`model`, `popularity`,
    for generated data `oracle`, and for a model with a ranker `reranked`, its
    second stage) to the dict of `full_ranking`;
    `by_training_count` maps a band of candidates to `pairs`, `queries` and
    such `metrics` with only its candidates relevant; `warnings` is a list of
    sentences.

  Raises:
    ValueError: Data or model cannot be read, or do not belong together.
  """
  if rerank_depth < 1:
    raise ValueError(
      f"--rerank_depth must be positive. Received: {rerank_depth}."
    )
  model, config, restored = runs.load_model(path, checkpoint)
  opened = directory.DataDir(config.data if data_dir is None else data_dir)
  runs.check_fit(config, opened, path)
  data = load_evaluation_data(opened, split)
  embeddings = encode(model, data.query_ids, len(data.counts))
  rankings = {"model": _by_embeddings(*embeddings, ks)}
  second_stage = {}
  if model.ranker is not None:
    lists = rerank(model, *embeddings, data, rerank_depth)
    rankings["reranked"] = _by_lists(*lists, ks)
    second_stage["rerank_depth"] = rerank_depth
  rankings["popularity"] = _by_embeddings(*_popularity(data), ks)
  oracle = _oracle(opened.path, data)
  if oracle is not None:
    rankings["oracle"] = _by_embeddings(*oracle, ks)
  metrics = {
    name: ranking(data, slice(None)) for name, ranking in rankings.items()
  }
  return {
    "format": FORMAT,
    "split": split,
    "checkpoint": os.path.relpath(restored, path),
    "queries": len(data.query_ids),
    "candidates": len(data.counts),
    "pairs": data.num_pairs,
    "ks": list(ks),
    **second_stage,
    "metrics": metrics,
    "by_training_count": {
      name: _band(rankings, data, low, high) for name, low, high in BANDS
    },
    "warnings": _warnings(data, embeddings, metrics, max(ks)),
  }


def _band(rankings, data, low, high) -> dict[str, Any]:
  """Metrics on candidates with `low` to `high` training interactions."""
  wanted = (data.counts >= low) & (data.counts <= high)
  band = data.restricted_to(wanted)
  rows = np.searchsorted(data.query_ids, band.query_ids)
  metrics = {}
  if len(rows):
    metrics = {name: ranking(band, rows) for name, ranking in rankings.items()}
  return {
    "candidates": int(wanted.sum()),
    "pairs": band.num_pairs,
    "queries": len(rows),
    "metrics": metrics,
  }


def _warnings(data, embeddings, metrics, k) -> list[str]:
  warnings = []
  if data.num_repeated:
    warnings.append(
      f"{data.num_repeated:,} of {data.num_pairs:,} {data.split} pairs were "
      "seen before; they are masked, so they count as misses."
    )
  if _collapsed(*embeddings):
    warnings.append(
      "The model has collapsed: it gives every candidate the same score. Look "
      "at the learning rate and the losses in metrics.jsonl."
    )
  ours, baseline = (
    metrics[name][f"ndcg@{k}"] for name in ("model", "popularity")
  )
  if ours < baseline:
    warnings.append(
      f"The model is below popularity (ndcg@{k} {ours:.4f} < {baseline:.4f}): "
      "train longer, or look at the learning rate and the temperature."
    )
  second = metrics.get("reranked", {}).get(f"ndcg@{k}")
  if second is not None and second < ours:
    warnings.append(
      f"Re-ranking makes it worse (ndcg@{k} {second:.4f} < {ours:.4f}): the "
      "ranker is not trained well enough to be used."
    )
  return warnings


def _collapsed(queries: np.ndarray, candidates: np.ndarray) -> bool:
  """Whether scores of a sample are equal to rounding, query by query."""
  queries = queries[:: len(queries) // 256 + 1]
  candidates = candidates[:: len(candidates) // 4096 + 1]
  scores = queries @ candidates.T
  return bool((np.ptp(scores, axis=1) <= 1e-6 * np.abs(scores).max()).all())


def format_table(results: dict[str, Any]) -> str:
  """The results of `evaluate` as an aligned table, a column per ranking."""
  columns = results["metrics"]
  # `ndcg_xir_compat` is for comparisons with the paper: metrics.json has it.
  names = [n for n in columns["model"] if not n.startswith("ndcg_xir_compat")]
  rows = [["", *columns]]
  rows += [[n, *_cells(columns, n)] for n in names]
  for band, part in results["by_training_count"].items():
    title = f"candidates with {band} training interactions"
    rows.append([f"{title}: {part['pairs']:,} pairs"])
    rows += [
      [f"  recall@{k}", *_cells(part["metrics"], f"recall@{k}")]
      for k in results["ks"]
      if part["metrics"]
    ]
  width = max(len(row[0]) for row in rows if len(row) > 1)
  return "\n".join(
    "".join([row[0].ljust(width), *(cell.rjust(12) for cell in row[1:])])
    for row in rows
  )


def _cells(metrics: dict[str, dict[str, float]], name: str) -> list[str]:
  return [f"{values[name]:.4f}" for values in metrics.values()]


def main(argv: list[str]) -> int:
  if len(argv) > 1:
    print(f"Not a flag: {argv[1]!r}; see --help.", file=sys.stderr)
    return 2
  given = flags.FLAGS
  output = given.output or pathlib.Path(given.model_dir) / METRICS_FILE
  try:
    results = evaluate(
      given.data,
      given.model_dir,
      split=given.split,
      checkpoint=given.checkpoint,
      ks=_cut_offs(given.ks),
      rerank_depth=given.rerank_depth,
    )
    _report(results)
    json_files.write(output, results)
  except (ValueError, OSError) as error:
    print(f"Error: {error}", file=sys.stderr)
    return 1
  print(f"Written to {output}")
  return 0


def _report(results: dict[str, Any]) -> None:
  print(
    f"{results['checkpoint']} on the {results['split']} split: "
    f"{results['queries']:,} queries, {results['pairs']:,} pairs, "
    f"{results['candidates']:,} candidates ranked"
  )
  print(format_table(results))
  for warning in results["warnings"]:
    print(f"Warning: {warning}", file=sys.stderr)


def _cut_offs(values: Sequence[str]) -> tuple[int, ...]:
  if not all(value.strip().isdigit() for value in values):
    raise ValueError(
      f"--ks must be whole numbers, as in 10,20. Received: {','.join(values)}."
    )
  return tuple(int(value) for value in values)


def _define_flags() -> None:
  flags.DEFINE_string(
    "data", None, "Directory made by pipelines.prepare; default: the model's."
  )
  flags.DEFINE_string("model_dir", None, "Directory made by pipelines.train.")
  flags.DEFINE_enum(
    "split", "test", list(evaluation_data.SEEN), "What to rank."
  )
  flags.DEFINE_enum("checkpoint", "best", runs.WHICH, "Which to restore.")
  flags.DEFINE_list("ks", ["10", "20", "50"], "Cut-offs.")
  flags.DEFINE_integer(
    "rerank_depth",
    100,
    "Candidates of each query that a model's ranker ranks again.",
  )
  flags.DEFINE_string(
    "output", None, f"File to write; default: MODEL_DIR/{METRICS_FILE}."
  )
  flags.mark_flag_as_required("model_dir")


if __name__ == "__main__":
  _define_flags()
  app.run(main)
