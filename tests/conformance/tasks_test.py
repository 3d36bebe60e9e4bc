"""Checks that every retrieval task must pass.

A new task needs rows in `_TASKS` and values for its new arguments in
`_NON_DEFAULT`; `_OWN` lists the arguments that its contract promises.
`test_every_public_task_is_covered` fails until the task has a row.
"""

import dataclasses
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_recommenders as tfrs
from absl.testing import parameterized

from xir_tfrs import layers, models, tasks
from xir_tfrs.ops import forms

_DIM = 4
_NUM_QUERIES = 7
# Candidates 2, 6 and 9 have no training interaction.
_COUNTS = (5, 1, 0, 40, 7, 2, 0, 3, 11, 0)
_NUM_CANDIDATES = len(_COUNTS)
# Queries, candidates and candidate ids of a graph for batches of any size.
_OF_UNKNOWN_SIZE = (
  tf.TensorSpec([None, _DIM]),
  tf.TensorSpec([None, _DIM]),
  tf.TensorSpec([None], tf.int64),
)


def _table(rows, seed):
  """An embedding table with the same values each time."""
  value = np.random.default_rng(seed).normal(size=[rows, _DIM])
  return tf.keras.layers.Embedding(
    rows,
    _DIM,
    embeddings_initializer=tf.keras.initializers.Constant(value),
  )


@dataclasses.dataclass(frozen=True)
class _Row:
  """A task with arguments.

  Attributes:
    task: Its class.
    arguments: Constructor arguments that are plain data.
    live: By name, constructor arguments that are objects, made from the
      candidate tower. A test may replace the tower by one of another size.
    draws: Whether the loss depends on the seed.
    encodes: Whether the loss also uses embeddings from the tower, besides
      those of the batch.
    signed: Whether the loss may be negative.
    every_test: Whether it takes part in all tests; variants of a method skip
      some.
  """

  task: type[tasks.RetrievalTask]
  arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  live: Mapping[str, Callable[[Any], Any]] = dataclasses.field(
    default_factory=dict
  )
  draws: bool = False
  encodes: bool = False
  signed: bool = False
  every_test: bool = True


_ENCODER = {"candidate_encoder": lambda tower: tower}
_ESTIMATOR = {
  "frequency_estimator": lambda tower: layers.FrequencyEstimator(num_buckets=64)
}
_RANKER = {
  "ranker": lambda tower: models.Ranker(
    num_queries=_NUM_QUERIES,
    num_candidates=_NUM_CANDIDATES,
    dim=2,
    hidden_units=(),
  )
}
_WITH_COUNTS = {"candidate_counts": _COUNTS}
# One that draws and one that does not; `ops.resampling` tests all of them.
_RESAMPLERS = ("expected", "systematic")

_TASKS = {
  "ssl": _Row(tasks.SampledSoftmaxRetrieval),
  "ssl_pop": _Row(tasks.SampledSoftmaxRetrieval, _WITH_COUNTS),
  "ssl_streaming": _Row(
    tasks.SampledSoftmaxRetrieval, live=_ESTIMATOR, every_test=False
  ),
  "ssl_corrected": _Row(
    tasks.SampledSoftmaxRetrieval,
    {**_WITH_COUNTS, "loss": "logq_corrected"},
    signed=True,
  ),
  "g_tower": _Row(tasks.StreamingFrequencyRetrieval, {"num_buckets": 64}),
  "mns": _Row(
    tasks.MixedNegativeRetrieval,
    {**_WITH_COUNTS, "num_uniform": 5},
    _ENCODER,
    draws=True,
    encodes=True,
  ),
  "mns_corrected": _Row(
    tasks.MixedNegativeRetrieval,
    {"num_uniform": 5, "loss": "logq_corrected", "num_candidates": 10},
    _ENCODER | _ESTIMATOR,
    draws=True,
    encodes=True,
    signed=True,
    every_test=False,
  ),
  # A bank smaller than a batch, and made at the first call.
  "cbns": _Row(
    tasks.CrossBatchRetrieval,
    {**_WITH_COUNTS, "bank_size": 6, "warmup_steps": 0},
  ),
  "cbns_watched": _Row(
    tasks.CrossBatchRetrieval,
    {
      **_WITH_COUNTS,
      "bank_size": 11,
      "warmup_steps": 1,
      "warmup_drift": 1e-6,
      "probe_size": 3,
    },
    _ENCODER,
    every_test=False,
  ),
  "cbns_corrected": _Row(
    tasks.CrossBatchRetrieval,
    {
      **_WITH_COUNTS,
      "bank_size": 11,
      "warmup_steps": 0,
      "loss": "logq_corrected",
    },
    signed=True,
    every_test=False,
  ),
  "full_softmax": _Row(
    tasks.FullSoftmaxRetrieval,
    {"num_candidates": _NUM_CANDIDATES, "candidate_chunk_size": 4},
    _ENCODER,
    encodes=True,
  ),
  **{
    f"bir_{resampler}": _Row(
      tasks.BIRRetrieval,
      {**_WITH_COUNTS, "resampler": resampler, "num_resampled": 6},
      draws=resampler != "expected",
      every_test=resampler == "systematic",
    )
    for resampler in _RESAMPLERS
  },
  **{
    f"xir_{resampler}": _Row(
      tasks.XIRRetrieval,
      {
        **_WITH_COUNTS,
        "resampler": resampler,
        "cache_size": 8,
        "num_resampled": 6,
      },
      _ENCODER,
      draws=resampler != "expected",
      encodes=True,
      every_test=resampler == "systematic",
    )
    for resampler in _RESAMPLERS
  },
  "xir_joint": _Row(
    tasks.XIRRetrieval,
    {
      **_WITH_COUNTS,
      "cache_size": 8,
      "num_resampled": 6,
      "joint_partition": True,
      "cache_policy": "recency",
    },
    _ENCODER,
    draws=True,
    encodes=True,
    every_test=False,
  ),
  **{
    f"corr_{sampler}": _Row(
      tasks.CoRRRetrieval,
      {
        **_WITH_COUNTS,
        "sampler": sampler,
        "num_sampled": 6,
        "num_codewords": 2,
        "cache_size": 8,
      },
      _ENCODER | _RANKER,
      draws=True,
      encodes=True,
      every_test=sampler == "midx",
    )
    for sampler in ("midx", "xir")
  },
}
_METHODS = tuple(name for name, row in _TASKS.items() if row.every_test)
_DETERMINISTIC = tuple(name for name, row in _TASKS.items() if not row.draws)
# Variants of the methods; `_BY_DAY` has those with code of their own.
_VARIANTS = tuple(name for name, row in _TASKS.items() if not row.every_test)
_BY_DAY = ("cbns_watched", "xir_joint")
_AT_NIGHT = tuple(name for name in _VARIANTS if name not in _BY_DAY)
_CLASSES = tuple(dict.fromkeys(row.task for row in _TASKS.values()))

