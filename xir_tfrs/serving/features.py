"""Raw side features as inputs of signatures.

| kind        | input                | not given          |
|-------------|----------------------|--------------------|
| `token`     | `[n]` string         | ""                 |
| `token_seq` | `[n, width]` string  | "", also as padding|
| `text`      | `[n]` string         | ""                 |
| `float`     | `[n]` float32        | NaN                |
| `float_seq` | `[n, length]` float32| NaN                |

A feature that is not given has its value in training, if the id was there. A
token outside of the vocabulary counts as unknown. The words of a text are
hashed (`xir_tfrs.ops.words`), so any word works.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import msgspec
import numpy as np
import tensorflow as tf

from xir_tfrs import indexes, types
from xir_tfrs.ops import words
from xir_tfrs.serving import manifest

RESERVED = (
  *("query_id", "candidate_id", "query_embeddings", "ids"),
  *("k", "exclude_ids", "allow_ids", "history"),
)


class FeatureInput(manifest.Feature, frozen=True, omit_defaults=True):
  """One side feature of a query or a candidate, with its vocabulary.

  Attributes:
    vocabulary: Token kinds: code -> token; "" is code 0.
  """

  vocabulary: tuple[str, ...] = ()

  @property
  def spec(self) -> tf.TensorSpec:
    """Type and shape of the input."""
    shape = {"token_seq": [None, None], "float_seq": [None, self.length]}
    dtype = tf.float32 if self.kind.startswith("float") else tf.string
    return tf.TensorSpec(shape.get(self.kind, [None]), dtype, self.input)

  def about(self) -> manifest.Feature:
    """The entry of this feature in a manifest."""
    return manifest.Feature(
      self.name,
      self.input,
      self.kind,
      self.length,
      self.separator,
      self.num_buckets,
    )

  def not_given(self, n: tf.Tensor) -> tf.Tensor:
    """Returns the input for n rows without this feature."""
    shape = [n, *(size or 0 for size in self.spec.shape.as_list()[1:])]
    return tf.fill(shape, "" if self.spec.dtype == tf.string else np.nan)

  def to_tensor(self, values: Sequence | None, n: int) -> tf.Tensor:
    """Returns the input for n rows.

    Args:
      values: n values, where None means not given; None if none are given.
      n: Number of rows.

    Raises:
      ValueError: The number or type of the values is wrong; names the feature.
    """
    try:
      values = [None] * n if values is None else _list(values)
    except TypeError as error:
      raise ValueError(
        f"feature {self.name!r} must have one value per id: {error}."
      ) from None
    if len(values) != n:
      raise ValueError(
        f"feature {self.name!r} must have one value per id. Received: "
        f"{len(values)} values for {n} ids."
      )
    try:
      filled = self._filled(values, n)
      return tf.constant(filled.tolist(), self.spec.dtype, filled.shape)
    except (TypeError, ValueError) as error:
      raise ValueError(
        f"feature {self.name!r} is a {self.kind}: {error}."
      ) from None

  def _filled(self, values: list, n: int) -> np.ndarray:
    if self.kind in ("token", "text"):
      return np.array([_text(x) for x in values], object).reshape(n)
    if self.kind == "token_seq":
      rows = [[] if x is None else [_text(y) for y in _list(x)] for x in values]
      width = max(map(len, rows), default=0)
      rows = [row + [""] * (width - len(row)) for row in rows]
      return np.array(rows, object).reshape(n, width)
    if self.kind == "float":
      values = [np.nan if x is None else x for x in values]
      return np.array(values, np.float32).reshape(n)
    length = self.length or 1
    blank = [np.nan] * length
    values = [blank if x is None else _list(x) for x in values]
    for row in values:
      if len(row) != length:
        raise ValueError(f"expected {length} numbers, got {len(row)}")
    return np.array(values, np.float32).reshape(n, length)


class FeatureLists(msgspec.Struct, frozen=True):
  """Content of `lists/features.json`."""

  query: tuple[FeatureInput, ...]
  candidate: tuple[FeatureInput, ...]


class _Described(Protocol):
  """A feature in a schema."""

  name: str
  kind: types.FeatureKind
  length: int | None
  vocabulary: tuple[str, ...]
  separator: str | None
  num_buckets: int | None


def of_schema(
  features: Iterable[_Described], reserved: Iterable[str] = ()
) -> tuple[FeatureInput, ...]:
  """Returns the features of a schema as inputs of signatures.

  An input whose name is already taken becomes `feature_NAME`.

  Args:
    features: The features.
    reserved: Names of further inputs of the signatures, beside `RESERVED`.
  """
  taken = {*RESERVED, *reserved}
  found = []
  for feature in features:
    name = re.sub(r"\W", "_", feature.name, flags=re.ASCII)
    # Names that differ only in case are equal to TensorFlow.
    while name.lower() in taken or not _is_input(name):
      name = f"feature_{name}"
    taken.add(name.lower())
    found.append(
      FeatureInput(
        feature.name,
        name,
        feature.kind,
        feature.length,
        feature.separator,
        feature.num_buckets,
        feature.vocabulary,
      )
    )
  return tuple(found)


def _is_input(name: str) -> bool:
  """Whether a signature of TensorFlow can have an input of this name."""
  return (
    name.isidentifier()
    and not name.startswith("_")
    and not keyword.iskeyword(name)
    and name != "self"
  )


def to_tensors(
  inputs: Sequence[FeatureInput], values: Mapping[str, Sequence] | None, n: int
) -> dict[str, tf.Tensor]:
  """Returns the inputs of a signature for n rows.

  Args:
    inputs: The features.
    values: Values by name of the feature; missing features are not given.
    n: Number of ids.

  Raises:
    ValueError: A value does not fit its feature, or a feature is unknown.
  """
  values = dict(values or {})
  tensors = {x.input: x.to_tensor(values.pop(x.name, None), n) for x in inputs}
  if values:
    raise ValueError(
      f"there is no feature {next(iter(values))!r}; the features are: "
      f"{', '.join(x.name for x in inputs) or 'none'}."
    )
  return tensors


class Reader(tf.Module):
  """Converts inputs of signatures to the features that a tower takes."""

  def __init__(self, inputs: Sequence[FeatureInput], name: str | None = None):
    super().__init__(name=name)
    self._inputs = tuple(inputs)
    self._codes = {
      # Code 0 is the unknown token; IdTable returns -1 for it.
      x.name: indexes.IdTable(tf.constant(x.vocabulary[1:], tf.string))
      for x in inputs
      if x.kind.startswith("token") and len(x.vocabulary) > 1
    }

  def __call__(
    self,
    raw: Sequence[tf.Tensor],
    stored: Mapping[str, tf.Tensor | tf.RaggedTensor],
  ) -> dict[str, tf.Tensor | tf.RaggedTensor]:
    """Returns features by name, as `xir_tfrs.layers.CandidateTable` does.

    Args:
      raw: Inputs, in the order of the features.
      stored: Features of the same rows in training, used for missing inputs.
    """
    return {
      x.name: self._merged(x, value, stored[x.name])
      for x, value in zip(self._inputs, raw, strict=True)
    }

  def _merged(self, feature, raw, stored):
    if feature.kind == "token":
      return tf.where(raw == "", stored, self._lookup(feature, raw))
    if feature.kind in ("token_seq", "text"):
      given, codes = self._codes_of(feature, raw)
      keep = stored.with_values(tf.gather(~given, stored.value_rowids()))
      return tf.concat([tf.ragged.boolean_mask(stored, keep), codes], axis=1)
    return tf.where(tf.math.is_nan(raw), stored, raw)

  def _codes_of(self, feature, raw):
    """Whether each row is given, and its codes."""
    if feature.kind == "text":
      return raw != "", words.hashed(raw, feature.num_buckets)
    tokens = tf.ragged.boolean_mask(raw, raw != "")
    codes = tokens.with_values(self._lookup(feature, tokens.values))
    return tf.reduce_any(raw != "", axis=1), codes

  def _lookup(self, feature, tokens):
    if feature.name not in self._codes:  # No token was kept in training.
      return tf.zeros_like(tokens, tf.int32)
    return tf.cast(self._codes[feature.name].rows(tokens) + 1, tf.int32)


def _text(value: Any) -> str | bytes:
  if value is None:
    return ""
  if not isinstance(value, (str, bytes)):
    raise TypeError(f"{value!r} is not a string")
  return value


def _list(value: Any) -> list:
  if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
    raise TypeError(f"{value!r} is not a list")
  return list(value)
