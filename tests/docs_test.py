"""README.md and docs/: their code runs, and their tables are the results.

Every fenced block of bash or Python runs unchanged, in its own process; the
blocks of a document run in order, in one folder. A comment on the line above
says why a block does not run, or which test runs it instead:

    <!-- not run: it downloads the data set -->
    <!-- run by: test_code_of_the_readme_trains -->

For programs in blocks that do not run, and in the text, flags are parsed and
checked.
"""

import contextlib
import dataclasses
import inspect
import io
import json
import math
import pathlib
import re
import runpy
import shlex
import shutil
import subprocess
import sys

import absl.app
import numpy as np
import pytest
import yaml
from absl import flags

import xir_tfrs
from benchmarks import estimator_bias, serving
from pipelines.reproduction import experiments, report
from pipelines.training import config as configs
from pipelines.training import methods
from tests import forked
from tools import check_wheel
from xir_tfrs.programs import command as command_lib
from xir_tfrs.programs import main as programs_main
from xir_tfrs.programs import settings

ROOT = pathlib.Path(__file__).parents[1]
README = ROOT / "README.md"
GUIDES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [README, ROOT / "CONTRIBUTING.md", *GUIDES]

_BLOCK = re.compile(
  r"^(?:<!-- (?P<mark>[^\n]*?) -->\n)?```(?P<language>\w*)\n(?P<code>.*?)^```$",
  re.MULTILINE | re.DOTALL,
)
_NO_BLOCK_RUNS = re.compile(r"^<!-- no block is run: .+ -->$", re.MULTILINE)
_COMMAND = re.compile(
  r"^\s*(\$ )?(\.venv/bin/)?(python|pip|make|curl|docker|xir-tfrs) ",
  re.MULTILINE,
)
# The program of each command of `xir-tfrs`.
_COMMANDS = command_lib.programs()


@dataclasses.dataclass(frozen=True)
class Block:
  """A fenced block; `mark` says why it does not run, or is None."""

  language: str
  code: str
  mark: str | None


def blocks(path, *languages):
  text = path.read_text("utf-8")
  whole = _NO_BLOCK_RUNS.search(text)
  return [
    Block(
      found["language"],
      found["code"],
      found["mark"] or (whole and "not run: all of them"),
    )
    for found in _BLOCK.finditer(text)
    if not languages or found["language"] in languages
  ]


def run(script, folder, environment=None):
  """Runs a shell script as a user in a checkout would, in a scratch folder."""
  command = ["bash", "-eu", "-o", "pipefail", "-c", script]
  return _process(command, folder, environment)


def run_python(code, folder):
  """Runs code from a file, as a user would."""
  file = folder / "sample.py"
  file.write_text(code, "utf-8")
  return _process([sys.executable, str(file)], folder)


def _process(command, folder, environment=None):
  done = subprocess.run(
    command,
    cwd=folder,
    env=environment or forked.environment_of(ROOT),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    timeout=600,
    check=False,
  )
  assert done.returncode == 0, f"{command[-1]}\n{done.stdout}"
  return done.stdout


def run_document(path, folder, environment=None):
  """Runs the blocks without a mark and returns their output."""
  output = []
  for block in blocks(path, "bash", "python"):
    if block.mark is None and block.language == "bash":
      output.append(run(block.code, folder, environment))
    elif block.mark is None:
      output.append(run_python(block.code, folder))
  return "".join(output)


def results_and_text(name, part, guide):
  """A part of results/runs/NAME.json, and what a guide shows after its link."""
  path = f"results/runs/{name}.json"
  content = json.loads((ROOT / path).read_text("utf-8"))
  text = (ROOT / "docs" / guide).read_text("utf-8")
  return content[part], text.partition(path)[2]


def interactions(path):
  """Two groups of users with different tastes, in a RecBole file."""
  rng = np.random.default_rng(0)
  lines = ["user_id:token\titem_id:token"]
  for user in range(120):
    for item in rng.choice(60, 20, replace=False):
      lines.append(f"{user}\t{item + 60 * (user % 2)}")
  path.write_text("\n".join(lines) + "\n")


