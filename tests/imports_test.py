"""Reads the imports of the project, and imports it under every Keras setting.

The rules are section 2 of the architecture: the library is layered, programs
use only its public names and never each other, flags stand beside a `main`,
and ScaNN in one file.
"""

import ast
import os
import pathlib
import subprocess
import sys
import zipfile

import pytest

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_FOLDERS = ("xir_tfrs", "pipelines", "export", "benchmarks")

# A module may import those of a lower layer and of its own package.
_LAYER = {
  "types": 0,
  "ops": 0,
  "distribute": 1,
  "keras": 0,
  "layers": 2,
  "optimizers": 2,
  "tasks": 3,
  "metrics": 3,
  "indexes": 3,
  "models": 4,
  "diagnostics": 4,
  "data": 4,
  "serving": 5,
  "programs": 5,
}


def _modules(*folders):
  for folder in folders:
    for path in sorted((_ROOT / folder).rglob("*.py")):
      yield path.relative_to(_ROOT)


def _tree(path):
  return ast.parse((_ROOT / path).read_text(encoding="utf-8"), str(path))


def _imports(path):
  """Dotted names a file imports, anywhere in it; `from a import b` is a.b."""
  for node in ast.walk(_tree(path)):
    if isinstance(node, ast.Import):
      for alias in node.names:
        yield alias.name
    elif isinstance(node, ast.ImportFrom):
      base = node.module or ""
      if node.level:
        parents = path.parts[: len(path.parts) - node.level]
        base = ".".join((*parents, base)).rstrip(".")
      for alias in node.names:
        yield f"{base}.{alias.name}"


def _has_main(path):
  return any(
    isinstance(node, ast.FunctionDef) and node.name == "main"
    for node in _tree(path).body
  )


def _first(name):
  return name.split(".")[0]


def test_there_is_something_to_read():
  # An empty list of files would pass every test below.
  found = {name for path in _modules("xir_tfrs") for name in _imports(path)}
  assert {"tensorflow", "xir_tfrs.ops.masking"} <= found


@pytest.mark.parametrize("path", _modules("xir_tfrs"), ids=str)
def test_library_imports_go_one_way(path):
  package = path.parts[1].removesuffix(".py")
  if package == "__init__":
    return
  assert package in _LAYER, f"{path}: give {package} its layer in this test"
  for name in _imports(path):
    if _first(name) != "xir_tfrs":
      continue
    parts = name.split(".")
    assert len(parts) > 1 and parts[1] in _LAYER, f"{path} imports {name}"
    if parts[1] != package:
      assert _LAYER[parts[1]] < _LAYER[package], f"{path} imports {name}"


@pytest.mark.parametrize("path", _modules("xir_tfrs"), ids=str)
def test_library_never_imports_programs_or_tests(path):
  for name in _imports(path):
    assert _first(name) not in {"pipelines", "export", "benchmarks", "tests"}


@pytest.mark.parametrize("path", _modules("xir_tfrs/ops"), ids=str)
def test_ops_are_pure_tensorflow(path):
  allowed = {"tensorflow", "numpy", "xir_tfrs", *sys.stdlib_module_names}
  for name in _imports(path):
    assert _first(name) in allowed, f"{path} imports {name}"


@pytest.mark.parametrize("path", _modules("pipelines", "export"), ids=str)
def test_programs_share_directories_not_code(path):
  other = {"pipelines": "export", "export": "pipelines"}[path.parts[0]]
  for name in _imports(path):
    assert _first(name) not in {other, "tests"}, f"{path} imports {name}"
    if _first(name) == "xir_tfrs":
      private = [part for part in name.split(".") if part.startswith("_")]
      assert private in ([], ["__version__"]), f"{path} imports {name}"


