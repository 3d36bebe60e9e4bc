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
  remove_accidental_hits: bool = _setting(
    False, "Leave out pool columns with the id of the row's positive."
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
  row_chunk_size: int | None = _setting(
    None, "Rows whose logits are held at a time. Not given: from the sizes."
  )

  global_batch_size: int = _setting(2048, "Rows per step, on all replicas.")
  epochs: int = _setting(20, "Passes over the training rows.")
  optimizer: str = _setting("lazy_adam", "The optimizer.", choices=OPTIMIZERS)
  learning_rate: float = _setting(0.01, "Initial learning rate.")
  learning_rate_decay: float = _setting(
    1.0, "Factor on the learning rate, every `decay_epochs` epochs."
  )
  decay_epochs: int = _setting(5, "Epochs between decays.")
  l2: float = _setting(0.0, "Coefficient of coupled_l2_adam.")

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
    if self.optimizer not in OPTIMIZERS:
      raise ValueError(
        f"--optimizer must be one of {', '.join(OPTIMIZERS)}. "
        f"Received: {self.optimizer!r}."
      )
    if self.l2 and self.optimizer != "coupled_l2_adam":
      raise ValueError(
        f"--l2 is a setting of coupled_l2_adam. Received: --l2={self.l2} "
        f"with --optimizer={self.optimizer}."
      )
    for name in ("query_hidden", "candidate_hidden"):
      object.__setattr__(self, name, tuple(int(x) for x in getattr(self, name)))


# What a preset changes. `paper` is the released code's Gowalla run (ids, d 32,
# N(0,1) embeddings, inner products, Adam with coupled L2, x 0.95 every 5
# epochs, the positive twice in SSL's denominator), for the paper's 100 epochs.
PRESETS: dict[str, dict[str, Any]] = {
  "default": {},
  "paper": {
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
  }
)


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