# Blocks ----------------------------------------------------------------------


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_and_code_are_fenced(path):
  text = path.read_text("utf-8")
  for block in blocks(path):
    assert block.language in {"bash", "python", "text", "json"}, block
    if block.language not in {"bash", "python"}:
      assert not _COMMAND.search(block.code), f"bash, not text: {block.code}"
  outside = _BLOCK.sub("", text)
  assert "```" not in outside, "a fence is not closed, or stands in a list"
  indented = re.findall(r"^ {4,}.*$", outside, re.MULTILINE)
  assert not _COMMAND.search("\n".join(indented)), "fence it"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_marks_give_a_reason_or_a_test(path):
  for block in blocks(path, "bash", "python"):
    if block.mark is None:
      continue
    kind, _, what = block.mark.partition(": ")
    assert kind in {"not run", "run by"} and what, block.mark
    if kind == "run by" and what in globals():
      assert path.name in inspect.getsource(globals()[what]) or (
        path == README and "README" in inspect.getsource(globals()[what])
      ), f"{what} does not read {path.name}"
    elif kind == "run by":
      assert path.name in (ROOT / what).read_text("utf-8"), what


def anchors(path):
  """The anchors of a page's headings, as GitHub and mkdocs make them."""
  text = _BLOCK.sub("", path.read_text("utf-8"))
  headings = re.findall(r"^#+ (.+)$", text, re.M)
  kept = [re.sub(r"[^\w\- ]", "", heading).lower() for heading in headings]
  return {heading.replace(" ", "-") for heading in kept}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_have_a_target(path):
  text = _BLOCK.sub("", path.read_text("utf-8"))
  for target in re.findall(r"\]\(([^)\s]+)\)", text):
    if target.startswith(("http://", "https://")):
      continue
    name, _, anchor = target.partition("#")
    page = path.parent / name if name else path
    assert page.exists(), target
    assert not anchor or anchor in anchors(page), target


def test_blocks_are_found_in_every_document(tmp_path):
  file = tmp_path / "a.md"
  file.write_text(
    "a\n```bash\nfalse\n```\n<!-- not run: it fails -->\n```bash\n"
    "exit 3\n```\n\n<!-- table -->\n\n```python\nprint('b')\n```\n"
  )
  assert [(b.language, b.code, b.mark) for b in blocks(file)] == [
    ("bash", "false\n", None),
    ("bash", "exit 3\n", "not run: it fails"),
    ("python", "print('b')\n", None),
  ]
  with pytest.raises(AssertionError, match="^false"):
    run_document(file, tmp_path)
  file.write_text(file.read_text().replace("false", "true"))
  assert run_document(file, tmp_path) == "b\n"


# Commands --------------------------------------------------------------------


# Far fewer rows than in a batch, and fewer items than in a list.
_TWELVE_ROWS = {42: (1, 2, 3), 43: (1, 2, 4), 44: (4, 3, 2), 45: (1, 4, 5)}


@pytest.fixture(scope="session")
def readme(tmp_path_factory, fast):
  """The folder in which README.md's commands ran, and their output."""
  folder = tmp_path_factory.mktemp("readme")
  (folder / "gowalla.inter").write_text(
    "user_id:token\titem_id:token\n"
    + "".join(
      f"{user}\t{item}\n" for user, row in _TWELVE_ROWS.items() for item in row
    )
  )
  (folder / "gone.txt").write_text("3\n")
  return folder, run_document(README, folder, fast)


def test_twelve_rows_are_split(readme):
  folder, _ = readme
  schema = json.loads((folder / "data/gowalla/schema.json").read_text())
  assert sum(schema["rows"].values()) == 12
  assert schema["rows"]["train"] >= 4


def test_twelve_rows_train_at_a_finite_learning_rate(readme):
  folder, output = readme
  lines = (folder / "runs/xir/metrics.jsonl").read_text().splitlines()
  trained = [row for row in map(json.loads, lines) if row["kind"] == "train"]
  assert trained[-1]["step"] >= 1
  assert "--global_batch_size 1,024" in output
  for row in trained:
    assert row["learning_rate"] > 0
    assert math.isfinite(row["loss"])


def test_commands_of_the_readme_run(readme):
  folder, output = readme
  found = json.loads((folder / "runs/xir/metrics.json").read_text())["metrics"]
  # A list has all items that are not seen.
  assert found["model"]["hit@10"] > 0
  assert "recall@10" in output
  answers, _, later = output.rpartition("query 42")[2].partition("\n\n")
  assert "FAILED" not in later
  assert len(list((folder / "top100").glob("part-*.parquet"))) == 1
  ids = re.findall(r"^ +\d+  (\d+) ", answers, re.M)
  assert 1 <= len(ids) == len(set(ids)) <= 4
  assert set(map(int, ids)) <= {1, 2, 3, 4, 5}


@pytest.mark.parametrize("guide", GUIDES, ids=[g.name for g in GUIDES])
def test_blocks_of_a_guide_run(guide, tmp_path, fast):
  run_document(guide, tmp_path, fast)


