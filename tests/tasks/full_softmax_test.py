"""Tests of xir_tfrs.tasks.FullSoftmaxRetrieval."""

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests import reference
from xir_tfrs import models, tasks
from xir_tfrs.ops import forms
from xir_tfrs.types import Feature

_N = 11
_DIM = 3


def _tower(hidden_units=(), with_features=False):
  """A candidate tower, optionally with features of every kind."""
  features, columns = (), None
  if with_features:
    rng = np.random.default_rng(4)
    features = (
      Feature("genre", "token", vocabulary_size=3),
      Feature("tags", "token_seq", vocabulary_size=5),
      Feature("price", "float", mean=(1.0,), std=(2.0,)),
    )
    splits = np.array([0, 0, 2, 3, 3, 6, 7, 7, 9, 12, 12, 14])
    columns = {
      "genre": rng.integers(0, 3, _N),
      "tags": (rng.integers(0, 5, 14), splits),
      "price": rng.normal(size=_N),
    }
  return models.Tower(
    vocabulary_size=_N,
    dim=_DIM,
    features=features,
    columns=columns,
    hidden_units=hidden_units,
    init_stddev=1.0,
  )


def _problem(batch, seed=1):
  rng = np.random.default_rng(seed)
  query = rng.normal(size=[batch, _DIM]).astype(np.float32)
  return tf.constant(query), tf.constant(rng.integers(0, 5, batch))


def _known(batch, seed=7):
  """Ids of each row, none for the first; some are the row's positive."""
  rng = np.random.default_rng(seed)
  return [
    sorted(rng.choice(_N, size=size, replace=False).tolist())
    for size in (0, *rng.integers(1, 6, batch - 1))
  ]


def _loss(task, encoder, query, ids, **kwargs):
  return task(query, encoder(ids), candidate_ids=ids, **kwargs)


def _dense_loss(
  encoder, query, ids, temperature=1.0, normalize=False, known=None
):
  """The same with one matrix of logits, by TensorFlow's cross entropy."""
  candidates = encoder(tf.range(_N, dtype=tf.int64))
  if normalize:
    query = tf.math.l2_normalize(query, 1)
    candidates = tf.math.l2_normalize(candidates, 1)
  logits = tf.matmul(query, candidates, transpose_b=True) / temperature
  if known is not None:
    left_out = np.zeros(logits.shape, bool)
    for row, listed in enumerate(known):
      left_out[row, listed] = True
    left_out[np.arange(len(known)), ids] = False
    logits = tf.where(left_out, -np.inf, logits)
  return tf.reduce_mean(
    tf.nn.sparse_softmax_cross_entropy_with_logits(ids, logits)
  )


def _value_and_gradients(function, query, encoder):
  with tf.GradientTape() as tape:
    tape.watch(query)
    loss = function()
  watched = [query, *encoder.trainable_variables]
  gradients = tape.gradient(loss, watched)
  return loss, [tf.convert_to_tensor(g) for g in gradients]


class _NumColumns(forms.CrossEntropy):
  """A form whose loss is the number of columns that count."""

  name = "num_columns"

  def loss(self, rows):
    return rows.num_columns() + 0.0 * (rows.log_sum - rows.positive)


