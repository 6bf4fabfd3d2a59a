"""The stand-in vendor does what tests of the gateway trust it to do."""

import functools
import json
import ssl
import time
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest

from tests.support.vendors import (
    Answer,
    StandInVendor,
    VendorName,
    anthropic,
    cohere,
    google,
    json_answer,
    mistral,
    stream_answer,
)
from tests.support.vendors import openai as answers
from tests.support.vendors.openai import (
    BAD_REQUEST,
    INVALID_KEY,
    OVERLOADED,
    RATE_LIMITED,
    SERVER_ERROR,
    chunks,
    completion,
    events,
    tool_deltas,
    usage,
    weather_call,
)
from tests.support.vendors.shapes import data_of

HELLO: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]


def client_of(vendor: StandInVendor) -> openai.OpenAI:
    return openai.OpenAI(base_url=vendor.url, api_key="sk-test", max_retries=0)


def test_it_answers_like_openai_and_records_what_it_got(openai_vendor: StandInVendor) -> None:
    with client_of(openai_vendor) as client:
        answer = client.chat.completions.create(model="gpt-4o", messages=HELLO)
        assert answer.choices[0].message.content == "Hello! How can I help you today?"
        stream = client.chat.completions.create(model="gpt-4o", messages=HELLO, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "Hello! How can I help?"
        with_usage = client.chat.completions.create(
            model="gpt-4o", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
        assert [chunk.usage.total_tokens for chunk in with_usage if chunk.usage] == [22]
    first = openai_vendor.requests[0]
    assert (first.method, first.target) == ("POST", "/v1/chat/completions")
    assert first.header("authorization") == "Bearer sk-test"
    assert first.json() == {"model": "gpt-4o", "messages": HELLO}
    assert len(openai_vendor.requests) == 3


def test_it_gives_the_answers_it_was_told(openai_vendor: StandInVendor) -> None:
    cached = completion(text=None, tool_calls=[weather_call()], used=usage(2006, 300, cached=1920, reasoning=128))
    openai_vendor.answer_with(
        json_answer(cached),
        stream_answer(events(chunks(tool_deltas(), finish_reason="tool_calls"))),
    )
    with client_of(openai_vendor) as client:
        answer = client.chat.completions.create(model="gpt-4o", messages=HELLO)
        assert answer.to_dict() == cached
        stream = client.chat.completions.create(model="gpt-4o", messages=HELLO, stream=True)
        calls = [call for chunk in stream for call in chunk.choices[0].delta.tool_calls or ()]
        assert "".join((call.function and call.function.arguments) or "" for call in calls) == '{"city":"Zürich"}'
        assert client.chat.completions.create(model="gpt-4o", messages=HELLO).usage is not None


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        (BAD_REQUEST, 400, openai.BadRequestError),
        (INVALID_KEY, 401, openai.AuthenticationError),
        (RATE_LIMITED, 429, openai.RateLimitError),
        (SERVER_ERROR, 500, openai.InternalServerError),
        (OVERLOADED, 503, openai.InternalServerError),
    ],
)
def test_its_errors_raise_the_client_s_own_exceptions(
    openai_vendor: StandInVendor, body: object, status: int, error: type[openai.APIStatusError]
) -> None:
    openai_vendor.always(json_answer(body, status))
    with client_of(openai_vendor) as client, pytest.raises(error):
        client.chat.completions.create(model="gpt-4o", messages=HELLO)


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_it_sends_any_bytes_in_any_framing(openai_vendor: StandInVendor, framing: str) -> None:
    pieces = (b"\x00\xff", b"", b"data: x\r\n", b"\r")
    openai_vendor.answer_with(Answer(pieces, 207, (("x-raw", "yes"),), framing=framing))  # type: ignore[arg-type]
    response = httpx.post(openai_vendor.url, content=b"\x01")
    assert (response.status_code, response.headers["x-raw"], response.content) == (207, "yes", b"".join(pieces))
    assert openai_vendor.requests[0].body == b"\x01"


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("pieces_sent", [-1, 0, 1])
def test_it_hangs_up(openai_vendor: StandInVendor, framing: str, pieces_sent: int) -> None:
    answer = Answer((b"one", b"two"), framing=framing, hang_up_after=pieces_sent)  # type: ignore[arg-type]
    openai_vendor.always(answer)
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.post(openai_vendor.url)


