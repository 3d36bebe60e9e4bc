"""Settings of the programs that write and use bundles, without TensorFlow."""

from __future__ import annotations

import dataclasses

from xir_tfrs.programs import settings
from xir_tfrs.serving import manifest

MAX_K = 10_000

# Settings of ScaNN that have no default.
SCANN_SETTINGS = (
  *("min_recall", "num_leaves", "num_leaves_to_search"),
  *("num_reorder", "exact_below"),
)

_ID_TYPES = ("string", "int64")


@dataclasses.dataclass(frozen=True, kw_only=True)
class IndexOptions(settings.Settings):
  """Settings of the indexes."""

  indexes: tuple[str, ...] = settings.setting(
    "Indexes to build.",
    manifest.INDEXES,
    flag="index",
    choices=manifest.INDEXES,
    section="Indexes",
  )
  target_recall: float = settings.setting(
    "Target recall@10 against exact search, for which ScaNN is tuned.",
    0.99,
    minimum=0,
    maximum=1,
  )
  min_recall: float | None = settings.setting(
    "Fail if recall@10 of ScaNN is below this. Default: --target_recall.",
    None,
    minimum=0,
    maximum=1,
  )
  num_leaves: int | None = settings.setting(
    "Partitions of ScaNN's tree. Default: by corpus size.", None, minimum=1
  )
  num_leaves_to_search: int | None = settings.setting(
    "Partitions scored for a query. Default: tuned.", None, minimum=1
  )
  num_reorder: int | None = settings.setting(
    "Candidates that are re-scored exactly. Default: tuned.", None, minimum=1
  )
  exact_below: int | None = settings.setting(
    "Corpora smaller than this are searched exactly. Default: 20,000.",
    None,
    minimum=0,
  )

  def __post_init__(self) -> None:
    super().__post_init__()
    if "scann" in self.indexes:
      return
    for name in ("target_recall", *SCANN_SETTINGS):
      if getattr(self, name) != getattr(IndexOptions, name):
        raise settings.SettingsError(
          f"--{name} is for ScaNN, but --index is {','.join(self.indexes)}."
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions(IndexOptions):
  """Settings of an export."""

  common = (
    *("data", "model_dir", "output", "overwrite", "index", "target_recall"),
    *("query_id_type", "candidate_id_type", "unknown_query"),
  )

  model_dir: str = settings.setting(
    "Directory made by xir-tfrs train.", section="The bundle"
  )
  data: str | None = settings.setting(
    "Directory made by xir-tfrs prepare. Default: that of the run.", None
  )
  output: str = settings.setting("Bundle to write.")
  overwrite: bool = settings.setting("Replace a bundle at --output.", False)
  query_id_type: str = settings.setting(
    "Type of query ids.", "string", choices=_ID_TYPES
  )
  candidate_id_type: str = settings.setting(
    "Type of candidate ids.", "string", choices=_ID_TYPES
  )
  unknown_query: str = settings.setting(
    "Answer to queries without training rows: popularity: the most popular "
    "candidates; tower: the tower's answer; features: the tower's answer if "
    "side features are given, else the most popular candidates.",
    "features",
    choices=manifest.UNKNOWN_QUERY,
  )
  unknown_candidates: str = settings.setting(
    "Whether to keep candidates with neither training rows nor side features "
    "in the indexes.",
    "leave_out",
    choices=("leave_out", "keep"),
  )
  scann_folder: bool = settings.setting(
    "Write ScaNN's own files in addition to its SavedModel.", True
  )
  max_k: int = settings.setting(
    "Maximum number of answers per query.", MAX_K, minimum=1
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RefreshOptions(settings.Settings):
  """Settings of a refresh."""

  bundle: str = settings.setting("Bundle to change.")
  items: str | None = settings.setting(
    "New and changed items: a file of any format that xir-tfrs prepare reads "
    "as --item_file.",
    None,
  )
  remove: str | None = settings.setting(
    "Text file of ids to remove, one per line.", None
  )
  output: str | None = settings.setting(
    "New bundle. Default: replaces the old one.", None
  )
  overwrite: bool = settings.setting(
    "Replace another bundle at --output.", False
  )
  id_column: str | None = settings.setting(
    "Column of ids in --items. Default: as the bundle's data call it, else "
    "the first :token column, else candidate_id, item_id or id.",
    None,
  )
  item_title: str | None = settings.setting(
    "Column of titles in --items. Default: as the data of the bundle call it.",
    None,
  )
  separator: str | None = settings.setting(
    "Separator of sequences in text. Default: the one with which each feature "
    "was prepared, else a space.",
    None,
  )
  target_recall: float | None = settings.setting(
    "Target recall@10 of ScaNN. Default: that of the bundle.",
    None,
    minimum=0,
    maximum=1,
  )
  min_recall: float | None = settings.setting(
    "Fail if recall@10 of ScaNN is below this. Default: --target_recall.",
    None,
    minimum=0,
    maximum=1,
  )

  def __post_init__(self) -> None:
    super().__post_init__()
    if not self.items and not self.remove:
      raise settings.SettingsError(
        "Nothing to change; give --items or --remove."
      )
    for name, flag in (
      *(("id_column", "items"), ("item_title", "items")),
      *(("separator", "items"), ("overwrite", "output")),
    ):
      if name in settings.changed(self) and not getattr(self, flag):
        raise settings.SettingsError(f"--{name} is only used with --{flag}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchOptions(settings.Settings):
  """Settings of bulk recommendations."""

  bundle: str = settings.setting("Bundle written by xir-tfrs export.")
  output: str = settings.setting("Directory to write.")
  k: int = settings.setting(
    "Number of answers; a query with fewer gets a shorter list.",
    100,
    minimum=1,
  )
  format: str = settings.setting(
    "Format of the files.", "parquet", choices=("parquet", "tfrecord")
  )
  queries: str | None = settings.setting(
    "File with one query id per line. Default: all in the bundle.", None
  )
  exclude_seen: bool = settings.setting(
    "Leave out the candidates seen in training.", False
  )
  time: int | None = settings.setting(
    "Time of the requests, in the unit of the training data, for a model that "
    "uses the ages of events. Without it no ages are used.",
    None,
  )
  rows_per_shard: int = settings.setting(
    "Queries per file.", 100_000, minimum=1
  )
  overwrite: bool = settings.setting("Replace an earlier run's files.", False)
