"""Docstrings: each public name has an example that runs, papers are listed."""

import importlib
import inspect
import pathlib
import re
import types

import pytest

import xir_tfrs as xir
from tests import examples

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_ROOMS = [name for name in xir.__all__ if name != "data"]
# They need a bundle: tests/export/bundle_test.py runs them.
_OF_BUNDLES = {f"serving.{name}" for name in xir.serving.__all__}


def _public(module, name):
  """(name, class or function) for all public names of a module."""
  listed = getattr(module, "__all__", None)
  for part in listed or vars(module):
    thing = getattr(module, part)
    if isinstance(thing, types.ModuleType):
      if listed and thing.__name__.startswith(module.__name__):
        yield from _public(thing, f"{name}.{part}")
    elif inspect.isroutine(thing) or inspect.isclass(thing):
      own = thing.__module__ == module.__name__
      if not part.startswith("_") and (listed or own):
        yield f"{name}.{part}", thing


def _of_data():
  """The classes of `data` in the API reference."""
  page = (_ROOT / "docs/api/data.md").read_text("utf-8")
  for name in re.findall(r"^::: xir_tfrs\.(data\.\w+)$", page, re.MULTILINE):
    module = importlib.import_module(f"xir_tfrs.{name}")
    for part, thing in _public(module, name):
      if inspect.isclass(thing):
        yield part, thing


_THINGS = dict(
  item for room in _ROOMS for item in _public(getattr(xir, room), room)
) | dict(_of_data())


def test_public_names_are_found():
  assert {
    "tasks.XIRRetrieval",
    "ops.losses.sampled_softmax",
    "ops.forms.build",
    "models.cold_start.encode",
    "serving.Bundle",
    "types.Feature",
  } <= set(_THINGS)


@pytest.mark.parametrize("name", sorted(_THINGS.keys() - _OF_BUNDLES))
def test_example(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert examples.run(_THINGS[name]), "it has no example"


# The reference ---------------------------------------------------------------


def test_every_public_name_is_in_the_reference():
  pages = sorted((_ROOT / "docs/api").glob("*.md"))
  text = "\n".join(page.read_text("utf-8") for page in pages)
  shown = set(re.findall(r"^::: xir_tfrs\.(\S+)$", text, re.MULTILINE))
  for name in _THINGS:
    # A page of `ops` shows all public names of a module.
    assert {name, name.rpartition(".")[0]} & shown, f"docs/api/: {name}"


def test_every_page_is_in_the_navigation():
  """`make docs` would silently leave it out."""
  docs = _ROOT / "docs"
  navigation = (_ROOT / "mkdocs.yml").read_text("utf-8")
  for page in sorted(docs.rglob("*.md")):
    assert f": {page.relative_to(docs)}\n" in navigation, page


# Papers ----------------------------------------------------------------------

_PAPER = re.compile(
  r"(?<!\w)([A-Z][a-z]+(?: et al\.| and [A-Z][A-Za-z]+)?)"
  r" ((?:19|20)\d\d[a-z]?)\b"
)


def test_papers_are_in_the_bibliography_and_cited():
  listed = dict.fromkeys(
    re.findall(
      r"^- \*\*(.+)\.\*\*$",
      (_ROOT / "docs/references.md").read_text("utf-8"),
      re.MULTILINE,
    ),
    False,
  )
  assert list(listed) == sorted(listed)
  for path in sorted((_ROOT / "xir_tfrs").rglob("*.py")):
    text = " ".join(path.read_text("utf-8").split())
    for authors, year in _PAPER.findall(text):
      paper = f"{authors} {year}"
      assert paper in listed, f"{path} cites {paper}; see docs/references.md"
      listed[paper] = True
  assert not [paper for paper, cited in listed.items() if not cited]
