"""Settings of a training run, and their presets. Without TensorFlow."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from pipelines.training import methods, old_settings
from xir_tfrs.data import errors
from xir_tfrs.programs import settings

_setting = settings.setting
_Span = settings.Span
_XIR = {"task": "xir"}
_CORR = {"task": "corr"}
_CACHE = (_XIR, _CORR | {"negative_sampler": "xir"})
_RESAMPLING = {"task": ("bir", "xir")}
# Softmax over a pool, corrected by a proposal that may be chosen.
_SOFTMAX = {"task": ("ssl", "ssl_pop", "mns", "cbns")}
_FULL = ("full_softmax", "corr")
_MASKED = {"task": tuple(name for name in methods.TASKS if name not in _FULL)}
_IDS = {"query_tower": ("id", "both")}
_HISTORIES = {"query_tower": ("history", "both")}


@dataclasses.dataclass(frozen=True)
class TrainConfig(settings.Settings):
  """One training run. The defaults are the preset `default`."""

  common = (
    *("data", "model_dir", "task", "query_tower", "preset", "dim"),
    *("epochs", "global_batch_size", "learning_rate", "metric"),
  )

  data: str = _setting(
    "Directory made by xir-tfrs prepare.", "", section="The run"
  )
  model_dir: str = _setting("Directory for checkpoints and metrics.", "")
  rows: str = _setting(
    "Rows that are trained on. all: those of the validation and the test split "
    "too, so that nothing is left to evaluate the model on.",
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
    "Settings to start from.", "default", choices=("default", "plain", "paper")
  )
  task_arguments: dict[str, Any] = _setting(
    "Arguments of the task that have no flag: name=value,..., in JSON.", {}
  )
  seed: int = _setting(
    "Seed of initial values, shuffling and draws.",
    0,
    minimum=0,
    maximum=2**32 - 1,
  )

  dim: int = _setting(
    "Size of the embeddings.", 64, above=0, section="The towers"
  )
  query_tower: str = _setting(
    "What queries are encoded from. id: their ids and side features; history: "
    "the candidates that they chose before; both: the sum of the two.",
    "id",
    choices=("id", "history", "both"),
    search=("id", "history", "both"),
  )
  history_encoder: str = _setting(
    "Encoder of histories. mean: a mean weighted by age; gru: a recurrent "
    "network; attention: causal self-attention; mind: several vectors, the "
    "interests, of which a candidate has the highest score.",
    "attention",
    choices=("attention", "gru", "mean", "mind"),
    search=("attention", "gru"),
    only=_HISTORIES,
    section="Histories",
  )
  history_length: int = _setting(
    "Newest events of a history that are encoded.",
    50,
    above=0,
    only=_HISTORIES,
  )
  history_examples: str = _setting(
    "How training rows are encoded. positions: all rows that share a window of "
    "events at once; rows: each with a window of its own, which costs several "
    "times as much.",
    "positions",
    choices=("positions", "rows"),
    only=_HISTORIES,
  )
  history_ties: str | None = _setting(
    "What a row sees of its query's events of the same time. strict: none; "
    "order: those before it in the file, as published leave-last tables do. "
    "Not given: strict. Given for a model of ids: validates it row by row, as "
    "one of histories is.",
    None,
    choices=("strict", "order"),
  )
  history_dropout: float = _setting(
    "Share of the encoder's entries that a step of training sets to 0.",
    0.2,
    minimum=0,
    only=_HISTORIES,
    search=_Span(0.0, 0.5),
  )
  history_arguments: dict[str, Any] = _setting(
    "Arguments of the encoder that have no flag: name=value,..., in JSON.",
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
    "Sizes of the query tower's hidden layers; none: a sum of embeddings.",
    (),
    above=0,
    only=_IDS,
  )
  candidate_hidden: tuple[int, ...] = _setting(
    "Sizes of the candidate tower's hidden layers.", (), above=0
  )
  init_stddev: float | None = _setting(
    "Deviation of initial embeddings. Not given: 0.1; 0.02 with histories, "
    "whose encoders learn little from larger ones.",
    None,
    above=0,
  )

  normalize: bool = _setting(
    "Score by cosine, not inner product.", True, section="The loss"
  )
  temperature: float | None = _setting(
    "Scores are divided by this. Not given: 0.1, or 0.2 for tasks that "
    "resample, whose draws sharpen the loss already; with histories half of "
    "it; 1 for inner products.",
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
    "Settings of the form of the loss: name=value,..., in JSON.", {}
  )
  log_q: str | None = _setting(
    "Selects the proposal of the log-Q correction. Not given: as the task.",
    None,
    choices=("none", "popularity", "streaming"),
    only=_SOFTMAX,
  )
  remove_accidental_hits: bool | None = _setting(
    "Leave out pool columns with the id of the row's positive. Not given: as "
    "the task.",
    None,
  )
  mask_known_positives: bool | None = _setting(
    "Leave out pool columns whose candidate the row's query has elsewhere in "
    "the training rows. Not given: yes; never for full_softmax and corr.",
    None,
    only=_MASKED,
  )
  popularity_weight: float | None = _setting(
    "Weigh training rows by this power of their candidate's popularity, "
    "times their own weights. Above 0 the model leans to popular candidates, "
    "whose ranks most metrics count. Not given: 0.15; 0 for full_softmax and "
    "corr.",
    None,
    search=_Span(0.0, 0.5),
  )
  positive_in_pool: bool | None = _setting(
    "Whether the positive is also in the pool. Not given: as the task.", None
  )
  num_resampled: int | None = _setting(
    "Candidates drawn per query. Not given: the batch for BIR, half the "
    "cache for XIR.",
    None,
    above=0,
    only=_RESAMPLING,
    section="Settings of one method",
  )
  resampler: str = _setting(
    "How candidates are drawn.", "systematic", only=_RESAMPLING
  )
  cache_size: int = _setting(
    "Candidates in the cache.", 2048, above=0, only=_CACHE
  )
  cache_weight: float = _setting(
    "Share of the cache in the loss.",
    0.5,
    minimum=0,
    maximum=1,
    only=_XIR,
    search=_Span(0.1, 0.9),
  )
  occurrence_decay: float = _setting(
    "Share of the draw counts that is kept at each step.",
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
    "Steps before the memory bank counts.",
    500,
    minimum=0,
    only={"task": "cbns"},
  )
  num_sampled: int = _setting(
    "Candidates drawn per query.", 20, above=0, only=_CORR
  )
  negative_sampler: str = _setting(
    "Selects what they are drawn from. midx: the catalogue, near the "
    "retriever's softmax; midx_pop: the same times popularity; uniform: the "
    "catalogue; sir: a uniform sample; bir: the batch; xir: batch and cache.",
    "midx",
    choices=("midx", "midx_pop", "uniform", "sir", "bir", "xir"),
    only=_CORR,
  )
  ranker: str = _setting(
    "Kind of the ranker; din: attention of each candidate to the history.",
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
    "Most training rows in memory at once; more are read from disk a part at a "
    "time, in another random order. 0: all in memory.",
    0,
    minimum=0,
  )
  epochs: int = _setting("Passes over the training rows.", 20, above=0)
  stop_epoch: int | None = _setting(
    "End the run after this epoch, with the learning rates that it has on the "
    "way to --epochs. Not given: after --epochs.",
    None,
    above=0,
  )
  optimizer: str = _setting(
    "The optimizer. Not given, with histories: adam.",
    "lazy_adam",
    choices=("lazy_adam", "adam", "coupled_l2_adam", "adagrad"),
  )
  optimizer_arguments: dict[str, Any] = _setting(
    "Arguments of the optimizer that have no flag: name=value,..., in JSON.",
    {},
  )
  learning_rate: float = _setting(
    "Initial learning rate. Not given, with histories: 0.002.",
    0.02,
    above=0,
    search=_Span(0.001, 0.1, log=True),
  )
  learning_rate_schedule: str = _setting(
    "How it falls. step: times `learning_rate_decay` every `decay_epochs` "
    "epochs; cosine: down to 0 at the last of `epochs`, which cannot be "
    "changed on resuming.",
    "step",
    choices=("step", "cosine"),
    search=("step", "cosine"),
  )
  learning_rate_decay: float = _setting(
    "Factor on the learning rate, every `decay_epochs` epochs; 1: none.",
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
    "Evaluate and serve not the last weights but an exponential average of "
    "them over about this many epochs. 0: the last weights.",
    0.0,
    minimum=0,
  )

  strategy: str = _setting(
    "Devices: one; mirrored, all GPUs of this machine; multi_worker, those of "
    "all machines that TF_CONFIG lists.",
    "one",
    choices=("one", "mirrored", "multi_worker"),
    section="Devices",
  )
  cpu_replicas: int = _setting(
    "Use this many parts of the CPU instead of GPUs. 0: GPUs.",
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
    "Stop after this many validations without a better one; 0: never.",
    3,
    minimum=0,
  )
  checkpoint_steps: int | None = _setting(
    "Steps between checkpoints. Not given: an epoch.", None, above=0
  )
  keep_checkpoints: int = _setting(
    "Checkpoints kept, beside the best.", 2, above=0
  )
  log_steps: int = _setting("Steps between lines of metrics.", 50, above=0)
  estimator_probe: int = _setting(
    "Rows on which to compare the loss's gradient with that of the full "
    "softmax, at each validation; 0: none.",
    0,
    minimum=0,
    only={"query_tower": "id"},
  )

  @property
  def embedding_stddev(self) -> float:
    """`init_stddev`, where it is not given too."""
    if self.init_stddev is not None:
      return self.init_stddev
    # Cosines of large vectors turn slowly: with histories, whose encoders add
    # to them, that decides (docs/histories.md).
    return 0.1 if self.query_tower == "id" else 0.02

  @property
  def resolved(self) -> TrainConfig:
    """The same run, with values for the settings that are not given.

    Their defaults go by the task and the towers.
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
    """The settings of a file for --config, which may be a run's config.json."""
    if not isinstance(content.get("train"), Mapping):
      return content
    return settings.as_dict(of_run(content["train"], path, content.get("data")))


