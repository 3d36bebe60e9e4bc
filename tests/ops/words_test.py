"""Words of texts and their hashes."""

import tensorflow as tf

from tests import reference
from xir_tfrs.ops import words

_TEXTS = [
  "The Matrix: Reloaded (2003)",
  "",
  " -- ",
  "Don’t look   now",
  "ÉCOUTEZ, c'est l’été",
  "東京物語 Tokyo",
  "naïve café\n2",
  "a",
]


class WordsTest(tf.test.TestCase):
  def test_words_and_pairs_against_plain_python(self):
    found = words.words_and_pairs(tf.constant(_TEXTS)).to_list()
    decoded = [[gram.decode() for gram in row] for row in found]
    self.assertEqual(decoded, [reference.words_and_pairs(x) for x in _TEXTS])
    self.assertEqual(
      decoded[0][:5], ["the", "matrix", "reloaded", "2003", "the matrix"]
    )
    self.assertEqual(decoded[5][:3], ["東", "京", "物"])

  def test_codes_are_those_of_keras_in_any_graph(self):
    expected = tf.keras.layers.Hashing(50, mask_value="")(
      tf.ragged.constant([reference.words_and_pairs(x) for x in _TEXTS])
    )
    hashed = tf.function(
      lambda texts: words.hashed(texts, 50),
      input_signature=[tf.TensorSpec([None], tf.string)],
    )
    for found in (words.hashed(tf.constant(_TEXTS), 50), hashed(_TEXTS)):
      self.assertEqual(found.dtype, tf.int32)
      self.assertAllEqual(found.row_splits, expected.row_splits)
      self.assertAllEqual(found.values, expected.values)
    self.assertAllInRange(found.values, 1, 49)
    self.assertAllEqual(hashed(tf.constant([], tf.string)).row_splits, [0])

  def test_codes_never_change(self):
    # Data and bundles store hashes, so the hash function must not change.
    found = words.hashed(tf.constant(["the matrix"]), 1000)
    self.assertAllEqual(found.values, [137, 159, 750])

  def test_bytes_that_are_no_text_do_no_harm(self):
    found = words.hashed(tf.constant([b"\xff\xfe bad \xe9"]), 1000)
    self.assertAllEqual(
      found.values, words.hashed(tf.constant(["bad"]), 1000).values
    )
