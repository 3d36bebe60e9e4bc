"""Converts raw interactions to a data directory: both passes and tables."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.preparation import (
  features,
  passes,
  sessions,
  spill,
  vocabulary,
)
from pipelines.preparation.config import TEXT_BUCKETS, PrepareConfig
from pipelines.readers import source as source_lib
from pipelines.readers import sources
from xir_tfrs.data import errors, table_files
from xir_tfrs.data import schema as schema_lib
from xir_tfrs.data.files import addresses, side_tables

Convert = Callable[
  [PrepareConfig, source_lib.Source, pathlib.Path], schema_lib.Schema
]


def make(config: PrepareConfig, write: Convert) -> schema_lib.Schema:
  """Writes the data directory `config.output`.

  Args:
    config: The settings.
    write: Reads the source and writes everything except schema.json into the
      given directory.
  """
  config = config.resolved()
  output = pathlib.Path(config.output)
  schema_lib.check_output(output, config.overwrite)
  source = sources.open_source(config.input)
  if config.kept_repeats in ("sum", "max") and not source.has_weights:
    raise errors.DataError(
      f"--repeats {config.repeats} needs weights; name them with"
      " --weight_column, or give events weights with --events",
      path=source.name,
    )
  if source.read_as:
    print(source.read_as)
  if config.split == "temporal" and not source.has_times:
    raise errors.DataError(
      "--split temporal needs times; name the column with --time_column",
      path=source.name,
    )
  with schema_lib.new_directory(output, config.overwrite) as directory:
    schema = write(config, source, directory).with_hashes(directory)
    schema.save(directory)
  return schema


def convert(
  config: PrepareConfig, source: source_lib.Source, directory: pathlib.Path
) -> schema_lib.Schema:
  """Reads rows block by block and writes them."""
  warnings: collections.Counter[str] = collections.Counter()
  ids = passes.Ids(
    vocabulary.Vocabulary(),
    vocabulary.Vocabulary(),
    vocabulary.dense_ids(config, source, "user"),
    vocabulary.dense_ids(config, source, "item"),
  )
  buckets = spill.Buckets(
    directory / "spill",
    bucket_count(config, source),
    row_dtype(source),
  )
  # Read before the rows, so that a broken table is reported early.
  user_side, item_side = side_tables_of(config, source)
  passes.spill_rows(
    source, buckets, ids, config.input.columns.min_rating, warnings
  )
  warnings.update(source.warnings)
  if config.session_seconds:
    ids = dataclasses.replace(
      ids,
      users=sessions.divide(buckets, ids.users, source, config.session_seconds),
    )
  users = table(ids.users, ids.dense_users, user_side, source.name)
  items = table(ids.items, ids.dense_items, item_side, source.name)
  if source.roles is not None and source.roles.title is not None:
    items = items.with_titles(ids.titles.of(len(items.ids)))
  arranged = passes.arrange(
    buckets,
    len(items.ids),
    users.permutation,
    items.permutation,
    config.kept_repeats,
  )
  written = passes.write_splits(
    directory,
    buckets,
    arranged.rows,
    len(users.ids),
    len(items.ids),
    config.row_split,
    config.seed,
  )
  (directory / "spill").rmdir()
  return finish(
    config,
    source,
    directory,
    users,
    items,
    written,
    arranged,
    warnings,
    source.files(),
  )


def finish(
  config: PrepareConfig,
  source: source_lib.Source,
  directory: pathlib.Path,
  users: Table,
  items: Table,
  written: passes.Written,
  arranged: passes.Arranged,
  warnings: Mapping[str, int],
  files: Sequence[source_lib.Fingerprint],
) -> schema_lib.Schema:
  """Writes the tables after the splits, and returns the schema.

  Args:
    config: The settings.
    source: The input.
    directory: The directory with the splits.
    users: The table of users.
    items: The table of items.
    written: The splits.
    arranged: Statistics of their rows.
    warnings: What reading skipped -> how often.
    files: Fingerprints of the input files, interactions first.
  """
  if not written.item_counts.any():
    num_rows = int(written.user_rows.sum())
    raise errors.DataError(
      f"none of the {num_rows} rows became a training row; use another"
      " --split, --test_fraction or --min_rating",
      path=source.name,
    )
  tables, shards = {}, {}
  for name, side, counts in (
    ("queries", users, written.user_counts),
    ("candidates", items, written.item_counts),
  ):
    encoded = tables[name] = _encode(side, config)
    shards[name] = table_files.write_table(
      directory,
      name,
      table_files.Table(side.ids, counts, encoded.columns, side.titles),
      encoded.features,
    )
  source.write_extras(directory, users.ids, items.ids)
  leakage = written.leakage
  warnings = {
    **warnings,
    "duplicate_pairs": arranged.dropped,
    "rows_tied_in_time": arranged.tied,
    **_table_warnings(written, **tables),
    **_odd_ids(users.ids, items.ids, written),
    "items_without_title": items.untitled,
  }
  if config.keep_repeats:
    # Repeats are not leaks, but matter for ranking unseen items.
    pairs = {name for name in leakage if name.startswith("pairs_")}
    warnings |= {f"repeated_{name}": leakage[name] for name in pairs}
    leakage = {name: leakage[name] for name in leakage if name not in pairs}
  return schema_lib.Schema(
    name=config.name or source.name,
    num_queries=len(users.ids),
    num_candidates=len(items.ids),
    rows={
      name: sum(s.rows for s in of_split)
      for name, of_split in written.shards.items()
    },
    shards={**written.shards, **shards},
    interaction_features=_interaction_features(row_dtype(source)),
    query_features=tables["queries"].features,
    candidate_features=tables["candidates"].features,
    item_title=None if items.titles is None else _title(config, source),
    source=schema_lib.Source(
      source.kind,
      _with_splits(files, source.splits),
      _options(config, source, (users.side, items.side)),
    ),
    split=config.row_split,
    leakage=leakage,
    warnings=dict(sorted(warnings.items())),
  )


def bucket_count(config: PrepareConfig, source: source_lib.Source) -> int:
  return config.num_buckets or spill.bucket_count(source.size)


def row_dtype(source: source_lib.Source) -> np.dtype:
  return spill.row_dtype(
    source.has_times, source.has_weights, bool(source.splits)
  )


@dataclasses.dataclass(frozen=True)
class Table:
  """Original ids by dense id, with their side table.

  Attributes:
    ids: Original ids by dense id.
    permutation: First-appearance code -> dense id; None if they are the same.
    side: Side features, or None.
    side_ids: Dense id of each row of `side`.
    titles: [rows] object array of str, by dense id; None without titles.
  """

  ids: list[str]
  permutation: np.ndarray | None
  side: side_tables.SideTable | None
  side_ids: np.ndarray
  titles: np.ndarray | None = None

  def with_titles(self, titles: np.ndarray) -> Table:
    """Returns the table with titles, given by first-appearance code."""
    if self.permutation is not None:
      titles, by_code = np.empty_like(titles), titles
      titles[self.permutation] = by_code
    return dataclasses.replace(self, titles=titles)

  @property
  def untitled(self) -> int:
    """Number of ids without a title, if there are titles."""
    return 0 if self.titles is None else int((self.titles == "").sum())


def table(
  vocab: vocabulary.Vocabulary,
  dense: vocabulary.DenseIds | None,
  side: side_tables.SideTable | None,
  path: str,
) -> Table:
  """Builds a table; appends the ids that only the side table has."""
  side_ids = vocab.add(side.ids if side else ())
  ids = vocab.ids()
  if dense is None:
    made = Table(ids, None, side, side_ids)
  else:
    permutation = dense.permutation(ids, path)
    ordered = np.empty(len(ids), object)
    ordered[permutation] = ids
    made = Table(ordered.tolist(), permutation, side, permutation[side_ids])
  if side is None or side.titles is None:
    return made
  titles = np.full(len(ids), "", object)
  titles[side_ids] = side.titles.to_numpy(zero_copy_only=False)
  return made.with_titles(titles)


def side_tables_of(
  config: PrepareConfig, source: source_lib.Source
) -> source_lib.SideTables:
  """Reads the side tables of users and items."""
  found = source.side_tables()
  kinds = {kind for side in found if side for kind in side.kinds.values()}
  if config.text_buckets != TEXT_BUCKETS and "text" not in kinds:
    raise errors.DataError(
      "--text_buckets is for features of kind text, and there are none; name"
      " one, as in --item_features title:text, or omit the flag"
    )
  return found


def _encode(rows: Table, config: PrepareConfig) -> features.Encoded:
  return features.encode(
    rows.side,
    rows.side_ids,
    len(rows.ids),
    config.min_token_count,
    config.text_buckets,
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
    "items_only_held_out": int(
      ((written.item_counts == 0) & (written.item_rows > 0)).sum()
    ),
    "users_without_features": queries.missing_rows,
    "items_without_features": candidates.missing_rows,
    "rare_tokens": queries.rare_tokens + candidates.rare_tokens,
  }


# Texts that programs write for a missing value.
_LIKE_MISSING = ("nan", "none", "null", "na", "n/a", "<na>", "nil", "undefined")


def _odd_ids(
  users: list[str], items: list[str], written: passes.Written
) -> dict[str, int]:
  """Counts suspicious ids."""
  like_missing = alike = 0
  for ids, rows in ((users, written.user_rows), (items, written.item_rows)):
    array = pa.array(ids, pa.string())
    plain = pc.utf8_trim_whitespace(array)
    words = pc.is_in(pc.utf8_lower(plain), value_set=pa.array(_LIKE_MISSING))
    like_missing += int(rows[words.to_numpy(zero_copy_only=False)].sum())
    # An accent may be a character of its own, as in names of files on macOS.
    shown = pc.utf8_normalize(plain, "NFC")
    alike += len(array) - pc.count_distinct(shown).as_py()
  return {"rows_with_ids_like_missing": like_missing, "ids_alike": alike}


def _interaction_features(
  row_dtype: np.dtype,
) -> tuple[schema_lib.InteractionFeature, ...]:
  dtypes = {"query_id": "int64", "candidate_id": "int64", "event": "int64"}
  if "time" in row_dtype.names:
    dtypes["timestamp"] = "int64"
  if "weight" in row_dtype.names:
    dtypes["sample_weight"] = "float32"
  return tuple(schema_lib.InteractionFeature(*f) for f in dtypes.items())


def _with_splits(
  files: Sequence[source_lib.Fingerprint], splits: Sequence[str]
) -> tuple[source_lib.Fingerprint, ...]:
  """Adds its split to each file of interactions, if splits are given."""
  of_file = itertools.zip_longest(files, splits)
  return tuple({**f, "split": s} if s else f for f, s in of_file)


def _title(config: PrepareConfig, source: source_lib.Source) -> str | None:
  """The name of the title column in its file."""
  found = source.roles.title if source.roles else None
  return found or config.input.columns.item_title


def _options(
  config: PrepareConfig,
  source: source_lib.Source,
  side: source_lib.SideTables,
) -> dict[str, object]:
  """The settings other than files and the split."""
  if config.input.format == "synthetic":
    options = dataclasses.asdict(config.input.synthetic)
  else:
    options = dataclasses.asdict(config.input.columns)
    options = {  # In the form that JSON returns.
      name: list(value) if isinstance(value, tuple) else value
      for name, value in options.items()
    }
    if source.roles is not None:
      for name in ("user", "item", "time", "rating", "event"):
        options[name] = getattr(source.roles, name)
    options["read_as"] = source.read_as
  return {
    **options,
    "dense_ids": config.dense_ids,
    "keep_repeats": config.keep_repeats,
    "repeats": config.kept_repeats,
    "session_gap": config.session_gap,
    "min_token_count": config.min_token_count,
    "text_buckets": config.text_buckets,
    "seed_of_row_order": config.seed,
    "ignored_columns": [
      *source.ignored,
      *(
        f"{column} (of {addresses.name(table.places.path)})"
        for table in side
        if table is not None
        for column in table.ignored
      ),
    ],
  }
