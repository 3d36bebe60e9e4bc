"""Steps of a pipeline, each of which starts when the one before has ended.

Beam only hands out tasks and collects small results. The rows and ids are in
files, so that no runner has to hold, serialize or sort them. Groups spread the
tasks over workers: some runners take no notice of `Reshuffle`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import apache_beam as beam

# A task or a result, after a number.
Numbered = tuple[int, Any]


def tasks(pipeline: beam.Pipeline, given: Iterable[Any]) -> beam.PCollection:
  """The tasks of the first stage."""
  return pipeline | "Tasks" >> beam.Create(list(enumerate(given)))


def stage(
  tasks_: beam.PCollection, name: str, work: Callable[[Any], Any]
) -> beam.PCollection:
  """Runs `work` on each task; returns its results."""
  return (
    tasks_
    | f"Spread{name}" >> beam.GroupByKey()
    | name >> beam.ParDo(_Do(work))
  )


def after(
  results: beam.PCollection,
  name: str,
  plan: Callable[[list[Any]], Iterable[Any]],
) -> beam.PCollection:
  """Calls `plan` with all results of a stage; returns the tasks it yields."""
  return (
    results
    | f"Gather{name}" >> beam.GroupByKey()
    | name >> beam.ParDo(_Plan(plan))
  )


class _Do(beam.DoFn):
  """Number and its only task -> 0 and its result."""

  def __init__(self, work: Callable[[Any], Any]):
    self._work = work

  def process(self, element: tuple[int, Iterable[Any]]) -> Iterable[Numbered]:
    return [(0, self._work(task)) for task in element[1]]


class _Plan(beam.DoFn):
  """0 and all results -> numbered tasks."""

  def __init__(self, plan: Callable[[list[Any]], Iterable[Any]]):
    self._plan = plan

  def process(self, element: tuple[int, Iterable[Any]]) -> Iterable[Numbered]:
    return enumerate(self._plan(list(element[1])))
