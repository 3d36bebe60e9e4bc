"""The output of export.query."""

import json

import numpy as np
import pytest

from export import query
from xir_tfrs.data import errors
from xir_tfrs.programs import settings
from xir_tfrs.serving import bundle


@pytest.fixture(autouse=True)
def load_once(load, monkeypatch):
  monkeypatch.setattr(bundle.Bundle, "load", load)


def _answer(bundle, *query_ids, k=3, **given):
  return query.answer(
    query.QueryOptions(bundle=bundle, query_id=query_ids, k=k, **given)
  )


def test_table(world, exported):
  text = _answer(exported, world.query_ids[1], "nobody", index="brute_force")
  lines = text.splitlines()
  best = world.ranking(1)
  scores = -np.sort(-(world.candidate_vectors @ world.query_vectors[1]))
  assert lines[0] == f"query {world.query_ids[1]} (brute_force)"
  assert lines[1].split() == ["rank", "id", "score", "title"]
  for rank in range(3):
    assert lines[2 + rank].split() == [
      str(rank + 1),
      *best[rank].split(),
      f"{scores[rank]:.4f}",
      *world.title_of(best[rank]).split(),
    ]
  assert len({line.find(" The") for line in lines[2:5] if "The" in line}) == 1
  assert lines[6] == "query nobody: unknown, so the most popular candidates"
  assert lines[7].split() == ["rank", "id", "count", "title"]
  assert int(lines[8].split()[3]) == world.counts.max()
  found = json.loads(_answer(exported, world.query_ids[1], json=True))
  assert found["titles"] == list(map(world.title_of, found["candidate_ids"]))


def test_fewer_candidates_than_asked_for(world, exported):
  exact = {"k": 302, "index": "brute_force"}
  found = _answer(exported, world.query_ids[1], json=True, **exact)
  assert len(json.loads(found)["candidate_ids"]) == 300
  text = _answer(exported, "nobody", **exact)
  assert text.splitlines()[-1] == "only 300 of 302 candidates remain"


def test_a_session(world, exported):
  text = _answer(exported, history=("item 3", "none"), index="brute_force")
  assert text.startswith("session, 1 known in its history (brute_force)\n")
  found = _answer(exported, history=("item 3",), json=True)
  found = json.loads(found)
  assert (found["query_id"], found["num_history"]) == (None, 1)
  text = _answer(exported, history=("none",), index="brute_force")
  assert text.startswith("session: unknown, so the most popular candidates\n")
  again = _answer(exported, "nobody", history=("item 3",), json=True)
  again = json.loads(again)
  assert again["candidate_ids"] == found["candidate_ids"]
  assert not again["known"]


def test_what_cannot_be_used_is_said(world, exported, capsys):
  known = world.query_ids[1]
  _answer(exported, known, history=("item 3",), index="brute_force")
  assert f"{known} has training rows" in capsys.readouterr().err
  with pytest.raises(errors.DataError) as caught:
    _answer(exported, known, index="brute_force", rerank=True)
  assert str(caught.value).startswith(f"{exported}: has no ranker")


def test_query_id_or_history_is_required():
  with pytest.raises(settings.SettingsError, match="--query_id or --history"):
    query.QueryOptions(bundle="b")
  with pytest.raises(settings.SettingsError, match="2 times --query_id"):
    query.QueryOptions(bundle="b", query_id=("u", "v"), history=("i",))
