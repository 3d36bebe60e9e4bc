"""Loads a split for ranking: relevant, masked and new candidates."""

import dataclasses
import os

import numpy as np
import tensorflow as tf

from pipelines.evaluation import past as past_lib
from xir_tfrs.data import datasets, directory, errors
from xir_tfrs.data import schema as schema_lib

# The splits to mask when a split is ranked.
SEEN = {"validation": ("train",), "test": ("train", "validation")}


@dataclasses.dataclass(frozen=True)
class EvaluationData:
  """The queries of a split and their relevant candidates.

  For models of histories, and for others on request, each held-out row is a
  query of its own.

  Attributes:
    split: `"validation"` or `"test"`.
    query_ids: [num_queries] dense ids, ascending.
    warm: [num_queries] bool, whether the query has training rows.
    relevant: [num_queries, None] dense candidate ids of the split.
    seen: [num_queries, None] dense candidate ids of earlier splits.
    counts: [num_candidates] number of training rows.
    num_repeated: Number of pairs of the split that are also seen. They are
      masked, so no ranking can find them.
    past: Earlier events of each row, if each row is a query of its own.
    rows: Positions of these queries among all of the split; None for all.
  """

  split: str
  query_ids: np.ndarray
  warm: np.ndarray
  relevant: tf.RaggedTensor
  seen: tf.RaggedTensor
  counts: np.ndarray
  num_repeated: int
  past: past_lib.Past | None = None
  rows: np.ndarray | None = None

  @property
  def num_pairs(self) -> int:
    return len(self.relevant.values)

  def unfiltered(self) -> "EvaluationData":
    """Returns the same data without masking."""
    lengths = np.zeros(len(self.query_ids), np.int64)
    nothing = tf.RaggedTensor.from_row_lengths(np.zeros(0, np.int64), lengths)
    return dataclasses.replace(self, seen=nothing, num_repeated=0)

  def restricted_to(self, wanted: np.ndarray) -> "EvaluationData":
    """Returns the queries that have something to find among some candidates.

    The whole catalogue is still ranked.

    Args:
      wanted: [num_candidates] bool, the candidates that stay relevant.
    """
    relevant = tf.ragged.boolean_mask(
      self.relevant, tf.gather(wanted, self.relevant)
    )
    rows = np.flatnonzero(relevant.row_lengths().numpy())
    return dataclasses.replace(
      self,
      query_ids=self.query_ids[rows],
      warm=self.warm[rows],
      relevant=tf.gather(relevant, rows),
      seen=tf.gather(self.seen, rows),
      rows=rows if self.rows is None else self.rows[rows],
    )


def load_evaluation_data(
  data: directory.DataDir | str | os.PathLike[str],
  split: str,
  rule: past_lib.Rule | None = None,
) -> EvaluationData:
  """Loads a split and its masks.

  Args:
    data: Directory written by `pipelines.prepare`, opened or its path.
    split: `"validation"` or `"test"`.
    rule: Makes each row of the split a query of its own, whose past are the
      rows before it, including those of this split. None keeps the rows of a
      query together.

  Raises:
    DataError: The directory cannot be read, or the split has no rows.
  """
  if split not in SEEN:
    raise ValueError(
      f"`split` must be one of {', '.join(SEEN)}. Received: {split!r}."
    )
  if not isinstance(data, directory.DataDir):
    data = directory.DataDir(data)
  schema = data.schema
  if not schema.rows[split]:
    raise errors.DataError(
      f"the {split} split has no rows; prepare the data again with a "
      f"--{split}_fraction",
      path=data.path / schema_lib.FILE_NAME,
    )
  asking = data.rows(split, in_order=rule is not None)["query_id"]
  seen = datasets.distinct_pairs(
    [
      data.rows_of(name, asking, in_order=rule is not None)
      for name in SEEN[split]
    ],
    schema.num_candidates,
  )
  if rule is not None:
    return _row_by_row(data, split, seen, rule)
  wanted = datasets.distinct_pairs([data.rows(split)], schema.num_candidates)
  queries, candidates = np.divmod(wanted, schema.num_candidates)
  query_ids, lengths = np.unique(queries, return_counts=True)
  seen_queries, seen_candidates = np.divmod(seen, schema.num_candidates)
  asked = np.isin(seen_queries, query_ids, kind="table")
  return EvaluationData(
    split=split,
    query_ids=query_ids,
    warm=data.queries.counts[query_ids] > 0,
    relevant=tf.RaggedTensor.from_row_lengths(candidates, lengths),
    seen=tf.RaggedTensor.from_row_lengths(
      seen_candidates[asked],
      np.bincount(seen_queries, minlength=schema.num_queries)[query_ids],
    ),
    counts=data.candidates.counts,
    num_repeated=int(np.isin(wanted, seen).sum()),
  )


def _row_by_row(
  data: directory.DataDir, split: str, seen: np.ndarray, rule: past_lib.Rule
) -> EvaluationData:
  """Each row of a split as a query; `seen` are pairs of earlier splits."""
  past = past_lib.Past.of_split(data, (*SEEN[split], split), rule)
  queries, candidates = np.divmod(seen, data.schema.num_candidates)
  by_query = tf.RaggedTensor.from_row_lengths(
    candidates, np.bincount(queries, minlength=data.schema.num_queries)
  )
  masked = tf.concat(
    [tf.gather(by_query, past.query_ids), past.held_out_before], axis=1
  )
  is_target = masked.values == np.repeat(past.targets, masked.row_lengths())
  repeated = tf.boolean_mask(masked.value_rowids(), is_target)
  return EvaluationData(
    split=split,
    query_ids=past.query_ids,
    warm=data.queries.counts[past.query_ids] > 0,
    relevant=tf.RaggedTensor.from_row_lengths(
      past.targets, np.ones_like(past.targets)
    ),
    seen=masked,
    counts=data.candidates.counts,
    num_repeated=len(np.unique(repeated)),
    past=past,
  )
