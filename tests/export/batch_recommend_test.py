"""Files of recommendations, compared with NumPy, and interrupted runs."""

import dataclasses
import functools
import json
import os
import pathlib
import sys
import types

import msgspec
import numpy as np
import pytest
import tensorflow as tf
from pyarrow import parquet

from export import batch_recommend
from export.bundle import bulk
from tests import program
from xir_tfrs.data import errors
from xir_tfrs.serving import bundle
from xir_tfrs.serving import manifest as manifests

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def load_once():
  """Loading takes most of the time of a small run."""
  return functools.cache(bulk._load)


@pytest.fixture(autouse=True)
def use_load_once(load_once, monkeypatch):
  monkeypatch.setattr(bulk, "_load", load_once)


@pytest.fixture
def options(exported, tmp_path):
  return batch_recommend.BatchOptions(
    bundle=str(exported), output=str(tmp_path / "out"), rows_per_shard=15
  )


def _read_parquet(path):
  return parquet.read_table(path).to_pylist()


def _read_tfrecord(path):
  rows = []
  for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
    feature = tf.train.Example.FromString(record).features.feature
    ids = [x.decode() for x in feature["candidate_ids"].bytes_list.value]
    rows.append(
      {
        "query_id": feature["query_id"].bytes_list.value[0].decode(),
        "candidate_ids": ids,
        "scores": list(feature["scores"].float_list.value),
        "titles": [x.decode() for x in feature["titles"].bytes_list.value],
      }
    )
  return rows


def _files(output):
  return sorted(x.name for x in pathlib.Path(output).iterdir())


def _scores(world, query):
  """Scores of all candidates; training counts for queries without rows."""
  if not world.seen[query]:
    return world.counts
  return world.candidate_vectors @ world.query_vectors[query]


@pytest.mark.parametrize(
  "kind, read", [("parquet", _read_parquet), ("tfrecord", _read_tfrecord)]
)
def test_every_query_gets_its_best(world, options, monkeypatch, kind, read):
  monkeypatch.setattr(bulk, "_BATCH", 4)
  options = dataclasses.replace(options, format=kind, k=7)
  run = bulk.batch_recommend(options)
  names = [f"part-0000{i}-of-00003.{kind}" for i in range(3)]
  assert _files(options.output) == ["_run.json", *names]
  shards = [read(pathlib.Path(options.output) / name) for name in names]
  assert [len(shard) for shard in shards] == [15, 15, 10]
  rows = sum(shards, [])
  assert [row["query_id"] for row in rows] == world.query_ids
  for query, row in enumerate(rows):
    scores = _scores(world, query)
    best = np.argsort(-scores, kind="stable")[:7]
    assert row["candidate_ids"] == [world.candidate_ids[c] for c in best]
    assert row["titles"] == list(map(world.title_of, row["candidate_ids"]))
    np.testing.assert_allclose(row["scores"], scores[best], rtol=1e-5)
  written = json.loads((pathlib.Path(options.output) / "_run.json").read_text())
  assert written == msgspec.structs.asdict(run)
  assert run.complete and run.queries == 40 and run.shards == 3
  assert run.queries_per_second > 0


def test_seen_candidates_are_left_out(world, options):
  options = dataclasses.replace(options, k=299, exclude_seen=True)
  bulk.batch_recommend(options)
  rows = _read_parquet(options.output)
  lengths = set()
  for query, row in enumerate(rows):
    seen = [world.candidate_ids[c] for c in world.seen[query]]
    order = np.argsort(-_scores(world, query), kind="stable")
    best = [world.candidate_ids[c] for c in order]
    assert row["candidate_ids"] == [x for x in best if x not in seen][:299]
    assert len(row["scores"]) == len(row["candidate_ids"])
    assert np.isfinite(row["scores"]).all()
    lengths.add(len(row["scores"]))
  assert len(lengths) > 3


@pytest.mark.parametrize("exclude_seen", [False, True])
def test_listed_queries_are_answered_as_by_the_bundle(
  world, load_once, options, tmp_path, exclude_seen, capsys
):
  ids = [world.query_ids[9], "nobody\u2028at all", world.query_ids[2], "x"]
  ids.append(ids[0])
  (tmp_path / "ids").write_text("\r\n".join(ids) + "\n", newline="")
  options = dataclasses.replace(
    options, queries=str(tmp_path / "ids"), k=9, exclude_seen=exclude_seen
  )
  bulk.batch_recommend(options)
  said = capsys.readouterr().err
  assert f"2 of 5 ids in {options.queries} are not in the bundle" in said
  assert repr(ids[1]) in said
  rows = _read_parquet(options.output)
  assert [row["query_id"] for row in rows] == ids
  expected = load_once(options.bundle).recommend(
    ids, k=9, exclude_seen=exclude_seen
  )
  assert expected.known.tolist() == [True, False, True, False, True]
  for i, row in enumerate(rows):
    assert row["candidate_ids"] == expected.ids[i].tolist()
    np.testing.assert_allclose(row["scores"], expected.scores[i], rtol=1e-5)


