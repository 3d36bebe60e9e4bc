"""Adds, changes and removes items of a bundle, without training.

  xir-tfrs refresh --bundle DIR [--items FILE] [--remove FILE]
    [--output DIR]

The bundle's own candidate tower encodes the items of a file: new ids are added,
known ones get another vector. What the file does not give of an item is as it
was in training, if it was there. The ids of --remove, one per line, are
removed. Towers and ranker stay byte for byte; indexes and lists are made anew.

The new bundle is verified in a process of its own and then takes the place of
the old one in one step. If anything fails, the old one stays.
"""

from __future__ import annotations

import sys

from export.bundle.options import RefreshOptions
from xir_tfrs.programs import main


def refresh(options: RefreshOptions) -> None:
  """Writes the new bundle.

  Raises:
    DataError: for anything that the user can put right.
  """
  from export.bundle import refreshing  # Imports TensorFlow.

  refreshing.refresh(options)


if __name__ == "__main__":
  sys.exit(main.run(RefreshOptions, refresh))
