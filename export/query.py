"""Recommends candidates for a query from a bundle.

  xir-tfrs query --bundle DIR --query_id U --k 10 [--exclude_seen]
    [--rerank]
  xir-tfrs query --bundle DIR --history I1,I2,I3 [--query_id U]
    [--history_times T1,T2,T3 --time T]

With --history, recommends after these candidates, newest last. A model that
uses the ages of events also takes their times and that of the request. Prints
one table per query on stdout, or with --json one JSON object per line.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING

from xir_tfrs.data import errors
from xir_tfrs.programs import main, settings
from xir_tfrs.serving import manifest

if TYPE_CHECKING:
  from xir_tfrs import serving


@dataclasses.dataclass(frozen=True, kw_only=True)
class QueryOptions(settings.Settings):
  """Settings of a request."""

  bundle: str = settings.setting("Bundle written by xir-tfrs export.")
  query_id: tuple[str, ...] = settings.setting(
    "Original id of a query. Required without --history.", (), multi=True
  )
  history: tuple[str, ...] = settings.setting(
    "Candidates that the query chose before: original ids, newest last. "
    "With at most one --query_id.",
    (),
  )
  history_times: tuple[int, ...] = settings.setting(
    "Times of --history, in the unit of the training data; -1 is unknown. "
    "For a model that uses the ages of events.",
    (),
  )
  time: int | None = settings.setting(
    "Time of the request, in the same unit. Without it no ages are used.", None
  )
  k: int = settings.setting("Number of answers.", 10, minimum=1)
  exclude_seen: bool = settings.setting(
    "Leave out the candidates seen in training.", False
  )
  index: str | None = settings.setting(
    "Index to use. Default: scann if the bundle has it.",
    None,
    choices=manifest.INDEXES,
  )
  rerank: bool = settings.setting(
    "Re-rank the retrieved candidates with the model's ranker.", False
  )
  rerank_depth: int = settings.setting(
    "Number of candidates to retrieve for --rerank.",
    100,
    minimum=1,
    only={"rerank": True},
  )
  json: bool = settings.setting("Print one JSON object per line.", False)

  def __post_init__(self) -> None:
    super().__post_init__()
    if not self.query_id and not self.history:
      raise settings.SettingsError("--query_id or --history is required.")
    if self.history and len(self.query_id) > 1:
      raise settings.SettingsError(
        "--history is for a single query. Received: "
        f"{len(self.query_id)} times --query_id."
      )
    if self.history_times and len(self.history_times) != len(self.history):
      raise settings.SettingsError(
        "--history_times must hold one time for each id in --history. "
        f"Received: {len(self.history_times)} times for {len(self.history)} "
        "ids."
      )


@dataclasses.dataclass(frozen=True)
class _Answer:
  """The answer for one query.

  Attributes:
    query_id: Id of the query; None for a history alone.
    known: Whether it has training rows.
    num_history: Number of known ids in its history.
    source: "popularity", or the name of the index.
    reranked: Whether the ranker re-ranked.
    ids, scores: The candidates, best first.
    titles: Titles of `ids`; None if the bundle has none.
  """

  query_id: str | None
  known: bool
  num_history: int
  source: str
  reranked: bool
  ids: list[str] | list[int]
  scores: list[float]
  titles: list[str] | None


def answer(options: QueryOptions) -> str:
  """Returns the output of the program."""
  from xir_tfrs.serving import bundle  # Imports TensorFlow.

  loaded = bundle.Bundle.load(options.bundle, options.index)
  times, time = options.history_times, options.time
  try:
    found = loaded.recommend(
      list(options.query_id) or None,
      [list(options.history)] if options.history else None,
      options.k,
      history_times=[list(times)] if times else None,
      time=None if time is None else [time] * max(len(options.query_id), 1),
      exclude_seen=options.exclude_seen,
      rerank=options.rerank,
      rerank_depth=options.rerank_depth,
    )
  except errors.DataError:
    raise  # It names the bundle.
  except ValueError as error:
    raise errors.DataError(str(error), path=options.bundle) from error
  if options.history and found.known[0] and not loaded.takes_histories:
    print(
      f"{options.query_id[0]} has training rows, so its trained vector answers "
      "and --history is not used.",
      file=sys.stderr,
    )
  answers = [
    _answer(loaded, found, query_id, row, options.rerank)
    for row, query_id in enumerate(options.query_id or [None])
  ]
  if options.json:
    return "\n".join(map(_as_json, answers))
  return "\n".join(_as_table(x, options.k) for x in answers)


def _answer(
  loaded: serving.Bundle,
  found: serving.Recommendations,
  query_id: str | None,
  row: int,
  rerank: bool,
) -> _Answer:
  real = slice(found.num_found[row])
  known, num_history = bool(found.known[row]), int(found.num_history[row])
  rankable = known or (num_history > 0 and loaded.ranks_histories)
  return _Answer(
    query_id=query_id,
    known=known,
    num_history=num_history,
    source="popularity" if found.popular[row] else loaded.index,
    reranked=rankable and rerank,
    ids=found.ids[row][real].tolist(),
    scores=found.scores[row][real].tolist(),
    titles=None if found.titles is None else found.titles[row][real].tolist(),
  )


def _as_json(found: _Answer) -> str:
  content = {
    "query_id": found.query_id,
    "known": found.known,
    "num_history": found.num_history,
    "index": found.source,
    "reranked": found.reranked,
    "candidate_ids": found.ids,
    "scores": [round(x, 6) for x in found.scores],
  }
  if found.titles is not None:
    content["titles"] = found.titles
  return json.dumps(content, ensure_ascii=False)


def _as_table(found: _Answer, k: int) -> str:
  names = [str(x) for x in found.ids]
  width = max([len("id"), *map(len, names)])
  kind, shape = "score", "10.4f"
  who = "session" if found.query_id is None else f"query {found.query_id}"
  if found.num_history:
    who += f", {found.num_history} known in its history"
  heading = f"{who} ({found.source})"
  if found.reranked:
    heading = f"{who} ({found.source}, re-ranked)"
  elif found.source == "popularity":
    heading = f"{who}: unknown, so the most popular candidates"
    kind, shape = "count", "10.0f"
  elif not found.known and not found.num_history:
    heading = f"{who}: unknown ({found.source})"
  titles = found.titles or [""] * len(names)
  more = "" if found.titles is None else "  title"
  lines = [heading, f"{'rank':>4}  {'id':<{width}}  {kind:>10}{more}"]
  for rank, (name, score, title) in enumerate(
    zip(names, found.scores, titles, strict=True), start=1
  ):
    line = f"{rank:>4}  {name:<{width}}  {score:{shape}}  {title}"
    lines.append(line.rstrip())
  if len(names) < k:
    lines.append(f"only {len(names)} of {k} candidates remain")
  return "\n".join(lines) + "\n"


def query(options: QueryOptions) -> None:
  print(answer(options))


if __name__ == "__main__":
  sys.exit(main.run(QueryOptions, query))
