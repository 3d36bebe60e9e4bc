"""Pure functions: tensors in, tensors out. One function per equation."""

from xir_tfrs.ops import (
  cache,
  corr,
  frequency,
  full_softmax,
  fused,
  history,
  kmeans,
  losses,
  masking,
  midx,
  proposals,
  resampling,
  seeds,
  top_k,
)

__all__ = [
  "cache",
  "corr",
  "frequency",
  "full_softmax",
  "fused",
  "history",
  "kmeans",
  "losses",
  "masking",
  "midx",
  "proposals",
  "resampling",
  "seeds",
  "top_k",
]
