"""Verification: a valid bundle passes, and each check finds its fault."""

import json
import shutil
import types

import msgspec
import numpy as np
import pytest
import tensorflow as tf

from export.bundle import (
  checks,
  encoders,
  refreshing,
  signatures,
  verifying,
  write,
)
from export.bundle import corpus as corpora
from tests import program
from xir_tfrs import indexes
from xir_tfrs.data import errors
from xir_tfrs.serving import bundle
from xir_tfrs.serving import manifest as manifests


def _sign(directory, **changes):
  """Updates the manifest for the files, with `changes`."""
  about = msgspec.structs.asdict(manifests.load(directory)) | changes
  (directory / manifests.FILE_NAME).unlink()
  return manifests.save(directory, about)


@pytest.fixture(scope="session")
def plain(exported, tmp_path_factory):
  """The bundle without ScaNN: faster to check."""
  directory = tmp_path_factory.mktemp("plain") / "bundle"
  parts = shutil.ignore_patterns("scann", "scann_folder", "*.png")
  shutil.copytree(exported, directory, ignore=parts)
  manifest = manifests.load(directory)
  del manifest.indexes["scann"], manifest.signatures["scann"]
  _sign(directory, indexes=manifest.indexes, signatures=manifest.signatures)
  return directory


@pytest.fixture
def copy(plain, tmp_path):
  shutil.copytree(plain, tmp_path / "bundle")
  return tmp_path / "bundle"


@pytest.fixture
def without_models(monkeypatch):
  monkeypatch.setattr(verifying, "_part", lambda *_: "")
  monkeypatch.setattr(verifying, "_index_checks", lambda *_: iter(()))


def _failed(results) -> dict[str, str]:
  return {x.name: x.detail for x in results if not x.ok}


def test_whole_bundle_passes(exported):
  results = list(verifying.verify(exported, queries=30, k=5))
  assert _failed(results) == {}
  names = [x.name for x in results]
  assert names[:6] == [
    *("manifest", "files", "nothing else", "versions", "towers", "lists")
  ]
  for index in ("scann", "brute_force"):
    assert {f"{index}: {title}" for title in checks.CHECKS} <= {*names}
  assert names[-1] == "scann_folder"


def test_program_prints_every_check(copy):
  path = copy / "brute_force" / "saved_model.pb"
  path.write_bytes(path.read_bytes()[:-1] + b"\0")
  table, as_json = (
    program.run("export.verify", "--bundle", copy, *more)
    for more in ([], ["--json"])
  )
  assert table.returncode == as_json.returncode == 1
  lines = table.stdout.splitlines()
  results = json.loads(as_json.stdout)
  assert len(lines) == len(results) == 5  # Damaged files are not loaded.
  assert lines[0].split()[:2] == ["manifest", "ok"]
  assert lines[1].startswith("files") and "FAILED: " in lines[1]
  assert results[1]["ok"] is False and "saved_model.pb" in results[1]["detail"]
  assert [x["ok"] for x in results].count(False) == 1


def test_a_missing_bundle_fails_one_check(tmp_path):
  results = list(verifying.verify(tmp_path))
  assert [x.name for x in results] == ["manifest"]
  assert "is not a bundle" in results[0].detail


def _truncate(directory):
  path = directory / "lists" / "seen_candidates.npy"
  path.write_bytes(path.read_bytes()[:-8])
  return {"files": "seen_candidates.npy"}


def _change_byte(directory):
  path = next((directory / "query_tower" / "variables").glob("*.data*"))
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)
  return {"files": path.name, "towers": "query_tower: is not the tower"}


def _add_file(directory):
  (directory / "brute_force" / "assets" / "note").write_text("")
  return {"nothing else": "assets/note"}


def _add_link(directory):
  (directory / "link").symlink_to(directory / "lists")
  return {"nothing else": "link"}


def _other_tower(directory):
  towers = manifests.load(directory).tower_sha256
  _sign(directory, tower_sha256=towers | {"candidate": towers["query"]})
  return {"towers": "candidate_tower: is not the tower"}


