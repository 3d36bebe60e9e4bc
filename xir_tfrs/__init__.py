"""Two-tower retrieval training with BIR and XIR, for TensorFlow Recommenders.

BIR and XIR are the in-batch and the cache-augmented importance resampling of
"Cache-Augmented Inbatch Importance Resampling for Training Recommender
Retriever" (Chen et al., NeurIPS 2022, https://arxiv.org/abs/2205.14859).
"""

import os

# Read by TensorFlow at the first attribute access of `tf.keras`, which the
# modules below make: it must stand before them.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

import tensorflow as tf  # noqa: E402

if not tf.keras.Model.__module__.startswith("tf_keras"):
  raise ImportError(
    "xir_tfrs needs Keras 2, but `tf.keras` is Keras 3 in this process: "
    "import xir_tfrs before anything uses `tf.keras`, or set the environment "
    "variable TF_USE_LEGACY_KERAS=1 before Python starts "
    f"(it is {os.environ['TF_USE_LEGACY_KERAS']!r})."
  )

from xir_tfrs import (  # noqa: E402
  distribute,
  indexes,
  layers,
  metrics,
  models,
  ops,
  optimizers,
  tasks,
  types,
)

__version__ = "0.1.0"

__all__ = [
  "distribute",
  "indexes",
  "layers",
  "metrics",
  "models",
  "ops",
  "optimizers",
  "tasks",
  "types",
]
