"""Settings of the input, without slow imports."""

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
# Values of the time column that mean to ignore times; an empty variable of a
# shell gives the second.
NO_TIMES = ("none", "")
COMPRESSIONS = ("none", "gzip", "bz2", "zip", "zstd", "xz")
_TFDS = {"format": "tfds"}
_GENERATED = {"format": "synthetic"}


@dataclasses.dataclass(frozen=True)
class Columns(settings.Settings):
  """Settings of the columns of the input."""

  user: str | None = setting(
    "column of user ids. Default: guessed by name, like those of items and"
    " times.",
    None,
    flag="user_column",
    section="Columns",
  )
  item: str | None = setting(
    "column of item ids; a list gives one row per item.",
    None,
    flag="item_column",
  )
  time: str | None = setting(
    "column of times; none ignores times.", None, flag="time_column"
  )
  time_format: str | None = setting(
    "format of times: number, iso, or a strptime format such as"
    " '%d/%m/%Y %H:%M'. Default: detected from the first values.",
    None,
  )
  time_unit: str | None = setting(
    "unit of numeric times, and of stored dates. Default: detected from the"
    " first values.",
    None,
    choices=("s", "ms", "us", "ns"),
  )
  weight: str | None = setting(
    "column to store as sample_weight.", None, flag="weight_column"
  )
  rating: str | None = setting(
    "column to compare with --min_rating. Default: guessed by name.",
    None,
    flag="rating_column",
  )
  min_rating: float | None = setting("leave out rows with lower ratings.", None)
  event: str | None = setting(
    "column of the events in --events. Default: guessed by name.",
    None,
    flag="event_column",
  )
  events: tuple[str, ...] = setting(
    "events to keep, as EVENT or EVENT:WEIGHT, where WEIGHT becomes the"
    " sample_weight. Default: all rows.",
    (),
  )
  item_list: str | None = setting(
    "column of text that lists items, instead of --item_column. If all items"
    " end in -0 or -1, as in impression logs, only those with -1 count.",
    None,
    flag="item_list_column",
  )
  list_separator: str | None = setting(
    "separator of the items in --item_list_column. Default: from the first"
    " lists.",
    None,
  )
  missing_user: str | None = setting(
    "rows without a user: drop them, or give each a new user. Default: an"
    " error.",
    None,
    choices=("drop", "new"),
  )
  user_features: tuple[str, ...] = setting(
    "columns of the user file to keep, as NAME or NAME:KIND. Default: all with"
    " a kind.",
    (),
  )
  item_features: tuple[str, ...] = setting("the same of the item file.", ())
  item_title: str | None = setting(
    "column of item titles, in the item file or, without one, in the"
    " interactions. Titles are shown with ids and are not a feature.",
    None,
  )
  user_key: str | None = setting(
    "column of ids in the user file. Default: that of the interactions, or"
    " guessed by name.",
    None,
  )
  item_key: str | None = setting("the same of the item file.", None)
  separator: str | None = setting(
    "separator of sequences in side files. Default: a space in atomic files,"
    " else guessed from the values.",
    None,
  )
  separators: dict[str, Any] = setting(
    "the same for single features: FEATURE=SEPARATOR,...", {}
  )

  def __post_init__(self):
    super().__post_init__()
    if self.rating is not None and self.min_rating is None:
      raise ValueError(
        "--rating_column and --min_rating need each other: ratings only select"
        f" rows. Received: {self.rating!r} and {self.min_rating}."
      )
    for name in ("separator", "list_separator"):
      if getattr(self, name) == "":
        raise ValueError(f"`{name}` must not be empty; see --{name}.")
    if self.item is not None and self.item_list is not None:
      raise ValueError(
        "--item_column and --item_list_column both name the items; omit one."
        f" Received: {self.item!r} and {self.item_list!r}."
      )
    if self.event is not None and not self.events:
      raise ValueError(
        "--event_column needs --events, the events to keep. Received:"
        f" --event_column {self.event}."
      )
    if self.list_separator is not None and self.item_list is None:
      raise ValueError(
        "--list_separator belongs to --item_list_column. Received:"
        f" {self.list_separator!r}."
      )
    if any(self.event_weights.values()) and self.weight is not None:
      raise ValueError(
        "--events and --weight_column both give weights; omit one."
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
        "--events: give weights to all of them or to none. Received:"
        f" {','.join(self.events)}."
      )
    return weights

  @property
  def named(self) -> tuple[str, ...]:
    """The columns that the user names."""
    given = (
      self.user,
      self.item or self.item_list,
      self.time if self.time not in NO_TIMES else None,
      self.weight,
      self.rating,
      self.event,
    )
    return tuple(name for name in given if name is not None)


