"""Runs both passes on Beam, and writes the tables between them."""

from __future__ import annotations

import functools
import pathlib
import shutil

from apache_beam.options import pipeline_options

from pipelines.beam import first_pass, second_pass
from pipelines.beam import work as work_lib
from pipelines.preparation import convert, vocabulary
from pipelines.preparation.config import PrepareConfig
from pipelines.readers import blocks
from pipelines.readers import source as source_lib
from xir_tfrs.data import errors, schema
from xir_tfrs.data.files import side_tables


def make(
  config: PrepareConfig, options: pipeline_options.PipelineOptions
) -> schema.Schema:
  """Writes the data directory `config.output`."""
  return convert.make(config, functools.partial(_convert, options))


def _convert(
  options: pipeline_options.PipelineOptions,
  config: PrepareConfig,
  source: source_lib.Source,
  directory: pathlib.Path,
) -> schema.Schema:
  """Does the work of `convert.Convert` on Beam."""
  if config.session_seconds:
    raise errors.DataError(
      "prepare_beam does not support --session_gap; use xir-tfrs prepare"
    )
  if source.roles is not None and source.roles.title is not None:
    raise errors.DataError(
      "prepare_beam does not support --item_title in the interactions; use"
      " xir-tfrs prepare, or give titles in an --item_file"
    )
  work = work_lib.Work(
    directory / "work",
    convert.bucket_count(config, source),
    convert.row_dtype(source),
  )
  work.make()
  tables = convert.side_tables_of(config, source)
  seen = first_pass.run(config, source, work, options)
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
    for kind, side in zip(work_lib.KINDS, tables, strict=True)
  )
  work.end_first_pass()
  written, arranged = second_pass.run(
    config,
    directory,
    work,
    (len(users.ids), len(items.ids)),
    (users.permutation, items.permutation),
    options,
  )
  shutil.rmtree(work.folder)
  if empty := source.count_empty(seen.rows):
    seen.warnings["empty_files"] = empty
  files = [seen.files[file] for file in range(source.num_files)]
  return convert.finish(
    config,
    source,
    directory,
    users,
    items,
    written,
    arranged,
    seen.warnings,
    (*files, *source.side_fingerprints()),
  )


def _table(
  config: PrepareConfig,
  source: source_lib.Source,
  side: side_tables.SideTable | None,
  kind: str,
  largest: tuple[int, blocks.Piece] | None,
  vocab: vocabulary.Vocabulary,
) -> convert.Table:
  """`convert.table`, with errors that name the line of the largest dense id."""
  dense = vocabulary.dense_ids(config, source, work_lib.KINDS[kind])
  try:
    return convert.table(vocab, dense, side, source.name)
  except errors.DataError:
    if largest is None or dense is None:
      raise
  for _, block in source.read(largest[1], count_lines=True):
    dense.check(block, getattr(block, kind))
  return convert.table(vocab, dense, side, source.name)