# The public base class of the tasks.
_EXEMPT = {tasks.RetrievalTask}

# A value that is not the default, for every argument of every task that is
# plain data.
_NON_DEFAULT = {
  "candidate_counts": list(_COUNTS),
  "num_resampled": 5,
  "cache_size": 12,
  "cache_weight": 0.3,
  "cache_scope": "all",
  "occurrence_decay": 0.5,
  "cache_policy": "recency",
  "loss": {
    "name": "generalized_cross_entropy",
    "power": 0.2,
    "positive_in_partition": True,
  },
  "positive_in_pool": True,
  "num_buckets": 50,
  "num_hashes": 3,
  "learning_rate": 0.25,
  "initial_gap": 3.5,
  "num_uniform": 3,
  "logq_positive": "mixture",
  "num_candidates": _NUM_CANDIDATES,
  "bank_size": 9,
  "warmup_steps": 2,
  "warmup_drift": 0.125,
  "probe_size": 4,
  "embedding_dim": _DIM,
  "balance_gradients": False,
  "candidate_chunk_size": 3,
  "num_sampled": 7,
  "num_pooled": 30,
  "sampler": "xir",
  "kl_weight": 0.5,
  "num_codewords": 3,
  "temperature": 0.2,
  "normalize": True,
  "resampler": "multinomial",
  "row_chunk_size": 3,
  "seed": 99,
  "name": "a_name",
}
# Pairs of arguments of which only one may differ from its default.
_EITHER_OR = (("candidate_counts", "frequency_estimator"),)
# Arguments of a base class that a method sets itself or fixes.
_GIVEN_ITSELF = {
  tasks.StreamingFrequencyRetrieval: {"frequency_estimator"},
  tasks.CoRRRetrieval: {"loss"},
}
# Arguments that are objects.
_LIVE = {
  "candidate_encoder": lambda: tf.keras.layers.Embedding(_NUM_CANDIDATES, _DIM),
  "frequency_estimator": lambda: layers.FrequencyEstimator(num_buckets=64),
  "ranker": lambda: _RANKER["ranker"](None),
}
# Arguments of the contract, besides a method's own ones.
_SHARED = {
  "temperature",
  "normalize",
  "remove_accidental_hits",
  "positive_in_pool",
  "cross_replica",
  "seed",
  "name",
}
_OWN = {
  tasks.SampledSoftmaxRetrieval: {"candidate_counts"},
  tasks.StreamingFrequencyRetrieval: {
    "num_buckets",
    "num_hashes",
    "learning_rate",
  },
  tasks.MixedNegativeRetrieval: {
    "candidate_counts",
    "candidate_encoder",
    "num_uniform",
  },
  tasks.CrossBatchRetrieval: {
    "candidate_counts",
    "bank_size",
    "warmup_steps",
  },
  tasks.FullSoftmaxRetrieval: {"candidate_encoder"},
  tasks.CoRRRetrieval: {"candidate_counts", "candidate_encoder", "ranker"},
  tasks.BIRRetrieval: {"candidate_counts", "num_resampled", "resampler"},
  tasks.XIRRetrieval: {
    "candidate_counts",
    "candidate_encoder",
    "cache_size",
    "num_resampled",
    "cache_weight",
    "cache_scope",
    "occurrence_decay",
    "resampler",
  },
}


def _make(name, tower=None, **kwargs):
  row = _TASKS[name]
  tower = _table(_NUM_CANDIDATES, 1) if tower is None else tower
  live = {
    key: make(tower) for key, make in row.live.items() if key not in kwargs
  }
  return row.task(**{**row.arguments, **live, **kwargs})


def _with_argument(argument):
  """Names of the rows to test an argument on: one per class that has it."""
  by_class = {
    row.task: name
    for name, row in reversed(_TASKS.items())
    if argument in _parameters(row.task)
  }
  return tuple(by_class.values())


def _parameters(task_class):
  """Constructor arguments of a task, including those of its bases."""
  return {
    name: parameter
    for parent in reversed(task_class.__mro__)
    if parent.__module__.startswith("xir_tfrs") and "__init__" in vars(parent)
    for name, parameter in inspect.signature(parent.__init__).parameters.items()
    if name != "self"
    and parameter.kind is not parameter.VAR_KEYWORD
    and name not in _GIVEN_ITSELF.get(task_class, ())
  }


def _batch(size, seed=0):
  rng = np.random.default_rng(seed)
  return (
    rng.normal(size=[size, _DIM]).astype(np.float32),
    rng.normal(size=[size, _DIM]).astype(np.float32),
    rng.integers(0, _NUM_CANDIDATES, size),
  )


def _query_ids(ids):
  return tf.cast(ids, tf.int64) % _NUM_QUERIES


def _call(task, query, candidates, ids, **kwargs):
  ids = tf.constant(ids, tf.int64)
  return task(
    tf.convert_to_tensor(query),
    tf.convert_to_tensor(candidates),
    candidate_ids=ids,
    query_ids=_query_ids(ids),
    **kwargs,
  )


class _TwoTower(tfrs.Model):
  """The README's model, for any task."""

  def __init__(self, name, **kwargs):
    super().__init__()
    self.query_tower = _table(_NUM_QUERIES, 0)
    self.candidate_tower = _table(_NUM_CANDIDATES, 1)
    self.task = _make(name, tower=self.candidate_tower, **kwargs)

  def compute_loss(self, features, training=False):
    ids = features["candidate_id"]
    return self.task(
      self.query_tower(features["query_id"]),
      self.candidate_tower(ids),
      candidate_ids=ids,
      query_ids=features["query_id"],
      sample_weight=features.get("sample_weight"),
      training=training,
    )


def _interactions(rows, seed=3, weighted=False):
  rng = np.random.default_rng(seed)
  features = {
    "query_id": rng.integers(0, _NUM_QUERIES, rows),
    "candidate_id": rng.integers(0, _NUM_CANDIDATES, rows),
  }
  if weighted:
    features["sample_weight"] = rng.random(rows).astype(np.float32)
  return features


def _to_tensors(features):
  return {key: tf.constant(value) for key, value in features.items()}


def _rows(features, rows):
  return {key: value[rows] for key, value in features.items()}


def _loss_and_gradients(model, features):
  with tf.GradientTape() as tape:
    loss = model.compute_loss(features, training=True)
  gradients = tape.gradient(loss, model.trainable_variables)
  return loss, [tf.convert_to_tensor(g) for g in gradients]


