"""Settings of the server, without TensorFlow."""

from __future__ import annotations

import dataclasses
import os

from xir_tfrs.programs import settings
from xir_tfrs.serving import manifest


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeOptions(settings.Settings):
  """What to serve, and how."""

  bundle: str = settings.setting("Made by export.export_retriever.")
  index: str | None = settings.setting(
    "Default: scann if the bundle has it.", None, choices=manifest.INDEXES
  )
  host: str = settings.setting("Address to listen on.", "127.0.0.1")
  port: int = settings.setting(
    "Of REST; 0 for a free one.", 8501, minimum=0, maximum=65535
  )
  grpc_port: int = settings.setting(
    "Of gRPC; 0 for a free one.", 8500, minimum=0, maximum=65535
  )
  model_name: str = settings.setting("Name in the addresses.", "retriever")
  max_batch_size: int = settings.setting(
    "Most rows that are joined.", 64, minimum=1
  )
  batch_timeout_ms: float = settings.setting(
    "How long a call waits for others.", 1.0, minimum=0
  )
  threads: int = settings.setting(
    "Calls of TensorFlow at a time. Default: the number of cores.",
    os.cpu_count() or 1,
    minimum=1,
  )
  watch_seconds: float = settings.setting(
    "How often to look for a new bundle.", 5.0, minimum=0.01
  )
  shutdown_seconds: float = settings.setting(
    "How long calls may take at the end.", 10.0, minimum=0
  )

  def __post_init__(self) -> None:
    super().__post_init__()
    if not self.model_name or set(self.model_name) & set("/:"):
      raise settings.SettingsError(
        "--model_name must have no '/' and no ':', which end it in an address. "
        f"Received: {self.model_name!r}."
      )