def programs():
  """Names of all programs, as for `python -m`."""
  for folder in ("pipelines", "export", "benchmarks"):
    for path in sorted((ROOT / folder).glob("*.py")):
      if '__name__ == "__main__"' in path.read_text("utf-8"):
        yield f"{folder}.{path.stem}"


def _idle(config, rest=()):
  """A program that does nothing."""


def flags_of(program, arguments, monkeypatch):
  """Makes a program parse and check its flags, without running.

  Returns:
    The names of its flags.
  """
  real = programs_main.run
  before = set(flags.FLAGS)
  names = set()

  def idle_run(config_class, function, **options):
    names.update(one.name for one in settings.settings_of(config_class))
    names.update(("config", "debug", "help", "helpfull"))
    return real(config_class, _idle, **options)

  def idle_app(main, flags_parser=flags.FLAGS):
    # Flags of absl, which the benchmarks use.
    names.update(set(flags.FLAGS) - before)
    if "--help" not in arguments:
      flags_parser(sys.argv)

  printed = io.StringIO()
  status = 0
  try:
    with monkeypatch.context() as patched, contextlib.redirect_stderr(printed):
      patched.setattr(programs_main, "run", idle_run)
      patched.setattr(absl.app, "run", idle_app)
      patched.setattr(sys, "argv", [program, *arguments])
      runpy.run_module(program, run_name="__main__")
  except SystemExit as end:
    status = end.code or 0
  finally:
    for name in set(flags.FLAGS) - before:
      delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()
  assert status == 0, f"{program} {arguments}: {printed.getvalue()}"
  assert names, f"{program} runs without programs.main.run or absl.app.run"
  return names


def commands(script):
  """Words of each external command in a shell script."""
  stub = "() { printf '%s\\0' \"$@\"; printf '\\36'; }\n"
  done = subprocess.run(
    ["bash", "-c", f"PATH=/none\ncommand_not_found_handle{stub}{script}"],
    capture_output=True,
    text=True,
    check=True,
  )
  return [line.split("\0")[:-1] for line in done.stdout.split("\x1e")[:-1]]


def unrun_commands():
  """Programs and targets in blocks that do not run, and in the text."""
  for path in DOCUMENTS:
    found = []
    for block in blocks(path, "bash"):
      if (block.mark or "").startswith("not run"):
        script = block.code.replace(".venv/bin/", "")
        found += commands(script)
    outside = _BLOCK.sub("", path.read_text("utf-8"))
    for span in re.findall(r"`((?:python -m|make|xir-tfrs) [^`]+)`", outside):
      found += [shlex.split(span.replace("\n", " "))]
    for words in found:
      if words[:2] == ["python", "-m"]:
        # A name in a sentence has no flags.
        yield path, words[2], words[3:] or ["--help"]
      elif words[0] == "make":
        yield path, "make", words[1:]
      elif words[0] == "xir-tfrs" and words[1] in _COMMANDS:
        yield path, _COMMANDS[words[1]], words[2:] or ["--help"]
      elif words[0] == "xir-tfrs":
        # COMMAND stands for any sub-command.
        assert words[1] in {"--help", "--version", "COMMAND"}, (path, words)


@pytest.mark.parametrize(
  ("path", "program", "arguments"),
  unrun_commands(),
  ids=lambda part: part.name if isinstance(part, pathlib.Path) else str(part),
)
def test_flags_of_commands_that_do_not_run(
  path, program, arguments, monkeypatch
):
  if program == "make":
    text = (ROOT / "Makefile").read_text()
    # A rule may have several targets.
    known = " ".join(re.findall(r"^([a-z -]+):", text, re.M)).split()
    known += [f"{name}=" for name in re.findall(r"\$\(([A-Z]+)\)", text)]
    for argument in arguments:
      name, mark, _ = argument.partition("=")
      assert name + mark in known, path
  else:
    flags_of(program, arguments, monkeypatch)


# Flags of other programs.
_FOREIGN = {
  *("enable_batching", "mount"),  # TensorFlow Serving, Docker
  "only",  # The fuzzer
  *("runner", "flink_master", "parallelism"),  # Beam
  *("direct_running_mode", "direct_num_workers", "dask_npartitions"),
  *("environment_type", "environment_config"),
}


def test_flags_in_the_text_exist(monkeypatch):
  known = {"help", *_FOREIGN}
  for program in programs():
    known |= flags_of(program, ["--help"], monkeypatch)
  for path in DOCUMENTS:
    for name in re.findall(r"--([a-z]\w*|\[no\]\w+)", path.read_text("utf-8")):
      name = name.removeprefix("[no]")
      assert name in known or name.removeprefix("no") in known, (
        path.name,
        name,
      )


