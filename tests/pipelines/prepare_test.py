"""`pipelines.prepare`, compared with a slow twin, and its atomicity."""

import collections
import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from pipelines import prepare
from pipelines.preparation import passes, spill, summary, vocabulary
from pipelines.readers import inputs
from tests import program
from xir_tfrs.data import directory, errors, records, schema, tables
from xir_tfrs.data.files import text


def _raw(seed=0, rows=600, users=30, items=25):
  """Rows with repeated pairs and equal times, users not in order."""
  rng = np.random.default_rng(seed)
  return [
    (f"u{u}", f"i{i}", int(t), float(w))
    for u, i, t, w in zip(
      rng.zipf(1.4, size=rows) % users,
      rng.integers(items, size=rows),
      rng.integers(200, size=rows),
      rng.integers(1, 9, size=rows) / 4,
      strict=True,
    )
  ]


def _write(path, rows):
  lines = ["user_id:token\titem_id:token\ttimestamp:float\tw:float"]
  lines += ["\t".join(map(str, row)) for row in rows]
  path.write_text("\n".join(lines) + "\n")


def _config(path, output, *, chunk_bytes=text.CHUNK_BYTES, **kwargs):
  columns = kwargs.pop("columns", inputs.Columns(weight="w"))
  return prepare.PrepareConfig(
    input=inputs.Input(
      paths=(str(path),), columns=columns, chunk_bytes=chunk_bytes
    ),
    output=output,
    **kwargs,
  )


def _slow_prepare(rows, kind, test=0.2, validation=0.1, keep_repeats=False):
  """Rows with dense ids, and all kinds of splits except "random"."""
  users, items, kept, ordered = {}, {}, {}, []
  for place, (user, item, time, weight) in enumerate(rows):
    pair = (
      users.setdefault(user, len(users)),
      items.setdefault(item, len(items)),
    )
    ordered.append((time, place, *pair, weight))
    if pair not in kept or time < kept[pair][0]:
      kept[pair] = (time, place, weight)
  if not keep_repeats:
    ordered = [(t, p, *pair, w) for pair, (t, p, w) in kept.items()]
  ordered.sort()
  events = collections.Counter()
  for k, (t, _, user, item, w) in enumerate(ordered):
    ordered[k] = (user, item, events[user], t, w)
    events[user] += 1
  split = {"train": [], "validation": [], "test": []}
  if kind == "temporal":
    cut = round((1 - test) * len(ordered))
    held = cut - round(validation * cut)
    test_start, validation_start = ordered[cut][3], ordered[held][3]
    for row in ordered:
      name = (
        "test"
        if row[3] >= test_start
        else "validation"
        if row[3] >= validation_start
        else "train"
      )
      split[name].append(row)
  else:
    by_user = collections.defaultdict(list)
    for row in ordered:
      by_user[row[0]].append(row)
    for of_user in by_user.values():
      if len(of_user) > 1:
        split["test"].append(of_user.pop())
      if len(of_user) > 1:
        split["validation"].append(of_user.pop())
      split["train"] += of_user
  return users, items, split


def _read_split(directory, name):
  columns = records.read_interactions(directory, name)
  return list(zip(*(v.tolist() for v in columns.values()), strict=True))


@pytest.mark.parametrize("keep_repeats", [False, True])
@pytest.mark.parametrize("kind", ["leave_last", "temporal"])
def test_equals_its_slow_twin(tmp_path, kind, keep_repeats):
  rows = _raw()
  _write(tmp_path / "r.inter", rows)
  made = prepare.prepare(
    _config(
      tmp_path / "r.inter",
      tmp_path / "out",
      split=kind,
      validation_fraction=0.1,
      keep_repeats=keep_repeats,
      num_buckets=3,
      chunk_bytes=500,
    )
  )
  users, items, split = _slow_prepare(rows, kind, keep_repeats=keep_repeats)
  assert made == schema.Schema.load(tmp_path / "out")
  assert made.rows == {name: len(part) for name, part in split.items()}
  for name, part in split.items():
    assert sorted(_read_split(tmp_path / "out", name)) == sorted(part)
  assert made.warnings["duplicate_pairs"] == len(rows) - sum(made.rows.values())
  for table, ids, column in (("queries", users, 0), ("candidates", items, 1)):
    read = tables.read_table(tmp_path / "out", table)
    assert read.ids.tolist() == list(ids)
    counts = collections.Counter(row[column] for row in split["train"])
    assert read.counts.tolist() == [counts[i] for i in range(len(ids))]
  assert not any(made.leakage.values())
  assert len(made.leakage) == (2 if keep_repeats else 5)
  pairs = {name: {row[:2] for row in part} for name, part in split.items()}
  twice = pairs["train"] & pairs["test"]
  assert bool(twice) == keep_repeats
  assert made.warnings.get("repeated_pairs_in_train_and_test", 0) == len(twice)
  moments = collections.Counter(
    (row[0], row[3]) for part in split.values() for row in part
  )
  tied = sum(moments.values()) - len(moments)
  assert made.warnings["rows_tied_in_time"] == tied > 0
  users_seen = len({user for user, _ in moments})
  share = 100 * tied / (sum(moments.values()) - users_seen)
  text = summary.text(made, 1.0)
  assert f"{tied} rows ({share:.1f}% of those that follow another" in text
  assert ("pairs of the test split are in train too" in text) == keep_repeats


