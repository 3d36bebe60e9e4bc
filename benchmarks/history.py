r"""Times training steps and answers for queries with histories.

    python -m benchmarks.history

Steps: whole steps with optimizer, at the sizes of Amazon Sports, of causal
attention over the last items. The peer is a typical TFRS model: layers of
tf_keras, a padded history for each row, shared vectors of events and
candidates, and `tfrs.tasks.Retrieval`. Ours encode such rows, or positions in
windows that rows share. All cases take turns in one process; `ratio` compares
with the median of the peer. `XIR copies` is as in `benchmarks.train_step`.

Answers: from the history of a single query to its best candidates, like the
signature `recommend` of a bundle.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs

import xir_tfrs as xir
from benchmarks import harness, train_step
from export.bundle import encoders, histories, signatures
from xir_tfrs.data import histories as rows_lib

_SIZES = {
  "queries": (8_000, "Number of queries."),
  "events": (8, "Events of a query, on average."),
  "candidates": (18_357, "Number of candidates."),
  "dim": (64, "Size of the embeddings."),
  "length": (20, "Most recent events to encode."),
  "batch": (1024, "Rows per step."),
  "cache": (1024, "Candidates in the cache of XIR."),
  "distinct": (50, "Distinct candidates in the cache of XIR copies, in %."),
  "repetitions": (10, "Repetitions of a step; the median is reported."),
  "catalogue": (41_000, "Candidates to choose an answer from."),
  "history": (50, "Events of a query."),
  "answers": (200, "Answers; the median is reported."),
}
_PEER = "tf_keras, TFRS Retrieval"
ANSWER = "recommend"
_BLOCKS = 2
_Step = Callable[[], Any]


class Peer(tfrs.Model):
  """SASRec with layers of tf_keras and one row per history."""

  def __init__(self, counts: np.ndarray, dim: int, length: int) -> None:
    super().__init__()
    layers = tf.keras.layers
    # Candidate i is row i + 1: 0 is padding.
    self._items = layers.Embedding(len(counts) + 1, dim, mask_zero=True)
    self._positions = layers.Embedding(length, dim)
    self._length = length
    self._blocks = [
      (
        layers.LayerNormalization(),
        layers.MultiHeadAttention(1, dim),
        layers.LayerNormalization(),
        layers.Dense(4 * dim, "relu"),
        layers.Dense(dim),
      )
      for _ in range(_BLOCKS)
    ]
    self._norm = layers.LayerNormalization()
    self._task = tfrs.tasks.Retrieval()
    self._popularity = tf.constant(counts / counts.sum(), tf.float32)

  def compute_loss(self, inputs, training=False):
    history, ids = inputs["history_ids"] + 1, inputs["candidate_id"]
    mask = history > 0
    x = self._items(history) + self._positions(tf.range(self._length))
    for norm, attention, hidden_norm, hidden, output in self._blocks:
      normed = norm(x)
      x += attention(
        normed,
        normed,
        attention_mask=mask[:, tf.newaxis],
        use_causal_mask=True,
      )
      x += output(hidden(hidden_norm(x)))
    newest = tf.reduce_sum(tf.cast(mask, tf.int32), axis=1) - 1
    states = tf.gather(self._norm(x), tf.maximum(newest, 0), batch_dims=1)
    return self._task(
      states,
      self._items(ids + 1),
      candidate_sampling_probability=tf.gather(self._popularity, ids),
      compute_metrics=False,
    )


def run(sizes: dict[str, int]) -> dict[str, dict[str, float]]:
  """Times the cases; `sizes` has the keys of `_SIZES`.

  Returns:
    case -> `median_s` and the like. Steps, but not `ANSWER`, also have
    `rows_per_s` and their `ratio` to the peer.
  """
  found = harness.summarise(
    harness.measure(steps(sizes), repetitions=sizes["repetitions"])
  )
  peer = found[_PEER]["median_s"]
  for result in found.values():
    result["ratio"] = result["median_s"] / peer
    result["rows_per_s"] = sizes["batch"] / result["median_s"]
  case = {ANSWER: answer(sizes)}
  return found | harness.summarise(
    harness.measure(case, repetitions=sizes["answers"])
  )


def steps(sizes: Mapping[str, int]) -> dict[str, _Step]:
  """Training steps by name."""
  batches, counts = _batches(sizes)
  peer = Peer(counts, sizes["dim"], sizes["length"])
  adam = tf.keras.optimizers.Adam
  cases = {_PEER: train_step.step(peer, batches["rows"], adam(0.001))}
  cached = {"XIR copies": train_step.copies(np.random.default_rng(0), sizes)}
  for name, make in _tasks(counts, sizes["cache"]).items():
    for examples, batch in batches.items():
      towers = _towers(sizes["candidates"], sizes)
      model = xir.models.TwoTower(*towers, make(towers[1]))
      cases[f"{name}, {examples}"] = train_step.step(
        model, batch, adam(0.001), cached.get(name)
      )
  return cases


def answer(sizes: Mapping[str, int]) -> Callable[[], Any]:
  """Returns a function that answers one query."""
  number, dim = sizes["catalogue"], sizes["dim"]
  model = xir.models.TwoTower(
    *_towers(number, {**sizes, "length": sizes["history"]})
  )
  ids = xir.indexes.IdTable(np.arange(number))
  vectors = encoders.encode_rows(_encoder(ids, model), np.arange(number))
  tower = encoders.TrainedEncoder(
    xir.indexes.IdTable([b"nobody"]),
    np.zeros(1, np.int64),
    model.encode_queries,
    model.query_tower.look_up,
    further=histories.further_inputs(dim),
  )
  retriever = signatures.Retriever(
    xir.indexes.BruteForceIndex().index(ids, vectors.embedding),
    histories.HistoryEncoder(tower, ids, vectors.embedding),
    _encoder(ids, model),
    np.ones(number, np.int64),
    (np.zeros(2, np.int64), np.zeros(0, np.int32)),
    unknown_query="features",
    max_k=100,
  )
  nothing = tf.zeros([1, 0], tf.int64)
  query = tf.constant(["somebody"])

  @tf.function(input_signature=[tf.TensorSpec([None, None], tf.int64)])
  def recommend(history):
    found = retriever.recommend(query, (), 10, nothing, nothing, [history])
    return found["candidate_ids"]

  history = np.random.default_rng(0).integers(
    number, size=[1, sizes["history"]]
  )
  given = tf.constant(history)
  return lambda: recommend(given).numpy()


def _encoder(
  ids: xir.indexes.IdTable, model: xir.models.TwoTower
) -> encoders.TrainedEncoder:
  """The candidate tower of a model; all candidates count as trained."""
  return encoders.TrainedEncoder(
    ids,
    np.ones(ids.size, np.int64),
    model.encode_candidates,
    model.candidate_tower.look_up,
  )


def _batches(
  sizes: Mapping[str, int],
) -> tuple[dict[str, dict[str, tf.Tensor]], np.ndarray]:
  """The same rows in both forms, by name; and the candidate counts."""
  rng = np.random.default_rng(0)
  lengths = 1 + rng.geometric(1 / sizes["events"], sizes["queries"])
  shares = 1 / np.arange(1, sizes["candidates"] + 1) ** 0.8
  columns = {
    "query_id": np.repeat(np.arange(len(lengths)), lengths),
    "candidate_id": rng.choice(
      len(shares), lengths.sum(), p=shares / shares.sum()
    ),
    "event": np.arange(lengths.sum()),
  }
  counts = np.bincount(columns["candidate_id"], minlength=len(shares))
  rows = rows_lib.Histories.of_rows(columns)
  windows = rows_lib.Windows.of_histories(rows, sizes["length"])
  shared = rows_lib.PositionBatches(
    rows, windows, global_batch_size=sizes["batch"], seed=0
  ).share(0, 0, sizes["batch"])
  before = np.arange(sizes["length"]) < shared["history_position"][:, None]
  single = {
    "query_id": shared["query_id"],
    "candidate_id": shared["candidate_id"],
    "history_ids": np.where(
      before, shared["history_ids"][shared["history_row"]], -1
    ),
  }
  batches = {
    name: {key: tf.constant(value) for key, value in batch.items()}
    for name, batch in (("rows", single), ("positions", shared))
  }
  return batches, np.maximum(counts, 1)


def _towers(
  candidates: int, sizes: Mapping[str, int]
) -> tuple[xir.models.HistoryTower, xir.models.Tower]:
  tower = xir.models.Tower(
    vocabulary_size=candidates, dim=sizes["dim"], init_stddev=0.02
  )
  queries = xir.models.HistoryTower(
    tower,
    "attention",
    sizes["length"],
    encoder_arguments={"num_blocks": _BLOCKS},
  )
  return queries, tower


def _tasks(
  counts: np.ndarray, cache_size: int
) -> dict[str, Callable[[tf.keras.Model], xir.tasks.RetrievalTask]]:
  """Name -> function of the candidate tower that makes the task."""

  def xir_task(tower):
    return xir.tasks.XIRRetrieval(
      candidate_counts=counts, candidate_encoder=tower, cache_size=cache_size
    )

  return {
    "SSL-Pop": lambda _: xir.tasks.SampledSoftmaxRetrieval(
      candidate_counts=counts
    ),
    "XIR": xir_task,
    "XIR copies": xir_task,
    "full softmax": lambda tower: xir.tasks.FullSoftmaxRetrieval(
      candidate_encoder=tower
    ),
  }


def show(results: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
  """Prints the tables."""
  harness.print_table(
    f"Batch {sizes['batch']:,}, histories of {sizes['length']}, "
    f"{sizes['candidates']:,} candidates, dim {sizes['dim']}; median of "
    f"{sizes['repetitions']}",
    ("", "ms", "ratio", "rows/s"),
    [
      (
        name,
        f"{1e3 * result['median_s']:.1f}",
        f"{result['ratio']:.2f}",
        f"{result['rows_per_s']:,.0f}",
      )
      for name, result in results.items()
      if name != ANSWER
    ],
  )
  harness.print_table(
    f"A history of {sizes['history']}, {sizes['catalogue']:,} candidates; "
    f"median of {sizes['answers']}",
    ("", "ms"),
    [(ANSWER, f"{1e3 * results[ANSWER]['median_s']:.2f}")],
  )


if __name__ == "__main__":
  harness.main("history", _SIZES, run, show)
