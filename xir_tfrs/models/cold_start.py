"""One rule, for ranking and for serving, for ids without training rows.

A table may list ids that appear in no training row: users who first appear
after a temporal cut, registered users, new items. Training never updates the
embedding of such an id, so the id is treated as unknown:

- `encode` computes its vector from its side features alone;
- if it has no features either, `is_answerable` is False: a query is answered by
  popularity, and a candidate is left out of the index.
"""

from collections.abc import Callable, Mapping

import tensorflow as tf

Features = Mapping[str, tf.Tensor | tf.RaggedTensor]

# A dense id that is unknown to every tower.
UNKNOWN_ID = -1


def encode(
  encoder: Callable[[tf.Tensor, Features], tf.Tensor],
  ids: tf.Tensor,
  has_rows: tf.Tensor,
  features: Features,
) -> tf.Tensor:
  """Encodes ids for serving: ids without training rows by features alone.

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
  """Returns [n] bool: whether an id has training rows or any known feature.

  Args:
    has_rows: [n] bool, whether the id has training rows.
    features: Side features of the n ids by name, as in `encode`.

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
