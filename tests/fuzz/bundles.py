"""Bundles in which a file is changed, truncated, replaced or deleted."""

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

# A file of the bundle, and what replaces it: bytes, the content of another file
# of the bundle, or nothing (None).
Damage = tuple[str, bytes | str | None]


def targets(bundle: pathlib.Path) -> list[targets_lib.Target]:
  """A target for each reader of a bundle with both indexes."""
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
  """Draws a file and its replacement."""
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
  """Applies damage in a context; yields whether it changes any byte."""
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
  """Loading refuses a bundle if a file that it reads has changed."""
  with _damaged(bundle, damage) as changed:
    manifest = manifests.load(bundle)
    for index in manifest.indexes:
      # The checks of `Bundle.load`, without loading, which takes a second.
      read = (index, serving.bundle.LISTS, serving.bundle.RANKER)
      manifests.check_files(bundle, manifest, read)
    read = (*manifest.indexes, serving.bundle.LISTS)
    assert not changed or damage[0].partition("/")[0] not in read


def _verify(bundle: pathlib.Path, damage: Damage) -> None:
  """`verify` finds any change of any file."""
  with _damaged(bundle, damage) as changed:
    if not changed:
      return
    failed = []
    for check in verifying.verify(bundle):
      if not check.ok:
        failed.append(check)
      if check.name == "lists":
        break  # The checks after it load the models, which is slow.
    assert [check.name for check in failed][:1] == ["files"], failed
    for check in failed:
      _require_named(check.detail)
    raise errors.DataError(failed[0].detail)


def _require_named(detail: str) -> None:
  """Fails if a detail is the text of a foreign exception."""
  kind = detail.partition(":")[0]
  assert not kind.endswith("Error") and "\n" not in detail, detail


def _load_folder(bundle: pathlib.Path, damage: Damage) -> None:
  path = bundle / "scann_folder"
  right = scann_folder.ScannFolder.load(path, check_hashes=False).settings
  with _damaged(bundle, damage) as changed:
    loaded = scann_folder.ScannFolder.load(path)
    # White space and the order of fields may differ in the settings.
    assert not changed or damage[0].endswith(scann_folder.SETTINGS)
    assert loaded.settings == right
    loaded.search(np.zeros([1, loaded.dim], np.float32), 3)


def _load_manifest(bundle: pathlib.Path, content: bytes) -> None:
  path = bundle / manifests.FILE_NAME
  right = manifests.load(bundle)
  before = path.read_bytes()
  path.write_bytes(content)
  try:
    # White space and the order of fields may differ, values may not.
    assert manifests.load(bundle) == right
  finally:
    path.write_bytes(before)
