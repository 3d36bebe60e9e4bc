"""schema.json, which describes a data directory.

It is written last, in one step, so its presence means that the directory is
complete. The JSON mirrors `Schema` field by field.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec

from xir_tfrs import types
from xir_tfrs.data import atomic, errors, hashes, json_files

FILE_NAME = "schema.json"
# File with the true vectors of generated data.
ORACLE_FILE = "oracle.npz"
FORMAT = 1
SPLITS = ("train", "validation", "test")
TABLES = ("queries", "candidates")
KINDS = types.FEATURE_KINDS
REMEDY = "prepare the data again with --overwrite"

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
# Dense ids are int32 in memory.
TableSize = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
# The known columns of interaction records and their types.
COLUMNS = {
  "query_id": "int64",
  "candidate_id": "int64",
  "event": "int64",
  "timestamp": "int64",
  "sample_weight": "float32",
}


class _Struct(
  msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True
):
  """A part of the schema; fields with their default are not written."""


class FeatureSchema(_Struct, frozen=True):
  """A side feature of queries or candidates, with its vocabulary.

  Attributes:
    name: Name of the feature.
    kind: One of `KINDS`.
    vocabulary: Token kinds: code -> token; "" (unknown, missing) is code 0.
    num_buckets: Text: number of hash buckets for its words.
    length: float_seq: length of every vector.
    mean: Float kinds: mean of each value over the table, without missing ones.
    std: Float kinds: standard deviation, likewise; positive.
    separator: Sequences in text files: the separator between values.

  Examples:
    >>> from xir_tfrs.data import schema
    >>> kind = schema.FeatureSchema("kind", "token", vocabulary=("", "a", "b"))
    >>> kind.feature().vocabulary_size
    3
  """

  name: str
  kind: types.FeatureKind
  vocabulary: tuple[str, ...] = ()
  length: Annotated[int, msgspec.Meta(ge=1)] | None = None
  mean: tuple[float, ...] = ()
  std: tuple[float, ...] = ()
  separator: Annotated[str, msgspec.Meta(min_length=1)] | None = None
  num_buckets: Annotated[int, msgspec.Meta(ge=2)] | None = None

  def __post_init__(self) -> None:
    for field in ("vocabulary", "mean", "std"):
      msgspec.structs.force_setattr(self, field, tuple(getattr(self, field)))
    if self.kind not in KINDS:
      raise ValueError(
        f"feature {self.name!r}: `kind` must be one of {', '.join(KINDS)}."
        f" Received: {self.kind!r}."
      )
    if self.kind == "float_seq" and self.length is None:
      raise ValueError(f"feature {self.name!r}: a float_seq needs a `length`.")
    if (self.kind == "text") != (self.num_buckets is not None):
      raise ValueError(
        f"feature {self.name!r}: a text needs `num_buckets`, and nothing else"
        " does."
      )
    if self.is_token and self.vocabulary[:1] != ("",):
      raise ValueError(
        f"feature {self.name!r}: `vocabulary` must begin with '' (code 0 is"
        f" unknown). Received: {self.vocabulary[:3]}..."
      )
    if len(set(self.vocabulary)) < len(self.vocabulary):
      raise ValueError(f"feature {self.name!r}: a token appears twice.")
    self.feature()  # Checks mean and std.

  @property
  def is_token(self) -> bool:
    """Whether the feature has a vocabulary of tokens."""
    return self.kind in ("token", "token_seq")

  @property
  def vocabulary_size(self) -> int | None:
    """Number of codes; None for numbers."""
    return len(self.vocabulary) if self.is_token else self.num_buckets

  def feature(self) -> types.Feature:
    """The feature for `models.Tower`: sizes without the tokens."""
    return types.Feature(
      name=self.name,
      kind=self.kind,
      vocabulary_size=self.vocabulary_size,
      length=self.length,
      mean=self.mean,
      std=self.std,
    )


class InteractionFeature(_Struct, frozen=True):
  """A column of the interaction records.

  Examples:
    >>> from xir_tfrs.data import schema
    >>> schema.InteractionFeature("timestamp", "int64").dtype
    'int64'
  """

  name: str
  dtype: Literal["int64", "float32"]

  def __post_init__(self) -> None:
    wanted = COLUMNS.get(self.name, self.dtype)
    if self.dtype != wanted:
      raise ValueError(
        f"`dtype` of {self.name!r} must be {wanted}. Received: {self.dtype}."
      )


class Shard(_Struct, frozen=True):
  """A TFRecord file.

  Attributes:
    file: Path in the directory.
    rows: Number of rows (not records).
    sha256: Hash of the content, checked when the file is read. None, as in
      directories that `prepare` did not write, skips the check.

  Examples:
    >>> from xir_tfrs.data import schema
    >>> schema.Shard("train-00000-of-00001.tfrecord", rows=3).rows
    3
  """

  file: str
  rows: Count
  sha256: str | None = None

  def __post_init__(self) -> None:
    path = pathlib.PurePosixPath(self.file)
    inside = path.parts and not path.is_absolute() and ".." not in path.parts
    if not inside or "\0" in self.file:
      raise ValueError(
        f"`file` must be a path in the directory. Received: {self.file!r}."
      )


class Split(_Struct, frozen=True):
  """How the rows were split; docs/own_data.md describes each kind.

  Examples:
    >>> from xir_tfrs.data import schema
    >>> schema.Split("random", test_fraction=0.2, seed=10).kind
    'random'
  """

  kind: str = "none"
  validation_fraction: float | None = None
  test_fraction: float | None = None
  seed: int | None = None


class Source(_Struct, frozen=True):
  """The source of the directory.

  Examples:
    >>> from xir_tfrs.data import schema
    >>> schema.Source("csv", options={"user_column": "user"}).kind
    'csv'
  """

  kind: str = "unknown"
  files: tuple[dict[str, Any], ...] = ()
  options: dict[str, Any] = {}


def _require_distinct(field: str, names: Sequence[str]) -> None:
  for name in names:
    if names.count(name) > 1:
      raise ValueError(f"`{field}`: the name {name!r} appears twice.")


class Schema(_Struct, frozen=True, omit_defaults=False):
  """The contents of a data directory.

  Attributes:
    name: Short name of the data set.
    num_queries: Rows of the query table; dense query ids are below it.
    num_candidates: Rows of the candidate table; dense ids are below it.
    rows: split -> number of interactions.
    shards: split or table -> its files in reading order.
    interaction_features: Columns of the interaction records; see
      `data.records`.
    query_features, candidate_features: Side features of the two tables.
    item_title: The column with the titles of candidates, or None. See
      `tables.read_titles`.
    source: Where the rows come from.
    split: How the rows were split.
    leakage: check -> number of offending rows, measured after the split.
    warnings: What was skipped or repaired -> how often.

  Examples:
    >>> from xir_tfrs.data import schema
    >>> made = schema.Schema(
    ...   name="tiny",
    ...   num_queries=2,
    ...   num_candidates=3,
    ...   rows={"train": 4},
    ...   shards={"train": (schema.Shard("train-0", rows=4),)},
    ... )
    >>> made.save(".")
    >>> schema.Schema.load(".") == made
    True
  """

  name: str
  num_queries: TableSize
  num_candidates: TableSize
  rows: dict[str, Count]
  shards: dict[str, tuple[Shard, ...]]
  interaction_features: tuple[InteractionFeature, ...] = (
    InteractionFeature("query_id", "int64"),
    InteractionFeature("candidate_id", "int64"),
  )
  query_features: tuple[FeatureSchema, ...] = ()
  candidate_features: tuple[FeatureSchema, ...] = ()
  item_title: str | None = None
  source: Source = Source()
  split: Split = Split()
  leakage: dict[str, int] = {}
  warnings: dict[str, int] = {}
  format: int = FORMAT

  def __post_init__(self) -> None:
    for field, known in (("rows", SPLITS), ("shards", (*SPLITS, *TABLES))):
      for name in getattr(self, field):
        if name not in known:
          raise ValueError(
            f"`{field}` must be among {', '.join(known)}. Received: {name!r}."
          )
    rows = {split: self.rows.get(split, 0) for split in SPLITS}
    msgspec.structs.force_setattr(self, "rows", rows)
    columns = [column.name for column in self.interaction_features]
    if not {"query_id", "candidate_id"} <= set(columns):
      raise ValueError(
        "`interaction_features` must have query_id and candidate_id."
        f" Received: {', '.join(columns)}."
      )
    _require_distinct("interaction_features", columns)
    for table, own in (("query", "query_id"), ("candidate", "candidate_id")):
      names = [f.name for f in getattr(self, f"{table}_features")]
      # The records of a table have these columns beside its features.
      _require_distinct(f"{table}_features", [own, "count", *names])

  def num_rows(self, table: str) -> int:
    """Rows of a table: `num_queries` or `num_candidates`."""
    return self.num_queries if table == "queries" else self.num_candidates

  def features(self, table: str) -> Sequence[FeatureSchema]:
    """Side features of a table."""
    return (
      self.query_features if table == "queries" else self.candidate_features
    )

  def with_hashes(self, data_dir: str | os.PathLike[str]) -> Schema:
    """Returns a copy with the hashes of the shards in `data_dir`."""
    shards = {
      part: tuple(
        msgspec.structs.replace(
          shard, sha256=hashes.sha256(pathlib.Path(data_dir) / shard.file)
        )
        for shard in of_part
      )
      for part, of_part in self.shards.items()
    }
    return msgspec.structs.replace(self, shards=shards)

  def save(self, data_dir: str | os.PathLike[str]) -> None:
    """Writes schema.json; the file appears complete or not at all."""
    json_files.write(pathlib.Path(data_dir) / FILE_NAME, self)

  @classmethod
  def load(cls, data_dir: str | os.PathLike[str]) -> Schema:
    """Reads schema.json; raises `DataError` if it is missing or invalid."""
    return cls.load_hashed(data_dir)[0]

  @classmethod
  def load_hashed(cls, data_dir: str | os.PathLike[str]) -> tuple[Schema, str]:
    """Reads schema.json; also returns the SHA-256 of its bytes."""
    path = pathlib.Path(data_dir) / FILE_NAME
    content = json_files.read_bytes(
      path,
      remedy=REMEDY,
      missing=(
        ", so this is not a finished data directory; if it was moved, name its"
        " new place with --data, else make one with "
        + errors.command("prepare", input="FILE", output=data_dir)
      ),
    )
    schema = json_files.decode(
      content, cls, path=path, remedy=REMEDY, format=FORMAT
    )
    return schema, hashlib.sha256(content).hexdigest()


def new_directory(
  output: str | os.PathLike[str], overwrite: bool
) -> contextlib.AbstractContextManager[pathlib.Path]:
  """Yields a new directory that becomes the data directory `output`.

  See `atomic.new_directory`.
  """
  return atomic.new_directory(
    output, what="data directory", foreign=_foreign, overwrite=overwrite
  )


def check_output(output: str | os.PathLike[str], overwrite: bool) -> None:
  """Raises `DataError` unless a data directory may be written to `output`."""
  atomic.check_output(
    output, what="data directory", foreign=_foreign, overwrite=overwrite
  )


def _foreign(directory: pathlib.Path) -> str | None:
  """Name of a file that does not belong to a data directory, or None."""
  names = {path.name for path in directory.iterdir()}
  try:
    schema = Schema.load(directory)
  except errors.DataError:
    # Without a readable schema, nothing proves that the files are ours.
    return min(names)
  ours = {FILE_NAME, ORACLE_FILE}
  ours |= {s.file for shards in schema.shards.values() for s in shards}
  return min(names - ours, default=None)
