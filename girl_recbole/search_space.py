"""What a sweep may try: the choices and ranges of each searched key, and how they are listed or drawn.

A space is a mapping from keys to one of

    [64, 128, 256]               choice: one of the list; a value may be a list itself, or a word
    {choice: [64, 128, 256]}     the same
    {uniform: [a, b]}            a number between a and b
    {loguniform: [a, b]}         a number between a and b whose logarithm is uniform; a and b are VALUES, a > 0
    {quniform: [a, b, q]}        a multiple of q between a and b, each as likely
    {int: [a, b]}                a whole number from a to b, both included

RecBole's ``params_file`` is read too: one ``key kind values`` a line. Its loguniform has the LOGARITHMS of the bounds,
as hyperopt has: ``learning_rate loguniform -8,0`` is e^-8 to 1. Its quniform differs from hyperopt's in that no value
lies beyond a bound and the outermost are as likely as the others. Values are literals; nothing is evaluated. A line
with fewer than three words, which RecBole skips in silence, is an error; empty lines and # comments are not.

The n-th random draw depends on the space and the seed alone, so a larger budget goes on where a smaller one ended. No
settings are drawn twice; a space with finitely many settings is at its end when each was drawn.
"""

from __future__ import annotations

import ast
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from girl_recbole.errors import ConfigError, suggest_or_list

__all__ = ["Parameter", "canonical", "draws", "grid", "parse_params_file", "parse_space", "size"]

_KINDS = ("choice", "uniform", "loguniform", "quniform", "int")
_LARGEST_GRID = 100_000


@dataclass(frozen=True)
class Parameter:
    """One searched key: ``values`` are the choices; or the bounds of uniform and loguniform; or (first, last, step) of
    ``steps``: k * step for the whole k from first to last."""

    kind: str
    values: tuple

    def size(self) -> int | None:
        """How many values there are; None = no end."""
        if self.kind == "choice":
            return len(self.values)
        return self.values[1] - self.values[0] + 1 if self.kind == "steps" else None

    def at(self, number: int) -> Any:
        """The value ``number`` of a parameter with a size."""
        if self.kind == "choice":
            return self.values[number]
        first, _, step = self.values
        return (first + number) * step if isinstance(step, int) else float(f"{(first + number) * step:.12g}")

    def draw(self, rng: np.random.Generator) -> Any:
        if self.size() is not None:
            return self.at(int(rng.integers(self.size())))
        low, high = self.values
        if self.kind == "uniform":
            return float(rng.uniform(low, high))
        return min(max(math.exp(rng.uniform(math.log(low), math.log(high))), low), high)


def parse_space(space: Mapping[str, Any], where: str = "space") -> dict[str, Parameter]:
    """The parameters of a space as a sweep file writes it, or of one that is parsed already."""
    if not isinstance(space, Mapping):
        raise ConfigError(f"{where}: {space!r}; a mapping of keys to lists or ranges is required.")
    if not space:
        raise ConfigError(f"{where}: empty, so there is nothing to search; name keys with their choices or ranges.")
    return {str(key): _parameter(value, f"{where}: {key}") for key, value in space.items()}


def parse_params_file(path: Path) -> dict[str, Parameter]:
    """The parameters of a file in RecBole's format: ``learning_rate loguniform -8,0`` a line."""
    path = Path(path)
    if not path.exists():
        raise ConfigError(f"{path}: no such file of parameters.")
    found: dict[str, Parameter] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        where = f"{path}, line {number}"
        key, kind, text = [*line.split(None, 2), "", ""][:3]
        if not text:
            raise ConfigError(
                f"{where}: {line.strip()!r}; `key kind values` is required, as learning_rate choice [0.1]."
            )
        if key in found:
            raise ConfigError(f"{where}: {key!r} is given twice.")
        try:
            values = ast.literal_eval(text if kind == "choice" else f"[{text}]")
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            raise ConfigError(
                f"{where}: {text!r} cannot be read; literals are required: numbers, 'words', lists."
            ) from None
        if kind == "loguniform" and _numbers(values, 2):
            values = [math.exp(min(value, 700)) for value in values]
        found[key] = _parameter({kind: values}, f"{where}: {key}")
    if not found:
        raise ConfigError(f"{path}: empty, so there is nothing to search.")
    return found


