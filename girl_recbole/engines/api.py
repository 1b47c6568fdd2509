"""Completions from any server that speaks the OpenAI API: vLLM, SGLang, TGI, ``transformers serve``, a hosted one.

One request for each (CV, sample), at most ``api_concurrency`` at a time, to

    api_url/chat/completions   (api_endpoint: chat)          messages = [{role: user, content: Asked.message}]
    api_url/completions        (api_endpoint: completions)   prompt = Asked.ids, the tokens that local generation reads

with ``model``, ``max_tokens`` (``max_jd_tokens``), ``temperature``, ``top_p`` and ``seed``, the low 31 bits of the
sample's key. ``api_body`` adds fields, replaces them, or with null leaves them out. Nothing else is sent: no cookies,
no headers but those that HTTP and the key need, and nothing to any address but ``api_url``: redirects are not followed,
and there is no default address. The key is read from ``GIRL_API_KEY``, else ``OPENAI_API_KEY``, when it is needed, and
kept nowhere. Calls to this machine pass by any proxy.

What becomes of an answer:

    429, 408, 409, 5xx, a timeout,   asked again, ``api_retries`` times: after what Retry-After says (at most 120 s),
    a cut connection                 else after 0.5, 1, 2, 4, 8, 8 ... s less up to a quarter
    the same after the last retry,   the request has failed for good. It is counted and put behind the others; more than
    or no JSON, choices or text in   ``api_max_failures`` of these end the run
    it, or more than 4 MiB
    any other status                 ends the run at once: the settings are wrong, or the server is
    choices[0]                       a Completion, if its text is empty too; ended: finish_reason is not "length"

So every completion that :meth:`ApiEngine.complete` returns was written by the server, or it raises. The first request
goes alone and waits for little, so that a wrong address, key or model is one clear error and not a thousand.

Answers are data: their size and time are limited, half characters are replaced, nothing in them is run. Errors name
counts, statuses and what to set. What a server says of a request is shown without the words that were sent to it, and
without the key.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import os
import random
import re
import time
import urllib.parse
from collections import Counter, deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio.from_thread
import httpx2
import openai

from girl_recbole.engines.base import Asked, Completion
from girl_recbole.errors import ConfigError, GirlError

__all__ = ["ApiConfig", "ApiEngine", "ServerError", "make_api_engine", "read_answer", "shown"]

log = logging.getLogger(__name__)

ENDPOINTS = {"chat": "/chat/completions", "completions": "/completions"}
KEYS = ("GIRL_API_KEY", "OPENAI_API_KEY")
_HEADERS = ("host", "accept", "connection", "content-type", "content-length", "user-agent")  # and the key's
_MAX_ANSWER_BYTES = 4 * 2**20
_RETRIED = (408, 409, 429)
_FIRST_RETRIES = 2
_CONNECT_S = 10.0
_PAUSE_S = 1.0  # mean wait of a worker whose request failed for good
_SHOWN = 300  # characters of a server's message in an error


@dataclass(frozen=True)
class ApiConfig:
    """What :func:`make_api_engine` reads of a config. Keys and meanings: properties/overall.yaml, sections "Served
    model" and "Language model"."""

    api_url: str | None
    api_model: str | None
    api_endpoint: str
    api_concurrency: int
    api_retries: int
    api_timeout: float
    api_max_failures: int
    api_body: dict
    max_jd_tokens: int
    temperature: float
    top_p: float


class ServerError(GirlError, RuntimeError):
    """The server failed more often than the budget allows."""


class _Unusable(openai.OpenAIError):
    """An answer that holds no completion; the text says in a few words why."""


