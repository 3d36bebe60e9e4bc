"""Times: exact values of each format, or errors that name the row."""

import datetime

import numpy as np
import pyarrow as pa
import pytest

from xir_tfrs.data import errors
from xir_tfrs.data.files import places, times

_PLACES = places.Places("f.csv", 11)
_NOON = 1_682_944_200  # 2023-05-01 12:30:00 UTC


def _read(column, **said):
  if not isinstance(column, pa.Array):
    column = pa.array(column)
  found = times.detect(column, "t", _PLACES, **said)
  return found, found.convert(column, "t", _PLACES).tolist()


@pytest.mark.parametrize(
  ("text", "form"),
  [
    ("2023-05-01 12:30:00", "iso"),
    ("2023-05-01T12:30:00Z", "iso"),
    ("2023-05-01T12:30", "iso"),
    ("2023-05-01 12:30:00 UTC", "iso"),
    ("2023-05-01T14:30:00+02:00", "iso"),
    ("2023-05-01 14:30:00 +0200", "iso"),
    ("05/01/2023 12:30:00 PM", "%m/%d/%Y %I:%M:%S %p"),
    ("20230501123000", "%Y%m%d%H%M%S"),
    ("1 May 2023 12:30", "%d %b %Y %H:%M"),
    ("Mon May 01 12:30:00 +0000 2023", "%a %b %d %H:%M:%S %z %Y"),
  ],
)
def test_a_moment_in_each_form(text, form):
  found, values = _read([text])
  assert (found.form, found.unit, values) == (form, "s", [_NOON])


@pytest.mark.parametrize(
  ("text", "form"),
  [
    ("2023-05-13", "iso"),
    ("20230513", "%Y%m%d"),
    ("05/13/2023", "%m/%d/%Y"),
    ("13/05/2023", "%d/%m/%Y"),
    ("13-05-2023", "%d-%m-%Y"),
    ("13.05.2023", "%d.%m.%Y"),
    ("13-May-2023", "%d-%b-%Y"),
    ("05 13, 2023", "%m %d, %Y"),
    ("May 13, 2023", "%b %d, %Y"),
  ],
)
def test_a_day_in_each_form(text, form):
  found, values = _read([text, text])
  assert (found.form, values) == (form, [1_683_936_000] * 2)


@pytest.mark.parametrize(
  ("column", "unit", "expected"),
  [
    (["1682944200"], "s", [_NOON]),
    (["1682944200117"], "ms", [_NOON * 1000 + 117]),
    ([_NOON * 10**6], "us", [_NOON * 10**6]),
    ([_NOON * 10**9], "ns", [_NOON * 10**9]),
    (["1.6829442e9", "1682944200.0"], "s", [_NOON] * 2),
    (["5", "-7"], None, [5, -7]),
    # Fractions of a second are kept.
    (
      ["1682944200.117", "1682944200"],
      "ms",
      [_NOON * 1000 + 117, _NOON * 1000],
    ),
    (["1682944200.1171"], "us", [_NOON * 10**6 + 117_100]),
    ([_NOON + 0.25], "ms", [_NOON * 1000 + 250]),
    (["2023-05-01 12:30:00.117"], "ms", [_NOON * 1000 + 117]),
    (["2023-05-01T12:30:00,117111Z"], "us", [_NOON * 10**6 + 117_111]),
  ],
)
def test_units_and_fractions(column, unit, expected):
  found, values = _read(column)
  assert (found.unit, values) == (unit, expected)


def test_integers_stay_exact_beside_other_spellings():
  """2^53 + 1 has no float64; a "12.0" near it must not round it."""
  big = 2**53 + 1
  texts = [f"{big}", "12.0", f"{big}", "1e3", f"-{big}", f"{big + 1}.0"]
  assert _read(texts)[1] == [big, 12, big, 1000, -big, big + 1]
  assert _read(pa.array([2**63 - 1], pa.uint64()))[1] == [2**63 - 1]


@pytest.mark.parametrize(
  "column",
  [
    pa.array([-2_000_000_000, 7_000_000_000], pa.timestamp("ns")),
    pa.array([-2_000, 7_000], pa.timestamp("ms", "Asia/Tokyo")),
    pa.array([-2, 7], pa.timestamp("s")),
    pa.array([-2.0, 7.0]),
  ],
)
def test_whole_seconds_of_typed_columns(column):
  assert _read(column)[1] == [-2, 7]


def test_typed_times_keep_their_fractions():
  found, values = _read(pa.array([-1_001, 7_999], pa.timestamp("ms")))
  assert (found.unit, values) == ("ms", [-1001, 7999])
  nano = pa.array([_NOON * 10**9 + 1], pa.timestamp("ns", "UTC"))
  assert _read(nano)[1] == [_NOON * 10**9 + 1]
  with pytest.raises(errors.DataError, match="00.000000001Z' is not a whole"):
    _read(nano, unit="s")
  coarse = times.Times("typed", "s")
  with pytest.raises(errors.DataError, match="line 12.*--time_unit ms"):
    coarse.convert(pa.array([1000, 1001], pa.timestamp("ms")), "t", _PLACES)
  found, values = _read(pa.array([1, 2], pa.timestamp("s")), unit="us")
  assert values == [10**6, 2 * 10**6]


