"""Manifests: what made an artefact, so that nothing stale is ever used.

Beside the artefact ``X`` (a file or a folder) lies ``X.manifest.json``: the kind, the config, the seed, the hashes of
the inputs, the versions of what mattered, the wall time. A stage that reads ``X`` calls :func:`require` with what it is
about to rely on; anything else than a match is an error that says which command rebuilds ``X``.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from girl_recbole.atomic import atomic_write
from girl_recbole.errors import DataError

__all__ = [
    "TextDigest",
    "cached_file_hash",
    "file_hash",
    "manifest_path",
    "read_manifest",
    "require",
    "text_hash",
    "write_manifest",
]

_VERSIONED = ("girl_recbole", "numpy", "torch", "transformers", "trl", "peft", "sentence-transformers", "recbole")


class TextDigest:
    """:func:`text_hash` of texts that come one after the other."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, text: str) -> None:
        data = text.encode("utf-8", "surrogatepass")
        self._digest.update(len(data).to_bytes(8, "little"))
        self._digest.update(data)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def text_hash(*texts: str) -> str:
    """Hex SHA-256 of the texts in order; a boundary counts, so ("ab", "c") and ("a", "bc") differ."""
    digest = TextDigest()
    for text in texts:
        digest.add(text)
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cached_file_hash(path: Path) -> str:
    """As :func:`file_hash`, read once a process while the file's size and time stay."""
    facts = Path(path).stat()
    return _hash_of(Path(path).resolve(), facts.st_size, facts.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _hash_of(path: Path, size: int, mtime_ns: int) -> str:
    return file_hash(path)


def manifest_path(path: Path) -> Path:
    return Path(path).with_name(Path(path).name + ".manifest.json")


def write_manifest(
    path: Path,
    kind: str,
    *,
    config: Mapping[str, Any],
    inputs: Iterable[Path] = (),
    seed: int | None = None,
    wall_time_s: float | None = None,
    **facts: Any,
) -> dict[str, Any]:
    """Write and return the manifest of ``path``: to be called last, when the artefact is whole.

    ``inputs`` are hashed by content under their file names (with their folders where names are equal); ``facts``
    are counts, hashes or settings of this kind.
    """
    manifest = {
        "kind": kind,
        "config": dict(config),
        "seed": seed,
        "inputs": {name: file_hash(file) for name, file in _named(inputs).items()},
        "wall_time_s": None if wall_time_s is None else round(wall_time_s, 3),
        "versions": _versions(),
        **facts,
    }
    with atomic_write(manifest_path(path)) as file:
        json.dump(manifest, file, indent=1, sort_keys=True, ensure_ascii=False, default=str)
        file.write("\n")
    return manifest


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest of ``path``, or None where there is none. Raises ``DataError`` when it is not JSON."""
    beside = manifest_path(path)
    if not beside.exists():
        return None
    try:
        return json.loads(beside.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{beside}: not a manifest ({error}); delete it and rebuild {path}.") from None


def require(path: Path, rebuild: str, **expected: Any) -> dict[str, Any]:
    """Return the manifest of ``path`` if every ``expected`` entry equals what it records; else say what differs.

    ``rebuild`` is the command that makes the artefact anew, for the message.
    """
    manifest = read_manifest(path)
    if manifest is None:
        raise DataError(f"{path}: no manifest beside it, so it may be unfinished. Run `{rebuild}`.")
    differing = [key for key, value in expected.items() if manifest.get(key) != json.loads(json.dumps(value))]
    if differing:
        details = "; ".join(f"{key} was {_short(manifest.get(key))}, now {_short(expected[key])}" for key in differing)
        raise DataError(f"{path}: made from something else: {details}. Run `{rebuild}`.")
    return manifest


def _named(paths: Iterable[Path]) -> dict[str, Path]:
    paths = list(map(Path, paths))
    names = [path.name for path in paths]
    return {path.name if names.count(path.name) == 1 else str(path): path for path in paths}


def _short(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _VERSIONED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
