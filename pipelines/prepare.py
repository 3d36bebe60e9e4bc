"""Raw interactions to TFRecords, a candidate table and schema.json.

    python -m pipelines.prepare --input ratings.csv --output data/ratings
    python -m pipelines.prepare --format synthetic --output data/synthetic

Reads files once, in chunks; memory is bounded by the tables of users and
items, not by the interactions, which go through files beside --output. The
output appears complete or not at all. docs/own_data.md is the guide.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from absl import app, flags

from pipelines.preparation import features, passes, spill, vocabulary
from pipelines.readers import inputs, sources
from pipelines.readers import source as source_lib
from xir_tfrs.data import directory as directories
from xir_tfrs.data import errors
from xir_tfrs.data import schema as schema_lib
from xir_tfrs.data import tables as tables_lib
from xir_tfrs.data.files import side_tables

SPLIT_KINDS = ("random", "temporal", "leave_last")


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
  """What to read, how to divide it, and where to write it.

  Attributes:
    input: the raw data.
    output: the data directory to make.
    name: name of the data set; None takes the name of the file.
    split: "random" (a share of each user's rows), "temporal" (one cut in time
      for all) or "leave_last" (each user's last row).
    test_fraction: share of test rows; not for "leave_last".
    validation_fraction: share of the other rows that validate; not for
      "leave_last".
    seed: of the random split and of the order of training rows.
    dense_ids: take ids that are 0 ... n - 1 already as they are.
    min_token_count: tokens in fewer rows of a side table become unknown.
    overwrite: replace a data directory at `output`.
    num_buckets: buckets of the second pass; None goes by the input size.
  """

  input: inputs.Input
  output: str | os.PathLike[str]
  name: str | None = None
  split: str = "random"
  test_fraction: float = 0.2
  validation_fraction: float = 0.0
  seed: int = 10
  dense_ids: bool = False
  min_token_count: int = 1
  overwrite: bool = False
  num_buckets: int | None = None

  def __post_init__(self):
    if self.split not in SPLIT_KINDS:
      raise ValueError(
        f"`split` must be one of {', '.join(SPLIT_KINDS)}. Received:"
        f" {self.split!r}."
      )
    for name in ("test_fraction", "validation_fraction"):
      if not 0 <= getattr(self, name) < 1:
        raise ValueError(
          f"`{name}` must be at least 0 and below 1. Received: `{name}` ="
          f" {getattr(self, name)}."
        )
    if self.min_token_count < 1:
      raise ValueError(
        "`min_token_count` must be positive. Received: `min_token_count` ="
        f" {self.min_token_count}."
      )
    columns = self.input.columns
    if (columns.rating is None) != (columns.min_rating is None):
      raise ValueError(
        "`rating_column` and `min_rating` go together: ratings only choose"
        f" rows. Received: {columns.rating!r} and {columns.min_rating}."
      )


def prepare(config: PrepareConfig) -> schema_lib.Schema:
  """Makes the data directory `config.output`; `errors.DataError` if it cannot.

  Returns:
    The schema of the directory.
  """
  return make(config, _convert)


Convert = Callable[
  [PrepareConfig, source_lib.Source, pathlib.Path], schema_lib.Schema
]


def make(config: PrepareConfig, convert: Convert) -> schema_lib.Schema:
  """Makes `config.output` of the shards that `convert` writes.

  Args:
    config: what to make.
    convert: reads the source and writes everything but schema.json into the
      directory it is given.
  """
  output = pathlib.Path(config.output)
  directories.check_output(output, config.overwrite)
  source = sources.open_source(config.input)
  if config.split == "temporal" and not source.has_times:
    raise errors.DataError(
      "--split temporal needs times; name the column with --time_column",
      path=source.name,
    )
  with directories.new_directory(output, config.overwrite) as directory:
    schema = convert(config, source, directory)
    schema.save(directory)
  return schema


def _convert(
  config: PrepareConfig, source: source_lib.Source, directory: pathlib.Path
) -> schema_lib.Schema:
  """Reads the rows, block after block, and writes them."""
  columns = config.input.columns
  warnings: collections.Counter[str] = collections.Counter()
  ids = passes.Ids(
    vocabulary.Vocabulary(),
    vocabulary.Vocabulary(),
    vocabulary.DenseIds(columns.user) if config.dense_ids else None,
    vocabulary.DenseIds(columns.item) if config.dense_ids else None,
  )
  buckets = spill.Buckets(
    directory / "spill",
    bucket_count(config, source),
    row_dtype(config, source),
  )
  passes.spill_rows(source, buckets, ids, columns.min_rating, warnings)
  warnings.update(source.warnings)
  user_side, item_side = source.side_tables()
  users = table(ids.users, ids.dense_users, user_side, source.name)
  items = table(ids.items, ids.dense_items, item_side, source.name)
  num_rows, warnings["duplicate_pairs"] = passes.keep_distinct(
    buckets, len(items.ids), users.permutation, items.permutation
  )
  written = passes.write_splits(
    directory,
    buckets,
    num_rows,
    len(users.ids),
    len(items.ids),
    split_of(config),
  )
  (directory / "spill").rmdir()
  return finish(
    config, source, directory, users, items, written, warnings, source.files()
  )


def finish(
  config: PrepareConfig,
  source: source_lib.Source,
  directory: pathlib.Path,
  users: Table,
  items: Table,
  written: passes.Written,
  warnings: Mapping[str, int],
  files: Sequence[dict[str, str | int]],
) -> schema_lib.Schema:
  """Writes the tables, once the splits are written; the schema of all.

  Args:
    config: what was asked for.
    source: what was read.
    directory: where the splits are.
    users, items: the tables.
    written: the splits.
    warnings: what reading and sorting skipped -> how often.
    files: fingerprints of what was read.
  """
  if not written.item_counts.any():
    num_rows = int(written.user_rows.sum())
    raise errors.DataError(
      f"none of the {num_rows} rows became a training row; use another"
      " --split, --test_fraction or --min_rating",
      path=source.name,
    )
  tables = {
    "queries": _encode(users, config.min_token_count),
    "candidates": _encode(items, config.min_token_count),
  }
  counts = {"queries": written.user_counts, "candidates": written.item_counts}
  shards = {
    name: tables_lib.write_table(
      directory,
      name,
      tables_lib.Table(of_side.ids, counts[name], encoded.columns),
      encoded.features,
    )
    for (name, encoded), of_side in zip(
      tables.items(), (users, items), strict=True
    )
  }
  source.write_extras(directory, users.ids, items.ids)
  warnings = {**warnings, **_table_warnings(written, **tables)}
  return schema_lib.Schema(
    name=config.name or source.name,
    num_queries=len(users.ids),
    num_candidates=len(items.ids),
    rows={
      name: sum(s.rows for s in of_split)
      for name, of_split in written.shards.items()
    },
    shards={**written.shards, **shards},
    interaction_features=_interaction_features(row_dtype(config, source)),
    query_features=tables["queries"].features,
    candidate_features=tables["candidates"].features,
    source=schema_lib.Source(
      source.kind, tuple(files), _options(config, source)
    ),
    split=split_of(config),
    leakage=written.leakage,
    warnings=dict(sorted(warnings.items())),
  )


def bucket_count(config: PrepareConfig, source: source_lib.Source) -> int:
  return config.num_buckets or spill.bucket_count(source.size)


def row_dtype(config: PrepareConfig, source: source_lib.Source) -> np.dtype:
  has_weights = config.input.columns.weight is not None
  return spill.row_dtype(source.has_times, has_weights)


@dataclasses.dataclass(frozen=True)
class Table:
  """Original ids by dense id, and the side table that goes with them.

  Attributes:
    ids: original ids by dense id.
    permutation: first-appearance code -> dense id; None if they are the same.
    side: side features, or None.
    side_ids: dense id of each row of `side`.
  """

  ids: list[str]
  permutation: np.ndarray | None
  side: side_tables.SideTable | None
  side_ids: np.ndarray


def table(
  vocab: vocabulary.Vocabulary,
  dense: vocabulary.DenseIds | None,
  side: side_tables.SideTable | None,
  path: str,
) -> Table:
  """Appends the ids that occur only in the side table."""
  side_ids = vocab.add(side.ids if side else ())
  ids = vocab.ids()
  if dense is None:
    return Table(ids, None, side, side_ids)
  permutation = dense.permutation(ids, path)
  ordered = np.empty(len(ids), object)
  ordered[permutation] = ids
  return Table(ordered.tolist(), permutation, side, permutation[side_ids])


def _encode(rows: Table, min_token_count: int) -> features.Encoded:
  return features.encode(
    rows.side, rows.side_ids, len(rows.ids), min_token_count
  )


def _table_warnings(
  written: passes.Written,
  queries: features.Encoded,
  candidates: features.Encoded,
) -> dict[str, int]:
  trained = written.user_counts > 0
  in_a_split = written.user_rows > 0
  return {
    "users_in_no_split": int((~in_a_split).sum()),
    "users_without_training_rows": int((in_a_split & ~trained).sum()),
    "items_without_training_rows": int((written.item_counts == 0).sum()),
    "users_without_features": queries.missing_rows,
    "items_without_features": candidates.missing_rows,
    "rare_tokens": queries.rare_tokens + candidates.rare_tokens,
  }


def split_of(config: PrepareConfig) -> schema_lib.Split:
  """Only what the split depends on."""
  if config.split == "leave_last":
    return schema_lib.Split("leave_last")
  return schema_lib.Split(
    config.split,
    validation_fraction=config.validation_fraction,
    test_fraction=config.test_fraction,
    seed=config.seed if config.split == "random" else None,
  )


def _interaction_features(
  row_dtype: np.dtype,
) -> tuple[schema_lib.InteractionFeature, ...]:
  dtypes = {"query_id": "int64", "candidate_id": "int64"}
  if "time" in row_dtype.names:
    dtypes["timestamp"] = "int64"
  if "weight" in row_dtype.names:
    dtypes["sample_weight"] = "float32"
  return tuple(schema_lib.InteractionFeature(*f) for f in dtypes.items())


def _options(
  config: PrepareConfig, source: source_lib.Source
) -> dict[str, object]:
  """What was asked for other than files and the split."""
  if config.input.format == "synthetic":
    options = dataclasses.asdict(config.input.synthetic)
  else:
    options = dataclasses.asdict(config.input.columns)
    for side in ("user_features", "item_features"):
      options[side] = list(options[side])  # As JSON gives it back.
  return {
    **options,
    "dense_ids": config.dense_ids,
    "min_token_count": config.min_token_count,
    "seed_of_row_order": config.seed,
    "ignored_columns": list(source.ignored),
  }


def summary(
  schema: schema_lib.Schema,
  output: str | os.PathLike[str],
  seconds: float,
) -> str:
  """What was made, what to know about it, and what to run next."""
  rows = sum(schema.rows.values())
  read = rows + sum(
    schema.warnings.get(name, 0)
    for name in ("duplicate_pairs", "rows_below_min_rating")
  )
  leaks = {name: n for name, n in schema.leakage.items() if n}
  lines = [
    f"{schema.name}: {schema.num_queries:,} users,"
    f" {schema.num_candidates:,} items, {rows:,} interactions",
    f"split {schema.split.kind}: "
    + ", ".join(f"{name} {n:,}" for name, n in schema.rows.items()),
    f"leakage: none in {len(schema.leakage)} checks"
    if not leaks
    else "LEAKAGE: " + ", ".join(f"{k} {v:,}" for k, v in leaks.items()),
  ]
  for table, found in (
    ("user", schema.query_features),
    ("item", schema.candidate_features),
  ):
    if found:
      described = ", ".join(_describe(feature) for feature in found)
      lines.append(f"{table} features: {described}")
  if ignored := schema.source.options.get("ignored_columns"):
    lines.append(f"ignored columns: {', '.join(ignored)}")
  lines += [
    f"warning: {name} {n:,}" for name, n in schema.warnings.items() if n
  ]
  lines += [
    f"{seconds:.1f} s, {read / max(seconds, 1e-9):,.0f} rows/s",
    f"next: python -m pipelines.train --data {output} --model_dir MODEL_DIR",
  ]
  return "\n".join(lines)


def _describe(feature: schema_lib.FeatureSchema) -> str:
  if feature.is_token:
    return f"{feature.name} ({feature.kind}, {len(feature.vocabulary)} tokens)"
  return f"{feature.name} ({feature.kind})"


def define_flags() -> Callable[[], PrepareConfig]:
  """Defines the flags; returns what makes a config of their values.

  Not at import: `pipelines.quickstart` imports this module and has flags of
  the same names.
  """
  default = inputs.SyntheticConfig()
  holders = [
    flags.DEFINE_multi_string(
      "input",
      [],
      "file, pattern or folder; may be repeated. The name of the data set"
      " with --format tfds",
    ),
    flags.DEFINE_string(
      "output", None, "data directory to make", required=True
    ),
    flags.DEFINE_enum(
      "format",
      "auto",
      inputs.FORMATS,
      "kind of input; auto goes by the ending of the file name",
    ),
    flags.DEFINE_string(
      "name", None, "name of the data set; else that of the file"
    ),
    flags.DEFINE_string("user_column", "user_id", "column of user ids"),
    flags.DEFINE_string("item_column", "item_id", "column of item ids"),
    flags.DEFINE_string(
      "time_column",
      None,
      "column of integer times; else 'timestamp' where there is one",
    ),
    flags.DEFINE_string("weight_column", None, "column kept as sample_weight"),
    flags.DEFINE_string(
      "rating_column", None, "column compared with --min_rating"
    ),
    flags.DEFINE_float("min_rating", None, "leave out rows rated below it"),
    flags.DEFINE_string("user_file", None, "side features of users"),
    flags.DEFINE_string("item_file", None, "side features of items"),
    flags.DEFINE_list(
      "user_features",
      [],
      "columns of the user file to keep, as NAME or NAME:KIND",
    ),
    flags.DEFINE_list(
      "item_features",
      [],
      "columns of the item file to keep, as NAME or NAME:KIND",
    ),
    flags.DEFINE_string("separator", " ", "between the values of a sequence"),
    flags.DEFINE_integer("min_token_count", 1, "rarer tokens become unknown"),
    flags.DEFINE_bool(
      "dense_ids", False, "ids are 0 ... n - 1 already: keep them"
    ),
    flags.DEFINE_enum("split", "random", SPLIT_KINDS, "how rows are divided"),
    flags.DEFINE_float("test_fraction", 0.2, "share of test rows"),
    flags.DEFINE_float(
      "validation_fraction", 0.0, "share of the other rows that validate"
    ),
    flags.DEFINE_integer(
      "seed", 10, "of the random split and of the row order"
    ),
    flags.DEFINE_bool(
      "overwrite", False, "replace a data directory at --output"
    ),
    flags.DEFINE_string("data_dir", None, "folder of TFDS data sets"),
    flags.DEFINE_string(
      "tfds_split", "all", "TFDS splits to read, joined by +"
    ),
    flags.DEFINE_integer(
      "synthetic_users", default.num_users, "users to generate"
    ),
    flags.DEFINE_integer(
      "synthetic_items", default.num_items, "items to generate"
    ),
    flags.DEFINE_integer(
      "synthetic_interactions",
      default.num_interactions,
      "interactions to generate, about",
    ),
    flags.DEFINE_integer(
      "synthetic_seed", default.seed, "of the generated data"
    ),
  ]

  def config() -> PrepareConfig:
    value = {holder.name: holder.value for holder in holders}
    return PrepareConfig(
      input=inputs.Input(
        paths=tuple(value["input"]),
        format=value["format"],
        columns=inputs.Columns(
          user=value["user_column"],
          item=value["item_column"],
          time=value["time_column"],
          weight=value["weight_column"],
          rating=value["rating_column"],
          min_rating=value["min_rating"],
          user_features=tuple(value["user_features"]),
          item_features=tuple(value["item_features"]),
          separator=value["separator"],
        ),
        user_file=value["user_file"],
        item_file=value["item_file"],
        data_dir=value["data_dir"],
        tfds_split=value["tfds_split"],
        synthetic=inputs.SyntheticConfig(
          num_users=value["synthetic_users"],
          num_items=value["synthetic_items"],
          num_interactions=value["synthetic_interactions"],
          seed=value["synthetic_seed"],
        ),
      ),
      **{
        name: value[name]
        for name in (
          "output",
          "name",
          "split",
          "test_fraction",
          "validation_fraction",
          "seed",
          "dense_ids",
          "min_token_count",
          "overwrite",
        )
      },
    )

  return config


def main(argv: list[str], make_config: Callable[[], PrepareConfig]) -> int:
  """Runs `prepare`; returns the exit status."""

  def config() -> PrepareConfig:
    if len(argv) > 1:
      raise ValueError(
        f"{argv[1]!r} belongs to no flag; repeat --input for more files."
      )
    return make_config()

  return run("prepare", config, prepare)


def run(
  program: str,
  make_config: Callable[[], PrepareConfig],
  make_data: Callable[[PrepareConfig], schema_lib.Schema],
) -> int:
  """Makes a data directory, and prints what it is or the error.

  Args:
    program: who says so.
    make_config: raises ValueError for flags that cannot be.
    make_data: `prepare`, or one that does the same.

  Returns:
    The exit status.
  """
  # SIGTERM must unwind the stack too, so that nothing half-written remains.
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
  start = time.monotonic()
  try:
    config = make_config()
  except ValueError as e:
    print(f"{program}: {e}", file=sys.stderr)
    return 2
  try:
    schema = make_data(config)
  except (errors.DataError, OSError) as e:
    print(f"{program}: {e}", file=sys.stderr)
    return 1
  except KeyboardInterrupt:
    print(f"{program}: interrupted; nothing was written", file=sys.stderr)
    return 130
  print(summary(schema, config.output, time.monotonic() - start))
  return 0


if __name__ == "__main__":
  flags_to_config = define_flags()
  app.run(lambda argv: main(argv, flags_to_config))
