"""Interactions as adjacency text: one line ``user item item ...`` per user."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.readers import blocks, inputs, source
from xir_tfrs.data import errors
from xir_tfrs.data.files import places, text


class AdjacencySource(source.TextSource):
  """One or more adjacency files; the order of a line is the order in time.

  A user with no items is skipped and counted; a user on two lines is the same
  user.
  """

  has_times = False

  def __init__(
    self,
    paths: Sequence[pathlib.Path],
    roles: inputs.Columns,
    side_files: source.SideFiles,
    chunk_bytes: int = text.CHUNK_BYTES,
  ):
    files = [text.TextFile(path) for path in paths]
    super().__init__("adjacency", files, roles, side_files, chunk_bytes)
    for name in (roles.time, roles.weight, roles.rating):
      if name is not None:
        raise errors.DataError(
          "adjacency text has only a user and items; use a CSV file for"
          " times, weights and ratings",
          path=paths[0],
          column=name,
        )

  def no_rows(self, file: int) -> errors.DataError:
    return errors.DataError(
      "no interactions; expected lines of 'user item item ...'",
      path=self._texts[file].path,
      line=1,
    )

  def _read(
    self, piece: blocks.Piece, count_lines: bool
  ) -> Iterator[tuple[int, blocks.Block]]:
    file, before = self._texts[piece.file], self._before(piece.file)
    for chunk in file.chunks(
      self._chunk_bytes,
      skip_lines=0,
      start=piece.start,
      stop=piece.stop,
      count_lines=count_lines,
    ):
      yield before + chunk.begin, self._block(file, chunk, before)
    self.warnings["last_line_without_newline"] += not file.ends_in_newline

  def _block(
    self, file: text.TextFile, chunk: text.Chunk, before: int
  ) -> blocks.Block:
    lists = _tokens(file, chunk)
    lengths = np.diff(lists.offsets.to_numpy())
    self.warnings["blank_lines"] += int((lengths == 0).sum())
    self.warnings["users_without_items"] += int((lengths == 1).sum())
    tokens = lists.flatten()
    first = lists.offsets.to_numpy()[:-1][lengths > 0]
    is_item = np.ones(len(tokens), bool)
    is_item[first] = False
    items_per_user = lengths[lengths > 0] - 1
    lines = chunk.first_line + np.flatnonzero(lengths > 0)
    return blocks.Block(
      places=places.Places(file.path, np.repeat(lines, items_per_user)),
      users=tokens.take(pa.array(np.repeat(first, items_per_user))),
      items=tokens.filter(pa.array(is_item)),
      progress=before + chunk.end,
    )


def _tokens(file: text.TextFile, chunk: text.Chunk) -> pa.ListArray:
  """The words of each line; a blank line gives an empty list."""
  data = chunk.data.removesuffix(b"\n").split(b"\n")
  lines = pa.array(data, pa.binary())
  try:
    lines = lines.cast(pa.string())
  except pa.ArrowInvalid:
    for number, line in enumerate(data, chunk.first_line):
      before = line.decode("utf-8", "replace").split("\ufffd")[0]
      column = f"word {len((before + '?').split())}"
      file.decode(line, number, column)
    raise
  lines = pc.ascii_trim_whitespace(lines)
  words = pc.ascii_split_whitespace(lines)
  # Splitting "" gives [""]: make it an empty list.
  blank = pc.equal(lines, "").to_numpy(zero_copy_only=False)
  if not blank.any():
    return words
  lengths = np.where(blank, 0, np.diff(words.offsets.to_numpy()))
  values = words.flatten()
  values = values.filter(pc.not_equal(values, ""))
  offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
  return pa.ListArray.from_arrays(offsets, values)
