"""The experiments: a grid of settings for each table and figure of the paper.

A case is a method with settings of `pipelines.train`, or arguments of the task,
that override a preset. A run is identified by its settings, not by its
experiment, so runs that experiments share are trained once.
"""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.training import config as configs
from pipelines.training import methods

_RESAMPLING = ("bir", "xir")
# Unbiased as the paper's draws with replacement, in a fifth of their time.
_SYSTEMATIC = {"resampler": "systematic"}


@dataclasses.dataclass(frozen=True)
class Case:
  """A method with its settings.

  Attributes:
    task: The method, as in --task.
    settings: Settings that differ from the preset.
    preset: The preset.
    x: Position on the experiment's axis; in a table, the number of its group,
      within which it is tested.
    label: Name in tables and of the folder; by default derived from the method
      and its settings.
  """

  task: str
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  preset: str = "paper"
  x: float | None = None
  label: str = ""

  @property
  def name(self) -> str:
    """The folder name, derived from the settings.

    It must not change: published runs have these names.
    """
    if self.label:
      words = re.sub(r"[^\w.=]+", "_", self.label)
      # A schedule over another number of epochs is another run.
      epochs = _named({k: v for k, v in self.settings.items() if k == "epochs"})
      return "-".join([self.preset, self.task, words, *epochs])
    preset = configs.from_preset(preset=self.preset)
    # A point of a sweep with the preset's value is the preset's run.
    changed = {
      name: value
      for name, value in self.settings.items()
      if value != getattr(preset, name, None)
    }
    return "-".join([self.preset, self.task, *_named(changed)])


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A table or a figure.

  Attributes:
    title: The title.
    cases: Methods with their settings.
    epochs: Default number of epochs of a run.
    axis: Name of the axis, if cases are points on one.
    shows: `"table"`, `"curves"` over epochs, `"sweep"` along the axis, or
      `"occurrence"`, the popularity of draws and cache.
    baseline: Index of the case against which the others are tested. If it has
      an `x`, each case is tested against the first one with the same `x`.
    against: Name of these first cases; by default the baseline's method.
    ceiling: The method that the others estimate, if the table says how much of
      the way from the baseline to it a case goes.
    split: The split to rank: `"validation"` if settings are selected.
  """

  title: str
  cases: tuple[Case, ...]
  epochs: int
  shows: str = "table"
  axis: str | None = None
  baseline: int = 0
  against: str = ""
  ceiling: str = ""
  split: str = "test"

  def title_of(self, case: Case) -> str:
    """Returns the title of a case's row, without settings that all share."""
    if case.label:
      return case.label
    settings = {
      name: value
      for name, value in case.settings.items()
      if name != "resampler"
      and any(other.settings.get(name) != value for other in self.cases)
    }
    return " ".join([methods.TASKS[case.task].title, *_named(settings)])

  @property
  def baseline_title(self) -> str:
    """The title of the column of tests."""
    if self.against:
      return self.against
    baseline = self.cases[self.baseline]
    if baseline.x is None:
      return self.title_of(baseline)
    return methods.TASKS[baseline.task].title

  def baseline_of(self, case: Case) -> Case:
    """Returns the case that a case is tested against."""
    baseline = self.cases[self.baseline]
    if baseline.x is None:
      return baseline
    return next(other for other in self.cases if other.x == case.x)


def _named(settings: Mapping[str, Any]) -> list[str]:
  return [f"{name}={_flat(value)}" for name, value in sorted(settings.items())]


def _flat(value: Any) -> str:
  if isinstance(value, (tuple, list)):
    return ",".join(str(part) for part in value)
  return str(value)


def _methods(*tasks: str, **settings: Any) -> tuple[Case, ...]:
  """Methods with common settings."""
  return tuple(
    Case(task, settings | (_SYSTEMATIC if task in _RESAMPLING else {}))
    for task in tasks
  )


