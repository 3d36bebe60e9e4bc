"""Does the work of `export.refresh`: a new bundle with the same towers."""

from __future__ import annotations

import collections
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from export.bundle import corpus as corpora
from export.bundle import (
  encoders,
  histories,
  indexing,
  new_items,
  verifying,
  write,
)
from export.bundle import options as options_lib
from xir_tfrs import indexes
from xir_tfrs.data import errors
from xir_tfrs.programs import progress
from xir_tfrs.serving import bundle, features
from xir_tfrs.serving import manifest as manifests

_BATCH = 8192
_ROOT = pathlib.Path(__file__).resolve().parents[2]
# The system closes the pipe at stdin when the process at the other end ends,
# even if it is killed.
_VERIFY = """
import os, runpy, threading
def end():
  os.read(0, 1)
  os._exit(1)
threading.Thread(target=end, daemon=True).start()
runpy.run_module("export.verify", run_name="__main__", alter_sys=True)
"""


def refresh(options: options_lib.RefreshOptions) -> dict:
  """Writes the new bundle.

  Returns:
    The changes, as in `refreshes` of the manifest.

  Raises:
    DataError: The bundle, the items or the output cannot be used.
  """
  start = time.monotonic()
  old, written = _load(options)
  output = options.output or old.directory
  in_place = pathlib.Path(output).resolve() == old.directory
  with manifests.new_bundle(output, options.overwrite or in_place) as directory:
    about = _write(options, directory, old, written)
  print(f"wrote {output}: verified, in {time.monotonic() - start:.1f} s")
  return about


def _write(
  options: options_lib.RefreshOptions,
  directory: pathlib.Path,
  old: bundle.Bundle,
  written: bytes,
) -> dict:
  """Writes and verifies the new bundle; returns the changes."""
  start = time.monotonic()
  tower = encoders.LoadedEncoder(
    old.directory / "candidate_tower", "candidate", old.candidate_features
  )
  corpus = corpora.of_bundle(old)
  items, about = _read_items(options, old)
  start_encoding = time.monotonic()
  encoded = encode(tower, items.ids, items.columns)
  kept = _encodable(options, items, tower, encoded.answerable)
  about["left_out"] = len(items.ids) - len(kept)
  items = new_items.only(items, kept)
  query_tower = _query_tower(old, items)
  if options.items:
    about["encode_seconds"] = round(time.monotonic() - start_encoding, 3)
  gone = _read_removals(options, items.ids, old.manifest)
  corpus, changes = corpora.change(
    corpus, items.ids, encoded.embedding[kept], gone, items.titles
  )
  about = {**changes, **about}
  _report_changes(about)
  built, described = _build(options, old, corpus)
  about["recall"] = described["scann"].recall if "scann" in described else None
  about["seconds"] = round(time.monotonic() - start, 3)

  history = [*old.manifest.refreshes, about]
  kept = ("data", "checkpoint", "training", "encode_seconds", "num_left_out")
  write.write_bundle(
    directory,
    _contents(old, corpus, query_tower, tower, built, described),
    about={
      **{name: getattr(old.manifest, name) for name in kept},
      "refreshes": history,
    },
  )
  _verify(directory)
  # Otherwise, changes of another refresh could be lost, or parts mixed.
  if _manifest_bytes(old.directory) != written:
    raise errors.DataError(
      f"{old.directory}: was replaced during the refresh; start again"
    )
  return about


def _load(options: options_lib.RefreshOptions) -> tuple[bundle.Bundle, bytes]:
  """Loads and checks the old bundle; also returns its manifest file."""
  directory = pathlib.Path(options.bundle).resolve()
  names = manifests.load(directory).indexes
  # Read first, so that any replacement from here on is noticed.
  written = _manifest_bytes(directory)
  # Plain TensorFlow is enough for the vectors and the query tower.
  index = "brute_force" if "brute_force" in names else None
  loaded = bundle.Bundle.load(directory, index)
  verifying.check_towers(directory, loaded.manifest)
  return loaded, written


def _manifest_bytes(directory: pathlib.Path) -> bytes:
  return (directory / manifests.FILE_NAME).read_bytes()


def _read_items(
  options: options_lib.RefreshOptions, old: bundle.Bundle
) -> tuple[new_items.Items, dict]:
  """The items in --items, if given, and findings about them."""
  if not options.items:
    return new_items.Items([], {}, (), ()), {}
  title = _title_column(options, old.manifest)
  found = new_items.read_items(
    options.items,
    old.manifest.candidate_features,
    options.id_column,
    old.manifest.id_types.candidate,
    options.separator,
    title,
    _item_column(old.manifest),
  )
  if options.item_title and not found.titles:
    raise errors.DataError(
      "has no column of the name in --item_title",
      path=options.items,
      column=options.item_title,
    )
  if title and not found.titles:
    print(
      f"{options.items} has no column {title!r}, so new items have no titles "
      "(--item_title names another)"
    )
  return found, {
    "items": pathlib.Path(options.items).name,
    "unknown_tokens": count_unknown(old.candidate_features, found.columns),
    "not_given": found.missing,
    "ignored": found.ignored,
  }


