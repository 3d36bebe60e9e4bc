"""Compares every form of the loss with its NumPy twin, for every pool.

A new form needs a twin in `reference.FORMS`; `_SETTINGS` may add settings other
than its defaults.
"""

import dataclasses
import json

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests import reference
from xir_tfrs.ops import forms, full_softmax, fused, ranks, resampling

_BATCH, _DIM, _NUM_CANDIDATES = 5, 3, 9
_SEED = tf.constant([3, 5], tf.int64)
# Candidate 2 has several columns; rows 1 and 3 have the same positive.
_POOL_IDS = np.array([0, 2, 4, 2, 7, 2, 8, 1, 3, 0, 5, 6])
_KNOWN = [[], [8, 1], [3], [5, 2], [99]]
# Settings other than the defaults.
_SETTINGS = {
  "generalized_cross_entropy": [
    {"power": 0.3, "positive_in_partition": True},
    {"power": 1.0},
  ],
  "bsl": [
    {"temperature_ratio": 0.5, "negative_weight": 0.5},
    {"positive_in_partition": True},
  ],
  "psl": [
    {"activation": activation, "tau_star": tau_star}
    for activation in ("tanh", "atan", "relu")
    for tau_star in (0.05, 0.5)
  ]
  + [{"activation": "tanh", "positive_in_partition": True}],
  "sl_at_k": [
    {"k": 2, "weight_temperature": 0.5},
    {"k": 1, "positive_in_partition": True},
  ],
}
_VARIANTS = [
  (name, settings)
  for name in forms.FORMS
  for settings in [{}, *_SETTINGS.get(name, [])]
]
_POOLS = ("corrected", "uncorrected", "expected", "systematic")


def _form(name, settings):
  return forms.build({"name": name} | settings)


@dataclasses.dataclass
class _Problem:
  """Rows and a pool, as arguments for both NumPy and the kernel."""

  form: forms.Form
  pool_kind: str
  masked: bool

  def __post_init__(self):
    rng = np.random.default_rng(11)
    # Short vectors, so that no column is far below the positive for tau* = 0.5.
    self.queries = rng.normal(size=[_BATCH, _DIM])
    self.embeddings = rng.normal(scale=0.6, size=[len(_POOL_IDS), _DIM])
    self.positives = self.embeddings[:_BATCH].copy()
    self.weights = rng.uniform(0.5, 2.0, _BATCH)
    self.log_q = np.log(rng.dirichlet(np.ones(_NUM_CANDIDATES)))[_POOL_IDS]
    self.resampler = None
    if self.pool_kind in resampling.METHODS:
      self.resampler = fused.Resampler(9, self.pool_kind, _SEED)
    self.corrected = self.pool_kind == "corrected"

  def kernel(self, **options):
    """(loss, gradients by queries, positives, embeddings), by `fused`."""
    watched = [
      tf.constant(x) for x in (self.queries, self.positives, self.embeddings)
    ]
    known = tf.ragged.constant(_KNOWN, tf.int64) if self.masked else None

    # Eagerly, because tracing takes longer; `fused_test` tests both.
    with tf.GradientTape() as tape:
      tape.watch(watched)
      queries, positives, embeddings = watched
      loss, _ = fused.pool_softmax(
        queries,
        positives,
        tf.constant(_POOL_IDS[:_BATCH]),
        tf.constant(self.weights),
        fused.Pool(
          embeddings,
          tf.constant(_POOL_IDS),
          tf.constant(self.log_q),
          tf.constant(0, tf.int64),
        ),
        form=self.form,
        positive_log_q=self.log_q[:_BATCH] if self.corrected else None,
        resampler=self.resampler,
        mask_own_column=self.masked,
        known_ids=known,
        **options,
      )
    return loss, tape.gradient(loss, watched)

  def keep(self):
    """[batch, pool], written as loops."""
    ids = _POOL_IDS[:_BATCH]
    keep = np.ones([_BATCH, len(_POOL_IDS)], bool)
    for i in range(_BATCH):
      for j, candidate in enumerate(_POOL_IDS):
        if candidate == ids[i] and not self.form.positive_in_partition:
          keep[i, j] = False
        if self.masked and i == j:
          keep[i, j] = False
        if self.masked and candidate in _KNOWN[i] and candidate != ids[i]:
          keep[i, j] = False
    return keep

  def twin(self, queries, positives, embeddings, held=None):
    """(loss, factors without a gradient), by loops."""
    scores = reference.logits(queries, embeddings)
    keep, held = self.keep(), held or {}
    if "log_a" not in held:
      held["log_a"] = np.tile(-self.log_q, [_BATCH, 1])
      if self.resampler is not None:
        counts = resampling.resample_counts(
          tf.constant(
            reference.log_importance_weights(scores, self.log_q, keep)
          ),
          9,
          seed=_SEED,
          method=self.pool_kind,
        ).numpy()
        with np.errstate(divide="ignore"):
          held["log_a"] = np.log(counts)
    twin = reference.FORMS[self.form.name]
    settings = dataclasses.asdict(self.form)
    total, weights = 0.0, []
    for i in range(_BATCH):
      kept = [
        j for j in np.flatnonzero(keep[i]) if held["log_a"][i, j] > -np.inf
      ]
      row = {
        "columns": [(scores[i, j], held["log_a"][i, j]) for j in kept],
        "pool": [
          (scores[i, j], np.exp(-self.log_q[j]) / len(_POOL_IDS))
          for j in np.flatnonzero(keep[i])
        ],
        "positive": queries[i] @ positives[i],
        "correction": self.log_q[i]
        if self.corrected and self.form.corrects_positive
        else 0.0,
        "log_q": self.log_q[i],
        "num_terms": 9 if self.resampler else len(_POOL_IDS),
      }
      if "weights" in held and held["weights"][i] is not None:
        row_loss, weight = twin(row, **settings, weight=held["weights"][i])
      else:
        row_loss, weight = twin(row, **settings)
      total += self.weights[i] * row_loss
      weights.append(weight)
    return total, held | {"weights": weights}


