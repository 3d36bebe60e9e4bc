"""Masks over a pool, and the one definition of a masked logit.

Axes: batch = rows, one per query; pool = candidates a row is scored against.
"""

import functools
from typing import Literal, TypeAlias

import tensorflow as tf

from xir_tfrs.ops import chunks, ragged, search, xla

# Cells of the filter of known ids; a power of 2, many times a pool.
_FILTER_SIZE = 2**16
# What a row's own column of the pool counts as.
Own: TypeAlias = Literal["as others", "left out", "kept"]


class ColumnMask:
  """Which columns of a pool count for each row.

  Examples:
    >>> mask = xir.ops.masking.ColumnMask(
    ...   tf.constant([7]), tf.constant([7, 8, 9]), accidental_hits=True
    ... )
    >>> mask.keep(start=0, size=1).numpy()
    array([[False,  True,  True]])
  """

  def __init__(
    self,
    positive_ids: tf.Tensor,
    pool_ids: tf.Tensor,
    *,
    own_offset: tf.Tensor | None = None,
    own: Own = "as others",
    accidental_hits: bool = False,
    known_ids: tf.Tensor | tf.RaggedTensor | None = None,
    known_rows: tf.Tensor | None = None,
    in_use: tf.Tensor | None = None,
  ) -> None:
    """Sets what is left out.

    Args:
      positive_ids: [batch] id of each row's positive.
      pool_ids: [pool] ids, of the same type.
      own_offset: Column of row 0's own positive; None: rows have none.
      own: Whether a row's own column is left out, or kept whatever the other
        masks say; otherwise it is treated like other columns.
      accidental_hits: Leave out every column with the positive's id.
      known_ids: [batch, None] ids of other positives of each row's query,
        whose columns are left out; ragged, or padded with -1. With
        `known_rows` [queries, None]: an entry serves several rows.
      known_rows: [batch] integer, the entry of each row; None: its own.
      in_use: [pool] bool, which columns hold a candidate; None: all.
    """
    self._positive_ids = positive_ids
    self._pool_ids = pool_ids
    self._own_offset = own_offset
    self._own = "as others" if own_offset is None else own
    self._accidental_hits = accidental_hits
    self._in_use = in_use
    self._known: _RaggedKnown | _FlatKnown | None = None
    if known_ids is None:
      return
    if isinstance(known_ids, tf.RaggedTensor) and not xla.compiling():
      self._known = _RaggedKnown(
        known_ids,
        known_rows,
        None if accidental_hits else positive_ids,
        pool_ids,
      )
    else:
      self._known = _FlatKnown(known_ids, known_rows, positive_ids, pool_ids)

  def keep(self, start: chunks.Size, size: chunks.Size) -> tf.Tensor | None:
    """[size, pool] bool, which columns count; None: all of them.

    Args:
      start: First row of the batch.
      size: Number of rows.
    """
    left_out = []
    if self._accidental_hits:
      positive_ids = chunks.part(self._positive_ids, start, size)
      left_out.append(accidental_hits(positive_ids, self._pool_ids))
    if self._known is not None:
      left_out.append(self._known.columns(start, size))
    if self._own == "left out":
      left_out.append(self._own_columns(start, size))
    if self._in_use is not None:
      shape = [size, tf.size(self._pool_ids)]
      left_out.append(tf.broadcast_to(~self._in_use, shape))
    if not left_out:
      return None
    keep = ~functools.reduce(tf.logical_or, left_out)
    return (
      keep | self._own_columns(start, size) if self._own == "kept" else keep
    )

  def _own_columns(self, start: chunks.Size, size: chunks.Size) -> tf.Tensor:
    return own_columns(
      size,
      tf.size(self._pool_ids),
      tf.cast(start, tf.int64) + tf.cast(self._own_offset, tf.int64),
    )


class _RaggedKnown:
  """Columns of known candidates, from ids in a ragged tensor.

  Columns with the id of a row's positive are not included. `positive_ids` is
  None where the caller masks them anyway.
  """

  def __init__(
    self,
    known_ids: tf.RaggedTensor,
    known_rows: tf.Tensor | None,
    positive_ids: tf.Tensor | None,
    pool_ids: tf.Tensor,
  ) -> None:
    self._rows = known_rows
    self._positive_ids, self._pool_ids = positive_ids, pool_ids
    own = positive_ids if known_rows is None else None
    self._columns = known_columns(known_ids, own, pool_ids)
    self._pool = tf.size(pool_ids)

  def columns(self, start: chunks.Size, size: chunks.Size) -> tf.Tensor:
    """[size, pool] bool, True where a column is one of them."""
    if self._rows is not None:
      return self._columns_of(start, size)
    splits = chunks.part(self._columns.row_splits, start, size + 1)
    part = tf.RaggedTensor.from_row_splits(
      self._columns.values[splits[0] : splits[-1]],
      splits - splits[0],
      validate=False,
    )
    return columns_mask(part, self._pool)

  def _columns_of(self, start: chunks.Size, size: chunks.Size) -> tf.Tensor:
    assert self._rows is not None
    rows = chunks.part(self._rows, start, size)
    entries, of_rows = tf.unique(rows)
    mask = columns_mask(ragged.gather(self._columns, entries), self._pool)
    # With as many entries as rows, entry i belongs to row i.
    mask = tf.cond(
      tf.size(entries) < tf.size(rows),
      lambda: tf.gather(mask, of_rows),
      lambda: mask,
    )
    if self._positive_ids is None:
      return mask
    own = chunks.part(self._positive_ids, start, size)
    return mask & ~accidental_hits(own, self._pool_ids)


