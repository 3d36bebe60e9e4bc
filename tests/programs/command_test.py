"""`xir-tfrs`: its sub-commands are the programs, and their help is short."""

import os
import pathlib
import sys

import pytest

from tests import program
from xir_tfrs.programs import command

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_PROGRAMS = command.programs()


@pytest.fixture
def xir_tfrs(monkeypatch, capsys):
  """Runs the command in this process: status, stdout, stderr."""
  monkeypatch.setattr(sys, "path", list(sys.path))
  monkeypatch.setenv("PYTHONPATH", "mine")

  def run(*arguments):
    monkeypatch.setattr(sys, "argv", ["xir-tfrs", *arguments])
    try:
      status = command.main()
    except SystemExit as end:
      status = end.code
    return (status or 0, *capsys.readouterr())

  return run


def test_every_program_is_a_command():
  assert {
    *("prepare", "inspect", "train", "evaluate", "export", "query"),
    *("refresh", "verify", "recommend", "serve", "quickstart"),
  } <= set(_PROGRAMS)
  files = {
    f"{folder}.{path.stem}"
    for folder in ("pipelines", "export")
    for path in (_ROOT / folder).glob("*.py")
    if path.stem != "__init__"
  }
  assert set(_PROGRAMS.values()) == files
  for name, module in _PROGRAMS.items():
    assert command.name_of(module) == name


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_overview(xir_tfrs, arguments):
  status, out, err = xir_tfrs(*arguments)
  assert (status, err) == (0, "")
  lines = out.splitlines()
  assert len(lines) <= 26 and max(map(len, lines)) <= 80
  for name in _PROGRAMS:
    assert f"  {name} " in out


def test_an_unknown_command(xir_tfrs):
  assert xir_tfrs("trian") == (
    2,
    "",
    "xir-tfrs: Error: there is no command 'trian'; did you mean train?\n",
  )
  _, _, err = xir_tfrs("--zzz")
  assert err.endswith("there is no command '--zzz'; see xir-tfrs --help.\n")


def test_a_command_runs_its_program(xir_tfrs):
  status, out, err = xir_tfrs("export", "--dta", "x")
  assert (status, out) == (2, "")
  assert err.startswith("export: Error: Unknown command line flag 'dta'.")
  # Processes that the program starts also find the programs.
  paths = os.environ["PYTHONPATH"].split(os.pathsep)
  assert paths == [str(_ROOT), "mine"]


@pytest.mark.parametrize("module", _PROGRAMS.values())
def test_help_fits_a_screen(module):
  done = program.run(module, "--help")
  assert (done.returncode, done.stderr) == (0, "")
  lines = done.stdout.splitlines()
  assert len(lines) <= 28 and max(map(len, lines)) <= 80, done.stdout
  name = command.name_of(module)
  assert lines[-1].endswith(f": xir-tfrs {name} --helpfull")
  assert f"xir-tfrs {name}" in lines[2], "its first example"
  full = program.run(module, "--helpfull").stdout
  assert len(full.splitlines()) > len(lines)
  assert full.count("\n\nFlags of every program:\n  --config: ") == 1