# Samples ---------------------------------------------------------------------


def test_quickstart_on_a_users_file(tmp_path, fast):
  (command,) = (
    block.code
    for block in blocks(README, "bash")
    if block.mark == "run by: test_quickstart_on_a_users_file"
  )
  ((make, target, arguments),) = commands(command)
  assert [make, target] == ["make", "quickstart"]
  interactions(tmp_path / "rows.inter")
  rows = (tmp_path / "rows.inter").read_text().splitlines()[1:]
  lines = ["user,item,time"]
  lines += [row.replace("\t", ",") + f",{i}" for i, row in enumerate(rows)]
  (tmp_path / "ratings.csv").write_text("\n".join(lines) + "\n")
  arguments = arguments.removeprefix("ARGS=")
  output = run(
    f"xir-tfrs quickstart {arguments} --output q --epochs 2 --tasks bir,xir",
    tmp_path,
    fast,
  )
  tables = [part.partition("===")[0] for part in output.split("=== Compare")]
  for table, names in (
    (tables[1], ["popularity", "bir", "xir"]),
    (tables[2], ["popularity", "neighbours", "history"]),
  ):
    rows = {
      line.split()[0]: line.split()[1:]
      for line in table.splitlines()[2:]
      if line.strip() and not line.startswith(" ")
    }
    assert list(rows) == names
    for row in rows.values():
      assert 0 <= float(row[0]) <= 1
  assert output.count("rank  id") == 4
  assert "session, 3 known in its history" in output
  page = (tmp_path / "q" / "report.html").read_text("utf-8")
  assert (
    "2 runs side by side" in page
    and "xir: Popularity of draws and cache" in page
  )
  assert (tmp_path / "q" / "history" / "report.html").exists()
  assert "What next" in output


# By day, tools/check_wheel.py runs it.
@pytest.mark.slow
def test_code_of_the_readme_trains(tmp_path):
  (block,) = blocks(README, "python")
  run_python(block.code + check_wheel.FOUND, tmp_path)


def test_code_of_the_distributed_guide_trains(two_replicas):
  """On two replicas."""
  (block,) = blocks(ROOT / "docs/distributed.md", "python")
  made = "tf.distribute.MirroredStrategy()"
  assert block.code.count(made) == 1
  # A process can only have one of these.
  scope = {"two_replicas": two_replicas}
  code = block.code.replace(made, "two_replicas")
  exec(code, scope)  # pylint: disable=exec-used
  assert scope["strategy"].num_replicas_in_sync == 2
  assert scope["model"].optimizer.iterations.numpy() == 19
  assert np.isfinite(scope["loss"].numpy())


# Both in one process, which has to load TensorFlow.
_TESTED_AND_TRAINED = """
import os, shlex, sys, pytest
of_one_task = "covered or round_trip or missing_candidate or unknown_arguments"
assert pytest.main(["-q", "tests/conformance", "-k", of_one_task]) == 0
from xir_tfrs.programs import command
sys.argv = shlex.split(os.environ["COMMAND"])
command.main()
"""


def test_example_of_the_task_guide(tmp_path, readme):
  """A copy of the project, with the task that the guide adds."""
  guide = ROOT / "docs/adding_a_task.md"
  task, imported, row, tested, value = (
    block.code for block in blocks(guide, "python")
  )
  (command,) = (block.code for block in blocks(guide, "bash"))
  for name in ("xir_tfrs", "pipelines", "tests"):
    shutil.copytree(ROOT / name, tmp_path / name)
  shutil.copy(ROOT / "pyproject.toml", tmp_path)
  (tmp_path / "xir_tfrs/tasks/power.py").write_text(task)
  for name, anchor, lines in (
    ("xir_tfrs/tasks/__init__.py", "from xir_tfrs.tasks.xir import", imported),
    ("pipelines/training/methods.py", '  "ssl": Method(', row),
    ("tests/conformance/tasks_test.py", '  "ssl": _Row(', tested),
    ("tests/conformance/tasks_test.py", '  "candidate_counts": list(', value),
  ):
    file = tmp_path / name
    text = file.read_text("utf-8")
    assert text.count(anchor) == 1, name
    file.write_text(text.replace(anchor, lines + anchor))
  (tmp_path / "data").mkdir()
  (tmp_path / "data/small").symlink_to(readme[0] / "data/gowalla")
  small = "--epochs 1 --dim 8 --global_batch_size 256"
  output = run(
    f"python <<'END'\n{_TESTED_AND_TRAINED}\nEND",
    tmp_path,
    forked.environment_of(tmp_path) | {"COMMAND": f"{command.strip()} {small}"},
  )
  assert "power: finished" in output


