"""Converts requests to arrays, and answers back, without a server."""

import base64
import json

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2

from export.serving import options, tensors

SPEC = {
  "query_id": {"dtype": "string", "shape": [None]},
  "age": {"dtype": "float32", "shape": [None]},
  "place": {"dtype": "float32", "shape": [None, 2]},
  "k": {"dtype": "int32", "shape": []},
  "exclude_ids": {"dtype": "int64", "shape": [None, None]},
}
MAX_K = 50
LIMITS = options.Limits()


def _row(**changes):
  row = {"query_id": "Ü", "age": 1, "place": [0.5, 2], "k": 3}
  return {**row, "exclude_ids": [7, -1], **changes}


def _columns(**changes):
  columns = {
    "query_id": ["Ü", "b"],
    "age": [1, 2.5],
    "place": [[0.5, 2], [1, 1]],
    "k": 3,
    "exclude_ids": [[7, -1], [8, 9]],
  }
  columns.update(changes)
  return {name: x for name, x in columns.items() if x is not None}


def _read(request, spec=SPEC):
  """Converts to JSON text and back, like the server."""
  request = tensors.parse_json(json.dumps(request).encode())
  inputs = tensors.from_json(request, spec)
  tensors.check(inputs, spec, MAX_K, LIMITS)
  return tensors.fill(inputs, spec)


def _assert_same(found, expected):
  assert found.dtype == expected.dtype
  np.testing.assert_array_equal(found, expected)


def test_columns_and_rows_are_the_same_arrays():
  columns = _read({"inputs": _columns()})
  _assert_same(columns["query_id"], np.array(["Ü".encode(), b"b"], object))
  _assert_same(columns["age"], np.array([1, 2.5], np.float32))
  _assert_same(columns["place"], np.array([[0.5, 2], [1, 1]], np.float32))
  _assert_same(columns["k"], np.array(3, np.int32))
  _assert_same(columns["exclude_ids"], np.array([[7, -1], [8, 9]], np.int64))
  second = _row(query_id="b", age=2.5, place=[1, 1], exclude_ids=[8, 9])
  rows = _read({"instances": [_row(), second]})
  for name in SPEC:
    _assert_same(rows[name], columns[name])


def test_base64_and_tokens_that_are_no_json():
  text = {"b64": base64.b64encode(b"\xff\x00").decode()}
  inputs = _read(
    {
      "inputs": _columns(
        query_id=[text, "b"], age=[float("nan"), float("-inf")]
      )
    }
  )
  assert inputs["query_id"][0] == b"\xff\x00"
  np.testing.assert_array_equal(inputs["age"], [np.nan, -np.inf])


@pytest.mark.parametrize("width", [0, 1])
def test_lists_may_be_empty(width):
  inputs = _read({"inputs": _columns(exclude_ids=[[-1] * width] * 2)})
  assert inputs["exclude_ids"].shape == (2, width)


def test_what_is_left_out_or_null_is_not_given():
  nothing = {
    "age": [np.nan] * 2,
    "place": [[np.nan] * 2] * 2,
    "exclude_ids": np.zeros([2, 0]),
  }
  given = {"query_id": ["a", "b"], "k": 3}
  row = {"query_id": "a", "k": 3}
  for request in (
    {"inputs": given},
    {"inputs": {**given, **dict.fromkeys(nothing)}},
    {"instances": [row, {**row, **dict.fromkeys(nothing)}]},
  ):
    found = _read(request)
    assert list(found) == list(SPEC)
    for name, expected in nothing.items():
      np.testing.assert_array_equal(found[name], expected)
      assert found[name].dtype == SPEC[name]["dtype"]
  some = {"age": [None, 2], "place": [None, [1, None]]}
  some["exclude_ids"] = [[7, None, 8], None]
  by_row = [
    {**row, **{name: values[i] for name, values in some.items()}}
    for i in range(2)
  ]
  for request in ({"inputs": {**given, **some}}, {"instances": by_row}):
    found = _read(request)
    np.testing.assert_array_equal(found["age"], [np.nan, 2])
    np.testing.assert_array_equal(found["place"], [[np.nan] * 2, [1, np.nan]])
    np.testing.assert_array_equal(
      found["exclude_ids"], [[7, -1, 8], [-1, -1, -1]]
    )
  protos = _protos(**dict.fromkeys(nothing))
  found = tensors.fill(tensors.from_protos(protos, SPEC), SPEC)
  np.testing.assert_array_equal(found["place"], nothing["place"])


