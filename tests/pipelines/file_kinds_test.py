"""Files of many kinds are read without flags."""

import bz2
import gzip
import json
import lzma
import random
import zipfile

import fsspec
import pyarrow as pa
import pytest
from pyarrow import csv as arrow_csv
from pyarrow import feather, orc
from pyarrow import parquet as pq

from pipelines.readers import inputs, sources
from xir_tfrs.data import errors

_NOON = 1_682_944_200  # 2023-05-01 12:30:00 UTC
_ROWS = [
  ("196", "242", 3, _NOON),
  ("186", "302", 3, _NOON + 60),
  ("196", "377", 1, _NOON + 86_400 * 12),
  ("22", "377", 5, _NOON + 7),
]
_EVENTS = [(u, i, t) for u, i, _, t in _ROWS]
_HEADER = "user_id,item_id,rating,timestamp"


def _open(*paths, layout=None, columns=None, **kwargs):
  return sources.open_source(
    inputs.Input(
      paths=tuple(map(str, paths)),
      layout=inputs.FileLayout(**(layout or {})),
      columns=inputs.Columns(**(columns or {})),
      **kwargs,
    )
  )


def _read(source):
  found = []
  for _, block in source.blocks():
    columns = [*block.strings()]
    if block.times is not None:
      columns.append(block.times.tolist())
    if block.weights is not None:
      columns.append(block.weights.tolist())
    found += zip(*columns, strict=True)
  return found


def _text(header=_HEADER, mark=",", end="\n", rows=_ROWS):
  lines = [header.replace(",", mark)] if header else []
  lines += [mark.join(map(str, row)) for row in rows]
  return end.join(lines) + end


def _zipped(path, text):
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("ratings.csv", text)


def _zstandard(path, text):
  with pa.CompressedOutputStream(str(path), "zstd") as stream:
    stream.write(text.encode())


def _objects():
  return [dict(zip(_HEADER.split(","), row, strict=True)) for row in _ROWS]


def _table():
  return pa.Table.from_pylist(_objects())


def _csv(text):
  return lambda path: path.write_bytes(
    text if isinstance(text, bytes) else text.encode()
  )


