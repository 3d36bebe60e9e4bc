"""Pages show the figures in the files of their runs."""

import html.parser
import json
import pathlib
import re
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest

from pipelines.evaluation import by_query, examples, places, report
from pipelines.pages import charts, compare_page, found, run_page
from tests import program, tiny_runs
from xir_tfrs.data import runs
from xir_tfrs.serving import manifest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
HOSTILE = "<script>alert('x')</script> & Söhne"


class _Page(html.parser.HTMLParser):
  """Collects tables by name, texts by element, and resources of a page."""

  def __init__(self, text):
    super().__init__()
    self.tables, self.loads, self.texts = {}, [], {}
    self._table, self._tags = None, []
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    attributes = dict(attributes)
    self._tags.append(tag)
    for name in ("src", "href", "xlink:href"):
      if name in attributes:
        self.loads.append(attributes[name])
    if tag == "table":
      self._table = self.tables.setdefault(attributes["data-table"], [])
    if tag == "tr":
      self._table.append([])
    if tag in ("td", "th"):
      self._table[-1].append("")

  def handle_endtag(self, tag):
    while self._tags and self._tags.pop() != tag:
      pass

  def handle_data(self, data):
    tag = self._tags[-1] if self._tags else ""
    self.texts.setdefault(tag, []).append(data)
    if {"td", "th"} & {*self._tags[-2:]}:
      # Text in small print follows after a space.
      self._table[-1][-1] = f"{self._table[-1][-1]} {data}".strip()

  def table(self, name):
    """Row -> column -> text."""
    header, *rows = self.tables[name]
    return {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in rows}


def _write_run(directory, data, seed):
  """A run that was trained for two epochs."""
  settings = {"task": "xir", "seed": seed, "note": HOSTILE}
  tiny_runs.write_model(directory, tiny_runs.two_tower(seed), data, **settings)
  run = runs.RunDir(directory)
  for step in range(1, 9):
    row = {"kind": "train", "step": step, "epoch": step / 4}
    row |= {"loss": 5.0 / step, "learning_rate": 0.1, "cache_age": 1.0 * step}
    run.append_metrics(row | {"examples_per_second": 1000})
  for step, ndcg in ((4, 0.25 + seed), (8, 0.125)):
    row = {"kind": "validation", "step": step, "epoch": step / 4}
    run.append_metrics(row | {"ndcg@20": ndcg, "recall@20": 0.5})
  return directory


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
  """Two runs on the same data, evaluated as a user does."""
  folder = tmp_path_factory.mktemp("pages")
  data = tiny_runs.write_data(folder / "data")
  for name, seed in (("one", 0), ("two", 1)):
    _write_run(folder / name, data, seed)
    done = program.run(
      "pipelines.evaluate", "--model_dir", folder / name, "--ks", "2,20,40"
    )
    assert done.returncode == 0, done.stderr
    assert f"Report: {folder / name / 'report.html'}" in done.stdout
  return folder


@pytest.fixture(scope="module")
def compared(evaluated):
  done = program.run(
    *("pipelines.compare", evaluated / "one", evaluated / "two"),
    *("--output", evaluated / "compare.html"),
  )
  assert done.returncode == 0, done.stderr
  return evaluated / "compare.html"


def _read(path):
  return _Page(path.read_text("utf-8"))


