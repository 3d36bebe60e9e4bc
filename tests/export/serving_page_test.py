"""The page to try a bundle, in this process, and in a browser if there is one.

The browser needs `pip install selenium`, and chromium with its driver.
"""

import json
import os
import re
import shutil
import threading
import types

import numpy as np
import pytest

from export.serving import catalogue, demo, options, service, tensors
from tests.export import fake_server

HOSTILE = "<img src=x onerror=document.title='bad'> & \"'"
TITLES = [f"Film {number}" for number in range(30)]
TITLES[7] = HOSTILE
TITLES[9] = ""
_LISTS = {
  name: {"dtype": "string", "shape": [None, None]}
  for name in ("history", "exclude_ids", "allow_ids")
}
_K = {"dtype": "int32", "shape": []}
_ONE = {"dtype": "string", "shape": [None]}


class Shop:
  """Recommends the next items: n + 1, n + 2, ... after item n."""

  version, max_k = 3, 50
  signatures = {
    name: {"inputs": {**inputs, "k": _K}, "outputs": {}}
    for name, inputs in {
      "recommend": {"query_id": _ONE, "exclude_ids": _LISTS["exclude_ids"]},
      "recommend_unseen": {
        "query_id": _ONE,
        "exclude_ids": _LISTS["exclude_ids"],
      },
      "recommend_session": {
        name: _LISTS[name] for name in ("history", "exclude_ids")
      },
      "similar_items": {"ids": _ONE},
    }.items()
  }

  def __init__(self):
    self.gate, self.asked = threading.Event(), []
    splits = np.zeros(6, np.int64)
    splits[1:] = [3, 4, 4, 4, 4]
    self.bundle = types.SimpleNamespace(
      index="none",
      takes_times=False,
      manifest=types.SimpleNamespace(
        id_types=types.SimpleNamespace(query="string", candidate="string")
      ),
      candidate_ids=np.array([f"i{n}" for n in range(30)], object),
      query_ids=np.array(["ann", "bob", "<b>", "cy", "dee"], object),
      titles=TITLES,
      seen=(splits, np.array([4, 5, 7, 1])),
    )
    self.catalogue = catalogue.Catalogue(self.bundle)

  def run(self, signature, inputs):
    self.asked.append((signature, {x: y.tolist() for x, y in inputs.items()}))
    ids = inputs.get("history", inputs.get("ids"))
    first = 4 if ids is None else int(ids.ravel()[-1][1:])
    left_out = set(inputs.get("exclude_ids", np.array([], object)).ravel())
    names = [b"i%d" % n for n in range(first + 1, 30)]
    names = [x for x in names if x not in left_out][: int(inputs["k"])]
    width = int(inputs["k"])
    found = np.full([1, width], b"", object)
    found[0, : len(names)] = names
    scores = np.full([1, width], -np.inf, np.float32)
    scores[0, : len(names)] = -np.arange(len(names))
    answer = {
      "candidate_ids": found,
      "scores": scores,
      "num_found": np.array([len(names)], np.int32),
    }
    if "query_id" in inputs:
      known = inputs["query_id"][0] == b"ann"
      answer |= {"known": np.array([known]), "popular": np.array([not known])}
    return answer


@pytest.fixture(scope="module")
def running(tmp_path_factory):
  directory = tmp_path_factory.mktemp("none")
  # No batches: `Shop` only answers one row.
  with fake_server.run(
    directory, Shop(), drain_seconds=0.0, max_batch_size=1
  ) as made:
    yield made


def get(running, path):
  status, text, headers = running.http("GET", path)
  assert status == 200 and headers["X-Content-Type-Options"] == "nosniff"
  return json.loads(text)


def ask(running, **question):
  status, text, _ = running.http("POST", "/demo/ask", json.dumps(question))
  return status, json.loads(text)


