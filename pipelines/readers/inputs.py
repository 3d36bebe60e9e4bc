"""What a user says about the input. Imports nothing heavy."""

from __future__ import annotations

import dataclasses

from xir_tfrs.data import errors
from xir_tfrs.programs import settings
from xir_tfrs.programs.settings import setting

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
_TFDS = {"format": "tfds"}
_GENERATED = {"format": "synthetic"}


@dataclasses.dataclass(frozen=True)
class Columns(settings.Settings):
  """Which columns of the input mean what."""

  user: str = setting("column of user ids.", "user_id", flag="user_column")
  item: str = setting("column of item ids.", "item_id", flag="item_column")
  time: str | None = setting(
    "column of integer times. Default: 'timestamp' where there is one.",
    None,
    flag="time_column",
  )
  weight: str | None = setting(
    "column kept as sample_weight.", None, flag="weight_column"
  )
  rating: str | None = setting(
    "column compared with --min_rating.",
    None,
    flag="rating_column",
  )
  min_rating: float | None = setting("leave out rows rated below it.", None)
  user_features: tuple[str, ...] = setting(
    "columns of the user file to keep, as NAME or NAME:KIND. Default: all that"
    " have a kind.",
    (),
  )
  item_features: tuple[str, ...] = setting("the same of the item file.", ())
  separator: str = setting(
    "between the values of a sequence in a text file.", " "
  )

  def __post_init__(self):
    super().__post_init__()
    if (self.rating is None) != (self.min_rating is None):
      raise ValueError(
        "--rating_column and --min_rating go together: ratings only choose"
        f" rows. Received: {self.rating!r} and {self.min_rating}."
      )
    if not self.separator:
      raise ValueError("`separator` must not be empty; see --separator.")

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
class SyntheticConfig(settings.Settings):
  """Size and shape of generated data; see `pipelines.readers.synthetic`."""

  num_users: int = setting(
    "users to generate.",
    6000,
    flag="synthetic_users",
    minimum=1,
    only=_GENERATED,
  )
  num_items: int = setting(
    "items to generate.",
    4000,
    flag="synthetic_items",
    minimum=1,
    only=_GENERATED,
  )
  num_interactions: int = setting(
    "about how many distinct pairs to generate.",
    240_000,
    flag="synthetic_interactions",
    minimum=1,
    only=_GENERATED,
  )
  num_topics: int = setting(
    "topics of the generated tastes.",
    24,
    flag="synthetic_topics",
    minimum=1,
    only=_GENERATED,
  )
  dim: int = setting(
    "dimensions of the generated tastes.",
    12,
    flag="synthetic_dim",
    minimum=1,
    only=_GENERATED,
  )
  strength: float = setting(
    "how much taste counts against popularity.",
    8.0,
    flag="synthetic_strength",
    minimum=0,
    only=_GENERATED,
  )
  zipf_exponent: float = setting(
    "how steeply popularity falls.",
    1.3,
    flag="synthetic_zipf",
    minimum=0,
    only=_GENERATED,
  )
  seed: int = setting(
    "of the generated data.",
    0,
    flag="synthetic_seed",
    minimum=0,
    only=_GENERATED,
  )


@dataclasses.dataclass(frozen=True)
class Input(settings.Settings):
  """What to read."""

  paths: tuple[str, ...] = setting(
    "file, pattern or folder; the name of the data set with --format tfds.",
    (),
    flag="input",
    multi=True,
  )
  train: tuple[str, ...] = setting(
    "file, pattern or folder of training rows, where the splits exist already:"
    " with --validation and --test in place of --input. With --format tfds,"
    " names of splits of the data set --input.",
    (),
    multi=True,
  )
  validation: tuple[str, ...] = setting(
    "the same for the rows that validate.", (), multi=True
  )
  test: tuple[str, ...] = setting("the same for the test rows.", (), multi=True)
  format: str = setting(
    "kind of input; auto goes by the ending of the file name.",
    "auto",
    choices=FORMATS,
  )
  columns: Columns = Columns()
  user_file: str | None = setting(
    "side features of users. Default: the .user file beside an .inter file.",
    None,
  )
  item_file: str | None = setting(
    "side features of items. Default: the .item file beside an .inter file.",
    None,
  )
  data_dir: str | None = setting(
    "folder of TFDS data sets. Default: that of TFDS.", None, only=_TFDS
  )
  tfds_split: str = setting(
    "TFDS splits to read, joined by +.", "all", only=_TFDS
  )
  synthetic: SyntheticConfig = SyntheticConfig()
  chunk_bytes: int = setting(
    "bytes of text that are parsed at a time.", 16 << 20, minimum=1
  )

  def __post_init__(self):
    super().__post_init__()
    if self.format == "synthetic":
      self._require_nothing_to_read()
    elif self.given_splits:
      self._check_given_splits()
    elif not self.paths:
      raise ValueError(
        "--input names the file to read; --format synthetic needs none."
      )

  @property
  def given_splits(self) -> dict[str, tuple[str, ...]]:
    """Split -> what holds its rows, where the user gives the splits."""
    named = {
      "train": self.train,
      "validation": self.validation,
      "test": self.test,
    }
    return {split: names for split, names in named.items() if names}

  def _check_given_splits(self) -> None:
    if not self.train:
      raise ValueError(
        f"--{next(iter(self.given_splits))} needs --train, the rows to train."
      )
    if self.format == "tfds":
      if self.tfds_split != "all":
        raise ValueError(
          "--train, --validation and --test name splits of the data set; leave"
          f" out --tfds_split. Received: {self.tfds_split!r}."
        )
    elif self.paths:
      raise ValueError(
        "--train, --validation and --test take the place of --input. Received:"
        f" --input {self.paths[0]}."
      )

  def _require_nothing_to_read(self) -> None:
    values = settings.values_of(self)
    for one in settings.settings_of(type(self)):
      is_used = one.name == "format" or one.about.only == (_GENERATED,)
      if not is_used and values[one.name] != one.default:
        raise ValueError(
          f"--format synthetic reads nothing and has no --{one.name}."
          f" Received: {values[one.name]!r}."
        )
