"""Writes answers to many queries as Parquet or TFRecord files.

A row has `query_id`, `candidate_ids`, `scores` and, if the bundle has titles,
`titles`. A writer is created once per bundle and opened for each file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from xir_tfrs.data import errors
from xir_tfrs.serving import bundle


@dataclasses.dataclass(frozen=True)
class Answers:
  """Answers to n queries.

  Attributes:
    query_ids: The n ids.
    num_found: `[n]` number of answers of each, at most k.
    rows: `[sum of num_found]` rows of candidates, query after query.
    scores: `[sum of num_found]` float32 scores.
  """

  query_ids: Sequence[bundle.Id]
  num_found: np.ndarray
  rows: np.ndarray
  scores: np.ndarray


Write = Callable[[Answers], None]
OpenWriter = Callable[[pathlib.Path], contextlib.AbstractContextManager[Write]]


def parquet_writer(loaded: bundle.Bundle) -> OpenWriter:
  """Returns a writer of Parquet files with one row per query."""
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
  by_row = [pa.array(loaded.candidate_ids, candidate_type)]
  fields = {
    "query_id": query_type,
    "candidate_ids": pa.list_(candidate_type),
    "scores": pa.list_(pa.float32()),
  }
  if loaded.titles is not None:
    by_row.append(pa.array(loaded.titles, pa.string()))
    fields["titles"] = pa.list_(pa.string())
  schema = pa.schema(fields)

  @contextlib.contextmanager
  def open_writer(path: pathlib.Path) -> Iterator[Write]:
    with parquet.ParquetWriter(path, schema) as writer:

      def write(answers: Answers) -> None:
        splits = pa.array(np.append(0, answers.num_found.cumsum()), pa.int32())
        ids, *titles = (x.take(pa.array(answers.rows)) for x in by_row)
        lists = [
          pa.ListArray.from_arrays(splits, values)
          for values in (ids, pa.array(answers.scores), *titles)
        ]
        queries = pa.array(answers.query_ids, query_type)
        writer.write_table(pa.table([queries, *lists], schema))

      yield write

  return open_writer


def tfrecord_writer(loaded: bundle.Bundle) -> OpenWriter:
  """Returns a writer of files with one `tf.train.Example` per query."""
  candidate_ids = np.array([_encoded(x) for x in loaded.candidate_ids], object)
  titles = None
  if loaded.titles is not None:
    titles = np.array([_encoded(x) for x in loaded.titles], object)

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
          if titles is not None:
            features["titles"] = _feature(titles[answers.rows[part]])
          example = tf.train.Example(
            features=tf.train.Features(feature=features)
          )
          writer.write(example.SerializeToString())

      yield write

  return open_writer


WRITERS = {"parquet": parquet_writer, "tfrecord": tfrecord_writer}


def _encoded(value: bundle.Id) -> bytes | int:
  return value.encode() if isinstance(value, str) else int(value)


def _feature(values: Sequence[bytes | int]) -> tf.train.Feature:
  if len(values) and isinstance(values[0], bytes):
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
  return tf.train.Feature(int64_list=tf.train.Int64List(value=values))