class _Loaded:
  """A bundle of two queries and four candidates with integer ids."""

  def __init__(self, directory, unknown_query):
    self.directory = directory
    self.manifest = types.SimpleNamespace(
      id_types=manifests.IdTypes("int64", "int64"),
      max_k=3,
      num_interests=None,
    )
    self.unknown_query = unknown_query
    self.query_ids = np.array([70, -5])
    self.titles = None
    self.candidate_ids = np.array([11, 12, 13, 14])
    self.counts = np.array([5, 9, 5, 0])
    self.seen = np.array([0, 1, 1]), np.array([2], np.int32)
    self.vectors = np.array([[1], [2], [3], [-4]], np.float32)

  def read_queries(self, ids, time=None):
    assert time is None  # These bundles do not take times.
    vectors = np.array([[{70: 1, -5: -1}.get(x, 2)] for x in ids], np.float32)
    rows = np.array([{70: 0, -5: 1}.get(x, -1) for x in ids])
    popular = (rows < 0) & (self.unknown_query == "popularity")
    return bundle.Queries(vectors, rows, popular)


@pytest.mark.parametrize("kind", ["parquet", "tfrecord"])
@pytest.mark.parametrize(
  "unknown_query, of_unknown",
  [
    ("popularity", ([12, 11, 13], [9, 5, 5])),
    ("tower", ([13, 12, 11], [6, 4, 2])),
  ],
)
def test_integer_ids(tmp_path, monkeypatch, kind, unknown_query, of_unknown):
  (tmp_path / "manifest.json").write_text("{}")
  loaded = _Loaded(tmp_path, unknown_query)
  monkeypatch.setattr(bulk, "_load", lambda path: loaded)
  (tmp_path / "ids").write_text("-5\n8\n70")
  options = batch_recommend.BatchOptions(
    bundle="b",
    output=str(tmp_path / "out"),
    k=3,
    format=kind,
    exclude_seen=True,
    queries=str(tmp_path / "ids"),
  )
  bulk.batch_recommend(options)
  (path,) = (tmp_path / "out").glob("part-*")
  if kind == "parquet":
    table = parquet.read_table(path)
    assert [str(x) for x in table.schema.types] == [
      "int64",
      "list<element: int64>",
      "list<element: float>",
    ]
    rows = table.to_pylist()
  else:
    rows = [
      {
        "query_id": feature["query_id"].int64_list.value[0],
        "candidate_ids": list(feature["candidate_ids"].int64_list.value),
        "scores": list(feature["scores"].float_list.value),
      }
      for feature in (
        tf.train.Example.FromString(record).features.feature
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
      )
    ]
  found = [tuple(row.values()) for row in rows]
  assert found == [
    (-5, [14, 11, 12], [4, -1, -2]),
    (8, *of_unknown),
    (70, [12, 11, 14], [2, 1, -4]),
  ]
  (tmp_path / "ids").write_text("70\n8.0\n")
  options = dataclasses.replace(options, overwrite=True)
  with pytest.raises(
    errors.DataError, match="line 2: '8.0' is not an id.*int64"
  ):
    bulk.batch_recommend(options)


def test_an_interrupted_run_continues_at_the_first_missing_file(
  options, monkeypatch
):
  """Encoding fails in the second of three files."""
  monkeypatch.setattr(bulk, "_BATCH", 5)
  calls = []
  encode = bundle.Bundle.read_queries

  def fail_once(self, ids, **given):
    calls.append(len(ids))
    if len(calls) == 5:
      raise KeyboardInterrupt
    return encode(self, ids, **given)

  monkeypatch.setattr(bundle.Bundle, "read_queries", fail_once)
  with pytest.raises(KeyboardInterrupt):
    bulk.batch_recommend(options)
  output = pathlib.Path(options.output)
  names = [f"part-0000{i}-of-00003.parquet" for i in range(3)]
  assert [x for x in _files(output) if x.startswith("part")] == names[:1]
  run = json.loads((output / "_run.json").read_text())
  assert not run["complete"] and run["seconds"] > 0
  first = (output / names[0]).stat().st_mtime_ns

  run = bulk.batch_recommend(options)
  assert len(calls) == 3 + 2 + 3 + 2
  assert run.complete and run.queries == 40
  assert _files(output) == ["_run.json", *names]
  assert (output / names[0]).stat().st_mtime_ns == first
  ids = [row["query_id"] for row in _read_parquet(output)]
  assert len(set(ids)) == len(ids) == 40
  # Complete files are not written again.
  assert bulk.batch_recommend(options) == run
  assert len(calls) == 10