def test_days_are_seconds():
  days = [datetime.date(1970, 1, 2), datetime.date(1969, 12, 31)]
  for kind in (pa.date32(), pa.date64()):
    assert _read(pa.array(days, kind))[1] == [86_400, -86_400]


def test_zones_may_differ_from_row_to_row():
  texts = ["2023-05-01 12:30:00", "2023-05-01T14:30+02:00", "2023-05-01"]
  assert _read(texts)[1] == [_NOON, _NOON, 1_682_899_200]


def test_user_settings_override_detection():
  assert _read(["01-05-2023"], form="%d-%m-%Y")[1] == [1_682_899_200]
  assert _read(["20230501"], form="number")[1] == [20230501]
  assert _read(["2023-05-01"], unit="ms")[1] == [1_682_899_200_000]


@pytest.mark.parametrize(
  ("column", "message"),
  [
    (["1", "0.5e", "2"], "line 12, column 't': '0.5e' is not a number"),
    (["1", "1e19"], "line 12, column 't': '1e19' is not a 64-bit integer"),
    (["1", "1e999999999"], "line 12, .* is not a 64-bit integer"),
    (["1", "nan"], "line 12, column 't': 'nan' is not"),
    (["1", "inf"], "line 12, column 't': 'inf' is not"),
    (["1", "1_0"], "line 12, column 't': '1_0' is not a number"),
    (["1", ""], "line 12, column 't': '' is not a number"),
    (["1", f"{2**63}"], "line 12, column 't': '9223372036854775808' is not"),
    (["yesterday"], "line 11, column 't': 'yesterday' is neither a number nor"),
    (["2023-05-01", "soon"], "line 12, column 't': 'soon' is not a time such"),
    (["2023-05-01", "2023-13-01"], "line 12, .*'2023-13-01' is not a time"),
    (["13/05/2023", "13/05/20"], "line 12, column 't': '13/05/20' is not"),
    (["01/05/2023", "02/05/2023"], "line 11.* may be '%m/%d/%Y' or '%d/%m/%Y'"),
    (pa.array([1, 2**63], pa.uint64()), "line 12, column 't'"),
    (pa.array([1.0, 2.0**53]), "line 12, column 't'"),
    (pa.array([1.0, float("nan")]), "line 12, column 't'"),
    (pa.array([1, None]), "line 12, column 't': no time"),
    (pa.array([True]), "column 't': type bool, expected times"),
  ],
)
def test_invalid_times_are_named(column, message):
  with pytest.raises(errors.DataError, match=message):
    _read(column)


def test_a_fraction_after_the_first_rows_is_not_cut():
  for first, later in (("1", "2.5"), ("2023-05-01", "2023-05-01 00:00:00.5")):
    found = times.detect(pa.array([first]), "t", _PLACES)
    with pytest.raises(errors.DataError, match="line 12.*--time_unit ms"):
      found.convert(pa.array([first, later]), "t", _PLACES)


@pytest.mark.parametrize(
  ("first", "later", "unit"),
  [
    ("1682944200", "1682944200117", "milliseconds"),
    (1682944200117, 1682944200, "seconds"),
    ("1682944200.5", "1682944200117", "milliseconds"),
    (1682944200117000, 1682944200117, "milliseconds"),
  ],
)
def test_a_time_of_another_unit_is_named(first, later, unit):
  found = times.detect(pa.array([first]), "t", _PLACES)
  both = pa.array([first, later])
  with pytest.raises(
    errors.DataError, match=f"line 12.* looks like Unix {unit}, .* --time_unit"
  ):
    found.convert(both, "t", _PLACES)
  given = times.detect(pa.array([first]), "t", _PLACES, unit=found.unit)
  assert len(given.convert(both, "t", _PLACES)) == 2
  # Not times, but there may be some in place of a missing one.
  zeros = pa.array([first, type(first)(0), type(first)(-1)])
  assert len(found.convert(zeros, "t", _PLACES)) == 3


def test_numbers_after_typed_times_have_their_unit():
  found = times.detect(pa.array([datetime.date(2023, 5, 1)]), "t", _PLACES)
  with pytest.raises(errors.DataError, match="looks like Unix milliseconds"):
    found.convert(pa.array([1682944200117]), "t", _PLACES)


def test_the_description_names_the_time_format():
  for column, shown in (
    (["2023-05-01 12:30:00"], "times 2023-05-01 12:30:00 UTC"),
    (["2023-05-01T12:30:00Z"], "times 2023-05-01T12:30:00Z"),
    (["1682944200117"], "times 1682944200117 (Unix milliseconds)"),
    (["1682944200.5"], "times 1682944200.5 (Unix seconds, kept in millisecond"),
    (["13.05.2023"], "times 13.05.2023 UTC (%d.%m.%Y)"),
    (["7"], "times 7 (numbers of no known unit)"),
  ):
    assert str(_read(column)[0]).startswith(shown)


def test_looks_like_one_recognises_times():
  for text in ("1682944200", "2023-05-01", "13/05/2023"):
    assert times.looks_like_one(text)
  for text in ("5", "tea", "B00042", "4.5"):
    assert not times.looks_like_one(text)


def test_times_are_arrays():
  found = times.detect(pa.array(["5"]), "t", _PLACES)
  assert found.convert(pa.array(["5"]), "t", _PLACES).dtype == np.int64