def test_tables_of_the_performance_guide_are_the_results():
  """Figures in the text are those in the files of the benchmarks."""
  sections = (ROOT / "docs/performance.md").read_text("utf-8").split("\n## ")
  checked = 0
  for section in sections:
    named = re.search(r"python -m benchmarks\.(\w+)", section)
    if not named or named[1] == "gpu":
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


def test_table_of_the_steps_on_a_gpu_is_the_results():
  guide = (ROOT / "docs/performance.md").read_text("utf-8")
  file = ROOT / "benchmarks/results/gpu.json"
  results = json.loads(file.read_text("utf-8"))["results"]
  section = guide[guide.index("## Train on a GPU") :]
  rows = re.findall(r"^\| (\w.*) \|$", section, re.M)
  steps = [row.split(" | ") for row in rows if row.count(" | ") == 8]
  assert len(steps) == 6
  for name, *figures in steps:
    expected = []
    for part in ("batch 2,048, dim 64", "batch 8,192, dim 64"):
      for mode in ("", " jit"):
        one = results[part][name + mode]
        expected += [f"{one['median_s'] * 1e3:.2f}", f"{one['ratio']:.2f}"]
    assert figures == expected, name


def test_tables_of_the_estimator_guide_are_the_results():
  guide = (ROOT / "docs/estimators.md").read_text("utf-8")
  results = json.loads(
    (ROOT / "benchmarks/results/estimator_bias.json").read_text()
  )["results"]
  tables = re.findall(r"^<!-- (\w+) -->\n\n((?:\|.*\n)+)", guide, re.M)
  assert len(tables) == len(re.findall(r"^<!-- \w+ -->", guide, re.M)) > 4
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
  for document in ("docs/results.md",):
    text = (ROOT / document).read_text("utf-8")
    tables = re.findall(r"^<!-- (\w+) -->\n\n((?:\|.*\n)+)", text, re.M)
    assert len(tables) == len(re.findall(r"^<!-- \w+ -->", text, re.M)) >= 1
    for name, table in tables:
      if name == "cells":
        assert table == report.cells(results)
        shown |= {
          name
          for name, result in results.items()
          if experiments.EXPERIMENTS[result.experiment].ceiling
        }
        continue
      # A document may leave out rows; report.md has all.
      kept, rows = table.splitlines(), report.table(results[name]).splitlines()
      assert kept[:2] == rows[:2] and len(kept) > 2, (document, name)
      assert set(kept) <= set(rows), (document, name)
      shown.add(name)
    for figure in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text):
      assert (ROOT / document).parent.joinpath(figure).exists(), figure
      shown.add(pathlib.Path(figure).stem)
  assert shown == set(results)


def test_table_of_the_readme_is_the_results():
  runs, _ = results_and_text("histories", "runs", "histories.md")
  ranked_once, _ = results_and_text("shifted", "test", "results.md")
  sources = {
    "Gowalla, LightGCN": ranked_once["gowalla_lightgcn, bsl, XIR"]["test"],
    "Gowalla, the same": ranked_once[
      "gowalla_lightgcn, bsl, XIR, 256 dimensions"
    ]["test"],
    "Yelp2018, LightGCN": ranked_once[
      "yelp2018_lightgcn, XIR, popularity weight 0.05"
    ]["test"],
    "Yelp2018, defaults": ranked_once[
      "yelp2018_lightgcn, default, XIR, 256 dimensions"
    ]["test"],
    "Sports": runs["sports, tuned"]["test"]["model"],
    "Beauty": runs["beauty, averaged, 40 epochs"]["test"]["model"],
    "Toys": runs["toys, tuned"]["test"]["model"],
    "MovieLens": runs["ml-1m, full softmax, ages"]["test"]["model"],
    "YooChoose": runs["yoochoose, by time, XIR"]["test"]["model"],
  }
  section = README.read_text("utf-8").partition("## What it reaches")[2]
  section = section.partition("Beside other libraries")[0]
  rows = re.findall(r"^\| (\w.*?) \| (0.*) \|$", section, re.M)
  assert len(rows) == len(sources)
  for title, cells in rows:
    (source,) = (of for name, of in sources.items() if title.startswith(name))
    found = list(map(float, cells.split("|")[:4]))
    keys = ("recall@10", "ndcg@10", "recall@20", "ndcg@20")
    assert found == [source[key] for key in keys], title


