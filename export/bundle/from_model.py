"""Makes a bundle from a trained model and its training data."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import sys
import time
from collections.abc import Sequence

import msgspec
import numpy as np
import tensorflow as tf

import xir_tfrs as xir
from export.bundle import encoders, histories, indexing, write
from export.bundle.options import ExportOptions
from xir_tfrs.data import datasets, errors, runs
from xir_tfrs.data import directory as data_lib
from xir_tfrs.serving import features, manifest


@dataclasses.dataclass(frozen=True)
class _Side:
  """The queries, or the candidates, by dense id.

  Attributes:
    ids: `[n]` original ids: objects, UTF-8 bytes; or int64.
    counts: `[n]` int64 training rows.
    table: Table of the ids.
    inputs: Side features of the model's tower.
  """

  ids: np.ndarray
  counts: np.ndarray
  table: xir.indexes.IdTable
  inputs: tuple[features.FeatureInput, ...]


def make_bundle(options: ExportOptions) -> manifest.Manifest:
  """Writes the bundle.

  Raises:
    DataError: The data, the model or the output cannot be used.
  """
  start = time.monotonic()
  with manifest.new_bundle(options.output, options.overwrite) as directory:
    written, query_id = _write(options, directory)
  size = sum(file.bytes for file in written.files.values())
  print(
    f"wrote {options.output}: {size / 1e6:.1f} MB in "
    f"{time.monotonic() - start:.1f} s"
  )
  bundle = {"bundle": options.output}
  ask = errors.command("query", **bundle, query_id=query_id, k=10)
  print(f"Next: {ask} --exclude_seen")
  print(
    f"A page to try it: {errors.command('serve', **bundle)}, and open "
    "http://127.0.0.1:8501/"
  )
  return written


def _write(
  options: ExportOptions, directory: pathlib.Path
) -> tuple[manifest.Manifest, str]:
  """Writes the bundle; returns its manifest and a query id to try."""
  model, config, checkpoint = runs.load_model(options.model_dir)
  data = runs.data_of(config, options.model_dir, options.data)
  checkpoint = os.path.relpath(checkpoint, options.model_dir)
  print(f"restored {checkpoint}")
  queries, candidates = (
    _read_side(options, data, model, side) for side in ("query", "candidate")
  )
  print(
    f"read {len(queries.ids):,} queries, {len(candidates.ids):,} candidates"
  )
  candidate_tower = _tower(
    candidates, model.encode_candidates, model.candidate_tower
  )
  seconds = time.monotonic()
  encoded = encoders.encode_rows(
    candidate_tower, np.arange(len(candidates.ids)), sys.stderr.isatty()
  )
  seconds = time.monotonic() - seconds
  kept = _kept(options, encoded.answerable)
  event_tower, history_length = None, None
  if model.takes_histories:
    history_length = model.query_tower.history_length
    event_tower = _tower(
      candidates, model.candidate_tower.encode, model.candidate_tower
    )
    query_tower = _history_tower(
      data, model, queries, candidates, event_tower, encoded.answerable
    )
  else:
    query_tower = _tower(queries, model.encode_queries, model.query_tower)
  titles = data.titles()
  sample = indexing.sample_queries(queries.counts)
  built, about = indexing.build_indexes(
    options,
    _table_of(candidates, kept),
    encoded.embedding[kept],
    encoders.encode_rows(query_tower, sample).embedding,
  )
  written = write.write_bundle(
    directory,
    write.Contents(
      query_ids=queries.ids,
      candidate_counts=candidates.counts[kept],
      seen=_seen(data, kept),
      query_tower=query_tower,
      candidate_tower=candidate_tower,
      indexes=built,
      about_indexes=about,
      ranker=_ranker(data, model, queries, candidates, encoded.answerable),
      scann_folder=options.scann_folder,
      event_tower=event_tower,
      history_length=history_length,
      unknown_query=options.unknown_query,
      titles=None if titles is None else [x.encode() for x in titles[kept]],
      item_title=data.schema.item_title,
      max_k=options.max_k,
    ),
    about={
      "data": {
        "name": data.schema.name,
        "source": data.schema.source,
        "split": data.schema.split,
        "sha256": data.schema_sha256,
      },
      "checkpoint": checkpoint,
      "training": msgspec.to_builtins(config),
      "num_left_out": int((~kept).sum()),
      "encode_seconds": round(seconds, 3),
    },
  )
  query_id = queries.ids[sample[0]]
  return written, (
    query_id.decode() if isinstance(query_id, bytes) else str(query_id)
  )


def _read_side(
  options: ExportOptions,
  data: data_lib.DataDir,
  model: xir.models.TwoTower,
  side: str,
) -> _Side:
  plural = {"query": "queries", "candidate": "candidates"}[side]
  ids = _typed(data.ids(plural), getattr(options, f"{side}_id_type"), side)
  tower = getattr(model, f"{side}_tower")
  inputs = features.of_schema(
    data.schema.features(plural),
    _inputs_of_histories(model) if side == "query" else (),
  )
  # The tower may have been trained without some of the features.
  used = () if tower.table is None else tower.table.features
  return _Side(
    ids,
    getattr(data, plural).counts,
    _id_table(ids),
    tuple(next(x for x in inputs if x.name == y.name) for y in used),
  )


def _inputs_of_histories(model: xir.models.TwoTower) -> list[str]:
  """Names of the inputs that a query tower of histories has."""
  if not model.takes_histories:
    return []
  takes_times = model.query_tower.encoder.takes_times
  specs = (
    *histories.past_inputs(tf.string, takes_times),
    *histories.further_inputs(1, takes_times),
  )
  return [x.name for x in specs]


def _tower(
  side: _Side,
  encode: encoders.Encode,
  tower: xir.models.Tower | xir.models.HistoryTower,
  further: Sequence[tf.TensorSpec] = (),
) -> encoders.TrainedEncoder:
  return encoders.TrainedEncoder(
    side.table, side.counts, encode, tower.look_up, side.inputs, further
  )


def _history_tower(
  data: data_lib.DataDir,
  model: xir.models.TwoTower,
  queries: _Side,
  candidates: _Side,
  event_tower: encoders.TrainedEncoder,
  answerable: np.ndarray,
) -> histories.HistoryEncoder:
  """Makes the query tower over the training histories of `data`.

  Args:
    data: The data directory.
    model: A model of histories.
    queries: Ids of the queries.
    candidates: Ids of the candidates.
    event_tower: Encodes the candidates in histories.
    answerable: `[num_candidates]` bool, the candidates about which something is
      known; histories may contain these.
  """
  tower = model.query_tower
  rows = np.flatnonzero(answerable)
  vectors = encoders.encode_rows(event_tower, rows).embedding
  takes_times = tower.encoder.takes_times
  row_splits, stored, *times = histories.of_training(
    data.rows("train", in_order=True),
    len(queries.ids),
    tower.history_length,
    ["candidate_id", *["timestamp"] * takes_times],
  )
  event_of = (np.cumsum(answerable) - 1).astype(np.int32)
  encode = histories.with_stored(
    model.encode_queries, row_splits, event_of[stored], *times
  )
  further = histories.further_inputs(vectors.shape[1], takes_times)
  return histories.HistoryEncoder(
    _tower(queries, encode, tower, further),
    _table_of(candidates, answerable),
    vectors,
    takes_times,
  )


def _ranker(
  data: data_lib.DataDir,
  model: xir.models.TwoTower,
  queries: _Side,
  candidates: _Side,
  answerable: np.ndarray,
) -> encoders.Ranker | None:
  """Makes the model's ranker, if any; arguments as for `_history_tower`."""
  if model.ranker is None:
    return None
  rank = model.rerank_scores
  if model.ranker.takes_histories:
    rank = histories.ranks_with_stored(
      rank,
      queries.counts > 0,
      answerable,
      *histories.of_training(
        data.rows("train", in_order=True),
        len(queries.ids),
        model.query_tower.history_length,
      ),
    )
  return encoders.Ranker(
    queries.table, candidates.table, rank, model.ranker.takes_histories
  )


