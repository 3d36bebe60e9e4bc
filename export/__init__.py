"""Programs, run from a checkout: `python -m export.NAME`."""

import os

# TensorFlow's start-up lines would fill the screen before one answer; what an
# op has to complain about still arrives, as a Python exception.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
