"""Side features by dense id, so that an id is all a tower needs."""

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from xir_tfrs.layers import state
from xir_tfrs.ops import xla
from xir_tfrs.types import Feature

Column = np.ndarray | tuple[np.ndarray, np.ndarray]


class CandidateTable(tf.keras.layers.Layer):
  """The features of all candidates (or queries), in host memory.

  A cached candidate can be encoded again at any step from its id alone, and an
  exported tower carries its features with it. They are held in variables, so
  that they are in the checkpoint and not in a graph.

  Row `num_rows` stands for an unknown id: code 0, no tokens, missing numbers.

  Examples:
    >>> price = xir.types.Feature("price", "float", mean=(0.0,), std=(1.0,))
    >>> kind = xir.types.Feature("kind", "token", vocabulary_size=3)
    >>> table = xir.layers.CandidateTable(
    ...   [price, kind],
    ...   {"price": np.array([9.5, 2.0]), "kind": np.array([1, 2])},
    ... )
    >>> found = table(tf.constant([1, -1]))  # -1 is unknown.
    >>> found["price"].numpy(), found["kind"].numpy()
    (array([ 2., nan], dtype=float32), array([2, 0], dtype=int32))
  """

  def __init__(
    self,
    features: Sequence[Feature],
    columns: Mapping[str, Column] | None = None,
    *,
    sizes: Mapping[str, int] | None = None,
    num_rows: int | None = None,
    name: str = "candidate_table",
  ) -> None:
    """Builds the table, from columns or, to be restored, from sizes.

    Args:
      features: The features.
      columns: By feature name: `token` [rows] integer codes; `token_seq` and
        `text` a pair (codes [n], row_splits [rows + 1]); `float` [rows] and
        `float_seq` [rows, length] raw numbers, NaN where missing.
      sizes: Without `columns`: by name of a `token_seq` or `text`, its number
        of codes.
      num_rows: Without `columns`: number of rows.
      name: Name of the layer.

    Raises:
      ValueError: A column is missing, misshapen, or holds a code outside its
        vocabulary.
    """
    super().__init__(name=name, autocast=False)
    self._features = tuple(features)
    if columns is None:
      columns = _blank_columns(self._features, num_rows, sizes or {})
    self._num_rows = _num_rows(self._features, columns)
    self._sizes = {}
    self._columns = {}
    for feature in self._features:
      column = _checked(feature, columns[feature.name], self._num_rows)
      if isinstance(column, tuple):
        codes, row_splits = column
        self._sizes[feature.name] = len(codes)
        self._columns[feature.name] = (
          self._variable(f"{feature.scope}_codes", codes),
          self._variable(
            f"{feature.scope}_row_splits",
            np.append(row_splits, row_splits[-1]),
          ),
        )
      else:
        blank = 0 if feature.is_token else np.nan
        padding = np.full((1, *column.shape[1:]), blank, column.dtype)
        self._columns[feature.name] = self._variable(
          feature.scope, np.concatenate([column, padding])
        )

  @property
  def features(self) -> tuple[Feature, ...]:
    return self._features

  @property
  def num_rows(self) -> int:
    return self._num_rows

  def call(self, ids: tf.Tensor) -> dict[str, tf.Tensor | tf.RaggedTensor]:
    """Looks features up.

    Args:
      ids: [n] integer ids; those outside `[0, num_rows)` are unknown.

    Returns:
      By feature name: `token` [n] int32, `token_seq` and `text` ragged
      [n, None] int32 (compiled by XLA [n, width], as wide as the longest and
      padded with -1), `float` [n] and `float_seq` [n, length] float32.
    """
    known = (ids >= 0) & (ids < self._num_rows)
    rows = tf.where(known, ids, tf.cast(self._num_rows, ids.dtype))
    found = {}
    for feature in self._features:
      column = self._columns[feature.name]
      if feature.is_ragged:
        codes, row_splits = column
        gather = _gather_padded if xla.compiling() else _gather_ragged
        found[feature.name] = gather(codes, row_splits, rows)
      else:
        found[feature.name] = tf.gather(column, rows)
    return found

  def get_config(self) -> dict:
    """Shapes only: the content comes from the checkpoint."""
    return {
      "features": [vars(feature) for feature in self._features],
      "num_rows": self._num_rows,
      "sizes": dict(self._sizes),
      "name": self.name,
    }

  @classmethod
  def from_config(cls, config: dict) -> "CandidateTable":
    config = dict(config)
    features = [Feature(**feature) for feature in config.pop("features")]
    return cls(features, **config)

  def _variable(self, name: str, value: np.ndarray) -> tf.Variable:
    # Handed over as an array: as a graph constant a table of 2 GiB fails.
    return state.add_state(
      self,
      name,
      value.shape,
      tf.as_dtype(value.dtype),
      lambda: tf.convert_to_tensor(value),
    )


def _gather_ragged(
  codes: tf.Tensor, row_splits: tf.Tensor, rows: tf.Tensor
) -> tf.RaggedTensor:
  starts = tf.gather(row_splits, rows)
  lengths = tf.gather(row_splits, rows + 1) - starts
  out_splits = tf.concat([[0], tf.cumsum(lengths)], 0)
  positions = tf.range(out_splits[-1]) + tf.repeat(
    starts - out_splits[:-1], lengths
  )
  return tf.RaggedTensor.from_row_splits(
    tf.gather(codes, positions), out_splits, validate=False
  )


