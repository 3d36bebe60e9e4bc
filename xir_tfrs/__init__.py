"""Two-tower retrieval training with BIR and XIR, for TensorFlow Recommenders.

BIR and XIR are the in-batch and the cache-augmented importance resampling of
"Cache-Augmented Inbatch Importance Resampling for Training Recommender
Retriever" (Chen et al., NeurIPS 2022, https://arxiv.org/abs/2205.14859).

Importing the package is cheap: its parts, and TensorFlow with them, are loaded
when they are first used.
"""

import importlib
import os
import types as types_lib
import typing

# Read by TensorFlow at the first attribute access of `tf.keras`.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

if typing.TYPE_CHECKING:
  from xir_tfrs import (
    data,
    diagnostics,
    distribute,
    indexes,
    layers,
    metrics,
    models,
    ops,
    optimizers,
    serving,
    tasks,
    types,
  )

__version__ = "0.2.0"

__all__ = [
  "data",
  "diagnostics",
  "distribute",
  "indexes",
  "layers",
  "metrics",
  "models",
  "ops",
  "optimizers",
  "serving",
  "tasks",
  "types",
]


def __getattr__(name: str) -> types_lib.ModuleType:
  if name in __all__:
    return importlib.import_module(f"{__name__}.{name}")
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
  return list(__all__)
