"""Checks of arguments that several tasks take, and of candidate encoders."""

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from xir_tfrs import checks
from xir_tfrs.types import CandidateEncoder


def as_counts(candidate_counts: Sequence[int] | np.ndarray) -> np.ndarray:
  """Training counts as [num_candidates] int64.

  Raises:
    ValueError: Not a vector, empty, or not whole numbers >= 0.
  """
  counts = np.asarray(candidate_counts)
  if counts.ndim != 1 or not counts.size:
    raise ValueError(
      "`candidate_counts` must be a vector [num_candidates] of training "
      f"counts. Received: shape {counts.shape}."
    )
  if counts.dtype.kind not in "iufb":
    raise ValueError(
      "`candidate_counts` must be whole numbers >= 0. Received: type "
      f"{counts.dtype}."
    )
  with np.errstate(invalid="ignore"):  # NaN is refused below.
    whole = counts.astype(np.int64)
  if (whole != counts).any() or whole.min() < 0:
    first = int(np.argmax((whole != counts) | (whole < 0)))
    raise ValueError(
      "`candidate_counts` must be whole numbers >= 0. "
      f"Received: `candidate_counts[{first}]` = {counts[first]}."
    )
  return whole


def require_encoder(candidate_encoder: CandidateEncoder) -> None:
  """Raises ValueError unless it can be called."""
  if not callable(candidate_encoder):
    raise ValueError(
      "`candidate_encoder` must map candidate ids to embeddings, as the "
      f"candidate tower does. Received: {candidate_encoder!r}."
    )


def encode(
  candidate_encoder: CandidateEncoder,
  ids: tf.Tensor,
  training: bool,
  dim: int | None = None,
) -> tf.Tensor:
  """[n, dim] embeddings of [n] ids, with `training` for Keras encoders.

  Raises:
    ValueError: The encoder returns another shape.
  """
  if isinstance(candidate_encoder, tf.keras.layers.Layer):
    with losses_kept(candidate_encoder):
      embeddings = candidate_encoder(ids, training=training)
  else:
    embeddings = candidate_encoder(ids)
  embeddings = tf.convert_to_tensor(embeddings)
  if not embeddings.shape.is_compatible_with([ids.shape[0], dim]):
    raise ValueError(
      "`candidate_encoder` must map [n] ids to [n, dim] embeddings, as the "
      f"candidate tower does; here, [{ids.shape[0] or 'n'}, {dim or 'dim'}]. "
      f"Received: shape {embeddings.shape}."
    )
  return embeddings


@contextlib.contextmanager
def losses_kept(candidate_encoder: CandidateEncoder | None) -> Iterator[None]:
  """Returns a context that does not change what an encoder added as losses.

  `add_loss` and activity regularizers count for the candidates of the batch,
  which the caller of the task has encoded. Keras would forget these, and count
  those that the task encodes instead; where they are encoded in a loop, their
  losses cannot even be used.
  """
  if not isinstance(candidate_encoder, tf.keras.layers.Layer):
    yield
    return
  layers = list(candidate_encoder._flatten_layers())
  kept = [list(layer._eager_losses) for layer in layers]
  try:
    yield
  finally:
    for layer, losses in zip(layers, kept, strict=True):
      layer._eager_losses = losses


def size_of_catalogue(candidate_encoder: CandidateEncoder) -> int | None:
  """Number of candidates of an encoder, if it has one.

  A `models.Tower` has a `vocabulary_size`, a Keras `Embedding` an `input_dim`.
  """
  for name in ("vocabulary_size", "input_dim"):
    size = getattr(candidate_encoder, name, None)
    if size is not None:
      return int(size)
  return None


def require_num_candidates(
  num_candidates: int | None, candidate_encoder: CandidateEncoder
) -> int:
  """`num_candidates`, or else that of the encoder.

  Raises:
    ValueError: It is not given and the encoder has none, or it is not positive.
  """
  if num_candidates is None:
    num_candidates = size_of_catalogue(candidate_encoder)
  if num_candidates is None:
    raise ValueError(
      "`num_candidates` must say how many candidates there are: "
      f"{candidate_encoder!r} does not."
    )
  checks.require_sizes(num_candidates=num_candidates)
  return num_candidates
