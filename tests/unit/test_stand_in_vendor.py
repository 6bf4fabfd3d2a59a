"""The stand-in vendor does what tests of the gateway trust it to do."""

import time

import httpx
import openai
import pytest

from tests.support.openai_answers import (
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
from tests.support.vendors import Answer, StandInVendor, json_answer, stream_answer

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
