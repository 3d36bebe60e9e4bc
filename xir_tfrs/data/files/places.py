"""The positions of rows in a file, for error messages."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from xir_tfrs.data import errors


@dataclasses.dataclass(frozen=True)
class Places:
  """The positions of some rows of a file.

  Attributes:
    path: The file.
    numbers: The 1-based number of the first row if every line is a row, else an
      int array with the number of each row.
    unit: What `numbers` counts: "line", or "row" if the file has no lines.
  """

  path: str
  numbers: int | np.ndarray
  unit: str = "line"

  def number(self, row: int) -> int:
    if isinstance(self.numbers, int):
      return self.numbers + row
    return int(self.numbers[row])

  def all(self, rows: int) -> np.ndarray:
    """Returns [rows] the number of each row."""
    if isinstance(self.numbers, int):
      return np.arange(self.numbers, self.numbers + rows)
    return self.numbers

  def take(self, rows: np.ndarray) -> Places:
    """Returns the places of some rows, by index."""
    numbers = self.numbers
    if isinstance(numbers, int):
      return Places(self.path, numbers + rows, self.unit)
    return Places(self.path, numbers[rows], self.unit)

  def of_values(self, lengths: np.ndarray) -> Places:
    """Returns the places of values, given the number of values per row."""
    numbers = np.repeat(self.all(len(lengths)), lengths)
    return Places(self.path, numbers, self.unit)

  def error(
    self, row: int | None, column: str, message: str
  ) -> errors.DataError:
    """Returns an error about `column`, in a 0-based row or in general."""
    where: dict[str, Any] = {}
    if row is not None:
      where[self.unit] = self.number(row)
    return errors.DataError(message, path=self.path, column=column, **where)
