"""Property files and overrides: find, parse, merge and check them. Nothing given by a user is evaluated as code.

Order, later wins: ``properties/overall.yaml`` < the model's or generator's file < the dataset's < the user's files <
``--key=value``. A preset that the user has named comes after the dataset's file, which is made for the default one.
(RecBole's own defaults come before all of them; see plugin.py.) The YAML files are the one place where
defaults are written; a stage's config is a dataclass without defaults that :func:`make_config` fills from them.
"""

from __future__ import annotations

import ast
import dataclasses
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from girl_recbole.errors import ConfigError, suggest

__all__ = [
    "check_keys",
    "documented_keys",
    "known_keys",
    "load_properties",
    "make_config",
    "overrides_by_key",
    "parse_overrides",
    "parse_value",
    "properties_file",
]

T = TypeVar("T")
_DEFAULT_PRESET = "generator/tiny"
_WORDS = {"true": True, "false": False, "none": None, "null": None, "~": None}


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads ``1e-3`` as a float (YAML 1.1 wants ``1.0e-3``), leaves yes, no, on and off as words (only
    true and false are booleans), and refuses a key given twice."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise ConfigError(f"{key_node.start_mark.name}: key {key!r} is given twice.")
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$", re.IGNORECASE), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.[\d_]*([eE][-+]?\d+)?|\.\d[\d_]*([eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+"
               r"|\.inf|\.nan)$", re.IGNORECASE),
    list("-+0123456789."),
)  # fmt: skip


def properties_file(relative: str) -> Path:
    """The shipped property file, for example ``model/GIRLEnhancedMLP.yaml``: in the package, or beside it."""
    package = Path(__file__).resolve().parent
    for folder in (package / "properties", package.parent / "properties"):
        if (folder / relative).exists():
            return folder / relative
    return package / "properties" / relative


def load_properties(path: Path) -> dict[str, Any]:
    """Read one YAML property file. An empty file gives ``{}``; anything but a mapping is an error."""
    path = Path(path)
    if not path.exists():
        raise ConfigError(f"{path}: no such property file.")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a YAML file: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a mapping of key: value is required, not a {type(values).__name__}.")
    return values


def parse_value(text: str) -> Any:
    """A command-line value as a Python literal, a list or mapping as YAML writes it (``[sft, rl]``), or else as the
    plain string. ``__import__('os')`` is a string."""
    word = text.strip().lower()
    if word in _WORDS:
        return _WORDS[word]
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        pass
    if text.strip()[:1] in ("[", "{"):
        try:
            return yaml.load(text, Loader=_Loader)
        except (yaml.YAMLError, ConfigError, ValueError, TypeError, RecursionError, AttributeError):
            pass
    return text


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """``["--a=1", "--b", "x=y"]`` -> ``{"a": 1, "b": "x=y"}``. The last of a repeated key wins."""
    return {key: parse_value(value) for key, value in _split_arguments(arguments).items()}


def overrides_by_key(arguments: Sequence[str]) -> dict[str, str]:
    """``["--a=1", "--b", "2"]`` -> ``{"a": "--a=1", "b": "--b=2"}``: to hand each on as it was given."""
    return {key: f"--{key}={value}" for key, value in _split_arguments(arguments).items()}


def _split_arguments(arguments: Sequence[str]) -> dict[str, str]:
    overrides: dict[str, str] = {}
    waiting = iter(arguments)
    for argument in waiting:
        if not argument.startswith("--") or argument == "--":
            raise ConfigError(f"cannot read the argument {argument!r}; overrides are written --key=value.")
        key, equals, value = argument[2:].partition("=")
        if not equals:
            value = next(waiting, None)
            if value is None or value.startswith("--"):
                raise ConfigError(f"--{key} has no value; write --{key}=VALUE.")
        overrides[key.replace("-", "_")] = value
    return overrides


