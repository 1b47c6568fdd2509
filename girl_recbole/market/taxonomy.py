"""The fixed world of the simulated market: families, occupations, skills, titles, places, and how near occupations are.

Names, titles, tools and relations are O*NET's (``onet.json``, CC BY 4.0, see NOTICE); the wording of professional and
soft skills, of past duties, employers and projects is our own (``wording.yaml``), and so are pay levels and places.

    near[o, p]      (O, O) float32 in [0, 1]: 1 the same occupation; 0.6 / 0.45 / 0.3 for O*NET's tiers Primary-Short /
                    Primary-Long / Supplemental (the larger of both directions); at least 0.2 within a family; else 0
    step[o, p]      (O, O) float64, rows sum to 1: which occupation a seeker of ``o`` who wants to move has in mind; a
                    random sparse share (Dirichlet, 0.35) of the related ones, so that each occupation has a
                    few usual next steps that no text states
    skills          professional (with a duty that implies them), then tools, then soft skills; each with a formal name
                    (JDs) and a short form (CVs)
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

__all__ = ["PLACES", "REGIONS", "SCHOOLS", "Occupation", "Skill", "Taxonomy", "load_taxonomy"]

_HERE = Path(__file__).resolve().parent
_TIERS = {"Primary-Short": 0.6, "Primary-Long": 0.45, "Supplemental": 0.3}
_SAME_FAMILY, _STEP_SPARSITY, _STEP_SEED = 0.2, 0.35, 7

REGIONS = ("northern", "eastern", "southern", "western")
PLACES = (  # (place, region, pay level)
    ("Duluth", 0, 0.93), ("Minneapolis", 0, 1.02), ("Chicago", 0, 1.06),
    ("Boston", 1, 1.13), ("Albany", 1, 0.97), ("Philadelphia", 1, 1.04),
    ("Atlanta", 2, 1.00), ("Memphis", 2, 0.91), ("Houston", 2, 1.01),
    ("Denver", 3, 1.03), ("Seattle", 3, 1.14), ("Fresno", 3, 0.96),
)  # fmt: skip
SCHOOLS = (  # by tier, best known first; all invented
    ("Whitmore University", "Ellery Institute", "Harcourt University"),
    ("Pinecrest State University", "Lakeside State College", "Union Valley University"),
    ("Milltown Community College", "Riverbend Community College", "Northgate Vocational School"),
)


@dataclass(frozen=True)
class Skill:
    short: str  # how CVs write it
    formal: str  # how JDs write it
    duties: tuple[str, ...]  # past duties that imply it without naming it; professional skills only


@dataclass(frozen=True)
class Occupation:
    code: str
    title: str  # O*NET's official one
    family: int
    pay: float  # thousand USD a year at mid level
    jd_titles: tuple[str, ...]
    cv_titles: tuple[str, ...]
    core: np.ndarray  # (7,) skill numbers, most usual first
    tools: np.ndarray  # (<= 10,) skill numbers


@dataclass(frozen=True)
class Taxonomy:
    families: tuple[str, ...]
    employers: tuple[tuple[str, ...], ...]  # by family
    projects: tuple[tuple[str, ...], ...]  # by family
    occupations: tuple[Occupation, ...]
    skills: tuple[Skill, ...]
    n_professional: int
    n_tools: int
    near: np.ndarray
    step: np.ndarray

    @property
    def family(self) -> np.ndarray:
        """(O,) the family of each occupation."""
        return np.array([occupation.family for occupation in self.occupations])

    @property
    def soft(self) -> np.ndarray:
        """The numbers of the soft skills."""
        return np.arange(self.n_professional + self.n_tools, len(self.skills))


@functools.cache
def load_taxonomy() -> Taxonomy:
    """Read the two shipped files; the same object at every call."""
    onet = json.loads((_HERE / "onet.json").read_text(encoding="utf-8"))
    wording = yaml.safe_load((_HERE / "wording.yaml").read_text(encoding="utf-8"))
    skills, number = [], {}
    for family in wording["families"].values():
        for line in family["skills"]:
            short, formal, duty = (part.strip() for part in line.split("|"))
            verbs, _, rest = duty.partition(" ")
            number[short] = len(skills)
            skills.append(Skill(short, formal, tuple(f"{verb} {rest}" for verb in verbs.split("/"))))
    n_professional = len(skills)
    skills += [Skill(short, formal, ()) for formal, short, _ in onet["tools"]]
    for line in wording["soft_skills"]:
        short, formal = (part.strip() for part in line.split("|"))
        skills.append(Skill(short, formal, ()))
    facts = {row["code"]: row for row in onet["occupations"]}
    occupations = []
    for family, lines in enumerate(wording["occupations"].values()):
        for line in lines:
            code, pay, core = (part.strip() for part in line.split("|"))
            fact = facts[code]
            occupations.append(
                Occupation(
                    code,
                    fact["title"],
                    family,
                    float(pay),
                    tuple(fact["jd_titles"]),
                    tuple(fact["cv_titles"]),
                    np.array([number[short.strip()] for short in core.split(";")]),
                    np.array([n_professional + tool for tool in fact["tools"]]),
                )
            )
    families = list(wording["families"].values())
    near = _near(occupations, facts)
    return Taxonomy(
        families=tuple(family["name"] for family in families),
        employers=tuple(tuple(family["employers"]) for family in families),
        projects=tuple(tuple(family["projects"]) for family in families),
        occupations=tuple(occupations),
        skills=tuple(skills),
        n_professional=n_professional,
        n_tools=len(onet["tools"]),
        near=near,
        step=_steps(near),
    )


def _near(occupations: list[Occupation], facts: dict) -> np.ndarray:
    row = {occupation.code: i for i, occupation in enumerate(occupations)}
    family = np.array([occupation.family for occupation in occupations])
    near = np.where(family[:, None] == family[None, :], _SAME_FAMILY, 0.0)
    for occupation in occupations:
        for code, tier in facts[occupation.code]["related"]:
            i, j = row[occupation.code], row[code]
            near[i, j] = near[j, i] = max(near[i, j], _TIERS[tier])
    np.fill_diagonal(near, 1.0)
    return near.astype(np.float32)


def _steps(near: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(_STEP_SEED)  # part of the world, not of a run
    weight = rng.gamma(_STEP_SPARSITY, size=near.shape) * np.where(near < 1, near, 0)
    return weight / weight.sum(axis=1, keepdims=True)
