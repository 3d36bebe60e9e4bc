"""Tests of xir_tfrs.tasks.CoRRRetrieval."""

import numpy as np
import pytest
import tensorflow as tf
from absl.testing import parameterized

from tests import reference, ten
from xir_tfrs import layers, models, tasks
from xir_tfrs.tasks import corr

_NUM_QUERIES = 6
_SAMPLERS = corr.SAMPLERS


class _Ranker:
  """Returns scores from a table, and records its last call."""

  def __init__(self, scale=1.0, seed=4):
    self.table = tf.Variable(
      scale
      * np.random.default_rng(seed).normal(
        size=[_NUM_QUERIES, len(ten.COUNTS)]
      ),
      dtype=tf.float32,
    )

  def __call__(self, query_ids, candidate_ids):
    self.ids = candidate_ids
    rows = tf.gather(self.table, query_ids)
    return tf.gather(rows, candidate_ids, batch_dims=1)


def _problem(batch=5, seed=1):
  rng = np.random.default_rng(seed)
  return (
    rng.normal(size=[batch, ten.DIM]).astype(np.float32),
    rng.integers(0, _NUM_QUERIES, batch),
    rng.integers(0, len(ten.COUNTS), batch),
  )


def _task(encoder, ranker=None, refreshed=True, **kwargs):
  task = tasks.CoRRRetrieval(
    candidate_counts=ten.COUNTS,
    candidate_encoder=encoder,
    ranker=_Ranker() if ranker is None else ranker,
    **{"num_sampled": 7, "cache_size": 6, "num_codewords": 2, **kwargs},
  )
  if refreshed:
    task.refresh()
  return task


def _loss(task, encoder, query, query_ids, ids, **kwargs):
  ids = tf.constant(ids, tf.int64)
  return task(
    tf.convert_to_tensor(query),
    encoder(ids),
    candidate_ids=ids,
    query_ids=tf.constant(query_ids, tf.int64),
    **kwargs,
  )


def _slow_loss(task, table, ranker_table, problem, sample, log_q, options):
  """The reference's loss for a drawn sample."""
  query, query_ids, ids = problem
  s = reference.logits(
    query, table, options["temperature"], options["normalize"]
  )
  rows = np.arange(len(ids))[:, np.newaxis]
  keep = None
  if options.get("remove_accidental_hits"):
    keep = sample != ids[:, np.newaxis]
  return reference.corr_task(
    s[rows, sample],
    s[rows[:, 0], ids],
    ranker_table[query_ids[:, np.newaxis], sample],
    ranker_table[query_ids, ids],
    log_q[rows, sample],
    log_q[rows[:, 0], ids],
    kl_weight=options.get("kl_weight", 1.0),
    keep=keep,
    sample_weight=options.get("sample_weight"),
  )


def _log_q(task, sampler, table, query, options):
  """[batch, num_candidates] log of the proposal, up to a constant."""
  if sampler == "uniform":
    return np.zeros([len(query), len(ten.COUNTS)])
  scores = reference.logits(
    query, table, options["temperature"], options["normalize"]
  )
  if sampler in ("sir", "bir", "xir"):
    return scores
  weights = np.maximum(ten.COUNTS, 1) ** 0.75 if sampler == "midx_pop" else None
  if options["normalize"]:
    query = query / np.linalg.norm(query, axis=1, keepdims=True)
  return np.log(
    [
      reference.midx_probabilities(
        q / options["temperature"],
        task.index.codebooks.numpy(),
        task.index.codes.numpy(),
        weights,
      )
      for q in query
    ]
  )


_OPTIONS = (
  {"temperature": 0.7, "normalize": False},
  {
    "temperature": 0.2,
    "normalize": True,
    "kl_weight": 0.3,
    "remove_accidental_hits": True,
    "sample_weight": np.array([0.5, 2.0, 0.0, 1.0, 1.0], np.float32),
  },
)


class LossTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.product(sampler=_SAMPLERS, options=_OPTIONS)
  def test_reference_and_gradient(self, sampler, options):
    options = dict(options)
    weight = options.get("sample_weight")
    encoder, ranker = ten.encoder(), _Ranker()
    arguments = {k: v for k, v in options.items() if k != "sample_weight"}
    task = _task(encoder, ranker, sampler=sampler, **arguments)
    problem = _problem()
    query = tf.constant(problem[0])
    with tf.GradientTape() as tape:
      tape.watch(query)
      loss = _loss(task, encoder, query, *problem[1:], sample_weight=weight)
    by_query, by_table, by_ranker = (
      tf.convert_to_tensor(g)
      for g in tape.gradient(loss, [query, encoder.embeddings, ranker.table])
    )
    sample = ranker.ids.numpy()
    self.assertAllEqual(sample[:, 0], problem[2])
    sample = sample[:, 1:]
    self.assertEqual(sample.shape, (5, 7))
    table, scores = encoder.embeddings.numpy(), ranker.table.numpy()
    log_q = _log_q(task, sampler, table, problem[0], options)

    def slow(query, table, scores, teacher=None):
      # The teacher of the divergence is constant.
      parts = [
        _slow_loss(
          task,
          table,
          of_ranker,
          (query, *problem[1:]),
          sample,
          log_q,
          options | {"kl_weight": kl_weight},
        )
        for of_ranker, kl_weight in (
          (scores, 0.0),
          (teacher, 1.0),
          (teacher, 0.0),
        )
      ]
      return parts[0] + options.get("kl_weight", 1.0) * (parts[1] - parts[2])

    self.assertAllClose(
      loss,
      _slow_loss(task, table, scores, problem, sample, log_q, options),
      rtol=1e-4,
    )
    for got, function, at in (
      (by_query, lambda x: slow(x, table, scores, scores), problem[0]),
      (by_table, lambda x: slow(problem[0], x, scores, scores), table),
      (by_ranker, lambda x: slow(problem[0], table, x, scores), scores),
    ):
      self.assertAllClose(
        got, reference.numeric_gradient(function, at), rtol=1e-3, atol=2e-5
      )

  def test_readout_is_the_parts_of_the_loss(self):
    encoder = ten.encoder()
    task = _task(encoder, kl_weight=0.25)
    self.assertEqual(
      set(task.readout()), {"ranker_loss", "retriever_loss", "kl"}
    )
    loss = _loss(task, encoder, *_problem())
    parts = {name: float(value) for name, value in task.readout().items()}
    self.assertAllGreater(list(parts.values()), 0.0)
    self.assertAllClose(
      loss,
      parts["ranker_loss"] + parts["retriever_loss"] + 0.25 * parts["kl"],
    )
    # The mean loss of single rows is linear in the weights of the parts.
    without = _loss(_task(encoder, kl_weight=0.0), encoder, *_problem())
    self.assertAllClose(loss - without, 0.25 * parts["kl"], atol=1e-5)

  def test_no_divergence_where_the_ranker_is_the_retriever(self):
    encoder = ten.encoder()
    query, query_ids, ids = _problem()
    # Query i of the batch is query i of the ranker, plus a constant.
    query_ids = np.arange(5)
    ranker = _Ranker()
    scores = query @ encoder.embeddings.numpy().T + query_ids[:, np.newaxis]
    ranker.table.assign(np.pad(scores, [(0, 1), (0, 0)]))
    for sampler in _SAMPLERS:
      task = _task(encoder, ranker, sampler=sampler)
      _loss(task, encoder, query, query_ids, ids)
      parts = task.readout()
      self.assertAllClose(parts["kl"], 0.0, atol=1e-6)
      self.assertAllClose(
        parts["ranker_loss"], parts["retriever_loss"], rtol=1e-5
      )

  @parameterized.parameters("sir", "bir", "xir")
  def test_drawn_by_score_the_retrievers_loss_is_a_constant(self, sampler):
    encoder = ten.encoder()
    task = _task(encoder, sampler=sampler)
    with tf.GradientTape() as tape:
      loss = _loss(task, encoder, *_problem())
    self.assertAllClose(task.readout()["retriever_loss"], np.log(8), rtol=1e-5)
    gradient = tape.gradient(loss, encoder.embeddings)
    self.assertGreater(np.abs(tf.convert_to_tensor(gradient)).max(), 1e-3)

  def test_defaults(self):
    encoder, ranker = ten.encoder(), _Ranker()
    task = tasks.CoRRRetrieval(
      candidate_counts=ten.COUNTS,
      candidate_encoder=encoder,
      ranker=ranker,
    )
    config = task.get_config()
    self.assertEqual(
      {
        name: config[name]
        for name in (
          "num_sampled",
          "sampler",
          "kl_weight",
          "num_codewords",
          "remove_accidental_hits",
        )
      },
      {
        "num_sampled": 20,
        "sampler": "midx",
        "kl_weight": 1.0,
        "num_codewords": 8,
        "remove_accidental_hits": False,
      },
    )
    _loss(task, encoder, *_problem())
    self.assertEqual(ranker.ids.shape, [5, 21])

  @parameterized.product(sampler=_SAMPLERS, scale=(100.0, -100.0))
  def test_scores_of_ten_thousand(self, sampler, scale):
    encoder, ranker = ten.encoder(), _Ranker(scale=1e4)
    query, query_ids, ids = _problem()
    for remove in (False, True):
      task = _task(
        encoder,
        ranker,
        sampler=sampler,
        temperature=0.01,
        remove_accidental_hits=remove,
      )
      query = tf.constant(scale * query)
      with tf.GradientTape() as tape:
        tape.watch(query)
        loss = _loss(task, encoder, query, query_ids, ids)
      self.assertTrue(np.isfinite(loss))
      for g in tape.gradient(loss, [query, encoder.embeddings, ranker.table]):
        self.assertTrue(np.isfinite(tf.convert_to_tensor(g)).all())

  @parameterized.parameters(*_SAMPLERS)
  def test_a_sample_of_nothing_but_the_positive(self, sampler):
    encoder, ranker = ten.encoder(), _Ranker()
    task = _task(encoder, ranker, sampler=sampler, remove_accidental_hits=True)
    # Its score is by far the highest, so all samplers except `uniform` only
    # draw it.
    table = np.zeros([len(ten.COUNTS), ten.DIM], np.float32)
    table[3] = 200.0
    encoder.embeddings.assign(table)
    task.refresh()
    if task.cache is not None:
      task.cache.ids.assign([3] * 6)
    with tf.GradientTape() as tape:
      loss = _loss(
        task,
        encoder,
        np.ones([2, ten.DIM], np.float32),
        [0, 1],
        [3, 3],
      )
    gradients = [
      tf.convert_to_tensor(g)
      for g in tape.gradient(loss, [encoder.embeddings, ranker.table])
    ]
    self.assertTrue(np.isfinite(loss))
    for gradient in gradients:
      self.assertTrue(np.isfinite(gradient).all())
    if sampler != "uniform":
      self.assertAllEqual(loss, 0.0)
      self.assertAllEqual(gradients[1], tf.zeros_like(ranker.table))