def test_a_single_input_goes_without_its_name():
  spec = {"query_id": SPEC["query_id"]}
  text = {"b64": base64.b64encode(b"a").decode()}
  for request in (
    {"inputs": ["a", "b"]},
    {"inputs": {"query_id": ["a", "b"]}},
    {"instances": [text, "b"]},
    {"instances": [{"query_id": "a"}, {"query_id": "b"}]},
  ):
    _assert_same(
      _read(request, spec)["query_id"], np.array([b"a", b"b"], object)
    )


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"query_id": None}, "`query_id` is missing; it must be string [n]"),
    ({"k": None}, "`k` is missing; it must be int32 []"),
    (
      {"query_id": ["a", None]},
      "`query_id` must be string [n]. Received: null",
    ),
    ({"ages": [1, 2]}, "`ages` is not an input of the signature; its inputs"),
    ({"query_id": [7, "b"]}, "`query_id` must be string [n]. Received: 7"),
    ({"query_id": ["b", {"b64": "?"}]}, 'Received: {"b64": "?"}'),
    ({"query_id": ["\ud800", "b"]}, "`query_id` must be string [n]."),
    ({"query_id": "b"}, 'Received: "b" instead of a list'),
    (
      {"query_id": [["b"], ["a"]]},
      "`query_id` must be string [n]. Received: [",
    ),
    ({"query_id": []}, "`age` must have as many rows as `query_id`, 0."),
    ({"age": ["1", 2]}, '`age` must be float32 [n]. Received: "1"'),
    ({"age": [True, 2]}, "`age` must be float32 [n]. Received: true"),
    ({"place": [None, [1]]}, "different lengths, 1 and 2"),
    ({"age": [1e39, 2]}, "`age` must be float32 [n]. Received: 1e+39"),
    (
      {"place": [[1], [2]]},
      "must be float32 [n, 2]. Received: float32 [2, 1]",
    ),
    ({"place": [1, 2]}, "Received: 1 instead of a list"),
    (
      {"exclude_ids": [[1], [2, 3]]},
      "different lengths, 1 and 2; pad",
    ),
    (
      {"exclude_ids": [[1 << 63], [2]]},
      "must be int64 [n, any].",
    ),
    ({"exclude_ids": [[1.0], [2]]}, "Received: 1.0"),
    ({"k": 0}, "`k` must be from 1 to 50. Received: 0"),
    ({"k": 51}, "`k` must be from 1 to 50. Received: 51"),
    ({"k": [3]}, "`k` must be int32 []. Received: [3]"),
    ({"k": True}, "`k` must be int32 []. Received: true"),
  ],
)
def test_wrong_inputs_are_named(changes, message):
  with pytest.raises(tensors.RequestError) as caught:
    _read({"inputs": _columns(**changes)})
  assert caught.value.code == "INVALID_ARGUMENT"
  assert message in str(caught.value)


@pytest.mark.parametrize(
  "body, message",
  [
    (b"{", "the body is not JSON"),
    (b"\xff", "the body is not JSON"),
    (b"[" * 200_000, "the body is nested too deeply"),
    (b"[1]", "the body must be an object. Received: [1]"),
    (b"{}", "a request needs exactly one of `inputs` and `instances`"),
    (b'{"inputs": 1, "instances": 2}', "one of `inputs` and `instances`"),
    (b'{"input": 1}', "`input` is unknown"),
    (
      b'{"inputs": 1, "signature_name": 3}',
      "`signature_name` must be a",
    ),
    (b'{"inputs": [1]}', "`inputs` must name the inputs of the signature"),
    (b'{"instances": []}', "`instances` must be a list of rows. Received: []"),
    (b'{"instances": 3}', "`instances` must be a list of rows. Received: 3"),
    (b'{"instances": [3]}', "`instances` must name the inputs"),
    (b'{"instances": [{}]}', "instance 0: `query_id` is missing"),
  ],
)
def test_wrong_requests_are_explained(body, message):
  with pytest.raises(tensors.RequestError) as caught:
    tensors.from_json(tensors.parse_json(body), SPEC)
  assert message in str(caught.value)


def test_deep_nesting_is_refused_at_every_depth():
  """Near Python's limit, JSON can be parsed, but not shown or compared."""
  for depth in range(800, 1010, 5):
    nested = b"[" * depth + b"]" * depth
    for body in (
      b'{"inputs": {"query_id": %s}}',
      b'{"inputs": %s}',
      b'{"instances": [{"query_id": "a"}, {"query_id": %s}]}',
    ):
      with pytest.raises(tensors.RequestError):
        tensors.from_json(
          tensors.parse_json(body % nested), {"query_id": SPEC["query_id"]}
        )


@pytest.mark.parametrize(
  "rows, message",
  [
    ([_row(), _row(k=4)], "`k` must be the same in all instances. Received: 3"),
    ([_row(), 5], "instance 1 must be an object. Received: 5"),
    ([_row(), {**_row(), "x": 1}], "instance 1: `x` is not an input"),
    ([_row(), _row(exclude_ids=[1])], "lists of different lengths, 1 and 2"),
  ],
)
def test_wrong_rows_are_named(rows, message):
  with pytest.raises(tensors.RequestError) as caught:
    _read({"instances": rows})
  assert message in str(caught.value)


