"""Answers of an index SavedModel that are more than a plain top-k."""

import numpy as np
import pytest
import tensorflow as tf

import xir_tfrs as xir
from export import export_retriever
from export.bundle import encoders, signatures
from xir_tfrs.data import errors
from xir_tfrs.serving import bundle


@pytest.fixture(scope="module", params=bundle.INDEXES)
def loaded(request, exported, load):
  return load(exported, request.param)


@pytest.fixture(scope="module", params=bundle.INDEXES)
def integers(request, numbered, load):
  return load(numbered, request.param)


def test_allowed_seen_and_excluded_together(world, loaded):
  query = max(range(40), key=lambda q: len(world.seen[q]))
  seen = [world.candidate_ids[c] for c in world.seen[query]]
  best = world.ranking(query)
  allow = [best[3], best[30], best[100], *seen, "no such item", ""]
  name = world.query_ids[query]
  found = loaded.recommend([name], k=40, allow_ids=[allow])
  expected = [x for x in best if x in allow]
  assert found.ids[0].tolist() == expected + [""] * (40 - len(expected))
  assert found.num_found.tolist() == [len(expected)]
  found = loaded.recommend(
    [name, name, "nobody"],
    k=40,
    allow_ids=[allow, ["no such item"], allow],
    exclude_ids=[[best[30]], [], [best[3]]],
    exclude_seen=True,
  )
  left = {best[3], best[100]} - set(seen)
  assert set(found.ids[0]) - {""} == left
  assert found.num_found.tolist() == [len(left), 0, len(set(expected)) - 1]
  # The unknown query has seen nothing and gets popular items in the list.
  counts = dict(zip(world.candidate_ids, world.counts, strict=True))
  popular = found.ids[2][: len(expected) - 1]
  assert set(popular) == set(expected) - {best[3]}
  assert found.scores[2][: len(popular)].tolist() == sorted(
    (counts[x] for x in popular), reverse=True
  )


def test_similar_items(world, loaded):
  found = loaded.similar_items(["item 9", "no such item"], 299)
  scores = world.candidate_vectors @ world.candidate_vectors[9]
  order = [f"item {c}" for c in np.argsort(-scores, kind="stable") if c != 9]
  assert found.ids[0].tolist() == order
  np.testing.assert_allclose(
    found.scores[0], np.sort(np.delete(scores, 9))[::-1], rtol=1e-4, atol=1e-5
  )
  assert found.num_found.tolist() == [299, 0]
  assert set(found.ids[1]) == {""}


def test_vectors_lists_and_towers(world, loaded):
  np.testing.assert_allclose(loaded.vectors, world.candidate_vectors, 1e-5)
  assert list(loaded.candidate_ids) == world.candidate_ids
  assert list(loaded.query_ids) == world.query_ids
  assert loaded.counts.tolist() == world.counts.tolist()
  splits, rows = loaded.seen
  for query in (0, 17, 39):
    part = rows[splits[query] : splits[query + 1]]
    assert set(part) == world.seen[query]
  np.testing.assert_allclose(
    loaded.encode_queries(world.query_ids[3:5]), world.query_vectors[3:5], 1e-5
  )


def test_integer_ids(world, integers):
  query = 5
  best = [5 * world.candidate_ids.index(x) for x in world.ranking(query)]
  seen = {5 * c for c in world.seen[query]}
  found = integers.recommend(
    [10**12 + query], k=300, exclude_ids=[[best[0], 3]], exclude_seen=True
  )
  assert found.ids.dtype == np.int64
  left = [x for x in best[1:] if x not in seen]
  assert found.ids[0].tolist() == left + [-1] * (300 - len(left))
  assert found.num_found.tolist() == [len(left)]
  found = integers.recommend([10**12 + query], k=3, allow_ids=[best[7:9]])
  assert found.ids[0].tolist() == [*best[7:9], -1]
  assert integers.candidate_ids[7] == 35
  assert 45 not in integers.similar_items([45], 299).ids
  # On a command line, every id is text.
  again = integers.recommend([str(10**12 + query)], k=3)
  assert again.ids[0].tolist() == best[:3]
  with pytest.raises(ValueError, match="query ids .* int64.*'nobody'"):
    integers.recommend(["nobody"], k=3)
  with pytest.raises(ValueError, match="candidate ids .* int64.*1.5"):
    integers.recommend([10**12], k=3, exclude_ids=[[1.5]])


