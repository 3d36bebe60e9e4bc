# %% [markdown]
# # A model of your own, with text, in `fit`
#
# The loss is a Keras layer: your own model uses it in `compute_loss`, and `fit`
# trains the model. Here the towers are written from scratch in Keras. The
# vector of a movie depends on its id, the words of its title and its genres, so
# a movie without ratings has a vector too.
#
# The data is that of `examples/movielens.py`, unpacked: `ratings.dat` and
# `movies.dat` in `ml-1m`, or in the folder that `MOVIELENS` names.

# %%
import os
import pathlib

import numpy as np

import xir_tfrs as xir  # First: it makes TensorFlow use Keras 2.

import tensorflow as tf  # isort: skip
import tensorflow_recommenders as tfrs  # isort: skip
from xir_tfrs.data import datasets  # isort: skip

MOVIELENS = pathlib.Path(os.environ.get("MOVIELENS", "ml-1m"))
DIM = 32
tf.keras.utils.set_random_seed(0)


def lines(name: str) -> list[list[str]]:
  """The fields of each line of a file."""
  text = (MOVIELENS / name).read_text("latin-1")
  return [line.split("::") for line in text.splitlines()]


# %% [markdown]
# ## Ids become numbers
#
# The task needs users and movies that are numbered from 0. The last rating of
# each user is kept for the test.

# %%
movies = {
  movie: (title, genres) for movie, title, genres in lines("movies.dat")
}
movie_number = {movie: number for number, movie in enumerate(movies)}
ratings = sorted(lines("ratings.dat"), key=lambda row: (row[0], int(row[3])))
user_number: dict[str, int] = {}
for row in ratings:
  user_number.setdefault(row[0], len(user_number))
users = np.array([user_number[row[0]] for row in ratings])
chosen = np.array([movie_number[row[1]] for row in ratings])
is_last = np.append(users[1:] != users[:-1], True)
train = {"query_id": users[~is_last], "candidate_id": chosen[~is_last]}
counts = np.bincount(train["candidate_id"], minlength=len(movies))
print(
  f"{len(user_number):,} users, {len(movies):,} movies,"
  f" {len(train['query_id']):,} ratings to train on"
)

# %% [markdown]
# ## Text becomes numbers
#
# `TextVectorization` is a layer of Keras. The table has a row of words for each
# movie, so the tower only needs ids. This matters because the cache of XIR
# re-encodes movies that are not in the batch, and only stores their ids.

# %%
texts = [
  f"{title} {genres.replace('|', ' ')}" for title, genres in movies.values()
]
words = tf.keras.layers.TextVectorization(
  max_tokens=5000, output_sequence_length=12
)
words.adapt(texts)
words_of_movies = words(texts)  # [movies, 12], 0 is padding


def embedding(size: int) -> tf.keras.layers.Embedding:
  """Returns a layer with a vector for each number below `size`."""
  start = tf.keras.initializers.RandomNormal(stddev=0.1, seed=size)
  return tf.keras.layers.Embedding(size, DIM, start)


class MovieTower(tf.keras.Model):
  """Maps movie numbers to a vector of the movie plus the mean of its words."""

  def __init__(self) -> None:
    super().__init__()
    self.of_id = embedding(len(movies))
    self.of_word = embedding(words.vocabulary_size())
    self.mean = tf.keras.layers.GlobalAveragePooling1D()

  def call(self, ids: tf.Tensor) -> tf.Tensor:
    its_words = tf.gather(words_of_movies, ids)
    text = self.mean(self.of_word(its_words), mask=its_words > 0)
    return self.of_id(ids) + text


# %% [markdown]
# ## The model


# %%
class Model(tfrs.Model):
  """Two towers, trained by XIR."""

  def __init__(self) -> None:
    super().__init__()
    self.user_tower = embedding(len(user_number))
    self.movie_tower = MovieTower()
    self.task = xir.tasks.XIRRetrieval(
      candidate_counts=counts,
      candidate_encoder=self.movie_tower,
      cache_size=1024,
      normalize=True,
      temperature=0.2,
    )

  def compute_loss(self, features, training=False):
    ids = features["candidate_id"]
    return self.task(
      self.user_tower(features["query_id"]),
      self.movie_tower(ids),
      candidate_ids=ids,
      training=training,
    )


model = Model()
model.compile(optimizer=xir.optimizers.LazyAdam(0.01))
rows = datasets.training_dataset(train, global_batch_size=2048, seed=0)
steps = -(-len(train["query_id"]) // 2048)
model.fit(rows, steps_per_epoch=steps, epochs=5, verbose=2)

# %% [markdown]
# ## Measure
#
# The whole catalogue is ranked for every user, without earlier ratings.
# Popularity uses the same product with one number per movie.

# %%
everyone = tf.range(len(user_number))
movie_vectors = tf.math.l2_normalize(
  model.movie_tower(tf.range(len(movies))), axis=1
)
# Users are in ascending order, so the rows of a user are adjacent.
seen = tf.RaggedTensor.from_value_rowids(
  train["candidate_id"], train["query_id"], nrows=len(user_number)
)
relevant = tf.RaggedTensor.from_row_lengths(
  chosen[is_last], np.ones(len(user_number), np.int64)
)
for title, queries, candidates in (
  ("popularity", np.ones([len(user_number), 1], np.float32), counts[:, None]),
  ("model", model.user_tower(everyone), movie_vectors),
):
  found = xir.metrics.full_ranking(
    queries,
    tf.cast(candidates, tf.float32),
    relevant=relevant,
    seen=seen,
    ks=(10,),
  )
  print(
    f"{title:10} recall@10 {found['recall@10']:.4f}"
    f"  ndcg@10 {found['ndcg@10']:.4f}  coverage@10 {found['coverage@10']:.1%}"
  )

# %% [markdown]
# ## Recommend
#
# An index returns your own ids; `ScannIndex` does the same for millions of
# items.

# %%
index = xir.indexes.BruteForceIndex().index(list(movies), movie_vectors)
first = list(movies)[0]
answers, _ = index.search(movie_vectors[:1], k=6)
print(f"\nLike {movies[first][0]}:")
for movie in answers[0].numpy()[1:]:
  print(f"  {movies[movie.decode()][0]}")