def _state(model):
  """The variables that are not trainable."""
  return {
    f"{number} {variable.name}": variable.numpy()
    for number, variable in enumerate(model.non_trainable_variables)
  }


def _descend(model, gradients):
  for variable, gradient in zip(
    model.trainable_variables, gradients, strict=True
  ):
    variable.assign_sub(0.5 * gradient)


def _cache_of(model):
  caches = [m for m in model.submodules if isinstance(m, layers.CandidateCache)]
  return caches[0] if caches else None


class CompiledTest(tf.test.TestCase, parameterized.TestCase):
  """Steps compiled by XLA, with `tf.function(jit_compile=True)`."""

  @parameterized.parameters(*_METHODS, *_BY_DAY)
  def test_compiled_steps_are_the_plain_ones(self, name):
    self.assert_compiled_are_plain(name)

  @parameterized.parameters(*_AT_NIGHT)
  @pytest.mark.slow
  def test_compiled_steps_of_variants_are_the_plain_ones(self, name):
    self.assert_compiled_are_plain(name)

  def assert_compiled_are_plain(self, name):
    found = []
    for jit in (False, True):
      model = _TwoTower(name)
      # Creates variables, which happens at the first call.
      model.compute_loss(_to_tensors(_interactions(12)))
      model.task.refresh()

      @tf.function(jit_compile=jit)
      def step(features, model=model):
        loss, gradients = _loss_and_gradients(model, features)
        _descend(model, gradients)
        return loss, gradients

      steps = [step(_to_tensors(_interactions(12, seed))) for seed in range(3)]
      self.assertEqual(step.experimental_get_tracing_count(), 1)
      found.append((steps, _state(model)))
    # The draws are the same, up to rounding.
    for plain, compiled in zip(*map(tf.nest.flatten, found), strict=True):
      self.assertAllClose(plain, compiled, rtol=1e-5, atol=1e-5)


class ApiTest(tf.test.TestCase, parameterized.TestCase):
  def test_every_public_task_is_covered(self):
    public = {
      value
      for name, value in vars(tasks).items()
      if inspect.isclass(value)
      and issubclass(value, tf.keras.layers.Layer)
      and not name.startswith("_")
    }
    self.assertEqual(public - _EXEMPT, set(_CLASSES))
    self.assertContainsSubset(set(_OWN), set(_CLASSES))

  @parameterized.parameters(*_OWN)
  def test_arguments_of_the_contract_are_keyword_only(self, task_class):
    parameters = _parameters(task_class)
    self.assertContainsSubset(_SHARED | _OWN[task_class], parameters)
    for parameter in parameters.values():
      self.assertIs(parameter.kind, inspect.Parameter.KEYWORD_ONLY)

  @parameterized.parameters(*_METHODS)
  def test_missing_candidate_ids(self, name):
    query, candidates, _ = _batch(3)
    with self.assertRaisesRegex(ValueError, "candidate_ids"):
      _make(name)(query, candidates, candidate_ids=None)
    with self.assertRaisesRegex((ValueError, TypeError), "candidate_ids"):
      _make(name)(query, candidates)

  @parameterized.parameters(
    ("temperature", 0.0),
    ("temperature", -1.0),
    ("temperature", "1"),
    ("row_chunk_size", 0),
    ("candidate_counts", [[1, 2], [3, 4]]),
    ("candidate_counts", []),
    ("candidate_counts", [3, -1]),
    ("candidate_counts", ["3", "1"]),
    ("num_resampled", 0),
    ("num_resampled", -4),
    ("resampler", "stratified"),
    ("loss", "hinge"),
    ("num_candidates", 0),
  )
  def test_bad_arguments_name_argument_and_value(self, argument, value):
    names = _with_argument(argument)
    self.assertNotEmpty(names)
    for name in names:
      with self.assertRaisesRegex(ValueError, argument) as raised:
        _make(name, **{argument: value})
      if np.isscalar(value):
        self.assertIn(str(value), str(raised.exception))

  @parameterized.parameters(*_METHODS)
  def test_unknown_arguments_are_refused(self, name):
    with self.assertRaises(TypeError):
      _make(name, temprature=0.1)

  @parameterized.parameters(
    ({"sample_weight": tf.ones([3])}, "`sample_weight`.*(3,).*(4,)"),
    ({"sample_weight": ["a"] * 4}, "`sample_weight`.*string"),
    ({"known_candidate_ids": tf.ones([3, 2], tf.int32)}, "3 entries for 4"),
    ({"known_candidate_ids": tf.ones([4, 2])}, "integers.*float32"),
  )
  def test_columns_of_another_shape_or_type_are_named(self, given, message):
    with self.assertRaisesRegex(ValueError, message):
      _call(_make("ssl"), *_batch(4), **given)

  def test_no_known_candidates_may_be_of_any_type(self):
    nothing = tf.ragged.constant([[], [], [], []])
    self.assertEqual(nothing.dtype, tf.float32)
    task, batch = _make("ssl"), _batch(4)
    self.assertEqual(
      _call(task, *batch, known_candidate_ids=nothing), _call(task, *batch)
    )

  @parameterized.parameters("xir_joint", "mns", "full_softmax")
  def test_an_encoder_of_another_shape_is_named(self, name):
    for shape in ([_DIM + 1], [1, _DIM]):
      task = _make(
        name,
        candidate_encoder=lambda ids, shape=shape: tf.ones(
          [tf.size(ids), *shape]
        ),
      )
      with self.assertRaisesRegex(ValueError, "`candidate_encoder` must map"):
        _call(task, *_batch(4))

  @parameterized.parameters(*_METHODS)
  def test_numbers_of_rows_that_differ_are_refused(self, name):
    query, candidates, ids = _batch(4)
    with self.assertRaises((ValueError, tf.errors.InvalidArgumentError)):
      _call(_make(name), query, candidates[:3], ids)
    with self.assertRaises((ValueError, tf.errors.InvalidArgumentError)):
      _call(_make(name), query, candidates, ids[:3])

  @parameterized.parameters(*_METHODS)
  def test_numbers_of_rows_found_to_differ_in_a_graph_are_refused(self, name):
    task = _make(name)

    @tf.function(
      autograph=False,
      input_signature=[*_OF_UNKNOWN_SIZE, tf.TensorSpec([None], tf.int64)],
    )
    def loss(query, candidates, ids, query_ids):
      return task(query, candidates, candidate_ids=ids, query_ids=query_ids)

    query, candidates, ids = _batch(4)
    batch = [query, candidates, ids, ids % _NUM_QUERIES]
    loss(*batch)
    # One row of three would be broadcast.
    for number, argument in (
      (0, "query_embeddings"),
      (1, "candidate_embeddings"),
      (2, ""),
      (3, "query_ids"),
    ):
      with self.assertRaisesRegex(
        tf.errors.InvalidArgumentError, f"{argument}` and `candidate_ids` must"
      ):
        loss(*batch[:number], batch[number][:1], *batch[number + 1 :])

  @parameterized.parameters("ssl", "full_softmax", "xir_systematic")
  def test_known_candidates_in_a_graph_of_unknown_batch_size(self, name):
    task, eager_task = _make(name), _make(name)
    known = tf.ragged.constant([[3], [], [1, 2], [7]], dtype=tf.int64)

    @tf.function(
      autograph=False,
      input_signature=[
        *_OF_UNKNOWN_SIZE,
        tf.RaggedTensorSpec([None, None], tf.int64),
      ],
    )
    def loss(query, candidates, ids, known):
      return task(
        query, candidates, candidate_ids=ids, known_candidate_ids=known
      )

    batch = _batch(4)
    self.assertAllClose(
      loss(*batch, known),
      _call(eager_task, *batch, known_candidate_ids=known),
      rtol=1e-5,
    )
    with self.assertRaisesRegex(
      tf.errors.InvalidArgumentError, "`known_candidate_ids` and `candidate_ids"
    ):
      loss(*batch, known[:3])

  @parameterized.parameters(*_METHODS)
  def test_embeddings_must_be_matrices(self, name):
    query, candidates, ids = _batch(4)
    for shape in ([4, 1, _DIM], [4 * _DIM]):
      with self.assertRaisesRegex(ValueError, r"must both be \[batch, dim\]"):
        _call(_make(name), query.reshape(shape), candidates.reshape(shape), ids)

  @parameterized.parameters(
    *(name for name in _METHODS if name not in ("ssl", "g_tower"))
  )
  def test_ids_outside_the_catalogue_are_refused(self, name):
    task, (query, candidates, ids) = _make(name), _batch(4)
    query_ids = _query_ids(ids)

    def call(ids):
      return task(query, candidates, candidate_ids=ids, query_ids=query_ids)

    for wrong in (-1, _NUM_CANDIDATES):
      ids[2] = wrong
      for loss in (call, tf.function(call, autograph=False)):
        with self.assertRaisesRegex(
          tf.errors.InvalidArgumentError,
          rf"dense ids below {_NUM_CANDIDATES}(.|\n)*[\s\[]{wrong}[\s\]]",
        ):
          loss(tf.constant(ids))


