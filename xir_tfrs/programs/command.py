"""The command `xir-tfrs`, with one sub-command per program.

    xir-tfrs train --data DATA --model_dir MODEL

runs `pipelines/train.py`. A wheel contains the folders `pipelines` and `export`
inside the package, visible to this command only, so that they do not conflict
with other packages of these names. In a checkout they are the folders beside
`xir_tfrs`.
"""

from __future__ import annotations

import ast
import difflib
import os
import pathlib
import runpy
import sys

from xir_tfrs import __version__

_FOLDERS = ("pipelines", "export")
# Sub-commands of programs whose files have longer names.
_SHORT = {"export_retriever": "export", "batch_recommend": "recommend"}
# The order in which users need them; all others follow.
_ORDER = (
  *("quickstart", "inspect", "prepare", "train", "tune", "evaluate", "compare"),
  *("export", "query", "verify", "refresh", "recommend", "serve"),
)


def name_of(module: str) -> str:
  """Returns the sub-command that runs a module, such as `pipelines.train`."""
  name = module.rpartition(".")[2]
  return _SHORT.get(name, name)


def place() -> pathlib.Path:
  """Returns the folder with `pipelines` and `export`."""
  package = pathlib.Path(__file__).resolve().parents[1]
  installed = package / "_programs"
  return installed if installed.is_dir() else package.parent


def programs() -> dict[str, str]:
  """Returns the module of each sub-command."""
  found = {}
  for folder in _FOLDERS:
    for path in sorted((place() / folder).glob("*.py")):
      if '__name__ == "__main__"' in path.read_text(encoding="utf-8"):
        found[name_of(path.stem)] = f"{folder}.{path.stem}"
  known = [name for name in _ORDER if name in found]
  return {name: found[name] for name in dict.fromkeys([*known, *found])}


def main() -> int:
  """Runs the sub-command that the command line names.

  Returns:
    2 if there is no such command; programs raise their status as `SystemExit`.
  """
  name, *arguments = sys.argv[1:] or ["--help"]
  found = programs()
  if name in ("--help", "-h", "help"):
    print(_overview(found))
    return 0
  if name == "--version":
    print(f"xir-tfrs {__version__}")
    return 0
  if name not in found:
    near = difflib.get_close_matches(name, found, 1)
    hint = f"did you mean {near[0]}?" if near else "see xir-tfrs --help."
    print(
      f"xir-tfrs: Error: there is no command {name!r}; {hint}", file=sys.stderr
    )
    return 2
  folder = str(place())
  sys.path.insert(0, folder)
  # For the processes that the program starts.
  paths = [folder, *filter(None, [os.environ.get("PYTHONPATH")])]
  os.environ["PYTHONPATH"] = os.pathsep.join(paths)
  sys.argv[:] = [name, *arguments]
  runpy.run_module(found[name], run_name="__main__", alter_sys=True)
  return 0


def _overview(found: dict[str, str]) -> str:
  width = max(map(len, found))
  return "\n".join(
    [
      "Trains, measures and serves the retrieval stage of a recommender.",
      "",
      "    xir-tfrs COMMAND [--FLAG VALUE ...]",
      "",
      "Commands:",
      *(f"  {name:<{width}}  {_summary(found[name])}" for name in found),
      "",
      "To begin: xir-tfrs quickstart; with a file: xir-tfrs inspect FILE.",
      "xir-tfrs COMMAND --help shows the main settings of a command, and",
      "--helpfull all of them; xir-tfrs --version shows the version.",
    ]
  )


def _summary(module: str) -> str:
  """The first line of the docstring, read without importing the module."""
  path = place().joinpath(*module.split(".")).with_suffix(".py")
  text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
  return text.partition("\n")[0]


if __name__ == "__main__":
  sys.exit(main())
