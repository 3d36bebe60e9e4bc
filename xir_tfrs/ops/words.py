"""Free text as the words in it, and these as numbers, without a vocabulary."""

import tensorflow as tf

# Scripts without spaces: each character is a word.
_CHARACTERS = r"([\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}])"
_BETWEEN_WORDS = r"[^\p{L}\p{M}\p{N}]+"


def words_and_pairs(texts: tf.Tensor) -> tf.RaggedTensor:
  """The words of texts, in lower case, and each two that follow each other.

  Words are what letters and digits make up: "The Matrix: Reloaded" has "the",
  "matrix", "reloaded", "the matrix" and "matrix reloaded".

  Args:
    texts: [n] utf-8 strings.

  Returns:
    [n, None] strings: the words of a text in their order, then the pairs.

  Examples:
    >>> xir.ops.words.words_and_pairs(tf.constant(["Red tea", ""]))
    <tf.RaggedTensor [[b'red', b'tea', b'red tea'], []]>
  """
  texts = tf.strings.lower(texts, encoding="utf-8")
  texts = tf.strings.regex_replace(texts, "['’]", "")  # don't is one word.
  texts = tf.strings.regex_replace(texts, _CHARACTERS, r" \1 ")
  texts = tf.strings.regex_replace(texts, _BETWEEN_WORDS, " ")
  words = tf.strings.split(texts)
  pairs = tf.strings.ngrams(words, 2, separator=" ")
  return tf.concat([words, pairs], axis=1)


def hashed(texts: tf.Tensor, num_buckets: int) -> tf.RaggedTensor:
  """Codes of `words_and_pairs`: a hash, which needs no list of known words.

  The hash is that of `tf.keras.layers.Hashing(num_buckets, mask_value="")`, the
  same on any machine (Weinberger et al. 2009).

  Args:
    texts: [n] utf-8 strings.
    num_buckets: how many codes there are, 2 at least.

  Returns:
    [n, None] int32 codes in `[1, num_buckets)`; none for an empty text.

  Examples:
    >>> texts = tf.constant(["Red tea", ""])
    >>> xir.ops.words.hashed(texts, num_buckets=100)
    <tf.RaggedTensor [[30, 38, 39], []]>
  """
  grams = words_and_pairs(texts)
  codes = tf.strings.to_hash_bucket_fast(grams.values, num_buckets - 1)
  return grams.with_values(tf.cast(codes + 1, tf.int32))
