"""Describes a data directory in sentences."""

from __future__ import annotations

from xir_tfrs.data import errors
from xir_tfrs.data import schema as schema_lib

# A feature with at most this many tokens, or with tokens for at most this share
# of the rows, may be a category.
_MANY_TOKENS, _NEARLY_ALL = 100, 0.8
# Messages for `Schema.warnings`.
_WARNINGS = {
  "duplicate_pairs": "{n} rows repeat a pair of user and item; one row per pair"
  " is kept, see --repeats, or all with --keep_repeats",
  "rows_tied_in_time": "{n} rows ({of_followers:.1%} of those that follow"
  " another row of their user) have the time of the previous row: a history of"
  " strictly earlier rows leaves that row out",
  "repeated_pairs_in_train_and_validation": "{n} pairs of the validation split"
  " are in train too: a ranking that leaves out seen items cannot find them",
  "repeated_pairs_in_train_and_test": "{n} pairs of the test split are in train"
  " too: a ranking that leaves out seen items cannot find them",
  "repeated_pairs_in_validation_and_test": "{n} pairs of the test split are in"
  " validation too: a ranking that leaves out seen items cannot find"
  " them",
  "blank_lines": "{n} lines are blank and were skipped",
  "comment_lines": "{n} lines start with # and were skipped",
  "rows_with_ids_like_missing": "{n} rows have an id such as nan or NULL, which"
  " counts as an ordinary id: if it means a missing id, drop these rows",
  "ids_alike": "{n} ids differ from another only by spaces or by the Unicode"
  " form of their accents, and count as different users or items: write them"
  " alike if they are the same",
  "empty_files": "{n} files hold no rows",
  "rows_without_user": "{n} rows have no user: --missing_user {missing_user}",
  "rows_of_other_events": "{n} rows have events that --events does not name"
  " and were left out",
  "users_without_items": "{n} lines name a user without items and were skipped",
  "last_line_without_newline": "{n} files do not end with a newline; check that"
  " their last line is complete",
  "rows_below_min_rating": "{n} rows are rated below --min_rating and were left"
  " out",
  "users_in_no_split": "{n} of {users} users have no rows: only the user file"
  " lists them, or all of their rows were left out",
  "users_without_training_rows": "{n} of {users} users have validation or test"
  " rows but no training rows: a model cannot learn about them",
  "items_without_training_rows": "{n} of {items} items have no training row,"
  " and {held_out} of them have validation or test rows: a model can only use"
  " their side features",
  "items_only_held_out": "",  # Part of the previous sentence.
  "users_without_features": "{n} of {users} users are not in the user file:"
  " their features are missing",
  "items_without_features": "{n} of {items} items are not in the item file:"
  " their features are missing",
  "items_without_title": "{n} of {items} items have no title: programs show"
  " only their ids",
  "rare_tokens": "{n} tokens are in fewer rows than --min_token_count and"
  " count as unknown",
}


def text(schema: schema_lib.Schema, seconds: float) -> str:
  """Returns the summary and the warnings."""
  rows = sum(schema.rows.values())
  read = rows + sum(
    schema.warnings.get(name, 0)
    for name in (
      "duplicate_pairs",
      "rows_below_min_rating",
      "rows_of_other_events",
    )
  )
  leaks = {name: n for name, n in schema.leakage.items() if n}
  lines = [
    f"{schema.name}: {schema.num_queries:,} users,"
    f" {schema.num_candidates:,} items, {rows:,} interactions",
    *_split(schema),
  ]
  if leaks:
    found = ", ".join(f"{name} {n:,}" for name, n in leaks.items())
    lines.append(f"LEAKAGE: {found}")
  elif schema.leakage:
    lines.append(f"leakage: none in {len(schema.leakage)} checks")
  for table, found in (
    ("user", schema.query_features),
    ("item", schema.candidate_features),
  ):
    if found:
      described = ", ".join(_describe(feature) for feature in found)
      lines.append(f"{table} features: {described}")
  if schema.item_title is not None:
    lines.append(f"item titles: {schema.item_title}")
  if ignored := schema.source.options.get("ignored_columns"):
    lines.append(f"ignored columns: {', '.join(ignored)}")
  lines += [
    f"warning: {_warning(schema, name, n)}"
    for name, n in schema.warnings.items()
    if n and _WARNINGS.get(name, name)
  ]
  lines += _like_ids(schema)
  lines.append(f"{seconds:.1f} s, {read / max(seconds, 1e-9):,.0f} rows/s")
  return "\n".join(lines)


def following(schema: schema_lib.Schema, output: str) -> str:
  """Returns the next command."""
  run = f"runs/{schema.name}"
  return f"next: {errors.command('train', data=output, model_dir=run)}"


def _split(schema: schema_lib.Schema) -> list[str]:
  split, rows = schema.split, schema.rows
  lines = [
    f"split {split.kind}: "
    + ", ".join(f"{name} {n:,}" for name, n in rows.items())
  ]
  if split.validation_fraction and rows["validation"]:
    lines[0] += (
      f" (a share of {split.validation_fraction:g} of the rows that are not"
      " test; --validation_fraction 0 for none)"
    )
  reason = ", because no user has enough rows"
  if split.kind == "given":
    reason = ", because none are given"
  asks = split.kind in ("leave_last", "given")
  for name, share, without in (
    ("validation", split.validation_fraction, "training cannot stop early"),
    ("test", split.test_fraction, "the model cannot be evaluated"),
  ):
    if (asks or share) and not rows[name]:
      lines.append(f"warning: no {name} rows{reason}: {without}")
  if split.kind == "temporal" and not split.validation_fraction:
    lines.append(
      "hint: no validation rows, so training cannot stop early and tune cannot"
      " choose: --validation_fraction 0.1 makes some"
    )
  return lines


def _like_ids(schema: schema_lib.Schema) -> list[str]:
  """Warns of tokens that are different for nearly every row."""
  return [
    f"warning: {feature.name} is another token for nearly every {side}, and"
    f" tells no more than its id: --{side}_features {feature.name}:text takes"
    f" its words{more}"
    for side, features, rows, more in (
      ("user", schema.query_features, schema.num_queries, ""),
      (
        "item",
        schema.candidate_features,
        schema.num_candidates,
        ", and --item_title shows it",
      ),
    )
    for feature in features
    if feature.kind == "token"
    and len(feature.vocabulary) > max(_MANY_TOKENS, _NEARLY_ALL * rows)
  ]


def _warning(schema: schema_lib.Schema, name: str, n: int) -> str:
  followers = sum(schema.rows.values()) - schema.num_queries
  followers += schema.warnings.get("users_in_no_split", 0)
  return _WARNINGS.get(name, name + " {n}").format(
    n=f"{n:,}",
    missing_user=schema.source.options.get("missing_user"),
    held_out=f"{schema.warnings.get('items_only_held_out', 0):,}",
    of_followers=n / max(followers, 1),
    users=f"{schema.num_queries:,}",
    items=f"{schema.num_candidates:,}",
  )


def _describe(feature: schema_lib.FeatureSchema) -> str:
  parts = [feature.kind]
  if feature.is_token:
    parts.append(f"{len(feature.vocabulary)} tokens")
  if feature.num_buckets is not None:
    parts.append(f"words hashed to {feature.num_buckets} codes")
  if feature.separator is not None:
    parts.append(f"split at {feature.separator!r}")
  return f"{feature.name} ({', '.join(parts)})"
