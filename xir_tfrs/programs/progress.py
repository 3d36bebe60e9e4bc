"""Progress reports: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

import tqdm

_SECONDS_PER_LINE = 10.0
# tqdm puts a comma before the postfix.
_BAR = "{desc}{postfix} |{bar}| {percentage:3.0f}% {remaining}"
_LINE = "{desc} {percentage:.0f}%{postfix}, {remaining} left"


class _Lines(tqdm.tqdm):
  """Prints a line per report, for outputs that cannot redraw a bar."""

  def display(self, msg: str | None = None, pos: int | None = None) -> None:
    # At the end, tqdm shows "" to erase its bar.
    if msg is None:
      print(self, file=self.fp, flush=True)

  @classmethod
  def write(cls, s: str, file: Any = None, **unused: Any) -> None:
    print(s, file=file, flush=True)


class Progress:
  """Reports progress, a text and the remaining time; a context manager.

  Attributes:
    rows: Rows reported so far.
  """

  def __init__(
    self,
    title: str,
    total: int,
    *,
    start: int = 0,
    show: bool = True,
    stream: TextIO | None = None,
  ):
    """Starts the report.

    Args:
      title: Name of the work.
      total: Amount of work, in any unit.
      start: Amount that was done before.
      show: Whether to report anything.
      stream: Output; by default stderr.
    """
    stream = sys.stderr if stream is None else stream
    on_terminal = stream.isatty()
    self._stream = stream
    self._began = time.monotonic()
    self.rows = 0
    self._bar: tqdm.tqdm = (tqdm.tqdm if on_terminal else _Lines)(
      total=max(total, 1),
      initial=start,
      desc=title,
      file=stream,
      leave=False,
      disable=not show,
      miniters=1,
      mininterval=0.1 if on_terminal else _SECONDS_PER_LINE,
      delay=0 if on_terminal else _SECONDS_PER_LINE,
      bar_format=_BAR if on_terminal else _LINE,
    )

  def update(self, done: int, text: str) -> None:
    """Reports that `done` of the total are done, with a text."""
    self._bar.set_postfix_str(text, refresh=False)
    self._bar.update(done - self._bar.n)

  def start_again(self, done: int) -> None:
    """Starts the clock of the remaining time, with `done` of the total done."""
    self._bar.initial = self._bar.n = self._bar.last_print_n = done
    self._bar.unpause()

  def update_rows(self, done: int, rows: int) -> None:
    """Reports that `done` of the total and `rows` more rows are done."""
    self.rows += rows
    rate = self.rows / max(time.monotonic() - self._began, 1e-9)
    self.update(done, f"{self.rows:,} rows, {rate:,.0f} rows/s")

  def write(self, line: str) -> None:
    """Prints a line above the bar."""
    if not self._bar.disable:
      self._bar.write(line, file=self._stream)

  def __enter__(self) -> Progress:
    return self

  def __exit__(self, *unused_exception: object) -> None:
    self._bar.close()
