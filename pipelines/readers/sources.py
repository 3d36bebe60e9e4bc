"""Finds the reader for an input."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Sequence

from pipelines.readers import inputs, source, tables
from pipelines.readers import synthetic as synthetic_lib
from xir_tfrs.data import errors
from xir_tfrs.data.files import addresses, folders, layouts, opening, rows


def open_source(config: inputs.Input) -> source.Source:
  """Opens the reader for `config`; checks headers but reads no rows."""
  if config.format == "synthetic":
    return synthetic_lib.SyntheticSource(config.synthetic)
  if config.format == "tfds":
    return _tfds(config)
  if not config.given_splits:
    return _tables(config, [(None, name) for name in config.paths])
  named = [
    (split, name)
    for split, names in config.given_splits.items()
    for name in names
  ]
  opened = _tables(config, named)
  # A file called "train" is no name for a data set.
  opened.name = pathlib.Path(named[0][1]).resolve().parent.name or opened.name
  return opened


def _tfds(config: inputs.Input) -> source.Source:
  # Imported on use, because TensorFlow Datasets is optional.
  from pipelines.readers import tfds_source

  if len(config.paths) != 1:
    raise errors.DataError(
      "--format tfds takes one --input, the name of a data set. Received:"
      f" {len(config.paths)}."
    )
  given = config.given_splits
  opened = tfds_source.TfdsSource(
    config.paths[0],
    [name for names in given.values() for name in names] or [config.tfds_split],
    config.data_dir and pathlib.Path(config.data_dir),
    config.columns,
    _side_files(config, None),
  )
  opened.splits = tuple(split for split, names in given.items() for _ in names)
  return opened


def _tables(
  config: inputs.Input, named: Sequence[tuple[str | None, str]]
) -> tables.TableSource:
  """Opens the named files with their splits, without empty ones."""
  found = [(split, path) for split, name in named for path in _files(name)]
  wish = wish_of(config.layout, config.format, config.columns.named)
  files, splits = [], []
  for split, path in found:
    if len(found) > 1 and layouts.is_empty(path):
      continue
    file = _opened(path, wish)
    files.append(folders.opened(file, config.columns.named))
    splits.append(split)
  for split, path in found:
    if split not in splits:
      what = f" for --{split}" if split else ""
      raise errors.DataError(f"empty, like all files{what}", path=path)
  beside = files[0].path if files[0].layout.format == "atomic" else None
  opened = tables.TableSource(
    files, config.columns, _side_files(config, beside), config.chunk_bytes
  )
  opened.splits = tuple(split for split in splits if split)
  opened.empty_files = len(found) - len(files)
  of_folders = set(folders.values(files[0].path)) - set(files[0].names)
  opened.ignored += tuple(f"{name} (of folders)" for name in sorted(of_folders))
  return opened


def _opened(path: str, wish: layouts.Wish) -> rows.RowFile:
  layout = layouts.detect(path, wish)
  if layout.format == "tfrecord":
    raise errors.DataError(
      "holds TFRecords, which `train` reads together with a schema.json; see"
      " Your own TFRecords in docs/own_data.md",
      path=path,
    )
  return opening.open_rows(path, layout)


def wish_of(
  layout: inputs.FileLayout, format_: str = "auto", named: Sequence[str] = ()
) -> layouts.Wish:
  """The user's settings for a file."""
  return layouts.Wish(
    format=None if format_ == "auto" else format_,
    columns=tuple(name for name in named if not name.isdigit()),
    **dataclasses.asdict(layout),
  )


def _files(name: str) -> list[str]:
  """The files of an address; only .inter files of a folder that has some."""
  found = addresses.expand(name)
  if len(found) < 2 or "*" in name:
    return found
  inter = [path for path in found if layouts.suffix(path) == ".inter"]
  if inter:
    return inter
  kinds = {layouts.suffix(path) for path in found}
  if len(kinds) > 1:
    shown = ", ".join(addresses.name(path) for path in found[:5])
    raise errors.DataError(
      f"holds files of several kinds ({shown}, ...); name those to read, e.g."
      f" --input '{name.rstrip('/')}/*{sorted(kinds)[-1]}'",
      path=name,
    )
  return found


def _side_files(config: inputs.Input, beside: str | None) -> source.SideFiles:
  """The named side files, or those beside an .inter file."""
  found: dict[str, str] = {}
  for side in ("user", "item"):
    name = getattr(config, f"{side}_file")
    near = beside and str(pathlib.Path(beside).with_suffix(f".{side}"))
    if name:
      found[side] = addresses.expand(name)[0]
    elif near and not addresses.is_remote(near) and os.path.exists(near):
      found[side] = near
    elif getattr(config.columns, f"{side}_features"):
      raise errors.DataError(
        f"--{side}_features needs a --{side}_file, and there is none"
      )
  return source.SideFiles(
    **found,
    user_wish=wish_of(config.side_layout("user")),
    item_wish=wish_of(config.side_layout("item")),
  )