def _newer_tensorflow(directory):
  versions = manifests.load(directory).versions
  _sign(directory, versions=versions | {"tensorflow": "2.99.0"})
  return {"versions": "2.99.0"}


@pytest.mark.parametrize(
  "damage",
  [
    _truncate,
    _change_byte,
    _add_file,
    _add_link,
    _other_tower,
    _newer_tensorflow,
  ],
)
def test_damaged_files_are_found(copy, without_models, damage):
  (copy / "brute_force" / "assets").mkdir(exist_ok=True)
  assert _failed(list(verifying.verify(copy))) == {}
  expected = damage(copy)
  failed = _failed(list(verifying.verify(copy)))
  assert failed.keys() == expected.keys()
  for name, part in expected.items():
    assert part in failed[name]


def test_other_scann_version_is_found(exported, tmp_path, without_models):
  directory = tmp_path / "bundle"
  shutil.copytree(exported, directory)
  versions = manifests.load(directory).versions
  _sign(directory, versions=versions | {"scann": "1.0"})
  assert _failed(list(verifying.verify(directory))).keys() == {"versions"}


def _save(directory, name, values):
  np.save(directory / "lists" / f"{name}.npy", values)


@pytest.mark.parametrize(
  ("name", "change", "expected"),
  [
    ("candidate_counts", lambda x: x[1:], "count per candidate"),
    ("candidate_counts", lambda x: x - x.max() - 1, "count per candidate"),
    ("seen_row_splits", lambda x: x[:-1], "row splits"),
    ("seen_row_splits", lambda x: x[::-1], "row splits"),
    ("seen_candidates", lambda x: x + 300, "not rows"),
    ("seen_candidates", lambda x: x - 300, "not rows"),
    ("candidate_ids.offsets", lambda x: x[:-1], "299 candidate ids"),
    ("candidate_ids.data", lambda x: x * 0 + ord("a"), "appears twice"),
    ("candidate_ids.offsets", lambda x: np.maximum(x, x[1]), "empty candidate"),
  ],
)
def test_damaged_lists_are_found(copy, without_models, name, change, expected):
  path = copy / "lists" / f"{name}.npy"
  np.save(path, change(np.load(path)))
  _sign(copy)
  failed = _failed(list(verifying.verify(copy)))
  assert failed.keys() == {"lists"}
  assert expected in failed["lists"]


def test_other_features_are_found(copy, without_models):
  path = copy / "lists" / "features.json"
  described = json.loads(path.read_text())
  described["candidate"][2]["kind"] = "token"
  path.write_text(json.dumps(described))
  _sign(copy)
  assert (
    "other candidate features" in _failed(list(verifying.verify(copy)))["lists"]
  )


def test_other_signatures_and_mixed_lists_are_found(copy):
  """Two faults in one bundle, which only show in loaded models."""
  path = copy / "lists" / "candidate_ids.data.npy"
  data = np.load(path).tobytes()
  first, second = b"item 10", b"item 20"
  swapped = data.replace(first, b"\0" * 7, 1)
  swapped = swapped.replace(second, first, 1).replace(b"\0" * 7, second, 1)
  np.save(path, np.frombuffer(swapped, np.uint8))
  signatures = manifests.load(copy).signatures
  del signatures["brute_force"]["search"]["inputs"]["allow_ids"]
  signatures["query_tower"]["encode_query"]["outputs"]["row"]["shape"] = []
  _sign(copy, signatures=signatures)
  failed = _failed(list(verifying.verify(copy)))
  assert "signature 'search'" in failed.pop("brute_force")
  assert "signature 'encode_query'" in failed.pop("query_tower")
  assert "do not match" in failed["brute_force: ids"]
  assert all(name.startswith("brute_force: ") for name in failed)


