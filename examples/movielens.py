# %% [markdown]
# # MovieLens: from ratings to recommendations
#
# This tutorial starts with the ratings of MovieLens 1M and ends with
# recommendations for a user who has just watched three movies. It trains a
# model of the users' recent history, evaluates it on the whole catalogue, and
# exports it.
#
# Download `ml-1m.zip` from <https://grouplens.org/datasets/movielens/1m/> and
# unpack it in this folder. Run the cells one after another, or the whole file:
# `python examples/movielens.py`. Set `MOVIELENS` if the data is in another
# folder.

# %%
import json
import os
import pathlib
import subprocess

MOVIELENS = os.environ.get("MOVIELENS", "ml-1m")
WORK = pathlib.Path("runs/movielens")


def run(command: str) -> None:
  """Runs a command as in a terminal."""
  print(f"\n$ {command}", flush=True)
  subprocess.run(command, shell=True, check=True)


# %% [markdown]
# ## Prepare the data
#
# `prepare` knows the layout of MovieLens. `leave_last` keeps each user's last
# rating for the test and the one before for validation, so that the model must
# predict what comes next. Ratings of any value count as interest. Genres become
# features of the movies, and titles are stored for display.

# %%
run(
  f"xir-tfrs prepare --dataset movielens-1m --input {MOVIELENS}"
  f" --split leave_last --output {WORK}/data --overwrite"
)

# %% [markdown]
# ## Train
#
# The model reads the last 50 movies of a user, so it can also answer users who
# were not in the training data. `mean` weights movies by age;
# `--history_encoder attention` also uses their order, finds more, and takes
# several times as long. More than half of the ratings in MovieLens have the
# time of the previous one, because people rate a whole page at a time;
# `--history_ties order` uses the order of the file.

# %%
run(
  f"xir-tfrs train --data {WORK}/data --model_dir {WORK}/histories"
  " --task ssl_pop --query_tower history --history_encoder mean"
  " --history_ties order --epochs 3 --overwrite"
)

# %% [markdown]
# ## Measure
#
# Every movie is ranked for every user. The table compares the model with two
# rankings that need no training: the most popular movies, and the movies that
# most often follow those in the history (`neighbours`).

# %%
run(f"xir-tfrs evaluate --model_dir {WORK}/histories")
print(f"\nOpen {WORK}/histories/report.html in a browser.")

# %%
found = json.loads((WORK / "histories/metrics.json").read_text())["metrics"]
print(f"\n{'':12}{'recall@10':>10}{'ndcg@10':>10}{'coverage@10':>13}")
for ranking in ("popularity", "neighbours", "model"):
  values = found[ranking]
  print(
    f"{ranking:12}{values['recall@10']:10.4f}{values['ndcg@10']:10.4f}"
    f"{values['coverage@10']:13.1%}"
  )

# %% [markdown]
# ## Recommend
#
# A bundle holds the towers, an index and the titles. It answers known users by
# id, and anyone by history. Below 20,000 items, exact search is fast enough;
# for more items, omit `--index`.

# %%
run(
  f"xir-tfrs export --data {WORK}/data --model_dir {WORK}/histories"
  f" --output {WORK}/bundle --index brute_force --overwrite"
)

# %%
import xir_tfrs as xir  # noqa: E402

bundle = xir.serving.Bundle.load(str(WORK / "bundle"))
watched = ["1", "2", "3"]
print("\nAfter " + ", ".join(bundle.title(movie) for movie in watched) + ":")
answer = bundle.recommend(history=[watched], k=10, exclude_history=True)
for title, score in zip(answer.titles[0], answer.scores[0], strict=True):
  print(f"  {score:7.4f}  {title}")

# %%
print(f"\nLike {bundle.title('1')}:")
for title in bundle.similar_items(["1"], k=5).titles[0]:
  print(f"  {title}")