_CSV = _text()
_JSON_LINES = "".join(json.dumps(one) + "\n" for one in _objects())
# Name -> its writer, and a part of its description.
_KINDS = {
  "a.csv": (_csv(_CSV), "CSV, header, times 1682944200 (Unix seconds)"),
  "a.csv.gz": (lambda p: p.write_bytes(gzip.compress(_CSV.encode())), "gzip"),
  "a.csv.bz2": (lambda p: p.write_bytes(bz2.compress(_CSV.encode())), "bz2"),
  "a.csv.xz": (lambda p: p.write_bytes(lzma.compress(_CSV.encode())), "xz"),
  "a.csv.zst": (lambda p: _zstandard(p, _CSV), "zstd"),
  "a.zip": (lambda p: _zipped(p, _CSV), "CSV, zip, header"),
  # The name need not end in a compression suffix.
  "packed.csv": (lambda p: p.write_bytes(gzip.compress(_CSV.encode())), "gzip"),
  "two-parts.csv.gz": (
    lambda p: p.write_bytes(
      gzip.compress(_CSV[:30].encode()) + gzip.compress(_CSV[30:].encode())
    ),
    "gzip",
  ),
  "a.jsonl": (_csv(_JSON_LINES), "json, times"),
  "a.json.gz": (
    lambda p: p.write_bytes(gzip.compress(_JSON_LINES.encode())),
    "json, gzip",
  ),
  "array.json": (_csv(json.dumps(_objects())), "json, times"),
  "pretty.json": (_csv(json.dumps(_objects(), indent=2)), "json, times"),
  "repr.json": (_csv("".join(f"{one!r}\n" for one in _objects())), "json"),
  "a.feather": (lambda p: feather.write_feather(_table(), str(p)), "arrow"),
  "a.orc": (lambda p: orc.write_table(_table(), str(p)), "orc"),
  "a.parquet": (lambda p: pq.write_table(_table(), p), "parquet"),
  "u.data": (_csv(_text("", "\t")), "TSV, no header, times 1682944200"),
  "ratings.dat": (_csv(_text("", "::")), "CSV, '::', no header"),
  "noheader.csv": (_csv(_text("")), "CSV, no header"),
  "semicolon.csv": (_csv(_text(mark=";")), "CSV, ';', header"),
  "pipe.txt": (_csv(_text(mark="|")), "CSV, '|', header"),
  "excel.csv": (
    _csv("sep=;\n" + _text(mark=";", end="\r\n")),
    "CSV, ';', head",
  ),
  "comment.csv": (_csv("# by hand\n# twice\n" + _CSV), "header, # comments"),
  "header-in-comment.csv": (_csv("# " + _CSV), "no header, # comments"),
  "case.csv": (_csv(_text("User_ID,Item Id,rating,TimeStamp")), "CSV"),
  "spaces.csv": (_csv(_text(mark=", ")), "CSV, header"),
  "bom.csv": (_csv(b"\xef\xbb\xbf" + _CSV.encode()), "CSV, header"),
  "utf16.csv": (_csv(_CSV.encode("utf-16")), "CSV, utf-16, header"),
  "utf16le.csv": (_csv(_CSV.encode("utf-16-le")), "CSV, utf-16-le, header"),
  "index.csv": (
    _csv("," + _CSV.replace("\n", "\n0,").removesuffix("0,")),
    "CSV",
  ),
  "iso.csv": (
    _csv(
      _HEADER + "\n"
      "196,242,3,2023-05-01 12:30:00\n186,302,3,2023-05-01 12:31:00\n"
      "196,377,1,2023-05-13 12:30:00\n22,377,5,2023-05-01 12:30:07\n"
    ),
    "times 2023-05-01 12:30:00 UTC",
  ),
  "zones.csv": (
    _csv(
      _HEADER + "\n"
      "196,242,3,2023-05-01T12:30:00Z\n186,302,3,2023-05-01T14:31:00+02:00\n"
      "196,377,1,2023-05-13T12:30:00Z\n22,377,5,2023-05-01T12:30:07Z\n"
    ),
    "times 2023-05-01T12:30:00Z",
  ),
  "american.csv": (
    _csv(
      _HEADER + "\n"
      "196,242,3,05/01/2023 12:30:00 PM\n186,302,3,05/01/2023 12:31:00 PM\n"
      "196,377,1,05/13/2023 12:30:00 PM\n22,377,5,05/01/2023 12:30:07 PM\n"
    ),
    "(%m/%d/%Y %I:%M:%S %p)",
  ),
  "text.parquet": (
    lambda p: pq.write_table(
      pa.table(
        {
          "user_id": pa.array([u for u, *_ in _ROWS]).dictionary_encode(),
          "item_id": [float(i) for _, i, *_ in _ROWS],
          "timestamp": [str(t) for *_, t in _ROWS],
        }
      ),
      p,
    ),
    "parquet, times 1682944200",
  ),
  "moments.parquet": (
    lambda p: pq.write_table(
      pa.table(
        {
          "user_id": [int(u) for u, *_ in _ROWS],
          "item_id": [i for _, i, *_ in _ROWS],
          "timestamp": pa.array(
            [t * 10**9 for *_, t in _ROWS], pa.timestamp("ns", "UTC")
          ),
        }
      ),
      p,
    ),
    "parquet, times 2023-05-01 12:30:00",
  ),
}


@pytest.mark.parametrize("chunk_bytes", [50, 16 << 20])
@pytest.mark.parametrize("name", _KINDS)
def test_kinds_of_files(tmp_path, name, chunk_bytes):
  write, shown = _KINDS[name]
  write(tmp_path / name)
  source = _open(tmp_path / name, chunk_bytes=chunk_bytes)
  assert shown in source.read_as
  assert _read(source) == _EVENTS
  fingerprint = source.files()[0]
  assert fingerprint["bytes"] == (tmp_path / name).stat().st_size


def test_detected_settings_can_be_given_as_flags(tmp_path):
  (tmp_path / "a").write_text(_text("", "\t").replace("242", "é42"), "latin-1")
  source = _open(
    tmp_path / "a",
    format="csv",
    layout={
      "compression": "none",
      "encoding": "latin-1",
      "delimiter": "tab",
      "quoting": "none",
      "header": False,
      "names": ("who", "what", "how", "when"),
    },
    columns={
      "user": "who",
      "item": "what",
      "time": "when",
      "time_format": "number",
      "time_unit": "s",
    },
  )
  assert _read(source)[0] == ("196", "é42", _NOON)
  source = _open(tmp_path / "a", columns={"user": "1", "item": "3"})
  assert _read(source)[0] == ("196", "3")


