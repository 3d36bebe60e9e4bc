"""Exports a trained retriever as a bundle that answers top-k queries.

  python -m export.export_retriever --data DIR --model_dir DIR --output BUNDLE

Restores the best checkpoint (or the last, if there is none), encodes every
candidate, builds the indexes, tunes ScaNN to a recall and measures it against
exact search, and writes a directory of SavedModels with original ids; a
model's ranker comes along. `export.bundle` has the layout; `python -m
export.query` asks it.
"""

from __future__ import annotations

import dataclasses
import shlex
import time
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from absl import app, flags, logging

import xir_tfrs as xir
from export.bundle import data, trained, write
from export.bundle import indexing as build
from export.bundle import signatures as saved_models
from xir_tfrs.data import errors
from xir_tfrs.programs import main as main_lib
from xir_tfrs.serving import bundle, features
from xir_tfrs.serving import manifest as manifests

_ID_TYPES = ("string", "int64")


@dataclasses.dataclass(frozen=True)
class ExportOptions(build.IndexOptions):
  """What to export; the flags of this program.

  Attributes:
    data: directory made by pipelines.prepare.
    model_dir: directory made by pipelines.train.
    output: the bundle to write.
    overwrite: whether a bundle at `output` may be replaced.
    query_id_type, candidate_id_type: "string" or "int64".
    unknown_query: "popularity" or "tower", what queries get that training did
      not know; None: popularity if the query tower has no side features.
    scann_folder: whether to write ScaNN's own files beside its SavedModel.
    max_k: most answers that may be asked for.
  """

  data: str = dataclasses.field(kw_only=True)
  model_dir: str = dataclasses.field(kw_only=True)
  output: str = dataclasses.field(kw_only=True)
  overwrite: bool = False
  query_id_type: str = "string"
  candidate_id_type: str = "string"
  unknown_query: str | None = None
  scann_folder: bool = True
  max_k: int = write.MAX_K


def export_retriever(options: ExportOptions) -> dict:
  """Writes the bundle.

  Returns:
    Its manifest.

  Raises:
    DataError: for anything that the user can put right.
  """
  start = time.monotonic()
  manifests.check_output(options.output, options.overwrite)
  schema = data.read_schema(options.data)
  query_ids, query_counts = data.read_table(options.data, schema, "queries")
  candidate_ids, counts = data.read_table(options.data, schema, "candidates")
  seen = data.read_seen(options.data, schema)
  build.report(
    f"read {len(query_ids):,} queries, {len(candidate_ids):,} candidates"
  )
  model, config, checkpoint = trained.load_model(options.model_dir)
  trained.check_fit(config, schema, options.model_dir, options.data)
  build.report(f"restored {checkpoint}")
  query_ids = _typed(query_ids, options.query_id_type, "query")
  candidate_ids = _typed(candidate_ids, options.candidate_id_type, "candidate")
  query_table, candidate_table = map(_id_table, (query_ids, candidate_ids))
  seconds = time.monotonic()
  vectors = trained.encode_all(
    model.encode_candidates, np.arange(len(candidate_ids))
  )
  seconds = time.monotonic() - seconds
  sample = build.sample_queries(query_counts)
  queries = trained.encode_all(model.encode_queries, sample, show=False)
  built, about = build.build_indexes(options, candidate_table, vectors, queries)
  popular = {None: None, "popularity": True, "tower": False}
  manifest = write.write_bundle(
    options.output,
    write.Contents(
      query_ids=query_ids,
      candidate_counts=counts,
      seen=seen,
      query_tower=_encoder(
        query_table, model.encode_queries, model.query_tower, schema, "query"
      ),
      candidate_tower=_encoder(
        candidate_table,
        model.encode_candidates,
        model.candidate_tower,
        schema,
        "candidate",
      ),
      indexes=built,
      ranker=None
      if model.ranker is None
      else saved_models.Ranker(
        query_table, candidate_table, model.rerank_scores
      ),
      scann_folder=options.scann_folder,
      popular_if_unknown=popular[options.unknown_query],
      max_k=options.max_k,
    ),
    about={
      "data": {k: schema.get(k) for k in ("name", "source", "split", "sha256")},
      "checkpoint": checkpoint,
      "training": config,
      "indexes": about,
      "encode_seconds": round(seconds, 3),
    },
    overwrite=options.overwrite,
  )
  size = sum(file["bytes"] for file in manifest["files"].values())
  build.report(
    f"wrote {options.output}: {size / 1e6:.1f} MB in "
    f"{time.monotonic() - start:.1f} s"
  )
  first = query_ids[0]
  first = first.decode() if isinstance(first, bytes) else str(first)
  build.report(
    f"Next: python -m export.query --bundle {options.output} --query_id "
    f"{shlex.quote(first)} --k 10 --exclude_seen"
  )
  return manifest


