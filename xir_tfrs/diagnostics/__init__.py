"""Measures how well a training loss estimates the full softmax."""

from xir_tfrs.diagnostics.estimator import EstimatorProbe

__all__ = ["EstimatorProbe"]


def __dir__() -> list[str]:
  return list(__all__)
