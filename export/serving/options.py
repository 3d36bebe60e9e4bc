"""Settings of the server, without TensorFlow."""

from __future__ import annotations

import dataclasses
import os

from xir_tfrs.programs import settings
from xir_tfrs.serving import manifest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits(settings.Settings):
  """Limits for clients."""

  max_body_mb: float = settings.setting(
    "Largest request, after decompression, in units of 2^20 bytes.",
    8.0,
    above=0,
    maximum=1024,
    section="Limits",
  )
  max_rows: int = settings.setting("Rows of a call.", 1024, minimum=1)
  max_answers: int = settings.setting(
    "Rows times k of a call.", 1 << 17, minimum=1
  )
  max_width: int = settings.setting(
    "Values in a list of a row. All lists of a batch are padded to the longest "
    "one.",
    1 << 14,
    minimum=1,
  )
  max_calls: int = settings.setting(
    "Predict calls that wait or run at a time; more are refused.",
    256,
    minimum=1,
  )
  call_seconds: float = settings.setting(
    "How long a predict call may wait and run; later it is refused.",
    10.0,
    above=0,
  )
  max_pending_mb: float = settings.setting(
    "REST requests that are read or answered at a time, and answers that "
    "clients have not read, each in units of 2^20 bytes; more are refused.",
    256.0,
    above=0,
  )
  max_connections: int = settings.setting(
    "REST connections; for a new one, the one that has been silent for the "
    "longest time is closed.",
    512,
    minimum=1,
  )
  request_seconds: float = settings.setting(
    "How long a client may take to send a request, or the first one of a "
    "connection; later the connection is closed.",
    30.0,
    above=0,
  )
  answer_seconds: float = settings.setting(
    "How long a client may take to read an answer; later the connection is "
    "closed.",
    30.0,
    above=0,
  )

  @property
  def max_body_bytes(self) -> int:
    return int(self.max_body_mb * (1 << 20))

  @property
  def max_pending_bytes(self) -> int:
    return int(self.max_pending_mb * (1 << 20))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Access(settings.Settings):
  """Settings of access: TLS and tokens."""

  tls_certificate: str | None = settings.setting(
    "PEM file of the certificate and its chain: REST and gRPC take TLS alone. "
    "A renewed file is read without a restart.",
    None,
    section="Access",
  )
  tls_key: str | None = settings.setting(
    "PEM file of the certificate's private key.", None
  )
  token_file: str | None = settings.setting(
    "File of bearer tokens, one a line; calls without one are refused, health "
    "checks excepted.",
    None,
  )

  def __post_init__(self) -> None:
    super().__post_init__()
    if (self.tls_certificate is None) != (self.tls_key is None):
      raise settings.SettingsError(
        "--tls_certificate and --tls_key need each other; give both."
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeOptions(settings.Settings):
  """Settings of the server."""

  common = (
    *("bundle", "index", "host", "port", "grpc_port", "model_name"),
    *("max_batch_size", "batch_timeout_ms", "threads", "workers"),
  )

  bundle: str = settings.setting(
    "Made by xir-tfrs export.", section="The server"
  )
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
    "Calls of TensorFlow at a time, of each worker. Default: the number of "
    "cores.",
    os.cpu_count() or 1,
    minimum=1,
  )
  demo: bool = settings.setting(
    "Answer GET / with a page to try the bundle.", True
  )
  workers: int = settings.setting(
    "Processes that answer, each with the bundle in its memory.", 1, minimum=1
  )
  watch_seconds: float = settings.setting(
    "How often to look for a new bundle.", 5.0, minimum=0.01
  )
  drain_seconds: float = settings.setting(
    "How long new calls are answered at the end, while /readyz fails and "
    "answers close their connections.",
    3.0,
    minimum=0,
  )
  shutdown_seconds: float = settings.setting(
    "How long calls may take at the end.", 10.0, minimum=0
  )
  access: Access = dataclasses.field(default_factory=Access)
  limits: Limits = dataclasses.field(default_factory=Limits)

  def __post_init__(self) -> None:
    super().__post_init__()
    if not self.model_name or set(self.model_name) & set("/:"):
      raise settings.SettingsError(
        "--model_name must have no '/' and no ':', which end it in an address. "
        f"Received: {self.model_name!r}."
      )
