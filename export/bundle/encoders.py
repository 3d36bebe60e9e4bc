"""Towers over original ids and raw features: the encoders of a bundle."""

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

# Dense ids `[n]`, features by name, and what else a tower takes, to `[n, dim]`.
Encode = Callable[..., tf.Tensor]


class Encoded(NamedTuple):
  """Vectors of n ids, and what is known of them.

  Attributes:
    embedding: `[n, dim]` float32; `[n, interests, dim]` of a tower with
      interests, where the score of a candidate is its highest.
    row: `[n]` int64 dense ids, -1 for ids that have no training rows.
    answerable: `[n]` bool, whether anything is known of it: training rows,
      features, or a history.
    num_history: `[n]` int32, how many ids of the history are known; None
      where no history is taken.
  """

  embedding: tf.Tensor
  row: tf.Tensor
  answerable: tf.Tensor
  num_history: tf.Tensor | None = None

  def outputs(self) -> dict[str, tf.Tensor]:
    """What a signature answers."""
    return {k: x for k, x in self._asdict().items() if x is not None}


class Encoder(Protocol):
  """A tower over original ids and raw features.

  Attributes:
    inputs: the side features.
    id_dtype: type of the ids.
    takes_history: whether it encodes histories.
    shape: that of the vectors of one id: `[dim]`, or `[interests, dim]`.
  """

  inputs: tuple[features.FeatureInput, ...]
  id_dtype: tf.DType
  takes_history: bool
  shape: tuple[int, ...]

  def __call__(
    self, ids: tf.Tensor, raw: Sequence[tf.Tensor], *history: tf.Tensor
  ) -> Encoded:
    """Encodes ids.

    Args:
      ids: `[n]` original ids.
      raw: the side features, in the order of `inputs`.
      *history: if it takes histories: `[n, H]` original ids of candidates, the
        newest last; padding and unknown ids are ignored.
    """


class TrainedEncoder(tf.Module):
  """An `Encoder` made of a tower over dense ids, to be saved.

  An id without training rows counts as unknown; see `models.cold_start`.
  """

  takes_history = False

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
    """Takes the parts.

    Args:
      ids: original ids; row i has the dense id i.
      counts: `[number of ids]` training rows of each.
      encode: the tower.
      look_up: dense ids to their features in training; needed with `inputs`.
      inputs: the side features of the tower.
      further: what the tower takes after the features.
      name: name of the module.
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
    # A Keras model as an attribute would drag its training functions, and
    # what they need, into the SavedModel: hold the variables alone.
    traced = self._encode.get_concrete_function()
    self._used = traced.variables
    self.shape = tuple(traced.structured_outputs.embedding.shape[1:])

  def __call__(
    self, ids: tf.Tensor, raw: Sequence[tf.Tensor], *further: tf.Tensor
  ) -> Encoded:
    return self._encode(self._ids.rows(ids), *raw, *further)

  def of_rows(self, rows: tf.Tensor, *further: tf.Tensor) -> Encoded:
    """Encodes dense ids, with the features they had in training."""
    given = features.to_tensors(self.inputs, None, len(rows))
    return self._encode(rows, *given.values(), *further)


class LoadedEncoder(tf.Module):
  """An `Encoder` made of the SavedModel of a tower."""

  takes_history = False

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
    """Loads it.

    Args:
      path: directory of the SavedModel.
      side: "query" or "candidate".
      inputs: the side features of the tower.
      signature: which one to call; None: that of its side.
      further: names of what the signature takes after the features.
      name: name of the module.
    """
    super().__init__(name=name)
    self.inputs = tuple(inputs)
    # The signature alone does not keep tables and variables alive.
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
    """Encodes `[n]` of them, with what they had in training."""


def encode_rows(
  encoder: RowEncoder, rows: np.ndarray, show: bool = False
) -> Encoded:
  """Encodes dense ids `[n]` in batches; arrays, not tensors.

  Args:
    encoder: the tower.
    rows: dense ids.
    show: whether to show progress.
  """
  parts = []
  with progress.Progress("encode", len(rows), show=show) as bar:
    for low in range(0, len(rows), _BATCH):
      part = rows[low : low + _BATCH]
      parts.append(encoder.of_rows(tf.constant(part, tf.int64)))
      bar.update_rows(low + len(part), len(part))
  return joined(parts)


def joined(parts: Sequence[Encoded]) -> Encoded:
  """One after another; arrays, not tensors. At least one, of candidates."""
  columns = zip(*(part[:3] for part in parts), strict=True)
  return Encoded(*(np.concatenate(column) for column in columns))


class Ranker(tf.Module):
  """Original ids of pairs to scores: two tables, and a ranker.

  Attributes:
    takes_history: whether it scores with the histories of the queries too.
  """

  def __init__(
    self,
    query_ids: indexes.IdTable,
    candidate_ids: indexes.IdTable,
    rank: Callable[..., tf.Tensor],
    takes_history: bool = False,
    name: str | None = None,
  ):
    """Takes the parts.

    Args:
      query_ids: original ids; row i has the dense id i.
      candidate_ids: the same of candidates.
      rank: dense ids `[n]` of queries, `[n, m]` of candidates, and, if it
        takes histories, `[n, H]` of candidates in them, int64, -1 for an
        unknown one, to scores `[n, m]`.
      takes_history: see the class.
      name: name of the module.
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
    # As in `TrainedEncoder`: the variables alone.
    self._used = self._rank.get_concrete_function().variables

  def __call__(
    self,
    query_ids: tf.Tensor,
    candidate_ids: tf.Tensor,
    *history: tf.Tensor,
  ) -> tf.Tensor:
    """Ids `[n]`, `[n, m]` and, of histories, `[n, H]` to scores `[n, m]`."""
    return self._rank(
      self.query_ids.rows(query_ids),
      self.candidate_ids.rows(candidate_ids),
      *map(self.candidate_ids.rows, history),
    )
