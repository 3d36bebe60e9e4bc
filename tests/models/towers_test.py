"""Towers encode ids and features."""

import json

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from xir_tfrs import models, types

FEATURES = (
  types.Feature("brand", "token", vocabulary_size=4),
  types.Feature("tags", "token_seq", vocabulary_size=5),
  types.Feature("blurb", "text", vocabulary_size=9),
  types.Feature("price", "float", mean=(2.0,), std=(4.0,)),
  types.Feature("image", "float_seq", length=2, mean=(1, 0), std=(2, 1)),
)
COLUMNS = {
  "brand": np.array([1, 3, 0]),
  "tags": (np.array([1, 2, 4]), np.array([0, 2, 2, 3])),
  "blurb": (np.array([8, 3, 8]), np.array([0, 0, 3, 3])),
  "price": np.array([6.0, np.nan, 2.0]),
  "image": np.array([[3.0, 1.0], [1.0, 0.0], [np.nan, 5.0]]),
}


def tower(**arguments):
  return models.Tower(
    **{
      "vocabulary_size": 3,
      "dim": 6,
      "features": FEATURES,
      "columns": COLUMNS,
      "seed": 3,
    }
    | arguments
  )


def weights(model, name):
  return next(v.numpy() for v in model.variables if name in v.name)


