"""Finds the reader for an input."""

from __future__ import annotations

import glob
import os
import pathlib
from collections.abc import Sequence

from pipelines.readers import adjacency, inputs, parquet, source, tabular
from pipelines.readers import synthetic as synthetic_lib
from xir_tfrs.data import errors

_SUFFIXES = {
  ".inter": "atomic",
  ".csv": "csv",
  ".tsv": "tsv",
  ".parquet": "parquet",
  ".pq": "parquet",
  ".txt": "adjacency",
  ".adj": "adjacency",
}


def open_source(config: inputs.Input) -> source.Source:
  """The reader for `config`; headers are checked, rows are not yet read."""
  if not config.given_splits:
    return _open(config, config.paths)
  is_tfds = config.format == "tfds"
  names, of_name = [], []
  for split, given in config.given_splits.items():
    found = given if is_tfds else list(map(str, _existing(given)))
    names += found
    of_name += [split] * len(found)
  opened = _open(config, names)
  opened.splits = tuple(of_name)
  if not is_tfds:  # A file called "train" names nothing.
    opened.name = pathlib.Path(names[0]).resolve().parent.name or opened.name
  return opened


def _open(config: inputs.Input, names: Sequence[str]) -> source.Source:
  """`open_source` of the files `names`, or of these splits of TFDS."""
  if config.format == "synthetic":
    return synthetic_lib.SyntheticSource(config.synthetic)
  if config.format == "tfds":
    # TensorFlow Datasets is optional, so its reader is imported when used.
    from pipelines.readers import tfds_source

    if len(config.paths) != 1:
      raise errors.DataError(
        "--format tfds takes one --input, the name of a data set. Received:"
        f" {len(config.paths)}."
      )
    return tfds_source.TfdsSource(
      config.paths[0],
      names if config.given_splits else [config.tfds_split],
      config.data_dir and pathlib.Path(config.data_dir),
      config.columns,
      _side_files(config, None),
    )
  paths = _existing(names)
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


def _existing(names: Sequence[str]) -> list[pathlib.Path]:
  """The files that are named: themselves, patterns, or a folder's."""
  paths = []
  for name in names:
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
    if path.is_fifo() or path.is_char_device():
      raise errors.DataError(
        "is a pipe, which cannot be read twice; save it to a file first",
        path=path,
      )
    if not os.access(path, os.R_OK) or path.is_dir():
      raise errors.DataError("cannot be read as a file", path=path)
  return paths


def _in_folder(folder: pathlib.Path) -> list[pathlib.Path]:
  """The one interaction file of a folder, or all its Parquet files."""
  files = sorted(p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES)
  for suffixes in ((".inter",), (".parquet", ".pq"), (".csv", ".tsv", ".txt")):
    found = [p for p in files if p.suffix.lower() in suffixes]
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
  kinds = {_SUFFIXES.get(path.suffix.lower()) for path in paths}
  if len(kinds) != 1 or None in kinds:
    raise errors.DataError(
      "its ending does not tell the format; say which with --format"
      f" {', '.join(inputs.FORMATS[1:-2])}"
      if None in kinds
      else "and the other inputs have different formats",
      path=paths[0],
    )
  return kinds.pop()


def _side_files(
  config: inputs.Input, beside: pathlib.Path | None
) -> source.SideFiles:
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
  return source.SideFiles(**found)
