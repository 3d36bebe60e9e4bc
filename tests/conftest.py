"""Settings of the whole suite: Keras 2, two logical CPUs, fixed seeds."""

import atexit
import gc
import os
import random

# Nothing of what is imported and collected goes away.
gc.disable()
# A worker has reported all when it ends; to take apart what its tests have left
# in memory needs as long as xdist waits for it.
if "PYTEST_XDIST_WORKER" in os.environ:
  atexit.register(os._exit, 0)

# Both are read once: at the first use of tf.keras and when TensorFlow loads.
os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# ruff: noqa: E402
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager import context

# MirroredStrategy tests need two devices. TensorFlow refuses to split the CPU
# once it has run an op, so this stands here and not in the tests.
tf.config.set_logical_device_configuration(
  tf.config.list_physical_devices("CPU")[0],
  [tf.config.LogicalDeviceConfiguration()] * 2,
)
# On a GPU, TensorFloat-32 products would miss every 1e-5 tolerance.
tf.config.experimental.enable_tensor_float_32_execution(False)


_set_seed_and_forget_kernels = context.Context._set_global_seed


def _set_seed(self, seed):
  """Keeps TensorFlow's kernels where none holds a stream of random numbers.

  Every test sets seeds, and so does `tf.test.TestCase`. To make all kernels
  again, and to optimize the graphs of a bundle again, takes longer than most
  tests. A kernel that draws has taken a number of `_rng` as it was made.
  """
  before = None if self._seed is None else random.Random(self._seed).getstate()
  if before is None or self._rng.getstate() != before:
    _set_seed_and_forget_kernels(self, seed)
  else:
    self._seed, self._rng = seed, random.Random(seed)


context.Context._set_global_seed = _set_seed


def pytest_collection_modifyitems(items):
  """Runs files that train or start programs first; short ones fill the end."""
  long = {"tests", "pipelines", "export", "distributed"}
  items.sort(key=lambda item: item.path.parent.name not in long)


@pytest.fixture(scope="module", autouse=True)
def _only_what_this_file_makes_is_searched_for_garbage():
  """Otherwise a full collection takes 12 s once a thousand tests have run.

  TensorFlow keeps the graph of every custom gradient for good: millions of
  objects, which would all be looked at again. And to trace a function makes
  many objects that stay: less often than Python's own 700 is enough.
  """
  gc.set_threshold(20_000, 20, 20)
  gc.collect()
  gc.freeze()
  gc.enable()


@pytest.fixture(autouse=True)
def _same_start_for_every_test():
  """Fixed global seeds, and no dtype policy left over from another test."""
  tf.keras.utils.set_random_seed(17)
  np.random.seed(17)
  yield
  tf.keras.mixed_precision.set_global_policy("float32")


@pytest.fixture(scope="session")
def two_replicas():
  """MirroredStrategy on the two logical CPUs: the only one of the process.

  A second one would number its collective operations from the start again,
  and TensorFlow takes them for those of the first, of other types and shapes.
  """
  return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