@pytest.mark.parametrize(
  ("content", "encoding", "shown"),
  [
    ("1::Café (1995)::9\n2::Ärger::7\n", "latin-1", "latin-1"),
    ("1::“Amélie”::9\n2::x::7\n", "windows-1252", "windows-1252"),
    ("1::Amélie::9\n2::x::7\n", "utf-8", "'::', no header"),
  ],
)
def test_encodings(tmp_path, content, encoding, shown):
  (tmp_path / "a.dat").write_bytes(content.encode(encoding))
  source = _open(tmp_path / "a.dat")
  assert shown in source.read_as
  assert _read(source)[0][1] in content


def test_quotes_escaped_by_backslashes(tmp_path):
  (tmp_path / "a.csv").write_bytes(
    '"User-ID";"ISBN";"Title"\r\n'
    '"1";"0001";"Erzählung; \\"zwei\\""\r\n"2";"0\\"2";"x"\r\n'.encode(
      "latin-1"
    )
  )
  source = _open(tmp_path / "a.csv")
  assert "CSV, ';', quoting backslash, latin-1, header" in source.read_as
  assert _read(source) == [("1", "0001"), ("2", '0"2')]


def test_quotes_that_are_data(tmp_path):
  (tmp_path / "a.tsv").write_text('user\titem\n1\t"b\n2\tc" d\n3\t"\n')
  source = _open(tmp_path / "a.tsv")
  assert "quoting none" in source.read_as
  assert _read(source) == [("1", '"b'), ("2", 'c" d'), ("3", '"')]


@pytest.mark.parametrize("chunk_bytes", [1, 7, 1000])
def test_line_breaks_in_quoted_fields(tmp_path, chunk_bytes):
  text = 'user_id,item_id,review\n1,a,"two\n\nlines, ""quoted"""\n2,"b\nc",\n'
  (tmp_path / "a.csv").write_text(text + "3,d,e\n")
  source = _open(tmp_path / "a.csv", chunk_bytes=chunk_bytes)
  blocks = [block for _, block in source.blocks()]
  items = [item for block in blocks for item in block.items.to_pylist()]
  assert items == ["a", "b\nc", "d"]
  lines = [n for b in blocks for n in b.places.all(len(b.users)).tolist()]
  assert lines == [2, 5, 7]
  assert len(source.pieces()) == 1  # The file cannot be cut.


def test_a_file_of_lists_and_records(tmp_path):
  sessions = [
    {"session": 7, "events": [{"aid": 1, "ts": 5, "type": "clicks"},
                              {"aid": 2, "ts": 6, "type": "orders"}]},
    {"session": 8, "events": []},
    {"session": 9, "events": [{"aid": 3, "ts": 4, "type": "carts"}]},
  ]  # fmt: skip
  text = "".join(json.dumps(one) + "\n" for one in sessions)
  (tmp_path / "otto.jsonl").write_text(text)
  (tmp_path / "otto.json").write_text(json.dumps(sessions))
  table = pa.Table.from_pylist(sessions)
  pq.write_table(table, tmp_path / "otto.parquet")
  orc.write_table(table, tmp_path / "otto.orc")
  for name in ("otto.jsonl", "otto.json", "otto.parquet", "otto.orc"):
    source = _open(tmp_path / name)
    assert _read(source) == [("7", "1", 5), ("7", "2", 6), ("9", "3", 4)], name
    assert source.warnings["users_without_items"] == 1
    source = _open(
      tmp_path / name,
      columns={"event": "events.type", "events": ("orders:2", "carts:1")},
    )
    assert _read(source) == [("7", "2", 6, 2.0), ("9", "3", 4, 1.0)]


