"""`pipelines.inspect`: its output, its command, and its imports."""

import pathlib
import shlex
import subprocess
import sys

from pipelines import inspect, prepare
from xir_tfrs.programs import main as main_lib
from xir_tfrs.programs import settings

_ROOT = pathlib.Path(__file__).parents[2]


def _run(capsys, *words):
  argv = main_lib.words_as_flags(["inspect", *map(str, words)], "input")
  status = main_lib.run(inspect.InspectConfig, inspect.main, argv=argv)
  return status, *capsys.readouterr()


def test_inspect_shows_rows_counts_and_the_command(tmp_path, capsys):
  path = tmp_path / "shop log.csv"
  path.write_text(
    "timestamp;visitorid;event;itemid;stars\n"
    "1682944200117;7;view;a;3\n1682944200118;7;addtocart;a;5\n"
    "1682944200119;8;view;b;1\n"
  )
  status, out, err = _run(capsys, path, "--rows=2")
  assert (status, err) == (0, "")
  assert "read as: CSV, ';', header, times 1682944200117 (Unix milli" in out
  assert "  user  item  time\n  7     a     1682944200117\n" in out
  assert "3 rows, 2 users, 2 items, 1 repeated pairs" in out
  assert "'event' holds view, addtocart: select and weight" in out
  assert "'stars' may hold ratings" in out
  assert out.count("168294420011") == 3
  (command,) = [x for x in out.splitlines() if x.startswith("next: ")]
  words = shlex.split(command.removeprefix("next: "))[1:]
  parsed = settings.parse(prepare.PrepareConfig, words)
  config = settings.build(prepare.PrepareConfig, parsed.given)
  assert config.input.paths == (str(path),)
  columns = config.input.columns
  assert (columns.user, columns.item, columns.time) == (
    "visitorid", "itemid", "timestamp"
  )  # fmt: skip


def test_the_printed_command_repeats_given_flags(tmp_path, capsys):
  (tmp_path / "a.tsv").write_text("1\tU1\tN3-1 N4-0\n2\tU2\tN5-1\n")
  said = ["--names=log,user,shown", "--item_list_column=shown", "--noheader"]
  _, out, _ = _run(capsys, tmp_path / "a.tsv", *said)
  assert "2 rows, 2 users, 2 items" in out
  assert "--names log,user,shown" in out and "--noheader" in out
  assert "--item_list_column shown" in out and "--item_column" not in out


def test_errors_are_one_line(tmp_path, capsys):
  (tmp_path / "a.csv").write_text("user,thing\n1,2\n")
  status, _, err = _run(capsys, tmp_path / "a.csv")
  assert status == 1 and "no column has a name like item" in err
  assert err.count("\n") == 1
  assert _run(capsys)[0] == 2


def test_columns_of_other_names_are_shown_with_what_they_hold(tmp_path, capsys):
  path = tmp_path / "a.csv"
  path.write_text("Kunde;Artikel;Am;Nr\nK1;A1;31.12.2023 14:05;1\n")
  status, _, err = _run(capsys, path)
  assert status == 1
  assert (
    "no column has a name like user or item; the file has 'Kunde', 'A" in err
  )
  assert "(first row: K1, A1, 31.12.2023 14:05, 1): use --user_column" in err
  said = ["--user_column=Kunde", "--item_column=Artikel"]
  status, out, _ = _run(capsys, path, *said)
  assert status == 0 and out.count("holds dates") == 1
  assert "hint: 'Am' holds dates: --time_column Am" in out
  for time in ("Am", "none"):
    assert (
      "holds dates" not in _run(capsys, path, *said, f"--time_column={time}")[1]
    )


def test_features_of_an_item_file_are_guessed_and_checked(tmp_path, capsys):
  (tmp_path / "a.csv").write_text("user,item\n1,x0\n2,x1\n")
  rows = [
    f"x{n};Lamp No. {n};{'ab'[n % 2]};{n},50;{n % 3};4{n};new|red;;z{n}"
    for n in range(9)
  ]
  items = tmp_path / "items.csv"
  header = "item;Was;Art;Preis;Stufe;Nr;Marken;leer;EAN"
  items.write_text("\n".join([header, *rows]))
  status, out, _ = _run(capsys, tmp_path / "a.csv", f"--item_file={items}")
  assert status == 0
  guessed = (
    "--item_features Was:text,Art:token,Preis:float,Stufe:token,Nr:token,"
    "Marken:token_seq"
  )
  assert f"guessed by what it holds: {guessed}\n" in out
  (command,) = [x for x in out.splitlines() if x.startswith("next: ")]
  assert f"{guessed} --item_title Was --user_column" in command
  said = [f"--item_file={items}", "--item_features=Preis:float,Was:float"]
  status, out, err = _run(capsys, tmp_path / "a.csv", *said)
  assert status == 1 and "column 'Was': 'Lamp No. 0' is not a number" in err


def test_inspect_does_not_import_tensorflow(tmp_path):
  (tmp_path / "a.csv").write_text("user,item\n1,2\n")
  script = (
    "import sys; from pipelines import inspect;"
    "from xir_tfrs.programs import main as m;"
    f"argv = ['inspect', '--input={tmp_path}'];"
    "m.run(inspect.InspectConfig, inspect.main, argv=argv);"
    "print(*{'tensorflow', 'apache_beam'} & sys.modules.keys())"
  )
  done = subprocess.run(
    [sys.executable, "-c", script],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  assert "1 rows, 1 users" in done.stdout
  assert done.stdout.endswith("\n\n")