class TwinTest(tf.test.TestCase, parameterized.TestCase):
  def test_every_form_has_a_twin(self):
    self.assertEqual(set(forms.FORMS), set(reference.FORMS))

  @parameterized.product(
    variant=_VARIANTS,
    pool=[(kind, i % 2 > 0) for i, kind in enumerate(_POOLS)]
    + [("corrected", True)],
  )
  def test_loss_and_gradient_in_a_pool(self, variant, pool):
    pool_kind, masked = pool
    form = _form(*variant)
    if pool_kind in resampling.METHODS and forms.RESAMPLED not in form.suits:
      self.skipTest("not for resampled pools")
    if pool_kind == "uncorrected" and not form.corrects_positive:
      self.skipTest("needs the proposal of the positive")
    problem = _Problem(form, pool_kind, masked)
    expected, held = problem.twin(
      problem.queries, problem.positives, problem.embeddings
    )
    loss, gradients = problem.kernel(row_chunk_size=3)
    # "expected" counts pass through float32.
    tolerance = 1e-5 if pool_kind == "expected" else 1e-9
    self.assertAllClose(loss, expected, rtol=tolerance)
    arguments = [problem.queries, problem.positives, problem.embeddings]
    slow = []
    for place, value in enumerate(arguments):

      def moved(x, place=place):
        changed = [*arguments]
        changed[place] = x
        return problem.twin(*changed, held=held)[0]

      slow.append(reference.numeric_gradient(moved, value))
    if masked and pool_kind == "corrected":
      # If the own column is the positive, its gradient may go to either.
      slow, gradients = (
        (d_q, d_e + np.pad(d_v, [[0, len(_POOL_IDS) - _BATCH], [0, 0]]))
        for d_q, d_v, d_e in (slow, gradients)
      )
    for found, wanted in zip(gradients, slow, strict=True):
      self.assertAllClose(found, wanted, atol=1e-5)

  @parameterized.parameters(*_VARIANTS)
  def test_dense_is_the_kernel(self, name, settings):
    form = _form(name, settings)
    problem = _Problem(form, "corrected", True)
    scores = problem.queries @ problem.embeddings.T
    positives = np.sum(problem.queries * problem.positives, axis=1)
    losses = form.dense(
      tf.constant(scores),
      tf.constant(positives),
      log_weights=-problem.log_q,
      correction=tf.constant(problem.log_q[:_BATCH]),
      keep=tf.constant(problem.keep()),
      log_q=tf.constant(problem.log_q[:_BATCH]),
      kth_best=ranks.kth_best(
        tf.constant(scores),
        tf.constant(problem.keep()),
        tf.constant(problem.log_q),
        max(form.num_best, 1),
      ),
    )
    self.assertAllClose(
      np.sum(problem.weights * losses), problem.kernel()[0], rtol=1e-10
    )

  @parameterized.parameters(*_VARIANTS)
  def test_loss_and_gradient_over_the_catalogue(self, *variant):
    form = _form(*variant)
    rng = np.random.default_rng(5)
    queries = rng.normal(size=[_BATCH, _DIM])
    table = rng.normal(scale=0.6, size=[_NUM_CANDIDATES, _DIM])
    ids = rng.integers(0, _NUM_CANDIDATES, _BATCH)
    weights = rng.uniform(0.5, 2.0, _BATCH)
    variable = tf.Variable(table)

    def fast():
      with tf.GradientTape() as tape:
        loss = full_softmax.full_softmax(
          tf.constant(queries),
          tf.gather(variable, ids),
          tf.constant(ids),
          tf.constant(weights),
          lambda i: tf.gather(variable, i),
          _NUM_CANDIDATES,
          form=form,
          candidate_chunk_size=4,
        )
      return loss, tf.convert_to_tensor(tape.gradient(loss, variable))

    if forms.CATALOGUE not in form.suits:
      with self.assertRaisesRegex(ValueError, f"{form.name}.*cross_entropy"):
        fast()
      return

    def slow(table, held=()):
      total, seen = 0.0, []
      for i in range(_BATCH):
        scores = table @ queries[i]
        others = [j for j in range(_NUM_CANDIDATES) if j != ids[i]]
        row = {
          "columns": [(scores[j], 0.0) for j in others],
          "pool": [(scores[j], 1.0) for j in others],
          "positive": scores[ids[i]],
          "correction": 0.0,
          "log_q": None,
          "num_terms": 1,
        }
        settings = dataclasses.asdict(form)
        if held and held[i] is not None:
          settings["weight"] = held[i]
        loss, weight = reference.FORMS[form.name](row, **settings)
        total += weights[i] * loss
        seen.append(weight)
      return total, seen

    expected, held = slow(table)
    loss, gradient = fast()
    self.assertAllClose(loss, expected, rtol=1e-9)
    self.assertAllClose(
      gradient,
      reference.numeric_gradient(lambda x: slow(x, held)[0], table),
      atol=1e-5,
    )


