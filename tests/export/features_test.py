"""Raw side features of signatures, compared with the model's tower."""

import numpy as np
import pytest
import tensorflow as tf

from xir_tfrs.data import schema
from xir_tfrs.serving import features


@pytest.fixture(scope="module")
def loaded(exported, load):
  return load(exported, "brute_force")


def _encoded(world, rows, changes):
  """The model's vectors of dense ids, with some features replaced."""
  rows = tf.constant(rows, tf.int64)
  found = world.model.candidate_tower.look_up(rows)
  return world.model.encode_candidates(rows, {**found, **changes}).numpy()


def test_missing_features_default_to_training(world, loaded):
  found = loaded.encode_candidates(["item 7", "nobody", "item 0"])
  expected = np.stack(
    [
      world.candidate_vectors[7],
      world.unknown_candidate,
      world.candidate_vectors[0],
    ]
  )
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_each_kind_given(world, loaded):
  ids, rows = ["item 7", "new", "item 4"], [7, -1, 4]
  given = {
    "tag": ["c", "h", "no such tag"],
    "words": [["z", "w"], ["no such word", "y"], ["w"]],
    "price": [3.5, -1.0, 0.0],
    "blurb": ["ALL-new words", "…Blurb!", "of"],
    "place": [[1, 2], [0.5, np.nan], [3, 4]],
  }
  hashes = tf.keras.layers.Hashing(50, mask_value="")
  texts = [["all", "new", "words", "all new", "new words"], ["blurb"], ["of"]]
  codes = {
    "tag": tf.constant([3, 8, 0]),
    "words": tf.ragged.constant([[4, 1], [0, 3], [1]]),
    "price": tf.constant([3.5, -1.0, 0.0]),
    "blurb": hashes(tf.ragged.constant(texts)),
    "place": tf.constant([[1, 2], [0.5, np.nan], [3, 4]]),
  }
  np.testing.assert_allclose(
    loaded.encode_candidates(ids, given), _encoded(world, rows, codes), 1e-5
  )
  for name in given:
    found = loaded.encode_candidates(ids, {name: given[name]})
    expected = _encoded(world, rows, {name: codes[name]})
    np.testing.assert_allclose(found, expected, 1e-5)
    # The feature must change the vector.
    assert np.abs(found - loaded.encode_candidates(ids)).max() > 1e-3


def test_single_missing_features_default_to_training(world, loaded):
  ids = ["item 7", "item 9", "new"]
  plain = loaded.encode_candidates(ids)
  nothing = {
    "tag": [None, "", None],
    "words": [None, [], [""]],
    "price": [None, np.nan, None],
    "blurb": [None, "", ""],
    "place": [None, [np.nan, np.nan], None],
  }
  found = loaded.encode_candidates(ids, nothing)
  np.testing.assert_allclose(found, plain, 1e-6)
  some = {"words": [None, ["x", "x"], None]}
  found = loaded.encode_candidates(ids, some)
  np.testing.assert_allclose(found[[0, 2]], plain[[0, 2]], 1e-6)
  assert np.abs(found[1] - plain[1]).max() > 1e-3


def test_no_rows(loaded):
  assert loaded.encode_candidates([]).shape == (0, 6)


@pytest.mark.parametrize(
  "given, message",
  [
    ({"tag": ["a"]}, "'tag' must have one value per id.*1 values for 2"),
    ({"tag": "ab"}, "'tag' must have one value per id: 'ab' is not a list"),
    ({"tag": ["a", 3]}, "'tag' is a token: 3 is not a string"),
    ({"words": ["w", "x"]}, "'words' is a token_seq: 'w' is not a list"),
    ({"words": [["w"], [1]]}, "'words' is a token_seq: 1 is not a string"),
    ({"blurb": [["a"], "b"]}, r"'blurb' is a text: \['a'\] is not a string"),
    ({"price": [1.0, "dear"]}, "'price' is a float: .*dear"),
    ({"place": [[1, 2], [1]]}, "'place' is a float_seq: expected 2 numbers"),
    (
      {"colour": ["a", "b"]},
      "no feature 'colour'; the features are: tag, words",
    ),
  ],
)
def test_wrong_features_are_named(loaded, given, message):
  with pytest.raises(ValueError, match=message):
    loaded.encode_candidates(["item 1", "item 2"], given)


def test_a_query_tower_without_features_says_so(world, loaded):
  with pytest.raises(
    ValueError, match="no feature 'age'; the features are: none"
  ):
    loaded.recommend([world.query_ids[0]], k=3, features={"age": [3.0]})


def test_inputs_have_names_of_their_own():
  inputs = features.of_schema(
    [
      schema.FeatureSchema("k", "float", mean=[0], std=[1]),
      schema.FeatureSchema("item price", "float", mean=[0], std=[1]),
      schema.FeatureSchema("item_price", "token", vocabulary=[""]),
      schema.FeatureSchema(
        "2nd", "float_seq", length=3, mean=[0] * 3, std=[1] * 3
      ),
    ]
  )
  assert [x.input for x in inputs] == [
    *("feature_k", "item_price", "feature_item_price", "feature_2nd")
  ]
  assert inputs[3].spec == tf.TensorSpec([None, 3], tf.float32, "feature_2nd")
  # A vocabulary may only have the unknown token.
  reader = features.Reader(inputs[2:3])
  raw, stored = tf.constant(["a", ""]), tf.constant([5, 6])
  found = reader([raw], {"item_price": stored})["item_price"]
  assert found.numpy().tolist() == [0, 6]


def test_feature_names_that_cannot_be_inputs(tmp_path):
  names = (
    *("Größe", "price (USD)", "price_(USD)", "2nd", "query_id", "K"),
    *("价格", "_x", "class", "None", "self", "Brand", "brand"),
  )
  found = features.of_schema(
    schema.FeatureSchema(name=name, kind="float", mean=(0.0,), std=(1.0,))
    for name in names
  )
  assert [one.name for one in found] == list(names)
  inputs = [one.input for one in found]
  assert len(set(inputs)) == len(inputs)
  assert all(one.isascii() and one.isidentifier() for one in inputs)
  signature = tf.function(
    lambda k, *values: {"sum": tf.add_n(values)}, autograph=False
  ).get_concrete_function(
    tf.TensorSpec([], tf.int32, "k"), *(one.spec for one in found)
  )
  tf.saved_model.save(tf.Module(), tmp_path, {"serving_default": signature})
  loaded = tf.saved_model.load(tmp_path).signatures["serving_default"]
  assert set(loaded.structured_input_signature[1]) == {"k", *inputs}