def _item_column(old: manifests.Manifest) -> str | None:
  """What the files of the bundle's data called the ids of items."""
  said = old.data.get("source", {}).get("options", {})
  name = said.get("item_key") or said.get("item")
  # A number is a place in one file, and says nothing of another.
  return None if name is None or name.isdigit() else name


def _title_column(
  options: options_lib.RefreshOptions, old: manifests.Manifest
) -> str | None:
  if options.item_title and old.item_title is None:
    raise errors.DataError(
      "has no titles, so --item_title has no effect; prepare the data with "
      "--item_title, and export again",
      path=options.bundle,
    )
  return options.item_title or old.item_title


def _encodable(
  options: options_lib.RefreshOptions,
  items: new_items.Items,
  tower: encoders.Encoder,
  answerable: np.ndarray,
) -> np.ndarray:
  """Rows of the items about which something is known.

  The vectors of the others would mean nothing, and could rank first. The export
  leaves such candidates out too.

  Raises:
    DataError: Nothing is known about new items because of the model or the
      columns of the file, or nothing is known about any item.
  """
  kept = np.flatnonzero(answerable)
  has_features = len(items.missing) < len(tower.inputs)
  if len(kept) == len(items.ids) or (len(kept) and has_features):
    return kept
  new = [x for x, known in zip(items.ids, answerable, strict=True) if not known]
  others = f" and {len(new) - 1:,} more" if len(new) > 1 else ""
  if has_features:
    reason = "all features are empty. Fill in at least one"
  elif tower.inputs:
    reason = (
      f"the file has none of the features {', '.join(items.missing)}, but "
      f"{', '.join(items.ignored) or 'ids alone'}. Name its columns like them"
    )
  else:
    reason = (
      "the model only knows the ids of its training rows. Train it again with "
      "rows of the new items, or with side features"
    )
  raise errors.DataError(
    f"{new[0]!r}{others} cannot be encoded: {reason}", path=options.items
  )


def _query_tower(
  old: bundle.Bundle, items: new_items.Items
) -> encoders.Encoder:
  """The query tower; histories may contain new items with known features."""
  path = old.directory / "query_tower"
  if not old.takes_histories:
    return encoders.LoadedEncoder(path, "query", old.query_features)
  ids, vectors = old.events
  further = histories.further_inputs(vectors.shape[1], old.takes_times)
  tower = encoders.LoadedEncoder(
    path,
    "query",
    old.query_features,
    signature="encode_events",
    further=[x.name for x in further],
  )
  event_tower = encoders.LoadedEncoder(
    old.directory / "candidate_tower",
    "candidate",
    old.candidate_features,
    signature="encode_event",
  )
  encoded = encode(event_tower, items.ids, items.columns)
  known = np.flatnonzero(encoded.answerable)
  new_ids = [items.ids[place] for place in known]
  new_vectors = encoded.embedding[known]
  vectors, added = corpora.put(ids.tolist(), vectors, new_ids, new_vectors)
  ids = [*ids.tolist(), *(new_ids[place] for place in added)]
  return histories.HistoryEncoder(
    tower,
    indexes.IdTable(tf.constant(ids, old.manifest.id_types.candidate)),
    np.concatenate([vectors, new_vectors[added]]),
    old.takes_times,
  )


def encode(
  tower: encoders.Encoder,
  ids: Sequence[str] | Sequence[int],
  columns: Mapping[str, new_items.Column],
) -> encoders.Encoded:
  """Encodes candidates with features as in `Items`; returns arrays.

  Args:
    tower: The candidate tower.
    ids: n original ids, which may be unknown to the tower.
    columns: Every feature of the tower, by name.
  """
  parts = []
  with progress.Progress("encode", len(ids)) as bar:
    # Encodes at least once, to learn the dimension.
    for low in range(0, max(len(ids), 1), _BATCH):
      part = slice(low, low + _BATCH)
      given = {name: column[part] for name, column in columns.items()}
      n = len(ids[part])
      raw = features.to_tensors(tower.inputs, given, n)
      parts.append(
        tower(
          tf.constant(ids[part], tower.id_dtype),
          [raw[x.input] for x in tower.inputs],
        )
      )
      bar.update_rows(low + n, n)
  return encoders.joined(parts)


def count_unknown(
  inputs: Sequence[features.FeatureInput],
  columns: Mapping[str, new_items.Column],
) -> dict[str, dict[str, int]]:
  """Feature -> number of tokens outside of the vocabulary, and in all."""
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
  options: options_lib.RefreshOptions,
  new_ids: Sequence,
  manifest: manifests.Manifest,
) -> set:
  if not options.remove:
    return set()
  gone = set(new_items.read_ids(options.remove, manifest.id_types.candidate))
  both = sorted(gone & set(new_ids))
  if both:
    raise errors.DataError(
      f"{options.remove}: {both[0]!r} is also in {options.items}; either "
      "remove it or add it"
    )
  return gone


