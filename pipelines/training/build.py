"""From a schema and a config to a model: the towers, and the tasks by name."""

import dataclasses
import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

import xir_tfrs as xir
from pipelines.training import config as configs
from xir_tfrs.data import schema as schema_lib
from xir_tfrs.data import tables


@dataclasses.dataclass(frozen=True)
class Method:
  """A row of `TASKS`: a task class, and what a run calls its settings.

  Arguments of the class are filled by name: from the data (`candidate_counts`)
  and the model (`candidate_encoder`), or from the setting of that name. A
  setting of None leaves the argument at its default.

  Attributes:
    task: The class.
    cosine_temperature: Temperature for cosine scores, where none is given.
    log_q: Where the proposal comes from, where `--log_q` is not given; None:
      it is part of the method.
    loss: Form of the loss, where `--loss` is not given.
    settings: Name of the setting, for arguments that are called otherwise.
  """

  task: type[xir.tasks.RetrievalTask]
  cosine_temperature: float = 0.1
  log_q: str | None = "popularity"
  loss: str = "generalized_cross_entropy"
  settings: Mapping[str, str] = dataclasses.field(default_factory=dict)


TASKS: dict[str, Method] = {
  "ssl": Method(xir.tasks.SampledSoftmaxRetrieval, log_q="none"),
  "ssl_pop": Method(xir.tasks.SampledSoftmaxRetrieval),
  "g_tower": Method(
    xir.tasks.StreamingFrequencyRetrieval,
    log_q=None,
    settings={"learning_rate": "frequency_learning_rate"},
  ),
  "mns": Method(xir.tasks.MixedNegativeRetrieval),
  "cbns": Method(xir.tasks.CrossBatchRetrieval),
  "full_softmax": Method(xir.tasks.FullSoftmaxRetrieval, loss="cross_entropy"),
  # Draws that favour high scores sharpen the loss: twice the temperature.
  "bir": Method(xir.tasks.BIRRetrieval, cosine_temperature=0.2),
  "xir": Method(xir.tasks.XIRRetrieval, cosine_temperature=0.2),
  "corr": Method(
    xir.tasks.CoRRRetrieval,
    log_q=None,
    loss="cross_entropy",
    settings={"sampler": "negative_sampler"},
  ),
}


# Found on Gowalla (docs/results.md), where nothing else is said.
_ROWS = {"mask_known_positives": True, "popularity_weight": 0.15}


def rows_of_loss(config: configs.TrainConfig) -> dict[str, Any]:
  """What rows count and against what: the settings of `_ROWS`, all given."""
  plain = (
    TASKS[config.task].loss == "cross_entropy"
    or config.loss == "logq_corrected"
  )
  default = configs.CROSS_ENTROPY if plain else _ROWS
  given = {name: getattr(config, name) for name in _ROWS}
  return {
    name: default[name] if value is None else value
    for name, value in given.items()
  }


def form_of_loss(config: configs.TrainConfig) -> xir.ops.forms.Form:
  """The form of a run's loss.

  Raises:
    ValueError: There is no such form, or no such setting of it.
  """
  name = config.loss or TASKS[config.task].loss
  form = xir.ops.forms.FORMS.get(name)
  wanted = [] if form is None else [f.name for f in dataclasses.fields(form)]
  settings = _named(
    config.loss_arguments, "--loss_arguments", f"--loss {name}", wanted
  )
  return xir.ops.forms.build({"name": name} | settings)