class ConfigTest(tf.test.TestCase, parameterized.TestCase):
  def make_non_default(self, task_class, left):
    """A task whose arguments all differ from their defaults.

    Args:
      task_class: The class.
      left: Which argument of each pair in `_EITHER_OR` to change.
    """
    parameters = _parameters(task_class)
    for pair in _EITHER_OR:
      if {*pair} <= set(parameters):
        del parameters[pair[1 - left]]
    arguments = {}
    for key, parameter in parameters.items():
      if key in _LIVE:
        arguments[key] = _LIVE[key]()
      elif isinstance(parameter.default, bool):
        arguments[key] = not parameter.default
      else:
        arguments[key] = _NON_DEFAULT[key]
        self.assertNotEqual(arguments[key], parameter.default, key)
    return task_class(**arguments), arguments

  @parameterized.product(task_class=_CLASSES, left=(0, 1))
  def test_round_trip_of_every_argument(self, task_class, left):
    task, arguments = self.make_non_default(task_class, left)
    config = task.get_config()
    for key, value in arguments.items():
      self.assertIn(key, config)
      if key in _LIVE:
        # The object itself, because a copy would not share its weights.
        self.assertIs(config[key], value)
      else:
        self.assertAllEqual(config[key], value)
    # All other arguments are plain data.
    live = {key: config.pop(key) for key in _LIVE if key in config}
    again = task_class.from_config(json.loads(json.dumps(config)) | live)
    self.assertEqual(again.get_config(), task.get_config())
    # The same arguments make the same task, not only the same config.
    batch = _batch(5)
    for t in (task, again):
      _call(t, *batch, training=False)
    before = task.get_weights()
    loss, after = _call(task, *batch, training=True), task.get_weights()
    again.set_weights(before)
    self.assertAllEqual(loss, _call(again, *batch, training=True))
    for first, second in zip(after, again.get_weights(), strict=True):
      self.assertAllEqual(first, second)

  def test_counts_may_be_arrays_or_tensors(self):
    for counts in (np.array(_COUNTS), tf.constant(_COUNTS, tf.int64)):
      task = tasks.BIRRetrieval(candidate_counts=counts)
      self.assertAllEqual(task.get_config()["candidate_counts"], _COUNTS)


class CallTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters(*_TASKS)
  def test_is_a_float32_scalar(self, name):
    loss = _call(_make(name), *_batch(5))
    self.assertEqual(loss.shape, [])
    self.assertEqual(loss.dtype, tf.float32)
    lowest = -20.0 if _TASKS[name].signed else 0.0
    self.assertAllInRange(loss, lowest, 20.0)

  @parameterized.parameters(*_METHODS)
  def test_float64_embeddings_give_a_float64_loss(self, name):
    query, candidates, ids = _batch(5)
    loss = _call(_make(name), query.astype("d"), candidates.astype("d"), ids)
    self.assertEqual(loss.dtype, tf.float64)
    self.assertAllClose(
      loss, _call(_make(name), query, candidates, ids), rtol=1e-4
    )

  @parameterized.parameters(*_METHODS)
  def test_arrays_and_lists_do_for_tensors(self, name):
    query, candidates, ids = _batch(5)
    loss = _make(name)(
      query,
      candidates,
      candidate_ids=ids.tolist(),
      query_ids=_query_ids(ids).numpy(),
      sample_weight=[1.0, 0.0, 2.0, 0.5, 1.0],
    )
    expected = _call(
      _make(name),
      query,
      candidates,
      ids,
      sample_weight=tf.constant([1.0, 0.0, 2.0, 0.5, 1.0]),
    )
    self.assertAllEqual(loss, expected)

  @parameterized.parameters(*_METHODS)
  def test_under_tf_function_with_unknown_batch_size(self, name):
    traced_task, eager_task = _make(name), _make(name)

    @tf.function(
      autograph=False,
      input_signature=_OF_UNKNOWN_SIZE,
    )
    def traced(query, candidates, ids):
      return traced_task(
        query,
        candidates,
        candidate_ids=ids,
        query_ids=_query_ids(ids),
        training=True,
      )

    for size in (4, 1, 6):
      batch = _batch(size, seed=size)
      self.assertAllClose(
        traced(*batch), _call(eager_task, *batch, training=True), rtol=1e-5
      )

  @parameterized.parameters("ssl", "xir_systematic")
  def test_ids_must_be_integers(self, name):
    query, candidates, ids = _batch(5)
    for wrong in (list("abcde"), ids.astype(np.float32)):
      with self.assertRaisesRegex(ValueError, "`candidate_ids` must be dense"):
        _make(name)(query, candidates, candidate_ids=wrong, query_ids=ids)

  def test_other_ids_must_be_integers_of_the_rows(self):
    query, candidates, ids = _batch(5)
    known, rows = [[1], [2]], [0, 1, 1, 0, 1]
    for message, wrong in (
      ("`query_ids` must be dense", {"query_ids": list("abcde")}),
      (r"`query_ids` must be \[batch\]", {"query_ids": ids[:3]}),
      (
        r"`known_rows` must be \[batch\]",
        {"known_candidate_ids": known, "known_rows": rows[:3]},
      ),
      ("give both, or neither", {"known_rows": rows}),
    ):
      with self.assertRaisesRegex(ValueError, message):
        _make("ssl")(query, candidates, candidate_ids=ids, **wrong)
    # Lists do for tensors.
    arguments = {"candidate_ids": ids, "known_candidate_ids": known}
    self.assertAllEqual(
      _make("ssl")(query, candidates, known_rows=rows, **arguments),
      _make("ssl")(
        query,
        candidates,
        candidate_ids=ids,
        known_candidate_ids=tf.gather(known, rows),
      ),
    )

  @parameterized.product(name=_METHODS, dtype=(tf.int32, tf.int64))
  def test_type_of_ids(self, name, dtype):
    query, candidates, ids = _batch(5)
    loss = _make(name)(
      query,
      candidates,
      candidate_ids=tf.constant(ids, dtype),
      query_ids=tf.cast(_query_ids(ids), dtype),
    )
    self.assertAllClose(loss, _call(_make(name), query, candidates, ids))

  @parameterized.parameters(*_TASKS)
  def test_batch_of_one(self, name):
    query, candidates, ids = (tf.constant(x) for x in _batch(1))
    with tf.GradientTape() as tape:
      tape.watch([query, candidates])
      loss = _call(_make(name), query, candidates, ids)
    self.assertAllInRange(loss, 0.0, 20.0)
    for gradient in tape.gradient(loss, [query, candidates]):
      if gradient is not None:
        self.assertAllEqual(tf.math.is_finite(gradient), [[True] * _DIM])

  @parameterized.parameters(*_METHODS)
  def test_batch_of_no_rows(self, name):
    # MultiWorkerMirroredStrategy runs such a step at the end of a dataset.
    task = _make(name)
    self.assertAllEqual(_call(task, *_batch(0), training=True), 0.0)
    for variable in task.non_trainable_variables:
      self.assertTrue(np.isfinite(variable.numpy()).all(), variable.name)

  @parameterized.parameters(*_DETERMINISTIC)
  def test_sample_weight_weighs_rows_of_a_mean(self, name):
    # sum_i w_i l_i / batch: linear in w, and l_i from unit weights.
    batch = _batch(4)
    rows = [
      float(_call(_make(name), *batch, sample_weight=tf.one_hot(i, 4)))
      for i in range(4)
    ]
    self.assertAllClose(sum(rows), _call(_make(name), *batch), rtol=1e-5)
    weights = np.array([0.0, 2.0, 0.5, 1.0], np.float32)
    self.assertAllClose(
      _call(_make(name), *batch, sample_weight=tf.constant(weights)),
      np.dot(weights, rows),
      rtol=1e-5,
    )

  @parameterized.parameters(*_METHODS)
  def test_rows_of_no_weight_get_no_gradient(self, name):
    query, candidates, ids = _batch(4)
    query = tf.constant(query)
    with tf.GradientTape() as tape:
      tape.watch(query)
      loss = _call(
        _make(name),
        query,
        candidates,
        ids,
        sample_weight=tf.constant([0.0, 1.0, 0.0, 1.0]),
      )
    gradient = tape.gradient(loss, query).numpy()
    self.assertAllEqual(np.any(gradient, -1), [False, True, False, True])

  @parameterized.parameters(*_DETERMINISTIC)
  def test_temperature_and_normalize(self, name):
    query, candidates, ids = _batch(5)
    # The embeddings are already normalized. Tasks that encode others have their
    # own reference tests.
    if _TASKS[name].encodes:
      self.skipTest("the tower's embeddings are of another scale")
    scaled = _call(
      _make(name),
      tf.math.l2_normalize(query, -1) / 0.2,
      tf.math.l2_normalize(candidates, -1),
      ids,
    )
    self.assertAllClose(
      _call(
        _make(name, temperature=0.2, normalize=True), query, candidates, ids
      ),
      scaled,
      rtol=1e-4,
    )

  @parameterized.parameters(*_DETERMINISTIC)
  def test_a_row_does_not_depend_on_the_order_of_the_batch(self, name):
    query, candidates, ids = _batch(6)
    order = np.array([3, 0, 5, 1, 4, 2])
    self.assertAllClose(
      _call(_make(name), query[order], candidates[order], ids[order]),
      _call(_make(name), query, candidates, ids),
      rtol=1e-5,
    )


