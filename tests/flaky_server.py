"""A server of the OpenAI API on loopback, in a thread, that misbehaves as it is told.

``FlakyServer([Reply(status=500), ...])`` gives the replies in the order in which requests come, and afterwards the
right answer, whose text :func:`right_text` knows beforehand: it names the prompt and the seed.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Reply:
    """``content``: of what is not the right answer. ``cut_at``: the connection ends after so many bytes of the body.
    ``drip_s``: pause between single bytes."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    content: bytes | None = None
    delay_s: float = 0.0
    cut_at: int | None = None
    drip_s: float = 0.0


@dataclass(frozen=True)
class Request:
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    at: float


def right_text(body: dict[str, Any]) -> str:
    prompt = json.dumps(body.get("messages", body.get("prompt")), sort_keys=True)
    return f"JD {body['seed']} of {hashlib.sha256(prompt.encode()).hexdigest()[:8]}"


def answer(path: str, text: object, finish_reason: str | None = "stop") -> bytes:
    """What a server of this API writes for one choice."""
    said = {"message": {"role": "assistant", "content": text}} if "chat" in path else {"text": text}
    return json.dumps({"id": "x", "choices": [{"index": 0, "finish_reason": finish_reason, **said}]}).encode()


class FlakyServer:
    """``with FlakyServer() as server:`` listens at ``server.url``. ``reply``: says what each request gets."""

    def __init__(self, replies: Sequence[Reply] = (), reply: Callable[[Request], Reply] | None = None) -> None:
        self.requests: list[Request] = []
        self.most_at_once = 0
        self._replies, self._reply, self._at_once = list(replies), reply, 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> FlakyServer:
        self._thread.start()
        server = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._serve, "127.0.0.1", 0), self._loop)
        self.port = server.result().sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        return self

    def __exit__(self, *_: object) -> None:
        async def end() -> None:
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._exchange(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):  # the client left, or the test
            pass
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its reply; whether the connection stays open."""
        head, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").strip().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        body = json.loads(await reader.readexactly(int(headers.get("content-length", 0))))
        request = Request(head.split(" ")[1], headers, body, time.monotonic())
        self.requests.append(request)
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            reply = self._reply(request) if self._reply else self._replies.pop(0) if self._replies else Reply()
            await asyncio.sleep(reply.delay_s)
        finally:
            self._at_once -= 1
        content = answer(request.path, right_text(body)) if reply.content is None else reply.content
        sent = {"Content-Type": "application/json", "Content-Length": str(len(content)), **reply.headers}
        writer.write(f"HTTP/1.1 {reply.status} -\r\n".encode())
        writer.write("".join(f"{name}: {value}\r\n" for name, value in sent.items()).encode() + b"\r\n")
        for byte in content[: reply.cut_at] if reply.drip_s else b"":
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(reply.drip_s)
        if not reply.drip_s:
            writer.write(content[: reply.cut_at])
        await writer.drain()
        return reply.cut_at is None
