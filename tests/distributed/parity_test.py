"""Replicas and workers match one device that has all their rows.

Three devices of one process, and two processes on a network, each run all tasks
in one program; see `problems`.
"""

import functools

import numpy as np
import pytest
import tensorflow as tf

from tests.distributed import cluster, problems

# Workers exchange the same for a method and its variants.
_BY_DAY = tuple(
  name
  for name in problems.METHODS
  if name != "ssl" and not name.endswith("_expected")
)
# Number of workers, devices of each, and methods.
_PLACES = {
  "three devices": (1, 3, tuple(problems.METHODS)),
  "two workers": (2, 1, _BY_DAY),
}


@functools.cache
def _on_one_device(method):
  return problems.train(tf.distribute.get_strategy(), method)


@functools.cache
def _fit_on_one_device(case):
  strategy = tf.distribute.get_strategy()
  return problems.fit(strategy, "xir", **problems.FITS[case])


@pytest.fixture(
  scope="module",
  params=[
    "two workers",
    pytest.param("three devices", marks=pytest.mark.slow),
  ],
)
def place(request, tmp_path_factory, fast):
  """Workers and folder of a set-up, after they ended."""
  num_workers, cpus, methods = _PLACES[request.param]
  folder = tmp_path_factory.mktemp("results")
  with cluster.start(
    "tests.distributed.worker",
    ["--out", folder, "--cpus", cpus, *methods],
    num_workers=num_workers,
    env=fast,
  ) as workers:
    workers.wait(timeout=600)
    yield workers, folder


@pytest.fixture(scope="module")
def results(place):
  """Results of every process of a set-up."""
  workers, folder = place
  return [
    dict(np.load(folder / f"worker-{index}.npz"))
    for index in range(len(workers))
  ]


@pytest.fixture(scope="module")
def fits(results):
  if len(results) == 1:
    pytest.skip("fit on replicas of one process has a test of its own")
  return results


def _of(arrays, case, method):
  prefix = f"{case}/{method}/"
  return {
    name.removeprefix(prefix): value
    for name, value in arrays.items()
    if name.startswith(prefix)
  }


@pytest.mark.parametrize("method", problems.METHODS)
def test_training(results, method):
  if len(results) > 1 and method not in _BY_DAY:
    pytest.skip("another method has the same collectives")
  for arrays in results:
    problems.assert_same(
      _of(arrays, "train", method),
      _on_one_device(method),
      exact=problems.METHODS[method].exact,
    )


def test_a_batch_without_any_row_is_refused(place):
  # Without a check, TensorFlow crashes with a segmentation fault.
  for worker in place[0]:
    refusal = worker.output().partition("refused:")[2]
    assert "The batch has no row on any replica" in refusal


def test_all_workers_end_with_the_same_bits(results):
  first, *others = results
  for other in others:
    assert first.keys() == other.keys()
    for name, value in first.items():
      np.testing.assert_array_equal(value, other[name], name)


@pytest.mark.parametrize("case", problems.FITS)
def test_fit(fits, case):
  for arrays in fits:
    problems.assert_same(
      _of(arrays, case, "xir"), _fit_on_one_device(case), exact=True
    )
