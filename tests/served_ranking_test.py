"""`pipelines.evaluate` ranks like an exported bundle.

This includes users and items that appear only after a temporal cut.
"""

import pathlib

import numpy as np
import pytest

from export import export_retriever
from pipelines import prepare
from pipelines.evaluation import rankings, split
from pipelines.preparation.config import PrepareConfig
from pipelines.readers import inputs
from pipelines.training import config as configs
from pipelines.training import loop
from xir_tfrs.data import directory, runs
from xir_tfrs.serving import bundle as bundles

_K = 5
_OLD_USERS, _NEW_USERS, _OLD_ITEMS, _NEW_ITEMS = 30, 8, 20, 4


def _write_rows(path: pathlib.Path) -> None:
  """Rows whose last tenth belongs mostly to new users and items."""
  rng = np.random.default_rng(0)
  lines = ["user_id,item_id,timestamp"]
  for user in range(_OLD_USERS):
    for item in rng.choice(_OLD_ITEMS, 8, replace=False):
      lines.append(f"u{user},i{item},{rng.integers(1000)}")
  items = _OLD_ITEMS + _NEW_ITEMS
  for user in (*range(6), *range(_OLD_USERS, _OLD_USERS + _NEW_USERS)):
    for item in rng.choice(items, 3, replace=False):
      lines.append(f"u{user},i{item},{rng.integers(2000, 3000)}")
  path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_cities(path: pathlib.Path) -> None:
  """A file of user features, in which every third user has none."""
  users = range(_OLD_USERS + _NEW_USERS)
  lines = [f"u{u},{'' if u % 3 == 0 else f'city{u % 2}'}" for u in users]
  path.write_text("user_id,city\n" + "\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="module", params=[False, True], ids=["ids", "cities"])
def served(request, tmp_path_factory):
  """A data directory, a run on it, and its bundle."""
  folder = tmp_path_factory.mktemp("served")
  _write_rows(folder / "rows.csv")
  user_file, columns = None, inputs.Columns()
  if request.param:
    _write_cities(folder / "users.csv")
    user_file = str(folder / "users.csv")
    columns = inputs.Columns(user_features=("city:token",))
  data, model, output = (str(folder / x) for x in ("data", "model", "bundle"))
  prepare.prepare(
    PrepareConfig(
      input=inputs.Input(
        paths=(str(folder / "rows.csv"),), user_file=user_file, columns=columns
      ),
      output=data,
      split="temporal",
      test_fraction=0.14,
    )
  )
  loop.train(
    configs.from_preset(
      data=data, model_dir=model, task="ssl_pop", dim=4, epochs=2
    ),
    progress=False,
  )
  export_retriever.export_retriever(
    export_retriever.ExportOptions(
      data=data, model_dir=model, output=output, indexes=("brute_force",)
    )
  )
  return data, model, bundles.Bundle.load(output)


def test_recall_of_each_query_is_that_of_the_bundles_answer(served):
  data, model_dir, bundle = served
  opened = directory.DataDir(data)
  asked = split.load_evaluation_data(opened, "test")
  query_ids, candidate_ids = (
    [x.decode() for x in opened.ids(table)]
    for table in ("queries", "candidates")
  )
  model, _, _ = runs.load_model(model_dir)
  vectors = rankings.of_model(model, asked)
  expected = rankings.rank(model, asked, (_K,)).by_query()[f"recall@{_K}"]
  answers = bundle.recommend(
    [query_ids[q] for q in asked.query_ids], k=_K, exclude_seen=True
  )
  np.testing.assert_array_equal(answers.known, asked.warm)
  assert (~asked.warm).sum() >= 5 and (~vectors.indexed).any()
  assert (~vectors.by_model).any()
  popular = np.sort(opened.candidates.counts)[::-1][:_K]
  for row, relevant in enumerate(asked.relevant.to_list()):
    wanted = {candidate_ids[c] for c in relevant}
    recall = len(wanted & set(answers.ids[row])) / len(wanted)
    if vectors.by_model[row]:
      assert recall == pytest.approx(expected[row])
    else:
      np.testing.assert_array_equal(answers.scores[row], popular)
      # The metric ranks relevant candidates last among equal counts.
      assert recall >= expected[row]
