"""CVs and JDs as prose, and JDs read back into the market's terms.

A CV tells part of a seeker's state: the present title and place always; three of the professional skills through past
duties that do not name them and two by their short form; some tools and soft skills; the former job often; wishes
sometimes. The next step is never named: who wants to move tells of duties of the next occupation ("lately I also ..."),
and half of them that they want more of it. School, age and gender appear as they do in CVs, and mean nothing.

A JD tells the title, place, level, must-haves (as duties or as requirements) and nice-to-haves by their formal names,
most often the pay, and whether one can work remotely. CV titles and JD titles of an occupation are different ones.

:func:`parse_job` reads any text with such terms (a generated JD too), in either side's words.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator

import numpy as np

from girl_recbole.market.agents import MUSTS, NICES, Jobs, Seekers, region_of
from girl_recbole.market.taxonomy import PLACES, REGIONS, SCHOOLS, Taxonomy, load_taxonomy

__all__ = ["parse_job", "write_cvs", "write_jds"]

_CHUNK = 4096
_NOW = 2023

_OPENINGS = (
    "{title} from {city} with {years} of practice.",
    "I am a {title} in {city} and have done this work for {years}.",
    "{title}, {city}. {years} on the job.",
    "Working as {title} in {city} since {since}.",
)
_PERSONAL = ("{age} years old, {gender}.", "{gender}, {age}.", "Born {born}.", "{age} years old.")
_GENDERS = ("male", "female")
_FORMER = (
    "Before that I was a {title} and {duty}.",
    "Started out as {title}, where I {duty}.",
    "My first post was {title}: there I {duty}.",
)
_CURRENT = (
    "At {employer} I {first} and {second}.",
    "For {employer} I {first}; I also {second}.",
    "My last employer was {employer}. I {first} and {second}.",
    "In my present post at {employer} I {first} and {second}.",
)
_MORE = (
    "For {project} I {duty}.",
    "With {project} in mind I {duty}.",
    "I {duty} for {project}.",
)
_LEADER = ("Led a team of {n}.", "{n} people reported to me.", "Trained and guided {n} colleagues.")
_BEGINNER = ("Just out of training.", "Still learning the trade.", "New to the job and eager.")
_SHORT = ("Good at {list}.", "Know {list}.", "My field: {list}.")
_TOOLS = ("Daily tools: {list}.", "I use {list}.", "Comfortable with {list}.")
_SOFT = ("Colleagues call me a {list} type.", "Also: {list}.", "Beyond work: {list}.")
_LATELY = (
    "Lately I also {first} and {second}.",
    "In the past year I {first} on the side, and {second}.",
    "As a stand-in I {first} and {second}.",
)
_LATELY_ONE = ("Lately I also {first}.", "In the past year I {first} on the side.", "As a stand-in I {first}.")
_WANTS_MORE = ("I want to do more of that.", "That is where I would like to go next.", "This suits me better.")
_STAYS = (
    "I enjoy what I do and want to go on with it.",
    "I look for the same kind of work.",
    "My trade stays my trade.",
)
_AMBITION = ("Ready for more responsibility.", "I would like to take the next step up.", "Time for a bigger role.")
_PAY = ("Hoping for about ${pay},000.", "Pay I have in mind: ${pay},000 a year.", "My target is ${pay},000.")
_STUDY = ("Studied at {school}.", "Graduate of {school}.", "{school}, finished {grad}.")
_MOVES = (
    ("I want to stay in {city}.", "Bound to {city} by family.", "No move, please."),
    ("I can move within the {region} states.", "Open to other {region} cities.", "The {region} region suits me."),
    ("Free to move anywhere.", "I would move for the right job.", "Place does not matter to me."),
)
_HOME = ("I like to work from home.", "Home office is welcome.", "Best from my own desk at home.")

_LEVELS = (
    ("trainee {title}", "entry-level {title}"),
    ("junior {title}", "{title} (junior level)"),
    ("{title}", "experienced {title}"),
    ("senior {title}", "{title} (senior level)"),
    ("lead {title}", "principal {title}"),
)
_LEVEL_NEEDS = (
    ("No experience required.", "Suitable for a first job."),
    ("At least 1 year of experience.", "One to three years of experience expected."),
    ("At least 4 years of experience.", "Several years of experience expected."),
    ("At least 8 years of experience.", "Long experience expected."),
    ("At least 12 years of experience and responsibility for a team.", "Leadership of the department included."),
)
_JD_OPENINGS = (
    "{Employer} seeks a {title} in {city}.",
    "Position: {title}, {city}. Employer: {employer}.",
    "We are {employer} in {city} and hire a {title}.",
    "Open position in {city}: {title} at {employer}.",
)
_JD_DUTIES = (
    "You will be responsible for {list}, mainly for {project}.",
    "Your duties: {list} for {project}.",
    "The position covers {list}, with a focus on {project}.",
    "Main tasks are {list} in support of {project}.",
)
_JD_MUSTS = ("Required: {list}.", "We require {list}.", "Candidates must bring {list}.", "Requirements: {list}.")
_JD_NICES = (
    "{List} would be an advantage.",
    "Desirable: {list}.",
    "A plus: {list}.",
    "Preferred qualifications: {list}.",
)
_JD_PAY = ("Salary: ${pay},000 per year.", "We pay ${pay},000 per year.", "Annual compensation ${pay},000.")
_JD_NO_PAY = ("Competitive salary.", "Salary by agreement.")
_JD_REMOTE = ("Remote work is possible.", "This position can be remote.", "Fully remote if desired.")
_JD_ON_SITE = ("Work takes place on site.", "Presence on site is expected.", "On-site position.")
_JD_ENDINGS = ("We look forward to your application.", "Equal opportunity employer.", "Start as soon as possible.", "")


# -------------------------------------------------------------------------------------------------------------- writing


def write_cvs(seekers: Seekers, seed: tuple[int, ...]) -> Iterator[str]:
    """The CV of every seeker in order, streaming; the same seed gives the same words."""
    taxonomy, rng = load_taxonomy(), np.random.default_rng(seed)
    for start in range(0, len(seekers), _CHUNK):
        part = seekers.take(slice(start, start + _CHUNK))
        region = region_of(part.place)
        for i, draws in enumerate(rng.random((len(part), 64))):
            yield _cv(part, i, int(region[i]), _Dice(draws), taxonomy)


def write_jds(jobs: Jobs, seed: tuple[int, ...]) -> Iterator[str]:
    """The JD of every job in order, streaming; the same seed gives the same words."""
    taxonomy, rng = load_taxonomy(), np.random.default_rng(seed)
    for start in range(0, len(jobs), _CHUNK):
        part = jobs.take(slice(start, start + _CHUNK))
        for i, draws in enumerate(rng.random((len(part), 32))):
            yield _jd(part, i, _Dice(draws), taxonomy)


class _Dice:
    """Uniform numbers drawn beforehand, used one after another."""

    def __init__(self, draws: np.ndarray):
        self._draws = iter(draws.tolist())

    def one_of(self, options):
        return options[int(next(self._draws) * len(options))]

    def chance(self, probability: float) -> bool:
        return next(self._draws) < probability

    def some_of(self, items: list, count: int) -> list:
        """``count`` of ``items`` (all, if there are fewer), in random order; uses ``count`` numbers."""
        items = list(items)
        chosen = []
        for _ in range(count):
            place = int(next(self._draws) * len(items))
            if items:
                chosen.append(items.pop(place))
        return chosen


def _cv(seekers: Seekers, i: int, region: int, dice: _Dice, taxonomy: Taxonomy) -> str:
    now = taxonomy.occupations[seekers.occupation[i]]
    goal = taxonomy.occupations[seekers.next_step[i]]
    former = taxonomy.occupations[seekers.former[i]]
    strength, skills = seekers.strength[i], taxonomy.skills
    years, level, city = int(seekers.years[i]), int(seekers.level[i]), PLACES[seekers.place[i]][0]
    moving = goal is not now

    def duties(numbers: list[int]) -> list[str]:
        return [dice.one_of(skills[number].duties) for number in numbers]

    core = [int(k) for k in now.core if strength[k]]
    core = sorted(dice.some_of(core, 5), key=lambda k: strength[k] < 50)  # what one is strong in is told first
    tools = [int(k) for k in now.tools if strength[k]]
    told = set(now.core.tolist())
    text = []
    length = "less than a year" if years < 1 else "one year" if years == 1 else f"{years} years"
    opening = dice.one_of(_OPENINGS).format(
        title=dice.one_of(now.cv_titles), city=city, years=length, since=_NOW - years
    )
    text.append(opening.replace("I am a ", "I am " + _article(opening[7:])))
    if dice.chance(0.35):
        gender, age = _GENDERS[seekers.gender[i]], int(seekers.age[i])
        line = dice.one_of(_PERSONAL).format(gender=gender, age=age, born=_NOW - age)
        text.append(line[0].upper() + line[1:])
    employer = dice.one_of(taxonomy.employers[now.family])
    by_duty = duties(core[:3])
    if len(by_duty) >= 2:
        line = dice.one_of(_CURRENT).format(employer=_article(employer) + employer, first=by_duty[0], second=by_duty[1])
        text.append(line)
    if len(by_duty) != 2 and by_duty:
        text.append(dice.one_of(_MORE).format(duty=by_duty[-1], project=dice.one_of(taxonomy.projects[now.family])))
    if former is not now and dice.chance(0.75):
        known = [int(k) for k in former.core if strength[k] and k not in told]
        if known:
            text.append(
                dice.one_of(_FORMER).format(title=dice.one_of(former.cv_titles), duty=duties(dice.some_of(known, 1))[0])
            )
            text[-1] = re.sub(r"\ba (?=[AEIOUaeiou])", "an ", text[-1], count=1)
    if level >= 3 and dice.chance(0.7):
        text.append(dice.one_of(_LEADER).format(n=(4, 6, 8, 12, 15, 20)[int(dice.chance(0.5)) + 2 * (level - 3)]))
    elif level == 0 and dice.chance(0.6):
        text.append(dice.one_of(_BEGINNER))
    if core[3:]:
        text.append(dice.one_of(_SHORT).format(list=_and([skills[k].short for k in core[3:]])))
    if tools:
        text.append(dice.one_of(_TOOLS).format(list=_and([skills[k].short for k in dice.some_of(tools, 3)])))
    soft = [int(k) for k in taxonomy.soft if strength[k]]
    if soft:
        text.append(dice.one_of(_SOFT).format(list=_and([skills[k].short for k in dice.some_of(soft, 2)])))
    if moving:
        new = [int(k) for k in goal.core if strength[k] and k not in told]
        hints = duties(dice.some_of(new, 2))
        if len(hints) == 2:
            text.append(dice.one_of(_LATELY).format(first=hints[0], second=hints[1]))
        elif hints:
            text.append(dice.one_of(_LATELY_ONE).format(first=hints[0]))
        if hints and dice.chance(0.5):
            text.append(dice.one_of(_WANTS_MORE))
    elif dice.chance(0.5):
        text.append(dice.one_of(_STAYS))
    if seekers.ambition[i] and dice.chance(0.6):
        text.append(dice.one_of(_AMBITION))
    if dice.chance(0.75):
        tier, which = divmod(int(seekers.school[i]), 3)
        text.append(dice.one_of(_STUDY).format(school=SCHOOLS[tier][which], grad=_NOW - years))
    if dice.chance(0.5):
        text.append(dice.one_of(_PAY).format(pay=int(seekers.pay_wish[i])))
    if dice.chance(0.55):
        text.append(dice.one_of(_MOVES[seekers.mobility[i]]).format(city=city, region=REGIONS[region]))
    if seekers.likes_remote[i] and dice.chance(0.6):
        text.append(dice.one_of(_HOME))
    return " ".join(text)


def _jd(jobs: Jobs, i: int, dice: _Dice, taxonomy: Taxonomy) -> str:
    this = taxonomy.occupations[jobs.occupation[i]]
    level, skills = int(jobs.level[i]), taxonomy.skills
    musts = [skills[k].formal for k in jobs.musts[i] if k >= 0]
    nices = [skills[k].formal for k in jobs.nices[i] if k >= 0]
    employer, project = dice.one_of(taxonomy.employers[this.family]), dice.one_of(taxonomy.projects[this.family])
    employer = _article(employer) + employer
    title = dice.one_of(_LEVELS[level]).format(title=dice.one_of(this.jd_titles))
    opening = dice.one_of(_JD_OPENINGS).format(
        Employer=employer[0].upper() + employer[1:], employer=employer, title=title, city=PLACES[jobs.place[i]][0]
    )
    text = [re.sub(r"\b(seeks|hire) a (?=[AEIOUaeiou])", r"\1 an ", opening)]
    duties = dice.some_of(musts[:4], 2)
    text.append(dice.one_of(_JD_DUTIES).format(list=_and(duties), project=project))
    text.append(dice.one_of(_JD_MUSTS).format(list=_and([name for name in musts if name not in duties])))
    text.append(dice.one_of(_LEVEL_NEEDS[level]))
    if nices:
        names = _and(nices)
        text.append(dice.one_of(_JD_NICES).format(list=names, List=names[0].upper() + names[1:]))
    told = dice.chance(0.85)
    text.append(dice.one_of(_JD_PAY).format(pay=int(jobs.pay[i])) if told else dice.one_of(_JD_NO_PAY))
    text.append(dice.one_of(_JD_REMOTE if jobs.remote[i] else _JD_ON_SITE))
    ending = dice.one_of(_JD_ENDINGS)
    return " ".join([*text, ending] if ending else text)


def _and(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _article(noun: str) -> str:
    """ "a " or "an " before ``noun``; "a university", "an hour" are the words' own affair: see the exceptions."""
    return "an " if noun[:1].lower() in "aeio" or noun.lower().startswith(("under", "up")) else "a "


