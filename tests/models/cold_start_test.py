"""Tests of models.cold_start."""

import numpy as np
import tensorflow as tf

import xir_tfrs as xir
from xir_tfrs.models import cold_start
from xir_tfrs.types import Feature

_FEATURES = (
  Feature("city", "token", vocabulary_size=3),
  Feature("tags", "token_seq", vocabulary_size=4),
  Feature("price", "float", mean=(0.0,), std=(1.0,)),
  Feature("place", "float_seq", length=2, mean=(0.0,) * 2, std=(1.0,) * 2),
)
_NAN = np.nan
# Row 0 has all features, row 5 none, and the others one.
_COLUMNS = {
  "city": np.array([1, 2, 0, 0, 0, 0]),
  "tags": (np.array([1, 2, 0, 3, 0]), np.array([0, 2, 2, 4, 4, 4, 5])),
  "price": np.array([1, _NAN, _NAN, 0, _NAN, _NAN], np.float32),
  "place": np.array(
    [[1, 2], [_NAN] * 2, [_NAN] * 2, [_NAN] * 2, [_NAN, 0], [_NAN] * 2],
    np.float32,
  ),
}


def _model(features=_FEATURES, columns=None):
  tower = xir.models.Tower(
    vocabulary_size=6,
    dim=4,
    features=features,
    columns=_COLUMNS if columns is None else columns,
    name="query_tower",
  )
  candidates = xir.models.Tower(vocabulary_size=3, dim=4, name="candidates")
  return xir.models.TwoTower(tower, candidates)


class ColdStartTest(tf.test.TestCase):
  def test_each_kind_of_feature_makes_an_id_answerable(self):
    features = _model().query_tower.look_up(tf.range(6))
    self.assertAllEqual(
      cold_start.is_answerable(tf.zeros([6], tf.bool), features),
      [True] * 5 + [False],
    )

  def test_training_rows_make_an_id_answerable(self):
    features = _model().query_tower.look_up(tf.range(6))
    has_rows = tf.constant([False] * 5 + [True])
    self.assertAllEqual(
      cold_start.is_answerable(has_rows, features), [True] * 6
    )
    self.assertAllEqual(cold_start.is_answerable(has_rows, {}), has_rows)

  def test_an_id_without_rows_is_encoded_by_its_features_alone(self):
    model = _model()
    ids = tf.range(6)
    has_rows = tf.constant([True, False, True, False, True, False])
    features = model.query_tower.look_up(ids)
    trained = model.encode_queries(ids)
    new = model.encode_queries(tf.fill([6], -1), features)
    self.assertNotAllClose(trained, new)
    self.assertAllEqual(
      cold_start.encode(model.encode_queries, ids, has_rows, features),
      tf.where(has_rows[:, tf.newaxis], trained, new),
    )

  def test_without_features_an_id_without_rows_has_no_vector(self):
    model = _model(features=())
    has_rows = tf.constant([True, False])
    vectors = cold_start.encode(model.encode_queries, tf.range(2), has_rows, {})
    self.assertAllEqual(vectors[0], model.encode_queries(tf.range(2))[0])
    self.assertAllEqual(vectors[1], tf.zeros([4]))


if __name__ == "__main__":
  tf.test.main()
