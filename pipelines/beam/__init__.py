"""The two passes of `pipelines.prepare` on Apache Beam.

Every rule (dense ids, repeated pairs, splits, order of rows, leakage) is a
function of `pipelines.preparation` that both programs call; here is only which
rows meet where. What is handed from one pass to the next stands in files of a
work folder that all workers see.
"""

import logging

# Without its extra for Google Cloud, which nobody asked for, Beam warns.
logging.disable(logging.WARNING)
try:
  import apache_beam as _  # noqa: F401
except ImportError:
  raise ImportError(
    "preparing data on Beam needs apache-beam; install the extra that brings"
    " it: pip install -e '.[beam]'"
  ) from None
finally:
  logging.disable(logging.NOTSET)
