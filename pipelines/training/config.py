"""Settings of a training run and their presets, without TensorFlow."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipelines.training import methods, old_settings
from xir_tfrs.data import errors
from xir_tfrs.programs import settings

if TYPE_CHECKING:
  from xir_tfrs.data import schema as schema_lib

_setting = settings.setting
_Span = settings.Span
_XIR = {"task": "xir"}
_CORR = {"task": "corr"}
_CACHE = (_XIR, _CORR | {"negative_sampler": "xir"})
_RESAMPLING = {"task": ("bir", "xir")}
# Methods with a softmax over a pool and a configurable correction.
_SOFTMAX = {"task": ("ssl", "ssl_pop", "mns", "cbns")}
_MASKED = {"task": tuple(name for name in methods.TASKS if name != "corr")}
# The full softmax has each candidate once, so it has no accidental hits.
_SAMPLED = {
  "task": tuple(name for name in methods.TASKS if name != "full_softmax")
}
_IDS = {"query_tower": ("id", "both")}
_HISTORIES = {"query_tower": ("history", "both")}


@dataclasses.dataclass(frozen=True)
class TrainConfig(settings.Settings):
  """Settings of a training run; the defaults are the preset `default`."""

  common = (
    *("data", "model_dir", "task", "query_tower", "preset", "dim"),
    *("epochs", "global_batch_size", "learning_rate", "metric"),
  )

  data: str = _setting(
    "Directory written by xir-tfrs prepare.", "", section="The run"
  )
  model_dir: str = _setting("Directory for checkpoints and metrics.", "")
  rows: str = _setting(
    "Training rows. all: includes the validation and the test split, so that "
    "no rows are left to evaluate the model.",
    "train",
    choices=("train", "all"),
  )
  task: str = _setting(
    "Retrieval method. Not given, with histories: ssl_pop.",
    "xir",
    choices=tuple(methods.TASKS),
    search=("ssl_pop", "xir", "mns", "bir", "full_softmax"),
  )
  preset: str = _setting(
    "Set of defaults.", "default", choices=("default", "plain", "paper")
  )
  task_arguments: dict[str, Any] = _setting(
    "Arguments of the task without a flag: name=value,..., in JSON.", {}
  )
  seed: int = _setting(
    "Seed of initial values, shuffling and draws.",
    0,
    minimum=0,
    maximum=2**32 - 1,
  )

  dim: int = _setting(
    "Size of the embeddings. Not given, with histories: 64.",
    128,
    above=0,
    section="The towers",
    search=(64, 128, 256),
  )
  query_tower: str = _setting(
    "Input of the query tower. id: ids and side features; history: the "
    "candidates that the query chose before; both: the sum of the two.",
    "id",
    choices=("id", "history", "both"),
    search=("id", "history", "both"),
  )
  history_encoder: str = _setting(
    "Encoder of histories. mean: a mean weighted by age; gru: a recurrent "
    "network; attention: causal self-attention; mind: several interest "
    "vectors, of which the one with the highest score counts.",
    "attention",
    choices=("attention", "gru", "mean", "mind"),
    search=("attention", "gru"),
    only=_HISTORIES,
    section="Histories",
  )
  history_length: int = _setting(
    "Number of most recent events of a history to encode.",
    50,
    above=0,
    only=_HISTORIES,
  )
  history_examples: str = _setting(
    "How training rows are encoded. positions: all rows that share a window of "
    "events together; rows: each row separately, which costs several times as "
    "much.",
    "positions",
    choices=("positions", "rows"),
    only=_HISTORIES,
  )
  history_ties: str | None = _setting(
    "Which events of the same time a row sees. strict: none; order: those "
    "before it in the file, as in published leave-last tables. Not given: "
    "strict. For a model of ids: validates it row by row, like a model of "
    "histories.",
    None,
    choices=("strict", "order"),
  )
  history_dropout: float = _setting(
    "Dropout rate of the history encoder.",
    0.2,
    minimum=0,
    only=_HISTORIES,
    search=_Span(0.0, 0.5),
  )
  history_arguments: dict[str, Any] = _setting(
    "Arguments of the encoder without a flag: name=value,..., in JSON.",
    {},
    only=_HISTORIES,
  )
  use_features: bool = _setting(
    "Give side features to the towers.",
    True,
    section="The towers",
    search=(True, False),
  )
  query_hidden: tuple[int, ...] = _setting(
    "Sizes of the query tower's hidden layers. None: a sum of embeddings.",
    (),
    above=0,
    only=_IDS,
  )
  candidate_hidden: tuple[int, ...] = _setting(
    "Sizes of the candidate tower's hidden layers.", (), above=0
  )
  init_stddev: float | None = _setting(
    "Standard deviation of initial embeddings. Not given: 0.1; 0.02 with "
    "histories, whose encoders learn poorly from larger values.",
    None,
    above=0,
  )

  normalize: bool = _setting(
    "Score by cosine instead of inner product.", True, section="The loss"
  )
  temperature: float | None = _setting(
    "Divisor of the scores. Not given: 0.1, or 0.2 for tasks that resample, "
    "whose draws already sharpen the loss; half of it with histories; with ids "
    "up to twice as much for dense data; 1 for inner products.",
    None,
    above=0,
    search=_Span(0.03, 0.5, log=True),
  )
  loss: str | None = _setting(
    "Form of the loss, one of xir_tfrs.ops.forms.FORMS. Not given: "
    "generalized_cross_entropy, without the positive in the denominator; "
    "cross_entropy for full_softmax and corr.",
    None,
    search=("generalized_cross_entropy", "cross_entropy", "decoupled", "bsl"),
  )
  loss_arguments: dict[str, Any] = _setting(
    "Settings of the loss form: name=value,..., in JSON.", {}
  )
  log_q: str | None = _setting(
    "Proposal of the log-Q correction. Not given: the task's default.",
    None,
    choices=("none", "popularity", "streaming"),
    only=_SOFTMAX,
  )
  remove_accidental_hits: bool | None = _setting(
    "Leave out pool columns with the id of the row's positive. Not given: the "
    "task's default.",
    None,
    only=_SAMPLED,
  )
  mask_known_positives: bool | None = _setting(
    "Leave out pool columns whose candidate appears with the row's query "
    "elsewhere in the training rows. Not given: yes; not for full_softmax and "
    "corr.",
    None,
    only=_MASKED,
  )
  popularity_weight: float | None = _setting(
    "Multiply row weights by this power of the candidate's popularity. Values "
    "above 0 favour popular candidates, which dominate most metrics. "
    "Not given: 0.15; 0 for full_softmax and corr.",
    None,
    search=_Span(0.0, 0.5),
  )
  positive_in_pool: bool | None = _setting(
    "Keep the positive in the pool. Not given: the task's default.", None
  )
  num_resampled: int | None = _setting(
    "Candidates drawn per query. Not given: the batch for BIR, half the "
    "cache for XIR.",
    None,
    above=0,
    only=_RESAMPLING,
    section="Settings of one method",
  )
  resampler: str | None = _setting(
    "How candidates are drawn: systematic, lattice or multinomial; expected: "
    "not at all, but counted as often as draws do on average. Not given: "
    "expected, or systematic with --num_resampled.",
    None,
    only=_RESAMPLING,
  )
  cache_size: int = _setting(
    "Candidates in the cache.", 1024, above=0, only=_CACHE
  )
  cache_weight: float = _setting(
    "Share of the cache in the loss.",
    0.2,
    minimum=0,
    maximum=1,
    only=_XIR,
    search=_Span(0.1, 0.9),
  )
  occurrence_decay: float = _setting(
    "Factor of the draw counts at each step.",
    1.0,
    minimum=0,
    maximum=1,
    only=_CACHE,
  )
  num_uniform: int = _setting(
    "Uniform candidates per step.", 2048, minimum=0, only={"task": "mns"}
  )
  num_buckets: int | None = _setting(
    "Cells per table of the frequency estimate. Not given: from the number of "
    "candidates.",
    None,
    above=0,
    only=({"task": "g_tower"}, {"log_q": "streaming"}),
  )
  bank_size: int = _setting(
    "Candidates in the memory bank.", 4096, above=0, only={"task": "cbns"}
  )
  warmup_steps: int = _setting(
    "Steps before the memory bank is used.",
    500,
    minimum=0,
    only={"task": "cbns"},
  )
  balance_gradients: bool = _setting(
    "Push the batch's candidates away for those of the bank too, which have no "
    "gradient.",
    True,
    only={"task": "cbns"},
  )
  num_sampled: int = _setting(
    "Candidates drawn per query.", 20, above=0, only=_CORR
  )
  negative_sampler: str = _setting(
    "Distribution of the draws. midx: the catalogue, approximately by the "
    "retriever's softmax; midx_pop: the same times popularity; uniform: the "
    "catalogue; sir: a uniform sample; bir: the batch; xir: batch and cache.",
    "midx",
    choices=("midx", "midx_pop", "uniform", "sir", "bir", "xir"),
    only=_CORR,
  )
  ranker: str = _setting(
    "Kind of ranker. din: attention of each candidate to the history.",
    "deepfm",
    choices=("deepfm", "dcn", "din"),
    only=_CORR,
  )
  ranker_dim: int = _setting(
    "Size of the ranker's embeddings.", 32, above=0, only=_CORR
  )
  ranker_hidden: tuple[int, ...] = _setting(
    "Sizes of the ranker's hidden layers.", (128, 64), above=0, only=_CORR
  )

  global_batch_size: int = _setting(
    "Rows per step, on all replicas.",
    1024,
    above=0,
    search=(256, 512, 1024, 2048),
    section="Training",
  )
  rows_in_memory: int = _setting(
    "Maximum number of training rows in memory. More rows are read from disk "
    "in parts, in another random order. 0: no limit.",
    0,
    minimum=0,
  )
  epochs: int = _setting("Passes over the training rows.", 20, above=0)
  stop_epoch: int | None = _setting(
    "Stop after this epoch, with the learning rate schedule of --epochs. Not "
    "given: after --epochs.",
    None,
    above=0,
  )
  optimizer: str = _setting(
    "The optimizer. Not given, with histories: adam.",
    "lazy_adam",
    choices=("lazy_adam", "adam", "coupled_l2_adam", "adagrad"),
  )
  optimizer_arguments: dict[str, Any] = _setting(
    "Arguments of the optimizer without a flag: name=value,..., in JSON.",
    {},
  )
  learning_rate: float = _setting(
    "Initial learning rate. Not given, with histories: 0.002.",
    0.02,
    above=0,
    search=_Span(0.001, 0.1, log=True),
  )
  learning_rate_schedule: str = _setting(
    "Schedule of the learning rate. step: times `learning_rate_decay` every "
    "`decay_epochs` epochs; cosine: falls to 0 at the end of `epochs`, which "
    "cannot be changed on resuming.",
    "step",
    choices=("step", "cosine"),
    search=("step", "cosine"),
  )
  learning_rate_decay: float = _setting(
    "Factor of the learning rate every `decay_epochs` epochs. 1: no decay.",
    0.5,
    above=0,
    only={"learning_rate_schedule": "step"},
  )
  decay_epochs: int = _setting(
    "Epochs between decays.",
    5,
    above=0,
    only={"learning_rate_schedule": "step"},
  )
  l2: float = _setting(
    "Coefficient of the L2 penalty.",
    0.0,
    minimum=0,
    only={"optimizer": "coupled_l2_adam"},
    search=_Span(1e-7, 1e-3, log=True),
  )
  average_epochs: float = _setting(
    "Evaluate and serve an exponential average of the weights over about this "
    "many epochs. 0: the last weights.",
    0.0,
    minimum=0,
  )

  strategy: str = _setting(
    "Devices. one: a single device; mirrored: all GPUs of this machine; "
    "multi_worker: the GPUs of all machines in TF_CONFIG.",
    "one",
    choices=("one", "mirrored", "multi_worker"),
    section="Devices",
  )
  cpu_replicas: int = _setting(
    "Split the CPU into this many devices instead of using GPUs. 0: GPUs.",
    0,
    minimum=0,
    only={"strategy": "mirrored"},
  )

  jit_compile: bool = _setting(
    "Compile the training step with XLA. For one GPU; the first step takes "
    "seconds longer.",
    False,
    only={"strategy": "one"},
  )

  eval_epochs: int = _setting(
    "Epochs between validations.",
    1,
    above=0,
    section="Validation, checkpoints and logs",
  )
  metric: str = _setting("Validation metric of the best checkpoint.", "ndcg@20")
  patience: int = _setting(
    "Stop after this many validations without improvement. 0: never.",
    3,
    minimum=0,
  )
  checkpoint_steps: int | None = _setting(
    "Steps between checkpoints. Not given: one epoch.", None, above=0
  )
  keep_checkpoints: int = _setting(
    "Number of checkpoints to keep, besides the best.", 2, above=0
  )
  log_steps: int = _setting("Steps between lines of metrics.", 50, above=0)
  estimator_probe: int = _setting(
    "Number of rows on which each validation compares the gradient of the loss "
    "with that of the full softmax. 0: none.",
    0,
    minimum=0,
    only={"query_tower": "id"},
  )

  @property
  def embedding_stddev(self) -> float:
    """`init_stddev`, or its default."""
    if self.init_stddev is not None:
      return self.init_stddev
    # The direction of large vectors changes slowly, which slows encoders of
    # histories down (docs/histories.md).
    return 0.1 if self.query_tower == "id" else 0.02

  @property
  def takes_times(self) -> bool:
    """Whether the encoder of histories takes the ages of events."""
    return bool(self.history_arguments.get("ages"))

  def for_data(self, schema: schema_lib.Schema) -> TrainConfig:
    """Returns the config with the default temperature for the data.

    The softmax of a query of ids raises its positives over the other
    candidates. The larger their share, the density of the data, the less it
    has to: dense data want higher temperatures (docs/results.md).
    """
    rows = schema.rows["train"]
    given = self.temperature is not None or not self.normalize
    if given or self.query_tower != "id" or not rows:
      return self
    density = rows / (schema.num_queries * schema.num_candidates)
    contrast = min(max(-math.log(density), _SPARSE / 2), _SPARSE)
    usual = self.resolved.temperature
    assert usual is not None
    return dataclasses.replace(
      self, temperature=round(usual * _SPARSE / contrast, 2)
    )

  @property
  def resolved(self) -> TrainConfig:
    """Returns the config with values for all settings that are not given.

    Their defaults depend on the task and the towers. That of the temperature
    is the one for sparse data; see `for_data`.
    """
    method = methods.TASKS[self.task]
    loss = self.loss or method.loss
    plain = method.loss == "cross_entropy" or loss == "logq_corrected"
    of_rows = CROSS_ENTROPY if plain else _ROWS
    temperature = method.cosine_temperature if self.normalize else 1.0
    if self.normalize and self.query_tower != "id":
      temperature /= 2
    defaults = {
      "init_stddev": self.embedding_stddev,
      "history_ties": None if self.query_tower == "id" else "strict",
      "temperature": temperature,
      "loss": loss,
      **{name: of_rows[name] for name in _ROWS},
    }
    return dataclasses.replace(
      self,
      **{
        name: value
        for name, value in defaults.items()
        if getattr(self, name) is None
      },
    )

  @staticmethod
  def settings_in(
    content: Mapping[str, Any], path: str | os.PathLike[str]
  ) -> Mapping[str, Any]:
    """Returns the settings in a file for --config, e.g. a run's config.json."""
    if not isinstance(content.get("train"), Mapping):
      return content
    return settings.as_dict(of_run(content["train"], path, content.get("data")))