@dataclass(frozen=True)
class ApiEngine:
    """Asks a server. ``counts``: requests answered, and those that failed for good by kind."""

    url: str
    endpoint: str
    fields: dict[str, Any]
    concurrency: int
    retries: int
    timeout_s: float
    max_failures: int
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def settings(self) -> dict[str, object]:
        """What decides the text. The address does not: a server may move between two runs."""
        return {"engine": "api", "endpoint": self.endpoint, **self.fields}

    def complete(self, asked: Sequence[Asked]) -> list[list[Completion]]:
        with anyio.from_thread.start_blocking_portal() as portal:  # a loop of its own: the caller may be in one
            return portal.call(self._complete, asked)

    async def _complete(self, asked: Sequence[Asked]) -> list[list[Completion]]:
        answers: list[list[Any]] = [[None] * len(one.keys) for one in asked]
        waiting = deque((i, n) for i, one in enumerate(asked) for n in range(len(one.keys)))
        before = Counter(self.counts)

        async def step(client: openai.AsyncOpenAI, retries: int) -> None:
            i, n = waiting.popleft()
            try:
                answers[i][n] = await self._ask(client, asked[i], asked[i].keys[n], retries)
            except _Unusable as failure:
                self._count(str(failure))
                waiting.append((i, n))
                await asyncio.sleep(_PAUSE_S * (0.5 + random.random()))
            else:
                self.counts["answered"] += 1

        async def work(client: openai.AsyncOpenAI) -> None:
            while waiting:
                await step(client, self.retries)

        async with _connect(self.url, self.concurrency, self.timeout_s) as client:
            if waiting and not self.counts["answered"]:
                await step(client, min(self.retries, _FIRST_RETRIES))
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self.concurrency, len(waiting))):
                        group.create_task(work(client))
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None
        failed = self.counts - before
        del failed["answered"]
        if failed:
            log.warning("%s: %d requests failed and were asked again (%s)", self.url, failed.total(), _listed(failed))
        return answers

    async def _ask(self, client: openai.AsyncOpenAI, one: Asked, key: int, retries: int) -> Completion:
        prompt = {"messages": [{"role": "user", "content": one.message}]} if self.endpoint == "chat" else {
            "prompt": one.ids
        }  # fmt: skip
        body = {**prompt, "seed": key & 0x7FFFFFFF, **self.fields}
        try:
            response = await client.post(
                ENDPOINTS[self.endpoint], cast_to=httpx2.Response,
                body={name: value for name, value in body.items() if value is not None},
                options={"max_retries": retries},
            )  # fmt: skip
        except openai.APIConnectionError as error:
            unreachable = isinstance(error.__cause__, (httpx2.ConnectError, httpx2.ConnectTimeout))
            if unreachable and not self.counts["answered"]:
                raise ConfigError(
                    f"api_url: {self.url} cannot be reached ({error.__cause__}); start the server, or name the right "
                    f"address. What was finished is kept."
                ) from None
            timed_out = isinstance(error, openai.APITimeoutError) and not unreachable
            raise _Unusable("timeout" if timed_out else "no connection" if unreachable else "connection cut") from None
        except openai.APIStatusError as error:
            if error.status_code in _RETRIED or error.status_code >= 500:
                raise _Unusable(f"HTTP {error.status_code}") from None
            raise self._refused(error, one) from None
        return read_answer(response.content, self.endpoint)

    def _count(self, kind: str) -> None:
        """One more request that failed for good."""
        self.counts[kind] += 1
        failed = Counter(self.counts)
        del failed["answered"]
        if failed.total() > self.max_failures:
            raise ServerError(
                f"{self.url}: {failed.total()} requests to the model {self.fields['model']!r} failed for good "
                f"({_listed(failed)}), {self.counts['answered']} were answered; api_max_failures allows "
                f"{self.max_failures}, api_retries {self.retries} retries each, api_timeout {self.timeout_s:g} s. "
                f"Finished shards are kept: see what ails the server, then run the same command again."
            )

    def _refused(self, error: openai.APIStatusError, one: Asked) -> ConfigError:
        """What to set after an answer that asking again cannot change."""
        status, names = error.status_code, " or ".join(KEYS)
        said = ""
        if status in (401, 403):
            hint = f"it refuses the key in {_key()[1]}" if _key()[0] else f"it wants a key: set {names}"
        elif status == 404:
            hint = "name its address as far as /v1 (api_url), the name that it gives the model (api_model), and an "
            hint += "endpoint that it has (api_endpoint)"
        elif 300 <= status < 400:
            hint = "it redirects, which is not followed, so that CVs go nowhere else; set api_url to the final address"
        else:
            said = shown(_message(error), one.message)
            hint = "where the prompt is too long for it, lower max_cv_tokens or max_jd_tokens; where it does not know "
            hint += "a field, leave that out with --api_body='{field: null}'"
            if self.endpoint == "completions":
                hint += "; where it takes no token ids as a prompt, set api_endpoint: chat"
        return ConfigError(
            f"{self.url}: HTTP {status} for the model {self.fields['model']!r}{said}: {hint}. Finished shards are kept."
        )