def test_folders_of_parts(tmp_path):
  for day, rows in enumerate((_ROWS[:2], [], _ROWS[2:]), 1):
    folder = tmp_path / "log" / f"day={day}"
    folder.mkdir(parents=True)
    (folder / "part-0.csv").write_text(_text(rows=rows))
    (folder / "_SUCCESS").touch()
    (folder / ".part-0.csv.crc").write_bytes(b"\1\2")
  (tmp_path / "log" / "day=1" / "part-1.csv").touch()
  source = _open(tmp_path / "log")
  assert _read(source) == _EVENTS
  assert source.warnings["empty_files"] == 2
  assert "read as (3 files): CSV" in source.read_as
  (tmp_path / "log" / "day=2" / "part-1.csv").write_text("user_id,asin\n1,2\n")
  with pytest.raises(errors.DataError, match=r"day=2/part-1\.csv.* other colu"):
    _open(tmp_path / "log")


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_columns_in_the_names_of_folders(tmp_path, form):
  for day, shop, user in (
    ("2023-05-01", "a%2Fb", "7"),
    ("2023-05-02", "__HIVE_DEFAULT_PARTITION__", "8"),
  ):
    folder = tmp_path / "log" / f"day={day}" / f"shop={shop}"
    folder.mkdir(parents=True)
    if form == "csv":
      (folder / "part-0.csv").write_text(f"user_id,item_id\n{user},x\n9,y\n")
    else:
      table = pa.table({"user_id": [int(user), 9], "item_id": ["x", "y"]})
      pq.write_table(table, folder / "part-0.parquet")
  source = _open(tmp_path / "log", columns={"time": "Day"}, chunk_bytes=8)
  midnight = _NOON - 45_000
  expected = [("7", "x"), ("9", "y"), ("8", "x"), ("9", "y")]
  times = [midnight] * 2 + [midnight + 86_400] * 2
  assert _read(source) == [
    (*pair, t) for pair, t in zip(expected, times, strict=True)
  ]
  # By default, the columns of folders are ignored.
  source = _open(tmp_path / "log")
  assert _read(source) == expected
  assert source.ignored == ("day (of folders)", "shop (of folders)")
  source = _open(tmp_path / "log", columns={"user": "shop", "item": "item_id"})
  with pytest.raises(errors.DataError, match="day=2023-05-02.*'shop': empty"):
    _read(source)
  source = _open(
    tmp_path / "log", columns={"user": "shop", "missing_user": "drop"}
  )
  assert _read(source) == [("a/b", "x"), ("a/b", "y")]


def test_files_of_different_formats_and_cases(tmp_path):
  (tmp_path / "a.csv").write_text(_text(rows=_ROWS[:2]))
  table = pa.Table.from_pylist(_objects()[2:])
  table = table.rename_columns(["User ID", "ITEM_ID", "x", "Timestamp"])
  pq.write_table(table, tmp_path / "b.parquet")
  source = _open(tmp_path / "a.csv", tmp_path / "b.parquet")
  assert _read(source) == _EVENTS and source.kind == "csv+parquet"


def test_addresses(tmp_path):
  memory = fsspec.filesystem("memory")
  memory.pipe("/bucket/day=1/a.csv", _text(rows=_ROWS[:2]).encode())
  memory.pipe(
    "/bucket/day=2/a.csv.gz", gzip.compress(_text(rows=_ROWS[2:]).encode())
  )
  memory.pipe("/bucket/_SUCCESS", b"")
  assert _read(_open("memory://bucket/day=*/*")) == _EVENTS
  assert _read(_open("memory://bucket/day=1")) == (_EVENTS[:2])
  with memory.open("/bucket/c.parquet", "wb") as file:
    pq.write_table(_table(), file)
  assert _read(_open("memory://bucket/c.parquet")) == _EVENTS
  with zipfile.ZipFile(tmp_path / "ml.zip", "w") as archive:
    archive.writestr("ml/ratings.csv", _CSV)
    archive.writestr("ml/movies.csv", "movie,title\n")
  with pytest.raises(
    errors.DataError, match=r"name one of them as zip://ml/ra"
  ):
    _open(tmp_path / "ml.zip")
  address = f"zip://ml/ratings.csv::{tmp_path / 'ml.zip'}"
  assert _read(_open(address)) == _EVENTS
  with pytest.raises(errors.DataError, match="s3://b/x: cannot be read"):
    _open("s3://b/x")


def test_events_choose_and_weigh(tmp_path):
  (tmp_path / "a.csv").write_text(
    "timestamp,visitorid,event,itemid\n"
    "1,7,view,a\n2,7,addtocart,a\n3,8,transaction,b\n4,8,view,c\n"
  )
  events = ("transaction:1", "addtocart:0.5")
  source = _open(tmp_path / "a.csv", columns={"events": events})
  assert _read(source) == [("7", "a", 2, 0.5), ("8", "b", 3, 1.0)]
  assert source.warnings["rows_of_other_events"] == 2 and source.has_weights
  source = _open(tmp_path / "a.csv", columns={"events": ("view",)})
  assert _read(source) == [("7", "a", 1), ("8", "c", 4)]
  assert not source.has_weights