# -------------------------------------------------------------------------------------------------------------- reading

_REQUIRED_YEARS = re.compile(r"(\d+)\+? years?\b", re.I)
_MONEY = re.compile(r"\$\s?(\d{2,3})(?:[,.]\d{3}|k)\b", re.I)
_REMOTE = re.compile(r"\bremote|\bwork from home|\bhome office", re.I)
_NICE = re.compile(r"\b(advantage|desirable|plus|preferred|nice to have|bonus)\b", re.I)
_LEVEL_WORDS = tuple(
    (level, re.compile(rf"\b(?:{words})\b", re.I))
    for level, words in (
        (0, "trainee|entry-level|apprentice|no experience required|first job"),
        (4, "lead|principal|head of|leadership of the department"),
        (3, "senior|long experience"),
        (1, "junior|one to three years"),
        (2, "experienced|several years"),
    )
)


def parse_job(text: str) -> Jobs | None:
    """One job in the market's terms, or None where no title of any occupation occurs.

    The first title decides the occupation (the longest one at that place); skills count under any of their surface
    forms, as nice-to-haves in a sentence that says so and as must-haves elsewhere; the level comes from its words, else
    from the years asked for, else it is 2. What the text does not tell is unknown: pay NaN, place -1;
    popularity is 1 and openness 0.
    """
    titles, skill_forms, cities = _patterns()
    title = titles[0].search(text)
    if title is None:
        return None
    musts, nices = [], []
    rest = text[: title.start()] + " " * len(title[0]) + text[title.end() :]
    for sentence in re.split(r"(?<=[.!?\n])\s+", rest):
        into = nices if _NICE.search(sentence) else musts
        into += [skill_forms[1][match[0]] for match in skill_forms[0].finditer(sentence)]
    musts = list(dict.fromkeys(musts))
    nices = [skill for skill in dict.fromkeys(nices) if skill not in musts]
    city, pay = cities[0].search(text), _MONEY.search(text)
    return Jobs(
        occupation=np.array([titles[1][title[0].lower()]], dtype=np.int16),
        level=np.array([_read_level(text)], dtype=np.int8),
        musts=_padded(musts, MUSTS),
        nices=_padded(nices, NICES),
        pay=np.array([float(pay[1]) if pay else np.nan], dtype=np.float32),
        place=np.array([cities[1][city[0].lower()] if city else -1], dtype=np.int8),
        remote=np.array([bool(_REMOTE.search(text))]),
        popularity=np.ones(1, dtype=np.float32),
        openness=np.zeros(1, dtype=np.float32),
    )


