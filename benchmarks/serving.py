r"""Times the search of a bundle: exact, with ScaNN, and with ScaNN's folder.

    python -m benchmarks.serving [--bundle DIR]

Compares, on a given bundle of `export.export_retriever` and on generated
clustered vectors,

- `brute force` and `ScaNN in graph`: the signature `search` of the bundle's
  SavedModels;
- `ScaNN folder`: `xir_tfrs.serving.ScannFolder`, without TensorFlow;
- `TFRS BruteForce` and `TFRS ScaNN`: the layers of TFRS with their default
  settings, over the same vectors, in a `tf.function`.

One client sends single queries, then several threads send them in parallel,
then queries come in batches. Also reports the recall of each, the time of a
fresh process from imports to the first answer, the sizes of the artefacts, and
the time of a REST call to the server, on a persistent connection and on new
ones.
"""

import concurrent.futures
import contextlib
import http.client
import json
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs
from absl import app, flags, logging

import xir_tfrs as xir
from benchmarks import harness
from export.bundle import encoders, indexing, options, write
from xir_tfrs.serving import bundle, scann_folder
from xir_tfrs.serving import manifest as manifests

_SIZES = {
  "size": (1_000_000, "Generated candidates."),
  "dim": (64, "Size of the generated vectors."),
  "clusters": (2000, "Clusters of the generated vectors."),
  "queries": (1000, "Single queries."),
  "batch": (128, "Queries of a batch."),
  "batches": (10, "Batches."),
  "threads": (2, "Parallel clients."),
  "k": (10, "Answers per query."),
  "starts": (3, "Fresh processes; the median is reported."),
}
_PEER = "brute force"
# Queries, or batches, that a case answers before the next case takes its turn.
_TURN = 25
_ROOT = pathlib.Path(__file__).parents[1]
# The parts that a fresh process loads; "unchecked" does not hash the files.
_STARTS = (
  *("scann", "brute_force"),
  *("scann, unchecked", "brute_force, unchecked"),
  "folder",
)

# Queries `[n, dim]` to answers: ids `[n, k]`, as Python strings or integers.
Search = Callable[[np.ndarray], list[list]]


def run(
  sizes: dict[str, int], directory: str | None = None
) -> dict[str, dict[str, Any]]:
  """Runs all measurements; `sizes` has the keys of `_SIZES`.

  Args:
    sizes: Sizes of the generated vectors and of the work.
    directory: A bundle with both indexes and `scann_folder/`, or None.

  Returns:
    corpus, "bundle" or "generated" -> the result of `measure`.
  """
  results = {}
  if directory is not None:
    results["bundle"] = measure(directory, sizes)
  with tempfile.TemporaryDirectory() as root:
    path = f"{root}/bundle"
    generate(path, sizes)
    results["generated"] = measure(path, sizes)
  return results


def generate(path: str, sizes: Mapping[str, int], seed: int = 0) -> None:
  """Writes a bundle of clustered vectors, with towers that look them up."""
  rng = np.random.default_rng(seed)
  clusters = sizes["clusters"]
  centres = rng.normal(size=[clusters, sizes["dim"]])
  shares = 1 / np.arange(1, clusters + 1)

  def sample(n):
    chosen = rng.choice(clusters, n, p=shares / shares.sum())
    vectors = centres[chosen] + 0.5 * rng.normal(size=[n, sizes["dim"]])
    norms = rng.lognormal(sigma=0.3, size=[n, 1])
    return (norms * vectors).astype(np.float32)

  vectors = sample(sizes["size"])
  queries = sample(max(sizes["queries"], sizes["batch"] * sizes["batches"]))
  candidate_ids = [f"candidate {i}".encode() for i in range(len(vectors))]
  query_ids = [f"query {i}".encode() for i in range(len(queries))]
  table = xir.indexes.IdTable(candidate_ids)
  built, about = indexing.build_indexes(
    options.IndexOptions(min_recall=0.0, exact_below=0),
    table,
    vectors,
    sample(1000),  # Other queries than those measured.
  )
  contents = write.Contents(
    query_ids=query_ids,
    candidate_counts=np.zeros(len(vectors), np.int64),
    seen=(np.zeros(len(queries) + 1, np.int64), np.zeros(0, np.int32)),
    query_tower=_look_up(xir.indexes.IdTable(query_ids), queries),
    candidate_tower=_look_up(table, vectors),
    indexes=built,
    about_indexes=about,
  )
  with manifests.new_bundle(path, overwrite=False) as directory:
    write.write_bundle(directory, contents, about={})