class _FlatKnown:
  """The same, in shapes that are static where those of the ids are.

  Each id has a place in the order of the pool's ids, the first of its columns;
  an entry marks the places of its ids, and a column looks up its own.
  """

  def __init__(
    self,
    known_ids: tf.Tensor | tf.RaggedTensor,
    known_rows: tf.Tensor | None,
    positive_ids: tf.Tensor,
    pool_ids: tf.Tensor,
  ) -> None:
    ids, self._entries, self._num_entries = _flat(known_ids)
    ids = tf.cast(ids, pool_ids.dtype)
    self._rows = known_rows
    self._positive_ids, self._pool_ids = positive_ids, pool_ids
    ordered = tf.sort(pool_ids)
    self._pool = tf.size(pool_ids)
    self._place_of_column = search.lower_bound(ordered, pool_ids)
    places = search.lower_bound(ordered, ids)
    found = tf.gather(ordered, tf.minimum(places, self._pool - 1))
    # Ids that are not in the pool mark an extra column.
    self._places = tf.where(tf.equal(found, ids), places, self._pool)

  def columns(self, start: chunks.Size, size: chunks.Size) -> tf.Tensor:
    """[size, pool] bool, True where a column is one of them."""
    if self._rows is None:
      entries = tf.range(size) + tf.cast(start, tf.int32)
    else:
      entries = tf.cast(chunks.part(self._rows, start, size), tf.int32)
    # Of the rows that have an entry, the first one marks for all.
    first = tf.math.unsorted_segment_min(
      tf.range(size), entries, self._num_entries
    )
    rows = tf.gather(first, self._entries)
    is_here = rows < size
    marks = tf.stack(
      [
        tf.where(is_here, rows, 0),
        tf.where(is_here, self._places, self._pool),
      ],
      axis=-1,
    )
    marked = tf.scatter_nd(
      marks, tf.ones_like(self._places), [size, self._pool + 1]
    )
    if self._rows is not None:
      marked = tf.gather(marked, tf.gather(first, entries))
    mask = tf.gather(marked > 0, self._place_of_column, axis=1)
    own = chunks.part(self._positive_ids, start, size)
    return mask & ~accidental_hits(own, self._pool_ids)


