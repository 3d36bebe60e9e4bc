"""Does the work of `export.batch_recommend`: writes answers to all queries."""

from __future__ import annotations

import hashlib
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np
import tensorflow as tf

from export.bundle import answer_files, new_items
from export.bundle import options as options_lib
from xir_tfrs import indexes
from xir_tfrs.data import atomic, errors, hashes, json_files
from xir_tfrs.data.files import text
from xir_tfrs.programs import progress
from xir_tfrs.serving import bundle
from xir_tfrs.serving import manifest as manifests

# Readers of a directory of Parquet files ignore names with an underscore.
RUN_FILE = "_run.json"
# Queries that are encoded and searched at a time; the search has own chunks.
_BATCH = 1024


class Asked(msgspec.Struct, frozen=True, kw_only=True):
  """The settings that determine the files; runs must agree in them."""

  bundle_sha256: str
  queries_sha256: str
  k: int
  exclude_seen: bool
  format: str
  rows_per_shard: int
  time: int | None = None


class Run(Asked, frozen=True, kw_only=True):
  """Content of _run.json.

  Attributes:
    complete: Whether all files exist.
    seconds: Time for the files, over all sessions.
    queries, shards, queries_per_second: Figures of a complete run.
  """

  complete: bool = False
  seconds: float = 0.0
  queries: int | None = None
  shards: int | None = None
  queries_per_second: float | None = None


def batch_recommend(options: options_lib.BatchOptions) -> Run:
  """Writes the missing files.

  Raises:
    DataError: The bundle, the queries or the output cannot be used, for example
      because another run writes to the same output.
  """
  loaded = _load(options.bundle)
  if options.k > loaded.manifest.max_k:
    raise errors.DataError(
      f"--k must be from 1 to {loaded.manifest.max_k}. Received: {options.k}",
      path=options.bundle,
    )
  if options.time is not None and not loaded.takes_times:
    raise errors.DataError(
      "its model does not use the ages of events, so --time has no effect; "
      "leave it out",
      path=options.bundle,
    )
  query_ids, digest = _queries(options.queries, loaded)
  open_writer = answer_files.WRITERS[options.format](loaded)
  asked = Asked(
    bundle_sha256=hashes.sha256(loaded.directory / manifests.FILE_NAME),
    queries_sha256=digest,
    k=options.k,
    exclude_seen=options.exclude_seen,
    format=options.format,
    rows_per_shard=options.rows_per_shard,
    time=options.time,
  )
  output = pathlib.Path(options.output)
  with atomic.locked(output):
    run = _begin(output, asked, options.overwrite)
    shards = _shards(output, asked, query_ids)
    recommend = _recommender(
      loaded, options.k, options.exclude_seen, options.time
    )
    run = _write_missing(output, run, shards, open_writer, recommend)
  print(
    f"{output}: {run.queries:,} queries in {run.shards} "
    f"{'file' if run.shards == 1 else 'files'}, "
    f"{run.seconds:.1f} s, {run.queries_per_second:,.0f} queries/s"
  )
  return run


def _write_missing(
  output: pathlib.Path,
  run: Run,
  shards: Mapping[pathlib.Path, Sequence[bundle.Id]],
  open_writer: answer_files.OpenWriter,
  recommend: Callable[[Sequence[bundle.Id]], answer_files.Answers],
) -> Run:
  """Writes the missing shards."""
  missing = [path for path in shards if not path.exists()]
  total = sum(map(len, shards.values()))
  done = total - sum(len(shards[path]) for path in missing)
  if missing:
    run = _save(output, run, complete=False)
  if done:
    print(f"{done:,} of {total:,} queries are done")
  with progress.Progress("recommend", total, start=done) as bar:
    for path in missing:
      began = time.monotonic()
      with atomic.new_file(path) as partial, open_writer(partial) as write:
        for start in range(0, len(shards[path]), _BATCH):
          answers = recommend(shards[path][start : start + _BATCH])
          write(answers)
          done += len(answers.query_ids)
          bar.update_rows(done, len(answers.query_ids))
      seconds = round(run.seconds + time.monotonic() - began, 3)
      run = _save(output, run, seconds=seconds)
  return _save(
    output,
    run,
    complete=True,
    queries=total,
    shards=len(shards),
    queries_per_second=round(total / max(run.seconds, 1e-3), 1),
  )


def _load(directory: str) -> bundle.Bundle:
  manifest = manifests.load(directory)
  # Only uses the vectors and the query tower, so it avoids ScaNN if possible.
  exact = "brute_force" in manifest.indexes
  return bundle.Bundle.load(directory, "brute_force" if exact else None)


def _queries(
  path: str | None, loaded: bundle.Bundle
) -> tuple[Sequence[bundle.Id], str]:
  """The query ids and their digest."""
  if path is None:
    return loaded.query_ids.tolist(), "all"
  ids = text.read_lines(pathlib.Path(path))
  if not ids:
    raise errors.DataError("empty; write one query id per line", path=path)
  if "" in ids:
    raise errors.DataError(
      "empty; write one query id per line", path=path, line=ids.index("") + 1
    )
  digest = hashlib.sha256("\n".join(ids).encode()).hexdigest()
  if loaded.manifest.id_types.query == "int64":
    ids = new_items.integers(
      ids,
      lambda row, message: errors.DataError(message, path=path, line=row + 1),
    )
  _say_if_unknown(path, ids, loaded)
  return ids, digest