def test_table_of_peers_in_the_readme_is_the_results():
  found, _ = results_and_text("peers", "data", "results.md")
  runs, _ = results_and_text("histories", "runs", "histories.md")
  section = README.read_text("utf-8").partition("Beside other libraries")[2]
  header, *rows = re.findall(r"^\| (.*) \|$", section, re.M)[:4]
  assert len(rows) == len(found)
  columns = header.replace(" (`implicit`)", "").split(" | ")[1:]
  for row in rows:
    name, *cells = row.split(" | ")
    for method, cell in zip(columns, cells, strict=True):
      method = "XIR, tuned" if method == "XIR" else method
      sizes = [run for of, run in found[name].items() if of.startswith(method)]
      best = max(sizes, key=lambda run: run["validation"]["ndcg@20"])
      expected = f"{best['test']['ndcg@20']:.4f}"
      assert cell.split(" ")[0] == expected, (name, method)
  histories = runs["sports, tuned"]["test"]["model"]["ndcg@20"]
  assert f"(with histories {histories:.4f})" in section


def test_table_of_runs_on_the_public_splits_is_the_results():
  runs, section = results_and_text("shifted", "test", "results.md")
  rows = re.findall(r"^\| (\w+_lightgcn, .*?) \| (.*) \|$", section, re.M)
  shown = {name: list(map(float, cells.split(" | "))) for name, cells in rows}
  keys = ("recall@10", "recall@20", "ndcg@10", "ndcg@20")
  assert shown == {
    name: [run["test"][key] for key in keys] for name, run in runs.items()
  }
  for run in runs.values():
    configs.from_preset(**run["settings"])


def test_table_of_losses_on_the_shifted_splits_is_the_results():
  runs, section = results_and_text("shifted", "runs", "results.md")
  bsl = "--loss bsl --popularity_weight 0"
  rows = {"default": "default", bsl: "bsl"}
  rows |= {"--task xir": "default, XIR", f"--task xir {bsl}": "bsl, XIR"}
  for title, loss in rows.items():
    (cells,) = re.findall(rf"^\| `?{title}`? \| (.*) \|$", section, re.M)
    expected = []
    for data in ("gowalla", "yelp2018"):
      run = runs.get(f"{data}_shifted, {loss}")
      expected += [
        "" if run is None else f"{run['validation'][metric][-1]:.4f}"
        for metric in ("recall@20", "ndcg@20")
      ]
    assert cells.split(" | ") == expected, title
  for run in runs.values():
    configs.from_preset(**run["settings"])


def test_table_of_cache_weights_is_the_results():
  runs, section = results_and_text("cache_weight", "runs", "results.md")
  section = section.partition("\n## ")[0]
  rows = re.findall(
    r"^\| (SSL-Pop|XIR, cache of 1,024.*?) \| (.*) \|$", section, re.M
  )
  assert len(rows) == 3
  for title, cells in rows:
    expected = [
      f"{runs[f'{data}, {title}']['validation'][metric][-1]:.4f}"
      for data in ("gowalla_shifted", "sports", "yoochoose_temporal")
      for metric in ("recall@20", "ndcg@20")
    ]
    assert cells.split(" | ") == expected, title
  for run in runs.values():
    configs.from_preset(**run["settings"])


def test_table_of_temperatures_is_the_results():
  found, section = results_and_text("temperature", "data", "results.md")
  rows = re.findall(
    r"^\| ([A-Z].*?) \| ([\d.]+) % \| (.*) \|$",
    section.partition("\n## ")[0],
    re.M,
  )
  assert {name for name, *_ in rows} == found.keys()
  for name, share, cells in rows:
    about = found[name]["data"]
    density = about["train_rows"] / about["queries"] / about["candidates"]
    assert float(share) == round(100 * density, 1), name
    figures = {
      (run["settings"]["task"], run["settings"]["temperature"]): run
      for run in found[name]["runs"]
    }
    columns = [("ssl_pop", t) for t in (0.1, 0.14, 0.2)]
    columns += [("xir", t) for t in (0.2, 0.245, 0.28)]
    default, *shown = cells.split(" | ")
    assert 0.1 <= float(default) <= 0.2
    for column, cell in zip(columns, shown, strict=True):
      if cell:
        run = figures[column]
        assert float(cell) == run["validation"]["ndcg@20"][-1], (name, column)
    for run in figures.values():
      configs.from_preset(**run["settings"])