def _typed(
  ids: np.ndarray, kind: str, side: str
) -> Sequence[bytes] | np.ndarray:
  """The ids as they are, or as int64."""
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
      f"--{side}_id_type int64: the {side} id {text.decode()!r} (row {row}) is "
      "no integer of 64 bits in plain digits; export with string ids"
    )
  return numbers


def _id_table(ids: Sequence[bytes] | np.ndarray) -> xir.indexes.IdTable:
  if not isinstance(ids, np.ndarray) or ids.dtype != np.int64:
    ids = tf.constant(list(ids), tf.string)
  try:
    return xir.indexes.IdTable(ids)
  except ValueError as error:
    raise errors.DataError(f"ids cannot be exported: {error}") from error


def _encoder(
  ids: xir.indexes.IdTable,
  encode: saved_models.Encode,
  tower: tf.keras.Model,
  schema: dict,
  side: str,
) -> saved_models.TrainedEncoder:
  inputs = features.of_schema(schema.get(f"{side}_features", ()))
  names = [x.name for x in tower.features]
  # A tower may have been trained without some, or all, of them.
  inputs = [next(x for x in inputs if x.name == name) for name in names]
  return saved_models.TrainedEncoder(ids, encode, tower.look_up, inputs)


def _define_flags() -> None:
  flags.DEFINE_string("data", None, "Directory made by pipelines.prepare.")
  flags.DEFINE_string("model_dir", None, "Directory made by pipelines.train.")
  flags.DEFINE_string("output", None, "The bundle to write.")
  flags.DEFINE_enum(
    "index", "both", ["both", *bundle.INDEXES], "Which indexes to build."
  )
  flags.DEFINE_boolean("overwrite", False, "Replace a bundle at --output.")
  flags.DEFINE_float(
    "target_recall",
    0.99,
    "Recall@10 against exact search that ScaNN's settings are tuned to.",
    0.0,
    1.0,
  )
  flags.DEFINE_float(
    "min_recall",
    None,
    "Fail if recall@10 of ScaNN is below; default: --target_recall.",
    0.0,
    1.0,
  )
  for side in ("query", "candidate"):
    flags.DEFINE_enum(
      f"{side}_id_type", "string", _ID_TYPES, f"Type of {side} ids."
    )
  flags.DEFINE_enum(
    "unknown_query",
    None,
    bundle.UNKNOWN_QUERY,
    "What queries get that training did not know; default: popularity if the "
    "query tower has no side features.",
  )
  flags.DEFINE_boolean(
    "scann_folder", True, "Write ScaNN's own files beside its SavedModel."
  )
  flags.DEFINE_integer(
    "max_k", write.MAX_K, "Most answers that may be asked for.", 1
  )
  for name in _SCANN_FLAGS:
    flags.DEFINE_integer(
      name, None, "See xir_tfrs.indexes.ScannIndex; chosen by corpus size.", 0
    )
  flags.mark_flags_as_required(["data", "model_dir", "output"])


_SCANN_FLAGS = (
  "num_leaves",
  "num_leaves_to_search",
  "num_reorder",
  "exact_below",
)


def main(argv: list[str]) -> int:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
  values = flags.FLAGS
  scann = {name: values[name].value for name in _SCANN_FLAGS}
  options = ExportOptions(
    data=values.data,
    model_dir=values.model_dir,
    output=values.output,
    indexes=bundle.INDEXES if values.index == "both" else (values.index,),
    overwrite=values.overwrite,
    target_recall=values.target_recall,
    min_recall=values.min_recall,
    query_id_type=values.query_id_type,
    candidate_id_type=values.candidate_id_type,
    unknown_query=values.unknown_query,
    scann_folder=values.scann_folder,
    max_k=values.max_k,
    scann={name: value for name, value in scann.items() if value is not None},
  )
  logging.set_verbosity(logging.WARNING)  # Or each SavedModel says a page.
  return main_lib.run_plain(lambda: export_retriever(options))


if __name__ == "__main__":
  _define_flags()
  app.run(main)
