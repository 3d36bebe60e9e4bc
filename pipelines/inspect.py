"""Shows what is in a file of interactions and how to prepare it.

    xir-tfrs inspect ratings.csv
    xir-tfrs inspect orders.csv --item_file items.csv
    xir-tfrs inspect log/ --events purchase:1,view:0.1

Prints the format of the files, the columns of users, items and times, the first
rows, counts, warnings, and the command that prepares them. It guesses
the kinds of features in a table of users or items, reads for about a second,
and takes the input flags of `xir-tfrs prepare`.
"""

import collections
import dataclasses
import shlex
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipelines.readers import inputs
from xir_tfrs.programs import main as main_lib
from xir_tfrs.programs import settings
from xir_tfrs.programs.settings import setting

if TYPE_CHECKING:
  from pipelines.readers import blocks, tables

_SECONDS = 1.0
_CHUNK_BYTES = 1 << 20  # Between two looks at the clock.
_EVENTS = 8  # A column with at most this many values may hold kinds of events.


@dataclasses.dataclass(frozen=True)
class InspectConfig(settings.Settings):
  """The files to read."""

  common = (
    *("input", "user_column", "item_column", "time_column", "events"),
    *("item_file", "format", "delimiter", "header", "names", "rows"),
  )

  input: inputs.Input
  rows: int = setting(
    "number of first rows to show.", 5, minimum=1, section="Output"
  )


def main(config: InspectConfig) -> None:
  from pipelines.readers import sources, tables

  small = min(config.input.chunk_bytes, _CHUNK_BYTES)
  source = sources.open_source(
    dataclasses.replace(config.input, chunk_bytes=small)
  )
  print(source.read_as or f"read as: {source.kind}")
  if source.ignored:
    print(f"ignored columns: {', '.join(source.ignored)}")
  seen = _Seen(source.size)
  deadline = time.monotonic() + _SECONDS
  for number, (_, block) in enumerate(source.blocks()):
    if not number:
      print(_first_rows(block, config.rows))
    seen.add(block)
    if time.monotonic() > deadline:
      break
  print(seen)
  for name, count in source.warnings.items():
    if count:
      print(f"warning: {name.replace('_', ' ')}: {count:,}")
  if isinstance(source, tables.TableSource):
    features = {}
    for side in ("user", "item"):
      features |= _side_features(config.input, source, side)
    for name, value in features.items():
      flag = settings.as_flags(InspectConfig, {name: value})
      print(f"guessed by what it holds: {' '.join(flag)}")
    for hint in _hints(source):
      print(f"hint: {hint}")
    print(f"next: {_command(config, source, features)}")


class _Seen:
  """Statistics of the rows read so far."""

  def __init__(self, size: int):
    self._size, self._progress, self._rows = size, 0, 0
    self._users: set[str] = set()
    self._items: set[str] = set()
    self._pairs: set[tuple[str, str]] = set()

  def add(self, block: "blocks.Block") -> None:
    users, items = block.strings()
    self._users.update(users)
    self._items.update(items)
    self._pairs.update(zip(users, items, strict=True))
    self._rows += len(users)
    self._progress = block.progress

  def __str__(self) -> str:
    share = min(self._progress / max(self._size, 1), 1)
    part = "" if share >= 1 else f" in the first {share:.0%}"
    repeats = self._rows - len(self._pairs)
    return (
      f"{self._rows:,} rows, {len(self._users):,} users,"
      f" {len(self._items):,} items, {repeats:,} repeated pairs{part}"
    )


def _first_rows(block: "blocks.Block", number: int) -> str:
  columns = {
    "user": block.users[:number].to_pylist(),
    "item": block.items[:number].to_pylist(),
  }
  for name, values in (("time", block.times), ("weight", block.weights)):
    if values is not None:
      columns[name] = values[:number].tolist()
  if block.ratings is not None:
    columns["rating"] = block.ratings[:number].tolist()
  cells = [list(columns)]
  cells += [
    [str(v) for v in row] for row in zip(*columns.values(), strict=True)
  ]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  return "\n".join(
    "  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in cells
  )


def _hints(source: "tables.TableSource") -> list[str]:
  """Possible uses of other columns, from their first values."""
  from xir_tfrs.data.files import columns, names

  sample = source.sample
  if sample is None:
    return []
  hints = []
  for name in source.ignored:
    column = sample.columns.get(name)
    if column is None or columns.is_list(column):
      continue
    values = [v for v in column[:10_000].to_pylist() if v is not None]
    if names.guesses("event", [name]):
      counts = collections.Counter(map(str, values)).most_common(_EVENTS)
      kinds = ", ".join(kind for kind, _ in counts)
      hints.append(
        f"{name!r} holds {kinds}: select and weight them with --events"
      )
    elif names.guesses("item_title", [name]):
      hints.append(f"{name!r} may hold titles of items: --item_title {name}")
    elif names.guesses("rating", [name]):
      hints.append(
        f"{name!r} may hold ratings: --min_rating leaves out lower ones"
      )
  return hints


def _side_features(
  given: inputs.Input, source: "tables.TableSource", side: str
) -> dict[str, list[str] | str]:
  """Flags of the features in --user_file or --item_file, none if given.

  Raises:
    DataError: The file does not hold what is said of it.
  """
  from pipelines.readers import kinds, sources
  from xir_tfrs.data.files import side_tables

  path = getattr(given, f"{side}_file")
  said = getattr(given.columns, f"{side}_features")
  if not path:
    return {}
  file = side_tables.open_file(path, sources.wish_of(given.side_layout(side)))
  if said or any(file.header.values()):
    source.side_tables()
    return {}
  key = getattr(given.columns, f"{side}_key") or getattr(source.roles, side)
  id_column = side_tables.id_of(file, key, f"--{side}_features")
  found, title = kinds.guess(file, id_column)
  features: dict[str, list[str] | str] = {}
  if found:
    features[f"{side}_features"] = [f"{x}:{kind}" for x, kind in found.items()]
  if title is not None and side == "item" and not given.columns.item_title:
    features["item_title"] = title
  return features


def _command(
  config: InspectConfig,
  source: "tables.TableSource",
  features: Mapping[str, list[str] | str],
) -> str:
  """The command that prepares the files."""
  given = settings.changed(config)
  given.pop("rows", None)
  given |= features
  roles = source.roles
  for role, flag in (("user", "user_column"), ("time", "time_column")):
    if getattr(roles, role) is not None:
      given.setdefault(flag, getattr(roles, role))
  if roles.item_list is None:
    given.setdefault("item_column", roles.item)
  given["output"] = f"data/{source.name}"
  flags = settings.as_flags(type(config), given)
  return shlex.join(["xir-tfrs", "prepare", *flags])


if __name__ == "__main__":
  argv = main_lib.words_as_flags(sys.argv, "input")
  sys.exit(main_lib.run(InspectConfig, main, argv=argv))
