"""What a converter read, kept and dropped, and why, by count: a dict for the manifest and a text for the reader."""

from __future__ import annotations

from collections import Counter

__all__ = ["Report"]


class Report:
    """Counts by section: ``report.add("dropped", "CV shorter than 50 words", 12)``; ``note`` keeps other facts."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._counts: dict[str, Counter] = {}
        self._notes: dict[str, object] = {}

    def add(self, section: str, what: str, count: int = 1) -> None:
        """Add ``count`` to a line of a section (read, kept, dropped, changed, sampled). Zero makes it appear."""
        self._counts.setdefault(section, Counter())[what] += int(count)

    def note(self, **facts: object) -> None:
        self._notes.update(facts)

    def count(self, section: str, what: str) -> int:
        return self._counts.get(section, Counter())[what]

    def as_dict(self) -> dict:
        return {"source": self.source, **{k: dict(v) for k, v in self._counts.items()}, "notes": dict(self._notes)}

    def text(self) -> str:
        lines = [f"source: {self.source}"]
        for section, counts in self._counts.items():
            lines.append(f"{section}:")
            lines += [f"  {count:>9,}  {what}" for what, count in counts.items()]
        if self._notes:
            lines.append("notes:")
            lines += [f"  {key}: {value}" for key, value in self._notes.items()]
        return "\n".join(lines) + "\n"
