"""Pure functions: tensors in, tensors out. One function per equation."""

from xir_tfrs.ops import (
  branches,
  cache,
  chunks,
  corr,
  fold_in,
  forms,
  frequency,
  full_softmax,
  fused,
  history,
  ids,
  kmeans,
  losses,
  masking,
  midx,
  proposals,
  ragged,
  ranks,
  resampling,
  search,
  seeds,
  top_k,
  words,
  xla,
)

__all__ = [
  "branches",
  "cache",
  "chunks",
  "corr",
  "fold_in",
  "forms",
  "frequency",
  "full_softmax",
  "fused",
  "history",
  "ids",
  "kmeans",
  "losses",
  "masking",
  "midx",
  "proposals",
  "ragged",
  "ranks",
  "resampling",
  "search",
  "seeds",
  "top_k",
  "words",
  "xla",
]


def __dir__() -> list[str]:
  return list(__all__)
