"""The prompt of the generator and the reader of what it writes, once, for training, generation and judging.

Zheng et al. 2023 (arXiv:2307.02157, section IV-A, Figure 3): a prompt has four parts.

    role         the markers that the backbone's own instruction data uses
    instruction  the task in words
    input        the CV, C
    output       the JD, J: the target in training, blank at inference

As text:  head + C + tail + J,  where head = role marker and instruction, tail = the marker that opens the answer.

* A tokenizer with a chat template gives the role part: head and tail are cut out of the rendered template around the
  CV. Templates of models that think before they answer are asked not to (``enable_thinking=False``).
* Otherwise the plain layout of the paper's backbone BELLE is used: ``Human: \\n...\\n\\nAssistant: \\n``.

As tokens, each part is encoded by itself, so that training and inference meet the same ids whatever follows, and so
that head and tail alone may hold control tokens. A CV or a JD is data: ``<|im_end|>``, ``Human:`` or an order to
ignore the instruction inside it is encoded as ordinary text (:func:`encode_text`). A CV that is too long is cut at
its end; instruction and output are never cut.

Differs from the paper: its wording is printed as a figure only, so the wording is ours, in English and in Chinese. It
asks for the job title first, because that makes the output readable by :func:`parse_jd`.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Any

from girl_recbole.errors import ConfigError, DataError
from girl_recbole.manifest import text_hash

__all__ = ["INSTRUCTIONS", "JobDescription", "Prompt", "encode_text", "make_prompt", "parse_jd", "words_of"]

INSTRUCTIONS = {
    "en": "Write the job description of a job that suits this job seeker and whose employer would hire them: "
    "begin with the job title, then duties, requirements and pay.",
    "zh": "请根据求职者的简历，写出一份适合该求职者、雇主也愿意录用他的职位描述：先写职位名称，再写职责、要求和薪酬。",
}
_PLAIN_HEAD, _PLAIN_TAIL = "Human: \n{instruction}\n\n", "\n\nAssistant: \n"
_HOLE = "\ue000CV\ue001"  # stands for the CV while a chat template is rendered


@dataclass(frozen=True)
class Prompt:
    """``head + CV + tail``, then the JD. ``chat``: made by a chat template. ``language``: en or zh."""

    head: str
    tail: str
    language: str
    chat: bool

    @property
    def id(self) -> str:
        """Hex hash of all that is fixed in the prompt: in every manifest that depends on it."""
        return text_hash(self.head, self.tail, "chat" if self.chat else "plain")[:16]

    def render(self, cv: str, jd: str = "") -> str:
        """The prompt as text, for a reader or an API; blank output at inference."""
        return self.head + cv.strip() + self.tail + jd.strip()

    def parse(self, text: str) -> tuple[str, str]:
        """``(CV, JD)`` of a rendered prompt. The output begins after the last ``tail``, so a CV may quote it."""
        end = text.rfind(self.tail)
        if not text.startswith(self.head) or end < len(self.head):
            raise DataError(f"not a prompt of kind {self.id} ({self.language}): its head or its tail is missing.")
        return text[len(self.head) : end], text[end + len(self.tail) :]

    def overhead(self, tokenizer: Any) -> int:
        """Tokens that role and instruction take."""
        return len(self.head_ids(tokenizer)) + len(self.tail_ids(tokenizer))

    def head_ids(self, tokenizer: Any) -> list[int]:
        ids = tokenizer.encode(self.head, add_special_tokens=False)
        if not self.chat and tokenizer.bos_token_id is not None:  # a template writes its own BOS
            begins = tokenizer.encode("a")[:1] == [tokenizer.bos_token_id]
            ids = [tokenizer.bos_token_id] * begins + ids
        return ids

    def tail_ids(self, tokenizer: Any) -> list[int]:
        return tokenizer.encode(self.tail, add_special_tokens=False)

    def encode(self, tokenizer: Any, cv: str, max_cv_tokens: int) -> tuple[list[int], int]:
        """Token ids of the prompt with blank output, and how many tokens of the CV were cut off its end."""
        ids = encode_text(tokenizer, cv.strip())
        kept = ids[: max(max_cv_tokens, 0)]
        return [*self.head_ids(tokenizer), *kept, *self.tail_ids(tokenizer)], len(ids) - len(kept)


def make_prompt(language: str, tokenizer: Any | None = None) -> Prompt:
    """The prompt in ``language`` for ``tokenizer``: in its chat template if it has one, else in the plain layout."""
    if language not in INSTRUCTIONS:
        raise ConfigError(f"prompt_language: {language!r} is unknown; known: {', '.join(INSTRUCTIONS)}.")
    instruction = INSTRUCTIONS[language]
    if not getattr(tokenizer, "chat_template", None):
        return Prompt(_PLAIN_HEAD.format(instruction=instruction), _PLAIN_TAIL, language, chat=False)
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": f"{instruction}\n\n{_HOLE}"}],
        tokenize=False, add_generation_prompt=True, enable_thinking=False,
    )  # fmt: skip
    head, hole, tail = rendered.partition(_HOLE)
    if not hole or _HOLE in tail or instruction not in head:
        raise ConfigError("the tokenizer's chat template does not show a user's message once; clear chat_template.")
    return Prompt(head, tail, language, chat=True)


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Token ids of data: a string such as ``<|im_end|>`` inside it becomes ordinary tokens, never the control token.

    Wherever an added token's string begins, the text is cut after its first character and the pieces are encoded
    apart, so that no piece holds the whole string.
    """
    if not text:
        return []
    starts = _added_tokens(tokenizer)
    cuts = [match.start() + 1 for match in starts.finditer(text)] if starts else []
    ids: list[int] = []
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        if text[start:end]:
            ids += tokenizer.encode(text[start:end], add_special_tokens=False, split_special_tokens=True)
    return ids


