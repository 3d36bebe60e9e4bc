"""Typed columns: what is read exactly, and what is refused by its row."""

import datetime

import numpy as np
import pyarrow as pa
import pytest

from xir_tfrs.data import errors
from xir_tfrs.data.files import columns, places

_PLACES = places.Places("f.parquet", 11, "row")


@pytest.mark.parametrize(
  "column",
  [
    pa.array([-1_000_000_001, 7_999_999_999], pa.timestamp("ns")),
    pa.array([-1_001, 7_999], pa.timestamp("ms")),
    pa.array([-1_001, 7_999], pa.timestamp("ms", "Asia/Tokyo")),
    pa.array([-2, 7], pa.timestamp("s")),
    pa.array([-2.0, 7.0]),
  ],
)
def test_times_are_whole_seconds(column):
  assert columns.times(column, "t", _PLACES).tolist() == [-2, 7]


def test_days_are_seconds():
  days = [datetime.date(1970, 1, 2), datetime.date(1969, 12, 31)]
  for kind in (pa.date32(), pa.date64()):
    times = columns.times(pa.array(days, kind), "t", _PLACES)
    assert times.tolist() == [86_400, -86_400]


@pytest.mark.parametrize(
  "column",
  [
    pa.array([1, 2**63], pa.uint64()),
    pa.array([1.0, 2.0**53]),
    pa.array([1.0, 0.5]),
    pa.array([1.0, float("nan")]),
    pa.array(["1", "2"]),
  ],
)
def test_times_that_int64_cannot_hold(column):
  with pytest.raises(errors.DataError, match=r"f\.parquet, column 't'"):
    columns.times(column, "t", _PLACES)
  assert columns.times(
    pa.array([2**63 - 1], pa.uint64()), "t", _PLACES
  ).tolist() == [2**63 - 1]


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
  ):
    assert columns.id_strings(column, "i", _PLACES).to_pylist() == ["7", "8"]
  for column, message in (
    (pa.array([7.0]), "ids of type double"),
    (pa.array(["7", None]), "row 12, column 'i': empty id"),
    (pa.array(["7", ""]), "row 12, column 'i': empty id"),
    (pa.array([b"7", b"\xff"]), "row 12, column 'i': .*not UTF-8"),
  ):
    with pytest.raises(errors.DataError, match=message):
      columns.id_strings(column, "i", _PLACES)
