"""Encodes side features by dense id: codes of tokens, moments of numbers."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xir_tfrs.data import schema as schema_lib
from xir_tfrs.data.files import side_tables

if TYPE_CHECKING:
  from xir_tfrs.data import table_files

# A spread below this share of the mean (and of 1) counts as rounding error.
_MIN_RELATIVE_STD = 1e-6
_TEXTS_AT_ONCE = 1 << 14


@dataclasses.dataclass(frozen=True)
class Encoded:
  """Side features of a table in dense order.

  Attributes:
    features: Entries of the schema.
    columns: As in `table_files.Table`.
    missing_rows: Number of rows without a row in the side file.
    rare_tokens: Number of distinct tokens mapped to the unknown code 0.
  """

  features: tuple[schema_lib.FeatureSchema, ...] = ()
  columns: dict[str, table_files.Column] = dataclasses.field(
    default_factory=dict
  )
  missing_rows: int = 0
  rare_tokens: int = 0


def encode(
  table: side_tables.SideTable | None,
  dense_ids: np.ndarray,
  num_rows: int,
  min_token_count: int,
  text_buckets: int,
) -> Encoded:
  """Encodes `table`.

  Args:
    table: Side features, or None.
    dense_ids: [rows of table] dense id of each row.
    num_rows: Number of dense ids; ids without a row in `table` get code 0, an
      empty list or NaN.
    min_token_count: Tokens in fewer rows get code 0. Token counts, means and
      standard deviations are over the rows of `table`.
    text_buckets: Number of hash buckets for the words of a text.
  """
  if table is None:
    return Encoded()
  features, columns, rare_tokens = [], {}, 0
  for name, kind in table.kinds.items():
    values = table.columns[name]
    if kind in ("token", "token_seq"):
      vocabulary, rare = _vocabulary(values, min_token_count)
      rare_tokens += rare
      features.append(
        schema_lib.FeatureSchema(
          name,
          kind,
          vocabulary=vocabulary,
          separator=table.separators.get(name),
        )
      )
      codes = _codes(values, vocabulary)
      columns[name] = (
        _placed(codes, dense_ids, num_rows, 0)
        if kind == "token"
        else _placed_lists(
          np.diff(values.offsets.to_numpy()), codes, dense_ids, num_rows
        )
      )
    elif kind == "text":
      features.append(
        schema_lib.FeatureSchema(name, kind, num_buckets=text_buckets)
      )
      lengths, codes = _hashed(values, text_buckets)
      columns[name] = _placed_lists(lengths, codes, dense_ids, num_rows)
    else:
      mean, std = _moments(values)
      features.append(
        schema_lib.FeatureSchema(
          name,
          kind,
          length=values.shape[1] if kind == "float_seq" else None,
          mean=mean,
          std=std,
          separator=table.separators.get(name),
        )
      )
      columns[name] = _placed(values, dense_ids, num_rows, np.nan)
  missing = num_rows - len(dense_ids) if features else 0
  return Encoded(tuple(features), columns, missing, rare_tokens)


def _flat(values: pa.Array) -> pa.Array:
  return values.flatten() if pa.types.is_list(values.type) else values


def _vocabulary(
  values: pa.Array, min_count: int
) -> tuple[tuple[str, ...], int]:
  """Returns the vocabulary and the number of rare tokens.

  Code 0 is ""; the tokens follow by descending count, then by name. A token of
  a sequence counts at each occurrence.
  """
  counted = pc.value_counts(_flat(values))
  counts = {
    token: count
    for token, count in zip(
      counted.field("values").to_pylist(),
      counted.field("counts").to_pylist(),
      strict=True,
    )
    if token
  }
  kept = [token for token, count in counts.items() if count >= min_count]
  kept.sort(key=lambda token: (-counts[token], token))
  return ("", *kept), len(counts) - len(kept)


def _codes(values: pa.Array, vocabulary: tuple[str, ...]) -> np.ndarray:
  codes = pc.index_in(
    _flat(values), value_set=pa.array(vocabulary, pa.string())
  )
  return pc.fill_null(codes, 0).to_numpy().astype(np.int32)


def _placed(
  values: np.ndarray, dense_ids: np.ndarray, num_rows: int, missing: float
) -> np.ndarray:
  out = np.full([num_rows, *values.shape[1:]], missing, values.dtype)
  out[dense_ids] = values
  return out


def _hashed(texts: pa.Array, num_buckets: int) -> tuple[np.ndarray, np.ndarray]:
  """The number of codes of each text, and all codes."""
  import tensorflow as tf  # Only texts need it.

  from xir_tfrs.ops import words

  lengths, codes = [np.empty(0, np.int64)], [np.empty(0, np.int32)]
  for start in range(0, len(texts), _TEXTS_AT_ONCE):
    part = texts.slice(start, _TEXTS_AT_ONCE).to_numpy(zero_copy_only=False)
    found = words.hashed(tf.constant(part), num_buckets)
    lengths.append(found.row_lengths().numpy())
    codes.append(found.values.numpy())
  return np.concatenate(lengths), np.concatenate(codes)


def _placed_lists(
  lengths: np.ndarray,
  codes: np.ndarray,
  dense_ids: np.ndarray,
  num_rows: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Codes by dense id and their row splits."""
  owner = np.repeat(dense_ids, lengths)
  by_owner = np.argsort(owner, kind="stable")
  counts = _placed(lengths.astype(np.int64), dense_ids, num_rows, 0)
  return codes[by_owner], np.concatenate([[0], np.cumsum(counts)])


def _moments(
  values: np.ndarray,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """Mean and standard deviation per column, ignoring missing values."""
  wide = values.astype(np.float64).reshape(len(values), -1)
  there = np.isfinite(wide)
  number = np.maximum(there.sum(0), 1)
  mean = np.where(there, wide, 0).sum(0) / number
  std = np.sqrt(np.where(there, (wide - mean) ** 2, 0).sum(0) / number)
  # A constant column is shifted to 0, not divided by its rounding error.
  floor = _MIN_RELATIVE_STD * np.maximum(np.abs(mean), 1)
  std = np.where(std > floor, std, 1.0)
  return tuple(mean.tolist()), tuple(std.tolist())
