"""JSON files are read into declared types; other content is a DataError."""

import dataclasses
import json
import math
import pathlib
import subprocess
import sys
from typing import Annotated, Any

import msgspec
import numpy as np
import pytest

from xir_tfrs.data import errors, json_files


class Shard(msgspec.Struct, forbid_unknown_fields=True):
  file: str
  rows: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Shards(msgspec.Struct, forbid_unknown_fields=True):
  shards: dict[str, tuple[Shard, ...]]
  rate: float = 0.5
  extra: Any = None
  format: int = 1


def read(tmp_path, content: bytes, **arguments):
  path = tmp_path / "shards.json"
  path.write_bytes(content)
  return json_files.read(path, Shards, remedy="write it again", **arguments)


def test_round_trip(tmp_path):
  value = Shards({"train": (Shard("é", 3),), "test": ()}, rate=1.5)
  json_files.write(tmp_path / "a.json", value)
  assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
  read = json_files.read(tmp_path / "a.json", Shards, remedy="none")
  assert read == value
  text = (tmp_path / "a.json").read_text(encoding="utf-8")
  assert "é" in text and text.startswith('{\n "shards"')


def test_dataclasses_and_numbers_of_numpy_are_written(tmp_path):
  @dataclasses.dataclass
  class Row:
    loss: float
    counts: list

  row = Row(np.float32(0.5), [np.int64(3), np.arange(2), pathlib.Path("a")])
  assert json.loads(json_files.encode_line(row)) == {
    "loss": 0.5,
    "counts": [3, [0, 1], "a"],
  }
  # JSON has no NaN; what we write is JSON.
  line = json_files.encode_line({"loss": math.nan})
  assert json.loads(line) == {"loss": None}
  with pytest.raises(TypeError, match="cannot hold a object"):
    json_files.encode(object())


SHARD = b'{"file": "a", "rows": 1}'


@pytest.mark.parametrize(
  ("content", "field", "message"),
  [
    (
      b'{"shards": {"test": [%s], "train": [%s, {"file": "b", "rows": "x"}]}}'
      % (SHARD, SHARD),
      "shards.train[1].rows",
      "Expected `int`, got `str`",
    ),
    (b'{"shards": {"a.b[0]": 1}}', "shards.a.b[0]", "Expected `array`"),
    (b'{"shards": {}, "rate": "1"}', "rate", "Expected `float`, got `str`"),
    (b'{"shards": {}, "rate": 1e999}', "rate", "out of range"),
    (b'{"shards": {}, "rate": 1%s}' % (5000 * b"0"), "rate", "out of range"),
    (
      b'{"shards": {"t": [{"file": "", "rows": 1%s}]}}' % (30 * b"0"),
      "shards.t[0].rows",
      "Expected `int`",
    ),
    (
      b'{"shards": {"t": [{"file": "", "rows": -1}]}}',
      "shards.t[0].rows",
      "Expected `int` >= 0",
    ),
    (b'{"rate": 1.0}', None, "missing required field `shards`"),
    (b'{"shards": {}, "rte": 1.0}', None, "unknown field `rte`"),
    (b'{"shards": {}, "r\\n\\u001b": 1}', None, r"unknown field `r \x1b`"),
    (b"[]", None, "Expected `object`, got `array`"),
    (b"null", None, "Expected `object`, got `null`"),
    (b"", None, "not valid JSON"),
    (b'{"shards": {}', None, "not valid JSON"),
    (b'{"shards": {}, "rate": NaN}', None, "not valid JSON"),
    (b'{"shards": {}, "rate": Infinity}', None, "not valid JSON"),
    (b'{"shards": {"\xff": []}}', None, "not valid JSON"),
    (b'{"shards": {"\\ud800": []}}', None, "not valid JSON"),
    (b'\xef\xbb\xbf{"shards": {}}', None, "not valid JSON"),
    (b'{"shards": {}, "shards": {}}', None, "the key 'shards' appears twice"),
    (b'{"shards": {"t": [], "t": []}}', None, "the key 't' appears twice"),
    (b'{"extra": ' + b"[" * 100_000, None, "nested too deeply"),
  ],
)
def test_wrong_content_names_file_and_field(tmp_path, content, field, message):
  with pytest.raises(errors.DataError) as caught:
    read(tmp_path, content)
  text = str(caught.value)
  where = f", field {field}" if field else ""
  assert text.startswith(f"{tmp_path / 'shards.json'}{where}: ")
  assert message in text and text.endswith("; write it again")
  assert caught.value.field == field and "\n" not in text


def test_another_format_is_named_before_its_fields(tmp_path):
  with pytest.raises(errors.DataError, match="field format: this version") as e:
    read(tmp_path, b'{"format": 2, "new": 1}', format=1)
  assert "reads format 1, the file has 2; write it again" in str(e.value)
  for content in (b"{}", b'{"format": true}', b'{"format": {}}', b"[]"):
    with pytest.raises(errors.DataError):
      read(tmp_path, content, format=1)
  assert read(tmp_path, b'{"format": 1, "shards": {}}', format=1).format == 1


def test_errors_of_missing_files_explain_the_consequence(tmp_path):
  for path in (tmp_path / "a.json", tmp_path / "b" / "a.json"):
    with pytest.raises(errors.DataError, match="a.json: not found; copy it"):
      json_files.read(path, Shards, remedy="copy it")
  with pytest.raises(errors.DataError, match="not found, so there is no run;"):
    json_files.read(
      tmp_path / "a.json",
      Shards,
      remedy="copy it",
      missing=", so there is no run; train",
    )
  with pytest.raises(errors.DataError, match="cannot be read .Is a directory"):
    json_files.read(tmp_path, Shards, remedy="copy it")


@pytest.mark.parametrize("seed", range(3))
def test_damaged_files_are_data_errors_or_values(tmp_path, seed):
  rng = np.random.default_rng(seed)
  good = json_files.encode(
    Shards({"train": (Shard("é", 3), Shard("b", 2)), "test": ()})
  ).encode()
  alphabet = np.frombuffer(b'{}[]",:0123456789.-eE\\u nfalse\xff\x00', np.uint8)
  for _ in range(200):
    content = bytearray(good)
    for _ in range(rng.integers(1, 4)):
      at = rng.integers(len(content))
      width = rng.integers(0, 3)
      content[at : at + width] = bytes(rng.choice(alphabet, rng.integers(3)))
    try:
      read(tmp_path, bytes(content), format=1)
    except errors.DataError as error:
      assert str(error).endswith("; write it again")


def test_client_modules_do_not_import_tensorflow():
  modules = ("atomic", "errors", "id_lists", "json_files")
  code = (
    "import sys\n"
    + "".join(f"import xir_tfrs.data.{name}\n" for name in modules)
    + "print(sorted({'tensorflow', 'tf_keras'} & set(sys.modules)))"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert done.stdout.strip() == "[]"
