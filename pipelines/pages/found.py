"""What a run and its evaluation have left, as the pages show it."""

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
  """A run that was evaluated.

  Attributes:
    name: What the page calls it.
    place: The files of its evaluation.
    config: How it was trained.
    rows: Of metrics.jsonl.
    results: Of metrics.json.
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
      model_dir: Directory made by `pipelines.train`.
      place: The files of its evaluation; None: in `model_dir`.
      name: See `Found`; None: that of the directory.

    Raises:
      DataError: It was not trained or not evaluated, or a file is damaged.
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
    """Queries to look at; empty if none were kept."""
    if not self.place.examples.exists():
      return ()
    return examples.load(self.place.examples).examples

  def by_query(self) -> dict[str, Any]:
    """Metrics of each query."""
    return by_query.read(self.place.by_query)

  def curve(self, kind: str, name: str) -> tuple[list[float], list[float]]:
    """Epochs, and values of a column of metrics.jsonl, where it has them."""
    points = [
      (row["epoch"], row[name])
      for row in self.rows
      if row["kind"] == kind and row.get(name) is not None
    ]
    return [epoch for epoch, _ in points], [value for _, value in points]

  def names(self, kind: str) -> list[str]:
    """Columns of metrics.jsonl, in their order."""
    names = dict.fromkeys(
      name for row in self.rows if row["kind"] == kind for name in row
    )
    return [name for name in names if name not in ("kind", "step", "epoch")]

  @property
  def shown_k(self) -> int:
    """The cut-off of charts: 20, or the one in the middle."""
    ks = sorted(self.results.ks)
    return 20 if 20 in ks else ks[(len(ks) - 1) // 2]


def index_of(
  bundle: str | os.PathLike[str],
  model_dir: str | os.PathLike[str],
  checkpoint: str = "best",
) -> manifest.Index | None:
  """How the approximate index of a bundle was tuned; None: it has none.

  Args:
    bundle: What a model was exported to.
    model_dir: The model.
    checkpoint: Which of its checkpoints, as `runs.load_model` takes it.

  Raises:
    DataError: This is no bundle, or one of another model.
  """
  about = manifest.load(bundle)
  run = runs.RunDir(model_dir)
  restored = os.path.relpath(run.checkpoint(checkpoint), model_dir)
  expected = run.read_config().schema_sha256, restored
  if (about.data.get("sha256"), about.checkpoint) != expected:
    raise errors.DataError(
      f"is not a bundle of {restored} of {os.fspath(model_dir)}; export that"
      " model, or leave out --bundle",
      path=bundle,
    )
  return next((one for one in about.indexes.values() if one.curve), None)
