"""`pipelines.prepare` on Apache Beam, for data beyond one machine.

    python -m pipelines.prepare_beam --input 'log/*.csv' --output data/log
    python -m pipelines.prepare_beam --input 'log/*.csv' --output data/log \\
      --runner FlinkRunner --flink_master localhost:8081

Takes the flags of `pipelines.prepare` and writes the same files, byte for
byte; all other flags go to Beam. --input and --output must be on a file system
that all workers see under the same paths.

A worker holds a piece of the input or a bucket of users: of up to 128 GiB of
input, the rows of 32 MiB of it; of more, a share of 1 in 4096; and all rows of
a user. The launching process holds the tables of users and items with their
side features, as training does, but no rows. docs/own_data.md is the guide.
"""

from __future__ import annotations

import functools
import logging
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from absl import app, flags

from pipelines import prepare
from pipelines.preparation import spill, vocabulary
from pipelines.readers import blocks
from pipelines.readers import source as source_lib
from xir_tfrs.data import errors
from xir_tfrs.data import schema as schema_lib
from xir_tfrs.data.files import side_tables

if TYPE_CHECKING:
  from apache_beam.options import pipeline_options


def prepare_beam(
  config: prepare.PrepareConfig, beam_flags: Sequence[str] = ()
) -> schema_lib.Schema:
  """Makes the data directory `config.output`, as `prepare.prepare` does.

  Args:
    config: what to make.
    beam_flags: flags for Beam, such as "--runner=DirectRunner".
  """
  options = pipeline_options_of(beam_flags)
  return prepare.make(config, functools.partial(_convert, options))


def pipeline_options_of(
  beam_flags: Sequence[str], own_flags: Iterable[str] = ()
) -> pipeline_options.PipelineOptions:
  """`pipelines.beam.options.parse`; a `DataError` if something is missing."""
  try:
    from pipelines.beam import options

    return options.parse(beam_flags, own_flags)
  except ImportError as e:  # Beam itself, or what a runner needs.
    raise errors.DataError(str(e)) from None


def _convert(
  options: pipeline_options.PipelineOptions,
  config: prepare.PrepareConfig,
  source: source_lib.Source,
  directory: pathlib.Path,
) -> schema_lib.Schema:
  """`prepare.Convert`: both passes, and between them the tables."""
  from pipelines.beam import first_pass, second_pass

  work = directory / "work"
  work.mkdir()
  side_tables = source.side_tables()
  buckets = spill.Buckets(
    work / "spill",
    prepare.bucket_count(config, source),
    prepare.row_dtype(config, source),
  )
  seen = first_pass.run(config, source, work, buckets, options)
  if error := seen.first_error(source):
    raise error
  users, items = (
    _table(
      config,
      source,
      side,
      kind,
      seen.largest.get(kind),
      first_pass.read_ids(work, kind),
    )
    for kind, side in zip(first_pass.KINDS, side_tables, strict=True)
  )
  written, repeated = second_pass.run(
    config, directory, work, buckets, users, items, options
  )
  shutil.rmtree(work)
  files = [seen.files[file] for file in range(source.num_files)]
  return prepare.finish(
    config,
    source,
    directory,
    users,
    items,
    written,
    {**seen.warnings, "duplicate_pairs": repeated},
    (*files, *source.side_fingerprints()),
  )


def _table(
  config: prepare.PrepareConfig,
  source: source_lib.Source,
  side: side_tables.SideTable | None,
  kind: str,
  largest: tuple[int, blocks.Piece] | None,
  vocab: vocabulary.Vocabulary,
) -> prepare.Table:
  """`prepare.table`, whose error names the line of the largest dense id."""
  columns = config.input.columns
  dense = None
  if config.dense_ids:
    dense = vocabulary.DenseIds(
      columns.user if kind == "users" else columns.item
    )
  try:
    return prepare.table(vocab, dense, side, source.name)
  except errors.DataError:
    if largest is None:
      raise
  for _, block in source.read(largest[1], count_lines=True):
    dense.check(block, getattr(block, kind))
  return prepare.table(vocab, dense, side, source.name)


def main(
  argv: list[str], make_config: Callable[[], prepare.PrepareConfig]
) -> int:
  """Runs `prepare_beam`; returns the exit status.

  Args:
    argv: the program, and the flags that are for Beam.
    make_config: from `prepare.define_flags`.
  """
  # absl lets through what others log for information. What a runner says
  # about the job stays.
  for name in ("typehints", "runners.worker"):
    logging.getLogger(f"apache_beam.{name}").setLevel(logging.WARNING)

  def config() -> prepare.PrepareConfig:
    pipeline_options_of(argv[1:], flags.FLAGS)
    return make_config()

  return prepare.run(
    "prepare_beam", config, lambda made: prepare_beam(made, argv[1:])
  )


def parse_flags(argv: list[str]) -> list[str]:
  """Takes what is ours out of `argv`."""
  try:
    return flags.FLAGS(argv, known_only=True)
  except flags.Error as e:
    print(f"prepare_beam: {e}; --help lists the flags", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
  flags_to_config = prepare.define_flags()
  app.run(lambda argv: main(argv, flags_to_config), flags_parser=parse_flags)