def _gather_padded(
  codes: tf.Variable, row_splits: tf.Variable, rows: tf.Tensor
) -> tf.Tensor:
  with tf.init_scope():
    splits = row_splits.numpy()
    width = int(np.max(splits[1:] - splits[:-1]))
  starts = tf.gather(row_splits, rows)[:, tf.newaxis]
  ends = tf.gather(row_splits, rows + 1)[:, tf.newaxis]
  positions = starts + tf.range(width, dtype=tf.int64)
  inside = positions < ends
  return tf.where(inside, tf.gather(codes, tf.where(inside, positions, 0)), -1)


def _blank_columns(
  features: Sequence[Feature], num_rows: int | None, sizes: Mapping[str, int]
) -> dict[str, Column]:
  if num_rows is None:
    raise ValueError("CandidateTable needs `columns`, or `num_rows`.")
  columns: dict[str, Column] = {}
  for feature in features:
    if feature.is_ragged:
      codes = np.zeros(sizes[feature.name], np.int32)
      splits = np.zeros(num_rows + 1, np.int64)
      splits[-1] = len(codes)
      columns[feature.name] = (codes, splits)
    elif feature.kind == "token":
      columns[feature.name] = np.zeros(num_rows, np.int32)
    else:
      shape = (num_rows, feature.width)[: 1 if feature.kind == "float" else 2]
      columns[feature.name] = np.zeros(shape, np.float32)
  return columns


def _num_rows(
  features: Sequence[Feature], columns: Mapping[str, Column]
) -> int:
  missing = [f.name for f in features if f.name not in columns]
  if missing or not features:
    raise ValueError(
      f"CandidateTable needs a column for each feature. Missing: {missing}."
    )
  first = columns[features[0].name]
  if features[0].is_ragged:
    return len(_pair(features[0], first)[1]) - 1
  return len(first)


def _pair(feature: Feature, column: Column) -> tuple[np.ndarray, np.ndarray]:
  """The codes and row_splits of a ragged feature."""
  if isinstance(column, (tuple, list)) and len(column) == 2:
    codes, row_splits = (np.asarray(x) for x in column)
    if codes.ndim == row_splits.ndim == 1 and row_splits.size:
      return codes, row_splits
  raise ValueError(
    f"Column {feature.name!r} must be a pair (codes [n], row_splits "
    "[rows + 1]), such as (ragged.values, ragged.row_splits). Received: "
    f"{column!r:.200}."
  )


def _integers(name: str, values: np.ndarray) -> np.ndarray:
  """`values` as integers, which they must be but for their type."""
  if values.dtype.kind in "iu":
    return values
  if values.dtype.kind != "f":
    raise ValueError(f"{name} must be integers. Received: type {values.dtype}.")
  with np.errstate(invalid="ignore"):  # NaN is refused below.
    whole = values.astype(np.int64)
  if (whole != values).any():
    raise ValueError(
      f"{name} must be integers. Received: {values[whole != values][0]}."
    )
  return whole


def _checked(feature: Feature, column: Column, num_rows: int) -> Column:
  """The column in the type it is stored in."""
  codes: np.ndarray | None = None
  shape: tuple[int, ...]
  expected: tuple[int, ...] = (num_rows,)
  if feature.is_ragged:
    codes, row_splits = _pair(feature, column)
    codes = _integers(f"Codes of {feature.name!r}", codes)
    row_splits = _integers(f"`row_splits` of {feature.name!r}", row_splits)
    shape = (len(row_splits) - 1,)
    if row_splits[0] != 0 or row_splits[-1] != len(codes):
      raise ValueError(
        f"`row_splits` of {feature.name!r} must run from 0 to the number of "
        f"codes, {len(codes)}. Received: {row_splits[0]} to {row_splits[-1]}."
      )
    if (row_splits[1:] < row_splits[:-1]).any():
      raise ValueError(f"`row_splits` of {feature.name!r} must not descend.")
    column = (codes.astype(np.int32), row_splits.astype(np.int64))
  elif feature.kind == "token":
    codes = _integers(f"Codes of {feature.name!r}", np.asarray(column))
    column = codes.astype(np.int32)
    shape = codes.shape
  else:
    try:
      with np.errstate(over="ignore"):  # Infinity is refused below.
        column = np.asarray(column, np.float32)
    except (TypeError, ValueError) as error:
      raise ValueError(
        f"Column {feature.name!r} must hold numbers: {error}."
      ) from error
    if np.isinf(column).any():
      raise ValueError(
        f"Column {feature.name!r} must be finite in float32, or NaN where a "
        f"number is missing. Received: {np.isinf(column).sum()} infinite ones."
      )
    shape = column.shape
    if feature.kind == "float_seq":
      expected = (num_rows, feature.width)
  if shape != expected:
    raise ValueError(
      f"Column {feature.name!r} must have shape {expected}. Received: {shape}."
    )
  if codes is not None and codes.size and feature.vocabulary_size:
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high >= feature.vocabulary_size:
      raise ValueError(
        f"Codes of {feature.name!r} must lie in "
        f"[0, {feature.vocabulary_size}). Received: {low} to {high}."
      )
  return column