def _sweep(
  task: str, setting: str, values: Sequence[float], **others: Any
) -> tuple[Case, ...]:
  """A resampling method at several values of one setting."""
  return tuple(
    Case(task, _SYSTEMATIC | others | {setting: value}, x=value)
    for value in values
  )


# The best setting found on the validation split in 10 epochs. All relevant
# settings are written out, so that changes of a preset do not affect it.
_STRONGEST: dict[str, Any] = {
  "dim": 64,
  "temperature": 0.1,
  "mask_known_positives": True,
  "popularity_weight": 0.2,
  "loss": "generalized_cross_entropy",
  "loss_arguments": ("power=0.07", "positive_in_partition=false"),
  "global_batch_size": 1024,
  "learning_rate": 0.02,
  "learning_rate_schedule": "cosine",
}
# The default cache of the versions that some runs are of.
_FORMER_XIR: dict[str, Any] = {"cache_size": 2048, "cache_weight": 0.5}
# XIR before the search over its cache settings, one setting at a time.
_XIR: dict[str, Any] = {
  "cache_size": 1024,
  "cache_weight": 0.2,
  "occurrence_decay": 0.9,
}


# Selected on rows held out as by `benchmarks.shifted_split`.
_BILATERAL: dict[str, Any] = {
  "popularity_weight": 0.0,
  "loss": "bsl",
  "loss_arguments": ("temperature_ratio=1.0", "negative_weight=1.22"),
}
_PLAIN_LOSS: dict[str, Any] = configs.CROSS_ENTROPY | {"loss_arguments": ()}


def _variant(label: str, task: str = "ssl_pop", **settings: Any) -> Case:
  """The best setting with `settings` changed."""
  if task in _RESAMPLING:
    settings = _SYSTEMATIC | {"temperature": 0.2} | settings
  return Case(task, _STRONGEST | settings, "default", label=label)


def _longer(case: Case, popularity_weight: float) -> Case:
  """The case in 60 epochs, with no more weight on popular candidates."""
  weight = min(case.settings["popularity_weight"], popularity_weight)
  longer = {"epochs": 60, "popularity_weight": weight}
  return dataclasses.replace(case, settings=case.settings | longer)


_ABLATION = (
  _variant("strongest"),
  _variant("plain cross entropy", **_PLAIN_LOSS),
  _variant("without mask of known positives", mask_known_positives=False),
  _variant("without popularity weights", popularity_weight=0.0),
  _variant(
    "positive in partition",
    loss_arguments=("power=0.07", "positive_in_partition=true"),
  ),
  _variant("without robustness", loss="decoupled", loss_arguments=()),
  _variant("BIR", "bir"),
  _variant("XIR", "xir", **_XIR),
  _variant("MNS", "mns", num_uniform=1024),
)

_TABLE_2_TASKS = ("ssl_pop", "ssl", "mns", "g_tower", "bir", "xir")
_TABLE_2 = _methods(*_TABLE_2_TASKS)


def _cell(x: int, tower: str, batch: int) -> tuple[Case, ...]:
  """The methods with one tower and one batch, each with its defaults.

  As in the paper, the further candidates are as many as the batch has. The
  full softmax, the ceiling, has the form of the loss of the others.
  """
  further: dict[str, dict[str, Any]] = {
    "ssl_pop": {},
    "mns": {"num_uniform": batch},
    "bir": {},
    "xir": {"cache_size": batch},
    "cbns": {"bank_size": 2 * batch},
    "full_softmax": {
      "popularity_weight": 0.15,
      "loss": "generalized_cross_entropy",
    },
  }
  return tuple(
    Case(
      task,
      {"dim": 64, "query_tower": tower, "global_batch_size": batch} | settings,
      "default",
      x=x,
      label=f"{methods.TASKS[task].title}, {tower} tower, batch {batch}",
    )
    for task, settings in further.items()
  )


