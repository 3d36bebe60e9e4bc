"""MNS with many draws: the mixture makes the partition unbiased."""

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests import reference
from xir_tfrs import tasks

_COUNTS = np.array([5, 1, 3, 40, 7, 2, 12, 3, 11, 1])
_ROWS, _NUM_UNIFORM = 12, 4


class MixedNegativeTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters(0, 3)
  def test_partition_is_that_of_the_catalogue(self, positive):
    # ALGORITHMS 3.3. Row 0 has `positive`; popularity draws the other B - 1
    # rows and the task draws B' uniform candidates. Columns with the positive
    # are masked, so the sum is about B + B' - 1 times that over the catalogue.
    rng = np.random.default_rng(5)
    pop = reference.popularity(_COUNTS)
    # One-dimensional embeddings and a query of 1: scores.
    scores = rng.normal(size=[len(_COUNTS), 1]).astype(np.float32)
    task = tasks.MixedNegativeRetrieval(
      candidate_counts=_COUNTS,
      candidate_encoder=lambda ids: tf.gather(scores, ids),
      num_uniform=_NUM_UNIFORM,
    )
    weights = tf.one_hot(0, _ROWS) * _ROWS

    @tf.function
    def loss_of_first_row(ids):
      return task(
        tf.ones([_ROWS, 1]),
        tf.gather(scores, ids),
        candidate_ids=ids,
        sample_weight=weights,
        training=True,
      )

    own = float(np.exp(scores[positive, 0]))
    sums = []
    for _ in range(2000):
      ids = rng.choice(len(_COUNTS), size=_ROWS, p=pop)
      ids[0] = positive
      # L = log((own + sum) / own).
      sums.append(own * np.expm1(float(loss_of_first_row(tf.constant(ids)))))

    others = np.arange(len(_COUNTS)) != positive
    terms = np.exp(scores[:, 0].astype(np.float64))

    def expectation(rows, uniform):
      """Mean of the sum, if the task used shares `rows` and `uniform`."""
      mixture = (rows * pop + uniform / len(pop)) / (rows + uniform)
      columns = (_ROWS - 1) * pop + _NUM_UNIFORM / len(pop)
      return np.sum((columns * terms / mixture)[others])

    expected = expectation(_ROWS, _NUM_UNIFORM)
    self.assertAllClose(
      expected,
      (_ROWS + _NUM_UNIFORM - 1) * np.sum(terms[others]),
      # Except for the row's own column, which is not a draw.
      rtol=0.1,
    )
    error = np.std(sums) / np.sqrt(len(sums))
    self.assertAllClose(np.mean(sums), expected, rtol=0, atol=4 * error)
    # The test can fail: reversed shares, as in the authors' code of XIR
    # (ALGORITHMS 3.2), or no mixture are far from it.
    for wrong in ((_NUM_UNIFORM, _ROWS), (1, 0)):
      self.assertGreater(abs(expectation(*wrong) - expected), 8 * error)


if __name__ == "__main__":
  tf.test.main()
