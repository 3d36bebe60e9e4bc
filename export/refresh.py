"""Adds, changes and removes items of a bundle, without training.

  python -m export.refresh --bundle DIR [--items FILE] [--remove FILE]
    [--output DIR]

The bundle's own candidate tower encodes the items of a file (`export.items`
says which kinds): new ids are added, known ones get another vector; what the
file does not give of an item is as it was in training, if it was there. The ids
of --remove, one per line, go. Towers and ranker stay byte for byte; indexes and
lists are made anew. The new bundle is verified in a process of its own and then
takes the place of the old one in one step; if anything fails, the old one
stays.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
from absl import app, flags, logging

from export import verify
from export.bundle import encoders, indexing, new_items, write
from export.bundle import options as export_options
from xir_tfrs import indexes
from xir_tfrs.data import errors
from xir_tfrs.programs import main as main_lib
from xir_tfrs.serving import bundle, features
from xir_tfrs.serving import manifest as manifests

_BATCH = 8192
_ROOT = pathlib.Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class RefreshOptions:
  """What to change; the flags of this program.

  Attributes:
    bundle: the bundle to start from.
    items: file of new and changed items, or None.
    remove: file of ids to remove, or None.
    output: where the new bundle goes; None: in place of the old one.
    overwrite: whether another bundle at `output` may be replaced.
    id_column: column of ids in `items`; None: see `new_items.read_items`.
    separator: between the values of a sequence in text.
    target_recall: recall@10 that ScaNN is tuned to; None: that of the bundle.
    min_recall: recall@10 below which there is an error; None: the target.
  """

  bundle: str
  items: str | None = None
  remove: str | None = None
  output: str | None = None
  overwrite: bool = False
  id_column: str | None = None
  separator: str = " "
  target_recall: float | None = None
  min_recall: float | None = None


@dataclasses.dataclass(frozen=True)
class _Corpus:
  """The candidates of a bundle, n of them, and what goes with their rows.

  Attributes:
    ids: n original ids.
    vectors: `[n, dim]` float32.
    counts: `[n]` int64.
    seen: row splits by query, and rows `[pairs]` int32.
  """

  ids: Sequence[str] | Sequence[int]
  vectors: np.ndarray
  counts: np.ndarray
  seen: tuple[np.ndarray, np.ndarray]


def refresh(options: RefreshOptions) -> dict:
  """Writes the new bundle.

  Returns:
    What was changed, as it stands in the manifest under `refreshes`.

  Raises:
    DataError: for anything that the user can put right.
  """
  start = time.monotonic()
  old, written = _load(options)
  output = options.output or old.directory
  in_place = pathlib.Path(output).resolve() == old.directory
  with manifests.new_bundle(output, options.overwrite or in_place) as directory:
    about = _write(options, directory, old, written)
  _report(f"wrote {output}: verified, in {time.monotonic() - start:.1f} s")
  return about


def _write(
  options: RefreshOptions,
  directory: pathlib.Path,
  old: bundle.Bundle,
  written: bytes,
) -> dict:
  """Writes and verifies the new bundle; what was changed."""
  start = time.monotonic()
  tower = encoders.LoadedEncoder(
    old.directory / "candidate_tower", "candidate", old.candidate_features
  )
  corpus = _old_corpus(old)
  new_ids, new_vectors, about = _encode_items(options, old, tower)
  gone = _read_removals(options, new_ids, old.manifest)
  corpus, changes = _change(corpus, new_ids, new_vectors, gone)
  about = {**changes, **about}
  _report_changes(about)
  built, described = _build(options, old, corpus)
  about["recall"] = described["scann"].recall if "scann" in described else None
  about["seconds"] = round(time.monotonic() - start, 3)

  history = [*old.manifest.refreshes, about]
  kept = ("data", "checkpoint", "training", "encode_seconds", "num_left_out")
  write.write_bundle(
    directory,
    _contents(old, corpus, tower, built, described),
    about={
      **{name: getattr(old.manifest, name) for name in kept},
      "refreshes": history,
    },
  )
  _verify(directory)
  # Or the changes of another refresh would be lost, or parts mixed.
  if _manifest_bytes(old.directory) != written:
    raise errors.DataError(
      f"{old.directory}: was replaced while this ran; start again"
    )
  return about


def _load(options: RefreshOptions) -> tuple[bundle.Bundle, bytes]:
  """The old bundle, whole and with its own towers; its manifest as read."""
  if not options.items and not options.remove:
    raise errors.DataError("nothing to change; give --items or --remove")
  directory = pathlib.Path(options.bundle).resolve()
  names = manifests.load(directory).indexes
  # Before the rest is read: what is replaced from here on is noticed.
  written = _manifest_bytes(directory)
  # Plain TensorFlow will do, for its vectors and query tower.
  index = "brute_force" if "brute_force" in names else None
  loaded = bundle.Bundle.load(directory, index)
  verify.check_towers(directory, loaded.manifest)
  return loaded, written


def _manifest_bytes(directory: pathlib.Path) -> bytes:
  return (directory / manifests.FILE_NAME).read_bytes()


def _old_corpus(old: bundle.Bundle) -> _Corpus:
  ids = old.candidate_ids
  return _Corpus(
    ids=ids.tolist() if isinstance(ids, np.ndarray) else list(ids),
    vectors=old.vectors,
    counts=np.array(old.counts),
    seen=tuple(map(np.array, old.seen)),
  )


def _encode_items(
  options: RefreshOptions, old: bundle.Bundle, tower: encoders.Encoder
) -> tuple[list, np.ndarray, dict]:
  """Ids of --items, their vectors `[n, dim]`, and what was found in it."""
  if not options.items:
    return [], np.empty([0, old.manifest.dim], np.float32), {}
  found = new_items.read_items(
    options.items,
    old.manifest.candidate_features,
    options.id_column,
    old.manifest.id_types.candidate,
    options.separator,
  )
  start = time.monotonic()
  vectors = encode(tower, found.ids, found.columns)
  return (
    found.ids,
    vectors,
    {
      "items": pathlib.Path(options.items).name,
      "unknown_tokens": count_unknown(old.candidate_features, found.columns),
      "not_given": found.missing,
      "ignored": found.ignored,
      "encode_seconds": round(time.monotonic() - start, 3),
    },
  )


def encode(
  tower: encoders.Encoder,
  ids: Sequence[str] | Sequence[int],
  columns: Mapping[str, new_items.Column],
) -> np.ndarray:
  """Vectors `[n, dim]` of candidates and their features, as in `Items`.

  Args:
    tower: the candidate tower.
    ids: n original ids; the tower need not know them.
    columns: every feature of the tower by name.
  """
  parts = []
  for low in range(0, len(ids), _BATCH):
    part = slice(low, low + _BATCH)
    given = {name: column[part] for name, column in columns.items()}
    raw = features.to_tensors(tower.inputs, given, len(ids[part]))
    parts.append(
      tower(
        tf.constant(ids[part], tower.id_dtype),
        [raw[x.input] for x in tower.inputs],
      ).embedding.numpy()
    )
  return np.concatenate(parts)


def count_unknown(
  inputs: Sequence[features.FeatureInput],
  columns: Mapping[str, new_items.Column],
) -> dict[str, dict[str, int]]:
  """Feature -> its tokens that are out of the vocabulary, and all of them."""
  counts = {}
  for feature in inputs:
    if feature.kind not in ("token", "token_seq"):
      continue
    tokens = collections.Counter()
    for value in columns[feature.name]:
      tokens.update([value] if feature.kind == "token" else value)
    del tokens[""]
    known = set(feature.vocabulary)
    counts[feature.name] = {
      "unknown": sum(n for token, n in tokens.items() if token not in known),
      "tokens": tokens.total(),
    }
  return counts


def _read_removals(
  options: RefreshOptions, new_ids: Sequence, manifest: manifests.Manifest
) -> set:
  if not options.remove:
    return set()
  gone = set(new_items.read_ids(options.remove, manifest.id_types.candidate))
  both = sorted(gone & set(new_ids))
  if both:
    raise errors.DataError(
      f"{options.remove}: {both[0]!r} is in {options.items} as well; either "
      "remove it, or add it"
    )
  return gone


def _change(
  old: _Corpus, new_ids: Sequence, new_vectors: np.ndarray, gone: set
) -> tuple[_Corpus, dict]:
  """The new candidates, and how many of them were changed in which way.

  Rows that stay keep their order; new ones follow, with no training counts.
  """
  row_of = {candidate: row for row, candidate in enumerate(old.ids)}
  vectors = old.vectors.copy()
  added = []
  for place, candidate in enumerate(new_ids):
    if candidate in row_of:
      vectors[row_of[candidate]] = new_vectors[place]
    else:
      added.append(place)
  keep = np.array([candidate not in gone for candidate in old.ids])
  removed = int((~keep).sum())
  if not len(new_ids) and not removed:
    raise errors.DataError(
      f"nothing to change: none of the {len(gone)} ids to remove is there"
    )
  if removed == len(old.ids) and not added:
    raise errors.DataError("all candidates would be removed; keep some")
  splits, rows = old.seen
  pairs = np.append(0, np.cumsum(keep[rows]))
  new_row = (np.cumsum(keep) - 1).astype(np.int32)
  corpus = _Corpus(
    ids=[x for x in old.ids if x not in gone] + [new_ids[i] for i in added],
    vectors=np.concatenate([vectors[keep], new_vectors[added]]),
    counts=np.append(old.counts[keep], np.zeros(len(added), np.int64)),
    seen=(pairs[splits], new_row[rows[keep[rows]]]),
  )
  return corpus, {
    "added": len(added),
    "changed": len(new_ids) - len(added),
    "removed": removed,
    "removed_unknown": len(gone) - removed,
  }


def _build(
  options: RefreshOptions, old: bundle.Bundle, corpus: _Corpus
) -> tuple[dict[str, indexes.RetrievalIndex], dict[str, manifests.Index]]:
  """The indexes that the old bundle has, over the new candidates."""
  scann = old.manifest.indexes.get("scann")
  target = options.target_recall
  if target is None and scann:
    target = scann.target_recall
  if target is None:
    target = export_options.IndexOptions.target_recall
  rows = indexing.sample_queries(np.diff(old.seen[0])).tolist()
  sample = old.encode_queries([old.query_ids[row] for row in rows])
  dtype = old.manifest.id_types.candidate
  return indexing.build_indexes(
    export_options.IndexOptions(
      indexes=tuple(old.manifest.indexes),
      target_recall=target,
      min_recall=options.min_recall,
      # Where there was a searcher, there is one again.
      exact_below=0 if scann and scann.kind == "scann" else None,
    ),
    indexes.IdTable(tf.constant(corpus.ids, dtype)),
    corpus.vectors,
    sample,
  )


def _contents(
  old: bundle.Bundle,
  corpus: _Corpus,
  candidate_tower: encoders.Encoder,
  built: dict[str, indexes.RetrievalIndex],
  described: dict[str, manifests.Index],
) -> write.Contents:
  query_ids = old.query_ids
  if not isinstance(query_ids, np.ndarray):
    query_ids = [query_id.encode() for query_id in query_ids]
  parts = ("query_tower", "candidate_tower", "ranker")
  return write.Contents(
    query_ids=query_ids,
    candidate_counts=corpus.counts,
    seen=corpus.seen,
    query_tower=encoders.LoadedEncoder(
      old.directory / "query_tower", "query", old.query_features
    ),
    candidate_tower=candidate_tower,
    indexes=built,
    about_indexes=described,
    copied={
      name: old.directory / name
      for name in parts
      if name in old.manifest.signatures
    },
    scann_folder=(old.directory / bundle.FOLDER).is_dir(),
    unknown_query=old.manifest.unknown_query,
    max_k=old.manifest.max_k,
  )


def _verify(directory: pathlib.Path) -> None:
  """Raises `DataError` if the bundle fails `export.verify`."""
  start = time.monotonic()
  command = [sys.executable, "-m", "export.verify", "--json", "--bundle"]
  done = subprocess.run(
    [*command, str(directory)],
    cwd=_ROOT,
    # This process has the memory of the GPU.
    env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    capture_output=True,
    encoding="utf-8",
    errors="replace",
  )
  try:
    results = json.loads(done.stdout.splitlines()[-1])
  except (ValueError, IndexError):
    last = "".join(done.stderr.splitlines()[-1:])
    raise errors.DataError(
      f"the new bundle could not be verified, so the old one stays (exit "
      f"status {done.returncode}: {last})"
    ) from None
  failed = [x for x in results if not x["ok"]]
  if failed:
    raise errors.DataError(
      "the new bundle failed its verification, so the old one stays: "
      + "; ".join(f"{x['name']}: {x['detail']}" for x in failed)
    )
  _report(
    f"verified: {len(results)} checks in {time.monotonic() - start:.1f} s"
  )


def _report(line: str) -> None:
  print(line, flush=True)


def _report_changes(about: Mapping) -> None:
  _report(
    f"added {about['added']:,}, changed {about['changed']:,}, removed "
    f"{about['removed']:,} candidates"
  )
  if about["removed_unknown"]:
    _report(f"{about['removed_unknown']:,} ids to remove were not there")
  for name, tokens in about.get("unknown_tokens", {}).items():
    if tokens["unknown"]:
      _report(
        f"{name}: {tokens['unknown']:,} of {tokens['tokens']:,} tokens are "
        "not in the vocabulary"
      )
  if about.get("not_given"):
    _report(f"not given: {', '.join(about['not_given'])}")
  if about.get("ignored"):
    _report(f"no features, ignored: {', '.join(about['ignored'])}")


def _define_flags() -> None:
  flags.DEFINE_string("bundle", None, "The bundle to change.")
  flags.DEFINE_string(
    "items",
    None,
    "New and changed items: .item, .csv, .tsv, .parquet, .pq or .tfrecord.",
  )
  flags.DEFINE_string("remove", None, "Text file of ids to remove, one a line.")
  flags.DEFINE_string(
    "output", None, "The new bundle; default: in place of the old one."
  )
  flags.DEFINE_boolean(
    "overwrite", False, "Replace another bundle at --output."
  )
  flags.DEFINE_string(
    "id_column",
    None,
    "Column of ids in --items; default: the first :token column of .item, "
    "else candidate_id, item_id or id.",
  )
  flags.DEFINE_string(
    "separator", " ", "Between the values of a sequence in text."
  )
  flags.DEFINE_float(
    "target_recall",
    None,
    "Recall@10 that ScaNN is tuned to; default: that of the bundle.",
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
  flags.mark_flag_as_required("bundle")


def main(argv: list[str]) -> int:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
  options = RefreshOptions(
    **{
      field.name: flags.FLAGS[field.name].value
      for field in dataclasses.fields(RefreshOptions)
    }
  )
  logging.set_verbosity(logging.WARNING)  # Or each SavedModel says a page.
  return main_lib.run_plain(lambda: refresh(options))


if __name__ == "__main__":
  _define_flags()
  app.run(main)
