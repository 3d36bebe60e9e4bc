# %% [markdown]
# # Anonymous visitors, served
#
# Most visitors of a shop are anonymous. This tutorial splits events into
# sessions, drops the users, trains a model of the choices within a session, and
# serves it: a visitor's last clicks go in, recommendations come out.
#
# The data is that of `examples/movielens.py`, unpacked: `ratings.dat` and
# `movies.dat` in `ml-1m`, or in the folder that `MOVIELENS` names. Your own log
# needs three columns: visitor, item and time.

# %%
import json
import os
import pathlib
import re
import subprocess
import time
import urllib.error
import urllib.request

MOVIELENS = pathlib.Path(os.environ.get("MOVIELENS", "ml-1m"))
WORK = pathlib.Path("runs/sessions")


def run(command: str) -> None:
  """Runs a command as in a terminal."""
  print(f"\n$ {command}", flush=True)
  subprocess.run(command, shell=True, check=True)


# %% [markdown]
# ## Sessions
#
# A pause of an hour ends a session. The newest tenth of all events is the test
# split, and the tenth before is the validation split. As in production, the
# model has not seen their sessions.

# %%
run(
  f"xir-tfrs prepare --dataset movielens-1m --input {MOVIELENS}"
  " --session_gap 1h --split temporal --test_fraction 0.1"
  f" --validation_fraction 0.1 --output {WORK}/data --overwrite"
)

# %% [markdown]
# ## Train and measure
#
# `--query_tower history` encodes a visitor from their choices alone. A weighted
# mean of the last 20 movies trains fast; `attention` and `gru` often find more.

# %%
run(
  f"xir-tfrs train --data {WORK}/data --model_dir {WORK}/model --task ssl_pop"
  " --query_tower history --history_encoder mean --history_length 20"
  " --history_ties order --epochs 3 --overwrite"
)
run(f"xir-tfrs evaluate --model_dir {WORK}/model")

# %% [markdown]
# ## Serve

# %%
run(
  f"xir-tfrs export --data {WORK}/data --model_dir {WORK}/model"
  f" --output {WORK}/bundle --index brute_force --overwrite"
)
server = subprocess.Popen(
  f"exec xir-tfrs serve --bundle {WORK}/bundle --port 0 --grpc_port 0",
  shell=True,
  stderr=subprocess.PIPE,
  text=True,
)
address = ""
for line in server.stderr:
  started = re.search(r"REST on port (\d+)", line)
  if started:
    address = f"http://localhost:{started[1]}"
    break


def wait() -> None:
  """Waits until /readyz reports that the bundle is loaded."""
  while server.poll() is None:
    try:
      with urllib.request.urlopen(f"{address}/readyz"):
        return
    except urllib.error.HTTPError:  # 503: it is still loading.
      time.sleep(0.2)


def recommend(history: list[str], k: int = 5) -> list[str]:
  """Asks the server for recommendations after a session."""
  body = {
    "signature_name": "recommend_session",
    "inputs": {"history": [history], "exclude_ids": [history], "k": k},
  }
  place = f"{address}/v1/models/retriever:predict"
  with urllib.request.urlopen(place, json.dumps(body).encode()) as answer:
    return json.load(answer)["outputs"]["titles"][0]


# %%
try:
  wait()
  for session in (["1"], ["1", "2"], ["1", "2", "3"]):
    print(f"\nAfter {', '.join(session)}: {'; '.join(recommend(session))}")
finally:
  server.terminate()
  server.wait()
