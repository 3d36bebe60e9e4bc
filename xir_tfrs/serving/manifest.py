"""manifest.json of a bundle: what is in it, and the hash of every file.

Manifests are read without TensorFlow.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any, Literal, TypedDict

import msgspec

from xir_tfrs import __version__
from xir_tfrs.data import atomic, errors, hashes, json_files

FILE_NAME = "manifest.json"
FORMAT = 3
INDEXES = ("scann", "brute_force")
UNKNOWN_QUERY = ("popularity", "features", "tower")
# What stands in the directory of a bundle.
PARTS = (
  FILE_NAME,
  *("query_tower", "candidate_tower", "scann", "brute_force", "ranker"),
  *("lists", "scann_folder", "recall_latency.png"),
)
_REMEDY = "copy or export the bundle again"


class TensorSpec(TypedDict):
  """Type and shape of an input or output; None where an axis is dynamic."""

  dtype: str
  shape: list[int | None]


class Signature(TypedDict):
  """Inputs and outputs of a signature by name."""

  inputs: dict[str, TensorSpec]
  outputs: dict[str, TensorSpec]


class File(msgspec.Struct, frozen=True):
  """What a file must hold."""

  bytes: int
  sha256: str


class IdTypes(msgspec.Struct, frozen=True):
  """Types of the original ids."""

  query: Literal["string", "int64"]
  candidate: Literal["string", "int64"]


class Feature(msgspec.Struct, frozen=True, omit_defaults=True):
  """A side feature of a tower.

  Attributes:
    name: of the feature, as in the data.
    input: of the input of signatures; the name, unless that is taken.
    kind: how it is encoded.
    length: of a float_seq.
    separator: between the values of a sequence in text, as it was prepared.
    num_buckets: of a text, how many codes its words are hashed to.
  """

  name: str
  input: str
  kind: Literal["token", "token_seq", "text", "float", "float_seq"]
  length: int | None = None
  separator: str | None = None
  num_buckets: int | None = None

  def __post_init__(self) -> None:
    if (self.kind == "float_seq") != (self.length is not None):
      raise ValueError(
        "only a float_seq has a `length`, and needs one; feature "
        f"{self.name!r} is a {self.kind} of length {self.length}"
      )
    if (self.kind == "text") != (self.num_buckets is not None):
      raise ValueError(
        f"only a text has `num_buckets`, and needs them; feature {self.name!r}"
      )


class Index(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
  """How an index searches, and how good it is.

  Attributes:
    kind: "scann" if a searcher of ScaNN answers.
    settings: of the searcher.
    recall: of the searcher against exact search, by the number of answers.
    recall_queries: number of queries it was measured on.
    target_recall: recall@10 that the settings were tuned to.
    curve: what tuning measured.
    tune_seconds, build_seconds: how long that took.
  """

  kind: Literal["exact", "scann"]
  settings: dict[str, int | float] = {}
  recall: dict[str, float] = {}
  recall_queries: int = 0
  target_recall: float | None = None
  curve: list[dict[str, int | float]] = []
  tune_seconds: float = 0.0
  build_seconds: float = 0.0


class Manifest(
  msgspec.Struct,
  frozen=True,
  omit_defaults=True,
  kw_only=True,
  forbid_unknown_fields=True,
):
  """Content of manifest.json.

  Attributes:
    format: of the bundle.
    versions: of the packages that wrote it; None for what was missing.
    num_queries, num_candidates, num_seen_pairs: sizes.
    num_left_out: candidates of the data that are not in the indexes, since
      nothing is known of them.
    dim, dtype: of the vectors.
    num_interests: vectors of a query; None: one, without an axis for them.
    max_k: most answers that may be asked for.
    id_types: of the original ids.
    history_length: newest candidates of a history that the query tower
      encodes; None for a tower that encodes query ids.
    unknown_query: what queries get that training did not know, one of
      `bundle.UNKNOWN_QUERY`.
    item_title: the column that titles of candidates come from; None: there
      are none.
    query_features, candidate_features: side features of the towers.
    tower_sha256: of the towers, by side; see `tower_hash`.
    indexes: by name.
    signatures: by SavedModel and name.
    files: by path below the bundle.
    data, checkpoint, training: what the bundle was made from.
    encode_seconds: how long the candidates took to encode.
    refreshes: what `export.refresh` has changed.
    sha256: of all of the above; see `json_files.seal`.
  """

  format: int
  versions: dict[str, str | None]
  num_queries: int
  num_candidates: int
  num_seen_pairs: int
  num_left_out: int = 0
  dim: int
  dtype: Literal["float32"]
  num_interests: int | None = None
  max_k: int
  id_types: IdTypes
  history_length: int | None = None
  unknown_query: Literal["popularity", "features", "tower"]
  item_title: str | None = None
  query_features: tuple[Feature, ...] = ()
  candidate_features: tuple[Feature, ...] = ()
  tower_sha256: dict[str, str]
  indexes: dict[str, Index]
  signatures: dict[str, dict[str, Signature]]
  files: dict[str, File]
  data: dict[str, Any] = {}
  checkpoint: str | None = None
  training: dict[str, Any] = {}
  encode_seconds: float | None = None
  refreshes: list[dict[str, Any]] = []
  sha256: str = ""

  @property
  def needs_scann(self) -> bool:
    """Whether any index needs ScaNN's ops."""
    return any(index.kind == "scann" for index in self.indexes.values())


