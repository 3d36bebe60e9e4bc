"""Metrics of the server for Prometheus.

Workers write their counts to the folder that PROMETHEUS_MULTIPROC_DIR names
when this is imported; each answers with those of all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator

import prometheus_client as prometheus
from prometheus_client import multiprocess

FOLDER = "PROMETHEUS_MULTIPROC_DIR"


@dataclasses.dataclass
class Call:
  """A predict call under way.

  Attributes:
    signature: set once it is known to exist: a label of any text a client
      sends would make a time series each.
  """

  signature: str = "unknown"


class Metrics:
  """The counters of one server, in a registry of their own."""

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
      "Time from the request read to the answer, waiting for others included.",
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
      "Version of the bundle that answers; of several workers the oldest.",
      multiprocess_mode="livemin",
      **shared,
    )
    self.switches = prometheus.Counter(
      "bundle_switches", "New bundles that took over.", **shared
    )
    self.failed_switches = prometheus.Counter(
      "bundle_failed_switches", "New bundles that could not be used.", **shared
    )

  @contextlib.contextmanager
  def request(self, protocol: str) -> Iterator[Call]:
    """Counts one call; an exception with a `code` gives its status."""
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
    """Counts a call that was refused before it was looked at."""
    self.requests.labels(protocol, Call.signature, status).inc()

  def text(self) -> bytes:
    """In the format that Prometheus reads."""
    registry = self.registry
    if FOLDER in os.environ:
      registry = prometheus.CollectorRegistry()
      multiprocess.MultiProcessCollector(registry)
    return prometheus.generate_latest(registry)
