"""Bundles of very small corpora, and of extreme requests."""

import numpy as np
import pytest
import tensorflow as tf

import xir_tfrs as xir
from export.bundle import encoders, from_model, indexing, options, write
from xir_tfrs.data import errors
from xir_tfrs.serving import bundle, manifest

DIM = 4


def _encoder(ids, vectors):
  table = tf.Variable(np.vstack([vectors, np.zeros([1, DIM])]), dtype="float32")
  unknown = np.int64(len(vectors))

  def encode(rows, features):
    del features
    return tf.gather(table, tf.where(rows < 0, unknown, rows))

  return encoders.TrainedEncoder(ids, np.ones(len(vectors)), encode)


def _bundle(path, n, seed=0):
  """A bundle of two queries and n candidates; its vectors."""
  rng = np.random.default_rng(seed)
  queries = rng.normal(size=(2, DIM)).astype("f")
  vectors = rng.normal(size=(n, DIM)).astype("f")
  names = [b"q0", b"q1"], [f"c{i}".encode() for i in range(n)]
  tables = [xir.indexes.IdTable(tf.constant(x)) for x in names]
  built, about = indexing.build_indexes(
    options.IndexOptions(exact_below=0), tables[1], vectors, queries
  )
  contents = write.Contents(
    query_ids=names[0],
    candidate_counts=np.arange(n),
    seen=(np.array([0, 1, 1]), np.array([n - 1], np.int32)),
    query_tower=_encoder(tables[0], queries),
    candidate_tower=_encoder(tables[1], vectors),
    indexes=built,
    about_indexes=about,
  )
  with manifest.new_bundle(path, overwrite=False) as directory:
    write.write_bundle(directory, contents, about={})
  return queries, vectors


# Below 16 candidates there is no searcher, so 15 behave like 1.
@pytest.mark.parametrize("n", [1, 99])
def test_small_corpora(n, tmp_path):
  queries, vectors = _bundle(tmp_path / "b", n)
  order = [f"c{c}" for c in np.argsort(-(vectors @ queries[0]), kind="stable")]
  popular = [f"c{c}" for c in reversed(range(n))]
  for index in bundle.INDEXES:
    loaded = bundle.Bundle.load(tmp_path / "b", index)
    found = loaded.recommend(["q0", "nobody"], k=n + 3)
    assert found.ids[0].tolist() == order + [""] * 3
    assert found.ids[1].tolist() == popular + [""] * 3
    assert found.num_found.tolist() == [n, n]
    found = loaded.recommend(["q0", "q1"], k=n, exclude_seen=True)
    assert f"c{n - 1}" not in found.ids[0]
    assert found.num_found.tolist() == [n - 1, n]
    assert loaded.similar_items(["c0"], 3).num_found == [min(3, n - 1)]
    # Nothing is left, not even for unknown queries.
    found = loaded.recommend(["q0", "nobody"], k=2, exclude_ids=[order, order])
    assert found.ids.tolist() == [["", ""]] * 2
    assert found.num_found.tolist() == [0, 0]
    assert np.isneginf(found.scores).all()


def test_ten_thousand_exclusions(tmp_path):
  queries, vectors = _bundle(tmp_path / "b", 12_000)
  order = [f"c{c}" for c in np.argsort(-(vectors @ queries[0]), kind="stable")]
  for index in bundle.INDEXES:
    loaded = bundle.Bundle.load(tmp_path / "b", index)
    found = loaded.recommend(
      ["q0", "q1"], k=10, exclude_ids=[order[:10_000], order[:1]]
    )
    assert found.ids[0].tolist() == order[10_000:10_010]
    assert order[0] not in found.ids[1]
    found = loaded.recommend(["q0"], k=10, allow_ids=[order[2_000:]])
    assert found.ids[0].tolist() == order[2_000:2_010]


def test_empty_batch(exported):
  for index in bundle.INDEXES:
    loaded = bundle.Bundle.load(exported, index)
    found = loaded.recommend(
      [], k=7, exclude_ids=[], allow_ids=[], exclude_seen=True
    )
    assert found.ids.shape == found.scores.shape == (0, 7)
    assert found.known.shape == found.num_found.shape == (0,)
    assert loaded.similar_items([], 7).ids.shape == (0, 7)


@pytest.mark.slow
def test_two_bundles_in_one_process(world, exported, numbered):
  """Each bundle uses its own ScaNN searcher."""
  one = bundle.Bundle.load(exported, "scann")
  other = bundle.Bundle.load(numbered, "scann")
  for query in (3, 8, 3):
    best = world.ranking(query)[:6]
    found = one.recommend([world.query_ids[query]], k=6)
    assert found.ids[0].tolist() == best
    found = other.recommend([10**12 + query], k=6)
    assert found.ids[0].tolist() == [
      5 * world.candidate_ids.index(x) for x in best
    ]


def test_repeated_ids_are_refused():
  with pytest.raises(errors.DataError, match="'a' more than once"):
    from_model._id_table([b"a", b"b", b"a"])


def test_vectors_that_cannot_be_indexed():
  ids = xir.indexes.IdTable(["a", "b"])
  for value in (np.nan, np.inf):
    vectors = np.array([[0, 1], [value, 0]])
    with pytest.raises(errors.DataError, match="finite.*row 1 .id 'b'"):
      indexing.build_indexes(options.IndexOptions(), ids, vectors, vectors[:1])
