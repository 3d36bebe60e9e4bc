"""Finds the reader for an input."""

from __future__ import annotations

import dataclasses
import glob
import os
import pathlib
from collections.abc import Sequence

from pipelines.readers import adjacency, base, parquet, tabular
from pipelines.readers import synthetic as synthetic_lib
from xir_tfrs.data import errors
from xir_tfrs.data.files import text

FORMATS = (
  "auto",
  "atomic",
  "csv",
  "tsv",
  "parquet",
  "adjacency",
  "tfds",
  "synthetic",
)
_SUFFIXES = {
  ".inter": "atomic",
  ".csv": "csv",
  ".tsv": "tsv",
  ".parquet": "parquet",
  ".pq": "parquet",
  ".txt": "adjacency",
  ".adj": "adjacency",
}


@dataclasses.dataclass(frozen=True)
class Input:
  """What to read.

  Attributes:
    paths: files, patterns or one folder; a data set name for "tfds"; nothing
      for "synthetic".
    format: one of `FORMATS`; "auto" goes by the ending of the file name.
    columns: which columns mean what.
    user_file, item_file: side features; None takes the .user and .item files
      beside an .inter file.
    data_dir: where TFDS keeps its data sets; None for its default.
    tfds_split: names of TFDS splits, joined by "+", or "all".
    synthetic: what to generate.
    chunk_bytes: how much text is parsed at a time.
  """

  paths: tuple[str, ...] = ()
  format: str = "auto"
  columns: base.Columns = base.Columns()
  user_file: str | None = None
  item_file: str | None = None
  data_dir: str | None = None
  tfds_split: str = "all"
  synthetic: synthetic_lib.SyntheticConfig = synthetic_lib.SyntheticConfig()
  chunk_bytes: int = text.CHUNK_BYTES

  def __post_init__(self):
    if self.format not in FORMATS:
      raise ValueError(
        f"`format` must be one of {', '.join(FORMATS)}. Received:"
        f" {self.format!r}."
      )
    if not self.paths and self.format != "synthetic":
      raise ValueError(
        "--input names the file to read; --format synthetic needs none."
      )
    if self.paths and self.format == "synthetic":
      raise ValueError(
        f"--format synthetic reads no --input. Received: {self.paths}."
      )


def open_source(config: Input) -> base.Source:
  """The reader for `config`; headers are checked, rows are not yet read."""
  if config.format == "synthetic":
    return synthetic_lib.SyntheticSource(config.synthetic)
  if config.format == "tfds":
    # TensorFlow Datasets is optional, so its reader is imported when used.
    from pipelines.readers import tfds_source

    if len(config.paths) != 1:
      raise errors.DataError(
        f"--format tfds takes one data set name, not {len(config.paths)}"
      )
    return tfds_source.TfdsSource(
      config.paths[0],
      config.tfds_split,
      config.data_dir and pathlib.Path(config.data_dir),
      config.columns,
      _side_files(config, None),
    )
  paths = _existing(config.paths)
  kind = config.format
  if kind == "auto":
    kind = _kind(paths)
  if kind == "parquet":
    return parquet.ParquetSource(
      paths, config.columns, _side_files(config, None)
    )
  if kind == "adjacency":
    return adjacency.AdjacencySource(
      paths, config.columns, _side_files(config, None), config.chunk_bytes
    )
  beside = paths[0] if kind == "atomic" else None
  return tabular.TabularSource(
    kind,
    paths,
    config.columns,
    _side_files(config, beside),
    config.chunk_bytes,
  )


def _existing(inputs: Sequence[str]) -> list[pathlib.Path]:
  """The files that the inputs name: themselves, patterns, or a folder's."""
  paths = []
  for name in inputs:
    path = pathlib.Path(name)
    if path.is_dir():
      paths.extend(_in_folder(path))
    elif path.exists():
      paths.append(path)
    elif matches := sorted(glob.glob(name)):
      paths.extend(pathlib.Path(m) for m in matches)
    else:
      raise errors.DataError(
        "no such file; for a TFDS data set say --format tfds", path=name
      )
  for path in paths:
    if not os.access(path, os.R_OK) or path.is_dir():
      raise errors.DataError("cannot be read as a file", path=path)
  return paths


def _in_folder(folder: pathlib.Path) -> list[pathlib.Path]:
  """The one interaction file of a folder, or all its Parquet files."""
  files = sorted(p for p in folder.iterdir() if p.suffix in _SUFFIXES)
  for suffixes in ((".inter",), (".parquet", ".pq"), (".csv", ".tsv", ".txt")):
    found = [p for p in files if p.suffix in suffixes]
    if len(found) == 1 or (found and ".parquet" in suffixes):
      return found
    if found:
      raise errors.DataError(
        f"holds {len(found)} {' or '.join(suffixes)} files; name those to"
        " read with --input",
        path=folder,
      )
  raise errors.DataError(
    f"holds no file that ends in {', '.join(_SUFFIXES)}", path=folder
  )


def _kind(paths: Sequence[pathlib.Path]) -> str:
  kinds = {_SUFFIXES.get(path.suffix) for path in paths}
  if len(kinds) != 1 or None in kinds:
    raise errors.DataError(
      "its ending does not tell the format; say which with --format"
      f" {', '.join(FORMATS[1:-2])}"
      if None in kinds
      else "and the other inputs have different formats",
      path=paths[0],
    )
  return kinds.pop()


def _side_files(config: Input, beside: pathlib.Path | None) -> base.SideFiles:
  """The side files that are named, or stand beside an .inter file."""
  found = {}
  for side in ("user", "item"):
    name = getattr(config, f"{side}_file")
    if name:
      found[side] = _existing([name])[0]
    elif beside and beside.with_suffix(f".{side}").exists():
      found[side] = beside.with_suffix(f".{side}")
    elif getattr(config.columns, f"{side}_features"):
      raise errors.DataError(
        f"--{side}_features was given, but there is no --{side}_file to take"
        " them from"
      )
  return base.SideFiles(**found)