class ConvergenceTest(tf.test.TestCase, parameterized.TestCase):
  def exact_gradients(self, encoder, ranker, query, query_ids, ids):
    """By query and by the ranker's table, with the whole catalogue."""
    with tf.GradientTape() as tape:
      tape.watch(query)
      retriever = tf.nn.log_softmax(
        tf.matmul(query, encoder.embeddings, transpose_b=True)
      )
      rank = tf.nn.log_softmax(tf.gather(ranker.table, query_ids))
      teacher = tf.stop_gradient(rank)
      loss = (
        -tf.gather(retriever, ids, batch_dims=1)
        - tf.gather(rank, ids, batch_dims=1)
        + tf.reduce_sum(tf.exp(teacher) * (teacher - retriever), axis=1)
      )
      loss = tf.reduce_mean(loss)
    return tape.gradient(loss, [query, ranker.table])

  @parameterized.parameters("midx", "midx_pop", "uniform", "sir", "bir")
  def test_the_gradient_tends_to_that_of_the_whole_catalogue(self, sampler):
    encoder, ranker = ten.encoder(), _Ranker()
    query, query_ids, _ = _problem(4)
    ids = np.array([3, 0, 2, 8])
    counts = np.maximum(ten.COUNTS, 1)
    if sampler == "bir":
      # A batch in which every candidate appears as often as its count; weights
      # select four of its rows.
      others = np.repeat(np.arange(len(ten.COUNTS)), counts)
      for i in ids:
        others = np.delete(others, np.argmax(others == i))
      rows = len(others)
      ids = np.concatenate([ids, others])
      query = np.concatenate([query, np.zeros([rows, ten.DIM], np.float32)])
      query_ids = np.concatenate([query_ids, np.zeros(rows, int)])
    weight = np.zeros(len(ids), np.float32)
    weight[:4] = len(ids) / 4
    exact = self.exact_gradients(
      encoder, ranker, tf.constant(query[:4]), query_ids[:4], ids[:4]
    )
    errors = []
    for num_sampled in (100, 20_000):
      task = _task(
        encoder,
        ranker,
        sampler=sampler,
        num_sampled=num_sampled,
        num_pooled=num_sampled,
      )
      q = tf.constant(query)
      with tf.GradientTape() as tape:
        tape.watch(q)
        loss = _loss(task, encoder, q, query_ids, ids, sample_weight=weight)
      by_query, by_ranker = tape.gradient(loss, [q, ranker.table])
      errors.append(
        [
          float(tf.norm(got - want) / tf.norm(want))
          for got, want in zip(
            (by_query[:4], tf.convert_to_tensor(by_ranker)), exact, strict=True
          )
        ]
      )
    self.assertAllLess(errors[1], 0.03)
    self.assertAllLess(np.divide(errors[1], errors[0]), 0.5)

  def test_without_accidental_hits_it_does_not(self):
    # The reason for the default: the positive has most of the softmax, P. If it
    # is not in the sample, its gradient is 1 / (1 - P) times too large.
    encoder, ranker = ten.encoder(), _Ranker(scale=0.0)
    table = encoder.embeddings.numpy()
    query = 2.0 * table[3:4]
    scores = reference.logits(query, table)[0]
    positive = np.argmax(scores)
    share = np.exp(scores[positive]) / np.sum(np.exp(scores))
    self.assertGreater(share, 0.5)
    lengths = []
    for remove in (False, True):
      task = _task(
        encoder,
        ranker,
        num_sampled=20_000,
        remove_accidental_hits=remove,
        kl_weight=0.0,
      )
      q = tf.constant(query)
      with tf.GradientTape() as tape:
        tape.watch(q)
        loss = _loss(task, encoder, q, [0], [positive])
      lengths.append(float(tf.norm(tape.gradient(loss, q))))
    self.assertAllClose(lengths[1] / lengths[0], 1 / (1 - share), rtol=0.05)


