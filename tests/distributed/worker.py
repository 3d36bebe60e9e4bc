"""One worker of a cluster, or a process of several devices: solves `problems`.

    python -m tests.distributed.worker --out FOLDER [--cpus 3] METHOD ...

Writes FOLDER/worker-INDEX.npz: arrays by "CASE/METHOD/NAME".
"""

import argparse
import gc
import json
import os
import pathlib

import numpy as np

import xir_tfrs  # noqa: F401  Before TensorFlow: it chooses the Keras.

# isort: split
import tensorflow as tf

from tests.distributed import problems


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--out", type=pathlib.Path, required=True)
  parser.add_argument("--cpus", type=int, default=1)
  parser.add_argument("methods", nargs="+")
  arguments = parser.parse_args()

  gc.disable()  # Graphs have many objects, which are never freed.
  strategy, index, fits = _strategy(arguments.cpus)
  results = {}

  def keep(case, method, arrays):
    for name, value in arrays.items():
      results[f"{case}/{method}/{name}"] = value

  for method in arguments.methods:
    keep("train", method, problems.train(strategy, method))
  for case in fits:
    keep(case, "xir", problems.fit(strategy, "xir", **fits[case]))
  np.savez(arguments.out / f"worker-{index}.npz", **results)
  # Last, because everything fails after a failed step.
  try:
    problems.train_on_nothing(strategy)
  except tf.errors.InvalidArgumentError as error:
    print("refused:", error.message)


def _strategy(cpus: int):
  """Returns (strategy, number of this worker, cases of `fit`)."""
  if cpus > 1:
    tf.config.set_logical_device_configuration(
      tf.config.list_physical_devices("CPU")[0],
      [tf.config.LogicalDeviceConfiguration()] * cpus,
    )
    devices = [f"CPU:{number}" for number in range(cpus)]
    return tf.distribute.MirroredStrategy(devices), 0, {}
  strategy = tf.distribute.MultiWorkerMirroredStrategy()
  index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
  return strategy, index, problems.FITS


if __name__ == "__main__":
  main()
