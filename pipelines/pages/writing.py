"""Writes the pages, if the required packages are installed."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import sys
from collections.abc import Sequence

from pipelines.evaluation import places
from pipelines.pages import found
from xir_tfrs.data import atomic
from xir_tfrs.serving import manifest

_NEEDED = ("jinja2", "matplotlib", "markupsafe")


def write_run(
  model_dir: str | os.PathLike[str],
  place: places.Place,
  index: manifest.Index | None = None,
) -> bool:
  """Writes the page of an evaluated run.

  Args:
    model_dir: Directory written by `pipelines.train`.
    place: The files of its evaluation.
    index: The index of a bundle of the run.

  Returns:
    Whether the page was written; if not, a line on stderr names the missing
    package.

  Raises:
    DataError: A file is damaged.
  """
  if _is_missing(place.report):
    return False
  from pipelines.pages import page, run_page

  run = found.Found.read(model_dir, place)
  atomic.write_text(place.report, page.render(run_page.make(run, index)))
  return True


def write_comparison(
  model_dirs: Sequence[str | os.PathLike[str]],
  output: pathlib.Path,
  shown: str | os.PathLike[str] | None = None,
  index: manifest.Index | None = None,
) -> bool:
  """Writes the page of several runs; see `write_run`.

  Args:
    model_dirs: The runs.
    output: The page.
    shown: A run whose own page is appended.
    index: The index of a bundle of that run.
  """
  if _is_missing(output):
    return False
  from pipelines.pages import compare_page, page, run_page

  names = [pathlib.Path(path).resolve().name for path in model_dirs]
  if len(set(names)) < len(names):
    names = [os.fspath(path) for path in model_dirs]
  runs = {
    path: found.Found.read(path, name=name)
    for path, name in zip(model_dirs, names, strict=True)
  }
  made = compare_page.make(list(runs.values()))
  if shown is not None:
    sections = tuple(
      dataclasses.replace(part, title=f"{runs[shown].name}: {part.title}")
      for part in run_page.sections(runs[shown], index)
    )
    made = dataclasses.replace(made, sections=made.sections + sections)
  atomic.write_text(output, page.render(made))
  return True


def _is_missing(output: pathlib.Path) -> bool:
  try:
    for name in _NEEDED:
      __import__(name)
  except ImportError as error:
    print(
      f"{output.name} is not written: {error.name} is not installed (pip"
      " install 'xir-tfrs[plots]').",
      file=sys.stderr,
    )
    return True
  return False
