"""Adjacency text: a user and its items on each line."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xir_tfrs.data import errors
from xir_tfrs.data.files import layouts, places, rows, text

USER, ITEMS = "user_id", "item_id"


class AdjacencyFile(rows.TextRowFile):
  """Lines of words: the first is the user, the others the items."""

  def __init__(self, path: str, layout: layouts.Layout):
    super().__init__(path, layout, (USER, ITEMS))
    self._text = text.TextFile(path, layout.compression, layout.encoding)
    self.can_be_cut = self._text.can_be_cut

  def no_rows(self) -> errors.DataError:
    return errors.DataError(
      "no interactions; expected lines of 'user item item ...'",
      path=self.path,
      line=1,
    )

  def _read(
    self, chunks: Iterator[text.Chunk], wanted: rows.Wanted
  ) -> Iterator[rows.Rows]:
    for chunk in chunks:
      words = self._words(chunk)
      lengths = np.diff(words.offsets.to_numpy())
      self.warnings["blank_lines"] += int((lengths == 0).sum())
      lines = np.flatnonzero(lengths)
      words = words.take(pa.array(lines))
      yield rows.Rows(
        {
          USER: pc.list_element(words, 0) if len(words) else words.flatten(),
          ITEMS: _without_first(words),
        },
        places.Places(self.path, chunk.first_line + lines),
        chunk.begin,
        chunk.progress,
      )

  def _words(self, chunk: text.Chunk) -> pa.ListArray:
    """The words of each line; a blank line gives an empty list."""
    data = chunk.data.removesuffix(b"\n").split(b"\n")
    lines = pa.array(data, pa.binary())
    try:
      lines = lines.cast(pa.string())
    except pa.ArrowInvalid:
      for number, line in enumerate(data, chunk.first_line):
        before = line.decode("utf-8", "replace").split("\ufffd")[0]
        column = f"word {len((before + '?').split())}"
        self._text.decode(line, number, column)
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


def _without_first(words: pa.ListArray) -> pa.ListArray:
  """All lists without their first values."""
  starts = words.offsets.to_numpy()
  values = words.flatten()
  keep = np.ones(len(values), bool)
  keep[starts[:-1] - starts[0]] = False
  offsets = starts - starts[0] - np.arange(len(starts))
  return pa.ListArray.from_arrays(
    offsets.astype(np.int32), values.filter(pa.array(keep))
  )