@dataclasses.dataclass(frozen=True)
class FileLayout(settings.Settings):
  """Settings of the layout of a file, which is otherwise detected."""

  compression: str | None = setting(
    "compression of files. Default: detected, like encoding, delimiter, quoting"
    " and header.",
    None,
    choices=COMPRESSIONS,
    section="File layout",
  )
  encoding: str | None = setting(
    "encoding of text: utf-8, latin-1, utf-16, windows-1252, ...", None
  )
  delimiter: str | None = setting(
    "delimiter of fields; accepts the words tab and space.", None
  )
  quoting: str | None = setting(
    "how a quote in a quoted field is written: doubled, after a backslash, or"
    " like any other character, because fields are not quoted.",
    None,
    choices=("double", "backslash", "none"),
  )
  header: bool | None = setting("whether the first line names columns.", None)
  names: tuple[str, ...] = setting(
    "the columns of a file without a header line.", ()
  )


@dataclasses.dataclass(frozen=True)
class SyntheticConfig(settings.Settings):
  """Settings of generated data; see `pipelines.readers.synthetic`."""

  num_users: int = setting(
    "number of users to generate.",
    6000,
    flag="synthetic_users",
    minimum=1,
    only=_GENERATED,
    section="Generated data",
  )
  num_items: int = setting(
    "number of items to generate.",
    4000,
    flag="synthetic_items",
    minimum=1,
    only=_GENERATED,
  )
  num_interactions: int = setting(
    "approximate number of distinct pairs to generate.",
    240_000,
    flag="synthetic_interactions",
    minimum=1,
    only=_GENERATED,
  )
  num_topics: int = setting(
    "number of topics of the generated tastes.",
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
    "weight of taste against popularity.",
    8.0,
    flag="synthetic_strength",
    minimum=0,
    only=_GENERATED,
  )
  zipf_exponent: float = setting(
    "exponent with which popularity falls.",
    1.3,
    flag="synthetic_zipf",
    minimum=0,
    only=_GENERATED,
  )
  seed: int = setting(
    "seed of the generated data.",
    0,
    flag="synthetic_seed",
    minimum=0,
    only=_GENERATED,
  )


@dataclasses.dataclass(frozen=True)
class Input(settings.Settings):
  """Settings of the files to read."""

  paths: tuple[str, ...] = setting(
    "file, pattern or folder; the name of the data set with --format tfds.",
    (),
    flag="input",
    multi=True,
    section="Input",
  )
  train: tuple[str, ...] = setting(
    "file, pattern or folder of training rows, if the splits already exist; use"
    " it with --validation and --test instead of --input. With --format tfds,"
    " names of splits of the data set --input.",
    (),
    multi=True,
  )
  validation: tuple[str, ...] = setting(
    "the same for the validation rows.", (), multi=True
  )
  test: tuple[str, ...] = setting("the same for the test rows.", (), multi=True)
  format: str = setting(
    "kind of input; auto detects it from the first bytes and the file name.",
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
    "layout of the user file, if it is not detected: flags by name, such as"
    " delimiter=tab,encoding=latin-1.",
    {},
  )
  item_file: str | None = setting(
    "side features of items. Default: the .item file beside an .inter file.",
    None,
  )
  item_layout: dict[str, Any] = setting("the same for the item file.", {})
  data_dir: str | None = setting(
    "folder of TFDS data sets. Default: TFDS's own.",
    None,
    only=_TFDS,
    section="TensorFlow Datasets",
  )
  tfds_split: str = setting(
    "TFDS splits to read, joined by +.", "all", only=_TFDS
  )
  synthetic: SyntheticConfig = SyntheticConfig()
  chunk_bytes: int = setting(
    "bytes of text to parse at a time.",
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
    """Returns the layout of the "user" or "item" file."""
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
          f"--{side}_layout: there is no {name!r}; the names are"
          f" {', '.join(sorted(known))}."
        )
    self.side_layout(side)

  @property
  def given_splits(self) -> dict[str, tuple[str, ...]]:
    """Split -> its files, if the user gives the splits."""
    named = {
      "train": self.train,
      "validation": self.validation,
      "test": self.test,
    }
    return {split: names for split, names in named.items() if names}

  def _check_given_splits(self) -> None:
    if not self.train:
      raise ValueError(
        f"--{next(iter(self.given_splits))} needs --train, the training rows."
      )
    if self.format == "tfds":
      if self.tfds_split != "all":
        raise ValueError(
          "--train, --validation and --test name splits of the data set; omit"
          f" --tfds_split. Received: {self.tfds_split!r}."
        )
    elif self.paths:
      raise ValueError(
        "--train, --validation and --test replace --input. Received:"
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
