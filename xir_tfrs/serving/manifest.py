"""manifest.json of a bundle: its contents and the hash of every file.

Reading a manifest does not need TensorFlow.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any, Literal, TypedDict, TypeVar

import msgspec

from xir_tfrs import __version__
from xir_tfrs.data import atomic, errors, hashes, json_files

FILE_NAME = "manifest.json"
FORMAT = 3
INDEXES = ("scann", "brute_force")
UNKNOWN_QUERY = ("popularity", "features", "tower")
# The entries of a bundle's directory.
PARTS = (
  FILE_NAME,
  *("query_tower", "candidate_tower", "scann", "brute_force", "ranker"),
  *("lists", "scann_folder", "recall_latency.png"),
)
_REMEDY = "copy or export the bundle again"
_READS = 3  # Of a directory that is replaced while it is read.

T = TypeVar("T")


class TensorSpec(TypedDict):
  """Type and shape of an input or output; None where an axis is dynamic."""

  dtype: str
  shape: list[int | None]


class Signature(TypedDict):
  """Inputs and outputs of a signature by name."""

  inputs: dict[str, TensorSpec]
  outputs: dict[str, TensorSpec]


def signature_of(
  inputs: Mapping[str, Any], outputs: Mapping[str, Any]
) -> Signature:
  """Returns the entry of a signature with these tensors, or specs of them."""

  def specs(tensors: Mapping[str, Any]) -> dict[str, TensorSpec]:
    return {
      name: {"dtype": x.dtype.name, "shape": x.shape.as_list()}
      for name, x in tensors.items()
    }

  return {"inputs": specs(inputs), "outputs": specs(outputs)}


class File(msgspec.Struct, frozen=True):
  """The expected size and hash of a file."""

  bytes: int
  sha256: str


class IdTypes(msgspec.Struct, frozen=True):
  """Types of the original ids."""

  query: Literal["string", "int64"]
  candidate: Literal["string", "int64"]


class Feature(msgspec.Struct, frozen=True, omit_defaults=True):
  """A side feature of a tower.

  Attributes:
    name: Name of the feature in the data.
    input: Name of the input of signatures; `name` unless that is taken.
    kind: Kind of the feature.
    length: Length of a float_seq.
    separator: Separator of a sequence in text, as in `prepare`.
    num_buckets: Number of hash buckets for the words of a text.
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
        "a feature must have a `length` if and only if it is a float_seq; "
        f"{self.name!r} is a {self.kind} of length {self.length}"
      )
    if (self.kind == "text") != (self.num_buckets is not None):
      raise ValueError(
        "a feature must have `num_buckets` if and only if it is a text;"
        f" {self.name!r}"
      )


