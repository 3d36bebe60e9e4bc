"""Settings: flags and files from a dataclass, and refused values."""

import dataclasses
import json
import textwrap
import types
from typing import Any

import pytest

from xir_tfrs.programs import settings


@dataclasses.dataclass(frozen=True)
class _Cells(settings.Settings):
  size: int = settings.setting("Cells.", 5, minimum=0, flag="cell_size")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Config(settings.Settings):
  data: str = settings.setting("Directory.")
  dim: int = settings.setting("Size.", 64, above=0)
  rate: float = settings.setting("Rate.", 0.5, minimum=0, maximum=1)
  weight: float | None = settings.setting("Weight.", None, minimum=-2)
  kind: str = settings.setting("Kind.", "a", choices=("a", "b", "c"))
  hidden: tuple[int, ...] = settings.setting("Layers.", ())
  names: tuple[str, ...] = settings.setting("Names.", (), choices=("x", "y"))
  files: tuple[str, ...] = settings.setting("Files.", (), multi=True)
  fast: bool = settings.setting("Fast.", False)
  extra: dict[str, Any] | None = settings.setting("Extra.", None)
  cells: _Cells = _Cells()
  cut: int = settings.setting("Cut.", 3, only={"kind": "b"})
  top: int | None = settings.setting(
    "Top.", None, only=({"kind": ("b", "c"), "dim": 2}, {"fast": True})
  )


def given(*argv):
  return settings.parse(_Config, ["program", *argv]).given


def test_flags_of_every_type():
  found = given(
    *("--data=d", "--dim=3", "--rate", "1e-2", "--weight=-1", "--kind=b"),
    *("--hidden=32,16", "--names=y,x", "--files=a,b", "--files=c", "--fast"),
    *("--extra", 'x=1,y=text,"z=[1,2]",u=true', "--cell_size=7"),
  )
  assert settings.build(_Config, found) == _Config(
    data="d",
    dim=3,
    rate=0.01,
    weight=-1.0,
    kind="b",
    hidden=(32, 16),
    names=("y", "x"),
    files=("a,b", "c"),
    fast=True,
    extra={"x": 1, "y": "text", "z": [1, 2], "u": True},
    cells=_Cells(size=7),
  )


def test_only_given_flags_are_given():
  assert given() == {}
  # Even if it equals the default.
  assert given("--dim=64", "--nofast", "--hidden=") == {
    "dim": 64,
    "fast": False,
    "hidden": (),
  }


WRONG = [
  ("dim", "1.5", "must be a whole number"),
  ("dim", "many", "must be a whole number"),
  ("dim", "0", "must be positive"),
  ("rate", "half", "must be a number"),
  ("rate", "nan", "must be a finite number"),
  ("rate", "-0.1", "must not be negative"),
  ("rate", "1.01", "must be at most 1"),
  ("weight", "inf", "must be a finite number"),
  ("weight", "-3", "must be at least -2"),
  ("kind", "d", "must be one of a, b, c"),
  ("hidden", "3,x", "must be whole numbers"),
  ("names", "x,z", "must be one of x, y"),
  ("extra", "x", "must be name=value"),
  ("extra", "x=1,x=2", "must be name=value"),
  ("cell_size", "-1", "must not be negative"),
]


@pytest.mark.parametrize("flag", ["--dim=5.0", "--hidden=3,5.0"])
def test_a_flag_of_whole_numbers_takes_no_fraction(flag):
  with pytest.raises(settings.SettingsError, match="must be.*whole number"):
    given(flag)


@pytest.mark.parametrize(("name", "value", "message"), WRONG)
def test_wrong_values_name_the_flag_or_the_key(tmp_path, name, value, message):
  with pytest.raises(settings.SettingsError, match=f"^--{name} {message}"):
    given(f"--{name}={value}")
  path = tmp_path / "run.yaml"
  path.write_text(f"{name}: {value}\n")
  with pytest.raises(settings.SettingsError) as caught:
    settings.read_file(path, _Config)
  assert str(caught.value).startswith(f"{path}: {name} {message}")


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    ({"dim": 0}, "--dim must be positive"),
    ({"dim": True}, "--dim must be a whole number"),
    ({"dim": None}, "--dim must be a whole number"),
    ({"hidden": [1, False]}, "--hidden must be whole numbers"),
    ({"rate": float("nan")}, "--rate must be a finite number"),
    ({"fast": "perhaps"}, "--fast must be true or false"),
  ],
)
def test_a_config_made_in_python_is_checked(changed, message):
  with pytest.raises(settings.SettingsError, match=message):
    _Config(data="d", **changed)


@pytest.mark.parametrize(
  ("argument", "message"),
  [
    ("--dims=3", "Unknown command line flag 'dims'.*mean: dim"),
    ("--config=/nowhere/run.yaml", "/nowhere/run.yaml: No such file"),
  ],
)
def test_invalid_flags_and_files(argument, message):
  with pytest.raises(settings.SettingsError, match=message):
    given(argument)


@pytest.mark.parametrize("argument", ["--hidden=3", "--extra=x=1"])
def test_a_list_is_given_at_once(argument):
  with pytest.raises(
    settings.SettingsError, match="is given 2 times: give all"
  ):
    given(argument, argument)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--dim=3", "--dim", "5"], "--dim is given 2 times.* --dim 3 and --dim 5"),
    (["--fast", "--nofast"], "--fast is given 2 times.* --fast and --nofast"),
    (["--config=a", "--config=b"], "--config is given 2 times"),
  ],
)
def test_the_last_of_several_values_does_not_win(arguments, message):
  with pytest.raises(settings.SettingsError, match=message):
    given(*arguments)


