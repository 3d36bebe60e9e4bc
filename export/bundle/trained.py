"""A trained model as pipelines.train left it: restoring and encoding."""

from __future__ import annotations

import json
import os
import pathlib

import tensorflow as tf

import xir_tfrs as xir
from xir_tfrs.data import errors
from xir_tfrs.data import schema as schema_lib


def load_model(
  model_dir: str | os.PathLike[str],
) -> tuple[xir.models.TwoTower, dict, str]:
  """The trained model of a model directory.

  Returns:
    The model, the content of config.json, and the checkpoint restored,
    relative to `model_dir`.
  """
  model_dir = pathlib.Path(model_dir)
  path = model_dir / "config.json"
  try:
    config = json.loads(path.read_text(encoding="utf-8"))
    model = xir.models.TwoTower.from_config(config["model"])
  except OSError:
    raise errors.DataError(
      f"{path}: cannot be read, so --model_dir is not a model directory; "
      "train one with python -m pipelines.train"
    ) from None
  except (ValueError, TypeError, KeyError) as error:
    raise errors.DataError(
      f"{path}: not a config this release can rebuild a model from "
      f"({type(error).__name__}: {error}); train the model again"
    ) from error
  checkpoint = tf.train.latest_checkpoint(
    model_dir / "best"
  ) or tf.train.latest_checkpoint(model_dir / "checkpoints")
  if checkpoint is None:
    raise errors.DataError(
      f"{model_dir}: no checkpoint in best/ or checkpoints/; train the model "
      "with python -m pipelines.train"
    )
  try:
    status = tf.train.Checkpoint(model=model).restore(checkpoint)
    status.expect_partial().assert_existing_objects_matched()
  except (AssertionError, ValueError, tf.errors.OpError) as error:
    reason = str(error).splitlines()[0]
    raise errors.DataError(
      f"{checkpoint}: does not hold the model of {path} ({reason}); was "
      "config.json changed, or the checkpoint only partly copied?"
    ) from error
  return model, config, os.path.relpath(checkpoint, model_dir)


def check_fit(
  config: dict,
  schema: schema_lib.Schema,
  sha256: str,
  model_dir: str | os.PathLike[str],
  data_dir: str | os.PathLike[str],
) -> None:
  """Raises if the ids of the data are not those of the training."""
  model = config["model"]
  for table, tower in (
    ("queries", "query_tower"),
    ("candidates", "candidate_tower"),
  ):
    trained = model[tower]["vocabulary_size"]
    found = schema.num_rows(table)
    if trained != found:
      raise errors.DataError(
        f"{model_dir}: trained with {trained} {table}, but "
        f"{data_dir} has {found}; give the --data it was trained with "
        f"({config.get('data')})"
      )
    features = {x.name for x in schema.features(table)}
    for feature in (model[tower]["table"] or {"features": ()})["features"]:
      if feature["name"] not in features:
        raise errors.DataError(
          f"{data_dir}: schema.json has no {tower[:-6]} feature "
          f"{feature['name']!r}, which {model_dir} was trained with; give the "
          "--data it was trained with"
        )
  trained = config.get("schema_sha256")
  if trained is not None and trained != sha256:
    raise errors.DataError(
      f"{data_dir}: its schema.json is not the one {model_dir} was "
      "trained with, so dense ids may mean other candidates; prepare with the "
      "same options as then, or train again"
    )
