"""Programs, run from a checkout: ``python -m pipelines.NAME``."""

import os

# Before TensorFlow is imported: its notes on start-up would bury ours.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