# log(1 / density) from which on the usual temperature suits the data.
_SPARSE = 5.0
# Default weights and masks, found on Gowalla (docs/results.md).
_ROWS: dict[str, Any] = {
  "mask_known_positives": True,
  "popularity_weight": 0.15,
}
# The loss in the papers of the methods.
CROSS_ENTROPY: dict[str, Any] = {
  "mask_known_positives": False,
  "popularity_weight": 0.0,
  "loss": "cross_entropy",
}
_PLAIN: dict[str, Any] = CROSS_ENTROPY | {
  "dim": 64,
  "resampler": "systematic",
  "balance_gradients": False,
  "global_batch_size": 2048,
  "cache_size": 2048,
  "learning_rate": 0.01,
  "learning_rate_decay": 1.0,
}

# The settings that a preset changes. `plain` is each method as published, with
# cosine scores and without tuning, for comparing methods. `paper` is the
# Gowalla run of the released code (ids, d 32, N(0,1) embeddings, inner
# products, Adam with coupled L2, x 0.95 every 5 epochs, the positive twice in
# SSL's denominator) for the paper's 100 epochs.
PRESETS: dict[str, dict[str, Any]] = {
  "default": {},
  "plain": _PLAIN,
  "paper": CROSS_ENTROPY
  | {
    "dim": 32,
    "init_stddev": 1.0,
    "normalize": False,
    "temperature": 1.0,
    "positive_in_pool": True,
    "use_features": False,
    "cache_weight": 0.2,
    "global_batch_size": 2048,
    "cache_size": 2048,
    "num_resampled": None,
    "resampler": "multinomial",
    "balance_gradients": False,
    "epochs": 100,
    "optimizer": "coupled_l2_adam",
    "l2": 1e-5,
    "learning_rate": 0.01,
    "learning_rate_decay": 0.95,
    "decay_epochs": 5,
    "patience": 0,
  },
}

