"""Branches that are rarely taken."""

import pytest
import tensorflow as tf

from xir_tfrs.ops import branches


def chosen(condition, x):
  return branches.seldom(
    condition,
    lambda: (x + 1, tf.constant("rare")),
    lambda: (x, tf.constant("usual")),
  )


@pytest.mark.parametrize("wrap", [lambda f: f, tf.function])
def test_the_branch_of_the_condition_is_taken(wrap):
  for condition, number, text in ((True, 4, b"rare"), (False, 3, b"usual")):
    found = wrap(chosen)(tf.constant(condition), tf.constant(3))
    assert (found[0].numpy(), found[1].numpy()) == (number, text)


def test_the_rare_branch_stays_one_op():
  scalars = [tf.TensorSpec([], tf.bool), tf.TensorSpec([], tf.int32)]
  graph = tf.function(chosen).get_concrete_function(*scalars).graph
  functions = {
    f.signature.name: f for f in graph.as_graph_def().library.function
  }
  (branch,) = [f for name, f in functions.items() if "cond_true" in name]
  (call,) = [x for x in branch.node_def if x.op.endswith("PartitionedCall")]
  assert functions[call.attr["f"].func.name].attr["_noinline"].b