def test_figures_of_the_page_are_those_of_the_files(evaluated):
  shown = _read(evaluated / "one" / "report.html")
  results = report.load(evaluated / "one" / "metrics.json")
  table = shown.table("metrics")
  assert {"recall@2", "ndcg@20", "mrr@40", "hit@40"} <= table.keys()
  for metric, row in table.items():
    assert list(row) == ["model", "popularity"]
    for ranking, text in row.items():
      value, *ends = [float(x) for x in re.findall(r"\d\.\d{4}", text)]
      assert value == pytest.approx(results.metrics[ranking][metric], abs=5e-5)
      interval = results.intervals[ranking].get(metric, ())
      assert ends == pytest.approx(list(interval), abs=5e-5)
  differences = shown.table("differences")
  test = results.differences["popularity"]["recall@2"]
  assert differences["recall@2"]["popularity"].startswith(
    f"{test.difference:+.4f} p = {test.p:.3f}"
  )
  for name, parts in (
    ("popularity", results.by_training_count),
    ("length", results.by_seen),
  ):
    rows = shown.table(name)
    assert list(rows) == [key for key, part in parts.items() if part.metrics]
    for key, row in rows.items():
      value = parts[key].metrics["model"]["recall@20"]
      assert row["model"].split()[0] == f"{value:.4f}"
  exposure = shown.table("exposure")
  share = results.metrics["model"]["coverage@2"]
  assert exposure["coverage@2"]["model"] == f"{share:.1%}"
  gini = results.concentration["model"]["gini@2"]
  assert exposure["gini@2"]["model"] == f"{gini:.4f}"
  assert shown.table("settings")["note"]["one"] == HOSTILE


def test_means_and_intervals_are_those_of_the_queries(evaluated):
  results = report.load(evaluated / "one" / "metrics.json")
  arrays = by_query.read(evaluated / "one" / "by_query.npz")
  values = arrays["recall@20"]
  assert arrays[by_query.USERS].tolist() == [0, 1, 2, 3, 5]
  mean, error = values.mean(), values.std(ddof=1) / np.sqrt(5)
  assert mean == pytest.approx(results.metrics["model"]["recall@20"])
  assert results.intervals["model"]["recall@20"] == pytest.approx(
    (max(mean - 1.959964 * error, 0), min(mean + 1.959964 * error, 1)),
    abs=1e-6,
  )
  # Users 0 to 3 had 11, 10, 8 and 7 candidates before.
  parts = {name: part.queries for name, part in results.by_seen.items()}
  assert list(parts.values()) == [1, 0, 2, 2, 0]


def test_gini_of_what_is_shown(evaluated):
  """If k is the size of the catalogue, each query is shown all it may see."""
  results = report.load(evaluated / "one" / "metrics.json")
  # For each of 5 queries: 39 candidates without those that it has seen.
  seen = {*range(10), 20}, {*range(1, 10), 20}, {*range(2, 10)}, {*range(3, 10)}
  counts = np.array([5.0 - sum(c in s for s in seen) for c in range(40)])
  counts[38] = 0
  pairs = np.abs(counts[:, None] - counts).sum()
  gini = pairs / (2 * 40 * counts.sum())
  for ranking in ("model", "popularity"):
    found_ = results.concentration[ranking]["gini@40"]
    assert found_ == pytest.approx(gini)


def test_page_needs_nothing_else_and_escapes(evaluated, compared):
  for path in (evaluated / "one" / "report.html", compared):
    text = path.read_text("utf-8")
    shown = _Page(text)
    assert all(load.startswith(("#", "data:")) for load in shown.loads), (
      shown.loads
    )
    assert "@import" not in text and not re.search(r"url\((?!#)", text)
    assert "<script" not in text
    ids = re.findall(r'<(\w+) id="([^"]+)"', text)
    assert len(set(ids)) == len(ids)


def test_curves_say_what_one_sees(evaluated):
  text = (evaluated / "one" / "report.html").read_text("utf-8")
  assert "The training loss falls from 5.000 to 0.625 in 2 epochs." in text
  assert "validation split is 0.2500, after epoch 1 of 2." in text
  assert (
    "Average number of updates since an entry was added. At the end: 8." in text
  )


def test_examples_are_what_the_metrics_count(evaluated):
  shown = examples.load(evaluated / "one" / "examples.json").examples
  arrays = by_query.read(evaluated / "one" / "by_query.npz")
  recall = dict(
    zip(arrays[by_query.USERS].tolist(), arrays["recall@2"], strict=True)
  )
  # Query 5 has no training rows, so it is answered by popularity.
  assert [one.query for one in shown] == [f"queries{i}" for i in range(4)]
  for row, one in enumerate(shown):
    taken = {item.id for item in one.taken}
    hits = [item.taken for item in one.recommended[:2]]
    assert hits == [item.id in taken for item in one.recommended[:2]]
    assert sum(hits) / len(taken) == recall[row]
    before = {item.id for item in one.history}
    assert before and not before & {item.id for item in one.recommended}
  cards = (evaluated / "one" / "report.html").read_text("utf-8")
  assert cards.count("<article") == len(shown)