def test_random_split_sizes_per_user(tmp_path):
  rows = _raw(rows=900)
  _write(tmp_path / "r.inter", rows)
  made = prepare.prepare(
    _config(tmp_path / "r.inter", tmp_path / "out", validation_fraction=0)
  )
  users, items, _ = _slow_prepare(rows, "leave_last")
  distinct = {(users[u], items[i]) for u, i, _, _ in rows}
  size = collections.Counter(u for u, _ in distinct)
  train = [r[:2] for r in _read_split(tmp_path / "out", "train")]
  test = [r[:2] for r in _read_split(tmp_path / "out", "test")]
  assert sorted(train + test) == sorted(distinct)
  per_user = collections.Counter(u for u, _ in train)
  assert per_user == {u: round(0.8 * n) for u, n in size.items()}
  assert made.rows["validation"] == 0
  assert not list((tmp_path / "out").glob("validation*"))


def test_a_random_split_validates_by_default(tmp_path):
  _write(tmp_path / "r.inter", _raw(rows=900))

  def made(name, **kwargs):
    config = _config(tmp_path / "r.inter", tmp_path / name, **kwargs)
    return prepare.prepare(config)

  default, given = made("a"), made("b", validation_fraction=0.1)
  assert default.rows == given.rows and default.split == given.split
  assert default.split.validation_fraction == 0.1
  assert default.rows["validation"] > 0.05 * default.rows["train"]
  text = summary.text(default, 1.0)
  assert "a share of 0.1 of the rows that are not test" in text
  assert "--validation_fraction 0 for none" in text
  none = made("c", validation_fraction=0)
  assert none.rows["validation"] == 0 and none.split.validation_fraction == 0
  assert "validation_fraction" not in summary.text(none, 1.0)
  temporal = made("d", split="temporal")
  assert temporal.rows["validation"] == 0
  assert temporal.split.validation_fraction == 0
  text = summary.text(temporal, 1.0)
  assert "hint: no validation rows" in text


def test_a_toy_file_is_prepared_with_a_sentence_on_what_it_lacks(tmp_path):
  rows = [f"u{n // 3},i{n % 5}" for n in range(12)]
  (tmp_path / "r.csv").write_text("\n".join(["user_id,item_id", *rows]))
  config = _config(
    tmp_path / "r.csv", tmp_path / "out", columns=inputs.Columns()
  )
  made = prepare.prepare(config)
  assert made.rows == {"train": 8, "validation": 0, "test": 4}
  text = summary.text(made, 1.0)
  assert "warning: no validation rows, because no user has enough rows" in text
  assert "no test rows" not in text
  (tmp_path / "r.csv").write_text("user_id,item_id\nu,a\nv,b\n")
  for split in ("random", "leave_last"):
    again = dataclasses.replace(config, split=split, overwrite=True)
    made = prepare.prepare(again)
    assert made.rows == {"train": 2, "validation": 0, "test": 0}
    assert "warning: no test rows" in summary.text(made, 1.0)


@pytest.mark.parametrize("kind", ["random", "temporal", "leave_last"])
def test_the_seed_orders_training_rows_of_every_split(tmp_path, kind):
  _write(tmp_path / "r.inter", _raw())
  rows = []
  for seed in (1, 1, 2):
    config = _config(
      tmp_path / "r.inter",
      tmp_path / "out",
      split=kind,
      seed=seed,
      overwrite=True,
    )
    made = prepare.prepare(config)
    assert made.source.options["seed_of_row_order"] == seed
    rows.append(_read_split(tmp_path / "out", "train"))
  assert rows[0] == rows[1] != rows[2]
  if kind != "random":
    assert sorted(rows[0]) == sorted(rows[2])


