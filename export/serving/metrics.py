"""Metrics of the server for Prometheus.

Workers write their counts to the folder that `workers.METRICS_FOLDER` names at
import; each worker reports the sum over all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator

import prometheus_client as prometheus
from prometheus_client import multiprocess

from export.serving import workers


@dataclasses.dataclass
class Call:
  """A predict call in progress.

  Attributes:
    signature: Name of the signature, once it is known to exist. Any text from
      clients would create a time series each.
  """

  signature: str = "unknown"


class Metrics:
  """The counters of one server, in their own registry."""

  def __init__(self):
    self.registry = prometheus.CollectorRegistry()
    shared = {"namespace": "retriever", "registry": self.registry}
    self.requests = prometheus.Counter(
      "requests",
      "Predict calls that were answered or refused.",
      ["protocol", "signature", "status"],
      **shared,
    )
    self.seconds = prometheus.Histogram(
      "request_seconds",
      "Time from reading the request to the answer, including waits.",
      ["protocol", "signature"],
      buckets=(
        *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
        *(1.0, 2.0, 5.0),
      ),
      **shared,
    )
    self.batch_rows = prometheus.Histogram(
      "batch_rows",
      "Rows of the calls that TensorFlow ran.",
      ["signature"],
      buckets=[1 << power for power in range(11)],
      **shared,
    )
    self.in_flight = prometheus.Gauge(
      "requests_in_flight",
      "Predict calls without an answer yet.",
      multiprocess_mode="livesum",
      **shared,
    )
    self.version = prometheus.Gauge(
      "bundle_version",
      "Version of the bundle that answers; the oldest among the workers.",
      multiprocess_mode="livemin",
      **shared,
    )
    self.switches = prometheus.Counter(
      "bundle_switches", "New bundles that were loaded.", **shared
    )
    self.failed_switches = prometheus.Counter(
      "bundle_failed_switches",
      "New bundles that could not be loaded.",
      **shared,
    )

  @contextlib.contextmanager
  def request(self, protocol: str) -> Iterator[Call]:
    """Counts a call; its status is OK or the `code` of an exception."""
    call, status, start = Call(), "CANCELLED", time.perf_counter()
    self.in_flight.inc()
    try:
      yield call
      status = "OK"
    except Exception as error:
      status = getattr(error, "code", "INTERNAL")
      raise
    finally:
      self.in_flight.dec()
      self.requests.labels(protocol, call.signature, status).inc()
      self.seconds.labels(protocol, call.signature).observe(
        time.perf_counter() - start
      )

  def refused(self, protocol: str, status: str) -> None:
    """Counts a call that was refused before it was read."""
    self.requests.labels(protocol, Call.signature, status).inc()

  def text(self) -> bytes:
    """Returns all metrics in the format of Prometheus."""
    registry = self.registry
    if workers.METRICS_FOLDER in os.environ:
      registry = prometheus.CollectorRegistry()
      multiprocess.MultiProcessCollector(registry)
    return prometheus.generate_latest(registry)
