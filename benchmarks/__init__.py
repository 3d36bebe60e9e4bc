"""Benchmarks: python -m benchmarks.NAME."""

# Before any benchmark imports TFRS: it makes tf.keras Keras 2.
import xir_tfrs  # noqa: F401