def test_vectors_that_are_not_finite_are_found(plain, tmp_path, monkeypatch):
  old = bundle.Bundle.load(plain)
  corpus = corpora.of_bundle(old)
  index = indexes.BruteForceIndex().index(corpus.ids, corpus.vectors)
  vectors = corpus.vectors.copy()
  vectors[7, 2] = np.nan
  index.vectors.assign(vectors)
  # The fold-in cannot be fitted to such vectors, so it is replaced.
  monkeypatch.setattr(
    signatures.fold_in,
    "catalogue",
    lambda vectors, ridge: (
      tf.zeros(vectors.shape[1]),
      tf.eye(vectors.shape[1]),
    ),
  )
  tower = encoders.LoadedEncoder(
    plain / "candidate_tower", "candidate", old.candidate_features
  )
  contents = refreshing._contents(
    old,
    corpus,
    encoders.LoadedEncoder(plain / "query_tower", "query"),
    tower,
    {"brute_force": index},
    {"brute_force": manifests.Index(kind="exact")},
  )
  with manifests.new_bundle(tmp_path / "nan", overwrite=False) as directory:
    write.write_bundle(directory, contents, about={})
  failed = _failed(list(verifying.verify(tmp_path / "nan", queries=20)))
  assert "1 vectors are not finite" in failed["brute_force: vectors"]
  assert "item 7" in failed["brute_force: vectors"]


