"""The space of a search and its first trials, without training."""

import types

import pytest

from pipelines.training import config as configs
from pipelines.tuning import space as spaces
from xir_tfrs.data import schema
from xir_tfrs.programs import settings

Span = settings.Span


def data(times=False, features=False, candidates=100):
  return types.SimpleNamespace(
    rows={"train": 50},
    num_queries=10,
    interaction_features=(schema.InteractionFeature("timestamp", "int64"),)[
      : int(times)
    ],
    query_features=(),
    candidate_features=("brand",)[: int(features)],
    num_candidates=candidates,
  )


def space_of(*narrowed, about=None, **given):
  return spaces.of(given, narrowed, about or data())[0]


def test_declared_search_values_are_valid():
  """All values are allowed and include the default."""
  declared = {
    one.name: one
    for one in settings.settings_of(configs.TrainConfig)
    if one.about.search
  }
  assert {"task", "temperature", "loss", "learning_rate"} <= declared.keys()
  for name, one in declared.items():
    search = one.about.search
    tried = search
    if isinstance(search, Span):
      assert search.low < search.high and (search.low > 0 or not search.log)
      tried = search.low, search.high
    for value in tried:
      assert one.convert(value, name) == value
  for task in declared["task"].about.search:
    for tower in declared["query_tower"].about.search:
      run = configs.from_preset(task=task, query_tower=tower).resolved
      for name in ("temperature", "learning_rate", "popularity_weight"):
        search = declared[name].about.search
        assert search.low <= getattr(run, name) <= search.high, (task, name)
      assert run.loss in declared["loss"].about.search


def test_a_setting_is_chosen_only_where_it_is_used():
  space = space_of(about=data(times=True, features=True))

  def first_of(one, search):
    if one.name == "task":
      return task
    return search.low if isinstance(search, Span) else search[0]

  task = "ssl_pop"
  chosen = space.choose(first_of)
  assert chosen["query_tower"] == "id" and chosen["use_features"] is True
  assert not {"cache_weight", "history_encoder", "l2"} & chosen.keys()
  task = "xir"
  assert space.choose(first_of)["cache_weight"] == 0.1
  assert space.config(space.choose(first_of)).cache_weight == 0.1


def test_the_defaults_come_first():
  first = space_of(about=data(times=True)).first()
  assert [(x["query_tower"], x["task"]) for x in first[:4]] == [
    ("id", "ssl_pop"),
    ("id", "xir"),
    ("history", "ssl_pop"),
    ("history", "xir"),
  ]
  space = space_of()
  for chosen in space.first()[:2]:
    default = configs.from_preset(task=chosen["task"]).for_data(data())
    assert space.config(chosen).resolved == default.resolved
  # The first trials leave out settings whose default is outside the space.
  narrow = space_of("temperature=0.3..0.4", "task=mns,cbns").first()
  assert [x["task"] for x in narrow] == ["mns", "mns"]
  assert "temperature" not in narrow[0] and "learning_rate" in narrow[0]
  assert space_of(task="bir").first()[0].keys() >= {"temperature", "loss"}


def test_the_bilateral_loss_comes_next():
  space = space_of()
  first = space.first()
  assert [x["task"] for x in first[2:]] == ["ssl_pop", "xir"]
  for chosen in first[2:]:
    given = {name: chosen[name] for name in ("task", "loss")}
    given |= {"popularity_weight": 0.0, "learning_rate_schedule": "cosine"}
    assert given["loss"] == "bsl"
    expected = configs.from_preset(**given).for_data(data())
    assert space.config(chosen).resolved == expected.resolved
  for narrowed in ("loss=decoupled,psl", "popularity_weight=0.1..0.2"):
    assert len(space_of(narrowed).first()) == 2
  assert len(space_of(loss="decoupled").first()) == 2
  # CoRR has no other loss than its own.
  assert len(space_of(task="corr").first()) == 1


def test_given_settings_apply_to_all_trials():
  space = space_of(temperature=0.3, cache_size=64)
  assert "temperature" not in space.searched
  xir, ssl_pop = (space.config({"task": t}) for t in ("xir", "ssl_pop"))
  assert (xir.temperature, xir.cache_size) == (0.3, 64)
  assert ssl_pop.temperature == 0.3
  assert "cache_size" not in space.settings({"task": "ssl_pop"})
  with pytest.raises(settings.SettingsError, match="belongs.*no trial has"):
    space_of("task=ssl_pop,mns", cache_size=64)
  with pytest.raises(settings.SettingsError, match="--cache_weight belongs"):
    space_of("cache_weight=0.2..0.3", task="mns")
  # The penalty is searched if the optimizer has one.
  assert "l2" in space_of(optimizer="coupled_l2_adam").searched
  assert "l2" not in space_of().searched


def test_settings_that_do_not_suit_the_data_are_left_out():
  space, notes = spaces.of({}, (), data(candidates=10**6))
  assert not {"query_tower", "use_features"} & space.searched.keys()
  assert "full_softmax" not in space.searched["task"]
  assert (
    "full_softmax is not tried: there are many candidates, 1,000,000"
    in notes[0]
  )
  assert "full_softmax" in space_of().searched["task"]
  asked = space_of("task=full_softmax,xir", about=data(candidates=10**6))
  assert asked.searched["task"] == ("full_softmax", "xir")
  # Both kinds of models have the same metric.
  both, notes = spaces.of({}, (), data(times=True))
  assert both.fixed["history_ties"] == "strict" and "row by row" in notes[0]
  of_ids = space_of(about=data(times=True), query_tower="id")
  assert "history_ties" not in of_ids.fixed


def test_space():
  searched = space_of(
    "dim=32,64",
    "temperature=0.05..0.3",
    "cache_size=256..8192",
    "cache_weight=0.4..0.6",
    "use_features=true,false",
    "task=xir",
  ).searched
  assert searched["dim"] == (32, 64)
  assert searched["temperature"] == Span(0.05, 0.3, log=True)
  assert searched["cache_size"] == Span(256, 8192, log=True)
  assert searched["cache_weight"] == Span(0.4, 0.6)
  assert searched["use_features"] == (True, False)
  assert "task" not in searched
  assert space_of("task=xir").fixed["task"] == "xir"


@pytest.mark.parametrize(
  ("narrowed", "message"),
  [
    ("temperature", "must be NAME=LOW..HIGH or NAME=VALUE"),
    ("temperatur=1,2", "no setting 'temperatur'; did you mean 'temperature'"),
    ("temperature=warm,cold", "--space temperature must be a number"),
    ("temperature=0.3..0.1", "LOW..HIGH, the lower first"),
    ("temperature=0..1", "--space temperature must be positive"),
    ("loss=a..b", "takes values, not a range"),
    ("seed=1,2,3", "a search cannot choose seed"),
    ("epochs=1,2", "a search cannot choose epochs"),
    ("candidate_hidden=8,16", "a search cannot choose candidate_hidden"),
    ("task=svd,xir", "--space task must be one of ssl, "),
  ],
)
def test_wrong_spaces(narrowed, message):
  with pytest.raises(settings.SettingsError, match=message):
    space_of(narrowed)


def test_flag_and_space_exclude_each_other():
  with pytest.raises(settings.SettingsError, match="give one of them"):
    space_of("temperature=0.1..0.2", temperature=0.3)
  with pytest.raises(settings.SettingsError, match="dim is given twice"):
    space_of("dim=32", "dim=64")


def test_numbers_are_rounded():
  chosen = {"temperature": 0.123456789, "task": "ssl_pop"}
  assert space_of().settings(chosen)["temperature"] == 0.1235