def _build(
  options: options_lib.RefreshOptions,
  old: bundle.Bundle,
  corpus: corpora.Corpus,
) -> tuple[dict[str, indexes.RetrievalIndex], dict[str, manifests.Index]]:
  """Builds the indexes of the old bundle for the new candidates."""
  scann = old.manifest.indexes.get("scann")
  if not scann and (options.target_recall, options.min_recall) != (None, None):
    raise errors.DataError(
      "has no ScaNN index, which --target_recall and --min_recall need; omit "
      "them",
      path=old.directory,
    )
  target = options.target_recall
  if target is None and scann:
    target = scann.target_recall
  if target is None:
    target = options_lib.IndexOptions.target_recall
  given = dict(scann.given) if scann else {}
  if "num_leaves" in given:
    given["num_leaves"] = min(given["num_leaves"], len(corpus.ids))
  if (options.target_recall, options.min_recall) != (None, None):
    given["min_recall"] = options.min_recall
  if scann and scann.kind == "scann":
    given["exact_below"] = 0  # Builds a searcher if there was one.
  rows = indexing.sample_queries(np.diff(old.seen[0])).tolist()
  sample = old.encode_queries([old.query_ids[row] for row in rows])
  dtype = old.manifest.id_types.candidate
  return indexing.build_indexes(
    options_lib.IndexOptions(
      indexes=tuple(old.manifest.indexes),
      target_recall=target,
      **given,
    ),
    indexes.IdTable(tf.constant(corpus.ids, dtype)),
    corpus.vectors,
    sample,
  )


def _contents(
  old: bundle.Bundle,
  corpus: corpora.Corpus,
  query_tower: encoders.Encoder,
  candidate_tower: encoders.Encoder,
  built: dict[str, indexes.RetrievalIndex],
  described: dict[str, manifests.Index],
) -> write.Contents:
  parts = ("query_tower", "candidate_tower", "ranker")
  return write.Contents(
    query_ids=write.as_written(old.query_ids),
    candidate_counts=corpus.counts,
    seen=corpus.seen,
    query_tower=query_tower,
    candidate_tower=candidate_tower,
    indexes=built,
    about_indexes=described,
    copied={
      name: old.directory / name
      for name in parts
      if name in old.manifest.signatures
    },
    scann_folder=(old.directory / bundle.FOLDER).is_dir(),
    history_length=old.manifest.history_length,
    unknown_query=old.manifest.unknown_query,
    titles=None if corpus.titles is None else write.as_written(corpus.titles),
    item_title=old.manifest.item_title,
    removed=corpus.removed,
    max_k=old.manifest.max_k,
  )


def _verify(directory: pathlib.Path) -> None:
  """Raises `DataError` if the bundle fails `export.verify`."""
  start = time.monotonic()
  done = _run_while_alive(
    ["--json", "--bundle", str(directory)],
    # This process uses the memory of the GPU.
    {**os.environ, "CUDA_VISIBLE_DEVICES": ""},
  )
  try:
    results = json.loads(done.stdout.splitlines()[-1])
  except (ValueError, IndexError):
    last = "".join(done.stderr.splitlines()[-1:])
    raise errors.DataError(
      f"the new bundle could not be verified, so the old one is kept (exit "
      f"status {done.returncode}: {last})"
    ) from None
  failed = [x for x in results if not x["ok"]]
  if failed:
    raise errors.DataError(
      "the new bundle failed its verification, so the old one is kept: "
      + "; ".join(f"{x['name']}: {x['detail']}" for x in failed)
    )
  print(f"verified: {len(results)} checks in {time.monotonic() - start:.1f} s")


def _run_while_alive(
  arguments: Sequence[str], environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
  """Runs `export.verify` in a process that never outlives this one."""
  reading, writing = os.pipe()
  try:
    return subprocess.run(
      [sys.executable, "-c", _VERIFY, *arguments],
      cwd=_ROOT,
      env=environment,
      stdin=reading,
      capture_output=True,
      encoding="utf-8",
      errors="replace",
    )
  finally:
    os.close(reading)
    os.close(writing)


def _report_changes(about: Mapping) -> None:
  print(
    f"added {about['added']:,}, changed {about['changed']:,}, removed "
    f"{about['removed']:,} candidates"
  )
  if about["left_out"]:
    print(
      f"{about['left_out']:,} items without any feature are left out, because "
      "nothing is known about them"
    )
  if about["removed_unknown"]:
    print(f"{about['removed_unknown']:,} ids to remove do not exist")
  for name, tokens in about.get("unknown_tokens", {}).items():
    if tokens["unknown"]:
      print(
        f"{name}: {tokens['unknown']:,} of {tokens['tokens']:,} tokens are "
        "not in the vocabulary"
      )
  if about.get("not_given"):
    print(f"not given: {', '.join(about['not_given'])}")
  if about.get("ignored"):
    print(f"ignored, not features: {', '.join(about['ignored'])}")
