"""Towers over histories, with each of the encoders."""

import json
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
from absl.testing import parameterized

from tests import reference
from xir_tfrs import layers, models, tasks, types
from xir_tfrs.data import histories
from xir_tfrs.layers import history as encoders
from xir_tfrs.ops import chunks

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
    interests = (4,) if encoder == "mind" else ()
    self.assertEqual(positions.shape, (3, LENGTH + 1, *interests, 4))
    for row, events in enumerate(HISTORIES):
      events = events[-LENGTH:]
      for t in range(len(events) + 1):
        # For attention, positions count from the newest event of the window, so
        # the prefix of a window has other positions than a shorter window.
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
      # Unknown ids are also dropped.
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
      # Weights differ, because the output of a layer norm always has the same
      # length.
      states = model(tf.range(3), ragged(HISTORIES), training=True)
      loss = tf.reduce_sum(states * tf.constant([1.0, -2.0, 3.0, 0.5]))
    for variable, gradient in zip(
      model.trainable_variables,
      tape.gradient(loss, model.trainable_variables),
      strict=True,
    ):
      self.assertIsNotNone(gradient, variable.name)

  @parameterized.parameters(*ENCODERS)
  def test_events_may_be_encoded_before_or_each_once(self, encoder):
    model = tower(encoder)
    repeated = ragged([[1, 2, 1, 1], [], [2, 1]])
    expected = model(tf.range(3), repeated)
    vectors = model.candidate_tower(tf.range(12))
    for given in ({"training": True}, {"event_vectors": vectors}):
      found = model(tf.range(3), repeated, **given)
      self.assertAllClose(found, expected, atol=1e-6)
    nothing = model(tf.range(1), ragged([[]]), training=True)
    self.assertAllClose(nothing[0], expected[1], atol=1e-6)

  def test_dropout_goes_by_the_number_in_the_batch(self):
    together, alone = (
      tower("attention", dropout=0.4).encode_positions(
        tf.range(len(rows)), ragged(rows), training=True, first_row=first
      )
      for rows, first in ((HISTORIES, 0), (HISTORIES[2:], 2))
    )
    self.assertAllClose(together[2:], alone, atol=1e-6)

  @parameterized.parameters(*ENCODERS)
  def test_narrow_windows_apart_or_with_wide_ones(self, encoder):
    """On a CPU and on a GPU; the narrowest windows have up to 6 columns."""
    ages = {"ages": True} if encoder == "attention" else {}
    counts = [3, 24, 0, 9, 6, 1]
    ids = [
      [(7 * row + j) % 12 for j in range(n)] for row, n in enumerate(counts)
    ]
    ids = ragged(ids).to_tensor(-1)
    times = tf.cumsum(tf.abs(tf.pad(ids, [[0, 0], [0, 1]])) + 1, axis=1)
    found = []
    for has_gpu in (False, True):
      model = models.HistoryTower(
        candidate_tower(),
        encoder,
        history_length=24,
        encoder_arguments=ages,
        dropout=0.4,
        seed=3,
      )
      model.encoder.states = mock.Mock(wraps=model.encoder.states)
      with (
        mock.patch.object(chunks, "has_gpu", lambda has=has_gpu: has),
        tf.GradientTape() as tape,
      ):
        states = model.encode_positions(
          tf.range(6),
          ids,
          training=True,
          history_times=times if ages else None,
        )
        defined = tf.boolean_mask(
          states, tf.sequence_mask(tf.constant(counts) + 1, 25)
        )
        loss = tf.reduce_sum(defined * tf.range(4.0))
      gradients = tape.gradient(loss, model.trainable_variables)
      self.assertEqual(model.encoder.states.call_count, 1 if has_gpu else 3)
      found.append([defined, *map(tf.convert_to_tensor, gradients)])
    for apart, together in zip(*found, strict=True):
      self.assertAllClose(apart, together, rtol=1e-4, atol=1e-5)

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

  @parameterized.product(encoder=ENCODERS, dropout=(0.0, 0.4))
  @pytest.mark.slow
  def test_training_compiles(self, encoder, dropout):
    found = []
    padded = ragged(HISTORIES).to_tensor(-1)
    for jit in (False, True):
      model = tower(encoder, dropout=dropout)

      @tf.function(jit_compile=jit)
      def step(queries, ids, model=model):
        with tf.GradientTape() as tape:
          vectors = model(queries, ids, training=True)
          loss = tf.reduce_sum(vectors * tf.range(4.0))
        gradients = tape.gradient(loss, model.trainable_variables)
        return vectors, [tf.convert_to_tensor(g) for g in gradients]

      found.append([step(tf.range(3), padded) for _ in range(2)])
    for plain, compiled in zip(*map(tf.nest.flatten, found), strict=True):
      self.assertAllClose(plain, compiled, rtol=1e-4, atol=1e-5)

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

  def test_save_says_what_to_use_instead(self):
    with self.assertRaisesRegex(NotImplementedError, "save_weights.*export"):
      tower("mean").save(f"{self.get_temp_dir()}/tower.keras")

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
    with self.assertRaisesRegex(ValueError, "`vocabulary_size`.*Embedding"):
      models.HistoryTower(tf.keras.layers.Embedding(3, 2), "mean")
    model = tower("mean")
    with self.assertRaisesRegex(ValueError, r"`history_ids`.*\(2,\)"):
      model(tf.constant([0]), tf.constant([1, 2]))
    for names in (tf.constant([["a"]]), tf.ragged.constant([["a"]])):
      with self.assertRaisesRegex(ValueError, "`history_ids`.*StringLookup"):
        model(tf.constant([0]), names)
    query_tower = models.Tower(vocabulary_size=3, dim=4)
    with self.assertRaisesRegex(ValueError, "3 ids and 1 histories"):
      tower("mean", query_tower=query_tower)(tf.range(3), [[1, 2]])


