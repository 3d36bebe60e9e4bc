"""The SavedModels of a bundle: towers and retrievers over original ids."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from xir_tfrs import indexes

Encode = Callable[[tf.Tensor], tf.Tensor]
Rank = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


class Encoder(tf.Module):
  """Original ids to embeddings: a table, and a tower over dense ids."""

  def __init__(
    self,
    ids: Sequence[bytes],
    encode: Encode,
    name: str | None = None,
  ):
    """Builds the table.

    Args:
      ids: original ids; row i has the dense id i.
      encode: dense ids `[n]` int64, -1 for an unknown one, to `[n, dim]`.
      name: name of the module.
    """
    super().__init__(name=name)
    self._table = _dense_ids(ids)
    self._encode = tf.function(
      encode, input_signature=[tf.TensorSpec([None], tf.int64)]
    )
    # A Keras model as an attribute would drag its training functions, and
    # what they need, into the SavedModel: hold the variables alone.
    self._used = self._encode.get_concrete_function().variables

  def __call__(self, ids: tf.Tensor) -> tf.Tensor:
    """String ids `[n]` to embeddings `[n, dim]`."""
    return self._encode(self._table.lookup(ids))


class Ranker(tf.Module):
  """Original ids of pairs to scores: two tables, and a ranker."""

  def __init__(
    self,
    query_ids: Sequence[bytes],
    candidate_ids: Sequence[bytes],
    rank: Rank,
    name: str | None = None,
  ):
    """Builds the tables.

    Args:
      query_ids: original ids; row i has the dense id i.
      candidate_ids: the same of candidates.
      rank: dense ids `[n]` of queries and `[n, m]` of candidates, int64, -1
        for an unknown one, to scores `[n, m]`.
      name: name of the module.
    """
    super().__init__(name=name)
    self._query_table = _dense_ids(query_ids)
    self._candidate_table = _dense_ids(candidate_ids)
    self._rank = tf.function(
      rank,
      input_signature=[
        tf.TensorSpec([None], tf.int64),
        tf.TensorSpec([None, None], tf.int64),
      ],
    )
    # As in `Encoder`: the variables alone.
    self._used = self._rank.get_concrete_function().variables

  def __call__(
    self, query_ids: tf.Tensor, candidate_ids: tf.Tensor
  ) -> tf.Tensor:
    """Strings `[n]` and `[n, m]` to scores `[n, m]`."""
    return self._rank(
      self._query_table.lookup(query_ids),
      self._candidate_table.lookup(candidate_ids),
    )


def save_encoder(
  encoder: Encoder, path: str | os.PathLike[str], side: str
) -> dict:
  """Saves `encode_query` or `encode_candidate`; `side` names which.

  Returns:
    The signatures, as `_describe` gives them.
  """

  def encode(ids):
    return {"embedding": encoder(ids)}

  spec = tf.TensorSpec([None], tf.string, f"{side}_id")
  signature = _function(encode).get_concrete_function(spec)
  return _save(encoder, path, {f"encode_{side}": signature})


def save_ranker(ranker: Ranker, path: str | os.PathLike[str]) -> dict:
  """Saves `rank`.

  Returns:
    The signatures, as `_describe` gives them.
  """

  def rank(query_id, candidate_ids):
    return {"scores": ranker(query_id, candidate_ids)}

  signature = _function(rank).get_concrete_function(
    tf.TensorSpec([None], tf.string, "query_id"),
    tf.TensorSpec([None, None], tf.string, "candidate_ids"),
  )
  return _save(ranker, path, {"rank": signature})


def save_retriever(
  index: indexes.RetrievalIndex,
  encoder: Encoder,
  path: str | os.PathLike[str],
) -> dict:
  """Saves an index behind the query tower: `recommend` and `search`.

  Args:
    index: over string ids.
    encoder: the query tower.
    path: directory of the SavedModel.

  Returns:
    The signatures, as `_describe` gives them.
  """

  def search(query_embeddings, k, exclude_ids):
    ids, scores = index.search(query_embeddings, k, exclude_ids)
    return {"candidate_ids": ids, "scores": scores}

  def recommend(query_id, k, exclude_ids):
    return search(encoder(query_id), k, exclude_ids)

  k = tf.TensorSpec([], tf.int32, "k")
  exclude = tf.TensorSpec([None, None], tf.string, "exclude_ids")
  module = tf.Module()
  module.index, module.encoder = index, encoder
  signatures = {
    "recommend": _function(recommend).get_concrete_function(
      tf.TensorSpec([None], tf.string, "query_id"), k, exclude
    ),
    "search": _function(search).get_concrete_function(
      tf.TensorSpec([None, index.dim], tf.float32, "query_embeddings"),
      k,
      exclude,
    ),
  }
  return _save(module, path, signatures)


def _dense_ids(
  ids: Sequence[bytes],
) -> tf.lookup.experimental.MutableHashTable:
  """A table from original ids to dense ones; -1 for an unknown id."""
  with tf.device("cpu:0"):  # String tables have no GPU kernel.
    table = tf.lookup.experimental.MutableHashTable(
      tf.string, tf.int64, default_value=np.int64(-1)
    )
    table.insert(
      tf.constant(list(ids), tf.string), tf.range(len(ids), dtype=tf.int64)
    )
  return table


def _function(
  python_function: Callable,
) -> tf.types.experimental.GenericFunction:
  # There is no Python control flow to convert, and looking for it takes most
  # of the time of an export.
  return tf.function(python_function, autograph=False)


def _save(
  module: tf.Module, path: str | os.PathLike[str], signatures: dict
) -> dict:
  tf.saved_model.save(
    module,
    os.fspath(path),
    signatures=signatures,
    options=tf.saved_model.SaveOptions(namespace_whitelist=["Scann"]),
  )
  return {name: _describe(f) for name, f in signatures.items()}


def _describe(signature: tf.types.experimental.ConcreteFunction) -> dict:
  """Inputs and outputs: name -> type and shape, None where dynamic."""

  def show(tensors):
    return {
      name: {"dtype": x.dtype.name, "shape": x.shape.as_list()}
      for name, x in tensors.items()
    }

  inputs = signature.structured_input_signature[0]
  return {
    "inputs": show({x.name: x for x in inputs}),
    "outputs": show(signature.structured_outputs),
  }
