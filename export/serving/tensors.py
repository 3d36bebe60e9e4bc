"""Converts requests to arrays and answers back, as JSON and as TensorProto.

The formats are those of TensorFlow Serving's predict interfaces. Signatures are
described as in the manifest of a bundle:

    inputs: name -> {"dtype": "string", "shape": [None, None]}

The first axis of every input with axes is `n`, the rows of the request. The
first of these inputs, such as `query_id`, is required. The others are optional:
if they are missing or null, they are filled with "", -1 or NaN, which mean "not
given".
An invalid request raises a `RequestError` that names the input, the received
and the expected value.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Collection, Mapping

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2

from export.serving import options

# Values of an input. A TensorProto repeats its last value, so a few bytes can
# describe an array of any size.
MAX_ELEMENTS = 1 << 20
# The value for "not given", by the kind of the dtype.
PADDING = {"O": b"", "i": -1, "f": np.nan}
_TOO_DEEP = "the body is nested too deeply"

Inputs = dict[str, np.ndarray]
Spec = Mapping[str, Mapping]


class RequestError(Exception):
  """A request that the server refuses.

  Attributes:
    code: Name of the gRPC status, such as "INVALID_ARGUMENT".
  """

  def __init__(self, code: str, message: str):
    super().__init__(short(message, 1000))
    self.code = code


def invalid(message: str) -> RequestError:
  return RequestError("INVALID_ARGUMENT", message)


def parse_json(body: bytes) -> dict:
  """Parses the body of a predict call."""
  try:
    request = json.loads(body)
  except RecursionError:
    raise invalid(_TOO_DEEP) from None
  except ValueError as error:
    raise invalid(f"the body is not JSON: {error}") from None
  if not isinstance(request, dict):
    raise invalid(f"the body must be an object. Received: {_show(request)}")
  if unknown := sorted(
    set(request) - {"signature_name", "inputs", "instances"}
  ):
    raise invalid(
      f"`{short(unknown[0])}` is unknown; a request has `signature_name` and "
      "either `inputs` or `instances`"
    )
  if ("inputs" in request) == ("instances" in request):
    raise invalid("a request needs exactly one of `inputs` and `instances`")
  if not isinstance(request.get("signature_name", ""), str):
    raise invalid(
      "`signature_name` must be a string. Received: "
      + _show(request["signature_name"])
    )
  return request


def from_json(request: dict, spec: Spec) -> Inputs:
  """Converts a request from `parse_json` to arrays, without checks.

  In row format, an input without axes, such as k, must have the same value in
  every instance.
  """
  try:
    if "inputs" in request:
      columns = request["inputs"]
      if not isinstance(columns, dict) or _is_base64(columns):
        columns = {_only_name(spec, "inputs"): columns}
    else:
      columns = _columns(request["instances"], spec)
    columns = {name: x for name, x in columns.items() if x is not None}
    _check_names(columns, spec)
    needed = _needed(spec)
    return {
      name: _array(name, columns[name], wanted, name not in needed)
      for name, wanted in spec.items()
      if name in columns
    }
  except RecursionError:  # Comparing and showing values recurses deeper.
    raise invalid(_TOO_DEEP) from None


def to_json(outputs: Mapping[str, np.ndarray], rows: bool) -> bytes:
  """Formats an answer, in row or columnar format.

  As in TensorFlow Serving, a single output has no name, and non-finite numbers
  are the tokens NaN, Infinity and -Infinity.
  """
  columns = {name: _to_lists(array) for name, array in outputs.items()}
  if len(columns) == 1:
    (content,) = columns.values()
  elif rows:
    content = [
      dict(zip(columns, row, strict=True))
      for row in zip(*columns.values(), strict=True)
    ]
  else:
    content = columns
  answer = {"predictions" if rows else "outputs": content}
  return json.dumps(answer, ensure_ascii=False).encode()


def from_protos(
  protos: Mapping[str, tensor_pb2.TensorProto], spec: Spec
) -> Inputs:
  """Converts the inputs of a PredictRequest to arrays, without checks."""
  _check_names(protos, spec)
  return {
    name: _from_proto(name, protos[name], wanted)
    for name, wanted in spec.items()
    if name in protos
  }


def num_rows(inputs: Mapping[str, np.ndarray]) -> int:
  """Returns the rows of a call, the first axis of its inputs with axes."""
  return max(len(x) for x in inputs.values() if x.ndim)


def fill(inputs: Inputs, spec: Spec) -> Inputs:
  """Returns all inputs of the signature; fills missing ones with padding."""
  rows = num_rows(inputs)
  filled = {}
  for name, wanted in spec.items():
    dtype = np.dtype(tf.as_dtype(wanted["dtype"]).as_numpy_dtype)
    shape = [rows, *(size or 0 for size in wanted["shape"][1:])]
    filled[name] = (
      inputs[name]
      if name in inputs
      else np.full(shape, PADDING[dtype.kind], dtype)
    )
  return filled


def check(
  inputs: Inputs, spec: Spec, max_k: int, limits: options.Limits
) -> None:
  """Raises `RequestError` unless the signature can answer the inputs."""
  rows = {}
  for name in inputs:
    wanted, shape = spec[name], inputs[name].shape
    if len(shape) != len(wanted["shape"]) or any(
      want not in (None, got)
      for want, got in zip(wanted["shape"], shape, strict=True)
    ):
      raise _wrong(name, wanted, _type(wanted["dtype"], shape))
    if shape:
      rows[name] = shape[0]
    if inputs[name].size > MAX_ELEMENTS or any(
      x > limits.max_width for x in shape[1:]
    ):
      raise invalid(
        f"`{name}` must have at most {limits.max_width} values in a row and "
        f"{MAX_ELEMENTS} in all. Received: {_type(wanted['dtype'], shape)}"
      )
  # By name, because signatures do not say which of their open sizes are equal.
  times, history = inputs.get("history_times"), inputs.get("history")
  if times is not None and times.size and times.shape != np.shape(history):
    raise invalid(
      "`history_times` must have the shape of `history`: one time for each id, "
      "-1 if it is unknown"
    )
  first = next(iter(rows))
  for name, count in rows.items():
    if count != rows[first]:
      raise invalid(
        f"`{name}` must have as many rows as `{first}`, {rows[first]}. "
        f"Received: {count}"
      )
  if not 1 <= rows[first] <= limits.max_rows:
    raise invalid(
      f"`{first}` must have 1 to {limits.max_rows} rows. Received: "
      f"{rows[first]}"
    )
  if "k" not in spec:
    return
  if not 1 <= inputs["k"] <= max_k:
    raise invalid(f"`k` must be from 1 to {max_k}. Received: {inputs['k']}")
  if rows[first] * int(inputs["k"]) > limits.max_answers:
    raise invalid(
      f"rows times `k` must be at most {limits.max_answers}. Received: "
      f"{rows[first]} rows, `k` = {inputs['k']}; send several calls"
    )


def _needed(spec: Spec) -> list[str]:
  """Inputs that are required."""
  first = next(name for name, wanted in spec.items() if wanted["shape"])
  return [first, *(name for name in spec if not spec[name]["shape"])]


def _check_names(given: Collection[str], spec: Spec) -> None:
  for name in _needed(spec):
    if name not in given:
      wanted = spec[name]
      text = _type(wanted["dtype"], wanted["shape"])
      raise invalid(f"`{name}` is missing; it must be {text}")
  for name in given:
    if name not in spec:
      raise invalid(
        f"`{short(name)}` is not an input of the signature; its inputs are "
        + ", ".join(spec)
      )


def _columns(instances: object, spec: Spec) -> dict[str, object]:
  """Converts row format to columnar format."""
  if not isinstance(instances, list) or not instances:
    raise invalid(
      f"`instances` must be a list of rows. Received: {_show(instances)}"
    )
  if not isinstance(instances[0], dict) or _is_base64(instances[0]):
    return {_only_name(spec, "instances"): instances}
  for place, row in enumerate(instances):
    if not isinstance(row, dict):
      raise invalid(
        f"instance {place} must be an object. Received: {_show(row)}"
      )
    try:
      _check_names([name for name in row if row[name] is not None], spec)
    except RequestError as error:
      raise invalid(f"instance {place}: {error}") from None
  columns = {}
  for name, wanted in spec.items():
    column = [row.get(name) for row in instances]
    if all(value is None for value in column):
      continue
    if not wanted["shape"]:
      for value in column:
        if value != column[0] or isinstance(value, bool):
          raise invalid(
            f"`{name}` must be the same in all instances. Received: "
            f"{_show(column[0])} and {_show(value)}"
          )
      column = column[0]
    columns[name] = column
  return columns


def _only_name(spec: Spec, key: str) -> str:
  if len(spec) != 1:
    raise invalid(
      f"`{key}` must name the inputs of the signature: {', '.join(spec)}"
    )
  return next(iter(spec))


def _array(
  name: str, value: object, wanted: Mapping, optional: bool
) -> np.ndarray:
  """Converts nested lists to an array of the expected dtype and rank.

  Args:
    name: Name of the input.
    value: The received value.
    wanted: Expected dtype and shape.
    optional: Whether a null row or value means "not given".
  """
  dtype = np.dtype(tf.as_dtype(wanted["dtype"]).as_numpy_dtype)
  level, shape = [value], []
  for size in wanted["shape"]:
    if optional and None in level:
      level = _instead_of_null(level, size)
    for part in level:
      if not isinstance(part, list):
        raise _wrong(name, wanted, f"{_show(part)} instead of a list")
    widths = {len(part) for part in level}
    if len(widths) > 1:
      raise _wrong(
        name,
        wanted,
        f"lists of different lengths, {min(widths)} and {max(widths)}; pad the "
        'shorter ones with "", -1 or NaN',
      )
    shape.append(widths.pop() if widths else 0)
    level = [leaf for part in level for leaf in part]
  read = _READERS[wanted["dtype"]]
  leaves = []
  for leaf in level:
    if optional and leaf is None:
      leaves.append(PADDING[dtype.kind])
      continue
    try:
      leaves.append(read(leaf))
    except (TypeError, ValueError):
      raise _wrong(name, wanted, _show(leaf)) from None
  return np.array(leaves, dtype).reshape(shape)


def _instead_of_null(rows: list, size: int | None) -> list:
  """Replaces null rows by lists of nulls, as long as the other rows."""
  if size is None:
    size = max((len(x) for x in rows if isinstance(x, list)), default=0)
  return [[None] * size if x is None else x for x in rows]


def _read_string(value: object) -> bytes:
  if _is_base64(value):
    return base64.b64decode(value["b64"], validate=True)
  if not isinstance(value, str):
    raise TypeError
  return value.encode()


def _read_integer(value: object, bits: int) -> int:
  if not isinstance(value, int) or isinstance(value, bool):
    raise TypeError
  if not -(1 << bits - 1) <= value < 1 << bits - 1:
    raise ValueError
  return value


def _read_float(value: object) -> float:
  if not isinstance(value, (int, float)) or isinstance(value, bool):
    raise TypeError
  if float(np.finfo(np.float32).max) < abs(value) < float("inf"):
    raise ValueError
  return value


_READERS = {
  "string": _read_string,
  "int32": lambda value: _read_integer(value, 32),
  "int64": lambda value: _read_integer(value, 64),
  "float32": _read_float,
}


def _from_proto(
  name: str, proto: tensor_pb2.TensorProto, wanted: Mapping
) -> np.ndarray:
  try:
    dtype = tf.as_dtype(proto.dtype).name
  except TypeError:
    dtype = f"type {proto.dtype}"
  shape = [axis.size for axis in proto.tensor_shape.dim]
  received = _type(dtype, shape)
  if dtype != wanted["dtype"] or len(shape) != len(wanted["shape"]):
    raise _wrong(name, wanted, received)
  elements = 1
  for size in shape:
    elements *= size
  if min(shape, default=0) < 0 or elements > MAX_ELEMENTS:
    raise _wrong(name, wanted, received)
  try:
    return tf.make_ndarray(proto)
  except ValueError:
    raise _wrong(
      name, wanted, f"{received} with a different number of values"
    ) from None


def _to_lists(array: np.ndarray) -> list:
  if array.dtype != object:
    return array.tolist()
  flat = [value.decode() for value in array.ravel()]
  return np.array(flat, object).reshape(array.shape).tolist()


def _is_base64(value: object) -> bool:
  return (
    isinstance(value, dict)
    and value.keys() == {"b64"}
    and isinstance(value["b64"], str)
  )


def _wrong(name: str, wanted: Mapping, received: str) -> RequestError:
  return invalid(
    f"`{name}` must be {_type(wanted['dtype'], wanted['shape'])}. "
    f"Received: {received}"
  )


def _type(dtype: str, shape: Collection[int | None]) -> str:
  """Describes an array, for example "string [n, any]"."""
  names = ["n", *["any"] * len(shape)]
  sizes = [
    names[axis] if size is None else str(size)
    for axis, size in enumerate(shape)
  ]
  return f"{dtype} [{', '.join(sizes)}]"


def short(text: str, length: int = 60) -> str:
  """Shortens text from a client."""
  return text if len(text) <= length else f"{text[: length - 3]}..."


def _show(value: object) -> str:
  """Shows the start of a JSON value."""
  return short(json.dumps(value, ensure_ascii=False))