class LimitsTest(tf.test.TestCase, parameterized.TestCase):
  def losses(self, form, scores, positives, **options):
    return form.dense(
      tf.constant(scores, tf.float64),
      tf.constant(positives, tf.float64),
      kth_best=tf.zeros([len(positives)], tf.float64),
      **options,
    )

  def test_cross_entropy_by_hand(self):
    # e^{log 2} + e^{log 3} + e^0 = 6.
    self.assertAllClose(
      self.losses(
        forms.CrossEntropy(), [[np.log(2.0), np.log(3.0), 9.0]], [0.0],
        keep=tf.constant([[True, True, False]]),
      ),
      [np.log(6.0)],
    )  # fmt: skip

  def test_corrected_logq_by_hand(self):
    # Q of the positive 1/2, of the columns 1/4 each: Q' = 1/2 each. The sum:
    # 2 (1 + 2) = 6, over n = 2 columns 3. s_p = 0: P = 1 / (1 + 3).
    self.assertAllClose(
      self.losses(
        forms.LogQCorrected(),
        [[0.0, np.log(2.0), 9.0]],
        [0.0],
        log_weights=-np.log([0.25, 0.25, 0.5]),
        log_q=tf.constant(np.log([0.5])),
        keep=tf.constant([[True, True, False]]),
      ),
      [3 / 4 * np.log(6.0)],
    )

  def test_corrected_logq_of_every_other_candidate_is_the_full_softmax(self):
    # ALGORITHMS 7.6: with Q uniform the gradient is that of the cross entropy
    # over all candidates, exactly.
    scores = tf.constant(np.random.default_rng(0).normal(scale=3, size=[5, 7]))
    ids = np.array([0, 3, 3, 6, 1])
    log_q = np.log(np.full(5, 1 / 7))
    with tf.GradientTape(persistent=True) as tape:
      tape.watch(scores)
      full = tf.nn.sparse_softmax_cross_entropy_with_logits(ids, scores)
      sampled = forms.LogQCorrected().dense(
        scores,
        tf.gather(scores, ids, batch_dims=1),
        log_weights=-np.log(1 / 7),
        log_q=tf.constant(log_q),
        keep=tf.constant(np.arange(7) != ids[:, np.newaxis]),
      )
    self.assertAllClose(
      tape.gradient(sampled, scores),
      tape.gradient(full, scores),
      rtol=1e-12,
      atol=1e-14,
    )

  def test_forms_that_have_others_as_limits(self):
    rng = np.random.default_rng(2)
    scores, positives = rng.normal(size=[4, 6]), rng.normal(size=4)
    decoupled = self.losses(forms.Decoupled(), scores, positives)
    cross_entropy = self.losses(forms.CrossEntropy(), scores, positives)
    for settings, expected in (
      ({"name": "psl", "tau_star": 1e-6}, decoupled),
      (
        {"name": "psl", "tau_star": 1e-6, "positive_in_partition": True},
        cross_entropy,
      ),
      ({"name": "bsl", "negative_weight": 1.0}, decoupled),
      (
        {"name": "bsl", "temperature_ratio": 0.5, "negative_weight": 0.5},
        0.5 * decoupled,
      ),
      ({"name": "sl_at_k", "weight_temperature": 1e9}, 0.5 * decoupled),
      # -log(n p): n is the number of columns.
      (
        {
          "name": "generalized_cross_entropy",
          "power": 1e-7,
          "positive_in_partition": True,
        },
        cross_entropy - np.log(6),
      ),
    ):
      form = forms.build(settings)
      self.assertAllClose(
        self.losses(form, scores, positives), expected, rtol=1e-4, atol=1e-5
      )

  @parameterized.parameters("tanh", "atan", "relu")
  def test_psl_is_between_the_step_and_the_softmax(self, activation):
    form = forms.PairwiseSoftmax(activation=activation, tau_star=0.05)
    d = np.linspace(-0.99, 1, 21) / 0.05
    terms = np.exp(form.activate(tf.constant(d)) * 0.05)
    self.assertAllLessEqual(terms - np.exp(0.05 * d), 1e-12)
    self.assertAllGreaterEqual(terms - (d >= -1e-9), -1e-12)

  def test_psl_of_the_published_setting(self):
    # tau = 2, tau* = 0.05, of cosines; here a temperature of 0.1.
    cosines, positive = np.array([0.3, -0.2, 0.9]), 0.4
    expected = np.log(np.sum(((cosines - positive) / 2 + 1) ** 20))
    found = self.losses(
      forms.PairwiseSoftmax(), [cosines / 0.1], [positive / 0.1]
    )
    self.assertAllClose(found, [expected], rtol=1e-10)

  @parameterized.product(
    variant=_VARIANTS, scale=(1e4, -1e4), resampled=(False, True)
  )
  def test_extreme_scores_stay_finite(self, variant, scale, resampled):
    form = _form(*variant)
    if resampled and forms.RESAMPLED not in form.suits:
      self.skipTest("not for resampled pools")
    rng = np.random.default_rng(0)
    embeddings = tf.constant(rng.normal(size=[8, 4]), tf.float32)
    queries = tf.constant(scale * rng.normal(size=[8, 4]), tf.float32)
    log_q = tf.constant(np.log(rng.dirichlet(np.ones(8))), tf.float32)
    ids = tf.range(8, dtype=tf.int64)
    with tf.GradientTape() as tape:
      tape.watch([queries, embeddings])
      loss, _ = fused.pool_softmax(
        queries,
        embeddings,
        ids,
        tf.ones([8]),
        fused.Pool(embeddings, ids, log_q, tf.constant(0, tf.int64)),
        form=form,
        positive_log_q=None if resampled else log_q,
        resampler=fused.Resampler(4, "systematic", _SEED)
        if resampled
        else None,
      )
    for value in (loss, *tape.gradient(loss, [queries, embeddings])):
      self.assertTrue(np.isfinite(value.numpy()).all())

  @parameterized.product(variant=_VARIANTS, own=(False, True))
  def test_rows_without_other_candidates_have_no_loss(self, variant, own):
    form = _form(*variant)
    rng = np.random.default_rng(0)
    embeddings = tf.constant(rng.normal(size=[3, 2]), tf.float32)
    queries = tf.constant(rng.normal(size=[3, 2]), tf.float32)
    # Only one candidate, or one row with its own column.
    rows = 1 if own else 3
    ids = tf.zeros([rows], tf.int64)
    log_q = tf.fill([rows], -1.0)
    with tf.GradientTape() as tape:
      tape.watch([queries, embeddings])
      loss, _ = fused.pool_softmax(
        queries[:rows],
        embeddings[:rows],
        ids,
        tf.ones([rows]),
        fused.Pool(embeddings[:rows], ids, log_q, tf.constant(0, tf.int64)),
        form=form,
        positive_log_q=log_q,
        mask_own_column=own,
        mask_accidental_hits=not own,
      )
    self.assertAllEqual(loss, 0.0)
    for gradient in tape.gradient(loss, [queries, embeddings]):
      self.assertAllEqual(gradient, tf.zeros_like(gradient))


class SettingsTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters(*_VARIANTS)
  def test_config_round_trip(self, name, settings):
    form = _form(name, settings)
    config = json.loads(json.dumps(form.get_config()))
    self.assertEqual(forms.build(config), form)
    self.assertIs(forms.build(form), form)
    self.assertEqual(forms.build(name), forms.FORMS[name]())

  @parameterized.parameters(*forms.FORMS)
  def test_is_documented(self, name):
    form = forms.FORMS[name]
    self.assertRegex(form.__doc__, r"et al\. 20\d\d|and \w+ 20\d\d")
    for field in dataclasses.fields(form):
      self.assertNotEmpty(field.metadata["help"])

  def test_unknown_names_and_settings(self):
    with self.assertRaisesRegex(ValueError, "cross_entropy.*'hinge'"):
      forms.build("hinge")
    with self.assertRaisesRegex(ValueError, "'psl'.*'tau'.*tau_star"):
      forms.build({"name": "psl", "tau": 1.0})
    with self.assertRaisesRegex(ValueError, "'decoupled'.*none"):
      forms.build({"name": "decoupled", "power": 0.1})
    for loss in ({}, None, 3, {"name": ["psl"]}):
      with self.assertRaisesRegex(ValueError, "`loss`"):
        forms.build(loss)

  @parameterized.parameters(
    ("generalized_cross_entropy", "power", 0.0),
    ("generalized_cross_entropy", "power", 1.5),
    ("generalized_cross_entropy", "power", "0.5"),
    ("generalized_cross_entropy", "power", True),
    ("generalized_cross_entropy", "power", float("nan")),
    ("generalized_cross_entropy", "positive_in_partition", 1),
    ("psl", "activation", "exp"),
    ("psl", "tau_star", 0),
    ("bsl", "negative_weight", -1.0),
    ("sl_at_k", "k", 0),
    ("sl_at_k", "k", 1.5),
  )
  def test_settings_out_of_range(self, name, setting, value):
    with self.assertRaisesRegex(ValueError, f"`{setting}`.*'{name}'"):
      forms.build({"name": name, setting: value})


class KthBestTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.product(k=(1, 2, 5, 40), seed=(0, 1, 2, 3))
  def test_reference(self, k, seed):
    rng = np.random.default_rng(seed)
    scores = rng.normal(scale=5, size=[7, 30]).astype(np.float32)
    log_q = np.log(rng.dirichlet(np.ones(50)))[rng.integers(0, 50, 30)]
    keep = rng.random([7, 30]) < 0.6
    keep[3] = False
    found = ranks.kth_best(
      tf.constant(scores),
      tf.constant(keep),
      tf.constant(log_q, tf.float32),
      k,
    )
    for i in range(7):
      pool = [
        (scores[i, j], np.exp(-log_q[j]) / 30) for j in np.flatnonzero(keep[i])
      ]
      self.assertAllClose(found[i], reference.kth_best(pool, k), atol=1e-5)

  def test_every_candidate_once_is_the_kth_best(self):
    scores = np.random.default_rng(0).normal(size=[3, 100])
    uniform = tf.fill([100], tf.constant(-np.log(100.0), tf.float64))
    for k in (1, 20, 100):
      self.assertAllEqual(
        ranks.kth_best(tf.constant(scores), None, uniform, k),
        np.sort(scores, axis=1)[:, -k],
      )
    self.assertAllEqual(
      ranks.kth_best(tf.constant(scores), None, uniform, 101), [-np.inf] * 3
    )

  def test_it_is_about_right_for_a_large_sample(self):
    # 4,000 draws by popularity from 500 candidates: the 50th best.
    rng = np.random.default_rng(3)
    q = rng.dirichlet(np.ones(500))
    scores = rng.normal(size=500)
    drawn = rng.choice(500, 4000, p=q)
    found = ranks.kth_best(
      tf.constant(scores[np.newaxis, drawn]),
      None,
      tf.constant(np.log(q[drawn])),
      50,
    )
    better = np.sum(scores >= found[0].numpy())
    self.assertBetween(better, 40, 60)

  def test_merging_chunks_is_sorting_all(self):
    scores = np.random.default_rng(0).normal(size=[2, 9]).astype(np.float32)
    best = tf.fill([2, 4], -np.inf)
    for start in range(0, 9, 3):
      best = ranks.merge_best(best, tf.constant(scores[:, start : start + 3]))
    self.assertAllEqual(best, -np.sort(-scores, axis=1)[:, :4])


if __name__ == "__main__":
  tf.test.main()
