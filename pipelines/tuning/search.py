"""The search: an Optuna study on disk, whose trials are training runs.

The study stores choices and results, and the directory of a trial stores its
run. Both survive a crash: an unfinished trial continues from its newest
checkpoint with the settings chosen for it.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shutil
import warnings
from typing import Any

import msgspec
import optuna
import sqlalchemy

from pipelines.training import config as configs
from pipelines.tuning import space as spaces
from pipelines.tuning import trials
from xir_tfrs.data import atomic, errors, json_files
from xir_tfrs.programs import main, progress, settings

FORMAT = 1
SEARCH_FILE = "search.json"
STUDY_FILE = "study.db"
TRIALS = "trials"
# Number of trials, besides the first ones, that run to the end before any is
# stopped early.
_BEFORE_PRUNING = 4
# Number of random trials before choices use earlier results.
_RANDOM = 10

State = optuna.trial.TrialState


class Search(
  msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True
):
  """search.json: the space of a search, which a resumed search cannot change.

  Attributes:
    data: The data directory.
    schema_sha256: Hash of its schema.json.
    fixed: Settings of all trials.
    searched: Values to try for other settings, as in `--space`.
  """

  format: int = FORMAT
  data: str
  schema_sha256: str
  fixed: dict[str, Any]
  searched: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Order:
  """A search to start or resume.

  Attributes:
    output: Directory of the search.
    data: The data directory.
    schema_sha256: Hash of its schema.json.
    space: The space of the search.
    num_trials: Number of trials, including those of earlier sessions.
    jobs: Number of parallel trials.
    overwrite: Whether to replace an existing search.
  """

  output: pathlib.Path
  data: str
  schema_sha256: str
  space: spaces.Space
  num_trials: int
  jobs: int
  overwrite: bool = False

  @property
  def defaults(self) -> configs.TrainConfig:
    """The config with the default of every searched setting."""
    return self.space.config({})

  @property
  def search(self) -> Search:
    """The content of search.json."""
    of_all = settings.as_dict(configs.TrainConfig(**self.space.fixed))
    return Search(
      data=os.path.abspath(self.data),
      schema_sha256=self.schema_sha256,
      fixed={name: of_all.get(name) for name in self.space.fixed},
      searched={
        name: spaces.shown(search)
        for name, search in self.space.searched.items()
      },
    )


def run(order: Order) -> optuna.Study:
  """Runs trials until there are enough.

  Returns:
    The study. Its best trial is one that was trained to the end.

  Raises:
    DataError: The output directory cannot be used.
    ProgramError: No trial can be trained.
  """
  with atomic.locked(order.output):
    _begin(order)
    return _Searching(order).go()


def trial_dir(output: str | os.PathLike[str], number: int) -> pathlib.Path:
  """Returns the directory of a trial's run."""
  return pathlib.Path(output) / TRIALS / f"{number:04d}"


def _begin(order: Order) -> None:
  """Starts a search, or checks that the existing one is the same."""
  path = order.output / SEARCH_FILE
  if not order.overwrite and path.exists():
    _require_same(order, path)
    return
  there = {file.name for file in order.output.iterdir()} - {atomic.LOCK_FILE}
  if there and not there & {SEARCH_FILE, STUDY_FILE}:
    raise errors.DataError(
      f"holds {min(there)}, which is not part of a search; choose another "
      "--output",
      path=order.output,
    )
  if there and not order.overwrite:
    raise errors.DataError(
      f"holds {STUDY_FILE} without its {SEARCH_FILE}: copy {SEARCH_FILE} back, "
      "choose another --output, or start again with --overwrite",
      path=order.output,
    )
  # In this order, a search that is deleted in part is not continued, but can be
  # overwritten.
  path.unlink(missing_ok=True)
  shutil.rmtree(order.output / TRIALS, ignore_errors=True)
  for file in order.output.glob(f"{STUDY_FILE}*"):
    file.unlink()
  json_files.write(path, order.search)


