r"""Times `pipelines.prepare` on a file of each kind.

    python -m benchmarks.readers

writes the same random interactions, of Gowalla's size, as text, compressed text
and JSON lines, and prepares each in this process. Reports rows per second, and
their ratio to text.
"""

import contextlib
import gzip
import io
import json
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks import harness
from pipelines import prepare
from pipelines.readers import inputs

_SIZES = {
  "rows": (1_027_370, "Rows of each file."),
  "users": (29_858, "Users."),
  "items": (40_981, "Items."),
  "repetitions": (5, "Repetitions; the median is reported."),
}
_TEXT = "text"


def run(sizes: dict[str, int]) -> dict[str, dict[str, float]]:
  """Times the cases; `sizes` has the keys of `_SIZES`.

  Returns:
    case -> `median_s` and the like, `rows_per_s`, and its `ratio` to text.
  """
  with tempfile.TemporaryDirectory() as folder:
    directory = pathlib.Path(folder)
    results = harness.summarise(
      harness.measure(
        {
          name: _preparation(path, directory / "data")
          for name, path in _write(directory, sizes).items()
        },
        repetitions=sizes["repetitions"],
      )
    )
  for result in results.values():
    result["rows_per_s"] = sizes["rows"] / result["median_s"]
    result["ratio"] = results[_TEXT]["median_s"] / result["median_s"]
  return results


def _preparation(path: pathlib.Path, output: pathlib.Path):
  config = prepare.PrepareConfig(
    input=inputs.Input(paths=(str(path),)), output=str(output), overwrite=True
  )

  def work() -> None:
    with contextlib.redirect_stdout(io.StringIO()):
      prepare.prepare(config)

  return work


def _write(
  directory: pathlib.Path, sizes: Mapping[str, int]
) -> dict[str, pathlib.Path]:
  """Writes the files; returns them by name of the case."""
  rng = np.random.default_rng(0)
  users = np.sort(rng.integers(sizes["users"], size=sizes["rows"])).tolist()
  items = rng.integers(sizes["items"], size=sizes["rows"]).tolist()
  pairs = list(zip(users, items, strict=True))
  text = "user_id:token\titem_id:token\n"
  text += "".join(f"{user}\t{item}\n" for user, item in pairs)
  lines = "".join(
    json.dumps({"user_id": str(user), "item_id": str(item)}) + "\n"
    for user, item in pairs
  )
  contents = {
    _TEXT: ("rows.inter", text.encode()),
    "text, gzip": ("rows.inter.gz", gzip.compress(text.encode())),
    "JSON lines": ("rows.jsonl", lines.encode()),
  }
  found = {}
  for name, (file, content) in contents.items():
    found[name] = directory / file
    found[name].write_bytes(content)
  return found


def show(results: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
  """Prints the table."""
  harness.print_table(
    f"prepare, {sizes['rows']:,} rows; median of {sizes['repetitions']}",
    ("", "rows/s", "x text"),
    [
      (name, f"{result['rows_per_s']:,.0f}", f"{result['ratio']:.2f}")
      for name, result in results.items()
    ],
  )


if __name__ == "__main__":
  harness.main("readers", _SIZES, run, show)