class SamplerTest(tf.test.TestCase, parameterized.TestCase):
  def drawn(self, task, ranker, encoder, problem, **kwargs):
    _loss(task, encoder, *problem, **kwargs)
    return ranker.ids.numpy()[:, 1:]

  def test_before_a_refresh_midx_is_uniform(self):
    encoder, ranker = ten.encoder(), _Ranker()
    task = _task(encoder, ranker, refreshed=False, num_sampled=8000)
    drawn = self.drawn(task, ranker, encoder, _problem(2))
    observed = np.bincount(drawn.ravel(), minlength=len(ten.COUNTS))
    # Chi-square, 9 degrees of freedom, 0.9999 quantile.
    self.assertLess(np.sum((observed - 1600) ** 2 / 1600), 33.72)

  def test_uniform(self):
    encoder, ranker = ten.encoder(), _Ranker()
    task = _task(encoder, ranker, sampler="uniform", num_sampled=8000)
    drawn = self.drawn(task, ranker, encoder, _problem(2))
    observed = np.bincount(drawn.ravel(), minlength=len(ten.COUNTS))
    self.assertLess(np.sum((observed - 1600) ** 2 / 1600), 33.72)

  def test_resampled_from_a_uniform_pool(self):
    # With a large pool, draws follow the softmax over the catalogue; with a
    # pool of one, they are uniform.
    encoder, ranker = ten.encoder(), _Ranker()
    problem = _problem(2)
    softmax = reference.logits(problem[0], encoder.embeddings.numpy())
    softmax = np.exp(softmax) / np.exp(softmax).sum(1, keepdims=True)
    for num_pooled, expected in ((20_000, softmax), (1, None)):
      task = _task(
        encoder,
        ranker,
        sampler="sir",
        num_pooled=num_pooled,
        num_sampled=20_000,
      )
      drawn = self.drawn(task, ranker, encoder, problem)
      for row in range(2):
        observed = np.bincount(drawn[row], minlength=len(ten.COUNTS)) / 20_000
        if expected is None:
          self.assertAllEqual(np.sort(observed)[-2:], [0.0, 1.0])
        else:
          # Both stages draw at random.
          self.assertAllClose(observed, expected[row], atol=0.03)

  @parameterized.parameters("bir", "xir")
  def test_pools_by_importance_weights(self, sampler):
    encoder, ranker = ten.encoder(), _Ranker()
    task = _task(encoder, ranker, sampler=sampler, num_sampled=20_000)
    query, query_ids, ids = _problem(5)
    pool = list(ids)
    if sampler == "xir":
      task.cache.ids.assign([2, 9, 3, 3, 0, 8])
      pool += [2, 9, 3, 3, 0, 8]
    drawn = self.drawn(task, ranker, encoder, (query, query_ids, ids))
    scores = reference.logits(query, encoder.embeddings.numpy()[pool])
    log_pop = np.log(reference.popularity(ten.COUNTS))[pool]
    expected = reference.expected_counts(scores - log_pop, 1)
    for row in range(5):
      by_id = np.bincount(pool, expected[row], minlength=len(ten.COUNTS))
      observed = np.bincount(drawn[row], minlength=len(ten.COUNTS)) / 20_000
      self.assertAllClose(observed, by_id, atol=5 * 0.5 / np.sqrt(20_000))

  @parameterized.parameters("bir", "xir")
  def test_the_own_column_may_be_left_out(self, sampler):
    encoder, ranker = ten.encoder(), _Ranker()
    query, query_ids, _ = _problem(4)
    ids = np.array([4, 4, 7, 8])
    for positive_in_pool in (False, True):
      task = _task(
        encoder,
        ranker,
        sampler=sampler,
        positive_in_pool=positive_in_pool,
        num_sampled=500,
      )
      if task.cache is not None:
        task.cache.ids.assign([1] * 6)
      drawn = self.drawn(task, ranker, encoder, (query, query_ids, ids))
      own = [np.any(drawn[row] == ids[row]) for row in range(4)]
      # Rows 0 and 1 may draw each other's.
      self.assertAllEqual(own, [True, True] + [positive_in_pool] * 2)

  def test_cache_counts_what_was_drawn(self):
    encoder, ranker = ten.encoder(), _Ranker()
    task = _task(encoder, ranker, sampler="xir")
    total = np.zeros(len(ten.COUNTS))
    for step in range(3):
      drawn = self.drawn(task, ranker, encoder, _problem(5, seed=step))
      total += np.bincount(drawn.ravel(), minlength=len(ten.COUNTS))
      self.assertAllEqual(task.cache.occurrence_counts, total)
    self.assertEqual(int(task.cache.step), 3)

  @parameterized.parameters(*_SAMPLERS)
  def test_draws_follow_the_step_and_the_seed(self, sampler):
    encoder, ranker = ten.encoder(), _Ranker()
    task = _task(encoder, ranker, sampler=sampler)
    problem = _problem()
    first = self.drawn(task, ranker, encoder, problem, training=False)
    state = [v.numpy() for v in task.non_trainable_variables]
    again = self.drawn(task, ranker, encoder, problem, training=False)
    self.assertAllEqual(first, again)
    for value, variable in zip(
      state, task.non_trainable_variables, strict=True
    ):
      self.assertAllEqual(value, variable)
    self.assertAllEqual(first, self.drawn(task, ranker, encoder, problem))
    second = self.drawn(task, ranker, encoder, problem)
    self.assertNotAllEqual(first, second)
    other = _task(encoder, ranker, sampler=sampler, seed=1)
    self.assertNotAllEqual(first, self.drawn(other, ranker, encoder, problem))

  def test_refresh_encodes_in_chunks_what_scores_are_made_of(self):
    encoder = ten.encoder()
    whole = _task(encoder, normalize=True)
    chunk = corr._IDS_PER_CHUNK
    corr._IDS_PER_CHUNK = 3
    try:
      parts = _task(encoder, normalize=True)
    finally:
      corr._IDS_PER_CHUNK = chunk
    index = layers.InvertedMultiIndex(len(ten.COUNTS), ten.DIM, num_codewords=2)
    index.refresh(tf.math.l2_normalize(encoder.embeddings, axis=1))
    for task in (whole, parts):
      self.assertAllEqual(task.index.codebooks, index.codebooks)
      self.assertAllEqual(task.index.codes, index.codes)
    _task(encoder, sampler="uniform").refresh()  # Nothing to do.


class ArgumentsTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters(
    ("num_sampled", 0),
    ("num_pooled", 0),
    ("sampler", "dns"),
    ("kl_weight", -0.5),
    ("num_codewords", 0),
  )
  def test_bad_arguments_name_the_value(self, name, value):
    with self.assertRaisesRegex(ValueError, f"(?s){name}.*{value}"):
      _task(ten.encoder(), **{name: value})

  def test_cache_size(self):
    with self.assertRaisesRegex(ValueError, "(?s)cache_size.*-1"):
      _task(ten.encoder(), sampler="xir", cache_size=-1)

  @parameterized.parameters("ranker", "candidate_encoder")
  def test_encoder_and_ranker_must_be_callable(self, name):
    arguments = {
      "ranker": _Ranker(),
      "candidate_encoder": ten.encoder(),
    }
    with self.assertRaisesRegex(ValueError, name):
      tasks.CoRRRetrieval(candidate_counts=ten.COUNTS, **arguments | {name: 3})

  def test_query_ids_are_needed(self):
    query, _, ids = _problem()
    encoder = ten.encoder()
    with self.assertRaisesRegex(ValueError, "query_ids=features"):
      _task(encoder)(query, encoder(ids), candidate_ids=ids)


def _two_tower(**kwargs):
  towers = [
    models.Tower(vocabulary_size=size, dim=4, seed=seed, name=name)
    for size, seed, name in (
      (_NUM_QUERIES, 1, "query_tower"),
      (len(ten.COUNTS), 2, "candidate_tower"),
    )
  ]
  ranker = models.Ranker(
    num_queries=_NUM_QUERIES,
    num_candidates=len(ten.COUNTS),
    dim=3,
    hidden_units=(5,),
    init_stddev=0.3,
    seed=3,
  )
  task = tasks.CoRRRetrieval(
    candidate_counts=ten.COUNTS,
    candidate_encoder=towers[1],
    ranker=ranker,
    **{"num_sampled": 5, "cache_size": 6, "num_codewords": 3, **kwargs},
  )
  return models.TwoTower(*towers, task)


