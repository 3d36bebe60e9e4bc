"""Progress: a bar on a terminal, lines elsewhere."""

import io

from xir_tfrs.programs import progress


class _Terminal(io.StringIO):
  def isatty(self):
    return True


def _work(stream, monkeypatch, **settings):
  monkeypatch.setattr(progress, "_SECONDS_PER_LINE", 1e-9)
  with progress.Progress("xir", 10, stream=stream, **settings) as report:
    report.update(4, "loss 0.5")
    report.write("validated")
    report.update(10, "loss 0.25")
  return stream.getvalue()


def test_lines_where_there_is_no_terminal(monkeypatch):
  lines = _work(io.StringIO(), monkeypatch).splitlines()
  assert lines[-3].startswith("xir 40%, loss 0.5, ")
  assert lines[-3].endswith(" left")
  assert lines[-2] == "validated"
  assert lines[-1].startswith("xir 100%, loss 0.25, ")


def test_lines_are_seldom():
  stream = io.StringIO()
  with progress.Progress("xir", 1000, stream=stream) as report:
    for step in range(1000):
      report.update_rows(step, rows=7)
  assert stream.getvalue() == ""
  assert report.rows == 7000


def test_a_bar_on_a_terminal(monkeypatch):
  text = _work(_Terminal(), monkeypatch)
  assert "\rxir, loss 0.5 |" in text
  assert "\n" in text and "validated" in text


def test_earlier_progress_does_not_count_for_the_rate(monkeypatch):
  assert "xir 40%, loss 0.5" in _work(io.StringIO(), monkeypatch, start=3)


def test_nothing_is_shown(monkeypatch):
  assert _work(io.StringIO(), monkeypatch, show=False) == ""


def test_what_came_before_a_new_start_does_not_count(monkeypatch):
  monkeypatch.setattr(progress, "_SECONDS_PER_LINE", 1e-9)
  now = [0.0]
  monkeypatch.setattr("tqdm.std.time", lambda: now[0])
  stream = io.StringIO()
  with progress.Progress("xir", 10, stream=stream) as report:
    now[0] = 100.0
    report.start_again(2)
    now[0] = 101.0
    report.update(4, "loss 0.5")
  assert stream.getvalue().splitlines()[-1] == "xir 40%, loss 0.5, 00:03 left"
