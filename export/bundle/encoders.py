"""The encoders of a bundle: towers over original ids and raw features."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from xir_tfrs import indexes
from xir_tfrs.data import paths
from xir_tfrs.models import cold_start
from xir_tfrs.programs import progress
from xir_tfrs.serving import features

_BATCH = 8192

# Maps dense ids `[n]`, features by name and further inputs to `[n, dim]`.
Encode = Callable[..., tf.Tensor]


class Encoded(NamedTuple):
  """Vectors of n ids, and whether they are known.

  Attributes:
    embedding: `[n, dim]` float32; `[n, interests, dim]` for a tower with
      interests, where the highest score counts.
    row: `[n]` int64 dense ids, -1 for ids without training rows.
    answerable: `[n]` bool, whether an id has training rows, features, or a
      history.
    num_history: `[n]` int32, number of known ids in the history; None if the
      tower takes no histories.
  """

  embedding: tf.Tensor
  row: tf.Tensor
  answerable: tf.Tensor
  num_history: tf.Tensor | None = None

  def outputs(self) -> dict[str, tf.Tensor]:
    """Returns the outputs of a signature."""
    return {k: x for k, x in self._asdict().items() if x is not None}


class Encoder(Protocol):
  """A tower over original ids and raw features.

  Attributes:
    inputs: The side features.
    id_dtype: Type of the ids.
    takes_history: Whether it encodes histories.
    takes_times: Whether it also uses the times of histories.
    shape: Shape of the vectors of one id: `[dim]` or `[interests, dim]`.
  """

  inputs: tuple[features.FeatureInput, ...]
  id_dtype: tf.DType
  takes_history: bool
  takes_times: bool
  shape: tuple[int, ...]

  def __call__(
    self, ids: tf.Tensor, raw: Sequence[tf.Tensor], *history: tf.Tensor
  ) -> Encoded:
    """Encodes ids.

    Args:
      ids: `[n]` original ids.
      raw: The side features, in the order of `inputs`.
      *history: If it takes histories: `[n, H]` original ids of candidates,
        newest last; padding and unknown ids are ignored. If it takes times:
        those of the history `[n, up to H]`, and of the request `[n]`; negative
        or missing times are unknown.
    """


class TrainedEncoder(tf.Module):
  """An `Encoder` from a trained tower over dense ids; it can be saved.

  Ids without training rows count as unknown; see `models.cold_start`.
  """

  takes_history = False
  takes_times = False

  def __init__(
    self,
    ids: indexes.IdTable,
    counts: np.ndarray,
    encode: Encode,
    look_up: Callable[[tf.Tensor], cold_start.Features] | None = None,
    inputs: Sequence[features.FeatureInput] = (),
    further: Sequence[tf.TensorSpec] = (),
    name: str | None = None,
  ):
    """Builds the encoder.

    Args:
      ids: Original ids; row i has the dense id i.
      counts: `[number of ids]` training rows of each.
      encode: The tower.
      look_up: Maps dense ids to their features in training; required with
        `inputs`.
      inputs: The side features of the tower.
      further: Specs of the tower's further inputs.
      name: Name of the module.
    """
    super().__init__(name=name)
    self.inputs = tuple(inputs)
    self.further = tuple(further)
    self.id_dtype = ids.dtype
    self._ids = ids
    self._has_rows = tf.Variable(
      np.asarray(counts) > 0, trainable=False, name="has_rows"
    )
    self._reader = features.Reader(self.inputs)

    def encode_rows(rows, *values):
      raw, rest = values[: len(inputs)], values[len(inputs) :]
      given = self._reader(raw, look_up(rows)) if raw else {}
      listed = tf.gather(self._has_rows, tf.maximum(rows, 0))
      has_rows = listed & (rows >= 0)
      return Encoded(
        cold_start.encode(
          lambda ids, given: encode(ids, given, *rest), rows, has_rows, given
        ),
        tf.where(has_rows, rows, indexes.NO_ROW),
        tf.ensure_shape(cold_start.is_answerable(has_rows, given), [None]),
      )

    specs = [x.spec for x in self.inputs]
    self._encode = tf.function(
      encode_rows,
      input_signature=[tf.TensorSpec([None], tf.int64), *specs, *further],
      autograph=False,
    )
    # Only holds the variables: a Keras model as an attribute would add its
    # training functions to the SavedModel.
    traced = self._encode.get_concrete_function()
    self._used = traced.variables
    self.shape = tuple(traced.structured_outputs.embedding.shape[1:])

  def __call__(
    self, ids: tf.Tensor, raw: Sequence[tf.Tensor], *further: tf.Tensor
  ) -> Encoded:
    return self._encode(self._ids.rows(ids), *raw, *further)

  def of_rows(self, rows: tf.Tensor, *further: tf.Tensor) -> Encoded:
    """Encodes dense ids with their features in training."""
    given = features.to_tensors(self.inputs, None, len(rows))
    return self._encode(rows, *given.values(), *further)


class LoadedEncoder(tf.Module):
  """An `Encoder` from the SavedModel of a tower."""

  takes_history = False
  takes_times = False

  def __init__(
    self,
    path: str | os.PathLike[str],
    side: str,
    inputs: Sequence[features.FeatureInput] = (),
    *,
    signature: str | None = None,
    further: Sequence[str] = (),
    name: str | None = None,
  ):
    """Loads the encoder.

    Args:
      path: Directory of the SavedModel.
      side: "query" or "candidate".
      inputs: The side features of the tower.
      signature: The signature to call; by default that of the side.
      further: Names of the signature's further inputs.
      name: Name of the module.
    """
    super().__init__(name=name)
    self.inputs = tuple(inputs)
    # The signature does not keep tables and variables alive.
    self._model = tf.saved_model.load(os.fspath(paths.literal(path)))
    self._signature = self._model.signatures[signature or f"encode_{side}"]
    self._names = (f"{side}_id", *(x.input for x in self.inputs), *further)
    specs = self._signature.structured_input_signature[1]
    self.id_dtype = specs[self._names[0]].dtype
    outputs = self._signature.structured_outputs
    self.shape = tuple(outputs["embedding"].shape[1:])

  def __call__(
    self, ids: tf.Tensor, raw: Sequence[tf.Tensor], *further: tf.Tensor
  ) -> Encoded:
    given = dict(zip(self._names, (ids, *raw, *further), strict=True))
    return Encoded(**self._signature(**given))


class RowEncoder(Protocol):
  """Encodes dense ids, as `TrainedEncoder` does."""

  def of_rows(self, rows: tf.Tensor) -> Encoded:
    """Encodes `[n]` dense ids with their inputs in training."""


def encode_rows(
  encoder: RowEncoder, rows: np.ndarray, show: bool = False
) -> Encoded:
  """Encodes dense ids `[n]` in batches; returns arrays.

  Args:
    encoder: The tower.
    rows: Dense ids.
    show: Whether to show progress.
  """
  parts = []
  with progress.Progress("encode", len(rows), show=show) as bar:
    for low in range(0, len(rows), _BATCH):
      part = rows[low : low + _BATCH]
      parts.append(encoder.of_rows(tf.constant(part, tf.int64)))
      bar.update_rows(low + len(part), len(part))
  return joined(parts)


def joined(parts: Sequence[Encoded]) -> Encoded:
  """Concatenates one or more parts as arrays; without `num_history`."""
  columns = zip(*(part[:3] for part in parts), strict=True)
  return Encoded(*(np.concatenate(column) for column in columns))


class Ranker(tf.Module):
  """A ranker over original ids.

  Attributes:
    takes_history: Whether it takes the histories of the queries.
  """

  def __init__(
    self,
    query_ids: indexes.IdTable,
    candidate_ids: indexes.IdTable,
    rank: Callable[..., tf.Tensor],
    takes_history: bool = False,
    name: str | None = None,
  ):
    """Builds the ranker.

    Args:
      query_ids: Original ids of queries; row i has the dense id i.
      candidate_ids: Original ids of candidates, likewise.
      rank: Maps int64 dense ids `[n]` of queries, `[n, m]` of candidates and,
        if it takes histories, `[n, H]` of candidates in them, -1 for unknown
        ids, to scores `[n, m]`.
      takes_history: See the class.
      name: Name of the module.
    """
    super().__init__(name=name)
    self.query_ids = query_ids
    self.candidate_ids = candidate_ids
    self.takes_history = takes_history
    lists = tf.TensorSpec([None, None], tf.int64)
    self._rank = tf.function(
      rank,
      input_signature=[
        tf.TensorSpec([None], tf.int64),
        *[lists] * (1 + takes_history),
      ],
      autograph=False,
    )
    # Only holds the variables, as in `TrainedEncoder`.
    self._used = self._rank.get_concrete_function().variables

  def __call__(
    self,
    query_ids: tf.Tensor,
    candidate_ids: tf.Tensor,
    *history: tf.Tensor,
  ) -> tf.Tensor:
    """Scores `[n, m]` for ids `[n]`, `[n, m]` and of histories `[n, H]`."""
    return self._rank(
      self.query_ids.rows(query_ids),
      self.candidate_ids.rows(candidate_ids),
      *map(self.candidate_ids.rows, history),
    )
