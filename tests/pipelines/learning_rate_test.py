"""The learning rate is a number, however few rows there are."""

import numpy as np
import pytest
import tensorflow as tf

from pipelines.training import build, schedule
from pipelines.training import config as configs


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