def _features(rows, seed=0):
  _, query_ids, ids = _problem(rows, seed)
  return {"query_id": tf.constant(query_ids), "candidate_id": tf.constant(ids)}


def _step(model, features):
  with tf.GradientTape() as tape:
    loss = model.compute_loss(features, training=True)
  gradients = tape.gradient(loss, model.trainable_variables)
  return loss, [tf.convert_to_tensor(g) for g in gradients]


def _descend(model, gradients):
  for variable, gradient in zip(
    model.trainable_variables, gradients, strict=True
  ):
    variable.assign_sub(0.5 * gradient)


class ModelTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters("midx_pop", "xir")
  def test_checkpoint_continues_as_if_never_stopped(self, sampler):
    model = _two_tower(sampler=sampler)

    def epoch(model, seeds):
      model.task.refresh()
      for seed in seeds:
        _descend(model, _step(model, _features(8, seed))[1])

    epoch(model, (0, 1))
    path = tf.train.Checkpoint(model=model).save(self.get_temp_dir() + "/c")
    restored = _two_tower(sampler=sampler)
    tf.train.Checkpoint(model=restored).restore(path).assert_consumed()
    for m in (model, restored):
      epoch(m, (2, 3))
    self.assertEqual(len(model.variables), len(restored.variables))
    for first, second in zip(model.variables, restored.variables, strict=True):
      self.assertAllEqual(first, second)

  def test_both_models_learn(self):
    # Each query has one candidate.
    model = _two_tower(normalize=True, temperature=0.2)
    model.compile(tf.keras.optimizers.Adam(0.05))
    pairs = tf.range(_NUM_QUERIES, dtype=tf.int64)
    dataset = tf.data.Dataset.from_tensors(
      {"query_id": pairs, "candidate_id": pairs}
    ).repeat(40)
    refresh = tf.keras.callbacks.LambdaCallback(
      on_epoch_begin=lambda *_: model.task.refresh()
    )
    model.fit(dataset, epochs=6, callbacks=[refresh], verbose=0)
    everyone = tf.range(len(ten.COUNTS), dtype=tf.int64)
    retrieved = tf.matmul(
      model.encode_queries(pairs),
      model.encode_candidates(everyone),
      transpose_b=True,
    )
    ranked = model.rerank_scores(pairs, tf.tile(everyone[None], [6, 1]))
    for scores in (retrieved, ranked):
      self.assertAllEqual(tf.argmax(scores, axis=1), pairs)