def test_unknown_query_is_answered_by_the_tower(world, integers):
  found = integers.recommend([4], k=3)
  assert found.known.tolist() == [False]
  scores = world.candidate_vectors @ world.unknown_query
  np.testing.assert_allclose(found.scores[0], np.sort(scores)[::-1][:3], 1e-5)


def test_largest_k(numbered, integers):
  assert integers.recommend([10**12], k=400).num_found.tolist() == [300]
  for k in (0, 401):
    with pytest.raises(ValueError, match=f"from 1 to 400.*`k` = {k}"):
      integers.recommend([10**12], k=k)
    with pytest.raises(ValueError, match="from 1 to 400"):
      integers.similar_items([5], k)
  none = tf.zeros([1, 0], tf.int64)
  with pytest.raises(tf.errors.InvalidArgumentError, match="at most 400"):
    integers.signatures["recommend"](
      query_id=tf.constant([10**12]),
      k=tf.constant(401),
      exclude_ids=none,
      allow_ids=none,
    )


def test_closing_a_bundle_does_not_affect_others(world, exported, load):
  first, second = bundle.Bundle.load(exported), load(exported, "scann")
  assert first.index == "scann"  # The default.
  table = next(
    x.resource_handle
    for x in tf.train.TrackableView(first._model).descendants()
    if hasattr(x, "resource_handle")
  )
  first.close()
  with pytest.raises(tf.errors.NotFoundError):
    tf.raw_ops.LookupTableSizeV2(table_handle=table)
  found = second.recommend([world.query_ids[4]], k=3)
  assert found.ids[0].tolist() == world.ranking(4)[:3]


def test_non_integer_ids_are_refused(world, tmp_path):
  options = export_retriever.ExportOptions(
    data=str(world.data),
    model_dir=str(world.model_dir),
    output=str(tmp_path / "bundle"),
    candidate_id_type="int64",
  )
  with pytest.raises(errors.DataError, match="'item 0' .row 0. is not a 64-"):
    export_retriever.export_retriever(options)
  assert list(tmp_path.iterdir()) == []


def test_a_loaded_tower_can_be_saved_again(world, exported, load, tmp_path):
  """Saves the retriever like a refresh, without the Keras model."""
  b = load(exported, "brute_force")
  queries = encoders.LoadedEncoder(exported / "query_tower", "query")
  candidates = encoders.LoadedEncoder(
    exported / "candidate_tower", "candidate", b.candidate_features
  )
  index = xir.indexes.BruteForceIndex().index(
    ["x", "y"], world.candidate_vectors[[8, 2]]
  )
  signatures.save_retriever(
    signatures.Retriever(
      index,
      queries,
      candidates,
      np.array([3, 4]),
      (np.zeros(41, np.int64), np.zeros(0, np.int32)),
      unknown_query="popularity",
      max_k=9,
    ),
    tmp_path / "again",
  )
  del queries, candidates
  again = tf.saved_model.load(str(tmp_path / "again")).signatures
  none = tf.zeros([2, 0], tf.string)
  found = again["recommend"](
    query_id=tf.constant([world.query_ids[6], "nobody"]),
    k=tf.constant(2),
    exclude_ids=none,
    allow_ids=none,
  )
  scores = world.candidate_vectors[[8, 2]] @ world.query_vectors[6]
  np.testing.assert_allclose(found["scores"][0], np.sort(scores)[::-1], 1e-5)
  assert found["candidate_ids"][1].numpy().tolist() == [b"y", b"x"]
