"""Delimited text: exact integers, and files cut anywhere."""

import numpy as np
import pytest

from xir_tfrs.data import errors
from xir_tfrs.data.files import delimited, text


def _rows(path, content, kind, chunk_bytes=text.CHUNK_BYTES):
  path.write_text("a,n\n" + content)
  file = delimited.DelimitedFile(path, "csv")
  parts = list(file.rows(["a", "n"], {"n": kind}, chunk_bytes))
  return np.concatenate([part.columns["n"] for part in parts])


@pytest.mark.parametrize("chunk_bytes", [1, 30, 1000])
def test_integers_stay_exact_beside_other_spellings(tmp_path, chunk_bytes):
  """2^53 + 1 has no float64; a "12.0" near it must not round it."""
  big = 2**53 + 1
  content = f"x,{big}\nx,12.0\nx,{big}\nx,1e3\nx,-{big}\nx,{big + 1}.0\n"
  values = _rows(tmp_path / "a.csv", content, "int", chunk_bytes)
  assert values.dtype == np.int64
  assert values.tolist() == [big, 12, big, 1000, -big, big + 1]


@pytest.mark.parametrize(
  "value", ["0.5", "1e19", "1e999999999", "nan", "inf", "1_0", "", f"{2**63}"]
)
def test_times_that_are_no_integers(tmp_path, value):
  with pytest.raises(errors.DataError, match="line 3, column 'n'"):
    _rows(tmp_path / "a.csv", f"x,1\nx,{value}\n", "int")


@pytest.mark.parametrize("chunk_bytes", [1, 9, 1000])
@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_quotes_mean_the_same_wherever_a_chunk_ends(tmp_path, chunk_bytes, end):
  path = tmp_path / "a.csv"

  def ids(line):
    path.write_text(f"a,n\nx,y\n{line}{end}", newline="")
    rows = delimited.DelimitedFile(path, "csv").rows(
      ["a", "n"], {"a": "id", "n": "id"}, chunk_bytes
    )
    *_, last = rows
    return [last.columns[name].to_pylist()[-1] for name in ("a", "n")]

  for line, expected in (
    ('x,"b"', ["x", "b"]),
    ('",",","', [",", ","]),
    ('"""b""",""""', ['"b"', '"']),
    ('5" pipe,b""', ['5" pipe', 'b""']),
  ):
    assert ids(line) == expected
  for line in ('x,"b', 'x,"b\\"c"', 'x,"5" pipe', 'x,""b', 'x,"b""', '"x"",b'):
    with pytest.raises(errors.DataError, match="line 3.*broken quoting"):
      ids(line)


@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
def test_text_can_be_cut_at_any_byte(tmp_path, end):
  content = f"\ufeffhead\n\na\nbc\nä long line\n\nx{end}".encode()
  (tmp_path / "t").write_bytes(content)
  file = text.TextFile(tmp_path / "t")
  for size in range(1, len(content) + 2):
    for read in (2, size, 1000):
      chunks, cut_off = [], 0
      for start in range(0, len(content), size):
        chunks += file.chunks(
          read, skip_lines=1, start=start, stop=start + size, count_lines=True
        )
        cut_off += not file.ends_in_newline
      uncounted = [
        chunk.data
        for start in range(0, len(content), size)
        for chunk in file.chunks(
          read, skip_lines=1, start=start, stop=start + size
        )
      ]
      data = b"".join(chunk.data for chunk in chunks)
      assert data == b"".join(uncounted)
      assert data == content.partition(b"\n")[2], (size, read)
      assert cut_off == (end == "")
      for chunk in chunks:
        before = content[: chunk.end - len(chunk.data)]
        assert chunk.first_line == 1 + before.count(b"\n")
        assert content[chunk.begin : chunk.end].endswith(chunk.data)


def test_a_fingerprint_is_taken_on_the_way(tmp_path):
  path = tmp_path / "t"
  path.write_bytes(b"\xef\xbb\xbfhead\nx\ny")
  expected = text.fingerprint(path)
  file = text.TextFile(path)
  list(file.chunks(3, skip_lines=1))
  size = file.num_bytes
  path.write_bytes(b"-" * size)
  assert file.fingerprint() == expected
  part = text.TextFile(path)
  list(part.chunks(3, skip_lines=0, stop=size - 1))
  assert part.fingerprint() == text.fingerprint(path)