@pytest.mark.parametrize("form", ["csv", "parquet", "synthetic"])
def test_the_size_of_the_input_chooses_the_buckets(tmp_path, monkeypatch, form):
  """Rows per bucket are bounded in every format."""
  rows = 3000
  config = {"format": "synthetic"}
  if form != "synthetic":
    path = tmp_path / f"r.{form}"
    config = {"paths": (str(path),)}
    users = [f"user-{n % 700}" for n in range(rows)]
    items = [f"item-{n % 31}" for n in range(rows)]
    if form == "csv":
      lines = [f"{u},{i}" for u, i in zip(users, items, strict=True)]
      path.write_text("\n".join(["user_id,item_id", *lines]))
    else:
      pq.write_table(pa.table({"user_id": users, "item_id": items}), path)
      assert path.stat().st_size < 10 * rows  # Far smaller than as text.
  else:
    config["synthetic"] = inputs.SyntheticConfig(
      num_users=300, num_items=90, num_interactions=rows
    )
  monkeypatch.setattr(spill, "_BYTES_PER_BUCKET", 8000)
  sizes = []
  by_user = spill.by_user

  def measured(bucket):
    sizes.append(len(bucket))
    return by_user(bucket)

  monkeypatch.setattr(spill, "by_user", measured)
  for num_buckets, expected in ((None, None), (3, 3)):
    sizes.clear()
    prepare.prepare(
      prepare.PrepareConfig(
        input=inputs.Input(**config),
        output=tmp_path / "out",
        num_buckets=num_buckets,
        overwrite=True,
      )
    )
    assert abs(sum(sizes) - rows) < 0.1 * rows
    if expected:
      assert len(sizes) == expected
    else:
      assert 6 < len(sizes) < 20 and max(sizes) < 3 * rows / len(sizes)


@pytest.mark.parametrize("kind", ["random", "temporal", "leave_last"])
def test_blocks_and_buckets_change_nothing(tmp_path, kind):
  _write(tmp_path / "r.inter", _raw())
  results = []
  for chunk_bytes, num_buckets in ((1 << 20, 1), (1 << 20, 1), (90, 7)):
    out = tmp_path / f"out{len(results)}"
    made = prepare.prepare(
      _config(
        tmp_path / "r.inter",
        out,
        split=kind,
        validation_fraction=0.2,
        chunk_bytes=chunk_bytes,
        num_buckets=num_buckets,
      )
    )
    results.append((out, made))
  (first, made), (again, made_again), (other, made_other) = results
  assert made == made_again == made.with_hashes(again)
  # Other buckets shuffle their rows differently.
  assert made_other == made.with_hashes(other)
  for path in first.iterdir():
    assert path.read_bytes() == (again / path.name).read_bytes()
    if path.name.startswith(("queries", "candidates")):
      assert path.read_bytes() == (other / path.name).read_bytes()
  for name in schema.SPLITS:
    assert sorted(_read_split(first, name)) == sorted(_read_split(other, name))


def test_ids_are_numbered_in_order_of_appearance():
  """Integers and strings of the same digits are the same id."""
  numbers = [7, -5, 7, 40, 0]
  strings = ["07", "7", "", "-5", "7", " 7"]
  parts = [numbers, [], [], [3, 7], strings, [40, 8], []]
  kinds = [pa.int64()] * 2 + [pa.string(), pa.int64(), pa.string()]
  kinds += [pa.int64(), pa.string()]
  arrays = [*map(pa.array, parts, kinds)]
  slow: dict[str, int] = {}
  expected = [[slow.setdefault(str(i), len(slow)) for i in p] for p in parts]
  for calls in ([arrays], [arrays[:3], arrays[3:]], [[a] for a in arrays]):
    vocab = vocabulary.Vocabulary()
    found = [codes for columns in calls for codes in vocab.encode_all(columns)]
    assert [codes.tolist() for codes in found] == expected
    assert vocab.ids() == list(slow) and len(vocab) == len(slow)
    assert vocab.add(["new", "3"]).tolist() == [len(slow), slow["3"]]


def test_training_rows_are_scattered_over_shards(tmp_path, monkeypatch):
  monkeypatch.setattr(passes, "_ROWS_PER_SHARD", 100)
  rows = [(f"u{u}", f"i{i}", 0, 1.0) for u in range(20) for i in range(25)]
  _write(tmp_path / "r.inter", rows)
  made = prepare.prepare(
    _config(
      tmp_path / "r.inter",
      tmp_path / "out",
      num_buckets=2,
      validation_fraction=0,
    )
  )
  assert [s.file for s in made.shards["train"]] == [
    f"train-{s:05d}-of-00005.tfrecord" for s in range(5)
  ]
  assert [s.rows for s in made.shards["train"]] == [80] * 5
  users = records.read_interactions(tmp_path / "out", "train")["query_id"]
  # Grouped by user, there would be 20 runs; shuffled, most rows start one.
  assert (users[1:] != users[:-1]).mean() > 0.8
  per_shard = [len(set(part)) for part in np.split(users, 5)]
  assert min(per_shard) > 15