class TwoReplicasTest(tf.test.TestCase, parameterized.TestCase):
  @pytest.fixture(autouse=True)
  def _use(self, two_replicas):
    self.strategy = two_replicas

  @parameterized.parameters("midx", "uniform", "bir", "xir")
  def test_two_replicas_are_one(self, sampler):
    one = _two_tower(sampler=sampler)
    with self.strategy.scope():
      two = _two_tower(sampler=sampler)
    for seed in range(2):
      features = _features(8, seed)
      for model in (one, two):
        model.task.refresh()
      loss, gradients = _step(one, features)
      # 5 rows on one replica, 3 on the other.
      parts = [slice(0, 5), slice(5, 8)]
      shares = self.strategy.experimental_distribute_values_from_function(
        lambda context, parts=parts, features=features: {
          name: value[parts[context.replica_id_in_sync_group]]
          for name, value in features.items()
        }
      )
      sums = self.strategy.reduce(
        "sum",
        self.strategy.run(lambda f: _step(two, f), args=(shares,)),
        axis=None,
      )
      self.assertAllClose(loss, sums[0], rtol=1e-5)
      for first, second in zip(gradients, sums[1], strict=True):
        self.assertAllClose(first, second, rtol=1e-4, atol=1e-6)
      _descend(one, gradients)
      _descend(two, sums[1])
    for first, second in zip(
      one.non_trainable_variables, two.non_trainable_variables, strict=True
    ):
      self.assertAllClose(first, second, rtol=1e-5, atol=1e-6)
      for copy in second.values:
        self.assertAllEqual(copy, second.values[0])
    self.assertAllClose(one.task.readout(), two.task.readout(), rtol=1e-5)


if __name__ == "__main__":
  tf.test.main()
