"""Does the work of `export.verify`: checks files, lists and signatures.

A check is a function that returns a short description of its result, or raises.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import tensorflow as tf

from export.bundle import checks
from xir_tfrs.data import errors, id_lists, json_files, paths
from xir_tfrs.serving import bundle, features
from xir_tfrs.serving import manifest as manifests


@dataclasses.dataclass(frozen=True)
class Check:
  """One result.

  Attributes:
    name: Name of the check.
    ok: Whether it passed.
    detail: The result, or the reason of the failure.
  """

  name: str
  ok: bool
  detail: str


def verify(
  directory: str | os.PathLike[str],
  *,
  index: str | None = None,
  queries: int = 200,
  k: int = 10,
  min_recall: float | None = None,
) -> Iterator[Check]:
  """Yields all checks; a failure only skips the checks that depend on it.

  Args:
    directory: The bundle.
    index: "scann" or "brute_force"; None for all in the bundle.
    queries: Number of queries to use.
    k: Number of answers.
    min_recall: Minimum recall@k of ScaNN; by default that in the manifest minus
      three standard errors of the sample.
  """
  directory = pathlib.Path(directory).resolve()
  readable = _attempt("manifest", _manifest, directory)
  yield readable
  if not readable.ok:
    return
  manifest = manifests.load(directory)
  whole = _attempt("files", _files, directory, manifest)
  yield whole
  yield _attempt("nothing else", _nothing_else, directory, manifest)
  yield _attempt("versions", _versions, directory, manifest)
  yield _attempt("towers", _towers, directory, manifest)
  if not whole.ok:
    return  # Loading damaged files can crash the process.
  yield _attempt("lists", _lists, directory, manifest)
  for name in manifest.signatures:
    if name not in bundle.INDEXES:
      yield _attempt(name, _part, directory, manifest, name)
  ask = functools.partial(
    checks.Probe, num_queries=queries, k=k, min_recall=min_recall
  )
  for name in [index] if index else manifest.indexes:
    yield from _index_checks(directory, manifest, name, ask)


def _index_checks(
  directory: pathlib.Path,
  manifest: manifests.Manifest,
  name: str,
  ask: Callable[[bundle.Bundle], checks.Probe],
) -> Iterator[Check]:
  """Checks the answers of one index, and ScaNN's folder."""
  probes = []

  def load() -> str:
    loaded = bundle.Bundle.load(directory, name, check_hashes=False)
    probes.append(ask(loaded))
    return _compare(loaded.signatures, manifest.signatures[name])

  yield _attempt(name, load)
  for probe in probes:
    for title, check in checks.CHECKS.items():
      yield _attempt(f"{name}: {title}", check, probe)
    if name == "scann" and (directory / bundle.FOLDER).is_dir():
      yield _attempt(bundle.FOLDER, checks.scann_folder, probe)


def _attempt(name: str, function: Callable[..., str], *args) -> Check:
  try:
    return Check(name, True, function(*args))
  except Exception as error:  # Continues, because later checks may say more.
    reason = " ".join(str(error).split())
    if not isinstance(error, errors.DataError):
      reason = f"{type(error).__name__}: {reason[:300]}"
    return Check(name, False, reason)


def _manifest(directory: pathlib.Path) -> str:
  manifest = manifests.load(directory)
  return f"format {manifest.format}, {', '.join(manifest.indexes)}"


def _files(directory: pathlib.Path, manifest: manifests.Manifest) -> str:
  manifests.check_files(directory, manifest)
  size = sum(file.bytes for file in manifest.files.values())
  return f"{len(manifest.files)} files, {size / 1e6:.1f} MB"


def _nothing_else(directory: pathlib.Path, manifest: manifests.Manifest) -> str:
  found = {
    path.relative_to(directory).as_posix()
    for path in directory.rglob("*")
    if not path.is_dir() or path.is_symlink()
  }
  extra = sorted(found - {manifests.FILE_NAME, *manifest.files})
  if extra:
    raise errors.DataError(
      f"{directory / extra[0]}: not in the manifest; remove it"
      + (f", and {len(extra) - 1} others" if extra[1:] else "")
    )
  return "no file besides those in the manifest"


