"""One resume of the resume corpus, taken apart: the CV (all but the latest job) and the JD (the latest job).

A file of the corpus is one line, a web page without its line breaks:

    TITLE TITLE TITLE - COMPANY CITY, ST summary ... Work Experience TITLE COMPANY - CITY, ST June 2016 to Present
    duties TITLE COMPANY - CITY, ST May 2012 to June 2016 duties ... Education DEGREE SCHOOL - CITY, ST 2012 Skills ...

Only the date ranges are unmistakable. A job begins at the title before its date range: the run of capitalised words
there, in which the last known title that ends in a role noun is the title and what follows is the company. What comes
before is the end of the previous job's duties. Where the title is not certain the whole run is left out of those
duties, so that no JD ends in the next job's title.

The pair must not be matched by anything but fit. Hence, within one resume: company and place names become [COMPANY] and
[PLACE] in both texts; the headline is left out; a sentence outside the previous jobs that states the current title is
dropped from the CV; so is a sentence that shares a run of ``copied_words`` words with the JD (people paste duties); and
dates are dropped from the JD.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

__all__ = ["ParsedResume", "Titles", "clean", "parse_resume"]


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_MONTH = (
    "(?:January|February|March|April|May|June|July|August|September|October|November|December"
    "|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)"
)
_DATES = re.compile(rf"(?:{_MONTH} )?(?:19|20)\d\d to (?:Present|(?:{_MONTH} )?(?:19|20)\d\d)\b")
_MONTH_YEAR = rf"{_MONTH}\.?,? ?(?:(?:19|20)\d\d|['’]\d\d)\b"
_DATE_IN_TEXT = re.compile(
    rf"\(?(?:(?:since|from) )?\b{_MONTH_YEAR}"
    rf"(?:\s*(?:to|-|–|—|until|till)\s*(?:Present|Current|Now|Till Date|Till now|{_MONTH_YEAR}))?\)?",
    re.IGNORECASE,
)
_TAG = re.compile(r"</?\w+[^<>]{0,40}>")
_SPACE = re.compile(r"[\s\u00a0\u200b\u200e\u200f\ufeff\x00-\x1f]+")
_BULLET = re.compile(r"\s*(?:[•·●▪■◦○➢➤❖✓✔►▶\uf0a7\uf0b7\uf0d8\uf076\ufffd]|\s[*§ü](?=\s)|\s[?](?=\s+[A-Z]))\s*")
_SENTENCE = re.compile(r"(?<=[a-z0-9)%\]][.!?;])\s+(?=[A-Z\[(])|\n+|\s+[-–]\s+(?=[A-Z][a-z]+ed\b)")
_WORK = re.compile(r"(?:^|\s)Work Experience\s")
_EDUCATION = re.compile(
    r"\sEducation\s(?=[^\n]{0,150}?(?:Bachelor|Master|Associate|Diploma|Degree|University|College|School|Institute"
    r"|B\.?S|M\.?S|B\.?A|Ph\.?D|GED|Certificat|Academy|\bin\b))(?=[A-Z])"
)
_AFTER_WORK = re.compile(
    r"\s(?:Skills\s(?=[^\n]{0,120}\((?:\d+\+? years?|Less than 1 year)\))|Certifications/Licenses\s|Military Service\s"
    r"|Additional Information\s|Links\s(?=\[?(?:URL|http|www))"
    r"|(?:Awards|Publications|Groups|Patents|Skills)\s(?=[A-Z]))"
)
_SECTION = re.compile(
    r"(?:^|\s)(Education|Skills|Links|Certifications/Licenses|Military Service|Awards|Groups|Publications|Patents"
    r"|Additional Information)\s(?=[A-Z\[])"
)
_SKILLS_RATED = re.compile(r"\((?:\d+\+? years?|Less than 1 year)\)", re.IGNORECASE)
_HEADLINE = re.compile(r"^(.{2,150}?) \1(?=\s|$)(?: \1(?=\s|$))?")
_ROLES = _set(
    "developer engineer administrator manager analyst architect consultant specialist technician lead leader "
    "programmer designer director intern coordinator officer tester scientist supervisor advisor adviser associate "
    "assistant owner founder cofounder co-founder admin dba master trainer instructor freelancer researcher expert "
    "president executive representative operator head webmaster contractor trainee student teacher tutor clerk "
    "professor writer editor agent auditor planner strategist partner ceo cto cio ciso volunteer cashier server "
    "mentor fellow buyer worker guard scrummaster sysadmin producer artist marketer sergeant captain nco apprentice "
    "member evangelist qa"
)
_MODIFIERS = _set(
    "senior sr jr junior lead principal staff chief head assistant associate dot full full-stack stack front end back "
    "front-end ui ux it entry level technical"
)
_CONNECTORS = _set("of and the for in at de to a on with & - / – | la del und van der by @ y e dba")
_COMPANY_DOTS = _set("inc. sr. jr. co. corp. ltd. st. llc. l.l.c. pvt. u.s. no. ft. mt. dr. dept. bros. u.s.a.")
_STATES = (
    "AL|AK|AZ|AR|CA|CO|CT|DE|FL|GA|HI|ID|IL|IN|IA|KS|KY|LA|ME|MD|MA|MI|MN|MS|MO|MT|NE|NV|NH|NJ|NM|NY|NC|ND|OH|OK|OR|PA"
    "|RI|SC|SD|TN|TX|UT|VT|VA|WA|WV|WI|WY|DC|PR"
)
_STATE_NAMES = (
    "Alabama|Alaska|Arizona|Arkansas|California|Colorado|Connecticut|Delaware|Florida|Georgia|Hawaii|Idaho|Illinois"
    "|Indiana|Iowa|Kansas|Kentucky|Louisiana|Maine|Maryland|Massachusetts|Michigan|Minnesota|Mississippi|Missouri"
    "|Montana|Nebraska|Nevada|New Hampshire|New Jersey|New Mexico|New York|North Carolina|North Dakota|Ohio|Oklahoma"
    "|Oregon|Pennsylvania|Rhode Island|South Carolina|South Dakota|Tennessee|Texas|Utah|Vermont|Virginia|Washington"
    "|West Virginia|Wisconsin|Wyoming|India|USA|U\\.S\\.A\\.?"
)
_CITY = r"[A-Z][\w.'’]+(?:[ -][A-Z][\w.'’]+){0,2}"
_PLACE = re.compile(
    rf"\b(?:{_CITY},? ?,\s?(?:(?:{_STATES})\b|(?:{_STATE_NAMES})\b(?:, ?[A-Z][a-z]+)?)|(?:{_STATE_NAMES})\b)"
)
_CLIENT = re.compile(
    r"\b((?:End )?(?:Client|Customer|Employer|Company)(?: Name)?\s*[:–-]\s*)((?:[A-Z0-9][\w&.'’/-]*,? ?){1,6})"
)
_LOCATION_LABEL = re.compile(r"\b(Location\s*[:–-]\s*)((?:[A-Z][\w.'’]*,? ?){1,4})")
_GENERIC = _set(
    "freelance self self-employed selfemployed employed company confidential consultant consulting contract various "
    "independent remote home present private it the of and web software systems system technology technologies "
    "services service solutions group international global data network networks security digital media online "
    "project university college school department office city state county us usa india part time full none na n/a "
    "client intern student research information computer design development developer engineer engineering java "
    "python linux windows unix cloud sql server support business management team first one new american national "
    "general mobile internet"
)
_WORD = re.compile(r"[A-Za-z0-9+#.]+")
_EDGE = "()[]{},;:.!?\"'|–-*"


@dataclass
class Titles:
    """Known job titles in lower case, words split by single spaces."""

    known: set[str] = field(default_factory=set)

    def add(self, title: str) -> None:
        words = _norm_words(title.split())
        if 0 < len(words) <= 9:
            self.known.add(" ".join(words))

    def __contains__(self, words: list[str]) -> bool:
        return " ".join(words) in self.known


@dataclass(frozen=True)
class ParsedResume:
    cv: str
    jd: str
    title: str
    raw_cv: str  # before masking and dropping, to measure what those take away
    raw_jd: str
    masked_names: int
    dropped_sentences: int


@dataclass(frozen=True)
class _Header:
    start: int  # where the previous duties end, in the work section
    dates_start: int
    end: int  # where the duties begin
    title: str
    company: str
    place: str


def clean(raw: str) -> str:
    """The text without mark-up, entities, odd spaces and control characters; every bullet becomes a new line."""
    text = html.unescape(_TAG.sub("", raw))
    text = _SPACE.sub(" ", text)
    return _BULLET.sub("\n", text).strip()


def headline(text: str) -> str:
    """The title that a page repeats at its top, or the empty string."""
    found = _HEADLINE.match(text[:400])
    return found[1].strip() if found else ""


def parse_resume(text: str, titles: Titles, copied_words: int) -> ParsedResume | str:
    """The pair of a cleaned resume, or the reason why there is none."""
    work_at = _WORK.search(text)
    if not work_at:
        return "no work experience section"
    top, rest = text[: work_at.start()], text[work_at.end() :]
    education = _EDUCATION.search(rest)
    work = rest[: education.start()] if education else rest
    tail = rest[len(work) :]
    dates = [d for d in _DATES.finditer(work) if _may_be_header(work, d)]
    if not dates:
        return "no dated job"
    if not education:  # the other sections can only be told from duties after the last job's dates
        after = _AFTER_WORK.search(work, dates[-1].end())
        if after:
            work, tail = work[: after.start()], work[after.start() :]
    head = headline(top)
    latest = _first_header(work, dates[0], head, titles)
    if latest is None:
        return "title of the latest job not found"
    headers = [latest]
    for date in dates[1:]:
        headers.append(_next_header(work, headers[-1].end, date, titles))
    ends = [h.start for h in headers[1:]] + [len(work)]
    duties = [work[h.end : end].strip() for h, end in zip(headers, ends, strict=True)]

    if len(headers) > 1:
        duties[0] = _without_title_at_end(duties[0])
    raw_jd = f"{latest.title}\n{duties[0]}"
    summary = top[_HEADLINE.match(top[:400]).end() :] if head else top
    past = [
        f"{h.title} ({work[h.dates_start : h.end].strip()})\n{text}".strip()
        for h, text in zip(headers[1:], duties[1:], strict=True)
    ]
    raw_cv = "\n".join([summary, *past, tail])

    companies = {h.company for h in headers} | {_headline_company(summary)}
    places = {h.place for h in headers}
    mask = _masker(companies, places)
    jd_text, masked = mask(_DATE_IN_TEXT.sub(" ", raw_jd))
    copied = _runs(jd_text, copied_words)
    stated = _phrase(latest.title)
    tail = _SECTION.sub(r"\n\1: ", tail)
    parts, dropped = [], 0
    summary = _without_headline(summary)
    for text_part, is_job in [(summary, False), *((p, True) for p in past), (tail, False)]:
        masked_part, count = mask(text_part)
        masked += count
        kept = []
        for number, line in enumerate(_SENTENCE.split(masked_part)):
            line = (line or "").strip()
            if not line:
                continue
            states = not is_job and stated.search(line)
            if states and _SKILLS_RATED.search(line):  # one long line of rated skills: only the title goes
                line, states = stated.sub("", line), None
            if states or ((number or not is_job) and _runs(line, copied_words) & copied):
                dropped += 1
                continue
            kept.append(line)
        parts.append("\n".join(kept))
    cv = "\n\n".join(part for part in parts if part)
    return ParsedResume(cv, _tidy(jd_text), latest.title, raw_cv, raw_jd, masked, dropped)


# ---------------------------------------------------------------------------------------------------------- headers


def _may_be_header(work: str, date: re.Match) -> bool:
    before = work[: date.start()].rstrip()
    last = before.rsplit(None, 1)[-1].lower() if before else ""
    return not (last.endswith(("(", "[")) or last in ("from", "between", "during", "period", "duration:", "dates:"))


def _split_place(text: str) -> tuple[str, str]:
    """``Company - City, ST`` -> (company, place); no place where what follows the last dash does not read like one."""
    body, dash, place = text.rpartition(" - ")
    reads = dash and len(place) <= 50 and len(place.split()) <= 6 and place[:1].isupper()
    return (body.strip(), place.strip()) if reads else (text.strip(), "")


def _first_header(work: str, date: re.Match, head: str, titles: Titles) -> _Header | None:
    text = work[: date.start()].strip().replace("\n", " ")
    if not text or len(text) > 250:
        return None
    body, place = _split_place(text)
    words = body.split()
    title = ""
    if head and (body + " ").lower().startswith(head.lower() + " "):
        title = body[: len(head)]
    else:
        norm = [_norm(word) for word in words]
        for end in range(min(len(words), 9), 0, -1):
            if _is_role(norm[end - 1]) and norm[:end] in titles:
                title = " ".join(words[:end])
                break
        if not title:
            ends = [n for n, word in enumerate(norm[:8]) if _is_role(word)]
            title = " ".join(words[: ends[0] + 1]) if ends else ""
    if not title or len(title.split()) > 10:
        return None
    company = body[len(title) :].strip()
    return _Header(0, date.start(), date.end(), _trim(title), company, place)


def _next_header(work: str, previous_end: int, date: re.Match, titles: Titles) -> _Header:
    begin = max(previous_end, date.start() - 250)
    window = work[begin : date.start()]
    body, place = _split_place(window.rstrip())
    if "\n" in place:
        body, place = window.rstrip(), ""
    spans = [(m.start(), m.end()) for m in re.finditer(r"\S+", window[: len(window[: window.find(body)]) + len(body)])]
    words = [window[a:b] for a, b in spans]
    run = len(words)
    while run > 0 and _in_header(words, run - 1) and "\n" not in window[spans[run - 1][1] :][: _gap(spans, run)]:
        run -= 1
    while run < len(words) and words[run].lower() in _CONNECTORS:
        run += 1
    norm = [_norm(word) for word in words]
    title, after, start_word = "", run, run
    for end in range(len(words), run, -1):
        if not _is_role(norm[end - 1]):
            continue
        starts = [s for s in range(max(run, end - 8), end) if norm[s:end] in titles]
        s = starts[0] if starts else end - 1
        while s > run and norm[s - 1] in _MODIFIERS:
            s -= 1
        title, after = " ".join(words[s:end]), end
        start_word = s if end - s > 1 else run
        break
    if not title:  # lower-case words between the title and the dates
        for end in range(len(words), max(0, len(words) - 20), -1):
            starts = [s for s in range(max(0, end - 8), end - 1) if words[s][0].isupper() and norm[s:end] in titles]
            if starts and _is_role(norm[end - 1]):
                start_word, after = starts[0], end
                title = " ".join(words[start_word:end])
                break
    start = spans[start_word][0] if start_word < len(words) else len(window.rstrip())
    company = " ".join(words[after:])
    return _Header(begin + start, date.start(), date.end(), _trim(title) or "Earlier job", company, place)


def _gap(spans: list[tuple[int, int]], run: int) -> int:
    return spans[run][0] - spans[run - 1][1] if run < len(spans) else 0


def _in_header(words: list[str], at: int) -> bool:
    word = words[at]
    last = at == len(words) - 1
    if word.lower() in _CONNECTORS:
        return True
    if not (word[0].isupper() or word[0].isdigit() or word[0] in "([&#/.@" or word[-1] in ")"):
        return False
    if last:
        return True
    return word[-1] not in ".;:!?" or word.lower() in _COMPANY_DOTS or bool(re.fullmatch(r"(?:[A-Z]\.)+", word))


def _without_title_at_end(duties: str) -> str:
    """The duties without a last fragment of capitalised words that holds a role: a piece of the next job's header."""
    words = duties.split()
    if not words or words[-1][-1] in ".;!?":
        return duties
    at = len(duties)
    for count, match in enumerate(reversed(list(re.finditer(r"\S+", duties[-200:])))):
        word = match[0]
        stops = count and (word[-1] in ".;:!?" and word.lower() not in _COMPANY_DOTS)
        if stops or not (word[0].isupper() or word[0] in "(-/&@," or word.lower() in _CONNECTORS):
            break
        at = max(len(duties) - 200, 0) + match.start()
    fragment = duties[at:]
    holds_role = any(word[0].isupper() and _is_role(_norm(word)) for word in fragment.split())
    return duties[:at].rstrip() if holds_role and len(fragment.split()) >= 2 else duties