class FakeBundle:
  """A bundle in NumPy with one fault."""

  index = "scann"
  titles = None
  takes_times = True

  def __init__(self, fault="", integers=False, unknown_query="popularity"):
    rng = np.random.default_rng(5)
    self.fault = fault
    self.integers = integers
    self.candidate_ids = np.array([str(i) for i in range(60)], object)
    self.query_ids = np.array([f"q{i}" for i in range(9)], object)
    if integers:
      self.candidate_ids = np.arange(60, dtype=np.int64)
      self.query_ids = np.arange(100, 109, dtype=np.int64)
    self._ids = list(map(str, self.candidate_ids))
    self.vectors = rng.normal(size=(60, 4)).astype(np.float32)
    self._queries = rng.normal(size=(10, 4)).astype(np.float32)
    self.counts = rng.integers(0, 9, 60)
    seen = rng.integers(0, 60, [9, 3]).astype(np.int32)
    seen[:, 0] = np.argmax(self._queries[:9] @ self.vectors.T, axis=1)
    self.seen = (3 * np.arange(10), seen.ravel())
    self.manifest = types.SimpleNamespace(
      num_candidates=60,
      dim=4,
      history_length=4,
      max_k=100,
      id_types=manifests.IdTypes("string", "int64" if integers else "string"),
      unknown_query=unknown_query,
      indexes={"scann": manifests.Index(kind="scann", recall={"5": 0.99})},
    )
    if fault == "a vector is not finite":
      self.vectors[7, 1] = np.inf
    if fault == "a query is not finite":
      self._queries[:] = np.nan
    if fault == "too few vectors":
      self.manifest.num_candidates = 61
    self.signatures = {"search": self._signature, "recommend_session": None}

  def encode_queries(
    self, ids=None, history=None, history_times=None, time=None
  ):
    if ids is None:
      queries = self._fitted(history)
      if self.fault == "a time has no vector" and time is not None:
        return queries * np.nan
      if self.fault == "any time counts" and history_times is not None:
        return queries + 1
      return queries
    known = list(self.query_ids)
    return self._queries[[known.index(x) if x in known else 9 for x in ids]]

  def _fitted(self, history):
    """The mean of the candidates in each list."""
    of = dict(zip(self._ids, self.vectors, strict=True))
    if self.fault == "padding counts":
      of |= {"": self.vectors[0], "-1": self.vectors[0]}
    if self.fault == "a history has no vector":
      return np.full([len(history), 4], np.nan)
    return np.array(
      [
        np.mean([of[x] for x in map(str, row) if x in of], axis=0)
        for row in history
      ]
    )

  def _recommend_session(self, history, k):
    nobody = np.zeros(len(history), bool)
    lists = [list(map(str, row)) for row in history]
    if self.fault == "history comes back":
      lists = [[] for _ in lists]
    queries = self._fitted(history)
    if self.fault == "histories are mixed up":
      queries = np.roll(queries, 1, axis=0)
    found = self._search(queries, k, lists, [[]] * len(lists))
    popular = nobody | (self.fault == "histories are unknown")
    return bundle.Recommendations(
      found[0], found[1], nobody, found[2], popular, ~nobody
    )

  def recommend(
    self,
    query_ids=None,
    history=None,
    k=10,
    exclude_ids=None,
    exclude_seen=False,
    exclude_history=False,
  ):
    if exclude_history:
      return self._recommend_session(history, k)
    known = np.array([x in list(self.query_ids) for x in query_ids])
    lists = [list(map(str, x)) for x in exclude_ids or [[]] * len(query_ids)]
    if exclude_seen and self.fault != "seen comes back":
      for query, ids in zip(query_ids, lists, strict=True):
        row = list(self.query_ids).index(query)
        ids += [self._ids[i] for i in self.seen[1][3 * row : 3 * row + 3]]
    vectors, queries = self.vectors, self.encode_queries(query_ids)
    popular = ~known & (self.manifest.unknown_query == "popularity")
    if popular.any():
      vectors, queries = self.counts[:, None], np.ones([len(known), 1])
      if self.fault == "unknown query gets others":
        queries = -queries
    if self.fault == "excluded popular comes back":
      lists = [[] for _ in lists]
    if self.fault == "unknown query is known":
      known[:] = True
    found = self._search(queries, k, lists, [[]] * len(known), vectors)
    return bundle.Recommendations(
      found[0], found[1], known, found[2], popular, np.zeros(len(known), int)
    )

  def similar_items(self, ids, k):
    rows = [self._ids.index(str(x)) if str(x) in self._ids else -1 for x in ids]
    itself = [[str(x)] for x in ids]
    if self.fault == "similar to itself":
      itself = [[]] * len(ids)
    found = self._search(self.vectors[rows], k, itself, [[]] * len(ids))
    if self.fault != "unknown item has answers":
      for row, (names, scores) in enumerate(zip(*found[:2], strict=True)):
        if rows[row] < 0:
          names[:], scores[:] = self._padding, -np.inf
          found[2][row] = 0
    if self.fault == "other scores of similar items":
      found[1][:] *= 1.01
    return bundle.SimilarItems(*found)

  def _signature(self, query_embeddings, k, exclude_ids, allow_ids):
    if k > self.manifest.max_k and self.fault != "any k":
      raise tf.errors.InvalidArgumentError(None, None, "too many")
    exclude, allow = (
      [[x for x in map(_text, row) if x not in ("", "-1")] for row in x.numpy()]
      for x in (exclude_ids, allow_ids)
    )
    queries = query_embeddings.numpy()
    ids, scores, found = self._search(queries, int(k), exclude, allow)
    dtype = tf.int64 if self.integers else tf.string
    return {
      "candidate_ids": tf.constant(ids.tolist(), dtype, ids.shape),
      "scores": tf.constant(scores),
      "num_found": tf.constant(found, tf.int32),
    }

  @property
  def _padding(self):
    return -1 if self.integers else ""

  def _search(self, queries, k, exclude, allow, vectors=None):
    fault = self.fault
    vectors = self.vectors if vectors is None else vectors
    ids = np.full([len(queries), k], self._padding, object)
    scores = np.full([len(queries), k], -np.inf, np.float32)
    found = np.zeros(len(queries), np.int32)
    if fault == "rows are mixed up":
      vectors = np.roll(vectors, 1, axis=0)
    for i, query in enumerate(queries):
      exact = vectors @ query
      rows = np.argsort(-exact, kind="stable").tolist()
      if fault == "low recall" and not allow[i] and not exclude[i]:
        del rows[0]
      if fault == "an id is missing":
        rows.remove(33)
      if allow[i] and fault != "allow lists do nothing":
        rows = [row for row in rows if self._ids[row] in allow[i]] or (
          rows if fault == "unknown allow lists do nothing" else []
        )
      if fault != "exclusions do nothing":
        rows = [row for row in rows if self._ids[row] not in exclude[i]]
      if fault == "too few after exclusions" and exclude[i]:
        del rows[2:]
      if fault == "repeats":
        rows = rows[:1] + rows
      rows = rows[:k]
      if fault == "out of order":
        rows.reverse()
      answer = [self.candidate_ids[row] for row in rows]
      if fault == "an id is not listed":
        answer[:1] = [77 if self.integers else "strange"]
      ids[i, : len(rows)] = answer
      scores[i, : len(rows)] = exact[rows]
      found[i] = len(rows) - (fault == "wrong num_found")
    if self.integers:
      ids = ids.astype(np.int64)
    return ids, scores, found


