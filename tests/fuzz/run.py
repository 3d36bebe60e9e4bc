"""Runs all readers of the project on broken and unusual inputs.

    make fuzz SECONDS=600
    make fuzz SECONDS=600 ARGS='--only=csv --only=parquet'

A reader either reads an input correctly, which is compared with an independent
parser, or refuses it with a one-line error that names the file. Anything else
is a fault: it is printed with its input, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import sys
import tempfile
import time

from tests.export import conftest as worlds
from tests.fuzz import bodies, bundles, disk, readers, targets

_BATCH = 100


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--seconds", type=float, default=60.0)
  parser.add_argument("--inputs", type=int, help="stop after this many")
  parser.add_argument("--seed", type=int, default=1)
  parser.add_argument("--only", action="append", help="name of a target")
  options = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    found = _all(pathlib.Path(folder), options.only)
    tallies = _try(found, options.seconds, options.inputs, options.seed)
  return _report(tallies)


def _all(folder: pathlib.Path, only: list[str] | None) -> list[targets.Target]:
  world = worlds.make_world(folder)
  bundle = worlds.export_both(world, folder / "bundle")
  found = [
    *readers.targets(folder / "files"),
    *disk.targets(world, folder / "disk"),
    *bundles.targets(bundle),
    *bodies.targets(world, bundle),
  ]
  names = [target.name for target in found]
  if only and set(only) - set(names):
    raise SystemExit(f"--only must be one of {', '.join(names)}.")
  return [target for target in found if not only or target.name in only]


def _try(
  found: list[targets.Target], seconds: float, inputs: int | None, seed: int
) -> dict[str, targets.Tally]:
  """Runs batches of inputs, with the same time for each target."""
  tallies = {target.name: targets.Tally() for target in found}
  spent = dict.fromkeys(tallies, 0.0)
  end = time.monotonic() + seconds
  # Ctrl-C stops early and still prints the report.
  with contextlib.suppress(KeyboardInterrupt):
    while time.monotonic() < end:
      if inputs and sum(tally.total for tally in tallies.values()) >= inputs:
        break
      target = min(found, key=lambda target: spent[target.name])
      tally, start = tallies[target.name], time.process_time()
      known = len(tally.faults)
      targets.run(target, _BATCH, seed, tally)
      for kind, shown in list(tally.faults.items())[known:]:
        print(f"{target.name}: {kind}\n{shown}", file=sys.stderr, flush=True)
      spent[target.name] += time.process_time() - start
      seed += 1
  return tallies


def _report(tallies: dict[str, targets.Tally]) -> int:
  print(
    f"{'target':24} {'inputs':>8} {'right':>8} {'refused':>8} {'faults':>6}"
  )
  for name, tally in tallies.items():
    print(
      f"{name:24} {tally.total:8,} {tally.right:8,} {tally.refused:8,}"
      f" {len(tally.faults):6,}   slowest {tally.slowest:.2f} s"
    )
  total = sum(tally.total for tally in tallies.values())
  faults = sum(len(tally.faults) for tally in tallies.values())
  print(f"{'all':24} {total:8,} {faults:24,}")
  return 1 if faults else 0


if __name__ == "__main__":
  sys.exit(main())
