"""ScaNN's own files, searched without TensorFlow, against plain NumPy."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

import xir_tfrs as xir
from xir_tfrs.data import errors
from xir_tfrs.data import id_lists as string_list
from xir_tfrs.serving import scann_folder

ROOT = pathlib.Path(__file__).parents[2]
SIZE, DIM = 2000, 8


def _vectors():
  """Clustered: what ScaNN is good at."""
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
  path.mkdir(parents=True)
  index = xir.indexes.ScannIndex(**settings).index(ids, VECTORS)
  index.save_folder(path)
  if not isinstance(ids, np.ndarray):
    ids = [x.encode() for x in ids]
  string_list.save_ids(path / "candidate_ids", ids)
  return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  root = tmp_path_factory.mktemp("folders")
  return {
    "exact": _write(root / "exact", STRINGS),
    # All leaves are searched, and all candidates scored again: it finds all.
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
  # The best ones are left out, by lists of different lengths.
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


def test_approximate_answers_are_real_and_complete(folders):
  """One leaf of 40: it misses some, but no answer is wrong or lacking."""
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
      if k > 40:  # More than the one leaf holds, so scored exactly.
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
    ((QUERIES[:, :-1], 3), r"`queries` must be \[n, 8\] or \[8\]"),
    ((QUERIES[np.newaxis], 3), "`queries` must be"),
    ((QUERIES, 0), "`k` must be a positive integer"),
    ((QUERIES, 2.5), "`k` must be a positive integer"),
    ((QUERIES, 3, [["a"]]), "1 lists for 6 queries"),
    ((QUERIES, 3, ["a"] * 6), "must hold lists of ids"),
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


@pytest.mark.parametrize("how", ["missing", "cut"])
@pytest.mark.parametrize("name", _names())
def test_broken_files_are_named(folders, tmp_path, name, how):
  path = shutil.copytree(folders["all"], tmp_path / "copy")
  if how == "missing":
    (path / name).unlink()
  else:
    os.truncate(path / name, (path / name).stat().st_size * 2 // 3)
  before = sorted(path.rglob("*"))
  with pytest.raises(errors.DataError) as raised:
    scann_folder.ScannFolder.load(path)
  # ScaNN's list may still be readable, but not say all there is.
  expected = "searcher" if name.endswith("pbtxt") else os.path.basename(name)
  assert expected in str(raised.value)
  assert "export" in str(raised.value)
  assert sorted(path.rglob("*")) == before


def test_files_that_do_not_fit(folders, tmp_path):
  path = shutil.copytree(folders["all"], tmp_path / "copy")

  def change(**settings):
    file = path / "settings.json"
    known = json.loads((folders["all"] / "settings.json").read_text())
    known |= settings
    file.write_text(
      json.dumps({k: v for k, v in known.items() if v is not None})
    )

  def fails(message):
    with pytest.raises(errors.DataError, match=message):
      scann_folder.ScannFolder.load(path)

  change(scann="1.0.0")
  fails("written with ScaNN 1.0.0, found .*'scann==1.0.0'")
  change(size=SIZE - 1)
  fails(
    rf"\({SIZE}, {DIM}\), settings.json says float32 of \({SIZE - 1}, {DIM}\)"
  )
  change(max_fetch=None)
  fails("does not say max_fetch")
  change()
  string_list.save(path / "candidate_ids", [b"a", b"b"])
  fails(f"not those of {SIZE} candidates")
  np.save(path / "candidate_ids.npy", INTEGERS[1:])
  fails(f"not those of {SIZE} candidates")
  np.save(path / "candidate_ids.npy", INTEGERS)
  assert scann_folder.ScannFolder.load(path).size == SIZE


WITHOUT_TENSORFLOW = """
import json, sys
sys.modules["tensorflow"] = None
import numpy as np
from export import scann_folder
folder = scann_folder.ScannFolder.load(sys.argv[1])
queries = np.array(json.loads(sys.argv[2]), np.float32)
ids, scores = folder.search(queries, 4)
print(json.dumps({
  "ids": ids.tolist(),
  "modules": sorted(x for x in sys.modules if x.split(".")[0] in
                    ("xir_tfrs", "absl", "scann", "tf_keras", "keras")),
}))
"""


@pytest.mark.parametrize("name", ["exact", "all"])
def test_without_tensorflow(folders, tmp_path, name):
  # Moved, and with a pickle beside: ScaNN's own reader would run it.
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
