"""manifest.json, and the directory that appears complete or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import glob
import hashlib
import json
import os
import pathlib
import platform
import shutil
from collections.abc import Iterator, Sequence
from importlib import metadata

import numpy as np
import tensorflow as tf

from xir_tfrs import __version__, indexes
from xir_tfrs.data import errors

FILE_NAME = "manifest.json"
FORMAT = 2
# Of the system call renameat2: the working directory, and RENAME_EXCHANGE.
_HERE, _EXCHANGE = -100, 2


@contextlib.contextmanager
def new_bundle(
  output: str | os.PathLike[str], overwrite: bool
) -> Iterator[pathlib.Path]:
  """A temporary sibling of `output` that takes its place on success.

  On an exception it is removed, and what was at `output` is untouched.

  Args:
    output: where the bundle is to be.
    overwrite: whether a bundle there may be replaced.

  Yields:
    The empty directory to write into.

  Raises:
    DataError: there is something that must not be replaced.
  """
  # A link stays: what it points to is replaced.
  output = pathlib.Path(output).resolve()
  check_output(output, overwrite)
  output.parent.mkdir(parents=True, exist_ok=True)
  _remove_leftovers(output)
  partial = output.with_name(f".{output.name}.partial-{os.getpid()}")
  partial.mkdir()
  try:
    yield partial
    _replace(partial, output)
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def _replace(new: pathlib.Path, output: pathlib.Path) -> None:
  """Moves `new` to `output`; what was there is at `new` then, or gone."""
  try:
    os.rename(new, output)  # Nothing there, or an empty directory.
    return
  except OSError:
    if not output.exists():
      raise
  if _exchange(new, output):
    return
  # Between these two there is nothing at `output`: a file system that cannot
  # exchange leaves no other way.
  old = output.with_name(f".{output.name}.old-{os.getpid()}")
  os.rename(output, old)
  try:
    os.rename(new, output)
  except OSError:
    os.rename(old, output)
    raise
  shutil.rmtree(old, ignore_errors=True)


def _exchange(one: pathlib.Path, other: pathlib.Path) -> bool:
  """Swaps two directories in one step; False where the system cannot."""
  try:
    rename = ctypes.CDLL(None, use_errno=True).renameat2
  except (AttributeError, OSError):
    return False
  paths = [os.fsencode(path) for path in (one, other)]
  return rename(_HERE, paths[0], _HERE, paths[1], _EXCHANGE) == 0


def _remove_leftovers(output: pathlib.Path) -> None:
  """Removes what processes that were killed while writing left behind."""
  for path in output.parent.glob(f".{glob.escape(output.name)}.partial-*"):
    pid = path.name.rpartition("-")[2]
    if pid.isdigit() and not pathlib.Path(f"/proc/{pid}").exists():
      shutil.rmtree(path, ignore_errors=True)


def check_output(output: str | os.PathLike[str], overwrite: bool) -> None:
  """Raises `DataError` if a bundle may not be written to `output`."""
  output = pathlib.Path(output)
  if not output.exists() or (output.is_dir() and not any(output.iterdir())):
    return
  if not (output / FILE_NAME).is_file():
    raise errors.DataError(
      f"{output}: exists and is not a bundle; choose another --output"
    )
  if not overwrite:
    raise errors.DataError(
      f"{output}: exists; replace it with --overwrite, or choose another "
      "--output"
    )


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