def make_api_engine(config: Any) -> ApiEngine:
    """The engine of a config that has the fields of :class:`ApiConfig`; ``ConfigError`` where one cannot be used."""
    if not config.api_url:
        raise ConfigError(
            "api_url: the engine api needs the address of a server, for example --api_url=http://127.0.0.1:8000/v1. "
            "Texts are sent nowhere unless it is named."
        )
    if not config.api_model:
        raise ConfigError("api_model: the engine api needs the name that the server gives the model.")
    if config.api_endpoint not in ENDPOINTS:
        raise ConfigError(f"api_endpoint: {config.api_endpoint!r} is unknown; known: {', '.join(ENDPOINTS)}.")
    for name, least in (("api_concurrency", 1), ("api_retries", 0), ("api_max_failures", 0)):
        if getattr(config, name) < least:
            raise ConfigError(f"{name}: {getattr(config, name)}; at least {least} is required.")
    if not 0 < config.api_timeout < float("inf"):
        raise ConfigError(f"api_timeout: {config.api_timeout}; a number of seconds above 0 is required.")
    owned = [name for name in ("model", "prompt", "messages", "n", "stream", "seed") if name in config.api_body]
    if owned:
        raise ConfigError(f"api_body: {', '.join(owned)} cannot be set by it; each request has its own.")
    host, encrypted = _checked(config.api_url)
    if not _is_loopback(host):
        log.info("CVs are sent to %s", host)
        if not encrypted:
            log.warning("api_url: CVs and the key go to %s in the clear; https would encrypt them", host)
    _key()
    fields = {
        "model": config.api_model, "max_tokens": config.max_jd_tokens, "temperature": config.temperature,
        "top_p": config.top_p,
    }  # fmt: skip
    return ApiEngine(
        config.api_url.rstrip("/"), config.api_endpoint, {**fields, **config.api_body}, config.api_concurrency,
        config.api_retries, float(config.api_timeout), config.api_max_failures,
    )  # fmt: skip


def read_answer(content: bytes, endpoint: str) -> Completion:
    """The completion in a server's answer to one request."""
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        raise _Unusable("answer is not JSON") from None
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise _Unusable("answer without choices")
    text = choices[0].get("text", ...)
    if endpoint == "chat":
        message = choices[0].get("message")
        text = message.get("content") if isinstance(message, dict) else ...  # servers may leave an empty one out
    if text is not None and not isinstance(text, str):
        raise _Unusable("choice without text")
    whole = (text or "").encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # JSON can hold half characters
    return Completion(whole, choices[0].get("finish_reason") != "length")


# ------------------------------------------------------------------------------------------------------- connections


