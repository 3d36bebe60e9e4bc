"""Settings of `pipelines.prepare`, without slow imports."""

from __future__ import annotations

import dataclasses
import re

from pipelines.preparation import datasets, spill
from pipelines.readers import inputs
from xir_tfrs.data import schema as schema_lib
from xir_tfrs.programs import settings
from xir_tfrs.programs.settings import setting

_FRACTIONS = {"split": ("random", "temporal")}
_SPLITS = ("random", "temporal", "leave_last", "given")
_VALIDATION = 0.1
TEXT_BUCKETS = 1 << 15


@dataclasses.dataclass(frozen=True)
class PrepareConfig(settings.Settings):
  """Settings of the input, the split and the output; the flags."""

  common = (
    *("input", "output", "user_column", "item_column", "time_column"),
    *("dataset", "item_file", "min_rating", "split", "overwrite"),
  )

  input: inputs.Input
  output: str = setting("data directory to write.", section="Output")
  overwrite: bool = setting("replace a data directory at --output.", False)
  name: str | None = setting(
    "name of the data set. Default: from the input.", None
  )
  dataset: str | None = setting(
    "public data set, downloaded to --input as a folder or archive. Its files,"
    " columns and features are known; other flags override them.",
    None,
    choices=tuple(datasets.DATA_SETS),
  )
  split: str | None = setting(
    "how rows are split: a share of each user's rows, one point in time for"
    " all, each user's last rows, or as given by --train, --validation and"
    " --test. Default: given with --train, else random.",
    None,
    choices=_SPLITS,
    section="Training, validation and test rows",
  )
  keep_repeats: bool = setting(
    "keep all rows of a user and item, not only the first.",
    False,
    section="Repeats and sessions",
  )
  repeats: str = setting(
    "which row of a user and item to keep: the first or the last in time, the"
    " first with the sum of the weights, or the one with the largest weight.",
    "first",
    choices=spill.REPEATS,
    only={"keep_repeats": False},
  )
  session_gap: str | None = setting(
    "replace users by sessions, which end after a pause of this length, such"
    " as 30m (s, m, h, d).",
    None,
  )
  test_fraction: float = setting(
    "share of test rows.",
    0.2,
    minimum=0,
    only=_FRACTIONS,
    section="Training, validation and test rows",
  )
  validation_fraction: float | None = setting(
    "share of validation rows among the other rows; with --train, a random"
    " share of each user's rows there. Default: 0.1 with --split random, else"
    " 0.",
    None,
    minimum=0,
    only={"split": (*_FRACTIONS["split"], "given")},
  )
  seed: int = setting(
    "seed of the random split, and of the order of training rows.",
    10,
  )
  dense_ids: bool = setting(
    "keep the ids as dense ids: they already are 0 ... n - 1.",
    False,
    section="Ids and tokens",
  )
  min_token_count: int = setting(
    "tokens in fewer rows of a side file count as unknown.", 1, minimum=1
  )
  text_buckets: int = setting(
    "number of hash buckets for the words of each text feature.",
    TEXT_BUCKETS,
    minimum=2,
  )
  num_buckets: int | None = setting(
    "number of buckets of users, of which one is in memory at a time."
    " Default: by the size of the input.",
    None,
    minimum=1,
    maximum=spill.MAX_BUCKETS,
    section="Memory",
  )

  def __post_init__(self):
    super().__post_init__()
    if self.session_gap is not None:
      self._check_sessions()
    if self.dataset is not None and len(self.input.paths) != 1:
      raise ValueError(
        "--dataset takes one --input, the folder or archive of the data set."
        f" Received: {len(self.input.paths)}."
      )
    from_dataset = datasets.brings_split(self.dataset)
    is_given = bool(self.input.given_splits) or from_dataset
    if self.split is None:
      object.__setattr__(self, "split", "given" if is_given else "random")
    if is_given and self.split != "given":
      which = "--train, --validation and --test define the"
      if from_dataset:
        which = f"--dataset {self.dataset} brings its own"
      raise ValueError(
        f"{which} split; omit --split. Received: --split {self.split}."
      )
    if self.split == "given" and not is_given:
      raise ValueError(
        "--split given needs --train, the training rows, and --validation or"
        " --test."
      )
    if self.input.validation and self.validation_fraction:
      raise ValueError(
        "--validation_fraction takes validation rows from --train, and"
        " --validation gives them: omit one of the two."
      )
    for name in ("test_fraction", "validation_fraction"):
      if (getattr(self, name) or 0) >= 1:
        raise ValueError(
          f"--{name} must be below 1. Received: {getattr(self, name)}."
        )

  def resolved(self) -> PrepareConfig:
    """Returns the config with the settings that `dataset` implies.

    Raises:
      DataError: A file of the data set is missing.
      SettingsError: A setting contradicts one of the data set.
    """
    if self.dataset is None:
      return self
    given = settings.changed(self)
    del given["dataset"]
    flags = datasets.flags(self.dataset, self.input.paths[0], given)
    # A flag may contradict one of the data set.
    with settings.naming(f"--dataset {self.dataset}"):
      return settings.build(type(self), flags)

  def _check_sessions(self) -> None:
    if not self.session_seconds:
      raise ValueError(
        "--session_gap must be a number and a unit, such as 30m, 45s, 2h, 1d."
        f" Received: {self.session_gap!r}."
      )
    given = {"user_file": self.input.user_file, "dense_ids": self.dense_ids}
    for name, value in given.items():
      if value:
        raise ValueError(
          f"--session_gap replaces users by sessions; omit --{name}."
        )

  @property
  def session_seconds(self) -> float | None:
    """The pause that ends a session; None without sessions."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", self.session_gap or "")
    if not found:
      return None
    units = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
    return float(found[1]) * units[found[2]]

  @property
  def kept_repeats(self) -> str:
    """How to treat repeats, as `passes.arranged` takes it."""
    return spill.KEPT if self.keep_repeats else self.repeats

  @property
  def row_split(self) -> schema_lib.Split:
    """The split, with only the settings that affect it."""
    kind = self.split or "random"
    if kind == "given" and self.validation_fraction:
      return schema_lib.Split(
        kind, validation_fraction=self.validation_fraction, seed=self.seed
      )
    if kind in ("leave_last", "given"):
      return schema_lib.Split(kind)
    is_random = kind == "random"
    validation = self.validation_fraction
    if validation is None:
      validation = _VALIDATION if is_random else 0.0
    return schema_lib.Split(
      kind,
      validation_fraction=validation,
      test_fraction=self.test_fraction,
      seed=self.seed if is_random else None,
    )
