"""Optimizers for models that are mostly embedding tables."""

from xir_tfrs import keras  # noqa: F401  Keras 2, or an error.
from xir_tfrs.optimizers.coupled_l2_adam import CoupledL2Adam
from xir_tfrs.optimizers.lazy_adam import LazyAdam
from xir_tfrs.optimizers.weight_average import WeightAverage

__all__ = ["CoupledL2Adam", "LazyAdam", "WeightAverage"]


def __dir__() -> list[str]:
  return list(__all__)
