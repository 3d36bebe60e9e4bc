"""Shared code of the benchmarks: interleaved timing, tables, JSON.

A benchmark compares callables in one process. Their repetitions take turns, so
that a temporary slowdown of the machine affects all of them, and the median of
each is reported.
"""

import importlib.metadata
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf
from absl import app, flags

from xir_tfrs.data import json_files

RESULTS = pathlib.Path(__file__).parent / "results"
_PACKAGES = (
  "tensorflow",
  "tf-keras",
  "tensorflow-recommenders",
  "scann",
  "numpy",
  "xir-tfrs",
)


def measure(
  cases: Mapping[str, Callable[[], object]], *, repetitions: int
) -> dict[str, list[float]]:
  """Measures the seconds of each repetition of each case.

  Args:
    cases: name -> function to time. It must wait for its result, e.g. by
      calling `numpy()` of a tensor.
    repetitions: Number of measurements, after one unmeasured run (tracing,
      allocation).
  """
  for run in cases.values():
    run()
  seconds: dict[str, list[float]] = {name: [] for name in cases}
  for _ in range(repetitions):
    for name, run in cases.items():
      start = time.perf_counter()
      run()
      seconds[name].append(time.perf_counter() - start)
  return seconds


def summarise(seconds: Mapping[str, Sequence[float]]) -> dict[str, Any]:
  """Returns name -> median, minimum, maximum and number of measurements."""
  return {
    name: {
      "median_s": statistics.median(values),
      "min_s": min(values),
      "max_s": max(values),
      "repetitions": len(values),
    }
    for name, values in seconds.items()
  }


def print_table(
  title: str, header: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
  """Prints aligned columns: the first left-aligned, the others right."""
  rows = [header, *rows]
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  print(title)
  for first, *rest in rows:
    cells = [c.rjust(w + 2) for c, w in zip(rest, widths[1:], strict=True)]
    print("".join(["  ", first.ljust(widths[0]), *cells]))


def define_flags(sizes: Mapping[str, tuple[int, str]]) -> None:
  """Defines a flag for each size, name -> (default, help), and `--output`."""
  program = sys.argv[0]  # Otherwise --help hides flags of other modules.
  for flag, (default, text) in sizes.items():
    flags.DEFINE_integer(flag, default, text, 1, module_name=program)
  flags.DEFINE_string("output", None, "File to write.", module_name=program)


def given(sizes: Mapping[str, tuple[int, str]]) -> dict[str, int]:
  """Returns the sizes from the command line."""
  return {name: flags.FLAGS[name].value for name in sizes}


def main(
  name: str,
  sizes: Mapping[str, tuple[int, str]],
  run: Callable[[dict[str, int]], Mapping[str, Any]],
  show: Callable[[Mapping[str, Any], dict[str, int]], None],
) -> None:
  """Runs a benchmark program: flags, measurement, table, JSON.

  Args:
    name: Name of the benchmark.
    sizes: name -> (default, help).
    run: Sizes to results.
    show: Prints results and sizes.
  """

  def program(argv: list[str]) -> None:
    del argv
    values = given(sizes)
    results = run(values)
    show(results, values)
    path = write_json(flags.FLAGS.output, name, values, results)
    print(f"Written to {path}")

  define_flags(sizes)
  app.run(program)


def write_json(
  path: str | os.PathLike[str] | None,
  name: str,
  parameters: Mapping[str, Any],
  results: Mapping[str, Any],
) -> pathlib.Path:
  """Writes results with versions and machine; returns where.

  Args:
    path: File to write; by default `benchmarks/results/NAME.json`.
    name: Name of the benchmark.
    parameters: The sizes.
    results: The results.
  """
  path = pathlib.Path(path) if path else RESULTS / f"{name}.json"
  path.parent.mkdir(parents=True, exist_ok=True)
  content = {
    "benchmark": name,
    "parameters": dict(parameters),
    "results": dict(results),
    "machine": machine(),
    "versions": versions(),
  }
  json_files.write(path, content)
  return path


def machine() -> dict[str, Any]:
  """Describes the kind of machine, without identifying it."""
  gpus = tf.config.list_physical_devices("GPU")
  return {
    "cpu": _cpu_model(),
    "cores": len(os.sched_getaffinity(0)),
    "memory_gib": round(
      os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1
    ),
    "gpus": [
      tf.config.experimental.get_device_details(gpu).get("device_name", "GPU")
      for gpu in gpus
    ],
    "system": platform.system(),
  }


def versions() -> dict[str, str]:
  """Versions of Python and of the relevant packages."""
  found = {"python": platform.python_version()}
  for package in _PACKAGES:
    try:
      found[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def _cpu_model() -> str:
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
  except OSError:
    return platform.processor()
  for line in lines.splitlines():
    if line.startswith("model name"):
      return line.partition(":")[2].strip()
  return platform.machine()
