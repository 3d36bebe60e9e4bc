"""Side features by dense id."""

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from xir_tfrs import layers, types

FEATURES = (
  types.Feature("brand", "token", vocabulary_size=5),
  types.Feature("tags", "token_seq", vocabulary_size=9),
  types.Feature("price", "float", mean=(2.0,), std=(3.0,)),
  types.Feature("image", "float_seq", length=2, mean=(0, 0), std=(1, 1)),
)
TAGS = [[3, 1], [], [8], [2, 2, 2]]
COLUMNS = {
  "brand": np.array([4, 0, 2, 1]),
  "tags": (np.concatenate(TAGS), np.array([0, 2, 2, 3, 6])),
  "price": np.array([1.0, np.nan, 5.0, 2.0]),
  "image": np.arange(8.0).reshape(4, 2),
}


class CandidateTableTest(tf.test.TestCase, parameterized.TestCase):
  def test_looks_up_rows_in_any_order(self):
    table = layers.CandidateTable(FEATURES, COLUMNS)
    found = tf.function(table)(tf.constant([3, 0, 3, 1], tf.int64))
    self.assertAllEqual(found["brand"], [1, 4, 1, 0])
    self.assertEqual(
      found["tags"].to_list(), [[2, 2, 2], [3, 1], [2, 2, 2], []]
    )
    self.assertAllEqual(found["price"], [2.0, 1.0, 2.0, np.nan])
    self.assertAllEqual(found["image"], [[6, 7], [0, 1], [6, 7], [2, 3]])

  @parameterized.parameters(-1, 4, 1000)
  def test_unknown_ids_have_no_features(self, unknown):
    found = layers.CandidateTable(FEATURES, COLUMNS)(tf.constant([unknown, 0]))
    self.assertAllEqual(found["brand"], [0, 4])
    self.assertEqual(found["tags"].to_list(), [[], [3, 1]])
    self.assertAllEqual(np.isnan(found["price"]), [True, False])
    self.assertAllEqual(np.isnan(found["image"][0]), [True, True])

  def test_no_ids(self):
    found = layers.CandidateTable(FEATURES, COLUMNS)(tf.zeros([0], tf.int64))
    self.assertAllEqual(found["brand"].shape, [0])
    self.assertEqual(found["tags"].to_list(), [])

  def test_config_and_checkpoint_restore_it(self):
    table = layers.CandidateTable(FEATURES, COLUMNS)
    path = tf.train.Checkpoint(table).save(self.get_temp_dir())
    other = layers.CandidateTable.from_config(table.get_config())
    self.assertEqual(other.features, FEATURES)
    tf.train.Checkpoint(other).restore(path).assert_consumed()
    ids = tf.range(5)
    for a, b in zip(table(ids).values(), other(ids).values(), strict=True):
      self.assertAllEqual(a, b)

  def test_nothing_is_trainable(self):
    table = layers.CandidateTable(FEATURES, COLUMNS)
    self.assertEmpty(table.trainable_variables)
    self.assertLen(table.non_trainable_variables, 5)

  @parameterized.parameters(
    ("brand", np.array([4, 0, 2, 5]), r"\[0, 5\).*0 to 5"),
    ("brand", np.array([4, 0, 2]), r"\(4,\).*\(3,\)"),
    ("tags", (np.array([1, 2]), np.array([0, 2, 2, 3, 6])), "0 to 6"),
    ("image", np.zeros([4, 3]), r"\(4, 2\).*\(4, 3\)"),
    # A cast would make codes of these.
    ("brand", np.array([4, 0, 2, 2**32 + 1]), "0 to 4294967297"),
    ("brand", np.array([4, 0, 2.5, 1]), "'brand' must be integers.*2.5"),
    ("brand", np.array([4, 0, np.nan, 1]), "'brand' must be integers.*nan"),
    ("brand", ["a", "b", "c", "d"], "'brand' must be integers.*<U1"),
    ("tags", (np.array([1, 2]), np.array([0, 2, 1, 2, 2])), "not descend"),
    ("tags", tf.ragged.constant(TAGS), r"'tags' must be a pair \(codes"),
    ("price", np.array([1.0, np.inf, 5.0, 2.0]), "'price' must be finite"),
    ("price", ["1", "2", "", "4"], "'price' must hold numbers"),
  )
  def test_wrong_column_is_named(self, name, column, message):
    features = sorted(FEATURES, key=lambda f: f.name == name)
    with self.assertRaisesRegex(ValueError, message):
      layers.CandidateTable(features, COLUMNS | {name: column})

  def test_missing_column_is_named(self):
    with self.assertRaisesRegex(ValueError, "price"):
      layers.CandidateTable(
        FEATURES, {k: v for k, v in COLUMNS.items() if k != "price"}
      )


class FeatureTest(parameterized.TestCase):
  @parameterized.parameters(
    ({"kind": "word"}, "must be one of"),
    ({"kind": "token"}, "vocabulary_size"),
    ({"kind": "float_seq"}, "length"),
    ({"kind": "float"}, "1 values of `mean`"),
    ({"kind": "float", "mean": (0,), "std": (0,)}, "must be positive"),
  )
  def test_bad_feature_is_refused(self, arguments, message):
    with self.assertRaisesRegex(ValueError, message):
      types.Feature("x", **arguments)