def _trim(title: str) -> str:
    return title.rstrip(_EDGE + " ").lstrip("()[]{},;:!?\"'|–-* ")


def _is_role(word: str) -> bool:
    return word.rsplit("/", 1)[-1] in _ROLES


def _norm(word: str) -> str:
    return word.lower().strip(_EDGE)


def _norm_words(words: Iterable[str]) -> list[str]:
    return [w for w in map(_norm, words) if w]


# ----------------------------------------------------------------------------------------------------------- masking


def _headline_company(summary: str) -> str:
    found = re.match(rf"\s*-\s*(.{{2,60}}?)\s+{_CITY}, (?:{_STATES})\b", summary)
    return found[1] if found else ""


def _without_headline(summary: str) -> str:
    """The summary without ``... - Company City, ST`` that ends the headline."""
    found = re.match(rf"\s*.{{0,120}}?{_CITY}, (?:{_STATES})\b", summary)
    return summary[found.end() :] if found else re.sub(r"^\s*-\s*\S+", "", summary)


def _names(companies: Iterable[str]) -> set[str]:
    names = set()
    for company in companies:
        for piece in re.split(r"\s*[|/()\n]\s*|\s+-\s+|, (?!Inc|LLC|Ltd|Corp)", company or ""):
            words = piece.strip(_EDGE + " ").split()
            while words and words[-1].lower().strip(",.") in {
                "inc",
                "llc",
                "ltd",
                "corp",
                "co",
                "lp",
                "plc",
                "llp",
                "pvt",
            }:
                words.pop()
            name = " ".join(words).strip(_EDGE + " ")
            specific = [w for w in _norm_words(words) if w not in _GENERIC and w not in _ROLES]
            if len(name) >= 3 and specific and len(words) <= 8:
                names.add(name)
                if len(specific) < len(words) or len(words) > 1:
                    names.update(w.strip(_EDGE) for w in words if w[:1].isupper() and len(_norm(w)) >= 5
                                 and _norm(w) in specific and len(specific) == 1)  # fmt: skip
    return names


