"""Refreshing a bundle with new, changed and removed items."""

import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys
import time
import types

import msgspec
import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from pyarrow import parquet

from export import refresh
from export.bundle import corpus as corpora
from export.bundle import encoders, new_items, refreshing, write
from tests import program
from xir_tfrs import indexes
from xir_tfrs.data import errors, runs
from xir_tfrs.programs import settings
from xir_tfrs.serving import bundle, features
from xir_tfrs.serving import manifest as manifests

ROOT = pathlib.Path(__file__).parents[2]
CSV = """\
sku,note,Name,tag,words,price,blurb,place
neu 1,x,A new one,a,w x,1.5,"Blurb, NEW!",0.5 -1
neü 2,x,,zz,w ü q,-3,ünheard,0 0.25
item 3,x,No. 3,b,y,0.125,of 3,2 2
neu 3,x,Neü,,,,,
"""
# The same as inputs of the tower: tokens are codes, 0 is unknown, and words of
# texts are hashed.
ROWS = [-1, -1, 3]
CODES = {
  "tag": [1, 0, 2],
  "words": [[1, 2], [1, 0, 0], [3]],
  "price": [1.5, -3.0, 0.125],
  "blurb": [["blurb", "new", "blurb new"], ["ünheard"], ["of", "3", "of 3"]],
  "place": [[0.5, -1.0], [0.0, 0.25], [2.0, 2.0]],
}
GONE = ("item 0", "item 7", "item 299")


@dataclasses.dataclass
class Refreshed:
  """A refreshed bundle and its expected answers."""

  directory: pathlib.Path
  about: dict
  ids: list[str]
  vectors: np.ndarray


def _items_of(directory, text=CSV):
  path = directory / "items.csv"
  path.write_text(text, encoding="utf-8")
  return str(path)


def _removals(directory, ids):
  path = directory / "gone.txt"
  path.write_text("\n".join(ids) + "\n", encoding="utf-8")
  return str(path)


@pytest.fixture(scope="module")
def encoded(world):
  """Vectors of the first three rows of CSV, from the trained model."""
  model = runs.load_model(world.model_dir)[0]
  given = {
    "tag": tf.constant(CODES["tag"]),
    "words": tf.ragged.constant(CODES["words"], dtype=tf.int32),
    "price": tf.constant(CODES["price"]),
    "blurb": tf.keras.layers.Hashing(50, mask_value="")(
      tf.ragged.constant(CODES["blurb"])
    ),
    "place": tf.constant(CODES["place"]),
  }
  rows = tf.constant(ROWS, tf.int64)
  return model.encode_candidates(rows, given).numpy()


@pytest.fixture(scope="module")
def refreshed(world, exported, encoded, tmp_path_factory):
  """A refresh of both indexes, with verification."""
  folder = tmp_path_factory.mktemp("refreshed")
  shutil.copytree(exported, folder / "bundle")
  about = refreshing.refresh(
    refresh.RefreshOptions(
      bundle=str(folder / "bundle"),
      items=_items_of(folder),
      remove=_removals(folder, [*GONE, "nobody"]),
    )
  )
  vectors = world.candidate_vectors.copy()
  vectors[3] = encoded[2]
  keep = [i for i, x in enumerate(world.candidate_ids) if x not in GONE]
  return Refreshed(
    directory=folder / "bundle",
    about=about,
    ids=[world.candidate_ids[i] for i in keep] + ["neu 1", "neü 2"],
    vectors=np.concatenate([vectors[keep], encoded[:2]]),
  )


@pytest.fixture(scope="module")
def answering(refreshed):
  """The loaded bundles, by index."""
  names = ("scann", "brute_force")
  return {x: bundle.Bundle.load(refreshed.directory, x) for x in names}


@pytest.fixture
def plain(exported, tmp_path):
  """A copy of the bundle without ScaNN: faster to build."""
  directory = tmp_path / "bundle"
  parts = shutil.ignore_patterns("scann", "scann_folder", "*.png")
  shutil.copytree(exported, directory, ignore=parts)
  manifest = manifests.load(directory)
  del manifest.indexes["scann"], manifest.signatures["scann"]
  (directory / manifests.FILE_NAME).unlink()
  manifests.save(directory, msgspec.structs.asdict(manifest))
  return directory


