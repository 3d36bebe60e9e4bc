"""Builds towers, ranker, task and optimizer from a config and the data."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

import xir_tfrs as xir
from pipelines.training import config as configs
from pipelines.training import methods
from xir_tfrs.data import schema as schema_lib
from xir_tfrs.data import tables
from xir_tfrs.programs import settings

# Proposals that do not come from the training counts.
_NO_COUNTS = ("none", "streaming")
# Names allowed in --optimizer_arguments, if the optimizer has them.
_OF_RULES = (
  "beta_1",
  "beta_2",
  "epsilon",
  "amsgrad",
  "initial_accumulator_value",
  "weight_decay",
  "clipnorm",
  "clipvalue",
  "global_clipnorm",
)
# Default number of tables of a frequency estimate.
_NUM_HASHES = 4


def form_of_loss(config: configs.TrainConfig) -> xir.ops.forms.Form:
  """Returns the form of a run's loss.

  Raises:
    SettingsError: The form or one of its settings does not exist.
  """
  name = str(config.resolved.loss)
  form = xir.ops.forms.FORMS.get(name)
  if form is None:
    raise settings.SettingsError(
      f"--loss must be one of {', '.join(xir.ops.forms.FORMS)}. "
      f"Received: {name!r}."
    )
  known = [field.name for field in dataclasses.fields(form)]
  owner = f"--loss {name}"
  _require_known("loss_arguments", owner, config, known, noun="setting")
  with settings.naming(owner):
    return xir.ops.forms.build({"name": name, **config.loss_arguments})


def _require_known(
  setting: str,
  owner: str,
  config: configs.TrainConfig,
  known: Sequence[str],
  noun: str = "argument",
) -> None:
  """Raises SettingsError for an unknown name in --SETTING."""
  for name in getattr(config, setting):
    if name not in known:
      raise settings.SettingsError(
        f"--{setting}: {owner} has no {noun} {name!r}. It has: "
        f"{', '.join(known) or 'none'}."
      )


def build(
  config: configs.TrainConfig,
  schema: schema_lib.Schema,
  queries: tables.Table,
  candidates: tables.Table,
) -> xir.models.TwoTower:
  """Builds the model of a run, with its initial values.

  Args:
    config: The config of the run.
    schema: The schema of the data.
    queries: Table of queries.
    candidates: Table of candidates, with their training counts.

  Returns:
    A `TwoTower` with the task `config.task`.

  Raises:
    SettingsError: The task refuses a setting.
  """
  config = config.for_data(schema)
  query_tower = None
  if config.query_tower != "history":
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
  if config.query_tower != "id":
    query_tower = _history_tower(config, candidate_tower, query_tower)
  with settings.naming(f"--task {config.task}"):
    task = _task(config, query_tower, candidate_tower, candidates.counts)
  return xir.models.TwoTower(query_tower, candidate_tower, task)


def _tower(config, name, table, features, hidden, seed) -> xir.models.Tower:
  used = [f.feature() for f in features] if config.use_features else []
  return xir.models.Tower(
    vocabulary_size=len(table),
    dim=config.dim,
    features=used,
    columns=table.columns,
    hidden_units=hidden,
    init_stddev=config.embedding_stddev,
    seed=seed,
    name=name,
  )


def _history_tower(
  config: configs.TrainConfig,
  candidate_tower: xir.models.Tower,
  query_tower: xir.models.Tower | None,
) -> xir.models.HistoryTower:
  """A tower over histories, and over ids if there is a tower of ids."""
  known = history_argument_names(config.history_encoder)
  owner = f"--history_encoder {config.history_encoder}"
  _require_known("history_arguments", owner, config, known)
  with settings.naming(owner):
    return xir.models.HistoryTower(
      candidate_tower,
      config.history_encoder,
      config.history_length,
      query_tower,
      encoder_arguments=config.history_arguments,
      dropout=config.history_dropout,
      seed=config.seed + 750_000,
      name="history_tower",
    )


def history_argument_names(encoder: str) -> list[str]:
  """Names allowed in --history_arguments: arguments of the encoder."""
  init = xir.layers.history.ENCODERS[encoder].__init__
  return [
    name
    for name, parameter in inspect.signature(init).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
  ]


def _ranker(
  config: configs.TrainConfig,
  query_tower: xir.models.Tower | xir.models.HistoryTower,
  candidate_tower: xir.models.Tower,
) -> xir.models.Ranker:
  """CoRR's ranker; it shares the towers' side features, not their weights.

  It encodes queries from the same inputs as the retriever: ids or histories.
  """
  history_length, of_ids = None, query_tower
  if config.query_tower != "id":
    history_length, of_ids = config.history_length, query_tower.query_tower
  return xir.models.Ranker(
    num_queries=None if of_ids is None else of_ids.vocabulary_size,
    num_candidates=candidate_tower.vocabulary_size,
    kind=config.ranker,
    history_length=history_length,
    dim=config.ranker_dim,
    hidden_units=config.ranker_hidden,
    query_table=query_tower.table,
    candidate_table=candidate_tower.table,
    seed=config.seed + 250_000,
    name="ranker",
  )


def parameters(task: type) -> list[str]:
  """Names of the constructor arguments of a task and its base classes."""
  found: dict[str, inspect.Parameter] = {}
  for parent in task.__mro__:
    init = vars(parent).get("__init__")
    if parent is tf.keras.layers.Layer:
      break
    if init is not None:
      found = dict(inspect.signature(init).parameters) | found
  return [
    name
    for name, parameter in found.items()
    if parameter.kind is parameter.KEYWORD_ONLY and name != "name"
  ]


def _task(
  config: configs.TrainConfig,
  query_tower: xir.models.Tower,
  candidate_tower: xir.models.Tower,
  counts: np.ndarray,
) -> xir.tasks.RetrievalTask:
  method = methods.TASKS[config.task]
  _require_log_q(config)
  given = _task_arguments(config)
  values = settings.values_of(config) | given
  # Arguments that depend on several settings or on the data.
  made: dict[str, Callable[[], Any]] = {
    "candidate_counts": lambda: _candidate_counts(config, counts, given),
    "candidate_encoder": lambda: candidate_tower,
    "frequency_estimator": lambda: _frequency_estimator(
      config, len(counts), given
    ),
    "loss": lambda: form_of_loss(config),
    "num_buckets": lambda: _num_buckets(config, len(counts), given),
    "num_hashes": lambda: given.get("num_hashes", _NUM_HASHES),
    "ranker": lambda: _ranker(config, query_tower, candidate_tower),
    "temperature": lambda: config.resolved.temperature,
  }
  arguments = {}
  for name in parameters(method.task):
    value = values.get(method.settings.get(name, name))
    if name in made:
      value = made[name]()
    if value is not None:
      arguments[name] = value
  return method.task(**arguments)


def task_argument_names(config: configs.TrainConfig) -> list[str]:
  """Names allowed in --task_arguments: no flag sets them, nor the data."""
  method = methods.TASKS[config.task]
  arguments = parameters(method.task)
  names = {method.settings.get(name, name) for name in arguments}
  names -= {"candidate_encoder", "frequency_estimator", "ranker"}
  if "candidate_counts" in names and _log_q(config) not in _NO_COUNTS:
    names.add("popularity")
  names.discard("candidate_counts")
  if _log_q(config) == "streaming":
    names |= {"num_hashes", "frequency_learning_rate"}
  return sorted(names - settings.values_of(config).keys())


def _task_arguments(config: configs.TrainConfig) -> dict[str, Any]:
  """Returns --task_arguments after checking their names."""
  known = task_argument_names(config)
  for name in config.task_arguments:
    if name in settings.values_of(config):
      raise settings.SettingsError(
        f"--task_arguments: {name} has a flag, --{name}."
      )
  _require_known("task_arguments", f"--task {config.task}", config, known)
  return config.task_arguments


def _log_q(config: configs.TrainConfig) -> str | None:
  """The proposal; None if it is part of the method."""
  return config.log_q or methods.TASKS[config.task].log_q


def _require_log_q(config: configs.TrainConfig) -> None:
  """Refuses --log_q none where the task or the loss needs a proposal."""
  if _log_q(config) != "none":
    return
  if config.task == "mns":
    what = "--task mns"
  elif form_of_loss(config).needs_log_q:
    what = f"--loss {config.loss}"
  else:
    return
  raise settings.SettingsError(
    f"{what} needs --log_q popularity or streaming. Received: "
    f"--task {config.task} --log_q none."
  )


def _candidate_counts(
  config: configs.TrainConfig, counts: np.ndarray, given: dict[str, Any]
) -> np.ndarray | None:
  """[num_candidates] int64, proportional to the popularity."""
  if _log_q(config) in _NO_COUNTS:
    return None
  popularity = given.get("popularity", "rows")
  if popularity == "rows":
    return counts
  if popularity != "log_rows":
    raise settings.SettingsError(
      "--task_arguments: popularity must be rows or log_rows. "
      f"Received: {popularity!r}."
    )
  # As in early code of the XIR paper, scaled because tasks take whole numbers.
  return np.rint(1e6 * np.log1p(counts)).astype(np.int64)


def _frequency_estimator(
  config: configs.TrainConfig, num_candidates: int, given: dict[str, Any]
) -> xir.layers.FrequencyEstimator | None:
  """The estimator that replaces the counts with --log_q streaming."""
  if _log_q(config) != "streaming":
    return None
  return xir.layers.FrequencyEstimator(
    num_buckets=_num_buckets(config, num_candidates, given),
    num_hashes=given.get("num_hashes", _NUM_HASHES),
    learning_rate=given.get("frequency_learning_rate", 0.01),
    # Estimates the share of rows, like counts. G-Tower follows its paper.
    count_appearances=True,
    seed=config.seed,
  )


def _num_buckets(
  config: configs.TrainConfig, num_candidates: int, given: dict[str, Any]
) -> int:
  """Cells per table: eight per candidate in all tables together."""
  if config.num_buckets is not None:
    return config.num_buckets
  return -(-8 * num_candidates // max(given.get("num_hashes", _NUM_HASHES), 1))


def optimizer(
  config: configs.TrainConfig, steps_per_epoch: float
) -> tf.keras.optimizers.Optimizer:
  """Builds the optimizer of a run, with its learning rate schedule.

  Args:
    config: The config of the run.
    steps_per_epoch: Training rows / rows per step; may be less than 1.
  """
  rate = config.learning_rate
  if config.learning_rate_schedule == "cosine":
    rate = tf.keras.optimizers.schedules.CosineDecay(
      rate, decay_steps=_steps(config.epochs, steps_per_epoch)
    )
  elif config.learning_rate_decay != 1.0:
    rate = tf.keras.optimizers.schedules.ExponentialDecay(
      rate,
      decay_steps=_steps(config.decay_epochs, steps_per_epoch),
      decay_rate=config.learning_rate_decay,
      staircase=True,
    )
  return _optimizer(config, rate)


def _optimizer(
  config: configs.TrainConfig, rate: Any
) -> tf.keras.optimizers.Optimizer:
  kinds = {
    "lazy_adam": xir.optimizers.LazyAdam,
    "coupled_l2_adam": xir.optimizers.CoupledL2Adam,
    "adam": tf.keras.optimizers.Adam,
    "adagrad": tf.keras.optimizers.Adagrad,
  }
  kind = kinds[config.optimizer]
  own = {"l2": config.l2} if config.optimizer == "coupled_l2_adam" else {}
  # Our optimizers take the same arguments as Adam.
  named = kind if config.optimizer == "adagrad" else tf.keras.optimizers.Adam
  known = [
    name for name in inspect.signature(named).parameters if name in _OF_RULES
  ]
  owner = f"--optimizer {config.optimizer}"
  _require_known("optimizer_arguments", owner, config, known)
  with settings.naming(owner):
    return kind(rate, **own, **config.optimizer_arguments)


def _steps(epochs: int, steps_per_epoch: float) -> int:
  # With few rows, several epochs may be less than half a step, and a schedule
  # over 0 steps would divide by 0.
  return max(round(epochs * steps_per_epoch), 1)
