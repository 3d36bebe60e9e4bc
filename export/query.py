"""Asks a bundle for the best candidates of a query.

  python -m export.query --bundle DIR --query_id U --k 10 [--exclude_seen]
    [--rerank]

Prints one table per query on stdout, or with --json one JSON object per line.
"""

from __future__ import annotations

import json

import numpy as np
from absl import app, flags

from export import bundle, errors


def answer(
  directory: str,
  query_ids: list[str],
  k: int,
  *,
  exclude_seen: bool = False,
  index: str | None = None,
  as_json: bool = False,
  rerank: bool = False,
  rerank_depth: int = bundle.RERANK_DEPTH,
) -> str:
  """What the program prints, see the flags."""
  loaded = bundle.Bundle.load(directory, index)
  found = loaded.recommend(
    query_ids,
    k,
    exclude_seen=exclude_seen,
    rerank=rerank,
    rerank_depth=rerank_depth,
  )
  show = _as_json if as_json else _as_table
  return "\n".join(
    show(query_id, ids, scores, bool(known), loaded.index, rerank)
    for query_id, ids, scores, known in zip(query_ids, *found, strict=True)
  )


def _as_json(
  query_id: str,
  ids: np.ndarray,
  scores: np.ndarray,
  known: bool,
  index: str,
  reranked: bool,
) -> str:
  real = np.isfinite(scores)
  return json.dumps(
    {
      "query_id": query_id,
      "known": known,
      "index": index if known else "popularity",
      "reranked": known and reranked,
      "candidate_ids": ids[real].tolist(),
      "scores": [round(float(x), 6) for x in scores[real]],
    },
    ensure_ascii=False,
  )


def _as_table(
  query_id: str,
  ids: np.ndarray,
  scores: np.ndarray,
  known: bool,
  index: str,
  reranked: bool,
) -> str:
  real = np.isfinite(scores)
  width = max([len("id"), *map(len, ids[real])])
  if known:
    how = f"{index}, re-ranked" if reranked else index
    heading, kind, shape = f"query {query_id} ({how})", "score", "10.4f"
  else:
    heading = f"query {query_id}: unknown, so the most popular candidates"
    kind, shape = "count", "10.0f"
  lines = [heading, f"{'rank':>4}  {'id':<{width}}  {kind:>10}"]
  for rank, (name, score) in enumerate(
    zip(ids[real], scores[real], strict=True), start=1
  ):
    lines.append(f"{rank:>4}  {name:<{width}}  {score:{shape}}")
  if not real.all():
    lines.append(f"only {real.sum()} of {len(real)} candidates remain")
  return "\n".join(lines) + "\n"


def main(argv: list[str]) -> int:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
  values = flags.FLAGS
  return errors.run(
    lambda: print(
      answer(
        values.bundle,
        values.query_id,
        values.k,
        exclude_seen=values.exclude_seen,
        index=values.index,
        as_json=values.json,
        rerank=values.rerank,
        rerank_depth=values.rerank_depth,
      )
    )
  )


def _define_flags() -> None:
  flags.DEFINE_string("bundle", None, "Made by export.export_retriever.")
  flags.DEFINE_multi_string("query_id", None, "Original id; may be repeated.")
  flags.DEFINE_integer("k", 10, "Number of answers.", 1)
  flags.DEFINE_boolean(
    "exclude_seen", False, "Leave out the candidates seen in training."
  )
  flags.DEFINE_enum(
    "index", None, bundle.INDEXES, "Default: scann if the bundle has it."
  )
  flags.DEFINE_boolean(
    "rerank", False, "Let the model's ranker choose among what is retrieved."
  )
  flags.DEFINE_integer(
    "rerank_depth", bundle.RERANK_DEPTH, "How many are retrieved for it.", 1
  )
  flags.DEFINE_boolean("json", False, "One JSON object per line.")
  flags.mark_flags_as_required(["bundle", "query_id"])


if __name__ == "__main__":
  _define_flags()
  app.run(main)