def test_the_page_loads_nothing_and_runs_its_own_script_alone(running):
  status, text, headers = running.http("GET", "/")
  assert status == 200 and headers["Content-Type"].startswith("text/html")
  loaded = re.findall(
    r"(?:src|href|url|@import|import)[=(\"' ]+([^\"')]+)", text
  )
  assert set(loaded) == {"data:,"}
  policy = dict(
    part.strip().split(" ", 1)
    for part in headers["Content-Security-Policy"].split(";")
  )
  assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
  assert policy["connect-src"] == "'self'"
  for kind in ("script-src", "style-src"):
    assert re.fullmatch(r"'sha256-[\w+/]{43}='", policy[kind])
  # The page never inserts text as markup.
  for unsafe in (
    "innerHTML",
    "outerHTML",
    "insertAdjacent",
    "eval(",
    "onclick",
  ):
    assert unsafe not in text


def test_items_and_queries_are_found_by_parts_of_their_names(running):
  assert get(running, "/demo/about") == {
    **{"name": "retriever", "version": 3, "index": "none"},
    **{"items": 30, "queries": 5, "titles": True, "times": False},
    "example": "ann",
  }
  found = get(running, "/demo/items?text=fIlM%202")
  assert [x["id"] for x in found] == ["i2", *(f"i{n}" for n in range(20, 30))]
  assert get(running, "/demo/items?text=i9") == [{"id": "i9", "title": "i9"}]
  assert get(running, "/demo/items?text=onerror")[0]["title"] == HOSTILE
  assert len(get(running, "/demo/items?text=film")) == 20
  assert get(running, "/demo/queries?text=b") == ["bob", "<b>"]
  history = get(running, "/demo/history?query=ann")
  assert [x["id"] for x in history] == ["i4", "i5", "i7"]
  assert history[2]["title"] == HOSTILE
  assert get(running, "/demo/history?query=nobody") is None


def test_texts_are_found_equal_ones_first():
  texts = catalogue.Texts(["a beta", "Beta", "BETAmax", "Straße", "x\ny", ""])
  for wanted, found in (
    ("beta", [1, 2, 0]),
    ("STRASSE", [3]),
    ("x y", [4]),
    ("a", [0, 1, 2, 3]),
    ("none", []),
    ("\n", [0, 4]),
  ):
    assert texts.find(wanted, 9) == found, wanted
  assert texts.find("beta", 2) == [1, 2]
  assert texts.find("", 3) == [0, 1, 2]
  assert catalogue.Texts([]).find("a", 3) == []


def test_questions_are_answered_with_titles_and_the_predict_call(running):
  status, found = ask(running, query="ann", k=3, exclude=["i5"], unseen=True)
  assert status == 200 and (found["known"], found["popular"]) == (True, False)
  assert found["items"] == [
    {"id": "i6", "title": "Film 6", "score": 0.0},
    {"id": "i7", "title": HOSTILE, "score": -1.0},
    {"id": "i8", "title": "Film 8", "score": -2.0},
  ]
  assert found["request"] == {
    "signature_name": "recommend_unseen",
    "inputs": {"query_id": ["ann"], "k": 3, "exclude_ids": [["i5"]]},
  }
  status, text, _ = running.http(
    "POST", fake_server.PREDICT, json.dumps(found["request"])
  )
  assert json.loads(text)["outputs"]["candidate_ids"] == [["i6", "i7", "i8"]]
  _, found = ask(running, history=["i20", "i27"], k=9)
  assert [x["id"] for x in found["items"]] == ["i28", "i29"]
  _, found = ask(running, similar="i2", k=1)
  assert found["items"][0]["id"] == "i3"
  # A known query is answered by its vector; an unknown one by its history.
  _, found = ask(running, query="ann", history=["i27"])
  assert found["unused_history"]
  _, found = ask(running, query="nobody", history=["i27"])
  assert found["items"][0]["id"] == "i28" and not found["unused_history"]


@pytest.mark.parametrize(
  "body", ["", "[", "[]", '{"k": "3"}', '{"x": 1}', '{"k": 0, "query": "ann"}']
)
def test_other_questions_are_refused(running, body):
  status, text, _ = running.http("POST", "/demo/ask", body)
  assert status == 400 and json.loads(text)["error"]


