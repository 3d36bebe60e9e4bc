"""A step sends nothing of the catalogue's size between replicas.

Collectives are recorded while a step runs, because most shapes are unknown in
the graph.
"""

import contextlib
import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.ops import collective_ops

from tests.distributed import problems
from xir_tfrs import optimizers

_NUM_CANDIDATES, _NUM_QUERIES = 100_003, 50_021
_ROWS = 32

_VARIANTS = {
  # Except for the method that needs the gradients of all candidates, and SSL,
  # which sends less than SSL-Pop.
  **{
    name: (name, {})
    for name in problems.METHODS
    if name not in ("full_softmax", "ssl") and not name.endswith("_expected")
  },
  "xir_all": ("xir", {"cache_scope": "all", "occurrence_decay": 0.9}),
  "xir_local": ("xir", {"cross_replica": False}),
}


@dataclasses.dataclass(frozen=True)
class Sent:
  """The operand of a collective of one replica."""

  kind: str
  dtype: tf.DType
  shape: tuple[int, ...]

  @property
  def bytes(self) -> int:
    return int(np.prod(self.shape)) * self.dtype.size


@contextlib.contextmanager
def asked_for():
  """Collects the types that tasks gather and reduce.

  Except for those of shape [1]: TensorFlow's gradient of a gather gathers the
  numbers of rows.
  """
  dtypes = set()

  def noting(original):
    def method(context, *args, **kwargs):
      for x in [*args, *kwargs.values()]:
        if tf.is_tensor(x) and x.shape != [1]:
          dtypes.add(x.dtype)
      return original(context, *args, **kwargs)

    return method

  with pytest.MonkeyPatch.context() as patch:
    for name in ("all_gather", "all_reduce"):
      original = getattr(tf.distribute.ReplicaContext, name)
      patch.setattr(tf.distribute.ReplicaContext, name, noting(original))
    yield dtypes


@contextlib.contextmanager
def recorded():
  """Collects `Sent` of all steps that are traced in the block."""
  sent = []

  def recording(kind):
    original = getattr(collective_ops, kind)

    def collective(operand, *args, **kwargs):
      def note(shape):
        sent.append(Sent(kind, operand.dtype, tuple(int(n) for n in shape)))
        return shape

      # Stateful notes would run in program order, and one would wait for the
      # other replica. Stateless ones only run if their result is used.
      shape = tf.numpy_function(
        note, [tf.shape(operand)], tf.int32, stateful=False
      )
      static = operand.shape
      operand = tf.ensure_shape(tf.reshape(operand, shape), static)
      return original(operand, *args, **kwargs)

    return collective

  kinds = ("all_gather_v2", "all_reduce_v2")
  with pytest.MonkeyPatch.context() as patch:
    for kind in kinds:
      patch.setattr(collective_ops, kind, recording(kind))
    yield sent


def step(strategy, variant, rows=_ROWS):
  """Returns (what a training step sends, the types that the task sends)."""
  method, options = _VARIANTS[variant]
  rng = np.random.default_rng(0)
  with strategy.scope():
    model = problems.build(
      method,
      counts=np.ones(_NUM_CANDIDATES, np.int64),
      num_queries=_NUM_QUERIES,
      **options,
    )
    model.compile(optimizers.LazyAdam(0.1))
    model.optimizer.build(model.trainable_variables)
  features = {
    "query_id": tf.constant(rng.integers(0, _NUM_QUERIES, rows)),
    "candidate_id": tf.constant(rng.integers(0, _NUM_CANDIDATES, rows)),
  }
  shares = strategy.experimental_distribute_values_from_function(
    lambda context: {
      name: tf.split(column, strategy.num_replicas_in_sync)[
        context.replica_id_in_sync_group
      ]
      for name, column in features.items()
    }
  )
  with recorded() as sent, asked_for() as dtypes:
    strategy.run(model.train_step, args=(shares,))
  return sent, dtypes


@pytest.mark.parametrize("variant", _VARIANTS)
def test_nothing_of_the_size_of_the_catalogue_is_sent(two_replicas, variant):
  sent, dtypes = step(two_replicas, variant)
  # Twice by each of two replicas: rows of the gradients of both towers.
  rows = [s for s in sent if s.shape[1:] == (problems.DIM,)]
  assert len([s for s in rows if s.shape[0] >= _ROWS // 2]) >= 4, sent
  assert max(s.bytes for s in sent) < _NUM_CANDIDATES // 10, sent
  # TensorFlow reduces int32 on one device, without a collective.
  assert tf.int64 in dtypes
  assert dtypes <= {tf.int64, tf.float32, tf.float64}