def _look_up(
  ids: xir.indexes.IdTable, vectors: np.ndarray
) -> encoders.TrainedEncoder:
  table = tf.Variable(vectors, trainable=False)
  return encoders.TrainedEncoder(
    ids,
    np.ones(len(vectors), np.int64),
    lambda rows, _: tf.gather(table, tf.maximum(rows, 0)),
  )


def measure(directory: str, sizes: Mapping[str, int]) -> dict[str, Any]:
  """Measures one bundle.

  Returns:
    `candidates` and `dim`, `scann` settings, `cases`: case -> result of
    `_figures`, `ready`: loaded part -> seconds of `_ready`, `megabytes` of each
    part of the bundle, and `rest`, the result of `_rest`.
  """
  loaded = {
    name: bundle.Bundle.load(directory, name) for name in bundle.INDEXES
  }
  exact = loaded["brute_force"]
  num_queries = max(sizes["queries"], sizes["batch"] * sizes["batches"])
  ids = np.random.default_rng(1).choice(len(exact.query_ids), num_queries)
  queries = exact.encode_queries([exact.query_ids[i] for i in ids])
  cases = {
    _PEER: _of_bundle(exact, sizes["k"]),
    "ScaNN in graph": _of_bundle(loaded["scann"], sizes["k"]),
    "ScaNN folder": _of_folder(directory, sizes["k"]),
    **_of_tfrs(exact, sizes["k"]),
  }
  manifest = exact.manifest
  parts: dict[str, float] = {}
  for name, file in manifest.files.items():
    part = name.partition("/")[0]
    parts[part] = round(parts.get(part, 0) + file.bytes / 1e6, 3)
  return {
    "candidates": manifest.num_candidates,
    "dim": manifest.dim,
    "scann": msgspec.to_builtins(manifest.indexes["scann"]),
    "cases": _figures(cases, queries, sizes),
    "ready": _ready(directory, queries[0], sizes),
    "megabytes": parts,
    "rest": _rest(directory, exact, sizes),
  }


def _of_bundle(loaded: bundle.Bundle, k: int) -> Search:
  none = tf.zeros([0], loaded.manifest.id_types.candidate)

  def search(queries):
    lists = tf.reshape(none, [len(queries), 0])
    found = loaded.signatures["search"](
      query_embeddings=tf.constant(queries),
      k=tf.constant(k),
      exclude_ids=lists,
      allow_ids=lists,
    )
    return _python(found["candidate_ids"])

  return search


def _of_folder(directory: str, k: int) -> Search:
  folder = scann_folder.ScannFolder.load(f"{directory}/{bundle.FOLDER}")
  return lambda queries: folder.search(queries, k)[0].tolist()


def _of_tfrs(exact: bundle.Bundle, k: int) -> dict[str, Search]:
  ids = tf.constant(list(exact.candidate_ids))
  cases = {}
  for name in ("BruteForce", "ScaNN"):
    layer = getattr(tfrs.layers.factorized_top_k, name)(k=k)
    layer.index(exact.vectors, ids)
    matrix = tf.TensorSpec([None, exact.manifest.dim], tf.float32)
    function = tf.function(layer, input_signature=[matrix])
    cases[f"TFRS {name}"] = lambda queries, function=function: _python(
      function(tf.constant(queries))[1]
    )
  return cases


def _python(ids: tf.Tensor) -> list[list]:
  rows = ids.numpy().tolist()
  if ids.dtype != tf.string:
    return rows
  return [[x.decode() for x in row] for row in rows]


def _figures(
  cases: Mapping[str, Search], queries: np.ndarray, sizes: Mapping[str, int]
) -> dict[str, dict[str, float]]:
  """Latency, throughput and recall of each case; cases take turns."""
  single = _timed(cases, queries[: sizes["queries"], np.newaxis])
  shape = (sizes["batches"], sizes["batch"], -1)
  batched = _timed(
    cases, queries[: sizes["batches"] * sizes["batch"]].reshape(shape)
  )
  at_once = _at_once(cases, queries[: sizes["queries"]], sizes["threads"])
  wanted = single[_PEER][1]
  results = {}
  for name in cases:
    seconds, found = single[name]
    hits = sum(
      len(set(want) & set(got)) for want, got in zip(wanted, found, strict=True)
    )
    p50, p95, p99 = (1e3 * x for x in np.percentile(seconds, [50, 95, 99]))
    results[name] = {
      "p50_ms": p50,
      "p95_ms": p95,
      "p99_ms": p99,
      "queries_per_s": len(seconds) / sum(seconds),
      "queries_per_s_threads": at_once[name],
      "queries_per_s_batched": sizes["batch"]
      / statistics.median(batched[name][0]),
      "recall": hits / (sizes["k"] * len(wanted)),
    }
  for result in results.values():
    for kind in ("", "_threads", "_batched"):
      key = f"queries_per_s{kind}"
      result[f"ratio{kind}"] = result[key] / results[_PEER][key]
  return results


