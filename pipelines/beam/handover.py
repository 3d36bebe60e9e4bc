"""Files that workers write for each other and for the launcher.

A runner may give the same work to two workers, or repeat it after a crash. So a
file is written under a temporary name and renamed in one step, and every worker
writes the same content.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import pickle
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt


def write(path: pathlib.Path, content: Callable[[pathlib.Path], Any]) -> None:
  """Writes `path` atomically; `content` writes to the path that it is given."""
  partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
  content(partial)
  os.replace(partial, path)


def save(path: pathlib.Path, value: Any) -> None:
  """Pickles `value` to `path`."""
  write(path, lambda partial: partial.write_bytes(pickle.dumps(value)))


def load(path: pathlib.Path) -> Any:
  return pickle.loads(path.read_bytes())


def save_array(path: pathlib.Path, array: np.ndarray) -> None:
  def content(partial: pathlib.Path) -> None:
    with open(partial, "wb") as file:
      np.save(file, array)

  write(path, content)


@dataclasses.dataclass(frozen=True)
class Slices:
  """A file of an array in consecutive slices, each of which is read alone.

  The file begins with the [count + 1] int64 limits of the slices.

  Attributes:
    path: The file.
    count: Number of slices.
    dtype: Type of the array.
  """

  path: pathlib.Path
  count: int
  dtype: np.dtype

  def write(self, lengths: npt.ArrayLike, array: np.ndarray) -> None:
    """Writes the file.

    Args:
      lengths: [count] lengths of the slices.
      array: [sum of lengths] array of `dtype`.
    """

    limits = np.append(0, np.cumsum(lengths)).astype(np.int64)

    def content(partial: pathlib.Path) -> None:
      with open(partial, "wb") as file:
        file.write(limits.tobytes())
        # Not `tofile`: its error hides that the disk is full.
        file.write(np.ascontiguousarray(array, self.dtype).view(np.uint8))

    write(self.path, content)

  def read(
    self, number: int, part: Callable[[int], tuple[int, int]] | None = None
  ) -> np.ndarray:
    """Reads a slice; `part` gives, for its length, the range to read of it."""
    with open(self.path, "rb", buffering=0) as file:
      file.seek(8 * number)
      start, stop = np.fromfile(file, np.int64, 2).tolist()
      if part is not None:
        low, high = part(stop - start)
        start, stop = start + low, start + high
      file.seek(8 * (self.count + 1) + start * self.dtype.itemsize)
      return np.fromfile(file, self.dtype, stop - start)

  def read_all(self) -> np.ndarray:
    """Reads all slices as one array."""
    return np.fromfile(self.path, self.dtype, offset=8 * (self.count + 1))

  def lengths(self) -> np.ndarray:
    """Reads the [count] lengths of the slices."""
    return np.diff(np.fromfile(self.path, np.int64, self.count + 1))


def summed(counts: Iterable[Mapping[Any, int]]) -> dict[Any, int]:
  """Sums by key; keeps sums of 0, which `Counter` would drop."""
  total: dict[Any, int] = {}
  for part in counts:
    for key, count in part.items():
      total[key] = total.get(key, 0) + count
  return total
