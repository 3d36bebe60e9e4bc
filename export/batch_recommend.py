"""Recommends for all queries of a bundle, into files.

  xir-tfrs recommend --bundle DIR --output OUT --k 100
    [--exclude_seen] [--format tfrecord] [--queries FILE]

Writes OUT/part-00000-of-00007.parquet and so on, in the order of the queries,
with one row per query:

    query_id        string or int64, as in the bundle
    candidate_ids   list of the same, best first, at most k
    scores          list of float32
    titles          list of strings, if the bundle has titles of candidates

or the same as one tf.train.Example per query; and `_run.json`, the settings and
whether the run is complete. Files appear when they are complete. If the program
stops early, run it again to continue with the first missing file. Every
candidate is scored, whatever indexes the bundle has. Queries without training
rows are answered as by `Bundle.recommend`.
"""

from __future__ import annotations

import sys

from export.bundle.options import BatchOptions
from xir_tfrs.programs import main


def batch_recommend(options: BatchOptions) -> None:
  """Writes the missing files.

  Raises:
    DataError: The bundle, the queries or the output cannot be used.
  """
  from export.bundle import bulk  # Imports TensorFlow.

  bulk.batch_recommend(options)


if __name__ == "__main__":
  sys.exit(main.run(BatchOptions, batch_recommend))
