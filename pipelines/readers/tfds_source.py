"""Reads interactions from a TFDS data set by name.

Supports data sets with one interaction per example, and those with one user and
sequences of items per example, as `tfds_atomic` stores them. Serialized
examples are parsed in batches, which is about twenty times faster than decoding
them one by one like `tfds.load`.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import tensorflow as tf

from pipelines.readers import blocks, inputs, roles, source
from xir_tfrs.data import errors, records
from xir_tfrs.data.files import places

_REMEDY = "remove the data set and prepare it with TFDS again"


class TfdsSource(source.FileSource):
  """Splits of a prepared or downloadable TFDS data set.

  A "file" of other sources is a part here: splits of the data set joined by
  "+", or "all". A position counts rows from the number of bytes before the
  part; each row takes at least one byte.
  """

  def __init__(
    self,
    name: str,
    parts: Sequence[str],
    data_dir: pathlib.Path | None,
    config: inputs.Columns,
    side_files: source.SideFiles,
  ):
    super().__init__(
      "tfds", name.split(":")[0].replace("/", "-"), config, side_files
    )
    self._path = f"tfds:{name}"
    builder = _prepared_builder(name, data_dir)
    self._full_name = builder.info.full_name
    self._serialized = builder.info.features.get_serialized_info()
    names = list(self._serialized)
    self.roles = roles.resolve(side_files.of_rows(config), names, self._path)
    self._used = list(self.roles.columns)
    time = self.roles.time
    self.has_times = time is not None
    self.has_weights = self.roles.has_weights
    self.read_as = f"read as: TFDS\n{self.roles}"
    if (
      time is not None and np.dtype(self._serialized[time].np_dtype).kind == "f"
    ):
      raise errors.DataError(
        "times are stored as float32, which rounds Unix times to minutes;"
        " build the data set with an int64 feature",
        path=self._path,
        column=time,
      )
    self.ignored = tuple(n for n in names if n not in self._used)
    chosen = [_splits(builder, part, self._path) for part in parts]
    self.num_files = len(parts)
    self._num_examples = [sum(s.num_examples for s in part) for part in chosen]
    # An example may be a user with many rows; its size reflects that.
    self._sizes = [
      max(sum(s.num_bytes for s in part), examples * blocks.ROW_BYTES)
      for part, examples in zip(chosen, self._num_examples, strict=True)
    ]
    self.size = sum(self._sizes)
    # [parts][shards]
    self._shards = [
      [str(path) for s in part for path in s.filepaths] for part in chosen
    ]
    if builder.info.file_format.value != "tfrecord":
      raise errors.DataError(
        f"stored as {builder.info.file_format.value}; prepare the data set"
        " with file_format='tfrecord'",
        path=self._path,
      )

  def _whole(self, file: int) -> blocks.Piece:
    before = sum(self._sizes[:file])
    return blocks.Piece(file, 0, self._num_examples[file], before)

  def _read(
    self, piece: blocks.Piece, count_lines: bool
  ) -> Iterator[tuple[int, blocks.Block]]:
    del count_lines  # Blocks know their rows.
    spec = self._spec()
    size, num_examples = self._sizes[piece.file], piece.stop
    examples = rows = 0
    for shard in self._shards[piece.file]:
      for values, lengths in records.read_file(shard, spec, _REMEDY):
        batch = self._batch(values, lengths, examples)
        examples += len(lengths[self.roles.user])
        where = places.Places(self._path, rows + 1, "row")
        progress = piece.position + size * examples // num_examples
        found = {name: batch.column(name) for name in self._used}
        block = blocks.from_columns(
          found, self.roles, where, progress, self.warnings, piece.file
        )
        yield piece.position + rows, block
        rows += len(batch)

  def no_rows(self, file: int) -> errors.DataError:
    split = self.split_of(file)
    what = f"no rows in the splits of --{split}" if split else "no rows"
    return errors.DataError(what, path=self._path)

  def _spec(self) -> dict[str, tf.dtypes.DType]:
    """The columns to read and their stored types."""
    spec = {}
    for name in self._used:
      info = self._serialized[name]
      if isinstance(info, dict) or len(info.shape) > 1:
        raise errors.DataError(
          "is nested; only single values and flat sequences can be read",
          path=self._path,
          column=name,
        )
      spec[name] = _STORED_AS.get(np.dtype(info.np_dtype).kind, tf.string)
    return spec

  def _batch(
    self,
    values: dict[str, np.ndarray],
    lengths: dict[str, np.ndarray],
    examples: int,
  ) -> pa.RecordBatch:
    """Columns of equal length; single values are repeated for all rows."""
    rows = np.max([lengths[name] for name in self._used], axis=0)
    # An example without items (all sequences empty) has no rows.
    rows = np.minimum(rows, lengths[self.roles.item])
    arrays = {}
    for name in self._used:
      length = lengths[name]
      wrong = np.flatnonzero((length != rows) & (length != 1))
      if wrong.size:
        raise errors.DataError(
          f"{length[wrong[0]]} values in an example with {rows[wrong[0]]}"
          f" {self.roles.item!r}; expected one, or the same number",
          path=self._path,
          row=examples + int(wrong[0]) + 1,
          column=name,
        )
      column = values[name]
      if not np.array_equal(length, rows):
        starts = np.cumsum(length) - length
        within = np.arange(rows.sum()) - np.repeat(np.cumsum(rows) - rows, rows)
        step = np.repeat((length == rows).astype(np.int64), rows)
        column = column[np.repeat(starts, rows) + within * step]
      if column.dtype.kind == "O":
        arrays[name] = pa.array(column, pa.binary())
      else:
        arrays[name] = pa.array(column)
    return pa.RecordBatch.from_pydict(arrays)

  def fingerprint(self, file: int) -> source.Fingerprint:
    return {
      "path": f"tfds:{self._full_name}",
      "examples": self._num_examples[file],
    }


# TFDS stores every integer and bool as int64 and every float as float32.
_STORED_AS = {
  "i": tf.int64,
  "u": tf.int64,
  "b": tf.int64,
  "f": tf.float32,
}


def _prepared_builder(name: str, data_dir: pathlib.Path | None):
  """Returns the builder of `name`; downloads and prepares it if needed."""
  try:
    import tensorflow_datasets as tfds
  except ImportError:
    raise errors.DataError(
      "reading a TFDS data set needs tensorflow-datasets; install the extra:"
      " pip install -e '.[data]'"
    ) from None
  try:
    builder = tfds.builder(name, data_dir=data_dir and str(data_dir))
  except (tfds.core.DatasetNotFoundError, ValueError) as e:
    raise errors.DataError(
      f"no such TFDS data set ({str(e).splitlines()[0]}); --input is its name,"
      " --data_dir the folder in which it was prepared",
      path=f"tfds:{name}",
    ) from None
  builder.download_and_prepare()
  return builder


def _splits(builder, split: str, path: str):
  """The splits to read, in the order of the data set."""
  names = list(builder.info.splits)
  wanted = names if split == "all" else split.split("+")
  for name in wanted:
    if name not in names:
      raise errors.DataError(
        f"no split {name!r}; the data set has {', '.join(names)}, or use"
        " --tfds_split all",
        path=path,
      )
  return [builder.info.splits[name] for name in wanted]
