"""manifest.json of a bundle, and the directory that is a bundle."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import platform
from collections.abc import Sequence
from importlib import metadata

import numpy as np
import tensorflow as tf

from xir_tfrs import __version__, indexes
from xir_tfrs.data import atomic, errors

FILE_NAME = "manifest.json"
FORMAT = 2


def new_bundle(
  output: str | os.PathLike[str], overwrite: bool
) -> contextlib.AbstractContextManager[pathlib.Path]:
  """A new directory that becomes the bundle `output` at the end.

  See `atomic.new_directory`.
  """
  return atomic.new_directory(
    output, what="bundle", foreign=_foreign, overwrite=overwrite
  )


def check_output(output: str | os.PathLike[str], overwrite: bool) -> None:
  """Raises `DataError` if a bundle may not be written to `output`."""
  atomic.check_output(
    output, what="bundle", foreign=_foreign, overwrite=overwrite
  )


def _foreign(directory: pathlib.Path) -> str | None:
  """A file of a directory that is not a bundle, or None if it is one."""
  if (directory / FILE_NAME).is_file():
    return None
  return min(path.name for path in directory.iterdir())


def save(directory: pathlib.Path, manifest: dict) -> dict:
  """Adds format, versions and files to `manifest` and writes it.

  Returns:
    The whole manifest.
  """
  files = {
    path.relative_to(directory).as_posix(): {
      "bytes": path.stat().st_size,
      "sha256": _sha256(path),
    }
    for path in sorted(directory.rglob("*"))
    if path.is_file()
  }
  manifest = {
    "format": FORMAT,
    "versions": versions(),
    **manifest,
    "files": files,
  }
  text = json.dumps(manifest, indent=1, ensure_ascii=False)
  (directory / FILE_NAME).write_text(text + "\n", encoding="utf-8")
  return manifest


def load(directory: str | os.PathLike[str]) -> dict:
  """Reads the manifest of a bundle."""
  path = pathlib.Path(directory) / FILE_NAME
  try:
    manifest = json.loads(path.read_text(encoding="utf-8"))
    found = manifest.get("format")
  except OSError:
    raise errors.DataError(
      f"{path}: cannot be read, so {directory} is not a bundle; make one with "
      "python -m export.export_retriever"
    ) from None
  except (ValueError, AttributeError):
    raise errors.DataError(
      f"{path}: truncated or not JSON; copy or export the bundle again"
    ) from None
  if found != FORMAT:
    raise errors.DataError(
      f"{path}: `format` must be {FORMAT}. Received: {found!r}; use the "
      "release of this project that wrote it, or export again"
    )
  return manifest


def check_files(
  directory: pathlib.Path, manifest: dict, hashed: Sequence[str] | None = None
) -> None:
  """Raises `DataError` naming the first file that is not as listed.

  Args:
    directory: of the bundle.
    manifest: its manifest.
    hashed: the parts of the bundle whose files are compared with their hash,
      and not by their size alone; None for all.
  """
  remedy = "copy or export the bundle again"
  for name, expected in manifest["files"].items():
    path = directory / name
    try:
      size = path.stat().st_size
    except OSError:
      raise errors.DataError(f"{path}: missing; {remedy}") from None
    if size != expected["bytes"]:
      raise errors.DataError(
        f"{path}: holds {size} bytes, the manifest says {expected['bytes']}; "
        f"{remedy}"
      )
    if hashed is not None and name.partition("/")[0] not in hashed:
      continue
    if _sha256(path) != expected["sha256"]:
      raise errors.DataError(
        f"{path}: its content is not that of the manifest; {remedy}"
      )


def check_versions(
  directory: pathlib.Path, manifest: dict, needs_scann: bool
) -> None:
  """Raises `DataError` if the bundle cannot be loaded with what is here.

  Plain SavedModels load in the TensorFlow that wrote them and later ones;
  ScaNN's ops are bound to one minor version and its state to one release.
  """
  wrote, here = manifest["versions"], versions()
  of_bundle, of_process = (
    tuple(map(int, v["tensorflow"].split(".")[:2])) for v in (wrote, here)
  )
  if of_process < of_bundle or (needs_scann and of_process != of_bundle):
    remedy = "--index brute_force, or " if of_process > of_bundle else ""
    raise errors.DataError(
      f"{directory}: written with TensorFlow {wrote['tensorflow']}, found "
      f"{here['tensorflow']}; use {remedy}pip install "
      f"'tensorflow=={wrote['tensorflow']}'"
    )
  if needs_scann and wrote["scann"] != here["scann"]:
    raise errors.DataError(
      f"{directory}: written with ScaNN {wrote['scann']}, found "
      f"{here['scann']}; use --index brute_force, or pip install "
      f"'scann=={wrote['scann']}'"
    )


def tower_hash(directory: str | os.PathLike[str]) -> str:
  """sha256 over the names and contents of a tower's files."""
  directory = pathlib.Path(directory)
  digest = hashlib.sha256()
  for path in sorted(directory.rglob("*")):
    if path.is_file():
      name = path.relative_to(directory).as_posix()
      digest.update(f"{name} {_sha256(path)}\n".encode())
  return digest.hexdigest()


def versions() -> dict[str, str | None]:
  """Versions of all that a bundle depends on; None for what is missing."""
  return {
    "xir_tfrs": __version__,
    "tensorflow": tf.__version__,
    "tf_keras": metadata.version("tf-keras"),
    "tensorflow_recommenders": metadata.version("tensorflow-recommenders"),
    "scann": indexes.scann_version(),
    "numpy": np.__version__,
    "python": platform.python_version(),
  }


def _sha256(path: pathlib.Path) -> str:
  digest = hashlib.sha256()
  with path.open("rb") as file:
    while block := file.read(1 << 20):
      digest.update(block)
  return digest.hexdigest()
