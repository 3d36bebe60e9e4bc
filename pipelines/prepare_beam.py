"""`xir-tfrs prepare` on Apache Beam, for data beyond one machine.

    xir-tfrs prepare_beam --input 'log/*.csv' --output data/log
    xir-tfrs prepare_beam --input 'log/*.csv' --output data/log \\
      --runner FlinkRunner --flink_master localhost:8081

Takes the flags of `xir-tfrs prepare` and writes the same files, byte for byte.
Other flags go to Beam. --input and --output must be on a file system that all
workers see under the same paths.

A worker holds a piece of the input or a bucket of users: the rows of 32 MiB of
input for up to 128 GiB, 1/4096 of the input beyond, and always all rows of a
user. The launching process holds the tables of users and items with their side
features, as training does, but no rows. See docs/own_data.md.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipelines.preparation.config import PrepareConfig
from xir_tfrs.data import errors
from xir_tfrs.programs import main as main_lib
from xir_tfrs.programs import settings

if TYPE_CHECKING:
  from apache_beam.options import pipeline_options

  from xir_tfrs.data import schema


def prepare_beam(
  config: PrepareConfig, beam_flags: Sequence[str] = ()
) -> schema.Schema:
  """Writes the data directory `config.output`, as `prepare.prepare` does.

  Args:
    config: Settings of the preparation.
    beam_flags: Flags for Beam, such as "--runner=DirectRunner".
  """
  options = pipeline_options_of(beam_flags)
  from pipelines.beam import convert

  return convert.make(config, options)


def pipeline_options_of(
  beam_flags: Sequence[str],
) -> pipeline_options.PipelineOptions:
  """`pipelines.beam.options.parse`; raises `DataError` if Beam is missing."""
  own_flags = [one.name for one in settings.settings_of(PrepareConfig)]
  try:
    from pipelines.beam import options

    return options.parse(beam_flags, own_flags)
  except ImportError as e:  # Beam itself, or a dependency of a runner.
    raise errors.DataError(str(e)) from None


def main(config: PrepareConfig, beam_flags: list[str]) -> None:
  # absl shows the info log of all libraries. Keep only what a runner logs about
  # the job.
  for name in ("typehints", "runners.worker"):
    logging.getLogger(f"apache_beam.{name}").setLevel(logging.WARNING)
  from pipelines.preparation import summary

  start = time.monotonic()
  made = prepare_beam(config, beam_flags)
  print(summary.text(made, time.monotonic() - start))
  print(summary.following(made, config.output))


if __name__ == "__main__":
  sys.exit(main_lib.run(PrepareConfig, main, keep_unknown=True))
