"""The files of the work folder."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil

import numpy as np

from pipelines.beam import handover
from xir_tfrs.data import schema as schema_lib

# Kind of ids -> its field of a row.
KINDS = {"users": "user", "items": "item"}


@dataclasses.dataclass(frozen=True)
class Work:
  """Names the files that workers exchange.

  A block of rows goes by the position of its first row in the input. A share
  has some of the ids of a kind. A bucket has all rows of some users.

  Attributes:
    folder: The work folder.
    buckets: Number of buckets, and of shares of each kind.
    rows: Type of the rows.
  """

  folder: pathlib.Path
  buckets: int
  rows: np.dtype

  def make(self) -> None:
    """Makes the folders."""
    for name in ("ids", "blocks", "buckets", "shards"):
      (self.folder / name).mkdir(parents=True)

  def end_first_pass(self) -> None:
    """Removes what only the first pass needs."""
    shutil.rmtree(self.folder / "ids")

  @property
  def seen(self) -> pathlib.Path:
    """Pickle of the statistics of the input."""
    return self.folder / "seen"

  @property
  def blocks(self) -> list[int]:
    """The positions of all blocks, ascending."""
    return handover.load(self.seen).blocks

  def block(self, position: int) -> handover.Slices:
    """The rows of a block, with codes of the block, in one slice."""
    return handover.Slices(self.folder / f"ids/{position}.rows", 1, self.rows)

  def mentions(self, kind: str, position: int) -> pathlib.Path:
    """Arrow file of the distinct ids of a block, with one batch per share."""
    return self.folder / f"ids/{position}.{kind}"

  def ids(self, kind: str, share: int) -> pathlib.Path:
    """Feather file of the distinct ids of a share and their first rows."""
    return self.folder / f"ids/{kind}-{share}.ids"

  def firsts(self, kind: str) -> pathlib.Path:
    """NumPy file of the first rows of all ids, ascending."""
    return self.folder / f"ids/{kind}.firsts"

  def indices(self, kind: str, share: int, blocks: int) -> handover.Slices:
    """Mentioned ids of a share, as places in `ids`, in a slice per block."""
    path = self.folder / f"ids/{kind}-{share}.indices"
    return handover.Slices(path, blocks, np.dtype(np.int32))

  def codes(self, kind: str, share: int, blocks: int) -> handover.Slices:
    """As `indices`, as dense ids."""
    path = self.folder / f"ids/{kind}-{share}.codes"
    return handover.Slices(path, blocks, np.dtype(np.int32))

  def spilled(self, position: int) -> handover.Slices:
    """The rows of a block with dense ids, in a slice per bucket."""
    path = self.folder / f"blocks/{position}.rows"
    return handover.Slices(path, self.buckets, self.rows)

  def sorted(self, bucket: int) -> handover.Slices:
    """The sorted rows of a bucket, in one slice."""
    path = self.folder / f"buckets/{bucket}.rows"
    return handover.Slices(path, 1, self.rows)

  def permutation(self, kind: str) -> pathlib.Path:
    """NumPy file: code in order of appearance -> dense id."""
    return self.folder / f"{kind}.permutation"

  def bins(self, bucket: int, turn: int) -> pathlib.Path:
    """NumPy file of the counts of the times of a bucket in a round."""
    return self.folder / f"buckets/{bucket}-{turn}.bins"

  def divided(self, bucket: int) -> handover.Slices:
    """The rows of a bucket in the order to write, in a slice per split."""
    path = self.folder / f"buckets/{bucket}.splits"
    return handover.Slices(path, len(schema_lib.SPLITS), self.rows)

  def counts(self, bucket: int) -> pathlib.Path:
    """Pickle of the counts of the ids of a bucket."""
    return self.folder / f"buckets/{bucket}.counts"

  @property
  def written(self) -> pathlib.Path:
    """Pickle of the statistics of the splits."""
    return self.folder / "written"

  @property
  def shards(self) -> pathlib.Path:
    """Folder of the shards of all splits."""
    return self.folder / "shards"
