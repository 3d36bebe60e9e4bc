"""Files that workers leave for each other and for the launcher.

A runner may give the same work to two workers, or again to one after a crash.
So a file is written under a name of its own and takes its place at once, and
whoever writes it writes the same.
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
  """`content` writes to the path it is given, which then becomes `path`."""
  partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
  content(partial)
  os.replace(partial, path)


def save_array(path: pathlib.Path, array: np.ndarray) -> None:
  def content(partial: pathlib.Path) -> None:
    with open(partial, "wb") as file:
      np.save(file, array)

  write(path, content)


class Save(beam.DoFn):
  """Pickles the one element there is to `path`."""

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
  """The files NAME-*.SUFFIX in the order of their names."""
  yield from sorted(directory.glob(f"{name}-*.{suffix}"))


def summed(counts: Iterable[Mapping[Any, int]]) -> dict[Any, int]:
  """Sums by key; keeps keys whose sum is 0, which `Counter` would drop."""
  total: dict[Any, int] = {}
  for part in counts:
    for key, count in part.items():
      total[key] = total.get(key, 0) + count
  return total
