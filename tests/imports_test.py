"""Checks the imports of the project.

The library is layered; what works without TensorFlow imports without it;
programs use only public names of the library, and never code of the other
folder of programs; only two files load ScaNN.
"""

import ast
import os
import pathlib
import re
import subprocess
import sys
import zipfile

import pytest

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_FOLDERS = ("xir_tfrs", "pipelines", "export", "benchmarks")

# A module imports only lower layers and its own package.
_LAYER = {
  "types": 0,
  "checks": 0,
  "ops": 1,
  "distribute": 2,
  "keras": 0,
  "layers": 3,
  "optimizers": 3,
  "tasks": 4,
  "metrics": 4,
  "indexes": 4,
  "models": 5,
  "diagnostics": 5,
  "data": 6,
  "serving": 7,
  "programs": 7,
}


def _modules(*folders):
  for folder in folders:
    for path in sorted((_ROOT / folder).rglob("*.py")):
      yield path.relative_to(_ROOT)


def _tree(path):
  return ast.parse((_ROOT / path).read_text(encoding="utf-8"), str(path))


def _imports(path):
  """Dotted names of all imports in a file; `from a import b` is a.b."""
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


def _is_private(name):
  return name.startswith("_") and not name.startswith("__")


def test_modules_are_found():
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
    if name == "xir_tfrs.__version__":
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


@pytest.mark.parametrize("path", _modules("pipelines", "export"), ids=str)
def test_programs_use_public_names_of_the_library(path):
  modules = set()
  for name in _imports(path):
    if _first(name) == "xir_tfrs":
      assert not any(map(_is_private, name.split("."))), f"{path}: {name}"
  tree = _tree(path)
  for node in ast.walk(tree):
    if isinstance(node, (ast.Import, ast.ImportFrom)):
      module = getattr(node, "module", None) or ""
      modules |= {
        alias.asname or alias.name.split(".")[0]
        for alias in node.names
        if _first(f"{module}.{alias.name}".lstrip(".")) == "xir_tfrs"
      }
  for node in ast.walk(tree):
    if isinstance(node, ast.Attribute) and _is_private(node.attr):
      start = node.value
      while isinstance(start, ast.Attribute):
        start = start.value
      own = not isinstance(start, ast.Name) or start.id not in modules
      assert own, f"{path}:{node.lineno} uses {ast.unparse(node)}"


@pytest.mark.parametrize(
  "path",
  [path for path in _modules("pipelines", "export") if len(path.parts) > 2],
  ids=str,
)
def test_rooms_do_not_import_programs(path):
  """Programs import packages beside them; the reverse would be a cycle."""
  for name in _imports(path):
    program = pathlib.Path(*name.split(".")[:2]).with_suffix(".py")
    if _first(name) in {"pipelines", "export"} and (_ROOT / program).exists():
      assert not _has_main(program), f"{path} imports {name}"


@pytest.mark.parametrize("path", _modules(*_FOLDERS), ids=str)
def test_flags_stand_beside_a_main(path):
  if path.parts[:2] == ("xir_tfrs", "programs"):
    return
  flags = [
    name
    for name in _imports(path)
    if name == "absl.flags" or name.startswith("absl.flags.")
  ]
  assert not flags or _has_main(path), f"{path} reads flags without a main"