def check_keys(given: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raise ``ConfigError`` for the keys that nobody knows, each with the nearest known one."""
    known = sorted(set(known))
    unknown = [key for key in given if key not in known]
    if not unknown:
        return
    raise ConfigError(f"{where}: " + "; ".join(f"unknown key {key!r}{suggest(key, known)}" for key in unknown))


def make_config(
    kind: type[T],
    *,
    dataset: str | None = None,
    preset: str | None = None,
    files: Iterable[Path] = (),
    recorded: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    arguments: Sequence[str] = (),
    where: str | None = None,
) -> T:
    """Fill the dataclass ``kind`` from the property files, in the order that the module's docstring gives.

    ``preset`` is a shipped file: ``generator/tiny``, to which the dataset's file may say otherwise, or one that the
    user has named, which wins over the dataset's. Keys of other stages are allowed in files (one file can
    serve a whole pipeline) but not in ``overrides``; a key that no stage and no model knows is an error anywhere.
    ``recorded`` are settings that an input was made with: they win over the shipped files and lose to the user's.
    ``arguments`` are ``--key=value`` of a command line, read by the type of their key: ``--split_suffix=1`` is text.
    ``where`` names the command in messages.
    """
    where = where or kind.__name__
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    values = load_properties(properties_file("overall.yaml"))
    known = known_keys()
    shipped_layers = [properties_file(f"{preset}.yaml")] if preset else []
    of_dataset = properties_file(f"dataset/{dataset}.yaml")
    if dataset and of_dataset.exists():
        shipped_layers.insert(len(shipped_layers) if preset == _DEFAULT_PRESET else 0, of_dataset)
    hints = typing.get_type_hints(kind)
    for paths, then in ((shipped_layers, recorded), (map(Path, files), overrides)):
        for path in paths:
            layer = load_properties(path)
            check_keys(layer, known, str(path))
            values.update(layer)
        if then:
            check_keys(then, fields, where)
            values.update(then)
    written = _split_arguments(arguments)
    check_keys(written, fields, where)
    values.update({name: _read_as(text, hints[name]) for name, text in written.items()})
    missing = [name for name in fields if name not in values]
    if missing:
        raise ConfigError(f"{where}: no value for {', '.join(missing)}.")
    return kind(**{name: _typed(name, values[name], hints[name]) for name in fields})


def known_keys() -> set[str]:
    """Every key that a shipped property file sets: the stages' and the models', but not those that accelerate reads."""
    folder = properties_file("overall.yaml").parent
    keys: set[str] = set()
    for path in [folder / "overall.yaml", *sorted(folder.glob("*/*.yaml"))]:
        if path.parent.name not in ("benchmark", "sweep", "accelerate"):
            keys.update(load_properties(path))
    return keys


def documented_keys(relative: str = "overall.yaml") -> list[tuple[str, str, str]]:
    """``(key, default as written, "(type, unit) meaning")`` of each line of a shipped property file, in its order."""
    lines = properties_file(relative).read_text(encoding="utf-8").splitlines()
    return [match.groups() for line in lines if (match := re.match(r"(\w+): (.*?)\s+# (\(.*)", line))]  # type: ignore


def _read_as(text: str, hint: Any) -> Any:
    """The command-line value ``text`` for a key of type ``hint``: text where the key is text and nothing else fits."""
    value = parse_value(text)
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if str not in options or isinstance(value, str):
        return value
    fits = any(option is not str and isinstance(value, typing.get_origin(option) or option) for option in options)
    sequence = isinstance(value, list) and tuple in options
    return value if fits or sequence else text


def _typed(name: str, value: Any, hint: Any) -> Any:
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    for option in options:
        option = typing.get_origin(option) or option
        if option is types.NoneType:
            if value is None:
                return None
        elif option is Any or (isinstance(value, option) and not (isinstance(value, bool) and option is not bool)):
            return value
        elif option is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        elif option in (tuple, list) and isinstance(value, (tuple, list)):
            return option(value)
    names = " or ".join(getattr(option, "__name__", str(option)) for option in options)
    raise ConfigError(f"{name}: {value!r} is a {type(value).__name__}; {names} is required.")