@pytest.mark.parametrize("index", ["scann", "brute_force"])
def test_answers_are_those_of_numpy(world, refreshed, answering, index):
  loaded = answering[index]
  assert list(loaded.candidate_ids) == refreshed.ids
  np.testing.assert_allclose(loaded.vectors, refreshed.vectors, atol=1e-5)
  # Queries without training rows get the most popular candidates.
  known = [q for q, seen in enumerate(world.seen) if seen]
  exact = world.query_vectors[known] @ refreshed.vectors.T
  order = np.argsort(-exact, axis=1, kind="stable")
  found = loaded.recommend(
    [world.query_ids[q] for q in known], k=len(refreshed.ids) + 1
  )
  expected = np.array(refreshed.ids, object)[order]
  # Candidates with nearly equal scores may swap.
  scores = np.take_along_axis(exact, order, axis=1)
  np.testing.assert_allclose(found.scores[:, :-1], scores, atol=1e-4)
  same = found.ids[:, :-1] == expected
  close = np.abs(np.diff(scores, axis=1)) < 1e-4
  assert (same[:, 1:-1] | close[:, :-1] | close[:, 1:]).all()
  assert same.mean() > 0.95
  assert (found.ids[:, -1] == "").all()
  new = {"neu 1", "neü 2", "item 3"}
  assert all(new <= {*row} for row in found.ids)


def test_titles_follow_their_items(world, refreshed, answering):
  named = {"neu 1": "A new one", "neü 2": "", "item 3": "No. 3"}
  expected = [
    named[name] if name in named else world.title_of(name)
    for name in refreshed.ids
  ]
  for loaded in answering.values():
    assert list(loaded.titles) == expected
    assert loaded.title("item 0") == loaded.title("nobody") == ""
    found = loaded.similar_items(["item 3"], 300)
    title = dict(zip(refreshed.ids, expected, strict=True)) | {"": ""}
    assert found.titles[0].tolist() == [title[x] for x in found.ids[0]]


def test_removed_candidates_never_come_back(world, refreshed, answering):
  for loaded in answering.values():
    n = len(refreshed.ids)
    answers = (
      loaded.recommend(world.query_ids, k=n).ids,
      loaded.recommend(["nobody"], k=n).ids,
      loaded.similar_items(refreshed.ids, n).ids,
    )
    for ids in answers:
      assert not set(GONE) & set(ids.ravel())
    assert not loaded.similar_items(GONE, 5).num_found.any()
    allowed = loaded.recommend(world.query_ids[:2], k=5, allow_ids=[GONE] * 2)
    assert not allowed.num_found.any()


def test_popularity_has_old_counts_and_none_for_the_new(world, answering):
  found = answering["brute_force"].recommend(["nobody"], k=299)
  counts = dict(zip(world.candidate_ids, world.counts, strict=True))
  expected = [counts.get(name, 0) for name in found.ids[0]]
  assert found.scores[0].tolist() == expected == sorted(expected)[::-1]
  assert {"neu 1", "neü 2"} <= set(found.ids[0])
  assert "neu 3" not in found.ids  # Nothing is known about it.


def test_exclusions_and_seen_are_exact(world, refreshed, answering):
  for loaded in answering.values():
    first = loaded.recommend(world.query_ids, k=8).ids
    exclude = [[*row, "item 0", "neu 1"] for row in first]
    second = loaded.recommend(world.query_ids, k=300, exclude_ids=exclude)
    for before, after in zip(exclude, second.ids, strict=True):
      assert {*after} - {""} == {*refreshed.ids} - {*before}
    unseen = loaded.recommend(world.query_ids, k=300, exclude_seen=True).ids
    for row, seen in zip(unseen, world.seen, strict=True):
      names = {world.candidate_ids[i] for i in seen}
      assert {*row} - {""} == {*refreshed.ids} - names


