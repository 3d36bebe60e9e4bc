"""Answers of a bundle, compared with NumPy, and unusable bundles."""

import copy
import json
import os
import pathlib
import pickle
import shutil

import msgspec
import numpy as np
import pytest

import xir_tfrs as xir
from export.bundle import signatures
from tests import examples, reference
from xir_tfrs.data import errors, json_files
from xir_tfrs.serving import bundle, scann_folder
from xir_tfrs.serving import manifest as manifests


@pytest.fixture(scope="module", params=bundle.INDEXES)
def loaded(request, exported, load):
  return load(exported, request.param)


def test_recommends_in_the_order_of_the_model(world, loaded):
  queries = [3, 0, 38]
  names = [world.query_ids[q] for q in queries]
  found = loaded.recommend(names, k=5)
  assert found.ids.shape == found.scores.shape == (3, 5)
  assert found.known.all()
  for row, query in enumerate(queries):
    # ScaNN scores all 300 again exactly, so even its order is the same.
    assert found.ids[row].tolist() == world.ranking(query)[:5]
  best = world.candidate_vectors @ world.query_vectors[3]
  np.testing.assert_allclose(found.scores[0], -np.sort(-best)[:5], rtol=1e-5)


def test_exclusions_and_seen(world, loaded):
  query = 5
  assert len(world.seen[query]) > 3
  seen = {world.candidate_ids[c] for c in world.seen[query]}
  best = world.ranking(query)
  found = loaded.recommend(
    [world.query_ids[query]], k=10, exclude_ids=[best[:2]], exclude_seen=True
  )
  expected = world.ranking(query, leave_out=seen | set(best[:2]))
  assert found.ids[0].tolist() == expected[:10]
  found = loaded.recommend([world.query_ids[query]], k=300, exclude_seen=True)
  answers = [x for x in found.ids[0] if x]
  assert set(answers) == set(world.candidate_ids) - seen
  assert np.isneginf(found.scores[0, len(answers) :]).all()


def test_unknown_query_gets_the_popular(world, loaded):
  order = np.argsort(-world.counts, kind="stable")
  popular = [world.candidate_ids[row] for row in order]
  found = loaded.recommend(
    ["nobody", world.query_ids[2]], k=4, exclude_ids=[popular[1:2], []]
  )
  assert found.known.tolist() == [False, True]
  assert found.ids[0].tolist() == [popular[0], *popular[2:5]]
  assert found.scores[0].tolist() == world.counts[order[[0, 2, 3, 4]]].tolist()
  assert found.ids[1].tolist() == world.ranking(2)[:4]
  found = loaded.recommend(["nobody"], k=301, exclude_seen=True)
  assert found.ids[0, -1] == "" and found.scores[0, -1] == -np.inf


def test_edge_sizes(world, loaded):
  assert loaded.recommend([], k=3).ids.shape == (0, 3)
  found = loaded.recommend([world.query_ids[0]], k=1, exclude_ids=[[]])
  assert found.ids.tolist() == [world.ranking(0)[:1]]
  for wrong in (0, 2.5, "3"):
    with pytest.raises(ValueError, match=f"`k` = {wrong!r}"):
      loaded.recommend([world.query_ids[0]], k=wrong)
  with pytest.raises(ValueError, match="2 lists for 1 queries"):
    loaded.recommend([world.query_ids[0]], k=1, exclude_ids=[[], []])


@pytest.mark.parametrize("name", xir.serving.__all__)
def test_example(name, exported, load, tmp_path, monkeypatch):
  (tmp_path / "bundle").symlink_to(exported)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(
    bundle.Bundle, "load", lambda path: load(pathlib.Path(path).resolve())
  )
  assert examples.run(getattr(xir.serving, name)), "it has no example"


def test_without_a_ranker(world, loaded):
  assert not loaded.has_ranker
  with pytest.raises(errors.DataError, match="has no ranker.*--task corr"):
    loaded.recommend([world.query_ids[0]], k=3, rerank=True)


def _edit_manifest(directory, change):
  path = directory / "manifest.json"
  content = json.loads(path.read_text())
  change(content)
  manifest = msgspec.convert(content, manifests.Manifest)
  json_files.write(path, json_files.seal(manifest))


@pytest.fixture
def copied(exported, tmp_path):
  return shutil.copytree(exported, tmp_path / "bundle")


def test_not_a_bundle(tmp_path):
  with pytest.raises(errors.DataError, match="this is not a bundle"):
    bundle.Bundle.load(tmp_path / "nothing")


