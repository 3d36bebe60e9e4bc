"""Checks of arguments that several rooms of the library share."""


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