@pytest.mark.parametrize("path", _modules(*_FOLDERS), ids=str)
def test_flags_stand_beside_a_main(path):
  flags = [
    name
    for name in _imports(path)
    if name == "absl.flags" or name.startswith("absl.flags.")
  ]
  assert not flags or _has_main(path), f"{path} reads flags without a main"


@pytest.mark.parametrize("path", _modules(*_FOLDERS), ids=str)
def test_scann_stands_in_one_file(path):
  if path != pathlib.Path("xir_tfrs/indexes/scann.py"):
    names = [name for name in _imports(path) if _first(name) == "scann"]
    assert not names, f"{path} imports scann"


def test_the_wheel_holds_only_the_library(tmp_path):
  """Built from a copy: setuptools writes beside its sources."""
  source = tmp_path / "source"
  files = [pathlib.Path(n) for n in ("setup.py", "pyproject.toml", "README.md")]
  files += _modules(*_FOLDERS, "tests")
  for path in files:
    (source / path).parent.mkdir(parents=True, exist_ok=True)
    (source / path).write_bytes((_ROOT / path).read_bytes())
  subprocess.run(
    [sys.executable, "setup.py", "-q", "bdist_wheel", "-d", str(tmp_path)],
    cwd=source,
    check=True,
    capture_output=True,
  )
  (wheel,) = tmp_path.glob("*.whl")
  names = zipfile.ZipFile(wheel).namelist()
  tops = {_first(name.split("/")[0].split("-")[0]) for name in names}
  assert tops == {"xir_tfrs"}
  packed = {name for name in names if name.endswith(".py")}
  assert packed == {str(path) for path in _modules("xir_tfrs")}


# Keras -----------------------------------------------------------------------

_USE = """
import xir_tfrs as xir
import tensorflow as tf
task = xir.tasks.BIRRetrieval(candidate_counts=[1, 2])
assert isinstance(task, tf.keras.layers.Layer)
loss = task(tf.eye(2), tf.eye(2), candidate_ids=tf.constant([0, 1]))
assert loss.shape == []
print("it works")
"""
# Name: environment, what runs before, and whether it may be refused.
_KERAS = {
  "unset": ({}, "", False),
  "one": ({"TF_USE_LEGACY_KERAS": "1"}, "", False),
  "zero": ({"TF_USE_LEGACY_KERAS": "0"}, "", True),
  "after_tensorflow": ({}, "import tensorflow", False),
  "after_keras_3": (
    {},
    "import tensorflow as tf; tf.keras.Model",
    True,
  ),
  "jax_backend": ({"KERAS_BACKEND": "jax"}, "", False),
}


@pytest.fixture(scope="module")
def keras_runs():
  """All cases, two processes at a time: most of a case is importing."""
  names = list(_KERAS)
  results = {}
  for start in range(0, len(names), 2):
    running = {}
    for name in names[start : start + 2]:
      environment, before, _ = _KERAS[name]
      inherited = {
        key: value
        for key, value in os.environ.items()
        if key not in ("TF_USE_LEGACY_KERAS", "KERAS_BACKEND")
      }
      running[name] = subprocess.Popen(
        [sys.executable, "-c", before + _USE],
        cwd=_ROOT,
        env={**inherited, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
    for name, process in running.items():
      out, err = process.communicate(timeout=120)
      results[name] = (process.returncode, out, err)
  return results


@pytest.mark.parametrize("name", _KERAS)
def test_imports_whatever_the_user_set_about_keras(keras_runs, name):
  """It works, or one sentence says what to do."""
  code, out, err = keras_runs[name]
  may_be_refused = _KERAS[name][2]
  if code == 0:
    assert "it works" in out
    return
  assert may_be_refused, err
  sentence = err.strip().splitlines()[-1]
  assert sentence.startswith("ImportError: "), err
  assert "TF_USE_LEGACY_KERAS" in sentence
  assert "xir_tfrs" in sentence
  # One cause, not a second traceback about the first.
  assert err.count("Traceback (most recent call last)") == 1, err
