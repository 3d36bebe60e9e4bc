"""Exports a trained retriever as a bundle that answers top-k queries.

  python -m export.export_retriever --data DIR --model_dir DIR --output BUNDLE

Restores the best checkpoint (or the last, if there is none), encodes every
candidate, builds the indexes, measures ScaNN against exact search, and writes
a directory of SavedModels with original string ids; a model's ranker comes
along. `export.bundle` has the layout; `python -m export.query` asks it.
"""

from __future__ import annotations

import dataclasses
import shlex
import time

import numpy as np
from absl import app, flags, logging

import xir_tfrs as xir
from export import bundle, data, errors, manifests, saved_models, trained

_RECALL_QUERIES = 1000
_RECALL_KS = (10, 100)


@dataclasses.dataclass(frozen=True)
class ExportOptions:
  """What to export; the flags of this program.

  Attributes:
    data: directory made by pipelines.prepare.
    model_dir: directory made by pipelines.train.
    output: the bundle to write.
    indexes: which of `bundle.INDEXES` to build.
    overwrite: whether a bundle at `output` may be replaced.
    min_recall: recall@10 of ScaNN below which the export fails.
    scann: arguments of `ScannIndex` that replace those chosen by corpus size.
  """

  data: str
  model_dir: str
  output: str
  indexes: tuple[str, ...] = bundle.INDEXES
  overwrite: bool = False
  min_recall: float = 0.9
  scann: dict[str, int] = dataclasses.field(default_factory=dict)


def export_retriever(options: ExportOptions) -> dict:
  """Writes the bundle.

  Returns:
    Its manifest.

  Raises:
    export.errors.ExportError: for anything that the user can put right.
  """
  start = time.monotonic()
  manifests.check_output(options.output, options.overwrite)
  schema = data.read_schema(options.data)
  query_ids, query_counts = data.read_table(options.data, schema, "queries")
  candidate_ids, counts = data.read_table(options.data, schema, "candidates")
  seen = data.read_seen(options.data, schema)
  _report(f"read {len(query_ids):,} queries, {len(candidate_ids):,} candidates")
  model, config, checkpoint = trained.load_model(options.model_dir)
  trained.check_fit(config, schema, options.model_dir, options.data)
  _report(f"restored {checkpoint}")
  encode_seconds = time.monotonic()
  vectors = trained.encode_all(
    model.encode_candidates, np.arange(len(candidate_ids))
  )
  encode_seconds = time.monotonic() - encode_seconds
  sample = _sample_queries(query_counts)
  queries = trained.encode_all(model.encode_queries, sample, show=False)
  built, about = _build_indexes(options, candidate_ids, vectors, queries)
  manifest = bundle.write_bundle(
    options.output,
    bundle.Contents(
      query_ids=query_ids,
      candidate_ids=candidate_ids,
      candidate_counts=counts,
      seen=seen,
      query_tower=saved_models.Encoder(query_ids, model.encode_queries),
      candidate_tower=saved_models.Encoder(
        candidate_ids, model.encode_candidates
      ),
      indexes=built,
      ranker=None
      if model.ranker is None
      else saved_models.Ranker(query_ids, candidate_ids, model.rerank_scores),
    ),
    about={
      "data": {k: schema.get(k) for k in ("name", "source", "split", "sha256")},
      "checkpoint": checkpoint,
      "training": config,
      "indexes": about,
      "encode_seconds": round(encode_seconds, 3),
    },
    overwrite=options.overwrite,
  )
  size = sum(file["bytes"] for file in manifest["files"].values())
  _report(
    f"wrote {options.output}: {size / 1e6:.1f} MB in "
    f"{time.monotonic() - start:.1f} s"
  )
  _report(
    f"Next: python -m export.query --bundle {options.output} --query_id "
    f"{shlex.quote(query_ids[0].decode())} --k 10 --exclude_seen"
  )
  return manifest


