"""Delimited text: quotes, lines, and files cut anywhere."""

import pyarrow as pa
import pytest

from xir_tfrs.data import errors
from xir_tfrs.data.files import addresses, layouts, opening, text


def _open(path, **said):
  layout = layouts.detect(path, layouts.Wish(format="csv", header=True, **said))
  return opening.open_rows(path, layout)


@pytest.mark.parametrize("chunk_bytes", [1, 9, 1000])
@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_quotes_mean_the_same_wherever_a_chunk_ends(tmp_path, chunk_bytes, end):
  path = tmp_path / "a.csv"

  def ids(line, **said):
    path.write_text(f"a,n\nx,y\n{line}{end}", newline="")
    rows = _open(path, **said).rows({"a": None, "n": None}, chunk_bytes)
    *_, last = rows
    assert last.places.number(len(last) - 1) == 3
    return [last.columns[name].to_pylist()[-1] for name in ("a", "n")]

  for line, expected in (
    ('x,"b"', ["x", "b"]),
    ('",",","', [",", ","]),
    ('"""b""",""""', ['"b"', '"']),
    ('5" pipe,b""', ['5" pipe', 'b""']),
    ('"x\n\n",b', ["x\n\n", "b"]),
    ('x,"b\n""c""\n,"', ["x", 'b\n"c"\n,']),
  ):
    assert ids(line) == expected
  for line in ('x,"b', 'x,"b\\"c"', 'x,"5" pipe', 'x,""b', 'x,"b""', '"x"",b'):
    with pytest.raises(errors.DataError, match="line 3.*broken quoting"):
      ids(line, quoting="double")
  assert ids('x,"b', quoting="none") == ["x", '"b']
  assert ids('x,"b\\"c"', quoting="backslash") == ["x", 'b"c']


@pytest.mark.parametrize("chunk_bytes", [1, 30, 1000])
def test_lines_are_counted_through_quotes_and_blanks(tmp_path, chunk_bytes):
  path = tmp_path / "a.csv"
  path.write_text('a,n\n\n1,"x\n\ny"\n\r\n2,z\n3,"u\nv"\n4,w', newline="")
  file = _open(path)
  found = [
    (rows.places.number(k), a, n)
    for rows in file.rows({"a": pa.int64(), "n": None}, chunk_bytes)
    for k, (a, n) in enumerate(
      zip(*(rows.columns[name].to_pylist() for name in "an"), strict=True)
    )
  ]
  assert found == [
    (3, 1, "x\n\ny"),
    (7, 2, "z"),
    (8, 3, "u\nv"),
    (10, 4, "w"),
  ]
  assert +file.warnings == {"blank_lines": 2, "last_line_without_newline": 1}


def test_a_quote_that_never_closes_does_not_take_the_file(tmp_path):
  path = tmp_path / "a.csv"
  path.write_text('a,n\n1,"x\n' + "2,y\n" * 600_000)
  with pytest.raises(errors.DataError, match="line 2: .*never closed"):
    list(_open(path).rows({"n": None}, 1 << 16))


@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
def test_text_can_be_split_at_any_byte(tmp_path, end):
  content = f"\ufeffhead\n\na\nbc\nä long line\n\nx{end}".encode()
  (tmp_path / "t").write_bytes(content)
  file = text.TextFile(tmp_path / "t", skip_lines=1)
  for size in range(1, len(content) + 2):
    for read in (2, size, 1000):
      chunks, cut_off = [], 0
      for start in range(0, len(content), size):
        chunks += file.chunks(
          read, start=start, stop=start + size, count_lines=True
        )
        cut_off += not file.ends_in_newline
      uncounted = [
        chunk.data
        for start in range(0, len(content), size)
        for chunk in file.chunks(read, start=start, stop=start + size)
      ]
      data = b"".join(chunk.data for chunk in chunks)
      assert data == b"".join(uncounted)
      assert data == content.partition(b"\n")[2], (size, read)
      assert cut_off == (end == "")
      for chunk in chunks:
        before = content[: chunk.end - len(chunk.data)]
        assert chunk.first_line == 1 + before.count(b"\n")
        assert content[chunk.begin : chunk.end].endswith(chunk.data)


def test_a_fingerprint_is_computed_while_reading(tmp_path):
  path = tmp_path / "t"
  path.write_bytes(b"\xef\xbb\xbfhead\nx\ny")
  expected = addresses.fingerprint(path)
  file = text.TextFile(path, skip_lines=1)
  list(file.chunks(3))
  size = file.num_bytes
  path.write_bytes(b"-" * size)
  assert file.fingerprint() == expected
  part = text.TextFile(path)
  list(part.chunks(3, stop=size - 1))
  assert part.fingerprint() == addresses.fingerprint(path)


def test_a_list_of_ids_may_begin_with_a_byte_order_mark(tmp_path):
  (tmp_path / "ids.txt").write_bytes("\ufeff7\r\n\u2028é\n".encode())
  assert text.read_lines(tmp_path / "ids.txt") == ["7", "\u2028é"]
  (tmp_path / "ids.txt").write_bytes(b"7\nu\xe9\n")
  with pytest.raises(errors.DataError, match="line 2: .*; write it as UTF-8"):
    text.read_lines(tmp_path / "ids.txt")
