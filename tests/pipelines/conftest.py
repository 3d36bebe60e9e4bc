"""Data that the tests of several programs share; they must not change it."""

import pytest

from pipelines import prepare
from pipelines.readers import sources, synthetic


@pytest.fixture(scope="session")
def small_data(tmp_path_factory):
  """A small prepared data set, with side features and all three splits."""
  output = tmp_path_factory.mktemp("data") / "small"
  prepare.prepare(
    prepare.PrepareConfig(
      input=sources.Input(
        paths=(),
        format="synthetic",
        synthetic=synthetic.SyntheticConfig(
          num_users=200, num_items=150, num_interactions=4000, seed=3
        ),
      ),
      output=output,
      validation_fraction=0.1,
    )
  )
  return output
