"""Settings of the programs that make bundles. Nothing here needs TensorFlow."""

from __future__ import annotations

import dataclasses

from xir_tfrs.programs import settings
from xir_tfrs.serving import manifest

MAX_K = 10_000

_ID_TYPES = ("string", "int64")


@dataclasses.dataclass(frozen=True, kw_only=True)
class IndexOptions(settings.Settings):
  """Which indexes to build, and how good ScaNN must be."""

  indexes: tuple[str, ...] = settings.setting(
    "Which indexes to build.",
    manifest.INDEXES,
    flag="index",
    choices=manifest.INDEXES,
  )
  target_recall: float = settings.setting(
    "Recall@10 against exact search that ScaNN's settings are tuned to.",
    0.99,
    minimum=0,
    maximum=1,
  )
  min_recall: float | None = settings.setting(
    "Fail if recall@10 of ScaNN is below. Default: --target_recall.",
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
    "Candidates scored again, exactly. Default: tuned.", None, minimum=1
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
    for name in (
      *("min_recall", "num_leaves", "num_leaves_to_search"),
      *("num_reorder", "exact_below"),
    ):
      if getattr(self, name) is not None:
        raise settings.SettingsError(
          f"--{name} is for ScaNN, but --index is {','.join(self.indexes)}."
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions(IndexOptions):
  """What to export."""

  data: str = settings.setting("Directory made by pipelines.prepare.")
  model_dir: str = settings.setting("Directory made by pipelines.train.")
  output: str = settings.setting("The bundle to write.")
  overwrite: bool = settings.setting("Replace a bundle at --output.", False)
  query_id_type: str = settings.setting(
    "Type of query ids.", "string", choices=_ID_TYPES
  )
  candidate_id_type: str = settings.setting(
    "Type of candidate ids.", "string", choices=_ID_TYPES
  )
  unknown_query: str = settings.setting(
    "What queries without training rows get: the most popular candidates; "
    "what the tower says; or 'features', what the tower says of those whose "
    "side features are given, and the most popular for the others.",
    "features",
    choices=manifest.UNKNOWN_QUERY,
  )
  unknown_candidates: str = settings.setting(
    "Whether the indexes have the candidates of which nothing is known, "
    "neither training rows nor side features.",
    "leave_out",
    choices=("leave_out", "keep"),
  )
  scann_folder: bool = settings.setting(
    "Write ScaNN's own files beside its SavedModel.", True
  )
  max_k: int = settings.setting(
    "Most answers that may be asked for.", MAX_K, minimum=1
  )