class FormsTest(tf.test.TestCase, parameterized.TestCase):
  """Every form of the loss with every task, found in `FORMS`."""

  @parameterized.product(name=_METHODS, form=tuple(forms.FORMS))
  def test_a_task_takes_the_forms_that_suit_it(self, name, form):
    row = _TASKS[name]
    arguments = {"loss": form}
    if row.task.pool_kind not in forms.FORMS[form].suits:
      with self.assertRaisesRegex(
        ValueError, f"{row.task.__name__}.*'{form}'.*cross_entropy"
      ) as raised:
        _make(name, **arguments)
      # The error names the tasks that can.
      self.assertIn("SampledSoftmaxRetrieval", str(raised.exception))
      return
    if forms.FORMS[form].needs_log_q and name == "ssl":
      with self.assertRaisesRegex(ValueError, "candidate_counts"):
        _make(name, **arguments)
      arguments["candidate_counts"] = _COUNTS
    task = _make(name, **arguments)
    self.assertEqual(task.form, forms.FORMS[form]())
    for scale in (1.0, 100.0):
      query, candidates, ids = _batch(5)
      query, candidates = tf.constant(query * scale), tf.constant(candidates)
      with tf.GradientTape() as tape:
        tape.watch(query)
        loss = _call(task, query, candidates, ids)
      gradient = tape.gradient(loss, query)
      self.assertTrue(np.isfinite(loss), loss)
      self.assertTrue(np.isfinite(gradient).all())
      if scale == 1.0:
        self.assertTrue(np.any(gradient))

  @parameterized.parameters(*forms.FORMS)
  def test_positives_are_in_the_partition_once(self, form):
    arguments = {"candidate_counts": _COUNTS, "loss": form}
    make = tasks.SampledSoftmaxRetrieval
    if forms.FORMS[form]().positive_in_partition:
      make(**arguments, positive_in_pool=True)
      return
    with self.assertRaisesRegex(ValueError, f"'{form}'.*`positive_in_pool`"):
      make(**arguments, positive_in_pool=True)
    make(**arguments, positive_in_pool=False)

  @parameterized.product(
    name=("ssl_pop", "cbns", "bir_systematic", "xir_systematic"),
    form=tuple(forms.FORMS),
  )
  def test_rows_without_other_candidates_have_no_loss(self, name, form):
    if _TASKS[name].task.pool_kind not in forms.FORMS[form].suits:
      self.skipTest("not for resampled pools")
    task = _make(name, loss=form, remove_accidental_hits=True)
    if name.startswith("xir"):
      task.cache.ids.assign([4] * 8)
    query, candidates, _ = _batch(3)
    query = tf.constant(query)
    for rows in (3, 1):
      with tf.GradientTape() as tape:
        tape.watch(query)
        loss = _call(task, query[:rows], candidates[:rows], [4] * rows)
      self.assertAllEqual(loss, 0.0)
      self.assertAllEqual(tape.gradient(loss, query), tf.zeros_like(query))

  @parameterized.product(
    name=("ssl_pop", "xir_systematic"), form=tuple(forms.FORMS)
  )
  def test_terms_make_up_the_loss(self, name, form):
    if _TASKS[name].task.pool_kind not in forms.FORMS[form].suits:
      self.skipTest("not for resampled pools")
    task = _make(name, loss=form)
    query, candidates, ids = _batch(5)
    arguments = {
      "candidate_ids": tf.constant(ids),
      "sample_weight": tf.constant([1.0, 0.0, 2.0, 0.5, 1.0]),
      "known_candidate_ids": tf.ragged.constant([[], [3], [1, 2], [], [7]]),
    }
    expected = task(query, candidates, **arguments, training=False)
    loss, terms = task.loss_terms(
      query, candidates, **arguments, training=False
    )
    self.assertAllEqual(loss, expected)
    self.assertAllClose(
      sum(term.share * term.loss()[0] for term in terms), expected, rtol=1e-6
    )

  @parameterized.parameters(*_TASKS)
  def test_known_candidates_that_rows_share(self, name):
    query, candidates, ids = _batch(5)
    shared = tf.ragged.constant([[], [3], [1, 2]])
    rows = tf.constant([1, 2, 2, 0, 1])
    task = _make(name)
    arguments = {"candidate_ids": tf.constant(ids), "training": False}
    arguments["query_ids"] = tf.range(5, dtype=tf.int64)
    own = tf.gather(shared, rows)
    try:
      expected = task(query, candidates, known_candidate_ids=own, **arguments)
    except ValueError as error:
      self.assertIn("do not give any", str(error))
      return
    found = task(
      query,
      candidates,
      known_candidate_ids=shared,
      known_rows=rows,
      **arguments,
    )
    self.assertAllEqual(found, expected)


class NumericsTest(tf.test.TestCase, parameterized.TestCase):
  def assert_finite(self, name, query, candidates, ids, **kwargs):
    query, candidates = tf.constant(query), tf.constant(candidates)
    task = _make(name, **kwargs)
    with tf.GradientTape() as tape:
      tape.watch([query, candidates])
      loss = _call(task, query, candidates, ids)
    self.assertEqual(loss.dtype, tf.float32)
    self.assertTrue(np.isfinite(loss), loss)
    for gradient in tape.gradient(loss, [query, candidates]):
      self.assertTrue(np.isfinite(gradient).all())
    for variable in task.non_trainable_variables:
      self.assertTrue(np.isfinite(variable.numpy()).all(), variable.name)

  @parameterized.product(
    name=tuple(_TASKS), remove_accidental_hits=(False, True)
  )
  def test_candidates_never_trained_on(self, name, **options):
    # The authors' code computes NaN from log(0) here.
    query, candidates, _ = _batch(4)
    self.assert_finite(name, query, candidates, [2, 6, 9, 2], **options)

  @parameterized.product(
    name=tuple(_TASKS), remove_accidental_hits=(False, True)
  )
  def test_scores_of_ten_thousand(self, name, **options):
    query, candidates, ids = _batch(5)
    self.assert_finite(name, query * 100, candidates * 100, ids, **options)
    self.assert_finite(name, query, candidates, ids, temperature=1e-4)

  @parameterized.product(name=tuple(_TASKS), sign=(1, -1))
  def test_rows_that_are_all_the_same(self, name, sign):
    # Scores are exactly 1e4 or -1e4.
    query, candidates, ids = (np.repeat(x, 4, axis=0) for x in _batch(1))
    query *= 1e4 / np.sum(query[0] * candidates[0])
    self.assert_finite(name, sign * query, candidates, ids)
    # Other candidates with the same embeddings.
    self.assert_finite(name, sign * query, candidates, [0, 1, 2, 3])

  @parameterized.parameters(*_TASKS)
  def test_every_column_masked(self, name):
    query, candidates, _ = _batch(3)
    self.assert_finite(
      name, query, candidates, [4, 4, 4], remove_accidental_hits=True
    )

  @parameterized.parameters(*_TASKS)
  def test_zero_embeddings(self, name):
    query, candidates, ids = _batch(3)
    self.assert_finite(name, 0 * query, 0 * candidates, ids, normalize=True)

  @parameterized.product(
    name=_METHODS, given=((tf.float16, 40.0), (tf.float32, 1.0))
  )
  def test_mixed_float16(self, name, given):
    # TFRS returns NaN if it removes accidental hits, and refuses float32
    # embeddings. Scale 40 gives scores beyond 65504, the maximum of float16.
    cast, scale = given
    tf.keras.mixed_precision.set_global_policy("mixed_float16")
    query, candidates, ids = _batch(5)
    query = np.tile(query, [1, 16]) * scale
    candidates = np.tile(candidates, [1, 16]) * scale
    ids[1] = ids[0]
    table = _table(_NUM_CANDIDATES, 1)
    for remove_accidental_hits in (False, True):
      self.assert_finite(
        name,
        tf.cast(query, cast),
        tf.cast(candidates, cast),
        ids,
        remove_accidental_hits=remove_accidental_hits,
        tower=lambda ids: tf.tile(table(ids), [1, 16]) * scale,
      )

  @parameterized.product(name=_DETERMINISTIC, dtype=(np.float16, np.float32))
  def test_mixed_float16_computes_in_float32(self, name, dtype):
    query, candidates, ids = _batch(5)
    query, candidates = query.astype(dtype), candidates.astype(dtype)
    full = _call(
      _make(name), query.astype("float32"), candidates.astype("float32"), ids
    )
    tf.keras.mixed_precision.set_global_policy("mixed_float16")
    # Only rows of the tower's own table may lose digits in float16.
    rtol = 2e-3 if _TASKS[name].encodes else 1e-6
    self.assertAllClose(
      _call(_make(name), query, candidates, ids), full, rtol=rtol, atol=0
    )


class ModelTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters(*_METHODS)
  def test_fit_in_a_plain_tfrs_model(self, name):
    features = _interactions(64)
    # Each query has one candidate, so there is something to learn.
    features["candidate_id"] = features["query_id"]
    model = _TwoTower(name)
    model.compile(tf.keras.optimizers.Adagrad(0.3))
    dataset = tf.data.Dataset.from_tensor_slices(features).batch(16)
    before = model.evaluate(dataset, verbose=0, return_dict=True)
    history = model.fit(dataset, epochs=12, verbose=0)
    after = model.evaluate(dataset, verbose=0, return_dict=True)
    self.assertAllEqual(np.isfinite(history.history["loss"]), [True] * 12)
    self.assertLess(after["loss"], before["loss"])
    for variable in model.variables:
      self.assertTrue(np.isfinite(variable.numpy()).all(), variable.name)

  @parameterized.parameters(*_METHODS)
  def test_mixed_policies_train_like_float32(self, name):
    ids = tf.constant([0, 3, 4, 4, 8])
    results = []
    for policy in ("float32", "mixed_float16", "mixed_bfloat16"):
      tf.keras.mixed_precision.set_global_policy(policy)
      query_tower, tower = (
        models.Tower(vocabulary_size=size, dim=_DIM, seed=seed)
        for size, seed in ((_NUM_QUERIES, 1), (_NUM_CANDIDATES, 2))
      )
      model = models.TwoTower(query_tower, tower, _make(name, tower=tower))
      model.compile(tf.keras.optimizers.Adagrad(0.1))
      batch = {"query_id": ids % _NUM_QUERIES, "candidate_id": ids}
      losses = model.gradient_step(batch)
      results.append((float(losses["loss"]), query_tower.get_weights()[0]))
    (loss, weights), *others = results
    for other, learnt in others:
      self.assertAllClose(other, loss, rtol=0.01)
      self.assertAllClose(learnt, weights, atol=0.01)

  @parameterized.parameters(*_TASKS)
  def test_evaluation_moves_no_state(self, name):
    model, batch = _TwoTower(name), _to_tensors(_interactions(8))
    loss = model.compute_loss(batch, training=False)
    before = [v.numpy() for v in model.variables]
    self.assertAllEqual(model.compute_loss(batch, training=False), loss)
    for value, variable in zip(before, model.variables, strict=True):
      self.assertAllEqual(value, variable)

  @parameterized.parameters(*_TASKS)
  def test_readout_is_finite_scalars_and_moves_no_state(self, name):
    model = _TwoTower(name)
    for seed in range(3):
      for value in model.task.readout().values():
        self.assertEqual(value.shape, [])
        self.assertTrue(np.isfinite(value))
      before = [v.numpy() for v in model.variables]
      model.task.readout()
      for value, variable in zip(before, model.variables, strict=True):
        self.assertAllEqual(value, variable)
      model.compute_loss(_to_tensors(_interactions(8, seed)), training=True)
      model.task.refresh()

  @parameterized.parameters(*_TASKS)
  def test_weights_in_either_form_of_hdf5(self, name):
    batch = _to_tensors(_interactions(8))
    model, restored = _TwoTower(name), _TwoTower(name)
    for m in (model, restored):
      # Keras never builds a model of `compute_loss`.
      m.built = True
      m.compute_loss(batch, training=m is model)
    for form in ("model.h5", "model.weights.h5"):
      for variable in restored.variables:
        variable.assign(tf.zeros_like(variable))
      model.save_weights(f"{self.get_temp_dir()}/{form}")
      restored.load_weights(f"{self.get_temp_dir()}/{form}")
      for first, second in zip(
        model.variables, restored.variables, strict=True
      ):
        self.assertAllEqual(first, second)

  @parameterized.parameters(*_TASKS)
  def test_checkpoint_continues_as_if_never_stopped(self, name):
    batches = [_to_tensors(_interactions(8, seed=seed)) for seed in range(4)]
    model = _TwoTower(name)
    for batch in batches[:2]:
      _descend(model, _loss_and_gradients(model, batch)[1])
    path = tf.train.Checkpoint(model=model).save(self.get_temp_dir() + "/ckpt")
    restored = _TwoTower(name)
    # Creates the variables of towers and task.
    restored.compute_loss(batches[3], training=False)
    tf.train.Checkpoint(model=restored).restore(path).assert_consumed()
    for batch in batches[2:]:
      for m in (model, restored):
        _descend(m, _loss_and_gradients(m, batch)[1])
    self.assertEqual(len(model.variables), len(restored.variables))
    for first, second in zip(model.variables, restored.variables, strict=True):
      self.assertAllEqual(first, second)


class KerasLossesTest(tf.test.TestCase, parameterized.TestCase):
  """What towers add to a loss: `add_loss`, activity regularizers."""

  @parameterized.parameters(
    *(name for name, row in _TASKS.items() if row.encodes and row.every_test),
    "cbns_watched",
  )
  def test_candidates_of_the_batch_count_and_no_others(self, name):
    model = _TwoTower(name)
    tower = model.candidate_tower
    tower.activity_regularizer = tf.keras.regularizers.L2(1.0)
    batch = _to_tensors(_interactions(8))

    @tf.function
    def traced():
      model.compute_loss(batch, training=True)
      return model.losses

    model.compute_loss(batch, training=True)
    expected = np.sum(tower(batch["candidate_id"]).numpy() ** 2) / 8
    for _ in range(2):
      model.compute_loss(batch, training=True)
      self.assertAllClose(model.losses, [expected])
      self.assertAllClose(traced(), [expected])


