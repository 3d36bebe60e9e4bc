"""Loads and queries a bundle; a service needs no other import.

    bundle = xir_tfrs.serving.Bundle.load("BUNDLE")
    folder = xir_tfrs.serving.ScannFolder.load("BUNDLE/scann_folder")

Names are imported on first use, so `ScannFolder` works without TensorFlow.
"""

import importlib
import typing

if typing.TYPE_CHECKING:
  from xir_tfrs.serving.bundle import Bundle, Recommendations, SimilarItems
  from xir_tfrs.serving.scann_folder import ScannFolder

_MODULES = {
  "Bundle": "bundle",
  "Recommendations": "bundle",
  "ScannFolder": "scann_folder",
  "SimilarItems": "bundle",
}

__all__ = ["Bundle", "Recommendations", "ScannFolder", "SimilarItems"]


def __getattr__(name: str) -> type:
  if name in _MODULES:
    module = importlib.import_module(f"{__name__}.{_MODULES[name]}")
    return getattr(module, name)
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
  return list(__all__)
