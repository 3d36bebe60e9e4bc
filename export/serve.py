"""A small reference server for bundles, with TensorFlow Serving's formats.

  python -m export.serve --bundle DIR [--index scann|brute_force]
    [--host 127.0.0.1 --port 8501 --grpc_port 8500] [--model_name retriever]

Answers predict calls by REST and gRPC, joins those that come at the same time,
takes over a new bundle in the same place without a failed call, and ends on
SIGTERM when all are answered. See docs/serving.md.
"""

from __future__ import annotations

import dataclasses
import os

from absl import app, flags, logging

from xir_tfrs.data import errors
from xir_tfrs.programs import main as main_lib
from xir_tfrs.serving import bundle


def main(argv: list[str]) -> int:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
  logging.set_verbosity(logging.INFO)
  return main_lib.run_plain(_serve)


def _serve() -> None:
  try:
    from export.serving import server
  except ModuleNotFoundError as error:
    raise errors.DataError(
      f"{error}; the server needs more than the rest: pip install "
      "'.[scann,serving]'"
    ) from error
  values = flags.FLAGS
  names = [field.name for field in dataclasses.fields(server.Options)]
  server.run(server.Options(**{name: values[name].value for name in names}))


def _define_flags() -> None:
  flags.DEFINE_string("bundle", None, "Made by export.export_retriever.")
  flags.DEFINE_enum(
    "index", None, bundle.INDEXES, "Default: scann if the bundle has it."
  )
  flags.DEFINE_string("host", "127.0.0.1", "Address to listen on.")
  flags.DEFINE_integer("port", 8501, "Of REST; 0 for a free one.", 0, 65535)
  flags.DEFINE_integer("grpc_port", 8500, "Of gRPC; 0: a free one.", 0, 65535)
  flags.DEFINE_string("model_name", "retriever", "Name in the addresses.")
  flags.DEFINE_integer("max_batch_size", 64, "Most rows that are joined.", 1)
  flags.DEFINE_float(
    "batch_timeout_ms", 1.0, "How long a call waits for others.", 0.0
  )
  flags.DEFINE_integer(
    "threads", os.cpu_count(), "Calls of TensorFlow at a time.", 1
  )
  flags.DEFINE_float(
    "watch_seconds", 5.0, "How often to look for a new bundle.", 0.01
  )
  flags.DEFINE_float(
    "shutdown_seconds", 10.0, "How long calls may take at the end.", 0.0
  )
  flags.mark_flags_as_required(["bundle"])


if __name__ == "__main__":
  _define_flags()
  app.run(main)
