"""TLS and bearer tokens, in REST and gRPC."""

import asyncio
import http.client
import shutil
import ssl
import subprocess

import grpc
import pytest
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from export.serving import access, options, server
from tests.export import fake_server
from xir_tfrs.data import errors
from xir_tfrs.programs import settings

TOKEN = "an example of 1 token".replace(" ", "-")
OTHER = "another-token-of-enough-letters"


def make_certificate(directory):
  """Writes cert.pem and key.pem of a self-signed certificate."""
  if shutil.which("openssl") is None:
    pytest.skip("needs openssl")
  new = directory / "new"
  new.mkdir()
  subprocess.run(
    ["openssl", "req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"]
    + ["-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", "/CN=localhost"]
    + ["-addext", "subjectAltName=DNS:localhost"]
    + ["-keyout", new / "key.pem", "-out", new / "cert.pem"],
    check=True,
    capture_output=True,
  )
  for path in (new / "key.pem", new / "cert.pem"):
    path.replace(directory / path.name)
  new.rmdir()


@pytest.fixture(scope="module")
def running(tmp_path_factory):
  directory = tmp_path_factory.mktemp("access")
  make_certificate(directory)
  (directory / "tokens").write_text(f"# of the shop\n{TOKEN}\n\n{OTHER}\n")
  given = options.Access(
    tls_certificate=str(directory / "cert.pem"),
    tls_key=str(directory / "key.pem"),
    token_file=str(directory / "tokens"),
  )
  with fake_server.run(
    directory,
    access=given,
    certificate=directory / "cert.pem",
    drain_seconds=0.0,
  ) as made:
    made.directory = directory
    yield made


def predict(running, *metadata):
  request = predict_pb2.PredictRequest()
  request.model_spec.name = "retriever"
  request.model_spec.signature_name = "look_up"
  for name, value in (("x", [7]), ("k", 1)):
    request.inputs[name].CopyFrom(tf.make_tensor_proto(value, tf.int32))
  stub = prediction_service_pb2_grpc.PredictionServiceStub(running.channel)
  return stub.Predict(request, timeout=30, metadata=metadata)


def test_requests_with_a_token_are_answered(running):
  for token in (TOKEN, OTHER):
    headers = {"Authorization": f"Bearer {token}"}
    status, text, _ = running.http(
      "POST", fake_server.PREDICT, fake_server.body(), headers
    )
    assert (status, text) == (200, '{"outputs": [["7"]]}')
    answer = predict(running, ("authorization", f"Bearer {token}"))
    assert tf.make_ndarray(answer.outputs["ids"]).tolist() == [[b"7"]]


@pytest.mark.parametrize(
  "header",
  [None, "", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN[:-1]}", "Bearer é"],
)
def test_requests_without_a_token_are_refused(running, header):
  headers = {} if header is None else {"Authorization": header.encode()}
  for method, path in (
    ("POST", fake_server.PREDICT),
    ("GET", "/v1/models/retriever"),
    ("GET", "/metrics"),
    ("POST", "/-/reload"),
    ("GET", "/none"),
  ):
    status, text, found = running.http(method, path, b"{}", headers)
    assert (status, found["WWW-Authenticate"]) == (401, "Bearer"), path
    assert "a token is required" in text
  if header is None or header.isascii():
    metadata = [] if header is None else [("authorization", header)]
    with pytest.raises(grpc.RpcError) as caught:
      predict(running, *metadata)
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_refusals_are_counted(running):
  headers = {"Authorization": f"Bearer {TOKEN}"}
  running.http("GET", "/metrics")
  text = running.http("GET", "/metrics", None, headers)[1]
  line = 'requests_total{protocol="rest",signature="unknown",status="UNAUTHENT'
  assert line in text


def test_health_needs_no_token(running):
  assert running.status("/healthz") == running.status("/readyz") == 200
  health = health_pb2_grpc.HealthStub(running.channel)
  found = health.Check(health_pb2.HealthCheckRequest()).status
  assert found == health_pb2.HealthCheckResponse.SERVING


def test_unencrypted_requests_are_refused(running):
  plain = http.client.HTTPConnection("localhost", running.port, timeout=30)
  with pytest.raises((http.client.HTTPException, OSError)):
    plain.request("GET", "/healthz")
    plain.getresponse()
  with grpc.insecure_channel(f"localhost:{running.grpc_port}") as channel:
    health = health_pb2_grpc.HealthStub(channel)
    with pytest.raises(grpc.RpcError):
      health.Check(health_pb2.HealthCheckRequest(), timeout=5)


def test_a_renewed_certificate_is_used_without_a_restart(running):
  """The last test: clients no longer trust the first certificate."""
  make_certificate(running.directory)

  def is_used():
    try:
      return running.status("/healthz") == 200
    except ssl.SSLError:
      return False

  fake_server.wait_for(is_used)
  with running.open_channel() as channel:
    health = health_pb2_grpc.HealthStub(channel)
    health.Check(health_pb2.HealthCheckRequest(), timeout=10)


@pytest.mark.parametrize(
  "text, message",
  [
    (None, "tokens: cannot be read"),
    ("", "has no token"),
    ("# a comment alone\n", "has no token"),
    (f"{TOKEN}\nshort\n", "line 2: a token has at least 16"),
    ("two words in one line\n", "line 1: a token has"),
    ("é" * 20, "cannot be read"),
  ],
)
def test_unusable_token_files_are_named(tmp_path, text, message):
  if text is not None:
    (tmp_path / "tokens").write_text(text, encoding="utf-8")
  with pytest.raises(errors.DataError, match=f"--token_file .*{message}"):
    access.Tokens(tmp_path / "tokens")


def test_unusable_certificates_are_named(running, tmp_path):
  (tmp_path / "key.pem").write_text("no key")
  given = options.Access(
    tls_certificate=str(running.directory / "cert.pem"),
    tls_key=str(tmp_path / "key.pem"),
  )
  serve = options.ServeOptions(bundle=str(tmp_path), access=given)
  with pytest.raises(errors.DataError, match="--tls_key .*key.pem: cannot be"):
    asyncio.run(server.serve(serve, asyncio.Event()))
  with pytest.raises(settings.SettingsError, match="must be given together"):
    options.Access(tls_key="key.pem")