def _kept(options: ExportOptions, answerable: np.ndarray) -> np.ndarray:
  """`[n]` bool, the candidates to keep in the indexes."""
  unknown = int((~answerable).sum())
  if not unknown:
    return answerable
  keep = options.unknown_candidates == "keep"
  print(
    f"{unknown:,} of {len(answerable):,} candidates have neither training rows "
    "nor side features: "
    + (
      "they are kept in the index"
      if keep
      else "they are left out (--unknown_candidates keep keeps them)"
    )
  )
  if unknown == len(answerable) and not keep:
    raise errors.DataError(
      "no candidate has training rows or side features, so there is nothing "
      "to recommend; give the --data the model was trained with",
      path=options.data or options.model_dir,
    )
  return np.ones_like(answerable) if keep else answerable


def _seen(
  data: data_lib.DataDir, kept: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Distinct training candidates of each query.

  Args:
    data: The data directory.
    kept: `[num_candidates]` bool, the candidates in the indexes.

  Returns:
    row_splits `[num_queries + 1]` int64 and rows of the indexes `[pairs]`
    int32: those of query q are `rows[row_splits[q]:row_splits[q + 1]]`,
    ascending.
  """
  train = data.rows("train")
  candidates = train["candidate_id"].astype(np.int64)
  listed = kept[candidates]
  row_of = np.cumsum(kept) - 1
  seen = datasets.candidates_by_query(
    {
      "query_id": train["query_id"][listed],
      "candidate_id": row_of[candidates[listed]].astype(np.int32),
    },
    data.schema.num_queries,
  )
  return seen.row_splits.numpy(), seen.values.numpy()


def _typed(ids: np.ndarray, kind: str, side: str) -> np.ndarray:
  """The ids as UTF-8 bytes or as int64."""
  if kind == "string":
    return ids
  numbers = np.zeros(len(ids), np.int64)
  for row, text in enumerate(ids):
    try:
      numbers[row] = int(text)
      if str(numbers[row]).encode() == text:
        continue
    except (ValueError, OverflowError):
      pass
    raise errors.DataError(
      f"--{side}_id_type int64: the {side} id {text.decode()!r} (row {row}) "
      "is not a 64-bit integer in plain digits; export with string ids"
    )
  return numbers


def _table_of(side: _Side, kept: np.ndarray) -> xir.indexes.IdTable:
  """The table of the ids in `kept`, `[n]` bool."""
  if kept.all():
    return side.table
  return _id_table(side.ids[kept])


def _id_table(ids: np.ndarray) -> xir.indexes.IdTable:
  try:
    return xir.indexes.IdTable(ids)
  except ValueError as error:
    raise errors.DataError(f"ids cannot be exported: {error}") from error
