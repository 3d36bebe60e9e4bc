"""Turns raw interactions into a data directory, to train on.

    xir-tfrs prepare --input ratings.csv --output data/ratings
    xir-tfrs prepare --format synthetic --output data/synthetic

--output gets TFRecords, a table of candidates and schema.json, complete or not
at all. Files are read once, in chunks; memory is bounded by the tables of users
and items, not by the interactions, which go through files beside --output.
docs/own_data.md is the guide.
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
  """Makes the data directory `config.output`; `errors.DataError` if it cannot.

  Returns:
    The schema of the directory.
  """
  from pipelines.preparation import convert  # After --help.

  return convert.make(config, convert.convert)


def main(config: PrepareConfig) -> None:
  from pipelines.preparation import summary

  start = time.monotonic()
  made = prepare(config)
  print(summary.text(made, config.output, time.monotonic() - start))


if __name__ == "__main__":
  sys.exit(main_lib.run(PrepareConfig, main))
