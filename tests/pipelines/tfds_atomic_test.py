"""TFDS: the builder for atomic files, and reading data sets by name."""

import numpy as np
import pytest

from pipelines import prepare
from pipelines.readers import inputs, sources
from xir_tfrs.data import errors, records, tables

tfds = pytest.importorskip("tensorflow_datasets")
tfds_atomic = pytest.importorskip("pipelines.readers.tfds_atomic")


def _write(path):
  rng = np.random.default_rng(0)
  lines = ["user_id:token\titem_id:token\ttimestamp:float\tstars:float"]
  # float32 cannot represent 1006243943.
  lines += [
    f"u{u}\té{i}\t{1006243943 + t}.0\t{t / 4}"
    for u, i, t in rng.integers(9, size=[60, 3])
  ]
  path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _load(path, data_dir):
  return tfds.load(
    "atomic_interactions",
    split="interactions",
    data_dir=str(data_dir),
    builder_kwargs={"path": path},
  )


def _config(output, **kwargs):
  return prepare.PrepareConfig(
    input=inputs.Input(**kwargs), output=output, split="leave_last"
  )


def test_load_and_read_back_the_same_rows(tmp_path):
  _write(tmp_path / "r.inter")
  dataset = _load(tmp_path / "r.inter", tmp_path / "tfds")
  examples = list(tfds.as_numpy(dataset))
  rows = [
    line.split("\t")
    for line in (tmp_path / "r.inter").read_text("utf-8").splitlines()[1:]
  ]
  users = list(dict.fromkeys(row[0] for row in rows))
  assert [e["user_id"].decode() for e in examples] == users
  for example in examples:
    mine = [r for r in rows if r[0] == example["user_id"].decode()]
    assert [i.decode() for i in example["item_id"]] == [r[1] for r in mine]
    assert example["timestamp"].dtype == np.int64
    assert example["timestamp"].tolist() == [int(float(r[2])) for r in mine]
    assert example["stars"].tolist() == [float(r[3]) for r in mine]

  direct = prepare.prepare(
    _config(tmp_path / "a", paths=(str(tmp_path / "r.inter"),))
  )
  by_name = prepare.prepare(
    _config(
      tmp_path / "b",
      paths=("atomic_interactions/r",),
      format="tfds",
      data_dir=str(tmp_path / "tfds"),
    )
  )
  assert by_name.rows == direct.rows

  def rows_of(directory, split):
    ids = [
      tables.read_table(directory, t).ids for t in ("queries", "candidates")
    ]
    read = records.read_interactions(directory, split)
    return sorted(
      zip(
        ids[0][read["query_id"]],
        ids[1][read["candidate_id"]],
        read["timestamp"].tolist(),
        strict=True,
      )
    )

  for split in ("train", "validation", "test"):
    assert rows_of(tmp_path / "a", split) == rows_of(tmp_path / "b", split)


class RowPerExample(tfds.core.GeneratorBasedBuilder):
  """The form of most TFDS data sets: one interaction per example."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          "user_id": tfds.features.Text(),
          "movie": np.int32,
          "when": np.int64,
          "rounded": np.float64,
          "genres": tfds.features.Sequence({"name": tfds.features.Text()}),
        }
      ),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    return {
      "train": self._generate_examples(0),
      "test": self._generate_examples(9),
    }

  def _generate_examples(self, first=0):
    for key in range(first, first + 9):
      yield (
        key,
        {
          "user_id": f"u{key % 2}",
          "movie": key,
          "when": key,
          "rounded": key,
          "genres": {"name": []},
        },
      )


def test_row_per_example_and_what_is_refused(tmp_path):
  RowPerExample(data_dir=str(tmp_path)).download_and_prepare()
  columns = inputs.Columns(item="movie", time="when")

  def read(split="all", name="row_per_example", columns=columns):
    source = sources.open_source(
      inputs.Input(
        paths=(name,),
        format="tfds",
        data_dir=str(tmp_path),
        tfds_split=split,
        columns=columns,
      )
    )
    return [
      row
      for _, block in source.blocks()
      for row in zip(*block.strings(), block.times.tolist(), strict=True)
    ]

  given = sources.open_source(
    inputs.Input(
      paths=("row_per_example",),
      train=("test",),
      test=("train",),
      format="tfds",
      data_dir=str(tmp_path),
      columns=columns,
    )
  )
  found = [
    (given.split_of(file), user, time)
    for file, block in given.blocks()
    for user, time in zip(block.strings()[0], block.times, strict=True)
  ]
  assert found == [
    ("train" if k >= 9 else "test", f"u{k % 2}", k)
    for k in [*range(9, 18), *range(9)]
  ]
  assert [f["examples"] for f in given.files()] == [9, 9]

  expected = [(f"u{k % 2}", str(k), k) for k in range(18)]
  assert read() == expected
  assert read("test+train") == expected[9:] + expected[:9]
  for kwargs, message in (
    ({"split": "dev"}, "no split 'dev'; the data set has"),
    ({"name": "no_such_set"}, "no such TFDS data set"),
    (
      {"columns": inputs.Columns(item="movie", time="rounded")},
      "'rounded': times are stored as float32",
    ),
    ({"columns": inputs.Columns(item="genres", time="when")}, "is nested"),
    ({"columns": inputs.Columns(item="film")}, "'film': no such column"),
  ):
    with pytest.raises(errors.DataError, match=message):
      read(**kwargs)


def test_broken_atomic_file(tmp_path):
  (tmp_path / "r.inter").write_text("user_id:token\titem_id:token\n1\n")
  with pytest.raises(errors.DataError, match="line 2, column 'item_id'"):
    _load(tmp_path / "r.inter", tmp_path / "tfds")
  with pytest.raises(errors.DataError, match="no such file"):
    _load(tmp_path / "gone.inter", tmp_path / "tfds")


def test_a_damaged_data_set_names_its_file(tmp_path):
  _write(tmp_path / "r.inter")
  _load(tmp_path / "r.inter", tmp_path / "tfds")
  (shard,) = (tmp_path / "tfds").rglob("*.tfrecord*")
  shard.write_bytes(shard.read_bytes()[:-9])
  config = _config(
    tmp_path / "out",
    paths=("atomic_interactions/r",),
    format="tfds",
    data_dir=str(tmp_path / "tfds"),
  )
  with pytest.raises(errors.DataError, match="tfrecord.*truncated or damaged"):
    prepare.prepare(config)
