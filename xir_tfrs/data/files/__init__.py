"""Reads files of other programs: text, Parquet, TFRecords, side tables."""

import importlib.util

from xir_tfrs.data import errors

# pyarrow is not imported here: code that only names columns must start fast.
if importlib.util.find_spec("pyarrow") is None:
  raise errors.DataError(
    "reading raw data needs pyarrow, which is not installed; install it with"
    " pip install 'xir-tfrs[data]'"
  )
