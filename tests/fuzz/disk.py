"""Broken variants of the files that the programs write and read."""

from __future__ import annotations

import json
import pathlib
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

from pipelines.evaluation import report
from pipelines.training import checkpoints, validation
from pipelines.training import config as configs
from tests.export import conftest as worlds
from tests.fuzz import mutants
from tests.fuzz import targets as targets_lib
from xir_tfrs import layers
from xir_tfrs.data import directory, errors, json_files, runs
from xir_tfrs.data import schema as schema_lib
from xir_tfrs.programs import settings


def targets(
  world: worlds.World, folder: pathlib.Path
) -> list[targets_lib.Target]:
  """A target for each kind of file."""
  folder.mkdir(parents=True)
  data = folder / "data"
  shutil.copytree(world.data, data)
  schema = schema_lib.Schema.load(data)
  plain = (data / schema_lib.FILE_NAME).read_bytes()
  hashed = json_files.encode(schema.with_hashes(data)).encode()
  found = [
    _file(
      "schema.json",
      data / schema_lib.FILE_NAME,
      st.one_of(mutants.of_bytes([plain]), mutants.of_json([plain, hashed])),
      lambda: _use_data(data),
      data,
    )
  ]
  for part in ("train", "queries", "candidates"):
    path = data / schema.shards[part][0].file
    content = path.read_bytes()
    records = st.one_of(
      mutants.of_bytes([content]),
      st.builds(_framed, mutants.of_bytes(_records(path))),
      _examples(path),
    )
    found.append(
      _file(f"{part} records", path, records, lambda: _use_data(data), data)
    )
  run = folder / "model"
  shutil.copytree(world.model_dir, run)
  config = run / runs.CONFIG
  content = config.read_bytes()
  found += [
    _file(
      "config.json",
      config,
      st.one_of(mutants.of_bytes([content]), mutants.of_json([content])),
      lambda: runs.load_model(run),
      run,
    ),
    _settings(run / runs.CONFIG),
    _metrics(run),
    _results(folder),
  ]
  for file in sorted((run / runs.BEST).iterdir()):
    name = "checkpoint" + (file.suffix or " state").replace(
      ".data-00000-of-00001", " data"
    ).replace(".index", " index")
    found.append(
      _file(
        name,
        file,
        mutants.of_bytes([file.read_bytes()]),
        lambda: runs.load_model(run),
        run,
      )
    )
  found.append(_resumed(folder / "resumed", world))
  return found


def _file(
  name: str,
  path: pathlib.Path,
  contents: st.SearchStrategy[bytes],
  use: Callable[[], Any],
  place: pathlib.Path,
) -> targets_lib.Target:
  """Replaces the content of a file while `use` reads it."""
  right = path.read_bytes()

  def check(content: bytes) -> None:
    path.write_bytes(content)
    try:
      use()
    finally:
      path.write_bytes(right)

  return targets_lib.Target(name, contents, check, str(place))


def _use_data(path: pathlib.Path) -> None:
  """Reads a data directory as training does, and checks that it fits."""
  data = directory.DataDir(path)
  schema = data.schema
  for split in schema_lib.SPLITS:
    rows = data.rows(split, in_order=True)
    assert len(rows["query_id"]) == schema.rows[split]
    for name, limit in (
      ("query_id", schema.num_queries),
      ("candidate_id", schema.num_candidates),
    ):
      assert ((rows[name] >= 0) & (rows[name] < limit)).all()
    if "sample_weight" in rows:
      weights = rows["sample_weight"]
      assert (np.isfinite(weights) & (weights >= 0)).all()
  for table, read in (
    ("queries", data.queries),
    ("candidates", data.candidates),
  ):
    ids = data.ids(table)
    assert len(read) == len(ids) == schema.num_rows(table)
    assert len(set(ids.tolist())) == len(ids) and b"" not in ids
    assert (read.counts >= 0).all()
    features = [feature.feature() for feature in schema.features(table)]
    if features:
      layers.CandidateTable(features, read.columns)


def _records(path: pathlib.Path) -> list[bytes]:
  return list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())


def _framed(*records: bytes) -> bytes:
  """A file of records with correct checksums."""
  with tempfile.NamedTemporaryFile() as file:
    with tf.io.TFRecordWriter(file.name) as writer:
      for record in records:
        writer.write(record)
    return file.read()


def _examples(path: pathlib.Path) -> st.SearchStrategy[bytes]:
  """Records in which columns are missing, changed or of another type."""
  (*records,) = _records(path)
  names = sorted(tf.train.Example.FromString(records[0]).features.feature)
  values = st.one_of(
    st.lists(
      st.sampled_from([-(2**63), -1, 0, 1, 40, 300, 2**31, 2**32, 2**63 - 1]),
      max_size=4,
    ).map(lambda x: {"int64_list": {"value": x}}),
    st.lists(st.floats(width=32), max_size=4).map(
      lambda x: {"float_list": {"value": x}}
    ),
    st.lists(
      st.sampled_from([b"", b"\xff", "é".encode(), b"item 1"]), max_size=4
    ).map(lambda x: {"bytes_list": {"value": x}}),
    st.none(),
  )

  def changed(changes: dict[str, Any], keep: bool) -> bytes:
    example = tf.train.Example.FromString(records[0])
    for name, value in changes.items():
      if value is None:
        example.features.feature.pop(name, None)
        continue
      ((kind, content),) = value.items()
      into = getattr(example.features.feature[name], kind).value
      if keep and len(into):  # Changes only the first values.
        into[: len(content["value"])] = content["value"]
      else:
        del into[:]
        into.extend(content["value"])
    return _framed(example.SerializeToString(), *records[1:])

  changes = st.dictionaries(
    st.sampled_from([*names, "x"]), values, min_size=1, max_size=2
  )
  return st.builds(changed, changes, st.booleans())