def test_side_features(tmp_path):
  (tmp_path / "r.inter").write_text(
    "user_id:token\titem_id:token\n1\tb\n1\ta\n2\tb\n2\td\n"
  )
  (tmp_path / "r.item").write_text(
    "item_id:token\tbrand:token\ttags:token_seq\tprice:float\timg:float_seq"
    "\tblurb:text\n"
    "a\tacme\tx y\t2\t1 3\tA Tea-pot\n"
    "b\tacme\ty\t4\t1 5\ttea!\nc\tother\t\t\t\t\n"
  )
  (tmp_path / "r.user").write_text("user_id:token\tage:float\n2\t7\n9\t7\n")
  made = prepare.prepare(
    _config(
      tmp_path / "r.inter",
      tmp_path / "out",
      columns=inputs.Columns(),
      min_token_count=2,
      text_buckets=100,
      test_fraction=0,
    )
  )
  table = tables.read_table(tmp_path / "out", "candidates")
  assert table.ids.tolist() == ["b", "a", "d", "c"]
  assert table.counts.tolist() == [2, 1, 1, 0]
  brand, tags, price, image, blurb = made.candidate_features
  assert brand.vocabulary == ("", "acme") and tags.vocabulary == ("", "y")
  assert table.columns["brand"].tolist() == [1, 1, 0, 0]
  values, splits = table.columns["tags"]
  assert (values.tolist(), splits.tolist()) == ([1, 0, 1], [0, 1, 3, 3, 3])
  np.testing.assert_array_equal(table.columns["price"], [4, 2, np.nan, np.nan])
  assert (price.mean, price.std) == ((3.0,), (1.0,))
  # The first value is constant, so its standard deviation is 0.
  assert (image.mean, image.std) == ((1.0, 4.0), (1.0, 1.0))
  np.testing.assert_array_equal(table.columns["img"][1], [1, 3])
  codes, splits = table.columns["blurb"]
  assert splits.tolist() == [0, 1, 6, 6, 6]
  assert codes[0] == codes[2] and blurb.num_buckets == 100 > codes.max()
  users = tables.read_table(tmp_path / "out", "queries")
  assert users.ids.tolist() == ["1", "2", "9"]
  np.testing.assert_array_equal(users.columns["age"], [np.nan, 7, 7])
  for name, count in {
    "users_in_no_split": 1,
    "users_without_features": 1,
    "items_without_features": 1,
    "items_without_training_rows": 1,
    "rare_tokens": 2,
  }.items():
    assert made.warnings[name] == count, name
  assert len(made.source.files) == 3


def test_dense_ids_are_kept(tmp_path):
  (tmp_path / "r.txt").write_text("2 1 0\n0 3\n1 2 3\n")
  for buckets in (1, 2):
    made = prepare.prepare(
      _config(
        tmp_path / "r.txt",
        tmp_path / "out",
        columns=inputs.Columns(),
        dense_ids=True,
        test_fraction=0,
        num_buckets=buckets,
        overwrite=True,
      )
    )
    assert made.num_candidates == 4
    for table, size in (("queries", 3), ("candidates", 4)):
      ids = tables.read_table(tmp_path / "out", table).ids
      assert ids.tolist() == [str(i) for i in range(size)]
    assert sorted(_read_split(tmp_path / "out", "train")) == [
      (0, 3, 0),
      (1, 2, 0),
      (1, 3, 1),
      (2, 0, 1),
      (2, 1, 0),
    ]


def test_low_ratings_are_counted(tmp_path):
  (tmp_path / "r.csv").write_text(
    "user_id,item_id,stars\n1,a,5\n1,b,2\n2,b,1\n3,a,4\n"
  )
  made = prepare.prepare(
    _config(
      tmp_path / "r.csv",
      tmp_path / "out",
      columns=inputs.Columns(rating="stars", min_rating=4),
      test_fraction=0,
    )
  )
  assert made.rows["train"] == 2 and made.num_queries == 3
  assert made.warnings["rows_below_min_rating"] == 2
  assert made.warnings["users_in_no_split"] == 1
  assert "1 of 3 users have no rows" in summary.text(made, 1.0)


def test_leakage_is_measured_after_the_split(tmp_path, monkeypatch):
  """The check must notice a broken de-duplication."""
  monkeypatch.setattr(passes.spill, "merged", lambda rows, *unused: rows)
  (tmp_path / "r.csv").write_text("user_id,item_id\n" + "1,a\n" * 3 + "1,b\n")
  made = prepare.prepare(
    _config(
      tmp_path / "r.csv",
      tmp_path / "out",
      columns=inputs.Columns(),
      test_fraction=0.5,
    )
  )
  assert made.leakage["pairs_in_train_and_test"] == 1
  assert "LEAKAGE: pairs_in_train_and_test 1" in summary.text(made, 1)