def test_second_run_on_an_output_is_refused_and_writes_nothing(
  options, monkeypatch
):
  """The second starts when the first has written one of its three files."""
  monkeypatch.setattr(bulk, "_BATCH", 15)
  output = pathlib.Path(options.output)
  before, second = [], []
  encode = bundle.Bundle.read_queries

  def begin_second(self, ids, **given):
    if (output / "part-00000-of-00003.parquet").exists() and not second:
      before.append(_files(output))
      for overwrite in (False, True):
        with pytest.raises(errors.DataError, match="is writing here") as caught:
          bulk.batch_recommend(
            dataclasses.replace(options, overwrite=overwrite)
          )
        second.append(str(caught.value))
      before.append(_files(output))
    return encode(self, ids, **given)

  monkeypatch.setattr(bundle.Bundle, "read_queries", begin_second)
  run = bulk.batch_recommend(options)
  assert len(second) == 2 and f"process {os.getpid()} on host" in second[0]
  assert before[0] == before[1]
  assert run.complete
  assert len(_read_parquet(output)) == 40


def test_a_run_that_has_lost_a_file_is_not_complete_until_it_is_back(
  options, monkeypatch
):
  bulk.batch_recommend(options)
  output = pathlib.Path(options.output)
  (output / "part-00001-of-00003.parquet").unlink()
  left = output / ".part-00001-of-00003.parquet.partial-host-01234567"
  left.write_text("of a run that was killed")

  def fail(self, ids, **given):
    raise KeyboardInterrupt

  with monkeypatch.context() as patched:
    patched.setattr(bundle.Bundle, "read_queries", fail)
    with pytest.raises(KeyboardInterrupt):
      bulk.batch_recommend(options)
  assert not json.loads((output / "_run.json").read_text())["complete"]
  assert not left.exists()
  assert bulk.batch_recommend(options).complete
  assert len(_read_parquet(output)) == 40


def test_runs_with_other_settings_are_not_mixed(options, tmp_path):
  bulk.batch_recommend(options)
  (tmp_path / "ids").write_text("somebody\n")
  for change, message in (
    ({"k": 3}, "k = 100 then, 3 now"),
    ({"exclude_seen": True}, "exclude_seen = False then, True now"),
    ({"format": "tfrecord"}, "format = parquet then, tfrecord now"),
    ({"rows_per_shard": 4}, "rows_per_shard = 15 then, 4 now"),
    ({"queries": str(tmp_path / "ids")}, "queries_sha256 = all then"),
  ):
    changed = dataclasses.replace(options, **change)
    with pytest.raises(errors.DataError, match=f"{message}.*--overwrite"):
      bulk.batch_recommend(changed)
  changed = dataclasses.replace(changed, overwrite=True)
  (tmp_path / "out" / "notes.txt").write_text("mine")
  bulk.batch_recommend(changed)
  assert _files(options.output) == [
    "_run.json",
    "notes.txt",
    "part-00000-of-00001.parquet",
  ]


def test_answers_of_another_bundle_are_not_mixed(exported, options, tmp_path):
  bulk.batch_recommend(options)
  other = tmp_path / "other"
  other.mkdir()
  for path in exported.iterdir():
    if path.name != "manifest.json":
      (other / path.name).symlink_to(path)
  manifest = (exported / "manifest.json").read_text()
  (other / "manifest.json").write_text(manifest + "\n")
  with pytest.raises(errors.DataError, match="bundle_sha256 = .* then"):
    bulk.batch_recommend(dataclasses.replace(options, bundle=str(other)))


@pytest.mark.parametrize(
  "text, message",
  [
    (None, "cannot be read"),
    (b"\xff\n", "line 1: not UTF-8"),
    (b"", "ids: empty"),
    (b"a\n\nb\n", "line 2: empty"),
  ],
)
def test_unusable_list_of_queries_is_named_before_anything_is_written(
  options, tmp_path, text, message
):
  if text is not None:
    (tmp_path / "ids").write_bytes(text)
  options = dataclasses.replace(options, queries=str(tmp_path / "ids"))
  with pytest.raises(errors.DataError, match=message):
    bulk.batch_recommend(options)
  assert not os.path.exists(options.output)


def test_a_foreign_directory_is_not_changed(options, tmp_path):
  (tmp_path / "out").mkdir()
  (tmp_path / "out" / "part-1-of-2.txt").write_text("mine")
  for overwrite in (False, True):
    changed = dataclasses.replace(options, overwrite=overwrite)
    with pytest.raises(
      errors.DataError, match="_run.json: not found, so this is not.*choose"
    ):
      bulk.batch_recommend(changed)
  assert _files(options.output) == ["part-1-of-2.txt"]


def test_k_above_that_of_the_bundle_is_refused(options):
  options = dataclasses.replace(options, k=10_001)
  with pytest.raises(errors.DataError, match="from 1 to 10000.*10001"):
    bulk.batch_recommend(options)


def test_missing_pyarrow_says_what_to_install(options, monkeypatch):
  monkeypatch.setitem(sys.modules, "pyarrow", None)
  with pytest.raises(errors.DataError, match="xir-tfrs.data.*tfrecord"):
    bulk.batch_recommend(options)


def test_program_writes_and_says_how_fast(world, options):
  done = program.run(
    *("export.batch_recommend", "--k", "2"),
    *("--bundle", options.bundle, "--output", options.output),
  )
  assert done.returncode == 0, done.stderr[-2000:]
  assert "40 queries in 1 file, " in done.stdout
  assert len(_read_parquet(options.output)) == 40