@pytest.mark.parametrize(
  "content, message",
  [
    ("{", "manifest.json: not valid JSON"),
    ('{"format": 2}', "field format: .* format 3, the file has 2; .* again"),
    ('{"format": 3}', "manifest.json: .*missing required field `versions`"),
  ],
)
def test_broken_manifest(copied, content, message):
  (copied / "manifest.json").write_text(content)
  with pytest.raises(errors.DataError, match=message):
    bundle.Bundle.load(copied)


def test_missing_truncated_and_changed_files(copied):
  path = copied / "lists" / "candidate_ids.data.npy"
  content = path.read_bytes()
  path.write_bytes(content[:-1] + b"!")
  bundle.Bundle.load(copied, "brute_force", check_hashes=False)
  with pytest.raises(errors.DataError, match="candidate_ids.*content"):
    bundle.Bundle.load(copied)
  path.write_bytes(content[:-1])
  with pytest.raises(errors.DataError, match="candidate_ids.*bytes"):
    bundle.Bundle.load(copied, check_hashes=False)
  path.unlink()
  with pytest.raises(errors.DataError, match="candidate_ids.*missing"):
    bundle.Bundle.load(copied)


def test_a_changed_manifest_is_refused(copied):
  path = copied / "manifest.json"
  text = path.read_text()
  path.write_text(
    text.replace('"num_candidates": 300', '"num_candidates": 301')
  )
  with pytest.raises(errors.DataError, match="manifest.json: .* has changed"):
    manifests.load(copied)
  path.write_text(text.replace('"num_seen_pairs"', '"num_sean_pairs"'))
  with pytest.raises(errors.DataError, match="num_sean_pairs"):
    manifests.load(copied)
  path.write_text(text.replace('"max_k": 10000', '"max_k": "10000"'))
  with pytest.raises(errors.DataError, match="field max_k: Expected `int`"):
    manifests.load(copied)


def test_a_stray_list_does_not_replace_the_ids(world, copied):
  np.save(copied / "lists" / "candidate_ids.npy", np.arange(300))
  loaded = bundle.Bundle.load(copied, "brute_force")
  assert list(loaded.candidate_ids) == world.candidate_ids


_QUERY = "Grüße, 5"


@pytest.mark.parametrize(
  "given, message",
  [
    ({"query_ids": "u5"}, "query ids must be a list.*'u5'"),
    ({"query_ids": None}, "`query_ids` must be given"),
    ({"query_ids": [_QUERY], "history": ["item 1"]}, "`history` must hold one"),
    ({"query_ids": [_QUERY], "history": [[], []]}, "2 lists for 1 queries"),
    ({"exclude_history": True}, "`exclude_history` leaves out the ids"),
    ({"query_ids": None, "history": [[]], "rerank": True}, "needs `query_ids`"),
    ({"query_ids": [_QUERY], "history": 3}, "`history` .* `k` by name"),
    ({"exclude_ids": ["item 1"]}, "`exclude_ids` must hold one list.*'item 1'"),
    ({"exclude_ids": "item 1"}, "`exclude_ids` must hold one list.*'item 1'"),
    ({"exclude_ids": [None]}, "`exclude_ids` must hold one list.*None"),
    ({"exclude_ids": [[None]]}, "candidate ids .* string. Received: None"),
    ({"allow_ids": ["item 1"]}, "`allow_ids` must hold one list.*'item 1'"),
    ({"allow_ids": [["item 1"], []]}, "2 lists for 1 queries"),
    ({"query_ids": ["\ud800"]}, r"query ids .* string.*\\ud800"),
  ],
)
def test_flat_lists_and_other_ids_are_refused(loaded, given, message):
  with pytest.raises(ValueError, match=message):
    loaded.recommend(**{"query_ids": [_QUERY], **given})


def test_iterators_are_read_once(loaded, world):
  ids, history = world.query_ids[:2], [["item 1"], ["item 2", "item 3"]]
  given = {"k": 4, "exclude_history": True}
  for expected, found in (
    (
      loaded.recommend(ids, history, **given),
      loaded.recommend(iter(ids), map(iter, history), **given),
    ),
    (
      loaded.recommend(history=history, **given),
      loaded.recommend(history=map(iter, history), **given),
    ),
  ):
    assert found.ids.tolist() == expected.ids.tolist()
  read = loaded.read_queries(iter(["nobody"]), history=iter([iter(["item 1"])]))
  expected = loaded.encode_queries(["nobody"], history=[["item 1"]])
  np.testing.assert_array_equal(read.vectors, expected)


