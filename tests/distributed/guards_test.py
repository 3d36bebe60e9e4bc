"""Unsupported set-ups raise an error that says what to do."""

import re

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_recommenders as tfrs

from tests.distributed import problems
from xir_tfrs import tasks


def _tensors(features):
  return {name: tf.constant(column) for name, column in features.items()}


def _dataset():
  return tf.data.Dataset.from_tensor_slices(problems.batch(8, seed=0)).batch(8)


@pytest.mark.parametrize("method", ["ssl", "bir", "xir"])
def test_a_model_built_outside_the_scope(two_replicas, method):
  # SSL has no variables, so the towers' variables must show the fault.
  model = problems.build(method)
  with pytest.raises(ValueError, match=r"inside `with strategy.scope\(\):`"):
    two_replicas.run(
      lambda own: model.compute_loss(own, training=True),
      args=(_tensors(problems.batch(4, seed=0)),),
    )


def test_only_the_task_built_outside_the_scope(two_replicas):
  task = tasks.BIRRetrieval(candidate_counts=problems.COUNTS)
  embeddings = tf.ones([2, problems.DIM])
  with pytest.raises(ValueError, match=re.escape(task.name)):
    two_replicas.run(
      lambda: task(
        embeddings, embeddings, candidate_ids=tf.constant([0, 1], tf.int64)
      )
    )


def test_fit_of_a_model_built_outside_the_scope(two_replicas):
  model = problems.build("ssl_pop")
  with (
    two_replicas.scope(),
    pytest.raises(ValueError, match="scope"),
  ):
    model.compile(tf.keras.optimizers.SGD(0.1))
    model.fit(_dataset(), verbose=0)


def test_towers_of_a_plain_model_built_outside_the_scope(two_replicas):
  # The task does not know about them, but TensorFlow refuses them.
  tower = tf.keras.layers.Embedding(problems.NUM_CANDIDATES, problems.DIM)
  tower.build(None)

  class Model(tfrs.Model):
    def __init__(self):
      super().__init__()
      self.tower = tower
      self.task = tasks.SampledSoftmaxRetrieval()

    def compute_loss(self, features, training=False):
      ids = features["candidate_id"]
      embeddings = self.tower(ids)
      return self.task(
        embeddings, embeddings, candidate_ids=ids, training=training
      )

  with (
    two_replicas.scope(),
    pytest.raises(ValueError, match="scope"),
  ):
    model = Model()
    model.compile(tf.keras.optimizers.SGD(0.1))
    model.fit(_dataset(), verbose=0)


def test_evaluation_outside_the_strategy_is_no_error(two_replicas):
  with two_replicas.scope():
    model = problems.build("xir")
  features = _tensors(problems.batch(4, seed=0))
  loss = model.compute_loss(features, training=False)
  expected = problems.build("xir").compute_loss(features, training=False)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
