"""Files of other programs: delimited text, Parquet, TFRecords, side tables."""

import importlib.util

from xir_tfrs.data import errors

# Not imported here: what only names columns or formats must start at once.
if importlib.util.find_spec("pyarrow") is None:
  raise errors.DataError(
    "reading raw data needs pyarrow, which is not installed; install it with"
    " pip install 'xir-tfrs[data]'"
  )
