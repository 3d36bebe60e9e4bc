"""Runs a program like a user, but in this process."""

import contextlib
import dataclasses
import io
import runpy
import sys
import warnings
from unittest import mock


@dataclasses.dataclass(frozen=True)
class Done:
  """The result of a program, like `subprocess.CompletedProcess`."""

  returncode: int
  stdout: str
  stderr: str


def run(name: str, *arguments: object) -> Done:
  """Runs `python -m NAME ARGUMENTS`.

  Bugs raise their exception. Importing TensorFlow takes longer than most
  programs: only tests of a program's imports or exit need a process.
  """
  stdout, stderr = io.StringIO(), io.StringIO()
  status: object = None
  with (
    contextlib.redirect_stdout(stdout),
    contextlib.redirect_stderr(stderr),
    mock.patch.object(sys, "argv", [name, *map(str, arguments)]),
    warnings.catch_warnings(),
  ):
    # The warning that the module is already imported.
    warnings.simplefilter("ignore", RuntimeWarning)
    try:
      runpy.run_module(name, run_name="__main__", alter_sys=True)
    except SystemExit as end:
      status = end.code
  assert status is None or isinstance(status, int), status
  return Done(status or 0, stdout.getvalue(), stderr.getvalue())
