"""``girl prepare SOURCE``: raw sources become the files of atomic.py. One module a source; this is their register.

Each converter writes NAME.inter, the stages, .udoc and .idoc, a manifest beside each, and NAME.report.txt: what it
read, kept and dropped, and why, by count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from girl_recbole.atomic import DatasetFiles
from girl_recbole.errors import ConfigError
from girl_recbole.prepare import incruit, pjf, resume_corpus, tables

__all__ = ["SOURCES", "Source", "prepare"]


@dataclass(frozen=True)
class Source:
    """A converter and the kind of config that it takes: ``make_config(SOURCES["pjf"].config, overrides=...)``."""

    config: type
    run: Callable[[DatasetFiles, Any], dict]


SOURCES = {
    "resume-corpus": Source(resume_corpus.ResumeCorpusConfig, resume_corpus.prepare),
    "incruit": Source(incruit.IncruitConfig, incruit.prepare),
    "pjf": Source(pjf.PjfConfig, pjf.prepare),
    "tables": Source(tables.TablesConfig, tables.prepare),
}


def prepare(source: str, files: DatasetFiles, config: Any) -> dict:
    """Convert ``source`` into the dataset ``files``; returns the report of what was read, kept and dropped."""
    if source not in SOURCES:
        raise ConfigError(f"prepare: unknown source {source!r}; known: {', '.join(SOURCES)}.")
    return SOURCES[source].run(files, config)
