"""The source of a run's log-Q correction: --log_q, and G-Tower."""

import types

import numpy as np
import pytest
import tensorflow as tf

import xir_tfrs as xir
from pipelines.training import build as model
from pipelines.training import config as configs
from xir_tfrs.data import tables

_COUNTS = np.array([5, 1, 0, 40, 7, 2, 0, 3, 11, 4])


def build(task, **settings):
  """The task of a run over ten candidates without side features."""
  table = tables.Table(
    ids=np.array([str(i) for i in range(len(_COUNTS))], object),
    counts=_COUNTS,
    columns={},
  )
  schema = types.SimpleNamespace(
    rows={"train": 0}, query_features=(), candidate_features=()
  )
  config = configs.from_preset(
    task=task, dim=4, seed=3, use_features=False, **settings
  )
  return model.build(config, schema, table, table).task


def config_of(task):
  config = task.get_config()
  estimator = config["frequency_estimator"]
  return config["candidate_counts"], estimator and estimator.get_config()


@pytest.mark.parametrize(
  ("task", "log_q"),
  [("ssl", None), ("ssl", "none"), ("ssl_pop", "none")],
)
def test_no_correction(task, log_q):
  assert config_of(build(task, log_q=log_q)) == (None, None)


@pytest.mark.parametrize(
  ("task", "log_q"),
  [("ssl_pop", None), ("ssl_pop", "popularity"), ("ssl", "popularity")],
)
def test_popularity(task, log_q):
  assert config_of(build(task, log_q=log_q)) == (_COUNTS.tolist(), None)


@pytest.mark.parametrize("task", ["ssl_pop", "bir", "xir"])
def test_popularity_by_the_logarithm(task):
  arguments = {"popularity": "log_rows"}
  counts = build(task, task_arguments=arguments).get_config()[
    "candidate_counts"
  ]
  np.testing.assert_allclose(counts, 1e6 * np.log1p(_COUNTS), atol=0.5)


@pytest.mark.parametrize("task", ["ssl", "ssl_pop", "mns", "cbns"])
def test_streaming(task):
  counts, estimator = config_of(build(task, log_q="streaming"))
  assert counts is None
  estimator.pop("name")
  # Eight cells per candidate; frequencies as shares of rows, like counts.
  assert estimator == {
    "num_buckets": 20,
    "num_hashes": 4,
    "learning_rate": 0.01,
    "initial_gap": None,
    "count_appearances": True,
    "read_before_update": False,
    "seed": 3,
  }
  counts, estimator = config_of(
    build(
      task,
      log_q="streaming",
      num_buckets=77,
      task_arguments={"num_hashes": 3, "frequency_learning_rate": 0.2},
    )
  )
  assert counts is None
  assert estimator["num_buckets"] == 77
  assert estimator["num_hashes"] == 3
  assert estimator["learning_rate"] == 0.2


def test_g_tower():
  task = build(
    "g_tower", task_arguments="num_hashes=5,frequency_learning_rate=0.2"
  )
  assert isinstance(task, xir.tasks.StreamingFrequencyRetrieval)
  config = task.get_config()
  assert config["num_buckets"] == 16
  assert config["num_hashes"] == 5
  assert config["learning_rate"] == 0.2
  # As in the paper; the counts are only for the diagnostics.
  assert config["count_appearances"] is False
  task(tf.ones([3, 4]), tf.ones([3, 4]), candidate_ids=tf.constant([3, 3, 8]))
  assert int(task.readout()["frequency_steps"]) == 1
  assert "frequency_log_correlation" in task.readout()


@pytest.mark.parametrize("task", ["g_tower", "bir", "xir", "corr"])
def test_methods_with_a_proposal_of_their_own(task):
  for log_q in ("none", "popularity", "streaming"):
    with pytest.raises(ValueError, match=f"--log_q.*--task {task}"):
      build(task, log_q=log_q)
