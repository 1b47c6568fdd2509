"""CVs of the market with another gender, age or school: exactly the words that tell it are replaced.

A CV tells these in two places (text.py): a sentence with the age, the gender or the year of birth, and a sentence with
the school. Which words those are follows from the seeker's row in NAME.user, so nothing is guessed:

    gender   male <-> female                    "Female, 33." -> "Male, 33."
    age      15 years older, 15 years younger   "Born 1990."  -> "Born 1975."      within 20 to 67 years
    school   the school at the same place of    "Graduate of Ellery Institute." -> "Graduate of Lakeside State College."
             each of the two other tiers        and "Graduate of Riverbend Community College."

``swap(swap(text, a, row, to), a, row of that seeker, back)`` is ``text``. A CV that does not tell the attribute has no
counterfactual. In this market a swap changes no probability of a match by a single bit (market.md): a model that
scores the two CVs differently reads something that means nothing.

What stays: years of practice, the year in which school was finished, and titles. A CV made 15 years younger may so
claim more practice than its age allows; the change of age is the change of a number in the text and no more.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from girl_recbole.atomic import DatasetFiles, iter_docs, read_table
from girl_recbole.errors import ConfigError, DataError, some_of, suggest
from girl_recbole.market.taxonomy import SCHOOLS
from girl_recbole.market.text import _GENDERS, _NOW, _PERSONAL, _STUDY

__all__ = ["ATTRIBUTES", "counterfactuals", "swap", "targets"]

ATTRIBUTES = ("gender", "age", "school")
_YEARS, _YOUNGEST, _OLDEST = 15, 20, 67
_TIER = {school: tier for tier, names in enumerate(SCHOOLS) for school in names}


def targets(attribute: str, row: Mapping[str, Any]) -> list[Any]:
    """The other values that ``attribute`` is given for a seeker with this row of NAME.user."""
    _known(attribute)
    if attribute == "gender":
        return [other for other in _GENDERS if other != row["gender"]]
    if attribute == "age":
        return [age for age in (int(row["age"]) + _YEARS, int(row["age"]) - _YEARS) if _YOUNGEST <= age <= _OLDEST]
    school = _school(row["school"])
    place = SCHOOLS[_TIER[school]].index(school)
    return [names[place] for names in SCHOOLS if school not in names]


def swap(text: str, attribute: str, row: Mapping[str, Any], to: Any) -> str | None:
    """``text`` with ``attribute`` as ``to``; None where it does not tell it. ``row``: what NAME.user says."""
    _known(attribute)
    if attribute == "school":
        old, new = _school(row["school"]), _school(to)
        for template in _STUDY:
            before, after = (re.escape(part).replace(r"\{grad\}", r"\d{4}") for part in template.split("{school}"))
            found = re.search(rf"(?<=\. ){before}({re.escape(old)}){after}(?= |$)", text)
            if found:
                return text[: found.start(1)] + new + text[found.end(1) :]
        return None
    old, new = dict(row), {**row, attribute: to}
    for template in _PERSONAL:
        tells = f"{{{attribute}}}" in template or (attribute == "age" and "{born}" in template)
        found = tells and re.search(rf"(?<=\. ){re.escape(_personal(template, old))}(?= |$)", text)
        if found:
            return text[: found.start()] + _personal(template, new) + text[found.end() :]
    return None


def counterfactuals(
    files: DatasetFiles, attributes: Sequence[str], users: Collection[str]
) -> Iterator[tuple[str, str, str, str, str]]:
    """(user_id, attribute, from, to, CV) of those of ``users`` whose CV tells it; from and to of a school are tiers."""
    for attribute in attributes:
        _known(attribute)
    table = read_table(files.path("user"), required=("user_id", "age", "gender", "school")).set_index("user_id")
    unknown = [user for user in users if user not in table.index]
    if unknown:
        raise DataError(
            f"{files.path('user')}: {len(unknown)} of {len(users)} seekers have no row (first: {some_of(unknown)}); "
            f"their age, gender and school are needed."
        )
    rows = table.loc[table.index.isin(set(users))].to_dict("index")
    for user, cv in iter_docs(files.udoc):
        if user not in rows:
            continue
        for attribute in attributes:
            for to in targets(attribute, rows[user]):
                text = swap(cv, attribute, rows[user], to)
                if text is not None:
                    yield user, attribute, _said(attribute, rows[user][attribute]), _said(attribute, to), text


def _personal(template: str, row: Mapping[str, Any]) -> str:
    age = int(row["age"])
    line = template.format(gender=row["gender"], age=age, born=_NOW - age)
    return line[0].upper() + line[1:]


def _school(name: str) -> str:
    """A school's name as CVs write it; NAME.user has ``_`` for a space."""
    name = name.replace("_", " ")
    if name not in _TIER:
        raise DataError(f"{name!r} is no school of the market; it knows {len(_TIER)}.")
    return name


def _said(attribute: str, value: Any) -> str:
    if attribute == "school":
        return str(_TIER[_school(value)] + 1)
    return str(int(value)) if attribute == "age" else str(value)


def _known(attribute: str) -> None:
    if attribute not in ATTRIBUTES:
        raise ConfigError(
            f"the market's CVs have no {attribute!r} to swap{suggest(attribute, ATTRIBUTES)}; known: "
            f"{', '.join(ATTRIBUTES)}."
        )
