"""The flags that are Beam's: ours are those of `pipelines.prepare`."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable, Sequence

import apache_beam as beam
from apache_beam.options import pipeline_options

from xir_tfrs.programs import settings

# Runners that ask a service what its flags are: Beam itself cannot know them.
_WITH_OTHER_FLAGS = ("portable", "flink", "spark", "kafka")
# The part of the direct runner that runs in this process; all of it would
# first try to download another runner.
_DEFAULT_RUNNER = "FnApiRunner"


def parse(
  beam_flags: Sequence[str], own_flags: Iterable[str] = ()
) -> pipeline_options.PipelineOptions:
  """The options of the pipelines; SettingsError for a flag that no one takes.

  Args:
    beam_flags: all that are not ours.
    own_flags: the names of ours, for who misspells one.
  """
  options = pipeline_options.PipelineOptions(list(beam_flags))
  standard = options.view_as(pipeline_options.StandardOptions)
  standard.runner = standard.runner or _DEFAULT_RUNNER
  strict = not any(r in standard.runner.lower() for r in _WITH_OTHER_FLAGS)

  def check(parser: argparse.ArgumentParser) -> None:
    known, unknown = parser.parse_known_args(list(beam_flags))
    for word in unknown:
      _check_unknown(word, [*own_flags, *vars(known)], strict)

  options.get_all_options(add_extra_args_fn=check, retain_unknown_options=True)
  try:
    beam.Pipeline(options=options)  # Checks the values; nothing runs.
  except ValueError as e:
    raise settings.SettingsError(str(e)) from None
  return options


def _check_unknown(word: str, known: Sequence[str], strict: bool) -> None:
  name = word.removeprefix("--").partition("=")[0]
  if name == word:
    # The value of an unknown flag, unless there can be none.
    if strict:
      raise settings.SettingsError(
        f"{word!r} belongs to no flag; repeat --input for more files."
      )
    return
  close = difflib.get_close_matches(name, known, 1, 0.8)
  if close or strict:
    meant = f"; did you mean --{close[0]}?" if close else "."
    raise settings.SettingsError(
      f"--{name} is no flag of ours or of Beam{meant}"
    )