def _connect(url: str, concurrency: int, timeout_s: float) -> openai.AsyncOpenAI:
    """A client that sends what a request needs, to ``url`` and nowhere else."""
    key, _ = _key()

    async def strip(request: httpx2.Request) -> None:
        """The client would add its platform, organisation, project and whatever OPENAI_CUSTOM_HEADERS holds."""
        kept = [(name, value) for name, value in request.headers.multi_items() if name in _HEADERS]
        authorization = [("authorization", f"Bearer {key}")] if key else []
        request.headers = httpx2.Headers([*kept, ("accept-encoding", "identity"), *authorization])

    async def limit(response: httpx2.Response) -> None:
        if response.headers.get("content-encoding", "identity") != "identity":
            raise _Unusable("answer is compressed")
        response.stream = _Limited(response.stream, timeout_s)

    timeout = httpx2.Timeout(timeout_s, connect=min(_CONNECT_S, timeout_s))
    http = httpx2.AsyncClient(
        timeout=timeout,
        limits=httpx2.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
        follow_redirects=False,
        trust_env=not _is_loopback(_checked(url)[0]),  # proxies
        event_hooks={"request": [strip], "response": [limit]},
    )
    return openai.AsyncOpenAI(base_url=url, api_key=key or "none", timeout=timeout, http_client=http)


class _Limited(httpx2.AsyncByteStream):
    """An answer's bytes, up to a size and a time: a timeout alone begins anew with each byte."""

    def __init__(self, stream: Any, timeout_s: float) -> None:
        self._stream, self._deadline = stream, time.monotonic() + timeout_s

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self._stream:
            size += len(chunk)
            if size > _MAX_ANSWER_BYTES:
                raise _Unusable("answer too large")
            if time.monotonic() > self._deadline:
                raise httpx2.ReadTimeout("the whole answer took too long")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


def _key() -> tuple[str, str]:
    """The key and the name of the variable that holds it; ("", "") without one."""
    for name in KEYS:
        if key := os.environ.get(name, "").strip():
            if not re.fullmatch(r"[\x21-\x7e]+", key):
                raise ConfigError(f"{name}: holds characters that no key has (white space, or none of ASCII).")
            return key, name
    return "", ""


def _checked(url: str) -> tuple[str, bool]:
    """Host of an address, and whether the way there is encrypted; ``ConfigError`` for one that cannot be used."""
    wanted = "http://HOST:PORT/v1 or https://HOST/v1 is required"
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ConfigError(f"api_url: not an address; {wanted}.") from None
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ConfigError(
            f"api_url: holds a user, a password or a query, which would be written into manifests; {wanted}, and the "
            f"key in the environment ({' or '.join(KEYS)})."
        )
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError(f"api_url: not an address of http or https; {wanted}.")
    return host, parts.scheme == "https"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


# ---------------------------------------------------------------------------------------------------------- messages


def _listed(kinds: Counter[str]) -> str:
    return ", ".join(f"{count} x {kind}" for kind, count in kinds.most_common())


def _message(error: openai.APIStatusError) -> str:
    body = error.body  # the "error" of the answer, where it has one
    said = body.get("message") or body.get("detail") if isinstance(body, dict) else body
    return said if isinstance(said, str) and "json" in error.response.headers.get("content-type", "") else ""


def shown(said: str, sent: str) -> str:
    """`` (what the server said)`` for an error. Its words that are part of what was sent to it are three dots instead,
    and so are a key and rows of token ids."""
    for key in filter(None, (os.environ.get(name, "").strip() for name in KEYS)):
        said = said.replace(key, "...")
    said = re.sub(r"\d+(\W+\d+){3,}", "...", said)
    known = sent.casefold()

    def hide(match: re.Match) -> str:
        word = match[0]
        harmless = len(word) < 3 and word.isascii() and word.islower()  # of, is
        return word if harmless or word.casefold() not in known else "..."

    said = re.sub(r"[a-zA-Z]+|\d+|[^\W_]", hide, said)
    said = re.sub(r"\.\.\.(\W*\.\.\.)+", "...", " ".join(said.split()))
    return f" ({said[:_SHOWN]})" if said else ""