def test_lists_of_items_in_text(tmp_path):
  (tmp_path / "behaviors.tsv").write_text(
    "0\tU1\t11/15/2019 8:55:22 AM\tN1 N2\tN3-1 N4-0\n"
    "1\tU2\t11/15/2019 9:00:00 PM\t\tN5-0 N6-1 N7-1\n"
  )
  names = {"names": ("log", "user", "time", "history", "impressions")}
  source = _open(
    tmp_path / "behaviors.tsv",
    layout=names,
    columns={"item_list": "impressions"},
  )
  assert "lists split at ' ', those with -1" in source.read_as
  assert _read(source) == [
    ("U1", "N3", 1573808122),
    ("U2", "N6", 1573851600),
    ("U2", "N7", 1573851600),
  ]
  source = _open(
    tmp_path / "behaviors.tsv", layout=names, columns={"item_list": "history"}
  )
  assert [row[:2] for row in _read(source)] == [("U1", "N1"), ("U1", "N2")]
  assert source.warnings["users_without_items"] == 1
  (tmp_path / "baskets.csv").write_text('items\n"a, b"\nc\n')
  source = _open(
    tmp_path / "baskets.csv",
    layout={"header": True},
    columns={"item_list": "items", "missing_user": "new"},
  )
  assert _read(source) == [
    ("new user 0:2", "a"), ("new user 0:2", "b"), ("new user 0:3", "c")
  ]  # fmt: skip


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_rows_without_a_user(tmp_path, form):
  path = tmp_path / f"a.{form}"
  if form == "csv":
    path.write_text("customer,item\n17,a\n,b\nNaN,c\n18,d\n")
  else:
    users = [17.0, None, float("nan"), 18.0]
    pq.write_table(pa.table({"customer": users, "item": list("abcd")}), path)
  with pytest.raises(
    errors.DataError, match=r"empty id.*--missing_user|not an"
  ):
    _read(_open(path))
  source = _open(path, columns={"missing_user": "drop"})
  assert _read(source) == [("17", "a"), ("18", "d")]
  assert source.warnings["rows_without_user"] == 2
  found = _read(_open(path, columns={"missing_user": "new"}))
  assert [row[1] for row in found] == list("abcd")
  assert len({row[0] for row in found}) == 4
  assert (found[0][0], found[3][0]) == ("17", "18")


