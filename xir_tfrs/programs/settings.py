"""Settings of a program: a frozen dataclass, its flags and its files.

Each field of the dataclass is a setting. Its type is bool, int, float, str, a
tuple of one of these, dict[str, Any], or one of these or None. A field whose
type is another dataclass is a group; its settings are on the same level as the
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

# Maximum number of choices that `--help` shows.
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
  """A setting has an invalid value; the message names the setting."""


@dataclasses.dataclass(frozen=True)
class Span:
  """The numbers from `low` to `high`.

  Attributes:
    low: The smallest number.
    high: The largest number.
    log: Whether a search samples uniformly in the logarithm.
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
  """Declares a field of a config.

  Args:
    text: Help text of the flag.
    default: Default value. Without one, the setting is required.
    flag: Name of the flag and of the key in files; by default the field's name.
    choices: Allowed values; for a tuple, of its elements.
    minimum: Smallest allowed number.
    maximum: Largest allowed number.
    above: Exclusive lower limit.
    multi: Whether a tuple is given by repeating the flag, instead of one flag
      with commas.
    only: Values of other settings, by name, that this setting depends on; a
      tuple lists alternatives. If there are several mappings, one must match.
      If none does, giving the setting is an error.
    section: Heading in `--helpfull` for this setting and the following ones, up
      to the next section.
    search: Values for a search over settings; () if a search must not change
      the setting.
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
    name: Name of the flag and of the key in files.
    path: Names of the fields that lead to it; several for a group.
    type: Its type, without None.
    optional: Whether it may be None.
    default: Its default; `dataclasses.MISSING` if it is required.
    about: The arguments of `setting`.
  """

  name: str
  path: tuple[str, ...]
  type: Any
  optional: bool
  default: Any
  about: _About

  def convert(self, value: Any, name: str) -> Any:
    """Converts a value to the setting's type.

    Args:
      value: Text of a flag, a value from a JSON or YAML file, or from Python.
      name: Name of the setting in errors.

    Raises:
      SettingsError: The value has another type or is not allowed.
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
          value = float(value)  # msgspec does not parse ".5".
        element = _element(self.type)
        if element is not bool and _has_bool(value):
          raise ValueError
        if element is int:
          _require_whole(value)
        # Accepts numbers in text: YAML reads 1e-3 as text.
        converted = msgspec.convert(value, self.type, strict=False)
    except (ValueError, TypeError, msgspec.ValidationError):
      raise SettingsError(
        f"{name} must be {_described(self.type)}. Received: {value!r}."
      ) from None
    for part in converted if isinstance(converted, tuple) else (converted,):
      self._check(part, name)
    return converted

  def is_used(self, values: Mapping[str, Any]) -> bool:
    """Whether the setting has an effect for these values of all settings."""
    return not self.about.only or any(
      all(values[name] in _several(wanted) for name, wanted in one.items())
      for one in self.about.only
    )

  @property
  def has_several(self) -> bool:
    """Whether its value is a list or a mapping."""
    return typing.get_origin(self.type) in (tuple, dict)

  @property
  def belongs_to(self) -> str:
    """The flags that the setting depends on; empty if none."""
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
  """Base of a frozen dataclass whose values are always checked.

  Attributes:
    common: Names of the settings that `--help` shows, in order. None for all.
  """

  common: ClassVar[Sequence[str]] = ()

  def __post_init__(self) -> None:
    for one in settings_of(type(self)):
      if len(one.path) == 1:
        value = one.convert(getattr(self, one.path[0]), f"--{one.name}")
        object.__setattr__(self, one.path[0], value)


def settings_of(config_class: type) -> list[Setting]:
  """Returns the settings of a config class, including those of its groups."""
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
        f"{config_class.__name__}.{field.name} must be declared by `setting`."
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
  """Builds a config from given values, by name, and defaults.

  Raises:
    SettingsError: A required setting is missing, or a given one has no effect.
  """
  tree: dict[str, Any] = {}
  for one in settings_of(config_class):
    if one.name in given:
      place = tree
      for name in one.path[:-1]:
        place = place.setdefault(name, {})
      place[one.path[-1]] = given[one.name]
    elif one.default is dataclasses.MISSING:
      raise SettingsError(f"--{one.name} is required: {one.about.help}")
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
  """Returns the values of all settings, by name."""
  values = {}
  for one in settings_of(type(config)):
    value = config
    for name in one.path:
      value = getattr(value, name)
    values[one.name] = value
  return values


def as_dict(config: Any) -> dict[str, Any]:
  """Returns the settings that have an effect, in the form of `read_file`."""
  values = values_of(config)
  return {
    one.name: _as_json(value)
    for one in settings_of(type(config))
    if one.is_used(values)
    for value in [values[one.name]]
  }


def changed(config: Any) -> dict[str, Any]:
  """Returns the settings that differ from their defaults, by name."""
  values = values_of(config)
  return {
    one.name: values[one.name]
    for one in settings_of(type(config))
    if values[one.name] != one.default
  }


def as_flags(config_class: type, given: Mapping[str, Any]) -> list[str]:
  """Returns the words of the command line that give settings, by name."""
  words = []
  multi = {one.name for one in settings_of(config_class) if one.about.multi}
  for name, value in given.items():
    if isinstance(value, bool):
      words.append(f"--{name}" if value else f"--no{name}")
      continue
    if isinstance(value, dict):
      value = [f"{key}={one}" for key, one in value.items()]
    if isinstance(value, (list, tuple)) and name not in multi:
      value = ",".join(map(str, value))
    for one in value if isinstance(value, (list, tuple)) else [value]:
      words += [f"--{name}", str(one)]
  return words


def refuse_unused(config: Any, given: Iterable[str]) -> None:
  """Raises SettingsError if a given setting has no effect.

  Args:
    config: A config.
    given: Names of the given settings; a setting of value None does not count.
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
  """Reads settings, by name, from a YAML or JSON file.

  A class may have a static method `settings_in(content, path)`, which extracts
  the settings from a file with other content.

  Raises:
    SettingsError: The file cannot be read, or a key or value is invalid.
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
    raise SettingsError(f"{path} must map the names of settings to values.")
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
  """Prefixes `what` to the messages of our own argument checks.

  A ValueError of a library is a bug and is not changed.

  Raises:
    SettingsError: Replaces a ValueError that our own code raised.
  """
  try:
    yield
  except (SettingsError, errors.DataError):
    raise  # These already name the cause.
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
  """A parsed command line.

  Attributes:
    given: The given settings, from flags and --config; flags override the file.
    from_file: Names of the settings from --config.
    file: The file of --config.
    rest: Arguments that are not flags of the program.
    help: The requested help: "short", "full" or "".
    debug: Whether tracebacks are requested.
  """

  given: dict[str, Any]
  from_file: frozenset[str]
  file: str | None
  rest: list[str]
  help: str
  debug: bool

  def origin_of(self, text: str) -> str:
    """Names the flags in a message that come from the file; "" if none."""
    found = dict.fromkeys(re.findall(r"--(\w+)", text))
    named = [f"--{name}" for name in found if name in self.from_file]
    return f" {' and '.join(named)}: see {self.file}." if named else ""


_GENERAL = {
  "config": "YAML or JSON file of settings, named like the flags. Flags on the "
  "command line override it.",
  "debug": "Show the traceback of every error.",
  "help": "Show the main settings.",
  "helpfull": "Show all settings, by subject.",
}


def parse(
  config_class: type, argv: Sequence[str], *, keep_unknown: bool = False
) -> Parsed:
  """Parses a command line.

  Args:
    config_class: The dataclass of settings.
    argv: The program and its arguments.
    keep_unknown: Whether unknown flags are kept in `rest`.

  Raises:
    SettingsError: A flag is unknown or invalid.
  """
  values = flags.FlagValues()
  known = {one.name: one for one in settings_of(config_class)}
  for name in _GENERAL:
    if name in known:
      raise TypeError(f"{name} is a flag of every program.")
    _define(name, name != "config", values)
  for one in known.values():
    _define(one.name, one.type is bool, values)
  try:
    rest = values(list(map(_home, argv)), known_only=keep_unknown)[1:]
  except flags.Error as error:
    raise SettingsError(f"{error}; see --help.") from None
  general = {name: _only(name, values[name].value) for name in _GENERAL}
  in_file, file = {}, None
  # Help comes first: the file itself may be invalid.
  wants_help = "short" if general["help"] else ""
  if general["helpfull"]:
    wants_help = "full"
  if general["config"] is not None and not wants_help:
    file = str(general["config"])
    in_file = read_file(file, config_class)
  by_flags = {
    name: one.convert(
      found if one.about.multi else _only(name, found, one.has_several),
      f"--{name}",
    )
    for name, one in known.items()
    if (found := values[name].value) is not None
  }
  return Parsed(
    given=in_file | by_flags,
    from_file=frozenset(in_file.keys() - by_flags.keys()),
    file=file,
    rest=rest,
    help=wants_help,
    debug=bool(general["debug"]),
  )


def _home(word: str) -> str:
  """Expands the ~ of --FLAG=~/PATH, as shells do after a space only."""
  # Unexpanded, an output would be written to a folder called ~.
  found = re.fullmatch(r"(--\w+=)(~/.*)", word, re.DOTALL)
  return found[1] + os.path.expanduser(found[2]) if found else word


def _define(name: str, is_bool: bool, values: flags.FlagValues) -> None:
  """Defines a flag whose value is the list of all values that are given."""
  parser: Any = flags.BooleanParser() if is_bool else flags.ArgumentParser()
  flag: Any = flags.MultiFlag(parser, None, name, None, "", boolean=is_bool)
  flags.DEFINE_flag(flag, flag_values=values)


def _only(name: str, found: Sequence[Any] | None, is_list: bool = False) -> Any:
  """The value of a flag that is given once, or again with the same value.

  Args:
    name: Name of the flag.
    found: The given values; None if there are none.
    is_list: Whether each value is a list, which the next one might continue.

  Raises:
    SettingsError: The last value would silently replace the others.
  """
  if not found:
    return None
  if is_list and len(found) > 1:
    raise SettingsError(
      f"--{name} is given {len(found)} times: give all of its values at once, "
      "with commas between them."
    )
  if len(set(found)) > 1:
    shown = " and ".join(_as_flag(name, value) for value in found)
    raise SettingsError(
      f"--{name} is given {len(found)} times: omit all but one of {shown}."
    )
  return found[0]


def common_of(config_class: type) -> list[Setting]:
  """The settings that `--help` shows: `Settings.common`, or all."""
  known = {one.name: one for one in settings_of(config_class)}
  names = getattr(config_class, "common", ())
  return [known[name] for name in names] or list(known.values())


def short_help(config_class: type) -> str:
  """The text of `--help` about the flags of a program."""
  lines = []
  for one in common_of(config_class):
    lines += _paragraph(one.name, one.type is bool, _in_short(one))
  return "\n".join(lines)


def full_help(config_class: type) -> str:
  """The text of `--helpfull`: all flags, by section."""
  sections: dict[str, list[str]] = {}
  heading = "Flags"
  for one in settings_of(config_class):
    heading = one.about.section or heading
    lines = sections.setdefault(heading, [])
    lines += _paragraph(one.name, one.type is bool, _in_full(one))
  for name, text in _GENERAL.items():
    lines = sections.setdefault("Flags of every program", [])
    lines += _paragraph(name, False, text)
  return "\n\n".join(
    "\n".join([f"{heading}:", *lines]) for heading, lines in sections.items()
  )


def _in_short(one: Setting) -> str:
  """The first sentence of the help, the default, and the allowed values."""
  first, *others = re.split(r"(?<=\.) ", one.about.help)
  default = [x for x in others if x.startswith(("Default: ", "Not given"))]
  return " ".join([first, *default]) + _values(one, _FEW)


def _in_full(one: Setting) -> str:
  text = one.about.help + _values(one, len(one.about.choices))
  if one.about.multi:
    text += " May be repeated."
  if one.about.only:
    text += f" With {one.belongs_to}."
  return text


def _values(one: Setting, most: int) -> str:
  """The default, and at most `most` choices."""
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
  """The element type of a tuple, or the type itself."""
  return typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else kind


def _has_bool(value: Any) -> bool:
  """Whether a value contains a bool, which Python treats as a number."""
  parts = value if isinstance(value, list | tuple) else (value,)
  return any(isinstance(part, bool) for part in parts)


def _require_whole(value: Any) -> None:
  """Raises ValueError for text such as 5.0, which msgspec reads as 5."""
  for part in value if isinstance(value, list | tuple) else (value,):
    if isinstance(part, str):
      int(part)


def _described(kind: Any) -> str:
  if typing.get_origin(kind) is tuple:
    element = _element(kind)
    return {int: "whole numbers", float: "numbers"}.get(element, "a list")
  return _KINDS[typing.get_origin(kind) or kind]


def name_values(value: Any) -> dict[str, Any]:
  """Parses a mapping, or `name=value,...` with values in JSON.

  Raises:
    ValueError: The value is neither.
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
  """A dict; raises for duplicate names, of which a dict keeps one."""
  found: dict[str, Any] = {}
  for name, value in pairs:
    if name in found:
      raise ValueError(f"{name!r} is given twice")
    found[name] = value
  return found


class _Loader(yaml.SafeLoader):
  """A loader that refuses duplicate keys."""

  def construct_mapping(
    self, node: yaml.MappingNode, deep: bool = False
  ) -> dict[Hashable, Any]:
    pairs = [
      (self.construct_object(key, deep=True), None) for key, _ in node.value
    ]
    _unique(pairs)
    return super().construct_mapping(node, deep)
