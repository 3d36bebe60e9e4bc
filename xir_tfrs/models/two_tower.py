"""The two-tower retrieval model."""

import inspect
import types
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
import tensorflow_recommenders as tfrs

from xir_tfrs import distribute
from xir_tfrs.models import history_tower, towers
from xir_tfrs.models.ranker import Ranker
from xir_tfrs.ops import history, xla
from xir_tfrs.optimizers import lazy_adam

# The losses that Keras reports per epoch, as means over its rows.
_LOSSES = ("loss", "regularization_loss", "total_loss")
# The arguments of `compile` that Keras computes from outputs and labels.
_OF_OUTPUTS = ("loss", "metrics", "loss_weights", "weighted_metrics")
_NO_LABELS = (
  "Batches must be dicts with `query_id` and `candidate_id`. The candidates "
  "are the labels, so there is no `y`."
)
# In a ranker's config: the ranker shares the tower's table of side features.
_SHARED = "tower"


class TwoTower(tfrs.Model):
  """A retrieval model: `fit` it, or call `compute_loss` in a loop.

  Batches are dicts with these entries:

      query_id, candidate_id  [batch] dense integer ids.
      sample_weight           Optional, [batch].
      known_candidate_ids     Optional, [batch, None] ids that must not be
                              negatives of the row; or [queries, None] if rows
                              share them.
      known_row               [batch] the row's entry in `known_candidate_ids`,
                              if rows share them.

  With a `HistoryTower`, batches also have `history_ids` [batch, None], the
  history of each row. If rows share histories, they have instead:

      history_ids             [windows, None] events of each window.
      history_query_ids       [windows] query of each window.
      history_row             [batch] the row's window.
      history_position        [batch] events of the window before the row.
      history_first_row       Scalar, the position of this replica's first
                              window in the global batch; needed if the rows of
                              several replicas share windows.

  If its encoder takes times, batches have `history_times`, [..., H + 1] for
  `history_ids` [..., H]; see `HistoryTower`.

  `fit` and `evaluate` also accept `sample_weight` as an argument, and report
  the mean losses over the rows of the epoch so far.

  Attributes:
    query_tower: Encoder of query ids, e.g. `Tower`, or of their histories,
      `HistoryTower`.
    candidate_tower: Encoder of candidate ids, e.g. `Tower`.
    task: The loss, one of `xir_tfrs.tasks`; None in a model for inference.
    normalize: Whether scores are cosines.
    ranker: Scores pairs of ids in a second stage, e.g. `Ranker`; or None.

  Examples:
    >>> query_tower = xir.models.Tower(vocabulary_size=8, dim=4)
    >>> candidate_tower = xir.models.Tower(vocabulary_size=9, dim=4)
    >>> task = xir.tasks.BIRRetrieval(candidate_counts=[2] * 9)
    >>> model = xir.models.TwoTower(query_tower, candidate_tower, task)
    >>> model.compile(optimizer=xir.optimizers.LazyAdam(0.05))
    >>> rows = {"query_id": np.arange(8), "candidate_id": np.arange(8)}
    >>> batches = tf.data.Dataset.from_tensor_slices(rows).batch(4)
    >>> history = model.fit(batches, epochs=1, verbose=0)
    >>> model.encode_queries(tf.constant([0, 5])).shape
    TensorShape([2, 4])
  """

  def __init__(
    self,
    query_tower: tf.keras.Model,
    candidate_tower: tf.keras.Model,
    task: tf.keras.layers.Layer | None = None,
    *,
    normalize: bool = False,
    ranker: tf.keras.Model | None = None,
  ) -> None:
    """Builds the model.

    Args:
      query_tower: [n] query ids -> [n, dim]; or a `HistoryTower`.
      candidate_tower: [n] candidate ids -> [n, dim].
      task: The loss; its `normalize` says whether scores are cosines.
      normalize: Whether scores are cosines, in a model without a task.
      ranker: Re-ranks the retrieved candidates; by default the task's ranker.

    Raises:
      ValueError: `task` is something else, or `normalize` differs from its.
    """
    super().__init__()
    if not (task is None or hasattr(task, "normalize")):
      raise ValueError(
        "`task` must be one of `xir_tfrs.tasks`: TwoTower(query_tower, "
        f"candidate_tower, task). Received: `task` = {task!r}."
      )
    if normalize and task is not None and not task.normalize:
      raise ValueError(
        "The task says whether scores are cosines: give `normalize` = True to "
        f"{type(task).__name__}."
      )
    self.query_tower = query_tower
    self.candidate_tower = candidate_tower
    self.task = task
    self.normalize = normalize if task is None else task.normalize
    self._means = types.SimpleNamespace(of={})
    # There is no `call` to build it, which Keras would wait for before it
    # loads HDF5 or shows a summary.
    self.built = True
    self.ranker = getattr(task, "ranker", None) if ranker is None else ranker

  def compute_loss(
    self, inputs: dict[str, tf.Tensor], training: bool = False
  ) -> tf.Tensor:
    """Returns the scalar loss of a batch; see `tasks.RetrievalTask`.

    Raises:
      ValueError: The model has no task, or was built outside the scope of the
        strategy that trains it.
    """
    if self.task is None:
      raise ValueError(
        "This model was built for inference: it has no `task`, and so no loss."
      )
    distribute.require_scope(self.trainable_variables, self.name)
    candidate_ids = inputs["candidate_id"]
    further = {}
    if getattr(self.ranker, "takes_histories", False):
      further["history_ids"] = _histories(inputs)
    candidates = self.candidate_tower(candidate_ids, training=training)
    queries = self._query_embeddings(inputs, training)
    if self.has_interests:
      queries = self.query_tower.encoder.of_labels(
        self._normalized(queries), self._normalized(candidates)
      )
    return self.task(
      queries,
      candidates,
      candidate_ids=candidate_ids,
      query_ids=inputs["query_id"],
      known_candidate_ids=inputs.get("known_candidate_ids"),
      known_rows=inputs.get("known_row"),
      sample_weight=inputs.get("sample_weight"),
      training=training,
      **further,
    )

  def compile(self, *args: Any, **kwargs: Any) -> None:
    """As in Keras, without losses and metrics: the task is the loss.

    Raises:
      ValueError: An argument would have no effect.
    """
    given = inspect.signature(super().compile).bind(*args, **kwargs).arguments
    for name in _OF_OUTPUTS:
      if given.get(name):
        raise ValueError(
          f"`{name}` would have no effect: the task is the loss, and there are "
          "no outputs and labels to compare. `xir_tfrs.metrics.RankingCallback`"
          f" measures rankings. Received: `{name}` = {given[name]!r}."
        )
    super().compile(*args, **kwargs)
    # Keras does not track a namespace, so checkpoints leave the means out.
    with self.distribute_strategy.scope():
      self._means = types.SimpleNamespace(
        of={name: tf.keras.metrics.Mean(name) for name in _LOSSES}
      )

  def fit(self, x: Any = None, y: None = None, **kwargs: Any) -> Any:
    """As in Keras, for batches as the class describes them."""
    return super().fit(**_for_keras(x, y, kwargs))

  def evaluate(self, x: Any = None, y: None = None, **kwargs: Any) -> Any:
    """As in Keras, for batches as the class describes them."""
    return super().evaluate(**_for_keras(x, y, kwargs))

  def train_on_batch(self, x: Any, y: None = None, **kwargs: Any) -> Any:
    """As in Keras, for a batch as the class describes it."""
    return super().train_on_batch(**_for_keras(x, y, kwargs))

  def test_on_batch(self, x: Any, y: None = None, **kwargs: Any) -> Any:
    """As in Keras, for a batch as the class describes it."""
    return super().test_on_batch(**_for_keras(x, y, kwargs))

  def train_step(self, data: Any) -> dict[str, tf.Tensor]:
    """Runs `gradient_step` for `fit`; returns the epoch's means so far."""
    batch = _batch(data)
    return self._with_means(batch, self.gradient_step(batch))

  def test_step(self, data: Any) -> dict[str, tf.Tensor]:
    """Computes the losses for `evaluate`; returns the means so far."""
    batch = _batch(data)
    return self._with_means(batch, super().test_step(batch))

  def gradient_step(
    self, batch: Mapping[str, tf.Tensor]
  ) -> dict[str, tf.Tensor]:
    """Trains on a batch; call it on each replica of a custom loop.

    Returns:
      Scalars `loss`, `regularization_loss` and `total_loss`: this replica's
      shares, which sum to the global losses of the batch.

    Raises:
      ValueError: `compile` was not called, or as for `compute_loss`.
    """
    if self.optimizer is None:
      raise ValueError(
        "This model has no optimizer yet: call `compile` before it trains."
      )
    scaling = _scaling(self.optimizer)
    if not xla.compiling() and scaling is None:
      return super().train_step(batch)
    with tf.GradientTape() as tape:
      loss = self.compute_loss(dict(batch), training=True)
      regularization_loss = tf.reduce_sum(
        [tf.reduce_sum(loss) for loss in self.losses]
      )
      total_loss = loss + regularization_loss
      scaled = scaling.get_scaled_loss(total_loss) if scaling else total_loss
    variables = self.trainable_variables
    gradients = tape.gradient(scaled, variables)
    if scaling:
      gradients = scaling.get_unscaled_gradients(gradients)
    inner = scaling.inner_optimizer if scaling else self.optimizer
    if xla.compiling() and not isinstance(inner, lazy_adam.LazyAdam):
      # Other optimizers count the distinct rows, which has no static shape.
      # They update the whole table anyway, so dense gradients cost no more.
      gradients = [
        None if gradient is None else tf.convert_to_tensor(gradient)
        for gradient in gradients
      ]
    self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
    return {metric.name: metric.result() for metric in self.metrics} | {
      "loss": loss,
      "regularization_loss": regularization_loss,
      "total_loss": total_loss,
    }

  def reset_metrics(self) -> None:
    """Resets the means; Keras calls it at the start of an epoch."""
    super().reset_metrics()
    for mean in self._means.of.values():
      mean.reset_state()

  @property
  def takes_histories(self) -> bool:
    """Whether queries are encoded from their histories."""
    return isinstance(self.query_tower, history_tower.HistoryTower)

  @property
  def has_interests(self) -> bool:
    """Whether a query has several vectors; a score is the highest of theirs."""
    return self.takes_histories and self.query_tower.encoder.has_interests

  def encode_queries(
    self,
    ids: tf.Tensor,
    features: Mapping[str, tf.Tensor | tf.RaggedTensor] | None = None,
    history_ids: tf.Tensor | tf.RaggedTensor | None = None,
    event_vectors: tf.Tensor | None = None,
    history_times: tf.Tensor | None = None,
  ) -> tf.Tensor:
    """Encodes queries; inner products with candidates are the scores.

    Args:
      ids: [n] dense ids; unknown ids have a zero embedding.
      features: Side features, as `layers.CandidateTable` returns them; by
        default those of the tower's table.
      history_ids: [n, None] dense candidate ids, oldest first; required if the
        model `takes_histories`. See `HistoryTower`.
      event_vectors: [candidates, dim] precomputed vectors of the events; see
        `HistoryTower`.
      history_times: [n, H + 1] times of the events and the request; see
        `HistoryTower`.

    Returns:
      [n, dim] embeddings; [n, interests, dim] if the model `has_interests`.

    Raises:
      ValueError: `history_ids` is missing, or the model takes no histories.
    """
    if self.takes_histories != (history_ids is not None):
      raise ValueError(
        "A model takes `history_ids` if and only if it has a HistoryTower. "
        f"Received: {type(self.query_tower).__name__}, `history_ids` = "
        f"{history_ids!r}."
      )
    if history_ids is None:
      return self._encoded(self.query_tower, ids, features)
    return self._normalized(
      self.query_tower(
        ids,
        history_ids,
        features,
        event_vectors=event_vectors,
        history_times=history_times,
      )
    )

  def encode_candidates(
    self,
    ids: tf.Tensor,
    features: Mapping[str, tf.Tensor | tf.RaggedTensor] | None = None,
  ) -> tf.Tensor:
    """Encodes [n] candidates to [n, dim]; arguments as in `encode_queries`."""
    return self._encoded(self.candidate_tower, ids, features)

  def rerank_scores(
    self,
    query_ids: tf.Tensor,
    candidate_ids: tf.Tensor,
    history_ids: tf.Tensor | tf.RaggedTensor | None = None,
  ) -> tf.Tensor:
    """Scores pairs with the ranker.

    Args:
      query_ids: [n] dense ids.
      candidate_ids: [n, m] dense ids.
      history_ids: [n, None] dense candidate ids, oldest first; required if the
        ranker takes histories.

    Returns:
      [n, m] scores.

    Raises:
      ValueError: The model has no ranker.
    """
    if self.ranker is None:
      raise ValueError("This model has no `ranker`: it cannot re-rank.")
    given = {} if history_ids is None else {"history_ids": history_ids}
    return self.ranker(query_ids, candidate_ids, training=False, **given)

  def save(self, *args: Any, **kwargs: Any) -> None:
    """Raises NotImplementedError with the alternatives to use."""
    raise NotImplementedError(
      "`TwoTower.save` is not supported: Keras cannot load the loss and its "
      "state. To continue training or load later, use `save_weights` or "
      "`tf.train.Checkpoint`; to serve, export `encode_queries` and "
      "`encode_candidates`, or save the towers."
    )

  def predict(self, *args: Any, **kwargs: Any) -> None:
    """Raises NotImplementedError with the alternatives to use."""
    raise NotImplementedError(
      "`TwoTower.predict` is not supported, as a batch has no outputs: encode "
      "ids with `encode_queries` and `encode_candidates`, and search with an "
      "index of `xir_tfrs.indexes`."
    )

  def get_config(self) -> dict:
    """JSON-ready config of what inference needs: the towers and the ranker.

    Leaves out a ranker that is not a `models.Ranker`.
    """
    return {
      "query_tower": self.query_tower.get_config(),
      "candidate_tower": self.candidate_tower.get_config(),
      "normalize": self.normalize,
      "ranker": self._ranker_config(),
    }

  @classmethod
  def from_config(cls, config: dict, custom_objects: Any = None) -> "TwoTower":
    """Builds a model for inference; a checkpoint restores its weights."""
    del custom_objects
    candidate_tower = towers.Tower.from_config(config["candidate_tower"])
    query_tower = _query_tower(config["query_tower"], candidate_tower)
    ranker = config.get("ranker")  # Old configs have none.
    if ranker is not None:
      ranker = dict(ranker)
      for name, tower in (
        ("query_table", query_tower),
        ("candidate_table", candidate_tower),
      ):
        if ranker[name] == _SHARED:
          ranker[name] = tower.table
      ranker = Ranker.from_config(ranker)
    return cls(
      query_tower,
      candidate_tower,
      normalize=config["normalize"],
      ranker=ranker,
    )

  def _with_means(
    self, batch: Mapping[str, Any], losses: Mapping[str, tf.Tensor]
  ) -> dict[str, tf.Tensor]:
    _, rows = distribute.global_rows(tf.shape(batch["candidate_id"])[0])
    rows = tf.cast(rows, tf.float32)
    replicas = tf.cast(distribute.num_replicas(), tf.float32)
    reported = dict(losses)
    for name, mean in self._means.of.items():
      # The shares sum over the replicas, and so do the weights. The last step
      # of a dataset may have no rows, which makes its loss undefined.
      share = tf.where(rows > 0, tf.cast(losses[name], tf.float32), 0.0)
      mean.update_state(share * replicas, sample_weight=rows / replicas)
      # Not `mean.result()`: Keras sums what the replicas report, and depending
      # on the strategy each reports the whole result or its own.
      reported[name] = tf.math.divide_no_nan(mean.total, mean.count) / replicas
    return reported

  def _ranker_config(self) -> dict | None:
    if not isinstance(self.ranker, Ranker):
      return None
    config = self.ranker.get_config()
    # A checkpoint holds a shared table once and cannot restore it into two.
    for side in ("query", "candidate"):
      table = getattr(getattr(self.ranker, f"{side}_embedder"), "table", None)
      tower = getattr(self, f"{side}_tower")
      if table is not None and table is getattr(tower, "table", None):
        config[f"{side}_table"] = _SHARED
    return config

  def _encoded(
    self, tower: Any, ids: tf.Tensor, features: Mapping[str, Any] | None
  ) -> tf.Tensor:
    if features:
      embeddings = tower.encode(ids, features)
    else:
      embeddings = tower(ids, training=False)
    return self._normalized(embeddings)

  def _normalized(self, embeddings: tf.Tensor) -> tf.Tensor:
    embeddings = tf.cast(embeddings, tf.float32)
    if self.normalize:
      return tf.math.l2_normalize(embeddings, axis=-1)
    return embeddings

  def _query_embeddings(
    self, inputs: Mapping[str, tf.Tensor], training: bool
  ) -> tf.Tensor:
    """[batch, dim] or [batch, interests, dim] embeddings of the queries."""
    if not self.takes_histories:
      return self.query_tower(inputs["query_id"], training=training)
    _require_histories(inputs)
    times = {}
    if self.query_tower.encoder.takes_times:
      times["history_times"] = _times(inputs)
    if "history_row" not in inputs:
      return self.query_tower(
        inputs["query_id"], inputs["history_ids"], training=training, **times
      )
    states = self.query_tower.encode_positions(
      inputs["history_query_ids"],
      inputs["history_ids"],
      training=training,
      first_row=inputs.get("history_first_row"),
      **times,
    )
    places = tf.stack([inputs["history_row"], inputs["history_position"]], 1)
    return tf.gather_nd(states, places)