class AgesTest(tf.test.TestCase):
  def tower(self):
    """A tower that uses ages and not the positions in its window."""
    model = tower("attention", encoder_arguments={"ages": True}, dropout=0.2)
    model.encoder._positions.assign(tf.zeros_like(model.encoder._positions))
    rng = np.random.default_rng(0)
    for block in model.encoder._blocks:
      block._age_bias.assign(rng.normal(0, 2, block._age_bias.shape))
    return model

  def test_each_position_asks_at_the_time_of_the_next_event(self):
    model = self.tower()
    ids, times = [[1, 2, 3, 4]], [10, 850, 895, 900, 5000]
    positions = model.encode_positions(
      tf.range(1), ragged(ids), history_times=tf.constant([times])
    )
    compiled = tf.function(model.call, jit_compile=True)
    for t in range(1, 5):
      # Each shape would be compiled anew.
      for call in (model, compiled) if t == 2 else (model,):
        # Padding and unknown ids take their times with them.
        alone = call(
          tf.range(1),
          tf.constant([[-1, *ids[0][:t], 99]]),
          history_times=tf.constant([[5, *times[:t], 8, times[t]]]),
        )
        self.assertAllClose(positions[0, t], alone[0], atol=1e-5)
    later = model.encode_positions(
      tf.range(1), ragged(ids), history_times=tf.constant([[*times[:3], 1, 2]])
    )
    self.assertAllClose(positions[:, :3], later[:, :3], atol=1e-6)
    self.assertNotAllClose(positions[:, 3], later[:, 3])

  def test_unknown_ages_are_no_ages(self):
    model, plain = self.tower(), tower("attention")
    kept = [x for x in model.variables if "age_bias" not in x.name]
    plain.set_weights([x.numpy() for x in kept])
    given = tf.range(3), ragged(HISTORIES)
    expected = plain(*given)
    self.assertAllClose(model(*given), expected, atol=1e-6)
    unknown = tf.fill([3, 8], -1)
    found = model(*given, history_times=unknown)
    self.assertAllClose(found, expected, atol=1e-6)
    with self.assertRaisesRegex(ValueError, "needs an encoder with"):
      plain(*given, history_times=unknown)

  def test_times_without_that_of_the_request_are_refused(self):
    events = tf.constant([[1, 2, 3]])
    for call in (self.tower(), tf.function(self.tower().call)):
      with self.assertRaisesRegex(
        tf.errors.InvalidArgumentError, "one more for the request"
      ):
        call(tf.range(1), events, history_times=tf.constant([[10, 20, 30]]))

  def test_one_unknown_time_hides_the_ages_of_its_history(self):
    model = self.tower()
    given = tf.range(5), ragged([[1, 2, 3, -1, 4]] * 5)
    times = np.tile([10, 70, 710, 0, 900, 1000], [5, 1])
    # Of an event, of the request, of padding, of an event before the window.
    places = [2, 5, 3, 0]
    times[np.arange(4), places] = -1
    model = models.HistoryTower.from_config(
      model.get_config() | {"history_length": 3},
      candidate_tower=candidate_tower(),
    )
    for block in model.encoder._blocks:
      block._age_bias.assign(tf.range(100.0))
    found = model(*given, history_times=tf.constant(times))
    without, aged = model(*given), found[4]
    self.assertAllClose(found[:2], without[:2], atol=1e-6)
    self.assertAllClose(found[2:], tf.tile([aged], [3, 1]), atol=1e-6)
    self.assertNotAllClose(aged, without[4])

  def test_training_hides_some_times(self):
    model = tower("attention", encoder_arguments={"ages": True})
    for block in model.encoder._blocks:
      block._age_bias.assign(tf.range(100.0))
    n = 300
    given = tf.range(n), tf.tile([[1, 2, 3]], [n, 1])
    times = tf.tile([[10, 700, 4900, 5000]], [n, 1])
    step = model._step.numpy()
    states = model.encode_positions(
      *given, history_times=times, training=True, first_row=0
    )[:, 3]
    without, aged = model(*given), model(*given, history_times=times)
    is_aged = np.isclose(states, aged, atol=1e-5).all(axis=1)
    hidden = np.isclose(states, without, atol=1e-5).all(axis=1)
    self.assertAllEqual(is_aged, ~hidden)
    self.assertBetween(hidden.sum(), 12, 50)
    # Another step hides others; a replica's rows are those of one device.
    model._step.assign(step)
    part = model.encode_positions(
      *(x[100:] for x in given),
      history_times=times[100:],
      training=True,
      first_row=100,
    )[:, 3]
    self.assertAllClose(part, states[100:], atol=1e-6)
    other = model(*given, history_times=times, training=True)
    self.assertNotAllClose(other, states)

  def test_every_bias_learns(self):
    model = self.tower()
    with tf.GradientTape() as tape:
      states = model(
        tf.range(1),
        ragged([[1, 2, 3]]),
        training=True,
        history_times=tf.constant([[0, 90, 99, 100]]),
      )
      loss = tf.reduce_sum(states * tf.constant([1.0, -2.0, 3.0, 0.5]))
    biases = [block._age_bias for block in model.encoder._blocks]
    for gradient in tape.gradient(loss, biases):
      self.assertGreater(tf.math.count_nonzero(gradient), 1)

  def test_config_round_trip(self):
    config = json.loads(json.dumps(self.tower().get_config()))
    again = models.HistoryTower.from_config(
      config, candidate_tower=candidate_tower()
    )
    self.assertTrue(again.encoder.takes_times)
    self.assertTrue(again.encoder.get_config()["ages"])

  def test_batches_need_times(self):
    queries = self.tower()
    task = tasks.SampledSoftmaxRetrieval(temperature=0.2)
    model = models.TwoTower(queries, queries.candidate_tower, task)
    with self.assertRaisesRegex(ValueError, "need `history_times`"):
      model.compute_loss(
        {
          "query_id": tf.range(1),
          "candidate_id": tf.range(1),
          "history_ids": tf.constant([[3]]),
        }
      )


