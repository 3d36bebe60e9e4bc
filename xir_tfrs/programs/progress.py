"""How far long work has come: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import datetime
import sys
import time
from typing import TextIO

_SECONDS_PER_LINE = 10.0


class Progress:
  """Reports a share of `total`, a text and the time left; a context manager.

  Attributes:
    rows: rows reported so far.
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
    """Begins to count.

    Args:
      title: what is being done.
      total: how much there is to do, in any unit.
      start: how much of it was done before.
      show: whether to say anything.
      stream: where to; None: stderr.
    """
    self._title, self._total, self._start = title, max(total, 1), start
    self._show = show
    self._stream = sys.stderr if stream is None else stream
    self._began = self._last_line = time.monotonic()
    self.rows = 0
    self._bar = None
    if show and self._stream.isatty():
      import tqdm

      self._bar = tqdm.tqdm(
        total=self._total,
        initial=start,
        desc=title,
        file=self._stream,
        leave=False,
        bar_format="{desc} {percentage:3.0f}% |{bar}| {postfix}{remaining}",
      )

  def update(self, done: int, text: str) -> None:
    """Reports that `done` of the total are done, and how it goes."""
    now = time.monotonic()
    if self._bar is not None:
      self._bar.set_postfix_str(text, refresh=False)
      self._bar.update(done - self._bar.n)
    elif self._show and now - self._last_line >= _SECONDS_PER_LINE:
      self._last_line = now
      share = 100 * done // self._total
      self.write(f"{self._title} {share}%: {text}, {self._left(done, now)}")

  def update_rows(self, done: int, rows: int) -> None:
    """`update` for work on rows: `rows` more of them."""
    self.rows += rows
    rate = self.rows / max(time.monotonic() - self._began, 1e-9)
    self.update(done, f"{self.rows:,} rows, {rate:,.0f} rows/s")

  def write(self, line: str) -> None:
    """Prints a line of its own above the bar."""
    if self._bar is not None:
      self._bar.write(line, file=self._stream)
    elif self._show:
      print(line, file=self._stream, flush=True)

  def _left(self, done: int, now: float) -> str:
    share = (done - self._start) / max(self._total - self._start, 1)
    if share <= 0:
      return "time left unknown"
    seconds = (now - self._began) * (1 - share) / share
    return f"{datetime.timedelta(seconds=round(seconds))} left"

  def __enter__(self) -> Progress:
    return self

  def __exit__(self, *unused_exception) -> None:
    if self._bar is not None:
      self._bar.close()