def test_it_takes_its_time_and_notices_who_leaves(openai_vendor: StandInVendor) -> None:
    openai_vendor.always(stream_answer([b"data: 1\n\n"] * 50, delay_s=0.05, piece_delay_s=0.02))
    started = time.monotonic()
    with httpx.stream("POST", openai_vendor.url) as response:
        next(response.iter_raw())
    assert time.monotonic() - started >= 0.07
    deadline = time.monotonic() + 5
    while not openai_vendor.aborted and time.monotonic() < deadline:
        time.sleep(0.01)
    assert openai_vendor.aborted == openai_vendor.requests


# A client that loads no certificates: making one with them takes longer than a test here.
UNSECURED = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
post = functools.partial(httpx.post, verify=UNSECURED)
get = functools.partial(httpx.get, verify=UNSECURED)

# The route, a good body, and headers with a credential of each vendor.
CALLS: dict[VendorName, tuple[str, dict[str, Any], dict[str, str]]] = {
    "openai": ("/v1/chat/completions", {"model": "m", "messages": HELLO}, {"authorization": "Bearer good"}),
    "anthropic": (
        "/v1/messages",
        {"model": "m", "messages": HELLO, "max_tokens": 100},
        {"x-api-key": "good", "anthropic-version": "2023-06-01"},
    ),
    "google": (
        "/v1beta/models/m:generateContent",
        {"contents": [{"parts": [{"text": "Hello"}]}]},
        {"x-goog-api-key": "good"},
    ),
    "mistral": ("/v1/chat/completions", {"model": "m", "messages": HELLO}, {"authorization": "bearer good"}),
    "cohere": ("/v2/chat", {"model": "m", "messages": HELLO}, {"authorization": "Bearer good"}),
}
REFUSALS = {"openai": 401, "anthropic": 401, "google": 400, "mistral": 401, "cohere": 401}
UNCALLED = REFUSALS | {"google": 403}


@pytest.fixture
def vendor(request: pytest.FixtureRequest) -> StandInVendor:
    """The stand-in whose name is the parameter."""
    found: StandInVendor = request.getfixturevalue(f"{request.param}_vendor")
    return found


every_vendor = pytest.mark.parametrize("vendor", list(CALLS), indirect=True)


def call(vendor: StandInVendor, change: dict[str, Any] | None = None, **options: Any) -> httpx.Response:
    route, body, headers = CALLS[vendor.name]
    return post(vendor.root + route, **({"json": body | (change or {}), "headers": headers} | options))


@every_vendor
def test_every_vendor_knows_its_credential(vendor: StandInVendor) -> None:
    assert call(vendor).status_code == 200
    vendor.responder.accepts = "other"
    assert call(vendor).status_code == REFUSALS[vendor.name]
    assert call(vendor, headers={"anthropic-version": "2023-06-01"}).status_code == UNCALLED[vendor.name]
    vendor.answer_with(json_answer({}))
    assert call(vendor, headers={}).status_code == 200, "a scripted answer is for anyone"
    assert vendor.credentials == ["good", "good", None, None]
    vendor.responder.demands = False
    assert call(vendor, headers={"anthropic-version": "2023-06-01"}).status_code == 200


@every_vendor
def test_every_vendor_refuses_what_it_does_not_know(vendor: StandInVendor) -> None:
    _, _, headers = CALLS[vendor.name]
    assert post(f"{vendor.root}/v1/none", json={}, headers=headers).status_code == 404
    assert call(vendor, content=b"{", json=None).status_code == 400
    assert call(vendor, json={}).status_code in (400, 422)


