"""Readers: each input kind as blocks of interactions with their positions."""

try:
  import pyarrow as _  # noqa: F401
except ImportError:
  raise ImportError(
    "Reading raw data needs pyarrow; install the extra that brings it: pip"
    " install -e '.[data]'"
  ) from None
