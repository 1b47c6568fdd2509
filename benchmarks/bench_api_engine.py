"""What the api engine costs a request: against a server on loopback that answers at once, so that nothing else is left.

The server is a process of its own that reads a request and writes one fixed answer. A prompt has 2,000 characters, an
answer 1,000. Rounds of all levels of concurrency take turns. Given are requests/s, which the server and other work on
the machine bound too, and the processor time of this process for one request, which is the engine's alone.
"""

import argparse
import asyncio
import json
import multiprocessing
import statistics
import time
from pathlib import Path

from girl_recbole.config import make_config
from girl_recbole.engines.api import ApiConfig, make_api_engine
from girl_recbole.engines.base import Asked

_ANSWER = json.dumps(
    {"choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "nurse " * 166}}]}
).encode()
_REPLY = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(_ANSWER) + _ANSWER


class _Instant(asyncio.Protocol):
    def connection_made(self, transport):
        self._transport, self._read = transport, b""

    def data_received(self, data):
        self._read += data
        head, end, body = self._read.partition(b"\r\n\r\n")
        if end and len(body) >= int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]):
            self._read = b""
            self._transport.write(_REPLY)


def _serve(port):
    async def run():
        server = await asyncio.get_running_loop().create_server(_Instant, "127.0.0.1", 0)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1000, help="of one round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--json")
    args = parser.parse_args()
    here, there = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=_serve, args=(there,), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{here.recv()}/v1"
    asked = [Asked([], "a word or two " * 143, [number]) for number in range(args.requests)]
    engines = {
        level: make_api_engine(
            make_config(ApiConfig, overrides={"api_url": url, "api_model": "m", "api_concurrency": level})
        )
        for level in args.concurrency
    }
    rates, costs = ({level: [] for level in engines} for _ in range(2))
    for number in range(args.rounds + 1):
        for level, engine in engines.items():
            started, used = time.perf_counter(), time.process_time()
            engine.complete(asked)
            if number:  # the first warms up
                rates[level].append(args.requests / (time.perf_counter() - started))
                costs[level].append(1e3 * (time.process_time() - used) / args.requests)
    server.terminate()
    print(f"{'concurrency':>12}{'requests/s':>12}{'least':>8}{'most':>8}{'CPU ms/request':>16}{'least':>8}{'most':>8}")
    result = {}
    for level in engines:
        row = [value for some in (rates, costs) for value in (statistics.median(some[level]), *_ends(some[level]))]
        print(f"{level:>12}{row[0]:>12.0f}{row[1]:>8.0f}{row[2]:>8.0f}{row[3]:>16.2f}{row[4]:>8.2f}{row[5]:>8.2f}")
        result[level] = {"requests_per_s": rates[level], "cpu_ms_per_request": costs[level]}
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _ends(values):
    return min(values), max(values)


if __name__ == "__main__":
    main()
