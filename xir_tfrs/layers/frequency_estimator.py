"""Streaming estimate of how often each candidate comes."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from xir_tfrs import checks, distribute
from xir_tfrs.layers import state
from xir_tfrs.ops import frequency, search


class FrequencyEstimator(tf.keras.layers.Layer):
  """Learns from the batches how often candidates come (Yi et al. 2019).

  Needs no table of counts and no vocabulary: ids, int64 or strings, are
  hashed into `num_hashes` tables of `num_buckets` cells. A cell holds the
  mean number of steps from one batch that has its candidate to the next:

      gap <- (1 - learning_rate) gap + learning_rate (step - last_seen)

  and p = 1 / (longest gap of the candidate's cells) estimates the probability
  that the candidate is in a batch. Candidates in one cell are taken for one,
  and a cell is updated once per step whatever the number of its candidates
  in the batch, so that the order of rows and replicas does not matter.

  As the paper defines it p is 1 for a candidate in every batch: one that
  comes four times per batch is corrected like one that comes once.
  `count_appearances` lifts this cap: c appearances in a batch are c
  updates by gap / c, and 1 / gap estimates the appearances per batch.

  `initial_gap=None` starts with the running mean of the gaps, until it moves
  more slowly than by `learning_rate`. With an initial gap, as in the paper,
  a candidate has forgotten that value only after several times
  1 / `learning_rate` appearances.

  Attributes:
    gaps: [num_hashes * num_buckets] float32 variable, table after table (only
      one-dimensional state can be scattered to under a strategy). float32:
      its rounding stops a gap within 1e-7 / `learning_rate` of its mean.
    last_seen: Same shape, int64 variable: the step of the last hit; 0: none.
    appearances: Same shape, float32 variable: hits so far; None where an
      `initial_gap` is given.
    step: int64 variable: batches so far, without those of no rows.
    hash_coefficients: [num_hashes, 7] int64 variable: state, so that tables
      and hashes stay together in a checkpoint.

  Examples:
    >>> estimator = xir.layers.FrequencyEstimator(
    ...   num_buckets=1024, learning_rate=0.5
    ... )
    >>> for _ in range(8):
    ...   estimator.update(tf.constant([3, 4]))
    >>> estimator.probability(tf.constant([3])).numpy()
    array([1.], dtype=float32)
  """

  def __init__(
    self,
    *,
    num_buckets: int,
    num_hashes: int = 2,
    learning_rate: float = 0.01,
    initial_gap: float | None = None,
    count_appearances: bool = False,
    read_before_update: bool = False,
    seed: int = 0,
    name: str = "frequency_estimator",
  ) -> None:
    """Builds the variables.

    Args:
      num_buckets: Cells per table. Eight cells per candidate, over all tables,
        keep collisions rare: of the candidates, 5 % share all their cells
        with others in two tables, 2 % in four.
      num_hashes: Number of tables.
      learning_rate: Weight of a new gap in the mean, in (0, 1].
      initial_gap: Gap of every cell at first, in steps; number of candidates
        / global batch size would be right if all came equally often. None:
        start with running means.
      count_appearances: Whether a candidate counts as often as it stands in
        the batch, instead of once.
      read_before_update: Whether `log_shares` gives the estimate from before
        the batch it is asked about.
      seed: Draws the hash functions.
      name: Name of the layer.

    Raises:
      ValueError: An argument out of its range.
    """
    super().__init__(name=name, autocast=False)
    if not 0 < num_buckets < frequency.HASH_PRIME:
      raise ValueError(
        f"`num_buckets` must lie in [1, {frequency.HASH_PRIME}). "
        f"Received: `num_buckets` = {num_buckets}."
      )
    checks.require_sizes(num_hashes=num_hashes)
    if not 0.0 < learning_rate <= 1.0:
      raise ValueError(
        "`learning_rate` must lie in (0, 1]. "
        f"Received: `learning_rate` = {learning_rate}."
      )
    checks.require_positive(initial_gap=initial_gap)
    self._num_buckets = num_buckets
    self._num_hashes = num_hashes
    self._learning_rate = learning_rate
    self._initial_gap = initial_gap
    self._count_appearances = count_appearances
    self._read_before_update = read_before_update
    self._seed = seed

    tables = (num_hashes * num_buckets,)
    self.gaps = state.add_state(
      self, "gaps", tables, tf.float32, self._initial_gaps
    )
    self.last_seen = state.add_state(self, "last_seen", tables, tf.int64)
    self.appearances = None
    if initial_gap is None:
      self.appearances = state.add_state(
        self, "appearances", tables, tf.float32
      )
    self.step = state.add_state(self, "step", (), tf.int64)
    self.hash_coefficients = state.add_state(
      self,
      "hash_coefficients",
      (num_hashes, 7),
      tf.int64,
      lambda: frequency.hash_coefficients(num_hashes, seed=seed),
    )

  def update(self, ids: tf.Tensor) -> None:
    """Learns from a batch.

    Call it at the top level of the step function: variables that all replicas
    agree on cannot be written inside `tf.cond` or `tf.while_loop`.

    Args:
      ids: [n] integer or string ids of the rows of the global batch, the same
        on every replica. Without rows nothing changes.
    """
    cells = tf.reshape(self._cells(ids), [-1])
    # Two ids may share a cell: it is cells that count, not ids. One that stands
    # here several times gets the same value as often.
    hits = tf.ones_like(cells, tf.float32)
    if self._count_appearances:
      hits = tf.cast(search.multiplicities(cells), tf.float32)
    step = self.step + tf.cast(tf.size(cells) > 0, tf.int64)
    so_far = None
    if self.appearances is not None:
      so_far = tf.gather(self.appearances, cells) + hits
    gap = frequency.next_gap(
      tf.gather(self.gaps, cells),
      tf.gather(self.last_seen, cells),
      hits,
      frequency.update_rate(self._learning_rate, hits, so_far),
      step=step,
    )
    self.gaps.scatter_update(tf.IndexedSlices(gap, cells))
    self.last_seen.scatter_update(
      tf.IndexedSlices(tf.fill(tf.shape(cells), step), cells)
    )
    if self.appearances is not None:
      self.appearances.scatter_update(tf.IndexedSlices(so_far, cells))
    self.step.assign(step)

  def probability(self, ids: tf.Tensor) -> tf.Tensor:
    """[n] float32 in (0, 1]: probability that a batch has the candidate.

    With `count_appearances`, the expected appearances per batch, up to 1.
    """
    return 1.0 / tf.maximum(self._gaps(ids), 1.0)

  def per_batch(self, ids: tf.Tensor) -> tf.Tensor:
    """[n] float32 > 0: how often the candidate comes in a batch, 1 / gap.

    Above 1 only with `count_appearances`, or an `initial_gap` below 1.
    """
    return 1.0 / self._gaps(ids)

  def log_shares(
    self,
    ids: tf.Tensor,
    *,
    gathered: bool,
    training: bool,
    num_rows: tf.Tensor | None = None,
  ) -> tf.Tensor:
    """Log of the share of the global batch's rows each candidate has.

        log(p / rows of the global batch)

    A batch shorter than those learnt from gives all candidates too large a
    share, by the same factor. The estimator learns from the ids if `training`,
    and is then read, or read before that with `read_before_update`.

    Args:
      ids: [n] integer or string ids.
      gathered: Whether these are the ids of the global batch; otherwise they
        are this replica's.
      training: Whether the estimate moves; a Python bool.
      num_rows: Rows of the global batch, for `ids` that are not its rows;
        allowed only without `training`.

    Returns:
      [n] float32, without gradient.

    Raises:
      ValueError: `num_rows` together with `training`.
    """
    if training and num_rows is not None:
      raise ValueError(
        "`num_rows` is for ids that are not the rows of a batch: there is "
        "nothing to learn from them. Give it with `training=False`."
      )
    keys = frequency.as_keys(ids)
    if num_rows is None:
      num_rows = tf.size(keys, tf.int64)
      if not gathered:
        _, num_rows = distribute.global_rows(num_rows)
    if self._read_before_update:
      log_shares = self._log_shares(keys, num_rows)
    if training:
      # Strings cannot be gathered, their keys can.
      self.update(keys if gathered else distribute.all_gather(keys))
    if not self._read_before_update:
      log_shares = self._log_shares(keys, num_rows)
    return log_shares

  def warm_start(
    self,
    ids: Sequence[int] | Sequence[str] | np.ndarray | tf.Tensor,
    counts: Sequence[int] | np.ndarray,
    *,
    batch_size: int,
    total_rows: int | None = None,
  ) -> None:
    """Forgets the batches so far and begins with a table of counts.

    The state is that after `total_rows / batch_size` batches in which the
    candidates came as the table says. Call it outside the step function.

    Args:
      ids: [n] ids; the counts of an id that stands here twice add up.
      counts: [n] interactions of each, >= 0; others than these have none.
      batch_size: Rows of the global batches to come.
      total_rows: Interactions the counts were taken from, if the table leaves
        candidates out; None: the sum of the counts.

    Raises:
      ValueError: Shapes do not agree, a count is negative, or there is
        nothing to start from.
    """
    counts = np.asarray(counts)
    keys = frequency.as_keys(ids)
    if counts.ndim != 1 or keys.shape != counts.shape:
      raise ValueError(
        "`ids` and `counts` must both be [n]. "
        f"Received: {keys.shape} and {counts.shape}."
      )
    if counts.size and counts.min() < 0:
      raise ValueError(
        f"`counts` must be >= 0. Received: a count of {counts.min()}."
      )
    checks.require_sizes(batch_size=batch_size)
    counted = counts.sum()
    total = counted if total_rows is None else total_rows
    if not 0 < counted <= total:
      raise ValueError(
        "The counts must add up to more than 0, and to no more than "
        f"`total_rows`. Received: a sum of {counted}, "
        f"`total_rows` = {total_rows}."
      )
    per_cell = tf.math.unsorted_segment_sum(
      tf.tile(tf.cast(counts, tf.float64), [self._num_hashes]),
      tf.reshape(self._cells(keys), [-1]),
      self.gaps.shape[0],
    )
    known = per_cell > 0
    gaps = frequency.gap_of_share(
      tf.where(known, per_cell / float(total), 1.0),
      batch_size,
      count_appearances=self._count_appearances,
    )
    steps = max(round(total / batch_size), 1)
    step = tf.constant(steps, tf.int64)
    self.gaps.assign(
      tf.where(known, tf.cast(gaps, tf.float32), self._initial_gaps())
    )
    self.last_seen.assign(tf.where(known, step, 0))
    if self.appearances is not None:
      self.appearances.assign(
        tf.cast(tf.where(known, steps / gaps, 0.0), tf.float32)
      )
    self.step.assign(step)

  def error(
    self,
    ids: Sequence[int] | Sequence[str] | np.ndarray | tf.Tensor,
    counts: Sequence[int] | np.ndarray,
  ) -> dict[str, tf.Tensor]:
    """How far the estimate is from true counts; see `frequency.log_error`.

    The truth is the share of the rows, so the paper's cap at once per batch
    shows as an error of frequent candidates.

    Args:
      ids: [n] ids.
      counts: [n] their true counts.

    Returns:
      Scalars: `"log_correlation"`, `"candidate_log_error"`, `"row_log_error"`.
    """
    return frequency.log_error(self._log_per_batch(ids), counts)

  def readout(self) -> dict[str, tf.Tensor]:
    """Scalars for the log: batches so far, and share of cells ever hit.

    A share close to 1 says that candidates share cells: raise `num_buckets`.
    """
    return {
      "frequency_steps": tf.identity(self.step),
      "frequency_cells_hit": tf.reduce_mean(
        tf.cast(self.last_seen > 0, tf.float32)
      ),
    }

  def reset(self) -> None:
    """Back to the state after construction."""
    self.gaps.assign(self._initial_gaps())
    self.last_seen.assign(tf.zeros_like(self.last_seen))
    if self.appearances is not None:
      self.appearances.assign(tf.zeros_like(self.appearances))
    self.step.assign(0)

  def get_config(self) -> dict:
    return {
      "num_buckets": self._num_buckets,
      "num_hashes": self._num_hashes,
      "learning_rate": self._learning_rate,
      "initial_gap": self._initial_gap,
      "count_appearances": self._count_appearances,
      "read_before_update": self._read_before_update,
      "seed": self._seed,
      "name": self.name,
    }

  def _initial_gaps(self) -> tf.Tensor:
    # 0 says that nothing is known.
    return tf.fill(
      [self._num_hashes * self._num_buckets], float(self._initial_gap or 0.0)
    )

  def _cells(self, ids: tf.Tensor) -> tf.Tensor:
    """[num_hashes, n] positions in the tables laid end to end."""
    cells = frequency.cells(
      frequency.as_keys(ids), self.hash_coefficients, self._num_buckets
    )
    first = tf.range(self._num_hashes, dtype=tf.int64) * self._num_buckets
    return first[:, tf.newaxis] + cells

  def _gaps(self, ids: tf.Tensor) -> tf.Tensor:
    """[n] the longest gap of each candidate's cells."""
    gaps = tf.gather(self.gaps, self._cells(ids))
    return frequency.longest_gap(gaps, step=self.step)

  def _log_per_batch(self, ids: tf.Tensor) -> tf.Tensor:
    gaps = self._gaps(ids)
    if not self._count_appearances:
      gaps = tf.maximum(gaps, 1.0)
    # float64, as in `frequency.next_gap`: the same bits on all replicas.
    return -tf.math.log(tf.cast(gaps, tf.float64))

  def _log_shares(self, keys: tf.Tensor, num_rows: tf.Tensor) -> tf.Tensor:
    log_rows = tf.math.log(tf.cast(num_rows, tf.float64))
    log_shares = tf.cast(self._log_per_batch(keys) - log_rows, tf.float32)
    # A fact about the data: no gradient, not even to a tape that watches it.
    return tf.stop_gradient(log_shares)
