"""Programs that prepare data, train and evaluate, which `xir-tfrs` runs."""

import os

# Before TensorFlow is imported: its lines on start-up would bury ours. What an
# op has to complain about still arrives, as a Python exception.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# What xir_tfrs chooses. Otherwise TensorFlow loads Keras 3 first: a quarter of
# the time that a program takes to start.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
