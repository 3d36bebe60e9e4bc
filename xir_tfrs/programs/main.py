"""Runs a program: its exit status, and what it says of an error."""

from __future__ import annotations

import sys
from collections.abc import Callable

from xir_tfrs.data import errors


def run(main: Callable[[], None]) -> int:
  """Runs `main`; an `errors.DataError` becomes one line on stderr.

  Returns:
    The exit status, 0 or 1.
  """
  try:
    main()
  except errors.DataError as error:
    print("Error:", " ".join(str(error).split()), file=sys.stderr)
    return 1
  except KeyboardInterrupt:
    print("Interrupted.", file=sys.stderr)
    return 130
  return 0