@contextlib.contextmanager
def new_bundle(
  output: str | os.PathLike[str], overwrite: bool
) -> Iterator[pathlib.Path]:
  """A new directory that takes the place of `output`; see `atomic`.

  Args:
    output: where the bundle is to be.
    overwrite: whether a bundle there may be replaced.

  Yields:
    The empty directory to write into.

  Raises:
    DataError: there is something that must not be replaced, or another program
      writes there.
  """
  with atomic.new_directory(
    output, what="bundle", foreign=_foreign, overwrite=overwrite
  ) as directory:
    yield directory


def check_output(output: str | os.PathLike[str], overwrite: bool) -> None:
  """Raises `DataError` if a bundle may not be written to `output`."""
  atomic.check_output(
    output, what="bundle", foreign=_foreign, overwrite=overwrite
  )


def _foreign(directory: pathlib.Path) -> str | None:
  """The name of something that is no part of a bundle."""
  names = sorted(path.name for path in directory.iterdir())
  if FILE_NAME not in names:
    return names[0]
  return next((name for name in names if name not in PARTS), None)


def save(directory: pathlib.Path, about: Mapping[str, Any]) -> Manifest:
  """Writes the manifest of a directory.

  Args:
    directory: the bundle; everything else is in it already.
    about: all fields but format, versions and files.

  Returns:
    The manifest.
  """
  manifest = Manifest(
    **{
      "format": FORMAT,
      "versions": versions(),
      **about,
      "files": list_files(directory),
    }
  )
  manifest = json_files.seal(manifest)
  json_files.write(directory / FILE_NAME, manifest)
  return manifest


def load(directory: str | os.PathLike[str]) -> Manifest:
  """Reads the manifest of a bundle.

  Raises:
    DataError: there is none, or it is damaged or of another format.
  """
  return json_files.read_sealed(
    pathlib.Path(directory) / FILE_NAME,
    Manifest,
    remedy=_REMEDY,
    missing=(", so this is not a bundle; make one with xir-tfrs export"),
    format=FORMAT,
  )


def list_files(directory: pathlib.Path) -> dict[str, File]:
  """The files below a directory, by their path in it."""
  return {
    path.relative_to(directory).as_posix(): File(
      path.stat().st_size, hashes.sha256(path)
    )
    for path in sorted(directory.rglob("*"))
    if path.is_file()
  }


def check_files(
  directory: pathlib.Path,
  manifest: Manifest,
  hashed: Sequence[str] | None = None,
) -> None:
  """Raises `DataError` naming the first file that is not as listed.

  Args:
    directory: of the bundle.
    manifest: its manifest.
    hashed: the parts of the bundle whose files are compared with their hash,
      and not by their size alone; None for all.
  """
  for name, expected in manifest.files.items():
    whole = hashed is None or name.partition("/")[0] in hashed
    check_file(directory / name, expected, whole, _REMEDY)


def check_file(
  path: pathlib.Path, expected: File, whole: bool, remedy: str
) -> None:
  """Raises `DataError` if a file is not as listed.

  Args:
    path: the file.
    expected: what the list says of it.
    whole: whether to compare its content, and not its size alone.
    remedy: what to do; the end of the message.
  """
  try:
    size = path.stat().st_size
  except OSError:
    raise errors.DataError(f"missing; {remedy}", path=path) from None
  if size != expected.bytes:
    raise errors.DataError(
      f"holds {size} bytes instead of {expected.bytes}; {remedy}", path=path
    )
  if whole and hashes.sha256(path) != expected.sha256:
    raise errors.DataError(
      f"its content has changed since it was written; {remedy}", path=path
    )


def check_versions(
  directory: pathlib.Path, manifest: Manifest, needs_scann: bool
) -> None:
  """Raises `DataError` if the bundle cannot be loaded with what is here.

  Plain SavedModels load in the TensorFlow that wrote them and later ones;
  ScaNN's ops are bound to one minor version and its state to one release.
  """
  wrote, here = manifest.versions, versions()
  of_bundle, of_process = (
    tuple(map(int, (v["tensorflow"] or "0").split(".")[:2]))
    for v in (wrote, here)
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
      digest.update(f"{name} {hashes.sha256(path)}\n".encode())
  return digest.hexdigest()


def versions() -> dict[str, str | None]:
  """Versions of all that a bundle depends on; None for what is missing."""
  import tensorflow as tf  # Its package may have another name.

  names = ("tf_keras", "tensorflow_recommenders", "scann", "numpy")
  return {
    "xir_tfrs": __version__,
    "tensorflow": tf.__version__,
    **{name: version(name) for name in names},
    "python": platform.python_version(),
  }


def version(package: str) -> str | None:
  """Version of an installed package; None if it is missing."""
  try:
    return metadata.version(package)
  except metadata.PackageNotFoundError:
    return None
