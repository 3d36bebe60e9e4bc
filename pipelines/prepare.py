"""Turns raw interactions into a data directory for training.

    xir-tfrs prepare --input ratings.csv --output data/ratings
    xir-tfrs prepare --format synthetic --output data/synthetic

Writes TFRecords, tables and schema.json to --output, completely or not at all.
Files are read once, in chunks. Memory depends on the tables of users and items,
not on the interactions, which go through temporary files beside --output. See
docs/own_data.md.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from pipelines.preparation.config import PrepareConfig
from xir_tfrs.programs import main as main_lib

if TYPE_CHECKING:
  from xir_tfrs.data import schema


def prepare(config: PrepareConfig) -> schema.Schema:
  """Writes the data directory `config.output`.

  Returns:
    The schema of the directory.

  Raises:
    DataError: The input or the output cannot be used.
  """
  from pipelines.preparation import convert  # Slow, and --help can do without.

  return convert.make(config, convert.convert)


def main(config: PrepareConfig) -> None:
  from pipelines.preparation import summary

  start = time.monotonic()
  made = prepare(config)
  print(summary.text(made, time.monotonic() - start))
  print(summary.following(made, config.output))


if __name__ == "__main__":
  sys.exit(main_lib.run(PrepareConfig, main))
