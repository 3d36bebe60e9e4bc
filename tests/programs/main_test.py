"""`main.run`: the output and the exit status of programs."""

import dataclasses
import errno
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest

from xir_tfrs.programs import main, settings

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_PROGRAM = '''"""Fails as it is told.

    python -m failing --how HOW
"""
import dataclasses
import errno
import sys

from xir_tfrs.data import errors
from xir_tfrs.programs import main, settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(settings.Settings):
  how: str = settings.setting("The way.")
  times: int = settings.setting("How often.", 1, above=0)


def fail(config):
  if config.how == "data":
    raise errors.DataError("is\\n  empty", path="x.csv", line=3)
  if config.how == "setting":
    raise settings.SettingsError("--how is wrong.")
  if config.how == "reported":
    raise main.ProgramError("The loss is nan.")
  if config.how == "disk":
    raise OSError(errno.ENOSPC, "No space left on device", "out/part-0")
  if config.how == "bug":
    raise ValueError("not of the user")
  if config.how == "key":
    {}["key"]
  if config.how == "interrupt":
    raise KeyboardInterrupt
  if config.how == "wait":
    try:
      print("waiting", flush=True)
      import time
      time.sleep(60)
    finally:
      print("cleaned up", flush=True)
  if config.how == "much":
    for i in range(100_000):
      print(i)
  print("done", config.times)
  if not config.how.isascii():
    print(config.how)
  if config.how == "status":
    return 7


if __name__ == "__main__":
  status = main.run(Config, fail)
  assert "tensorflow" not in sys.modules
  sys.exit(status)
'''


@pytest.fixture(scope="module")
def command(tmp_path_factory):
  path = tmp_path_factory.mktemp("program") / "failing.py"
  path.write_text(_PROGRAM)
  return [sys.executable, str(path)]


def run(command, *arguments):
  done = subprocess.run(
    [*command, *arguments],
    cwd=_ROOT,
    env=os.environ | {"PYTHONPATH": str(_ROOT)},
    capture_output=True,
    text=True,
    timeout=60,
    check=False,
  )
  return done.returncode, done.stdout, done.stderr


def test_success(command):
  assert run(command, "--how=well") == (0, "done 1\n", "")
  assert run(command, "--how=status", "--times=2") == (7, "done 2\n", "")


@pytest.mark.parametrize(
  ("how", "status", "line"),
  [
    ("data", 1, "failing: Error: x.csv, line 3: is empty"),
    ("reported", 1, "failing: Error: The loss is nan."),
    (
      "disk",
      1,
      "failing: Error: out/part-0: No space left on device; free some space, "
      "or write elsewhere",
    ),
    ("setting", 2, "failing: Error: --how is wrong."),
    ("interrupt", 130, "failing: Interrupted."),
  ],
)
def test_a_users_mistake_is_one_line(command, how, status, line):
  assert run(command, f"--how={how}") == (status, "", f"{line}\n")


@dataclasses.dataclass(frozen=True)
class _Nothing(settings.Settings):
  """No settings."""


@pytest.mark.parametrize(
  ("error", "line"),
  [
    # As TensorFlow and `shutil.copytree` report it.
    (
      RuntimeError("{{node Save}} out/x; No space left on device [Op:SaveV2]"),
      "out/x; No space left on device",
    ),
    (
      shutil.Error([("a/x", "b/x", "[Errno 28] No space: 'a/x' -> 'b/x'")]),
      "b/x: [Errno 28] No space",
    ),
    (OSError(errno.ENOSPC, "No space left"), "[Errno 28] No space left"),
  ],
)
def test_a_full_disk_is_one_line(error, line, capsys):
  def fail(config):
    raise error

  assert main.run(_Nothing, fail, argv=["program"]) == 1
  assert capsys.readouterr().err == f"main_test: Error: {line}\n"


