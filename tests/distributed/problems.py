"""Small problems for one device, replicas and workers.

Towers, batches and steps are the same; only the strategy and the division of
batches among replicas differ.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from xir_tfrs import models, optimizers, tasks

DIM = 4
NUM_QUERIES = 7
# Candidates 2, 6 and 9 have no training interaction.
COUNTS = (5, 1, 0, 40, 7, 2, 0, 3, 11, 0)
NUM_CANDIDATES = len(COUNTS)

Features = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Method:
  """A row of `METHODS`.

  Attributes:
    make: (candidate tower, training counts, further arguments) -> task.
    exact: Whether all state is integers, or drawn from integers.
  """

  make: Callable[..., tf.keras.layers.Layer]
  exact: bool = True


def _bir(resampler):
  def make(tower, counts, **kwargs):
    del tower
    return tasks.BIRRetrieval(
      candidate_counts=counts, resampler=resampler, num_resampled=6, **kwargs
    )

  return make


def _xir(resampler):
  def make(tower, counts, **kwargs):
    return tasks.XIRRetrieval(
      candidate_counts=counts,
      candidate_encoder=tower,
      resampler=resampler,
      num_resampled=6,
      cache_size=8,
      **kwargs,
    )

  return make


def _corr(tower, counts, *, num_queries=None, history_length=None, **kwargs):
  ranker = models.Ranker(
    num_queries=num_queries,
    num_candidates=len(counts),
    kind="din" if history_length else "deepfm",
    history_length=history_length,
    dim=2,
    hidden_units=(3,),
    init_stddev=0.5,
  )
  return tasks.CoRRRetrieval(
    candidate_counts=counts,
    candidate_encoder=tower,
    ranker=ranker,
    num_sampled=5,
    num_codewords=2,
    **kwargs,
  )


# A new task needs a row here.
METHODS = {
  "ssl": Method(lambda tower, counts, **k: tasks.SampledSoftmaxRetrieval(**k)),
  "ssl_pop": Method(
    lambda tower, counts, **k: tasks.SampledSoftmaxRetrieval(
      candidate_counts=counts, **k
    )
  ),
  "bir": Method(_bir("systematic")),
  "bir_expected": Method(_bir("expected"), exact=False),
  "xir": Method(_xir("systematic")),
  "xir_expected": Method(_xir("expected"), exact=False),
  "mns": Method(
    lambda tower, counts, **k: tasks.MixedNegativeRetrieval(
      candidate_counts=counts, candidate_encoder=tower, num_uniform=5, **k
    )
  ),
  "g_tower": Method(
    lambda tower, counts, **k: tasks.StreamingFrequencyRetrieval(
      num_buckets=2 * len(counts), **k
    )
  ),
  "cbns": Method(
    lambda tower, counts, **k: tasks.CrossBatchRetrieval(
      candidate_counts=counts,
      candidate_encoder=tower,
      bank_size=12,
      warmup_steps=2,
      probe_size=4,
      **k,
    )
  ),
  "full_softmax": Method(
    lambda tower, counts, **k: tasks.FullSoftmaxRetrieval(
      candidate_encoder=tower, **k
    )
  ),
  "corr": Method(_corr),
}


def build(
  method: str,
  *,
  counts: Sequence[int] = COUNTS,
  num_queries: int = NUM_QUERIES,
  **kwargs,
) -> models.TwoTower:
  """The model, always with the same initial values."""
  towers = [
    models.Tower(vocabulary_size=size, dim=DIM, init_stddev=1.0, seed=seed)
    for seed, size in enumerate((num_queries, len(counts)))
  ]
  if method == "corr":
    kwargs["num_queries"] = num_queries
  task = METHODS[method].make(towers[1], counts, **kwargs)
  return models.TwoTower(*towers, task)


def batch(rows: int, seed: int, weighted: bool = False) -> Features:
  rng = np.random.default_rng(seed)
  features = {
    "query_id": rng.integers(0, NUM_QUERIES, rows),
    "candidate_id": rng.integers(0, NUM_CANDIDATES, rows),
  }
  if weighted:
    features["sample_weight"] = rng.uniform(0.5, 2.0, rows).astype(np.float32)
  return features


# How a batch is divided: name, rows and, by number of replicas, the start and
# end of each replica's rows.
SHARES: dict[str, tuple[int, dict[int, list[int]]]] = {
  "even": (6, {2: [0, 3, 6], 3: [0, 2, 4, 6]}),
  "uneven": (8, {2: [0, 5, 8], 3: [0, 1, 4, 8]}),
  "a replica without rows": (7, {2: [0, 7, 7], 3: [0, 3, 3, 7]}),
  "not divisible": (7, {2: [0, 4, 7], 3: [0, 3, 5, 7]}),
  "fewer rows than replicas": (1, {2: [0, 0, 1], 3: [0, 0, 1, 1]}),
  "even again": (6, {2: [0, 3, 6], 3: [0, 2, 4, 6]}),
}


def cuts(rows: int, share: str, replicas: int) -> list[int]:
  return [0, rows] if replicas == 1 else SHARES[share][1][replicas]


def train(
  strategy: tf.distribute.Strategy, method: str, **kwargs
) -> dict[str, np.ndarray]:
  """A step of plain SGD for each of `SHARES`.

  Returns:
    By name: "loss/STEP", "gradient/STEP/VARIABLE" and "state/STEP/VARIABLE" of
    the task's state after the step, and "apart", the largest difference between
    copies of a variable on the replicas of this process.
  """
  replicas = strategy.num_replicas_in_sync
  with strategy.scope():
    model = build(method, **kwargs)
  model.task.refresh()

  @tf.function(autograph=False, reduce_retracing=True)
  def step(features, cuts):
    def on_replica():
      number = tf.distribute.get_replica_context().replica_id_in_sync_group
      rows = slice(cuts[number], cuts[number + 1])
      own = {name: column[rows] for name, column in features.items()}
      with tf.GradientTape() as tape:
        loss = model.compute_loss(own, training=True)
      gradients = tape.gradient(loss, model.trainable_variables)
      return loss, [tf.convert_to_tensor(g) for g in gradients]

    loss, gradients = strategy.run(on_replica)
    total = functools.partial(strategy.reduce, "SUM", axis=None)
    return total(loss), [total(gradient) for gradient in gradients]

  signature = {
    name: tf.TensorSpec([None], tf.as_dtype(column.dtype))
    for name, column in batch(1, 0, weighted=True).items()
  }
  step = step.get_concrete_function(
    signature, tf.TensorSpec([replicas + 1], tf.int64)
  )
  results = {}
  for number, (name, (rows, _)) in enumerate(SHARES.items()):
    features = batch(rows, seed=number, weighted=True)
    loss, gradients = step(
      {key: tf.constant(value) for key, value in features.items()},
      tf.constant(cuts(rows, name, replicas), tf.int64),
    )
    results[f"loss/{name}"] = loss.numpy()
    for index, gradient in enumerate(gradients):
      results[f"gradient/{name}/{index}"] = gradient.numpy()
      model.trainable_variables[index].assign_sub(0.1 * gradient)
    for index, variable in enumerate(model.task.non_trainable_variables):
      results[f"state/{name}/{index} {_name_of(variable)}"] = variable.numpy()
  results["apart"] = np.array(apart(model.variables))
  return results


def train_on_nothing(strategy: tf.distribute.Strategy) -> None:
  """A training step on a batch of no rows."""
  with strategy.scope():
    model = build("ssl_pop")
    model.compile(optimizers.LazyAdam(0.05))
    model.optimizer.build(model.trainable_variables)

  @tf.function(autograph=False)
  def step(features):
    strategy.run(model.train_step, args=(features,))

  empty = batch(0, seed=0)
  step({name: tf.constant(column) for name, column in empty.items()})


# Name -> arguments of `fit`.
FITS = {
  "several steps per execution": {"rows": 32, "steps_per_execution": 2},
  # The last batch of an epoch is a single row, so some replicas have none.
  # Keras finds the end by a step without a batch, which must not count.
  "unannounced end": {"rows": 25, "announced": False},
}


def fit(
  strategy: tf.distribute.Strategy,
  method: str,
  *,
  rows: int,
  announced: bool = True,
  steps_per_execution: int = 1,
) -> dict[str, np.ndarray]:
  """Two epochs of `model.fit` in batches of 8 rows, with LazyAdam.

  Args:
    strategy: The strategy to run with.
    method: A name in `METHODS`.
    rows: Rows of the dataset. TensorFlow refuses a smaller last batch in the
      same execution as others, because collectives have fixed shapes.
    announced: Whether the dataset knows its length. If not, Keras finds its end
      by a step without a batch.
    steps_per_execution: See `compile`.

  Returns:
    By name: "loss" of the epochs, "weight/INDEX", "state/INDEX", and "apart"
    as in `train`.
  """
  with strategy.scope():
    model = build(method)
    model.compile(
      optimizers.LazyAdam(0.05), steps_per_execution=steps_per_execution
    )
    # Keras would otherwise trace the first step twice.
    model.optimizer.build(model.trainable_variables)
  dataset = tf.data.Dataset.from_tensor_slices(batch(rows, seed=0)).batch(8)
  if not announced:
    dataset = dataset.filter(lambda _: True)
  options = tf.data.Options()
  options.experimental_distribute.auto_shard_policy = (
    tf.data.experimental.AutoShardPolicy.DATA
  )
  history = model.fit(dataset.with_options(options), epochs=2, verbose=0)
  results = {
    "loss": np.array(history.history["loss"]),
    "apart": np.array(apart(model.variables)),
  }
  for index, variable in enumerate(model.trainable_variables):
    results[f"weight/{index}"] = variable.numpy()
  for index, variable in enumerate(model.task.non_trainable_variables):
    results[f"state/{index} {_name_of(variable)}"] = variable.numpy()
  return results


def apart(variables: Sequence[tf.Variable]) -> float:
  """The largest difference between copies of a variable on replicas."""
  distances = [0.0]
  for variable in variables:
    first, *others = getattr(variable, "values", [variable])
    for other in others:
      distances.append(float(np.abs(other - first).max(initial=0)))
  return max(distances)


def _name_of(variable: tf.Variable) -> str:
  """The name without its layer's, which Keras numbers in each process."""
  return variable.name.rpartition("/")[2]


def assert_same(
  got: dict[str, np.ndarray], expected: dict[str, np.ndarray], *, exact: bool
) -> None:
  """Compares results of `train` or `fit` with those of one device.

  Floats must agree to 1e-5 of the largest value in their tensor, or to what
  float32 loses in sums of terms near 1 that cancel out. Integers must be equal,
  and also all state of methods that are `exact`.
  """
  assert got.keys() == expected.keys()
  for name, value in expected.items():
    if name == "apart":
      assert got[name] == 0.0
    elif name.startswith("state/") and (
      value.dtype == np.int64 or (exact and value.dtype == np.float64)
    ):
      np.testing.assert_array_equal(got[name], value, name)
    else:
      np.testing.assert_allclose(
        got[name],
        value,
        rtol=0,
        atol=1e-5 * np.abs(value).max(initial=0) + 5e-7,
        err_msg=name,
      )
