"""The Keras callback that ranks the validation set."""

import numpy as np
import pytest
import tensorflow as tf

from xir_tfrs import metrics, models, tasks

QUERIES, CANDIDATES = 6, 8
RELEVANT = tf.ragged.constant([[1], [3, 4], [0]], dtype=tf.int64)
SEEN = tf.ragged.constant([[2], [], [5, 6]], dtype=tf.int64)


def make(ids=(0, 4, 2), **arguments):
  return metrics.RankingCallback(
    np.array(ids), RELEVANT, CANDIDATES, seen=SEEN, ks=(2, 20), **arguments
  )


def two_tower(query_tower=None):
  candidate_tower = models.Tower(vocabulary_size=CANDIDATES, dim=4, seed=2)
  model = models.TwoTower(
    query_tower or models.Tower(vocabulary_size=QUERIES, dim=4, seed=1),
    candidate_tower,
    tasks.SampledSoftmaxRetrieval(),
  )
  model.compile(tf.keras.optimizers.SGD(0.0))
  return model


def batches():
  ids = tf.range(QUERIES)
  rows = {"query_id": ids, "candidate_id": ids}
  return tf.data.Dataset.from_tensor_slices(rows).batch(QUERIES)


def test_logs_have_the_ranking_and_other_callbacks_go_by_it():
  model = two_tower()
  expected = metrics.full_ranking(
    model.encode_queries(tf.constant([0, 4, 2])),
    model.encode_candidates(tf.range(CANDIDATES)),
    relevant=RELEVANT,
    seen=SEEN,
    ks=(2, 20),
  )
  stop = tf.keras.callbacks.EarlyStopping("val_ndcg@2", mode="max", patience=1)
  history = model.fit(
    batches(), epochs=5, callbacks=[make(), stop], verbose=0
  ).history
  # Nothing improves, so the second epoch is the last.
  for name, value in expected.items():
    assert history[f"val_{name}"] == [value, value]
  assert model.stop_training


def test_every_second_epoch():
  callback = make(every_epochs=2)
  callback.set_model(two_tower())
  logs = [{"loss": 1.0} for _ in range(4)]
  for epoch, log in enumerate(logs):
    callback.on_epoch_end(epoch, log)
  assert ["val_ndcg@2" in log for log in logs] == [False, True, False, True]
  with pytest.raises(ValueError, match="`every_epochs` must be positive"):
    make(every_epochs=0)


@pytest.mark.parametrize(
  ("wrong", "message"),
  [
    ({"ks": [0]}, "`ks` must be"),
    ({"num_candidates": 4}, r"`relevant` must hold ids in \[0, 4\)"),
    ({"query_ids": [0, 4]}, "`relevant` must have a row for each query"),
    ({"query_ids": ["a", "b", "c"]}, "`query_ids` must be dense"),
    ({"seen": SEEN[:2]}, "`seen` must have a row for each query"),
    ({"history_ids": SEEN[:2]}, "`history_ids` must have a row for each"),
  ],
)
def test_wrong_arguments_are_refused_before_an_epoch_is_trained(wrong, message):
  arguments = {
    "query_ids": [0, 4, 2],
    "relevant": RELEVANT,
    "num_candidates": CANDIDATES,
  }
  with pytest.raises(ValueError, match=message):
    metrics.RankingCallback(**arguments | wrong)


def test_models_of_histories_and_custom_models():
  tower = models.Tower(vocabulary_size=CANDIDATES, dim=4, seed=2)
  histories = tf.ragged.constant([[1, 2], [3], []], dtype=tf.int64)
  model = two_tower(models.HistoryTower(tower, "mean", history_length=3))
  callback = make(history_ids=histories)
  callback.set_model(model)
  expected = metrics.full_ranking(
    model.encode_queries(tf.constant([0, 4, 2]), history_ids=histories),
    model.encode_candidates(tf.range(CANDIDATES)),
    relevant=RELEVANT,
    seen=SEEN,
    ks=(2, 20),
  )
  assert callback.rank() == expected

  class Own(tf.keras.Model):
    query_tower = candidate_tower = tower

  def ranked_of_own(**settings):
    callback, own = make(), Own()
    own.task = tasks.SampledSoftmaxRetrieval(**settings)
    callback.set_model(own)
    return callback.rank()

  candidates = tower(tf.range(CANDIDATES)).numpy()
  for normalize in (False, True):
    if normalize:
      candidates /= np.linalg.norm(candidates, axis=1, keepdims=True)
    assert ranked_of_own(normalize=normalize) == pytest.approx(
      metrics.full_ranking(
        candidates[[0, 4, 2]],
        candidates,
        relevant=RELEVANT,
        seen=SEEN,
        ks=(2, 20),
      )
    )
  callback = make()
  callback.set_model(tf.keras.Sequential())
  with pytest.raises(ValueError, match="Sequential, without `query_tower`"):
    callback.rank()
