"""Checkpoints in a directory whose path TensorFlow could read as a pattern."""

import numpy as np
import pytest
import tensorflow as tf

from pipelines.evaluation import drawn
from pipelines.training import checkpoints
from xir_tfrs.data import runs


def names(path):
  return sorted(file.name for file in (path / "checkpoints").glob("*.index"))


def saver(path, value):
  variable = tf.Variable(float(value))
  saved = tf.train.Checkpoint(x=variable)
  return variable, checkpoints.Checkpoints(runs.RunDir(path), saved, keep=1)


@pytest.mark.parametrize(
  ("first", "second"), [("run1", "run[1]"), ("axb", "a*b"), ("a", "a\\b")]
)
def test_a_run_keeps_and_removes_its_own(tmp_path, first, second):
  for name, value in ((first, 1), (second, 2)):
    _, mine = saver(tmp_path / name, value)
    for step in (3, 7, 8):
      mine.save(step)
  assert names(tmp_path / first) == names(tmp_path / second) == ["ckpt-8.index"]
  # Each directory finds its own newest checkpoint.
  for name, value in ((first, 1), (second, 2)):
    variable, again = saver(tmp_path / name, 0)
    assert again.restore() == 8
    assert variable.numpy() == value
    assert again.newest == str(tmp_path / name / "checkpoints" / "ckpt-8")
    assert drawn.in_checkpoint(again.newest, np.ones(3)) is None