def test_a_single_id_is_refused_as_a_list(loaded):
  with pytest.raises(ValueError, match="ids must be a list.*'item 1'"):
    loaded.similar_items("item 1", 3)


def test_a_query_without_training_rows_is_unknown(world, loaded):
  """The query has a vector, which was never trained."""
  assert not world.seen[39]
  for exclude_seen in (False, True):
    found = loaded.recommend(
      [world.query_ids[39], "nobody", world.query_ids[3]],
      k=4,
      exclude_seen=exclude_seen,
    )
    assert found.known.tolist() == [False, False, True]
    assert found.popular.tolist() == [True, True, False]
    assert found.ids[0].tolist() == found.ids[1].tolist()
    assert found.scores[0, 0] == world.counts.max()
  np.testing.assert_allclose(
    loaded.encode_queries([world.query_ids[39]])[0], world.unknown_query, 1e-6
  )


def test_missing_index_is_named(copied):
  _edit_manifest(copied, lambda manifest: manifest["indexes"].pop("scann"))
  with pytest.raises(errors.DataError, match="only brute_force"):
    bundle.Bundle.load(copied, "scann")
  assert bundle.Bundle.load(copied).index == "brute_force"


@pytest.mark.parametrize(
  "package, version, index, message",
  [
    ("tensorflow", "2.99.0", "brute_force", "TensorFlow 2.99.0, found"),
    ("tensorflow", "2.18.1", "scann", "--index brute_force.*==2.18.1"),
    ("scann", "9.9", "scann", "ScaNN 9.9, found .*--index brute_force"),
  ],
)
def test_incompatible_versions_are_refused(
  copied, package, version, index, message
):
  _edit_manifest(copied, lambda x: x["versions"].update({package: version}))
  with pytest.raises(errors.DataError, match=message):
    bundle.Bundle.load(copied, index)


def test_plain_ops_load_in_a_later_tensorflow_and_without_scann(copied):
  old = {"tensorflow": "2.18.1", "scann": None}
  _edit_manifest(copied, lambda manifest: manifest["versions"].update(old))
  bundle.Bundle.load(copied, "brute_force")


def test_a_path_that_is_a_pattern_for_tensorflow(exported, tmp_path, world):
  for index in bundle.INDEXES:
    directory = tmp_path / f"{index}[1]"
    shutil.copytree(exported, directory)
    found = bundle.Bundle.load(directory, index).recommend([world.query_ids[3]])
    assert found.ids[0, 0] == world.ranking(3)[0]


def test_a_directory_that_is_no_bundle_is_never_replaced(tmp_path):
  (tmp_path / "photos").mkdir()
  (tmp_path / "photos" / "one.jpg").write_text("x")
  for path in (tmp_path / "photos", tmp_path / "photos" / "one.jpg"):
    with pytest.raises(errors.DataError, match="not (part of )?a (bundle|dir)"):
      manifests.check_output(path, overwrite=True)


def _fitted(world, history):
  vectors = world.candidate_vectors
  return reference.fold_in(
    [world.candidate_ids.index(x) for x in history],
    vectors,
    signatures.FOLD_IN_RIDGE,
    signatures.FOLD_IN_POWER,
  )


def test_a_session_uses_its_history(loaded, world):
  # Padding and unknown ids do not count; a repeated id counts twice.
  history = [["item 3", "item 40"], ["", "no such item", "item 7"], ["none"]]
  found = loaded.recommend(history=history, k=5)
  for row, listed in enumerate((["item 3", "item 40"], ["item 7"])):
    vector = _fitted(world, listed)
    scores = world.candidate_vectors @ vector
    assert found.ids[row].tolist() == [
      world.candidate_ids[x] for x in np.argsort(-scores)[:5]
    ]
    np.testing.assert_allclose(found.scores[row], -np.sort(-scores)[:5], 1e-3)
  assert found.num_history.tolist() == [2, 1, 0]
  assert found.popular.tolist() == [False, False, True]
  assert not found.known.any()
  vectors = loaded.encode_queries(history=history[:2])
  np.testing.assert_allclose(
    vectors[0], _fitted(world, ["item 3", "item 40"]), atol=1e-4
  )


