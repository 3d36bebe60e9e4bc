"""schema.json: what a data directory holds.

It is written last and at once, so its presence means that the directory is
complete. The JSON mirrors `Schema` field by field.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from typing import Any

from xir_tfrs import types
from xir_tfrs.data import errors

FILE_NAME = "schema.json"
FORMAT = 1
SPLITS = ("train", "validation", "test")
TABLES = ("queries", "candidates")
KINDS = types.FEATURE_KINDS


@dataclasses.dataclass(frozen=True)
class FeatureSchema:
  """A side feature of queries or candidates, with its vocabulary.

  Attributes:
    name: name of the feature.
    kind: one of `KINDS`.
    vocabulary: token kinds: code -> token; "" (unknown, missing) is code 0.
    length: float_seq: the length of every vector.
    mean: float kinds: mean of each value over the table, missing left out.
    std: float kinds: standard deviation likewise, positive.
  """

  name: str
  kind: str
  vocabulary: tuple[str, ...] = ()
  length: int | None = None
  mean: tuple[float, ...] = ()
  std: tuple[float, ...] = ()

  def __post_init__(self):
    for field in ("vocabulary", "mean", "std"):
      object.__setattr__(self, field, tuple(getattr(self, field)))
    if self.kind not in KINDS:
      raise ValueError(
        f"feature {self.name!r}: `kind` must be one of {', '.join(KINDS)}."
        f" Received: {self.kind!r}."
      )
    if self.is_token and self.vocabulary[:1] != ("",):
      raise ValueError(
        f"feature {self.name!r}: `vocabulary` must begin with '' (code 0 is"
        f" unknown). Received: {self.vocabulary[:3]}..."
      )

  @property
  def is_token(self) -> bool:
    return self.kind in ("token", "token_seq")

  def feature(self) -> types.Feature:
    """What the library needs to know: sizes, not the tokens themselves."""
    return types.Feature(
      name=self.name,
      kind=self.kind,
      vocabulary_size=len(self.vocabulary) if self.is_token else None,
      length=self.length,
      mean=self.mean,
      std=self.std,
    )


@dataclasses.dataclass(frozen=True)
class InteractionFeature:
  """A column of the interaction records."""

  name: str
  dtype: str


@dataclasses.dataclass(frozen=True)
class Shard:
  """One TFRecord file and how many rows (not records) it holds."""

  file: str
  rows: int


@dataclasses.dataclass(frozen=True)
class Split:
  """How the rows were divided; see docs/own_data.md for each kind."""

  kind: str = "none"
  validation_fraction: float | None = None
  test_fraction: float | None = None
  seed: int | None = None


@dataclasses.dataclass(frozen=True)
class Source:
  """What the directory was made from."""

  kind: str = "unknown"
  files: tuple[dict[str, Any], ...] = ()
  options: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Schema:
  """The contents of a data directory.

  Attributes:
    name: short name of the data set.
    num_queries: rows of the query table; dense query ids lie below it.
    num_candidates: the same for candidates.
    rows: split -> number of interactions.
    shards: split or table -> its files in reading order.
    interaction_features: columns of the interaction records.
    query_features, candidate_features: side features of the two tables.
    source, split: where the rows come from and how they were divided.
    leakage: check -> number of offending rows, measured after the split.
    warnings: what was skipped or repaired -> how often.
  """

  name: str
  num_queries: int
  num_candidates: int
  rows: dict[str, int]
  shards: dict[str, tuple[Shard, ...]]
  interaction_features: tuple[InteractionFeature, ...] = (
    InteractionFeature("query_id", "int64"),
    InteractionFeature("candidate_id", "int64"),
  )
  query_features: tuple[FeatureSchema, ...] = ()
  candidate_features: tuple[FeatureSchema, ...] = ()
  source: Source = Source()
  split: Split = Split()
  leakage: dict[str, int] = dataclasses.field(default_factory=dict)
  warnings: dict[str, int] = dataclasses.field(default_factory=dict)
  format: int = FORMAT

  def save(self, data_dir: str | os.PathLike[str]) -> None:
    """Writes schema.json; the file appears complete or not at all."""
    path = pathlib.Path(data_dir) / FILE_NAME
    partial = path.with_suffix(".json.partial")
    text = json.dumps(self.to_json(), indent=1, ensure_ascii=False)
    partial.write_text(text + "\n", encoding="utf-8")
    os.replace(partial, path)

  def to_json(self) -> dict[str, Any]:
    fields = dataclasses.asdict(self)
    for table in ("query_features", "candidate_features"):
      fields[table] = [
        {k: v for k, v in feature.items() if v not in (None, ())}
        for feature in fields[table]
      ]
    return {"format": fields.pop("format"), **fields}

  @classmethod
  def load(cls, data_dir: str | os.PathLike[str]) -> Schema:
    """Reads schema.json; a `DataError` says what is missing or wrong."""
    path = pathlib.Path(data_dir) / FILE_NAME
    try:
      fields = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
      raise errors.DataError(
        "not found, so this is not a finished data directory; make one with"
        " python -m pipelines.prepare --input FILE --output"
        f" {os.fspath(data_dir)}",
        path=path,
      ) from None
    except ValueError as e:
      raise errors.DataError(
        f"not valid JSON ({e}); prepare the data again with --overwrite",
        path=path,
      ) from None
    try:
      return cls.from_json(fields)
    except (KeyError, TypeError, ValueError, AttributeError) as e:
      raise errors.DataError(
        f"not a schema of this version ({type(e).__name__}: {e}); prepare"
        " the data again with --overwrite",
        path=path,
      ) from None

  @classmethod
  def from_json(cls, fields: dict[str, Any]) -> Schema:
    if fields.get("format") != FORMAT:
      raise ValueError(
        f"`format` must be {FORMAT}. Received: {fields.get('format')!r}"
      )
    fields = dict(fields)
    for name in ("query_features", "candidate_features"):
      fields[name] = tuple(FeatureSchema(**f) for f in fields.get(name, ()))
    if "interaction_features" in fields:
      fields["interaction_features"] = tuple(
        InteractionFeature(**f) for f in fields["interaction_features"]
      )
    fields["shards"] = {
      part: tuple(Shard(**s) for s in shards)
      for part, shards in fields["shards"].items()
    }
    fields["rows"] = {s: fields["rows"].get(s, 0) for s in SPLITS}
    source = fields.get("source", {})
    fields["source"] = Source(
      **{**source, "files": tuple(source.get("files", ()))}
    )
    fields["split"] = Split(**fields.get("split", {}))
    return cls(**fields)
