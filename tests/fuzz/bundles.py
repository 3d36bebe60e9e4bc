"""Bundles with a file that was changed, cut, deleted, swapped or added."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator

import numpy as np
from hypothesis import strategies as st

from export.bundle import verifying
from tests.fuzz import mutants
from tests.fuzz import targets as targets_lib
from xir_tfrs import serving
from xir_tfrs.data import errors
from xir_tfrs.serving import manifest as manifests
from xir_tfrs.serving import scann_folder

# A file below the bundle, and what happens to it: other content, another file
# in its place, or None: it is gone.
Damage = tuple[str, bytes | str | None]


def targets(bundle: pathlib.Path) -> list[targets_lib.Target]:
  """A bundle with both indexes, and what reads it."""
  names = sorted(manifests.load(bundle).files)
  whole = {name: (bundle / name).read_bytes() for name in names}
  of_folder = [name for name in names if name.startswith("scann_folder/")]
  manifest = (bundle / manifests.FILE_NAME).read_bytes()
  return [
    targets_lib.Target(
      "bundle: load",
      _damages(names, whole),
      lambda damage: _load(bundle, damage),
      str(bundle),
    ),
    targets_lib.Target(
      "bundle: verify",
      _damages(names, whole),
      lambda damage: _verify(bundle, damage),
      str(bundle),
    ),
    targets_lib.Target(
      "bundle: scann folder",
      _damages(of_folder, whole),
      lambda damage: _load_folder(bundle, damage),
      str(bundle),
    ),
    targets_lib.Target(
      "bundle: manifest.json",
      st.one_of(mutants.of_bytes([manifest]), mutants.of_json([manifest])),
      lambda content: _load_manifest(bundle, content),
      str(bundle),
    ),
  ]


def _damages(
  names: list[str], whole: dict[str, bytes]
) -> st.SearchStrategy[Damage]:
  """Of each file: other content, that of another one, or gone."""
  return st.sampled_from(names).flatmap(
    lambda name: st.tuples(
      st.just(name),
      st.one_of(
        mutants.of_bytes([whole[name]]), st.sampled_from(names), st.none()
      ),
    )
  )


@contextlib.contextmanager
def _damaged(bundle: pathlib.Path, damage: Damage) -> Iterator[bool]:
  """Applies a damage for a while; whether anything is another then."""
  name, change = damage
  path = bundle / name
  right = path.read_bytes()
  wrong = (bundle / change).read_bytes() if isinstance(change, str) else change
  try:
    if wrong is None:
      path.unlink()
    else:
      path.write_bytes(wrong)
    yield wrong != right
  finally:
    path.write_bytes(right)


def _load(bundle: pathlib.Path, damage: Damage) -> None:
  """Refused if a file that is read has changed."""
  with _damaged(bundle, damage) as changed:
    manifest = manifests.load(bundle)
    for index in manifest.indexes:
      # As `Bundle.load` before it loads: loading takes a second.
      read = (index, serving.bundle.LISTS, serving.bundle.RANKER)
      manifests.check_files(bundle, manifest, read)
    read = (*manifest.indexes, serving.bundle.LISTS)
    assert not changed or damage[0].partition("/")[0] not in read


def _verify(bundle: pathlib.Path, damage: Damage) -> None:
  """Any change of any file is found."""
  with _damaged(bundle, damage) as changed:
    if not changed:
      return
    failed = []
    for check in verifying.verify(bundle):
      if not check.ok:
        failed.append(check)
      if check.name == "lists":
        break  # What follows loads the models, if all files are right.
    assert [check.name for check in failed][:1] == ["files"], failed
    for check in failed:
      _require_named(check.detail)
    raise errors.DataError(failed[0].detail)


def _require_named(detail: str) -> None:
  """A check says what is wrong in the project's words."""
  kind = detail.partition(":")[0]
  assert not kind.endswith("Error") and "\n" not in detail, detail


def _load_folder(bundle: pathlib.Path, damage: Damage) -> None:
  path = bundle / "scann_folder"
  right = scann_folder.ScannFolder.load(path, check_hashes=False).settings
  with _damaged(bundle, damage) as changed:
    loaded = scann_folder.ScannFolder.load(path)
    # Of the settings, white space may differ, and the order of fields.
    assert not changed or damage[0].endswith(scann_folder.SETTINGS)
    assert loaded.settings == right
    loaded.search(np.zeros([1, loaded.dim], np.float32), 3)


def _load_manifest(bundle: pathlib.Path, content: bytes) -> None:
  path = bundle / manifests.FILE_NAME
  right = manifests.load(bundle)
  before = path.read_bytes()
  path.write_bytes(content)
  try:
    # White space may differ, and the order of fields; no value may.
    assert manifests.load(bundle) == right
  finally:
    path.write_bytes(before)
