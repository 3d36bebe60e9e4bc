"""What a user says about the input. Imports nothing heavy."""

from __future__ import annotations

import dataclasses

from xir_tfrs.data import errors

FORMATS = (
  "auto",
  "atomic",
  "csv",
  "tsv",
  "parquet",
  "adjacency",
  "tfds",
  "synthetic",
)
# Of the time column it is enough that it is there; others must be named.
_DEFAULT_TIME = "timestamp"


@dataclasses.dataclass(frozen=True)
class Columns:
  """Which columns of the input mean what.

  Attributes:
    user, item: id columns, in the interactions and in the side tables.
    time: integer time column; None takes `timestamp` if there is one.
    weight: column kept as `sample_weight`, or None.
    rating: column that `min_rating` is compared with, or None.
    min_rating: rows rated below it are left out.
    user_features, item_features: columns of the side tables to keep, as NAME
      or NAME:KIND; empty takes every column that has a kind.
    separator: between the values of a sequence in a text file.
  """

  user: str = "user_id"
  item: str = "item_id"
  time: str | None = None
  weight: str | None = None
  rating: str | None = None
  min_rating: float | None = None
  user_features: tuple[str, ...] = ()
  item_features: tuple[str, ...] = ()
  separator: str = " "

  def __post_init__(self):
    if (self.rating is None) != (self.min_rating is None):
      raise ValueError(
        "`rating_column` and `min_rating` go together: ratings only choose"
        f" rows. Received: {self.rating!r} and {self.min_rating}."
      )
    if not self.separator:
      raise ValueError("`separator` must not be empty.")

  def interaction_kinds(
    self, available: list[str], path: str, line: int | None = 1
  ) -> dict[str, str]:
    """Column -> kind of value, of the interaction columns to read."""
    from xir_tfrs.data.files import headers

    if self.user == self.item:
      raise errors.DataError(
        "cannot be both the user and the item", path=path, column=self.user
      )
    kinds = {self.user: "id", self.item: "id"}
    time = self.time_column(available)
    if time is not None:
      kinds[time] = "int"
    for name in (self.weight, self.rating):
      if name is not None:
        kinds.setdefault(name, "float")
    for name in kinds:
      headers.require_column(name, available, path, line)
    return kinds

  def time_column(self, available: list[str]) -> str | None:
    if self.time is None and _DEFAULT_TIME in available:
      return _DEFAULT_TIME
    return self.time


@dataclasses.dataclass(frozen=True)
class SyntheticConfig:
  """Size and shape of generated data; see `pipelines.readers.synthetic`.

  Attributes:
    num_users, num_items: sizes of the tables.
    num_interactions: about how many distinct pairs to draw.
    num_topics, dim: how many topics there are, in how many dimensions.
    strength: how much taste counts against popularity.
    zipf_exponent: how steeply popularity falls.
    seed: the data is a function of this configuration.
  """

  num_users: int = 6000
  num_items: int = 4000
  num_interactions: int = 240_000
  num_topics: int = 24
  dim: int = 12
  strength: float = 8.0
  zipf_exponent: float = 1.3
  seed: int = 0

  def __post_init__(self):
    for name in ("num_users", "num_items", "num_interactions"):
      if getattr(self, name) < 1:
        raise ValueError(
          f"`{name}` must be positive. Received: `{name}` ="
          f" {getattr(self, name)}."
        )


@dataclasses.dataclass(frozen=True)
class Input:
  """What to read.

  Attributes:
    paths: files, patterns or one folder; a data set name for "tfds"; nothing
      for "synthetic".
    format: one of `FORMATS`; "auto" goes by the ending of the file name.
    columns: which columns mean what.
    user_file, item_file: side features; None takes the .user and .item files
      beside an .inter file.
    data_dir: where TFDS keeps its data sets; None for its default.
    tfds_split: names of TFDS splits, joined by "+", or "all".
    synthetic: what to generate.
    chunk_bytes: how much text is parsed at a time.
  """

  paths: tuple[str, ...] = ()
  format: str = "auto"
  columns: Columns = Columns()
  user_file: str | None = None
  item_file: str | None = None
  data_dir: str | None = None
  tfds_split: str = "all"
  synthetic: SyntheticConfig = SyntheticConfig()
  chunk_bytes: int = 16 << 20

  def __post_init__(self):
    if self.format not in FORMATS:
      raise ValueError(
        f"`format` must be one of {', '.join(FORMATS)}. Received:"
        f" {self.format!r}."
      )
    if not self.paths and self.format != "synthetic":
      raise ValueError(
        "--input names the file to read; --format synthetic needs none."
      )
    if self.paths and self.format == "synthetic":
      raise ValueError(
        f"--format synthetic reads no --input. Received: {self.paths}."
      )
