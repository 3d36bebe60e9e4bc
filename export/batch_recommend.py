"""Recommends to all queries of a bundle at once, into files.

  xir-tfrs recommend --bundle DIR --output OUT --k 100
    [--exclude_seen] [--format tfrecord] [--queries FILE]

OUT gets `part-00000-of-00007.parquet` and so on, in the order of the queries,
with a row per query:

    query_id        string or int64, as in the bundle
    candidate_ids   list of the same, best first, at most k
    scores          list of float32
    titles          list of strings, if the bundle has titles of candidates

or the same as one tf.train.Example per query; and `_run.json`, what was asked
for, and whether it is complete. A file appears when it is whole: if the
program ends early, start it again and it goes on with the first that is
missing. Every candidate is scored, whatever indexes the bundle has. A query
without training rows is answered as by `Bundle.recommend`.
"""

from __future__ import annotations

import sys

from export.bundle.options import BatchOptions
from xir_tfrs.programs import main


def batch_recommend(options: BatchOptions) -> None:
  """Writes the files that are missing.

  Raises:
    DataError: for anything that the user can put right.
  """
  from export.bundle import bulk  # Imports TensorFlow.

  bulk.batch_recommend(options)


if __name__ == "__main__":
  sys.exit(main.run(BatchOptions, batch_recommend))
