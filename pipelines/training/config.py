"""Settings of a training run, and their presets."""

import dataclasses
from typing import Any

OPTIMIZERS = ("lazy_adam", "adam", "coupled_l2_adam", "adagrad")


def _setting(default: Any, text: str, **choices: Any) -> Any:
  metadata = {"help": text, **choices}
  if isinstance(default, list):
    return dataclasses.field(default=tuple(default), metadata=metadata)
  return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """One training run. The defaults are the preset `default`."""

  data: str = _setting("", "Directory made by pipelines.prepare.")
  model_dir: str = _setting("", "Directory for checkpoints and metrics.")
  task: str = _setting("xir", "Retrieval method.")
  preset: str = _setting("default", "Settings to start from.")
  task_arguments: tuple[str, ...] = _setting(
    [], "Arguments of the task that have no flag: name=value, in JSON."
  )
  seed: int = _setting(0, "Seed of initial values, shuffling and draws.")

  dim: int = _setting(64, "Size of the embeddings.")
  use_features: bool = _setting(True, "Give side features to the towers.")
  query_hidden: tuple[int, ...] = _setting(
    [], "Sizes of the query tower's hidden layers; none: a sum of embeddings."
  )
  candidate_hidden: tuple[int, ...] = _setting(
    [], "Sizes of the candidate tower's hidden layers."
  )
  init_stddev: float = _setting(0.1, "Deviation of initial embeddings.")

  normalize: bool = _setting(True, "Score by cosine, not inner product.")
  temperature: float | None = _setting(
    None,
    "What scores are divided by. Not given: 0.1, or 0.2 for tasks that "
    "resample, whose draws sharpen the loss already; 1 for inner products.",
  )
  loss: str | None = _setting(
    None,
    "Form of the loss, one of xir_tfrs.ops.forms.FORMS. Not given: "
    "generalized_cross_entropy, without the positive in the denominator; "
    "cross_entropy for full_softmax and corr.",
  )
  loss_arguments: tuple[str, ...] = _setting(
    [], "Settings of the form of the loss: name=value, in JSON."
  )
  log_q: str | None = _setting(
    None,
    "Softmax tasks: whence the log-Q correction. Not given: as the task.",
    choices=("none", "popularity", "streaming"),
  )
  popularity: str = _setting(
    "rows",
    "What a candidate's popularity goes by: its training rows, or log(1 + "
    "rows), as in early code of the XIR paper.",
    choices=("rows", "log_rows"),
  )
  remove_accidental_hits: bool | None = _setting(
    None,
    "Leave out pool columns with the id of the row's positive. Not given: as "
    "the task.",
  )
  mask_known_positives: bool | None = _setting(
    None,
    "Leave out pool columns whose candidate the row's query has elsewhere in "
    "the training rows. Not given: yes; never for full_softmax and corr.",
  )
  popularity_weight: float | None = _setting(
    None,
    "Weigh training rows by this power of their candidate's popularity. Above "
    "0 the model leans to popular candidates, whose ranks most metrics count. "
    "Not given: 0.15; 0 for full_softmax and corr.",
  )
  positive_in_pool: bool | None = _setting(
    None, "Whether the positive is also in the pool. Not given: as the task."
  )
  num_resampled: int | None = _setting(
    None,
    "Candidates drawn per query. Not given: the batch for BIR, half the "
    "cache for XIR.",
  )
  resampler: str = _setting("systematic", "How candidates are drawn.")
  cache_size: int = _setting(2048, "XIR: candidates in the cache.")
  cache_weight: float = _setting(0.5, "XIR: share of the cache in the loss.")
  cache_scope: str = _setting(
    "step", "XIR: whom the next cache is drawn from, step or all."
  )
  occurrence_decay: float = _setting(
    1.0, "XIR: what is kept of draw counts at each step."
  )
  cache_policy: str = _setting(
    "occurrence",
    "XIR: who is cached, those drawn often or those that came last.",
    choices=("occurrence", "recency"),
  )
  joint_partition: bool = _setting(
    False,
    "XIR: batch and cache as one pool, whose proposal is their mixture. Needs "
    "--cache_scope all or --cache_policy recency.",
  )
  num_uniform: int = _setting(2048, "MNS: uniform candidates per step.")
  logq_positive: str = _setting(
    "none",
    "MNS: whether the positive is corrected too.",
    choices=("none", "mixture"),
  )
  num_buckets: int | None = _setting(
    None, "Streaming log-Q: cells per table. Not given: from the candidates."
  )
  num_hashes: int = _setting(4, "Streaming log-Q: tables.")
  frequency_learning_rate: float = _setting(
    0.01, "Streaming log-Q: learning rate of the frequency estimate."
  )
  bank_size: int = _setting(4096, "CBNS: candidates in the memory bank.")
  warmup_steps: int = _setting(
    500, "CBNS: steps before the memory bank counts."
  )
  warmup_drift: float | None = _setting(
    None,
    "CBNS: end the warm-up once embeddings drift less than this per step, "
    "relative to their length. Not given: only by --warmup_steps.",
  )
  num_sampled: int = _setting(20, "CoRR: candidates drawn per query.")
  negative_sampler: str = _setting(
    "midx",
    "CoRR: whence they are drawn. midx: the catalogue, near the retriever's "
    "softmax; midx_pop: the same times popularity; bir: the batch; xir: batch "
    "and cache.",
    choices=("midx", "midx_pop", "uniform", "bir", "xir"),
  )
  num_codewords: int = _setting(8, "CoRR: codewords per half, for midx.")
  kl_weight: float = _setting(
    1.0, "CoRR: weight of the retriever's divergence from the ranker."
  )
  ranker: str = _setting(
    "deepfm", "CoRR: kind of the ranker.", choices=("deepfm", "dcn")
  )
  ranker_dim: int = _setting(32, "CoRR: size of the ranker's embeddings.")
  ranker_hidden: tuple[int, ...] = _setting(
    [128, 64], "CoRR: sizes of the ranker's hidden layers."
  )
  row_chunk_size: int | None = _setting(
    None, "Rows whose logits are held at a time. Not given: from the sizes."
  )

  global_batch_size: int = _setting(1024, "Rows per step, on all replicas.")
  epochs: int = _setting(20, "Passes over the training rows.")
  optimizer: str = _setting("lazy_adam", "The optimizer.", choices=OPTIMIZERS)
  learning_rate: float = _setting(0.02, "Initial learning rate.")
  learning_rate_schedule: str = _setting(
    "step",
    "step: times `learning_rate_decay` every `decay_epochs` epochs; cosine: "
    "down to 0 at the last of `epochs`, which cannot be changed on resuming.",
    choices=("step", "cosine"),
  )
  learning_rate_decay: float = _setting(
    0.5, "Factor on the learning rate, every `decay_epochs` epochs."
  )
  decay_epochs: int = _setting(5, "Epochs between decays.")
  l2: float = _setting(0.0, "Coefficient of coupled_l2_adam.")
  average_epochs: float = _setting(
    0.0,
    "Evaluate and serve not the last weights but their average over about so "
    "many epochs, one that fades exponentially. 0: the last weights.",
  )

  strategy: str = _setting(
    "one",
    "Devices: one; mirrored, all GPUs of this machine; multi_worker, those of "
    "all machines that TF_CONFIG lists.",
    choices=("one", "mirrored", "multi_worker"),
  )
  cpu_replicas: int = _setting(
    0, "--strategy=mirrored: so many parts of the CPU, instead of GPUs."
  )

  eval_epochs: int = _setting(1, "Epochs between validations.")
  metric: str = _setting("ndcg@20", "Validation metric of the best checkpoint.")
  patience: int = _setting(
    3, "Stop after so many validations without a better one; 0: never."
  )
  checkpoint_steps: int | None = _setting(
    None, "Steps between checkpoints. Not given: an epoch."
  )
  keep_checkpoints: int = _setting(2, "Checkpoints kept, beside the best.")
  log_steps: int = _setting(50, "Steps between lines of metrics.")
  estimator_probe: int = _setting(
    0,
    "Rows on which to compare the loss's gradient with that of the full "
    "softmax, at each validation; 0: none.",
  )

  def __post_init__(self) -> None:
    for name in (
      "dim",
      "global_batch_size",
      "epochs",
      "learning_rate",
      "decay_epochs",
      "eval_epochs",
      "keep_checkpoints",
      "log_steps",
      "cache_size",
      "init_stddev",
    ):
      if getattr(self, name) <= 0:
        raise ValueError(
          f"--{name} must be positive. Received: {getattr(self, name)}."
        )
    if self.average_epochs < 0:
      raise ValueError(
        "--average_epochs must not be negative. "
        f"Received: {self.average_epochs}."
      )
    if self.optimizer not in OPTIMIZERS:
      raise ValueError(
        f"--optimizer must be one of {', '.join(OPTIMIZERS)}. "
        f"Received: {self.optimizer!r}."
      )
    if self.learning_rate_schedule not in ("step", "cosine"):
      raise ValueError(
        "--learning_rate_schedule must be step or cosine. "
        f"Received: {self.learning_rate_schedule!r}."
      )
    if self.l2 and self.optimizer != "coupled_l2_adam":
      raise ValueError(
        f"--l2 is a setting of coupled_l2_adam. Received: --l2={self.l2} "
        f"with --optimizer={self.optimizer}."
      )
    for name in ("task_arguments", "loss_arguments"):
      object.__setattr__(self, name, tuple(getattr(self, name)))
    for name in ("query_hidden", "candidate_hidden", "ranker_hidden"):
      object.__setattr__(self, name, tuple(int(x) for x in getattr(self, name)))


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

