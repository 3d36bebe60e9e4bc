"""Asks a bundle for the best candidates of a query.

  python -m export.query --bundle DIR --query_id U --k 10 [--exclude_seen]
    [--rerank]

Prints one table per query on stdout, or with --json one JSON object per line.
"""

from __future__ import annotations

import json

from absl import app, flags

from xir_tfrs.data import errors
from xir_tfrs.programs import main as main_lib
from xir_tfrs.serving import bundle


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
  try:
    found = loaded.recommend(
      query_ids,
      k,
      exclude_seen=exclude_seen,
      rerank=rerank,
      rerank_depth=rerank_depth,
    )
  except ValueError as error:
    raise errors.DataError(f"{directory}: {error}") from error
  fallback = loaded.manifest["unknown_query"]
  show = _as_json if as_json else _as_table
  lines = []
  for row, query_id in enumerate(query_ids):
    known = bool(found.known[row])
    source = loaded.index if known or fallback == "tower" else fallback
    real = slice(found.num_found[row])
    lines.append(
      show(
        query_id,
        found.ids[row][real].tolist(),
        found.scores[row][real].tolist(),
        known=known,
        source=source,
        reranked=known and rerank,
        k=k,
      )
    )
  return "\n".join(lines)


def _as_json(
  query_id: str,
  ids: list[bundle.Id],
  scores: list[float],
  *,
  known: bool,
  source: str,
  reranked: bool,
  k: int,
) -> str:
  del k
  return json.dumps(
    {
      "query_id": query_id,
      "known": known,
      "index": source,
      "reranked": reranked,
      "candidate_ids": ids,
      "scores": [round(x, 6) for x in scores],
    },
    ensure_ascii=False,
  )


def _as_table(
  query_id: str,
  ids: list[bundle.Id],
  scores: list[float],
  *,
  known: bool,
  source: str,
  reranked: bool,
  k: int,
) -> str:
  names = [str(x) for x in ids]
  width = max([len("id"), *map(len, names)])
  kind, shape = "score", "10.4f"
  heading = f"query {query_id} ({source}{', re-ranked' if reranked else ''})"
  if source == "popularity":
    heading = f"query {query_id}: unknown, so the most popular candidates"
    kind, shape = "count", "10.0f"
  elif not known:
    heading = f"query {query_id}: unknown ({source})"
  lines = [heading, f"{'rank':>4}  {'id':<{width}}  {kind:>10}"]
  for rank, (name, score) in enumerate(
    zip(names, scores, strict=True), start=1
  ):
    lines.append(f"{rank:>4}  {name:<{width}}  {score:{shape}}")
  if len(ids) < k:
    lines.append(f"only {len(ids)} of {k} candidates remain")
  return "\n".join(lines) + "\n"


def main(argv: list[str]) -> int:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
  values = flags.FLAGS
  return main_lib.run_plain(
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
