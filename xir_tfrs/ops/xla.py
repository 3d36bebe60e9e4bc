"""Whether XLA compiles what is being traced.

Where shapes depend on values, as in `tf.unique`, XLA needs another algorithm,
with static shapes. In a plain step that algorithm may cost more.
"""

import tensorflow as tf
from tensorflow.python.ops import control_flow_util


def compiling() -> bool:
  """Whether the function that is being traced has `jit_compile=True`.

  TensorFlow has no public way to tell.

  Examples:
    >>> xir.ops.xla.compiling()
    False
  """
  graph = tf.compat.v1.get_default_graph()
  return control_flow_util.GraphOrParentsInXlaContext(graph)
