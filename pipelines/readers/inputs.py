"""What a user says about the input. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
from typing import Any

from xir_tfrs.programs import settings
from xir_tfrs.programs.settings import setting

FORMATS = (
  "auto",
  "atomic",
  "csv",
  "tsv",
  "json",
  "parquet",
  "arrow",
  "orc",
  "adjacency",
  "tfds",
  "synthetic",
)
# As the time column: to do without times.
NO_TIMES = "none"
COMPRESSIONS = ("none", "gzip", "bz2", "zip", "zstd", "xz")
_TFDS = {"format": "tfds"}
_GENERATED = {"format": "synthetic"}


@dataclasses.dataclass(frozen=True)
class Columns(settings.Settings):
  """Which columns of the input mean what."""

  user: str | None = setting(
    "column of user ids. Default: the one that is called so, as are those of"
    " items and times.",
    None,
    flag="user_column",
    section="Which columns mean what",
  )
  item: str | None = setting(
    "column of item ids; a list of them gives as many rows.",
    None,
    flag="item_column",
  )
  time: str | None = setting(
    "column of times; none to do without.", None, flag="time_column"
  )
  time_format: str | None = setting(
    "how times are written: number, iso, or as strptime takes it, such as"
    " '%d/%m/%Y %H:%M'. Default: told by the first of them.",
    None,
  )
  time_unit: str | None = setting(
    "unit of numbers as times, and what dates are kept in. Default: told by"
    " the first of them.",
    None,
    choices=("s", "ms", "us", "ns"),
  )
  weight: str | None = setting(
    "column kept as sample_weight.", None, flag="weight_column"
  )
  rating: str | None = setting(
    "column compared with --min_rating. Default: the one that is called so.",
    None,
    flag="rating_column",
  )
  min_rating: float | None = setting("leave out rows rated below it.", None)
  event: str | None = setting(
    "column that --events choose from. Default: the one that is called so.",
    None,
    flag="event_column",
  )
  events: tuple[str, ...] = setting(
    "events to keep, as EVENT or as EVENT:WEIGHT, which becomes the"
    " sample_weight. Default: all rows.",
    (),
  )
  item_list: str | None = setting(
    "column of text that lists items, in place of --item_column. Of items that"
    " all end in -0 or -1, as in logs of what was shown, those with -1 count.",
    None,
    flag="item_list_column",
  )
  list_separator: str | None = setting(
    "between the items of --item_list_column. Default: told by the first"
    " lists.",
    None,
  )
  missing_user: str | None = setting(
    "rows without a user: drop them, or let each have a new one. Default: an"
    " error.",
    None,
    choices=("drop", "new"),
  )
  user_features: tuple[str, ...] = setting(
    "columns of the user file to keep, as NAME or NAME:KIND. Default: all that"
    " have a kind.",
    (),
  )
  item_features: tuple[str, ...] = setting("the same of the item file.", ())
  item_title: str | None = setting(
    "column of the item file, or without one of the interactions, that is shown"
    " with the ids of items. It is no feature.",
    None,
  )
  user_key: str | None = setting(
    "column of ids in the user file. Default: that of the interactions, or the"
    " one that is called so.",
    None,
  )
  item_key: str | None = setting("the same of the item file.", None)
  separator: str | None = setting(
    "between the values of a sequence in a side file. Default: a space in"
    " atomic files, else told by the values.",
    None,
  )
  separators: dict[str, Any] = setting(
    "the same of one feature: FEATURE=SEPARATOR,...", {}
  )

  def __post_init__(self):
    super().__post_init__()
    if self.rating is not None and self.min_rating is None:
      raise ValueError(
        "--rating_column and --min_rating go together: ratings only choose"
        f" rows. Received: {self.rating!r} and {self.min_rating}."
      )
    for name in ("separator", "list_separator"):
      if getattr(self, name) == "":
        raise ValueError(f"`{name}` must not be empty; see --{name}.")
    if self.item is not None and self.item_list is not None:
      raise ValueError(
        "--item_column and --item_list_column both name the items; leave one"
        f" out. Received: {self.item!r} and {self.item_list!r}."
      )
    if self.event is not None and not self.events:
      raise ValueError(
        "--event_column needs --events, those to keep. Received:"
        f" --event_column {self.event}."
      )
    if self.list_separator is not None and self.item_list is None:
      raise ValueError(
        "--list_separator belongs to --item_list_column. Received:"
        f" {self.list_separator!r}."
      )
    if any(self.event_weights.values()) and self.weight is not None:
      raise ValueError(
        "--events and --weight_column both give weights; leave one out."
        f" Received: {','.join(self.events)} and {self.weight!r}."
      )

  @property
  def event_weights(self) -> dict[str, float | None]:
    """Event -> its weight; all None if none has one."""
    weights: dict[str, float | None] = {}
    for text in self.events:
      name, colon, number = text.rpartition(":")
      try:
        weight = float(number) if colon else None
      except ValueError:
        name, weight = text, None
      name = name if weight is not None else text
      if weight is not None and not 0 <= weight < 3e38:
        raise ValueError(f"--events: {number} is not a weight, in {text!r}.")
      weights[name] = weight
    given = [weight is not None for weight in weights.values()]
    if any(given) and not all(given):
      raise ValueError(
        "--events: give all of them weights or none. Received:"
        f" {','.join(self.events)}."
      )
    return weights

  @property
  def named(self) -> tuple[str, ...]:
    """The columns that the user names."""
    given = (
      self.user,
      self.item or self.item_list,
      self.time if self.time != NO_TIMES else None,
      self.weight,
      self.rating,
      self.event,
    )
    return tuple(name for name in given if name is not None)


@dataclasses.dataclass(frozen=True)
class FileLayout(settings.Settings):
  """How the files of interactions are written, where it is not detected."""

  compression: str | None = setting(
    "how files are packed. Default: detected, as are encoding, delimiter,"
    " quoting and header.",
    None,
    choices=COMPRESSIONS,
    section="How the files are written",
  )
  encoding: str | None = setting(
    "of text: utf-8, latin-1, utf-16, windows-1252, ...", None
  )
  delimiter: str | None = setting(
    "between the fields of a line; tab and space are words for those.", None
  )
  quoting: str | None = setting(
    "how a quote stands in a quoted field: twice, behind a backslash, or as"
    " any other character, as there are no quoted fields.",
    None,
    choices=("double", "backslash", "none"),
  )
  header: bool | None = setting("whether the first line names columns.", None)
  names: tuple[str, ...] = setting(
    "the columns of a file without a header line.", ()
  )


@dataclasses.dataclass(frozen=True)
class SyntheticConfig(settings.Settings):
  """Size and shape of generated data; see `pipelines.readers.synthetic`."""

  num_users: int = setting(
    "users to generate.",
    6000,
    flag="synthetic_users",
    minimum=1,
    only=_GENERATED,
    section="Generated data",
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
    section="What to read",
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
    "kind of input; auto goes by the first bytes and the name of a file.",
    "auto",
    choices=FORMATS,
  )
  layout: FileLayout = FileLayout()
  columns: Columns = Columns()
  user_file: str | None = setting(
    "side features of users. Default: the .user file beside an .inter file.",
    None,
    section="Side features",
  )
  user_layout: dict[str, Any] = setting(
    "how the user file is written, where it is not detected: by the names of"
    " flags, such as delimiter=tab,encoding=latin-1.",
    {},
  )
  item_file: str | None = setting(
    "side features of items. Default: the .item file beside an .inter file.",
    None,
  )
  item_layout: dict[str, Any] = setting("the same of the item file.", {})
  data_dir: str | None = setting(
    "folder of TFDS data sets. Default: that of TFDS.",
    None,
    only=_TFDS,
    section="TensorFlow Datasets",
  )
  tfds_split: str = setting(
    "TFDS splits to read, joined by +.", "all", only=_TFDS
  )
  synthetic: SyntheticConfig = SyntheticConfig()
  chunk_bytes: int = setting(
    "bytes of text that are parsed at a time.",
    16 << 20,
    minimum=1,
    section="Memory",
  )

  def __post_init__(self):
    super().__post_init__()
    for side in ("user", "item"):
      self._check_side(side)
    if self.format == "synthetic":
      self._require_nothing_to_read()
    elif self.given_splits:
      self._check_given_splits()
    elif not self.paths:
      raise ValueError(
        "--input names the file to read; --format synthetic needs none."
      )

  def side_layout(self, side: str) -> FileLayout:
    """How the "user" or the "item" file is written."""
    given = getattr(self, f"{side}_layout")
    try:
      return settings.build(FileLayout, given)
    except ValueError as error:
      raise ValueError(f"--{side}_layout: {error}") from None

  def _check_side(self, side: str) -> None:
    known = {one.name for one in settings.settings_of(FileLayout)}
    for name in getattr(self, f"{side}_layout"):
      if name not in known:
        raise ValueError(
          f"--{side}_layout: there is no {name!r}; known are"
          f" {', '.join(sorted(known))}."
        )
    self.side_layout(side)

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
