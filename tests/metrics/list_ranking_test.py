"""Tests of xir_tfrs.metrics.list_ranking."""

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

import xir_tfrs as xir


def _ragged(rows):
  return tf.ragged.constant(rows, tf.int64, row_splits_dtype=tf.int64)


def _problem(seed, num_queries=12, num_candidates=20):
  """Integer scores: ties are common."""
  rng = np.random.default_rng(seed)
  scores = rng.integers(0, 5, [num_queries, num_candidates]).astype(np.float32)
  relevant = [
    sorted(rng.choice(num_candidates, rng.integers(0, 5), replace=False))
    for _ in range(num_queries)
  ]
  return scores, relevant


class ListRankingTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters((1, 3, 10), (20, 25), (4,))
  def test_lists_of_the_whole_catalogue_are_a_full_ranking(self, *ks):
    scores, relevant = _problem(1)
    # Scores as query vectors, with unit vectors as candidates.
    expected = xir.metrics.full_ranking(
      scores, np.eye(20, dtype=np.float32), relevant=_ragged(relevant), ks=ks
    )
    rng = np.random.default_rng(2)
    ids = np.stack([rng.permutation(20) for _ in range(12)])
    got = xir.metrics.list_ranking(
      ids,
      np.take_along_axis(scores, ids, 1),
      relevant=_ragged(relevant),
      num_candidates=20,
      ks=ks,
    )
    self.assertEqual(got.keys(), expected.keys())
    for name, value in expected.items():
      self.assertAllClose(got[name], value, msg=name)

  def test_short_lists(self):
    # Candidates that are not in the list are misses; the ideal DCG still counts
    # them.
    got = xir.metrics.list_ranking(
      [[3, 1], [-1, 0], [-1, -1]],
      [[1.0, 2.0], [9.0, 1.0], [np.nan, -np.inf]],
      relevant=_ragged([[3, 2, 4], [0], [1]]),
      num_candidates=5,
      ks=(1, 2, 4),
    )
    self.assertAllClose(got["hit@1"], 1 / 3)
    self.assertAllClose(got["recall@2"], (1 / 3 + 1 + 0) / 3)
    self.assertAllClose(got["recall@4"], got["recall@2"])
    ideal = 1 + 1 / np.log2(3) + 1 / 2
    self.assertAllClose(got["ndcg@4"], (1 / np.log2(3) / ideal + 1) / 3)
    self.assertAllClose(got["coverage@1"], 2 / 5)
    self.assertAllClose(got["coverage@4"], 3 / 5)

  def test_ties_do_not_count_for_the_model(self):
    got = xir.metrics.list_ranking(
      [[0, 1, 2]],
      [[7.0, 7.0, 7.0]],
      relevant=_ragged([[0]]),
      num_candidates=9,
      ks=(1, 2, 3),
    )
    self.assertEqual(
      [got["recall@1"], got["recall@2"], got["recall@3"]], [0, 0, 1]
    )
    self.assertAllClose(got["mrr@3"], 1 / 3)

  @parameterized.parameters(
    ({"candidate_ids": [[0, 5]]}, r"\[0, 5\), or -1. Received: 5"),
    ({"candidate_ids": [[0, -2]]}, "Received: -2"),
    ({"candidate_ids": [[3, 3]]}, "candidate 3 twice in row 0"),
    ({"candidate_ids": [[0.5, 1.0]]}, "float64"),
    ({"candidate_ids": [[0, 1, 2]]}, r"\[1, 3\] and \[1, 2\]"),
    ({"scores": [[np.nan, 0.0]]}, "NaN in row 0"),
    ({"relevant": [[]]}, "nothing to evaluate"),
    ({"relevant": [[1, 1]]}, "must not repeat"),
    ({"relevant": [[1], [2]]}, "2 rows for 1 queries"),
    ({"ks": (0,)}, "`ks`"),
  )
  def test_bad_arguments(self, arguments, message):
    arguments = {
      "candidate_ids": [[0, 1]],
      "scores": [[2.0, 1.0]],
      "relevant": [[1]],
      "num_candidates": 5,
      "ks": (1,),
    } | arguments
    arguments["relevant"] = _ragged(arguments["relevant"])
    with self.assertRaisesRegex(ValueError, message):
      xir.metrics.list_ranking(
        arguments.pop("candidate_ids"), arguments.pop("scores"), **arguments
      )


if __name__ == "__main__":
  tf.test.main()
