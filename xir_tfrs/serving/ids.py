"""Checks ids and lists of ids from callers, without TensorFlow."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np

Id = str | int
_T = TypeVar("_T")

_INT64 = np.iinfo(np.int64)


def check_ids(side: str, ids: Iterable[Id], id_type: str) -> list[Id]:
  """Returns the ids as a list of str or int.

  Args:
    side: "query" or "candidate", for messages.
    ids: str or UTF-8 bytes; for integer ids, int or text of digits.
    id_type: "string" or "int64".

  Raises:
    ValueError: `ids` is not a list, or an id has another type.
  """
  values = as_list(side, ids)
  check = _check_string if id_type == "string" else _check_integer
  try:
    return [check(value) for value in values]
  except (ValueError, TypeError) as error:
    raise ValueError(
      f"{side} ids of this bundle are of type {id_type}. Received: {error}."
    ) from None


def check_lists(
  name: str, lists: Iterable[Iterable[Id]], n: int, id_type: str
) -> list[list[Id]]:
  """Returns one list of candidate ids for each of n queries.

  Refuses a flat list of ids, whose strings would be read as lists of letters.

  Args:
    name: Name of the argument, for messages.
    lists: n lists.
    n: Number of queries.
    id_type: As in `check_ids`.

  Raises:
    ValueError: The lists or their ids have another form.
  """
  rows = as_lists(name, lists)
  if len(rows) != n:
    raise ValueError(
      f"{_form(name)}. Received: {len(rows)} lists for {n} queries."
    )
  return [check_ids("candidate", row, id_type) for row in rows]


def as_list(side: str, ids: Iterable[_T]) -> list[_T]:
  """Returns a list, also of an iterator, which can only be read once.

  Raises:
    ValueError: `ids` is not a list.
  """
  if not _is_list(ids):
    raise ValueError(
      f"{side} ids must be a list, as in [...]. Received: {ids!r}."
    )
  return list(ids)


def as_lists(name: str, lists: Iterable[Iterable[_T]]) -> list[list[_T]]:
  """Returns lists, also of iterators, which can only be read once.

  Raises:
    ValueError: `lists`, or one of them, is not a list.
  """
  if not _is_list(lists):
    raise ValueError(f"{_form(name)}. Received: {lists!r}.")
  rows = list(lists)
  for row in rows:
    if not _is_list(row):
      raise ValueError(f"{_form(name)}. Received: {row!r} instead of a list.")
  return [list(row) for row in rows]


def check_times(name: str, times: Iterable[int | None], n: int) -> list[int]:
  """Returns n times as integers, -1 for None, which is unknown.

  Args:
    name: Name of the argument, for messages.
    times: The times; negative ones are unknown too.
    n: Number of times wanted.

  Raises:
    ValueError: There are not n times, or one is not a 64-bit integer.
  """
  form = f"`{name}` must hold {n} integers"
  if not _is_list(times):
    raise ValueError(f"{form}. Received: {times!r}.")
  times = list(times)
  if len(times) != n:
    raise ValueError(f"{form}. Received: {len(times)}.")
  try:
    return [-1 if x is None else _check_integer(x) for x in times]
  except TypeError as error:
    raise ValueError(f"{form}. Received: {error}.") from None


def _form(name: str) -> str:
  return f"`{name}` must hold one list of ids per query, as in [[...], [...]]"


def _is_list(value: Any) -> bool:
  return hasattr(value, "__iter__") and not isinstance(value, (str, bytes))


def _check_string(value: Any) -> str:
  if isinstance(value, bytes):
    return value.decode()
  if not isinstance(value, str):
    raise TypeError(repr(value))
  value.encode()  # TensorFlow does not say which string has a lone surrogate.
  return str(value)


def _check_integer(value: Any) -> int:
  if isinstance(value, bool) or not isinstance(value, (int, np.integer, str)):
    raise TypeError(repr(value))
  try:
    if isinstance(value, str) and "_" in value:  # Python reads "1_0" as 10.
      raise ValueError
    number = int(value)
  except ValueError:
    raise TypeError(repr(value)) from None
  if not _INT64.min <= number <= _INT64.max:
    raise TypeError(repr(value))
  return number