def _require_same(order: Order, path: pathlib.Path) -> None:
  old = json_files.read(
    path, Search, remedy="start again with --overwrite", format=FORMAT
  )
  before, now = (_flat(one) for one in (old, order.search))
  for name in {**before, **now}:
    if before.get(name) != now.get(name):
      raise errors.DataError(
        f"was started with another {name} ({before.get(name, 'none')} then, "
        f"{now.get(name, 'none')} now): give the original settings, choose "
        "another --output, or start again with --overwrite",
        path=order.output,
      )


def _flat(search: Search) -> dict[str, Any]:
  found = msgspec.to_builtins(search)
  del found["data"]  # The data may be moved.
  found["hash of the data's schema.json"] = found.pop("schema_sha256")
  return {**found.pop("fixed"), **found.pop("searched"), **found}


class _Searching:
  """A running search."""

  def __init__(self, order: Order) -> None:
    self._order = order
    self._study = _study(order)
    self._metric = order.defaults.metric
    self._epochs = order.defaults.epochs
    self._interrupted = self._study.get_trials(states=[State.RUNNING])
    self._now: dict[int, optuna.Trial] = {}

  def go(self) -> optuna.Study:
    """Runs trials until there are enough."""
    order = self._order
    if self._trials():
      print(
        f"Resuming {order.output}: {len(self._over())} trials are finished, "
        f"{len(self._interrupted)} were interrupted."
      )
    bar = progress.Progress(
      "tune", order.num_trials * self._epochs, start=self._epochs_done()
    )
    with bar, trials.Trials(order.jobs) as under_way:
      while True:
        while len(under_way) < order.jobs and (trial := self._next()):
          under_way.start(trial.number, self._config(trial))
        if not under_way:
          break
        for number, message, answer in under_way.messages():
          if isinstance(message, trials.Validated):
            answer(self._stops(self._now[number], message))
          elif message.outcome != "interrupted":
            bar.write(self._end(self._now.pop(number), message))
          bar.update(self._epochs_done(), self._best_so_far())
    if not self._study.get_trials(states=[State.COMPLETE]):
      raise main.ProgramError(
        "no trial could be trained to the end; see the lines above"
      )
    return self._study

  def _trials(self) -> list[optuna.trial.FrozenTrial]:
    """All trials that have started."""
    known = self._study.get_trials(deepcopy=False)
    return [trial for trial in known if trial.state != State.WAITING]

  def _over(self) -> list[optuna.trial.FrozenTrial]:
    return [trial for trial in self._trials() if trial.state.is_finished()]

  def _next(self) -> optuna.Trial | None:
    """The next trial to train: an interrupted one, or a new one."""
    if self._interrupted:
      old = self._interrupted.pop(0)
      self._study.sampler = _sampler(self._order, old.number)
      # Optuna has no public way to resume a trial.
      trial = optuna.Trial(self._study, old._trial_id)
    elif len(begun := self._trials()) < self._order.num_trials:
      # A new seed, so that a resumed search does not repeat random choices.
      self._study.sampler = _sampler(self._order, len(begun))
      trial = self._study.ask()
    else:
      return None
    self._now[trial.number] = trial
    return trial

  def _config(self, trial: optuna.Trial) -> configs.TrainConfig:
    """The config of a trial; keeps earlier choices."""
    chosen = self._order.space.choose(
      lambda one, search: _suggested(trial, one, search)
    )
    return self._order.space.config(
      chosen,
      data=self._order.data,
      model_dir=str(trial_dir(self._order.output, trial.number)),
    )

  def _stops(self, trial: optuna.Trial, message: trials.Validated) -> bool:
    """Records a validation; returns whether to stop the trial."""
    known = self._values(trial.number)
    for epoch, value in message.values.items():
      if epoch not in known:
        trial.report(value, epoch)
    return trial.should_prune()

  def _end(self, trial: optuna.Trial, ended: trials.Ended) -> str:
    """Records how a trial ended; returns a line about it."""
    if ended.outcome == "broken":
      raise main.ProgramError(f"trial {trial.number}: {ended.message}")
    if ended.outcome == "failed":
      trial.set_user_attr("message", ended.message)
      self._study.tell(trial, state=State.FAIL)
      self._tidy()
      self._give_up_if_nothing_works()
      return f"trial {trial.number} failed: {ended.message}"
    trial.set_user_attr("epoch", ended.epoch)
    trial.set_user_attr("epochs", ended.epochs)
    trial.set_user_attr("seconds", round(ended.seconds, 1))
    paused = ended.outcome == "paused"
    if paused:
      self._study.tell(trial, state=State.PRUNED)
    else:
      self._study.tell(trial, ended.value)
    self._tidy()
    chosen = " ".join(f"{k} {_short(v)}" for k, v in trial.params.items())
    how = "given up" if paused else ended.outcome
    return (
      f"trial {trial.number}: {self._metric} {ended.value:.4f} at epoch "
      f"{ended.epoch} ({how} after {ended.epochs})  {chosen}"
    )

  def _give_up_if_nothing_works(self) -> None:
    over = self._over()
    failed = [trial for trial in over if trial.state == State.FAIL]
    if len(failed) == len(over) >= len(self._order.space.first()):
      raise main.ProgramError(
        f"none of the first {len(over)} trials can be trained: "
        f"{failed[-1].user_attrs['message']}"
      )

  def _tidy(self) -> None:
    """Removes the checkpoints of all finished trials except the best."""
    best = _best(self._study)
    for trial in self._over():
      if trial.number != best:
        directory = trial_dir(self._order.output, trial.number)
        # TensorFlow's list of checkpoints.
        for state in directory.glob("*/checkpoint"):
          shutil.rmtree(state.parent, ignore_errors=True)

  def _epochs_done(self) -> int:
    """Epochs of all trials; finished trials count in full."""
    done = self._epochs * len(self._over())
    for number in self._now:
      done += max(self._values(number), default=0)
    return done

  def _values(self, number: int) -> dict[int, float]:
    """The metric of a trial, by epoch."""
    return self._study.get_trials(deepcopy=False)[number].intermediate_values

  def _best_so_far(self) -> str:
    best = _best(self._study)
    begun = len(self._trials())
    text = f"trial {begun} of {self._order.num_trials}"
    if best is None:
      return text
    return f"{text}, best {self._metric} {self._study.best_value:.4f} ({best})"


