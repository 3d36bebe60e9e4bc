"""The two-tower model."""

import json

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from xir_tfrs import models, optimizers, tasks


def two_tower(**task):
  return models.TwoTower(
    models.Tower(vocabulary_size=5, dim=4, seed=1, name="query_tower"),
    models.Tower(vocabulary_size=7, dim=4, seed=2, name="candidate_tower"),
    tasks.SampledSoftmaxRetrieval(**task),
  )


BATCH = {
  "query_id": tf.constant([0, 4, 2]),
  "candidate_id": tf.constant([6, 0, 3]),
}


class TwoTowerTest(tf.test.TestCase, parameterized.TestCase):
  def test_loss_is_the_tasks(self):
    model = two_tower()
    queries = model.query_tower(BATCH["query_id"])
    candidates = model.candidate_tower(BATCH["candidate_id"])
    logits = queries.numpy() @ candidates.numpy().T
    expected = np.mean(np.log(np.exp(logits).sum(1)) - np.diag(logits))
    self.assertAllClose(model.compute_loss(BATCH), expected)

  @parameterized.parameters("model.keras", "model", "model.h5")
  def test_save_says_what_to_use_instead(self, name):
    path = f"{self.get_temp_dir()}/{name}"
    with self.assertRaisesRegex(NotImplementedError, "save_weights.*export"):
      two_tower().save(path)

  def test_what_keras_would_compute_from_outputs_is_refused(self):
    model, optimizer = two_tower(), tf.keras.optimizers.SGD(0.1)
    for name, value in (
      ("loss", "mse"),
      ("metrics", ["mse"]),
      ("loss_weights", [2.0]),
      ("weighted_metrics", ["mse"]),
    ):
      with self.assertRaisesRegex(ValueError, f"`{name}` would have no effect"):
        model.compile(optimizer, **{name: value})
    with self.assertRaisesRegex(ValueError, "`loss` would have no effect"):
      model.compile(optimizer, "mse")
    model.compile(optimizer, None, metrics=[], steps_per_execution=2)
    with self.assertRaisesRegex(NotImplementedError, "encode_queries.*indexes"):
      model.predict(BATCH)

  def test_sample_weight_reaches_the_task(self):
    model = two_tower()
    heavy = BATCH | {"sample_weight": tf.fill([3], 2.0)}
    self.assertAllClose(
      model.compute_loss(heavy), 2 * model.compute_loss(BATCH)
    )

  @parameterized.parameters("mixed_float16", "mixed_bfloat16")
  def test_gradients_that_float16_cannot_hold_still_train(self, policy):
    # In a large batch, each row's gradient is as small.
    rows = BATCH | {"sample_weight": tf.fill([3], 1e-7)}
    learnt = []
    for name in ("float32", policy):
      tf.keras.mixed_precision.set_global_policy(name)
      self.addCleanup(tf.keras.mixed_precision.set_global_policy, "float32")
      model = two_tower()
      model.compile(tf.keras.optimizers.SGD(1e7))
      before = model.query_tower.get_weights()[0]
      model.train_step(rows)
      learnt.append(model.query_tower.get_weights()[0] - before)
    self.assertGreater(np.abs(learnt[0]).max(), 0.01)
    self.assertAllClose(*learnt, atol=0.02 * np.abs(learnt[0]).max())

  def test_string_ids_raise_an_explanation(self):
    names = {"query_id": tf.constant(["a"]), "candidate_id": tf.constant([0])}
    model = two_tower()
    model.compile(tf.keras.optimizers.SGD(1.0))
    rows = tf.data.Dataset.from_tensors(names)
    with self.assertRaisesRegex(ValueError, "dense ids.*StringLookup"):
      model.fit(rows, verbose=0)

  def test_fit_and_evaluate_report_means_over_rows(self):
    model = two_tower()
    model.compile(tf.keras.optimizers.SGD(0.0))
    rows = tf.data.Dataset.from_tensor_slices(BATCH).batch(2)
    losses = [model.compute_loss(batch) for batch in rows]
    self.assertNotAllClose(*losses)
    mean = (2 * losses[0] + losses[1]) / 3
    # Each epoch and each evaluation resets it.
    history = model.fit(rows, epochs=2, validation_data=rows, verbose=0).history
    for name in ("loss", "val_loss", "total_loss"):
      self.assertAllClose(history[name], [mean, mean], rtol=1e-5)
    evaluated = model.evaluate(rows, verbose=0, return_dict=True)
    self.assertAllClose(evaluated["loss"], mean, rtol=1e-5)

  @parameterized.parameters("lazy_adam", "adam", "sgd")
  def test_compiled_by_xla_fit_is_the_same(self, name):
    known = tf.constant([[1, 3, -1], [0, -1, -1], [-1, 5, 2]])
    rows = tf.data.Dataset.from_tensors(
      BATCH | {"known_candidate_ids": known}
    ).repeat(3)
    found = []
    for jit in (False, True):
      model = two_tower()
      optimizer = {
        "lazy_adam": optimizers.LazyAdam,
        "adam": tf.keras.optimizers.Adam,
        "sgd": tf.keras.optimizers.SGD,
      }[name](0.1)
      model.compile(optimizer, jit_compile=jit)
      history = model.fit(rows, epochs=2, verbose=0).history
      found.append((history["loss"], model.get_weights()))
    for plain, compiled in zip(*map(tf.nest.flatten, found), strict=True):
      self.assertAllClose(plain, compiled, rtol=1e-5, atol=1e-6)

  def test_compiled_by_xla_batches_need_a_size(self):
    model = two_tower()
    model.compile(optimizers.LazyAdam(), jit_compile=True)
    rows = tf.data.Dataset.from_tensor_slices(BATCH)
    with self.assertRaisesRegex(ValueError, "drop_remainder"):
      model.fit(rows.batch(2), verbose=0)
    model.fit(rows.batch(2, drop_remainder=True), verbose=0)

  def test_means_are_not_in_checkpoints(self):
    model = two_tower()
    model.compile(tf.keras.optimizers.SGD(0.0))
    path = tf.train.Checkpoint(model=model).save(self.get_temp_dir())
    names = [name for name, _ in tf.train.list_variables(path)]
    self.assertTrue(any("query_tower" in name for name in names))
    self.assertFalse(any("means" in name or "total" in name for name in names))

  def test_weights_in_hdf5_come_back(self):
    model, path = two_tower(), f"{self.get_temp_dir()}/weights.h5"
    model.save_weights(path)
    restored = two_tower()
    for variable in restored.variables:
      variable.assign(tf.zeros_like(variable))
    restored.load_weights(path)
    self.assertAllEqual(
      restored.query_tower.get_weights(), model.query_tower.get_weights()
    )
    restored.summary(print_fn=lambda line: None)

  def test_a_step_of_ones_own_reports_its_batch(self):
    model = two_tower()
    model.reset_metrics()
    with self.assertRaisesRegex(ValueError, "call `compile`"):
      model.gradient_step(BATCH)
    model.compile(tf.keras.optimizers.SGD(0.1))
    for _ in range(2):
      expected = model.compute_loss(BATCH)
      self.assertAllClose(model.gradient_step(BATCH)["loss"], expected)
      self.assertLess(model.compute_loss(BATCH), expected)

  def test_sample_weight_of_fit_weighs_rows(self):
    column = tf.constant([1.0, 0.0, 3.0])
    argument = tf.constant([2.0, 5.0, 1.0])
    expected = two_tower().compute_loss(
      BATCH | {"sample_weight": column * argument}
    )
    rows = {
      name: value.numpy()
      for name, value in (BATCH | {"sample_weight": column}).items()
    }
    weight = argument.numpy()
    model = two_tower()
    model.compile(tf.keras.optimizers.SGD(0.0))
    sizes = {"batch_size": 3, "verbose": 0}
    found = [
      model.fit(rows, sample_weight=weight, **sizes).history["loss"][0],
      model.evaluate(rows, sample_weight=weight, **sizes)[0],
      model.train_on_batch(rows, sample_weight=weight, reset_metrics=True)[0],
      model.test_on_batch(rows, sample_weight=weight, reset_metrics=True)[0],
    ]
    self.assertAllClose(found, [expected] * 4)
    held_out = (rows, None, weight)
    fitted = model.fit(rows, validation_data=held_out, **sizes).history
    self.assertAllClose(fitted["val_loss"][0], expected)
    pairs = tf.data.Dataset.from_tensors((BATCH, None, column * argument))
    self.assertAllClose(model.evaluate(pairs, verbose=0)[0], expected)

  def test_unsupported_fit_arguments_are_refused_by_name(self):
    model = two_tower()
    model.compile(tf.keras.optimizers.SGD(0.1))
    rows = {name: value.numpy() for name, value in BATCH.items()}
    with self.assertRaisesRegex(ValueError, "`class_weight`.*`sample_weight`"):
      model.fit(rows, class_weight={0: 1.0, 1: 5.0}, verbose=0)
    for arguments in (
      {"x": rows, "y": np.ones(3)},
      {"x": tf.data.Dataset.from_tensors((BATCH, tf.ones(3)))},
      {"x": tf.data.Dataset.from_tensors(tf.ones(3))},
      {"x": rows, "validation_data": (rows, np.ones(3))},
      {"x": rows, "validation_data": (rows, np.ones(3), np.ones(3))},
    ):
      with self.assertRaisesRegex(ValueError, "`query_id`.*no `y`"):
        model.fit(**arguments, verbose=0)

  def test_a_missing_column_and_a_wrong_task_are_named(self):
    model = two_tower()
    model.compile(tf.keras.optimizers.SGD(0.1))
    rows = {"user": np.arange(3), "candidate_id": np.arange(3)}
    with self.assertRaisesRegex(ValueError, "`query_id`. Received: `user`"):
      model.fit(rows, verbose=0)
    towers = model.query_tower, model.candidate_tower
    with self.assertRaisesRegex(ValueError, "`normalize` = True to Sampled"):
      models.TwoTower(*towers, model.task, normalize=True)
    with self.assertRaisesRegex(ValueError, r"TwoTower\(query_tower, cand"):
      models.TwoTower(model.task, *towers)

  def test_encodings_are_unit_vectors_where_scores_are_cosines(self):
    for normalize in (False, True):
      model = two_tower(normalize=normalize)
      for encode in (model.encode_queries, model.encode_candidates):
        norms = np.linalg.norm(encode(tf.range(5)), axis=1)
        self.assertEqual(np.allclose(norms, 1.0), normalize)

  def test_config_rebuilds_it_for_inference(self):
    model = two_tower(normalize=True)
    config = json.loads(json.dumps(model.get_config()))
    other = models.TwoTower.from_config(config)
    path = tf.train.Checkpoint(model=model).save(self.get_temp_dir())
    tf.train.Checkpoint(model=other).restore(path).expect_partial()
    self.assertTrue(other.normalize)
    for name in ("encode_queries", "encode_candidates"):
      self.assertAllEqual(
        getattr(model, name)(tf.range(7)), getattr(other, name)(tf.range(7))
      )
    with self.assertRaisesRegex(ValueError, "built for inference"):
      other.compute_loss(BATCH)