def test_a_history_answers_queries_without_training_rows(loaded, world):
  ids = [world.query_ids[1], "nobody", "nobody", world.query_ids[2]]
  history = [["item 3"], ["item 3"], [], []]
  found = loaded.recommend(
    ids, history, 4, exclude_ids=[[], ["item 5"], [], []], exclude_seen=True
  )
  trained = loaded.recommend(
    ids, k=4, exclude_ids=[["item 3"], [], [], []], exclude_seen=True
  )
  assert found.ids[[0, 2, 3]].tolist() == trained.ids[[0, 2, 3]].tolist()
  session = loaded.recommend(
    history=[["item 3"]], k=4, exclude_ids=[["item 3", "item 5"]]
  )
  assert found.ids[1].tolist() == session.ids[0].tolist()
  assert found.num_history.tolist() == [0, 1, 0, 0]
  assert found.popular.tolist() == [False, False, True, False]
  assert "item 3" not in found.ids[:2]
  queries = loaded.read_queries(ids, history=history)
  assert queries.popular.tolist() == found.popular.tolist()
  np.testing.assert_allclose(
    queries.vectors[1], _fitted(world, ["item 3"]), atol=1e-4
  )


def test_a_bundle_older_than_histories(copied):
  loaded = bundle.Bundle.load(copied, "brute_force")
  del loaded.signatures["recommend_session"]
  with pytest.raises(errors.DataError, match="without support for histories"):
    loaded.recommend(history=[["item 3"]])


def test_a_bundle_does_not_outlive_a_fork(loaded, monkeypatch):
  """In a child, TensorFlow would wait for threads of the parent."""
  monkeypatch.setattr(os, "getpid", lambda: -1)
  for ask in (
    lambda: loaded.recommend(["nobody"]),
    lambda: loaded.recommend(history=[["item 3"]]),
    lambda: loaded.similar_items(["item 3"]),
    lambda: loaded.encode_candidates(["item 3"]),
  ):
    with pytest.raises(RuntimeError, match="load the bundle in each process"):
      ask()


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.deepcopy, copy.copy])
def test_a_bundle_is_not_pickled(loaded, duplicate):
  with pytest.raises(TypeError, match="load the bundle in each process"):
    duplicate(loaded)


def _replace_once(monkeypatch, module, name, directory, other):
  """Lets another bundle replace `directory` in the first call of a function."""
  call = getattr(module, name)

  def replaced(*arguments, **named):
    monkeypatch.setattr(module, name, call)
    shutil.rmtree(directory)
    shutil.copytree(other, directory)
    return call(*arguments, **named)

  monkeypatch.setattr(module, name, replaced)


@pytest.mark.parametrize(
  ("module", "name"),
  [
    (manifests, "check_versions"),  # The hashes fit, and the lists do not.
    (manifests, "check_files"),
    (bundle.tf.saved_model, "load"),
  ],
)
def test_a_bundle_that_is_replaced_while_it_is_read_is_read_again(
  copied, numbered, monkeypatch, module, name
):
  _replace_once(monkeypatch, module, name, copied, numbered)
  loaded = bundle.Bundle.load(copied, "brute_force")
  assert loaded.manifest.id_types.candidate == "int64"
  assert loaded.candidate_ids[:3].tolist() == [0, 5, 10]
  assert loaded.recommend([10**12], k=1).known.all()


def test_a_folder_that_is_replaced_while_it_is_read_is_read_again(
  copied, numbered, monkeypatch
):
  _replace_once(
    monkeypatch, scann_folder.id_lists, "load_array", copied, numbered
  )
  found = scann_folder.ScannFolder.load(copied / bundle.FOLDER)
  ids, _ = found.search(np.ones(found.dim, np.float32), k=3)
  assert ids.dtype == np.int64


def test_a_bundle_that_is_replaced_again_and_again_is_an_error(copied):
  def read():
    (copied / manifests.FILE_NAME).touch()

  with pytest.raises(errors.DataError, match="replaced 3 times while it was"):
    manifests.read_whole(copied, read)


def test_a_loaded_bundle_does_not_need_its_directory(copied, world):
  loaded = bundle.Bundle.load(copied, "brute_force")
  shutil.rmtree(copied)
  np.testing.assert_array_equal(loaded.counts, world.counts)
  splits, rows = loaded.seen
  assert set(rows[splits[5] : splits[6]].tolist()) == world.seen[5]
  first = world.candidate_ids[0]
  assert loaded.title(first) == loaded.titles[0] == world.title_of(first)
  found = loaded.recommend([world.query_ids[3]], k=5)
  assert found.ids[0].tolist() == world.ranking(3)[:5]
  loaded.close()
  with pytest.raises(RuntimeError, match="was closed; load it again"):
    loaded.recommend([world.query_ids[3]])
