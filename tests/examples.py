"""Runs the examples of docstrings."""

import doctest
import inspect

import numpy as np
import tensorflow as tf

import xir_tfrs as xir

_FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def run(thing: object) -> int:
  """Runs the examples in the docstring of a class or function.

  Every example finds `np`, `tf` and `xir` imported.

  Returns:
    The number of statements.

  Raises:
    AssertionError: The output differs from the docstring.
  """
  name = getattr(thing, "__qualname__", repr(thing))
  test = doctest.DocTestParser().get_doctest(
    inspect.getdoc(thing) or "",
    {"np": np, "tf": tf, "xir": xir},
    name,
    inspect.getsourcefile(thing),
    0,
  )
  report: list[str] = []
  doctest.DocTestRunner(optionflags=_FLAGS).run(test, out=report.append)
  assert not report, "".join(report)
  return len(test.examples)