def test_times_may_be_left_out(tmp_path):
  (tmp_path / "a.csv").write_text("user_id,item_id,timestamp\n1,a,soon\n")
  with pytest.raises(errors.DataError, match="line 2.*--time_column none"):
    _open(tmp_path / "a.csv")
  for none in ("none", ""):  # As from --time_column=.
    source = _open(tmp_path / "a.csv", columns={"time": none})
    assert _read(source) == [("1", "a")] and not source.has_times


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("a.dat", "x y\nz w\n", "first lines are 'x y', 'z w'. Use --delimiter"),
    ("a.csv", "ann,tea\nbob,ham\n", "header is not clear.* --noheader"),
    ("a.csv", "1;2,5\n2;3,5\n", "';' and ',' may both be the delimiter"),
    ("a.txt", "1\t2\t3\n4\t5\t6\n", "may not be a table.*--format adjacency"),
    ("a.csv", "asin,isbn,user\n1,2,3\n", "'asin' and 'isbn' may both be the i"),
    ("a.csv", "user,thing\n1,2\n", "no column has a name like item; the"),
    ("a.csv", "9,1,x,2,y\n8,2,z,3,w\n", "is '9', '1', 'x', '2', 'y'; use --u"),
    ("a.csv", "user,item,date\n1,2,01/02/2023\n", "may be '%m/%d/%Y' or '%d/"),
    ("a.json", '[{"user": 1, "item"', "line 1: is not a JSON object"),
    ("a.json", '[{"user": 1, "item": 2}, 7]', "is not a JSON object"),
    (
      "a.jsonl",
      '{"user": 1, "item": 2}\n[1]\n',
      "line 2: is not a JSON object",
    ),
    ("a.jsonl", '{"user": 1, "item": {}}\n', "column 'item': ids of type str"),
    ("a.db", "SQLite format 3\0", "is an SQLite database; write its table"),
    ("a.csv", "# only\n", "line 2: blank; expected the column names"),
  ],
)
def test_ambiguous_files_ask_for_flags(tmp_path, name, content, message):
  (tmp_path / name).write_text(content)
  with pytest.raises(errors.DataError, match=message) as caught:
    _read(_open(tmp_path / name))
  assert str(caught.value).startswith(str(tmp_path / name))
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  "name",
  [
    "a.csv.gz",
    "a.csv.bz2",
    "a.csv.xz",
    "a.csv.zst",
    "a.zip",
    "a.parquet",
    "a.feather",
    "a.orc",
  ],
)
def test_a_damaged_file_is_named(tmp_path, name):
  path = tmp_path / name
  _KINDS[name][0](path)
  whole = path.read_bytes()
  path.write_bytes(whole[: len(whole) // 2])
  with pytest.raises(errors.DataError) as caught:
    _read(_open(path))
  assert str(caught.value).startswith(str(path))


def test_bytes_that_were_changed_are_named_or_read(tmp_path):
  """No kind of file causes another error, or an error of several lines."""
  rng = random.Random(0)
  for _ in range(3):
    for name, (write, _) in _KINDS.items():
      path = tmp_path / name
      write(path)
      path.write_bytes(_changed(path.read_bytes(), rng))
      try:
        _read(_open(path, chunk_bytes=rng.choice([7, 50, 1 << 20])))
      except errors.DataError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)


def _changed(data, rng):
  data = bytearray(data)
  for _ in range(rng.choice([1, 1, 2, 5])):
    place = rng.randrange(len(data) + 1)
    what = rng.randrange(5)
    if what == 0:
      data[place : place + 1] = bytes([rng.randrange(256)])
    elif what == 1:
      data[place:place] = rng.choice(
        b'",;|\t\n\r\\#:{}[]\x00\xff\xe9 0-'
      ).to_bytes()
    elif what == 2:
      del data[place : place + rng.randrange(1, 9)]
    elif what == 3:
      del data[place:]
    else:
      data[place:place] = rng.choice(
        [b"\n\n", b'"\n"', b"nan", b"1e400", b"::"]
      )
  return bytes(data)


def test_unsupported_formats_are_named(tmp_path):
  feather.write_feather(_table(), str(tmp_path / "old.feather"), version=1)
  with pytest.raises(errors.DataError, match="Feather version 1"):
    _open(tmp_path / "old.feather")
  with zipfile.ZipFile(tmp_path / "a.xlsx", "w") as archive:
    archive.writestr("[Content_Types].xml", "<x/>")
  with pytest.raises(errors.DataError, match="spreadsheet file"):
    _open(tmp_path / "a.xlsx")


def test_a_byte_of_another_encoding_after_the_sample(tmp_path):
  text = "user_id,item_id\n" + "1,a\n" * 300_000
  (tmp_path / "a.csv").write_bytes(text.encode() + b"2,\xe9\n")
  with pytest.raises(
    errors.DataError, match="line 300002, column 'item_id'.*--e"
  ):
    _read(_open(tmp_path / "a.csv"))


def test_json_that_changes_its_types(tmp_path):
  lines = ['{"user": 1, "item": "a"}', '{"user": "x", "item": 7}', ""]
  lines += ['{"item": null, "user": 2}']
  (tmp_path / "a.jsonl").write_text("\n".join(lines[:3]) + "\n")
  for chunk_bytes in (10, 1000):
    source = _open(tmp_path / "a.jsonl", chunk_bytes=chunk_bytes)
    assert _read(source) == [("1", "a"), ("x", "7")]
    assert source.warnings["blank_lines"] == 1
  (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
  with pytest.raises(errors.DataError, match="line 4, column 'item': empty id"):
    _read(_open(tmp_path / "a.jsonl"))


def test_wide_csv_written_by_arrow(tmp_path):
  arrow_csv.write_csv(_table(), tmp_path / "a.csv")  # pyarrow quotes all text.
  assert _read(_open(tmp_path / "a.csv")) == _EVENTS


def test_what_was_read_of_a_parquet_file_leaves_memory(tmp_path):
  rng = random.Random(0)
  ids = pa.array([rng.getrandbits(62) for _ in range(1 << 17)])
  table = pa.table({"user_id": ids, "item_id": ids})
  pq.write_table(table, tmp_path / "a.parquet", row_group_size=1 << 11)
  before = pa.total_allocated_bytes()
  source = sources.open_source(
    inputs.Input(paths=(str(tmp_path / "a.parquet"),), chunk_bytes=1 << 16)
  )
  held = [pa.total_allocated_bytes() - before for _ in source.blocks()]
  assert len(held) == 64 and max(held) < table.nbytes / 2
