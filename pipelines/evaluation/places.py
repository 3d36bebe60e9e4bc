"""Paths of the files of an evaluation, without slow imports."""

from __future__ import annotations

import dataclasses
import os
import pathlib

METRICS_FILE = "metrics.json"
BY_QUERY_FILE = "by_query.npz"
EXAMPLES_FILE = "examples.json"
REPORT_FILE = "report.html"


@dataclasses.dataclass(frozen=True)
class Place:
  """The files of an evaluation.

  Attributes:
    metrics: metrics.json, or the file that the user chose.
  """

  metrics: pathlib.Path

  @classmethod
  def of(
    cls, model_dir: str | os.PathLike[str], output: str | None = None
  ) -> Place:
    """Returns the files of a model; `output` overrides its metrics.json."""
    return cls(pathlib.Path(output or pathlib.Path(model_dir, METRICS_FILE)))

  @property
  def by_query(self) -> pathlib.Path:
    return self._beside(BY_QUERY_FILE)

  @property
  def examples(self) -> pathlib.Path:
    return self._beside(EXAMPLES_FILE)

  @property
  def report(self) -> pathlib.Path:
    return self._beside(REPORT_FILE)

  def _beside(self, name: str) -> pathlib.Path:
    """Derives the name from `metrics`, so evaluations can share a folder."""
    if self.metrics.name != METRICS_FILE:
      name = f"{self.metrics.stem}_{name}"
    return self.metrics.with_name(name)