class FullSoftmaxRetrievalTest(tf.test.TestCase, parameterized.TestCase):
  def test_hand_value(self):
    # e^s of the candidates: 2, 3, 5. Positives 0 and 2: 2/10 and 5/10.
    encoder = tf.keras.layers.Embedding(
      3,
      1,
      embeddings_initializer=tf.keras.initializers.Constant(
        np.log([[2.0], [3.0], [5.0]])
      ),
    )
    task = tasks.FullSoftmaxRetrieval(
      candidate_encoder=encoder, candidate_chunk_size=2
    )
    loss = _loss(task, encoder, tf.ones([2, 1]), tf.constant([0, 2]))
    self.assertAllClose(loss, (np.log(5.0) + np.log(2.0)) / 2)

  @parameterized.product(
    batch=(1, 6),
    scores=((1.0, False), (0.1, True)),
    chunk=(None, 1, 4, _N, 100),
    training=(False, True),
  )
  def test_reference(self, batch, scores, chunk, training):
    options = dict(temperature=scores[0], normalize=scores[1])
    encoder = _tower()
    query, ids = _problem(batch)
    weights = np.random.default_rng(0).random(batch).astype(np.float32)
    task = tasks.FullSoftmaxRetrieval(
      candidate_encoder=encoder, candidate_chunk_size=chunk, **options
    )
    self.assertAllClose(
      _loss(
        task, encoder, query, ids, sample_weight=weights, training=training
      ),
      reference.full_softmax_task(
        query, encoder(tf.range(_N)), ids, sample_weight=weights, **options
      ),
      rtol=1e-5,
    )

  @parameterized.product(
    tower=((False, False), (False, True), (True, True)),
    # Rows per chunk, and whether in a graph.
    given=((None, False), (4, True)),
  )
  def test_gradient_is_that_of_the_dense_cross_entropy(self, tower, given):
    with_mlp, with_features = tower
    chunk, graph = given
    options = dict(temperature=0.5, normalize=with_mlp)
    encoder = _tower((7,) if with_mlp else (), with_features)
    query, ids = _problem(6)
    task = tasks.FullSoftmaxRetrieval(
      candidate_encoder=encoder, candidate_chunk_size=chunk, **options
    )

    def run():
      return _value_and_gradients(
        lambda: _loss(task, encoder, query, ids), query, encoder
      )

    loss, gradients = (tf.function(run) if graph else run)()
    expected, dense = _value_and_gradients(
      lambda: _dense_loss(encoder, query, ids, **options), query, encoder
    )
    self.assertAllClose(loss, expected, rtol=1e-6)
    self.assertLen(gradients, len(dense))
    for got, want in zip(gradients, dense, strict=True):
      self.assertAllClose(got, want, rtol=1e-5, atol=2e-6)

  @parameterized.product(
    chunk=(None, 1, 4), how=("ragged", "padded", "shared", "compiled")
  )
  def test_known_candidates_are_left_out(self, chunk, how):
    encoder = _tower()
    query, ids = _problem(6)
    known = _known(6)
    ragged = tf.ragged.constant(known, tf.int64)
    arguments = {"known_candidate_ids": ragged}
    if how in ("padded", "compiled"):
      arguments = {"known_candidate_ids": ragged.to_tensor(-1)}
    elif how == "shared":
      arguments = {
        "known_candidate_ids": ragged[::-1],
        "known_rows": tf.range(5, -1, -1),
      }
    task = tasks.FullSoftmaxRetrieval(
      candidate_encoder=encoder, candidate_chunk_size=chunk
    )

    def run():
      return _value_and_gradients(
        lambda: _loss(task, encoder, query, ids, **arguments), query, encoder
      )

    if how == "compiled":
      run = tf.function(run, jit_compile=True)
    loss, gradients = run()
    self.assertAllClose(
      loss,
      reference.full_softmax_task(
        query, encoder(tf.range(_N)), ids, known=known
      ),
      rtol=1e-5,
    )
    _, dense = _value_and_gradients(
      lambda: _dense_loss(encoder, query, ids, known=known), query, encoder
    )
    for got, want in zip(gradients, dense, strict=True):
      self.assertAllClose(got, want, rtol=1e-5, atol=2e-6)

  @parameterized.parameters(None, 4)
  def test_forms_count_the_candidates_that_are_left(self, chunk):
    encoder = _tower()
    query, ids = _problem(6)
    known = _known(6)
    task = tasks.FullSoftmaxRetrieval(
      candidate_encoder=encoder, candidate_chunk_size=chunk, loss=_NumColumns()
    )
    loss = _loss(
      task, encoder, query, ids, known_candidate_ids=tf.ragged.constant(known)
    )
    left = [
      _N - len({*row, int(positive)})
      for row, positive in zip(known, ids, strict=True)
    ]
    self.assertAllClose(loss, np.mean(left))

  def test_a_query_that_knows_the_whole_catalogue_learns_nothing(self):
    encoder = _tower()
    query, ids = _problem(2)
    task = tasks.FullSoftmaxRetrieval(
      candidate_encoder=encoder, candidate_chunk_size=4
    )
    known = tf.constant([list(range(_N))] * 2)
    loss, gradients = _value_and_gradients(
      lambda: _loss(task, encoder, query, ids, known_candidate_ids=known),
      query,
      encoder,
    )
    self.assertAllClose(loss, 0.0)
    for gradient in gradients:
      self.assertAllClose(gradient, np.zeros(gradient.shape))

  def test_encoders_without_variables(self):
    table = tf.constant(
      np.random.default_rng(0).normal(size=[_N, _DIM]), tf.float32
    )
    query, ids = _problem(4)
    task = tasks.FullSoftmaxRetrieval(
      candidate_encoder=lambda ids: tf.gather(table, ids), num_candidates=_N
    )
    with tf.GradientTape() as tape:
      tape.watch(query)
      loss = task(query, tf.gather(table, ids), candidate_ids=ids)
    with tf.GradientTape() as dense_tape:
      dense_tape.watch(query)
      expected = _dense_loss(lambda i: tf.gather(table, i), query, ids)
    self.assertAllClose(loss, expected)
    self.assertAllClose(
      tape.gradient(loss, query),
      dense_tape.gradient(expected, query),
      atol=1e-6,
    )

  def test_never_encodes_more_than_a_chunk(self):
    encoder, asked = _tower(), []

    def watched(ids):
      asked.append(len(ids))
      return encoder(ids)

    query, ids = _problem(5)
    task = tasks.FullSoftmaxRetrieval(
      candidate_encoder=watched, num_candidates=_N, candidate_chunk_size=4
    )
    with tf.GradientTape() as tape:
      loss = _loss(task, encoder, query, ids)
    tape.gradient(loss, encoder.trainable_variables)
    self.assertEqual(asked, [4, 4, 3] * 2)

  def test_the_positive_is_what_the_caller_gives(self):
    # As in every other task, a given positive also replaces the encoder's in
    # the partition.
    encoder = _tower()
    query, ids = _problem(1)
    positive = tf.constant([[0.3, -1.0, 2.0]])
    s = (encoder(tf.range(_N)).numpy() @ query.numpy()[0]).astype(np.float64)
    s[int(ids[0])] = np.dot(positive[0], query[0])
    task = tasks.FullSoftmaxRetrieval(candidate_encoder=encoder)
    self.assertAllClose(
      task(query, positive, candidate_ids=ids),
      np.log(np.sum(np.exp(s))) - s[int(ids[0])],
      rtol=1e-5,
    )

  def test_positive_in_pool_counts_it_twice(self):
    encoder = _tower()
    query, ids = _problem(5)
    s = (query.numpy() @ encoder(tf.range(_N)).numpy().T).astype(np.float64)
    positive = s[np.arange(5), ids]
    twice = np.log(np.exp(s).sum(1) + np.exp(positive)) - positive
    for options, expected in (
      ({"positive_in_pool": True}, np.mean(twice)),
      (
        {"positive_in_pool": True, "remove_accidental_hits": True},
        _dense_loss(encoder, query, ids),
      ),
    ):
      task = tasks.FullSoftmaxRetrieval(candidate_encoder=encoder, **options)
      self.assertAllClose(_loss(task, encoder, query, ids), expected, rtol=1e-5)

  @parameterized.parameters(1e4, -1e4)
  def test_extreme_scores(self, scale):
    encoder = _tower()
    query, ids = _problem(4)
    query *= scale
    for chunk in (None, 1):
      task = tasks.FullSoftmaxRetrieval(
        candidate_encoder=encoder, candidate_chunk_size=chunk
      )
      loss, gradients = _value_and_gradients(
        lambda task=task: _loss(task, encoder, query, ids), query, encoder
      )
      self.assertAllClose(loss, _dense_loss(encoder, query, ids), rtol=1e-5)
      for gradient in gradients:
        self.assertTrue(np.isfinite(gradient).all())

  def test_a_catalogue_of_one_has_nothing_to_learn(self):
    encoder = models.Tower(vocabulary_size=1, dim=_DIM)
    query = tf.ones([2, _DIM])
    task = tasks.FullSoftmaxRetrieval(candidate_encoder=encoder)
    loss, gradients = _value_and_gradients(
      lambda: _loss(task, encoder, query, tf.constant([0, 0])), query, encoder
    )
    self.assertAllClose(loss, 0.0)
    for gradient in gradients:
      self.assertAllClose(gradient, np.zeros(gradient.shape))