# The settings that each preset changes with histories. Their encoders are
# networks, which learn nothing at the learning rate of an embedding table. The
# cache pays off with ids on most data, but with histories only on sessions
# (docs/histories.md).
HISTORIES: dict[str, Any] = {
  "task": "ssl_pop",
  "optimizer": "adam",
  "learning_rate": 0.002,
}

# For presets without a size: larger vectors cost more than with ids, and
# overfit (docs/results.md).
_DIM_OF_HISTORIES = {"dim": 64}

# Settings that may change when a run is resumed: they affect its length and its
# monitoring, not what it has learnt.
CHANGEABLE = frozenset(
  {
    "data",
    "model_dir",
    "epochs",
    "stop_epoch",
    "patience",
    "eval_epochs",
    "checkpoint_steps",
    "keep_checkpoints",
    "log_steps",
    "strategy",
    "cpu_replicas",
    "estimator_probe",
    "jit_compile",
  }
)
# Task arguments that may change when a run is resumed.
CHANGEABLE_ARGUMENTS = frozenset({"row_chunk_size"})


def changed(old: TrainConfig, new: TrainConfig) -> str | None:
  """The first setting that keeps `new` from continuing the run of `old`."""
  may = CHANGEABLE
  if old.learning_rate_schedule == "cosine":
    may -= {"epochs"}
  # Settings without an effect may differ.
  before, after = (settings.as_dict(one.resolved) for one in (old, new))
  for one in (before, after):
    for name in CHANGEABLE_ARGUMENTS & one["task_arguments"].keys():
      del one["task_arguments"][name]
  for name in after:
    if name not in may and before.get(name) != after[name]:
      return name
  return None


