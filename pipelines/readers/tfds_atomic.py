"""A TFDS builder for local RecBole atomic files.

    import tensorflow_datasets as tfds
    from pipelines.readers import tfds_atomic  # registers the builder

    dataset = tfds.load(
        "atomic_interactions",
        split="interactions",
        data_dir="tfds",
        builder_kwargs={"path": "ratings.inter"},
    )

An example is a user with the sequence of its rows, because with one example per
row TFDS only writes about 10,000 rows/s. `xir-tfrs prepare --format tfds
--input atomic_interactions/ratings --data_dir tfds` reads the data set, without
this module and the file.

While writing, the rows of the file are in memory as integers.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from pipelines.preparation import spill, vocabulary
from pipelines.readers import inputs
from pipelines.readers import roles as roles_lib
from xir_tfrs.data import errors
from xir_tfrs.data.files import columns as columns_lib
from xir_tfrs.data.files import layouts, opening, times
from xir_tfrs.data.files import rows as rows_lib

SPLIT = "interactions"


class AtomicInteractions(tfds.core.GeneratorBasedBuilder):
  """The interactions of an ``.inter`` file, one example per user.

  Users are in order of first appearance and rows in file order. Columns become
  features of the same name: the user is a string, and its rows are sequences of
  strings (token), float32 (float) and, for the time column, int64, because TFDS
  stores floats as float32, which rounds Unix times. Sequence columns
  (token_seq, float_seq) are left out.

  Args (by `builder_kwargs`):
    path: The ``.inter`` file. Its stem names the configuration.
    roles: The columns of the user, the item and the time.
  """

  VERSION = tfds.core.Version("1.0.0")

  def __init__(
    self,
    *,
    path: str | os.PathLike[str],
    roles: inputs.Columns | None = None,
    **kwargs: Any,
  ):
    self._config = inputs.Columns() if roles is None else roles
    self._path = pathlib.Path(path)
    if not self._path.is_file():
      raise errors.DataError("no such file", path=path)
    file = self._open()
    columns = roles_lib.resolve(
      self._config, file.names, file.path, file.header_line, file.sample()
    )
    assert columns.user is not None
    self._user, self._time = columns.user, columns.time
    self._times = columns.times or times.Times("number", None)
    # All columns with a role, and all other columns of single values.
    self._kinds = {
      name: "float" if kind == "float" else "token"
      for name, kind in file.header.items()
      if kind in ("token", "float") or name in columns.columns
    }
    if self._time is not None:
      self._kinds[self._time] = "time"
    kwargs["config"] = tfds.core.BuilderConfig(
      name=self._path.stem, description=f"From {self._path.name}."
    )
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    stored = {
      "token": tfds.features.Text(),
      "time": np.int64,
      "float": np.float32,
    }
    features = {
      name: stored[kind]
      if name == self._user
      else tfds.features.Sequence(stored[kind])
      for name, kind in self._kinds.items()
    }
    return tfds.core.DatasetInfo(
      builder=self,
      description="User-item interactions of a local atomic file.",
      features=tfds.features.FeaturesDict(features),
      disable_shuffling=True,
    )

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
    del dl_manager  # The file is local.
    return {SPLIT: self._generate_examples()}

  def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
    users = vocabulary.Vocabulary()
    texts = {
      name: vocabulary.Vocabulary()
      for name, kind in self._kinds.items()
      if kind == "token" and name != self._user
    }
    codes: list[np.ndarray] = []
    columns: dict[str, list[np.ndarray]] = {n: [] for n in self._kinds}
    del columns[self._user]
    for rows in self._open().rows(dict.fromkeys(self._kinds)):
      ids = columns_lib.id_strings(
        rows.columns[self._user], self._user, rows.places
      )
      codes.append(users.encode(ids))
      for name, parts in columns.items():
        values = rows.columns[name]
        if name in texts:
          parts.append(texts[name].encode(values))
        elif name == self._time:
          parts.append(self._times.convert(values, name, rows.places))
        else:
          parts.append(columns_lib.numbers(values, name, rows.places))
    if not codes:
      raise errors.DataError(
        "no rows below the header", path=self._path, line=1
      )
    user_codes = np.concatenate(codes)
    order = spill.stable_argsort(user_codes)
    by_user = {
      name: np.concatenate(parts)[order] for name, parts in columns.items()
    }
    words = {n: np.array(v.ids(), object) for n, v in texts.items()}
    ends = np.cumsum(np.bincount(user_codes, minlength=len(users)))
    start = 0
    for user, (name, end) in enumerate(
      zip(users.ids(), ends.tolist(), strict=True)
    ):
      example: dict[str, Any] = {self._user: name}
      for column, values in by_user.items():
        part = values[start:end]
        if column in words:
          part = words[column][part].tolist()
        example[column] = part
      yield user, example
      start = end

  def _open(self) -> rows_lib.RowFile:
    wish = layouts.Wish("atomic")
    return opening.open_rows(self._path, layouts.detect(self._path, wish))
