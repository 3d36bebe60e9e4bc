r"""Splits training rows so that held-out candidates shift as on a test split.

    python -m benchmarks.shifted_split --train train.txt --test test.txt \
      --output shifted

The public test splits of Gowalla and Yelp2018 are no random draw: the share of
an item's rows that are test rows scatters 2.4 and 2.7 times as much as in a
random split. A random validation split then misleads. This program writes
`train.txt` and `validation.txt` to --output, from the rows of --train alone.
Each item gets a random weight, and each user's held-out rows are drawn by these
weights. Their spread is chosen so that the scatter is that of the test split;
nothing else is taken from it.

Files have a user and its items in each line, as in LightGCN's repository.
"""

import pathlib
from collections.abc import Sequence

import numpy as np
from absl import app, flags

from xir_tfrs.data.files import adjacency, layouts

# A user's items; the users in the order of the file.
Rows = Sequence[np.ndarray]

# Items with fewer rows tell little about the share.
MIN_ROWS = 50
_BISECTIONS = 10


def scatter(kept: Rows, held_out: Rows, min_rows: int = MIN_ROWS) -> float:
  """How much the items' held-out shares scatter: 1 for a random split.

  Args:
    kept: Items of each user's training rows.
    held_out: Items of its held-out rows.
    min_rows: Rows of an item that counts.

  Returns:
    The root mean square of (h - n p) / sqrt(n p (1 - p)), with n rows of an
    item, h of them held out, and the share p of rows held out overall.
  """
  size = 1 + max(int(items.max()) for items in (*kept, *held_out) if items.size)
  train, test = (
    np.bincount(np.concatenate(rows), minlength=size)
    for rows in (kept, held_out)
  )
  total = train + test
  share = test.sum() / total.sum()
  counted = total >= min_rows
  if not counted.any():
    raise ValueError(f"No item has {min_rows} rows.")
  expected = total[counted] * share
  deviation = test[counted] - expected
  return float(np.sqrt(np.mean(deviation**2 / (expected * (1 - share)))))


def split(
  rows: Rows, fraction: float, spread: float, seed: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
  """Holds out a fraction of each user's rows, drawn by weights of the items.

  Args:
    rows: Items of each user.
    fraction: Share of a user's rows to hold out, rounded to whole rows.
    spread: Standard deviation of the logarithm of the weights. 0: all rows of
      a user have the same chance.
    seed: Seed of weights and draws.

  Returns:
    The kept and the held-out items of each user.
  """
  generator = np.random.default_rng(seed)
  size = 1 + max(int(items.max()) for items in rows if items.size)
  log_weights = spread * generator.standard_normal(size)
  kept, held_out = [], []
  for items in rows:
    # The largest of log w + Gumbel noise are draws by w without replacement.
    keys = log_weights[items] + generator.gumbel(size=items.size)
    order = np.argsort(-keys)
    count = round(items.size * fraction)
    held_out.append(np.sort(items[order[:count]]))
    kept.append(np.sort(items[order[count:]]))
  return kept, held_out


def shifted(
  rows: Rows, fraction: float, target: float, seed: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
  """Splits rows with the spread of weights at which `scatter` is `target`."""
  low, high = 0.0, 4.0
  for _ in range(_BISECTIONS):
    spread = (low + high) / 2
    parts = split(rows, fraction, spread, seed)
    if scatter(*parts) < target:
      low = spread
    else:
      high = spread
  return parts


def _read(path: str) -> tuple[list[str], list[np.ndarray]]:
  """The users, and the items of each."""
  layout = layouts.detect(path, layouts.Wish(format="adjacency"))
  users, rows = [], []
  for chunk in adjacency.AdjacencyFile(path, layout).rows({}):
    users += chunk.columns[adjacency.USER].to_pylist()
    lists = chunk.columns[adjacency.ITEMS].to_pylist()
    rows += [np.array(items, int) for items in lists]
  return users, rows


def _write(path: pathlib.Path, users: Sequence[str], rows: Rows) -> None:
  lines = [
    " ".join([user, *map(str, items)]) + "\n"
    for user, items in zip(users, rows, strict=True)
    if items.size
  ]
  path.write_text("".join(lines), "utf-8")


def main(argv: list[str]) -> None:
  del argv
  given = flags.FLAGS
  users, train = _read(given.train)
  _, test = _read(given.test)
  target = scatter(train, test)
  held_out_rows = sum(items.size for items in test)
  fraction = held_out_rows / (
    held_out_rows + sum(items.size for items in train)
  )
  parts = shifted(train, fraction, target, given.random_seed)
  output = pathlib.Path(given.output)
  output.mkdir(parents=True, exist_ok=True)
  for name, rows in zip(("train", "validation"), parts, strict=True):
    _write(output / f"{name}.txt", users, rows)
  print(f"scatter of the test split {target:.2f}, here {scatter(*parts):.2f}")


if __name__ == "__main__":
  flags.DEFINE_string("train", None, "File of training rows.", required=True)
  flags.DEFINE_string("test", None, "File of test rows.", required=True)
  flags.DEFINE_string("output", None, "Directory to write to.", required=True)
  flags.DEFINE_integer("random_seed", 0, "Seed of weights and draws.")
  app.run(main)
