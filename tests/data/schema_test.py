"""schema.json: round trips and refused content."""

import hashlib
import json

import msgspec
import pytest

from xir_tfrs import types
from xir_tfrs.data import errors, schema


def _schema():
  return schema.Schema(
    name="tiny",
    num_queries=3,
    num_candidates=2,
    rows={"train": 4, "validation": 1, "test": 2},
    shards={
      "train": (schema.Shard("train-00000-of-00001.tfrecord", 4),),
      "queries": (schema.Shard("queries-00000-of-00001.tfrecord", 3),),
    },
    interaction_features=(
      schema.InteractionFeature("query_id", "int64"),
      schema.InteractionFeature("candidate_id", "int64"),
      schema.InteractionFeature("timestamp", "int64"),
    ),
    query_features=(
      schema.FeatureSchema("age", "float", mean=(3.5,), std=(2.0,)),
    ),
    candidate_features=(
      schema.FeatureSchema("brand", "token", vocabulary=("", "é", "b")),
      schema.FeatureSchema("tags", "token_seq", vocabulary=("", "x")),
      schema.FeatureSchema(
        "image", "float_seq", length=2, mean=(0.0, 1.0), std=(1.0, 2.0)
      ),
    ),
    source=schema.Source(
      "atomic", ({"path": "tiny.inter", "bytes": 1, "sha256": "0"},), {"a": 1}
    ),
    split=schema.Split("random", 0.1, 0.2, 10),
    leakage={"pairs_in_train_and_test": 0},
    warnings={"duplicate_pairs": 2},
  )


def test_round_trip(tmp_path):
  _schema().save(tmp_path)
  assert schema.Schema.load(tmp_path) == _schema()
  assert [p.name for p in tmp_path.iterdir()] == ["schema.json"]


def test_json_is_the_documented_one(tmp_path):
  _schema().save(tmp_path)
  fields = json.loads((tmp_path / "schema.json").read_text(encoding="utf-8"))
  assert fields["format"] == 1
  assert fields["query_features"] == [
    {"name": "age", "kind": "float", "mean": [3.5], "std": [2.0]}
  ]
  assert fields["candidate_features"][1] == {
    "name": "tags",
    "kind": "token_seq",
    "vocabulary": ["", "x"],
  }
  assert fields["shards"]["train"] == [
    {"file": "train-00000-of-00001.tfrecord", "rows": 4}
  ]
  assert fields["split"] == {
    "kind": "random",
    "validation_fraction": 0.1,
    "test_fraction": 0.2,
    "seed": 10,
  }


def test_feature_of_the_library():
  brand, tags, image = (f.feature() for f in _schema().candidate_features)
  assert (brand.kind, brand.vocabulary_size) == ("token", 3)
  assert (tags.kind, tags.vocabulary_size) == ("token_seq", 2)
  assert (image.length, image.mean, image.std) == (2, (0.0, 1.0), (1.0, 2.0))


def test_minimal_json_of_a_users_own(tmp_path):
  (tmp_path / "schema.json").write_text(
    '{"format": 1, "name": "mine", "num_queries": 1, "num_candidates": 1,'
    ' "rows": {"train": 1}, "shards": {"train": [{"file": "a", "rows": 1}]}}'
  )
  mine = schema.Schema.load(tmp_path)
  assert mine.rows == {"train": 1, "validation": 0, "test": 0}
  assert [f.name for f in mine.interaction_features] == [
    "query_id",
    "candidate_id",
  ]


