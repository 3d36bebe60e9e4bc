"""TensorFlow Serving's gRPC interface."""

from __future__ import annotations

from collections.abc import Mapping

import grpc
import tensorflow as tf
from grpc_health.v1 import health, health_pb2_grpc
from tensorflow_serving.apis import (
  get_model_metadata_pb2,
  get_model_status_pb2,
  model_pb2,
  model_service_pb2_grpc,
  predict_pb2,
  prediction_service_pb2_grpc,
)

from export.serving import access, models, protos, service, tensors
from export.serving import metrics as metrics_lib

# Clients reconnect by themselves.
_IDLE_SECONDS = 300
_AGE_SECONDS = 1800
# Room for calls of other methods than Predict, beyond `max_calls`.
_SPARE_CALLS = 64
_SIGNATURES = "signature_def"


def server(
  serve: service.Service, tokens: access.Tokens | None = None
) -> tuple[grpc.aio.Server, health.aio.HealthServicer]:
  """Builds a server, without a port yet, and its health service.

  Args:
    serve: The service.
    tokens: Tokens that calls must have; None allows all calls.
  """
  guards = [] if tokens is None else [access.CallGuard(tokens, serve.metrics)]
  made = grpc.aio.server(
    interceptors=guards,
    # The service itself refuses calls beyond `max_calls`, with a message. Calls
    # beyond this limit are refused before their requests are read.
    maximum_concurrent_rpcs=serve.limits.max_calls + _SPARE_CALLS,
    options=[
      ("grpc.max_receive_message_length", serve.limits.max_body_bytes),
      ("grpc.max_send_message_length", -1),
      # Closes connections that are idle, incomplete or not read, so that no
      # client can keep one, or the memory of its answers, forever.
      ("grpc.server_handshake_timeout_ms", _ms(serve.limits.request_seconds)),
      ("grpc.max_connection_idle_ms", _ms(_IDLE_SECONDS)),
      ("grpc.keepalive_time_ms", _ms(serve.limits.answer_seconds)),
      ("grpc.keepalive_timeout_ms", _ms(serve.limits.answer_seconds)),
      ("grpc.max_connection_age_ms", _ms(_AGE_SECONDS)),
      ("grpc.max_connection_age_grace_ms", _ms(serve.limits.answer_seconds)),
      # Otherwise a second server on the port would take half of the calls.
      ("grpc.so_reuseport", int(serve.member is not None)),
    ],
  )
  prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
    _Prediction(serve), made
  )
  model_service_pb2_grpc.add_ModelServiceServicer_to_server(_Model(serve), made)
  healthy = health.aio.HealthServicer()
  health_pb2_grpc.add_HealthServicer_to_server(healthy, made)
  return made, healthy


class _Prediction(prediction_service_pb2_grpc.PredictionServiceServicer):
  """Predict and GetModelMetadata; the other methods are not implemented."""

  def __init__(self, serve: service.Service):
    self._serve = serve

  async def Predict(  # noqa: N802
    self,
    request: predict_pb2.PredictRequest,
    context: grpc.aio.ServicerContext,
  ) -> predict_pb2.PredictResponse:
    try:
      with (
        self._serve.metrics.request("grpc") as call,
        self._serve.calls.part() as take_calls,
      ):
        take_calls(1)
        return await self._serve.in_time(self._answer(request, call))
    except tensors.RequestError as error:
      await _refuse(context, error)

  async def _answer(
    self, request: predict_pb2.PredictRequest, call: metrics_lib.Call
  ) -> predict_pb2.PredictResponse:
    spec = request.model_spec

    def write(
      model: models.Model, outputs: tensors.Inputs
    ) -> predict_pb2.PredictResponse:
      outputs = _filter(outputs, request.output_filter)
      return predict_pb2.PredictResponse(
        model_spec=protos.model_spec(spec.name, model, call.signature),
        outputs={name: tf.make_tensor_proto(x) for name, x in outputs.items()},
      )

    return await self._serve.predict(
      call,
      spec.name,
      _version(spec),
      spec.signature_name,
      request.ByteSize(),
      lambda wanted: tensors.from_protos(request.inputs, wanted),
      write,
    )

  async def GetModelMetadata(  # noqa: N802
    self,
    request: get_model_metadata_pb2.GetModelMetadataRequest,
    context: grpc.aio.ServicerContext,
  ) -> get_model_metadata_pb2.GetModelMetadataResponse:
    try:
      spec = request.model_spec
      model = self._serve.model(spec.name, _version(spec))
      for field in request.metadata_field:
        if field != _SIGNATURES:
          raise tensors.invalid(
            f"`metadata_field` must be {_SIGNATURES}. Received: "
            + tensors.short(field)
          )
    except tensors.RequestError as error:
      await _refuse(context, error)
    response = get_model_metadata_pb2.GetModelMetadataResponse(
      model_spec=protos.model_spec(spec.name, model, "")
    )
    response.metadata[_SIGNATURES].Pack(protos.signatures(model))
    return response


class _Model(model_service_pb2_grpc.ModelServiceServicer):
  """GetModelStatus; the other method is not implemented."""

  def __init__(self, serve: service.Service):
    self._serve = serve

  async def GetModelStatus(  # noqa: N802
    self,
    request: get_model_status_pb2.GetModelStatusRequest,
    context: grpc.aio.ServicerContext,
  ) -> get_model_status_pb2.GetModelStatusResponse:
    try:
      spec = request.model_spec
      return protos.status(self._serve.model(spec.name, _version(spec)))
    except tensors.RequestError as error:
      await _refuse(context, error)


def _ms(seconds: float) -> int:
  return int(1000 * seconds)


def _version(spec: model_pb2.ModelSpec) -> int | None:
  if spec.HasField("version_label"):
    raise tensors.invalid("`version_label` is not supported; use `version`")
  return spec.version.value if spec.HasField("version") else None


def _filter(
  outputs: Mapping[str, tensors.Inputs], names: list[str]
) -> dict[str, tensors.Inputs]:
  for name in names:
    if name not in outputs:
      raise tensors.invalid(
        f"`output_filter` must be among {', '.join(outputs)}. Received: "
        + tensors.short(name)
      )
  return {name: outputs[name] for name in names or outputs}


async def _refuse(
  context: grpc.aio.ServicerContext, error: tensors.RequestError
) -> None:
  """Aborts the call with the error; does not return."""
  metadata = ()
  if error.code in service.RETRY_CODES:
    metadata = (("grpc-retry-pushback-ms", f"{1000 * service.RETRY_SECONDS}"),)
  await context.abort(grpc.StatusCode[error.code], str(error), metadata)
