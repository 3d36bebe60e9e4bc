"""Files that workers write for each other and for the launcher.

A runner may give the same work to two workers, or repeat it after a crash. So a
file is written under a temporary name and renamed in one step, and every worker
writes the same content.
"""

from __future__ import annotations

import os
import pathlib
import pickle
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import apache_beam as beam
import numpy as np


def write(path: pathlib.Path, content: Callable[[pathlib.Path], None]) -> None:
  """Writes `path` atomically; `content` writes to the path that it is given."""
  partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
  content(partial)
  os.replace(partial, path)


def save_array(path: pathlib.Path, array: np.ndarray) -> None:
  def content(partial: pathlib.Path) -> None:
    with open(partial, "wb") as file:
      np.save(file, array)

  write(path, content)


class Save(beam.DoFn):
  """Pickles the only element to `path`."""

  def __init__(self, path: pathlib.Path):
    self._path = path

  def process(self, element: Any) -> None:
    write(
      self._path, lambda partial: partial.write_bytes(pickle.dumps(element))
    )


def load(path: pathlib.Path) -> Any:
  return pickle.loads(path.read_bytes())


def parts(
  directory: pathlib.Path, name: str, suffix: str
) -> Iterator[pathlib.Path]:
  """Returns the files NAME-*.SUFFIX, sorted by name."""
  yield from sorted(directory.glob(f"{name}-*.{suffix}"))


def summed(counts: Iterable[Mapping[Any, int]]) -> dict[Any, int]:
  """Sums by key; keeps sums of 0, which `Counter` would drop."""
  total: dict[Any, int] = {}
  for part in counts:
    for key, count in part.items():
      total[key] = total.get(key, 0) + count
  return total