def _masker(companies: Iterable[str], places: Iterable[str]):
    """A function text -> (masked text, number of names masked)."""
    names = sorted(_names(companies), key=len, reverse=True)
    cities = {p.split(",")[0].strip() for p in places if p}
    cities = sorted((c for c in cities if len(c) >= 3 and c.lower() not in _GENERIC), key=len, reverse=True)
    company = re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, names)) + r")(?!\w)", re.IGNORECASE) if names else None
    city = re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, cities)) + r")(?!\w)") if cities else None

    def mask(text: str) -> tuple[str, int]:
        total = 0
        for pattern, to in (
            (_CLIENT, r"\1[COMPANY] "),
            (_LOCATION_LABEL, r"\1[PLACE] "),
            (company, "[COMPANY]"),
            (_PLACE, "[PLACE]"),
            (city, "[PLACE]"),
        ):
            if pattern is not None:
                text, count = pattern.subn(to, text)
                total += count
        return text, total

    return mask


# ------------------------------------------------------------------------------------------------------------- leaks


def _phrase(title: str) -> re.Pattern:
    words = _norm_words(re.split(r"[\s/,&-]+", title))
    return re.compile(r"(?<!\w)" + r"[\s/,&-]+".join(map(re.escape, words)) + r"s?(?!\w)", re.IGNORECASE)


def _runs(text: str, words: int) -> set[tuple[str, ...]]:
    found = [w.strip(".").lower() for w in _WORD.findall(text)]
    return {tuple(found[i : i + words]) for i in range(len(found) - words + 1)}


def _tidy(text: str) -> str:
    lines = (re.sub(r"\s+", " ", line).strip() for line in text.split("\n"))
    return "\n".join(line for line in lines if line)
