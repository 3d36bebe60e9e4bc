"""Charts as SVG within a page, in the colours of the page.

Matplotlib draws with one placeholder colour per role. The SVG replaces them by
variables of the style sheet, so charts match a dark or a light page. Text stays
text.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib import figure

_INK, _GRID, _PLAIN = "#010101", "#020202", "#040404"
_SERIES = tuple(f"#0{number}0303" for number in range(1, 7))
_ROLES = {
  _INK: "currentColor",
  _GRID: "var(--grid)",
  _PLAIN: "var(--plain)",
  **{color: f"var(--series-{n})" for n, color in enumerate(_SERIES, start=1)},
}
_DASHES = ("-", "--", ":")
# The rankings that others are compared with.
_REFERENCES = ("popularity", "interactions")
_MOST_POINTS = 400
_STYLE = {
  "svg.fonttype": "none",
  "font.family": "sans-serif",
  "font.size": 9,
  "text.color": _INK,
  "axes.labelcolor": _INK,
  "axes.edgecolor": _GRID,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.grid": True,
  "axes.axisbelow": True,
  "axes.facecolor": "none",
  "grid.color": _GRID,
  "xtick.color": _GRID,
  "ytick.color": _GRID,
  "xtick.labelcolor": _INK,
  "ytick.labelcolor": _INK,
  "legend.frameon": False,
}
# Interval of each bar; None without a bar or an interval.
Ends = Sequence[tuple[float, float] | None]


def lines(
  label: str,
  series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
  *,
  x: str,
  y: str,
  mark: tuple[float, float] | None = None,
) -> Markup:
  """Draws curves.

  Args:
    label: Description of the chart, for screen readers.
    series: Name -> positions and values.
    x: Label of the x axis.
    y: Label of the y axis.
    mark: A point to mark.
  """
  with mpl.rc_context(_STYLE):
    canvas, axes = _axes(x, y)
    for (name, (places, values)), (color, dash) in zip(
      series.items(), _looks(series), strict=True
    ):
      places, values = _thinned(places, values)
      marker = "o" if len(places) == 1 else None
      axes.plot(
        places,
        values,
        color=color,
        linestyle=dash,
        label=name,
        linewidth=1.6,
        marker=marker,
      )
    if mark is not None:
      axes.plot(*mark, "o", color=_INK, markersize=5, fillstyle="none")
    return _svg(canvas, label, has_legend=len(series) > 1)


def bars(
  label: str,
  groups: Sequence[str],
  series: Mapping[str, Sequence[float | None]],
  *,
  y: str,
  ends: Mapping[str, Ends] | None = None,
) -> Markup:
  """Draws groups of bars with intervals.

  Args:
    label: Description of the chart, for screen readers.
    groups: Names of the groups.
    series: Name -> a value for each group; None for no bar.
    y: Label of the y axis.
    ends: Name -> an interval for each group.
  """
  with mpl.rc_context(_STYLE):
    canvas, axes = _axes(None, y)
    width = 0.8 / len(series)
    for number, ((name, values), (color, _)) in enumerate(
      zip(series.items(), _looks(series), strict=True)
    ):
      shift = (number - (len(series) - 1) / 2) * width
      places = np.arange(len(groups)) + shift
      heights = [value or 0.0 for value in values]
      axes.bar(places, heights, width * 0.92, color=color, label=name)
      for place, end in zip(places, (ends or {}).get(name, ()), strict=False):
        if end is not None:
          axes.plot([place, place], end, color=_INK, linewidth=1)
    axes.set_xticks(range(len(groups)), groups)
    axes.grid(False, axis="x")
    axes.set_ylim(bottom=0)
    return _svg(canvas, label, has_legend=len(series) > 1)


def points(
  label: str,
  series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
  *,
  x: str,
  y: str,
  level: float | None = None,
) -> Markup:
  """Draws points.

  Args:
    label: Description of the chart, for screen readers.
    series: Name -> positions and values.
    x: Label of the x axis.
    y: Label of the y axis.
    level: Height of a horizontal line.
  """
  with mpl.rc_context(_STYLE):
    canvas, axes = _axes(x, y)
    for (name, (places, values)), (color, _) in zip(
      series.items(), _looks(series), strict=True
    ):
      axes.plot(places, values, "o", color=color, label=name, markersize=5)
    if level is not None:
      axes.axhline(level, color=_INK, linewidth=1, linestyle="--")
    return _svg(canvas, label, has_legend=len(series) > 1)


def _axes(x: str | None, y: str):
  canvas = figure.Figure(figsize=(6.2, 2.9), layout="constrained")
  canvas.patch.set_alpha(0)
  axes = canvas.add_subplot()
  axes.set_ylabel(y)
  if x is not None:
    axes.set_xlabel(x)
  return canvas, axes


def _looks(names: Iterable[str]) -> list[tuple[str, str]]:
  """Color and dashes of each series."""
  others = itertools.cycle(itertools.product(_DASHES, _SERIES))
  found = []
  for name in names:
    if name in _REFERENCES:
      found.append((_PLAIN, "-"))
    else:
      dash, color = next(others)
      found.append((color, dash))
  return found


def _thinned(
  places: Sequence[float], values: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
  """Averages neighbours if there are more points than can be seen."""
  parts = min(len(places), _MOST_POINTS)
  if not parts:
    return np.zeros(0), np.zeros(0)
  first, second = (
    np.array([part.mean() for part in np.array_split(np.asarray(x), parts)])
    for x in (places, values)
  )
  return first, second


def _svg(canvas: figure.Figure, label: str, has_legend: bool) -> Markup:
  """The SVG element, with ids that are unique in the page."""
  if has_legend:
    canvas.axes[0].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
  with mpl.rc_context({"svg.hashsalt": label}):
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    canvas.savefig(file, format="svg", metadata=nothing)
  text = file.getvalue()
  text = text[text.index("<svg") :]
  text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
  text = re.sub(r' id="[\w.]+_\d+"', "", text)
  # Markers and clip paths are referenced by id, and two charts may use the same
  # id for different shapes.
  own = hashlib.sha256(text.encode()).hexdigest()[:8]
  text = re.sub(r'(id="|#)([mp][0-9a-f]{10})\b', rf"\g<1>\g<2>{own}", text)
  text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
  for color, role in _ROLES.items():
    text = text.replace(color, role)
  named = Markup('<svg role="img" aria-label="{}"').format(label)
  return Markup(text.replace("<svg", named, 1))
