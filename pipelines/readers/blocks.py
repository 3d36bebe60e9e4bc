"""What every reader yields: interactions in blocks, with their places."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa

from pipelines.readers import inputs
from xir_tfrs.data import errors
from xir_tfrs.data.files import columns
from xir_tfrs.data.files import places as places_lib

# A row of a source that is not text counts as so many bytes of its `size`:
# about what it takes as text, and no less than it takes in a bucket.
ROW_BYTES = 32


@dataclasses.dataclass(frozen=True)
class Block:
  """Consecutive interactions of one file.

  Attributes:
    places: where the rows stand.
    users, items: [n] string arrays of original ids, never empty or null.
    progress: how far this block reaches, in units of `Source.size`.
    times: [n] int64 or None.
    weights: [n] float32, finite and not negative, or None.
    ratings: [n] float64 or None.
  """

  places: places_lib.Places
  users: pa.Array
  items: pa.Array
  progress: int
  times: np.ndarray | None = None
  weights: np.ndarray | None = None
  ratings: np.ndarray | None = None

  def error(self, row: int, column: str, message: str) -> errors.DataError:
    """An error about the value of `column` in a row of this block."""
    return self.places.error(row, column, message)


@dataclasses.dataclass(frozen=True)
class Piece:
  """A part of the input that can be read by itself.

  Attributes:
    file: number of the file.
    start, stop: the lines that begin at these bytes of the file, without
      `stop`; Parquet: these row groups.
    position: of its first row or before; see `Source.read`.
  """

  file: int
  start: int
  stop: int
  position: int


def from_arrow(
  batch: pa.RecordBatch,
  roles: inputs.Columns,
  places: places_lib.Places,
  progress: int,
) -> Block:
  """The interactions of a record batch."""

  def of(name: str | None, read) -> np.ndarray | None:
    return None if name is None else read(batch.column(name), name, places)

  weights = of(roles.weight, columns.finite)
  return Block(
    places=places,
    users=of(roles.user, columns.id_strings),
    items=of(roles.item, columns.id_strings),
    progress=progress,
    times=of(roles.time_column(batch.schema.names), columns.times),
    weights=None
    if weights is None
    else columns.weights(weights, roles.weight, places),
    ratings=of(roles.rating, columns.finite),
  )
