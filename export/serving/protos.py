"""TensorFlow Serving's messages about the served model."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import (
  get_model_metadata_pb2,
  get_model_status_pb2,
  model_pb2,
)

from export.serving import models

_METHOD = "tensorflow/serving/predict"


def model_spec(
  name: str, model: models.Model, signature: str
) -> model_pb2.ModelSpec:
  """The model, version and signature of an answer."""
  spec = model_pb2.ModelSpec(name=name, signature_name=signature)
  spec.version.value = model.version
  return spec


def status(
  model: models.Model,
) -> get_model_status_pb2.GetModelStatusResponse:
  """The status of the model's version: available."""
  response = get_model_status_pb2.GetModelStatusResponse()
  response.model_version_status.add(
    version=model.version,
    state=get_model_status_pb2.ModelVersionStatus.AVAILABLE,
  ).status.error_code = 0
  return response


def signatures(
  model: models.Model,
) -> get_model_metadata_pb2.SignatureDefMap:
  """Inputs and outputs of every signature."""
  described = get_model_metadata_pb2.SignatureDefMap()
  for name, signature in model.signatures.items():
    definition = described.signature_def[name]
    definition.method_name = _METHOD
    for side in ("inputs", "outputs"):
      for tensor, spec in signature[side].items():
        getattr(definition, side)[tensor].CopyFrom(_tensor_info(tensor, spec))
  return described


def _tensor_info(name: str, spec: Mapping) -> meta_graph_pb2.TensorInfo:
  return meta_graph_pb2.TensorInfo(
    name=name,
    dtype=tf.as_dtype(spec["dtype"]).as_datatype_enum,
    tensor_shape=tf.TensorShape(spec["shape"]).as_proto(),
  )
