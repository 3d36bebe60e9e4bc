"""Programs around bundles, which `xir-tfrs` runs."""

import os

# TensorFlow's start-up lines would fill the screen before one answer; what an
# op has to complain about still arrives, as a Python exception.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# What xir_tfrs chooses. Otherwise TensorFlow loads Keras 3 first: a quarter of
# the time that a program takes to start.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
