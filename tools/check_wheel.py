"""Installs the wheel into an empty environment and uses it there.

    python tools/check_wheel.py

The environment has the dependencies in setup.py, later also those of the extra
`data`, and the checkout is not on its path. This finds files that are missing
from the wheel and dependencies that are not declared. README's Python sample
trains, and `xir-tfrs` goes from files to a bundle, which answers as in the
checkout.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

_ROOT = pathlib.Path(__file__).resolve().parent.parent

# Commands that need no extra: neither pyarrow nor ScaNN.
_COMMANDS = (
  "prepare --format synthetic --output data --synthetic_users 200 "
  "--synthetic_items 150 --synthetic_interactions 4000",
  "train --data data --model_dir run --task bir --dim 8 --epochs 1 "
  "--global_batch_size 256",
  "evaluate --model_dir run",
  "export --data data --model_dir run --output bundle --index brute_force",
)
_QUERY = "query --bundle bundle --query_id u1 --query_id nobody --k 5 --json"

# Continues README's sample: user 7 chooses among these items.
FOUND = """
assert ((350 <= ids.numpy()) & (ids.numpy() < 400)).all(), ids.numpy()
"""

_ASK = """
import json, sys
import xir_tfrs as xir
bundle = xir.serving.Bundle.load(sys.argv[1])
answer = bundle.recommend(query_ids=["u1", "nobody"], k=5)
print(json.dumps([list(map(str, row)) for row in answer.ids]))
"""

_MODULES = """
import importlib, pathlib, xir_tfrs
from xir_tfrs.data import errors
root = pathlib.Path(xir_tfrs.__file__).parent
for path in sorted(root.rglob("*.py")):
  name = ".".join(("xir_tfrs", *path.relative_to(root).with_suffix("").parts))
  name = name.removesuffix(".__init__")
  if "_programs" in name:
    continue  # They are run below.
  try:
    importlib.import_module(name)
  except errors.DataError as error:
    # Raw files are read by an extra, and the message says which.
    assert name.startswith("xir_tfrs.data.files"), name
    assert "xir-tfrs[data]" in str(error), error
for extra in ("scann", "pyarrow", "tensorflow_datasets"):
  assert importlib.util.find_spec(extra) is None, extra
"""


def main() -> None:
  """Raises CalledProcessError or AssertionError if the wheel is not enough."""
  with tempfile.TemporaryDirectory(prefix="check_wheel-") as name:
    folder = pathlib.Path(name)
    wheel = _build(folder)
    python = _install(folder, wheel)
    sample = re.search(
      r"^```python\n(.*?)^```",
      (_ROOT / "README.md").read_text(encoding="utf-8"),
      re.MULTILINE | re.DOTALL,
    )
    assert sample, "README.md has no Python sample"
    away = folder / "away"
    away.mkdir()
    _run([python, "-m", "pip", "check"], away)
    _run([python, "-c", _MODULES], away)
    _run([python, "-c", sample[1] + FOUND], away)
    command = python.parent / "xir-tfrs"
    _try_without_the_extra(command, away)
    _run([python, "-m", "pip", "install", "-q", f"{wheel}[data]"], away)
    _try_help(command, away)
    for arguments in _COMMANDS:
      _run([command, *arguments.split()], away)
    printed = _run([command, *_QUERY.split()], away)
    asked = [sys.executable, "-c", _ASK, away / "bundle"]
    checkout = json.loads(_run(asked, _ROOT))
  answers = [json.loads(line)["candidate_ids"] for line in printed.splitlines()]
  assert answers == checkout, (answers, checkout)
  print("The wheel imports, trains, exports and answers on its own.")


def _build(folder: pathlib.Path) -> pathlib.Path:
  """Builds the wheel from a copy of the sources.

  Setuptools writes files beside its sources, and adds leftovers of earlier
  builds to the wheel.
  """
  source = folder / "source"
  for packages in ("xir_tfrs", "pipelines", "export"):
    shutil.copytree(
      _ROOT / packages,
      source / packages,
      ignore=shutil.ignore_patterns("__pycache__"),
    )
  for file in ("setup.py", "pyproject.toml", "README.md"):
    shutil.copy(_ROOT / file, source)
  _run(
    [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", source], folder
  )
  (wheel,) = folder.glob("*.whl")
  return wheel


def _install(folder: pathlib.Path, wheel: pathlib.Path) -> pathlib.Path:
  """Returns the Python of a new environment with the wheel, without extras."""
  venv = folder / "venv"
  _run([sys.executable, "-m", "venv", venv], folder)
  python = venv / "bin" / "python"
  pip = [python, "-m", "pip", "install", "--quiet"]
  # The pip of Python 3.10 searches forever for compatible versions.
  _run([*pip, "--upgrade", "pip"], folder)
  # Most modules of the dependencies are never imported.
  _run([*pip, "--no-compile", wheel], folder)
  return python


def _try_without_the_extra(command: pathlib.Path, folder: pathlib.Path) -> None:
  """Checks that reading files without the extra names the extra."""
  done = subprocess.run(
    [command, *_COMMANDS[0].split()],
    cwd=folder,
    env=_environment(),
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 1, done
  assert done.stderr.endswith("pip install 'xir-tfrs[data]'\n"), done.stderr
  assert done.stderr.count("\n") == 1, done.stderr


def _try_help(command: pathlib.Path, folder: pathlib.Path) -> None:
  """Shows the help of every command in the overview."""
  overview = _run([command, "--help"], folder)
  names = re.findall(r"^  (\w+)  ", overview, re.MULTILINE)
  assert {"prepare", "train", "export", "query", "serve"} <= set(names), names
  for name in names:
    began = time.monotonic()
    text = _run([command, name, "--help"], folder)
    assert f"xir-tfrs {name}" in text, text
    took = time.monotonic() - began
    print(f"xir-tfrs {name} --help: {took:.2f} s")


def _environment() -> dict[str, str]:
  """The current environment without PYTHONPATH."""
  inherited = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
  return inherited | {"TF_CPP_MIN_LOG_LEVEL": "3"}


def _run(command: list[object], folder: pathlib.Path) -> str:
  """Runs a command and returns its stdout."""
  done = subprocess.run(
    [str(part) for part in command],
    cwd=folder,
    env=_environment(),
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  return done.stdout


if __name__ == "__main__":
  main()