def _loads_scann(tree):
  """Whether code imports ScaNN, or finds its files or ops by name."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      if any(alias.name.startswith("scann") for alias in node.names):
        return True
    elif isinstance(node, ast.ImportFrom):
      if (node.module or "").startswith("scann") and not node.level:
        return True
    elif isinstance(node, ast.Call) and node.args:
      called = ast.unparse(node.func).split(".")[-1]
      given = node.args[0]
      if called in {"import_module", "__import__", "find_spec", "distribution"}:
        if isinstance(given, ast.Constant) and "scann" in str(given.value):
          return True
  return False


@pytest.mark.parametrize(
  "code",
  [
    "import scann.scann_ops",
    "from scann import scann_ops",
    "def f():\n  import scann_pybind",
    "import importlib\nimportlib.import_module('scann')",
    "(p,) = importlib.util.find_spec('scann').submodule_search_locations",
  ],
)
def test_ways_to_load_scann_are_seen(code):
  assert _loads_scann(ast.parse(code))


def test_scann_is_loaded_in_two_files():
  """The index, and the folder that works without TensorFlow."""
  loading = {str(p) for p in _modules(*_FOLDERS) if _loads_scann(_tree(p))}
  assert loading == {
    "xir_tfrs/indexes/scann.py",
    "xir_tfrs/serving/scann_folder.py",
  }


@pytest.mark.parametrize("path", _modules(*_FOLDERS), ids=str)
def test_no_module_changes_the_import_path(path):
  """The other tests here do not see modules found through `sys.path`."""
  changes = [
    node
    for node in ast.walk(_tree(path))
    if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.path"
  ]
  # The second runs in a program's process and makes its packages importable.
  if str(path) not in {
    "xir_tfrs/serving/scann_folder.py",
    "xir_tfrs/programs/command.py",
  }:
    assert not changes, f"{path}:{changes[0].lineno}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  """Built from a copy, because setuptools writes into the source folder."""
  tmp_path = tmp_path_factory.mktemp("wheel")
  source = tmp_path / "source"
  files = [pathlib.Path(n) for n in ("setup.py", "pyproject.toml", "README.md")]
  files += [*_modules(*_FOLDERS, "tests"), pathlib.Path("xir_tfrs/py.typed")]
  files += _pages()
  for path in files:
    (source / path).parent.mkdir(parents=True, exist_ok=True)
    (source / path).write_bytes((_ROOT / path).read_bytes())
  subprocess.run(
    [sys.executable, "setup.py", "-q", "bdist_wheel", "-d", str(tmp_path)],
    cwd=source,
    check=True,
    capture_output=True,
  )
  (built,) = tmp_path.glob("*.whl")
  return zipfile.ZipFile(built)


def _pages():
  """The pages that programs show in a browser."""
  for folder in ("pipelines", "export"):
    for path in sorted((_ROOT / folder).rglob("*.html")):
      yield path.relative_to(_ROOT)


def test_the_wheel_holds_the_library_and_hides_the_programs(wheel):
  names = wheel.namelist()
  tops = {_first(name.split("/")[0].split("-")[0]) for name in names}
  assert tops == {"xir_tfrs"}
  packed = {name for name in names if name.endswith(".py")}
  programs = _modules("pipelines", "export")
  assert packed == {str(path) for path in _modules("xir_tfrs")} | {
    f"xir_tfrs/_programs/{path}" for path in programs
  }
  pages = {f"xir_tfrs/_programs/{path}" for path in _pages()}
  assert pages and pages <= {*names}
  # Without it, type checkers ignore the annotations of an installed xir_tfrs.
  assert "xir_tfrs/py.typed" in names


def test_the_command_of_the_wheel_runs_its_own_programs(wheel, tmp_path):
  wheel.extractall(tmp_path)
  # Packages of other projects with the same names.
  for name in ("pipelines", "export"):
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("raise SystemExit('theirs')")
  script = """
import sys
from xir_tfrs.programs import command
sys.argv = ["xir-tfrs", "query", "--help"]
try:
  command.main()
except SystemExit as end:
  assert not end.code, end.code
