"""Targets of the fuzzer, and how it judges their results."""

from __future__ import annotations

import collections
import dataclasses
import faulthandler
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import hypothesis
from hypothesis import strategies as st

from xir_tfrs.data import errors

# CPU time of this process, which other work on the machine does not change.
SLOW_SECONDS = 5.0
_HANG_SECONDS = 300
_HEALTH = list(hypothesis.HealthCheck)


@dataclasses.dataclass(frozen=True)
class Target:
  """A reader to test.

  Attributes:
    name: Its name.
    inputs: Draws valid and broken inputs.
    check: Reads an input. Raises `errors.DataError` to refuse it, and
      `AssertionError` for a wrong result. All other errors are faults.
    place: The path that every error must name, if there is one.
  """

  name: str
  inputs: st.SearchStrategy[Any]
  check: Callable[[Any], None]
  place: str | None = None


@dataclasses.dataclass
class Tally:
  """Results of a target."""

  right: int = 0
  refused: int = 0
  faults: dict[str, str] = dataclasses.field(default_factory=dict)
  slowest: float = 0.0

  @property
  def total(self) -> int:
    return self.right + self.refused + len(self.faults)


def attempt(target: Target, given: Any, tally: Tally) -> None:
  """Tries one input; raises `AssertionError` for a fault."""
  start = time.process_time()
  faulthandler.dump_traceback_later(_HANG_SECONDS, exit=True)
  try:
    target.check(given)
    tally.right += 1
  except errors.DataError as error:
    text = str(error)
    assert "\n" not in text, f"more than a line: {text!r}"
    assert target.place is None or target.place in text, (
      f"does not name {target.place}: {text!r}"
    )
    tally.refused += 1
  finally:
    faulthandler.cancel_dump_traceback_later()
  seconds = time.process_time() - start
  tally.slowest = max(tally.slowest, seconds)
  assert seconds < SLOW_SECONDS, f"took {seconds:.1f} s"


def run(
  target: Target, count: int, seed: int, tally: Tally | None = None
) -> Tally:
  """Tries about `count` inputs, and keeps one fault of each kind.

  Args:
    target: The target.
    count: Number of inputs.
    seed: Seed of the inputs.
    tally: Results to add to.
  """
  tally = tally or Tally()

  @hypothesis.settings(
    max_examples=count,
    deadline=None,
    database=None,
    phases=[hypothesis.Phase.generate],
    suppress_health_check=_HEALTH,
  )
  @hypothesis.seed(seed)
  @hypothesis.given(target.inputs)
  def every(given: Any) -> None:
    try:
      attempt(target, given, tally)
    except Exception as error:
      kind = _kind(error)
      if kind not in tally.faults:
        tally.faults[kind] = (
          f"{_shown(given)}\n{traceback.format_exc(limit=-4)}"
        )

  every()
  return tally


def _kind(error: Exception) -> str:
  """A name that errors with the same cause share."""
  frames = traceback.extract_tb(error.__traceback__)
  ours = [f for f in frames if "/site-packages/" not in f.filename]
  places = collections.deque(ours, maxlen=2)
  where = " < ".join(f"{f.name}:{f.lineno}" for f in reversed(places))
  return f"{type(error).__name__} in {where}"


def _shown(given: Any) -> str:
  text = repr(given)
  return text if len(text) < 2000 else f"{text[:1500]} ... {text[-400:]}"


def assert_no_fault(found: Sequence[Target], count: int) -> None:
  """Fails at the first fault of `count` inputs of each target."""
  for target in found:
    tally = run(target, count, seed=1)
    assert not tally.faults, f"{target.name}: {[*tally.faults.items()][0]}"
    assert tally.total