# What rows count and against what, where nothing else is said: found on Gowalla
# (docs/results.md).
_ROWS: dict[str, Any] = {
  "mask_known_positives": True,
  "popularity_weight": 0.15,
}
# The loss as the methods' papers have it.
CROSS_ENTROPY: dict[str, Any] = {
  "mask_known_positives": False,
  "popularity_weight": 0.0,
  "loss": "cross_entropy",
}
_PLAIN: dict[str, Any] = CROSS_ENTROPY | {
  "global_batch_size": 2048,
  "learning_rate": 0.01,
  "learning_rate_decay": 1.0,
}

# What a preset changes. `plain` is each method as published, with cosine scores
# and nothing tuned: for comparisons of methods. `paper` is the released code's
# Gowalla run (ids, d 32, N(0,1) embeddings, inner products, Adam with coupled
# L2, x 0.95 every 5 epochs, the positive twice in SSL's denominator), for the
# paper's 100 epochs.
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
    "epochs": 100,
    "optimizer": "coupled_l2_adam",
    "l2": 1e-5,
    "learning_rate": 0.01,
    "learning_rate_decay": 0.95,
    "decay_epochs": 5,
    "patience": 0,
  },
}

# What each preset changes with histories. Their encoders are networks: at the
# rate of a table of ids they learn nothing. The cache earned its price with ids
# on most data, with histories on sessions alone (docs/histories.md).
HISTORIES: dict[str, Any] = {
  "task": "ssl_pop",
  "optimizer": "adam",
  "learning_rate": 0.002,
}