def test_repeats_and_ties_are_those_of_a_user():
  dtype = spill.row_dtype(has_times=True, has_weights=False, has_splits=True)
  rows = np.zeros(7, dtype)
  rows["row"] = np.arange(7)
  rows["user"] = [1, 0, 0, 0, 0, 1, 1]
  rows["item"] = [8, 8, 8, 8, 8, 9, 9]
  rows["time"] = [4, 3, 3, 1, 4, 4, 5]
  rows["split"] = [0, 2, 0, 0, 2, 1, 0]
  # User 0 at 1, 3, 3, 4; user 1 at 4, 4, 5.
  kept, found = passes.arranged(rows.copy(), 10, None, None, "all")
  assert kept["row"].tolist() == [0, 1, 2, 3, 0, 1, 2]
  assert kept["split"].tolist() == [0, 2, 0, 2, 0, 1, 0]
  assert found == passes.Arranged(7, 0, tied=2, times=(1, 5, 7))
  kept, found = passes.arranged(rows.copy(), 10, None, None, "first")
  assert kept["row"].tolist() == [0, 1, 0, 1, 2]
  assert kept["time"].tolist() == [1, 3, 4, 4, 5]
  assert kept["split"].tolist() == [0, 2, 0, 1, 0]
  assert found == passes.Arranged(5, 2, tied=1, times=(1, 5, 5))


def _given(folder, splits=schema.SPLITS, **kwargs):
  """A config that reads each split from the file of its name."""
  files = {
    name: tuple(map(str, sorted(folder.glob(f"{name}*")))) for name in splits
  }
  return prepare.PrepareConfig(
    input=inputs.Input(**files),
    output=folder / "out",
    overwrite=True,
    **kwargs,
  )


@pytest.mark.parametrize(
  ("form", "keep_repeats"),
  [
    ("inter", False),
    ("csv", True),
    ("parquet", False),
    ("txt", False),  # Without times.
    ("txt", True),
  ],
)
def test_splits_that_the_user_gives(tmp_path, form, keep_repeats):
  """Rows stay in their split, with two training files and repeated pairs."""
  raw = {
    "train-1": [("b", "y", 5), ("a", "x", 3), ("a", "x", 4)],
    "train-2": [("b", "z", 7)],
    "validation": [("a", "w", 6), ("a", "w", 6)],
    "test": [("a", "x", 9), ("c", "y", 2), ("b", "v", 6)],
  }
  folder = tmp_path / "bank"
  folder.mkdir()
  for name, rows in raw.items():
    path = folder / f"{name}.{form}"
    if form == "txt":
      path.write_text("".join(f"{u} {i}\n" for u, i, _ in rows))
    elif form == "parquet":
      columns = zip(*rows, strict=True)
      names = ("user_id", "item_id", "timestamp")
      pq.write_table(pa.table(dict(zip(names, columns, strict=True))), path)
    else:
      header = {
        "csv": ["user_id", "item_id", "timestamp"],
        "inter": ["user_id:token", "item_id:token", "timestamp:float"],
      }[form]
      tab = "," if form == "csv" else "\t"
      lines = [header, *([str(value) for value in row] for row in rows)]
      path.write_text("".join(tab.join(line) + "\n" for line in lines))
  made = prepare.prepare(_given(folder, keep_repeats=keep_repeats))
  has_times = form != "txt"
  users = tables.read_table(folder / "out", "queries").ids
  items = tables.read_table(folder / "out", "candidates").ids
  assert users.tolist() == ["b", "a", "c"]
  assert items.tolist() == ["y", "x", "z", "w", "v"]

  def read(name):
    rows = records.read_interactions(folder / "out", name)
    ids = users[rows["query_id"]], items[rows["candidate_id"]]
    return sorted(zip(*ids, rows["event"].tolist(), strict=True))

  # Without times, rows are in the order of the splits.
  late, more = (1, 2) if has_times else (2, 1)
  if keep_repeats:
    assert read("train") == [
      ("a", "x", 0), ("a", "x", 1), ("b", "y", 0), ("b", "z", more),
    ]  # fmt: skip
    assert read("validation") == [("a", "w", 2), ("a", "w", 3)]
    assert read("test") == [("a", "x", 4), ("b", "v", late), ("c", "y", 0)]
  else:
    assert read("train") == [("a", "x", 0), ("b", "y", 0), ("b", "z", more)]
    assert read("validation") == [("a", "w", 1)]
    assert read("test") == [("a", "x", 2), ("b", "v", late), ("c", "y", 0)]
  assert made.name == "bank" and made.split == schema.Split("given")
  assert [f["split"] for f in made.source.files] == (
    ["train", "train", "validation", "test"]
  )
  repeats = 1 if keep_repeats else 0
  assert made.warnings["duplicate_pairs"] == 2 - 2 * repeats
  assert made.leakage.get("pairs_in_train_and_test", 0) == 1 - repeats
  # User b trains at 7 and tests at 6.
  assert made.leakage.get("train_rows_after_test", None) == (
    1 if has_times else None
  )
  text = summary.text(made, 1.0)
  assert (
    "1 of 3 users have validation or test rows but no training rows" in text
  )
  assert "2 of 5 items have no training row, and 2 of them have" in text