def test_table_of_dimensions_is_the_results():
  runs, section = results_and_text("dim", "runs", "results.md")
  steps, _ = results_and_text("dim", "step_ms", "results.md")
  header, *rows = re.findall(
    r"^\| (.*) \|$", section.partition("\n## ")[0], re.M
  )
  shown = set()
  for row in rows:
    title, *figures = row.split(" | ")
    for dim, figure in zip(header.split(" | ")[1:], figures, strict=True):
      if title.startswith("ms per step"):
        assert float(figure) == steps[title.partition(", ")[2]][dim], title
      elif figure.strip():
        run = runs[f"{title}, {dim}"]
        assert run["settings"]["dim"] == int(dim)
        assert float(figure) == max(run["validation"]["ndcg@20"]), title
        configs.from_preset(**run["settings"])
        shown.add(f"{title}, {dim}")
  assert shown == runs.keys()


def test_table_of_peers_is_the_results():
  found, section = results_and_text("peers", "data", "results.md")
  section = section.partition("Without tuning")[0]
  shown = set()
  for name, line in re.findall(r"^\| (\w.*?) \| ([\d. |]+) \|$", section, re.M):
    cells = line.split(" | ")
    for data, *figures in (
      ("MovieLens 1M", *cells[:2]),
      ("Sports", *cells[2:4]),
      ("Gowalla", *cells[4:]),
    ):
      if figures != ["", ""]:
        ranked = found[data][name]["test"]
        expected = [ranked[key] for key in ("recall@20", "ndcg@20")]
        assert list(map(float, figures)) == expected, (data, name)
        shown.add((data, name))
  assert shown == {(data, name) for data in found for name in found[data]}
  for data, name in shown:
    run = found[data][name]["settings"]
    if "task" in run:
      configs.from_preset(**run)


def test_table_of_peers_with_their_defaults_is_the_results():
  found, section = results_and_text("peers", "defaults", "results.md")
  _, _, section = section.partition("| defaults, test rows |")
  header, _, *rows = section.partition("\n\n")[0].splitlines()
  data = [cell.removesuffix(" ndcg@20") for cell in header.split(" | ")[::2]]
  shown = {}
  for row in rows:
    method, *figures = [cell.strip() for cell in row.strip("|").split("|")]
    for name, ndcg, seconds in zip(
      data, figures[::2], figures[1::2], strict=True
    ):
      if ndcg:
        shown[name.strip(), method] = ndcg, seconds
  assert shown == {
    (name, method): (f"{run['test']['ndcg@20']:.4f}", f"{run['train_s']:.0f}")
    for name, runs in found.items()
    for method, run in runs.items()
  }
  for runs in found.values():
    for run in runs.values():
      if "task" in run["settings"]:
        configs.from_preset(**run["settings"])


def test_figures_of_tuned_methods_are_the_results():
  found, _ = results_and_text("tuned", "runs", "results.md")
  text = (ROOT / "docs/results.md").read_text("utf-8")
  text = text.partition("**With settings tuned for each method**")[2]
  text = text.partition("```")[0].replace("\n", " ")
  figures = re.findall(r" (\.\d{4}) \((.*?)\)", text)
  assert len(figures) == len(found)
  for figure, title in figures:
    (task,) = (name for name in found if methods.TASKS[name].title == title)
    reached = [trial["validation"]["ndcg@20"] for trial in found[task]]
    assert max(reached) == reached[0] == float(figure), title


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


def test_table_of_the_guide_of_histories_is_the_results():
  guide = (ROOT / "docs/histories.md").read_text("utf-8")
  runs, _ = results_and_text("histories", "runs", "histories.md")
  section = guide[guide.index("## See what it reaches") :]
  section = section.partition("\n### ")[0]
  shown = set()
  for line in re.findall(r"^\| (\w.*) \|$", section, re.M):
    name, *figures = line.split(" | ")
    ranked, seen = (
      runs[name][part] for part in ("test", "test, seen candidates left in")
    )
    of = ranked["model"], seen["model"], ranked["neighbours"]
    expected = [one[key] for one in of for key in ("recall@10", "ndcg@10")]
    assert list(map(float, figures)) == expected, name
    shown.add(name)
  assert shown == {name for name, run in runs.items() if "test" in run}
  curves = [run["validation"]["ndcg@10"] for run in runs.values()]
  of_validation = {max(curve) for curve in curves}
  of_validation |= {curve[3] for curve in curves if len(curve) > 3}
  claims = section[section.index("- **Whether the cache") :]
  for figure in re.findall(r"\.\d{4}", claims):
    assert float(figure) in of_validation, figure


