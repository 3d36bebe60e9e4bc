"""Rankers score pairs of ids and features."""

import json

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests import reference
from xir_tfrs import layers, models, tasks, types

_NUM_QUERIES, _NUM_CANDIDATES, _DIM = 4, 3, 5
_QUERY_FEATURES = (types.Feature("segment", "token", vocabulary_size=3),)
_QUERY_COLUMNS = {"segment": np.array([1, 2, 0, 1])}
_FEATURES = (
  types.Feature("brand", "token", vocabulary_size=4),
  types.Feature("tags", "token_seq", vocabulary_size=5),
  types.Feature("price", "float", mean=(2.0,), std=(4.0,)),
  types.Feature("image", "float_seq", length=2, mean=(1, 0), std=(2, 1)),
)
_COLUMNS = {
  "brand": np.array([1, 3, 0]),
  "tags": (np.array([1, 2, 4]), np.array([0, 2, 2, 3])),
  "price": np.array([6.0, np.nan, 2.0]),
  "image": np.array([[3.0, 1.0], [1.0, 0.0], [np.nan, 5.0]]),
}


def _tables():
  return {
    "query_table": layers.CandidateTable(
      _QUERY_FEATURES, _QUERY_COLUMNS, name="query_table"
    ),
    "candidate_table": layers.CandidateTable(_FEATURES, _COLUMNS),
  }


def _ranker(kind="deepfm", features=True, **kwargs):
  return models.Ranker(
    **{
      "num_queries": _NUM_QUERIES,
      "num_candidates": _NUM_CANDIDATES,
      "kind": kind,
      "dim": _DIM,
      "hidden_units": (8, 6),
      "init_stddev": 0.5,
      "seed": 3,
    }
    | (_tables() if features else {})
    | kwargs
  )


def _dense(layer, x):
  kernel, bias = layer.get_weights()
  return np.asarray(x, np.float64) @ kernel + bias


_HISTORIES = [[1, -1, 2, 7], [0, 0, 2, 1], [-1, -1, -1, -1], [2, -1, -1, -1]]
# The newest three events count; candidate 7 does not exist.
_EVENTS = [[1, 2], [0, 2, 1], [], [2]]


def _given(ranker):
  """The other arguments of `_scores`."""
  if not ranker.takes_histories:
    return {}
  return {"history_ids": tf.constant(_HISTORIES, tf.int64)}


def _pairs():
  return [(q, c) for q in range(_NUM_QUERIES) for c in range(_NUM_CANDIDATES)]


def _scores(ranker, **kwargs):
  query_ids = tf.range(_NUM_QUERIES, dtype=tf.int64)
  everyone = tf.range(_NUM_CANDIDATES, dtype=tf.int64)
  everyone = tf.tile(everyone[tf.newaxis], [_NUM_QUERIES, 1])
  return ranker(query_ids, everyone, **_given(ranker) | kwargs)


