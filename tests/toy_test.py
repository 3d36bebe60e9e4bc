"""The commands of the README work for a file of twelve rows."""

import json
import math
import os
import pathlib
import re
import subprocess

import pytest

from tests import forked
from xir_tfrs.programs import command

_ROOT = pathlib.Path(__file__).parents[1]
_ROWS = """user_id:token\titem_id:token
ann\ttea
ann\tmilk
ann\tsugar
bob\ttea
bob\tmilk
bob\tcoffee
cat\tcoffee
cat\tsugar
cat\tmilk
dan\ttea
dan\tcoffee
dan\tcake
"""
_STEPS = ("prepare", "train", "evaluate", "export", "query")


def _commands():
  """The README's commands by their program."""
  text = (_ROOT / "README.md").read_text("utf-8")
  # `xir-tfrs NAME`, or its program: `python -m pipelines.NAME`.
  lines = re.findall(
    r"^((?:xir-tfrs |python -m (?:pipelines|export)\.)(\w+)) (.*)$", text, re.M
  )
  found = {}
  for start, name, arguments in lines:
    words = [*start.split(), *arguments.split()]
    found.setdefault(command.name_of(name), words)
  return found


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
  """The output of each program."""
  folder = tmp_path_factory.mktemp("toy")
  (folder / "gowalla.inter").write_text(_ROWS, encoding="utf-8")
  commands = _commands()
  printed = {"folder": folder}
  with forked.programs(os.environ) as environment:
    for name in _STEPS:
      words = ["ann" if x == "42" else x for x in commands[name]]
      done = subprocess.run(
        words,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
      )
      assert done.returncode == 0, f"{name}\n{done.stdout}\n{done.stderr}"
      printed[name] = done.stdout
      printed[f"{name} stderr"] = done.stderr
  return printed


def test_the_toy_data_is_split(outputs):
  schema = json.loads(
    (outputs["folder"] / "data/gowalla/schema.json").read_text("utf-8")
  )
  assert sum(schema["rows"].values()) == 12
  assert schema["rows"]["train"] >= 4


def test_the_toy_data_trains_at_a_finite_learning_rate(outputs):
  lines = (outputs["folder"] / "runs/xir/metrics.jsonl").read_text("utf-8")
  rows = [json.loads(line) for line in lines.splitlines()]
  trained = [row for row in rows if row["kind"] == "train"]
  assert trained[-1]["step"] >= 1
  # There are far fewer rows than in a batch, which is reported.
  assert "--global_batch_size 1,024" in outputs["train stderr"]
  for row in trained:
    assert row["learning_rate"] > 0
    assert math.isfinite(row["loss"])


def test_the_toy_model_is_evaluated(outputs):
  metrics = json.loads(
    (outputs["folder"] / "runs/xir/metrics.json").read_text("utf-8")
  )["metrics"]
  # There are so few items that the list has all unseen ones.
  assert metrics["model"]["hit@10"] > 0
  assert "recall@10" in outputs["evaluate"]


def test_the_toy_bundle_answers(outputs):
  answers = re.findall(r"^ +\d+  (\w+) ", outputs["query"], re.M)
  assert 1 <= len(answers) == len(set(answers)) <= 4
  assert set(answers) <= {"tea", "milk", "sugar", "coffee", "cake"}