def test_table_of_corr_and_cbns_is_the_results():
  runs, section = results_and_text("corr_and_cbns", "runs", "histories.md")
  shown = set()
  for row in re.findall(r"^\| (\w.*) \|$", section, re.M):
    title, *cells = row.split(" | ")
    method, _, stage = title.partition(", ")
    name = method if stage == "re-ranked" else title
    for data, figures in (("Sports", cells[:2]), ("MovieLens 1M", cells[2:])):
      if figures == ["", ""]:
        continue
      if title == "neighbours, untrained":
        found = [
          run["test"]["neighbours"]
          for run in runs.values()
          if run["data"] == data
        ]
      else:
        run = runs[f"{data}, {name}"]
        found = [run["test"]["reranked" if stage == "re-ranked" else "model"]]
        shown.add(f"{data}, {name}")
      for ranked in found:
        expected = [ranked[key] for key in ("recall@10", "ndcg@10")]
        assert list(map(float, figures)) == expected, (title, data)
  assert shown == set(runs)
  for run in runs.values():
    configs.from_preset(**run["settings"])


def test_table_of_balanced_gradients_is_the_results():
  runs, section = results_and_text("cbns", "runs", "results.md")
  section = section.partition("###")[0]
  header, *rows = re.findall(r"^\| (.*) \|$", section, re.M)
  _, *titles = header.split(" | ")
  shown = set()
  for row in rows:
    name, *figures = row.split(" | ")
    for title, figure in zip(titles, figures, strict=True):
      if figure:
        run = runs[name][title]
        assert float(figure) == run["validation"]["ndcg@20"][-1], (name, title)
        configs.from_preset(**run["settings"])
        shown.add((name, title))
  assert shown == {(name, title) for name in runs for title in runs[name]}


def test_table_of_ages_is_the_results():
  runs, section = results_and_text("ages", "runs", "histories.md")
  section = section.partition("## ")[0]
  rows = re.findall(r"^\| ([A-Z][\w ]+).* \| (\d .*) \|$", section, re.M)
  assert len(rows) * 2 == len(runs)
  for name, cells in rows:
    pair = [runs[f"{name}, {ages} ages"] for ages in ("without", "with")]
    expected = [
      pair[0]["validation"]["epoch"][-1],
      *(run["validation"]["ndcg@10"][-1] for run in pair),
      *(run["test"]["ndcg@10"] for run in pair),
    ]
    assert list(map(float, cells.split(" | "))) == expected, name
    for run in pair:
      configs.from_preset(**run["settings"])


def test_figures_of_requests_without_times_are_the_results():
  runs, _ = results_and_text("histories", "runs", "histories.md")
  without, section = results_and_text(
    "ages", "requests without times", "histories.md"
  )
  shown = re.findall(r"\.\d{4}", section.partition("Without times such")[2])
  assert list(map(float, shown[:3])) == [
    max(runs["ml-1m, full softmax, ages"]["validation"]["ndcg@10"]),
    without["validation"]["ndcg@10"],
    max(runs["ml-1m, full softmax"]["validation"]["ndcg@10"]),
  ]


def test_settings_of_the_runs_of_histories_are_settings():
  runs, _ = results_and_text("histories", "runs", "histories.md")
  for run in runs.values():
    configs.from_preset(**run["settings"])


def test_code_of_the_estimator_guide_shows_what_it_says(tmp_path):
  (block,) = blocks(ROOT / "docs/estimators.md", "python")
  printed = run_python(block.code, tmp_path)
  bias, bias_half, sharpness = map(float, printed.splitlines()[-1].split())
  assert bias_half < 0.5 * bias
  assert sharpness == pytest.approx(2.0, rel=0.2)


def test_models_of_the_guide_from_tfrs(tmp_path):
  found = blocks(ROOT / "docs/from_tfrs.md", "python")
  printed = run_python("\n".join(block.code for block in found), tmp_path)
  *answers, losses = printed.splitlines()[-3:]
  for answer in answers:
    items = [int(item) for item in re.findall(r"item (\d+)", answer)]
    # User 7 is of those who choose the items from 350 on.
    assert len(items) == 5 and {item // 50 for item in items} == {7}, answer
  theirs, ours = map(float, losses.split())
  assert ours == pytest.approx(theirs, rel=1e-5)


def test_makefile_has_the_commands_of_the_readme():
  targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
  (first, *_) = blocks(README, "bash")
  assert re.findall(r"^make (\w+)$", first.code, re.M) == ["quickstart", "test"]
  assert {"quickstart", "check", "test", "wheel-check", "lint"} <= set(targets)
  ci = (ROOT / ".ci/run").read_text()
  for target in ("lint", "test", "wheel-check"):
    assert f"\nmake {target}\n" in ci


def test_the_version_is_the_same_everywhere():
  changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
  released = re.findall(r"^## \[(\d.*)\] - (\S+)$", changelog, re.M)
  citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
  assert released[0] == (xir_tfrs.__version__, citation["date-released"])
  assert citation["version"] == xir_tfrs.__version__
