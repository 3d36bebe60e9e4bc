"""Two towers and a task."""

from collections.abc import Mapping

import tensorflow as tf
import tensorflow_recommenders as tfrs

from xir_tfrs import distribute
from xir_tfrs.models import towers
from xir_tfrs.models.ranker import Ranker

# In a ranker's config: its table of side features is that of the tower.
_SHARED = "tower"


class TwoTower(tfrs.Model):
  """A retrieval model: `fit` it, or call `compute_loss` in a loop.

  Batches are dicts with `query_id` and `candidate_id`, [batch] dense integer
  ids, and optionally `sample_weight` [batch] and `known_candidate_ids` [batch,
  None], ids that are no negatives of their row.

  Attributes:
    query_tower, candidate_tower: Encoders of ids, e.g. `Tower`.
    task: The loss, one of `xir_tfrs.tasks`; None in a model for inference.
    normalize: Whether scores are cosines.
    ranker: Scores pairs of ids for a second stage, e.g. `Ranker`; or None.
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
    """Takes the parts.

    Args:
      query_tower: [n] query ids -> [n, dim].
      candidate_tower: [n] candidate ids -> [n, dim].
      task: The loss; it also says whether scores are cosines.
      normalize: Without a task: whether scores are cosines.
      ranker: Without a task that has one: re-ranks what is retrieved.
    """
    super().__init__()
    self.query_tower = query_tower
    self.candidate_tower = candidate_tower
    self.task = task
    self.normalize = normalize if task is None else task.normalize
    self.ranker = getattr(task, "ranker", None) if ranker is None else ranker

  def compute_loss(
    self, inputs: dict[str, tf.Tensor], training: bool = False
  ) -> tf.Tensor:
    """Scalar loss of a batch; see `tasks.RetrievalTask`.

    Raises:
      ValueError: The model has no task, or was built outside the scope of the
        strategy it is trained under.
    """
    if self.task is None:
      raise ValueError(
        "This model was built for inference and has no `task`: it has no loss."
      )
    distribute.require_scope(self.trainable_variables, self.name)
    candidate_ids = inputs["candidate_id"]
    return self.task(
      self.query_tower(inputs["query_id"], training=training),
      self.candidate_tower(candidate_ids, training=training),
      candidate_ids=candidate_ids,
      query_ids=inputs["query_id"],
      known_candidate_ids=inputs.get("known_candidate_ids"),
      sample_weight=inputs.get("sample_weight"),
      training=training,
    )

  def encode_queries(
    self,
    ids: tf.Tensor,
    features: Mapping[str, tf.Tensor | tf.RaggedTensor] | None = None,
  ) -> tf.Tensor:
    """[n] query ids -> [n, dim]; inner products are the model's scores.

    Args:
      ids: [n] dense ids; those the tower does not know have no embedding.
      features: Side features, as `layers.CandidateTable` returns them; None
        for those of the tower's own table.
    """
    return self._encoded(self.query_tower, ids, features)

  def encode_candidates(
    self,
    ids: tf.Tensor,
    features: Mapping[str, tf.Tensor | tf.RaggedTensor] | None = None,
  ) -> tf.Tensor:
    """[n] candidate ids -> [n, dim], in the same way."""
    return self._encoded(self.candidate_tower, ids, features)

  def rerank_scores(
    self, query_ids: tf.Tensor, candidate_ids: tf.Tensor
  ) -> tf.Tensor:
    """[n] query ids, [n, m] candidate ids -> [n, m] scores of the ranker.

    Raises:
      ValueError: The model has no ranker.
    """
    if self.ranker is None:
      raise ValueError("This model has no `ranker`: it cannot re-rank.")
    return self.ranker(query_ids, candidate_ids, training=False)

  def get_config(self) -> dict:
    """JSON-ready config of the towers, all that inference needs.

    A ranker of another class than `models.Ranker` is left out.
    """
    return {
      "query_tower": self.query_tower.get_config(),
      "candidate_tower": self.candidate_tower.get_config(),
      "normalize": self.normalize,
      "ranker": self._ranker_config(),
    }

  @classmethod
  def from_config(cls, config: dict, custom_objects=None) -> "TwoTower":
    """A model for inference; its weights come from a checkpoint."""
    del custom_objects
    query_tower, candidate_tower = (
      towers.Tower.from_config(config[name])
      for name in ("query_tower", "candidate_tower")
    )
    ranker = config.get("ranker")  # Configs had none at first.
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

  def _ranker_config(self) -> dict | None:
    if not isinstance(self.ranker, Ranker):
      return None
    config = self.ranker.get_config()
    # One table with two owners is one object in a checkpoint: it could not be
    # restored into two.
    for side in ("query", "candidate"):
      table = getattr(self.ranker, f"{side}_embedder").table
      tower = getattr(self, f"{side}_tower")
      if table is not None and table is getattr(tower, "table", None):
        config[f"{side}_table"] = _SHARED
    return config

  def _encoded(self, tower, ids, features) -> tf.Tensor:
    if features:
      embeddings = tower.encode(ids, features)
    else:
      embeddings = tower(ids, training=False)
    embeddings = tf.cast(embeddings, tf.float32)
    if self.normalize:
      return tf.math.l2_normalize(embeddings, axis=1)
    return embeddings