class LogqCorrectedOracleTest(tf.test.TestCase):
  def test_every_other_candidate_once_gives_the_same_gradient(self):
    # ALGORITHMS 7.6: a batch that holds the whole catalogue, Q uniform.
    encoder = _tower()
    query, _ = _problem(_N)
    ids = tf.constant(np.random.default_rng(3).permutation(_N))
    options = dict(temperature=0.5)
    corrected = tasks.SampledSoftmaxRetrieval(
      candidate_counts=[3] * _N, loss="logq_corrected", **options
    )
    full = tasks.FullSoftmaxRetrieval(candidate_encoder=encoder, **options)
    results = [
      _value_and_gradients(
        lambda task=task: _loss(task, encoder, query, ids), query, encoder
      )
      for task in (corrected, full)
    ]
    for got, want in zip(results[0][1], results[1][1], strict=True):
      self.assertAllClose(got, want, rtol=1e-5, atol=1e-6)


class ArgumentsTest(tf.test.TestCase, parameterized.TestCase):
  def test_size_of_the_catalogue(self):
    def config_of(encoder, **kwargs):
      task = tasks.FullSoftmaxRetrieval(candidate_encoder=encoder, **kwargs)
      return task.get_config()["num_candidates"]

    self.assertEqual(config_of(_tower()), _N)
    self.assertEqual(config_of(tf.keras.layers.Embedding(7, 2)), 7)
    self.assertEqual(config_of(_tower(), num_candidates=5), 5)
    self.assertEqual(config_of(lambda ids: ids, num_candidates=5), 5)
    with self.assertRaisesRegex(ValueError, "num_candidates"):
      config_of(lambda ids: ids)

  @parameterized.parameters(("num_candidates", 0), ("candidate_chunk_size", 0))
  def test_bad_arguments_name_the_value(self, name, value):
    with self.assertRaisesRegex(ValueError, f"{name}` = {value}"):
      tasks.FullSoftmaxRetrieval(candidate_encoder=_tower(), **{name: value})

  @parameterized.parameters(None, 3)
  def test_the_encoder_must_be_callable(self, encoder):
    with self.assertRaisesRegex(ValueError, "candidate_encoder"):
      tasks.FullSoftmaxRetrieval(candidate_encoder=encoder, num_candidates=3)


if __name__ == "__main__":
  tf.test.main()
