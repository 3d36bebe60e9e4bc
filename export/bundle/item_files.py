"""Files of rows (text, Parquet, TFRecord) as columns of plain values."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import itertools
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence

import tensorflow as tf

from xir_tfrs.data import errors

KINDS = ("token", "token_seq", "float", "float_seq")


@dataclasses.dataclass(frozen=True)
class Table:
  """Values as a file has them: strings, numbers, lists of them, or None.

  Attributes:
    path: the file.
    unit: what `positions` count, "line" or "row".
    positions: of each row, from 1.
    columns: name -> the values of all rows.
  """

  path: pathlib.Path
  unit: str
  positions: Sequence[int]
  columns: dict[str, list]

  def error(self, row: int, column: str, message: str) -> errors.DataError:
    place = f"{self.unit} {self.positions[row]}"
    return errors.DataError(
      f"{self.path}, {place}, column {column!r}: {message}"
    )


# Reads the columns named, each with the kind it must have ("id" for the ids).
Load = Callable[[dict[str, str]], Table]


def open_file(path: pathlib.Path) -> tuple[dict[str, str | None], Load]:
  """The columns with the kinds they name, and the function that reads them."""
  readers = {
    ".item": functools.partial(_open_text, delimiter="\t", atomic=True),
    ".csv": functools.partial(_open_text, delimiter=","),
    ".tsv": functools.partial(_open_text, delimiter="\t"),
    ".parquet": _open_parquet,
    ".pq": _open_parquet,
    ".tfrecord": _open_tfrecord,
  }
  if path.suffix not in readers:
    raise errors.DataError(
      f"{path}: the name must say the format; it may end in "
      f"{', '.join(readers)}"
    )
  try:
    with path.open("rb"):
      pass
  except OSError as error:
    raise errors.DataError(
      f"{path}: cannot be read ({error.strerror}); give a file of items"
    ) from None
  return readers[path.suffix](path)


def read_utf8(path: pathlib.Path) -> str:
  try:
    data = path.read_bytes()
    return data.decode("utf-8-sig")
  except OSError as error:
    raise errors.DataError(
      f"{path}: cannot be read ({error.strerror})"
    ) from None
  except UnicodeDecodeError as error:
    line = data.count(b"\n", 0, error.start) + 1
    raise errors.DataError(
      f"{path}, line {line}: is not UTF-8; save the file as UTF-8 text"
    ) from None


def _open_text(
  path: pathlib.Path, delimiter: str, atomic: bool = False
) -> tuple[dict[str, str | None], Load]:
  text = io.StringIO(read_utf8(path), newline="")
  quoting = csv.QUOTE_NONE if atomic else csv.QUOTE_MINIMAL
  reader = csv.reader(text, delimiter=delimiter, quoting=quoting, strict=True)
  rows = _rows(path, reader)
  fields = next(rows, (1, []))[1]
  pairs = [(field, None) for field in fields]
  if atomic:
    pairs = [_name_and_kind(path, field) for field in fields]
  header = _header(path, pairs)
  names = list(header)

  def load(kinds: dict[str, str]) -> Table:
    lines, columns = [], {name: [] for name in kinds}
    places = [(columns[name], names.index(name)) for name in kinds]
    for line, row in rows:
      if len(row) != len(names):
        raise errors.DataError(
          f"{path}, line {line}: has {len(row)} fields, the header "
          f"{len(names)}; was the line cut off, or a separator not quoted?"
        )
      lines.append(line)
      for column, place in places:
        column.append(row[place])
    return Table(path, "line", lines, columns)

  return header, load


def _name_and_kind(path: pathlib.Path, field: str) -> tuple[str, str]:
  name, _, kind = field.rpartition(":")
  if kind not in KINDS or not name:
    raise errors.DataError(
      f"{path}, line 1, column {field!r}: must be NAME:KIND, KIND one of "
      f"{', '.join(KINDS)}; a file without kinds must end in .tsv"
    )
  return name, kind


def _header(
  path: pathlib.Path, pairs: Sequence[tuple[str, str | None]]
) -> dict[str, str | None]:
  names = [name for name, _ in pairs]
  repeated = sorted({name for name in names if names.count(name) > 1})
  if repeated:
    raise errors.DataError(
      f"{path}: has the column {repeated[0]!r} twice; rename one"
    )
  return dict(pairs)


def _rows(
  path: pathlib.Path, reader: Iterator[list[str]]
) -> Iterator[tuple[int, list[str]]]:
  """Yields line and fields of each row of a CSV reader; blank lines are not."""
  try:
    for row in reader:
      if row:
        yield reader.line_num, row
  except csv.Error as error:
    raise errors.DataError(
      f"{path}, line {reader.line_num}: broken quoting ({error}); write a "
      "quote inside a quoted field twice"
    ) from None


def _open_parquet(path: pathlib.Path) -> tuple[dict[str, str | None], Load]:
  try:
    import pyarrow as pa
    from pyarrow import parquet
  except ImportError:
    raise errors.DataError(
      f"{path}: reading Parquet needs pyarrow; pip install 'xir-tfrs[data]', "
      "or give a .csv file"
    ) from None

  def checked(read):
    try:
      return read()
    except (pa.ArrowException, OSError) as error:
      raise errors.DataError(
        f"{path}: empty, truncated or not Parquet ({error}); write it again"
      ) from None

  def load(kinds: dict[str, str]) -> Table:
    table = checked(lambda: parquet.read_table(path, columns=list(kinds)))
    columns = {}
    for name, kind in kinds.items():
      column = table.column(name)
      is_list = hasattr(column.type, "value_type")
      is_list &= not pa.types.is_dictionary(column.type)
      try:
        if kind.startswith("token"):  # As in preparing: 1.0 is "1".
          text = pa.list_(pa.string()) if is_list else pa.string()
          column = column.cast(text)
      except pa.ArrowException as error:
        raise errors.DataError(
          f"{path}, column {name!r}: cannot be read as a {kind} ({error})"
        ) from None
      columns[name] = column.to_pylist()
    return Table(path, "row", range(1, table.num_rows + 1), columns)

  names = checked(lambda: parquet.read_schema(path)).names
  return _header(path, [(name, None) for name in names]), load


def _open_tfrecord(path: pathlib.Path) -> tuple[dict[str, str | None], Load]:
  records = []
  try:
    dataset = tf.data.TFRecordDataset(os.fspath(path)).batch(256)
    for record in itertools.chain.from_iterable(dataset.as_numpy_iterator()):
      values = tf.train.Example.FromString(record).features.feature
      records.append(
        {name: _feature_values(feature) for name, feature in values.items()}
      )
  except Exception as error:  # A protobuf's own error, or TensorFlow's.
    raise errors.DataError(
      f"{path}, record {len(records) + 1} or behind it: truncated or not a "
      f"tf.train.Example ({type(error).__name__}); write the file again"
    ) from None
  header = dict.fromkeys(
    name.removesuffix("/values").removesuffix("/lengths")
    for record in records
    for name in sorted(record)
  )

  def load(kinds: dict[str, str]) -> Table:
    columns = {name: [] for name in kinds}
    start = 0
    id_column = next(name for name, kind in kinds.items() if kind == "id")
    for record in records:
      size = len(record.get(id_column, ()))
      for name, kind in kinds.items():
        values = _block(record, name, kind, size)
        if values is None:
          raise errors.DataError(
            f"{path}, row {start + 1}, column {name!r}: the values of this "
            f"record do not fit its {size} ids"
          )
        columns[name].extend(values)
      start += size
    return Table(path, "row", range(1, start + 1), columns)

  return header, load


def _feature_values(feature: tf.train.Feature) -> list:
  kind = feature.WhichOneof("kind")
  return list(getattr(feature, kind).value) if kind else []


def _block(
  record: dict[str, list], name: str, kind: str, size: int
) -> list | None:
  """The values of `size` rows of a record; None if there are others."""
  if not size:
    return None
  values = record.get(name, [])
  if f"{name}/lengths" in record:
    values = record.get(f"{name}/values", [])
    lengths = record[f"{name}/lengths"]
    if len(lengths) != size or min(lengths) < 0 or sum(lengths) != len(values):
      return None
    values = iter(values)
    return [list(itertools.islice(values, length)) for length in lengths]
  if not values:
    return [None] * size
  if kind.endswith("_seq"):
    if size == 1:
      return [values]
    if kind == "token_seq" or len(values) % size:
      return None
    width = len(values) // size
    return [values[i * width : (i + 1) * width] for i in range(size)]
  return values if len(values) == size else None