class TowerTest(tf.test.TestCase, parameterized.TestCase):
  def test_output_is_the_sum_of_embeddings(self):
    model = tower()
    ids, brand, tags = (
      weights(model, f"{name}_embedding") for name in ("id", "brand", "tags")
    )
    blurb = next(v for v in model.variables if "blurb_embedding" in v.name)
    # Words that are in no text of the training rows are ignored.
    self.assertAllEqual(blurb, np.zeros([9, 6]))
    blurb.assign(np.arange(54).reshape(9, 6))
    price, image = (
      weights(model, f"{name}_projection/kernel") for name in ("price", "image")
    )
    expected = [
      # (6 - 2) / 4 = 1; (3 - 1) / 2 = 1, (1 - 0) / 1 = 1
      ids[0] + brand[1] + (tags[1] + tags[2]) / 2 + price[0] + image.sum(0),
      # No tags; a missing price counts as the mean, and so does the image.
      ids[1] + brand[3] + (2 * blurb[8] + blurb[3]) / 3,
      # A missing part of a vector counts as the mean: only 5 matters.
      ids[2] + brand[0] + tags[4] + 5 * image[1],
    ]
    self.assertAllClose(model(tf.range(3)), expected, atol=1e-6)

  @parameterized.parameters(
    "price (USD)", "Größe", "a\\b", "a,b", " lead", "#1"
  )
  def test_features_have_the_names_that_people_give(self, name):
    features = (
      types.Feature(name, "float", mean=(0.0,), std=(1.0,)),
      types.Feature(f"{name}!", "token_seq", vocabulary_size=3),
    )
    columns = {
      name: np.array([1.0, 2.0]),
      f"{name}!": (np.array([1, 2]), np.array([0, 1, 2])),
    }
    model = models.Tower(
      vocabulary_size=2, dim=4, features=features, columns=columns
    )
    # In a graph, names become scopes, and not every name is valid.
    found = tf.function(model)(tf.range(2))
    self.assertAllClose(found, model(tf.range(2)))

    @tf.function
    def encode(ids):  # An export calls no layer around those of the features.
      return model.encode(ids, model.look_up(ids))

    self.assertAllClose(encode(tf.range(2)), found)

  @parameterized.parameters("tower.keras", "tower")
  def test_saved_and_loaded_by_keras(self, name):
    path = f"{self.get_temp_dir()}/{name}"
    model = tower()
    expected = model(tf.range(3, dtype=tf.int64))
    model.save(path)
    loaded = tf.keras.models.load_model(
      path, custom_objects={"Tower": models.Tower} if "." in name else None
    )
    self.assertAllClose(loaded(tf.range(3, dtype=tf.int64)), expected)
    clone = tf.keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    self.assertAllClose(clone(tf.range(3)), expected)

  def test_unknown_row_of_tokens_starts_as_nothing(self):
    model = tower()
    self.assertAllEqual(weights(model, "brand_embedding")[0], np.zeros(6))
    self.assertAllEqual(weights(model, "tags_embedding")[0], np.zeros(6))

  @parameterized.parameters(-1, 3, 10**6)
  def test_unknown_id_is_zero_without_features(self, unknown):
    model = models.Tower(vocabulary_size=3, dim=6)
    self.assertAllEqual(model(tf.constant([unknown])), np.zeros([1, 6]))

  def test_ids_alone_are_an_embedding(self):
    model = models.Tower(vocabulary_size=3, dim=6, init_stddev=1.0)
    self.assertAllEqual(model(tf.range(3)), weights(model, "id_embedding"))
    self.assertLen(model.variables, 1)

  @parameterized.parameters([()], [(8,)], [(16, 8)])
  def test_hidden_layers_and_config(self, hidden_units):
    model = tower(hidden_units=hidden_units)
    config = json.loads(json.dumps(model.get_config()))
    other = models.Tower.from_config(config)
    path = tf.train.Checkpoint(model).save(self.get_temp_dir())
    tf.train.Checkpoint(other).restore(path).assert_consumed()
    ids = tf.constant([2, 0, -1, 1], tf.int64)
    self.assertAllEqual(model(ids), other(ids))
    self.assertEqual(model(ids).shape, [4, 6])
    kernels = [v for v in model.variables if "dense_" in v.name]
    self.assertLen(kernels, 2 * (len(hidden_units) + bool(hidden_units)))

  def test_hidden_layers_are_relu_and_the_last_is_linear(self):
    model = tower(hidden_units=(8,))
    table = model.table(tf.range(3))
    parts = [model._embed_ids(tf.range(3))] + [
      model._embed_feature(f, table[f.name]) for f in FEATURES
    ]
    hidden = np.maximum(
      np.concatenate(parts, 1) @ weights(model, "dense_0/kernel"), 0
    )
    self.assertAllClose(
      model(tf.range(3)), hidden @ weights(model, "dense_1/kernel"), atol=1e-6
    )

  def test_given_features_encode_like_stored_ones(self):
    model = tower()
    stored = model.table(tf.range(3))
    self.assertAllEqual(model.encode(tf.range(3), stored), model(tf.range(3)))

  def test_compiled_the_tags_are_padded(self):
    model = tower()
    ids = tf.constant([2, 1, 0, -1, 3, 0])

    def step():
      with tf.GradientTape() as tape:
        found = tf.square(model(ids))
      gradients = tape.gradient(found, model.trainable_variables)
      return found, [tf.convert_to_tensor(g) for g in gradients]

    plain, compiled = (
      tf.nest.flatten(tf.function(step, jit_compile=jit)())
      for jit in (False, True)
    )
    for p, c in zip(plain, compiled, strict=True):
      self.assertAllClose(p, c, rtol=1e-5, atol=1e-6)

  def test_every_part_gets_a_gradient(self):
    model = tower(hidden_units=(8,))
    with tf.GradientTape() as tape:
      loss = tf.reduce_sum(model(tf.range(3)) ** 2)
    for gradient in tape.gradient(loss, model.trainable_variables):
      self.assertIsNotNone(gradient)
      self.assertGreater(np.abs(tf.convert_to_tensor(gradient)).max(), 0)

  def test_same_seed_same_values(self):
    a, b, c = (tower(seed=s)(tf.range(3)) for s in (1, 1, 2))
    self.assertAllEqual(a, b)
    self.assertNotAllClose(a, c)

  def test_exports_without_graph_constants(self):
    model = tower()
    path = self.get_temp_dir()
    tf.saved_model.save(
      model,
      path,
      signatures=tf.function(
        lambda ids: {"embedding": model(ids)},
        input_signature=[tf.TensorSpec([None], tf.int64, "ids")],
      ),
    )
    loaded = tf.saved_model.load(path).signatures["serving_default"]
    ids = tf.constant([1, 2, 99], tf.int64)
    self.assertAllEqual(loaded(ids)["embedding"], model(ids))

  def test_ids_of_another_rank_are_refused(self):
    with self.assertRaisesRegex(ValueError, r"`ids`.*rank 1.*\(1, 2\)"):
      tower()(tf.constant([[1, 2]]))

  @parameterized.parameters(
    ({"dim": 0}, "`dim` = 0"),
    ({"vocabulary_size": -1}, "`vocabulary_size` = -1"),
    ({"vocabulary_size": 4}, "3 rows for 4 ids"),
  )
  def test_bad_argument_is_named(self, arguments, message):
    with self.assertRaisesRegex(ValueError, message):
      tower(**arguments)
