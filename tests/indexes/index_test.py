"""The contract of both indexes, compared with a NumPy sort."""

import shutil
import tempfile
from unittest import mock

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from xir_tfrs import indexes
from xir_tfrs.indexes import exact_search
from xir_tfrs.ops import top_k

DIM = 8


def _corpus(n, seed=0):
  """Clustered vectors, like those of trained towers."""
  rng = np.random.default_rng(seed)
  centres = rng.normal(size=(12, DIM))
  vectors = centres[rng.integers(0, 12, n)] + 0.3 * rng.normal(size=(n, DIM))
  return [f"item {i}" for i in range(n)], vectors.astype(np.float32)


def _queries(batch, seed=1):
  return np.random.default_rng(seed).normal(size=(batch, DIM)).astype("f4")


def _sorted_ids(ids, vectors, query, leave_out=()):
  """All ids that are not excluded, best first, by sorting."""
  order = np.argsort(-(vectors @ query), kind="stable")
  return [ids[row] for row in order if ids[row] not in set(leave_out)]


def _text(ids):
  return [[x.decode() for x in row] for row in ids.numpy()]


def _brute_force():
  return indexes.BruteForceIndex()


def _scann_exact():
  return indexes.ScannIndex()


def _scann_tree():
  """Makes ScaNN build a searcher even for a few hundred candidates."""
  return indexes.ScannIndex(
    exact_below=0, num_leaves=10, num_leaves_to_search=3, num_reorder=50
  )


def _scann_all_leaves():
  return indexes.ScannIndex(
    exact_below=0, num_leaves=10, num_leaves_to_search=10
  )


def _scann_flat():
  return indexes.ScannIndex(exact_below=0, num_reorder=100)


EXACT = (("brute_force", _brute_force), ("scann_exact", _scann_exact))
APPROXIMATE = (("scann_tree", _scann_tree), ("scann_flat", _scann_flat))
ALL = EXACT + APPROXIMATE


class InterestsTest(tf.test.TestCase, parameterized.TestCase):
  """Queries with several vectors; a candidate's score is the highest."""

  @parameterized.named_parameters(
    *EXACT, ("scann_all_leaves", _scann_all_leaves)
  )
  def test_searches_of_interests_are_merged(self, make):
    ids, vectors = _corpus(300)
    queries = _queries(12).reshape(4, 3, DIM)
    queries[1, 2] = queries[1, 0]  # The same answers twice.
    index = make().index(ids, vectors)
    excluded = [[f"item {i}" for i in range(row, 40)] for row in range(4)]
    excluded = tf.ragged.constant(excluded)
    best = (vectors @ queries.transpose(0, 2, 1)).max(axis=2)
    for exclude, first in ((None, 0), (excluded, 40)):
      found, scores = index.search(queries, 20, exclude)
      for row in range(4):
        of_row = np.copy(best[row])
        if first:
          of_row[row:first] = -np.inf
        order = np.argsort(-of_row, kind="stable")[:20]
        self.assertEqual(_text(found)[row], [ids[i] for i in order])
        self.assertAllClose(scores[row], of_row[order], rtol=1e-4)
    # Nobody asks, or somebody without interests.
    for nobody in (queries[:0], queries[:, :0]):
      found, scores = index.search(nobody, 20)
      self.assertAllEqual(found, np.full([len(nobody), 20], b""))
      self.assertAllEqual(scores, np.full([len(nobody), 20], -np.inf))

  def test_restricted_padded_and_unusable(self):
    ids, vectors = _corpus(30)
    queries = _queries(4).reshape(2, 2, DIM)
    queries[1] = np.nan
    allow = tf.constant([["item 3", "item 7"], ["", ""]])
    found, scores = (
      indexes.BruteForceIndex()
      .index(ids, vectors)
      .search(queries, 3, allow=allow)
    )
    best = (vectors @ queries[0].T).max(axis=1)
    expected = sorted((3, 7), key=lambda i: -best[i])
    self.assertEqual(_text(found)[0], [*(f"item {i}" for i in expected), ""])
    self.assertEqual(_text(found)[1], [""] * 3)
    self.assertAllEqual(np.isneginf(scores), [[0, 0, 1], [1, 1, 1]])


class ExactTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.named_parameters(*EXACT)
  def test_equals_numpy_sort(self, make):
    ids, vectors = _corpus(300)
    queries = _queries(5)
    found, scores = make().index(ids, vectors).search(queries, 20)
    for row, query in enumerate(queries):
      self.assertEqual(_text(found)[row], _sorted_ids(ids, vectors, query)[:20])
    expected = -np.sort(-(queries @ vectors.T), axis=1)[:, :20]
    self.assertAllClose(scores, expected)

  def test_chunks_of_queries_give_the_same(self):
    ids, vectors = _corpus(300)
    index = indexes.BruteForceIndex().index(ids, vectors)
    queries, exclude = _queries(7), [["item 3"]] * 7
    whole = index.search(queries, 9, exclude)
    # Two queries per chunk, the last chunk has one.
    with (
      mock.patch.object(top_k, "CHUNK_BYTES", 4 * 600),
      mock.patch.object(top_k, "MIN_CHUNK", 1),
    ):
      parts = index.search(queries, 9, exclude)
    self.assertAllEqual(whole[0], parts[0])
    self.assertAllClose(whole[1], parts[1])


class ContractTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.product(
    named=ALL, exclude_kind=("dense", "ragged"), id_kind=("string", "int64")
  )
  def test_exclusions_are_exact(self, named, exclude_kind, id_kind):
    names, vectors = _corpus(400)
    ids = names
    padding = b""
    if id_kind == "int64":
      ids = 2**40 + np.arange(400)  # Beyond what float32 or int32 can hold.
      padding = -1
    index = named[1]().index(ids, vectors)
    queries = _queries(3)
    best = [_sorted_ids(ids, vectors, query) for query in queries]
    # Excludes the best candidates, one of them twice; one query excludes
    # nothing.
    lists = [best[0][:30] + best[0][:1], [], best[2][10:15]]
    if exclude_kind == "ragged":
      exclude = tf.ragged.constant(lists, dtype=tf.as_dtype(id_kind))
    else:
      pad = "" if id_kind == "string" else -1
      exclude = [row + [pad] * (31 - len(row)) for row in lists]
    found, scores = index.search(queries, 10, exclude)
    self.assertEqual(found.shape, [3, 10])
    for row, left_out in enumerate(lists):
      got = found.numpy()[row].tolist()
      if id_kind == "string":
        got = [x.decode() for x in got]
      self.assertEmpty(set(got) & set(left_out))
      self.assertLen(set(got), 10)
      self.assertNotIn(padding, got)
      wanted = [x for x in best[row] if x not in left_out][:10]
      if named[0] != "scann_tree":  # Too few leaves for a good recall.
        self.assertGreaterEqual(len(set(got) & set(wanted)), 7)
      numbers = [list(ids).index(x) for x in got]
      self.assertAllClose(
        scores[row], vectors[numbers] @ queries[row], rtol=1e-4
      )
    self.assertTrue(np.all(np.diff(scores.numpy(), axis=1) <= 0))

  @parameterized.named_parameters(*ALL)
  def test_first_candidate_is_not_padding(self, make):
    """ScaNN pads with row 0 and NaN; row 0 must be returned at most once."""
    ids, vectors = _corpus(400)
    index = make().index(ids, vectors)
    found, scores = index.search(_queries(4), 400)
    for row in _text(found):
      self.assertCountEqual(row, ids)
    self.assertAllInRange(scores.numpy(), -1e3, 1e3)
    # Queries that find fewer candidates in the leaves are padded.
    for k in range(20, 400, 20):
      found, scores = index.search(_queries(8), k)
      self.assertEqual([len(set(row)) for row in _text(found)], [k] * 8)
      self.assertAllEqual(scores, -np.sort(-scores.numpy(), axis=1))
    # Repeated ids must only count once.
    found, _ = index.search(_queries(4), 400, [["item 0"] * 390] * 4)
    for row in _text(found):
      self.assertCountEqual(row, ids[1:] + [""])
      self.assertEqual(row[-1], "")

  @parameterized.product(named=ALL, n=(1, 15, 99))
  def test_k_may_exceed_the_corpus(self, named, n):
    if named[0] == "scann_tree" and n == 1:
      return  # Ten leaves: see the next test.
    ids, vectors = _corpus(n)
    index = named[1]().index(ids, vectors)
    found, scores = index.search(_queries(2), n + 5)
    self.assertEqual(found.shape, [2, n + 5])
    for row in _text(found):
      self.assertCountEqual(row[:n], ids)
      self.assertEqual(row[n:], [""] * 5)
    self.assertAllEqual(scores[:, n:], np.full([2, 5], -np.inf))
    self.assertAllEqual(tf.math.is_finite(scores[:, :n]), np.ones([2, n], bool))

  def test_more_leaves_than_candidates(self):
    index = indexes.ScannIndex(exact_below=0, num_leaves=100)
    with self.assertRaisesRegex(ValueError, "`num_leaves` = 100 for 99"):
      index.index(*_corpus(99))
    # Below 16 candidates there is no searcher, so the leaves do not matter.
    self.assertIsNone(index.index(*_corpus(15)).settings)

  @parameterized.named_parameters(*ALL)
  def test_everything_excluded(self, make):
    ids, vectors = _corpus(400)
    found, scores = make().index(ids, vectors).search(_queries(2), 3, [ids] * 2)
    self.assertEqual(_text(found), [[""] * 3] * 2)
    self.assertAllEqual(scores, np.full([2, 3], -np.inf))

  @parameterized.named_parameters(*ALL)
  def test_unknown_and_padding_exclusions_do_nothing(self, make):
    ids, vectors = _corpus(400)
    index = make().index(ids, vectors)
    plain = index.search(_queries(2), 400)
    exclude = [["", "no such item", ""], ["item", "", "item 1000"]]
    found = index.search(_queries(2), 400, exclude)
    self.assertAllEqual(plain[0], found[0])

  @parameterized.named_parameters(*ALL)
  def test_empty_batch(self, make):
    index = make().index(*_corpus(400))
    found, scores = index.search(np.zeros([0, DIM], np.float32), 7)
    self.assertEqual((found.shape, found.dtype), ([0, 7], tf.string))
    self.assertEqual((scores.shape, scores.dtype), ([0, 7], tf.float32))
    found, _ = index.search(
      np.zeros([0, DIM], np.float32), 7, tf.zeros([0, 2], tf.string)
    )
    self.assertEqual(found.shape, [0, 7])

  @parameterized.named_parameters(*ALL, ("scann_all_leaves", _scann_all_leaves))
  def test_bad_query_gets_padding_and_spares_the_others(self, make):
    """ScaNN only refuses NaN; Inf and 3e38 crash the process."""
    index = make().index(*_corpus(400))
    queries = _queries(4)
    plain, _ = index.search(queries, 5)
    queries[1, 2] = np.nan
    queries[2, 0] = np.inf
    queries[3] *= 1e38
    found, scores = index.search(queries, 5)
    self.assertAllEqual(found[0], plain[0])
    self.assertAllEqual(found[1:], np.full([3, 5], b""))
    self.assertAllEqual(scores[1:], np.full([3, 5], -np.inf))
    for row in (1, 2, 3):
      found, _ = index.search(queries[row : row + 1], 5)
      self.assertAllEqual(found, np.full([1, 5], b""))

  @parameterized.named_parameters(*ALL)
  def test_dynamic_sizes_under_function_and_saved(self, make):
    """One trace answers all batches, k and widths, also after saving."""
    ids, vectors = _corpus(400)
    index = make().index(ids, vectors)
    index.serve = tf.function(
      lambda queries, k, exclude: dict(
        zip(("ids", "scores"), index.search(queries, k, exclude), strict=True)
      ),
      input_signature=[
        tf.TensorSpec([None, DIM], tf.float32, "queries"),
        tf.TensorSpec([], tf.int32, "k"),
        tf.TensorSpec([None, None], tf.string, "exclude"),
      ],
    )
    path = tempfile.mkdtemp()
    self.addCleanup(shutil.rmtree, path)
    tf.saved_model.save(index, path, signatures={"serve": index.serve})
    loaded = tf.saved_model.load(path).signatures["serve"]
    sizes = ((3, 5, 0), (1, 7, 0), (1, 7, 2), (1, 500, 0), (4, 500, 1))
    for batch, k, width in (*sizes, (0, 3, 4), (0, 3, 0)):
      queries = _queries(batch)
      exclude = tf.constant(ids[:width] * batch, tf.string, [batch, width])
      eager = index.search(queries, k, exclude)
      for name, serve in (("function", index.serve), ("loaded", loaded)):
        with self.subTest(f"{name} {batch} {k} {width}"):
          found = serve(
            queries=tf.constant(queries), k=tf.constant(k), exclude=exclude
          )
          self.assertAllEqual(found["ids"], eager[0])
          self.assertAllClose(found["scores"], eager[1])
    queries, none = _queries(3), tf.zeros([3, 0], tf.string)
    queries[1] = np.nan
    found = loaded(queries=tf.constant(queries), k=tf.constant(5), exclude=none)
    self.assertAllEqual(found["ids"], index.search(queries, 5)[0])
    for k, lists, message in (
      (0, none, "`k` must be a positive"),
      (5, none[:2], "one row per query"),
    ):
      with self.assertRaisesRegex(tf.errors.InvalidArgumentError, message):
        loaded(
          queries=tf.constant(_queries(3)), k=tf.constant(k), exclude=lists
        )

  @parameterized.named_parameters(*ALL)
  def test_indexing_again_replaces_the_corpus(self, make):
    index = make().index(*_corpus(400))
    before = len(index.variables)
    ids, vectors = _corpus(500, seed=5)
    index.index([f"new {i}" for i in range(500)], vectors)
    self.assertLen(index.variables, before)
    found, _ = index.search(_queries(2), 20, [["item 1", "new 1"]] * 2)
    for row in _text(found):
      self.assertTrue(all(x.startswith("new ") and x != "new 1" for x in row))

  @parameterized.named_parameters(*APPROXIMATE)
  def test_thousands_of_exclusions_are_scored_exactly(self, make):
    """Beyond `max_fetch`, a query is exact; the rest of the batch is not."""
    ids, vectors = _corpus(3000)
    index = make().index(ids, vectors)
    self.assertEqual(index.settings.max_fetch, 1000)
    queries = _queries(2)
    best = _sorted_ids(ids, vectors, queries[0])
    exclude = tf.ragged.constant([best[:2500], ["item 1"]])
    found, _ = index.search(queries, 10, exclude)
    self.assertEqual(_text(found)[0], best[2500:2510])
    self.assertLen(set(_text(found)[1]) - {"", "item 1"}, 10)
    found, _ = index.search(queries[:1], 1500)
    self.assertEqual(_text(found)[0], best[:1500])

  def test_a_few_exclusions_need_no_exact_search(self):
    ids, vectors = _corpus(3000)
    index = _scann_flat().index(ids, vectors)
    queries = _queries(2)
    best = [_sorted_ids(ids, vectors, query)[:40] for query in queries]
    with mock.patch.object(
      exact_search, "top_rows", wraps=exact_search.top_rows
    ) as exact:
      found, _ = index.search(queries, 10, best)
    self.assertLen([x for row in _text(found) for x in row if x], 20)
    exact.assert_not_called()


