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
  max_rows: int = settings.setting("Maximum rows of a call.", 1024, minimum=1)
  max_answers: int = settings.setting(
    "Maximum rows times k of a call.", 1 << 17, minimum=1
  )
  max_width: int = settings.setting(
    "Maximum length of a list in a row. All lists of a batch are padded to the "
    "longest one.",
    1 << 14,
    minimum=1,
  )
  max_calls: int = settings.setting(
    "Maximum predict calls that wait or run; more are refused.",
    256,
    minimum=1,
  )
  call_seconds: float = settings.setting(
    "Time limit of a predict call, with its wait; then it is refused.",
    10.0,
    above=0,
  )
  max_pending_mb: float = settings.setting(
    "Maximum total size of REST requests in progress, and of answers that "
    "clients have not read, in units of 2^20 bytes; more are refused.",
    256.0,
    above=0,
  )
  max_connections: int = settings.setting(
    "Maximum REST connections; a new one closes the one that has been idle the "
    "longest.",
    512,
    minimum=1,
  )
  request_seconds: float = settings.setting(
    "Time limit for a client to send a request; the first one counts from the "
    "start of the connection. Then the connection is closed.",
    30.0,
    above=0,
  )
  answer_seconds: float = settings.setting(
    "Time limit for a client to read an answer; then the connection is closed.",
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
  """Settings of TLS and tokens."""

  tls_certificate: str | None = settings.setting(
    "PEM file of the certificate and its chain. REST and gRPC then only accept "
    "TLS. A renewed file is read without a restart.",
    None,
    section="Access",
  )
  tls_key: str | None = settings.setting(
    "PEM file of the certificate's private key.", None
  )
  token_file: str | None = settings.setting(
    "File of bearer tokens, one per line; calls without one of them are "
    "refused, except health checks.",
    None,
  )

  def __post_init__(self) -> None:
    super().__post_init__()
    if (self.tls_certificate is None) != (self.tls_key is None):
      raise settings.SettingsError(
        "--tls_certificate and --tls_key must be given together."
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeOptions(settings.Settings):
  """Settings of the server."""

  common = (
    *("bundle", "index", "host", "port", "grpc_port", "model_name"),
    *("max_batch_size", "batch_timeout_ms", "threads", "workers"),
  )

  bundle: str = settings.setting(
    "Directory written by xir-tfrs export.", section="The server"
  )
  index: str | None = settings.setting(
    "Index to use. Not given: scann if the bundle has it.",
    None,
    choices=manifest.INDEXES,
  )
  host: str = settings.setting("Address to listen on.", "127.0.0.1")
  port: int = settings.setting(
    "Port of REST; 0 for a free one.", 8501, minimum=0, maximum=65535
  )
  grpc_port: int = settings.setting(
    "Port of gRPC; 0 for a free one.", 8500, minimum=0, maximum=65535
  )
  model_name: str = settings.setting(
    "Name of the model in URLs and gRPC requests.", "retriever"
  )
  max_batch_size: int = settings.setting(
    "Maximum rows of calls that are joined into a batch.", 64, minimum=1
  )
  batch_timeout_ms: float = settings.setting(
    "How long a call waits for others to join its batch.", 1.0, minimum=0
  )
  threads: int = settings.setting(
    "Batches that each worker computes at a time, by default one per core.",
    os.cpu_count() or 1,
    minimum=1,
  )
  demo: bool = settings.setting(
    "Answer GET / with a page to try the bundle.", True
  )
  workers: int = settings.setting(
    "Processes that answer; each loads the bundle.", 1, minimum=1
  )
  watch_seconds: float = settings.setting(
    "Time between two checks for a new bundle.", 5.0, minimum=0.01
  )
  drain_seconds: float = settings.setting(
    "On shutdown, how long new calls are still answered, while /readyz fails "
    "and answers close their connections.",
    3.0,
    minimum=0,
  )
  shutdown_seconds: float = settings.setting(
    "On shutdown, time limit of the remaining calls.", 10.0, minimum=0
  )
  access: Access = dataclasses.field(default_factory=Access)
  limits: Limits = dataclasses.field(default_factory=Limits)

  def __post_init__(self) -> None:
    super().__post_init__()
    if not self.model_name or set(self.model_name) & set("/:"):
      raise settings.SettingsError(
        "--model_name must not be empty or contain '/' or ':'. "
        f"Received: {self.model_name!r}."
      )
