"""Settings of a program: a frozen dataclass, its flags and its files.

A field of the dataclass is a setting. Its type is one of bool, int, float,
str, a tuple of one of these, dict[str, Any], or one of them or None; a field
whose type is another dataclass is a group, whose settings stand beside the
others.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import difflib
import json
import math
import os
import pathlib
import re
import textwrap
import types
import typing
from collections.abc import (
  Callable,
  Hashable,
  Iterable,
  Iterator,
  Mapping,
  Sequence,
)
from typing import Any, ClassVar, TypeVar

import msgspec
import yaml
from absl import flags

from xir_tfrs.data import errors

_Config = TypeVar("_Config")

# Choices that `--help` shows.
_FEW = 12
# Packages whose argument checks raise ValueError.
_OURS = ("xir_tfrs", "pipelines", "export", "benchmarks")
_KINDS = {
  bool: "true or false",
  int: "a whole number",
  float: "a number",
  str: "text",
  dict: "name=value,...",
}


class SettingsError(ValueError):
  """A setting that cannot be as it was given; the message names it."""


@dataclasses.dataclass(frozen=True)
class Span:
  """The numbers from `low` to `high`.

  Attributes:
    low: The least of them.
    high: The greatest of them.
    log: Whether a search spreads its values evenly over the logarithm.
  """

  low: float
  high: float
  log: bool = False


def setting(
  text: str,
  default: Any = dataclasses.MISSING,
  *,
  flag: str | None = None,
  choices: Sequence[Any] = (),
  minimum: float | None = None,
  maximum: float | None = None,
  above: float | None = None,
  multi: bool = False,
  only: Mapping[str, Any] | Sequence[Mapping[str, Any]] = (),
  section: str = "",
  search: Span | Sequence[Any] = (),
) -> Any:
  """A field of a config.

  Args:
    text: What `--help` says.
    default: Value where none is given. Without one, the setting is needed.
    flag: Name of the flag and in files; None: that of the field.
    choices: Allowed values; of a tuple, of its elements.
    minimum: Smallest allowed number.
    maximum: Largest allowed number.
    above: The number must be larger.
    multi: Whether a tuple is given by a flag for each element, instead of
      one flag with commas.
    only: Values of other settings, by name, with which this one is used; a
      tuple lists several. Of several such mappings one is enough. Otherwise
      the setting is refused where it is given.
    section: The heading under which `--helpfull` shows it, and those that
      follow up to the next one with a section.
    search: Values that a search for good settings tries; (): it leaves the
      setting alone.
  """
  about = _About(
    text,
    flag,
    tuple(choices),
    minimum,
    maximum,
    above,
    multi,
    tuple([only] if isinstance(only, Mapping) else only),
    section,
    search if isinstance(search, Span) else tuple(search),
  )
  metadata = {"setting": about}
  if isinstance(default, dict):
    return dataclasses.field(
      default_factory=lambda: dict(default), metadata=metadata
    )
  return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class _About:
  """See `setting`."""

  help: str
  flag: str | None = None
  choices: tuple[Any, ...] = ()
  minimum: float | None = None
  maximum: float | None = None
  above: float | None = None
  multi: bool = False
  only: tuple[Mapping[str, Any], ...] = ()
  section: str = ""
  search: Span | tuple[Any, ...] = ()


@dataclasses.dataclass(frozen=True)
class Setting:
  """A setting of a config class.

  Attributes:
    name: Name of its flag, and in files.
    path: Names of the fields that lead to it; more than one within a group.
    type: Its type, without None.
    optional: Whether it may be None.
    default: Its default; `dataclasses.MISSING` where it is needed.
    about: What `setting` was told.
  """

  name: str
  path: tuple[str, ...]
  type: Any
  optional: bool
  default: Any
  about: _About

  def convert(self, value: Any, name: str) -> Any:
    """The value with the setting's type.

    Args:
      value: Text of a flag, a value of a JSON or YAML file, or of Python.
      name: What an error calls the setting.

    Raises:
      SettingsError: It is of another type, or not allowed.
    """
    if value is None and self.optional:
      return None
    try:
      if self.type == dict[str, Any]:
        converted: Any = name_values(value)
      else:
        if typing.get_origin(self.type) is tuple and isinstance(value, str):
          value = flags.ListParser().parse(value)
        elif isinstance(value, os.PathLike):
          value = os.fspath(value)
        elif self.type is float and isinstance(value, str):
          value = float(value)  # msgspec knows no ".5".
        element = _element(self.type)
        if element is not bool and _has_bool(value):
          raise ValueError
        if element is int:
          _require_whole(value)
        # Numbers given as text, as YAML gives 1e-3, are numbers.
        converted = msgspec.convert(value, self.type, strict=False)
    except (ValueError, TypeError, msgspec.ValidationError):
      raise SettingsError(
        f"{name} must be {_described(self.type)}. Received: {value!r}."
      ) from None
    for part in converted if isinstance(converted, tuple) else (converted,):
      self._check(part, name)
    return converted

  def is_used(self, values: Mapping[str, Any]) -> bool:
    """Whether it changes anything where the settings have these values."""
    return not self.about.only or any(
      all(values[name] in _several(wanted) for name, wanted in one.items())
      for one in self.about.only
    )

  @property
  def belongs_to(self) -> str:
    """The flags with which it is used; empty: with all."""
    return ", or ".join(
      " and ".join(
        " or ".join([_as_flag(name, wanted[0]), *map(_shown, wanted[1:])])
        for name, values in one.items()
        for wanted in [_several(values)]
      )
      for one in self.about.only
    )

  def _check(self, value: Any, name: str) -> None:
    about = self.about
    wrong = None
    if about.choices and value not in about.choices:
      wrong = f"one of {', '.join(map(str, about.choices))}"
    elif isinstance(value, float) and not math.isfinite(value):
      wrong = "a finite number"
    elif about.above is not None and not value > about.above:
      wrong = "positive" if about.above == 0 else f"above {about.above}"
    elif about.minimum is not None and value < about.minimum:
      wrong = f"at least {about.minimum}"
      if about.minimum == 0:
        raise SettingsError(
          f"{name} must not be negative. Received: {value!r}."
        )
    elif about.maximum is not None and value > about.maximum:
      wrong = f"at most {about.maximum}"
    if wrong:
      raise SettingsError(f"{name} must be {wrong}. Received: {value!r}.")


class Settings:
  """Base of a frozen dataclass that checks its values, also in Python.

  Attributes:
    common: The settings that `--help` shows, by name, in its order. None: all.
  """

  common: ClassVar[Sequence[str]] = ()

  def __post_init__(self) -> None:
    for one in settings_of(type(self)):
      if len(one.path) == 1:
        value = one.convert(getattr(self, one.path[0]), f"--{one.name}")
        object.__setattr__(self, one.path[0], value)


def settings_of(config_class: type) -> list[Setting]:
  """The settings of a config class, those of its groups included."""
  hints = typing.get_type_hints(config_class)
  found = []
  for field in dataclasses.fields(config_class):
    kind = hints[field.name]
    if dataclasses.is_dataclass(kind):
      found += [
        dataclasses.replace(one, path=(field.name, *one.path))
        for one in settings_of(typing.cast(type, kind))
      ]
      continue
    if "setting" not in field.metadata:
      raise TypeError(
        f"{config_class.__name__}.{field.name} is not made by `setting`."
      )
    about = field.metadata["setting"]
    members = typing.get_args(kind)
    optional = type(None) in members
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is (
      typing.Union
    ):
      (kind,) = (member for member in members if member is not type(None))
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
      default = field.default_factory()
    found.append(
      Setting(
        about.flag or field.name, (field.name,), kind, optional, default, about
      )
    )
  return found


def build(config_class: type[_Config], given: Mapping[str, Any]) -> _Config:
  """A config of given values, by name of the setting; the rest by default.

  Raises:
    SettingsError: One is needed and not given, or given and not used.
  """
  tree: dict[str, Any] = {}
  for one in settings_of(config_class):
    if one.name in given:
      place = tree
      for name in one.path[:-1]:
        place = place.setdefault(name, {})
      place[one.path[-1]] = given[one.name]
    elif one.default is dataclasses.MISSING:
      raise SettingsError(f"--{one.name} is needed: {one.about.help}")
  config = _built(config_class, tree)
  refuse_unused(config, given)
  return config


def _built(config_class: type[_Config], tree: dict[str, Any]) -> _Config:
  hints = typing.get_type_hints(config_class)
  values: dict[str, Any] = {}
  for field in dataclasses.fields(typing.cast(Any, config_class)):
    if dataclasses.is_dataclass(hints[field.name]):
      values[field.name] = _built(
        typing.cast(type, hints[field.name]), tree.get(field.name, {})
      )
    elif field.name in tree:
      values[field.name] = tree[field.name]
  return config_class(**values)


def values_of(config: Any) -> dict[str, Any]:
  """The values of all settings, by name."""
  values = {}
  for one in settings_of(type(config)):
    value = config
    for name in one.path:
      value = getattr(value, name)
    values[one.name] = value
  return values


def as_dict(config: Any) -> dict[str, Any]:
  """The settings that are used, as JSON has them: `read_file` reads them."""
  values = values_of(config)
  return {
    one.name: _as_json(value)
    for one in settings_of(type(config))
    if one.is_used(values)
    for value in [values[one.name]]
  }


def refuse_unused(config: Any, given: Iterable[str]) -> None:
  """Raises SettingsError if a setting was given that changes nothing.

  Args:
    config: A config.
    given: Names of the settings that were given. None as a value is not
      given.
  """
  values, given = values_of(config), set(given)
  for one in settings_of(type(config)):
    if one.name not in given or values[one.name] is None:
      continue
    if not one.is_used(values):
      names = dict.fromkeys(name for only in one.about.only for name in only)
      received = " ".join(_as_flag(name, values[name]) for name in names)
      raise SettingsError(
        f"--{one.name} belongs to {one.belongs_to}. Received: {received}."
      )


def read_file(
  path: str | os.PathLike[str], config_class: type
) -> dict[str, Any]:
  """The settings that a YAML or JSON file gives, by name.

  A class may have a static method `settings_in(content, path)`, which picks
  the settings out of a file that holds more than settings.

  Raises:
    SettingsError: It cannot be read, or a key or a value is wrong.
  """
  path = pathlib.Path(path)
  try:
    text = path.read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError) as error:
    reason = getattr(error, "strerror", None) or error
    raise SettingsError(f"--config {path}: {reason}") from None
  try:
    if path.suffix == ".json":
      content = json.loads(text, object_pairs_hook=_unique)
    else:
      content = yaml.load(text, _Loader)  # A safe loader. # noqa: S506
  except (ValueError, yaml.YAMLError) as error:
    reason = " ".join(str(error).split())
    raise SettingsError(f"{path} cannot be read: {reason}") from None
  if content is None:
    content = {}
  if not isinstance(content, dict):
    raise SettingsError(f"{path} must map names of settings to values.")
  settings_in = getattr(config_class, "settings_in", None)
  if settings_in is not None:
    content = settings_in(content, path)
  known = {one.name: one for one in settings_of(config_class)}
  given = {}
  for name, value in content.items():
    if name not in known:
      near = difflib.get_close_matches(str(name), known, 1)
      hint = f"; did you mean {near[0]!r}?" if near else "; see --help."
      raise SettingsError(f"{path}: there is no setting {name!r}{hint}")
    given[name] = known[name].convert(value, f"{path}: {name}")
  return given


@contextlib.contextmanager
def naming(what: str) -> Iterator[None]:
  """Puts `what` before the message of our own argument checks, for users.

  A ValueError that a library raises within is a bug, and stays as it is.

  Raises:
    SettingsError: In place of a ValueError that our own code raised.
  """
  try:
    yield
  except (SettingsError, errors.DataError):
    raise  # These name what is wrong already.
  except ValueError as error:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
      trace = trace.tb_next
    raised_in = trace.tb_frame.f_globals.get("__name__", "") if trace else ""
    if raised_in.partition(".")[0] not in _OURS:
      raise
    raise SettingsError(f"{what}: {error}") from error


@dataclasses.dataclass(frozen=True)
class Parsed:
  """A command line.

  Attributes:
    given: The settings that it gives, by flags or by --config; flags win.
    from_file: The names of those that --config gives.
    file: The file of --config.
    rest: Arguments that are no flags of the program.
    help: "short", "full" or "": the help that it asks for.
    debug: Whether it asks for tracebacks.
  """

  given: dict[str, Any]
  from_file: frozenset[str]
  file: str | None
  rest: list[str]
  help: str
  debug: bool

  def origin_of(self, text: str) -> str:
    """Which flags that a message names stand in the file; "" if none."""
    found = dict.fromkeys(re.findall(r"--(\w+)", text))
    named = [f"--{name}" for name in found if name in self.from_file]
    return f" {' and '.join(named)}: see {self.file}." if named else ""


_GENERAL = {
  "config": "YAML or JSON file of settings, by the names of their flags. Flags "
  "on the command line override it.",
  "debug": "Show the traceback of every error.",
  "help": "Show the settings that matter first.",
  "helpfull": "Show all settings, by subject.",
}


def parse(
  config_class: type, argv: Sequence[str], *, keep_unknown: bool = False
) -> Parsed:
  """Reads a command line.

  Args:
    config_class: The dataclass of settings.
    argv: The program, and its arguments.
    keep_unknown: Whether flags that the class has not are part of the rest.

  Raises:
    SettingsError: A flag is unknown or wrong.
  """
  values = flags.FlagValues()
  known = {one.name: one for one in settings_of(config_class)}
  for name, text in _GENERAL.items():
    if name in known:
      raise TypeError(f"{name} is a flag of every program.")
    if name == "config":
      flags.DEFINE_string(name, None, text, flag_values=values)
    else:
      flags.DEFINE_bool(name, False, text, flag_values=values)
  for one in known.values():
    define: Callable[..., Any] = flags.DEFINE_string
    if one.type is bool:
      define = flags.DEFINE_bool
    elif one.about.multi:
      define = flags.DEFINE_multi_string
    define(one.name, None, one.about.help, flag_values=values)
  try:
    rest = values(list(argv), known_only=keep_unknown)[1:]
  except flags.Error as error:
    raise SettingsError(f"{error}; see --help.") from None
  in_file, file = {}, None
  # Help comes first: the file may be what one needs help with.
  wants_help = "short" if values["help"].value else ""
  if values["helpfull"].value:
    wants_help = "full"
  if values["config"].present and not wants_help:
    file = str(values["config"].value)
    in_file = read_file(file, config_class)
  by_flags = {
    name: one.convert(values[name].value, f"--{name}")
    for name, one in known.items()
    if values[name].present
  }
  return Parsed(
    given=in_file | by_flags,
    from_file=frozenset(in_file.keys() - by_flags.keys()),
    file=file,
    rest=rest,
    help=wants_help,
    debug=bool(values["debug"].value),
  )


def common_of(config_class: type) -> list[Setting]:
  """The settings that `--help` shows: `Settings.common`, or else all."""
  known = {one.name: one for one in settings_of(config_class)}
  names = getattr(config_class, "common", ())
  return [known[name] for name in names] or list(known.values())


def short_help(config_class: type) -> str:
  """What `--help` says of the flags of a program."""
  lines = []
  for one in common_of(config_class):
    lines += _paragraph(one.name, one.type is bool, _in_short(one))
  return "\n".join(lines)


def full_help(config_class: type) -> str:
  """What `--helpfull` says: all flags, under the headings of their subjects."""
  sections: dict[str, list[str]] = {}
  heading = "Flags"
  for one in settings_of(config_class):
    heading = one.about.section or heading
    lines = sections.setdefault(heading, [])
    lines += _paragraph(one.name, one.type is bool, _in_full(one))
  for name, text in _GENERAL.items():
    lines = sections.setdefault("Every program has", [])
    lines += _paragraph(name, False, text)
  return "\n\n".join(
    "\n".join([f"{heading}:", *lines]) for heading, lines in sections.items()
  )


def _in_short(one: Setting) -> str:
  """The first sentence, and what may be given."""
  sentence = re.match(r".*?\.(?= |$)", one.about.help)
  text = sentence[0] if sentence else one.about.help
  return text + _values(one, _FEW)


def _in_full(one: Setting) -> str:
  text = one.about.help + _values(one, len(one.about.choices))
  if one.about.multi:
    text += " May be repeated."
  if one.about.only:
    text += f" With {one.belongs_to}."
  return text


def _values(one: Setting, most: int) -> str:
  """Its default, and at most so many choices."""
  text = ""
  if one.default is dataclasses.MISSING:
    text += " Needed."
  elif one.default not in (None, "", (), {}):
    text += f" Default: {_shown(one.default)}."
  if one.about.choices:
    shown, hidden = one.about.choices[:most], one.about.choices[most:]
    more = f" and {len(hidden)} more" if hidden else ""
    text += f" One of {', '.join(map(str, shown))}{more}."
  return text


def _paragraph(name: str, is_bool: bool, text: str) -> list[str]:
  start = f"  --{'[no]' if is_bool else ''}{name}: {text[0].upper()}{text[1:]}"
  return textwrap.wrap(start, 79, subsequent_indent="      ")


def _shown(default: Any) -> str:
  if isinstance(default, tuple):
    return ",".join(map(str, default))
  if isinstance(default, bool):
    return str(default).lower()
  text = str(default)
  return text if text.strip() else repr(text)


def _as_json(value: Any) -> Any:
  if isinstance(value, dict):
    return dict(value)
  return list(value) if isinstance(value, tuple) else value


def _as_flag(name: str, value: Any) -> str:
  if isinstance(value, bool):
    return f"--{name}" if value else f"--no{name}"
  return f"--{name} {_shown(value)}"


def _several(wanted: Any) -> tuple[Any, ...]:
  return wanted if isinstance(wanted, tuple) else (wanted,)


def _element(kind: Any) -> Any:
  """Type of the elements of a tuple, or the type itself."""
  return typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else kind


def _has_bool(value: Any) -> bool:
  """Whether it holds a bool, which Python counts among the numbers."""
  parts = value if isinstance(value, list | tuple) else (value,)
  return any(isinstance(part, bool) for part in parts)


def _require_whole(value: Any) -> None:
  """Raises ValueError for text such as 5.0, which msgspec takes for 5."""
  for part in value if isinstance(value, list | tuple) else (value,):
    if isinstance(part, str):
      int(part)


def _described(kind: Any) -> str:
  if typing.get_origin(kind) is tuple:
    element = _element(kind)
    return {int: "whole numbers", float: "numbers"}.get(element, "a list")
  return _KINDS[typing.get_origin(kind) or kind]


def name_values(value: Any) -> dict[str, Any]:
  """A mapping, or `name=value,...` with values in JSON.

  Raises:
    ValueError: It is neither.
  """
  if isinstance(value, Mapping):
    return dict(value)
  if isinstance(value, str):
    if value.lstrip().startswith("{"):
      return json.loads(value, object_pairs_hook=_unique)
    value = [part.strip() for part in next(csv.reader([value], strict=True))]
  found: dict[str, Any] = {}
  for part in value:
    name, equals, text = part.partition("=")
    if not name or not equals or name in found:
      raise ValueError(part)
    try:
      found[name] = json.loads(text)
    except ValueError:
      found[name] = text
  return found


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
  """A dict; a name that stands twice would be dropped in silence."""
  found: dict[str, Any] = {}
  for name, value in pairs:
    if name in found:
      raise ValueError(f"{name!r} is given twice")
    found[name] = value
  return found


class _Loader(yaml.SafeLoader):
  """Refuses keys that stand twice."""

  def construct_mapping(
    self, node: yaml.MappingNode, deep: bool = False
  ) -> dict[Hashable, Any]:
    pairs = [
      (self.construct_object(key, deep=True), None) for key, _ in node.value
    ]
    _unique(pairs)
    return super().construct_mapping(node, deep)