def test_the_same_value_may_be_given_again():
  found = given("--dim=3", "--fast", "--debug", "--dim=3", "--fast", "--debug")
  assert found == {"dim": 3, "fast": True}


def test_home_is_expanded_after_an_equals_sign(monkeypatch):
  monkeypatch.setenv("HOME", "/home/ann")
  assert given("--data=~/x", "--files=~/a b", "--files", "~/c") == {
    "data": "/home/ann/x",
    "files": ("/home/ann/a b", "~/c"),
  }
  assert given("--data=~", "--kind=a") == {"data": "~", "kind": "a"}


def test_a_needed_flag():
  with pytest.raises(settings.SettingsError, match="--data is required: Direc"):
    settings.build(_Config, {})


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_a_written_config_is_read_again(tmp_path, suffix):
  config = _Config(
    data="d",
    rate=1e-5,
    hidden=(3,),
    files=("a,b",),
    extra={"x": [1]},
    cells=_Cells(size=2),
  )
  path = tmp_path / f"run{suffix}"
  # JSON is YAML, but YAML reads 1e-05 as text.
  path.write_text(json.dumps(settings.as_dict(config)))
  found = given(f"--config={path}")
  assert settings.build(_Config, found) == config
  # Flags override the file.
  found = given("--dim=3", f"--config={path}", "--hidden=4,5")
  expected = dataclasses.replace(config, dim=3, hidden=(4, 5))
  assert settings.build(_Config, found) == expected


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("dmi: 3", "there is no setting 'dmi'; did you mean 'dim'?"),
    ("zzzzz: 3", "there is no setting 'zzzzz'; see --help."),
    ("dim: 3\ndim: 4", "'dim' is given twice"),
    ("extra: {x: 1, x: 2}", "'x' is given twice"),
    ("dim: [", "cannot be read: while parsing"),
    ("- dim", "must map the names of settings to values"),
    ("hidden: {a: 1}", "hidden must be whole numbers"),
    ("dim: true", "dim must be a whole number"),
  ],
)
def test_wrong_files_name_file_and_key(tmp_path, text, message):
  path = tmp_path / "run.yaml"
  path.write_text(text)
  with pytest.raises(settings.SettingsError) as caught:
    given(f"--config={path}")
  assert str(path) in str(caught.value) and message in str(caught.value)


def test_an_empty_file_gives_nothing(tmp_path):
  (tmp_path / "run.yaml").write_text("# nothing yet\n")
  assert given(f"--config={tmp_path / 'run.yaml'}") == {}


def test_naming_takes_our_own_errors_only():
  resampling = types.ModuleType("xir_tfrs.resampling")
  exec("def f(): raise ValueError('`x` must be odd.')", vars(resampling))
  with pytest.raises(settings.SettingsError, match="--task xir: `x` must be"):
    with settings.naming("--task xir"):
      resampling.f()
  # An error from a library is a bug.
  with pytest.raises(ValueError, match="substring not found") as caught:
    with settings.naming("--task xir"):
      textwrap.indent("a", "b", lambda line: line.index("c"))
  assert not isinstance(caught.value, settings.SettingsError)


def test_help_says_what_may_be_given():
  text = settings.full_help(_Config)
  assert "--data: Directory. Needed." in text
  assert "--dim: Size. Default: 64." in text
  assert "--kind: Kind. Default: a. One of a, b, c." in text
  assert "--[no]fast: Fast. Default: false." in text
  assert "--files: Files. May be repeated." in text
  assert "--cell_size" in text and "--config" in text and "--debug" in text


def test_a_field_without_setting_raises():
  @dataclasses.dataclass(frozen=True)
  class Odd:
    x: int = 3

  with pytest.raises(TypeError, match="Odd.x must be declared by"):
    settings.settings_of(Odd)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    # Even if it is the default.
    (["--cut=3"], "--cut belongs to --kind b. Received: --kind a."),
    (
      ["--top=1", "--kind=c"],
      "--top belongs to --kind b or c and --dim 2, or --fast. "
      "Received: --kind c --dim 64 --nofast.",
    ),
  ],
)
def test_a_setting_without_effect_is_refused(arguments, message):
  with pytest.raises(settings.SettingsError) as caught:
    settings.build(_Config, given("--data=d", *arguments))
  assert str(caught.value) == message


def test_a_file_setting_without_effect_is_refused(tmp_path):
  path = tmp_path / "run.yaml"
  path.write_text("cut: 4\ndim: 2\ntop: 1\n")
  parsed = settings.parse(_Config, ["program", f"--config={path}", "--top=2"])
  with pytest.raises(settings.SettingsError) as caught:
    settings.build(_Config, {"data": "d"} | parsed.given)
  assert parsed.origin_of(str(caught.value)) == f" --cut: see {path}."
  text = "--top and --dim, --cut and --dim, and --cuts."
  assert parsed.origin_of(text) == f" --dim and --cut: see {path}."
  assert parsed.origin_of("--top is wrong.") == ""


@pytest.mark.parametrize(
  "arguments",
  [["--cut=4", "--kind=b"], ["--top=1", "--kind=c", "--dim=2"], ["--fast"]],
)
def test_a_setting_with_effect_is_kept(arguments):
  settings.build(_Config, given("--data=d", *arguments))


def test_a_written_config_has_the_settings_that_are_used():
  assert "cut" not in settings.as_dict(_Config(data="d"))
  assert settings.as_dict(_Config(data="d", kind="b"))["cut"] == 3