class RankerTest(tf.test.TestCase, parameterized.TestCase):
  def fields(self, ranker, query, candidate, sides=("embedder", "embedder")):
    """[fields, dim] of a pair, the query's fields first."""
    parts = []
    for side, name, number in zip(
      ("query", "candidate"), sides, (query, candidate), strict=True
    ):
      embedder = getattr(ranker, f"{side}_{name}")
      parts.append(embedder(tf.constant([number])).numpy()[0])
    return np.concatenate(parts).astype(np.float64)

  def test_deepfm_by_loops(self):
    ranker = _ranker("deepfm")
    expected = []
    for pair in _pairs():
      fields = self.fields(ranker, *pair)
      self.assertEqual(fields.shape, (2 + 5, _DIM))
      linear = sum(
        embedder(tf.constant([number])).numpy().sum()
        for embedder, number in zip(
          (ranker._query_linear, ranker._candidate_linear), pair, strict=True
        )
      )
      hidden = fields.ravel()
      for layer in ranker._mlp:
        hidden = np.maximum(_dense(layer, hidden), 0)
      deep = _dense(ranker._output, hidden)[0]
      expected.append(linear + reference.factorisation_machine(fields) + deep)
    self.assertAllClose(
      _scores(ranker), np.reshape(expected, [4, 3]), rtol=1e-4
    )

  @parameterized.parameters(1, 3)
  def test_dcn_by_loops(self, num_cross_layers):
    ranker = _ranker("dcn", num_cross_layers=num_cross_layers)
    expected = []
    for pair in _pairs():
      x0 = self.fields(ranker, *pair).ravel()
      crossed, hidden = x0, x0
      self.assertLen(ranker._cross, num_cross_layers)
      for layer in ranker._cross:
        crossed = x0 * _dense(layer, crossed) + crossed
      for layer in ranker._mlp:
        hidden = np.maximum(_dense(layer, hidden), 0)
      both = np.concatenate([crossed, hidden])
      expected.append(_dense(ranker._output, both)[0])
    self.assertAllClose(
      _scores(ranker), np.reshape(expected, [4, 3]), rtol=1e-4
    )

  def history_field(self, ranker, query, candidate):
    """[dim] DIN's vector of a history for a candidate."""

    def vector(number):
      return ranker.candidate_embedder(tf.constant([number])).numpy()[0].sum(0)

    attention = ranker._attention
    weights = [
      layer.get_weights()[0]
      for layer in (
        attention._of_event,
        attention._of_candidate,
        attention._of_product,
      )
    ]
    bias = attention._of_event.get_weights()[1]

    def score(event, candidate):
      parts = event, candidate, event * candidate
      hidden = sum(p @ w for p, w in zip(parts, weights, strict=True)) + bias
      return _dense(attention._weight, 1 / (1 + np.exp(-hidden)))[0]

    events = [vector(number) for number in _EVENTS[query]]
    return reference.local_activation(events, vector(candidate), score)

  def test_din_by_loops(self):
    ranker = _ranker("din", history_length=3)
    expected = []
    for pair in _pairs():
      fields = self.fields(ranker, *pair)
      # It follows the query and its feature.
      field = self.history_field(ranker, *pair)[np.newaxis]
      hidden = np.concatenate([fields[:2], field, fields[2:]]).ravel()
      for layer in ranker._mlp:
        hidden = np.maximum(_dense(layer, hidden), 0)
      expected.append(_dense(ranker._output, hidden)[0])
    self.assertAllClose(
      _scores(ranker), np.reshape(expected, [4, 3]), rtol=1e-4
    )

  def test_histories_beside_other_kinds(self):
    ranker = _ranker("deepfm", history_length=3, hidden_units=())
    expected = []
    for pair in _pairs():
      fields = self.fields(ranker, *pair)
      field = self.history_field(ranker, *pair)[np.newaxis]
      linear = sum(
        embedder(tf.constant([number])).numpy().sum()
        for embedder, number in zip(
          (ranker._query_linear, ranker._candidate_linear), pair, strict=True
        )
      )
      fields = np.concatenate([fields, field])
      expected.append(linear + reference.factorisation_machine(fields))
    self.assertAllClose(
      _scores(ranker), np.reshape(expected, [4, 3]), rtol=1e-4
    )

  @parameterized.parameters("deepfm", "dcn", "din")
  def test_histories_alone(self, kind):
    ranker = _ranker(kind, num_queries=None, query_table=None, history_length=3)
    self.assertIsNone(ranker.query_embedder)
    scores = _scores(ranker)
    self.assertEqual(scores.shape, [4, 3])
    # Queries with the same history have the same scores.
    same = {"history_ids": tf.constant([_HISTORIES[1]] * 4, tf.int64)}
    self.assertAllEqual(*_scores(ranker, **same).numpy()[[0, 3]])
    self.assertAllClose(_scores(ranker, **same)[1], scores[1])
    padded = tf.ragged.constant(_EVENTS, dtype=tf.int64)
    self.assertAllClose(_scores(ranker, history_ids=padded), scores)

  def test_histories_are_needed_and_not_dropped(self):
    with self.assertRaisesRegex(
      ValueError, "takes `history_ids` if and only if"
    ):
      _scores(_ranker("din", history_length=3), history_ids=None)
    with self.assertRaisesRegex(
      ValueError, "takes `history_ids` if and only if"
    ):
      _scores(_ranker(), history_ids=tf.constant(_HISTORIES))

  @parameterized.product(kind=("deepfm", "dcn"), hidden_units=((), (4,)))
  def test_each_pair_is_scored_for_itself(self, kind, hidden_units):
    ranker = _ranker(kind, hidden_units=hidden_units)
    whole = _scores(ranker).numpy()
    pairs = ranker(
      tf.constant([3, 0], tf.int32), tf.constant([[2, 0, 2], [1, 1, 0]])
    )
    self.assertAllClose(
      pairs, [whole[3, [2, 0, 2]], whole[0, [1, 1, 0]]], rtol=1e-5
    )
    self.assertEqual(
      ranker(tf.zeros([0], tf.int64), tf.zeros([0, 2], tf.int64)).shape, [0, 2]
    )

  @parameterized.parameters("deepfm", "dcn")
  def test_unknown_ids_are_finite_and_alike(self, kind):
    ranker = _ranker(kind)
    scores = ranker(tf.constant([-1, 99]), tf.constant([[-1, 3], [99, 10**6]]))
    self.assertTrue(np.isfinite(scores).all())
    self.assertAllEqual(scores, tf.fill([2, 2], scores[0, 0]))

  @parameterized.product(kind=("deepfm", "dcn", "din"), features=(False, True))
  def test_config_and_checkpoint(self, kind, features):
    length = 3 if kind == "din" else None
    ranker = _ranker(kind, features, num_cross_layers=2, history_length=length)
    config = json.loads(json.dumps(ranker.get_config()))
    other = models.Ranker.from_config(config)
    self.assertEqual(other.get_config(), ranker.get_config())
    path = tf.train.Checkpoint(ranker).save(self.get_temp_dir() + "/c")
    tf.train.Checkpoint(other).restore(path).assert_consumed()
    self.assertAllEqual(_scores(ranker), _scores(other))

  @parameterized.parameters(
    ("deepfm", None), ("dcn", None), ("din", 3), ("dcn", 3)
  )
  def test_every_part_gets_a_gradient(self, kind, history_length):
    ranker = _ranker(kind, history_length=history_length)
    with tf.GradientTape() as tape:
      loss = tf.reduce_sum(_scores(ranker) ** 2)
    for variable, gradient in zip(
      ranker.trainable_variables,
      tape.gradient(loss, ranker.trainable_variables),
      strict=True,
    ):
      self.assertIsNotNone(gradient, variable.name)
      self.assertGreater(np.abs(tf.convert_to_tensor(gradient)).max(), 0)

  @parameterized.parameters("deepfm", "dcn")
  def test_gradient_by_differences(self, kind):
    ranker = _ranker(kind, features=False)
    table = ranker.query_embedder._id_embedding.embeddings

    def scores(value):
      table.assign(tf.cast(value, tf.float32))
      return float(tf.reduce_sum(tf.sin(_scores(ranker))))

    start = table.numpy()
    with tf.GradientTape() as tape:
      loss = tf.reduce_sum(tf.sin(_scores(ranker)))
    gradient = tf.convert_to_tensor(tape.gradient(loss, table))
    self.assertAllClose(
      gradient, reference.numeric_gradient(scores, start, 2e-3), atol=5e-3
    )

  def test_small_at_first_and_of_the_seed(self):
    small = _ranker(features=False, init_stddev=0.01)
    self.assertAllInRange(_scores(small), -0.2, 0.2)
    again = _ranker(features=False, init_stddev=0.01)
    self.assertAllEqual(_scores(small), _scores(again))
    other = _ranker(features=False, init_stddev=0.01, seed=4)
    self.assertNotAllClose(_scores(small), _scores(other))

  @parameterized.parameters("deepfm", "dcn")
  def test_mixed_float16_scores_are_float32(self, kind):
    tf.keras.mixed_precision.set_global_policy("mixed_float16")
    scores = _scores(_ranker(kind), training=True)
    self.assertEqual(scores.dtype, tf.float32)
    self.assertTrue(np.isfinite(scores).all())

  @parameterized.parameters(
    ({"kind": "mlp"}, "`kind` = 'mlp'"),
    ({"num_cross_layers": 0}, "`num_cross_layers` = 0"),
    ({"dim": 0}, "`dim` = 0"),
    ({"kind": "din"}, "`history_length` is required"),
    ({"num_queries": None}, "`num_queries` = None"),
    ({"num_candidates": 7}, "3 rows for 7 ids"),
  )
  def test_bad_argument_is_named(self, arguments, message):
    with self.assertRaisesRegex(ValueError, message):
      _ranker(**arguments)


