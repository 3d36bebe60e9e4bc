"""Recommends to all queries of a bundle at once, exactly, into files.

  python -m export.batch_recommend --bundle DIR --output OUT --k 100
    [--exclude_seen] [--format tfrecord] [--queries FILE]

OUT gets `part-00000-of-00007.parquet` and so on, in the order of the queries,
with a row per query:

    query_id        string or int64, as in the bundle
    candidate_ids   list of the same, best first, at most k
    scores          list of float32

or the same as one tf.train.Example per query; and `_run.json`, what was asked
for, and whether it is complete. A file appears when it is whole: if the
program ends early, start it again and it goes on with the first that is
missing. Every candidate is scored, whatever indexes the bundle has, and a
query that training did not know is answered as by `Bundle.recommend`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf
from absl import app, flags, logging

from xir_tfrs import indexes
from xir_tfrs.data import errors
from xir_tfrs.programs import main as main_lib
from xir_tfrs.serving import bundle
from xir_tfrs.serving import manifest as manifests

# With the underscore, readers of a directory of Parquet files pass it over.
_RUN = "_run.json"
# Queries encoded and searched at a time; the index makes its own chunks.
_BATCH = 1024
_SECONDS_PER_LINE = 10.0


@dataclasses.dataclass(frozen=True)
class BatchOptions:
  """What to recommend to whom; the flags of this program.

  Attributes:
    bundle: the bundle.
    output: the directory to write.
    k: number of answers; a query with fewer gets a shorter list.
    format: "parquet" or "tfrecord".
    queries: a file with a query id per line; None: all of the bundle.
    exclude_seen: whether to leave out what each query had in training.
    rows_per_shard: queries per file.
    overwrite: whether to replace what another run has written to `output`.
  """

  bundle: str
  output: str
  k: int = 100
  format: str = "parquet"
  queries: str | None = None
  exclude_seen: bool = False
  rows_per_shard: int = 100_000
  overwrite: bool = False


@dataclasses.dataclass(frozen=True)
class Answers:
  """Answers to n queries.

  Attributes:
    query_ids: the n ids.
    num_found: `[n]` how many answers each has, at most k.
    rows: `[sum of num_found]` candidates by row, query after query.
    scores: of the same shape, float32.
  """

  query_ids: Sequence[bundle.Id]
  num_found: np.ndarray
  rows: np.ndarray
  scores: np.ndarray


def batch_recommend(options: BatchOptions) -> dict:
  """Writes the files that are missing.

  Returns:
    What _run.json says.

  Raises:
    DataError: for anything that the user can put right.
  """
  loaded = _load(options.bundle)
  if not 1 <= options.k <= loaded.manifest.max_k:
    raise errors.DataError(
      f"{options.bundle}: --k must be from 1 to {loaded.manifest.max_k}. "
      f"Received: {options.k}"
    )
  query_ids, digest = _queries(options.queries, loaded)
  open_writer = _WRITERS[options.format](loaded)
  output = pathlib.Path(options.output)
  run = _begin(
    output,
    {
      "bundle_sha256": _sha256(loaded.directory / manifests.FILE_NAME),
      "queries_sha256": digest,
      "k": options.k,
      "exclude_seen": options.exclude_seen,
      "format": options.format,
      "rows_per_shard": options.rows_per_shard,
    },
    options.overwrite,
  )
  starts = range(0, len(query_ids), options.rows_per_shard)
  shards = {
    output / f"part-{i:05d}-of-{len(starts):05d}.{options.format}": query_ids[
      start : start + options.rows_per_shard
    ]
    for i, start in enumerate(starts)
  }
  missing = [path for path in shards if not path.exists()]
  progress = _Progress(
    done=sum(len(shards[path]) for path in shards if path not in missing),
    total=len(query_ids),
  )
  recommend = _recommender(loaded, options.k, options.exclude_seen)
  for path in missing:
    began = time.monotonic()
    partial = path.with_name(f".{path.name}.partial")
    with open_writer(partial) as write:
      for start in range(0, len(shards[path]), _BATCH):
        answers = recommend(shards[path][start : start + _BATCH])
        write(answers)
        progress.update(len(answers.query_ids))
    os.replace(partial, path)
    run["seconds"] = round(run["seconds"] + time.monotonic() - began, 3)
    _save(output, run)
  run |= {
    "complete": True,
    "queries": len(query_ids),
    "shards": len(shards),
    "queries_per_second": round(len(query_ids) / max(run["seconds"], 1e-3), 1),
  }
  _save(output, run)
  print(
    f"{output}: {len(query_ids):,} queries in {len(shards)} "
    f"{'file' if len(shards) == 1 else 'files'}, "
    f"{run['seconds']:.1f} s, {run['queries_per_second']:,.0f} queries/s",
    flush=True,
  )
  return run


def _load(directory: str) -> bundle.Bundle:
  manifest = manifests.load(directory)
  # Only its vectors and its query tower are used: without ScaNN if possible.
  exact = "brute_force" in manifest.indexes
  return bundle.Bundle.load(directory, "brute_force" if exact else None)


def _queries(
  path: str | None, loaded: bundle.Bundle
) -> tuple[Sequence[bundle.Id], str]:
  """The query ids, and a digest of them."""
  if path is None:
    ids = loaded.query_ids
    return ids.tolist() if isinstance(ids, np.ndarray) else list(ids), "all"
  try:
    # Not `splitlines`: an id may hold any other line separator of Unicode.
    lines = pathlib.Path(path).read_bytes().decode().split("\n")
  except (OSError, UnicodeDecodeError) as error:
    raise errors.DataError(f"{path}: cannot be read: {error}") from None
  ids = [line.removesuffix("\r") for line in lines]
  if not ids[-1]:
    ids.pop()
  if not ids or "" in ids:
    where = f"line {ids.index('') + 1} is empty" if ids else "is empty"
    raise errors.DataError(f"{path}: {where}; write one query id per line")
  digest = hashlib.sha256("\n".join(ids).encode()).hexdigest()
  if loaded.manifest.id_types.query == "int64":
    ids = [_integer(path, number, x) for number, x in enumerate(ids, start=1)]
  return ids, digest


def _integer(path: str, number: int, text: str) -> int:
  try:
    return int(np.int64(int(text)))
  except (ValueError, OverflowError):
    raise errors.DataError(
      f"{path}: line {number}: query ids of this bundle are integers. "
      f"Received: {text!r}"
    ) from None


def _begin(output: pathlib.Path, asked: dict, overwrite: bool) -> dict:
  """What _run.json says of an earlier run of the same, or of a new one."""
  new = {**asked, "complete": False, "seconds": 0.0}
  if not output.exists() or not any(output.iterdir()):
    output.mkdir(parents=True, exist_ok=True)
    _save(output, new)
    return new
  try:
    run = json.loads((output / _RUN).read_text(encoding="utf-8"))
  except (OSError, ValueError):
    raise errors.DataError(
      f"{output}: exists, and {_RUN} in it cannot be read; choose another "
      "--output"
    ) from None
  if overwrite:
    for path in (*output.glob("part-*-of-*"), *output.glob(".part-*.partial")):
      path.unlink()
    _save(output, new)
    return new
  differing = [
    f"{name} = {run.get(name)} then, {value} now"
    for name, value in asked.items()
    if run.get(name) != value
  ]
  if differing:
    raise errors.DataError(
      f"{output}: was begun with something else ({'; '.join(differing)}); "
      "choose another --output, or start anew with --overwrite"
    )
  return run


def _save(output: pathlib.Path, run: dict) -> None:
  partial = output / f".{_RUN}.partial"
  partial.write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
  os.replace(partial, output / _RUN)


def _sha256(path: pathlib.Path) -> str:
  return hashlib.sha256(path.read_bytes()).hexdigest()


def _recommender(
  loaded: bundle.Bundle, k: int, exclude_seen: bool
) -> Callable[[Sequence[bundle.Id]], Answers]:
  """A function of query ids, for a few thousand at a time."""
  # Over rows: ids are looked up when they are written.
  vectors = tf.constant(loaded.vectors)
  search = tf.function(
    lambda queries, seen: indexes.top_rows(
      vectors, queries, tf.constant(k), seen
    ),
    input_signature=[
      tf.TensorSpec([None, vectors.shape[1]], tf.float32),
      tf.TensorSpec([None, None], tf.int64),
    ],
    autograph=False,
  )
  popular = np.argsort(-loaded.counts, kind="stable")[:k]

  def recommend(query_ids: Sequence[bundle.Id]) -> Answers:
    queries = loaded.read_queries(query_ids)
    none = np.zeros([len(query_ids), 0], np.int64)
    seen = _seen(loaded, queries.rows) if exclude_seen else none
    rows, scores = (x.numpy() for x in search(queries.vectors, seen))
    unknown = np.flatnonzero(queries.popular)
    rows[unknown], scores[unknown] = -1, -np.inf
    rows[unknown, : len(popular)] = popular
    scores[unknown, : len(popular)] = loaded.counts[popular]
    found = rows >= 0
    return Answers(query_ids, found.sum(axis=1), rows[found], scores[found])

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


Write = Callable[[Answers], None]
OpenWriter = Callable[[pathlib.Path], contextlib.AbstractContextManager[Write]]


def _parquet(loaded: bundle.Bundle) -> OpenWriter:
  try:
    import pyarrow as pa
    from pyarrow import parquet
  except ImportError as error:
    raise errors.DataError(
      f"--format parquet needs pyarrow ({error}): pip install "
      "'xir-tfrs[data]', or use --format tfrecord"
    ) from error
  query_type, candidate_type = (
    pa.type_for_alias(getattr(loaded.manifest.id_types, side))
    for side in ("query", "candidate")
  )
  candidate_ids = pa.array(loaded.candidate_ids, candidate_type)
  schema = pa.schema(
    {
      "query_id": query_type,
      "candidate_ids": pa.list_(candidate_type),
      "scores": pa.list_(pa.float32()),
    }
  )

  @contextlib.contextmanager
  def open_writer(path: pathlib.Path) -> Iterator[Write]:
    with parquet.ParquetWriter(path, schema) as writer:

      def write(answers: Answers) -> None:
        splits = pa.array(np.append(0, answers.num_found.cumsum()), pa.int32())
        lists = [
          pa.ListArray.from_arrays(splits, values)
          for values in (
            candidate_ids.take(pa.array(answers.rows)),
            pa.array(answers.scores),
          )
        ]
        queries = pa.array(answers.query_ids, query_type)
        writer.write_table(pa.table([queries, *lists], schema))

      yield write

  return open_writer


def _tfrecord(loaded: bundle.Bundle) -> OpenWriter:
  candidate_ids = np.array([_encoded(x) for x in loaded.candidate_ids], object)

  @contextlib.contextmanager
  def open_writer(path: pathlib.Path) -> Iterator[Write]:
    with tf.io.TFRecordWriter(os.fspath(path)) as writer:

      def write(answers: Answers) -> None:
        start = 0
        for query_id, found in zip(
          answers.query_ids, answers.num_found, strict=True
        ):
          part = slice(start, start := start + found)
          features = {
            "query_id": _feature([_encoded(query_id)]),
            "candidate_ids": _feature(candidate_ids[answers.rows[part]]),
            "scores": tf.train.Feature(
              float_list=tf.train.FloatList(value=answers.scores[part])
            ),
          }
          example = tf.train.Example(
            features=tf.train.Features(feature=features)
          )
          writer.write(example.SerializeToString())

      yield write

  return open_writer


_WRITERS = {"parquet": _parquet, "tfrecord": _tfrecord}


def _encoded(value: bundle.Id) -> bytes | int:
  return value.encode() if isinstance(value, str) else int(value)


def _feature(values: Sequence[bytes | int]) -> tf.train.Feature:
  if len(values) and isinstance(values[0], bytes):
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
  return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


class _Progress:
  """Rate and time left: one line on a terminal, one every 10 s elsewhere."""

  def __init__(self, done: int, total: int):
    self._before = self._done = done
    self._total = total
    self._began = self._last_line = time.monotonic()
    if done:
      print(f"{done:,} of {total:,} queries are done", flush=True)

  def update(self, queries: int) -> None:
    self._done += queries
    now = time.monotonic()
    terminal = sys.stderr.isatty()
    last = self._done == self._total
    if not terminal and now - self._last_line < _SECONDS_PER_LINE:
      return
    self._last_line = now
    rate = (self._done - self._before) / max(now - self._began, 1e-9)
    left = datetime.timedelta(seconds=round((self._total - self._done) / rate))
    text = (
      f"{self._done:,} of {self._total:,} queries, {rate:,.0f} queries/s, "
      f"{left} left"
    )
    start, end = ("\r", "\n" if last else "  ") if terminal else ("", "\n")
    print(f"{start}{text}", end=end, file=sys.stderr, flush=True)


def main(argv: list[str]) -> int:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
  logging.set_verbosity(logging.WARNING)
  options = BatchOptions(
    **{
      field.name: flags.FLAGS[field.name].value
      for field in dataclasses.fields(BatchOptions)
    }
  )
  return main_lib.run_plain(lambda: batch_recommend(options))


def _define_flags() -> None:
  flags.DEFINE_string("bundle", None, "Made by export.export_retriever.")
  flags.DEFINE_string("output", None, "The directory to write.")
  flags.DEFINE_integer("k", 100, "Number of answers.", 1)
  flags.DEFINE_enum("format", "parquet", list(_WRITERS), "Of the files.")
  flags.DEFINE_string(
    "queries", None, "A file with a query id per line; default: all queries."
  )
  flags.DEFINE_boolean(
    "exclude_seen", False, "Leave out the candidates seen in training."
  )
  flags.DEFINE_integer("rows_per_shard", 100_000, "Queries per file.", 1)
  flags.DEFINE_boolean("overwrite", False, "Replace an earlier run's files.")
  flags.mark_flags_as_required(["bundle", "output"])


if __name__ == "__main__":
  _define_flags()
  app.run(main)