def test_towers_stay_and_the_report_counts(exported, refreshed):
  for tower in ("query_tower", "candidate_tower"):
    for path in (exported / tower).rglob("*"):
      if path.is_file():
        copied = refreshed.directory / path.relative_to(exported)
        assert copied.read_bytes() == path.read_bytes()
  old, new = map(manifests.load, (exported, refreshed.directory))
  assert new.tower_sha256 == old.tower_sha256
  for name in ("data", "checkpoint", "training", "max_k", "unknown_query"):
    assert getattr(new, name) == getattr(old, name)
  assert new.indexes["scann"].kind == "scann"
  assert new.num_candidates == 299
  (about,) = new.refreshes
  counts = ("added", "changed", "left_out", "removed", "removed_unknown")
  assert [about[name] for name in counts] == [2, 1, 1, 3, 1]
  assert about["unknown_tokens"] == {
    "tag": {"unknown": 1, "tokens": 3},
    "words": {"unknown": 2, "tokens": 6},
  }
  assert about["ignored"] == ["note"]
  assert about["seconds"] == refreshed.about["seconds"] > 0


def _write_atomic(path, found):
  lines = ["item_id:token\ttag:token\twords:token_seq\tblurb:text"]
  lines[0] += "\tprice:float\tplace:float_seq"
  for row, name in enumerate(found.ids):
    numbers = [found.columns["price"][row], *found.columns["place"][row]]
    shown = ["" if np.isnan(x) else repr(float(x)) for x in numbers]
    words = " ".join(found.columns["words"][row])
    place = " ".join(shown[1:])
    lines.append(
      "\t".join(
        [
          *(name, found.columns["tag"][row], words),
          *(found.columns["blurb"][row], shown[0], place),
        ]
      )
    )
  path.write_text("\n".join(lines), encoding="utf-8")


def _write_parquet(path, found):
  columns = {"item_id": found.ids, **found.columns}
  columns["place"] = found.columns["place"].tolist()
  parquet.write_table(pa.table(columns), path)


def _write_tfrecord(path, found):
  with tf.io.TFRecordWriter(str(path)) as writer:
    for row, name in enumerate(found.ids):
      example = tf.train.Example()
      feature = example.features.feature
      texts = {"item_id": [name], "words": found.columns["words"][row]}
      texts |= {x: [found.columns[x][row]] for x in ("tag", "blurb")}
      for key, values in texts.items():
        feature[key].bytes_list.value.extend(x.encode() for x in values)
      feature["price"].float_list.value.append(found.columns["price"][row])
      feature["place"].float_list.value.extend(found.columns["place"][row])
      writer.write(example.SerializeToString())


def test_formats_give_the_same_vectors(
  world, exported, load, encoded, tmp_path
):
  described = manifests.load(exported).candidate_features
  loaded = load(exported, "brute_force")
  tower = encoders.LoadedEncoder(
    exported / "candidate_tower", "candidate", loaded.candidate_features
  )
  found = new_items.read_items(_items_of(tmp_path), described, "sku")
  expected = np.concatenate([encoded, [world.unknown_candidate]])
  for name, write_items in (
    ("a.item", _write_atomic),
    ("a.parquet", _write_parquet),
    ("a.tfrecord", _write_tfrecord),
  ):
    path = tmp_path / name
    write_items(path, found)
    again = new_items.read_items(path, described)
    assert again.ids == found.ids
    for read in (found, again):
      vectors = refreshing.encode(tower, read.ids, read.columns).embedding
      np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_kill_ends_the_verification_and_leaves_the_old_bundle(plain, tmp_path):
  before = (plain / manifests.FILE_NAME).read_bytes()
  process = subprocess.Popen(
    [sys.executable, "-m", "export.refresh", "--bundle", plain]
    + ["--items", _items_of(tmp_path)],
    cwd=ROOT,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
    start_new_session=True,
  )
  deadline = time.monotonic() + 120
  children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
  written = f".bundle.partial-*/{manifests.FILE_NAME}"
  # Libraries also start short-lived children when they are imported.
  while not (list(tmp_path.glob(written)) and children.read_text()):
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.05)
  process.kill()
  process.wait()
  # The verification is the last process in the session of the refresh.
  with pytest.raises(ProcessLookupError):
    while time.monotonic() < deadline:
      os.killpg(process.pid, 0)
      time.sleep(0.05)
  assert list(tmp_path.glob(".bundle.partial-*"))
  assert (plain / manifests.FILE_NAME).read_bytes() == before
  manifests.check_files(plain, manifests.load(plain))