def test_whole_numbers_are_asked_as_such():
  model = Shop()
  model.bundle.manifest.id_types.candidate = "int64"
  question = demo.Question(history=["90071992547409931"])
  _, inputs = demo._request(question, model)
  assert inputs["history"] == [[90071992547409931]]
  with pytest.raises(Exception, match="item ids must be integers. Received: x"):
    demo._request(demo.Question(similar="x"), model)


def test_times_are_sent_if_that_of_the_request_is_known():
  given = {"history": ["i1", "i2"], "history_times": [5, None]}
  _, inputs = demo._request(demo.Question(**given, time=9), Shop())
  assert inputs["history_times"] == [[5, None]] and inputs["time"] == [9]
  _, inputs = demo._request(demo.Question(**given), Shop())
  assert not {"history_times", "time"} & set(inputs)


def test_nodemo_removes_all_addresses_of_the_page(tmp_path):
  with fake_server.run(
    tmp_path, Shop(), demo=False, drain_seconds=0.0
  ) as running:
    for path in ("/", "/demo/about", "/demo/items"):
      assert running.status(path) == 404
  assert options.ServeOptions(bundle="b").demo


@pytest.fixture
def browser():
  webdriver = pytest.importorskip("selenium.webdriver")
  if not (shutil.which("chromium") and shutil.which("chromedriver")):
    pytest.skip("needs chromium and chromedriver")
  given = webdriver.ChromeOptions()
  for argument in ("headless=new", "no-sandbox", "window-size=1100,1400"):
    given.add_argument(f"--{argument}")
  given.set_capability("goog:loggingPrefs", {"browser": "ALL"})
  service = webdriver.ChromeService(shutil.which("chromedriver"))
  made = webdriver.Chrome(options=given, service=service)
  yield made
  made.quit()


def _loading(*_):
  raise tensors.RequestError("UNAVAILABLE", "the bundle is being loaded")


def test_in_a_browser(running, browser, tmp_path, monkeypatch):
  def text(element):
    return browser.find_element("id", element).text

  def press(label, within="body"):
    for button in browser.find_elements("css selector", f"{within} button"):
      if button.text.startswith(label):
        return button.click()
    raise AssertionError(label)

  def until(condition):
    fake_server.wait_for(lambda: condition() or None)

  # It tries again until the bundle is loaded.
  with monkeypatch.context() as patch:
    patch.setattr(service.Service, "model", _loading)
    browser.get(f"http://127.0.0.1:{running.port}/")
    until(lambda: text("error") == "the bundle is being loaded")
  browser.get_log("browser")  # Forgets the refused call.
  until(lambda: "30 items, 5 users" in text("about"))
  assert text("error") == ""
  # It starts with an example.
  until(lambda: "Film 5" in text("answers"))
  assert text("heading") == "Recommendations for ann"
  assert not browser.find_element("id", "time").is_displayed()
  browser.find_element("id", "query").clear()
  until(lambda: text("hint") == "Choose a user, or items.")
  browser.find_element("id", "query").send_keys("an")
  until(lambda: "ann" in text("found-queries"))
  press("ann", "#found-queries")
  until(lambda: "Film 5" in text("answers"))
  assert HOSTILE in text("history") and HOSTILE in text("answers")
  browser.save_screenshot(str(tmp_path / "page.png"))
  # Excludes an item, and finds items similar to another.
  press("−", "#answers tr:first-child")
  until(lambda: "Film 5" not in text("answers"))
  assert "Left out: Film 5" in text("excluded").replace("\n", " ")
  press("similar", "#answers tr:first-child")
  until(lambda: "Similar to Film 6" in text("similar-heading"))
  until(lambda: HOSTILE in text("similar-answers"))
  # Only from items.
  query = browser.find_element("id", "query")
  query.clear()
  browser.find_element("id", "item").send_keys("Film 27")
  until(lambda: "Film 27" in text("found-items"))
  press("Film 27", "#found-items")
  until(
    lambda: "Film 28" in text("answers") and "Film 6" not in text("answers")
  )
  assert text("heading") == "Recommendations"
  assert browser.title == "Try the recommender"
  assert [x for x in browser.get_log("browser") if x["level"] == "SEVERE"] == []
  if target := os.environ.get("XIR_SCREENSHOT"):
    shutil.copy(tmp_path / "page.png", target)
