"""Broken variants of files and messages, each determined by a number."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

_NUMBERS = st.integers(0, 2**32 - 1)
# Bytes that break parsers: separators, line ends, escapes, extreme numbers.
_BITS = (
  *(b"\0", b"\n", b"\r", b"\r\n", b"\t", b",", b";", b'"', b"'", b"\\"),
  *(b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"\xc3", b"\xed\xa0\x80", b"\x1f"),
  *(b"{", b"}", b"[", b"]", b":", b"#", b" ", b"::", b"-", b"e9", b"."),
  *(b"0", b"-1", b"1e999", b"9223372036854775808", b"NaN", b"null", b"true"),
)
_VALUES: tuple[Any, ...] = (
  *(None, True, False, 0, -1, 1, 2, 1.5, -0.0, 1e308, float("nan")),
  *(2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**40),
  *("", "x", "0", "../x", "/dev/null", "a\0b", "é", "\ud800", "x" * 3000),
  *([], [[]], [None], [""], [1, "a"], {}, {"": None}, {"x": {"x": [{}]}}),
)


def of_bytes(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
  """Draws one of `seeds` and changes, removes, adds or repeats bytes."""
  return st.builds(
    lambda seed, number: mutate(seed, random.Random(number), seeds),
    st.sampled_from(seeds),
    _NUMBERS,
  )


def of_json(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
  """Draws one of the documents `seeds` and changes values and keys."""
  documents = [json.loads(seed) for seed in seeds]
  return st.builds(
    lambda place, number: json.dumps(
      mutate_value(documents[place], random.Random(number))
    ).encode(),
    st.integers(0, len(seeds) - 1),
    _NUMBERS,
  )


def mutate(
  content: bytes, rng: random.Random, others: Sequence[bytes] = ()
) -> bytes:
  """`content` after one to four changes."""
  for _ in range(rng.choice((1, 1, 1, 2, 4))):
    content = rng.choice(_CHANGES)(content, rng)
  if others and rng.random() < 0.05:
    other = rng.choice(others)
    content = (
      content[: rng.randint(0, len(content))]
      + other[rng.randint(0, len(other)) :]
    )
  return content


def _flip(content: bytes, rng: random.Random) -> bytes:
  changed = bytearray(content)
  for _ in range(rng.choice((1, 1, 3, 10)) if changed else 0):
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
  return bytes(changed)


def _cut(content: bytes, rng: random.Random) -> bytes:
  return content[: rng.randint(0, len(content))]


def _remove(content: bytes, rng: random.Random) -> bytes:
  start, stop = _part(content, rng)
  return content[:start] + content[stop:]


def _repeat(content: bytes, rng: random.Random) -> bytes:
  start, stop = _part(content, rng)
  times = rng.choice((2, 2, 3, 50))
  return content[:start] + content[start:stop] * times + content[stop:]


def _insert(content: bytes, rng: random.Random) -> bytes:
  place = rng.randint(0, len(content))
  return content[:place] + rng.choice(_BITS) + content[place:]


def _replace(content: bytes, rng: random.Random) -> bytes:
  start, stop = _part(content, rng, longest=4)
  return content[:start] + rng.choice(_BITS) + content[stop:]


def _fill(content: bytes, rng: random.Random) -> bytes:
  start, stop = _part(content, rng)
  return content[:start] + bytes(stop - start) + content[stop:]


_CHANGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
  *(_flip, _flip, _insert, _insert, _replace, _replace),
  *(_cut, _remove, _repeat, _fill),
)


def _part(
  content: bytes, rng: random.Random, longest: int = 40
) -> tuple[int, int]:
  start = rng.randint(0, len(content))
  return start, min(len(content), start + rng.randint(1, longest))


def mutate_value(document: Any, rng: random.Random) -> Any:
  """A copy of a JSON document after one or two changes."""
  document = copy.deepcopy(document)
  for _ in range(rng.choice((1, 1, 1, 2))):
    places = list(_places(document))
    if not places:
      return rng.choice(_VALUES)
    holder, key = rng.choice(places)
    _change(holder, key, rng, places)
  return document


def _change(
  holder: Any, key: Any, rng: random.Random, places: list[tuple[Any, Any]]
) -> None:
  kind = rng.randrange(6)
  if kind == 0:
    del holder[key]
  elif kind == 1:
    other, its_key = rng.choice(places)
    holder[key] = copy.deepcopy(other[its_key])
  elif kind == 2 and isinstance(holder, dict):
    holder[rng.choice((f"{key}x", "", "x", "../x"))] = holder.pop(key)
  elif kind == 3 and isinstance(holder[key], int | float):
    holder[key] += rng.choice((-1, 1, 0.5, 1000, -(2**40)))
  elif kind == 4 and isinstance(holder, list):
    holder.append(copy.deepcopy(holder[key]))
  else:
    # A copy, because the next change may modify it.
    holder[key] = copy.deepcopy(rng.choice(_VALUES))


def _places(node: Any):
  """Yields (holder, key) of every value inside `node`."""
  keys = node if isinstance(node, dict) else range(len(node))
  for key in list(keys):
    yield node, key
    if isinstance(node[key], dict | list):
      yield from _places(node[key])
