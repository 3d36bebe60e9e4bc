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
    text: The text.
    detail: Small print beside it.
    best: Whether to highlight it.
  """

  text: str
  detail: str = ""
  best: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
  """A table; the first column names the rows.

  Attributes:
    name: Id, by which programs find the table.
    header: Names of all columns, including the first.
    rows: Cells, or their texts.
    says: A caption.
  """

  name: str
  header: tuple[str, ...]
  rows: tuple[tuple[str | Cell, ...], ...]
  says: str = ""


@dataclasses.dataclass(frozen=True)
class Chart:
  """A chart.

  Attributes:
    svg: The chart.
    says: A caption.
  """

  svg: Markup
  says: str


@dataclasses.dataclass(frozen=True)
class Named:
  """A candidate in a list: its name, and its id if that differs."""

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
    title: The heading.
    says: Paragraphs.
    charts: Charts, side by side if there is room.
    tables: Tables, below the charts.
    cards: Cards, below the tables.
    folded: Whether a click opens the section.
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
    title: The heading.
    says: Paragraphs.
    facts: Name -> value, at the top.
    warnings: Highlighted sentences.
    sections: The sections.
  """

  title: str
  says: tuple[str, ...]
  facts: dict[str, str]
  warnings: tuple[str, ...]
  sections: tuple[Section, ...]


def render(page: Page) -> str:
  """Renders self-contained HTML, which needs no network and no other files."""
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.tests["detailed"] = lambda value: isinstance(value, Cell)
  return environment.get_template(_TEMPLATE).render(page=page) + "\n"
