"""The schedule of a run, compared with a loop over all steps."""

import math

import pytest

from pipelines.training import config as configs
from pipelines.training import schedule, validation
from xir_tfrs.data import errors


def make(num_rows=103, **settings):
  settings = {
    "global_batch_size": 10,
    "epochs": 7,
    "log_steps": 1000,
    "eval_epochs": 2,
  } | settings
  return schedule.Schedule(num_rows, configs.from_preset(**settings))


@pytest.mark.parametrize("num_rows", [3, 10, 95, 100, 103])
@pytest.mark.parametrize("eval_epochs", [1, 2, 3])
def test_blocks_stop_at_every_due_step(num_rows, eval_epochs):
  calendar = make(
    num_rows,
    eval_epochs=eval_epochs,
    checkpoint_steps=4,
    log_steps=9,
    average_epochs=12,
  )
  stops, step = {0}, 0
  while step < calendar.total_steps:
    step += calendar.block(step)
    stops.add(step)
  assert step == calendar.total_steps == -(-num_rows * 7 // 10)

  ends = {-(-num_rows * epoch // 10) for epoch in range(8)}
  for step in range(calendar.total_steps + 1):
    rounds = range(eval_epochs, 8 + eval_epochs, eval_epochs)
    due = step > 0 and step in {-(-num_rows * e // 10) for e in rounds}
    assert calendar.starts_epoch(step) == (step in ends), step
    assert calendar.validates(step) == due, step
    averages = step % max(round(num_rows * 12 / 10 / 20), 1) == 0
    assert calendar.averages(step) == averages, step
    if step and (step % 4 == 0 or step % 9 == 0 or averages or step in ends):
      assert step in stops, step


def test_every_epoch_has_a_checkpoint_unless_told_otherwise():
  calendar = make(100, eval_epochs=3)
  every = [10, 20, 30, 40, 50, 60, 70]
  assert [s for s in range(1, 71) if calendar.saves(s)] == every
  calendar = make(100, checkpoint_steps=25)
  assert [s for s in range(1, 71) if calendar.saves(s)] == [25, 50]


def test_an_average_is_renewed_by_a_twentieth_at_a_time():
  calendar = make(10_000, average_epochs=2)
  assert calendar.average_steps == 100
  assert calendar.average_decay == pytest.approx(math.exp(-1 / 20))
  # Shorter than a step: almost the last weights.
  calendar = make(10, average_epochs=0.1)
  assert calendar.average_steps == 1
  assert calendar.average_decay == pytest.approx(math.exp(-10))
  assert not any(make(average_epochs=0).averages(step) for step in range(100))


def test_schedule_is_fast_for_late_steps():
  calendar = make(10**9, epochs=10**6)
  assert calendar.block(10**13 - 1) == 1
  assert calendar.epoch(10**13) == 10**5


@pytest.mark.parametrize("lost", [{}, {"ndcg@20": None}, {"ndcg@20": "high"}])
def test_a_validation_without_its_metric_is_named(lost):
  config = configs.from_preset(model_dir="run", patience=1, metric="ndcg@20")
  rows = [
    {"kind": "validation", "step": 5, "ndcg@20": 0.5},
    {"kind": "validation", "step": 10, "ndcg@20": 0.25},
  ]
  assert validation.Validations(config, list(rows)).should_stop
  rows[1] = {"kind": "validation", "step": 10, **lost}
  with pytest.raises(errors.DataError, match="run/metrics.jsonl: .* step 10"):
    validation.Validations(config, rows)
