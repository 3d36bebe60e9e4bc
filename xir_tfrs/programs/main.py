"""Runs a program: from flags to a config, from errors to an exit status."""

from __future__ import annotations

import errno
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

# What a disk says that is full, that is read-only, or that fails.
_OF_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
# The extra of the package that brings a module.
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
  """Work that failed for a reason which one line tells its user."""


# What is told in its own words.
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

  What the user can put right is one line on stderr: `settings.SettingsError`,
  with status 2; `errors.DataError`, `ProgramError`, `OSError`, what TensorFlow
  raises where a disk is full, and a missing package of an extra, with status 1.
  --debug adds the traceback. All else is a bug, and is raised.
  SIGTERM unwinds the stack as Ctrl-C does.

  Args:
    config_class: A frozen dataclass of settings, see `settings`.
    function: What the program does, defined in its file: it takes the config,
      and with `keep_unknown` the list of the other arguments. What it returns
      is the exit status; None: 0.
    make: From the settings that were given, by name, to the config; None:
      `settings.build`.
    keep_unknown: Whether other flags are handed on instead of refused.
    argv: The command line; None: that of the process.

  Returns:
    The exit status.
  """
  argv = [_as_utf8(x) for x in (sys.argv if argv is None else argv)]
  for stream in (sys.stdout, sys.stderr):
    # What a terminal cannot show is shown as \\xe9, and no error. Of stderr
    # that is so, and a stream that changed its file cannot be reconfigured.
    wanted = stream.errors != "backslashreplace"
    if isinstance(stream, io.TextIOWrapper) and wanted:
      stream.reconfigure(errors="backslashreplace")
  name, text = _program(function)
  logging.use_absl_handler()
  logging.set_verbosity(logging.WARNING)
  # Ours are in a `FlagValues` of their own; absl waits for its own to log.
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
    # Who reads our output has enough, as `head` does. At its end Python would
    # write what is left once more.
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
  """What --help or --helpfull prints.

  Args:
    name: Of the program.
    text: Its docstring; --help shows it up to its first example.
    config_class: Its settings.
    full: Whether it is --helpfull.
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
  """The command line, with the words before its flags as values of `flag`."""
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
    # Making a config does nothing but check.
    raise settings.SettingsError(str(error)) from error


def _program(function: Callable[..., Any]) -> tuple[str, str]:
  """Name and docstring of the file that defines a function."""
  module = inspect.getmodule(function)
  spec = getattr(module, "__spec__", None)
  name = spec.name if spec else pathlib.Path(sys.argv[0]).stem
  return command.name_of(name), (module.__doc__ or "").strip()


def _as_utf8(argument: str) -> str:
  """An argument that Python has taken for ASCII, as LC_ALL=C asks for."""
  content = argument.encode("utf-8", "surrogateescape")
  return content.decode("utf-8", "surrogateescape")


def _line(error: Exception) -> str | None:
  """What the user is told of an error; None: it is a bug."""
  if isinstance(error, shutil.Error) and isinstance(error.args[0], list):
    _, path, reason = error.args[0][0]  # Of the files that were not copied.
    return f"{path}: {reason.partition(': ')[0]}"
  if isinstance(error, OSError) and error.filename and error.strerror:
    return f"{error.filename}: {error.strerror}"
  if isinstance(error, _TOLD):
    text = str(error) or type(error).__name__
    return " ".join(line.strip() for line in text.splitlines())
  if isinstance(error, ModuleNotFoundError):
    extra = _EXTRAS.get((error.name or "").partition(".")[0])
    if extra:
      return f"{error}: pip install 'xir-tfrs[{extra}]'"
  is_of_disk = any(os.strerror(number) in str(error) for number in _OF_DISK)
  return errors.first_line(error) if is_of_disk else None
