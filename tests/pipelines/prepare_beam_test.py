"""`pipelines.prepare_beam` writes the same files as `pipelines.prepare`."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from pipelines import prepare, prepare_beam
from pipelines.beam import first_pass
from pipelines.preparation import passes
from pipelines.readers import blocks, inputs, sources
from tests import program
from xir_tfrs.data import errors, schema
from xir_tfrs.programs import main as main_lib


def _rows(seed, rows=500, users=60, items=40):
  """Text fields: repeated pairs, equal times, users not in order."""
  rng = np.random.default_rng(seed)
  return [
    (f"ü{u}", f"i {i}", str(t), str(w), str(s))
    for u, i, t, w, s in zip(
      rng.zipf(1.4, size=rows) % users,
      rng.integers(items, size=rows),
      rng.integers(200, size=rows),
      rng.integers(1, 9, size=rows) / 4,
      rng.integers(1, 6, size=rows),
      strict=True,
    )
  ]


def _write_text(path, header, rows, separator, end="\n"):
  lines = [header, *(separator.join(row) for row in rows)]
  path.write_text("\n".join(lines) + end, encoding="utf-8")
  return str(path)


def _atomic(folder):
  """With both side tables, which also have unknown ids."""
  header = "user_id:token\titem_id:token\ttimestamp:float"
  rows = [row[:3] for row in _rows(0)]
  path = _write_text(folder / "a.inter", header, rows, "\t")
  rng = np.random.default_rng(1)
  _write_text(
    folder / "a.item",
    "item_id:token\tkind:token\ttags:token_seq\tprice:float\timage:float_seq",
    [
      (
        f"i {i}",
        f"k{rng.integers(4)}",
        " ".join(f"t{t}" for t in rng.integers(9, size=rng.integers(4))),
        str(rng.normal()) if i % 5 else "",
        f"{rng.normal()} {rng.normal()}",
      )
      for i in range(50, 10, -1)
    ],
    "\t",
  )
  _write_text(
    folder / "a.user",
    "user_id:token\tage:float",
    [(f"ü{u}", str(rng.normal())) for u in range(40, 90)],
    "\t",
  )
  return inputs.Input(paths=(path,), chunk_bytes=700)


def _csv(folder):
  """Three files: blank lines, quotes, ratings, weights, no last newline."""
  header = "user_id,item_id,seen,w,stars"
  for part in range(3):
    rows = [
      # A few times are outliers, so the cuts are close together in a long
      # range.
      (f'"{user},x"', item, time + "0" * (14 * (k % 20 == 0)), *rest)
      for k, (user, item, time, *rest) in enumerate(_rows(part, rows=200))
    ]
    rows.insert(77, ("",))
    _write_text(
      folder / f"c{part}.csv",
      ("\ufeff" if part == 1 else "") + header,
      rows,
      ",",
      end="" if part == 2 else "\n",
    )
  columns = inputs.Columns(
    time="seen", weight="w", rating="stars", min_rating=2.0
  )
  pattern = str(folder / "c*.csv")
  return inputs.Input(paths=(pattern,), columns=columns, chunk_bytes=999)


def _parquet(folder):
  for part in range(2):
    user, item, time, weight, _ = zip(*_rows(part), strict=True)
    table = pa.table(
      {
        "user_id": user,
        "item_id": pa.array(item).dictionary_encode(),
        "timestamp": pa.array(map(int, time), pa.timestamp("s")),
        "w": list(map(float, weight)),
      }
    )
    pq.write_table(table, folder / f"p{part}.parquet", row_group_size=70)
  return inputs.Input(
    paths=(str(folder),),
    columns=inputs.Columns(weight="w"),
    chunk_bytes=100 * blocks.ROW_BYTES,
  )


def _adjacency(folder):
  """Ids that are already dense, and lines longer than a piece."""
  rng = np.random.default_rng(3)
  lines = [[u, *rng.integers(70, size=1 + u % 40)] for u in rng.permutation(50)]
  lines[5:5] = [[], [0, *range(70)], [88]]
  text = "\n".join(" ".join(map(str, line)) for line in lines)
  (folder / "g.txt").write_text(text)
  return inputs.Input(paths=(str(folder / "g.txt"),), chunk_bytes=64)


def _given(folder):
  """Splits in separate files, with a pair in two of them and unknown ids."""
  files = {}
  for part, split in enumerate(schema.SPLITS):
    rows = [row[:3] for row in _rows(part, rows=300 - 100 * part)]
    header = "user_id,item_id,timestamp"
    files[split] = (_write_text(folder / f"{split}.csv", header, rows, ","),)
  return inputs.Input(**files, chunk_bytes=999)


def _synthetic(folder):
  """Input that only one worker can read."""
  del folder
  return inputs.Input(
    format="synthetic",
    synthetic=inputs.SyntheticConfig(
      num_users=600, num_items=90, num_interactions=4000
    ),
  )


_FRACTIONS = {"validation_fraction": 0.2, "test_fraction": 0.3}
_CASES = {
  "atomic_random": (_atomic, {"min_token_count": 3, **_FRACTIONS}),
  "atomic_leave_last": (_atomic, {"split": "leave_last"}),
  "csv_temporal": (_csv, {"split": "temporal", **_FRACTIONS}),
  "parquet_random": (_parquet, {"seed": 3}),
  "csv_repeats": (_csv, {"split": "leave_last", "keep_repeats": True}),
  "csv_given": (_given, {}),
  "adjacency": (_adjacency, {"split": "leave_last", "dense_ids": True}),
  "synthetic_random": (_synthetic, {"num_buckets": 1}),
}


def _contents(directory):
  return {p.name: p.read_bytes() for p in directory.iterdir()}


@pytest.mark.parametrize("case", _CASES)
def test_writes_what_prepare_writes(tmp_path, monkeypatch, case):
  """Vocabularies, counts, splits, rows and their order match in every byte."""
  monkeypatch.setattr(passes, "_ROWS_PER_SHARD", 150)
  write, options = _CASES[case]
  (tmp_path / "raw").mkdir()
  raw = write(tmp_path / "raw")
  options = {"num_buckets": 5, **options}
  one = prepare.prepare(
    prepare.PrepareConfig(input=raw, output=tmp_path / "one", **options)
  )
  many = prepare_beam.prepare_beam(
    prepare.PrepareConfig(input=raw, output=tmp_path / "many", **options)
  )
  assert many == one == schema.Schema.load(tmp_path / "many")
  assert all(one.rows[split] for split in ("train", "test"))
  assert len(one.shards["train"]) > 1
  assert _contents(tmp_path / "many") == _contents(tmp_path / "one")
  assert {p.name for p in tmp_path.iterdir()} == {"raw", "one", "many"}


def test_workers_need_no_tensorflow():
  """It would cost each worker seconds and hundreds of MiB."""
  code = (
    "import sys; from pipelines.beam import first_pass, second_pass;"
    "from pipelines.readers import sources; print('tensorflow' in sys.modules)"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert done.stdout == "False\n"


@pytest.mark.parametrize(
  "ids",
  [
    [str(7_000_000_000 + k) for k in range(4000)],
    [f"https://example.org/ü/{k}/index.html" for k in range(4000)],
    ["x" * k + "y" for k in range(2000)],
  ],
  ids=["numbers", "addresses", "lengths"],
)
def test_ids_spread_over_shares(ids):
  found = first_pass.shares_of(pa.array(ids), 8)
  counts = np.bincount(found, minlength=8)
  assert len(counts) == 8 and counts.min() > 0.7 * counts.mean()
  # Whichever ids a block has, each id goes to the same share.
  part = first_pass.shares_of(pa.array(ids).slice(3, 500), 8)
  np.testing.assert_array_equal(part, found[3:503])


@pytest.mark.parametrize("write", [_atomic, _csv, _parquet, _adjacency])
def test_pieces_are_the_input(tmp_path, write):
  """Pieces, read in any order, have the rows of `blocks`."""
  source = sources.open_source(write(tmp_path))
  expected, warnings = [], {}
  for _, block in source.blocks():
    expected += _described(block)
  warnings = dict(source.warnings)
  pieces = source.pieces()
  assert len(pieces) > 5
  found, counted = {}, {}
  for piece in reversed(pieces):
    for position, block in source.read(piece, count_lines=True):
      for place, row in enumerate(_described(block), position):
        assert place not in found
        found[place] = row
    for name, count in source.warnings.items():
      counted[name] = counted.get(name, 0) + count
  assert [found[place] for place in sorted(found)] == expected
  assert counted == warnings


def _described(block):
  """The line, ids and numbers of each row."""
  lines = block.places.all(len(block.users)).tolist()
  columns = [lines, *block.strings()]
  columns += [c for c in (block.times, block.weights) if c is not None]
  paths = [block.places.path] * len(block.users)
  return list(zip(paths, *columns, strict=True))


def _bad_line(folder):
  """Two errors, far apart: the first is reported."""
  rows = _rows(0)
  rows[301] = (*rows[301][:2], "soon", "1", "1")
  rows[412] = rows[412][:2]
  _write_text(folder / "b.csv", "user_id,item_id,timestamp,w,s", rows, ",")
  return ("b.csv", "line 303", "'timestamp'", "'soon' is not a number"), {}


def _bad_weight(folder):
  rows = _rows(0)
  rows[260] = (*rows[260][:3], "-1", "1")
  _write_text(folder / "b.csv", "user_id,item_id,timestamp,w,s", rows, ",")
  columns = inputs.Columns(weight="w")
  return ("b.csv", "line 262", "'w'", "not a weight"), {"columns": columns}


def _empty_before_bad(folder):
  header = "user_id,item_id"
  _write_text(folder / "a.csv", header, [("1", "2")], ",")
  _write_text(folder / "b.csv", header, [], ",")
  _write_text(folder / "c.csv", header, [("", "2")], ",")
  return ("c.csv", "line 2", "empty id"), {}


def _bad_row(folder):
  ids = [f"i{i}" for i in range(300)]
  ids[222] = None
  table = pa.table({"user_id": list(range(300)), "item_id": ids})
  pq.write_table(table, folder / "b.parquet", row_group_size=50)
  return ("b.parquet", "row 223", "'item_id'", "empty id"), {}


def _not_dense(folder):
  lines = [f"{u} {u}" for u in range(200)]
  lines[150] = "150 x7"
  (folder / "b.txt").write_text("\n".join(lines))
  return ("b.txt", "line 151", "not a dense id"), {"dense_ids": True}


def _gap(folder):
  lines = [f"{u} {(7 * u) % 200}" for u in range(200)]
  lines[120] = "120 300"
  lines[160] = "160 300"
  (folder / "b.txt").write_text("\n".join(lines))
  return ("b.txt", "line 121", "is missing among"), {"dense_ids": True}


def _nothing_left(folder):
  _write_text(folder / "b.csv", "user_id,item_id,timestamp,w,s", _rows(0), ",")
  columns = inputs.Columns(rating="s", min_rating=9.0)
  return ("none of the 0 rows",), {"columns": columns, "split": "temporal"}


@pytest.mark.parametrize(
  "write",
  [
    _bad_line,
    _bad_weight,
    _empty_before_bad,
    _bad_row,
    _not_dense,
    _gap,
    _nothing_left,
  ],
)
def test_bad_input_is_named_as_prepare_names_it(tmp_path, write):
  raw = tmp_path / "raw"
  raw.mkdir()
  parts, options = write(raw)
  files = tuple(str(path) for path in sorted(raw.iterdir()))
  columns = options.pop("columns", inputs.Columns())
  config = prepare.PrepareConfig(
    input=inputs.Input(paths=files, columns=columns, chunk_bytes=400),
    output=tmp_path / "deep" / "out",
    num_buckets=3,
    **options,
  )
  with pytest.raises(errors.DataError) as one:
    prepare.prepare(config)
  with pytest.raises(errors.DataError) as many:
    prepare_beam.prepare_beam(config)
  assert str(many.value) == str(one.value)
  for name in ("path", "line", "row", "column"):
    assert getattr(many.value, name) == getattr(one.value, name)
  for part in parts:
    assert part in str(many.value)
  assert not (tmp_path / "deep").exists()


def test_a_crash_of_a_worker_leaves_nothing(tmp_path, monkeypatch):
  raw = _atomic(tmp_path)
  before = {p.name for p in tmp_path.iterdir()}

  def crash(*unused):
    raise RuntimeError("injected")

  monkeypatch.setattr(passes, "divide", crash)
  with pytest.raises(RuntimeError, match="injected"):
    prepare_beam.prepare_beam(
      prepare.PrepareConfig(input=raw, output=tmp_path / "out")
    )
  assert {p.name for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
  ("given", "expected"),
  [
    (["--validation_fracton=0.1"], "did you mean --validation_fraction?"),
    (["--runer", "DirectRunner"], "did you mean --runner?"),
    (["--runner=FlinkRunner", "--sed=3"], "did you mean --seed?"),
    (["--quux=3"], "--quux is not a flag of xir-tfrs or of Beam"),
    (["more.csv"], "'more.csv' is not the value of a flag"),
    (["--runner=Foo"], "Unexpected pipeline runner: Foo"),
  ],
)
def test_unknown_flags_are_refused(given, expected):
  with pytest.raises(ValueError, match=".") as error:
    prepare_beam.pipeline_options_of(given)
  assert expected in str(error.value)


def test_flags_that_a_service_may_take():
  given = ["--runner=FlinkRunner", "--quux", "3", "--direct_num_workers=2"]
  options = prepare_beam.pipeline_options_of(given).get_all_options(
    retain_unknown_options=True
  )
  assert options["quux"] == "3" and options["direct_num_workers"] == 2


def test_without_beam_it_names_the_extra(tmp_path, monkeypatch, capsys):
  for name in [n for n in sys.modules if n.startswith("pipelines.beam")]:
    monkeypatch.delitem(sys.modules, name)
  monkeypatch.setitem(sys.modules, "apache_beam", None)
  _atomic(tmp_path)
  status = main_lib.run(
    prepare.PrepareConfig,
    prepare_beam.main,
    keep_unknown=True,
    argv=["", f"--input={tmp_path / 'a.inter'}", f"--output={tmp_path / 'o'}"],
  )
  assert status == 1
  assert "pip install -e '.[beam]'" in capsys.readouterr().err
  assert not (tmp_path / "o").exists()


def test_command_line(tmp_path):
  """Flags of both kinds, in any order, and the printed summary."""
  raw = _atomic(tmp_path).paths[0]
  done = program.run(
    "pipelines.prepare_beam",
    "--runner",
    "DirectRunner",
    f"--input={raw}",
    # Otherwise this runner tries to download another one.
    "--update_compatibility_version=2.77.0",
    "--output",
    str(tmp_path / "out"),
    "--split=leave_last",
    "--name=tiny",
  )
  assert done.returncode == 0, done.stderr
  made = schema.Schema.load(tmp_path / "out")
  assert made.name == "tiny" and made.split == schema.Split("leave_last")
  assert "leakage: none in 5 checks" in done.stdout
  assert "Traceback" not in done.stderr