def _say_if_unknown(
  path: str, query_ids: Sequence[bundle.Id], loaded: bundle.Bundle
) -> None:
  """Says how many ids of a file are unknown; all are if they are misspelt."""
  known = set(loaded.query_ids.tolist())
  unknown = [query_id for query_id in query_ids if query_id not in known]
  if unknown:
    print(
      f"{len(unknown):,} of {len(query_ids):,} ids in {path} are not in the"
      f" bundle, such as {unknown[0]!r}: they are answered as unknown queries",
      file=sys.stderr,
    )


def _shards(
  output: pathlib.Path, asked: Asked, query_ids: Sequence[bundle.Id]
) -> dict[pathlib.Path, Sequence[bundle.Id]]:
  """The files and the queries of each."""
  starts = range(0, len(query_ids), asked.rows_per_shard)
  return {
    output / f"part-{i:05d}-of-{len(starts):05d}.{asked.format}": query_ids[
      start : start + asked.rows_per_shard
    ]
    for i, start in enumerate(starts)
  }


def _begin(output: pathlib.Path, asked: Asked, overwrite: bool) -> Run:
  """Returns the earlier run to continue, or a new one."""
  new = Run(**msgspec.structs.asdict(asked))
  if all(path.name == atomic.LOCK_FILE for path in output.iterdir()):
    return _save(output, new)
  run = json_files.read(
    output / RUN_FILE,
    Run,
    remedy="choose another --output",
    missing=(
      ", so this is not the directory of a run; choose another --output"
    ),
  )
  # No other program writes here, so these are leftovers of killed runs.
  for path in output.glob(".part-*.partial*"):
    path.unlink()
  if overwrite:
    # Written first, because a run that is killed now is incomplete.
    _save(output, run, complete=False)
    for path in output.glob("part-*-of-*"):
      path.unlink()
    return _save(output, new)
  differing = [
    f"{name} = {getattr(run, name)} then, {value} now"
    for name, value in msgspec.structs.asdict(asked).items()
    if getattr(run, name) != value
  ]
  if differing:
    raise errors.DataError(
      f"was started with other settings ({'; '.join(differing)}); choose"
      " another --output, or start again with --overwrite",
      path=output,
    )
  return run


def _save(output: pathlib.Path, run: Run, **changes) -> Run:
  """Writes _run.json with some fields changed; returns the new content."""
  run = msgspec.structs.replace(run, **changes)
  json_files.write(output / RUN_FILE, run)
  return run


def _recommender(
  loaded: bundle.Bundle, k: int, exclude_seen: bool, moment: int | None
) -> Callable[[Sequence[bundle.Id]], answer_files.Answers]:
  """Returns a function that answers a few thousand query ids at a time."""
  # It returns rows; ids are looked up when they are written.
  vectors = tf.constant(loaded.vectors)
  interests = [] if loaded.manifest.num_interests is None else [None]
  search = tf.function(
    lambda queries, seen: indexes.top_rows(
      vectors, queries, tf.constant(k), seen
    ),
    input_signature=[
      tf.TensorSpec([None, *interests, vectors.shape[1]], tf.float32),
      tf.TensorSpec([None, None], tf.int64),
    ],
    autograph=False,
  )
  popular = np.argsort(-loaded.counts, kind="stable")[:k]

  def recommend(query_ids: Sequence[bundle.Id]) -> answer_files.Answers:
    times = None if moment is None else [moment] * len(query_ids)
    queries = loaded.read_queries(query_ids, time=times)
    none = np.zeros([len(query_ids), 0], np.int64)
    seen = _seen(loaded, queries.rows) if exclude_seen else none
    rows, scores = (x.numpy() for x in search(queries.vectors, seen))
    unknown = np.flatnonzero(queries.popular)
    rows[unknown], scores[unknown] = -1, -np.inf
    rows[unknown, : len(popular)] = popular
    scores[unknown, : len(popular)] = loaded.counts[popular]
    found = rows >= 0
    return answer_files.Answers(
      query_ids, found.sum(axis=1), rows[found], scores[found]
    )

  return recommend


def _seen(loaded: bundle.Bundle, queries: np.ndarray) -> np.ndarray:
  """`[n, width]` rows of the training candidates, padded with -1."""
  splits, rows = loaded.seen
  known = np.maximum(queries, 0)
  lengths = np.where(queries >= 0, splits[known + 1] - splits[known], 0)
  places = np.arange(lengths.max(initial=0))
  inside = places < lengths[:, np.newaxis]
  padded = np.full(inside.shape, -1)
  padded[inside] = rows[(splits[known][:, np.newaxis] + places)[inside]]
  return padded