def test_settings_of_the_index_are_those_of_the_export(monkeypatch):
  asked = []
  monkeypatch.setattr(
    refreshing.indexing,
    "build_indexes",
    lambda settings, *others: asked.append(settings),
  )
  given = {"num_leaves": 5, "num_reorder": 7, "min_recall": 0.5}
  scann = manifests.Index(kind="scann", given=given, target_recall=0.9)
  old = types.SimpleNamespace(
    manifest=types.SimpleNamespace(
      indexes={"scann": scann},
      id_types=types.SimpleNamespace(candidate="int64"),
    ),
    seen=(np.array([0, 1]),),
    query_ids=["u"],
    encode_queries=lambda ids: np.ones([len(ids), 2]),
  )
  corpus = types.SimpleNamespace(ids=[4, 6, 8], vectors=np.ones([3, 2]))
  options = refresh.RefreshOptions(bundle="b", remove="gone.txt")
  refreshing._build(options, old, corpus)
  built = asked[0]
  assert (built.num_leaves, built.num_reorder, built.exact_below) == (3, 7, 0)
  assert (built.target_recall, built.min_recall) == (0.9, 0.5)
  # A new target is also the least, as in the export.
  options = dataclasses.replace(options, target_recall=0.8)
  refreshing._build(options, old, corpus)
  assert (asked[1].target_recall, asked[1].min_recall) == (0.8, None)


def test_removed_candidates_come_back_with_what_was_known():
  rng = np.random.default_rng(3)
  ids = [f"i{i}" for i in range(20)]
  counts = rng.integers(1, 9, 20)
  pairs = {(q, f"i{i}") for q in range(6) for i in rng.choice(20, 7, False)}
  listed = [sorted(int(i[1:]) for q, i in pairs if q == u) for u in range(6)]
  old = corpora.Corpus(
    ids,
    rng.normal(size=(20, 2)).astype("f"),
    counts,
    (np.arange(0, 43, 7), np.concatenate(listed).astype(np.int32)),
    [f"title {i}" for i in ids],
  )
  live, count_of = list(ids), dict(zip(ids, counts.tolist(), strict=True))
  for add, gone in (
    ([], {"i3", "i4", "i0"}),
    (["new", "i4", "i9"], {"i7"}),
    (["i0"], {"new", "i4"}),
    (["new", "i3", "i4", "i7"], set()),
  ):
    old, _ = corpora.change(old, add, np.ones([len(add), 2], "f"), gone)
    live = [x for x in live if x not in gone]
    live += [x for x in add if x not in live]
    assert old.ids == live
    assert old.counts.tolist() == [count_of.get(x, 0) for x in live]
    # The title of an item without training rows is forgotten.
    assert old.titles == [f"title {x}" if x != "new" else "" for x in live]
    splits, rows = old.seen
    for query in range(6):
      seen = rows[splits[query] : splits[query + 1]].tolist()
      assert seen == sorted(seen)
      expected = {i for q, i in pairs if q == query and i in live}
      assert {live[row] for row in seen} == expected
    away = [x for x in ids if x not in live]
    assert sorted(old.removed.ids if old.removed else []) == sorted(away)


def test_another_tower_is_refused(plain, tmp_path):
  options = refresh.RefreshOptions(bundle=str(plain), items=_items_of(tmp_path))
  path = next((plain / "candidate_tower" / "variables").glob("*.data*"))
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)
  with pytest.raises(errors.DataError, match="candidate_tower: is not the"):
    refreshing.refresh(options)


