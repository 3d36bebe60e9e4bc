r"""Measures `prepare` in one process against `prepare_beam` with workers.

    python -m benchmarks.beam --rows 50000000 --workers 2

writes random interactions to a Parquet file with many row groups, prepares it
with both programs, and compares their files. Reports rows per second, processor
time, and the peak memory of each process. Linux only.
"""

import filecmp
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet as pq

from benchmarks import harness

_SIZES = {
  "rows": (5_000_000, "Interactions."),
  "users": (2_000_000, "Users, all equally active."),
  "items": (200_000, "Items, with popularities as of Zipf's law."),
  "row_groups": (100, "Row groups of the file."),
  "workers": (2, "Worker processes of Beam."),
}
_SECONDS_BETWEEN_LOOKS = 0.1
_TICKS = os.sysconf("SC_CLK_TCK")


def run(sizes: Mapping[str, int]) -> dict[str, Any]:
  """Prepares with both programs; `sizes` has the keys of `_SIZES`.

  Returns:
    program -> `seconds`, `rows_per_s`, `cpu_s`, and `processes`, each with its
    `name`, `cpu_s` and `peak_mib`; and whether both wrote the `same` files.
  """
  with tempfile.TemporaryDirectory() as folder:
    directory = pathlib.Path(folder)
    _write(directory / "log.parquet", sizes)
    results: dict[str, Any] = {}
    for program, *more in (
      ("prepare",),
      (
        "prepare_beam",
        "--direct_running_mode=multi_processing",
        f"--direct_num_workers={sizes['workers']}",
      ),
    ):
      seconds, processes = _measured(
        f"pipelines.{program}",
        f"--input={directory / 'log.parquet'}",
        f"--output={directory / program}",
        *more,
      )
      results[program] = {
        "seconds": seconds,
        "rows_per_s": sizes["rows"] / seconds,
        "cpu_s": sum(process["cpu_s"] for process in processes),
        "processes": processes,
      }
    results["same"] = _same(directory / "prepare", directory / "prepare_beam")
  return results


def _same(one: pathlib.Path, other: pathlib.Path) -> bool:
  """Whether two folders have the same files, byte for byte."""
  names, others = (
    sorted(path.name for path in folder.iterdir()) for folder in (one, other)
  )
  differing = filecmp.cmpfiles(one, other, names, shallow=False)[1:]
  return names == others and not any(differing)


def _write(path: pathlib.Path, sizes: Mapping[str, int]) -> None:
  """Ids and times are integers of 8 bytes; ids are not in order."""
  rng = np.random.default_rng(0)
  users = 7_000_000_000 + rng.permutation(sizes["users"])
  items = 100_000_000 + rng.permutation(sizes["items"])
  schema = pa.schema(
    [(name, pa.int64()) for name in ("user_id", "item_id", "timestamp")]
  )
  with pq.ParquetWriter(path, schema) as writer:
    for group in range(sizes["row_groups"]):
      start, stop = (
        sizes["rows"] * k // sizes["row_groups"] for k in (group, group + 1)
      )
      number = stop - start
      ranks = (sizes["items"] ** rng.random(number)).astype(np.int64)
      columns = [
        users[rng.integers(len(users), size=number)],
        items[np.minimum(ranks, len(items)) - 1],
        rng.integers(1_500_000_000, 1_600_000_000, number),
      ]
      writer.write_table(
        pa.table(columns, schema), row_group_size=max(number, 1)
      )


def _measured(*command: str) -> tuple[float, list[dict[str, Any]]]:
  """Runs a program; returns its seconds and what its processes used."""
  start = time.perf_counter()
  used: dict[int, dict[str, Any]] = {}
  with (
    tempfile.TemporaryFile() as log,
    subprocess.Popen(
      [sys.executable, "-m", *command],
      cwd=pathlib.Path(__file__).parent.parent,
      stdout=log,
      stderr=subprocess.STDOUT,
    ) as process,
  ):
    while process.poll() is None:
      used |= {pid: found for pid, found in _used_by(process.pid)}
      time.sleep(_SECONDS_BETWEEN_LOOKS)
    if process.returncode:
      log.seek(0)
      raise RuntimeError(log.read().decode(errors="replace"))
  return time.perf_counter() - start, list(used.values())


def _used_by(root: int) -> Iterator[tuple[int, dict[str, Any]]]:
  """What a process and all below it have used so far."""
  fields: dict[int, list[str]] = {}
  for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
    try:
      text = path.read_text(encoding="utf-8")
    except OSError:  # It has ended.
      continue
    fields[int(path.parent.name)] = text.rpartition(")")[2].split()
  family = {root}
  for pid in sorted(fields):  # Parents are older than their children.
    if int(fields[pid][1]) in family:
      family.add(pid)
  for pid in family & fields.keys():
    try:
      status = (pathlib.Path("/proc") / str(pid) / "status").read_text("utf-8")
      words = (pathlib.Path("/proc") / str(pid) / "cmdline").read_bytes()
    except OSError:
      continue
    peak = status.partition("VmHWM:")[2].split()
    if peak and b"-m" in words.split(b"\0")[:2]:  # Not the shells between.
      name = words.split(b"\0")[2].decode().rpartition(".")[2]
      cpu = sum(map(int, fields[pid][11:13])) / _TICKS
      yield pid, {"name": name, "cpu_s": cpu, "peak_mib": int(peak[0]) / 1024}


def show(results: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
  """Prints the table."""
  rows: list[Sequence[str]] = []
  for program in ("prepare", "prepare_beam"):
    result = results[program]
    rows.append(
      (
        program,
        f"{result['seconds']:.1f}",
        f"{result['rows_per_s']:,.0f}",
        f"{result['cpu_s']:.1f}",
        "",
      )
    )
    rows += [
      ("  " + p["name"], "", "", f"{p['cpu_s']:.1f}", f"{p['peak_mib']:,.0f}")
      for p in result["processes"]
    ]
  harness.print_table(
    f"{sizes['rows']:,} rows of {sizes['users']:,} users and"
    f" {sizes['items']:,} items in {sizes['row_groups']} row groups,"
    f" {sizes['workers']} workers",
    ("", "s", "rows/s", "processor s", "peak MiB"),
    rows,
  )
  print("the same files" if results["same"] else "the files DIFFER")


if __name__ == "__main__":
  harness.main("beam", _SIZES, run, show)
