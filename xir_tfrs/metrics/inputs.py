"""Checks and converts the arguments of `full_ranking`."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Ragged:
  """Dense ids per query: row q is `values[row_splits[q]:row_splits[q + 1]]`."""

  values: np.ndarray  # [n] int64
  row_splits: np.ndarray  # [num_queries + 1] int64

  @classmethod
  def empty(cls, num_queries: int) -> "Ragged":
    return cls(np.zeros(0, np.int64), np.zeros(num_queries + 1, np.int64))

  @property
  def lengths(self) -> np.ndarray:
    return np.diff(self.row_splits)

  def chunk(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (row - start, id) of every entry of rows start .. stop - 1."""
    splits = self.row_splits[start : stop + 1]
    rows = np.repeat(np.arange(stop - start), np.diff(splits))
    return rows, self.values[splits[0] : splits[-1]]

  def renumbered(self, kept: np.ndarray | slice, num_ids: int) -> "Ragged":
    """Keeps the ids in `kept` and replaces each by its position there."""
    if isinstance(kept, slice):
      return self
    places = np.full(num_ids, -1)
    places[kept] = np.arange(len(kept))
    values = places[self.values]
    before = np.concatenate([[0], np.cumsum(values >= 0)])
    return Ragged(values[values >= 0], before[self.row_splits])


def check_ks(ks: Sequence[int]) -> tuple[int, ...]:
  """Returns the cut-offs as Python integers, in the given order."""
  given = tuple(ks) if isinstance(ks, Iterable) else ()
  whole = all(
    isinstance(k, (int, np.integer)) and not isinstance(k, bool) for k in given
  )
  if not (given and whole and min(given) > 0) or len({*given}) < len(given):
    raise ValueError(
      "`ks` must be one or more distinct positive integers. Received: "
      f"`ks` = {ks}."
    )
  return tuple(int(k) for k in given)


def check_embeddings(
  query_embeddings: tf.Tensor | np.ndarray,
  candidate_embeddings: tf.Tensor | np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns both as arrays of one dtype: float64 if either is, else float32."""
  arrays = {
    "query_embeddings": np.asarray(query_embeddings),
    "candidate_embeddings": np.asarray(candidate_embeddings),
  }
  for name, array in arrays.items():
    if not tf.as_dtype(array.dtype).is_floating:
      raise ValueError(
        f"`{name}` must be floats. Received: dtype {array.dtype}."
      )
    several = array.ndim == 3 and name == "query_embeddings"  # Interests.
    if not (array.ndim == 2 or several) or 0 in array.shape:
      raise ValueError(
        f"`{name}` must be [rows, dim] with at least one row and one column. "
        f"Received: shape {list(array.shape)}."
      )
  queries, candidates = arrays.values()
  if queries.shape[-1] != candidates.shape[1]:
    raise ValueError(
      "Embeddings must have the same dim. Received: `query_embeddings` "
      f"{list(queries.shape)} and `candidate_embeddings` "
      f"{list(candidates.shape)}."
    )
  wide = np.float64 in (queries.dtype, candidates.dtype)
  dtype = np.float64 if wide else np.float32
  norms = []
  for name, array in arrays.items():
    array = arrays[name] = array.astype(dtype, copy=False)
    broken = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(1))
    if len(broken):
      raise ValueError(
        f"`{name}` has NaN or infinity in row {broken[0]} ({len(broken)} of "
        f"{len(array)} rows): the model has diverged."
      )
    norms.append(np.linalg.norm(array.astype(np.float64), axis=-1).max())
  # |score| <= norm x norm. On overflow, infinity - infinity gives NaN.
  if norms[0] * norms[1] > np.finfo(dtype).max:
    raise ValueError(
      f"Scores could overflow {dtype.__name__}: the largest norms are "
      f"{norms[0]:.3g} (`query_embeddings`) and {norms[1]:.3g} "
      "(`candidate_embeddings`)."
    )
  return arrays["query_embeddings"], arrays["candidate_embeddings"]


def check_ids(
  name: str, ids: tf.RaggedTensor, num_queries: int, num_candidates: int
) -> Ragged:
  """Returns the dense ids of each query."""
  if not isinstance(ids, tf.RaggedTensor) or ids.ragged_rank != 1:
    raise ValueError(
      f"`{name}` must be a tf.RaggedTensor [num_queries, None], e.g. from "
      f"`tf.RaggedTensor.from_row_lengths`. Received: {ids!r:.200}."
    )
  values = ids.values.numpy()
  # Accepts tf.ragged.constant([[], []]), which is an empty float tensor.
  if values.ndim != 1 or (len(values) and values.dtype.kind not in "iu"):
    raise ValueError(
      f"`{name}` must hold integers, [num_queries, None]. Received: dtype "
      f"{values.dtype}, shape {ids.shape}."
    )
  values = values.astype(np.int64)
  ragged = Ragged(values, ids.row_splits.numpy().astype(np.int64))
  if len(ragged.lengths) != num_queries:
    raise ValueError(
      f"`{name}` must have a row for each query. Received: "
      f"{len(ragged.lengths)} rows for {num_queries} queries."
    )
  wrong = np.flatnonzero((values < 0) | (values >= num_candidates))
  if len(wrong):
    row = np.searchsorted(ragged.row_splits, wrong[0], side="right") - 1
    raise ValueError(
      f"`{name}` must hold ids in [0, {num_candidates}). Received: "
      f"{values[wrong[0]]} in row {row} ({len(wrong)} such ids)."
    )
  return ragged


def check_lists(
  relevant: tf.RaggedTensor,
  seen: tf.RaggedTensor | None,
  num_queries: int,
  num_candidates: int,
) -> tuple[Ragged, Ragged]:
  """Returns what each query should find, and what it has seen."""
  found = check_ids("relevant", relevant, num_queries, num_candidates)
  check_unique("relevant", found, num_candidates)
  if len(found.values) == 0:
    raise ValueError(
      f"`relevant` is empty for each of the {num_queries} queries: there is "
      "nothing to evaluate."
    )
  if seen is None:
    return found, Ragged.empty(num_queries)
  return found, check_ids("seen", seen, num_queries, num_candidates)


def check_indexed(
  indexed: np.ndarray | None, num_candidates: int
) -> np.ndarray | slice:
  """Returns the dense ids of the candidates that can be found."""
  if indexed is None:
    return slice(None)
  indexed = np.asarray(indexed)
  if indexed.dtype != bool or indexed.shape != (num_candidates,):
    raise ValueError(
      f"`indexed` must be booleans, [{num_candidates}]. Received: dtype "
      f"{indexed.dtype}, shape {list(indexed.shape)}."
    )
  if not indexed.any():
    raise ValueError(
      "`indexed` contains no candidate: there is nothing to find."
    )
  return slice(None) if indexed.all() else np.flatnonzero(indexed)


def check_unique(name: str, ragged: Ragged, num_candidates: int) -> None:
  """Raises `ValueError` if a query has the same id twice."""
  rows, ids = ragged.chunk(0, len(ragged.lengths))
  keys = np.sort(rows * num_candidates + ids)
  repeated = keys[1:][keys[1:] == keys[:-1]]
  if len(repeated):
    row, candidate = divmod(int(repeated[0]), num_candidates)
    raise ValueError(
      f"`{name}` must not repeat an id in a row. Received: candidate "
      f"{candidate} twice in row {row} ({len(repeated)} repeats)."
    )
