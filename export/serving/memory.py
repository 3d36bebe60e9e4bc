"""Returns the memory of large calls to the operating system."""

from __future__ import annotations

import ctypes

# For mallopt: larger blocks are mapped, and unmapped as soon as they are freed.
# By default the C library raises this up to 32 MiB and keeps smaller blocks.
_MMAP_THRESHOLD = -3
_MAPPED_BYTES = 1 << 20
# Each arena keeps freed memory; by default concurrent threads have one each.
_ARENA_MAX = -8
_ARENAS = 2


def keep_little() -> None:
  """Makes the C library keep little freed memory; call before threads start."""
  library = ctypes.CDLL(None)
  if hasattr(library, "mallopt"):
    library.mallopt(_MMAP_THRESHOLD, _MAPPED_BYTES)
    library.mallopt(_ARENA_MAX, _ARENAS)


def give_back() -> None:
  """Returns freed memory now; takes milliseconds."""
  library = ctypes.CDLL(None)
  if hasattr(library, "malloc_trim"):
    library.malloc_trim(0)
