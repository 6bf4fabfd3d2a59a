"""A bounded run of the fuzzer with every test run, and what longer runs have found."""

import pytest

from services.core.usage.openai_chat import ChatShape
from services.core.usage.reading import MAX_COUNT, AnswerShape, BodyReader, Reading, StreamReader
from services.gateway.vendors.registry import DIALECTS
from tests.fuzz.run import fuzz

SEED = 20_260_101
PARTS = 4
# More at leisure: python -m tests.fuzz.run
INPUTS = 20_000


@pytest.mark.parametrize("part", range(PARTS))
def test_no_input_breaks_a_reader(part: int) -> None:
    report = fuzz(SEED, range(part, INPUTS, PARTS))
    assert report.findings == {}, "have it again: python -m tests.fuzz.run --seed … --only …"
    assert report.inputs.total() == INPUTS // PARTS


class Summing(ChatShape):
    """A shape whose counts are sums of two reported ones, as several vendors' are."""

    def whole(self, body: object) -> Reading:
        return Reading({"input_tokens": MAX_COUNT + 1, "output_tokens": 7, "vendor_cost_nano": MAX_COUNT * 5}, 0, True)


def test_a_sum_beyond_any_count_is_as_good_as_missing() -> None:
    reader = BodyReader(Summing())
    reader.feed(b"{}")
    assert reader.finish().usage == {"output_tokens": 7, "vendor_cost_nano": MAX_COUNT * 5}


def test_a_body_of_nothing_but_brackets_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.core.usage.reading.MAX_BODY_VALUES", 1000)

    def parse(_: bytes) -> object:
        raise AssertionError("parsed")

    body = b'{"a":[' + b"{}," * 1000 + b"1]}"
    reader = BodyReader(ChatShape(), parse)
    reader.feed(body)
    assert reader.finish() == Reading({}, len(body), complete=False)
    # Long in text is not long in values.
    reader = BodyReader(ChatShape())
    reader.feed(b'{"usage":{"prompt_tokens":3},"a":"' + b"x" * 2000 + b'"}')
    assert reader.finish().usage == {"input_tokens": 3}


@pytest.mark.parametrize(
    "shape", [answers.shape for dialect in DIALECTS.values() for answers in dialect.shapes.values()]
)
def test_an_event_that_is_no_object_is_counted_by_its_bytes(shape: AnswerShape) -> None:
    reader = StreamReader(shape)
    for data in (b'"Hello"', b"nope", b"null", b"7", b"[]"):
        assert reader.feed(b"data: " + data + b"\n\n") == [(b"data: " + data + b"\n\n", False)]
    reading = reader.finish()[2]
    assert (reading.usage, reading.text_bytes) == ({}, len('"Hello"nopenull7[]'))