def _timed(
  cases: Mapping[str, Search], batches: np.ndarray
) -> dict[str, tuple[list[float], list[list]]]:
  """case -> seconds of each batch, and all answers.

  A turn has several batches: if cases alternated after each batch, they would
  evict each other from the CPU caches.
  """
  measured = {name: ([], []) for name in cases}
  for search in cases.values():
    search(batches[0])
  for turn in np.array_split(batches, -(-len(batches) // _TURN)):
    for name, search in cases.items():
      for batch in turn:
        start = time.perf_counter()
        found = search(batch)
        measured[name][0].append(time.perf_counter() - start)
        measured[name][1].extend(found)
  return measured


def _at_once(
  cases: Mapping[str, Search], queries: np.ndarray, threads: int
) -> dict[str, float]:
  """case -> queries per second of several clients with single queries."""
  seconds = dict.fromkeys(cases, 0.0)
  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    for part in np.array_split(queries[:, np.newaxis], 5):
      for name, search in cases.items():
        start = time.perf_counter()
        list(pool.map(search, part))
        seconds[name] += time.perf_counter() - start
  return {name: len(queries) / total for name, total in seconds.items()}


_START = """
import json, sys, time
what, directory, query, k = sys.argv[1:]
query, k = json.loads(query), int(k)
start = time.perf_counter()
import msgspec
import numpy as np
if what == "folder":
  sys.modules["tensorflow"] = None
  from xir_tfrs.serving import scann_folder
else:
  import tensorflow as tf
  from xir_tfrs.serving import bundle
imported = time.perf_counter()
if what == "folder":
  folder = scann_folder.ScannFolder.load(directory + "/scann_folder")
  folder.search(np.array(query, np.float32), k)
else:
  name, _, unchecked = what.partition(", ")
  loaded = bundle.Bundle.load(directory, name, check_hashes=not unchecked)
  none = tf.zeros([1, 0], loaded.manifest.id_types.candidate)
  loaded.signatures["search"](query_embeddings=tf.constant([query]),
    k=tf.constant(k), exclude_ids=none, allow_ids=none)["scores"].numpy()
ready = time.perf_counter()
print(json.dumps({"import_s": imported - start, "ready_s": ready - imported}))
"""


def _ready(
  directory: str, query: np.ndarray, sizes: Mapping[str, int]
) -> dict[str, dict[str, float]]:
  """Seconds of a fresh process for imports, and then to the first answer."""
  found = {name: [] for name in _STARTS}
  for _ in range(sizes["starts"]):
    for name in _STARTS:
      arguments = [name, directory, json.dumps(query.tolist()), str(sizes["k"])]
      done = subprocess.run(
        [sys.executable, "-c", _START, *arguments],
        cwd=_ROOT,
        check=True,
        stdout=subprocess.PIPE,
      )
      found[name].append(json.loads(done.stdout))
  return {
    name: {
      key: statistics.median(start[key] for start in starts)
      for key in ("import_s", "ready_s")
    }
    for name, starts in found.items()
  }


def _rest(
  directory: str, exact: bundle.Bundle, sizes: Mapping[str, int]
) -> dict[str, dict[str, float]]:
  """Latency of a call to the server, by kind of connection."""
  none = tf.zeros([1, 0], exact.manifest.id_types.candidate).numpy().tolist()
  lists = {"exclude_ids": none, "allow_ids": none}
  body = json.dumps(
    {
      "signature_name": "search",
      "inputs": {
        "query_embeddings": exact.vectors[:1].tolist(),
        "k": sizes["k"],
        **lists,
      },
    }
  )

  def ask(connection: http.client.HTTPConnection) -> float:
    start = time.perf_counter()
    connection.request("POST", "/v1/models/retriever:predict", body)
    response = connection.getresponse()
    content = response.read()
    if response.status != 200:
      raise RuntimeError(f"{response.status}: {content.decode()}")
    return time.perf_counter() - start

  def ask_anew() -> float:
    with contextlib.closing(_connection(port)) as connection:
      return ask(connection)

  with _server(directory) as port:
    kept = _connection(port)
    seconds: dict[str, list[float]] = {"kept": [], "new": []}
    ask(kept)
    for _ in range(sizes["queries"]):
      seconds["kept"].append(ask(kept))
      seconds["new"].append(ask_anew())
    kept.close()
  return {
    name: {
      f"p{p}_ms": 1e3 * float(np.percentile(found, p)) for p in (50, 95, 99)
    }
    for name, found in seconds.items()
  }


def _connection(port: int) -> http.client.HTTPConnection:
  return http.client.HTTPConnection("127.0.0.1", port, timeout=60)


@contextlib.contextmanager
def _server(directory: str) -> Iterator[int]:
  """Starts a server of the bundle; yields its port when it is ready."""
  given = [f"--bundle={directory}", "--port=0", "--grpc_port=0"]
  process = subprocess.Popen(
    [sys.executable, "-m", "export.serve", *given, "--batch_timeout_ms=0"],
    cwd=_ROOT,
    stderr=subprocess.PIPE,
    encoding="utf-8",
  )
  try:
    port, said = 0, []
    for line in process.stderr:
      said.append(line)
      if found := re.search(r"REST on port (\d+)", line):
        port = int(found[1])
      if "Ready as" in line:
        break
    else:
      raise RuntimeError("the server ended: " + "".join(said[-5:]))
    yield port
  finally:
    process.kill()
    process.communicate()


def print_tables(results: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
  """Prints the results of `run`."""
  for corpus, result in results.items():
    harness.print_table(
      f"{corpus}: {result['candidates']:,} candidates, dim {result['dim']}, "
      f"k {sizes['k']}; queries/s of 1 client, of {sizes['threads']}, and in "
      f"batches of {sizes['batch']}",
      ("", "p50 ms", "p95 ms", "p99 ms", "q/s", "x", "q/s", "x", "q/s", "x")
      + ("recall",),
      [
        (
          name,
          *(f"{case[f'p{p}_ms']:.2f}" for p in (50, 95, 99)),
          *(
            text
            for kind in ("", "_threads", "_batched")
            for text in (
              f"{case[f'queries_per_s{kind}']:,.0f}",
              f"{case[f'ratio{kind}']:.2f}",
            )
          ),
          f"{case['recall']:.4f}",
        )
        for name, case in result["cases"].items()
      ],
    )
    harness.print_table(
      "fresh process, seconds",
      ("", "to import", "then to answer"),
      [
        (name, f"{start['import_s']:.2f}", f"{start['ready_s']:.2f}")
        for name, start in result["ready"].items()
      ],
    )
    harness.print_table(
      "a call of the server by REST, ms",
      ("connection", "p50", "p95", "p99"),
      [
        (name, *(f"{case[f'p{p}_ms']:.2f}" for p in (50, 95, 99)))
        for name, case in result["rest"].items()
      ],
    )
    harness.print_table(
      "megabytes",
      ("", ""),
      [(name, f"{size:.1f}") for name, size in result["megabytes"].items()],
    )


def markdown(result: Mapping[str, Any]) -> str:
  """The table of a corpus for the guide, from the result of `measure`."""
  lines = [
    "| | p50 ms | p95 ms | p99 ms | queries/s | ratio | recall@10 |",
    "|---|---|---|---|---|---|---|",
  ]
  for name, case in result["cases"].items():
    cells = [
      *(f"{case[f'p{p}_ms']:.2f}" for p in (50, 95, 99)),
      f"{case['queries_per_s']:,.0f}",
      f"{case['ratio']:.1f}",
      f"{case['recall']:.4f}",
    ]
    lines.append(f"| {name} | {' | '.join(cells)} |")
  return "\n".join(lines)


def main(argv: list[str]) -> None:
  del argv
  logging.set_verbosity(logging.WARNING)
  sizes = harness.given(_SIZES)
  results = run(sizes, flags.FLAGS.bundle)
  print_tables(results, sizes)
  path = harness.write_json(flags.FLAGS.output, "serving", sizes, results)
  print(f"Written to {path}")


if __name__ == "__main__":
  harness.define_flags(_SIZES)
  flags.DEFINE_string("bundle", None, "Bundle to measure.")
  app.run(main)