def _flat(
  known_ids: tf.Tensor | tf.RaggedTensor,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
  """Ids one after another, the entry of each, and the number of entries."""
  if isinstance(known_ids, tf.RaggedTensor):
    ids = known_ids.values
    places = tf.range(tf.size(ids, tf.int64))
    entries = search.upper_bound(known_ids.row_splits, places) - 1
    return ids, entries, tf.cast(known_ids.nrows(), tf.int32)
  num_entries, width = tf.unstack(tf.shape(known_ids))
  entries = tf.repeat(tf.range(num_entries), width)
  return tf.reshape(known_ids, [-1]), entries, num_entries


def mask_logits(logits: tf.Tensor, keep: tf.Tensor) -> tf.Tensor:
  """Sets the logits that are not kept to -inf: they have probability 0.

  Args:
    logits: [batch, pool] float tensor.
    keep: [batch, pool] bool tensor.

  Returns:
    [batch, pool] tensor of the type of `logits`.

  Examples:
    >>> logits, keep = tf.zeros([1, 2]), tf.constant([[True, False]])
    >>> xir.ops.masking.mask_logits(logits, keep).numpy()
    array([[  0., -inf]], dtype=float32)
  """
  return tf.where(keep, logits, tf.constant(float("-inf"), logits.dtype))


def accidental_hits(positive_ids: tf.Tensor, pool_ids: tf.Tensor) -> tf.Tensor:
  """Where a pool's candidate is the row's positive, under the same id.

  Args:
    positive_ids: [batch] id of each row's positive.
    pool_ids: [pool] ids, of the same type.

  Returns:
    [batch, pool] bool tensor.

  Examples:
    >>> positive_ids, pool_ids = tf.constant([3, 4]), tf.constant([3, 4, 3])
    >>> xir.ops.masking.accidental_hits(positive_ids, pool_ids).numpy()
    array([[ True, False,  True],
           [False,  True, False]])
  """
  return tf.equal(positive_ids[:, tf.newaxis], pool_ids[tf.newaxis, :])


def own_columns(
  batch: int | tf.Tensor, pool: int | tf.Tensor, offset: int | tf.Tensor = 0
) -> tf.Tensor:
  """Where a pool's column is the row's own: column `row + offset`.

  Args:
    batch: Number of rows.
    pool: Number of columns.
    offset: Column of row 0: the number of rows before it in the global batch.

  Returns:
    [batch, pool] bool tensor.

  Examples:
    >>> xir.ops.masking.own_columns(batch=2, pool=3, offset=1).numpy()
    array([[False,  True, False],
           [False, False,  True]])
  """
  rows = tf.range(tf.cast(batch, tf.int64)) + tf.cast(offset, tf.int64)
  columns = tf.range(tf.cast(pool, tf.int64))
  return tf.equal(rows[:, tf.newaxis], columns[tf.newaxis, :])


def known_columns(
  known_ids: tf.RaggedTensor,
  positive_ids: tf.Tensor | None,
  pool_ids: tf.Tensor,
) -> tf.RaggedTensor:
  """Columns of a pool whose candidate is known to be another positive.

  Costs a search of the pool per known id, not a comparison of every known id
  with every column.

  Args:
    known_ids: [batch, None] distinct ids of the candidates that the query of
      each row is known to want.
    positive_ids: [batch] id of each row's positive, which is left out here;
      `accidental_hits` finds its columns. None: no id is left out.
    pool_ids: [pool] ids, of the same type.

  Returns:
    [batch, None] int32 columns, in no particular order.

  Examples:
    >>> xir.ops.masking.known_columns(
    ...   tf.ragged.constant([[7, 9]]), tf.constant([7]), tf.constant([9, 8, 7])
    ... )
    <tf.RaggedTensor [[0]]>
  """
  ids = tf.cast(known_ids.values, pool_ids.dtype)
  # Few ids have a column; a filter drops most of the others before the search.
  places = tf.where(_may_be_among(pool_ids, ids))[:, 0]
  ids = tf.gather(ids, places)
  rows = ragged.row_numbers(known_ids, places)
  order = tf.argsort(pool_ids, stable=True)
  ordered = tf.gather(pool_ids, order)
  first = tf.searchsorted(ordered, ids, side="left")
  found = tf.searchsorted(ordered, ids, side="right") - first
  if positive_ids is not None:
    own = tf.gather(positive_ids, rows)
    found = tf.where(tf.equal(ids, own), tf.zeros_like(found), found)
  # A candidate may have several columns, which are neighbours in order.
  positions = tf.ragged.range(first, first + found).values
  lengths = tf.math.unsorted_segment_sum(found, rows, known_ids.nrows())
  return tf.RaggedTensor.from_row_lengths(
    tf.gather(order, positions), tf.cast(lengths, tf.int64), validate=False
  )


def columns_mask(columns: tf.RaggedTensor, pool: int | tf.Tensor) -> tf.Tensor:
  """Where a pool's column is listed: [batch, pool] bool.

  Args:
    columns: [batch, None] columns of each row, such as `known_columns`.
    pool: Number of columns.

  Examples:
    >>> columns = tf.ragged.constant([[0, 2], []], dtype=tf.int32)
    >>> xir.ops.masking.columns_mask(columns, pool=3).numpy()
    array([[ True, False,  True],
           [False, False, False]])
  """
  values = tf.range(tf.size(columns.values, tf.int64))
  rows = ragged.row_numbers(columns, values)
  places = tf.stack([rows, columns.values], axis=1)
  return tf.scatter_nd(
    places,
    tf.fill([tf.shape(places)[0]], True),
    tf.stack([tf.cast(columns.nrows(), tf.int32), pool]),
  )


def _may_be_among(pool_ids: tf.Tensor, ids: tf.Tensor) -> tf.Tensor:
  """[n] bool: True if an id is in the pool, and sometimes if it is not.

  A Bloom filter of one hash, the last bits.
  """
  last = tf.constant(_FILTER_SIZE - 1, ids.dtype)
  present = tf.scatter_nd(
    tf.bitwise.bitwise_and(pool_ids, last)[:, tf.newaxis],
    tf.fill(tf.shape(pool_ids), True),
    tf.constant([_FILTER_SIZE], ids.dtype),
  )
  return tf.gather(present, tf.bitwise.bitwise_and(ids, last))
