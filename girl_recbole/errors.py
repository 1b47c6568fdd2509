"""Errors that a user can act on: what, where, how many, what is required, the next command."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sized

__all__ = ["ConfigError", "DataError", "GirlError", "some_of", "suggest"]


class GirlError(Exception):
    """Base of every error that we raise on purpose; the command line prints its text without a traceback."""


class DataError(GirlError, ValueError):
    """A file, a text or an id that cannot be used as it is."""


class ConfigError(GirlError, ValueError):
    """A property or an argument that cannot be used as it is."""


def some_of(ids: Iterable, limit: int = 3) -> str:
    """``u1, u2, u3 and 7 more``: the first ids for an error message, never all of them."""
    ids = ids if isinstance(ids, Sized) else list(ids)
    shown = ", ".join(str(i) for _, i in zip(range(limit), ids, strict=False))
    return shown if len(ids) <= limit else f"{shown} and {len(ids) - limit} more"


def suggest(word: str, known: Iterable[str]) -> str:
    """`` - did you mean 'the nearest'?``, whatever its case; nothing where none is near."""
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(str(word).lower(), by_lower, n=1, cutoff=0.5)
    return f" - did you mean {by_lower[near[0]]!r}?" if near else ""


def suggest_or_list(word: str, known: Iterable[str], called: str = "known") -> str:
    """What :func:`suggest` says; where none is near, ``; known: a, b.``, all of them."""
    known = list(known)
    return suggest(word, known) or f"; {called}: {', '.join(known)}."