def _settings(path: pathlib.Path) -> targets_lib.Target:
  """The settings in a config.json of an old version, which has no hash."""
  config = configs.from_preset(data="data", model_dir="run", task="xir")
  seed = json.dumps(settings.as_dict(config)).encode()

  def check(content: bytes) -> None:
    try:
      configs.of_run(json.loads(content), path)
    except settings.SettingsError as error:
      assert str(error).startswith("--"), error
      raise errors.DataError(f"{path}: {error}") from error

  return targets_lib.Target(
    "settings", mutants.of_json([seed]), check, str(path)
  )


def _metrics(run: pathlib.Path) -> targets_lib.Target:
  """metrics.jsonl, as a resumed run reads it."""
  path = run / runs.METRICS
  rows = [
    {"kind": "train", "step": 5, "epoch": 1.0, "loss": 2.5},
    {"kind": "validation", "step": 5, "epoch": 1.0, "ndcg@20": 0.5},
    {"kind": "train", "step": 10, "epoch": 2.0, "loss": None},
    {"kind": "validation", "step": 10, "epoch": 2.0, "ndcg@20": 0.25},
  ]
  lines = [json_files.encode_line(row).encode() for row in rows]
  path.write_bytes(b"".join(lines))
  config = configs.TrainConfig(
    data="data", model_dir=str(run), metric="ndcg@20", patience=1
  )

  def use() -> None:
    read = runs.RunDir(run).read_metrics()
    kept = [row for row in read if row["step"] <= 7]
    assert all(row in read for row in kept)
    validations = [row for row in read if row["kind"] == "validation"]
    so_far = validation.Validations(config, validations)
    new = {"step": 15, "epoch": 3.0, "ndcg@20": 0.3, "recall@20": 0.2}
    so_far.line(new, so_far.is_best(new))
    so_far.add(new)
    assert so_far.should_stop in (True, False)

  one = mutants.of_json([line for line in lines])
  contents = st.one_of(
    mutants.of_bytes([b"".join(lines)]),
    st.lists(one, max_size=4).map(lambda x: b"\n".join([*x, b""])),
  )
  return _file("metrics.jsonl", path, contents, use, run)


def _results(folder: pathlib.Path) -> targets_lib.Target:
  """metrics.json of an evaluation."""
  path = folder / "results.json"
  metrics = {"model": {"ndcg@20": 0.5}}
  part = {"queries": 3, "pairs": 4, "metrics": metrics}
  right = {
    "format": report.FORMAT,
    "split": "test",
    "checkpoint": "best/ckpt-1",
    **{"queries": 3, "pairs": 4, "candidates": 9, "indexed": 8},
    "by_popularity": 1,
    "ks": [10, 20],
    "rerank_depth": None,
    "metrics": metrics,
    "by_query": {"warm": part},
    "by_training_count": {"0": {**part, "candidates": 2}},
    "warnings": ["few queries"],
  }
  seeds = [json.dumps(right).encode()]
  path.write_bytes(seeds[0])

  contents = st.one_of(mutants.of_bytes(seeds), mutants.of_json(seeds))
  return _file("results", path, contents, lambda: report.load(path), path)


def _resumed(path: pathlib.Path, world: worlds.World) -> targets_lib.Target:
  """Checkpoints of a resumed run, which restores the newest valid one."""
  weight = tf.Variable(np.zeros(3, np.float32))
  step = tf.Variable(0, dtype=tf.int64)
  run = runs.RunDir(path)

  def manager() -> checkpoints.Checkpoints:
    state = tf.train.Checkpoint(weight=weight, step=step)
    return checkpoints.Checkpoints(run, state, keep=2)

  writer = manager()
  for number in (1, 2):
    weight.assign(np.full(3, number, np.float32))
    step.assign(number)
    writer.save(number)
  whole = {file.name: file.read_bytes() for file in _files(path)}

  def check(given: tuple[str, bytes | None]) -> None:
    name, content = given
    for file in _files(path):
      file.unlink()
    for file, right in whole.items():
      (path / runs.CHECKPOINTS / file).write_bytes(right)
    changed = path / runs.CHECKPOINTS / name
    if content is None:
      changed.unlink()
    else:
      changed.write_bytes(content)
    restored = manager().restore()
    assert restored in (1, 2) and restored == step.numpy()
    assert weight.numpy().tolist() == [float(restored)] * 3

  one = st.sampled_from(sorted(whole)).flatmap(
    lambda name: st.tuples(
      st.just(name), st.none() | mutants.of_bytes([whole[name]])
    )
  )
  return targets_lib.Target("resumed checkpoints", one, check, str(path))


def _files(path: pathlib.Path) -> list[pathlib.Path]:
  return list((path / runs.CHECKPOINTS).iterdir())
