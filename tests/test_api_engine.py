"""A served model: every completion is the server's or the run ends; nothing leaves that the user did not name."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import pytest
import torch
from conftest import make_toy
from flaky_server import FlakyServer, Reply, answer, right_text
from hypothesis import given
from hypothesis import strategies as st
from tiny_lms import chat_tokenizer, tiny_model

from girl_recbole.atomic import iter_docs, read_generated, read_table, write_docs
from girl_recbole.config import make_config
from girl_recbole.engines.api import ApiConfig, ApiEngine, ServerError, _Unusable, make_api_engine, read_answer, shown
from girl_recbole.engines.base import Asked, Completion
from girl_recbole.errors import ConfigError, DataError, GirlError
from girl_recbole.generate import GenerateConfig, generate
from girl_recbole.prompts import INSTRUCTIONS

_KEY = "sk-Very-Secret-77"
_CV = "Zoltan Quimby, welder of Greifswald, phone 0471-5550199, zq@example.org"


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    for name in ("GIRL_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def _engine(url: str | None, **settings) -> ApiEngine:
    return make_api_engine(make_config(ApiConfig, overrides={"api_url": url, "api_model": "m", **settings}))


def _asked(cvs: int, samples: int = 1) -> list[Asked]:
    return [
        Asked([7, i], f"write for {_CV} {i}", [(i << 64) + 100 * i + n for n in range(samples)]) for i in range(cvs)
    ]


def _right(asked: list[Asked], endpoint: str = "chat") -> list[list[Completion]]:
    def prompt(one):
        return {"messages": [{"role": "user", "content": one.message}]} if endpoint == "chat" else {"prompt": one.ids}

    return [
        [Completion(right_text({**prompt(one), "seed": key & 0x7FFFFFFF}), True) for key in one.keys] for one in asked
    ]


# ------------------------------------------------------------------------------------------- what is asked and answered


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_each_sample_of_each_cv_gets_its_own_answer(endpoint):
    asked = _asked(20, samples=3)
    delays = [0.02 * (number * 7 % 5) for number in range(61)]  # answers come in another order than requests go
    with FlakyServer([Reply(delay_s=delay) for delay in delays]) as server:
        engine = _engine(server.url, api_endpoint=endpoint, api_concurrency=4)
        assert engine.complete(asked) == _right(asked, endpoint)
        assert len(server.requests) == 60
        assert server.most_at_once == 4
        assert engine.complete([]) == []
    assert {request.path for request in server.requests} == {
        "/v1/chat/completions" if endpoint == "chat" else "/v1/completions"
    }
    assert engine.counts == {"answered": 60}


def test_a_request_holds_the_sampling_and_nothing_else():
    body = {"top_k": 20, "max_tokens": None, "max_completion_tokens": 9}
    with FlakyServer() as server:
        engine = _engine(server.url, temperature=0.3, top_p=0.8, api_body=body)
        engine.complete([Asked([1], "a CV", [(5 << 80) + 2**31 + 2**30 + 6])])
    assert server.requests[0].body == {
        "messages": [{"role": "user", "content": "a CV"}], "model": "m", "temperature": 0.3, "top_p": 0.8, "top_k": 20,
        "max_completion_tokens": 9, "seed": 2**30 + 6,
    }  # fmt: skip


@pytest.mark.parametrize(
    "text, finish_reason, completion",
    [
        ("Nurse.", "stop", Completion("Nurse.", True)),
        ("Nurse and", "length", Completion("Nurse and", False)),
        ("", "stop", Completion("", True)),
        (None, "length", Completion("", False)),
        ("护士\n\ud83d\ude00 \ud83d", None, Completion("护士\n😀 \ufffd", True)),  # the last is half a character
    ],
)
def test_what_is_a_completion(text, finish_reason, completion):
    with FlakyServer([Reply(content=answer("chat", text, finish_reason))]) as server:
        assert _engine(server.url).complete(_asked(1)) == [[completion]]
    if text is not None:
        assert read_answer(answer("completions", text, finish_reason), "completions") == completion


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters()) | st.sampled_from(["stop", "length"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["choices", "message", "content", "text", "finish_reason", "x"]), inner)
    ),
)


@given(
    st.binary(max_size=60) | _json.map(lambda value: json.dumps(value).encode()),
    st.sampled_from(["chat", "completions"]),
)
def test_whatever_a_server_writes_is_a_completion_or_a_failure(content, endpoint):
    try:
        completion = read_answer(content, endpoint)
    except _Unusable:
        return
    completion.text.encode("utf-8")
    assert isinstance(completion.ended, bool)


def test_deep_json_is_a_failure():
    with pytest.raises(_Unusable, match="not JSON"):
        read_answer(b"[" * 200_000, "chat")


def test_in_a_running_loop_as_in_a_notebook():
    async def cell(url):
        return _engine(url).complete(_asked(2))

    with FlakyServer() as server:
        assert asyncio.run(cell(server.url)) == _right(_asked(2))


def test_an_engine_travels_and_its_settings_are_plain():
    with FlakyServer() as server:
        engine = pickle.loads(pickle.dumps(_engine(server.url)))
        assert engine.complete(_asked(1)) == _right(_asked(1))
    settings = engine.settings
    assert json.loads(json.dumps(settings)) == settings
    assert settings == _engine("http://127.0.0.1:1/v1", api_concurrency=2, api_retries=1).settings
    assert settings != _engine("http://127.0.0.1:1/v1", api_body={"top_k": 1}).settings
    assert {"model": "m", "endpoint": "chat", "engine": "api"}.items() <= settings.items()


# --------------------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    "trouble",
    [
        Reply(429), Reply(408), Reply(500), Reply(503, content=b"<html>"), Reply(cut_at=20), Reply(cut_at=0),
        Reply(delay_s=9), Reply(drip_s=0.1),
    ],
    ids=["429", "408", "500", "503", "cut in mid-stream", "cut at once", "slow", "slow byte by byte"],
)  # fmt: skip
def test_passing_trouble_is_asked_again(trouble):
    with FlakyServer([Reply(), trouble, trouble]) as server:
        engine = _engine(server.url, api_timeout=2, api_concurrency=1, api_max_failures=0, api_retries=2)
        assert engine.complete(_asked(2)) == _right(_asked(2))
        assert len(server.requests) == 4
        assert server.requests[1].body == server.requests[3].body
    if trouble.status != 200:  # the others take time themselves
        first, second = (server.requests[k + 1].at - server.requests[k].at for k in (1, 2))
        assert first >= 0.37  # 0.5 s less up to a quarter
        assert second >= 0.74


def test_retry_after_is_honoured():
    with FlakyServer([Reply(), Reply(429, {"Retry-After": "2"})]) as server:
        _engine(server.url).complete(_asked(2))
    assert server.requests[2].at - server.requests[1].at >= 2


_NONSENSE = {
    "answer is not JSON": [
        b"<html><body>Bad gateway</body></html>",
        b"",
        b'{"choices": [',
        b"\xff\xfe",
        b"data: {}\n\n",
    ],
    "answer without choices": [
        b"{}",
        b"[]",
        b"null",
        b'{"choices": []}',
        b'{"choices": [3]}',
        b'{"error": {"message": "no"}}',
    ],
    "choice without text": [b'{"choices": [{}]}', b'{"choices": [{"message": {"content": [1]}}]}'],
}


@pytest.mark.parametrize(
    "kind, content", [(kind, content) for kind, contents in _NONSENSE.items() for content in contents]
)
def test_nonsense_is_a_failure_of_its_request(kind, content):
    with (
        FlakyServer([Reply(content=content)]) as server,
        pytest.raises(
            ServerError, match=rf"1 requests to the model 'm' failed for good \(1 x {kind}\), 0 were answered"
        ),
    ):
        _engine(server.url, api_max_failures=0).complete(_asked(1))


@pytest.mark.parametrize(
    "kind, reply",
    [
        ("answer too large", Reply(content=b" " * (4 * 2**20 + 1))),
        ("answer is compressed", Reply(headers={"Content-Encoding": "gzip"})),
        ("HTTP 500", Reply(500, content=b" " * 2**20)),
    ],
)
def test_answers_are_limited(kind, reply):
    with FlakyServer([reply]) as server, pytest.raises(ServerError, match=kind):
        _engine(server.url, api_max_failures=0, api_retries=0).complete(_asked(1))


def test_failures_within_the_budget_are_asked_again_and_none_is_lost(caplog):
    asked, troubles = _asked(12, samples=2), [Reply(500), Reply(content=b"x"), Reply(content=answer("chat", 5))]
    replies = [troubles[number // 4 % 3] if number % 4 == 1 else Reply() for number in range(24)]
    with FlakyServer(replies) as server:
        engine = _engine(server.url, api_concurrency=3, api_retries=0, api_max_failures=6)
        assert engine.complete(asked) == _right(asked)
    assert engine.counts == {
        "answered": 24, "HTTP 500": 2, "answer is not JSON": 2, "choice without text": 2,
    }  # fmt: skip
    assert "6 requests failed and were asked again (2 x HTTP 500" in caplog.text
    assert "Zoltan" not in caplog.text


def test_the_budget_of_failures_is_that_of_the_run():
    with FlakyServer([Reply(), Reply(500), *[Reply()] * 4, Reply(500), Reply(502)]) as server:
        engine = _engine(server.url, api_concurrency=1, api_retries=0, api_max_failures=2)
        assert engine.complete(_asked(3)) == _right(_asked(3))
        with pytest.raises(
            ServerError,
            match=r"3 requests to the model 'm' failed for good \(2 x HTTP 500, 1 x HTTP 502\), 5 were answered; "
            r"api_max_failures allows 2, api_retries 0 retries each, api_timeout 120 s\. Finished shards are kept",
        ):
            engine.complete(_asked(9))
        assert len(server.requests) == 8


def test_a_server_that_fails_always_is_not_asked_for_ever():
    with FlakyServer(reply=lambda _: Reply(500)) as server:
        with pytest.raises(ServerError, match=r"\d+ x HTTP 500"):
            _engine(server.url, api_concurrency=8, api_retries=0, api_max_failures=10).complete(_asked(40))
        assert 11 <= len(server.requests) <= 11 + 8


@pytest.mark.parametrize(
    "reply, endpoint, said",
    [
        (Reply(400, content=b'{"error": {"message": "maximum context length is 512 tokens"}}'), "chat",
         r"HTTP 400 for the model 'm' \(maximum context length is 512 tokens\): .* lower max_cv_tokens or max_jd_"),
        (Reply(400, content=b'{"detail": "prompt must be a string."}'), "completions",
         r"HTTP 400 .*\(prompt must be a string\.\): .* takes no token ids as a prompt, set api_endpoint: chat"),
        (Reply(422, content=b"{}"), "chat", "HTTP 422 .* leave that out with --api_body"),
        (Reply(401), "chat", "HTTP 401 .* it wants a key: set GIRL_API_KEY or OPENAI_API_KEY"),
        (Reply(403), "chat", "HTTP 403 .* it wants a key"),
        (Reply(404), "chat", r"HTTP 404 .* as far as /v1 \(api_url\), the name .* \(api_model\)"),
    ],
)  # fmt: skip
def test_what_asking_again_cannot_change_ends_the_run_at_once(reply, endpoint, said):
    with FlakyServer([reply]) as server:
        with pytest.raises(ConfigError, match=f"{server.url}: {said}.*Finished shards are kept"):
            _engine(server.url, api_endpoint=endpoint).complete(_asked(9))
        assert len(server.requests) == 1


def test_a_refusal_in_mid_run_ends_it():
    with FlakyServer([Reply()] * 6 + [Reply(401)]) as server:
        with pytest.raises(ConfigError, match="HTTP 401"):
            _engine(server.url, api_concurrency=2).complete(_asked(50))
        assert len(server.requests) <= 9


def test_an_endpoint_that_is_not_there():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    started = time.monotonic()
    with pytest.raises(ConfigError, match=f"api_url: {url} cannot be reached .*start the server, or name the right"):
        _engine(url).complete(_asked(3))
    assert time.monotonic() - started < 20  # not all of api_retries


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"api_url": None}, "needs the address of a server, .*Texts are sent nowhere unless it is named"),
        ({"api_model": None}, "api_model: .* the name that the server gives"),
        ({"api_url": "localhost:8000/v1"}, "api_url: not an address of http or https; http://HOST:PORT/v1"),
        ({"api_url": "http://h:x/v1"}, "api_url: not an address"),
        ({"api_url": f"https://me:{_KEY}@host/v1"}, "api_url: holds a user, a password or a query, .*GIRL_API_KEY"),
        ({"api_url": f"https://host/v1?key={_KEY}"}, "api_url: holds a user, a password or a query"),
        ({"api_url": f"me:{_KEY}@host/v1"}, "api_url: not an address"),
        ({"api_endpoint": "embeddings"}, "api_endpoint: 'embeddings' is unknown; known: chat, completions"),
        ({"api_concurrency": 0}, "api_concurrency: 0; at least 1 is required"),
        ({"api_retries": -1}, "api_retries: -1; at least 0 is required"),
        ({"api_max_failures": -1}, "api_max_failures: -1; at least 0"),
        ({"api_timeout": 0}, "api_timeout: 0.0; a number of seconds above 0"),
        ({"api_body": {"seed": 1, "n": 2}}, "api_body: n, seed cannot be set by it"),
    ],
)
def test_settings_that_cannot_be_used(settings, said):
    with pytest.raises(ConfigError, match=said) as error:
        _engine(**{"url": "http://127.0.0.1:1/v1", **{"url" if k == "api_url" else k: v for k, v in settings.items()}})
    assert _KEY not in str(error.value)


# ----------------------------------------------------------------------------------------------------------- privacy


@pytest.mark.parametrize(
    "keys, sent",
    [({}, None), ({"OPENAI_API_KEY": "b"}, "Bearer b"), ({"GIRL_API_KEY": " a\n", "OPENAI_API_KEY": "b"}, "Bearer a")],
)
def test_what_leaves(keys, sent, monkeypatch):
    """The key of the environment and the headers of HTTP; nothing of the client's or of other settings of OpenAI's."""
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    for name in ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY", "OPENAI_BASE_URL"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/never")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Mine: never\nAuthorization: never")
    with FlakyServer([Reply(headers={"Set-Cookie": "track=1; Path=/"})]) as server:
        _engine(server.url).complete(_asked(2))
    for request in server.requests:
        assert set(request.headers) - {"authorization"} == {
            "host", "connection", "accept", "content-type", "content-length", "user-agent", "accept-encoding",
        }  # fmt: skip
        assert request.headers.get("authorization") == sent


@pytest.mark.parametrize(
    "status, said", [(401, "it refuses the key in GIRL_API_KEY"), (400, r"bad key \.\.\. of"), (500, "HTTP 500")]
)
def test_a_key_is_shown_nowhere(status, said, monkeypatch, caplog):
    monkeypatch.setenv("GIRL_API_KEY", _KEY)
    caplog.set_level(logging.DEBUG)
    echo = json.dumps({"error": {"message": f"bad key {_KEY} of {_CV}", "code": _KEY}}).encode()
    with FlakyServer([Reply(status, content=echo)]) as server:
        engine = _engine(server.url, api_retries=0, api_max_failures=0)
        with pytest.raises(GirlError, match=said) as error:
            engine.complete(_asked(1))
    assert server.requests[0].headers["authorization"] == f"Bearer {_KEY}"
    shown_somewhere = f"{error.getrepr(style='long', showlocals=False)} {caplog.text} {engine!r} {engine.settings}"
    assert _KEY not in shown_somewhere + str(pickle.dumps(engine))
    assert not [
        word
        for word in ("Zoltan", "Quimby", "Greifswald", "5550199", "example", "org")
        if word in f"{error.value} {caplog.text}"
    ]


@pytest.mark.parametrize("key", ["a b", "a\nb", "clé"])
def test_a_key_that_cannot_be_one(key, monkeypatch):
    monkeypatch.setenv("GIRL_API_KEY", key)
    with pytest.raises(ConfigError, match="GIRL_API_KEY: holds characters that no key has") as error:
        _engine("http://127.0.0.1:1/v1")
    assert key not in str(error.value)


def test_what_a_server_says_of_a_cv():
    assert shown(f"bad input: '{_CV}'", f"Write a JD.\n\n{_CV}") == " (bad input: '... of ..., zq@...')"
    said = shown(f"The prompt '{_CV[:30]}' has 700 tokens, the model takes 512", f"Write a JD.\n\n{_CV}")
    assert said == " (The prompt '... of ...' has 700 tokens, the model takes 512)"
    assert shown("input [12, 7, 81, 4, 5] is bad", "a CV") == " (input [...] is bad)"
    assert shown("王小明 不行", "我是王小明") == " (... 不行)"
    assert shown("", "a CV") == ""


_letters = st.sampled_from("abcdeXYZ 0189,.-'é王")


@given(st.text(_letters, min_size=8, max_size=40), st.text(_letters, max_size=20), st.data())
def test_a_server_cannot_make_us_print_a_cv(cv, around, data):
    """Whatever piece of a CV it quotes: no word of three characters in it, no number and no CJK character is shown."""
    start = data.draw(st.integers(0, len(cv) - 4))
    piece = cv[start : start + data.draw(st.integers(4, 20))]
    private = re.findall("[a-zA-Z]{3,}|[0-9]+|王", piece)
    printed = re.findall("[a-zA-Z]+|[0-9]+|王", shown(f"{around} {piece} {around}", cv))
    assert not set(private) & set(printed)


def test_no_proxy_stands_between_us_and_this_machine(monkeypatch):
    with FlakyServer() as proxy, FlakyServer() as server:
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        for host in ("127.0.0.1", "localhost"):
            _engine(f"http://{host}:{server.port}/v1").complete(_asked(1))
        assert (len(server.requests), len(proxy.requests)) == (2, 0)


def test_a_redirect_is_not_followed():
    with FlakyServer() as other, FlakyServer([Reply(307, {"Location": f"{other.url}/chat/completions"})]) as server:
        with pytest.raises(ConfigError, match=r"HTTP 307 .* it redirects, which is not followed"):
            _engine(server.url).complete(_asked(1))
        assert not other.requests


def test_sending_cvs_away_is_said(caplog):
    caplog.set_level(logging.INFO)
    _engine("http://127.0.0.1:1/v1")
    assert not caplog.text
    _engine("https://models.example.org/v1")
    assert "CVs are sent to models.example.org" in caplog.text
    assert "in the clear" not in caplog.text
    _engine("http://models.example.org/v1")
    assert "CVs and the key go to models.example.org in the clear" in caplog.text


# ----------------------------------------------------------------------------------------------------- girl generate


def _generate(toy, url: str, **settings) -> dict:
    given = {
        "gen_engine": "api", "api_url": url, "api_model": "m", "generator": "far", "gen_shard_size": 40,
        "saved_folder": str(toy.folder / "saved"), "gen_samples": 2, "api_retries": 0, "api_concurrency": 4,
    }  # fmt: skip
    return generate(toy, make_config(GenerateConfig, overrides=given | settings))


def test_a_run_that_the_server_ended_goes_on_with_what_is_missing(toy, monkeypatch):
    """240 CVs, most of them distinct; the server fails for good after 300 requests."""
    monkeypatch.setenv("GIRL_API_KEY", _KEY)
    with FlakyServer() as server:
        _generate(toy, server.url, generator="undisturbed")
    with (
        FlakyServer([Reply()] * 300 + [Reply(500)] * 50) as server,
        pytest.raises(ServerError, match=r"4 x HTTP 500.*, 300 were answered.*Finished shards are kept"),
    ):
        _generate(toy, server.url, api_max_failures=3)
    with FlakyServer() as server:
        report = _generate(toy, server.url)
        again = _generate(toy, server.url)
    assert report["shards_reused"] == 3  # of 40 CVs with 2 JDs each
    assert len(server.requests) == 2 * (report["distinct_cvs"] - 120)
    assert "reused" in again
    assert toy.gdoc("far").read_bytes() == toy.gdoc("undisturbed").read_bytes()
    cvs = dict(iter_docs(toy.udoc))
    sent = server.requests[0].body["messages"][0]["content"]
    assert sent.startswith(INSTRUCTIONS["en"])
    assert sent.split("\n\n", 1)[1] in cvs.values()
    for path in toy.folder.rglob("*far*"):
        assert _KEY.encode() not in path.read_bytes()


def test_another_model_is_not_mixed_in(toy):
    with FlakyServer([Reply()] * 100 + [Reply(403)]) as server, pytest.raises(ConfigError, match="HTTP 403"):
        _generate(toy, server.url)
    with FlakyServer() as server, pytest.raises(DataError, match=r"1 finished shards .*model was m, now n"):
        _generate(toy, server.url, api_model="n")
    assert not server.requests


# ------------------------------------------------------------------------------------------------------ a real server


_TOKENS = 10  # of a JD


class _Served:
    """``transformers serve`` on a model of a few thousand parameters, on a port of this machine."""

    def __init__(self, folder) -> None:
        tokenizer = chat_tokenizer()
        self.tokenizer, self.model = tokenizer, tiny_model(tokenizer, "llama", spread=0.5).eval()
        self.model.generation_config.update(do_sample=True, top_k=0)  # as it is served; a request can say less
        self.name, self.log = str(folder / "tiny"), folder / "log"
        self.model.save_pretrained(self.name)
        tokenizer.save_pretrained(self.name)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        script = os.path.join(os.path.dirname(sys.executable), "transformers")
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [script, "serve", self.name, "--host", "127.0.0.1", "--port", str(self.port), "--device", "cpu"],
                stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for _ in range(1200):
            assert self.process.poll() is None, self.log.read_text()
            try:
                direct.open(f"http://127.0.0.1:{self.port}/health").close()
                return
            except OSError:
                time.sleep(0.1)
        raise AssertionError(self.log.read_text())

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def engine(self, **settings) -> ApiEngine:
        return _engine(self.url, api_model=self.name, max_jd_tokens=_TOKENS, **settings)

    def greedy(self, message: str) -> str:
        chat = [{"role": "user", "content": message}]
        ids = self.tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.no_grad():
            out = self.model.generate(**ids, do_sample=False, max_new_tokens=_TOKENS)
        return self.tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    server = _Served(tmp_path_factory.mktemp("served"))
    server.start()
    yield server
    server.kill()


_CHATS = [Asked([], f"engineer builds bridges number {i}", [i]) for i in range(40)]


def test_transformers_serve_writes_what_the_model_writes_here(served):
    written = served.engine(temperature=0).complete(_CHATS[:12])
    assert [one.text for (one,) in written] == [served.greedy(asked.message) for asked in _CHATS[:12]]
    assert len({one.text for (one,) in written}) > 6


def test_transformers_serve_draws_by_the_seed_when_asked_one_by_one(served):
    asked = [Asked([], "A nurse plans care.", [3, 4, 3, 5])]
    (first,), (again,) = (
        served.engine(temperature=1.0, top_p=1.0, api_concurrency=1).complete(asked) for _ in range(2)
    )
    assert first == again
    assert first[0] == first[2]
    assert len({first[0], first[1], first[3]}) == 3


def test_transformers_serve_refuses(served):
    with pytest.raises(ConfigError, match=r"prompt must be a \w+\.\): .*set api_endpoint: chat"):
        served.engine(api_endpoint="completions").complete([Asked([1, 2, 3], "x", [0])])
    with pytest.raises(ConfigError, match=r"HTTP 422 .*top_k.*leave that out"):
        served.engine(api_body={"top_k": 5}).complete(_CHATS[:1])
    with pytest.raises(ConfigError, match=r"HTTP 404 for the model .*as far as /v1"):
        _engine(served.url[: -len("/v1")], api_model=served.name).complete(_CHATS[:1])


def test_jds_by_transformers_serve(served, tmp_path):
    toy = make_toy(tmp_path, users=30, items=20, pairs=60)
    texts = {user: f"engineer number {number}" for number, user in enumerate(dict(iter_docs(toy.udoc)))}
    write_docs(toy.udoc, texts.items(), "user")
    wanted = sorted(set(read_table(toy.inter)["user_id"]))
    report = _generate(toy, served.url, api_model=served.name, temperature=0, max_jd_tokens=_TOKENS, gen_samples=1)
    assert report["requests"] == {"answered": len(wanted)}
    written = read_generated(toy.gdoc("far"))
    assert sorted(written) == wanted
    assert all(
        written[user] == [served.greedy(f"{INSTRUCTIONS['en']}\n\n{texts[user]}").strip()] for user in wanted[::6]
    )


def test_the_server_is_killed_and_restarted_in_mid_run(served):
    asked = [Asked([], one.message, [7] * 4) for one in _CHATS]
    engine, done = served.engine(temperature=0, api_concurrency=4), []
    run = threading.Thread(target=lambda: done.append(engine.complete(asked)))
    run.start()
    while engine.counts["answered"] < 20:
        assert run.is_alive()
        time.sleep(0.01)
    served.kill()
    answered = engine.counts["answered"]
    assert answered < 120
    time.sleep(1)
    assert engine.counts["answered"] <= answered + 4
    served.start()
    run.join(timeout=120)
    assert [{one.text for one in row} for row in done[0]] == [{served.greedy(one.message)} for one in asked]
    assert engine.counts["answered"] == 160