def _read_level(text: str) -> int:
    for level, words in _LEVEL_WORDS:
        if words.search(text):
            return level
    years = _REQUIRED_YEARS.search(text)
    return 2 if years is None else int(np.digitize(int(years[1]), (1, 4, 8, 12)))


def _padded(numbers: list[int], width: int) -> np.ndarray:
    row = np.full((1, width), -1, dtype=np.int16)
    row[0, : min(len(numbers), width)] = numbers[:width]
    return row


@functools.cache
def _patterns():
    """(pattern, {form: number}) of titles, skills and places; longer forms first, so that they win."""
    taxonomy = load_taxonomy()
    titles, skills = {}, {}
    for number, occupation in enumerate(taxonomy.occupations):
        titles.update({title.lower(): number for title in (*occupation.jd_titles, *occupation.cv_titles)})
    for number, skill in enumerate(taxonomy.skills):
        for form in (skill.short, skill.formal):
            for spelled in (form, form[0].upper() + form[1:]):
                skills.setdefault(spelled, number)
    cities = {place.lower(): number for number, (place, *_) in enumerate(PLACES)}
    return (any_of(titles, re.I), titles), (any_of(skills), skills), (any_of(cities, re.I), cities)


def any_of(forms: Iterable[str], flags: int = 0) -> re.Pattern:
    """Finds any of the forms where it stands as a word; the longest one at a place wins."""
    longest_first = sorted(forms, key=lambda form: (-len(form), form))
    return re.compile(r"(?<![\w-])(?:" + "|".join(map(re.escape, longest_first)) + r")(?![\w-])", flags)
