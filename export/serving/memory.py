"""Returns memory of large calls to the system."""

from __future__ import annotations

import ctypes

# Of mallopt: larger pieces are mapped, and unmapped as soon as they are free.
# Left to itself the C library raises this up to 32 MiB, and keeps the rest.
_MMAP_THRESHOLD = -3
_MAPPED_BYTES = 1 << 20
# Threads that allocate at a time have an arena each, which keep what is free.
_ARENA_MAX = -8
_ARENAS = 2


def keep_little() -> None:
  """Has the C library keep little of what is free; before there are threads."""
  library = ctypes.CDLL(None)
  if hasattr(library, "mallopt"):
    library.mallopt(_MMAP_THRESHOLD, _MAPPED_BYTES)
    library.mallopt(_ARENA_MAX, _ARENAS)


def give_back() -> None:
  """Gives back what is free now; takes milliseconds."""
  library = ctypes.CDLL(None)
  if hasattr(library, "malloc_trim"):
    library.malloc_trim(0)
