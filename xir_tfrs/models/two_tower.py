"""Two towers and a task."""

import tensorflow as tf
import tensorflow_recommenders as tfrs

from xir_tfrs.models import towers


class TwoTower(tfrs.Model):
  """A retrieval model: `fit` it, or call `compute_loss` in a loop.

  Batches are dicts with `query_id` and `candidate_id`, [batch] dense integer
  ids, and optionally `sample_weight` [batch].

  Attributes:
    query_tower, candidate_tower: Encoders of ids, e.g. `Tower`.
    task: The loss, one of `xir_tfrs.tasks`; None in a model for inference.
    normalize: Whether scores are cosines.
  """

  def __init__(
    self,
    query_tower: tf.keras.Model,
    candidate_tower: tf.keras.Model,
    task: tf.keras.layers.Layer | None = None,
    *,
    normalize: bool = False,
  ) -> None:
    """Takes the parts.

    Args:
      query_tower: [n] query ids -> [n, dim].
      candidate_tower: [n] candidate ids -> [n, dim].
      task: The loss; it also says whether scores are cosines.
      normalize: Without a task: whether scores are cosines.
    """
    super().__init__()
    self.query_tower = query_tower
    self.candidate_tower = candidate_tower
    self.task = task
    self.normalize = normalize if task is None else task.normalize

  def compute_loss(
    self, inputs: dict[str, tf.Tensor], training: bool = False
  ) -> tf.Tensor:
    """Scalar loss of a batch; see `tasks.RetrievalTask`.

    Raises:
      ValueError: The model has no task.
    """
    if self.task is None:
      raise ValueError(
        "This model was built for inference and has no `task`: it has no loss."
      )
    candidate_ids = inputs["candidate_id"]
    return self.task(
      self.query_tower(inputs["query_id"], training=training),
      self.candidate_tower(candidate_ids, training=training),
      candidate_ids=candidate_ids,
      sample_weight=inputs.get("sample_weight"),
      training=training,
    )

  def encode_queries(self, ids: tf.Tensor) -> tf.Tensor:
    """[n] query ids -> [n, dim]; inner products are the model's scores."""
    return self._scored(self.query_tower(ids, training=False))

  def encode_candidates(self, ids: tf.Tensor) -> tf.Tensor:
    """[n] candidate ids -> [n, dim]; inner products are the scores."""
    return self._scored(self.candidate_tower(ids, training=False))

  def get_config(self) -> dict:
    """JSON-ready config of the towers, all that inference needs."""
    return {
      "query_tower": self.query_tower.get_config(),
      "candidate_tower": self.candidate_tower.get_config(),
      "normalize": self.normalize,
    }

  @classmethod
  def from_config(cls, config: dict, custom_objects=None) -> "TwoTower":
    """A model for inference; its weights come from a checkpoint."""
    del custom_objects
    return cls(
      towers.Tower.from_config(config["query_tower"]),
      towers.Tower.from_config(config["candidate_tower"]),
      normalize=config["normalize"],
    )

  def _scored(self, embeddings: tf.Tensor) -> tf.Tensor:
    embeddings = tf.cast(embeddings, tf.float32)
    if self.normalize:
      return tf.math.l2_normalize(embeddings, axis=1)
    return embeddings
