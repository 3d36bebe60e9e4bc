"""`model.fit` on two logical CPUs, and state at the end of a dataset."""

import numpy as np
import pytest
import tensorflow as tf

from tests.distributed import problems


def test_fit_on_two_replicas_is_fit_on_one_device(two_replicas):
  # Also the reported losses, for which tf_keras sums the replicas' shares.
  # parity_test tests the other cases.
  one, two = (
    problems.fit(
      strategy, "bir", **problems.FITS["several steps per execution"]
    )
    for strategy in (tf.distribute.get_strategy(), two_replicas)
  )
  problems.assert_same(two, one, exact=True)


def test_evaluated_loss_is_that_of_the_global_batch(two_replicas):
  with two_replicas.scope():
    model = problems.build("ssl_pop")
    model.compile()
  features = problems.batch(8, seed=0)
  dataset = tf.data.Dataset.from_tensor_slices(features).batch(8)
  whole = problems.build("ssl_pop").compute_loss(
    {name: tf.constant(column) for name, column in features.items()}
  )
  evaluated = model.evaluate(dataset, verbose=0, return_dict=True)["loss"]
  np.testing.assert_allclose(evaluated, whole, rtol=1e-5)


@pytest.mark.parametrize(
  "method",
  # Tasks that count steps; the only state of the others is the popularity.
  sorted(
    set(problems.METHODS)
    - {"ssl", "ssl_pop", "full_softmax", "bir_expected", "xir_expected"}
  ),
)
def test_the_end_of_a_dataset_does_not_count_as_a_step(method):
  # If a dataset does not know its length, Keras finds its end by a step without
  # a batch, which must not change any state.
  features = problems.batch(8, seed=0)
  # Batches of a fixed size, so code that depends on the size runs without one.
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
