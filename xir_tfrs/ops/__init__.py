"""Pure functions: tensors in, tensors out. One function per equation."""

from xir_tfrs.ops import (
  cache,
  corr,
  forms,
  frequency,
  full_softmax,
  fused,
  history,
  kmeans,
  losses,
  masking,
  midx,
  proposals,
  ranks,
  resampling,
  seeds,
  top_k,
)

__all__ = [
  "cache",
  "corr",
  "forms",
  "frequency",
  "full_softmax",
  "fused",
  "history",
  "kmeans",
  "losses",
  "masking",
  "midx",
  "proposals",
  "ranks",
  "resampling",
  "seeds",
  "top_k",
]