class RowsTest(tf.test.TestCase, parameterized.TestCase):
  """Rows instead of ids, or in addition to them."""

  @parameterized.named_parameters(*ALL)
  def test_rows_are_equivalent_to_ids(self, make):
    ids, vectors = _corpus(400)
    index = make().index(ids, vectors)
    queries = _queries(3)
    rows = [[3, 9, 3, -1], [-1] * 4, [250, 0, -1, 7]]
    names = [[ids[x] if x >= 0 else "" for x in row] for row in rows]
    for k in (10, 400):
      self.assertAllEqual(
        index.search(queries, k, exclude_rows=rows)[0],
        index.search(queries, k, exclude=names)[0],
      )
      self.assertAllEqual(
        index.search(queries, k, allow_rows=rows)[0],
        index.search(queries, k, allow=names)[0],
      )

  @parameterized.named_parameters(*ALL)
  def test_ids_and_rows_together(self, make):
    ids, vectors = _corpus(400)
    index = make().index(ids, vectors)
    found, _ = index.search(
      _queries(2),
      400,
      exclude=[["item 1"], ["item 2"]],
      exclude_rows=tf.ragged.constant([[4, 1], []], dtype=tf.int32),
    )
    found = [set(row) for row in _text(found)]
    self.assertEqual(found[0], {*ids, ""} - {"item 1", "item 4"})
    self.assertEqual(found[1], {*ids, ""} - {"item 2"})
    found, _ = index.search(
      _queries(2),
      5,
      allow=[["item 1"], [""]],
      allow_rows=[[4, 1], [8, -1]],
      exclude_rows=[[-1], [8]],
    )
    self.assertEqual(set(_text(found)[0]), {"item 1", "item 4", ""})
    self.assertEqual(set(_text(found)[1]), {""})

  def test_rows_are_not_looked_up(self):
    ids, vectors = _corpus(300)
    index = indexes.BruteForceIndex().index(ids, vectors)
    with mock.patch.object(index.ids, "rows") as look_up:
      index.search(_queries(2), 5, exclude_rows=[[3], [4]])
    look_up.assert_not_called()

  @parameterized.parameters("exclude_rows", "allow_rows")
  def test_wrong_rows(self, name):
    index = indexes.BruteForceIndex().index(*_corpus(30))
    with self.assertRaisesRegex(ValueError, f"`{name}` must be .*int64.*str"):
      index.search(_queries(1), 2, **{name: [["item 3"]]})
    with self.assertRaisesRegex(ValueError, rf"`{name}` must be .*\(1,\)"):
      index.search(_queries(1), 2, **{name: [3]})
    with self.assertRaisesRegex(
      tf.errors.InvalidArgumentError, f"`{name}` must hold rows below .*, 30"
    ):
      index.search(_queries(1), 2, **{name: [[30]]})


class AllowTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.product(named=ALL, id_kind=("string", "int64"))
  def test_only_allowed_candidates_are_returned(self, named, id_kind):
    names, vectors = _corpus(400)
    ids = names if id_kind == "string" else 2**40 + np.arange(400)
    index = named[1]().index(ids, vectors)
    queries = _queries(4)
    some = [ids[row] for row in range(0, 400, 7)]
    nothing = "no such item" if id_kind == "string" else 12345
    lists = [some, [], [nothing], [ids[3], nothing, ids[3], ids[9]]]
    allow = tf.ragged.constant(lists, dtype=tf.as_dtype(id_kind))
    exclude = tf.ragged.constant(
      [some[:5], [], [], [ids[9]]], dtype=tf.as_dtype(id_kind)
    )
    found, scores = index.search(queries, 60, exclude, allow)
    found = found.numpy().tolist()
    if id_kind == "string":
      found = [[x.decode() for x in row] for row in found]
    padding = "" if id_kind == "string" else -1
    order = [x for x in _sorted_ids(ids, vectors, queries[0]) if x in some[5:]]
    self.assertEqual(found[0], order + [padding] * (60 - len(order)))
    unrestricted, _ = index.search(queries[1:2], 60)
    if id_kind == "string":
      self.assertEqual(found[1], _text(unrestricted)[0])
    self.assertEqual(found[2], [padding] * 60)
    self.assertEqual(found[3], [ids[3]] + [padding] * 59)
    rows = [list(ids).index(x) for x in order]
    self.assertAllClose(scores[0, : len(rows)], vectors[rows] @ queries[0])
    self.assertAllEqual(scores[0, len(rows) :], [-np.inf] * (60 - len(rows)))

  def test_chunks_of_restricted_queries_give_the_same(self):
    ids, vectors = _corpus(300)
    index = indexes.BruteForceIndex().index(ids, vectors)
    queries, allow = _queries(7), [ids[i : i + 20] for i in range(7)]
    whole = index.search(queries, 9, allow=allow)
    with mock.patch.object(top_k, "CHUNK_BYTES", 4 * 2 * 20 * DIM):
      parts = index.search(queries, 9, allow=allow)
    self.assertAllEqual(whole[0], parts[0])
    self.assertAllClose(whole[1], parts[1])

  def test_bad_query_with_a_list_gets_padding(self):
    index = indexes.BruteForceIndex().index(*_corpus(30))
    found, _ = index.search(np.full([1, DIM], np.nan), 2, allow=[["item 1"]])
    self.assertAllEqual(found, [[b"", b""]])


class SimilarTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.named_parameters(*EXACT)
  def test_similar_returns_the_nearest_others(self, make):
    ids, vectors = _corpus(300)
    index = make().index(ids, vectors)
    found, scores = index.similar(["item 7", "no such item", "item 0"], 5)
    found = _text(found)
    for row, item in ((0, 7), (2, 0)):
      order = _sorted_ids(ids, vectors, vectors[item], [ids[item]])
      self.assertEqual(found[row], order[:5])
    self.assertEqual(found[1], [""] * 5)
    self.assertAllEqual(scores[1], [-np.inf] * 5)
    for wrong in ("item 7", [7]):
      with self.assertRaisesRegex(ValueError, r"must be \[batch\] of type str"):
        index.similar(wrong, 5)

  def test_similar_with_scann_never_returns_itself(self):
    ids, vectors = _corpus(400)
    found, _ = _scann_tree().index(ids, vectors).similar(ids, 10)
    for item, row in zip(ids, _text(found), strict=True):
      self.assertNotIn(item, row)
      self.assertLen(set(row) - {""}, 10)


class IdTableTest(tf.test.TestCase):
  def test_several_indexes_share_one(self):
    ids, vectors = _corpus(30)
    table = indexes.IdTable(ids)
    module = tf.Module()
    module.one = indexes.BruteForceIndex().index(table, vectors)
    module.two = indexes.BruteForceIndex().index(table, -vectors)
    self.assertLen(module.variables, 3)
    best, _ = module.one.search(vectors[4:5], 30)
    worst, _ = module.two.search(vectors[4:5], 30)
    self.assertEqual(_text(best)[0], _text(worst)[0][::-1])
    with self.assertRaisesRegex(ValueError, "30 ids.*29"):
      module.one.index(table, vectors[:29])

  def test_rows_and_ids(self):
    for ids, unknown, padding in ((["a", "b"], "c", b""), ([4, 9], 5, -1)):
      table = indexes.IdTable(ids)
      rows = table.rows(tf.constant([[ids[1], unknown], [ids[0], ids[1]]]))
      self.assertAllEqual(rows, [[1, -1], [0, 1]])
      back = table.ids(rows).numpy()
      self.assertEqual(back[0, 1], padding)
      self.assertAllEqual(back[1], tf.constant(ids))


