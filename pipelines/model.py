"""From a schema and a config to a model: the towers, and the tasks by name."""

from collections.abc import Callable

import tensorflow as tf

import xir_tfrs as xir
from pipelines import configs, records
from pipelines import schema as schema_lib

# What a task needs to know.
TaskBuilder = Callable[
  [configs.TrainConfig, records.Table, tf.keras.Model], tf.keras.layers.Layer
]


def build(
  config: configs.TrainConfig,
  schema: schema_lib.Schema,
  queries: records.Table,
  candidates: records.Table,
) -> xir.models.TwoTower:
  """The model of a run, with its initial values.

  Args:
    config: The run.
    schema: The data.
    queries: Table of queries.
    candidates: Table of candidates, with their training counts.

  Returns:
    A `TwoTower` with the task that `config.task` names.
  """
  query_tower = _tower(
    config,
    "query_tower",
    queries,
    schema.query_features,
    config.query_hidden,
    seed=config.seed,
  )
  candidate_tower = _tower(
    config,
    "candidate_tower",
    candidates,
    schema.candidate_features,
    config.candidate_hidden,
    seed=config.seed + 500_000,
  )
  task = TASKS[config.task](config, candidates, candidate_tower)
  return xir.models.TwoTower(query_tower, candidate_tower, task)


def _tower(config, name, table, features, hidden, seed) -> xir.models.Tower:
  used = [f.feature() for f in features] if config.use_features else []
  return xir.models.Tower(
    vocabulary_size=len(table.ids),
    dim=config.dim,
    features=used,
    columns=table.columns,
    hidden_units=hidden,
    init_stddev=config.init_stddev,
    seed=seed,
    name=name,
  )


def _ssl(config, candidates, candidate_tower):
  del candidates, candidate_tower
  return xir.tasks.SampledSoftmaxRetrieval(**_shared(config, 0.1))


def _ssl_pop(config, candidates, candidate_tower):
  del candidate_tower
  return xir.tasks.SampledSoftmaxRetrieval(
    candidate_counts=candidates.counts, **_shared(config, 0.1)
  )


def _bir(config, candidates, candidate_tower):
  del candidate_tower
  return xir.tasks.BIRRetrieval(
    candidate_counts=candidates.counts,
    num_resampled=config.num_resampled,
    resampler=config.resampler,
    **_shared(config, 0.2),
  )


def _xir(config, candidates, candidate_tower):
  return xir.tasks.XIRRetrieval(
    candidate_counts=candidates.counts,
    candidate_encoder=candidate_tower,
    cache_size=config.cache_size,
    num_resampled=config.num_resampled,
    cache_weight=config.cache_weight,
    cache_scope=config.cache_scope,
    occurrence_decay=config.occurrence_decay,
    resampler=config.resampler,
    **_shared(config, 0.2),
  )


TASKS: dict[str, TaskBuilder] = {
  "ssl": _ssl,
  "ssl_pop": _ssl_pop,
  "bir": _bir,
  "xir": _xir,
}


def _shared(config: configs.TrainConfig, cosine_temperature: float) -> dict:
  temperature = config.temperature
  if temperature is None:
    temperature = cosine_temperature if config.normalize else 1.0
  shared = {
    "temperature": temperature,
    "normalize": config.normalize,
    "remove_accidental_hits": config.remove_accidental_hits,
    "row_chunk_size": config.row_chunk_size,
    "seed": config.seed,
  }
  if config.positive_in_pool is not None:
    shared["positive_in_pool"] = config.positive_in_pool
  return shared


def optimizer(
  config: configs.TrainConfig, steps_per_epoch: float
) -> tf.keras.optimizers.Optimizer:
  """The optimizer of a run, with its learning rate schedule."""
  rate = config.learning_rate
  if config.learning_rate_decay != 1.0:
    rate = tf.keras.optimizers.schedules.ExponentialDecay(
      rate,
      decay_steps=round(config.decay_epochs * steps_per_epoch),
      decay_rate=config.learning_rate_decay,
      staircase=True,
    )
  if config.optimizer == "lazy_adam":
    return xir.optimizers.LazyAdam(rate)
  if config.optimizer == "coupled_l2_adam":
    return xir.optimizers.CoupledL2Adam(rate, l2=config.l2)
  if config.optimizer == "adam":
    return tf.keras.optimizers.Adam(rate)
  return tf.keras.optimizers.Adagrad(rate)
