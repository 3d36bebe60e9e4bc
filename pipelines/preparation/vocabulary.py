"""Original ids and their dense ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.preparation.config import PrepareConfig
from pipelines.readers import blocks
from pipelines.readers import source as source_lib
from xir_tfrs.data import errors


class Vocabulary:
  """Assigns dense ids 0, 1, 2, ... in order of first appearance."""

  def __init__(self):
    # As int64 while all ids are integers. The offsets of `pa.string` would end
    # at 2 GiB of ids.
    self._ids = pa.array([], pa.large_string())

  def __len__(self) -> int:
    return len(self._ids)

  def ids(self) -> list[str]:
    """Returns the original ids by dense id."""
    return self._ids.cast(pa.large_string()).to_pylist()

  def add(self, ids: Iterable[str]) -> np.ndarray:
    """Returns dense ids of `ids`; adds new ids."""
    return self.encode(pa.array(ids, pa.large_string()))

  def encode(self, ids: pa.Array) -> np.ndarray:
    """Like `add`, of an array of strings or int64."""
    return self.encode_all([ids])[0]

  def encode_all(self, columns: Sequence[pa.Array]) -> list[np.ndarray]:
    """Like `encode`, of one or more arrays.

    Each call builds a hash table of all ids so far. This doubles the work if
    the arrays have as many values as there are ids, and is more with fewer.
    """
    arrays = [self._ids, *columns]
    are_numbers = all(pa.types.is_int64(a.type) for a in arrays if len(a))
    kind = pa.int64() if are_numbers else pa.large_string()
    found = pc.dictionary_encode(pa.chunked_array(a.cast(kind) for a in arrays))
    codes = [chunk.indices.to_numpy() for chunk in found.chunks]
    # Arrays without values have no chunk.
    of_columns = np.concatenate([np.empty(0, np.int32), *codes])[len(self) :]
    if found.num_chunks:
      self._ids = found.chunk(0).dictionary
    return np.split(of_columns, np.cumsum([len(c) for c in columns])[:-1])


class Titles:
  """The first title of each id, by the codes of a `Vocabulary`."""

  def __init__(self):
    self._titles = np.empty(0, object)

  def add(self, codes: np.ndarray, titles: pa.Array) -> None:
    """Adds the titles of [n] codes; "" means none."""
    self._grow(int(codes.max(initial=-1)) + 1)
    given = pc.not_equal(titles, "").to_numpy(zero_copy_only=False)
    rows = np.flatnonzero(given & (self._titles[codes] == ""))
    first, places = np.unique(codes[rows], return_index=True)
    self._titles[first] = titles.take(pa.array(rows[places])).to_numpy(
      zero_copy_only=False
    )

  def of(self, size: int) -> np.ndarray:
    """Returns the titles by code: [size] object array of str."""
    self._grow(size)
    return self._titles[:size]

  def _grow(self, size: int) -> None:
    if size > len(self._titles):
      more = np.full(max(size, 2 * len(self._titles)), "", object)
      more[: len(self._titles)] = self._titles
      self._titles = more


class DenseIds:
  """Checks ids that are already dense: the strings "0", "1", ... "n - 1".

  `Vocabulary` collects the ids; `permutation` then restores their own order.
  Remembers the position of the largest id, for errors about gaps.

  Attributes:
    largest: The largest id so far; -1 before the first.
  """

  def __init__(self, column: str):
    self._column = column
    self.largest = -1
    self._largest_error: errors.DataError | None = None

  def check(self, block: blocks.Block, ids: pa.Array) -> None:
    """Raises `DataError` if an id of the block is not a plain whole number."""
    ids = ids.cast(pa.string())
    plain = pc.match_substring_regex(ids, "^(0|[1-9][0-9]{0,8})$")
    wrong = np.flatnonzero(~plain.to_numpy(zero_copy_only=False))
    if wrong.size:
      row = int(wrong[0])
      raise block.error(
        row,
        self._column,
        f"{ids[row].as_py()!r} is not a dense id; --dense_ids needs whole"
        " numbers from 0 without gaps, omit it for other ids",
      )
    if not len(ids):
      return
    numbers = ids.cast(pa.int64()).to_numpy()
    row = int(numbers.argmax())
    if numbers[row] > self.largest:
      self.largest = int(numbers[row])
      self._largest_error = block.error(row, self._column, "")

  def permutation(self, ids: list[str], path: str) -> np.ndarray:
    """Returns first-appearance code -> dense id; raises if there are gaps."""
    try:
      numbers = np.array(ids, dtype=np.int64)
    except ValueError:
      numbers = np.array([-1])
    present = np.zeros(len(ids), bool)
    present[numbers[(numbers >= 0) & (numbers < len(ids))]] = True
    if not present.all():
      at = self._largest_error
      raise errors.DataError(
        f"id {int(present.argmin())} is missing among {len(ids)} ids up to"
        f" {max(self.largest, int(numbers.max()))}; --dense_ids needs whole"
        " numbers from 0 without gaps, omit it for other ids",
        path=path if at is None else at.path,
        line=None if at is None else at.line,
        row=None if at is None else at.row,
        column=self._column,
      )
    return numbers.astype(np.int32)


def dense_ids(
  config: PrepareConfig, source: source_lib.Source, side: str
) -> DenseIds | None:
  """The check for dense ids of the "user" or "item" side, if requested."""
  if not config.dense_ids:
    return None
  column = getattr(source.roles, side, None) or f"{side}_id"
  return DenseIds(column)