def of_run(
  train: Mapping[str, Any],
  path: str | os.PathLike[str],
  data: str | None = None,
) -> TrainConfig:
  """Reads the settings of a run of this or an earlier version.

  Args:
    train: The entry `train` of its config.json.
    path: config.json, for errors.
    data: Path of its data, independent of the working directory.

  Raises:
    DataError: A setting is unknown to this version, or has a wrong type.
    SettingsError: A setting is out of range.
  """
  known = [field.name for field in dataclasses.fields(TrainConfig)]
  try:
    found = old_settings.upgrade(train, known, path)
    return TrainConfig(**(found if data is None else found | {"data": data}))
  except (errors.DataError, settings.SettingsError):
    raise
  except (TypeError, ValueError, AttributeError) as error:
    raise errors.DataError(
      f"cannot be read ({errors.first_line(error)!r}); train again with"
      " --overwrite",
      path=path,
      field="train",
    ) from error


def preset_settings(given: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the settings that the preset changes, given the towers.

  Raises:
    SettingsError: Unknown preset.
  """
  preset = given.get("preset", "default")
  if preset not in PRESETS:
    raise settings.SettingsError(
      f"--preset must be one of {', '.join(PRESETS)}. Received: {preset!r}."
    )
  if given.get("query_tower", "id") == "id":
    return PRESETS[preset]
  return _DIM_OF_HISTORIES | PRESETS[preset] | HISTORIES


def from_preset(**given: Any) -> TrainConfig:
  """Builds a config from a preset and given settings, which override it.

  Raises:
    SettingsError: The preset is unknown, or a setting is out of range or has no
      effect.
  """
  return _checked(TrainConfig(**(preset_settings(given) | given)), given)


def resumed(old: TrainConfig, given: Mapping[str, Any]) -> TrainConfig:
  """Returns the config of a resumed run, with newly given settings.

  What belongs to the devices of before, and not to the new ones, is dropped.

  Raises:
    SettingsError: As for `from_preset`.
  """
  config = dataclasses.replace(old, **given)
  values = settings.values_of(config)
  dropped = {
    one.name: one.default
    for one in settings.settings_of(TrainConfig)
    if one.name in CHANGEABLE - given.keys() and not one.is_used(values)
  }
  return _checked(dataclasses.replace(config, **dropped), given)


def _checked(config: TrainConfig, given: Mapping[str, Any]) -> TrainConfig:
  settings.refuse_unused(config, given)
  if config.ranker == "din" and config.query_tower == "id":
    raise settings.SettingsError(
      "--ranker din belongs to --query_tower history or both. Received: "
      "--query_tower id."
    )
  if "decay_epochs" in given and config.learning_rate_decay == 1:
    raise settings.SettingsError(
      "--decay_epochs belongs to a --learning_rate_decay other than 1."
    )
  return config