def build(
  config: configs.TrainConfig,
  schema: schema_lib.Schema,
  queries: tables.Table,
  candidates: tables.Table,
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
  task = _task(
    config,
    {
      "candidate_counts": lambda: _popularity_counts(config, candidates),
      "candidate_encoder": lambda: candidate_tower,
      "frequency_estimator": lambda: _frequency_estimator(
        config, len(candidates)
      ),
      "num_buckets": lambda: _num_buckets(config, len(candidates)),
      "ranker": lambda: _ranker(config, query_tower, candidate_tower),
      "temperature": lambda: _temperature(config),
    },
  )
  return xir.models.TwoTower(query_tower, candidate_tower, task)


def _tower(config, name, table, features, hidden, seed) -> xir.models.Tower:
  used = [f.feature() for f in features] if config.use_features else []
  return xir.models.Tower(
    vocabulary_size=len(table),
    dim=config.dim,
    features=used,
    columns=table.columns,
    hidden_units=hidden,
    init_stddev=config.init_stddev,
    seed=seed,
    name=name,
  )


def _ranker(config, query_tower, candidate_tower) -> xir.models.Ranker:
  """CoRR's ranker; it shares the towers' side features, not their weights."""
  return xir.models.Ranker(
    num_queries=query_tower.vocabulary_size,
    num_candidates=candidate_tower.vocabulary_size,
    kind=config.ranker,
    dim=config.ranker_dim,
    hidden_units=config.ranker_hidden,
    query_table=query_tower.table,
    candidate_table=candidate_tower.table,
    seed=config.seed + 250_000,
    name="ranker",
  )


def parameters(task: type) -> dict[str, inspect.Parameter]:
  """Constructor arguments of a task, with those it passes on to its base."""
  found = {}
  for parent in task.__mro__:
    init = vars(parent).get("__init__")
    if parent is tf.keras.layers.Layer:
      break
    if init is not None:
      found = dict(inspect.signature(init).parameters) | found
  return {
    name: parameter
    for name, parameter in found.items()
    if parameter.kind is parameter.KEYWORD_ONLY
  }


def _task(
  config: configs.TrainConfig, given: dict[str, Callable[[], Any]]
) -> xir.tasks.RetrievalTask:
  """The task of a run; `given` makes what is not a setting."""
  method = TASKS[config.task]
  wanted = parameters(method.task)
  given = given | _proposal(config, method, wanted)
  given["loss"] = lambda: form_of_loss(config)
  arguments = {}
  for name in wanted:
    if name in given:
      value = given[name]()
    else:
      value = getattr(config, method.settings.get(name, name), None)
    if value is not None:
      arguments[name] = value
  arguments.pop("name", None)
  more = _named(
    config.task_arguments, "--task_arguments", f"--task {config.task}", wanted
  )
  return method.task(**arguments | more)


def _named(
  texts: Sequence[str], flag: str, whose: str, wanted: Iterable[str]
) -> dict[str, Any]:
  """Values by name, of texts `name=value`."""
  arguments = {}
  for text in texts:
    name, equals, value = text.partition("=")
    if name not in wanted or not equals:
      raise ValueError(
        f"{flag} takes name=value, with a name that {whose} knows: "
        f"{', '.join(sorted(wanted)) or 'none'}. Received: {text!r}."
      )
    try:
      arguments[name] = json.loads(value)
    except ValueError:
      arguments[name] = value
  return arguments


def _proposal(config, method, wanted) -> dict[str, Callable[[], Any]]:
  """Overrides of `given` that follow from --log_q."""
  takes_log_q = method.log_q is not None and "frequency_estimator" in wanted
  if config.log_q is not None and not takes_log_q:
    raise ValueError(
      f"--log_q is not a setting of --task {config.task}, whose proposal is "
      "part of the method."
    )
  log_q = config.log_q or method.log_q
  overrides = {}
  if log_q != "streaming":
    overrides["frequency_estimator"] = lambda: None
  if takes_log_q and log_q != "popularity":
    overrides["candidate_counts"] = lambda: None
  return overrides


def _popularity_counts(
  config: configs.TrainConfig, candidates: tables.Table
) -> np.ndarray:
  """[num_candidates] int64 in proportion to the popularity."""
  if config.popularity == "rows":
    return candidates.counts
  # Tasks take whole numbers.
  return np.rint(1e6 * np.log1p(candidates.counts)).astype(np.int64)


def _frequency_estimator(
  config: configs.TrainConfig, num_candidates: int
) -> xir.layers.FrequencyEstimator:
  """What stands in for the counts with --log_q streaming."""
  return xir.layers.FrequencyEstimator(
    num_buckets=_num_buckets(config, num_candidates),
    num_hashes=config.num_hashes,
    learning_rate=config.frequency_learning_rate,
    # The share of the rows, as counts give it. G-Tower is as in its paper.
    count_appearances=True,
    seed=config.seed,
  )


def _num_buckets(config: configs.TrainConfig, num_candidates: int) -> int:
  """Cells per table: eight per candidate, over all tables."""
  if config.num_buckets is not None:
    return config.num_buckets
  return -(-8 * num_candidates // max(config.num_hashes, 1))


def _temperature(config: configs.TrainConfig) -> float:
  if config.temperature is not None:
    return config.temperature
  return TASKS[config.task].cosine_temperature if config.normalize else 1.0


def optimizer(
  config: configs.TrainConfig, steps_per_epoch: float
) -> tf.keras.optimizers.Optimizer:
  """The optimizer of a run, with its learning rate schedule."""
  rate = config.learning_rate
  if config.learning_rate_schedule == "cosine":
    rate = tf.keras.optimizers.schedules.CosineDecay(
      rate, decay_steps=round(config.epochs * steps_per_epoch)
    )
  elif config.learning_rate_decay != 1.0:
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