def _versions(directory: pathlib.Path, manifest: manifests.Manifest) -> str:
  needs_scann = manifest.needs_scann
  manifests.check_versions(directory, manifest, needs_scann)
  wrote = manifest.versions
  return f"TensorFlow {wrote['tensorflow']}" + (
    f", ScaNN {wrote['scann']}" if needs_scann else ""
  )


def _towers(directory: pathlib.Path, manifest: manifests.Manifest) -> str:
  check_towers(directory, manifest)
  return "match the manifest"


def check_towers(directory: pathlib.Path, manifest: manifests.Manifest) -> None:
  """Raises `DataError` if a tower is not the one in the manifest."""
  for side, expected in manifest.tower_sha256.items():
    path = directory / f"{side}_tower"
    found = manifests.tower_hash(path)
    if found != expected:
      raise errors.DataError(
        f"{path}: is not the tower in the manifest (sha256 {found[:12]}, not "
        f"{expected[:12]}); copy or export the bundle again"
      )


def _lists(directory: pathlib.Path, manifest: manifests.Manifest) -> str:
  """Checks ids, counts, seen candidates and features."""
  lists = directory / "lists"
  sizes = {}
  for side, plural in (("query", "queries"), ("candidate", "candidates")):
    id_type = getattr(manifest.id_types, side)
    ids = id_lists.load_ids(lists / f"{side}_ids", id_type).tolist()
    sizes[side] = len(ids)
    _require(
      len(ids) == getattr(manifest, f"num_{plural}"),
      f"{len(ids)} {side} ids, but the manifest says "
      f"{getattr(manifest, f'num_{plural}')}",
    )
    _require(len(set(ids)) == len(ids), f"a {side} id appears twice")
    _require(
      not {"", -1} & set(ids), f"an empty {side} id, or -1, which is padding"
    )
  counts, splits, seen = (
    id_lists.load_array(lists / f"{name}.npy")
    for name in ("candidate_counts", "seen_row_splits", "seen_candidates")
  )
  _require(
    counts.shape == (sizes["candidate"],) and counts.min(initial=0) >= 0,
    "there must be one non-negative count per candidate",
  )
  _require(
    splits.shape == (sizes["query"] + 1,)
    and (splits[0], splits[-1]) == (0, len(seen))
    and (np.diff(splits) >= 0).all(),
    "row splits of the seen candidates do not match the queries",
  )
  if manifest.item_title is not None:
    titles = len(id_lists.StringList.load(lists / bundle.TITLES))
    _require(titles == sizes["candidate"], f"{titles} titles of the candidates")
  _require(
    len(seen) == manifest.num_seen_pairs
    and seen.min(initial=0) >= 0
    and seen.max(initial=0) < sizes["candidate"],
    "seen candidates are not rows of candidates",
  )
  described = json_files.read(
    lists / bundle.FEATURES,
    features.FeatureLists,
    remedy="export the bundle again",
  )
  for side in sizes:
    found = tuple(x.about() for x in getattr(described, side))
    _require(
      found == getattr(manifest, f"{side}_features"),
      f"features.json has other {side} features than the manifest",
    )
  return (
    f"{sizes['query']:,} queries, {sizes['candidate']:,} candidates, "
    f"{len(seen):,} pairs"
  )


def _require(fine: bool, problem: str) -> None:
  if not fine:
    raise errors.DataError(f"lists/: {problem}; export the bundle again")


def _part(
  directory: pathlib.Path, manifest: manifests.Manifest, name: str
) -> str:
  loaded = tf.saved_model.load(os.fspath(paths.literal(directory / name)))
  return _compare(loaded.signatures, manifest.signatures[name])


def _compare(signatures: Mapping, expected: dict) -> str:
  """Compares loaded signatures with those in the manifest."""
  found = {
    name: manifests.signature_of(
      signature.structured_input_signature[1], signature.structured_outputs
    )
    for name, signature in signatures.items()
  }
  for name in sorted({*found, *expected}):
    if found.get(name) != expected.get(name):
      raise errors.DataError(
        f"signature {name!r} is {found.get(name)}, but the manifest says "
        f"{expected.get(name)}; export the bundle again"
      )
  return ", ".join(sorted(found))