def _best(study: optuna.Study) -> int | None:
  if not study.get_trials(deepcopy=False, states=[State.COMPLETE]):
    return None
  return study.best_trial.number


def _study(order: Order) -> optuna.Study:
  """Opens the study; a new one starts with the defaults."""
  optuna.logging.set_verbosity(optuna.logging.WARNING)
  warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
  address = sqlalchemy.URL.create(
    "sqlite", database=str((order.output / STUDY_FILE).resolve())
  )
  first = order.space.first()
  study = optuna.create_study(
    storage=address.render_as_string(),
    study_name="tune",
    direction="maximize",
    load_if_exists=True,
    # Optuna compares with finished trials, which are the good ones: behind
    # their median are most trials that would still catch up.
    pruner=optuna.pruners.PercentilePruner(
      75,
      n_startup_trials=len(first) + _BEFORE_PRUNING,
      # Slow starters may win, so no trial stops in the first quarter.
      n_warmup_steps=max(order.defaults.epochs // 4, 2),
    ),
  )
  for chosen in first[: order.num_trials]:
    study.enqueue_trial(chosen, skip_if_exists=True)
  return study


def _sampler(order: Order, number: int) -> optuna.samplers.BaseSampler:
  """The sampler of a trial's settings, given its number."""
  return optuna.samplers.TPESampler(
    n_startup_trials=_RANDOM,
    multivariate=True,
    group=True,
    constant_liar=True,
    seed=(order.defaults.seed * 1_000_003 + number) % 2**32,
  )


def _suggested(
  trial: optuna.Trial, one: settings.Setting, search: spaces.Search
) -> Any:
  if not isinstance(search, spaces.Span):
    return trial.suggest_categorical(one.name, search)
  if one.type is int:
    return trial.suggest_int(
      one.name, int(search.low), int(search.high), log=search.log
    )
  return trial.suggest_float(one.name, search.low, search.high, log=search.log)


def _short(value: Any) -> str:
  return f"{value:.3g}" if isinstance(value, float) else str(value)
