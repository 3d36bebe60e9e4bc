"""The commands and the code in README.md and docs/ run as they stand."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from benchmarks import estimator_bias, serving
from pipelines.reproduction import report

ROOT = pathlib.Path(__file__).parents[1]
GUIDES = sorted((ROOT / "docs").glob("*.md"))


def blocks(path, language):
  return re.findall(
    rf"^```{language}\n(.*?)^```", path.read_text("utf-8"), re.M | re.S
  )


def run(script, folder, checkout=ROOT):
  """Runs a shell script as a user in a checkout would, in a scratch folder."""
  environment = os.environ | {
    "PYTHONPATH": str(checkout),
    "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}",
  }
  done = subprocess.run(
    ["bash", "-eu", "-o", "pipefail", "-c", script],
    cwd=folder,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    timeout=600,
    check=False,
  )
  assert done.returncode == 0, f"{script}\n{done.stdout}"
  return done.stdout


@pytest.mark.parametrize("guide", GUIDES, ids=[g.name for g in GUIDES])
def test_commands_of_a_guide_run(guide, tmp_path):
  scripts = blocks(guide, "bash")
  if scripts:
    run("\n".join(scripts), tmp_path)


def interactions(path):
  """Two groups of users with tastes of their own, in a RecBole file."""
  rng = np.random.default_rng(0)
  lines = ["user_id:token\titem_id:token"]
  for user in range(120):
    for item in rng.choice(60, 20, replace=False):
      lines.append(f"{user}\t{item + 60 * (user % 2)}")
  path.write_text("\n".join(lines) + "\n")


def test_programs_of_the_readme_run_one_after_another(tmp_path):
  interactions(tmp_path / "gowalla.inter")
  (tmp_path / "new_items.csv").write_text("item_id\n999999\n")
  (tmp_path / "gone.txt").write_text("3\n")
  (programs,) = (
    block
    for block in blocks(ROOT / "README.md", "text")
    if block.startswith("python -m pipelines.prepare")
  )
  output = run(programs, tmp_path)
  assert "recall@10" in output
  answers, _, later = output.rpartition("query 42")[2].partition("\n\n")
  assert "FAILED" not in later
  assert len(list((tmp_path / "top100").glob("part-*.parquet"))) == 1
  assert len(re.findall(r"^ +\d+  \d+ ", answers, re.M)) == 10


def test_quickstart_on_a_users_file(tmp_path):
  interactions(tmp_path / "my.inter")
  output = run(
    "python -m pipelines.quickstart --input my.inter --output q --epochs 2",
    tmp_path,
  )
  table = output.partition("=== Compare")[2].partition("===")[0]
  rows = {
    line.split()[0]: line.split()[1:]
    for line in table.splitlines()[2:]
    if line.strip() and not line.startswith(" ")
  }
  assert list(rows) == ["popularity", "ssl", "ssl_pop", "bir", "xir"]
  for row in rows.values():
    assert 0 <= float(row[0]) <= 1
  assert output.count("rank  id") == 3
  assert "What next" in output


def test_code_of_the_readme_trains():
  (code,) = blocks(ROOT / "README.md", "python")
  scope = {}
  exec(code, scope)  # pylint: disable=exec-used
  query_tower = tf.keras.layers.Embedding(50, 8)
  candidate_tower = tf.keras.layers.Embedding(40, 8)
  model = scope["TwoTower"](query_tower, candidate_tower, np.full(40, 25))
  model.compile(optimizer=tf.keras.optimizers.Adam(0.05))
  query = np.random.default_rng(0).integers(0, 50, 1024)
  rows = {"query_id": query, "candidate_id": query % 40}
  model.fit(
    tf.data.Dataset.from_tensor_slices(rows).batch(128), epochs=6, verbose=0
  )
  scores = tf.matmul(
    query_tower(tf.range(50)), candidate_tower(tf.range(40)), transpose_b=True
  )
  found = np.argmax(scores, axis=1) == np.arange(50) % 40
  assert found.mean() > 0.9


def test_code_of_the_distributed_guide_trains(two_replicas):
  (code,) = blocks(ROOT / "docs/distributed.md", "python")
  made = "tf.distribute.MirroredStrategy()"
  assert code.count(made) == 1
  # One of these is all that a process can have.
  scope = {"two_replicas": two_replicas}
  exec(code.replace(made, "two_replicas"), scope)  # pylint: disable=exec-used
  assert scope["strategy"].num_replicas_in_sync == 2
  assert scope["model"].optimizer.iterations.numpy() == 19
  assert np.isfinite(scope["loss"].numpy())


def test_example_of_the_task_guide(tmp_path):
  """A copy of the project, with the task that the guide adds."""
  guide = ROOT / "docs/adding_a_task.md"
  task, imported, row, tested, value = blocks(guide, "python")
  (command,) = blocks(guide, "text")
  for name in ("xir_tfrs", "pipelines", "tests"):
    shutil.copytree(ROOT / name, tmp_path / name)
  shutil.copy(ROOT / "pyproject.toml", tmp_path)
  (tmp_path / "xir_tfrs/tasks/power.py").write_text(task)
  for name, anchor, lines in (
    ("xir_tfrs/tasks/__init__.py", "from xir_tfrs.tasks.xir import", imported),
    ("pipelines/training/build.py", '  "ssl": Method(', row),
    ("tests/conformance/tasks_test.py", '  "ssl": _Row(', tested),
    ("tests/conformance/tasks_test.py", '  "candidate_counts": list(', value),
  ):
    file = tmp_path / name
    text = file.read_text("utf-8")
    assert text.count(anchor) == 1, name
    file.write_text(text.replace(anchor, lines + anchor))
  prepare = (
    "python -m pipelines.prepare --format synthetic --output data/small "
    "--synthetic_users 200 --synthetic_items 150 "
    "--synthetic_interactions 4000\n"
  )
  small = "--epochs 1 --dim 8 --global_batch_size 256"
  output = run(prepare + command.strip() + f" {small}", tmp_path, tmp_path)
  assert "power: finished" in output
  wrong = command.strip().replace("power=0.5", "powr=0.5")
  assert "powr=0.5" in run(f"! {wrong} {small} --overwrite", tmp_path, tmp_path)
  conformance = "python -m pytest -q tests/conformance -k 'Api or Config'"
  run(conformance, tmp_path, tmp_path)


def test_tables_of_the_performance_guide_are_the_results():
  """The figures stand in the files that the benchmarks wrote."""
  sections = (ROOT / "docs/performance.md").read_text("utf-8").split("\n## ")
  checked = 0
  for section in sections:
    named = re.search(r"python -m benchmarks\.(\w+)", section)
    if not named:
      continue
    results = json.loads(
      (ROOT / f"benchmarks/results/{named[1]}.json").read_text()
    )["results"]
    rows = dict(re.findall(r"^\| (\w[^|]*) \| ([\d.,]+) \|", section, re.M))
    assert rows.keys() == results.keys(), named[1]
    for case, figure in rows.items():
      shown = float(figure.replace(",", ""))
      result = results[case]
      found = [
        (result[key] * scale, precision)
        for key, scale, precision in (
          ("rows_per_s", 1, 0.5),
          ("peak_mib", 1, 0.5),
          ("median_s", 1e3, 0.051),
          ("median_s", 1, 0.0051),
        )
        if key in result
      ]
      assert any(abs(shown - f) <= p for f, p in found), case
      checked += 1
  assert checked > 20


def test_tables_of_the_estimator_guide_are_the_results():
  guide = (ROOT / "docs/estimators.md").read_text("utf-8")
  results = json.loads(
    (ROOT / "benchmarks/results/estimator_bias.json").read_text()
  )["results"]
  tables = re.findall(r"^<!-- (\w+) -->\n\n((?:\|.*\n)+)", guide, re.M)
  assert len(tables) == guide.count("<!-- ") > 4
  for figure, table in tables:
    assert table == estimator_bias.markdown(results, figure) + "\n", figure


def test_results_can_be_rebuilt_from_their_files(tmp_path):
  for file in (ROOT / "results").glob("*.json"):
    shutil.copy(file, tmp_path)
  written = report.write(str(tmp_path))
  names = {path.name for path in written}
  assert {p.name for p in (ROOT / "results").iterdir()} >= names
  kept = (ROOT / "results" / report.FILE_NAME).read_text("utf-8")
  assert (tmp_path / report.FILE_NAME).read_text("utf-8") == kept


def test_tables_of_results_are_the_results():
  results = report.load(ROOT / "results")
  shown = set()
  for document in ("docs/results.md", "README.md"):
    text = (ROOT / document).read_text("utf-8")
    tables = re.findall(r"^<!-- (\w+) -->\n\n((?:\|.*\n)+)", text, re.M)
    assert len(tables) == text.count("<!-- ") >= 1
    for name, table in tables:
      assert table == report.table(results[name]), (document, name)
      shown.add(name)
    for figure in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text):
      assert (ROOT / document).parent.joinpath(figure).exists(), figure
      shown.add(pathlib.Path(figure).stem)
  assert shown == set(results)


def test_tables_of_methods_are_the_results():
  guide = (ROOT / "docs/choosing_a_method.md").read_text("utf-8")
  tables = re.findall(
    r"^\| (\w+) \| recall@10 .*\n\|[-|]+\n((?:\|.*\n)+)", guide, re.M
  )
  assert tables
  for name, table in tables:
    file = ROOT / f"benchmarks/results/methods_{name}.json"
    results = json.loads(file.read_text("utf-8"))["results"]
    shown = set()
    for line in table.splitlines():
      method, *figures = [cell.strip() for cell in line.strip("|").split("|")]
      task, _, second_stage = method.partition(", ")
      result = results[task]
      ranking = result["reranked"] if second_stage else result
      for key, figure in zip(
        ("recall@10", "recall@20", "ndcg@10", "ndcg@20"), figures, strict=False
      ):
        assert figure == f"{ranking[key]:.4f}", (name, method, key)
      assert figures[4:] == [
        f"{result['step_ms']:.1f}",
        f"{result['peak_gib']:.2f}",
      ], (name, method)
      shown.add(task)
    assert shown == set(results), name


def test_tables_of_the_serving_guide_are_the_results():
  guide = (ROOT / "docs/serving.md").read_text("utf-8")
  file = ROOT / "benchmarks/results/serving.json"
  results = json.loads(file.read_text("utf-8"))["results"]
  assert set(results) == {"bundle", "generated"}
  for result in results.values():
    assert serving.markdown(result) + "\n" in guide
    for name in ("scann", "brute_force", "folder"):
      ready = result["ready"][name]["ready_s"]
      row = rf"\| `?{name}`? \|.* {ready:.1f} "
      assert re.search(row, guide), name


def test_code_of_the_estimator_guide_shows_what_it_says():
  (code,) = blocks(ROOT / "docs/estimators.md", "python")
  scope = {}
  exec(code, scope)  # pylint: disable=exec-used
  found = scope["found"]
  assert found["bias_half_temperature"] < 0.5 * found["bias"]
  assert found["sharpness"] == pytest.approx(2.0, rel=0.2)


def test_makefile_has_the_commands_of_the_readme():
  targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
  named = [
    command
    for block in blocks(ROOT / "README.md", "bash")
    for command in re.findall(r"^make (\w+)", block, re.M)
  ]
  assert named == ["quickstart", "test"]
  assert set(named) <= set(targets)
  assert "make test" in (ROOT / ".ci/run").read_text()
