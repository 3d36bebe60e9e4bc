"""Whether XLA compiles what is being traced.

Where shapes depend on values, as in `tf.unique`, XLA needs another form of the
same, whose shapes are static. In a plain step that form may cost more.
"""

import tensorflow as tf
from tensorflow.python.ops import control_flow_util


def compiling() -> bool:
  """Whether the function being traced is compiled, as `jit_compile` asks for.

  TensorFlow has no public way to tell.
  """
  graph = tf.compat.v1.get_default_graph()
  return control_flow_util.GraphOrParentsInXlaContext(graph)
