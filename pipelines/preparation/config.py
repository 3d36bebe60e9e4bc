"""What `pipelines.prepare` is asked for. Imports nothing heavy."""

from __future__ import annotations

import dataclasses

from pipelines.preparation import spill
from pipelines.readers import inputs
from xir_tfrs.data import schema as schema_lib
from xir_tfrs.programs import settings
from xir_tfrs.programs.settings import setting

_FRACTIONS = {"split": ("random", "temporal")}
_VALIDATION = 0.1


@dataclasses.dataclass(frozen=True)
class PrepareConfig(settings.Settings):
  """What to read, how to divide it, and where to write it; the flags."""

  input: inputs.Input
  output: str = setting("data directory to make.")
  overwrite: bool = setting("replace a data directory at --output.", False)
  name: str | None = setting("name of the data set; else that of a file.", None)
  split: str = setting(
    "how rows are divided: a share of each user's rows, one moment for all, or"
    " each user's last rows.",
    "random",
    choices=("random", "temporal", "leave_last"),
  )
  test_fraction: float = setting(
    "share of test rows.", 0.2, minimum=0, only=_FRACTIONS
  )
  validation_fraction: float | None = setting(
    "share of the other rows that validate. Default: 0.1 with --split random,"
    " 0 with --split temporal.",
    None,
    minimum=0,
    only=_FRACTIONS,
  )
  seed: int = setting(
    "of the random split, and of the order of training rows with any split.",
    10,
  )
  dense_ids: bool = setting(
    "ids are 0 ... n - 1 already: keep them as the dense ids.", False
  )
  min_token_count: int = setting(
    "tokens in fewer rows of a side file become unknown.", 1, minimum=1
  )
  num_buckets: int | None = setting(
    "buckets of users that rows are sorted in, one in memory at a time."
    " Default: by the size of the input.",
    None,
    minimum=1,
    maximum=spill.MAX_BUCKETS,
  )

  def __post_init__(self):
    super().__post_init__()
    for name in ("test_fraction", "validation_fraction"):
      if (getattr(self, name) or 0) >= 1:
        raise ValueError(
          f"--{name} must be below 1. Received: {getattr(self, name)}."
        )

  @property
  def row_split(self) -> schema_lib.Split:
    """Only what the split depends on."""
    if self.split == "leave_last":
      return schema_lib.Split("leave_last")
    is_random = self.split == "random"
    validation = self.validation_fraction
    if validation is None:
      validation = _VALIDATION if is_random else 0.0
    return schema_lib.Split(
      self.split,
      validation_fraction=validation,
      test_fraction=self.test_fraction,
      seed=self.seed if is_random else None,
    )
