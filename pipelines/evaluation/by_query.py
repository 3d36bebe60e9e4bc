"""by_query.npz: metrics of each query, for paired comparisons of runs."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping

import numpy as np

from xir_tfrs.data import atomic, errors

# The metrics to keep, at all cut-offs.
PAIRED = ("recall", "ndcg")
# Key of the queries' users.
USERS = "query_ids"


def write(
  path: str | os.PathLike[str],
  users: np.ndarray,
  metrics: Mapping[str, np.ndarray],
) -> None:
  """Writes the file; it appears complete or not at all.

  Args:
    path: The file.
    users: [n] dense ids.
    metrics: By name, such as `recall@10`, [n] arrays.
  """
  small = {name: x.astype(np.float32) for name, x in metrics.items()}
  with atomic.new_file(path) as new, open(new, "wb") as file:
    np.savez_compressed(file, **{USERS: users}, **small)


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
  """Reads the arrays that `write` wrote, by name.

  Raises:
    DataError: The file is missing or damaged.
  """
  try:
    with np.load(path) as arrays:
      return dict(arrays)
  except FileNotFoundError:
    reason = "not found"
  except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
    reason = f"cannot be read ({errors.first_line(error)})"
  raise errors.DataError(
    f"{reason}; run xir-tfrs evaluate for this model again", path=path
  )
