"""Reads the files of a run and its evaluation for the pages."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any

from pipelines.evaluation import by_query, examples, places, report
from xir_tfrs.data import errors, runs
from xir_tfrs.serving import manifest


@dataclasses.dataclass(frozen=True)
class Found:
  """An evaluated run.

  Attributes:
    name: Name of the run on the page.
    place: The files of the evaluation.
    config: The config of the run.
    rows: The rows of metrics.jsonl.
    results: The content of metrics.json.
  """

  name: str
  place: places.Place
  config: runs.RunConfig
  rows: list[runs.Metrics]
  results: report.Results

  @classmethod
  def read(
    cls,
    model_dir: str | os.PathLike[str],
    place: places.Place | None = None,
    name: str | None = None,
  ) -> Found:
    """Reads a run.

    Args:
      model_dir: Directory written by `pipelines.train`.
      place: The files of the evaluation; by default in `model_dir`.
      name: See `Found`; by default the name of the directory.

    Raises:
      DataError: The run was not trained or not evaluated, or a file is damaged.
    """
    run = runs.RunDir(model_dir)
    place = place or places.Place.of(model_dir)
    return cls(
      name=name or pathlib.Path(model_dir).resolve().name,
      place=place,
      config=run.read_config(),
      rows=run.read_metrics(),
      results=report.load(place.metrics),
    )

  def examples(self) -> tuple[examples.Example, ...]:
    """Example queries; empty if none were written."""
    if not self.place.examples.exists():
      return ()
    return examples.load(self.place.examples).examples

  def by_query(self) -> dict[str, Any]:
    """Reads the metrics of each query."""
    return by_query.read(self.place.by_query)

  def curve(self, kind: str, name: str) -> tuple[list[float], list[float]]:
    """Returns epochs and values of a column of metrics.jsonl."""
    points = [
      (row["epoch"], row[name])
      for row in self.rows
      if row["kind"] == kind and row.get(name) is not None
    ]
    return [epoch for epoch, _ in points], [value for _, value in points]

  def names(self, kind: str) -> list[str]:
    """Returns the columns of metrics.jsonl, in order."""
    names = dict.fromkeys(
      name for row in self.rows if row["kind"] == kind for name in row
    )
    return [name for name in names if name not in ("kind", "step", "epoch")]

  @property
  def shown_k(self) -> int:
    """The cut-off for charts."""
    return report.main_k(self.results.ks)


def index_of(
  bundle: str | os.PathLike[str],
  model_dir: str | os.PathLike[str],
  checkpoint: str = "best",
) -> manifest.Index | None:
  """Returns the approximate index of a bundle, or None.

  Args:
    bundle: Directory of the bundle.
    model_dir: Directory of the model.
    checkpoint: The checkpoint, as in `runs.load_model`.

  Raises:
    DataError: `bundle` is not a bundle of this model and checkpoint.
  """
  about = manifest.load(bundle)
  run = runs.RunDir(model_dir)
  restored = os.path.relpath(run.checkpoint(checkpoint), model_dir)
  expected = run.read_config().schema_sha256, restored
  if (about.data.get("sha256"), about.checkpoint) != expected:
    raise errors.DataError(
      f"is not a bundle of {restored} of {os.fspath(model_dir)}; export that"
      " model, or omit --bundle",
      path=bundle,
    )
  return next((one for one in about.indexes.values() if one.curve), None)