# What may differ when a run is resumed: it changes how long and how watchfully
# the run goes on, not what it has learnt.
CHANGEABLE = frozenset(
  {
    "data",
    "model_dir",
    "epochs",
    "patience",
    "eval_epochs",
    "checkpoint_steps",
    "keep_checkpoints",
    "log_steps",
    "row_chunk_size",
    "strategy",
    "cpu_replicas",
    "estimator_probe",
  }
)


def changeable(learning_rate_schedule: str) -> frozenset[str]:
  """Settings that may differ when a run is resumed."""
  if learning_rate_schedule == "cosine":
    return CHANGEABLE - {"epochs"}
  return CHANGEABLE


def of_run(train: dict[str, Any]) -> dict[str, Any]:
  """Settings of a run, as its config.json has them, complete.

  Runs that do not name `mask_known_positives` and the like were made before
  there were such settings.
  """
  known = dataclasses.asdict(TrainConfig()) | CROSS_ENTROPY | train
  if "loss_arguments" not in train:
    known |= _loss_of_old_run(train)
  for name in ("robustness", "positive_in_partition"):
    known.pop(name, None)
  return known


def _loss_of_old_run(train: dict[str, Any]) -> dict[str, Any]:
  """What a run called `loss`, `robustness` and `positive_in_partition`."""
  if train.get("loss") == "logq_corrected":
    return {"loss": "logq_corrected", "loss_arguments": ()}
  power = train.get("robustness", 0.0)
  with_positive = train.get("positive_in_partition", True)
  if power is None and with_positive is None:
    return {"loss": None, "loss_arguments": ()}
  plain = train.get("task") in ("full_softmax", "corr")
  if power is None:
    power = 0.0 if plain else 0.07
  if with_positive is None:
    with_positive = plain
  if not power:
    name = "cross_entropy" if with_positive else "decoupled"
    return {"loss": name, "loss_arguments": ()}
  return {
    "loss": "generalized_cross_entropy",
    "loss_arguments": (
      f"power={power}",
      f"positive_in_partition={str(with_positive).lower()}",
    ),
  }


def from_preset(**settings: Any) -> TrainConfig:
  """A config from a preset's settings, with `settings` over them.

  Raises:
    ValueError: Unknown preset, or a setting out of its range.
  """
  preset = settings.get("preset", "default")
  if preset not in PRESETS:
    raise ValueError(
      f"--preset must be one of {', '.join(PRESETS)}. Received: {preset!r}."
    )
  return TrainConfig(**(PRESETS[preset] | settings))