class Index(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
  """Settings and quality of an index.

  Attributes:
    kind: "scann" if ScaNN searches.
    given: Settings that the export was given, which a refresh keeps.
    settings: Settings of the searcher.
    recall: Recall against exact search, by the number of answers.
    recall_queries: Number of queries used to measure the recall.
    target_recall: The recall@10 for which the settings were tuned.
    curve: Measurements of the tuning.
    tune_seconds: Duration of the tuning.
    build_seconds: Duration of the build.
  """

  kind: Literal["exact", "scann"]
  given: dict[str, int | float] = {}
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
    format: Format of the bundle.
    versions: Versions of the packages that wrote it; None for missing ones.
    num_queries, num_candidates, num_seen_pairs: Sizes.
    num_left_out: Number of candidates that the indexes leave out because
      nothing is known about them.
    dim, dtype: Dimension and type of the vectors.
    num_interests: Vectors per query; None for one, without an extra axis.
    max_k: Maximum number of answers per query.
    id_types: Types of the original ids.
    history_length: Number of most recent candidates of a history that the query
      tower encodes; None for a tower of query ids.
    unknown_query: How unknown queries are answered, one of
      `bundle.UNKNOWN_QUERY`.
    item_title: The column with the titles of candidates; None for none.
    query_features, candidate_features: Side features of the towers.
    tower_sha256: Hashes of the towers, by side; see `tower_hash`.
    indexes: Indexes by name.
    signatures: Signatures by SavedModel and name.
    files: Files by path in the bundle.
    data, checkpoint, training: Origin of the bundle.
    encode_seconds: Duration of encoding the candidates.
    refreshes: Changes by `export.refresh`.
    sha256: Hash of all of the above; see `json_files.seal`.
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
  """Yields a new directory that replaces `output`; see `atomic`.

  Args:
    output: Destination of the bundle.
    overwrite: Whether a bundle at `output` may be replaced.

  Yields:
    The empty directory to write into.

  Raises:
    DataError: `output` exists and must not be replaced, or another program
      writes to it.
  """
  with atomic.new_directory(
    output, what="bundle", foreign=_foreign, overwrite=overwrite
  ) as directory:
    yield directory


def check_output(output: str | os.PathLike[str], overwrite: bool) -> None:
  """Raises `DataError` unless a bundle may be written to `output`."""
  atomic.check_output(
    output, what="bundle", foreign=_foreign, overwrite=overwrite
  )


def _foreign(directory: pathlib.Path) -> str | None:
  """Name of an entry that does not belong to a bundle, or None."""
  names = sorted(path.name for path in directory.iterdir())
  if FILE_NAME not in names:
    return names[0]
  return next((name for name in names if name not in PARTS), None)


def save(directory: pathlib.Path, about: Mapping[str, Any]) -> Manifest:
  """Writes the manifest of a directory.

  Args:
    directory: The bundle, complete except for the manifest.
    about: All fields except format, versions and files.

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
    DataError: The manifest is missing, damaged or of another format.
  """
  return json_files.read_sealed(
    pathlib.Path(directory) / FILE_NAME,
    Manifest,
    remedy=_REMEDY,
    missing=(", so this is not a bundle; make one with xir-tfrs export"),
    format=FORMAT,
  )


def identity(directory: pathlib.Path, name: str = FILE_NAME) -> tuple | None:
  """Identifies the bundle at a path; None if there is none.

  Args:
    directory: The bundle, or another directory that is replaced as a whole.
    name: A file in it that describes it.
  """
  try:
    found = (directory / name).stat()
  except OSError:
    return None
  return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def read_whole(
  directory: pathlib.Path, read: Callable[[], T], name: str = FILE_NAME
) -> T:
  """Calls `read`, again if the directory is replaced meanwhile.

  Its files are opened one by one. Without this, those of two bundles could mix,
  or a file of the old one could be missing.

  Args:
    directory: As for `identity`, or a symbolic link to it.
    read: Reads the directory. It may raise an error if that is replaced.
    name: As for `identity`.

  Returns:
    The result of `read`.

  Raises:
    DataError: The directory was replaced during each of several calls.
  """
  for _ in range(_READS):
    before = identity(directory, name)
    try:
      result = read()
    except Exception:
      if identity(directory, name) == before:
        raise
    else:
      if identity(directory, name) == before:
        return result
  raise errors.DataError(
    f"was replaced {_READS} times while it was read; try again when it changes"
    " less often",
    path=directory,
  )


def list_files(directory: pathlib.Path) -> dict[str, File]:
  """Returns the files below a directory, by relative path."""
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
  """Raises a `DataError` that names the first file that differs.

  Args:
    directory: Directory of the bundle.
    manifest: The manifest.
    hashed: The parts of the bundle whose files are checked by hash; the others
      are checked by size. None for all.
  """
  for name, expected in manifest.files.items():
    whole = hashed is None or name.partition("/")[0] in hashed
    check_file(directory / name, expected, whole, _REMEDY)


def check_file(
  path: pathlib.Path, expected: File, whole: bool, remedy: str
) -> None:
  """Raises `DataError` if a file differs from its entry.

  Args:
    path: The file.
    expected: The entry of the file.
    whole: Whether to check the hash, and not only the size.
    remedy: What to do; ends the message.
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
  """Raises `DataError` if the installed packages cannot load the bundle.

  Plain SavedModels load in the TensorFlow that wrote them and in later ones.
  ScaNN's ops need the same minor version, and its state the same release.
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
  """SHA-256 over the names and contents of a tower's files."""
  directory = pathlib.Path(directory)
  digest = hashlib.sha256()
  for path in sorted(directory.rglob("*")):
    if path.is_file():
      name = path.relative_to(directory).as_posix()
      digest.update(f"{name} {hashes.sha256(path)}\n".encode())
  return digest.hexdigest()


def versions() -> dict[str, str | None]:
  """Versions of a bundle's dependencies; None for missing packages."""
  import tensorflow as tf  # The name of its package varies.

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
