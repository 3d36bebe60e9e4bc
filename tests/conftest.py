"""Settings of the whole suite: Keras 2, two logical CPUs, fixed seeds."""

import atexit
import gc
import os
import pathlib
import random

# Imported modules and collected tests are never freed.
gc.disable()
# A worker has reported everything when it ends. Freeing the objects of its
# tests would take longer than xdist waits.
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

from tests import forked

# MirroredStrategy tests need two devices. TensorFlow cannot split the CPU once
# it has run an op, so this is here and not in the tests.
tf.config.set_logical_device_configuration(
  tf.config.list_physical_devices("CPU")[0],
  [tf.config.LogicalDeviceConfiguration()] * 2,
)
# On a GPU, TensorFloat-32 products would miss every 1e-5 tolerance.
tf.config.experimental.enable_tensor_float_32_execution(False)

_ROOT = pathlib.Path(__file__).parents[1]

_set_seed_and_forget_kernels = context.Context._set_global_seed


def _set_seed(self, seed):
  """Keeps TensorFlow's kernels, unless one holds a stream of random numbers.

  Setting a seed, as every test does, discards all kernels. Creating them and
  optimizing the graphs of a bundle again takes longer than most tests. A kernel
  that draws took a number from `_rng` when it was created.
  """
  before = None if self._seed is None else random.Random(self._seed).getstate()
  if before is None or self._rng.getstate() != before:
    _set_seed_and_forget_kernels(self, seed)
  else:
    self._seed, self._rng = seed, random.Random(seed)


context.Context._set_global_seed = _set_seed


def pytest_collection_modifyitems(items):
  """Runs files that train or start programs first, and short ones last."""
  long = {"tests", "pipelines", "export", "distributed"}
  items.sort(key=lambda item: item.path.parent.name not in long)


@pytest.fixture(scope="module", autouse=True)
def _only_what_this_file_makes_is_searched_for_garbage():
  """Makes garbage collection cheap: after a thousand tests it would take 12 s.

  TensorFlow never frees the graphs of custom gradients, which are millions of
  objects that each collection would visit. Tracing also creates many permanent
  objects, so collections can be rarer than by default (700 objects).
  """
  gc.set_threshold(20_000, 20, 20)
  gc.collect()
  gc.freeze()
  gc.enable()


@pytest.fixture(autouse=True)
def _same_start_for_every_test():
  """Sets global seeds and resets the dtype policy."""
  tf.keras.utils.set_random_seed(17)
  np.random.seed(17)
  yield
  tf.keras.mixed_precision.set_global_policy("float32")


@pytest.fixture(scope="session")
def fast():
  """The environment of a user, in which programs start quickly."""
  with forked.programs(forked.environment_of(_ROOT)) as environment:
    yield environment


@pytest.fixture(scope="session")
def two_replicas():
  """MirroredStrategy on the two logical CPUs, the only one in the process.

  A second one would number its collective operations from 0 again, and
  TensorFlow would confuse them with those of the first.
  """
  return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
