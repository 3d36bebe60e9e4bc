"""Numbers of things are positive and whole."""

import numpy as np
import pytest
import tensorflow as tf

import xir_tfrs as xir
from xir_tfrs import checks

_BUILD = {
  "num_resampled": lambda n: xir.tasks.BIRRetrieval(
    candidate_counts=[2, 1], num_resampled=n
  ),
  "cache_size": lambda n: xir.tasks.XIRRetrieval(
    candidate_counts=[2, 1],
    candidate_encoder=tf.keras.layers.Embedding(2, 4),
    cache_size=n,
  ),
  "row_chunk_size": lambda n: xir.tasks.SampledSoftmaxRetrieval(
    row_chunk_size=n
  ),
  "dim": lambda n: xir.models.Tower(vocabulary_size=3, dim=n),
}


@pytest.mark.parametrize("name", _BUILD)
def test_an_argument_that_counts_things_is_a_whole_number(name):
  with pytest.raises(ValueError, match=f"`{name}` must be a whole number"):
    _BUILD[name](2.5)
  with pytest.raises(ValueError, match=f"`{name}` must be positive"):
    _BUILD[name](0)
  _BUILD[name](np.int64(2))


def test_missing_sizes_are_skipped():
  checks.require_sizes(size=None, other=tf.constant(3))


@pytest.mark.parametrize("value", ["many", float("nan"), [3]])
def test_what_is_no_number_is_named(value):
  with pytest.raises(ValueError, match=r"`size` must be .*`size` = "):
    checks.require_sizes(size=value)
