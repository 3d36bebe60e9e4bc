"""Checkpoints of a run: saved atomically, restored only if complete."""

import contextlib
import os
import pathlib
import shutil
import sys
import tempfile

import tensorflow as tf

import xir_tfrs as xir
from xir_tfrs.data import atomic, errors, paths, runs
from xir_tfrs.programs import main

_PREFIX = "ckpt"

# TensorFlow's errors for files that are truncated, corrupt or missing.
_UNREADABLE = (tf.errors.OpError, IndexError, OSError)


class CheckpointNotSaved(main.ProgramError):
  """A checkpoint could not be written; earlier ones are untouched."""


class Checkpoints:
  """Writes and restores the state of a run; keeps the newest and the best."""

  def __init__(
    self,
    directory: runs.RunDir,
    checkpoint: tf.train.Checkpoint,
    keep: int,
    average: xir.optimizers.WeightAverage | None = None,
  ) -> None:
    """Sets the state to save.

    Args:
      directory: The directory of the run. If it is not `writable`, the worker
        takes part in saving, because reading a variable may need all workers,
        and discards its copy.
      checkpoint: The state.
      keep: Number of checkpoints to keep, besides the best.
      average: An average of weights, part of the state. In a checkpoint,
        weights and averages are swapped, so that restoring the model alone
        gives the averages.
    """
    self._checkpoint = checkpoint
    self._average = average
    self._path = directory.path / runs.CHECKPOINTS
    self._best_path = directory.path / runs.BEST
    self._keep = keep
    self._discarded = None
    if not directory.writable:
      self._discarded = tempfile.TemporaryDirectory(prefix="xir-worker-")
    self._newest = self._best = None

  @property
  def newest(self) -> str | None:
    """The newest checkpoint written or restored."""
    found = self._on_disk()
    return found[0][1] if found else None

  def as_saved(self) -> contextlib.AbstractContextManager[None]:
    """Returns a context in which the model has the weights to be served."""
    if self._average is None:
      return contextlib.nullcontext()
    return self._average.in_place()

  def restore(self) -> int | None:
    """Restores the newest complete checkpoint and drops broken ones.

    Returns:
      Its step; None if there is no checkpoint yet.

    Raises:
      DataError: No checkpoint is complete, or they belong to another model.
    """
    found = self._on_disk()
    broken = []
    try:
      state = tf.train.get_checkpoint_state(paths.literal(self._path))
    except ValueError:
      state = None
      broken.append(f"{self._path / 'checkpoint'} is damaged")
    if state is not None:
      newest = pathlib.Path(state.model_checkpoint_path).name
      if newest not in [pathlib.Path(prefix).name for _, prefix in found]:
        broken.append(f"{newest} is missing")
    for step, prefix in found:
      try:
        self._restore(prefix)
      except _UNREADABLE as error:
        broken.append(f"{prefix} is damaged ({errors.first_line(error)})")
        continue
      self._forget_all_but(
        [(s, p) for s, p in found if s <= step][: self._keep]
      )
      for text in broken:
        print(f"{text}: falling back to {prefix}", file=sys.stderr)
      return step
    if broken:
      raise errors.DataError(
        f"No checkpoint of {self._path} can be read: {'; '.join(broken)}. "
        "Start again with --overwrite, or in another --model_dir."
      )
    return None

  def restore_step(self, step: int) -> None:
    """Restores the checkpoint that the chief has restored.

    Raises:
      DataError: The checkpoint is missing.
    """
    prefix = str(self._path / f"{_PREFIX}-{step}")
    try:
      self._restore(prefix)
    except _UNREADABLE as error:
      raise errors.DataError(
        f"The chief has restored {prefix}, but this worker cannot read it "
        f"({errors.first_line(error)}): --model_dir must be a directory that "
        "all workers share."
      ) from None

  def save(self, step: int) -> None:
    """Writes the newest checkpoint.

    Raises:
      CheckpointNotSaved: It could not be written.
    """
    if self._newest is None:
      self._newest = self._manager(self._path, self._keep)
    self._save(self._newest, self._path, step)

  def save_best(self, step: int) -> None:
    """Writes the checkpoint that replaces the best one.

    Raises:
      CheckpointNotSaved: It could not be written.
    """
    if self._best is None:
      self._best = self._manager(self._best_path, 1)
    self._save(self._best, self._best_path, step)

  def _manager(self, path: pathlib.Path, keep: int):
    if self._discarded is not None:
      path, keep = pathlib.Path(self._discarded.name) / path.name, 1
    path.mkdir(parents=True, exist_ok=True)
    path = paths.literal(path)
    return tf.train.CheckpointManager(
      self._checkpoint, str(path), max_to_keep=keep, checkpoint_name=_PREFIX
    )

  def _save(self, manager, path: pathlib.Path, step: int) -> None:
    try:
      with self.as_saved():
        manager.save(checkpoint_number=step)
    except (tf.errors.OpError, OSError) as error:
      if self._discarded is None:
        _remove(path, f"{_PREFIX}-{step}")
      kept = self.newest
      raise CheckpointNotSaved(
        f"The checkpoint of step {step} could not be written to {path}: "
        f"{errors.first_line(error)}. "
        + (f"{kept} is untouched" if kept else "None was written before")
        + ". Free some space and continue with --resume."
      ) from error

  def _restore(self, prefix: str) -> None:
    try:
      literal = paths.literal_file(prefix)
      self._checkpoint.restore(literal).assert_consumed()
    except (AssertionError, ValueError) as error:
      raise errors.DataError(
        f"{prefix} belongs to another model, or to another version of it "
        f"({errors.first_line(error)})."
      ) from None
    if self._average is not None:
      self._average.exchange()

  def _on_disk(self) -> list[tuple[int, str]]:
    """Returns (step, prefix) of every checkpoint, newest first."""
    found = []
    for file in self._path.glob(f"{_PREFIX}-*.index"):
      step = file.name[len(_PREFIX) + 1 : -len(".index")]
      if step.isdigit():
        found.append((int(step), str(file)[: -len(".index")]))
    return sorted(found, reverse=True)

  def _forget_all_but(self, good: list[tuple[int, str]]) -> None:
    """Removes all checkpoints except those in `good`."""
    if self._discarded is not None:
      return
    for step, _ in self._on_disk():
      if step not in [s for s, _ in good]:
        _remove(self._path, f"{_PREFIX}-{step}")
    # Writes names without the directory, as TensorFlow does, so that the
    # directory can be moved.
    prefixes = [pathlib.Path(prefix) for _, prefix in reversed(good)]
    names = [prefix.name for prefix in prefixes]
    lines = [f'all_model_checkpoint_paths: "{name}"\n' for name in names]
    # Without times, TensorFlow would never remove them.
    times = [os.path.getmtime(f"{prefix}.index") for prefix in prefixes]
    lines += [f"all_model_checkpoint_timestamps: {time}\n" for time in times]
    atomic.write_text(
      self._path / "checkpoint",
      f'model_checkpoint_path: "{names[-1]}"\n' + "".join(lines),
    )


def _remove(directory: pathlib.Path, name: str) -> None:
  """Removes the files of one checkpoint, finished or not."""
  for file in directory.glob(f"{name}*"):
    if not file.name.removeprefix(name)[:1].isdigit():
      if file.is_dir():
        shutil.rmtree(file, ignore_errors=True)
      else:
        os.remove(file)