START = (
  '{"format": 1, "name": "a", "num_queries": 1, "num_candidates": 1,'
  ' "rows": {}, '
)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    (
      None,
      "not found, so this is not a finished data directory; if it was moved",
    ),
    ("{", "not valid JSON"),
    ('{"format": 2}', "field format: this version reads format 1, the file"),
    ('{"format": 1}', "missing required field `name`"),
    ('{"format": 1, "shards": {}, "rows": {}, "x": 1}', "unknown field `x`"),
    ("[]", "Expected `object`, got `array`"),
    (
      START + '"shards": {"train": [{"file": "a", "rows": "1"}]}}',
      "field shards.train[0].rows: Expected `int`, got `str`",
    ),
    (
      START + '"shards": {"train": [{"file": "a", "rows": -1}]}}',
      "field shards.train[0].rows: Expected `int` >= 0",
    ),
    (
      START + '"shards": {}, "query_features": '
      '[{"name": "brand", "kind": "token", "vocabulary": ["a"]}]}',
      "field query_features[0]: feature 'brand': `vocabulary` must begin with",
    ),
    (
      START + '"shards": {}, "query_features": '
      '[{"name": "brand", "kind": "name"}]}',
      "field query_features[0].kind: Invalid enum value 'name'",
    ),
    (
      START + '"shards": {}, "query_features": '
      '[{"name": "price", "kind": "float", "mean": [1], "std": [0]}]}',
      "field query_features[0]: `std` of feature 'price' must be positive",
    ),
    (
      START + '"shards": {}, "query_features": '
      '[{"name": "brand", "kind": "token", "vocabulary": ["", "a", "a"]}]}',
      "field query_features[0]: feature 'brand': a token appears twice",
    ),
    (
      START + '"shards": {"trian": []}}',
      "`shards` must be among train, validation, test, queries, candidates",
    ),
    (
      START + '"shards": {"train": [{"file": "../a", "rows": 1}]}}',
      "field shards.train[0]: `file` must be a path in the directory",
    ),
    (
      START + '"shards": {}, "interaction_features": '
      '[{"name": "query_id", "dtype": "float32"}]}',
      "field interaction_features[0]: `dtype` of 'query_id' must be int64",
    ),
    (
      START + '"shards": {}, "candidate_features": '
      '[{"name": "count", "kind": "float", "mean": [1], "std": [1]}]}',
      "`candidate_features`: the name 'count' appears twice",
    ),
  ],
)
def test_invalid_schemas_are_refused(tmp_path, text, message):
  if text is not None:
    (tmp_path / "schema.json").write_text(text)
  with pytest.raises(errors.DataError, match="schema.json") as caught:
    schema.Schema.load(tmp_path)
  assert message in str(caught.value) and "prepare" in str(caught.value)


def test_the_hash_is_that_of_the_file(tmp_path):
  _schema().save(tmp_path)
  content = (tmp_path / "schema.json").read_bytes()
  loaded, sha256 = schema.Schema.load_hashed(tmp_path)
  assert loaded == _schema()
  assert sha256 == hashlib.sha256(content).hexdigest()


def test_a_vocabulary_begins_with_unknown():
  with pytest.raises(ValueError, match="must begin with ''"):
    schema.FeatureSchema("brand", "token", vocabulary=("a",))
  with pytest.raises(ValueError, match="needs `num_buckets`, and nothing else"):
    schema.FeatureSchema("brand", "text")
  with pytest.raises(ValueError, match="Received: 'name'"):
    schema.FeatureSchema("brand", "name")


def test_kinds_are_those_of_the_library():
  found = msgspec.inspect.type_info(schema.FeatureSchema).fields
  (kind,) = [field.type for field in found if field.name == "kind"]
  assert set(kind.values) == set(types.FEATURE_KINDS)
  with pytest.raises(ValueError, match="a float_seq needs a `length`"):
    schema.FeatureSchema("image", "float_seq", mean=(0.0,), std=(1.0,))


def test_error_message_names_what_is_known():
  error = errors.DataError("bad", path="a.csv", line=3, column="x")
  assert str(error) == "a.csv, line 3, column 'x': bad"
  assert str(errors.DataError("bad", path="a", row=2)) == "a, row 2: bad"
  assert str(errors.DataError("bad")) == "bad"
