"""Tutorials run as docs/tutorial.md says, on data in MovieLens 1M's layout."""

import json
import pathlib
import re
import runpy

import numpy as np
import pytest

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"
USERS, MOVIES = 90, 60


@pytest.fixture(scope="module")
def movielens(tmp_path_factory):
  """Users with several sessions, each with movies of one genre."""
  folder = tmp_path_factory.mktemp("examples") / "ml-1m"
  folder.mkdir()
  rng = np.random.default_rng(0)
  lines = []
  for user in range(1, USERS + 1):
    genre = user % 3
    watched = genre + 3 * rng.permutation(MOVIES // 3)[:14]
    times = 10**9 + 3600 * np.cumsum(rng.choice([0, 0, 1, 48], 14))
    lines += [
      f"{user}::{movie + 1}::{rng.integers(1, 6)}::{time}\n"
      for movie, time in zip(watched, times, strict=True)
    ]
  (folder / "ratings.dat").write_text("".join(lines))
  genres = ("Comedy", "Drama|War", "Sci-Fi")
  (folder / "movies.dat").write_text(
    "".join(
      f"{movie + 1}::Étude {movie + 1} (1999)::{genres[movie % 3]}\n"
      for movie in range(MOVIES)
    ),
    "latin-1",
  )
  (folder / "users.dat").write_text(
    "".join(f"{user}::F::25::3::0\n" for user in range(1, USERS + 1))
  )
  return folder


@pytest.fixture
def tutorial(movielens, fast, tmp_path, monkeypatch, capfd):
  """Runs a tutorial; returns what it prints."""

  def run(name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOVIELENS", str(movielens))
    monkeypatch.setenv("PATH", fast["PATH"])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    return capfd.readouterr().out

  return run


def test_movielens(tutorial):
  printed = tutorial("movielens")
  rows = dict(re.findall(r"^(\w+) +(\d\.\d{4}) .*%$", printed, re.M))
  folder = pathlib.Path("runs/movielens/histories")
  found = json.loads((folder / "metrics.json").read_text())["metrics"]
  assert list(rows) == ["popularity", "neighbours", "model"]
  for ranking, value in rows.items():
    assert value == f"{found[ranking]['recall@10']:.4f}"
  page = (folder / "report.html").read_text("utf-8")
  assert re.search(r'title="\d+">Étude \d+ \(1999\)', page)
  asked, _, answers = printed.partition("After Étude 1 (1999), ")[2].partition(
    "\n"
  )
  assert asked == "Étude 2 (1999), Étude 3 (1999):"
  assert len(re.findall(r"^ +-?\d\.\d{4}  Étude", answers, re.M)) == 10
  assert len(re.findall(r"^  Étude", answers, re.M)) == 5


def test_own_model(tutorial):
  printed = tutorial("own_model")
  assert f"{USERS} users, {MOVIES} movies, {USERS * 13:,} ratings" in printed
  recall = dict(re.findall(r"^(\w+) +recall@10 (\d\.\d+)", printed, re.M))
  # Nine of ten movies have another genre than the user's.
  assert float(recall["model"]) > 1.3 * float(recall["popularity"])
  similar = printed.partition("Like Étude 1 (1999):\n")[2].splitlines()
  assert len(similar) == 5


def test_sessions(tutorial):
  printed = tutorial("sessions")
  assert "neighbours" in printed
  answers = re.findall(r"^After ([\d, ]+): (.+)$", printed, re.M)
  assert [asked for asked, _ in answers] == ["1", "1, 2", "1, 2, 3"]
  for asked, titles in answers:
    shown = re.findall(r"Étude (\d+) \(1999\)", titles)
    assert len(shown) == 5 and not {*shown} & {*asked.split(", ")}
