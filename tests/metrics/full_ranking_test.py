"""Tests of xir_tfrs.metrics: full_ranking and the metrics of a list."""

import math
import sys

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

import xir_tfrs as xir
from xir_tfrs.metrics import at_k, ranker
from xir_tfrs.ops import top_k

# `xir.metrics.full_ranking` is the function; this is its module.
module = sys.modules["xir_tfrs.metrics.full_ranking"]


def ranked_list(scores, relevant, seen):
  """Ids from best to worst; relevant ones last among equals."""
  allowed = [i for i in range(len(scores)) if i not in seen]
  return sorted(allowed, key=lambda i: (-scores[i], i in relevant, i))


def slow_metrics(ranking, relevant, k):
  """All metrics of one list, by loops over its first k entries."""
  hits = dcg = compat = precision = first = 0.0
  for rank, candidate in enumerate(ranking[:k], start=1):
    if candidate not in relevant:
      continue
    hits += 1
    dcg += 1 / math.log2(rank + 1)
    compat += 1.0 if rank == 1 else 1 / math.log2(3)
    precision += hits / rank
    first = first or 1 / rank
  best = min(k, len(relevant))
  ideal = sum(1 / math.log2(rank + 1) for rank in range(1, best + 1))
  return {
    "recall": hits / len(relevant),
    "ndcg": dcg / ideal,
    "ndcg_xir_compat": compat / ideal,
    "mrr": first,
    "map": precision / best,
    "hit": float(hits > 0),
  }


def slow_full_ranking(queries, candidates, relevant, seen, ks):
  lists = []
  for q, query in enumerate(queries):
    scores = [
      sum(a * b for a, b in zip(query, c, strict=True)) for c in candidates
    ]
    lists.append(ranked_list(scores, relevant[q], seen[q]))
  results = {}
  for k in ks:
    rows = [
      slow_metrics(ranking, wanted, k)
      for ranking, wanted in zip(lists, relevant, strict=True)
      if wanted
    ]
    for name in rows[0]:
      values = [row[name] for row in rows]
      results[f"{name}@{k}"] = sum(values) / len(values)
    shown = set().union(*(ranking[:k] for ranking in lists))
    results[f"coverage@{k}"] = len(shown) / len(candidates)
  return results


def ragged(rows):
  lengths = [len(row) for row in rows]
  values = [int(i) for row in rows for i in row]
  return tf.RaggedTensor.from_row_lengths(
    np.array(values, np.int64), np.array(lengths, np.int64)
  )


def problem(seed, num_queries, num_candidates, dim, values):
  """Integer embeddings: scores are exact, and ties are common."""
  rng = np.random.default_rng(seed)
  queries = rng.integers(-values, values + 1, [num_queries, dim])
  candidates = rng.integers(-values, values + 1, [num_candidates, dim])
  largest = min(num_candidates, 6)
  relevant, seen = (
    [
      list(rng.choice(num_candidates, rng.integers(0, largest + 1), False))
      for _ in range(num_queries)
    ]
    for _ in range(2)
  )
  relevant[0] = relevant[0] or [0]
  return queries, candidates, relevant, seen


class InterestsTest(tf.test.TestCase):
  def test_a_candidate_has_its_highest_score(self):
    rng = np.random.default_rng(0)
    queries = rng.normal(size=[7, 3, 4]).astype(np.float32)
    candidates = rng.normal(size=[20, 4]).astype(np.float32)
    relevant = ragged([[i, i + 5] for i in range(7)])
    best = (candidates @ queries.transpose(0, 2, 1)).max(axis=2)
    # Scores as query vectors, with unit vectors as candidates.
    expected = xir.metrics.full_ranking(
      best, np.eye(20, dtype=np.float32), relevant=relevant, ks=(3, 10)
    )
    found = xir.metrics.full_ranking(
      queries, candidates, relevant=relevant, ks=(3, 10), query_chunk_size=4
    )
    self.assertAllClose(found, expected)


class FullRankingTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.product(
    num_candidates=(1, 7, 60, 900),
    dim=(1, 3),
    values=(1, 3),
    ks=((1,), (3, 10), (20, 5, 1000)),
  )
  def test_equals_sorted_lists(self, num_candidates, dim, values, ks):
    queries, candidates, relevant, seen = problem(
      num_candidates + dim, 13, num_candidates, dim, values
    )
    expected = slow_full_ranking(
      queries.tolist(), candidates.tolist(), relevant, seen, ks
    )
    for chunk in (None, 1, 5):
      results = xir.metrics.full_ranking(
        queries.astype(np.float32),
        candidates.astype(np.float32),
        relevant=ragged(relevant),
        seen=ragged(seen),
        ks=ks,
        query_chunk_size=chunk,
      )
      self.assertEqual(set(results), set(expected))
      for name, value in expected.items():
        self.assertIsInstance(results[name], float)
        self.assertAlmostEqual(results[name], value, places=12, msg=name)

  def test_distinct_rows_in_blocks(self):
    # Without equal rows, the product is used unchanged; 41 blocks, one partial.
    rng = np.random.default_rng(5)
    candidates = rng.permutation(np.arange(2000))[:, np.newaxis] % 1500
    candidates = np.concatenate([candidates, np.arange(2000)[:, None]], axis=1)
    queries = np.array([[1, 0], [-1, 0], [1, 1], [0, -1]])
    relevant = [rng.choice(2000, 5, False).tolist() for _ in queries]
    seen = [rng.choice(2000, 30, False).tolist() for _ in queries]
    # Good lists, so that there is something to find.
    for q, query in enumerate(queries):
      order = ranked_list(candidates @ query, [], [])
      seen[q] += order[:3]
      relevant[q] += order[4:9:2]
    relevant = [sorted(set(row)) for row in relevant]
    self.assertGreater(top_k.whole_blocks(2000, 10), 2000)
    self.assertAllClose(
      xir.metrics.full_ranking(
        queries.astype(np.float32),
        candidates.astype(np.float32),
        relevant=ragged(relevant),
        seen=ragged(seen),
        ks=(2, 10),
      ),
      slow_full_ranking(
        queries.tolist(), candidates.tolist(), relevant, seen, (2, 10)
      ),
    )

  @parameterized.parameters(1, 2, 3, 5, 8, 16, 32, 33, 64, 100, 128)
  def test_a_collapsed_model_scores_zero(self, dim):
    # The matrix product rounds equal rows differently at the edges of its
    # tiles.
    rng = np.random.default_rng(dim)
    queries = rng.normal(size=[33, dim]).astype(np.float32)
    row = rng.normal(size=[1, dim]).astype(np.float32)
    for num_candidates in (33, 100, 1000, 4097):
      results = xir.metrics.full_ranking(
        queries,
        np.tile(row, [num_candidates, 1]),
        relevant=ragged([[q % 3, num_candidates - 1] for q in range(33)]),
        ks=(10, 20),
      )
      coverage = {k: results.pop(f"coverage@{k}") for k in (10, 20)}
      self.assertEqual(set(results.values()), {0.0})
      self.assertLess(coverage[10], 14 / num_candidates)

  def test_duplicate_rows_of_a_trained_model(self):
    rng = np.random.default_rng(0)
    queries = rng.normal(size=[50, 32]).astype(np.float32)
    unique = rng.normal(size=[401, 32]).astype(np.float32)
    candidates = np.repeat(unique, 3, axis=0)
    best = np.argmax(queries @ unique.T, axis=1)
    # One of three equal rows is relevant: its rank is the third.
    results = xir.metrics.full_ranking(
      queries,
      candidates,
      relevant=ragged([[3 * b + q % 3] for q, b in enumerate(best)]),
      ks=(2, 3),
    )
    self.assertEqual(results["recall@2"], 0.0)
    self.assertEqual(results["recall@3"], 1.0)
    self.assertAlmostEqual(results["mrr@3"], 1 / 3)

  def test_negative_zero_is_the_same_row(self):
    candidates = np.array([[0.0, 1.0], [-0.0, 1.0]], np.float32)
    results = xir.metrics.full_ranking(
      np.ones([1, 2], np.float32), candidates, relevant=ragged([[0]]), ks=(1,)
    )
    self.assertEqual(results["recall@1"], 0.0)
    table, _ = ranker.unique_rows(candidates)
    self.assertLen(table, 1)

  def test_seen_candidates_are_never_found_or_shown(self):
    # Scores 3, 2, 1: candidate 0 is both seen and relevant.
    results = xir.metrics.full_ranking(
      np.ones([1, 1]),
      np.array([[3.0], [2.0], [1.0]]),
      relevant=ragged([[0, 1]]),
      seen=ragged([[0]]),
      ks=(1, 5),
    )
    self.assertEqual(results["recall@1"], 0.5)
    self.assertEqual(results["mrr@1"], 1.0)
    self.assertEqual(results["recall@5"], 0.5)
    self.assertAlmostEqual(results["coverage@5"], 2 / 3)

  @parameterized.parameters(([1, 3, 11],), ([2, 9, 200],))
  def test_unindexed_candidates_are_never_found_or_shown(self, ks):
    """The ranking is the same as if every query had seen it."""
    queries, candidates, relevant, seen = problem(3, 30, 40, 3, 2)
    queries, candidates = queries * 1.0, candidates * 1.0
    hidden = {0, 7, 8, 21, 39}
    results = xir.metrics.rank_all(
      queries,
      candidates,
      relevant=ragged(relevant),
      seen=ragged(seen),
      indexed=~np.isin(np.arange(40), list(hidden)),
      ks=ks,
      query_chunk_size=7,
    ).means()
    all_seen = [set(row) | hidden for row in seen]
    expected = slow_full_ranking(queries, candidates, relevant, all_seen, ks)
    self.assertAllClose(results, expected)

  def test_seen_and_relevant_with_few_indexed(self):
    """A masked candidate is a miss, even if the list is short."""
    ranking = xir.metrics.rank_all(
      np.ones([1, 1], np.float32),
      np.arange(6, dtype=np.float32)[:, np.newaxis],
      relevant=ragged([[1, 2]]),
      seen=ragged([[2]]),
      indexed=np.arange(6) < 3,
      ks=(2, 5),
    )
    self.assertAllEqual(ranking.hits, [[True, False, False, False, False]])
    self.assertEqual(ranking.means()["recall@5"], 0.5)
    self.assertEqual(ranking.means()["coverage@5"], 2 / 6)

  def test_means_of_some_queries(self):
    queries, candidates, relevant, seen = problem(4, 30, 40, 3, 2)
    queries, candidates = queries * 1.0, candidates * 1.0
    relevant[4] = set()
    arguments = {"seen": ragged(seen), "ks": (1, 10)}
    ranking = xir.metrics.rank_all(
      queries, candidates, relevant=ragged(relevant), **arguments
    )
    rows = np.arange(3, 20)
    alone = xir.metrics.full_ranking(
      queries[rows],
      candidates,
      relevant=ragged(relevant[3:20]),
      seen=ragged(seen[3:20]),
      ks=(1, 10),
    )
    part = ranking.means_of(rows)
    self.assertAllClose(part, {name: alone[name] for name in part})
    self.assertLen(part, len(alone) - 2)

  def test_everything_seen(self):
    results = xir.metrics.full_ranking(
      np.ones([2, 1]),
      np.ones([3, 1]),
      relevant=ragged([[0, 2], [1]]),
      seen=ragged([[0, 1, 2], [0, 1, 2]]),
    )
    self.assertEqual(set(results.values()), {0.0})

  def test_only_queries_with_something_relevant_count(self):
    # Query 1 has nothing relevant: it counts for coverage, but not for means.
    results = xir.metrics.full_ranking(
      np.array([[1.0], [-1.0]]),
      np.array([[2.0], [1.0], [0.0]]),
      relevant=ragged([[0], []]),
      ks=(1,),
    )
    self.assertEqual(results["hit@1"], 1.0)
    self.assertAlmostEqual(results["coverage@1"], 2 / 3)

  @parameterized.parameters("float16", "float32", "float64", "bfloat16")
  def test_tensors_and_arrays_of_any_float(self, dtype):
    queries, candidates, relevant, seen = problem(3, 9, 200, 3, 4)
    expected = slow_full_ranking(
      queries.tolist(), candidates.tolist(), relevant, seen, (5,)
    )
    queries, candidates = (tf.cast(x, dtype) for x in (queries, candidates))
    for arrays in (
      (queries, candidates),
      (queries.numpy(), candidates),
      (queries, tf.Variable(candidates)),
    ):
      results = xir.metrics.full_ranking(
        *arrays, relevant=ragged(relevant), seen=ragged(seen), ks=(5,)
      )
      self.assertAllClose(results, expected, rtol=1e-12)

  def test_float64_is_not_rounded(self):
    candidates = np.array([[1.0], [1.0 + 1e-12]])
    results = xir.metrics.full_ranking(
      np.ones([1, 1], np.float32), candidates, relevant=ragged([[1]]), ks=(1,)
    )
    self.assertEqual(results["recall@1"], 1.0)

  def test_equal_scores_by_id(self):
    # For query 0, candidates 1 and 2 have the same score; like query 1, it
    # shows the first.
    results = xir.metrics.full_ranking(
      np.ones([2, 1]),
      np.array([[1.0], [5.0], [5.0]]),
      relevant=ragged([[2, 1], [1]]),
      seen=ragged([[], [2]]),
      ks=(1,),
    )
    self.assertAlmostEqual(results["coverage@1"], 1 / 3)

  def test_one_trace_for_all_sizes(self):
    ranker.compile_ranker.cache_clear()
    for num_candidates in (40, 50):
      for num_queries in (3, 7):
        xir.metrics.full_ranking(
          np.ones([num_queries, 2]),
          np.arange(2.0 * num_candidates).reshape([-1, 2]),
          relevant=ragged([[1]] * num_queries),
          ks=(5,),
          query_chunk_size=2,
        )
    self.assertEqual(ranker.compile_ranker.cache_info().currsize, 1)
    compiled = ranker.compile_ranker(5, False, "float64", False)
    self.assertEqual(compiled.experimental_get_tracing_count(), 1)


