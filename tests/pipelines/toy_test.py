"""Twelve rows go through all programs; the learning rate is a number."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from pipelines.training import build, schedule
from pipelines.training import config as configs

_ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
  "settings",
  [
    {},
    {"preset": "paper"},
    {"learning_rate_schedule": "cosine"},
    {"learning_rate_schedule": "cosine", "epochs": 1},
    {"decay_epochs": 1},
  ],
)
def test_learning_rates_are_numbers_for_any_number_of_rows(settings):
  config = configs.from_preset(**settings)
  for num_rows in (1, 2, 12, 51, 102, 103, 512, 513, 5000):
    calendar = schedule.Schedule(num_rows, config)
    rate = build.optimizer(config, calendar.steps_per_epoch)._learning_rate
    steps = tf.range(calendar.total_steps, dtype=tf.float32)[:50]
    rates = np.array([float(rate(step)) for step in steps])
    assert np.isfinite(rates).all(), num_rows
    assert rates[0] == pytest.approx(config.learning_rate), num_rows
    assert (np.diff(rates) <= 0).all(), num_rows


def _run(program, *arguments):
  done = subprocess.run(
    [sys.executable, "-m", program, *map(str, arguments)],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    timeout=240,
    check=False,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout


def test_twelve_rows_go_through_all_programs(tmp_path):
  """With the commands of README.md, and their defaults."""
  data, model, bundle = (tmp_path / name for name in ("data", "m", "b"))
  path = tmp_path / "toy.inter"
  rows = [(u, (u + i) % 5) for u in range(4) for i in range(3)]
  path.write_text(
    "user_id:token\titem_id:token\n"
    + "".join(f"{user}\t{item}\n" for user, item in rows)
  )
  _run("pipelines.prepare", "--input", path, "--output", data)
  _run(
    "pipelines.train",
    *("--data", data, "--model_dir", model, "--task", "xir"),
  )
  rows = (model / "metrics.jsonl").read_text().splitlines()
  assert all(np.isfinite(json.loads(row)["loss"]) for row in rows)
  assert "recall@10" in _run("pipelines.evaluate", "--model_dir", model)
  _run(
    "export.export_retriever",
    *("--data", data, "--model_dir", model, "--output", bundle),
  )
  answer = json.loads(
    _run(
      "export.query",
      *("--bundle", bundle, "--query_id", "2", "--k", "3", "--json"),
    )
  )
  assert len(answer["candidate_ids"]) == 3