class TwoTowerOfHistoriesTest(tf.test.TestCase, parameterized.TestCase):
  def model(self, **arguments):
    candidates = candidate_tower()
    queries = models.HistoryTower(candidates, "gru", LENGTH, **arguments)
    return models.TwoTower(
      queries,
      candidates,
      tasks.SampledSoftmaxRetrieval(temperature=0.2, normalize=True),
    )

  def batches(self):
    """The same rows, each with its history, and as positions of windows."""
    rng = np.random.default_rng(0)
    rows = histories.Histories.of_rows(
      {
        "query_id": np.repeat(np.arange(4), 6),
        "candidate_id": rng.integers(0, 12, 24),
        "event": np.tile(np.arange(6), 4),
      }
    )
    windows = histories.Windows.of_histories(rows, LENGTH)
    batches = histories.PositionBatches(
      rows, windows, global_batch_size=24, seed=0
    )
    positions = batches.share(0, 0, 24)
    single = {
      "query_id": positions["query_id"],
      "candidate_id": positions["candidate_id"],
      "history_ids": np.stack(
        [
          np.where(
            np.arange(LENGTH) < position, positions["history_ids"][row], -1
          )
          for row, position in zip(
            positions["history_row"],
            positions["history_position"],
            strict=True,
          )
        ]
      ),
    }
    return single, positions

  def test_rows_and_positions_have_the_same_loss(self):
    model = self.model()
    single, positions = (
      {name: tf.constant(x) for name, x in batch.items()}
      for batch in self.batches()
    )
    self.assertLess(
      positions["history_ids"].shape[0], single["history_ids"].shape[0]
    )
    self.assertAllClose(
      model.compute_loss(single), model.compute_loss(positions), rtol=1e-5
    )

  def test_fit_learns_what_follows(self):
    # Each candidate follows the previous one, so histories determine it.
    start = np.random.default_rng(0).integers(0, 12, 512)
    rows = {
      "query_id": np.zeros(512, np.int64),
      "candidate_id": (start + 3) % 12,
      "history_ids": np.stack([start, start + 1, start + 2], 1) % 12,
    }
    model = self.model()
    model.compile(tf.keras.optimizers.Adam(0.02))
    dataset = tf.data.Dataset.from_tensor_slices(rows).batch(64)
    model.fit(dataset, epochs=12, verbose=0)
    queries = model.encode_queries(
      rows["query_id"], history_ids=tf.constant(rows["history_ids"])
    )
    scores = queries @ tf.transpose(model.encode_candidates(tf.range(12)))
    found = np.argmax(scores, axis=1) == rows["candidate_id"]
    self.assertGreater(found.mean(), 0.95)

  @parameterized.parameters(None, 2)
  def test_a_row_is_the_interest_that_fits_its_positive(self, power):
    candidates = candidate_tower()
    queries = models.HistoryTower(
      candidates,
      "mind",
      LENGTH,
      encoder_arguments={"num_interests": 3, "label_power": power},
    )
    task = tasks.SampledSoftmaxRetrieval(temperature=0.2, normalize=True)
    model = models.TwoTower(queries, candidates, task)
    self.assertTrue(model.has_interests)
    single, positions = (
      {name: tf.constant(x) for name, x in batch.items()}
      for batch in self.batches()
    )
    ids = single["candidate_id"]
    interests = model.encode_queries(
      single["query_id"], history_ids=single["history_ids"]
    )
    self.assertEqual(interests.shape, (24, 3, 4))
    self.assertAllClose(tf.norm(interests, axis=2), tf.ones([24, 3]))
    labels = model.encode_candidates(ids)
    chosen = tf.stack(
      [
        reference.label_aware_attention(u.numpy(), v.numpy(), power)
        for u, v in zip(interests, labels, strict=True)
      ]
    )
    expected = task(chosen, candidates(ids), candidate_ids=ids)
    for batch in (single, positions):
      self.assertAllClose(model.compute_loss(batch), expected, rtol=1e-5)

  def test_interests_may_weigh_events_by_age(self):
    model = tower("mind", encoder_arguments={"age_weights": True})
    histories = ragged([[5, 1, 2], [7, 9, 2]])
    queries = tf.range(2)
    first, second = model(queries, histories)
    self.assertNotAllClose(first, second, atol=1e-3)
    (log_weights,) = (
      x for x in model.trainable_variables if "log_weights" in x.name
    )
    log_weights.assign([0.0] + [-30.0] * (LENGTH - 1))
    first, second = model(queries, histories)  # The newest event is the same.
    self.assertAllClose(first, second, atol=1e-6)
    self.assertTrue(model.encoder.get_config()["age_weights"])

  def test_restored_from_config_and_checkpoint(self):
    model = self.model(query_tower=models.Tower(vocabulary_size=4, dim=4))
    path = tf.train.Checkpoint(model=model).save(f"{self.get_temp_dir()}/model")
    config = json.loads(json.dumps(model.get_config()))
    again = models.TwoTower.from_config(config)
    status = tf.train.Checkpoint(model=again).restore(path)
    status.assert_existing_objects_matched().expect_partial()
    self.assertIs(again.query_tower.candidate_tower, again.candidate_tower)
    given = {"history_ids": ragged(HISTORIES)}
    self.assertAllClose(
      again.encode_queries(tf.range(3), **given),
      model.encode_queries(tf.range(3), **given),
    )

  def test_histories_are_needed_and_not_dropped(self):
    model = self.model()
    with self.assertRaisesRegex(ValueError, "needs `history_ids`"):
      model.compute_loss({"query_id": tf.range(2), "candidate_id": tf.range(2)})
    with self.assertRaisesRegex(
      ValueError, "takes `history_ids` if and only if"
    ):
      model.encode_queries(tf.range(2))
    of_ids = models.TwoTower(
      models.Tower(vocabulary_size=4, dim=4), candidate_tower()
    )
    with self.assertRaisesRegex(
      ValueError, "takes `history_ids` if and only if"
    ):
      of_ids.encode_queries(tf.range(2), history_ids=tf.zeros([2, 1]))


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
