"""Typed columns: exact values, and errors that name the row."""

import datetime

import numpy as np
import pyarrow as pa
import pytest

from xir_tfrs.data import errors
from xir_tfrs.data.files import columns, places

_PLACES = places.Places("f.parquet", 11, "row")


@pytest.mark.parametrize("value", [-1.0, 1e39, np.inf, np.nan])
def test_weights_are_checked(value):
  with pytest.raises(errors.DataError, match="row 12, column 'w': .*not a w"):
    columns.weights(np.array([1.0, value]), "w", _PLACES)
  weights = columns.weights(np.array([0.0, 3e38]), "w", _PLACES)
  assert weights.dtype == np.float32


def test_ids_of_each_type():
  for column in (
    pa.array(["7", "8"]),
    pa.array([7, 8], pa.uint64()),
    pa.array([b"7", b"8"], pa.large_binary()),
    pa.array(["7", "8"]).dictionary_encode(),
    pa.array(["7", "8"], pa.string_view()),
    pa.array([7.0, 8.0]),
  ):
    assert columns.id_strings(column, "i", _PLACES).to_pylist() == ["7", "8"]
  for column, message in (
    (pa.array([7.0, 7.5]), "row 12, column 'i': 7.5 is not an id"),
    (pa.array([7.0, 2.0**53]), "row 12, column 'i': .* is not an id"),
    (pa.array([7.0, None]), "row 12, column 'i': empty id"),
    (pa.array([datetime.date(1970, 1, 2)]), "ids of type date32"),
    (pa.array(["7", None]), "row 12, column 'i': empty id"),
    (pa.array(["7", ""]), "row 12, column 'i': empty id"),
    (pa.array([b"7", b"\xff"]), "row 12, column 'i': .*not UTF-8"),
  ):
    with pytest.raises(errors.DataError, match=message):
      columns.id_strings(column, "i", _PLACES)


def test_numbers_as_text_may_have_blanks_around_them():
  column = pa.array([" 1.5 ", " ", None, "1e3", "NA"])
  numbers = columns.numbers(column, "p", _PLACES)
  np.testing.assert_array_equal(numbers, [1.5, np.nan, np.nan, 1e3, np.nan])
  with pytest.raises(errors.DataError, match="row 12, column 'p': '0x1' is"):
    columns.numbers(pa.array(["1 ", "0x1"]), "p", _PLACES)


@pytest.mark.parametrize(
  ("given", "expected"),
  [
    (["9,50", " 1.234,50", "", "12", None], [9.5, 1234.5, np.nan, 12, np.nan]),
    (["-0,5", "1.234"], [-0.5, 1234]),
    (
      ["9.50", "1.234"],
      [9.5, 1.234],
    ),  # Without commas, points are decimal points.
  ],
)
def test_decimal_commas_are_read_by_the_whole_column(given, expected):
  column = columns.decimal_points(pa.array(given))
  np.testing.assert_array_equal(columns.numbers(column, "p", _PLACES), expected)


@pytest.mark.parametrize(
  "given", [["1,234", "5,678,901"], ["9,50", "9.50"], ["1,2,3", "4,5"]]
)
def test_commas_of_another_meaning_are_refused(given):
  column = columns.decimal_points(pa.array(given))
  with pytest.raises(errors.DataError, match="write the decimal point as a po"):
    columns.numbers(column, "p", _PLACES)


def test_text_of_files_of_columns_is_checked():
  # pyarrow does not check that strings are UTF-8.
  damaged = pa.array([b"a", b"\xff"]).view(pa.string())
  with pytest.raises(errors.DataError, match="row 12, column 'x': .*not UTF-8"):
    columns.strings(damaged, "x", _PLACES)
