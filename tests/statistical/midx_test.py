"""Draws of the inverted multi-index, compared with exact probabilities."""

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests import reference
from xir_tfrs import layers

_N, _DIM, _DRAWS = 30, 5, 60000
# Chi-square, 29 degrees of freedom, 0.9999 quantile.
_CHI_SQUARE_29 = 66.15


class MidxTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.product(weighted=(False, True), refreshed=(False, True))
  def test_frequencies_by_chi_square(self, weighted, refreshed):
    rng = np.random.default_rng(5)
    weights = rng.integers(1, 20, _N).astype(float) if weighted else None
    index = layers.InvertedMultiIndex(
      _N, _DIM, num_codewords=3, weights=weights, seed=2
    )
    if refreshed:
      index.refresh(rng.normal(size=[_N, _DIM]))
    queries = rng.normal(size=[3, _DIM]).astype(np.float32)
    ids, _ = index.sample(tf.constant(queries), _DRAWS, seed=(1, 2))
    for query, drawn in zip(queries, ids.numpy(), strict=True):
      expected = _DRAWS * reference.midx_probabilities(
        query, index.codebooks.numpy(), index.codes.numpy(), weights
      )
      observed = np.bincount(drawn, minlength=_N)
      self.assertLess(
        np.sum((observed - expected) ** 2 / expected), _CHI_SQUARE_29
      )

  def test_draws_of_a_row_are_independent(self):
    # Consecutive draws of a query are independent: pairs follow the product.
    rng = np.random.default_rng(5)
    index = layers.InvertedMultiIndex(6, 2, num_codewords=2)
    index.refresh(rng.normal(size=[6, 2]))
    query = rng.normal(size=[1, 2]).astype(np.float32)
    drawn = index.sample(tf.constant(query), _DRAWS, seed=7)[0].numpy()
    pairs = np.bincount(
      drawn[0, ::2] * 6 + drawn[0, 1::2], minlength=36
    ).reshape(6, 6)
    q = reference.midx_probabilities(
      query[0], index.codebooks.numpy(), index.codes.numpy()
    )
    expected = _DRAWS / 2 * np.outer(q, q)
    # 35 degrees of freedom, 0.9999 quantile.
    self.assertLess(np.sum((pairs - expected) ** 2 / expected), 74.93)


if __name__ == "__main__":
  tf.test.main()
