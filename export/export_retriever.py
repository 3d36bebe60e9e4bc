"""Exports a trained model as a bundle that answers top-k queries.

  xir-tfrs export --data DIR --model_dir DIR --output BUNDLE

Restores the best checkpoint (or the last, if there is none), encodes all
candidates, builds the indexes, tunes ScaNN for a target recall and measures the
recall against exact search. Writes a directory of SavedModels with original
ids, including the ranker if the model has one. `xir_tfrs.serving.bundle`
describes the layout; `xir-tfrs query` queries the bundle.
"""

from __future__ import annotations

import sys

from export.bundle.options import ExportOptions
from xir_tfrs.programs import main
from xir_tfrs.serving import manifest


def export_retriever(options: ExportOptions) -> manifest.Manifest:
  """Writes the bundle.

  Raises:
    DataError: The data, the model or the output cannot be used.
  """
  from export.bundle import from_model  # Imports TensorFlow.

  return from_model.make_bundle(options)


def _run(options: ExportOptions) -> None:
  export_retriever(options)


if __name__ == "__main__":
  sys.exit(main.run(ExportOptions, _run))