class FullRankingErrorsTest(tf.test.TestCase, parameterized.TestCase):
  def rank(self, **changed):
    arguments = {
      "query_embeddings": np.ones([2, 3], np.float32),
      "candidate_embeddings": np.ones([4, 3], np.float32),
      "relevant": ragged([[0], [1]]),
      "ks": (1, 2),
    }
    arguments.update(changed)
    return xir.metrics.full_ranking(
      arguments.pop("query_embeddings"),
      arguments.pop("candidate_embeddings"),
      **arguments,
    )

  def test_valid_arguments_pass(self):
    self.rank()

  @parameterized.parameters(
    ((),),
    ((0, 1),),
    ((-1,),),
    ((2.0,),),
    ((5, 5),),
    ((True,),),
    (("10",),),
    (2,),
  )
  def test_ks(self, ks):
    with self.assertRaisesRegex(
      ValueError, "`ks` must be one or more distinct positive"
    ):
      self.rank(ks=ks)

  @parameterized.product(
    name=("query_embeddings", "candidate_embeddings"),
    value=(np.nan, np.inf, -np.inf),
  )
  def test_not_finite(self, name, value):
    broken = np.ones([4 if name.startswith("c") else 2, 3], np.float32)
    broken[1, 2] = value
    with self.assertRaisesRegex(ValueError, f"`{name}` has NaN .* row 1 "):
      self.rank(**{name: broken})

  def test_overflow(self):
    with self.assertRaisesRegex(ValueError, "overflow float32.*3.46e"):
      self.rank(query_embeddings=np.full([2, 3], 2e38, np.float32))

  @parameterized.parameters(
    ("query_embeddings", (3,), r"\[3\]"),
    ("query_embeddings", (0, 3), r"\[0, 3\]"),
    ("candidate_embeddings", (0, 3), r"\[0, 3\]"),
    ("candidate_embeddings", (4, 3, 1), r"\[4, 3, 1\]"),
    ("candidate_embeddings", (4, 2), r"same dim.*\[2, 3\] and .*\[4, 2\]"),
  )
  def test_shapes(self, name, shape, message):
    with self.assertRaisesRegex(ValueError, message):
      self.rank(**{name: np.ones(shape, np.float32)})

  def test_embeddings_that_are_not_floats(self):
    with self.assertRaisesRegex(ValueError, "`query_embeddings`.*int64"):
      self.rank(query_embeddings=np.ones([2, 3], np.int64))

  @parameterized.product(name=("relevant", "seen"), value=(-1, 4))
  def test_ids_out_of_range(self, name, value):
    message = rf"`{name}` .* \[0, 4\). Received: {value} in row 1 \(1 such"
    with self.assertRaisesRegex(ValueError, message):
      self.rank(**{name: ragged([[], [2, value]])})

  @parameterized.parameters("relevant", "seen")
  def test_rows(self, name):
    with self.assertRaisesRegex(ValueError, "3 rows for 2 queries"):
      self.rank(**{name: ragged([[0], [1], [2]])})

  @parameterized.parameters("relevant", "seen")
  def test_kinds_of_ids(self, name):
    with self.assertRaisesRegex(ValueError, "must be a tf.RaggedTensor"):
      self.rank(**{name: [[0], [1]]})
    with self.assertRaisesRegex(ValueError, "must hold integers.*float32"):
      self.rank(**{name: tf.ragged.constant([[0.0], [1.0]])})

  def test_repeated_relevant_id(self):
    with self.assertRaisesRegex(ValueError, "candidate 3 twice in row 1"):
      self.rank(relevant=ragged([[0], [3, 1, 3]]))

  def test_repeated_seen_id_is_harmless(self):
    once, twice = ([[0, 1], row] for row in ([2], [2, 2]))
    self.assertEqual(
      self.rank(seen=ragged(once)), self.rank(seen=ragged(twice))
    )

  def test_nothing_relevant(self):
    with self.assertRaisesRegex(ValueError, "empty for each of the 2 queries"):
      self.rank(relevant=ragged([[], []]))

  @parameterized.parameters(
    (np.ones(4), "booleans"),
    (np.ones(3, bool), "booleans"),
    (np.zeros(4, bool), "no candidate"),
  )
  def test_indexed(self, indexed, message):
    with self.assertRaisesRegex(ValueError, f"`indexed`.*{message}"):
      xir.metrics.rank_all(
        np.ones([2, 1], np.float32),
        np.ones([4, 1], np.float32),
        relevant=ragged([[0], [1]]),
        indexed=indexed,
      )

  def test_nothing_seen(self):
    # tf.ragged.constant makes this one float.
    empty = tf.ragged.constant([[], []])
    self.assertEqual(self.rank(seen=empty), self.rank())

  @parameterized.parameters(0, -1)
  def test_query_chunk_size(self, size):
    with self.assertRaisesRegex(ValueError, f"`query_chunk_size` = {size}"):
      self.rank(query_chunk_size=size)


class AtKTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters(1, 2, 5, 12)
  def test_equals_loops(self, k):
    rng = np.random.default_rng(k)
    hits = rng.random([40, 12]) < 0.3
    num_relevant = hits.sum(axis=1) + rng.integers(0, 5, 40)
    num_relevant[num_relevant == 0] = 1
    for name, function in xir.metrics.METRICS.items():
      values = function(hits, num_relevant, k)
      self.assertAllEqual(values.shape, [40])
      for row, count, value in zip(hits, num_relevant, values, strict=True):
        found = list(np.flatnonzero(row))
        relevant = set(found) | {100 + i for i in range(count - len(found))}
        expected = slow_metrics(list(range(12)), relevant, k)
        self.assertAlmostEqual(value, expected[name], places=12, msg=name)

  def test_single_hit_at_rank_10(self):
    hits = np.arange(10)[np.newaxis] == 9
    one = np.array([1])
    # ideal DCG 1; true DCG 1 / log2(11); compat DCG 1 / log2(3).
    self.assertAllClose(at_k.ndcg(hits, one, 10), [0.28906483])
    self.assertAllClose(at_k.ndcg_xir_compat(hits, one, 10), [0.63092975])
    self.assertAllClose(at_k.mrr(hits, one, 10), [0.1])
    self.assertAllClose(at_k.average_precision(hits, one, 10), [0.1])
    self.assertAllClose(at_k.recall(hits, one, 10), [1.0])
    self.assertAllClose(at_k.hit(hits, one, 9), [0.0])

  def test_ten_of_ten(self):
    hits, ten = np.ones([1, 10], bool), np.array([10])
    self.assertAllClose(at_k.ndcg(hits, ten, 10), [1.0])
    self.assertAllClose(
      at_k.ndcg_xir_compat(hits, ten, 10), [1.46985], atol=5e-6
    )
    self.assertAllClose(at_k.average_precision(hits, ten, 10), [1.0])

  def test_more_relevant_than_places(self):
    hits, many = np.ones([1, 2], bool), np.array([8])
    self.assertAllClose(at_k.ndcg(hits, many, 2), [1.0])
    self.assertAllClose(at_k.average_precision(hits, many, 2), [1.0])
    self.assertAllClose(at_k.recall(hits, many, 2), [0.25])


if __name__ == "__main__":
  tf.test.main()
