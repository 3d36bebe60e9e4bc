"""The directory of a training run: config, metrics, checkpoints."""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator
from typing import Any

import tensorflow as tf

FORMAT = 1
CONFIG = "config.json"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
BEST = "best"
EVENTS = "events"


class ModelDirError(ValueError):
  """A model directory that cannot be used as asked."""


class ModelDir:
  """Reads and writes what a run leaves behind.

  Attributes:
    path: The directory.
    writable: Whether this process writes to it; of several workers, one does.
  """

  def __init__(
    self, path: str | os.PathLike[str], writable: bool = True
  ) -> None:
    self.path = pathlib.Path(path)
    self.writable = writable

  def exists(self) -> bool:
    """Whether a run was started here."""
    return (self.path / CONFIG).exists()

  @contextlib.contextmanager
  def locked(self) -> Iterator[None]:
    """Keeps other processes from writing here meanwhile.

    The lock is on the directory itself and ends with the process, however that
    ends.

    Raises:
      ModelDirError: Another process writes here, or this is no directory.
    """
    if not self.writable:
      yield
      return
    if self.path.exists() and not self.path.is_dir():
      raise ModelDirError(f"--model_dir {self.path} is not a directory.")
    self.path.mkdir(parents=True, exist_ok=True)
    directory = os.open(self.path, os.O_RDONLY)
    try:
      try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except OSError as error:
        # Some network file systems know no locks.
        if error.errno == errno.EWOULDBLOCK:
          raise ModelDirError(
            f"Another process is training in {self.path}: wait for it, stop "
            "it, or choose another --model_dir."
          ) from None
      yield
    finally:
      os.close(directory)

  def create(self, config: dict[str, Any], overwrite: bool) -> None:
    """Begins a new run, in a directory that is locked.

    Raises:
      ModelDirError: The directory holds a run already.
    """
    if not self.writable:
      return
    if self.exists() and not overwrite:
      raise ModelDirError(
        f"{self.path} holds a training run already: go on with it by "
        "--resume, begin anew by --overwrite, or choose another --model_dir."
      )
    for name in (CHECKPOINTS, BEST, EVENTS):
      shutil.rmtree(self.path / name, ignore_errors=True)
    (self.path / METRICS).unlink(missing_ok=True)
    self.write_config(config)

  def write_config(self, config: dict[str, Any]) -> None:
    if not self.writable:
      return
    write_atomically(
      self.path / CONFIG, json.dumps({"format": FORMAT} | config, indent=1)
    )

  def read_config(self) -> dict[str, Any]:
    """What `write_config` wrote.

    Raises:
      ModelDirError: No run was started here, or its config is damaged.
    """
    path = self.path / CONFIG
    try:
      config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
      raise ModelDirError(
        f"{self.path} holds no training run ({CONFIG} is missing): make one "
        f"by python -m pipelines.train --data DATA --model_dir {self.path}"
      ) from None
    except ValueError as error:
      raise ModelDirError(f"{path} is damaged: {error}.") from None
    if config.get("format") != FORMAT:
      raise ModelDirError(
        f"{path} has format {config.get('format')!r}; this version reads "
        f"{FORMAT}. Train again."
      )
    return config

  def event_writer(self) -> tf.summary.SummaryWriter:
    """Writer of the events that TensorBoard shows."""
    if not self.writable:
      return tf.summary.create_noop_writer()
    return tf.summary.create_file_writer(str(self.path / EVENTS))

  def append_metrics(self, row: dict[str, Any]) -> None:
    if not self.writable:
      return
    with open(self.path / METRICS, "a", encoding="utf-8") as file:
      file.write(json.dumps(row) + "\n")

  def read_metrics(self) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; a line cut short by a crash is left out."""
    try:
      text = (self.path / METRICS).read_text(encoding="utf-8")
    except FileNotFoundError:
      return []
    rows = []
    for line in text.splitlines():
      try:
        rows.append(json.loads(line))
      except ValueError:
        break
    return rows

  def forget_metrics_after(self, step: int) -> None:
    """Drops the rows of steps that are to be run again."""
    if not self.writable:
      return
    rows = [row for row in self.read_metrics() if row["step"] <= step]
    write_atomically(self.path / METRICS, _lines(rows))


def _lines(rows: Iterable[dict[str, Any]]) -> str:
  return "".join(json.dumps(row) + "\n" for row in rows)


def write_atomically(path: pathlib.Path, text: str) -> None:
  """Writes a file that appears complete or not at all."""
  partial = path.with_name(path.name + ".partial")
  partial.write_text(text, encoding="utf-8")
  os.replace(partial, path)
