"""Branches of a graph that are seldom taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import tensorflow as tf

_T = TypeVar("_T")


def seldom(
  condition: tf.Tensor, rare: Callable[[], _T], usual: Callable[[], _T]
) -> _T:
  """Does the same as `tf.cond`, at no cost where `condition` is False.

  TensorFlow visits every op of the branch that it does not take, which can take
  longer than a search. Here the rare branch is one op: a call of a function
  that is not inlined.

  Args:
    condition: Scalar bool.
    rare: Returns the result where `condition` is True.
    usual: Returns a result of the same structure and types elsewhere.

  Examples:
    >>> no, zero, one = tf.constant(False), tf.zeros([1]), tf.ones([1])
    >>> xir.ops.branches.seldom(no, lambda: one, lambda: zero).numpy()
    array([0.], dtype=float32)
  """
  apart = tf.function(
    rare, autograph=False, experimental_attributes={"_noinline": True}
  )
  return tf.cond(condition, apart, usual)