class TuneTest(tf.test.TestCase):
  def _index(self, **settings):
    ids, vectors = _corpus(4000)
    index = indexes.ScannIndex(exact_below=0, num_leaves=60, **settings)
    exact = indexes.BruteForceIndex().index(ids, vectors)
    return index.index(ids, vectors), exact

  def test_tune_chooses_the_cheapest_settings_for_the_target(self):
    index, exact = self._index()
    queries, others = _queries(300, 1), _queries(300, 2)
    spent = []
    for target in (0.5, 0.9, 0.99):
      points = index.tune(queries, target)
      settings = index.settings
      chosen = next(
        x
        for x in points
        if (x.num_leaves_to_search, x.num_reorder)
        == (settings.num_leaves_to_search, settings.num_reorder)
      )
      self.assertGreaterEqual(chosen.recall, target)
      found = indexes.recall(index, exact, others, 10)
      self.assertGreater(found, target - 0.05)
      spent.append((settings.num_leaves_to_search, settings.num_reorder))
    self.assertLess(spent[0][0], spent[2][0])
    # `search` then reaches the measured recall.
    self.assertAlmostEqual(
      indexes.recall(index, exact, queries, 10), chosen.recall, places=2
    )

  def test_unreachable_target_takes_the_best(self):
    index, _ = self._index(num_leaves_to_search=1)
    points = index.tune(_queries(50), 1.0)
    self.assertLess(max(x.recall for x in points), 1.0)
    self.assertEqual(index.settings.num_leaves_to_search, 1)

  def test_given_settings_stay(self):
    index, _ = self._index(num_leaves_to_search=7, num_reorder=70)
    (point,) = index.tune(_queries(50), 0.1)
    self.assertEqual((point.num_leaves_to_search, point.num_reorder), (7, 70))

  def test_exact_search_has_nothing_to_tune(self):
    index = indexes.ScannIndex().index(*_corpus(50))
    self.assertEqual(index.tune(_queries(5), 0.9), [])


class ErrorsTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.named_parameters(*ALL)
  def test_broken_vectors_are_named(self, make):
    ids, vectors = _corpus(400)
    vectors[37, 3] = np.nan
    vectors[80] = np.inf
    vectors[90, 0] = -1e16
    with self.assertRaisesRegex(ValueError, "3 rows .* row 37 .*'item 37'"):
      make().index(ids, vectors)

  @parameterized.parameters(
    (["a", "b", "a"], "'a' more than once"),
    ([4, 5, 5], "5 more than once"),
    (["a", "", "b"], "'' is reserved .* row 1"),
    ([3, 4, -1], "-1 is reserved .* row 2"),
    (["a", "b"], r"2 ids.*\(3, 8\)"),
    ([1.0, 2.0, 3.0], "float32"),
    (["a", 2, None], "all be strings, or all be integers.*'a', 2, None"),
  )
  def test_ids(self, ids, message):
    with self.assertRaisesRegex(ValueError, message):
      indexes.BruteForceIndex().index(ids, _corpus(3)[1])

  @parameterized.parameters(
    (np.zeros([0, 4]),), (np.zeros([3]),), (np.zeros([2, 2, 2]),)
  )
  def test_embeddings_shape(self, embeddings):
    with self.assertRaisesRegex(ValueError, "must be .n, dim."):
      indexes.BruteForceIndex().index([], embeddings)

  def test_arguments_in_the_wrong_order(self):
    with self.assertRaisesRegex(ValueError, r"index\(ids, embeddings\).*'a'"):
      indexes.BruteForceIndex().index([[1.0]], ["a"])

  @parameterized.named_parameters(*ALL)
  def test_search(self, make):
    with self.assertRaisesRegex(ValueError, "call `index"):
      make().search(_queries(1), 1)
    index = make().index(*_corpus(400))
    with self.assertRaisesRegex(ValueError, "dimension 8.*2, 5"):
      index.search(np.zeros([2, 5]), 1)
    # Vectors of other types are converted, as `index` does.
    self.assertAllEqual(
      *(index.search(tf.ones([1, 8], x), 3)[0] for x in (tf.int32, tf.float64))
    )
    for k in (0, -3, 1.5):
      with self.assertRaisesRegex(ValueError, f"`k` = {k}"):
        index.search(_queries(1), k)
    with self.assertRaisesRegex(ValueError, "string.*int64"):
      index.search(_queries(1), 1, np.array([[3]]))
    with self.assertRaisesRegex(ValueError, r"\(1,\)"):
      index.search(_queries(1), 1, ["item 3"])
    with self.assertRaisesRegex(
      tf.errors.InvalidArgumentError, "one row per query"
    ):
      index.search(_queries(2), 1, [["item 3"]])

  def test_scann_arguments(self):
    with self.assertRaisesRegex(ValueError, "`num_reorder` = 0"):
      indexes.ScannIndex(num_reorder=0)

  def test_scann_missing_or_of_another_tensorflow(self):
    broken = {"scann.scann_ops.py": None}
    with (
      mock.patch.dict("sys.modules", broken),
      self.assertRaisesRegex(ImportError, "pip install"),
    ):
      indexes.ScannIndex()


class RecallTest(tf.test.TestCase):
  def test_counts_shared_answers(self):
    vectors = np.eye(4, dtype=np.float32)
    exact = indexes.BruteForceIndex().index(list("abcd"), vectors)
    other = indexes.BruteForceIndex().index(list("abxy"), vectors)
    # The best two are a, b for the first query, and c, d for the second.
    queries = np.array([[2, 1, 0, 0], [0, 0, 2, 1]], np.float32)
    self.assertEqual(indexes.recall(exact, exact, queries, 2), 1.0)
    self.assertEqual(indexes.recall(other, exact, queries, 2), 0.5)
    self.assertEqual(indexes.recall(other, exact, queries, 9), 0.5)
    with self.assertRaisesRegex(ValueError, "finite"):
      indexes.recall(other, exact, queries[:0], 2)

  def test_scann_finds_nearly_all(self):
    ids, vectors = _corpus(3000)
    exact = indexes.BruteForceIndex().index(ids, vectors)
    index = indexes.ScannIndex(exact_below=0, num_leaves=54)
    index.index(ids, vectors)
    self.assertIsNotNone(index.settings)
    self.assertGreater(indexes.recall(index, exact, _queries(200), 10), 0.9)

  def test_settings_follow_the_corpus(self):
    make = indexes.ScannIndex()._choose_settings
    self.assertIsNone(make(19_999))
    self.assertEqual(make(20_000).num_leaves, 1)
    self.assertEqual(
      make(1_000_000),
      indexes.ScannSettings(
        num_leaves=2000,
        num_leaves_to_search=500,
        dimensions_per_block=2,
        anisotropic_quantization_threshold=0.2,
        num_reorder=1000,
        max_fetch=50_000,
      ),
    )

  def test_given_settings_are_used(self):
    given = {
      "num_leaves": 7,
      "num_leaves_to_search": 3,
      "dimensions_per_block": 3,
      "anisotropic_quantization_threshold": 0.1,
      "num_reorder": 90,
      "max_fetch": 80,
    }
    index = indexes.ScannIndex(exact_below=0, **given)
    index.index(*_corpus(200))
    self.assertEqual(index.settings, indexes.ScannSettings(**given))
