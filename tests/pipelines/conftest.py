"""Data that the tests of several programs share; they must not change it."""

import pytest

from tests import synthetic_data


@pytest.fixture(scope="session")
def small_data(tmp_path_factory):
  """A small prepared data set, with side features and all three splits."""
  output = tmp_path_factory.mktemp("data") / "small"
  synthetic_data.prepare_synthetic(
    output,
    num_users=200,
    num_items=150,
    num_interactions=4000,
    seed=3,
    validation_fraction=0.1,
  )
  return output
