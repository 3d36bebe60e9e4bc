"""Steps of a pipeline, each of which starts when the one before has ended.

Beam only hands out tasks and collects small results. The rows and ids are in
files, so that no runner has to hold, serialize or sort them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import apache_beam as beam


def stage(
  tasks: beam.PCollection, name: str, work: Callable[[Any], Any]
) -> beam.PCollection:
  """Runs `work` on each task; returns its results."""
  return (
    tasks
    | f"Spread{name}" >> beam.Reshuffle()
    | name >> beam.ParDo(_Work(work))
  )


def after(
  results: beam.PCollection,
  name: str,
  plan: Callable[[list[Any]], Iterable[Any]],
) -> beam.PCollection:
  """Calls `plan` with all results of a stage; returns the tasks it yields."""
  return (
    results
    | f"Key{name}" >> beam.ParDo(_Work(_keyed))
    | f"Gather{name}" >> beam.GroupByKey()
    | name >> beam.ParDo(_Plan(plan))
  )


def _keyed(result: Any) -> tuple[int, Any]:
  return 0, result


class _Work(beam.DoFn):
  """Task -> result."""

  def __init__(self, work: Callable[[Any], Any]):
    self._work = work

  def process(self, task: Any) -> Iterable[Any]:
    return [self._work(task)]


class _Plan(beam.DoFn):
  """Key with all results -> tasks."""

  def __init__(self, plan: Callable[[list[Any]], Iterable[Any]]):
    self._plan = plan

  def process(self, element: tuple[int, Iterable[Any]]) -> Iterable[Any]:
    return self._plan(list(element[1]))
