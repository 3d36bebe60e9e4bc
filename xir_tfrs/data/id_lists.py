"""Lists of ids as memory-mapped .npy files, without pickle.

Strings take two files, `NAME.data.npy` and `NAME.offsets.npy`; integers take
one, `NAME.npy`. This module does not need TensorFlow.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np

from xir_tfrs.data import errors


class StringList(Sequence[str]):
  """A read-only list of strings, decoded one at a time.

  Examples:
    >>> from xir_tfrs.data import id_lists
    >>> id_lists.save("ids", [b"tea", b"milk"])
    >>> list(id_lists.StringList.load("ids"))
    ['tea', 'milk']
  """

  def __init__(self, data: np.ndarray, offsets: np.ndarray):
    """Wraps UTF-8 `data`, [bytes], and `offsets`, [n + 1], into it."""
    self._data = data
    self._offsets = offsets

  def __len__(self) -> int:
    return len(self._offsets) - 1

  @overload
  def __getitem__(self, i: int) -> str: ...
  @overload
  def __getitem__(self, i: slice) -> list[str]: ...
  def __getitem__(self, i):
    # As an array of integers: bundles have either.
    if isinstance(i, slice):
      return [self[place] for place in range(*i.indices(len(self)))]
    i = range(len(self))[i]
    part = self._data[self._offsets[i] : self._offsets[i + 1]]
    return part.tobytes().decode()

  def __iter__(self) -> Iterator[str]:
    data = self._data.tobytes()
    offsets = self._offsets.tolist()
    for start, stop in zip(offsets[:-1], offsets[1:], strict=True):
      yield data[start:stop].decode()

  def tolist(self) -> list[str]:
    """Returns all strings, as `tolist` of an array of integers does."""
    return list(self)

  @classmethod
  def load(cls, path: str | os.PathLike[str]) -> StringList:
    """Maps the files that `save` wrote under the same `path`."""
    return cls(
      load_array(f"{path}.data.npy"), load_array(f"{path}.offsets.npy")
    )


def load_array(path: str | os.PathLike[str]) -> np.ndarray:
  """Memory-maps a .npy file.

  Raises:
    DataError: It is missing or damaged.
  """
  try:
    return np.load(path, mmap_mode="r")
  except (OSError, ValueError, EOFError) as error:
    raise errors.DataError(
      f"cannot be read as an array ({errors.first_line(error)}); copy or"
      " export it again",
      path=path,
    ) from None


def save(path: str | os.PathLike[str], strings: Sequence[bytes]) -> None:
  """Writes `path`.data.npy and `path`.offsets.npy."""
  lengths = np.fromiter(map(len, strings), np.int64, len(strings))
  offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
  data = np.frombuffer(b"".join(strings), np.uint8)
  np.save(f"{path}.data.npy", data)
  np.save(f"{path}.offsets.npy", offsets)


def save_ids(
  path: str | os.PathLike[str], ids: Sequence[bytes] | np.ndarray
) -> None:
  """Writes UTF-8 strings or an int64 array."""
  if isinstance(ids, np.ndarray) and ids.dtype == np.int64:
    np.save(f"{path}.npy", ids)
  else:
    save(path, list(ids))


def load_ids(
  path: str | os.PathLike[str], id_type: str
) -> StringList | np.ndarray:
  """Memory-maps the files that `save_ids` wrote under the same `path`.

  Args:
    path: The path that was given to `save_ids`.
    id_type: "string" or "int64". It is not guessed from the files, because a
      stray file would replace the ids.

  Raises:
    DataError: A file is missing or damaged.
  """
  if id_type == "int64":
    return load_array(f"{path}.npy")
  return StringList.load(path)