def test_too_many_answers_or_values_are_refused():
  spec = {name: SPEC[name] for name in ("query_id", "k", "exclude_ids")}

  def check(rows, k, width):
    inputs = {
      "query_id": np.full([rows], b"a", object),
      "k": np.array(k, np.int32),
      "exclude_ids": np.zeros([rows, width], np.int64),
    }
    tensors.check(inputs, spec, 10_000, LIMITS)

  check(13, 10_000, 0)
  with pytest.raises(tensors.RequestError, match="131072.* 14 rows, `k` = 10"):
    check(14, 10_000, 0)
  check(64, 1, 1 << 14)
  for rows, width in ((1, (1 << 14) + 1), (65, 1 << 14)):
    with pytest.raises(
      tensors.RequestError, match="`exclude_ids` must .*16384"
    ):
      check(rows, 1, width)


def test_more_than_1024_rows_are_refused():
  spec = {"query_id": SPEC["query_id"]}
  assert len(_read({"inputs": ["a"] * 1024}, spec)["query_id"]) == 1024
  for count in (0, 1025):
    with pytest.raises(tensors.RequestError, match=f"1024 rows.*: {count}$"):
      _read({"inputs": ["a"] * count}, spec)


def _protos(**changes):
  values = {
    "query_id": tf.constant(["Ü", "b"]),
    "age": tf.constant([1.0, 2.5]),
    "place": tf.constant([[0.5, 2], [1, 1]]),
    "k": tf.constant(3),
    "exclude_ids": tf.constant([[7, -1], [8, 9]], tf.int64),
  }
  protos = {name: tf.make_tensor_proto(x) for name, x in values.items()}
  protos.update(changes)
  return {name: x for name, x in protos.items() if x is not None}


def test_protos_are_the_same_arrays_as_json():
  found = tensors.from_protos(_protos(), SPEC)
  tensors.check(found, SPEC, MAX_K, LIMITS)
  for name, expected in _read({"inputs": _columns()}).items():
    _assert_same(found[name], expected)


def test_empty_protos_keep_their_shape():
  empty = tf.make_tensor_proto(np.zeros([2, 0], np.int64))
  found = tensors.from_protos(_protos(exclude_ids=empty), SPEC)
  assert found["exclude_ids"].shape == (2, 0)


def _bomb():
  proto = tf.make_tensor_proto(np.zeros([1, 1], np.int64))
  for axis in proto.tensor_shape.dim:
    axis.size = 1 << 40
  return proto


def _short():
  proto = tf.make_tensor_proto(np.zeros([4, 4], np.int64))
  proto.tensor_content = proto.tensor_content[:-3]
  return proto


def _negative():
  proto = tf.make_tensor_proto(np.zeros([1, 1], np.int64))
  proto.tensor_shape.dim[0].size = -1
  return proto


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"query_id": None}, "`query_id` is missing"),
    ({"x": tf.make_tensor_proto(1)}, "`x` is not an input"),
    (
      {"k": tf.make_tensor_proto(3, tf.int64)},
      "`k` must be int32 []. Received: int64 []",
    ),
    (
      {"query_id": tf.make_tensor_proto([["b"]])},
      "`query_id` must be string [n]. Received: string [1, 1]",
    ),
    (
      {"age": tensor_pb2.TensorProto()},
      "`age` must be float32 [n].",
    ),
    ({"age": tensor_pb2.TensorProto(dtype=77)}, "Received: type 77 []"),
    (
      {"exclude_ids": _bomb()},
      "Received: int64 [1099511627776, ",
    ),
    ({"exclude_ids": _short()}, "[4, 4] with a different number of values"),
    ({"exclude_ids": _negative()}, "Received: int64 [-1, 1]"),
  ],
)
def test_wrong_protos_are_named(changes, message):
  with pytest.raises(tensors.RequestError) as caught:
    tensors.from_protos(_protos(**changes), SPEC)
  assert caught.value.code == "INVALID_ARGUMENT"
  assert message in str(caught.value)


def test_answers_in_rows_and_columns():
  outputs = {
    "ids": np.array([["ä".encode(), b""], [b"b", b"c"]], object),
    "scores": np.array([[1.5, -np.inf], [np.inf, np.nan]], np.float32),
    "known": np.array([True, False]),
  }
  rows = tensors.to_json(outputs, rows=True).decode()
  assert rows == (
    '{"predictions": [{"ids": ["ä", ""], "scores": [1.5, -Infinity], '
    '"known": true}, {"ids": ["b", "c"], "scores": [Infinity, NaN], '
    '"known": false}]}'
  )
  columns = json.loads(tensors.to_json(outputs, rows=False))["outputs"]
  assert columns["ids"] == [["ä", ""], ["b", "c"]]
  assert columns["known"] == [True, False]


def test_a_single_output_goes_without_its_name():
  outputs = {"scores": np.array([[1.5], [2.5]], np.float32)}
  for rows, key in ((True, "predictions"), (False, "outputs")):
    assert json.loads(tensors.to_json(outputs, rows)) == {key: [[1.5], [2.5]]}