@pytest.mark.parametrize(
    ("vendor", "failure", "statuses"),
    [
        ("openai", answers.failure, (400, 401, 403, 404, 413, 429, 500, 503)),
        ("anthropic", anthropic.failure, (400, 401, 403, 404, 413, 429, 500, 503, 529)),
        ("google", google.failure, (400, 401, 403, 404, 413, 429, 500, 503)),
        ("mistral", mistral.failure, (400, 401, 403, 404, 413, 422, 429, 500, 503)),
        ("cohere", cohere.failure, (400, 401, 403, 404, 413, 422, 429, 500, 503)),
    ],
    indirect=["vendor"],
)
def test_every_vendor_fails_in_its_own_words(
    vendor: StandInVendor, failure: Callable[..., Answer], statuses: tuple[int, ...]
) -> None:
    for status in statuses:
        vendor.answer_with(failure(status), failure(status, "7"))
        first, second = call(vendor), call(vendor)
        assert (first.status_code, second.status_code, second.headers["retry-after"]) == (status, status, "7")
        # Google says how long to wait in the body, the others in the header.
        assert ("retry-after" in first.headers) == (status == 429 and vendor.name != "google")
        assert first.json() == second.json()


def test_google_says_in_the_body_how_long_to_wait() -> None:
    (detail,) = json.loads(google.failure(429).body)["error"]["details"]
    assert detail["retryDelay"] == "1s"


LIMITS: list[tuple[str, dict[str, Any], str]] = [
    ("openai", {"max_completion_tokens": 2, "max_tokens": 5, "n": 3}, "usage.completion_tokens"),
    ("anthropic", {"max_tokens": 2}, "usage.output_tokens"),
    ("google", {"generationConfig": {"maxOutputTokens": 2, "candidateCount": 3}}, "usageMetadata.candidatesTokenCount"),
    ("google", {"generation_config": {"max_output_tokens": 2}}, "usageMetadata.candidatesTokenCount"),
    ("mistral", {"max_tokens": 2, "n": 3}, "usage.completion_tokens"),
    ("cohere", {"max_tokens": 2}, "usage.billed_units.output_tokens"),
]


@pytest.mark.parametrize(("vendor", "change", "path"), LIMITS, indirect=["vendor"])
def test_an_output_limit_holds_for_each_choice(vendor: StandInVendor, change: dict[str, Any], path: str) -> None:
    value = call(vendor, change).json()
    for step in path.split("."):
        value = value[step]
    config = change.get("generationConfig") or {}
    assert value == 2 * (change.get("n") or config.get("candidateCount") or 1)


def test_anthropic_streams_what_it_would_have_answered(anthropic_vendor: StandInVendor) -> None:
    whole = call(anthropic_vendor).json()
    steps = data_of(line + b"\n\n" for line in call(anthropic_vendor, {"stream": True}).content.split(b"\n\n")[:-1])
    assert {"type": "ping"} in steps
    text = "".join(step["delta"].get("text", "") for step in steps if step["type"] == "content_block_delta")
    assert text == whole["content"][0]["text"]
    (last,) = [step["usage"] for step in steps if step["type"] == "message_delta"]
    assert last == {name: whole["usage"][name] for name in last}


def test_gemini_streams_events_or_an_array(google_vendor: StandInVendor) -> None:
    _, body, headers = CALLS["google"]
    url = f"{google_vendor.root}/v1beta/models/m:streamGenerateContent"
    as_array = post(url, json=body, headers=headers)
    as_events = post(url, json=body, headers=headers, params={"alt": "sse"})
    assert as_array.content.startswith(b"[{")
    assert b"}\n,\r\n{" in as_array.content
    assert as_events.content.startswith(b"data: {")
    assert b"[DONE]" not in as_events.content
    assert as_array.json() == [json.loads(line[6:]) for line in as_events.text.split("\r\n\r\n") if line]
    counts = [chunk["usageMetadata"] for chunk in as_array.json()]
    assert counts[-1] == call(google_vendor).json()["usageMetadata"]
    assert [one["totalTokenCount"] for one in counts] == [13 + one["candidatesTokenCount"] for one in counts]


def test_cohere_streams_lines_in_v1_and_events_in_v2(cohere_vendor: StandInVendor) -> None:
    headers = CALLS["cohere"][2]
    lines = post(f"{cohere_vendor.root}/v1/chat", json={"message": "Hi", "stream": True}, headers=headers)
    steps = [json.loads(line) for line in lines.text.splitlines()]
    whole = post(f"{cohere_vendor.root}/v1/chat", json={"message": "Hi"}, headers=headers).json()
    assert steps[-1]["response"] == whole
    assert "".join(step.get("text", "") for step in steps) == whole["text"]
    second = call(cohere_vendor, {"stream": True})
    assert second.text.startswith("event: message-start\ndata: {")
    assert second.text.endswith("data: [DONE]\n\n")
    assert '"usage":{"billed_units":' in second.text.split("event: message-end\n")[1]


