"""Ids without training rows: one rule for ranking and for serving.

A table may list ids that no training row has: users who come only after a
temporal cut, registered users, new items. Training never moves the embedding of
such an id, so the id counts as unknown, and only its side features count:

- its vector is that of its features, without an id embedding (`encode`);
- if it has no features either, nothing is known of it (`is_answerable`): a
  query is answered by popularity, and a candidate is not in the index.
"""

from collections.abc import Callable, Mapping

import tensorflow as tf

Features = Mapping[str, tf.Tensor | tf.RaggedTensor]

# A dense id that no tower knows.
UNKNOWN_ID = -1


def encode(
  encoder: Callable[[tf.Tensor, Features], tf.Tensor],
  ids: tf.Tensor,
  has_rows: tf.Tensor,
  features: Features,
) -> tf.Tensor:
  """Encodes ids as they are served.

  Args:
    encoder: `TwoTower.encode_queries` or `encode_candidates`.
    ids: [n] dense ids.
    has_rows: [n] bool, whether the id has training rows.
    features: Side features of the n ids by name, as `layers.CandidateTable`
      returns them; empty if the tower has none.

  Returns:
    [n, dim] embeddings.

  Examples:
    >>> tower = xir.models.Tower(vocabulary_size=3, dim=2)
    >>> encode = xir.models.TwoTower(tower, tower).encode_queries
    >>> ids, has_rows = tf.constant([0, 1]), tf.constant([True, False])
    >>> xir.models.cold_start.encode(encode, ids, has_rows, {}).numpy()[1]
    array([0., 0.], dtype=float32)
  """
  unknown = tf.cast(UNKNOWN_ID, ids.dtype)
  return encoder(tf.where(has_rows, ids, unknown), features)


def is_answerable(has_rows: tf.Tensor, features: Features) -> tf.Tensor:
  """[n] bool, whether anything is known of an id; arguments as of `encode`.

  Examples:
    >>> price = tf.constant([np.nan, 2.0, np.nan])
    >>> xir.models.cold_start.is_answerable(
    ...   tf.constant([True, False, False]), {"price": price}
    ... ).numpy()
    array([ True,  True, False])
  """
  answerable = tf.convert_to_tensor(has_rows)
  for value in features.values():
    answerable |= _is_given(value)
  return answerable


def _is_given(value: tf.Tensor | tf.RaggedTensor) -> tf.Tensor:
  """[n] bool, whether a feature has any known token or number."""
  if isinstance(value, tf.RaggedTensor):  # Codes of tokens.
    return tf.reduce_any(value > 0, axis=1)
  if value.dtype.is_integer:
    return value > 0
  given = tf.math.is_finite(value)
  return given if given.shape.rank == 1 else tf.reduce_any(given, axis=1)