def test_comparison_pairs_the_runs(evaluated, compared):
  shown = _read(compared)
  results = [
    report.load(evaluated / name / "metrics.json") for name in ("one", "two")
  ]
  metrics = shown.table("metrics")
  for name, of_run in zip(("one", "two"), results, strict=True):
    for metric, row in metrics.items():
      value = of_run.metrics["model"][metric]
      assert row[name].split()[0] == f"{value:.4f}"
  assert list(metrics["recall@2"]) == ["one", "two", "popularity"]
  arrays = [
    by_query.read(evaluated / name / "by_query.npz")["ndcg@40"].astype(float)
    for name in ("one", "two")
  ]
  difference = arrays[1] - arrays[0]
  text = shown.table("tests")["ndcg@40"]["two"]
  assert text.startswith(f"{difference.mean():+.4f} p")
  assert shown.table("settings") == {"seed": {"one": "0", "two": "1"}}


def test_the_remedy_names_the_run_of_ids():
  def run(name, ties):
    of = None if ties is None else types.SimpleNamespace(ties=ties)
    return types.SimpleNamespace(
      results=types.SimpleNamespace(histories=of),
      place=places.Place.of(name),
    )

  ids, order = run("runs/ids", None), run("runs/history", "order")
  for pair in ((ids, order), (order, ids)):
    assert compare_page._remedy(*pair).endswith(
      "--model_dir runs/ids --history_ties order"
    )
  assert "same options" in compare_page._remedy(ids, ids)
  assert "same options" in compare_page._remedy(order, order)


def test_runs_that_cannot_be_compared_are_refused(evaluated, tmp_path):
  other = shutil.copytree(evaluated / "two", tmp_path / "two")
  first = evaluated / "one"

  def refused(text):
    done = program.run(
      *("pipelines.compare", first, other, "--output", tmp_path / "a.html")
    )
    assert done.returncode == 1 and text in done.stderr, done.stderr
    assert not (tmp_path / "a.html").exists()

  arrays = dict(by_query.read(other / "by_query.npz"))
  users = arrays.pop(by_query.USERS)
  by_query.write(
    other / "by_query.npz", users, {n: x + 0.25 for n, x in arrays.items()}
  )
  refused("is from another evaluation than metrics.json")
  (other / "by_query.npz").write_bytes(b"PK")
  refused("by_query.npz: cannot be read")
  (other / "by_query.npz").unlink()
  refused("by_query.npz: not found; run xir-tfrs evaluate")
  metrics = json.loads((other / "metrics.json").read_text())
  metrics["split"] = "validation"
  (other / "metrics.json").write_text(json.dumps(metrics))
  refused("has other split than")
  for same in ([], [f"{first}/."]):
    done = program.run(
      "pipelines.compare", first, *same, "--output", tmp_path / "a.html"
    )
    assert done.returncode == 2 and "at least two different runs" in done.stderr


def test_without_a_report(evaluated, tmp_path, monkeypatch):
  """No page on request, or if the packages for charts are missing."""
  arguments = ["pipelines.evaluate", "--model_dir", evaluated / "one"]
  output = ["--output", tmp_path / "validation.json", "--split", "validation"]
  done = program.run(*arguments, *output, "--noreport")
  assert (done.returncode, done.stderr) == (0, "")
  names = {"validation.json", "validation_by_query.npz"}
  assert {path.name for path in tmp_path.iterdir()} == names
  monkeypatch.setitem(sys.modules, "matplotlib", None)
  done = program.run(*arguments, *output)
  assert done.returncode == 0
  assert done.stderr == (
    "validation_report.html is not written: matplotlib is not installed (pip "
    "install 'xir-tfrs[plots]').\n"
  )


