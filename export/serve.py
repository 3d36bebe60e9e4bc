"""Serves a bundle by REST and gRPC, as TensorFlow Serving does.

  xir-tfrs serve --bundle DIR [--index scann|brute_force]
    [--host 127.0.0.1 --port 8501 --grpc_port 8500] [--model_name retriever]
    [--workers N] [--tls_certificate FILE --tls_key FILE] [--token_file FILE]

Answers predict calls by REST and gRPC, batches simultaneous calls, switches to
a new bundle at the same path without failed calls, and stops on SIGTERM after
answering all calls. See docs/serving.md.
"""

from __future__ import annotations

import sys

from absl import logging

from export.serving import workers
from export.serving.options import ServeOptions
from xir_tfrs.data import errors
from xir_tfrs.programs import main


def serve(options: ServeOptions) -> None:
  """Serves until SIGTERM or SIGINT.

  Raises:
    DataError: The bundle or a port cannot be used.
  """
  logging.set_verbosity(logging.INFO)
  if options.workers > 1:
    workers.run(options, _serve)
  else:
    _serve(options)


def _serve(options: ServeOptions, member: workers.Member | None = None) -> None:
  """Serves in this process, alone or as one of several workers."""
  try:
    from export.serving import server  # Imports TensorFlow.
  except ModuleNotFoundError as error:
    raise errors.DataError(
      f"{error}; the server needs more packages: pip install "
      "'xir-tfrs[scann,serving]'"
    ) from error
  server.run(options, member)


if __name__ == "__main__":
  sys.exit(main.run(ServeOptions, serve))
