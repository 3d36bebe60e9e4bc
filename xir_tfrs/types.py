"""Types that several rooms of the library share."""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
  import tensorflow as tf

# [n] dense candidate ids -> [n, dim] embeddings.
CandidateEncoder = Callable[["tf.Tensor"], "tf.Tensor"]

FeatureKind = Literal["token", "token_seq", "text", "float", "float_seq"]
FEATURE_KINDS: tuple[str, ...] = get_args(FeatureKind)


@dataclasses.dataclass(frozen=True)
class Feature:
  """One side feature of a query or a candidate.

  Attributes:
    name: Name of the feature, unique within its tower.
    kind: `"token"` (one code per row), `"token_seq"` (any number of codes per
      row), `"text"` (the same: hashes of words, see `ops.words`), `"float"`
      (one number) or `"float_seq"` (`length` numbers).
    vocabulary_size: Kinds of codes: these lie in `[0, vocabulary_size)`, and
      code 0 means unknown or missing.
    length: `float_seq`: numbers per row.
    mean: Float kinds: 1 value, or `length` values, to subtract.
    std: Float kinds: as many values as `mean`, all > 0, to divide by.

  Examples:
    >>> price = xir.types.Feature("price", "float", mean=(9.5,), std=(2.0,))
    >>> price.is_token, price.width
    (False, 1)
  """

  name: str
  kind: str
  vocabulary_size: int | None = None
  length: int | None = None
  mean: tuple[float, ...] = ()
  std: tuple[float, ...] = ()

  def __post_init__(self) -> None:
    object.__setattr__(self, "mean", tuple(float(x) for x in self.mean))
    object.__setattr__(self, "std", tuple(float(x) for x in self.std))
    if self.kind not in FEATURE_KINDS:
      raise ValueError(
        f"`kind` of feature {self.name!r} must be one of {FEATURE_KINDS}. "
        f"Received: `kind` = {self.kind!r}."
      )
    if self.is_token:
      if not self.vocabulary_size or self.vocabulary_size < 1:
        raise ValueError(
          f"Feature {self.name!r} of kind {self.kind!r} needs a positive "
          f"`vocabulary_size`. Received: {self.vocabulary_size}."
        )
      return
    if self.kind == "float_seq" and not self.length:
      raise ValueError(
        f"Feature {self.name!r} of kind 'float_seq' needs a positive "
        f"`length`. Received: {self.length}."
      )
    if not len(self.mean) == len(self.std) == self.width:
      raise ValueError(
        f"Feature {self.name!r} needs {self.width} values of `mean` and "
        f"`std`. Received: {len(self.mean)} and {len(self.std)}."
      )
    if not all(map(math.isfinite, self.mean)):
      raise ValueError(
        f"`mean` of feature {self.name!r} must be finite. "
        f"Received: {self.mean}."
      )
    if not all(0 < std < math.inf for std in self.std):
      raise ValueError(
        f"`std` of feature {self.name!r} must be positive and finite. "
        f"Received: {self.std}."
      )

  @property
  def scope(self) -> str:
    """The name without characters that a graph refuses, as in `price (USD)`."""
    scope = re.sub(r"[^A-Za-z0-9_.-]", "_", self.name)
    # A graph refuses "_" and "-" as the first one.
    return scope if scope[:1].isalnum() else f"feature{scope}"

  @property
  def is_token(self) -> bool:
    """Whether rows hold codes."""
    return self.kind in ("token", "token_seq", "text")

  @property
  def is_ragged(self) -> bool:
    """Whether rows hold any number of codes."""
    return self.kind in ("token_seq", "text")

  @property
  def width(self) -> int:
    """Numbers per row of a float feature."""
    if self.kind == "float" or self.length is None:
      return 1
    return self.length
