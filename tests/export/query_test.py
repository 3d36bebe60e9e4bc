"""What export.query prints."""

import json

import numpy as np

from export import query


def test_table(world, exported):
  text = query.answer(
    exported, [world.query_ids[1], "nobody"], 3, index="brute_force"
  )
  lines = text.splitlines()
  best = world.ranking(1)
  scores = -np.sort(-(world.candidate_vectors @ world.query_vectors[1]))
  assert lines[0] == f"query {world.query_ids[1]} (brute_force)"
  assert lines[1].split() == ["rank", "id", "score"]
  for rank in range(3):
    assert lines[2 + rank].split() == [
      str(rank + 1),
      *best[rank].split(),
      f"{scores[rank]:.4f}",
    ]
  assert len({len(line) for line in lines[1:5]}) == 1
  assert lines[6] == "query nobody: unknown, so the most popular candidates"
  assert lines[7].split() == ["rank", "id", "count"]
  assert int(lines[8].split()[-1]) == world.counts.max()


def test_fewer_candidates_than_asked_for(world, exported):
  found = query.answer(
    exported, [world.query_ids[1]], 302, index="brute_force", as_json=True
  )
  assert len(json.loads(found)["candidate_ids"]) == 300
  text = query.answer(exported, ["nobody"], 302, index="brute_force")
  assert text.splitlines()[-1] == "only 300 of 302 candidates remain"