def _two_tower(shared):
  """A model whose ranker uses the towers' tables or its own ones."""
  tables = _tables()
  query_tower = models.Tower(
    vocabulary_size=_NUM_QUERIES, dim=4, table=tables["query_table"]
  )
  candidate_tower = models.Tower(
    vocabulary_size=_NUM_CANDIDATES, dim=4, table=tables["candidate_table"]
  )
  ranker = _ranker(**(tables if shared else {}))
  return models.TwoTower(query_tower, candidate_tower, ranker=ranker)


class TwoTowerTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters(True, False)
  def test_config_rebuilds_the_ranker(self, shared):
    model = _two_tower(shared)
    other = models.TwoTower.from_config(
      json.loads(json.dumps(model.get_config()))
    )
    self.assertEqual(
      other.ranker.candidate_embedder.table is other.candidate_tower.table,
      shared,
    )
    self.assertEqual(other.get_config(), model.get_config())
    path = tf.train.Checkpoint(model=model).save(self.get_temp_dir() + "/c")
    status = tf.train.Checkpoint(model=other).restore(path)
    status.assert_existing_objects_matched().expect_partial()
    ids = tf.constant([[2, 0], [1, 1]])
    self.assertAllEqual(
      model.rerank_scores(tf.constant([3, 1]), ids),
      other.rerank_scores(tf.constant([3, 1]), ids),
    )

  def test_without_a_ranker(self):
    model = _two_tower(True)
    config = model.get_config()
    # The form of configs without a ranker, also of older versions.
    for without in ({}, {"ranker": None}):
      old = {k: v for k, v in config.items() if k != "ranker"} | without
      bare = models.TwoTower.from_config(old)
      self.assertIsNone(bare.ranker)
      self.assertIsNone(bare.get_config()["ranker"])
      with self.assertRaisesRegex(ValueError, "no `ranker`"):
        bare.rerank_scores(tf.constant([0]), tf.constant([[0]]))

  def test_the_ranker_of_the_task(self):
    model = _two_tower(True)
    task = tasks.CoRRRetrieval(
      candidate_counts=[1, 2, 3],
      candidate_encoder=model.candidate_tower,
      ranker=model.ranker,
    )
    trained = models.TwoTower(model.query_tower, model.candidate_tower, task)
    self.assertIs(trained.ranker, model.ranker)
    names = [v.ref() for v in trained.trainable_variables]
    self.assertLen(set(names), len(names))


if __name__ == "__main__":
  tf.test.main()
