"""Towers over histories, with each of the encoders."""

import json

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from xir_tfrs import layers, models, types
from xir_tfrs.layers import history as encoders

LENGTH = 5
ENCODERS = tuple(encoders.ENCODERS)
HISTORIES = [[1, 2, 3], [], [4, 5, 6, 7, 8, 9, 10]]


def candidate_tower():
  return models.Tower(
    vocabulary_size=12,
    dim=4,
    features=[types.Feature("brand", "token", vocabulary_size=3)],
    columns={"brand": np.arange(12) % 3},
    init_stddev=0.5,
  )


def tower(encoder, **arguments):
  return models.HistoryTower(
    candidate_tower(), encoder, LENGTH, seed=3, **arguments
  )


def ragged(histories):
  return tf.ragged.constant(histories, dtype=tf.int64)


class HistoryTowerTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.product(encoder=ENCODERS, ids=(False, True))
  def test_positions_are_the_prefixes(self, encoder, ids):
    query_tower = models.Tower(vocabulary_size=3, dim=4) if ids else None
    model = tower(encoder, query_tower=query_tower)
    queries = tf.range(3)
    positions = model.encode_positions(queries, ragged(HISTORIES))
    self.assertEqual(positions.shape, (3, LENGTH + 1, 4))
    for row, events in enumerate(HISTORIES):
      events = events[-LENGTH:]
      for t in range(len(events) + 1):
        # Positions count from the newest event of the window: the prefix of a
        # shorter window has others, for the attention.
        if encoder == "attention" and t not in (0, len(events)):
          continue
        alone = model(queries[row : row + 1], ragged([events[:t]]))
        self.assertAllClose(positions[row, t], alone[0], atol=1e-5)

  @parameterized.parameters(*ENCODERS)
  def test_no_column_sees_a_later_event(self, encoder):
    model = tower(encoder)
    before = model.encode_positions(tf.range(1), ragged([[1, 2, 3, 4]]))
    after = model.encode_positions(tf.range(1), ragged([[1, 2, 9, 10]]))
    self.assertAllClose(before[:, :3], after[:, :3], atol=1e-6)
    self.assertNotAllClose(before[:, 3:], after[:, 3:])

  @parameterized.parameters(*ENCODERS)
  def test_rows_do_not_see_each_other(self, encoder):
    model = tower(encoder)
    together = model(tf.range(3), ragged(HISTORIES))
    for row, events in enumerate(HISTORIES):
      alone = model(tf.constant([row]), ragged([events]))
      self.assertAllClose(together[row], alone[0], atol=1e-5)

  @parameterized.parameters(*ENCODERS)
  def test_padding_may_stand_anywhere(self, encoder):
    model = tower(encoder)
    expected = model(tf.range(1), ragged([[1, 2, 3]]))
    for padded in (
      [[-1, -1, 1, 2, 3]],
      [[1, -1, 2, -1, 3, -1]],
      # Unknown ids are dropped too.
      [[1, 99, 2, 3, 12]],
    ):
      found = model(tf.range(1), tf.constant(padded, tf.int64))
      self.assertAllClose(found, expected, atol=1e-6)

  @parameterized.parameters(*ENCODERS)
  def test_the_newest_events_count(self, encoder):
    model = tower(encoder)
    long = list(range(11))
    found = model(tf.range(1), ragged([long]))
    self.assertAllClose(found, model(tf.range(1), ragged([long[-LENGTH:]])))
    other = model(tf.range(1), ragged([[*long[:-1], 0]]))
    self.assertNotAllClose(found, other)

  @parameterized.parameters(*ENCODERS)
  def test_order_counts(self, encoder):
    model = tower(encoder)
    if encoder == "mean":
      model.encoder.set_weights(
        [np.linspace(1, -1, LENGTH), *model.encoder.get_weights()[1:]]
      )
    self.assertNotAllClose(
      model(tf.range(1), ragged([[1, 2]])), model(tf.range(1), ragged([[2, 1]]))
    )

  def test_an_empty_history_has_a_vector_that_learns(self):
    model = tower("attention")
    with tf.GradientTape() as tape:
      loss = tf.reduce_sum(model(tf.range(2), ragged([[], [1]])) ** 2)
    gradient = tape.gradient(loss, model._start)
    self.assertNotAllClose(gradient, tf.zeros([4]))

  @parameterized.parameters(*ENCODERS)
  def test_every_variable_learns(self, encoder):
    model = tower(
      encoder, query_tower=models.Tower(vocabulary_size=3, dim=4), dropout=0.2
    )
    with tf.GradientTape() as tape:
      # Of different squares: a layer norm's output has the same length always.
      states = model(tf.range(3), ragged(HISTORIES), training=True)
      loss = tf.reduce_sum(states * tf.constant([1.0, -2.0, 3.0, 0.5]))
    for variable, gradient in zip(
      model.trainable_variables,
      tape.gradient(loss, model.trainable_variables),
      strict=True,
    ):
      self.assertIsNotNone(gradient, variable.name)

  @parameterized.parameters(*ENCODERS)
  def test_dropout_is_a_function_of_seed_and_step(self, encoder):
    def steps():
      model = tower(encoder, dropout=0.4)
      return [
        model(tf.range(3), ragged(HISTORIES), training=True) for _ in range(2)
      ]

    first, again = steps(), steps()
    self.assertAllEqual(first[0], again[0])
    self.assertAllEqual(first[1], again[1])
    self.assertNotAllClose(first[0], first[1])

  @parameterized.parameters(*ENCODERS)
  def test_compiles(self, encoder):
    model = tower(encoder)
    padded = ragged(HISTORIES).to_tensor(-1)
    compiled = tf.function(model.call, jit_compile=True)
    self.assertAllClose(
      compiled(tf.range(3), padded), model(tf.range(3), padded), atol=1e-5
    )

  @parameterized.parameters(*ENCODERS)
  def test_config_round_trip(self, encoder):
    model = tower(
      encoder, query_tower=models.Tower(vocabulary_size=3, dim=4), dropout=0.1
    )
    config = json.loads(json.dumps(model.get_config()))
    again = models.HistoryTower.from_config(
      config, candidate_tower=candidate_tower()
    )
    self.assertEqual(again.get_config(), model.get_config())
    again.set_weights(model.get_weights())
    self.assertAllEqual(
      again(tf.range(3), ragged(HISTORIES)),
      model(tf.range(3), ragged(HISTORIES)),
    )

  def test_encoder_arguments(self):
    model = tower(
      "attention", encoder_arguments={"num_blocks": 1, "num_heads": 2}
    )
    self.assertEqual(model.encoder.get_config()["num_heads"], 2)
    self.assertLen(model.encoder._blocks, 1)
    with self.assertRaisesRegex(ValueError, "`num_heads` must divide `dim`"):
      tower("attention", encoder_arguments={"num_heads": 3})

  def test_wrong_arguments(self):
    with self.assertRaisesRegex(ValueError, "must be one of mean, gru, atten"):
      tower("lstm")
    with self.assertRaisesRegex(ValueError, "`dropout` must lie in"):
      tower("mean", dropout=1.0)
    with self.assertRaisesRegex(ValueError, "`length` must be positive"):
      models.HistoryTower(candidate_tower(), "mean", 0)


class EncodersTest(tf.test.TestCase):
  def test_last_is_the_last_state(self):
    rng = np.random.default_rng(0)
    vectors = tf.constant(rng.normal(size=[4, LENGTH, 6]), tf.float32)
    lengths = tf.constant([1, LENGTH, 3, 2])
    for encoder in ENCODERS:
      layer = encoders.ENCODERS[encoder](dim=6, length=LENGTH)
      states = layer(vectors, lengths)
      expected = tf.gather(states, lengths - 1, batch_dims=1)
      self.assertAllClose(layer.last(vectors, lengths), expected, atol=1e-5)

  def test_a_mean_without_training_is_the_plain_mean(self):
    layer = layers.MeanHistory(dim=2, length=3)
    layer(tf.zeros([1, 3, 2]), tf.constant([1]))
    layer._layers[0].set_weights([np.eye(2), np.zeros(2)])
    vectors = tf.constant([[[1.0, 0.0], [3.0, 2.0], [9.0, 9.0]]])
    states = layer(vectors, tf.constant([2]))
    self.assertAllClose(states[0, 1], [2.0, 1.0])
