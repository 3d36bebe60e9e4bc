"""Generates interactions with known latent structure and long-tail popularity.

Users and items get vectors u, v around shared topics, and items a popularity
p that falls with its rank r as r^-zipf_exponent. A user takes n distinct items
one after another, each with probability proportional to

    exp(a),  a(u, v) = strength * <u, v> + log p

among those not yet taken (Plackett-Luce, drawn by the Gumbel top-n trick).
The affinity a is an inner product, so the best possible ranking by a two-tower
model is known; `oracle.npz` holds its vectors.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.readers import blocks, inputs, source
from xir_tfrs.data import errors, schema
from xir_tfrs.data.files import places, side_tables

# Changing this changes the data of every seed.
_USERS_PER_CHUNK = 256
_FIRST_TIME = 1_600_000_000
_YEAR = 365 * 86_400


class SyntheticSource(source.Source):
  """Generated interactions, without files."""

  num_files = 0
  has_times = True

  def __init__(self, config: inputs.SyntheticConfig):
    super().__init__("synthetic", "synthetic")
    self.config = config
    rng = np.random.default_rng([config.seed, 0])
    topics = _unit(rng.normal(size=[config.num_topics, config.dim]))
    self._item_topic = rng.integers(config.num_topics, size=config.num_items)
    self._items = _unit(
      topics[self._item_topic]
      + rng.normal(scale=0.2, size=[config.num_items, config.dim])
    )
    self._user_topics = rng.integers(
      config.num_topics, size=[config.num_users, 2]
    )
    self._users = _unit(
      topics[self._user_topics[:, 0]]
      + 0.6 * topics[self._user_topics[:, 1]]
      + rng.normal(scale=0.1, size=[config.num_users, config.dim])
    )
    rank = 1 + rng.permutation(config.num_items)
    self._log_popularity = -config.zipf_exponent * np.log(rank)
    self._row_counts = _row_counts(config, rng)
    self.size = int(self._row_counts.sum()) * blocks.ROW_BYTES

  def blocks(self) -> Iterator[tuple[int, blocks.Block]]:
    for piece in self.pieces():
      for _, block in self.read(piece):
        yield piece.file, block

  def pieces(self) -> list[blocks.Piece]:
    return [self._whole(0)]

  def _whole(self, file: int) -> blocks.Piece:
    return blocks.Piece(file, 0, self.size, 0)

  def _read(
    self, piece: blocks.Piece, count_lines: bool
  ) -> Iterator[tuple[int, blocks.Block]]:
    del piece, count_lines  # There is one piece, and blocks know their rows.
    done = 0
    for start in range(0, self.config.num_users, _USERS_PER_CHUNK):
      users = np.arange(
        start, min(start + _USERS_PER_CHUNK, self.config.num_users)
      )
      items, times = self._draw(users)
      counts = self._row_counts[users]
      end = done + int(counts.sum())
      yield (
        done,
        blocks.Block(
          places=places.Places("synthetic", done + 1, "row"),
          users=_names("u", np.repeat(users, counts)),
          items=_names("i", items),
          progress=end * blocks.ROW_BYTES,
          times=times,
        ),
      )
      done = end

  def _draw(self, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draws items and ascending times, user after user."""
    config = self.config
    rng = np.random.default_rng([config.seed, 1, int(users[0])])
    counts = self._row_counts[users]
    most = counts.max()
    keys = config.strength * self._users[users] @ self._items.T
    keys = (keys + self._log_popularity).astype(np.float32)
    # Minus the log of an exponential variate is a Gumbel variate. In float32,
    # one draw in 2^24 is 0, which would put its item first at any affinity.
    exponential = rng.standard_exponential(keys.shape, np.float32)
    keys -= np.log(np.maximum(exponential, 2.0**-25))
    top = np.argpartition(-keys, most - 1, axis=1)[:, :most]
    order = np.argsort(-np.take_along_axis(keys, top, 1), axis=1)
    taken = np.arange(most) < counts[:, None]
    items = np.take_along_axis(top, order, 1)[taken]
    # `items` starts with the favourites, but times are independent of that.
    times = rng.integers(_YEAR, size=len(items)) + _FIRST_TIME
    by_time = np.lexsort([times, np.repeat(np.arange(len(users)), counts)])
    return items[by_time], times[by_time]

  def no_rows(self, file: int) -> errors.DataError:
    raise NotImplementedError  # There are always rows.

  def fingerprint(self, file: int) -> source.Fingerprint:
    raise NotImplementedError

  def side_tables(self) -> tuple[side_tables.SideTable, side_tables.SideTable]:
    """Returns features with partial information about the vectors."""
    rng = np.random.default_rng([self.config.seed, 2])
    known = rng.random(self.config.num_users) < 0.8
    users = side_tables.SideTable(
      _names("u", np.arange(self.config.num_users)).to_pylist(),
      {"segment": "token"},
      {
        "segment": pc.if_else(
          pa.array(known), _names("s", self._user_topics[:, 0]), ""
        )
      },
    )
    noise = rng.normal(scale=0.1, size=self.config.num_items)
    price = np.exp(2 + self._items[:, 0] + noise).astype(np.float32)
    price[rng.random(len(price)) < 0.05] = np.nan
    items = side_tables.SideTable(
      _names("i", np.arange(self.config.num_items)).to_pylist(),
      {"category": "token", "tags": "token_seq", "price": "float"},
      {
        "category": _names("c", self._item_topic),
        "tags": self._tags(),
        "price": price,
      },
    )
    return users, items

  def _tags(self, per_item: int = 3) -> pa.ListArray:
    """The axes with the largest coordinates of an item, with their signs."""
    axes = np.argsort(-np.abs(self._items), axis=1)[:, :per_item]
    signs = np.take_along_axis(self._items, axes, 1) > 0
    tags = _names("t", (2 * axes + signs).reshape(-1))
    offsets = np.arange(len(axes) + 1, dtype=np.int32) * axes.shape[1]
    return pa.ListArray.from_arrays(offsets, tags)

  def write_extras(
    self, directory: pathlib.Path, users: list[str], items: list[str]
  ) -> None:
    """Writes vectors whose inner product is the affinity, by dense id."""
    user_rows = np.array([int(u[1:]) for u in users])
    item_rows = np.array([int(i[1:]) for i in items])
    np.savez(
      directory / schema.ORACLE_FILE,
      query_embeddings=np.concatenate(
        [
          self.config.strength * self._users[user_rows],
          np.ones([len(users), 1]),
        ],
        axis=1,
      ).astype(np.float32),
      candidate_embeddings=np.concatenate(
        [self._items[item_rows], self._log_popularity[item_rows, None]],
        axis=1,
      ).astype(np.float32),
    )


def _unit(vectors: np.ndarray) -> np.ndarray:
  return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _row_counts(
  config: inputs.SyntheticConfig, rng: np.random.Generator
) -> np.ndarray:
  """Number of items of each user: at least 5, long-tailed."""
  weights = rng.lognormal(sigma=0.6, size=config.num_users)
  counts = np.rint(weights * config.num_interactions / weights.sum())
  most = max(config.num_items // 2, 1)
  return np.clip(counts, min(5, most), most).astype(np.int64)


def _names(prefix: str, numbers: np.ndarray) -> pa.Array:
  return pc.binary_join_element_wise(
    prefix, pa.array(numbers).cast(pa.string()), ""
  )