# What may differ when a run is resumed: it changes how long and how watchfully
# the run goes on, not what it has learnt.
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
# The same, of the arguments of the task.
CHANGEABLE_ARGUMENTS = frozenset({"row_chunk_size"})


def changed(old: TrainConfig, new: TrainConfig) -> str | None:
  """The first setting that keeps `new` from going on with the run of `old`."""
  may = CHANGEABLE
  if old.learning_rate_schedule == "cosine":
    may -= {"epochs"}
  # Settings that a run does not use may be anything.
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
  """The settings of a run, which this or an earlier version made.

  Args:
    train: What its config.json has under `train`.
    path: config.json, for errors.
    data: Where its data was, whatever the working directory is now.

  Raises:
    DataError: It has a setting that this version does not know, or a value
      that none can have.
    SettingsError: A setting is out of its range.
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
  """What the preset of the given settings changes, for their towers.

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
  return PRESETS[preset] | HISTORIES


def from_preset(**given: Any) -> TrainConfig:
  """A config from a preset's settings, with the given ones over them.

  Raises:
    SettingsError: Unknown preset, a setting out of its range, or one that the
      run would not use.
  """
  return _checked(TrainConfig(**(preset_settings(given) | given)), given)


def resumed(old: TrainConfig, given: Mapping[str, Any]) -> TrainConfig:
  """The config of a run that goes on, with what was given anew.

  Raises:
    SettingsError: As `from_preset`.
  """
  return _checked(dataclasses.replace(old, **given), given)


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
