"""Recommends to all queries of a bundle at once, exactly, into files.

  python -m export.batch_recommend --bundle DIR --output OUT --k 100
    [--exclude_seen] [--format tfrecord] [--queries FILE]

OUT gets `part-00000-of-00007.parquet` and so on, in the order of the queries,
with a row per query:

    query_id        string or int64, as in the bundle
    candidate_ids   list of the same, best first, at most k
    scores          list of float32

or the same as one tf.train.Example per query; and `_run.json`, what was asked
for, and whether it is complete. A file appears when it is whole: if the
program ends early, start it again and it goes on with the first that is
missing. Every candidate is scored, whatever indexes the bundle has. A query
without training rows is answered as by `Bundle.recommend`.
"""

from __future__ import annotations

import dataclasses
import sys

from xir_tfrs.programs import main, settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchOptions(settings.Settings):
  """What to recommend to whom."""

  bundle: str = settings.setting("Made by export.export_retriever.")
  output: str = settings.setting("The directory to write.")
  k: int = settings.setting(
    "Number of answers; a query with fewer gets a shorter list.",
    100,
    minimum=1,
  )
  format: str = settings.setting(
    "Of the files.", "parquet", choices=("parquet", "tfrecord")
  )
  queries: str | None = settings.setting(
    "A file with a query id per line. Default: all of the bundle.", None
  )
  exclude_seen: bool = settings.setting(
    "Leave out the candidates seen in training.", False
  )
  rows_per_shard: int = settings.setting(
    "Queries per file.", 100_000, minimum=1
  )
  overwrite: bool = settings.setting("Replace an earlier run's files.", False)


def batch_recommend(options: BatchOptions) -> None:
  """Writes the files that are missing.

  Raises:
    DataError: for anything that the user can put right.
  """
  from export.bundle import bulk  # Imports TensorFlow.

  bulk.batch_recommend(options)


if __name__ == "__main__":
  sys.exit(main.run(BatchOptions, batch_recommend))
