"""ScaNN's own files, searched without TensorFlow, compared with NumPy."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import msgspec
import numpy as np
import pytest

import xir_tfrs as xir
from export.bundle import write
from xir_tfrs.data import errors, id_lists, json_files
from xir_tfrs.serving import scann_folder

ROOT = pathlib.Path(__file__).parents[2]
SIZE, DIM = 2000, 8


def _vectors():
  """Clustered vectors, for which ScaNN works well."""
  rng = np.random.default_rng(5)
  centres = rng.normal(size=[40, DIM])
  noise = 0.3 * rng.normal(size=[SIZE, DIM])
  return (centres[rng.integers(0, 40, SIZE)] + noise).astype(np.float32)


VECTORS = _vectors()
QUERIES = np.random.default_rng(6).normal(size=[6, DIM]).astype(np.float32)
STRINGS = [f"Straße {row}" for row in range(SIZE)]
INTEGERS = 10 * np.arange(SIZE, dtype=np.int64)


def _write(path, ids, **settings):
  """The folder as an export writes it."""
  index = xir.indexes.ScannIndex(**settings).index(ids, VECTORS)
  if not isinstance(ids, np.ndarray):
    ids = [x.encode() for x in ids]
  write.write_folder(path, index, ids)
  return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  root = tmp_path_factory.mktemp("folders")
  return {
    "exact": _write(root / "exact", STRINGS),
    # Exact: all leaves are searched and all candidates scored again.
    "all": _write(
      root / "all",
      STRINGS,
      exact_below=0,
      num_leaves=20,
      num_leaves_to_search=20,
      num_reorder=SIZE,
    ),
    "few leaves": _write(
      root / "few",
      INTEGERS,
      exact_below=0,
      num_leaves=40,
      num_leaves_to_search=1,
      max_fetch=600,
    ),
  }


def _expected(query, k, leave_out=()):
  """Rows and scores, best first, padded with -1 and -inf."""
  scores = VECTORS.astype(np.float64) @ QUERIES[query].astype(np.float64)
  order = [row for row in np.argsort(-scores) if row not in set(leave_out)][:k]
  missing = k - len(order)
  return order + [-1] * missing, [*scores[order], *[-np.inf] * missing]


@pytest.mark.parametrize("name", ["exact", "all"])
@pytest.mark.parametrize(
  "k, num_excluded",
  [(1, 0), (10, 0), (10, 5), (5, 900), (SIZE, 3), (SIZE + 7, 0), (4, SIZE - 2)],
)
def test_equals_brute_force(folders, name, k, num_excluded):
  folder = scann_folder.ScannFolder.load(folders[name])
  assert (folder.size, folder.dim) == (SIZE, DIM)
  # Deny lists of different lengths hold the best candidates.
  lists = [_expected(i, num_excluded >> i)[0] for i in range(len(QUERIES))]
  exclude = [
    [
      *(STRINGS[row] for row in rows),
      "",
      "nobody",
      *map(STRINGS.__getitem__, rows[:2]),
    ]
    for rows in lists
  ]
  ids, scores = folder.search(QUERIES, k, exclude)
  assert ids.shape == scores.shape == (len(QUERIES), k)
  assert scores.dtype == np.float32
  for i, rows in enumerate(lists):
    best, best_scores = _expected(i, k, rows)
    np.testing.assert_allclose(scores[i], best_scores, rtol=1e-5, atol=1e-5)
    assert ids[i].tolist() == [STRINGS[x] if x >= 0 else "" for x in best]


@pytest.mark.parametrize("name", ["exact", "all"])
def test_interests_of_a_query_have_their_best_scores(folders, name):
  folder = scann_folder.ScannFolder.load(folders[name])
  queries = QUERIES.reshape(2, 3, DIM)
  scores = (queries @ VECTORS.T).max(axis=1)
  order = np.argsort(-scores, axis=1)
  left_out = [[STRINGS[row] for row in rows[:3]] for rows in order]
  ids, found = folder.search(queries, 9, left_out)
  assert ids.tolist() == [[STRINGS[row] for row in r[3:12]] for r in order]
  np.testing.assert_allclose(
    found, np.take_along_axis(scores, order[:, 3:12], axis=1), rtol=1e-5
  )
  few, _ = folder.search(queries[:, :2], SIZE, [[], []])
  assert all(sorted(row) == sorted(STRINGS) for row in few.tolist())


def test_approximate_answers_are_real_and_complete(folders):
  """One leaf of 40 misses candidates, but no answer is wrong or missing."""
  folder = scann_folder.ScannFolder.load(folders["few leaves"])
  missed = 0
  for k, num_excluded in ((10, 0), (10, 20), (400, 0), (SIZE + 3, 4)):
    lists = [_expected(i, num_excluded >> i)[0] for i in range(len(QUERIES))]
    exclude = [[*INTEGERS[rows], -1, 7] for rows in lists]
    ids, scores = folder.search(QUERIES, k, exclude)
    assert ids.dtype == np.int64
    for i, rows in enumerate(lists):
      real = ids[i] >= 0
      assert real.sum() == min(k, SIZE - len(rows))
      found = ids[i][real] // 10
      assert len(set(found)) == len(found)
      assert not set(found) & set(rows)
      np.testing.assert_allclose(
        scores[i][real], VECTORS[found] @ QUERIES[i], rtol=1e-4, atol=1e-5
      )
      assert (np.diff(scores[i][real]) <= 0).all()
      assert (ids[i][~real] == -1).all()
      assert np.isneginf(scores[i][~real]).all()
      missed += len(set(_expected(i, k, rows)[0]) - {-1} - set(found))
      if k > 40:  # More than in one leaf, so the search is exact.
        assert set(found) == set(_expected(i, k, rows)[0]) - {-1}
  assert missed > 0


@pytest.mark.parametrize("name", ["exact", "all"])
def test_odd_queries(folders, name):
  folder = scann_folder.ScannFolder.load(folders[name])
  queries = QUERIES.copy()
  for row, value in ((0, np.nan), (2, np.inf), (3, -2e15)):
    queries[row, 1] = value
  ids, scores = folder.search(queries, 3)
  for row in (0, 2, 3):
    assert ids[row].tolist() == [""] * 3
    assert np.isneginf(scores[row]).all()
  for row in (1, 4, 5):
    assert ids[row].tolist() == [STRINGS[x] for x in _expected(row, 3)[0]]
  ids, scores = folder.search(queries[:0], 3)
  assert ids.shape == scores.shape == (0, 3)
  ids, scores = folder.search(QUERIES[1], 3, [STRINGS[_expected(1, 1)[0][0]]])
  assert ids.tolist() == [STRINGS[x] for x in _expected(1, 4)[0][1:]]
  np.testing.assert_allclose(scores, _expected(1, 4)[1][1:], rtol=1e-5)


def test_equal_scores_by_row():
  scores = np.array([1, 3, 2, 3, 3, 0], np.float32)
  assert scann_folder._best(scores, 2).tolist() == [1, 3]
  assert scann_folder._best(scores, 4).tolist() == [1, 3, 4, 2]
  assert scann_folder._best(scores, 9).tolist() == [1, 3, 4, 2, 0, 5]


@pytest.mark.parametrize(
  "arguments, message",
  [
    ((QUERIES[:, :-1], 3), r"\[n, 8\], \[n, interests, 8\] or \[8\]"),
    ((QUERIES[np.newaxis, np.newaxis], 3), "`queries` must be"),
    ((QUERIES, 0), "`k` must be a positive integer"),
    ((QUERIES, 2.5), "`k` must be a positive integer"),
    ((QUERIES, 3, [["a"]]), "1 lists for 6 queries"),
    (
      (QUERIES, 3, ["a"] * 6),
      r"one list of ids per query.*'a' instead of a list",
    ),
    ((QUERIES[0], 3, "a"), r"one list of ids per query.*'a' instead of a list"),
    ((QUERIES[0], 3, [["a"]]), r"candidate ids .* Received: \['a'\]"),
    ((QUERIES[0], 3, [7]), "candidate ids .* string. Received: 7"),
  ],
)
def test_wrong_arguments(folders, arguments, message):
  folder = scann_folder.ScannFolder.load(folders["exact"])
  with pytest.raises(ValueError, match=message):
    folder.search(*arguments)


def _names():
  searcher = (
    "ah_codebook.pb",
    "datapoint_to_token.npy",
    "dataset.npy",
    "hashed_dataset.npy",
    "scann_assets.pbtxt",
    "scann_config.pb",
    "serialized_partitioner.pb",
  )
  ids = ("candidate_ids.data.npy", "candidate_ids.offsets.npy")
  return [f"searcher/{x}" for x in searcher] + [*ids, "settings.json"]


def test_every_file_is_named_below(folders):
  path = folders["all"]
  files = {
    x.relative_to(path).as_posix() for x in path.rglob("*") if x.is_file()
  }
  assert files == set(_names())


def _flip(path, place):
  """Changes one bit."""
  content = bytearray(path.read_bytes())
  content[place] ^= 1
  path.write_bytes(content)


@pytest.mark.parametrize("how", ["missing", "cut", "flipped"])
@pytest.mark.parametrize("name", _names())
def test_broken_files_are_named(folders, tmp_path, name, how):
  path = shutil.copytree(folders["all"], tmp_path / "copy")
  size = (path / name).stat().st_size
  if how == "missing":
    (path / name).unlink()
  elif how == "cut":
    os.truncate(path / name, size * 2 // 3)
  else:
    _flip(path / name, size // 2)
  before = sorted(path.rglob("*"))
  with pytest.raises(errors.DataError) as raised:
    scann_folder.ScannFolder.load(path)
  assert raised.value.path == str(path / name)
  assert "export" in str(raised.value)
  assert sorted(path.rglob("*")) == before


def test_every_bit_of_the_settings_counts(folders, tmp_path):
  path = shutil.copytree(folders["exact"], tmp_path / "copy")
  content = (path / "settings.json").read_bytes()
  for place in range(len(content)):
    changed = bytearray(content)
    changed[place] ^= 1
    if bytes(changed).split() == content.split():
      continue  # White space.
    (path / "settings.json").write_bytes(changed)
    with pytest.raises(errors.DataError, match="settings.json"):
      scann_folder.ScannFolder.load(path)


def test_files_of_another_folder_are_refused(folders, tmp_path):
  """They are whole, and of the same sizes."""
  path = shutil.copytree(folders["all"], tmp_path / "copy")
  other = [x.encode() for x in reversed(STRINGS)]
  id_lists.save(path / "candidate_ids", other)
  with pytest.raises(errors.DataError, match="candidate_ids.data.npy: its con"):
    scann_folder.ScannFolder.load(path)
  # Files that are not read are not checked, as documented.
  folder = scann_folder.ScannFolder.load(path, check_hashes=False)
  assert folder.search(QUERIES[0], 1)[0] == STRINGS[-1 - _expected(0, 1)[0][0]]


def test_a_stray_list_does_not_replace_the_ids(folders, tmp_path):
  path = shutil.copytree(folders["all"], tmp_path / "copy")
  np.save(path / "candidate_ids.npy", INTEGERS)
  folder = scann_folder.ScannFolder.load(path)
  assert folder.search(QUERIES[0], 1)[0] == STRINGS[_expected(0, 1)[0][0]]


def test_incompatible_folders_are_refused(folders, tmp_path):
  path = shutil.copytree(folders["all"], tmp_path / "copy")
  settings = msgspec.json.decode(
    (path / "settings.json").read_bytes(), type=scann_folder.Settings
  )

  def fails(message, **changes):
    changed = json_files.seal(msgspec.structs.replace(settings, **changes))
    json_files.write(path / "settings.json", changed)
    with pytest.raises(errors.DataError, match=message):
      scann_folder.ScannFolder.load(path)

  fails("ScaNN 1.0.0, found .*'scann==1.0.0'", scann="1.0.0")
  fails(rf"\({SIZE}, {DIM}\).* says \({SIZE - 1}, {DIM}\)", size=SIZE - 1)
  # As older versions wrote it.
  old = {"size": SIZE, "dim": DIM, "scann": "1.4.2", "exact": False}
  (path / "settings.json").write_text(json.dumps(old))
  with pytest.raises(errors.DataError, match="field format.*export the bundle"):
    scann_folder.ScannFolder.load(path)


WITHOUT_TENSORFLOW = """
import json, sys
sys.modules["tensorflow"] = None
import numpy as np
from xir_tfrs.serving import scann_folder
folder = scann_folder.ScannFolder.load(sys.argv[1])
queries = np.array(json.loads(sys.argv[2]), np.float32)
ids, scores = folder.search(queries, 4)
print(json.dumps({
  "ids": ids.tolist(),
  "modules": sorted(x for x in sys.modules if x.split(".")[0] in
                    ("absl", "scann", "tf_keras", "keras")),
}))
"""


@pytest.mark.parametrize("name", ["exact", "all"])
def test_without_tensorflow(folders, tmp_path, name):
  # Moved, and with a pickle, which ScaNN's own reader would execute.
  path = shutil.copytree(folders[name], tmp_path / "moved")
  if name == "all":
    (path / "searcher" / "scann_docids.pkl").write_bytes(b"not a pickle")
  done = subprocess.run(
    [sys.executable, "-c", WITHOUT_TENSORFLOW, path, str(QUERIES.tolist())],
    cwd=ROOT,
    capture_output=True,
    encoding="utf-8",
    timeout=120,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  found = json.loads(done.stdout)
  assert found["modules"] == []
  assert found["ids"] == [
    [STRINGS[row] for row in _expected(i, 4)[0]] for i in range(len(QUERIES))
  ]


def test_folder_of_a_bundle(world, exported):
  folder = scann_folder.ScannFolder.load(exported / "scann_folder")
  leave_out = world.ranking(2)[:2]
  ids, _ = folder.search(
    world.query_vectors[:3].astype(np.float32), 5, [[], [], leave_out]
  )
  assert ids[0].tolist() == world.ranking(0)[:5]
  assert ids[2].tolist() == world.ranking(2)[2:7]
