"""What every engine is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Asked", "Completion", "Engine"]


@dataclass(frozen=True)
class Asked:
    """One CV's prompt, as token ids (role, instruction, CV, opening of the answer) and as the text of a user's message
    (instruction and CV, without any role marker), and a 128-bit key for each JD that is wanted of it."""

    ids: list[int]
    message: str
    keys: list[int]


@dataclass(frozen=True)
class Completion:
    """What an engine wrote after a prompt, and whether it stopped by itself (else its limit of tokens cut it)."""

    text: str
    ended: bool


class Engine(Protocol):
    """Completes prompts. ``settings`` goes into the manifest: what decides the text beside the prompt."""

    settings: dict[str, object]

    def complete(self, asked: Sequence[Asked]) -> list[list[Completion]]:
        """A completion for each key of each prompt, in their order."""
        ...
