"""The schedule of a run, as a function of the step."""

import dataclasses
import math

from pipelines.training import config as configs
from xir_tfrs.data import datasets


@dataclasses.dataclass(frozen=True)
class Schedule:
  """The schedule of a run.

  Attributes:
    num_rows: Number of training rows.
    config: The config of the run.
  """

  num_rows: int
  config: configs.TrainConfig

  @property
  def total_steps(self) -> int:
    """Steps after which the run is finished."""
    epochs = self.config.epochs
    return self.end_of_epoch(min(epochs, self.config.stop_epoch or epochs))

  @property
  def steps_per_epoch(self) -> float:
    """Training rows / rows per step; may be less than 1."""
    return self.num_rows / self.config.global_batch_size

  def epoch(self, step: int) -> float:
    """Number of passes over the training rows in `step` steps."""
    return step * self.config.global_batch_size / self.num_rows

  def end_of_epoch(self, epoch: int) -> int:
    """The first step after which every row has been seen `epoch` times."""
    return datasets.steps_to_finish(
      self.num_rows, self.config.global_batch_size, epoch
    )

  def starts_epoch(self, step: int) -> bool:
    """Whether the step after `step` steps is the first one of an epoch."""
    return step == 0 or self._next_end(step - 1, 1) == step

  def validates(self, step: int) -> bool:
    """Whether to validate after `step` steps."""
    return self._next_end(step - 1, self.config.eval_epochs) == step

  def saves(self, step: int) -> bool:
    """Whether to write a checkpoint after `step` steps."""
    every = self.config.checkpoint_steps
    return self.starts_epoch(step) if every is None else step % every == 0

  @property
  def average_steps(self) -> int:
    """Steps between updates of the weight average: a 20th of its length."""
    steps = self.config.average_epochs * self.num_rows
    return max(round(steps / self.config.global_batch_size / 20), 1)

  @property
  def average_decay(self) -> float:
    """Decay of the weight average per update."""
    rows = self.average_steps * self.config.global_batch_size
    return math.exp(-rows / self.num_rows / self.config.average_epochs)

  def averages(self, step: int) -> bool:
    """Whether to update the weight average after `step` steps."""
    return self.config.average_epochs > 0 and step % self.average_steps == 0

  def block(self, step: int) -> int:
    """Number of steps from `step` until anything is due."""
    due = [
      _next_multiple(step, self.config.log_steps),
      self._next_end(step, 1),
      self.total_steps,
    ]
    if self.config.average_epochs:
      due.append(_next_multiple(step, self.average_steps))
    if self.config.checkpoint_steps:
      due.append(_next_multiple(step, self.config.checkpoint_steps))
    return min(due) - step

  def _next_end(self, step: int, epochs: int) -> int:
    """The next end, after `step`, of a multiple of `epochs` epochs."""
    seen = step * self.config.global_batch_size
    rounds = max(seen // (self.num_rows * epochs), 1)
    while self.end_of_epoch(rounds * epochs) <= step:
      rounds += 1
    return self.end_of_epoch(rounds * epochs)


def _next_multiple(step: int, every: int) -> int:
  return (step // every + 1) * every