import export, os
print(export.__file__, os.environ["PYTHONPATH"].split(os.pathsep)[0])
"""
  done = subprocess.run(
    [sys.executable, "-c", script],
    cwd=tmp_path,
    env=os.environ | {"PYTHONPATH": str(tmp_path)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  place = tmp_path / "xir_tfrs/_programs"
  last = done.stdout.splitlines()[-1]
  assert last == f"{place}/export/__init__.py {place}"


# TensorFlow ------------------------------------------------------------------

# These import without TensorFlow, for --help of programs and for clients that
# do not have it.
_LIGHT = (
  *(
    f"{path.parent.name}.{path.stem}"
    for folder in ("pipelines", "export")
    for path in sorted((_ROOT / folder).glob("[!_]*.py"))
  ),
  "xir_tfrs",
  "xir_tfrs.data.errors",
  "xir_tfrs.data.atomic",
  "xir_tfrs.data.id_lists",
  "xir_tfrs.data.json_files",
  "xir_tfrs.data.schema",
  "xir_tfrs.programs.command",
  "xir_tfrs.programs.main",
  "xir_tfrs.programs.progress",
  "xir_tfrs.programs.settings",
  "xir_tfrs.serving",
  "xir_tfrs.serving.scann_folder",
)
_HEAVY = {
  "apache_beam",
  "keras",
  "pyarrow",
  "scann",
  "tensorflow",
  "tensorflow_recommenders",
  "tf_keras",
}


def test_light_modules_import_no_tensorflow():
  script = f"""
import importlib, sys
for name in {_LIGHT}:
  importlib.import_module(name)
  print(name, *sorted({_HEAVY} & sys.modules.keys()))
# It writes what TensorFlow reads, and reports errors at once.
importlib.import_module("pipelines.preparation.convert")
assert "tensorflow" not in sys.modules
"""
  done = subprocess.run(
    [sys.executable, "-c", script],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout.split("\n")[:-1] == list(_LIGHT)


def test_parts_load_when_they_are_used():
  script = """
import sys
import xir_tfrs as xir
assert "tensorflow" not in sys.modules
parts = [name for name in xir.__all__ if getattr(xir, name).__name__]
assert parts == xir.__all__ == dir(xir)
for name in parts:  # What an editor completes.
  room = getattr(xir, name)
  assert dir(room) == sorted(getattr(room, "__all__", dir(room))), name
assert "tensorflow" in sys.modules
try:
  xir.no_such_part
except AttributeError as error:
  print(error)
"""
  done = subprocess.run(
    [sys.executable, "-c", script],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout == "module 'xir_tfrs' has no attribute 'no_such_part'\n"


def test_every_part_is_listed():
  """In `__all__`, and where type checkers look for it."""
  tree = _tree(pathlib.Path("xir_tfrs/__init__.py"))
  (listed,) = (
    node.value
    for node in tree.body
    if isinstance(node, ast.Assign) and ast.unparse(node.targets) == "__all__"
  )
  # `checks` and `keras` are for the library, `programs` for the programs.
  parts = {path.parts[1].removesuffix(".py") for path in _modules("xir_tfrs")}
  parts -= {"__init__", "checks", "keras", "programs"}
  assert set(ast.literal_eval(listed)) == parts
  imported = {
    name.removeprefix("xir_tfrs.")
    for name in _imports(pathlib.Path("xir_tfrs/__init__.py"))
    if name.startswith("xir_tfrs.")
  }
  assert imported == parts


# make check ------------------------------------------------------------------


def test_check_has_a_test_of_each_package():
  """`make check` lists test files; it covers the packages they import."""
  makefile = (_ROOT / "Makefile").read_text(encoding="utf-8")
  (listed,) = re.findall(r"^CHECK := ((?:.*\\\n)*.*)$", makefile, re.MULTILINE)
  paths = [pathlib.Path(name) for name in listed.replace("\\\n", " ").split()]
  covered = set()
  for path in paths:
    names = {*_imports(path)}
    # A test of a program covers the imports of the program.
    for name in tuple(names):
      program = pathlib.Path(*name.split(".")[:2]).with_suffix(".py")
      if (
        program.parts[0] in {"pipelines", "export"}
        and (_ROOT / program).exists()
      ):
        names |= {*_imports(program)}
    text = (_ROOT / path).read_text(encoding="utf-8")
    parts = re.findall(r"\bxir\.(\w+)", text)
    names |= {f"xir_tfrs.{part}" for part in parts}
    covered |= {".".join(name.split(".")[:2]) for name in names}
  packages = {
    ".".join(path.parts[:2])
    for path in _modules("xir_tfrs", "pipelines", "export")
    if len(path.parts) > 2
  }
  assert len(packages) > 15
  assert packages <= covered
