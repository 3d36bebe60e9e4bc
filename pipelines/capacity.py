r"""Prints the memory, traffic and time that a run of XIR needs.

    xir-tfrs capacity --candidates 100000000 \
      --interactions 10000000000 --dim 32 --global_batch_size 16384 --devices 8

The figures are computed, not measured, and need no data. Memory and traffic are
exact; tests compare them with the variables of a model and with the collectives
of a step. Times are lower bounds for a device of the given speeds.
"""

import dataclasses
import sys
from collections.abc import Mapping

from xir_tfrs.programs import main as programs
from xir_tfrs.programs.settings import Settings, setting

_FLOAT, _ID, _COUNT = 4, 8, 8
# Optimizer slots per weight, and additional bytes per row.
_OPTIMIZERS = {"lazy_adam": (2, 8), "adam": (2, 0), "adagrad": (1, 0)}
# Reads and writes of a logit, forward and backward, draws included: the passes
# of the kernel `xir_tfrs.ops.fused` over each chunk.
_PASSES = 12


@dataclasses.dataclass(frozen=True)
class Run(Settings):
  """The sizes of a run of XIR."""

  candidates: int = setting(
    "Rows of the candidate table.", 100_000_000, minimum=1
  )
  queries: int = setting(
    "Rows of the query table; 0 for a tower without ids.", 0, minimum=0
  )
  interactions: int = setting("Training rows.", 10_000_000_000, minimum=1)
  dim: int = setting("Size of the embeddings.", 32, minimum=1)
  global_batch_size: int = setting(
    "Rows per step, on all devices.", 16_384, minimum=1
  )
  cache_size: int = setting("Candidates in the cache.", 16_384, minimum=0)
  devices: int = setting("GPUs, on all machines.", 8, minimum=1)
  optimizer: str = setting(
    "The optimizer.", "lazy_adam", choices=tuple(_OPTIMIZERS)
  )


@dataclasses.dataclass(frozen=True)
class Speeds(Settings):
  """The speeds of a device."""

  tflops: float = setting(
    "Float32 operations per second of a device, in 10^12.", 30.0, above=0
  )
  memory_gb_per_s: float = setting(
    "Bytes per second of its memory, in 10^9.", 2000.0, above=0
  )
  network_gb_per_s: float = setting(
    "Bytes per second between devices, in 10^9.", 25.0, above=0
  )


@dataclasses.dataclass(frozen=True)
class Config(Settings):
  """Settings of the program."""

  run: Run = Run()
  speeds: Speeds = Speeds()


def device_bytes(run: Run) -> dict[str, int]:
  """Returns bytes of variables per device; every device holds all tables."""
  slots, per_row = _OPTIMIZERS[run.optimizer]
  row = run.dim * _FLOAT * (1 + slots) + per_row
  return {
    "candidate table and optimizer": run.candidates * row,
    "query table and optimizer": run.queries * row,
    "occurrence counts": run.candidates * _COUNT,
    "log popularity": run.candidates * _FLOAT,
    "cache": run.cache_size * 2 * _ID,
  }


def traffic_bytes(run: Run) -> dict[str, int]:
  """Returns bytes per step that collectives gather or reduce; 0 on one device.

  In a ring, each device sends and receives this amount for a gather and twice
  this amount for a reduction, minus its own share of 1 / devices.
  """
  if run.devices == 1:
    return dict.fromkeys(
      ("embeddings", "their gradient", "ids", "draws", "table gradients"), 0
    )
  pools = run.global_batch_size + run.cache_size
  row = run.dim * _FLOAT
  return {
    "embeddings": pools * row,
    "their gradient": pools * row,
    "ids": run.global_batch_size * _ID,
    "draws": pools * _COUNT,
    "table gradients": (pools + run.global_batch_size) * (row + _ID),
  }


def step_seconds(run: Run, speeds: Speeds) -> dict[str, float]:
  """Returns lower bounds for the parts of a step, in seconds.

  The parts are the three products per logit, the passes over logits, the rows
  of the optimizer, and the traffic.
  """
  logits = (
    run.global_batch_size
    * (run.global_batch_size + run.cache_size)
    / run.devices
  )
  slots, _ = _OPTIMIZERS[run.optimizer]
  rows = 2 * run.global_batch_size + run.cache_size
  if run.optimizer != "lazy_adam":
    rows = run.candidates + run.queries
  touched = 2 * rows * run.dim * _FLOAT * (1 + slots)
  memory = speeds.memory_gb_per_s * 1e9
  moved = sum(traffic_bytes(run).values()) * 2 * (1 - 1 / run.devices)
  return {
    "products": 3 * 2 * run.dim * logits / (speeds.tflops * 1e12),
    "passes over logits": _PASSES * _FLOAT * logits / memory,
    "optimizer": touched / memory,
    "traffic": moved / (speeds.network_gb_per_s * 1e9),
  }


def report(run: Run, speeds: Speeds) -> str:
  """Returns the text that the program prints."""
  memory = device_bytes(run)
  traffic = traffic_bytes(run)
  seconds = step_seconds(run, speeds)
  steps = -(-run.interactions // run.global_batch_size)
  total = sum(seconds.values())
  lines = ["On each device (every device holds all tables):"]
  lines += _table(memory, 1e9, "GB")
  lines += ["", "On each host: training rows"]
  lines += _table({"query and candidate ids": 8 * run.interactions}, 1e9, "GB")
  lines += ["", "Traffic of collectives per step:"]
  lines += _table(traffic, 1e6, "MB")
  lines += ["", "Minimum time of a step:"]
  lines += _table(seconds, 1e-3, "ms")
  lines += [
    "",
    f"{steps:,} steps per epoch: {steps * total / 3600:,.1f} hours on "
    f"{run.devices} device(s)",
  ]
  return "\n".join(lines)


def _table(parts: Mapping[str, float], unit: float, name: str) -> list[str]:
  rows = [*parts.items(), ("together", sum(parts.values()))]
  if len(parts) == 1:
    rows = rows[:1]
  return [f"  {label:32}{value / unit:12,.3f} {name}" for label, value in rows]


def main(config: Config) -> None:
  """Prints the report."""
  print(report(config.run, config.speeds))


if __name__ == "__main__":
  sys.exit(programs.run(Config, main))