def _added_tokens(tokenizer: Any) -> re.Pattern | None:
    """A pattern that finds where strings of added tokens begin (white-space tokens are plain text and stay)."""
    return _beginnings(tuple(sorted(token for token in tokenizer.get_added_vocab() if not token.isspace())))


@functools.lru_cache(maxsize=8)
def _beginnings(strings: tuple[str, ...]) -> re.Pattern | None:
    return re.compile("(?=" + "|".join(map(re.escape, strings)) + ")") if strings else None


# ------------------------------------------------------------------------------------------------ reading what came


@dataclass(frozen=True)
class JobDescription:
    """A JD's title and body, and whether it looks like a JD; ``problem`` says in a word or two why it does not."""

    title: str
    body: str
    problem: str

    @property
    def is_structured(self) -> bool:
        return not self.problem


_LABEL = re.compile(r"^\W*(job title|position|title|role|职位名称|职位|岗位名称|岗位)\s*[:：]\s*", re.IGNORECASE)
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_]+")
# a stop before white space, not that of an abbreviation ("Sr. Node.js Developer"), or a stop of Chinese or Japanese
_SENTENCE = re.compile(r"(?<=[.!?])(?<!\b[SJDM][rst]\.)(?<!\bNo\.)\s+|(?<=[。！？])\s*")
_MAX_TITLE_WORDS, _MIN_BODY_WORDS, _MIN_DISTINCT = 24, 10, 0.25


def words_of(text: str) -> list[str]:
    """The words of a text as they are written: runs of letters and digits, and each Chinese, Japanese or Korean
    character by itself."""
    return _WORD.findall(text)


def parse_jd(text: str) -> JobDescription:
    """Split a JD into its title (first line, or first sentence of a single line) and body, and check its structure.

    It has the structure of a JD if the title has 1 to 24 words, the body at least 10, and at least a quarter of the
    body's words differ (a model that loops fails here). In Chinese, Japanese and Korean a character counts as a word.
    """
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    if not lines:
        return JobDescription("", "", "empty")
    title, body = lines[0], "\n".join(lines[1:])
    if not body:
        pieces = _SENTENCE.split(lines[0], maxsplit=1)
        title, body = pieces[0], pieces[1] if len(pieces) > 1 else ""
    title = _LABEL.sub("", title).strip(" #*-–—.:：。")
    title_words, words = len(words_of(title)), [word.lower() for word in words_of(body)]
    if not 1 <= title_words <= _MAX_TITLE_WORDS:
        problem = "no title"
    elif len(words) < _MIN_BODY_WORDS:
        problem = "no body"
    elif len(set(words)) < _MIN_DISTINCT * len(words):
        problem = "repeats itself"
    else:
        problem = ""
    return JobDescription(title, body, problem)
