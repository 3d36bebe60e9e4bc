"""Installs the wheel into an empty environment, and uses it there.

    python tools/check_wheel.py

The environment has the dependencies that setup.py declares and no extra, and
the checkout is not on its path: what is missing from the wheel, or is imported
and not declared, shows. README's Python sample trains, and a bundle that the
checkout writes answers the same in both.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

_ROOT = pathlib.Path(__file__).resolve().parent.parent

# A small bundle; its exact index needs no ScaNN.
_PROGRAMS = (
  "prepare --format synthetic --output data --synthetic_users 200 "
  "--synthetic_items 150 --synthetic_interactions 4000",
  "train --data data --model_dir run --task bir --dim 8 --epochs 1 "
  "--global_batch_size 256",
)
_EXPORT = (
  "export_retriever --data data --model_dir run --output bundle "
  "--index brute_force"
)

# Goes on where README's sample ends: user 7 chooses among these items.
FOUND = """
assert ((350 <= ids.numpy()) & (ids.numpy() < 400)).all(), ids.numpy()
"""

_ASK = """
import json, pathlib, sys
import xir_tfrs as xir
bundle = xir.serving.Bundle.load(sys.argv[1])
answer = bundle.recommend(query_ids=["u1", "u2", "nobody"], k=5)
print(json.dumps({
    "where": str(pathlib.Path(xir.__file__).parent),
    "ids": [list(map(str, row)) for row in answer.ids]}))
"""

_MODULES = """
import importlib, pathlib, xir_tfrs
from xir_tfrs.data import errors
root = pathlib.Path(xir_tfrs.__file__).parent
for path in sorted(root.rglob("*.py")):
  name = ".".join(("xir_tfrs", *path.relative_to(root).with_suffix("").parts))
  name = name.removesuffix(".__init__")
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
    python = _install(folder)
    bundle = _write_bundle(folder)
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
    installed = json.loads(_run([python, "-c", _ASK, bundle], away))
    checkout = json.loads(_run([sys.executable, "-c", _ASK, bundle], _ROOT))
  assert installed["where"].startswith(name), installed["where"]
  assert installed["ids"] == checkout["ids"], (installed, checkout)
  print("The wheel imports, trains and answers on its own.")


def _install(folder: pathlib.Path) -> pathlib.Path:
  """The Python of a new environment, with the wheel of a copy.

  A copy, since setuptools puts files beside its sources, and what an earlier
  build left there into the wheel.
  """
  source = folder / "source"
  shutil.copytree(
    _ROOT / "xir_tfrs",
    source / "xir_tfrs",
    ignore=shutil.ignore_patterns("__pycache__"),
  )
  for file in ("setup.py", "pyproject.toml", "README.md"):
    shutil.copy(_ROOT / file, source)
  venv = folder / "venv"
  _run([sys.executable, "-m", "venv", venv], folder)
  python = venv / "bin" / "python"
  pip = [python, "-m", "pip", "install", "--quiet"]
  # The pip that comes with Python 3.10 searches for ever for versions that
  # agree.
  _run([*pip, "--upgrade", "pip"], folder)
  _run([*pip, source], folder)
  return python


def _write_bundle(folder: pathlib.Path) -> pathlib.Path:
  environment = os.environ | {"PYTHONPATH": str(_ROOT)}
  programs = [f"pipelines.{arguments}" for arguments in _PROGRAMS]
  for arguments in (*programs, f"export.{_EXPORT}"):
    command = [sys.executable, "-m", *arguments.split()]
    _run(command, folder, environment)
  return folder / "bundle"


def _run(
  command: list[object],
  folder: pathlib.Path,
  environment: dict[str, str] | None = None,
) -> str:
  """What a command prints to stdout; without PYTHONPATH unless given."""
  if environment is None:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
  done = subprocess.run(
    [str(part) for part in command],
    cwd=folder,
    env=environment | {"TF_CPP_MIN_LOG_LEVEL": "3"},
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  return done.stdout


if __name__ == "__main__":
  main()