def test_validation_rows_drawn_from_given_training_rows(tmp_path):
  rows = [f"{user},{item},{item}" for user in "ab" for item in range(12)]
  head = "user_id,item_id,timestamp"
  (tmp_path / "train.csv").write_text("\n".join([head, *rows]) + "\n")
  (tmp_path / "test.csv").write_text(f"{head}\na,90,90\nb,91,90\n")
  whole = prepare.prepare(_given(tmp_path, ("train", "test")))
  config = _given(tmp_path, ("train", "test"), validation_fraction=0.25)
  made = prepare.prepare(config)
  assert made.split == schema.Split("given", validation_fraction=0.25, seed=10)
  assert whole.split == schema.Split("given")
  assert made.rows == {"train": 18, "validation": 6, "test": 2}
  held = records.read_interactions(tmp_path / "out", "validation")
  assert np.bincount(held["query_id"]).tolist() == [3, 3]
  assert (
    len(set(held["candidate_id"].tolist())) > 3
  )  # Not the last row of each user.
  assert not any(made.leakage.values()), made.leakage
  assert "(a share of 0.25 of the rows" in summary.text(made, 1.0)
  (tmp_path / "validation.csv").write_text(f"{head}\na,90,90\n")
  with pytest.raises(ValueError, match="omit one of the two"):
    _given(tmp_path, validation_fraction=0.25)


def test_given_splits_that_cannot_be_read(tmp_path):
  (tmp_path / "train.csv").write_text("user_id,item_id\n1,a\n")
  (tmp_path / "test.csv").write_text("user_id,item_id\n")
  with pytest.raises(errors.DataError, match=r"test.csv, line 1: no rows"):
    prepare.prepare(_given(tmp_path))
  (tmp_path / "test.csv").write_text("user_id,item_id,timestamp\n1,a,4\n")
  with pytest.raises(errors.DataError, match="has other columns than"):
    prepare.prepare(_given(tmp_path))
  table = pa.table({"User ID": [1], "item_id": ["a"]})
  pq.write_table(table, tmp_path / "test.parquet")
  (tmp_path / "test.csv").unlink()
  made = prepare.prepare(_given(tmp_path))
  assert made.rows == {"train": 1, "validation": 0, "test": 1}
  assert made.source.kind == "csv+parquet"
  made = prepare.prepare(_given(tmp_path, splits=("train",)))
  assert made.rows == {"train": 1, "validation": 0, "test": 0}
  assert "no test rows" in summary.text(made, 1.0)


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize(
  "where",
  [
    "pipelines.preparation.passes.spill_rows",
    "pipelines.preparation.passes.arrange",
    "pipelines.preparation.passes.write_splits",
    "xir_tfrs.data.table_files.write_table",
    "xir_tfrs.data.schema.Schema.save",
    "xir_tfrs.data.atomic._take_place",
  ],
)
def test_a_crash_leaves_nothing_half_written(
  tmp_path, monkeypatch, where, failure
):
  _write(tmp_path / "r.inter", _raw())
  out = tmp_path / "deep" / "out"
  prepare.prepare(_config(tmp_path / "r.inter", out))
  before = {p.name: p.read_bytes() for p in out.iterdir()}

  def crash(*args, **kwargs):
    if where.endswith("write_splits"):
      real(*args, **kwargs)
    raise failure("injected")

  real = passes.write_splits
  for output in (out, tmp_path / "deep" / "new"):
    with monkeypatch.context() as patch:
      patch.setattr(where, crash)
      with pytest.raises(failure, match="injected"):
        prepare.prepare(
          _config(tmp_path / "r.inter", output, seed=3, overwrite=True)
        )
  assert [p.name for p in out.parent.iterdir()] == ["out"]
  assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_what_may_be_overwritten(tmp_path):
  _write(tmp_path / "r.inter", _raw())
  out = tmp_path / "out"
  config = _config(tmp_path / "r.inter", out)
  again = _config(tmp_path / "r.inter", out, overwrite=True, split="temporal")
  out.mkdir()
  prepare.prepare(config)
  with pytest.raises(errors.DataError, match="replace it with --overwrite"):
    prepare.prepare(config)
  assert prepare.prepare(again).split.kind == "temporal"
  assert schema.Schema.load(out).split.kind == "temporal"
  (out / "notes.txt").write_text("mine")
  with pytest.raises(errors.DataError, match="holds 'notes.txt', which is not"):
    prepare.prepare(again)
  (out / "schema.json").unlink()
  with pytest.raises(errors.DataError, match="is not part of a data directory"):
    prepare.prepare(again)
  with pytest.raises(errors.DataError, match="is not a directory"):
    prepare.prepare(_config(tmp_path / "r.inter", tmp_path / "r.inter"))


