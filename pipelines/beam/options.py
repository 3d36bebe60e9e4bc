"""Parses the flags of Beam."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable, Sequence

import apache_beam as beam
from apache_beam.options import pipeline_options

from xir_tfrs.programs import settings

# Runners that query a service for its flags, which Beam does not know.
_WITH_OTHER_FLAGS = ("portable", "flink", "spark", "kafka")
# The part of the direct runner that runs in this process; the full runner would
# first try to download another one.
_DEFAULT_RUNNER = "FnApiRunner"


def parse(
  beam_flags: Sequence[str], own_flags: Iterable[str]
) -> pipeline_options.PipelineOptions:
  """Parses the options of the pipelines.

  Args:
    beam_flags: All flags that are not ours.
    own_flags: Names of our flags, to suggest one for a misspelled flag.

  Raises:
    SettingsError: A flag is unknown.
  """
  options = pipeline_options.PipelineOptions(list(beam_flags))
  standard = options.view_as(pipeline_options.StandardOptions)
  standard.runner = standard.runner or _DEFAULT_RUNNER
  strict = not any(r in standard.runner.lower() for r in _WITH_OTHER_FLAGS)

  def check(parser: argparse.ArgumentParser) -> None:
    known, unknown = parser.parse_known_args(list(beam_flags))
    for word in unknown:
      _check_unknown(word, [*own_flags, *vars(known)], strict)

  try:
    # Checks the values, and loads the runner with its flags; nothing runs.
    beam.Pipeline(options=options)
  except ValueError as e:
    raise settings.SettingsError(str(e)) from None
  options.get_all_options(add_extra_args_fn=check, retain_unknown_options=True)
  return options


def _check_unknown(word: str, known: Sequence[str], strict: bool) -> None:
  name = word.removeprefix("--").partition("=")[0]
  if name == word:
    # With unknown flags allowed, the word may be the value of one.
    if strict:
      raise settings.SettingsError(
        f"{word!r} is not the value of a flag; repeat --input for more files."
      )
    return
  close = difflib.get_close_matches(name, known, 1, 0.8)
  if close or strict:
    meant = f"; did you mean --{close[0]}?" if close else "."
    raise settings.SettingsError(
      f"--{name} is not a flag of xir-tfrs or of Beam{meant}"
    )
