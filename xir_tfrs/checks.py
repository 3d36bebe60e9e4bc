"""Checks of arguments that several rooms of the library share."""

import operator


def require_positive(**values: float | None) -> None:
  """Raises ValueError for the first argument that is not > 0; skips None."""
  for name, value in values.items():
    try:
      wrong = value is not None and not value > 0
    except TypeError:  # It is no number.
      wrong = True
    if wrong:
      raise ValueError(
        f"`{name}` must be positive. Received: `{name}` = {value!r}."
      )


def require_sizes(**values: int | None) -> None:
  """Like `require_positive`, and the arguments must be whole numbers."""
  require_positive(**values)
  for name, value in values.items():
    try:
      operator.index(0 if value is None else value)
    except TypeError:
      raise ValueError(
        f"`{name}` must be a whole number. Received: `{name}` = {value!r}."
      ) from None
