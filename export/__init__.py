"""Programs that write and use bundles, which `xir-tfrs` runs."""

import os

# Set before TensorFlow is imported, to silence its start-up log. Errors of ops
# still arrive as Python exceptions.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# As in xir_tfrs. Otherwise TensorFlow loads Keras 3 first, which takes a
# quarter of a program's start time.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
