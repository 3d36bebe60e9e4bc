"""Compares runs on the same data on one page.

    xir-tfrs compare runs/ssl_pop runs/xir --output compare.html

The page shows metrics with confidence intervals, a paired test of each run
against the first, curves, and the settings that differ. Each run is a directory
of xir-tfrs train that was evaluated by xir-tfrs evaluate.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import sys

from xir_tfrs.data import atomic
from xir_tfrs.programs import main as main_lib
from xir_tfrs.programs import settings


@dataclasses.dataclass(frozen=True)
class CompareConfig(settings.Settings):
  """The runs to compare."""

  run: tuple[str, ...] = settings.setting(
    "Directory of a run. Repeat the flag, or list directories without it.",
    multi=True,
  )
  output: str = settings.setting("Page to write.", "compare.html")

  def __post_init__(self) -> None:
    super().__post_init__()
    if len(set(map(os.path.realpath, self.run))) < max(len(self.run), 2):
      raise settings.SettingsError(
        "--run must name at least two different runs. Received: "
        f"{' '.join(self.run)}."
      )


def compare(config: CompareConfig) -> int:
  from pipelines.pages import writing  # Slow: it imports TensorFlow.

  atomic.check_file(config.output)
  if not writing.write_comparison(config.run, pathlib.Path(config.output)):
    return 1
  print(f"Written to {config.output}")
  return 0


if __name__ == "__main__":
  argv = main_lib.words_as_flags(sys.argv, "run")
  sys.exit(main_lib.run(CompareConfig, compare, argv=argv))
