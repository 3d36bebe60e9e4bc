"""A page: sections of sentences, charts and tables, in one HTML file."""

from __future__ import annotations

import dataclasses
import pathlib

import jinja2
from markupsafe import Markup

_TEMPLATE = "page.html"


@dataclasses.dataclass(frozen=True)
class Cell:
  """A cell of a table.

  Attributes:
    text: What it says.
    detail: In small print beside it.
    best: Whether it stands out.
  """

  text: str
  detail: str = ""
  best: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
  """A table; the first column names the rows.

  Attributes:
    name: By which programs find it.
    header: Names of the columns, that of the first one included.
    rows: Cells, or their texts.
    says: A sentence.
  """

  name: str
  header: tuple[str, ...]
  rows: tuple[tuple[str | Cell, ...], ...]
  says: str = ""


@dataclasses.dataclass(frozen=True)
class Chart:
  """A chart.

  Attributes:
    svg: It.
    says: A sentence that says what one sees.
  """

  svg: Markup
  says: str


@dataclasses.dataclass(frozen=True)
class Named:
  """A candidate of a list: what it is called, and its id where that differs."""

  name: str
  id: str
  taken: bool = False


@dataclasses.dataclass(frozen=True)
class Card:
  """An example: a title, and lists by name."""

  title: str
  lists: dict[str, tuple[Named, ...]]


@dataclasses.dataclass(frozen=True)
class Section:
  """A part of a page.

  Attributes:
    title: Its heading.
    says: Sentences, a paragraph each.
    charts: Beside each other, where there is room.
    tables: Below them.
    cards: Below these.
    folded: Whether it opens by a click.
  """

  title: str
  says: tuple[str, ...] = ()
  charts: tuple[Chart, ...] = ()
  tables: tuple[Table, ...] = ()
  cards: tuple[Card, ...] = ()
  folded: bool = False


@dataclasses.dataclass(frozen=True)
class Page:
  """A page.

  Attributes:
    title: Its heading.
    says: Sentences, a paragraph each.
    facts: Name -> value, at the top.
    warnings: Sentences that stand out.
    sections: Its parts.
  """

  title: str
  says: tuple[str, ...]
  facts: dict[str, str]
  warnings: tuple[str, ...]
  sections: tuple[Section, ...]


def render(page: Page) -> str:
  """The HTML, which needs nothing else: neither a network nor other files."""
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.tests["detailed"] = lambda value: isinstance(value, Cell)
  return environment.get_template(_TEMPLATE).render(page=page) + "\n"
