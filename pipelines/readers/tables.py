"""Reads interactions from files of rows with named columns."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from pipelines.readers import blocks, inputs, roles, source
from xir_tfrs.data import errors
from xir_tfrs.data.files import addresses, adjacency, columns, names, times
from xir_tfrs.data.files import rows as rows_lib

# A position combines the number of the file with, in these bits, the position
# within it. For text that is a byte offset: a row takes at least one byte, so
# rows that count from the start of their chunk never reach the next chunk.
_POSITION_BITS = 40


class TableSource(source.FileSource):
  """One or more files of rows, possibly of different formats.

  Attributes:
    sample: The first rows with all columns; None if there are none.
  """

  roles: roles.Roles

  def __init__(
    self,
    files: Sequence[rows_lib.RowFile],
    config: inputs.Columns,
    side_files: source.SideFiles,
    chunk_bytes: int = rows_lib.CHUNK_BYTES,
  ):
    formats = dict.fromkeys(file.layout.format for file in files)
    name = addresses.stem(files[0].path)
    super().__init__("+".join(formats), name, config, side_files)
    self._files, self._chunk_bytes = tuple(files), chunk_bytes
    self.num_files = len(files)
    self.size = sum(file.text_bytes for file in files)
    samples = (file.sample() for file in files)
    of_file = zip(files, samples, strict=False)
    first, sample = next(
      ((file, found) for file, found in of_file if found is not None),
      (files[0], None),
    )
    self.roles = roles.resolve(
      side_files.of_rows(config),
      first.names,
      first.path,
      first.header_line,
      sample,
      not (first.layout.is_delimited and names.are_numbers(first.names)),
    )
    self._is_exploded = sample is not None and (
      self.roles.item_list is not None
      or columns.is_list(sample.columns[self.roles.item])
    )
    self.sample = sample
    self.has_times = self.roles.time is not None
    self.has_weights = self.roles.has_weights
    self._used = [self._in_file(file, first) for file in files]
    used = set(self._used[files.index(first)].values())
    self.ignored = tuple(
      name
      for name in first.names
      if name not in used and not any(u.startswith(f"{name}.") for u in used)
    )
    self.read_as = self._described()

  def __getstate__(self) -> dict[str, Any]:
    return {**self.__dict__, "sample": None}  # Workers need no sample.

  def pieces(self) -> list[blocks.Piece]:
    pieces = []
    for number, file in enumerate(self._files):
      if not self._can_be_cut(file):
        pieces.append(self._whole(number))
        continue
      for start, stop in file.pieces(self._chunk_bytes):
        position = self._position(number, file.position(start))
        pieces.append(blocks.Piece(number, start, stop, position))
    return pieces

  def no_rows(self, file: int) -> errors.DataError:
    return self._files[file].no_rows()

  def fingerprint(self, file: int) -> source.Fingerprint:
    return self._files[file].fingerprint()

  def _position(self, file: int, within: int) -> int:
    return file << _POSITION_BITS | within

  def _can_be_cut(self, file: rows_lib.RowFile) -> bool:
    # If a row becomes several, only byte offsets leave room for all.
    return file.can_be_cut and not (
      self._is_exploded and file.layout.format == "parquet"
    )

  def _whole(self, file: int) -> blocks.Piece:
    return blocks.Piece(file, 0, -1, self._position(file, 0))

  def _in_file(
    self, file: rows_lib.RowFile, first: rows_lib.RowFile
  ) -> dict[str, str]:
    """Column of the roles -> its name in a file, where case may differ."""
    if self.roles.time is None and self._config.time is None:
      for name in names.guesses("time", file.names):
        raise errors.DataError(
          f"has other columns than {first.path}, which has no times: use"
          " --time_column none to ignore times",
          path=file.path,
          line=file.header_line,
          column=name,
        )
    found = {}
    for name in self.roles.columns:
      there = names.matching(name, file.names)
      if there is None:
        raise errors.DataError(
          f"has other columns than {first.path}: no {name!r} among"
          f" {', '.join(map(repr, file.names))}",
          path=file.path,
          line=file.header_line,
        )
      found[name] = there
    return found

  def _described(self) -> str:
    layouts = dict.fromkeys(str(file.layout) for file in self._files)
    times = f", {self.roles.times}" if self.roles.times else ""
    number = f" ({self.num_files} files)" if self.num_files > 1 else ""
    lines = [f"read as{number}: {' and '.join(layouts)}{times}"]
    if not isinstance(self._files[0], adjacency.AdjacencyFile):
      lines.append(str(self.roles))
    if self.roles.time is None and self._config.time is None:
      dates = (n for n in self.ignored if self._holds_dates(n))
      lines += [
        f"hint: {name!r} holds dates: --time_column {shlex.quote(name)}"
        for name in dates
      ]
    return "\n".join(lines)

  def _holds_dates(self, name: str) -> bool:
    column = self.sample.columns.get(name) if self.sample else None
    if column is None or columns.is_list(column):
      return False
    values = [str(v) for v in column[:50].to_pylist() if v is not None]
    return bool(values) and all(
      not value.isdecimal() and times.looks_like_one(value) for value in values
    )

  def _read(
    self, piece: blocks.Piece, count_lines: bool
  ) -> Iterator[tuple[int, blocks.Block]]:
    file, used = self._files[piece.file], self._used[piece.file]
    before = sum(one.text_bytes for one in self._files[: piece.file])
    scale = file.text_bytes / max(file.size, 1)
    types = self.roles.columns
    counted = self._is_exploded and not self._can_be_cut(file)
    read = 0
    for rows in file.rows(
      {there: types[name] for name, there in used.items()},
      self._chunk_bytes,
      piece.start,
      None if piece.stop < 0 else piece.stop,
      count_lines,
    ):
      block = blocks.from_columns(
        {name: rows.columns[there] for name, there in used.items()},
        self.roles,
        rows.places,
        before + int(rows.progress * scale),
        self.warnings,
        piece.file,
      )
      yield (
        self._position(piece.file, read if counted else rows.begin),
        block,
      )
      read += len(block.users)
    self.warnings.update(file.warnings)