def test_sections_of_what_a_run_may_have(evaluated):
  """Charts of an index, a probe and a cache, from given numbers."""
  place = places.Place.of(evaluated / "one")
  run = found.Found.read(evaluated / "one", place)
  run.rows.append(
    {"kind": "estimator", "step": 8, "epoch": 2.0, "cosine": 0.5, "bias": 0.1}
  )
  curve = [
    {
      "num_leaves_to_search": n,
      "num_reorder": 9,
      "milliseconds": n,
      "recall": r,
    }
    for n, r in ((1, 0.5), (2, 0.96))
  ]
  index = manifest.Index(
    kind="scann",
    settings={"num_leaves_to_search": 2, "num_reorder": 9},
    recall={"10": 0.9625},
    recall_queries=7,
    target_recall=0.95,
    curve=curve,
  )
  made = {part.title: part for part in run_page.sections(run, index)}
  (tuned,) = made["Recall and latency of the index"].charts
  assert "find 96.0% of the results of exact search, in 2.000 ms" in tuned.says
  (probe,) = made["Quality of the loss"].charts
  assert probe.says == "cosine 0.5; bias 0.1."
  assert list(made)[0] == "Training" and list(made)[-1] == "Settings"


def test_bundle_of_another_model_is_refused(evaluated, tmp_path):
  schema = json.loads((evaluated / "one" / "config.json").read_text())
  about = {
    **dict.fromkeys(("num_queries", "num_candidates", "num_seen_pairs"), 1),
    **dict(dim=4, dtype="float32", max_k=9, unknown_query="popularity"),
    "id_types": manifest.IdTypes("string", "string"),
    **dict.fromkeys(("tower_sha256", "signatures"), {}),
    "indexes": {"brute_force": manifest.Index(kind="exact")},
    "data": {"sha256": schema["schema_sha256"]},
  }
  checkpoint = runs.RunDir(evaluated / "one").checkpoint()
  name = pathlib.Path(checkpoint).relative_to(evaluated / "one")
  manifest.save(tmp_path, about | {"checkpoint": str(name)})
  assert found.index_of(tmp_path, evaluated / "one") is None
  manifest.save(tmp_path, about | {"checkpoint": "best/ckpt-7"})
  done = program.run(
    *("pipelines.evaluate", "--model_dir", evaluated / "one"),
    *("--bundle", tmp_path),
  )
  assert done.returncode == 1 and f"is not a bundle of {name}" in done.stderr


def test_charts_take_their_colours_from_the_page():
  drawn = charts.bars(
    "A <label>", ["a"], {"x": [1.0], "popularity": [None]}, y="y"
  )
  assert drawn.startswith('<svg role="img" aria-label="A &lt;label&gt;"')
  assert "var(--series-1)" in drawn and "currentColor" in drawn
  assert not re.search(r"#0[1-6]0[1-6]0[1-6]", drawn)
  many = charts.lines("b", {"x": (range(9999), range(9999))}, x="x", y="y")
  assert len(many) < 30_000


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_page_in_a_browser(evaluated, theme, tmp_path):
  browser = next(filter(None, map(shutil.which, BROWSERS)), None)
  if browser is None:
    pytest.skip(f"None of {', '.join(BROWSERS)} is installed.")
  results = report.load(evaluated / "one" / "metrics.json")
  dark = ["--blink-settings=preferredColorScheme=0"] if theme == "dark" else []
  done = subprocess.run(
    [
      *(browser, "--headless", "--no-sandbox", "--disable-gpu", *dark),
      *("--enable-logging=stderr", f"--user-data-dir={tmp_path}", "--dump-dom"),
      (evaluated / "one" / "report.html").as_uri(),
    ],
    capture_output=True,
    text=True,
    timeout=120,
    check=True,
  )
  assert ":CONSOLE" not in done.stderr
  value = results.metrics["model"]["recall@20"]
  assert (
    _Page(done.stdout)
    .table("metrics")["recall@20"]["model"]
    .startswith(f"{value:.4f}")
  )
