"""Bundles in processes that do not have the code that wrote them."""

import json
import pathlib
import subprocess
import sys

import numpy as np

from tests import program

ROOT = pathlib.Path(__file__).parents[2]

# Only plain TensorFlow, like TensorFlow Serving.
PLAIN_TENSORFLOW = """
import json, sys
import tensorflow as tf
sys.path = [x for x in sys.path if x]
folder, query, unknown = sys.argv[1:]
text = tf.constant
index = tf.saved_model.load(folder + "/brute_force")
recommend = index.signatures["recommend"]
search = index.signatures["search"]
queries = tf.saved_model.load(folder + "/query_tower")
candidates = tf.saved_model.load(folder + "/candidate_tower")
none = tf.zeros([2, 0], tf.string)
ids = text([query, unknown])
vectors = queries.signatures["encode_query"](query_id=ids)["embedding"]
lists = {"exclude_ids": none, "allow_ids": none}
first = recommend(query_id=ids, k=text(4), **lists)
best = first["candidate_ids"][:1, :2]
second = recommend(
  query_id=ids[:1], k=text(500), exclude_ids=best, allow_ids=none[:1])
third = search(query_embeddings=vectors, k=text(4), **lists)
nan = float("nan")
items = candidates.signatures["encode_candidate"](
  candidate_id=text(["item 7", "no such item"]), tag=text(["", ""]),
  blurb=text(["", ""]),
  words=none, price=text([nan, nan]), place=text([[nan, nan]] * 2))["embedding"]
show = lambda x: [[y.decode() for y in row] for row in x.numpy()]
print(json.dumps({
  "modules": [x for x in sys.modules if x.split(".")[0] in
              ("scann", "xir_tfrs", "export", "tensorflow_recommenders")],
  "first": show(first["candidate_ids"]),
  "scores": first["scores"].numpy().tolist(),
  "second": show(second["candidate_ids"]),
  "third": show(third["candidate_ids"]),
  "query": vectors.numpy().tolist(),
  "item": items.numpy().tolist(),
}))
"""


def _run(*arguments):
  done = subprocess.run(
    [sys.executable, *arguments],
    cwd=ROOT,
    capture_output=True,
    encoding="utf-8",
    timeout=120,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return done.stdout


def test_plain_tensorflow_answers(world, exported):
  found = json.loads(
    _run("-c", PLAIN_TENSORFLOW, exported, world.query_ids[8], "nobody")
  )
  assert found["modules"] == []
  best = world.ranking(8)
  assert found["first"][0] == found["third"][0] == best[:4]
  assert found["second"][0] == best[2:] + [""] * 202
  np.testing.assert_allclose(found["query"][0], world.query_vectors[8], 1e-5)
  np.testing.assert_allclose(found["item"][0], world.candidate_vectors[7], 1e-5)
  np.testing.assert_allclose(found["query"][1], world.unknown_query, 1e-5)
  np.testing.assert_allclose(found["item"][1], world.unknown_candidate, 1e-5)
  # The scores of an unknown query are training counts.
  assert found["scores"][1] == np.sort(world.counts)[::-1][:4].tolist()


def test_query_prints_json_from_scann(world, exported):
  query = 4
  seen = {world.candidate_ids[c] for c in world.seen[query]}
  printed = _run(
    *("-m", "export.query", "--bundle", exported, "--k", "6", "--json"),
    *("--query_id", world.query_ids[query], "--query_id", "nobody"),
    *("--exclude_seen", "--index", "scann"),
  )
  known, unknown = map(json.loads, printed.splitlines())
  expected = world.ranking(query, leave_out=seen)[:6]
  assert known["candidate_ids"] == expected
  assert known["query_id"] == world.query_ids[query]
  assert (known["known"], known["index"]) == (True, "scann")
  assert (unknown["known"], unknown["index"]) == (False, "popularity")
  assert len(unknown["candidate_ids"]) == 6


def test_error_is_one_line(tmp_path):
  data = ("--data", tmp_path / "none", "--model_dir", tmp_path)
  programs = (
    ("query", "--bundle", tmp_path / "none", "--query_id", "a"),
    ("export_retriever", *data, "--output", tmp_path / "out"),
  )
  for name, *rest in programs:
    done = program.run(f"export.{name}", *rest)
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert ": Error: " in last and "xir-tfrs" in last
