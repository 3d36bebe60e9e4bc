"""Adds, changes and removes items of a bundle, without training.

  python -m export.refresh --bundle DIR [--items FILE] [--remove FILE]
    [--output DIR]

The bundle's own candidate tower encodes the items of a file: new ids are added,
known ones get another vector. What the file does not give of an item is as it
was in training, if it was there. The ids of --remove, one per line, are
removed. Towers and ranker stay byte for byte; indexes and lists are made anew.

The new bundle is verified in a process of its own and then takes the place of
the old one in one step. If anything fails, the old one stays.
"""

from __future__ import annotations

import dataclasses
import sys

from xir_tfrs.programs import main, settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class RefreshOptions(settings.Settings):
  """What to change."""

  bundle: str = settings.setting("The bundle to start from.")
  items: str | None = settings.setting(
    "New and changed items: .item, .csv, .tsv, .parquet, .pq or .tfrecord.",
    None,
  )
  remove: str | None = settings.setting(
    "Text file of ids to remove, one a line.", None
  )
  output: str | None = settings.setting(
    "The new bundle. Default: in place of the old one.", None
  )
  overwrite: bool = settings.setting(
    "Replace another bundle at --output.", False
  )
  id_column: str | None = settings.setting(
    "Column of ids in --items. Default: the first :token column, else "
    "candidate_id, item_id or id.",
    None,
  )
  separator: str = settings.setting(
    "Between the values of a sequence in text.", " "
  )
  target_recall: float | None = settings.setting(
    "Recall@10 that ScaNN is tuned to. Default: that of the bundle.",
    None,
    minimum=0,
    maximum=1,
  )
  min_recall: float | None = settings.setting(
    "Fail if recall@10 of ScaNN is below. Default: --target_recall.",
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
    for name, used, flag in (
      ("id_column", self.items, "items"),
      ("separator", self.items, "items"),
      ("overwrite", self.output, "output"),
    ):
      default = type(self).__dataclass_fields__[name].default
      if not used and getattr(self, name) != default:
        raise settings.SettingsError(f"--{name} is used with --{flag} only.")


def refresh(options: RefreshOptions) -> None:
  """Writes the new bundle.

  Raises:
    DataError: for anything that the user can put right.
  """
  from export.bundle import refreshing  # Imports TensorFlow.

  refreshing.refresh(options)


if __name__ == "__main__":
  sys.exit(main.run(RefreshOptions, refresh))