def _when_the_cache_pays(tower: str, epochs: int) -> Experiment:
  """Small and large batches with one tower, each against its SSL-Pop."""
  plural = {"id": "ids", "history": "histories"}[tower]
  return Experiment(
    f"When the cache pays: towers of {plural}",
    (*_cell(0, tower, 256), *_cell(1, tower, 2048)),
    epochs=epochs,
    against="SSL-Pop",
    ceiling="full_softmax",
    split="validation",
  )


_SLOW = {"init_stddev": 0.1, "learning_rate": 0.001}
# From N(0, 1) embeddings and at 0.01 the tower's ReLUs die in the first epoch.
_DEEP = _SLOW | {"candidate_hidden": (32, 16)}
_BATCHES = (256, 512, 1024, 2048, 4096, 8192)

EXPERIMENTS: dict[str, Experiment] = {
  "table2": Experiment("Table 2: the methods", _TABLE_2, epochs=100),
  "curves": Experiment(
    "Figure 1: metrics by epoch", _TABLE_2, epochs=100, shows="curves"
  ),
  "occurrence": Experiment(
    "Figure 2: who is drawn and cached, by popularity",
    (
      *_methods("xir"),
      Case("xir", _SYSTEMATIC | {"cache_scope": "all"}),
      Case("xir", _SYSTEMATIC | {"occurrence_decay": 0.9}),
    ),
    epochs=20,
    shows="occurrence",
  ),
  "resample_size": Experiment(
    "Figure 3: candidates drawn per query",
    (
      *_methods("ssl_pop"),
      # From 1/512 of the batch to all of it, which is the preset.
      *_sweep("bir", "num_resampled", [2**power for power in range(2, 11)]),
      Case("bir", _SYSTEMATIC, x=2048),
    ),
    epochs=20,
    shows="sweep",
    axis="num_resampled",
  ),
  "cache_size": Experiment(
    "Figure 5: size of the cache",
    (
      *_methods("ssl_pop"),
      *_sweep("xir", "cache_size", (1024, 2048, 4096, 8192)),
    ),
    epochs=20,
    shows="sweep",
    axis="cache_size",
  ),
  "cache_weight": Experiment(
    "Figure 6: weight of the cache",
    (
      *_methods("ssl_pop"),
      *_sweep("xir", "cache_weight", (0.0, 0.2, 0.5, 0.8, 1.0)),
    ),
    epochs=20,
    shows="sweep",
    axis="cache_weight",
  ),
  "batch_size": Experiment(
    "Figure 7: size of the batch",
    tuple(
      dataclasses.replace(case, x=size)
      for task in ("ssl_pop", "bir", "xir")
      for size in _BATCHES
      for case in _methods(
        task,
        global_batch_size=size,
        # As in the paper: half of the batch from each of batch and cache.
        **({"cache_size": size} if task == "xir" else {}),
      )
    ),
    epochs=20,
    shows="sweep",
    axis="global_batch_size",
  ),
  "features": Experiment(
    "Table of Figure 4: item tower with attributes",
    (
      *_methods("ssl_pop", "ssl", "bir", "xir", **_DEEP, use_features=True),
      *_methods("ssl_pop", **_DEEP),
    ),
    epochs=100,
  ),
  "settings": Experiment(
    "What the paper leaves open: learning rate, decay, initial values",
    tuple(
      # Against SSL-Pop with the same settings.
      dataclasses.replace(case, x=place)
      for place, settings in enumerate(
        (
          {},
          {"learning_rate": 0.001},
          _SLOW,
          {"l2": 1e-4},
          {"l2": 1e-6},
          {"init_stddev": 0.1},
          {"popularity": "log_rows"},
        )
      )
      for case in _methods("ssl_pop", "bir", "xir", **settings)
    ),
    epochs=100,
  ),
  "slow": Experiment(
    "Table 2 at the paper's learning rate, from N(0, 0.1) embeddings",
    _methods(*_TABLE_2_TASKS, **_SLOW),
    epochs=100,
  ),
  "beyond": Experiment(
    "Search and ablation on the validation split",
    tuple(
      dataclasses.replace(case, settings=case.settings | {"epochs": 10})
      for case in (
        *_ABLATION,
        _variant("BIR plain", "bir", **_PLAIN_LOSS),
        _variant("CBNS", "cbns", bank_size=1024, balance_gradients=False),
        _variant("XIR, temperature 0.1", "xir", **_XIR | {"temperature": 0.1}),
        _variant("XIR, weight 0.5", "xir", **_XIR | {"cache_weight": 0.5}),
        _variant("XIR, cache of 2048", "xir", **_XIR | {"cache_size": 2048}),
        _variant(
          "XIR, counts that do not fade",
          "xir",
          **_XIR | {"occurrence_decay": 1.0},
        ),
        _variant("XIR, cache from all", "xir", **_XIR, cache_scope="all"),
        _variant(
          "XIR, one partition",
          "xir",
          cache_size=1024,
          cache_scope="all",
          occurrence_decay=0.9,
          joint_partition=True,
        ),
        _variant(
          "XIR, one partition, cache by recency",
          "xir",
          cache_size=1024,
          cache_policy="recency",
          joint_partition=True,
        ),
        _variant(
          "average over an epoch, constant learning rate",
          average_epochs=1.0,
          learning_rate_schedule="step",
          learning_rate_decay=1.0,
        ),
        _variant("temperature 0.08", temperature=0.08),
        _variant("temperature 0.12", temperature=0.12),
        _variant("learning rate 0.01", learning_rate=0.01),
        _variant("batch 512", global_batch_size=512),
        _variant("batch 2048", global_batch_size=2048),
        _variant("popularity weight 0.1", popularity_weight=0.1),
        _variant("popularity weight 0.3", popularity_weight=0.3),
        _variant(
          "robustness 0.03",
          loss_arguments=("power=0.03", "positive_in_partition=false"),
        ),
        _variant(
          "robustness 0.15",
          loss_arguments=("power=0.15", "positive_in_partition=false"),
        ),
        _variant(
          "steps of the learning rate",
          learning_rate_schedule="step",
          learning_rate_decay=0.5,
          decay_epochs=2,
        ),
      )
    ),
    epochs=10,
    split="validation",
  ),
  "final": Experiment(
    "The strongest setting, once on the test split",
    tuple(
      dataclasses.replace(case, settings=case.settings | {"epochs": 30})
      for case in _ABLATION
    ),
    epochs=30,
    baseline=1,
  ),
  "resampler": Experiment(
    "How to draw: systematic draws, or what they are on average",
    tuple(
      Case(
        task,
        {"dim": 64, "resampler": resampler, "query_tower": tower}
        | (_FORMER_XIR if task == "xir" else {}),
        "default",
        x=place,
        label=f"{task.upper()} {resampler}, {tower} tower",
      )
      for place, (tower, task) in enumerate(
        itertools.product(("id", "history"), _RESAMPLING)
      )
      for resampler in ("systematic", "expected")
    ),
    epochs=10,
    against="systematic draws",
    split="validation",
  ),
  "cache": _when_the_cache_pays("id", epochs=10),
  "cache_history": _when_the_cache_pays("history", epochs=8),
  "longer": Experiment(
    "Six times as long, on the validation split",
    (
      _longer(_variant("popularity weight 0.15"), 0.15),
      _longer(_variant("popularity weight 0.2"), 0.2),
    ),
    epochs=60,
    baseline=1,
    split="validation",
  ),
  "final_longer": Experiment(
    "The strongest setting in 60 epochs, once on the test split",
    tuple(_longer(case, 0.15) for case in _ABLATION),
    epochs=60,
    baseline=1,
  ),
  "public": Experiment(
    "The public splits, once on the test split",
    tuple(
      Case(
        "ssl_pop",
        _STRONGEST | {"epochs": 60} | loss,
        "default",
        label=f"SSL-Pop, {name} loss",
      )
      for name, loss in (
        ("bilateral", _BILATERAL),
        ("default", {"popularity_weight": 0.15}),
      )
    ),
    epochs=60,
    baseline=1,
  ),
}
