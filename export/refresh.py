"""Adds, changes and removes items of a bundle, without training.

  xir-tfrs refresh --bundle DIR [--items FILE] [--remove FILE]
    [--output DIR]

The bundle's candidate tower encodes the items in a file: new ids are added,
known ids get a new vector. Features that the file does not give have their
values in training, if the item was there. The ids of --remove, one per line,
are removed. Towers and ranker do not change; indexes and lists are rebuilt.

The new bundle is verified in a separate process and then replaces the old one
in one step. If anything fails, the old one stays.
"""

from __future__ import annotations

import sys

from export.bundle.options import RefreshOptions
from xir_tfrs.programs import main


def refresh(options: RefreshOptions) -> None:
  """Writes the new bundle.

  Raises:
    DataError: The bundle, the items or the output cannot be used.
  """
  from export.bundle import refreshing  # Imports TensorFlow.

  refreshing.refresh(options)


if __name__ == "__main__":
  sys.exit(main.run(RefreshOptions, refresh))
