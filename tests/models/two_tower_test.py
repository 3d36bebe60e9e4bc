"""The model of two towers."""

import json

import numpy as np
import tensorflow as tf

from xir_tfrs import models, tasks


def two_tower(**task):
  return models.TwoTower(
    models.Tower(vocabulary_size=5, dim=4, seed=1, name="query_tower"),
    models.Tower(vocabulary_size=7, dim=4, seed=2, name="candidate_tower"),
    tasks.SampledSoftmaxRetrieval(**task),
  )


BATCH = {
  "query_id": tf.constant([0, 4, 2]),
  "candidate_id": tf.constant([6, 0, 3]),
}


class TwoTowerTest(tf.test.TestCase):
  def test_loss_is_the_tasks(self):
    model = two_tower()
    queries = model.query_tower(BATCH["query_id"])
    candidates = model.candidate_tower(BATCH["candidate_id"])
    logits = queries.numpy() @ candidates.numpy().T
    expected = np.mean(np.log(np.exp(logits).sum(1)) - np.diag(logits))
    self.assertAllClose(model.compute_loss(BATCH), expected)

  def test_sample_weight_reaches_the_task(self):
    model = two_tower()
    heavy = BATCH | {"sample_weight": tf.fill([3], 2.0)}
    self.assertAllClose(
      model.compute_loss(heavy), 2 * model.compute_loss(BATCH)
    )

  def test_encodings_are_unit_vectors_where_scores_are_cosines(self):
    for normalize in (False, True):
      model = two_tower(normalize=normalize)
      for encode in (model.encode_queries, model.encode_candidates):
        norms = np.linalg.norm(encode(tf.range(5)), axis=1)
        self.assertEqual(np.allclose(norms, 1.0), normalize)

  def test_config_rebuilds_it_for_inference(self):
    model = two_tower(normalize=True)
    config = json.loads(json.dumps(model.get_config()))
    other = models.TwoTower.from_config(config)
    path = tf.train.Checkpoint(model=model).save(self.get_temp_dir())
    tf.train.Checkpoint(model=other).restore(path).expect_partial()
    self.assertTrue(other.normalize)
    for name in ("encode_queries", "encode_candidates"):
      self.assertAllEqual(
        getattr(model, name)(tf.range(7)), getattr(other, name)(tf.range(7))
      )
    with self.assertRaisesRegex(ValueError, "built for inference"):
      other.compute_loss(BATCH)
