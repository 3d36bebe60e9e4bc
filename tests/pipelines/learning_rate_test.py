"""The learning rate is finite even with few rows."""

import numpy as np
import pytest
import tensorflow as tf

from pipelines.training import build, schedule
from pipelines.training import config as configs
from xir_tfrs.programs import settings


@pytest.mark.parametrize(
  "given",
  [
    {},
    {"preset": "paper"},
    {"learning_rate_schedule": "cosine"},
    {"learning_rate_schedule": "cosine", "epochs": 1},
    {"decay_epochs": 1},
  ],
)
def test_learning_rates_are_numbers_for_any_number_of_rows(given):
  config = configs.from_preset(**given)
  for num_rows in (1, 2, 12, 51, 102, 103, 512, 513, 5000):
    calendar = schedule.Schedule(num_rows, config)
    rate = build.optimizer(config, calendar.steps_per_epoch)._learning_rate
    steps = tf.range(calendar.total_steps, dtype=tf.float32)[:50]
    rates = np.array([float(rate(step)) for step in steps])
    assert np.isfinite(rates).all(), num_rows
    assert rates[0] == pytest.approx(config.learning_rate), num_rows
    assert (np.diff(rates) <= 0).all(), num_rows


@pytest.mark.parametrize(
  ("optimizer", "arguments"),
  [
    ("adam", {"beta_2": 0.98, "weight_decay": 0.01}),
    ("lazy_adam", {"epsilon": 1e-3, "clipnorm": 2.0}),
    ("coupled_l2_adam", {"beta_1": 0.8}),
    ("adagrad", {"initial_accumulator_value": 0.5}),
  ],
)
def test_arguments_reach_the_optimizer(optimizer, arguments):
  config = configs.from_preset(
    optimizer=optimizer, optimizer_arguments=arguments
  )
  made = build.optimizer(config, 10).get_config()
  assert {name: made[name] for name in arguments} == arguments


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"momentum": 0.9}, "--optimizer lazy_adam has no argument 'momentum'"),
    (
      {"learning_rate": 1.0},
      "has no argument 'learning_rate'. It has: beta_1, ",
    ),
    ({"amsgrad": True}, "--optimizer lazy_adam: LazyAdam does not support `am"),
  ],
)
def test_wrong_arguments_of_an_optimizer(arguments, message):
  config = configs.from_preset(optimizer_arguments=arguments)
  with pytest.raises(settings.SettingsError, match=message):
    build.optimizer(config, 10)
