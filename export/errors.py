"""The one error of exporting, and of bundles that cannot be used."""

from __future__ import annotations

import sys
from collections.abc import Callable


class ExportError(RuntimeError):
  """Says what was found, where, and what to do; programs print it alone."""


def run(main: Callable[[], None]) -> int:
  """Runs `main`; an `ExportError` becomes one line on stderr.

  Returns:
    The exit status, 0 or 1.
  """
  try:
    main()
  except ExportError as error:
    print("Error:", " ".join(str(error).split()), file=sys.stderr)
    return 1
  except KeyboardInterrupt:
    print("Interrupted.", file=sys.stderr)
    return 130
  return 0