def test_command_line(tmp_path):
  """Flags, the printed summary, and the next command."""
  _write(tmp_path / "r.inter", _raw())
  done = program.run(
    "pipelines.prepare",
    f"--input={tmp_path / 'r.inter'}",
    f"--output={tmp_path / 'out'}",
    "--weight_column=w",
    "--split=leave_last",
    "--name=tiny",
  )
  assert done.returncode == 0, done.stderr
  made = schema.Schema.load(tmp_path / "out")
  assert made.name == "tiny" and made.split == schema.Split("leave_last")
  assert "leakage: none in 5 checks" in done.stdout
  assert (
    f"next: xir-tfrs train --data {tmp_path / 'out'} --model_dir" in done.stdout
  )
  assert "Traceback" not in done.stderr


def test_tokens_that_are_like_ids_are_told():
  def made(kind, names):
    vocabulary = ("", *(f"t{n}" for n in range(names)))
    feature = schema.FeatureSchema("title", kind, vocabulary)
    return schema.Schema(
      name="a b",
      num_queries=9,
      num_candidates=200,
      rows={"train": 9},
      shards={},
      candidate_features=(feature,),
    )

  text = summary.text(made("token", 170), 1.0)
  assert "warning: title is another token for nearly every item" in text
  assert "--item_features title:text" in text and "--item_title" in text
  command = summary.following(made("token", 2), "out")
  assert command.endswith("--data out --model_dir 'runs/a b'")
  for other in (made("token", 150), made("token_seq", 170)):
    assert "nearly every" not in summary.text(other, 1.0)


@pytest.mark.parametrize(
  ("repeats", "num_buckets"),
  [*((repeats, 3) for repeats in spill.REPEATS), ("sum", 1)],
)
def test_repeats_against_a_slow_twin(tmp_path, repeats, num_buckets):
  rows = _raw()
  _write(tmp_path / "r.inter", rows)
  made = prepare.prepare(
    _config(
      tmp_path / "r.inter",
      tmp_path / "out",
      split="leave_last",
      repeats=repeats,
      num_buckets=num_buckets,
    )
  )
  users = tables.read_table(tmp_path / "out", "queries").ids
  items = tables.read_table(tmp_path / "out", "candidates").ids
  found = {
    (users[user], items[item]): (time, weight)
    for name in schema.SPLITS
    for user, item, _, time, weight in _read_split(tmp_path / "out", name)
  }
  expected = {}
  for user, item, time, weight in sorted(rows, key=lambda row: row[2]):
    before = expected.get((user, item))
    if before is None or repeats == "last":
      expected[user, item] = (time, weight)
    elif repeats == "sum":
      expected[user, item] = (before[0], before[1] + weight)
    elif repeats == "max" and weight > before[1]:
      expected[user, item] = (time, weight)
  assert found == expected
  assert made.warnings["duplicate_pairs"] == len(rows) - len(expected)


def test_repeats_that_need_weights(tmp_path):
  _write(tmp_path / "r.inter", _raw())
  with pytest.raises(errors.DataError, match="--repeats sum needs weights"):
    prepare.prepare(
      _config(
        tmp_path / "r.inter",
        tmp_path / "out",
        columns=inputs.Columns(),
        repeats="sum",
      )
    )


@pytest.mark.parametrize("num_buckets", [1, 4])
def test_sessions_replace_users(tmp_path, num_buckets):
  rng = np.random.default_rng(3)
  rows = [
    (f"u{rng.integers(6)}", f"i{k}", 1_600_000_000 + int(t), 1.0)
    for k, t in enumerate(rng.integers(20_000, size=60))
  ]
  _write(tmp_path / "r.inter", rows)
  made = prepare.prepare(
    _config(
      tmp_path / "r.inter",
      tmp_path / "out",
      session_gap="20m",
      split="leave_last",
      num_buckets=num_buckets,
    )
  )
  expected, last = {}, {}
  for user, item, time, _ in sorted(rows, key=lambda row: row[2]):
    number, before = last.get(user, (1, time))
    last[user] = (number + (time - before > 1200), time)
    expected[item] = f"{user}#{last[user][0]}"
  users = tables.read_table(tmp_path / "out", "queries").ids
  items = tables.read_table(tmp_path / "out", "candidates").ids
  found = {
    items[item]: users[user]
    for name in schema.SPLITS
    for user, item, *_ in _read_split(tmp_path / "out", name)
  }
  assert found == expected and made.num_queries == len(set(expected.values()))
  assert made.num_queries > 6


def test_sessions_need_times_of_a_known_unit(tmp_path):
  (tmp_path / "r.csv").write_text("user_id,item_id,timestamp\n1,a,5\n2,b,7\n")

  def config(**kwargs):
    columns = inputs.Columns(**kwargs)
    return _config(
      tmp_path / "r.csv", tmp_path / "out", columns=columns, session_gap="1h"
    )

  for kwargs in ({}, {"time": "none"}):
    with pytest.raises(errors.DataError, match="needs times of a known unit"):
      prepare.prepare(config(**kwargs))
  made = prepare.prepare(config(time_unit="s"))
  assert made.num_queries == 2
  with pytest.raises(ValueError, match="such as 30m"):
    dataclasses.replace(config(), session_gap="soon")


