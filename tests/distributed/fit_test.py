"""`model.fit` on two logical CPUs, and what a dataset's end does to state."""

import numpy as np
import pytest
import tensorflow as tf

from tests.distributed import problems


@pytest.mark.parametrize(
  ("case", "method"),
  [("several steps per execution", "xir"), ("unannounced end", "bir")],
)
def test_fit_on_two_replicas_is_fit_on_one_device(two_replicas, case, method):
  one, two = (
    problems.fit(strategy, method, **problems.FITS[case])
    for strategy in (tf.distribute.get_strategy(), two_replicas)
  )
  problems.assert_same(two, one, exact=True)


def test_reported_loss_is_that_of_the_global_batch(two_replicas):
  # tf_keras sums what the replicas report; each reports its share.
  with two_replicas.scope():
    model = problems.build("ssl_pop")
    model.compile(tf.keras.optimizers.SGD(0.0))
  features = problems.batch(8, seed=0)
  dataset = tf.data.Dataset.from_tensor_slices(features).batch(8)
  (reported,) = model.fit(dataset, verbose=0).history["loss"]
  whole = problems.build("ssl_pop").compute_loss(
    {name: tf.constant(column) for name, column in features.items()}
  )
  np.testing.assert_allclose(reported, whole, rtol=1e-5)
  evaluated = model.evaluate(dataset, verbose=0, return_dict=True)["loss"]
  np.testing.assert_allclose(evaluated, whole, rtol=1e-5)


@pytest.mark.parametrize(
  "method",
  [name for name in problems.METHODS if not name.endswith("_expected")],
)
def test_the_end_of_a_dataset_is_no_step(method):
  # Keras looks for the end of a dataset that does not tell its length by a
  # step without a batch. Nothing may move at it.
  features = problems.batch(8, seed=0)
  # Batches of a fixed size: what follows from the size needs no batch.
  dataset = tf.data.Dataset.from_tensor_slices(features)
  dataset = dataset.batch(4, drop_remainder=True)
  stepped, fitted = (problems.build(method) for _ in range(2))
  for model in (stepped, fitted):
    model.compile(tf.keras.optimizers.SGD(0.1))
  for batch in dataset:
    stepped.train_step(batch)
  fitted.fit(dataset.filter(lambda _: True), verbose=0)
  for first, second in zip(stepped.variables, fitted.variables, strict=True):
    if first.dtype.is_integer:
      np.testing.assert_array_equal(first, second, first.name)
    else:
      np.testing.assert_allclose(first, second, 1e-5, 1e-6, err_msg=first.name)
