"""The sandbox vendor, as its own process, through the official client."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from services.gateway.vendors import RouteRequest
from services.gateway.vendors.openai import OpenAIDialect
from services.gateway.vendors.openai_routes import CHAT
from services.sandbox.answer import text_of
from services.sandbox.request import BadRequestError, read_request
from tests.support.valkey import free_port

RUN = "from services.adapters.config import Settings; from services.sandbox.app import run; run(Settings())"
HELLO: list[Any] = [{"role": "user", "content": "Hello, how are you?"}]


def start(port: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "FARTHING_PORT": str(port)}
    return subprocess.Popen([sys.executable, "-c", RUN], env=environment, stderr=subprocess.PIPE)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    port = free_port()
    process = start(port)
    deadline = time.monotonic() + 20
    while True:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200:
                break
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "the sandbox did not come up"
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=20)[1]
    assert process.returncode == 0
    assert b'"level": "error"' not in errors, "what a request asks for is no error of the sandbox's"


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        yield client


def controls(**values: Any) -> dict[str, Any]:
    return {"sandbox": values}


def test_a_plain_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="sandbox-small", messages=HELLO, extra_body=controls(output_tokens=7))
    assert answer.choices[0].message.content == text_of(7) == "This is the sandbox. No vendor was"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "sandbox-small"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3 + 5, 7)
    assert answer.usage.total_tokens == 15
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 0


def test_the_same_request_gets_the_same_answer(client: openai.OpenAI) -> None:
    first, second = (client.chat.completions.create(model="sandbox-large", messages=HELLO, n=2) for _ in range(2))
    assert [each.message.content for each in first.choices] == [each.message.content for each in second.choices]
    assert first.usage == second.usage
    assert first.usage is not None
    assert first.usage.completion_tokens == 2 * 24


def test_a_limit_cuts_the_answer_off(client: openai.OpenAI) -> None:
    for limits in ({"max_tokens": 3}, {"max_completion_tokens": 3}):
        answer = client.chat.completions.create(model="sandbox-small", messages=HELLO, extra_body=limits)
        assert answer.choices[0].message.content == "This is the"
        assert answer.choices[0].finish_reason == "length"
    answer = client.chat.completions.create(
        model="sandbox-small", messages=HELLO, extra_body=controls(output_tokens=1_000_000)
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4096


def test_a_stream(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model="sandbox-small", messages=HELLO, stream=True, max_tokens=5)
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text_of(5)
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "length"
    assert all(chunk.usage is None for chunk in chunks)
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_reports_usage_where_it_is_asked_to(client: openai.OpenAI) -> None:
    for choices in (1, 3):
        stream = client.chat.completions.create(
            model="sandbox-small", messages=HELLO, stream=True, n=choices, stream_options={"include_usage": True}
        )
        chunks = list(stream)
        assert chunks[-1].choices == []
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 24 * choices
        texts = ["", "", ""]
        for chunk in chunks[:-1]:
            assert chunk.usage is None
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        assert texts == [text_of(24)] * choices + [""] * (3 - choices)


def test_it_fails_on_request(client: openai.OpenAI) -> None:
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError, match="asked the sandbox to fail") as caught:
            client.chat.completions.create(
                model="sandbox-small", messages=HELLO, stream=stream, extra_body=controls(fault="error_500")
            )
        assert caught.value.status_code == 500
        assert caught.value.type == "server_error"


def test_it_hangs_up_within_a_stream(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="sandbox-small", messages=HELLO, stream=True, extra_body=controls(fault="hang_up", fault_after_chunks=4)
    )
    seen: list[str] = []
    with pytest.raises((openai.APIConnectionError, httpx.RemoteProtocolError)):
        seen.extend(chunk.choices[0].delta.content or "" for chunk in stream)
    assert seen in ([], ["", "This", " is", " the"])


def test_it_sends_what_it_was_told_to_before_it_hangs_up(url: str) -> None:
    fields = {"model": "sandbox-small", "messages": HELLO, "stream": True}
    fields |= controls(fault="hang_up", fault_after_chunks=4)
    received: list[bytes] = []
    answering = httpx.stream("POST", f"{url}/v1/chat/completions", json=fields)
    with answering as response, pytest.raises(httpx.RemoteProtocolError):
        received.extend(response.iter_raw())
    assert response.status_code == 200
    assert b"".join(received).count(b"data: ") == 4
    assert b"[DONE]" not in b"".join(received)


def test_it_hangs_up_within_a_json_answer(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIConnectionError):
        client.chat.completions.create(model="sandbox-small", messages=HELLO, extra_body=controls(fault="hang_up"))


def test_it_reports_no_usage_on_request(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="sandbox-small", messages=HELLO, extra_body=controls(fault="no_usage")
    )
    assert answer.usage is None
    stream = client.chat.completions.create(
        model="sandbox-small", messages=HELLO, stream=True, stream_options={"include_usage": True},
        extra_body=controls(fault="no_usage"),
    )  # fmt: skip
    assert all(chunk.usage is None for chunk in stream)


def test_it_takes_its_time_on_request(client: openai.OpenAI) -> None:
    started = time.monotonic()
    client.chat.completions.create(model="sandbox-small", messages=HELLO, extra_body=controls(delay_ms=150))
    assert time.monotonic() - started >= 0.15
    stream = client.chat.completions.create(
        model="sandbox-small", messages=HELLO, stream=True, extra_body=controls(output_tokens=3, chunk_delay_ms=40)
    )
    times = [time.monotonic() for _ in stream]
    assert len(times) == 5
    assert times[-1] - times[0] >= 0.1


def test_it_lists_its_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["sandbox-small", "sandbox-large"]


def test_other_routes_are_not_found(url: str) -> None:
    assert httpx.get(f"{url}/v1/embeddings").status_code == 404
    assert httpx.get(f"{url}/v1/chat/completions").status_code == 404
    assert httpx.get(f"{url}/readyz").status_code == 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": "gpt-4o"}, "model"),
        ({"model": None}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": ["x"]}, "messages"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": 1}, "stream_options"),
        ({"stream_options": {"include_usage": 1}}, "include_usage"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 4097}, "max_tokens"),
        ({"sandbox": []}, "sandbox"),
        ({"sandbox": {"output_tokens": -1}}, "sandbox.output_tokens"),
        ({"sandbox": {"output_tokens": 1.5}}, "sandbox.output_tokens"),
        ({"sandbox": {"delay_ms": 600_001}}, "sandbox.delay_ms"),
        ({"sandbox": {"chunk_delay_ms": "1"}}, "sandbox.chunk_delay_ms"),
        ({"sandbox": {"fault_after_chunks": True}}, "sandbox.fault_after_chunks"),
        ({"sandbox": {"fault": "explode"}}, "sandbox.fault"),
        ({"sandbox": {"fault": []}}, "sandbox.fault"),
        ({"sandbox": {"speed": 1}}, "sandbox.speed"),
    ],
)
def test_what_makes_no_sense_is_named(client: openai.OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="sandbox-small", messages=HELLO, extra_body=fields)
    assert caught.value.param == param


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff"])
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequestError):
        read_request(body)


def test_usage_never_exceeds_the_gateway_s_bound() -> None:
    for content in ("", "é" * 40, "👋", [{"type": "text", "text": "x" * 9}, {"type": "text", "text": "\n\n"}], None):
        for ascii_only in (True, False):
            fields = {"model": "sandbox-small", "messages": [{"role": "user", "content": content}] * 3}
            body = json.dumps(fields, ensure_ascii=ascii_only).encode()
            assert read_request(body).input_tokens <= len(body)
            bounded = OpenAIDialect().read_request(RouteRequest(CHAT, body)).demand.input_tokens
            assert read_request(body).input_tokens <= bounded


def test_an_address_that_is_taken_is_said_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = start(taken.getsockname()[1])
        errors = process.communicate(timeout=20)[1].decode().splitlines()
    assert process.returncode == 70
    assert json.loads(errors[-1])["event"] == "sandbox_can_not_run"
    assert len(errors) == 1
