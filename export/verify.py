"""Checks the files of a bundle, their contents, and its answers.

  xir-tfrs verify --bundle DIR [--index scann] [--json]

Prints a line per check and exits with 0 if all pass, else with 1. Answers are
compared with NumPy on the bundle's own vectors: a bundle that passes is
complete and consistent, but this does not measure the quality of its model.
"""

from __future__ import annotations

import dataclasses
import json
import sys

from xir_tfrs.programs import main, settings
from xir_tfrs.serving import manifest


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerifyOptions(settings.Settings):
  """Settings of the checks."""

  bundle: str = settings.setting("Bundle written by xir-tfrs export.")
  index: str | None = settings.setting(
    "Index to check. Default: all in the bundle.",
    None,
    choices=manifest.INDEXES,
  )
  queries: int = settings.setting("Number of queries to use.", 200, minimum=1)
  k: int = settings.setting("Number of answers.", 10, minimum=1)
  min_recall: float | None = settings.setting(
    "Fail if recall@k of ScaNN is below this. Default: the value in the "
    "manifest minus three standard errors.",
    None,
    minimum=0,
    maximum=1,
  )
  json: bool = settings.setting("Print a JSON list instead of a table.", False)


def verify(options: VerifyOptions) -> int:
  """Runs and prints the checks.

  Returns:
    1 if any check failed, else 0.
  """
  from export.bundle import verifying  # Imports TensorFlow.

  results = []
  for check in verifying.verify(
    options.bundle,
    index=options.index,
    queries=options.queries,
    k=options.k,
    min_recall=options.min_recall,
  ):
    results.append(check)
    if not options.json:
      shown = "ok      " if check.ok else "FAILED: "
      print(f"{check.name:<28} {shown}{check.detail}")
  if options.json:
    print(json.dumps([dataclasses.asdict(check) for check in results]))
  return int(not all(check.ok for check in results))


if __name__ == "__main__":
  sys.exit(main.run(VerifyOptions, verify))
