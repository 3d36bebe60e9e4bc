r"""Says what a run of XIR needs: bytes, traffic and time, by arithmetic.

    python -m pipelines.capacity --candidates 100000000 \
      --interactions 10000000000 --dim 32 --global_batch_size 16384 --devices 8

Nothing is measured and no data is read. Memory and traffic are exact sums over
the variables and the collectives of a step (tests hold them to a real one);
times are lower bounds, from the speeds of a device that the flags state.
"""

import dataclasses
import sys

from absl import app, flags

_FLOAT, _ID, _COUNT = 4, 8, 8
# Slots of the optimizer per weight, and bytes per row beside.
_OPTIMIZERS = {"lazy_adam": (2, 8), "adam": (2, 0), "adagrad": (1, 0)}
# Times a logit is written or read, forward and backward, draws included: what
# the kernel of `xir_tfrs.ops.fused` does to each of its chunks.
_PASSES = 12


@dataclasses.dataclass(frozen=True)
class Run:
  """Sizes of a run of XIR.

  Attributes:
    candidates: Rows of the candidate table.
    queries: Rows of the query table; 0 for a tower without ids.
    interactions: Training rows.
    dim: Size of the embeddings.
    global_batch_size: Rows per step.
    cache_size: Candidates in the cache.
    devices: Replicas.
    optimizer: One of lazy_adam, adam, adagrad.
  """

  candidates: int
  queries: int
  interactions: int
  dim: int
  global_batch_size: int
  cache_size: int
  devices: int
  optimizer: str = "lazy_adam"


def device_bytes(run: Run) -> dict[str, int]:
  """Bytes on each device that last: every device holds all tables."""
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
  """Bytes per step of what the collectives put together, 0 on one device.

  In a ring, each device sends and receives this much for a gather, and twice
  this much for a reduction, less the part of 1 / devices that is its own.
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


def step_seconds(
  run: Run, *, tflops: float, memory_gb_per_s: float, network_gb_per_s: float
) -> dict[str, float]:
  """Lower bounds of a step's parts, in seconds, from the speeds of a device.

  Args:
    run: The sizes.
    tflops: Float32 operations per second of a device, in 10^12.
    memory_gb_per_s: Bytes per second of its memory, in 10^9.
    network_gb_per_s: Bytes per second between devices, in 10^9.

  Returns:
    Seconds for the three products per logit, the passes over logits, the
    rows of the optimizer, and the traffic.
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
  moved = sum(traffic_bytes(run).values()) * 2 * (1 - 1 / run.devices)
  return {
    "products": 3 * 2 * run.dim * logits / (tflops * 1e12),
    "passes over logits": _PASSES * _FLOAT * logits / (memory_gb_per_s * 1e9),
    "optimizer": touched / (memory_gb_per_s * 1e9),
    "traffic": moved / (network_gb_per_s * 1e9),
  }


def report(run: Run, **speeds: float) -> str:
  """The sums as text."""
  memory = device_bytes(run)
  traffic = traffic_bytes(run)
  seconds = step_seconds(run, **speeds)
  steps = -(-run.interactions // run.global_batch_size)
  total = sum(seconds.values())
  lines = ["On each device (every device holds all tables):"]
  lines += _table(memory, 1e9, "GB")
  lines += ["", "On each host: training rows"]
  lines += _table({"query and candidate ids": 8 * run.interactions}, 1e9, "GB")
  lines += ["", "Put together per step by collectives:"]
  lines += _table(traffic, 1e6, "MB")
  lines += ["", "Time of a step, at the least:"]
  lines += _table(seconds, 1e-3, "ms")
  lines += [
    "",
    f"{steps:,} steps per epoch: {steps * total / 3600:,.1f} hours on "
    f"{run.devices} device(s)",
  ]
  return "\n".join(lines)


def _table(parts, unit: float, name: str) -> list[str]:
  rows = [*parts.items(), ("together", sum(parts.values()))]
  if len(parts) == 1:
    rows = rows[:1]
  return [f"  {label:32}{value / unit:12,.3f} {name}" for label, value in rows]


_SIZES = {
  "candidates": (100_000_000, "Rows of the candidate table."),
  "queries": (0, "Rows of the query table; 0: a tower without ids."),
  "interactions": (10_000_000_000, "Training rows."),
  "dim": (32, "Size of the embeddings."),
  "global_batch_size": (16_384, "Rows per step, on all devices."),
  "cache_size": (16_384, "Candidates in the cache."),
  "devices": (8, "GPUs, on all machines."),
}
_SPEEDS = {
  "tflops": (30.0, "Float32 operations per second of a device, in 10^12."),
  "memory_gb_per_s": (2000.0, "Bytes per second of its memory, in 10^9."),
  "network_gb_per_s": (25.0, "Bytes per second between devices, in 10^9."),
}


def main(argv: list[str]) -> int:
  if len(argv) > 1:
    print(f"Not a flag: {argv[1]!r}; see --help.", file=sys.stderr)
    return 2
  value = flags.FLAGS.__getattr__
  run = Run(**{name: value(name) for name in (*_SIZES, "optimizer")})
  print(report(run, **{name: value(name) for name in _SPEEDS}))
  return 0


if __name__ == "__main__":
  for flag, (default, text) in _SIZES.items():
    lowest = 0 if flag in ("queries", "cache_size") else 1
    flags.DEFINE_integer(flag, default, text, lower_bound=lowest)
  for flag, (default, text) in _SPEEDS.items():
    flags.DEFINE_float(flag, default, text, lower_bound=1e-6)
  flags.DEFINE_enum(
    "optimizer", "lazy_adam", tuple(_OPTIMIZERS), "The optimizer."
  )
  app.run(main)