def test_odd_ids_are_counted(tmp_path):
  (tmp_path / "r.csv").write_text(
    "user_id,item_id\n7,a\n 7,b\n7 ,c\nnan,a\nNULL,b\n8,None\n9,a\n"
    "9,caf\u00e9\n9,cafe\u0301\n"
  )
  made = prepare.prepare(
    _config(tmp_path / "r.csv", tmp_path / "out", columns=inputs.Columns())
  )
  assert made.warnings["rows_with_ids_like_missing"] == 3
  assert made.warnings["ids_alike"] == 3
  text = summary.text(made, 1.0)
  assert "3 rows have an id such as nan or NULL" in text
  assert "3 ids differ from another only by spaces" in text


def test_separators_and_columns_of_0_and_1_reach_the_schema(tmp_path):
  (tmp_path / "r.csv").write_text("user_id,item_id\n1,a\n1,b\n2,a\n2,b\n")
  (tmp_path / "i.csv").write_text(
    "movie,genre_x,genre_y,words,tags\na,1,0,u|v w,p;q\nb,1,1,u,\n"
  )
  config = _config(
    tmp_path / "r.csv",
    tmp_path / "out",
    columns=inputs.Columns(
      item_features=("genre_*", "words:token_seq", "tags:token_seq"),
      separators={"tags": ";"},
    ),
  )
  config = dataclasses.replace(
    config,
    input=dataclasses.replace(config.input, item_file=str(tmp_path / "i.csv")),
  )
  made = prepare.prepare(config)
  found = {f.name: (f.vocabulary, f.separator) for f in made.candidate_features}
  assert found == {
    "genre": (("", "x", "y"), None),
    "words": (("", "u", "v w"), "|"),
    "tags": (("", "p", "q"), ";"),
  }
  assert schema.Schema.load(tmp_path / "out") == made
  text = summary.text(made, 1.0)
  assert "words (token_seq, 3 tokens, split at '|')" in text


@pytest.mark.parametrize("dense", [False, True])
def test_titles_of_the_interactions(tmp_path, dense):
  raw = tmp_path / "raw.csv"
  rows = ["0,2,", "0,0,Heat", '1,2,"Café\n 2"', "1,1,", "2,2,Later", "2,0,"]
  raw.write_text("user_id,item_id,Title\n" + "\n".join(rows) + "\n")
  columns = inputs.Columns(item_title="title")
  config = _config(
    raw, tmp_path / "out", columns=columns, chunk_bytes=16, dense_ids=dense
  )
  made = prepare.prepare(config)
  assert made.item_title == "Title"
  assert not made.candidate_features
  assert made.warnings["items_without_title"] == 1
  found = directory.DataDir(tmp_path / "out")
  ids = [x.decode() for x in found.ids("candidates")]
  titles = dict(zip(ids, found.titles(), strict=True))
  assert titles == {"2": "Café 2", "0": "Heat", "1": ""}
  assert ids == (["0", "1", "2"] if dense else ["2", "0", "1"])
  assert "1 of 3 items have no title" in summary.text(made, 1)


def test_titles_of_the_item_file(tmp_path):
  raw, items = tmp_path / "raw.csv", tmp_path / "items.csv"
  raw.write_text("user_id,item_id,name\n1,a,x\n1,b,x\n2,a,x\n")
  items.write_text("item_id,name,price\nc,Sea,2\nb, Bee,3\n")

  def config(title):
    made = _config(
      raw, tmp_path / "out", columns=inputs.Columns(item_title=title)
    )
    return dataclasses.replace(
      made,
      input=dataclasses.replace(made.input, item_file=str(items)),
      overwrite=True,
    )

  made = prepare.prepare(config("NAME"))
  found = directory.DataDir(tmp_path / "out")
  ids = [x.decode() for x in found.ids("candidates")]
  assert dict(zip(ids, found.titles(), strict=True)) == {
    "a": "",
    "b": "Bee",
    "c": "Sea",
  }
  # It is not a feature, and no features are requested.
  assert not made.candidate_features
  assert not made.warnings["items_without_features"]
  assert "ignored columns: name, price (of items.csv)" in summary.text(made, 1)
  with pytest.raises(
    errors.DataError, match="items.csv, line 1, column .no.: no such c"
  ):
    prepare.prepare(config("no"))
  plain = _config(raw, tmp_path / "out", overwrite=True)
  prepare.prepare(dataclasses.replace(plain, input=inputs.Input((str(raw),))))
  assert directory.DataDir(tmp_path / "out").titles() is None
