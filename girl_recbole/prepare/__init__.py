"""``girl prepare SOURCE NAME``: raw sources become the files of atomic.py. One module a source; this is their register.

Each converter writes NAME.inter, the stages, .udoc and .idoc, a manifest beside each, and NAME.report.txt: what it
read, kept and dropped, and why, by count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from girl_recbole.atomic import DatasetFiles
from girl_recbole.errors import ConfigError
from girl_recbole.prepare import incruit, pjf, resume_corpus, tables

__all__ = ["SOURCES", "PrepareConfig", "prepare"]


@dataclass(frozen=True)
class PrepareConfig(
    resume_corpus.ResumeCorpusConfig, incruit.IncruitConfig, pjf.PjfConfig, tables.TablesConfig
):  # fmt: skip
    """The keys of all converters, so that one property file or command line serves each of them."""


SOURCES: dict[str, Callable[[DatasetFiles, PrepareConfig], dict]] = {
    "resume-corpus": resume_corpus.prepare,
    "incruit": incruit.prepare,
    "pjf": pjf.prepare,
    "tables": tables.prepare,
}


def prepare(files: DatasetFiles, config: PrepareConfig, source: str) -> dict:
    """Convert ``source`` into the dataset ``files``; returns the report of what was read, kept and dropped."""
    if source not in SOURCES:
        raise ConfigError(f"prepare: unknown source {source!r}; known: {', '.join(SOURCES)}.")
    return SOURCES[source](files, config)
