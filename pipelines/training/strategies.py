"""Strategies by name, and agreement between their workers."""

import contextlib
import json
import os
import re
from collections.abc import Iterator

import tensorflow as tf

from xir_tfrs.programs import main, settings

_TF_CONFIG_EXAMPLE = (
  '{"cluster": {"worker": ["host0:12345", "host1:12345"]}, '
  '"task": {"type": "worker", "index": 0}}'
)


class WorkerLost(main.ProgramError):
  """Another worker has stopped, and this one cannot continue alone."""


def create(name: str, cpu_replicas: int = 0) -> tf.distribute.Strategy:
  """Creates a strategy; call it before TensorFlow runs anything.

  Args:
    name: `"one"`, one device; `"mirrored"`, all GPUs of this machine;
      `"multi_worker"`, all GPUs of all machines in TF_CONFIG.
    cpu_replicas: With `"mirrored"`: splits the CPU into this many devices
      instead of using GPUs, to try a strategy out.

  Raises:
    SettingsError: TF_CONFIG is missing or invalid, or the CPU cannot be split.
  """
  if name == "multi_worker":
    _require_tf_config()
    return tf.distribute.MultiWorkerMirroredStrategy()
  if name == "mirrored":
    return tf.distribute.MirroredStrategy(_cpus(cpu_replicas) or None)
  return tf.distribute.get_strategy()


class Workers:
  """The processes that train together; one, except with `multi_worker`.

  All decisions about the course of a run must be the same on all workers: if
  one stops alone, the others wait forever.

  Attributes:
    count: Number of workers.
    is_chief: Whether this one writes checkpoints and logs.
  """

  def __init__(self, strategy: tf.distribute.Strategy) -> None:
    self._strategy = strategy
    resolver = strategy.cluster_resolver
    self.count, index = 1, 0
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
      cluster = resolver.cluster_spec().as_dict()
      chiefs = len(cluster.get("chief", []))
      self.count = max(chiefs + len(cluster.get("worker", [])), 1)
      index = resolver.task_id or 0
      index += chiefs if resolver.task_type == "worker" else 0
    self.is_chief = index == 0
    self._sum = tf.function(self._sum_over_workers)

  def any(self, flag: bool) -> bool:
    """Whether `flag` is True on any worker."""
    return self._total([float(flag)])[0] > 0

  def of_chief(self, *values: float) -> list[float]:
    """Returns the values of the chief on every worker."""
    return self._total([v if self.is_chief else 0.0 for v in values])

  def _total(self, values: list[float]) -> list[float]:
    if self.count == 1:
      return [float(value) for value in values]
    total = self._sum(tf.constant(values, tf.float64))
    return total.numpy().tolist()

  def _sum_over_workers(self, values: tf.Tensor) -> tf.Tensor:
    local = self._strategy.num_replicas_in_sync // self.count

    def share() -> tf.Tensor:
      replica = tf.distribute.get_replica_context().replica_id_in_sync_group
      counts = tf.equal(tf.math.floormod(replica, local), 0)
      return tf.where(counts, values, tf.zeros_like(values))

    shares = self._strategy.run(share)
    return self._strategy.reduce(tf.distribute.ReduceOp.SUM, shares, axis=None)


# Errors that a lost worker causes.
_LOST = (
  tf.errors.UnavailableError,
  tf.errors.AbortedError,
  tf.errors.CancelledError,
  tf.errors.DeadlineExceededError,
)
# Errors with several causes; the message tells whether a worker was lost.
_PERHAPS_LOST = (tf.errors.InternalError, tf.errors.UnknownError)
_OF_OTHERS = re.compile(
  "collective|/job:|grpc|connection|socket|peer", re.IGNORECASE
)


@contextlib.contextmanager
def lost_workers(strategy: tf.distribute.Strategy) -> Iterator[None]:
  """Turns the errors that a lost worker causes into `WorkerLost`."""
  try:
    yield
  except (*_LOST, *_PERHAPS_LOST) as error:
    alone = Workers(strategy).count == 1
    if alone or not (
      isinstance(error, _LOST) or _OF_OTHERS.search(error.message)
    ):
      raise
    cause = error.message.strip().splitlines() or [type(error).__name__]
    raise WorkerLost(
      "Another worker has stopped or cannot be reached; its own output gives "
      "the reason. Start all workers again with --resume to continue from the "
      f"newest checkpoint. TensorFlow reports: {cause[0][:300]}"
    ) from error


def _cpus(count: int) -> list[str]:
  """Splits the CPU into `count` devices; returns their names."""
  if count:
    cpu = tf.config.list_physical_devices("CPU")[0]
    configuration = [tf.config.LogicalDeviceConfiguration()] * count
    try:
      tf.config.set_logical_device_configuration(cpu, configuration)
    except RuntimeError:
      found = len(tf.config.list_logical_devices("CPU"))
      if found < count:
        raise settings.SettingsError(
          f"--cpu_replicas={count} comes too late: TensorFlow is already "
          f"running, on {found} CPU device(s)."
        ) from None
  return [f"CPU:{i}" for i in range(count)]


def _require_tf_config() -> None:
  """Raises SettingsError unless TF_CONFIG lists the workers."""
  text = os.environ.get("TF_CONFIG")
  hint = (
    "Set it in the environment of each worker, with the worker's index: "
    f"TF_CONFIG='{_TF_CONFIG_EXAMPLE}'"
  )
  if not text:
    raise settings.SettingsError(
      "--strategy=multi_worker needs the environment variable TF_CONFIG. "
      + hint
    )
  try:
    config = json.loads(text)
    cluster, task = config["cluster"], config["task"]
    kind, index = task["type"], int(task["index"])
    hosts = cluster[kind]
  except (ValueError, KeyError, TypeError) as error:
    raise settings.SettingsError(
      f"TF_CONFIG does not describe a cluster and a task ({error!r}). {hint}"
    ) from None
  if kind not in ("worker", "chief") or not 0 <= index < len(hosts):
    raise settings.SettingsError(
      f"TF_CONFIG names task {kind} {index}, but the cluster has "
      f"{ {name: len(value) for name, value in cluster.items()} }. {hint}"
    )
