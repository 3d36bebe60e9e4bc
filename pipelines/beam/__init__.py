"""The two passes of `pipelines.prepare` on Apache Beam.

Every rule (dense ids, repeated pairs, splits, order of rows, leakage) is a
function in `pipelines.preparation` that both programs call; this package only
decides which rows meet on which worker. The passes exchange data through files
in a work folder that all workers see.
"""

import logging

# Silences Beam's warning about its missing extra for Google Cloud.
logging.disable(logging.WARNING)
try:
  import apache_beam as _  # noqa: F401
except ImportError:
  raise ImportError(
    "preparing data on Beam needs apache-beam; install the extra:"
    " pip install -e '.[beam]'"
  ) from None
finally:
  logging.disable(logging.NOTSET)