def test_openai_takes_a_batch_through_its_states(openai_vendor: StandInVendor) -> None:
    bodies = [{"model": "gpt-4o", "messages": HELLO, "max_tokens": 4}, {"model": "gpt-4o"}]
    lines = [
        {"custom_id": f"line-{place}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        for place, body in enumerate(bodies)
    ]
    with client_of(openai_vendor) as client:
        content = b"\n".join(json.dumps(line).encode() for line in lines)
        uploaded = client.files.create(file=("lines.jsonl", content), purpose="batch")
        assert uploaded.bytes == len(content)
        batch = client.batches.create(
            input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        seen = [batch.status]
        while batch.status != "completed":
            batch = client.batches.retrieve(batch.id)
            seen.append(batch.status)
        assert seen == ["validating", "in_progress", "finalizing", "completed"]
        assert batch.request_counts is not None
        assert batch.output_file_id
        assert batch.error_file_id
        counts = batch.request_counts
        assert (counts.total, counts.completed, counts.failed) == (2, 1, 1)
        assert batch.usage is not None
        assert (batch.usage.input_tokens, batch.usage.output_tokens) == (13, 4)
        (good,) = map(json.loads, client.files.content(batch.output_file_id).text.splitlines())
        (bad,) = map(json.loads, client.files.content(batch.error_file_id).text.splitlines())
        assert (good["custom_id"], good["response"]["body"]["usage"]["completion_tokens"]) == ("line-0", 4)
        assert (bad["custom_id"], bad["response"]["status_code"]) == ("line-1", 400)


def test_openai_answers_in_the_background(openai_vendor: StandInVendor) -> None:
    with client_of(openai_vendor) as client:
        asked = client.responses.create(model="gpt-5", input="Hello", background=True)
        seen = [asked, client.responses.retrieve(asked.id), client.responses.retrieve(asked.id)]
        assert [one.status for one in seen] == ["queued", "in_progress", "completed"]
        assert [one.usage is None for one in seen] == [True, True, False]
        other = client.responses.create(model="gpt-5", input="Hello", background=True)
        assert client.responses.cancel(other.id).status == "cancelled"
        assert client.responses.retrieve(other.id).usage is None
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve("resp_none")


def test_anthropic_takes_a_batch_to_its_results(anthropic_vendor: StandInVendor) -> None:
    _, body, headers = CALLS["anthropic"]
    root = f"{anthropic_vendor.root}/v1/messages/batches"
    requests = [{"custom_id": "a", "params": body}, {"custom_id": "b", "params": {"model": "m"}}]
    taken = post(root, json={"requests": requests}, headers=headers).json()
    assert (taken["processing_status"], taken["results_url"]) == ("in_progress", None)
    assert get(f"{root}/{taken['id']}/results", headers=headers).status_code == 404
    ended = get(f"{root}/{taken['id']}", headers=headers).json()
    assert ended["processing_status"] == "ended"
    assert (ended["request_counts"]["succeeded"], ended["request_counts"]["errored"]) == (1, 1)
    lines = [json.loads(line) for line in get(ended["results_url"], headers=headers).text.splitlines()]
    assert [line["custom_id"] for line in lines] == ["b", "a"], "in an order of its own"
    assert lines[1]["result"]["message"]["usage"]["service_tier"] == "batch"
    other = post(root, json={"requests": requests}, headers=headers).json()
    post(f"{root}/{other['id']}/cancel", headers=headers)
    assert get(f"{root}/{other['id']}", headers=headers).json()["request_counts"]["canceled"] == 2


def test_a_fault_of_the_stand_in_is_seen(openai_vendor: StandInVendor) -> None:
    openai_vendor.otherwise = lambda _request: json_answer(1 / 0)
    answer = call(openai_vendor)
    assert (answer.status_code, answer.json()) == (599, {"stand_in_fault": "ZeroDivisionError: division by zero"})