def test_failed_verification_keeps_the_old_bundle(plain, tmp_path, monkeypatch):
  before = (plain / manifests.FILE_NAME).read_bytes()
  check = refreshing._verify
  # Other tests verify in a process, as a refresh does.
  monkeypatch.setattr(
    refreshing,
    "_run_while_alive",
    lambda arguments, _: program.run("export.verify", *arguments),
  )

  def damage_first(directory):
    (directory / "lists" / "candidate_counts.npy").write_bytes(b"")
    check(directory)

  monkeypatch.setattr(refreshing, "_verify", damage_first)
  items_file = _items_of(tmp_path)
  with pytest.raises(errors.DataError, match="old one is kept: files: .*holds"):
    refreshing.refresh(
      refresh.RefreshOptions(bundle=str(plain), items=items_file)
    )
  assert (plain / manifests.FILE_NAME).read_bytes() == before
  assert sorted(x.name for x in tmp_path.iterdir()) == ["bundle", "items.csv"]

  def replace_meanwhile(directory, contents, about):
    (plain / manifests.FILE_NAME).write_bytes(before + b"\n")

  monkeypatch.setattr(refreshing, "_verify", lambda directory: None)
  monkeypatch.setattr(write, "write_bundle", replace_meanwhile)
  with pytest.raises(errors.DataError, match="replaced during the refresh"):
    refreshing.refresh(
      refresh.RefreshOptions(bundle=str(plain), items=items_file)
    )


def test_impossible_changes_are_refused_by_name(plain, tmp_path, monkeypatch):
  def fails(expected, **options):
    with pytest.raises(errors.DataError, match=expected):
      refreshing.refresh(refresh.RefreshOptions(bundle=str(plain), **options))

  before = (plain / manifests.FILE_NAME).read_bytes()
  given = _items_of(tmp_path)
  for expected, given_settings in (
    ("give --items or --remove", {}),
    ("--id_column is only used with --items", {"id_column": "x"}),
    ("--separator is only used with --items", {"separator": "|"}),
    ("--overwrite is only used with --output", {"overwrite": True}),
  ):
    with pytest.raises(settings.SettingsError, match=expected):
      removed = {"remove": "x"} if given_settings else {}
      refresh.RefreshOptions(bundle="b", **removed, **given_settings)
  read = refreshing._load(
    refresh.RefreshOptions(bundle=str(plain), items=given)
  )
  monkeypatch.setattr(
    refreshing, "_load", lambda options: read
  )  # Once is enough.
  everything = list(read[0].candidate_ids)
  fails("none of the 1 ids", remove=_removals(tmp_path, ["nobody"]))
  fails("would be removed", remove=_removals(tmp_path, everything))
  fails("is also in", items=given, remove=_removals(tmp_path, ["item 3"]))
  fails("no column 'x'", items=given, id_column="x")
  (tmp_path / "other").mkdir()
  (tmp_path / "other" / "file").touch()
  fails("--target_recall and --min_recall need", items=given, min_recall=0.5)
  fails("not part of a bundle", items=given, output=str(tmp_path / "other"))
  assert (plain / manifests.FILE_NAME).read_bytes() == before


def test_new_items_without_features_are_refused():
  options = refresh.RefreshOptions(bundle="b", items="new.csv")
  known = np.array([True, False, False])

  def check(answerable, features=(), missing=()):
    items = new_items.Items(["a", "b", "c"], {}, missing, ("Brand",))
    tower = types.SimpleNamespace(inputs=features)
    return refreshing._encodable(options, items, tower, answerable).tolist()

  assert check(known | True) == [0, 1, 2]
  assert check(known, ("brand", "price"), ("brand",)) == [0]
  with pytest.raises(errors.DataError, match="'a' and 2 more .* are empty"):
    check(known & False, ("brand", "price"), ("brand",))
  with pytest.raises(errors.DataError, match="new.csv: 'b' and 1 more cannot"):
    check(known)
  with pytest.raises(errors.DataError, match="features brand, but Brand"):
    check(known, ("brand",), ("brand",))


def _table(rng, n):
  """Vectors of n ids; row 0 is that of unknown ids."""
  return tf.Variable(rng.normal(size=[n + 1, 4]), dtype=tf.float32)


