"""The directory of a training run: config, metrics, checkpoints.

config.json       `RunConfig`
metrics.jsonl     one JSON object per line, with `kind` and `step`
checkpoints/      the newest checkpoints, with the whole training state
best/             the best checkpoint by validation
events/           event files for TensorBoard
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import numpy as np
import tensorflow as tf

from xir_tfrs import models
from xir_tfrs.data import atomic, directory, errors, json_files, paths
from xir_tfrs.data import schema as schema_lib

FORMAT = 1
CONFIG = "config.json"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
BEST = "best"
EVENTS = "events"
_TRAINED = (CHECKPOINTS, BEST, EVENTS)
# The checkpoints that `load_model` can restore.
WHICH = ("best", "latest")

# A row of metrics.jsonl: `kind`, `step`, and numbers.
Metrics = dict[str, Any]

_IDS_PER_BATCH = 1 << 13


class RunConfig(
  msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True
):
  """The content of config.json.

  Attributes:
    data: The data directory.
    schema_sha256: Hash of its schema.json.
    model: The config of the model, for `TwoTower.from_config`.
    train: The settings of the run, by name.
    versions: Version of each package that trained the model.
    defaults: Values of settings that were not given and depend on the data, by
      name. Runs of older versions have none.
    sha256: Hash of the other fields; "" in runs of older versions, whose
      changes go unnoticed.

  Examples:
    >>> from xir_tfrs.data import runs
    >>> config = runs.RunConfig(
    ...   data="data", schema_sha256="", model={}, train={"task": "xir"}
    ... )
    >>> config.train["task"]
    'xir'
  """

  format: int = FORMAT
  data: str
  schema_sha256: str
  model: dict[str, Any]
  train: dict[str, Any]
  versions: dict[str, str | None] = {}
  # Not in the hash where it is not set, as in runs of older versions.
  defaults: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
  sha256: str = ""


class RunDir:
  """Reads and writes the directory of a run.

  Attributes:
    path: The directory.
    writable: Whether this process writes to it; only one of several workers
      does.

  Examples:
    >>> from xir_tfrs.data import runs
    >>> run = runs.RunDir("run")
    >>> run.exists()
    False
  """

  def __init__(
    self, path: str | os.PathLike[str], writable: bool = True
  ) -> None:
    self.path = pathlib.Path(path)
    self.writable = writable

  def exists(self) -> bool:
    """Whether the directory holds a run."""
    return (self.path / CONFIG).exists()

  def locked(self) -> contextlib.AbstractContextManager[None]:
    """Returns a context that keeps other programs from writing here.

    Entering it raises a `DataError` if another program writes here, or if
    `path` is not a directory.
    """
    if not self.writable:
      return contextlib.nullcontext()
    return atomic.locked(self.path, "--model_dir")

  def create(self, config: RunConfig, overwrite: bool) -> None:
    """Starts a new run; the directory must be locked.

    Raises:
      DataError: The directory already holds a run.
    """
    if not self.writable:
      return
    self.require_new(overwrite)
    for name in _TRAINED:
      shutil.rmtree(self.path / name, ignore_errors=True)
    (self.path / METRICS).unlink(missing_ok=True)
    self.write_config(config)

  def require_new(self, overwrite: bool) -> None:
    """Raises a `DataError` unless `create` may start a run here."""
    if not self.writable or overwrite:
      return
    others = "start again with --overwrite, or choose another --model_dir"
    if self.exists():
      raise errors.DataError(
        f"already holds a training run: continue it with --resume, {others}",
        path=self.path,
      )
    # A new run would delete what the run without its config has learnt.
    for name in (*_TRAINED, METRICS):
      if (self.path / name).exists():
        raise errors.DataError(
          f"holds {name}, but no {CONFIG} of a run that may be continued: copy"
          f" {CONFIG} back, {others}",
          path=self.path,
        )

  def write_config(self, config: RunConfig) -> None:
    """Writes config.json."""
    if self.writable:
      json_files.write(self.path / CONFIG, json_files.seal(config))

  def read_config(self) -> RunConfig:
    """Reads the config that `write_config` wrote.

    Raises:
      DataError: There is no run here, or its config cannot be read.
    """
    path, remedy = self.path / CONFIG, "train again with --overwrite"
    config = json_files.read(
      path,
      RunConfig,
      remedy=remedy,
      missing=(
        ", so this directory holds no training run; train one with "
        + errors.command("train", data="DATA", model_dir=self.path)
      ),
      format=FORMAT,
    )
    if config.sha256:
      json_files.require_seal(path, config, remedy=remedy)
    # The hash belongs to the file, not to the run.
    return msgspec.structs.replace(config, sha256="")

  def event_writer(self) -> tf.summary.SummaryWriter:
    """Returns a writer of events for TensorBoard."""
    if not self.writable:
      return tf.summary.create_noop_writer()
    return tf.summary.create_file_writer(str(self.path / EVENTS))

  def append_metrics(self, row: Mapping[str, Any]) -> None:
    """Appends a row, with at least `kind` and `step`, to metrics.jsonl."""
    if not self.writable:
      return
    atomic.append_text(self.path / METRICS, json_files.encode_line(row))

  def read_metrics(self) -> list[Metrics]:
    """Reads metrics.jsonl; ignores a truncated last line.

    Raises:
      DataError: Another line is damaged.
    """
    path = self.path / METRICS
    try:
      *lines, _ = path.read_bytes().split(b"\n")
    except FileNotFoundError:
      return []
    return [_metrics(path, *line) for line in enumerate(lines, start=1)]

  def forget_metrics_after(self, step: int) -> None:
    """Drops the rows after `step`, which will be run again."""
    if not self.writable:
      return
    rows = [row for row in self.read_metrics() if row["step"] <= step]
    atomic.write_text(
      self.path / METRICS, "".join(map(json_files.encode_line, rows))
    )

  def named_checkpoints(self) -> tuple[bytes, ...]:
    """What the lists of the checkpoints say, to notice when they change."""
    found = []
    for name in (BEST, CHECKPOINTS):
      try:
        found.append((self.path / name / "checkpoint").read_bytes())
      except OSError:
        found.append(b"")
    return tuple(found)

  def checkpoint(self, which: str = "best") -> str:
    """Returns the path of a checkpoint.

    Args:
      which: `"best"` (the newest if the run had no validation) or `"latest"`.

    Raises:
      DataError: There is no such checkpoint.
    """
    if which not in WHICH:
      raise ValueError(
        f"`checkpoint` must be one of {', '.join(WHICH)}. Received: {which!r}."
      )
    for name in (BEST, CHECKPOINTS)[WHICH.index(which) :]:
      folder = self.path / name
      problem = "names a checkpoint that does not exist"
      try:
        found = tf.train.latest_checkpoint(paths.literal(folder))
      except (ValueError, tf.errors.OpError) as error:  # E.g. an empty file.
        found, problem = None, f"cannot be read ({errors.first_line(error)})"
      if found is not None:
        return str(folder / os.path.basename(found))
      # Does not fall back to the newest one: that is for runs without
      # validation.
      if (folder / "checkpoint").exists() or any(folder.glob("*.index")):
        raise errors.DataError(
          f"{problem}: copy the directory again, or continue training with "
          + errors.command("train", model_dir=self.path, resume=True),
          path=folder / "checkpoint",
        )
    raise errors.DataError(
      "holds no checkpoint: continue training with "
      + errors.command("train", model_dir=self.path, resume=True),
      path=self.path,
    )


def _metrics(path: pathlib.Path, number: int, line: bytes) -> Metrics:
  remedy = "remove the line, or train again with --overwrite"
  row = json_files.decode(
    line,
    dict[str, str | int | float | None],
    path=path,
    remedy=remedy,
    line=number,
  )
  if not (isinstance(row.get("step"), int) and "kind" in row):
    raise errors.DataError(
      f"has no `kind` or no `step`; {remedy}", path=path, line=number
    )
  return row


def load_model(
  run_dir: str | os.PathLike[str], checkpoint: str = "best"
) -> tuple[models.TwoTower, RunConfig, str]:
  """Restores a trained model for inference.

  Args:
    run_dir: Directory written by `pipelines.train`.
    checkpoint: `"best"` (the newest if the run had no validation) or
      `"latest"`.

  Returns:
    The model, the config of its run, and the path of the checkpoint.

  Raises:
    DataError: There is no such run, its checkpoint is damaged or belongs to
      another model, or a weight is not finite.
  """
  run = RunDir(run_dir)
  config = run.read_config()
  try:
    model = models.TwoTower.from_config(config.model)
  except (TypeError, ValueError, KeyError, AttributeError) as error:
    raise errors.DataError(
      "this version of xir_tfrs cannot build the model it describes"
      f" ({type(error).__name__}: {errors.first_line(error)}); train again with"
      " --overwrite",
      path=run.path / CONFIG,
      field="model",
    ) from error
  while True:
    named = run.named_checkpoints()
    try:
      return model, config, _restore(model, run, checkpoint)
    except errors.DataError:
      # Training removes a checkpoint when it has written a better or newer one.
      if run.named_checkpoints() == named:
        raise


def _restore(model: models.TwoTower, run: RunDir, which: str) -> str:
  """Restores the weights; returns the path of their checkpoint."""
  found = run.checkpoint(which)
  try:
    status = tf.train.Checkpoint(model=model).restore(paths.literal_file(found))
    status.assert_existing_objects_matched().expect_partial()
  except (AssertionError, ValueError, IndexError, tf.errors.OpError) as error:
    raise errors.DataError(
      f"cannot be restored as {CONFIG} describes the model"
      f" ({errors.first_line(error)}): one of them was changed, is damaged or"
      " only partly copied. Copy the directory again, or go back to an earlier"
      " checkpoint with "
      + errors.command("train", model_dir=run.path, resume=True),
      path=found,
    ) from error
  _require_finite(model, found)
  return found


def _require_finite(model: models.TwoTower, checkpoint: str) -> None:
  # Later results may hide a NaN: on some processors the fused kernel of a dense
  # layer and its ReLU turns NaN into 0.
  for weight in model.trainable_variables:
    if not bool(tf.reduce_all(tf.math.is_finite(weight))):
      place = np.argwhere(~np.isfinite(weight.numpy()))[0].tolist()
      raise errors.DataError(
        f"the weight {weight.name} is not finite at {place}; train again with"
        " a lower --learning_rate",
        path=checkpoint,
      )


def data_of(
  config: RunConfig,
  run_dir: str | os.PathLike[str],
  data: str | os.PathLike[str] | None = None,
) -> directory.DataDir:
  """Opens the data of a run, with the training rows of the run.

  Args:
    config: The config of the run.
    run_dir: The directory of the run, for errors.
    data: The data directory; by default the one in the config.

  Raises:
    DataError: The data cannot be opened, or is not the data of the run.
  """
  all_rows = config.train.get("rows") == "all"
  found = directory.DataDir(data or config.data, all_rows)
  check_fit(config, found, run_dir)
  return found


def check_fit(
  config: RunConfig,
  data: directory.DataDir,
  run_dir: str | os.PathLike[str],
) -> None:
  """Raises a `DataError` unless the run was trained on `data`."""
  if config.schema_sha256 != data.schema_sha256:
    raise errors.DataError(
      f"is not the data that {os.fspath(run_dir)} was trained on"
      f" ({config.data}), or was prepared again since, so dense ids may mean"
      " other candidates. Prepare it with the original options, or train again",
      path=data.path / schema_lib.FILE_NAME,
    )


def encode_in_batches(
  encode: Callable[[tf.Tensor], tf.Tensor],
  ids: np.ndarray,
  report: Callable[[int], None] | None = None,
  ids_per_batch: int = _IDS_PER_BATCH,
) -> np.ndarray:
  """Encodes dense ids in batches.

  Args:
    encode: [n] ids -> [n, dim] vectors, such as `TwoTower.encode_queries`.
    ids: [num_ids] dense ids.
    report: Called with the number of ids encoded so far.
    ids_per_batch: Ids per batch.

  Returns:
    [num_ids, dim] float32 array.
  """
  # Eager: validation encodes after each epoch and would trace each time.
  vectors = np.empty([0, 0], np.float32)
  # Encodes at least once, to learn the dimension.
  for low in range(0, max(len(ids), 1), ids_per_batch):
    part = encode(tf.constant(ids[low : low + ids_per_batch], tf.int64))
    if low == 0:
      vectors = np.empty([len(ids), part.shape[1]], np.float32)
    vectors[low : low + len(part)] = part
    if report is not None and len(part):
      report(low + len(part))
  return vectors
