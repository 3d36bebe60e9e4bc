"""Answers of a bundle against NumPy, and bundles that cannot be used."""

import json
import os
import shutil

import numpy as np
import pytest

from xir_tfrs.data import errors
from xir_tfrs.serving import bundle
from xir_tfrs.serving import manifest as manifests


@pytest.fixture(scope="module", params=bundle.INDEXES)
def loaded(request, exported):
  return bundle.Bundle.load(exported, request.param)


def test_recommends_in_the_order_of_the_model(world, loaded):
  queries = [3, 0, 39]
  names = [world.query_ids[q] for q in queries]
  found = loaded.recommend(names, 5)
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
    [world.query_ids[query]], 10, exclude=[best[:2]], exclude_seen=True
  )
  expected = world.ranking(query, leave_out=seen | set(best[:2]))
  assert found.ids[0].tolist() == expected[:10]
  found = loaded.recommend([world.query_ids[query]], 300, exclude_seen=True)
  answers = [x for x in found.ids[0] if x]
  assert set(answers) == set(world.candidate_ids) - seen
  assert np.isneginf(found.scores[0, len(answers) :]).all()


def test_unknown_query_gets_the_popular(world, loaded):
  order = np.argsort(-world.counts, kind="stable")
  popular = [world.candidate_ids[row] for row in order]
  found = loaded.recommend(
    ["nobody", world.query_ids[2]], 4, exclude=[popular[1:2], []]
  )
  assert found.known.tolist() == [False, True]
  assert found.ids[0].tolist() == [popular[0], *popular[2:5]]
  assert found.scores[0].tolist() == world.counts[order[[0, 2, 3, 4]]].tolist()
  assert found.ids[1].tolist() == world.ranking(2)[:4]
  found = loaded.recommend(["nobody"], 301, exclude_seen=True)
  assert found.ids[0, -1] == "" and found.scores[0, -1] == -np.inf


def test_edge_sizes(world, loaded):
  assert loaded.recommend([], 3).ids.shape == (0, 3)
  found = loaded.recommend([world.query_ids[0]], 1, exclude=[[]])
  assert found.ids.tolist() == [world.ranking(0)[:1]]
  with pytest.raises(ValueError, match="`k` = 0"):
    loaded.recommend([world.query_ids[0]], 0)
  with pytest.raises(ValueError, match="2 lists for 1 queries"):
    loaded.recommend([world.query_ids[0]], 1, exclude=[[], []])


def test_default_index_is_scann(exported):
  assert bundle.Bundle.load(exported).index == "scann"


def test_without_a_ranker(world, loaded):
  assert not loaded.has_ranker
  with pytest.raises(errors.DataError, match="has no ranker.*--task corr"):
    loaded.recommend([world.query_ids[0]], 3, rerank=True)


def _edit_manifest(directory, change):
  path = directory / "manifest.json"
  manifest = json.loads(path.read_text())
  change(manifest)
  path.write_text(json.dumps(manifest))


@pytest.fixture
def copied(exported, tmp_path):
  return shutil.copytree(exported, tmp_path / "bundle")


def test_not_a_bundle(tmp_path):
  with pytest.raises(errors.DataError, match="is not a bundle"):
    bundle.Bundle.load(tmp_path / "nothing")


@pytest.mark.parametrize(
  "content, message",
  [("{", "truncated or not JSON"), ('{"format": 99}', "must be 2.*99")],
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


def test_index_the_bundle_lacks(copied):
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
def test_versions_that_do_not_fit(copied, package, version, index, message):
  _edit_manifest(copied, lambda x: x["versions"].update({package: version}))
  with pytest.raises(errors.DataError, match=message):
    bundle.Bundle.load(copied, index)


def test_plain_ops_load_in_a_later_tensorflow_and_without_scann(copied):
  old = {"tensorflow": "2.18.1", "scann": None}
  _edit_manifest(copied, lambda manifest: manifest["versions"].update(old))
  bundle.Bundle.load(copied, "brute_force")


def test_new_bundle_is_all_or_nothing(tmp_path):
  output = tmp_path / "deep" / "bundle"
  with pytest.raises(RuntimeError), manifests.new_bundle(output, False) as part:
    (part / "half").write_text("x")
    raise RuntimeError
  assert list(output.parent.iterdir()) == []
  with manifests.new_bundle(output, False) as part:
    manifests.save(part, {"made": 1})
  with pytest.raises(errors.DataError, match="--overwrite"):
    manifests.check_output(output, overwrite=False)
  with pytest.raises(RuntimeError), manifests.new_bundle(output, True) as part:
    assert manifests.load(output)["made"] == 1
    raise RuntimeError
  assert manifests.load(output)["made"] == 1
  with manifests.new_bundle(output, True) as part:
    manifests.save(part, {"made": 2})
  assert manifests.load(output)["made"] == 2
  assert [x.name for x in output.parent.iterdir()] == ["bundle"]


def _versions(output, versions):
  for version in versions:
    with manifests.new_bundle(output, True) as part:
      manifests.save(part, {"made": version})


def test_replacing_leaves_no_moment_without_a_bundle(tmp_path, monkeypatch):
  output = tmp_path / "bundle"
  _versions(output, [1])
  renamed = []
  rename = os.rename

  def note(source, target):
    renamed.append((source, target))
    rename(source, target)

  monkeypatch.setattr(manifests.os, "rename", note)
  _versions(output, [2])
  assert manifests.load(output)["made"] == 2
  assert [target for _, target in renamed] == [output]  # Tried, in vain.
  assert list(tmp_path.iterdir()) == [output]


def test_a_link_to_a_bundle_stays_a_link(tmp_path):
  _versions(tmp_path / "bundle", [1])
  link = tmp_path / "current"
  link.symlink_to("bundle")
  _versions(link, [2])
  assert link.is_symlink()
  assert manifests.load(tmp_path / "bundle")["made"] == 2


def test_what_is_not_a_bundle_is_never_replaced(tmp_path):
  (tmp_path / "photos").mkdir()
  (tmp_path / "photos" / "one.jpg").write_text("x")
  for path in (tmp_path / "photos", tmp_path / "photos" / "one.jpg"):
    with pytest.raises(errors.DataError, match="not (part of )?a (bundle|dir)"):
      manifests.check_output(path, overwrite=True)
