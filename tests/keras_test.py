"""Imports the library in processes with every setting of Keras."""

import os
import pathlib
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).resolve().parent.parent

_USE = """
import xir_tfrs as xir
import tensorflow as tf
task = xir.tasks.BIRRetrieval(candidate_counts=[1, 2])
assert isinstance(task, tf.keras.layers.Layer)
loss = task(tf.eye(2), tf.eye(2), candidate_ids=tf.constant([0, 1]))
assert loss.shape == []
print("it works")
"""
# Name -> environment, code to run before, and whether an error is allowed. The
# code in the documents runs without the variable, and this suite with 1.
_KERAS = {
  "zero": ({"TF_USE_LEGACY_KERAS": "0"}, "", True),
  "after_tensorflow": ({}, "import tensorflow", False),
  "after_keras_3": (
    {},
    "import tensorflow as tf; tf.keras.Model",
    True,
  ),
  "jax_backend": ({"KERAS_BACKEND": "jax"}, "", False),
}


@pytest.fixture(scope="module")
def keras_runs():
  """Runs all cases, two processes at a time; most of the time is imports."""
  names = list(_KERAS)
  results = {}
  for start in range(0, len(names), 2):
    running = {}
    for name in names[start : start + 2]:
      environment, before, _ = _KERAS[name]
      inherited = {
        key: value
        for key, value in os.environ.items()
        if key not in ("TF_USE_LEGACY_KERAS", "KERAS_BACKEND")
      }
      running[name] = subprocess.Popen(
        [sys.executable, "-c", before + _USE],
        cwd=_ROOT,
        env={**inherited, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
    for name, process in running.items():
      out, err = process.communicate(timeout=120)
      results[name] = (process.returncode, out, err)
  return results


@pytest.mark.parametrize("name", _KERAS)
@pytest.mark.slow
def test_imports_whatever_the_user_set_about_keras(keras_runs, name):
  """The import works, or an error of one sentence says what to do."""
  code, out, err = keras_runs[name]
  may_be_refused = _KERAS[name][2]
  if code == 0:
    assert "it works" in out
    return
  assert may_be_refused, err
  sentence = err.strip().splitlines()[-1]
  assert sentence.startswith("ImportError: "), err
  assert "TF_USE_LEGACY_KERAS" in sentence
  assert "xir_tfrs" in sentence
  # Only one traceback.
  assert err.count("Traceback (most recent call last)") == 1, err
