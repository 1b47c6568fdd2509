"""A model in this process: prompts of like length together, each sample drawn by its own random numbers.

Batches are static: sorted by length, so that hardly anything is padding, and left by the rows that have finished
(llm.sample). Continuous batching (transformers' ``generate_batch``, paged attention) draws all rows from one stream of
random numbers, so a JD would depend on its neighbours, and on a CPU it is slower (docs/cluster.md). A GPU that should
be kept full by it is the business of a server: engine api.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from girl_recbole import llm
from girl_recbole.engines.base import Asked, Completion

__all__ = ["LocalEngine"]


@dataclass(frozen=True)
class LocalEngine:
    """``batch_size`` counts sequences: the prompts of a batch times the JDs that are wanted of each."""

    lm: llm.LanguageModel
    max_new_tokens: int
    temperature: float
    top_p: float
    batch_size: int

    @property
    def settings(self) -> dict[str, object]:
        return {
            "model": self.lm.fingerprint, "dtype": {v: k for k, v in llm.DTYPES.items()}[self.lm.model.dtype],
            "temperature": self.temperature, "top_p": self.top_p, "max_jd_tokens": self.max_new_tokens,
        }  # fmt: skip

    def complete(self, asked: Sequence[Asked]) -> list[list[Completion]]:
        order = sorted(range(len(asked)), key=lambda i: len(asked[i].ids))
        size = max(1, self.batch_size // max((len(one.keys) for one in asked), default=1))
        done: dict[int, list[Completion]] = {}
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            sampled = llm.sample(
                self.lm, [asked[i].ids for i in batch], [asked[i].keys for i in batch],
                max_new_tokens=self.max_new_tokens, temperature=self.temperature, top_p=self.top_p,
            )  # fmt: skip
            for i, samples in zip(batch, sampled, strict=True):
                done[i] = [Completion(self._text(s.ids), s.ended) for s in samples]
        return [done[i] for i in range(len(asked))]

    def _text(self, ids: list[int]) -> str:
        return self.lm.tokenizer.decode(ids, skip_special_tokens=True)
