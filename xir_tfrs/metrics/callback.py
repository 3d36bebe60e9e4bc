"""A Keras callback that ranks the validation set during training."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from xir_tfrs import checks
from xir_tfrs.metrics import full_ranking, inputs
from xir_tfrs.ops import ids as ids_lib

_IDS_PER_CALL = 1 << 13


class RankingCallback(tf.keras.callbacks.Callback):
  """Ranks the whole catalogue for validation queries after each epoch.

  A sampled loss is a poor measure of a retriever: as the model improves, XIR
  draws harder negatives, so its loss need not fall. This callback adds the
  metrics of `full_ranking` to the logs of the epoch, with the prefix `val_`.
  `History` records them. Callbacks after this one in the list, such as
  `EarlyStopping` and `ModelCheckpoint`, can monitor them; pass `mode="max"`,
  because larger values are better.

  The model is a `TwoTower`, or another with `query_tower` and
  `candidate_tower`, which encode dense ids. Scores are cosines if its `task`
  says `normalize`, and inner products otherwise.

  Examples:
    >>> model = xir.models.TwoTower(
    ...   xir.models.Tower(vocabulary_size=4, dim=8),
    ...   xir.models.Tower(vocabulary_size=6, dim=8),
    ...   xir.tasks.SampledSoftmaxRetrieval(),
    ... )
    >>> model.compile(xir.optimizers.LazyAdam(0.01))
    >>> rows = {"query_id": [0, 1, 2, 3], "candidate_id": [0, 2, 4, 5]}
    >>> batches = tf.data.Dataset.from_tensor_slices(rows).batch(2)
    >>> relevant = tf.ragged.constant([[1], [3, 4]])
    >>> rank = xir.metrics.RankingCallback([0, 1], relevant, 6, ks=[2])
    >>> stop = tf.keras.callbacks.EarlyStopping("val_ndcg@2", mode="max")
    >>> fitted = model.fit(batches, callbacks=[rank, stop], verbose=0)
    >>> "val_recall@2" in fitted.history
    True
  """

  def __init__(
    self,
    query_ids: Sequence[int] | np.ndarray,
    relevant: tf.RaggedTensor,
    num_candidates: int,
    *,
    seen: tf.RaggedTensor | None = None,
    history_ids: tf.RaggedTensor | None = None,
    history_times: tf.Tensor | None = None,
    ks: Sequence[int] = (10, 20, 50),
    every_epochs: int = 1,
  ) -> None:
    """Builds the callback.

    Args:
      query_ids: [num_queries] dense ids of the validation queries.
      relevant: [num_queries, None] dense candidate ids that each should find.
      num_candidates: Size of the catalogue; the candidates are 0, 1, ...
      seen: [num_queries, None] dense candidate ids to leave out of the ranking,
        such as those of each query's training rows.
      history_ids: [num_queries, None] dense candidate ids, oldest first, for a
        model with a `HistoryTower`.
      history_times: Their times, if the tower takes them; see `HistoryTower`.
      ks: The cut-offs.
      every_epochs: Number of epochs between rankings. The logs of the other
        epochs lack the metrics.

    Raises:
      ValueError: An argument that `full_ranking` would refuse after the first
        epoch, or `every_epochs` is not positive.
    """
    super().__init__()
    checks.require_sizes(
      num_candidates=num_candidates, every_epochs=every_epochs
    )
    self._queries = np.asarray(ids_lib.dense("query_ids", query_ids, rank=1))
    self._histories = {
      name: x
      for name, x in (
        ("history_ids", history_ids),
        ("history_times", history_times),
      )
      if x is not None
    }
    for name, x in self._histories.items():
      if x.shape[0] != len(self._queries):
        raise ValueError(
          f"`{name}` must have a row for each query. Received: {x.shape[0]} "
          f"rows for {len(self._queries)} queries."
        )
    self._candidates = np.arange(num_candidates)
    inputs.check_lists(relevant, seen, len(self._queries), num_candidates)
    ks = inputs.check_ks(ks)
    self._ranking = {"relevant": relevant, "seen": seen, "ks": ks}
    self._every_epochs = every_epochs

  def on_epoch_end(
    self, epoch: int, logs: dict[str, float] | None = None
  ) -> None:
    """Ranks and adds the metrics to `logs`."""
    if (epoch + 1) % self._every_epochs:
      return
    found = self.rank()
    if logs is not None:
      logs.update({f"val_{name}": value for name, value in found.items()})

  def rank(self) -> dict[str, float]:
    """Returns the metrics of the current model, named as in `full_ranking`."""
    queries = _encoded(self._encode_queries, self._queries)
    candidates = _encoded(
      lambda ids, _: _encoder(self.model, "candidate")(ids), self._candidates
    )
    return full_ranking.full_ranking(queries, candidates, **self._ranking)

  def _encode_queries(self, ids: tf.Tensor, rows: slice) -> tf.Tensor:
    encode = _encoder(self.model, "query")
    given = {name: x[rows] for name, x in self._histories.items()}
    return encode(ids, **given)


def _encoder(model: Any, side: str) -> Callable[..., tf.Tensor]:
  """The function that encodes ids: a method of `TwoTower`, or a tower."""
  plural = {"query": "encode_queries", "candidate": "encode_candidates"}[side]
  if hasattr(model, plural):
    return getattr(model, plural)
  tower = getattr(model, f"{side}_tower", None)
  if tower is None:
    raise ValueError(
      "RankingCallback needs a model with `query_tower` and `candidate_tower`. "
      f"Received: {type(model).__name__}, without `{side}_tower`."
    )
  if not getattr(getattr(model, "task", None), "normalize", False):
    return tower
  return lambda ids, **given: tf.math.l2_normalize(
    tf.cast(tower(ids, **given), tf.float32), axis=-1
  )


def _encoded(
  encode: Callable[[tf.Tensor, slice], tf.Tensor], ids: np.ndarray
) -> np.ndarray:
  """[n, dim] float32 vectors of [n] ids, encoded in batches."""
  rows = [
    slice(low, low + _IDS_PER_CALL)
    for low in range(0, max(len(ids), 1), _IDS_PER_CALL)
  ]
  parts = [encode(tf.constant(ids[part], tf.int64), part) for part in rows]
  return np.concatenate([np.asarray(part, np.float32) for part in parts])