def _scaling(optimizer: Any) -> Any:
  """The optimizer if it needs a scaled loss (`mixed_float16`), or None.

  Gradients of a batch mean underflow in float16.
  """
  wants = isinstance(optimizer, tf.keras.mixed_precision.LossScaleOptimizer)
  return optimizer if wants else None


def _require_histories(inputs: Mapping[str, tf.Tensor]) -> None:
  if "history_ids" not in inputs:
    raise ValueError(
      "A model with a HistoryTower needs `history_ids` in its batches. "
      f"Received: {', '.join(inputs)}."
    )


def _times(inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
  if "history_times" not in inputs:
    raise ValueError(
      "The encoder of histories takes times, so batches need `history_times`. "
      f"Received: {', '.join(inputs)}."
    )
  return inputs["history_times"]


def _histories(inputs: Mapping[str, tf.Tensor]) -> tf.Tensor | tf.RaggedTensor:
  """[batch, None] candidate ids of each row's history."""
  _require_histories(inputs)
  if "history_row" not in inputs:
    return inputs["history_ids"]
  return history.prefixes(
    inputs["history_ids"], inputs["history_row"], inputs["history_position"]
  )


def _query_tower(
  config: dict[str, Any], candidate_tower: towers.Tower
) -> towers.Tower | history_tower.HistoryTower:
  if "history_length" in config:
    return history_tower.HistoryTower.from_config(
      config, candidate_tower=candidate_tower
    )
  return towers.Tower.from_config(config)


def _for_keras(x: Any, y: None, arguments: dict[str, Any]) -> dict[str, Any]:
  """Arguments for Keras; moves or refuses those that Keras would drop."""
  if y is not None:
    raise ValueError(_NO_LABELS)
  if arguments.pop("class_weight", None) is not None:
    raise ValueError(
      "`class_weight` does not apply: a retrieval model has no classes. Use "
      "`sample_weight` to weight rows."
    )
  # Keras drops the weights of arrays if there are no labels.
  weight = arguments.get("sample_weight")
  if weight is not None and isinstance(x, Mapping):
    x = _weighed(x, arguments.pop("sample_weight"))
  held_out = arguments.get("validation_data")
  if isinstance(held_out, tuple):
    given, labels, weight = tf.keras.utils.unpack_x_y_sample_weight(held_out)
    if labels is not None:
      raise ValueError(_NO_LABELS)
    if weight is not None and isinstance(given, Mapping):
      arguments["validation_data"] = (_weighed(given, weight),)
  return {"x": x, **arguments}


def _batch(data: Any) -> Mapping[str, tf.Tensor]:
  """The batch that Keras passes to a step, with `sample_weight` as a column."""
  batch, labels, weight = tf.keras.utils.unpack_x_y_sample_weight(data)
  if labels is not None or not isinstance(batch, Mapping):
    raise ValueError(_NO_LABELS)
  missing = {"query_id", "candidate_id"} - batch.keys()
  if missing:
    raise ValueError(
      f"Batches need the column `{min(missing)}`. Received: "
      f"{', '.join(f'`{name}`' for name in batch) or 'no columns'}."
    )
  return batch if weight is None else _weighed(batch, weight)


def _weighed(batch: Mapping[str, Any], weight: Any) -> dict[str, Any]:
  """The columns, with `weight` multiplied into their `sample_weight`."""
  weight = tf.reshape(tf.cast(weight, tf.float32), [-1])
  if "sample_weight" in batch:
    weight *= tf.cast(batch["sample_weight"], tf.float32)
  return {**batch, "sample_weight": weight}
