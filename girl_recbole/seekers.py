"""Whose JDs are wanted, and where their CVs are: streamed, with a few numbers held of each seeker.

The seekers of ``gen_stages``, in the order of NAME.udoc. An id and a CV are known by 16 bytes of their hash
(:func:`girl_recbole.shards.key_of`), so that millions fit in memory; the texts are read again when they are needed
(:func:`walk`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from girl_recbole.atomic import DatasetFiles, iter_docs, iter_ids
from girl_recbole.errors import ConfigError, DataError, some_of
from girl_recbole.manifest import TextDigest, file_hash
from girl_recbole.shards import KEY_BYTES, as_keys, key_of

__all__ = ["GROUPS", "Seekers", "find_seekers", "walk", "wanted_seekers"]

GROUPS = ("recommendation", "sft", "reward", "rl")
_IDS = 1 << 20  # ids of seekers between two reductions to distinct ones
_ROWS = 4096  # documents looked up at a time


def wanted_seekers(files: DatasetFiles, stages: Iterable[str] | str) -> np.ndarray:
    """Keys of the ids of the seekers of the stages, sorted."""
    wanted, more = as_keys(b""), bytearray()
    for user in _stage_ids(files, stages):
        more += key_of(user)
        if len(more) == _IDS * KEY_BYTES:
            wanted, more = np.unique(np.concatenate([wanted, as_keys(more)])), bytearray()
    wanted = np.unique(np.concatenate([wanted, as_keys(more)]))
    if not len(wanted):
        raise DataError(f"{files.folder}: the stages {', '.join(_stages(stages))} have no seeker.")
    return wanted


def _stages(stages: Iterable[str] | str) -> list[str]:
    stages = [stages] if isinstance(stages, str) else list(stages)
    unknown = [stage for stage in stages if stage not in GROUPS]
    if unknown or not stages:
        raise ConfigError(f"gen_stages: {', '.join(map(str, unknown)) or 'none'}; known: {', '.join(GROUPS)}.")
    return stages


def _stage_ids(files: DatasetFiles, stages: Iterable[str] | str) -> Iterator[str]:
    """The seekers of the stages in file order, some of them more than once."""
    for stage in _stages(stages):
        yield from iter_ids(files.inter if stage == "recommendation" else files.stage(stage), "user_id")


@dataclass(frozen=True)
class Seekers:
    """S seekers whose JDs are wanted, in the order of NAME.udoc."""

    places: np.ndarray  # (S,) int64: which document of NAME.udoc
    keys: np.ndarray  # (S,) what their JDs depend on (shards.py)
    first: np.ndarray  # (S,) bool: the first with this key
    source: str  # text_hash of id and CV of each
    udoc_sha256: str
    empty: int  # seekers with a blank CV
    by_seeker: bool  # keys are of CV and first seeker

    def is_key(self, key: bytes, user: str, cv: str) -> bool:
        """Whether ``key`` is that of ``cv``, whose first seeker is ``user``."""
        return key == (_pair(key_of(cv), key_of(user)) if self.by_seeker else key_of(cv))


def find_seekers(files: DatasetFiles, wanted: np.ndarray, stages: Iterable[str] | str, by_seeker: bool) -> Seekers:
    """Where the CVs of ``wanted`` are. ``by_seeker``: the first seeker of a CV is part of its key."""
    udoc_sha256, digest = file_hash(files.udoc) if files.udoc.exists() else "", TextDigest()
    places, keys, owners, empty = bytearray(), bytearray(), bytearray(), 0
    seen = np.zeros(len(wanted), bool)
    docs, at = iter_docs(files.udoc), 0
    while block := list(islice(docs, _ROWS)):
        ids = as_keys(key_of(user) for user, _ in block)
        where = np.minimum(np.searchsorted(wanted, ids), len(wanted) - 1)
        hits = np.flatnonzero(wanted[where] == ids)
        seen[where[hits]] = True
        places += (at + hits).tobytes()
        for user, cv in (block[hit] for hit in hits):
            keys += key_of(cv)
            empty += not cv.strip()
            digest.add(user)
            digest.add(cv)
        if by_seeker:
            owners += ids[hits].tobytes()
        at += len(block)
    if not seen.all():
        lost = wanted[~seen]
        missing = list(dict.fromkeys(u for u in _stage_ids(files, stages) if as_keys(key_of(u))[0] in lost))
        raise DataError(
            f"{files.udoc}: {len(missing)} of {len(wanted)} seekers have no CV ({some_of(missing)}); each needs one."
        )
    found = as_keys(keys)
    order = np.argsort(found, kind="stable")  # of equal keys the first comes first
    first = np.zeros(len(found), bool)
    first[order[:1]] = True
    for at in range(1, len(order), _ROWS):
        here = order[at : at + _ROWS]
        first[here] = found[here] != found[order[at - 1 : at - 1 + len(here)]]
    if by_seeker:
        whose, starts, which = as_keys(owners), first[order], np.empty(len(order), np.int64)
        pairs = ((found[at : at + 1].tobytes(), whose[at : at + 1].tobytes()) for at in order[starts])
        which[order] = np.cumsum(starts) - 1
        found = as_keys(_pair(*pair) for pair in pairs)[which]
    return Seekers(np.frombuffer(places, np.int64), found, first, digest.hexdigest(), udoc_sha256, empty, by_seeker)


def _pair(cv: bytes, user: bytes) -> bytes:
    return hashlib.sha256(cv + user).digest()[:KEY_BYTES]


def walk(files: DatasetFiles, seekers: Seekers) -> Iterator[tuple[str, str, bool, int]]:
    """(id, CV, is the first with its key, number) of each seeker, streaming."""
    at, end = 0, len(seekers.places)
    for place, (user, cv) in enumerate(iter_docs(files.udoc, distinct=False)):
        if at < end and place == seekers.places[at]:
            yield user, cv, bool(seekers.first[at]), at
            at += 1
