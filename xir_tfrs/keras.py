"""Checks that `tf.keras` is Keras 2; imported before anything subclasses it."""

import os

import tensorflow as tf

if not tf.keras.Model.__module__.startswith("tf_keras"):
  raise ImportError(
    "xir_tfrs needs Keras 2, but `tf.keras` is Keras 3 in this process: "
    "import xir_tfrs before anything uses `tf.keras`, or set the environment "
    "variable TF_USE_LEGACY_KERAS=1 before Python starts "
    f"(it is {os.environ['TF_USE_LEGACY_KERAS']!r})."
  )