def _sample_queries(counts: np.ndarray) -> np.ndarray:
  """Dense ids of up to 1,000 queries, those that were trained if possible."""
  ids = np.flatnonzero(counts > 0)
  if not ids.size:
    ids = np.arange(len(counts))
  size = min(_RECALL_QUERIES, ids.size)
  return np.random.default_rng(0).choice(ids, size, replace=False)


def _build_indexes(
  options: ExportOptions,
  candidate_ids: np.ndarray,
  vectors: np.ndarray,
  queries: np.ndarray,
) -> tuple[dict[str, xir.indexes.RetrievalIndex], dict[str, dict]]:
  """The indexes asked for, and what the manifest says of each."""
  built, about = {}, {}
  ids = candidate_ids.tolist()
  try:
    exact = xir.indexes.BruteForceIndex().index(ids, vectors)
    if "brute_force" in options.indexes:
      built["brute_force"] = exact
      about["brute_force"] = {"kind": "exact"}
    if "scann" in options.indexes:
      start = time.monotonic()
      scann = xir.indexes.ScannIndex(**options.scann).index(ids, vectors)
      seconds = time.monotonic() - start
      built["scann"] = scann
      about["scann"] = {
        **_describe_scann(scann, exact, queries, options.min_recall),
        "build_seconds": round(seconds, 3),
      }
  except ImportError as error:
    raise errors.ExportError(f"{error} (--index brute_force)") from error
  except ValueError as error:
    raise errors.ExportError(
      f"{options.model_dir}: cannot be indexed. {error}"
    ) from error
  return built, about


def _describe_scann(
  index: xir.indexes.ScannIndex,
  exact: xir.indexes.BruteForceIndex,
  queries: np.ndarray,
  min_recall: float,
) -> dict:
  """Settings and recall; raises if the recall is too low."""
  recall = {
    str(k): round(xir.indexes.recall(index, exact, queries, k), 5)
    for k in _RECALL_KS
  }
  shown = ", ".join(f"recall@{k} {value:.4f}" for k, value in recall.items())
  if index.settings is None:
    _report(f"scann: exact search, as the corpus is small ({shown})")
    return {"kind": "exact", "recall": recall, "recall_queries": len(queries)}
  _report(f"scann: {shown} against exact search, {len(queries)} queries")
  if recall["10"] < min_recall:
    raise errors.ExportError(
      f"recall@10 of ScaNN is {recall['10']:.4f}, below --min_recall "
      f"{min_recall}; search more with --num_leaves_to_search (now "
      f"{index.settings.num_leaves_to_search} of {index.settings.num_leaves}) "
      f"or --num_reorder (now {index.settings.num_reorder}), accept it with a "
      "lower --min_recall, or use --index brute_force"
    )
  return {
    "kind": "scann",
    "settings": dataclasses.asdict(index.settings),
    "recall": recall,
    "recall_queries": len(queries),
  }


def _report(line: str) -> None:
  print(line, flush=True)


def _define_flags() -> None:
  flags.DEFINE_string("data", None, "Directory made by pipelines.prepare.")
  flags.DEFINE_string("model_dir", None, "Directory made by pipelines.train.")
  flags.DEFINE_string("output", None, "The bundle to write.")
  flags.DEFINE_enum(
    "index", "both", ["both", *bundle.INDEXES], "Which indexes to build."
  )
  flags.DEFINE_boolean("overwrite", False, "Replace a bundle at --output.")
  flags.DEFINE_float(
    "min_recall", 0.9, "Fail if recall@10 of ScaNN is below.", 0.0, 1.0
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
    min_recall=values.min_recall,
    scann={name: value for name, value in scann.items() if value is not None},
  )
  logging.set_verbosity(logging.WARNING)  # Or each SavedModel says a page.
  return errors.run(lambda: export_retriever(options))


if __name__ == "__main__":
  _define_flags()
  app.run(main)