def _text(value) -> str:
  return value.decode() if isinstance(value, bytes) else str(value)


@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("unknown_query", ["popularity", "tower"])
def test_checks_pass_without_a_fault(integers, unknown_query):
  fake = FakeBundle("", integers, unknown_query)
  probe = checks.Probe(fake, num_queries=9, k=5)
  for check in checks.CHECKS.values():
    assert check(probe)
  assert checks.answers(probe) == "recall@5 1.0000 on 9 queries"


@pytest.mark.parametrize(
  ("fault", "check", "expected"),
  [
    ("a vector is not finite", "vectors", "1 vectors are not finite.*'7'"),
    ("a query is not finite", "vectors", "9 queries are not finite"),
    ("too few vectors", "vectors", r"\(60, 4\).* \(61, 4\)"),
    ("an id is missing", "ids", "does not have '33'"),
    ("rows are mixed up", "ids", "do not match"),
    ("an id is not listed", "answers", "'strange', which is not in lists"),
    ("rows are mixed up", "answers", "do not match"),
    ("repeats", "answers", "twice"),
    ("out of order", "answers", "order of their scores"),
    ("wrong num_found", "answers", "num_found"),
    ("exclusions do nothing", "exclusions", "was excluded but returned"),
    ("too few after exclusions", "exclusions", "2 answers, but 55 .* left"),
    ("allow lists do nothing", "allowed only", "do not match the allow list"),
    ("unknown allow lists do nothing", "allowed only", "unknown ids"),
    ("seen comes back", "seen left out", "has seen .* but got it"),
    ("similar to itself", "similar items", "among its own answers"),
    ("unknown item has answers", "similar items", "unknown id has answers"),
    ("other scores of similar items", "similar items", "do not match the vec"),
    ("unknown query is known", "unknown query", "treated as a known"),
    ("unknown query gets others", "unknown query", "highest counts"),
    ("excluded popular comes back", "unknown query", "excluded popular"),
    ("a history has no vector", "sessions", "not finite"),
    ("histories are unknown", "sessions", "histories are unknown"),
    ("histories are mixed up", "sessions", "do not match"),
    ("history comes back", "sessions", "is in a history but returned"),
    ("padding counts", "sessions", "changes a history"),
    ("a time has no vector", "times", "with times is not finite"),
    ("any time counts", "times", "although a time is unknown"),
    ("any k", "limits of k", "k = 101 gets an answer"),
  ],
)
def test_faults_are_found_by_their_check(fault, check, expected):
  probe = checks.Probe(FakeBundle(fault), num_queries=9, k=5)
  with pytest.raises(errors.DataError, match=expected):
    checks.CHECKS[check](probe)


def test_recall_below_the_promise_is_found_unless_less_is_asked():
  # Never finds the best candidate: recall is 1/2 at 2, 4/5 at 5.
  fake = FakeBundle("low recall")
  fake.manifest.indexes["scann"].recall["2"] = 0.99
  with pytest.raises(errors.DataError, match="0.5000 on 9 .* least 0.67"):
    checks.answers(checks.Probe(fake, 9, 2))
  with pytest.raises(errors.DataError, match="must be at least 0.9500"):
    checks.answers(checks.Probe(fake, 9, 5, min_recall=0.95))
  assert checks.answers(checks.Probe(fake, 9, 5, min_recall=0.79))
  fake.manifest.indexes["scann"].recall["5"] = 0.7
  assert checks.answers(checks.Probe(fake, 9, 5))
  fake.manifest.indexes["scann"] = manifests.Index(kind="exact")
  with pytest.raises(errors.DataError, match="must be at least 1.0000"):
    checks.answers(checks.Probe(fake, 9, 5))