def test_a_missing_extra_is_named(capsys):
  error = ModuleNotFoundError("No module named 'x'", name="pyarrow.compute")

  def fail(config):
    raise error

  assert main.run(_Nothing, fail, argv=["program"]) == 1
  err = capsys.readouterr().err
  assert err.startswith("main_test: Error: No module named 'x': install 'xir-")
  assert err.endswith(" pip install 'xir-tfrs[data]'\n")
  assert err.count("\n") == 1
  setup = (_ROOT / "setup.py").read_text("utf-8")
  for extra in main._EXTRAS.values():
    assert f'  "{extra}": [' in setup
  # A missing module of ours, or of no extra, is a bug.
  error.name = "xir_tfrs.nothing"
  with pytest.raises(ModuleNotFoundError):
    main.run(_Nothing, fail, argv=["program"])


def test_a_setting_of_a_file_is_named_with_the_file(command, tmp_path):
  path = tmp_path / "run.yaml"
  path.write_text("how: setting\ntimes: 2\n")
  status, _, err = run(command, f"--config={path}")
  line = "failing: Error: --how is wrong."
  assert (status, err) == (2, f"{line} --how: see {path}.\n")
  # If a flag overrides the file, the error does not mention the file.
  status, _, err = run(command, f"--config={path}", "--how=setting")
  assert (status, err) == (2, f"{line}\n")


def test_debug_shows_the_traceback_too(command):
  status, _, err = run(command, "--how=data", "--debug")
  assert status == 1
  assert "Traceback" in err and "in fail" in err
  assert err.endswith("failing: Error: x.csv, line 3: is empty\n")


@pytest.mark.parametrize(
  ("how", "error"), [("bug", "ValueError: not of"), ("key", "KeyError: 'key'")]
)
def test_a_bug_shows_its_traceback(command, how, error):
  status, _, err = run(command, f"--how={how}")
  assert status == 1
  assert "Traceback" in err and error in err and "in fail" in err


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ([], "--how is required: The way."),
    (["--how=x", "stray"], "Not a flag: stray; see --help."),
    (["--hwo=x"], "Unknown command line flag 'hwo'. Did you mean: how ?"),
    (["--how=x", "--times=0"], "--times must be positive. Received: 0."),
  ],
)
def test_wrong_flags_end_with_2(command, arguments, message):
  status, out, err = run(command, *arguments)
  assert (status, out) == (2, "")
  assert err.count("\n") == 1
  assert err.startswith(f"failing: Error: {message}")


def test_help(command):
  # Also if other settings are wrong.
  status, out, err = run(command, "--help", "--config=nowhere", "--times=3")
  assert (status, err) == (0, "")
  assert out.startswith("Fails as it is told.\n\n    python -m failing")
  assert "--times: How often. Default: 1." in out


def test_sigterm_unwinds(command):
  process = subprocess.Popen(
    [*command, "--how=wait"],
    cwd=_ROOT,
    env=os.environ | {"PYTHONPATH": str(_ROOT)},
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == "waiting\n"
  process.send_signal(signal.SIGTERM)
  out, _ = process.communicate(timeout=60)
  assert (process.returncode, out) == (143, "cleaned up\n")


def test_a_terminal_of_ascii(command):
  """Ids are read as UTF-8, and escaped if they cannot be printed."""
  done = subprocess.run(
    [*command, "--how=Grüße"],
    cwd=_ROOT,
    env=os.environ
    | {"PYTHONPATH": str(_ROOT), "LC_ALL": "C", "PYTHONUTF8": "0"}
    | {"PYTHONCOERCECLOCALE": "0"},
    capture_output=True,
    check=False,
  )
  assert (done.returncode, done.stderr) == (0, b"")
  assert done.stdout == b"done 1\nGr\\xfc\\xdfe\n"


def test_a_closed_pipe_is_silent(command):
  process = subprocess.Popen(
    [*command, "--how=much"],
    cwd=_ROOT,
    env=os.environ | {"PYTHONPATH": str(_ROOT)},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == "0\n"
  process.stdout.close()
  assert process.stderr.read() == ""
  assert process.wait(timeout=60) == 141


def test_words_may_stand_before_the_flags():
  argv = ["x", "a", "b c", "--rows", "3"]
  expected = ["x", "--input=a", "--input=b c", "--rows", "3"]
  assert main.words_as_flags(argv, "input") == expected
  assert main.words_as_flags(["x", "a"], "run") == ["x", "--run=a"]
