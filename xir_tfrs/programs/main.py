"""Runs a program: turns flags into a config and errors into an exit status."""

from __future__ import annotations

import atexit
import errno
import gc
import inspect
import io
import os
import pathlib
import re
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags, logging

from xir_tfrs.data import errors
from xir_tfrs.programs import command, settings

# Errors of a disk that is full.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# The extra of the package that installs a module.
_EXTRAS = {
  **dict.fromkeys(("pyarrow", "fsspec", "tensorflow_datasets"), "data"),
  **dict.fromkeys(("starlette", "uvicorn", "prometheus_client"), "serving"),
  **dict.fromkeys(("tensorflow_serving", "grpc_health"), "serving"),
  **dict.fromkeys(("matplotlib", "jinja2"), "plots"),
  "apache_beam": "beam",
  "optuna": "tune",
  "scann": "scann",
}


class ProgramError(RuntimeError):
  """Work failed for a known reason, which one line explains to the user."""


# Errors whose own message is shown.
_TOLD = (errors.DataError, settings.SettingsError, ProgramError, OSError)


def run(
  config_class: type,
  function: Callable[..., int | None],
  *,
  make: Callable[[Mapping[str, Any]], Any] | None = None,
  keep_unknown: bool = False,
  argv: Sequence[str] | None = None,
) -> int:
  """Runs a program.

  Errors that the user can fix are printed to stderr in one line:
  `settings.SettingsError` with status 2; `errors.DataError`, `ProgramError`,
  `OSError`, TensorFlow's errors for a full disk, and a missing package of an
  extra with status 1. --debug adds the traceback. All other errors are bugs and
  are raised. SIGTERM unwinds the stack like Ctrl-C.

  Args:
    config_class: A frozen dataclass of settings, see `settings`.
    function: The work of the program, defined in its file. It takes the config
      and, with `keep_unknown`, the list of other arguments. It returns the exit
      status; None means 0.
    make: Builds the config from the given settings, by name; by default
      `settings.build`.
    keep_unknown: Whether to pass unknown flags on instead of refusing them.
    argv: The command line; by default that of the process.

  Returns:
    The exit status.
  """
  argv = [_as_utf8(x) for x in (sys.argv if argv is None else argv)]
  for stream in (sys.stdout, sys.stderr):
    # Characters that the terminal cannot show are escaped (\\xe9) instead of
    # raising an error, and lines appear at once also in files and pipes. stderr
    # does this already, and a stream that changed its file cannot be
    # reconfigured.
    wanted = stream.errors != "backslashreplace"
    if isinstance(stream, io.TextIOWrapper) and wanted:
      stream.reconfigure(errors="backslashreplace", line_buffering=True)
  # Without this, Python looks for garbage among all objects of TensorFlow when
  # the program ends: half a second.
  atexit.register(gc.freeze)
  name, text = _program(function)
  logging.use_absl_handler()
  logging.set_verbosity(logging.WARNING)
  # Our flags have their own `FlagValues`; absl's logging waits for absl's own.
  flags.FLAGS.mark_as_parsed()
  parsed = None
  in_main_thread = threading.current_thread() is threading.main_thread()
  if in_main_thread:
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
  try:
    parsed = settings.parse(config_class, argv, keep_unknown=keep_unknown)
    if parsed.help:
      print(_help(name, text, config_class, full=parsed.help == "full"))
      sys.stdout.flush()
      return 0
    if parsed.rest and not keep_unknown:
      raise settings.SettingsError(f"Not a flag: {parsed.rest[0]}; see --help.")
    config = _config(config_class, make, parsed.given)
    rest = (parsed.rest,) if keep_unknown else ()
    status = function(config, *rest) or 0
    sys.stdout.flush()
  except BrokenPipeError:
    # The reader of our output has closed it, as `head` does. At exit, Python
    # would try to write the rest again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE
  except Exception as e:
    told = _line(e)
    if told is None:
      raise
    if parsed and parsed.debug:
      traceback.print_exc()
    is_setting = isinstance(e, settings.SettingsError)
    if is_setting and parsed:
      told += parsed.origin_of(told)
    print(f"{name}: Error: {told}", file=sys.stderr, flush=True)
    return 2 if is_setting else 1
  except KeyboardInterrupt:
    print(f"{name}: Interrupted.", file=sys.stderr)
    return 128 + signal.SIGINT
  finally:
    if in_main_thread:
      signal.signal(signal.SIGTERM, before)
  return status


def _help(name: str, text: str, config_class: type, *, full: bool) -> str:
  """The text of --help or --helpfull.

  Args:
    name: Name of the program.
    text: Its docstring; --help shows it up to the first example.
    config_class: Its settings.
    full: Whether to return the text of --helpfull.
  """
  if full:
    return f"{text}\n\n{settings.full_help(config_class)}"
  short = re.match(r".*?\n\n +.*?(?=\n\n|\n\S|\Z)", text, re.DOTALL)
  shown = len(settings.common_of(config_class))
  number = len(settings.settings_of(config_class))
  more = f"All {number} settings" if shown < number else "More on each"
  return (
    f"{short[0] if short else text}\n\n{settings.short_help(config_class)}\n\n"
    f"{more}: xir-tfrs {name} --helpfull"
  )


def words_as_flags(argv: Sequence[str], flag: str) -> list[str]:
  """Turns the words before the first flag into values of `flag`."""
  program, *rest = argv
  first = next((k for k, word in enumerate(rest) if word.startswith("-")), None)
  words = rest if first is None else rest[:first]
  return [program, *(f"--{flag}={word}" for word in words), *rest[len(words) :]]


def _config(
  config_class: type,
  make: Callable[[Mapping[str, Any]], Any] | None,
  given: Mapping[str, Any],
) -> Any:
  try:
    return make(given) if make else settings.build(config_class, given)
  except errors.DataError:
    raise
  except ValueError as error:
    # Building a config only checks values.
    raise settings.SettingsError(str(error)) from error


def _program(function: Callable[..., Any]) -> tuple[str, str]:
  """Name and docstring of the file in which a function is defined."""
  module = inspect.getmodule(function)
  spec = getattr(module, "__spec__", None)
  name = spec.name if spec else pathlib.Path(sys.argv[0]).stem
  return command.name_of(name), (module.__doc__ or "").strip()


def _as_utf8(argument: str) -> str:
  """Decodes an argument that Python read as ASCII, because of LC_ALL=C."""
  content = argument.encode("utf-8", "surrogateescape")
  return content.decode("utf-8", "surrogateescape")


def _line(error: Exception) -> str | None:
  """The message for the user; None if the error is a bug."""
  if isinstance(error, shutil.Error) and isinstance(error.args[0], list):
    _, path, reason = error.args[0][0]  # The first file that was not copied.
    return f"{path}: {reason.partition(': ')[0]}"
  if isinstance(error, OSError) and error.filename and error.strerror:
    remedy = "; free some space, or write elsewhere"
    remedy = remedy if error.errno in _FULL else ""
    return f"{error.filename}: {error.strerror}{remedy}"
  if isinstance(error, _TOLD):
    text = str(error) or type(error).__name__
    return " ".join(line.strip() for line in text.splitlines())
  if isinstance(error, ModuleNotFoundError):
    extra = _EXTRAS.get((error.name or "").partition(".")[0])
    if extra:
      return (
        f"{error}: install 'xir-tfrs[all]' for all commands (in a checkout, "
        f"'.[all]'), or for this one pip install 'xir-tfrs[{extra}]'"
      )
  return None if errors.of_disk(error) is None else errors.first_line(error)