def size(space: Mapping[str, Parameter]) -> int | None:
    """How many settings there are; None = no end."""
    sizes = [parameter.size() for parameter in space.values()]
    return None if None in sizes else math.prod(sizes)


def grid(space: Mapping[str, Parameter]) -> list[dict[str, Any]]:
    """All settings, each once; the last key changes fastest."""
    endless = [key for key, parameter in space.items() if parameter.size() is None]
    if endless:
        raise ConfigError(
            f"search: grid needs lists, int or quniform; {', '.join(endless)}: a range without steps. "
            f"Give a list, or take search: random or optuna."
        )
    if size(space) > _LARGEST_GRID:
        raise ConfigError(f"search: grid: {size(space)} settings are more than {_LARGEST_GRID}; take random or optuna.")
    values = [[parameter.at(i) for i in range(parameter.size())] for parameter in space.values()]
    return [dict(zip(space, chosen, strict=True)) for chosen in itertools.product(*values)]


def draws(space: Mapping[str, Parameter], seed: int) -> Iterator[dict[str, Any]]:
    """Random settings without repetition, all of a space that has an end."""
    rng, seen, end = np.random.default_rng(seed), set(), size(space)
    while end is None or len(seen) < end:
        settings = {key: parameter.draw(rng) for key, parameter in space.items()}
        if (name := canonical(settings)) not in seen:
            seen.add(name)
            yield settings


def canonical(settings: Any) -> str:
    """Settings as text that is equal for equal settings, whatever the order of their keys."""
    return json.dumps(settings, sort_keys=True, default=str)


def _parameter(value: Any, where: str) -> Parameter:
    if isinstance(value, Parameter):
        return value
    if isinstance(value, list | tuple):
        value = {"choice": value}
    if not isinstance(value, Mapping) or len(value) != 1:
        raise ConfigError(f"{where}: {value!r}; a list of choices or one of {', '.join(_KINDS)} is required; a single "
                          f"value belongs to fixed.")  # fmt: skip
    ((kind, values),) = value.items()
    if kind not in _KINDS:
        raise ConfigError(f"{where}: unknown kind {kind!r}{suggest_or_list(kind, _KINDS)}")
    if kind == "choice":
        return _choice(values, where)
    numbers = 3 if kind == "quniform" else 2
    if not _numbers(values, numbers):
        raise ConfigError(f"{where}: {kind}: {values!r}; {numbers} numbers are required.")
    low, high = values[:2]
    if not low < high:
        raise ConfigError(f"{where}: {kind}: {low} is not below {high}.")
    if kind == "loguniform" and low <= 0:
        raise ConfigError(f"{where}: loguniform: {low} is not above 0; the bounds are values, not logarithms.")
    if kind == "int":
        if not all(float(bound).is_integer() for bound in values):
            raise ConfigError(f"{where}: int: {values!r}; whole numbers are required.")
        return Parameter("steps", (int(low), int(high), 1))
    if kind == "quniform":
        return _multiples(low, high, values[2], where)
    return Parameter(kind, (float(low), float(high)))


def _choice(values: Any, where: str) -> Parameter:
    if not isinstance(values, list | tuple) or not values:
        raise ConfigError(f"{where}: choice: {values!r}; a list with at least one value is required.")
    names = [canonical(value) for value in values]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise ConfigError(f"{where}: choice: {twice[0]} is listed twice.")
    return Parameter("choice", tuple(values))


def _multiples(low: float, high: float, step: float, where: str) -> Parameter:
    if step <= 0:
        raise ConfigError(f"{where}: quniform: the step {step} is not above 0.")
    step = int(step) if float(step).is_integer() else float(step)
    slack = 1e-9  # 0.3 / 0.1 is a little below 3
    first, last = math.ceil(low / step - slack), math.floor(high / step + slack)
    if first > last:
        raise ConfigError(f"{where}: quniform: no multiple of {step} lies between {low} and {high}.")
    return Parameter("steps", (first, last, step))


def _numbers(values: Any, count: int) -> bool:
    return (
        isinstance(values, list | tuple)
        and len(values) == count
        and all(isinstance(v, Real) and not isinstance(v, bool) and math.isfinite(v) for v in values)
    )
