"""A form of the loss: settings, and one formula per row.

Every loss of the library compares a positive p with the columns j of a pool,

    S = sum_j e^{t_j},   t_j = s_j + log a_j,

where a_j is 1 / q_j (sampled softmax), the count of column j in a resample
(BIR, XIR), 1 (the whole catalogue), or 0 (masked). A form is a function of
log S and s_p, and of the few other values in `Rows`, so the kernels
(`ops.fused`, `ops.full_softmax`) need no other knowledge of it. They
differentiate `Form.loss` itself, which costs [rows] operations.

Axes: rows = batch, one per query; pool = columns.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import tensorflow as tf

from xir_tfrs.ops import masking

# The kinds of pools; a task's kind decides which forms it can train with.
SAMPLED = "sampled"
RESAMPLED = "resampled"
CATALOGUE = "catalogue"
RANKER = "ranker"


@dataclasses.dataclass(frozen=True)
class Rows:
  """The values that a form may use; [rows] tensors unless stated.

  Attributes:
    log_sum: log S, the log of the sum of e^{t_j} over the columns; finite.
    score: s_p, score of the positive, in units of the temperature.
    positive: t_p, the positive's own term: s_p, corrected by log q_p where
      the task corrects positives.
    in_sum: Whether e^{t_p} is part of S already; a Python bool.
    log_num_terms: Scalar, log of the number of columns, or of draws; 0 for
      the whole catalogue.
    log_q: log of the positive's proposal; None: the task does not know it.
    num_columns: () -> number of columns that count, as a float.
    kth_best: () -> score of the K-th best of the other candidates, as the pool
      estimates it; -inf where there are fewer; no gradient. K is
      `Form.num_best`.

  Examples:
    >>> rows = xir.ops.forms.Rows(
    ...   log_sum=tf.math.log([3.0]),
    ...   score=tf.zeros([1]),
    ...   positive=tf.zeros([1]),
    ...   in_sum=False,
    ...   log_num_terms=tf.math.log(3.0),
    ...   log_q=None,
    ...   num_columns=lambda: tf.constant(3.0),
    ...   kth_best=lambda: tf.zeros([1]),
    ... )
    >>> xir.ops.forms.CrossEntropy().loss(rows).numpy().round(4)  # log 4
    array([1.3863], dtype=float32)
  """

  log_sum: tf.Tensor
  score: tf.Tensor
  positive: tf.Tensor
  in_sum: bool
  log_num_terms: tf.Tensor
  log_q: tf.Tensor | None
  num_columns: Callable[[], tf.Tensor]
  kth_best: Callable[[], tf.Tensor]

  def log_partition(self, with_positive: bool) -> tf.Tensor:
    """log S, or log(S + e^{t_p})."""
    if self.in_sum or not with_positive:
      return self.log_sum
    both = tf.stack([self.log_sum, self.positive])
    return tf.reduce_logsumexp(both, axis=0)


def setting(
  default: Any,
  text: str,
  *,
  above: float | None = None,
  least: float | None = None,
  most: float | None = None,
  choices: Sequence[str] = (),
) -> Any:
  """A field of a form, with its allowed values.

  Args:
    default: Its default, which also sets the type.
    text: Its description, for the help of a program.
    above: It must be greater than this.
    least: It must be at least this.
    most: It must be at most this.
    choices: Allowed values of a string.
  """
  return dataclasses.field(
    default=default,
    metadata={
      "help": text,
      "above": above,
      "least": least,
      "most": most,
      "choices": tuple(choices),
    },
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
  """Base of the forms of the loss. Its fields are the settings.

  Attributes:
    name: Its key in `forms.FORMS`.
    suits: The kinds of pools it can be used with.
    needs_log_q: Whether it needs the proposal of the candidates.
    corrects_positive: Whether the positive is corrected by log q_p where
      columns are.
    own_column_stands_in: Whether its formula gives loss 0 to a row whose only
      column is its own. The own column can then serve as the positive, which
      saves the kernel a mask.
    pairwise: Whether columns count by `activate(s_j - s_p)` instead of s_j.

  Examples:
    >>> form = xir.ops.forms.build("bsl")
    >>> isinstance(form, xir.ops.forms.Form)
    True
    >>> form.get_config()["negative_weight"]
    1.22
  """

  name: ClassVar[str]
  suits: ClassVar[frozenset[str]] = frozenset({SAMPLED, RESAMPLED, CATALOGUE})
  needs_log_q: ClassVar[bool] = False
  corrects_positive: ClassVar[bool] = True
  own_column_stands_in: ClassVar[bool] = False
  pairwise: ClassVar[bool] = False

  def __post_init__(self) -> None:
    for field in dataclasses.fields(self):
      _check(self.name, field, getattr(self, field.name))

  @property
  def positive_in_partition(self) -> bool:
    """Whether the positive is a term of the denominator.

    If not, columns that hold it are always masked.
    """
    return True

  @property
  def num_best(self) -> int:
    """The K of `Rows.kth_best`; 0 if the form does not use it."""
    return 0

  def loss(self, rows: Rows) -> tf.Tensor:
    """[rows] losses. The caller handles rows without a column."""
    raise NotImplementedError

  def activate(self, differences: tf.Tensor) -> tf.Tensor:
    """[rows, pool] what replaces s_j, from s_j - s_p; 0 for 0."""
    raise NotImplementedError

  def get_config(self) -> dict[str, Any]:
    """Name and settings, as JSON; `forms.build` restores the form."""
    return {"name": self.name} | dataclasses.asdict(self)

  def dense(
    self,
    scores: tf.Tensor,
    positive_scores: tf.Tensor,
    *,
    log_weights: tf.Tensor | float = 0.0,
    correction: tf.Tensor | float = 0.0,
    keep: tf.Tensor | None = None,
    log_num_terms: tf.Tensor | float | None = None,
    log_q: tf.Tensor | None = None,
    kth_best: tf.Tensor | None = None,
  ) -> tf.Tensor:
    """The losses that the kernels compute, from a matrix of scores.

    Args:
      scores: [batch, pool] s_j.
      positive_scores: [batch] s_p.
      log_weights: Broadcasts to [batch, pool]: log a_j; no gradient.
      correction: [batch] log q_p, if positives are corrected.
      keep: [batch, pool] bool, which columns count: not those of the positive
        unless `positive_in_partition`, and never those with a_j = 0. None:
        all.
      log_num_terms: Log of the number of terms; None: of the columns.
      log_q: [batch] log q_p, for forms that need it.
      kth_best: [batch] score of the K-th best, for forms that need it.

    Returns:
      [batch] losses; 0 for rows without a column.
    """
    if keep is None:
      keep = tf.ones_like(scores, tf.bool)
    positive = positive_scores - correction * tf.cast(
      self.corrects_positive, scores.dtype
    )
    values = scores
    if self.pairwise:
      values = self.activate(scores - positive_scores[:, tf.newaxis])
      positive -= positive_scores
    log_weights = tf.stop_gradient(tf.cast(log_weights, scores.dtype))
    terms = masking.mask_logits(values + log_weights, keep)
    # Activations may be -inf: such a column does not count.
    some = tf.reduce_any(tf.math.is_finite(terms), axis=1)
    # Rows without a kept column need any finite value, with gradient 0.
    terms = tf.where(some[:, tf.newaxis], terms, tf.zeros_like(terms))
    if log_num_terms is None:
      log_num_terms = tf.math.log(tf.cast(tf.shape(scores)[1], scores.dtype))
    rows = Rows(
      log_sum=tf.reduce_logsumexp(terms, axis=1),
      score=positive_scores,
      positive=positive,
      in_sum=False,
      log_num_terms=log_num_terms,
      log_q=log_q,
      num_columns=lambda: tf.math.count_nonzero(keep, 1, dtype=scores.dtype),
      kth_best=lambda: kth_best,
    )
    return tf.where(some, self.loss(rows), tf.zeros_like(positive))


def losses_and_derivatives(
  form: Form,
  log_sum: tf.Tensor,
  score: tf.Tensor,
  empty: tf.Tensor,
  *,
  correction: tf.Tensor,
  **others: Any,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
  """(losses, by log S, by s_p), each [rows]; all 0 for empty rows.

  Args:
    form: The form.
    log_sum: [rows] log S; anything where a row is empty.
    score: [rows] s_p.
    empty: [rows] bool, which rows have no column.
    correction: [rows] s_p - t_p.
    **others: The other attributes of `Rows`.
  """
  log_sum = tf.where(empty, score, log_sum)
  with tf.GradientTape() as tape:
    tape.watch([log_sum, score])
    positive = -correction if form.pairwise else score - correction
    losses = form.loss(
      Rows(log_sum=log_sum, score=score, positive=positive, **others)
    )
  by_sum, by_score = tape.gradient(
    losses, [log_sum, score], unconnected_gradients="zero"
  )
  nothing = tf.zeros_like(score)
  return tuple(
    tf.where(empty, nothing, value) for value in (losses, by_sum, by_score)
  )


def activated(
  form: Form, scores: tf.Tensor, positive: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor | None]:
  """[rows, pool] values of the columns, and their derivative by s_j.

  The derivative is None if it is 1 everywhere.
  """
  if not form.pairwise:
    return scores, None
  differences = scores - positive[:, tf.newaxis]
  with tf.GradientTape() as tape:
    tape.watch(differences)
    values = form.activate(differences)
  return values, tape.gradient(values, differences)


def _check(form: str, field: dataclasses.Field, value: Any) -> None:
  """Raises ValueError for a setting that is out of range."""
  rules = field.metadata
  kind = type(field.default)
  fits = isinstance(value, kind)
  if kind is float:
    fits = isinstance(value, (int, float)) and not isinstance(value, bool)
  elif kind is int:
    fits = isinstance(value, int) and not isinstance(value, bool)
  wanted = {float: "a number", int: "a whole number", bool: "true or false"}
  text = wanted.get(kind, "a string")
  if rules["choices"]:
    text = "one of " + ", ".join(rules["choices"])
    fits = fits and value in rules["choices"]
  for rule, words, holds in (
    ("above", "above", lambda bound: value > bound),
    ("least", "at least", lambda bound: value >= bound),
    ("most", "at most", lambda bound: value <= bound),
  ):
    bound = rules[rule]
    if bound is not None:
      text += f", {words} {bound:g}"
      fits = fits and holds(bound)
  if not fits:
    raise ValueError(
      f"`{field.name}` of the loss {form!r} must be {text}. "
      f"Received: `{field.name}` = {value!r}."
    )
