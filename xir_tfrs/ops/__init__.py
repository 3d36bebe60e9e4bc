"""Pure functions: tensors in, tensors out. One function per equation."""

from xir_tfrs.ops import (
  cache,
  fused,
  losses,
  masking,
  proposals,
  resampling,
  seeds,
)

__all__ = [
  "cache",
  "fused",
  "losses",
  "masking",
  "proposals",
  "resampling",
  "seeds",
]