class TwoReplicasTest(tf.test.TestCase, parameterized.TestCase):
  """Two replicas with half of the rows each match one replica with all."""

  @pytest.fixture(autouse=True)
  def _use(self, two_replicas):
    self.strategy = two_replicas

  def train_on_one(self, name, batches, **kwargs):
    """Returns (model, losses, gradients of the last step) of plain SGD."""
    model = _TwoTower(name, **kwargs)
    losses = []
    for batch in batches:
      loss, gradients = _loss_and_gradients(model, _to_tensors(batch))
      _descend(model, gradients)
      losses.append(float(loss))
    return model, losses, gradients

  def train_on_two(self, name, batches, cut=None, graph=False, **kwargs):
    """The same, with rows [0, cut) on one replica and the rest on the other.

      Losses and gradients are summed over replicas, as in an optimizer. Runs
    eagerly, because tracing both replicas takes longer than a few steps.
    """
    strategy = self.strategy
    with strategy.scope():
      model = _TwoTower(name, **kwargs)

    def step(features):
      shares = strategy.run(
        lambda f: _loss_and_gradients(model, f), args=(features,)
      )
      return strategy.reduce(tf.distribute.ReduceOp.SUM, shares, axis=None)

    if graph:
      step = tf.function(step, autograph=False)
    losses = []
    for batch in batches:
      rows = len(batch["query_id"])
      middle = rows // 2 if cut is None else cut
      parts = (slice(0, middle), slice(middle, rows))
      features = strategy.experimental_distribute_values_from_function(
        lambda context, batch=batch, parts=parts: _to_tensors(
          _rows(batch, parts[context.replica_id_in_sync_group])
        )
      )
      loss, gradients = step(features)
      _descend(model, gradients)
      losses.append(float(loss))
    return model, losses, gradients

  def assert_same_state(self, model_1, model_2):
    """Compares the states of two models, and of the second's replicas."""
    for first, second in zip(
      model_1.task.non_trainable_variables,
      model_2.task.non_trainable_variables,
      strict=True,
    ):
      if first.dtype.is_floating:
        self.assertAllClose(first, second, 1e-5, 1e-6, msg=first.name)
      else:
        self.assertAllEqual(first, second, msg=first.name)
    self.assert_replicas_agree(model_2)

  def assert_replicas_agree(self, model):
    for variable in model.variables:
      for copy in variable.values:
        self.assertAllEqual(copy, variable.values[0], msg=variable.name)

  def assert_same_training(self, one, two):
    model_1, losses_1, gradients_1 = one
    model_2, losses_2, gradients_2 = two
    self.assertAllClose(losses_1, losses_2, rtol=1e-5, atol=1e-6)
    for first, second in zip(gradients_1, gradients_2, strict=True):
      self.assertAllClose(first, second, rtol=1e-5, atol=1e-6)
    self.assert_same_state(model_1, model_2)
    self.assertAllClose(
      model_1.task.readout(), model_2.task.readout(), rtol=1e-4, atol=1e-5
    )

  # The other methods are tested below, with weights and masks.
  @parameterized.parameters("ssl_pop", "xir_systematic", *_BY_DAY)
  def test_equal_shares(self, name):
    self.assert_equal_shares(name)

  @parameterized.parameters(*_AT_NIGHT)
  @pytest.mark.slow
  def test_equal_shares_of_variants(self, name):
    self.assert_equal_shares(name)

  def assert_equal_shares(self, name):
    # The second step uses the cache that the first one drew.
    batches = [_interactions(8, seed=seed) for seed in range(2)]
    one = self.train_on_one(name, batches)
    two = self.train_on_two(name, batches)
    self.assert_same_training(one, two)
    if name == "xir_systematic":
      # Integers must be identical, not only close.
      self.assertAllEqual(
        _cache_of(one[0]).occurrence_counts,
        _cache_of(two[0]).occurrence_counts,
      )

  @parameterized.product(
    name=("cbns", "xir_systematic"), form=tuple(forms.FORMS)
  )
  @pytest.mark.slow
  def test_equal_shares_with_every_form(self, name, form):
    if _TASKS[name].task.pool_kind not in forms.FORMS[form].suits:
      self.skipTest("not for resampled pools")
    batches = [_interactions(8)]
    self.assert_same_training(
      self.train_on_one(name, batches, loss=form),
      self.train_on_two(name, batches, loss=form),
    )

  @parameterized.parameters(*_METHODS)
  def test_uneven_shares_weights_and_masks(self, name):
    # The last batch of an epoch: 5 rows here, 3 there.
    options = {"remove_accidental_hits": True, "positive_in_pool": False}
    batches = [_interactions(8, seed=seed, weighted=True) for seed in range(3)]
    self.assert_same_training(
      self.train_on_one(name, batches, **options),
      self.train_on_two(name, batches, cut=5, graph=True, **options),
    )

  @parameterized.parameters(
    *(name for name in _METHODS if name in _DETERMINISTIC),
    "mns",
    "bir_expected",
    "xir_expected",
  )
  def test_without_cross_replica_each_pool_is_local(self, name):
    # The loss remains a mean over the global batch: the mean of two problems
    # with half of the rows each and the same cache.
    batch = _interactions(8)
    model, losses, _ = self.train_on_two(name, [batch], cross_replica=False)
    halves = [
      self.train_on_one(name, [_rows(batch, part)])
      for part in (slice(0, 4), slice(4, 8))
    ]
    self.assertAllClose(
      losses[0], np.mean([losses for _, losses, _ in halves]), rtol=1e-5
    )
    # The state stays consistent: both copies have the draws of both replicas.
    self.assert_replicas_agree(model)
    cache = _cache_of(model)
    if cache is not None:
      self.assertAllClose(
        cache.occurrence_counts,
        sum(_cache_of(m).occurrence_counts for m, _, _ in halves),
      )

  @parameterized.parameters("ssl_pop", "cbns", "full_softmax", "xir_systematic")
  @pytest.mark.slow
  def test_fit_under_a_strategy(self, name):
    features = _interactions(32)
    dataset = tf.data.Dataset.from_tensor_slices(features).batch(8)
    models = []
    for strategy in (tf.distribute.get_strategy(), self.strategy):
      with strategy.scope():
        model = _TwoTower(name)
        model.compile(tf.keras.optimizers.SGD(0.5))
      model.fit(dataset, epochs=1, verbose=0)
      models.append(model)
    for first, second in zip(
      *(model.trainable_variables for model in models), strict=True
    ):
      self.assertAllClose(first, second, rtol=1e-5, atol=1e-5)
    self.assert_same_state(*models)


if __name__ == "__main__":
  tf.test.main()