@pytest.fixture
def numbered(tmp_path):
  """Integer ids, a query feature, a candidate feature, and a ranker."""
  rng = np.random.default_rng(8)
  queries, candidates = _table(rng, 12), _table(rng, 30)
  query_ids = np.arange(100, 112)
  candidate_ids = np.arange(0, 300, 10)
  tables = [indexes.IdTable(x) for x in (query_ids, candidate_ids)]

  def encode_query(rows, given):
    return tf.gather(queries, rows + 1) * given["age"][:, None]

  def rank(query_rows, candidate_rows):
    return -tf.cast(candidate_rows + query_rows[:, None], tf.float32)

  output = tmp_path / "numbered"
  index = indexes.BruteForceIndex().index(tables[1], candidates[1:])
  contents = write.Contents(
    query_ids=query_ids,
    candidate_counts=np.arange(30),
    seen=(np.arange(13), np.arange(12, dtype=np.int32)),
    query_tower=encoders.TrainedEncoder(
      tables[0],
      np.ones(12),
      encode_query,
      lambda rows: {"age": tf.where(rows >= 0, 1.0, np.nan)},
      [features.FeatureInput("age", "age", "float")],
    ),
    candidate_tower=encoders.TrainedEncoder(
      tables[1],
      np.ones(30),
      lambda rows, _: tf.gather(candidates, rows + 1),
      lambda rows: {"size": tf.where(rows >= 0, 1.0, np.nan)},
      [features.FeatureInput("size", "size", "float")],
    ),
    indexes={"brute_force": index},
    about_indexes={"brute_force": manifests.Index(kind="exact")},
    ranker=encoders.Ranker(*tables, rank),
    max_k=50,
  )
  with manifests.new_bundle(output, overwrite=False) as directory:
    write.write_bundle(directory, contents, about={})
  return output, queries.numpy(), candidates.numpy()


@pytest.mark.slow
def test_two_refreshes_with_integer_ids_and_a_ranker(
  numbered, tmp_path, monkeypatch
):
  directory, queries, candidates = numbered
  before = (directory / manifests.FILE_NAME).read_bytes()
  options = refresh.RefreshOptions(
    bundle=str(directory),
    items=_items_of(tmp_path, "item_id,size\n5,1\n-7,1\n"),
    remove=_removals(tmp_path, ["290", "0", "1"]),
    output=str(tmp_path / "new"),
  )
  with monkeypatch.context() as patched:
    patched.setattr(refreshing, "_verify", lambda directory: None)
    refreshing.refresh(options)
  assert (directory / manifests.FILE_NAME).read_bytes() == before
  with pytest.raises(errors.DataError, match="--overwrite"):
    refreshing.refresh(options)
  # In place: an added item goes, and removed ones come back.
  refreshing.refresh(
    refresh.RefreshOptions(
      bundle=str(tmp_path / "new"),
      items=_items_of(tmp_path, "id,size\n290,1\n0,1\n"),
      remove=_removals(tmp_path, ["5", "20"]),
    )
  )
  loaded = bundle.Bundle.load(tmp_path / "new")
  assert len(loaded.manifest.refreshes) == 2
  assert loaded.manifest.unknown_query == "features"
  assert loaded.manifest.max_k == 50
  kept = [1, *range(3, 29)]
  assert loaded.candidate_ids.tolist() == [*np.multiply(10, kept), -7, 290, 0]
  # What comes back has its training count again.
  assert loaded.counts.tolist() == [*kept, 0, 29, 0]
  # Query i had seen candidate i; 2 is gone, and 0 was gone for a while.
  splits, rows = loaded.seen
  assert np.diff(splits).tolist() == [1, 1, 0] + [1] * 9
  assert loaded.candidate_ids[rows].tolist() == [0, 10, *range(30, 120, 10)]
  found = loaded.recommend([100], k=40, exclude_seen=True)
  assert 0 not in found.ids[0]
  # The tower still knows 290 and 0.
  vectors = candidates[[*np.add(1, kept), 0, 30, 1]]
  np.testing.assert_allclose(loaded.vectors, vectors, atol=1e-6)
  found = loaded.recommend([103, 9], k=3, features={"age": [2.0, -1.0]})
  expected = [2 * queries[4] @ vectors.T, -queries[0] @ vectors.T]
  np.testing.assert_allclose(
    found.scores, -np.sort(-np.array(expected))[:, :3], atol=1e-5
  )
  # The ranker's scores fall with the training row; new items have row -1.
  ranked = loaded.recommend([103], k=3, rerank=True, rerank_depth=50)
  assert ranked.ids.tolist() == [[-7, 0, 10]]
