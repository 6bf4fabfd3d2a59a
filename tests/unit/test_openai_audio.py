"""OpenAI's audio routes: what a request can cost, how long audio is, and how the answers are read."""

import base64
import json
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from services.core.estimate import strict_bound
from services.core.pricing import Price
from services.core.usage.openai_audio import SpeechShape, TranscriptionShape, milliseconds, whole_seconds_ms
from services.core.usage.reading import BodyReader, Reading, StreamReader
from services.gateway.vendors import RequestFacts, RequestRefusedError, RouteRequest
from services.gateway.vendors.audio_lengths import AudioLength, audio_length
from services.gateway.vendors.fields import TEMPLATE_TOKENS
from services.gateway.vendors.openai import OpenAIDialect
from services.gateway.vendors.openai_routes import SPEECH, TRANSCRIPTIONS, TRANSLATIONS
from tests.support.audio import MP3_FRAME_SAMPLES, compressed_wave, flac, mp3, mp4, opus, wave, webm, xing
from tests.support.forms import FORM_TYPE, form
from tests.support.vendors import openai as answers

DIALECT = OpenAIDialect()
WHISPER = Price({"audio_duration": 360_000_000})


def speak(**fields: Any) -> RequestFacts:
    body = orjson.dumps({"model": "tts-1", "input": "Grüezi 👋", "voice": "alloy", **fields})
    return DIALECT.read_request(RouteRequest(SPEECH, body))


def hear(*parts: tuple[str, str | bytes], model: str = "whisper-1") -> RequestFacts:
    body = form(("model", model), *parts)
    return DIALECT.read_request(RouteRequest(TRANSCRIPTIONS, body, content_type=FORM_TYPE))


def refusal(*parts: tuple[str, str | bytes], content_type: str = FORM_TYPE, closed: bool = True) -> str | None:
    request = RouteRequest(TRANSCRIPTIONS, form(*parts, closed=closed), content_type=content_type)
    with pytest.raises(RequestRefusedError) as caught:
        DIALECT.read_request(request)
    assert caught.value.code == "invalid_request"
    return caught.value.param


# ---- how long audio is ----------------------------------------------------------------------------------------------


def test_a_container_that_states_its_length_is_believed() -> None:
    assert audio_length(wave(seconds=2.5)) == AudioLength(2_500, 3_500)
    # 100 frames of 1,152 samples at 44.1 kHz are 2,612.2 ms; at 128 kbit/s their 41,700 bytes are 2,606.25 ms.
    exact = 100 * MP3_FRAME_SAMPLES / 44.1
    stated = audio_length(mp3(100)).exact_ms
    assert stated is not None
    assert abs(stated - exact) < 10


def test_a_wave_whose_header_states_too_little_counts_by_its_bytes() -> None:
    streamed = wave(seconds=10)
    streamed = streamed[:40] + bytes(4) + streamed[44:]
    # 160,044 bytes, less a kilobyte for headers, at 16,000 bytes a second.
    assert audio_length(streamed).most_ms >= 9_900


@pytest.mark.parametrize("data", [b"", b"nonsense", webm(), b"RIFF\x00\x00\x00\x00WAVE", b"ID3" + bytes(40), b"fLaC"])
def test_a_container_that_states_nothing_is_bounded_by_the_lowest_bitrate(data: bytes) -> None:
    assert audio_length(data) == AudioLength(None, len(data) * 2 + 1_000)


MEGABYTES = 24_000_000


@pytest.mark.parametrize(
    "data",
    [
        flac(0.1, MEGABYTES),
        flac(0.1, MEGABYTES, rate_hz=655_350, channels=8, bits=32),  # a header may state any rate
        opus(0.1, MEGABYTES),
        mp4(0.1, MEGABYTES),
        mp4(300, MEGABYTES),  # at 512 kbit/s they last 375 seconds
        wave(0.1) + bytes(MEGABYTES),
        compressed_wave(0.1, MEGABYTES),  # MP3 inside, of a length to be believed
        xing(frames=4, size=MEGABYTES),
    ],
    ids=["flac", "flac at any rate", "opus", "mp4", "mp4 of minutes", "wave", "mp3 in a wave", "mp3"],
)
def test_a_length_that_the_bytes_cannot_have_counts_as_none(data: bytes) -> None:
    assert audio_length(data) == AudioLength(None, len(data) * 2 + 1_000)
    facts = hear(("file", data), ("response_format", "srt"))
    assert facts.counted == {}, "so what is settled is an estimate, and says so"


@pytest.mark.parametrize("make", [flac, opus, mp4])
def test_a_length_that_the_bytes_bear_out_is_believed(make: Callable[[float, int], bytes]) -> None:
    assert audio_length(make(10, 100_000)) == AudioLength(10_000, 11_000)
    assert hear(("file", make(10, 100_000))).counted == {"audio_ms": 10_000}


def test_files_put_together_count_by_their_bytes() -> None:
    # Ten seconds' table before what is twenty seconds at the same 128 kbit/s.
    data = xing(frames=383, size=383 * 417, more=383 * 417)
    length = audio_length(data)
    assert length.exact_ms is None
    assert 19_900 < length.most_ms - 1_000 < 20_100


def test_a_cover_is_no_audio() -> None:
    tag = b"ID3\x04\x00\x00" + bytes([0, 1_000_000 >> 14 & 0x7F, 1_000_000 >> 7 & 0x7F, 1_000_000 & 0x7F])
    plain, covered = audio_length(mp3(1_000)), audio_length(tag + bytes(1_000_000) + mp3(1_000))
    assert plain.exact_ms is not None
    assert covered.exact_ms is not None
    assert abs(covered.exact_ms - plain.exact_ms) < 100


def test_milliseconds() -> None:
    assert [milliseconds(each) for each in (0, 1, 1.1, 8.470000267, 2.0004)] == [0, 1_000, 1_100, 8_470, 2_001]
    assert [milliseconds(each) for each in (-1, "1", True, None, float("nan"), float("inf"), 1e300)] == [None] * 7
    assert [whole_seconds_ms(each) for each in (0, 1, 1_000, 8_470)] == [0, 1_000, 1_000, 9_000]


# ---- speech ---------------------------------------------------------------------------------------------------------


def test_speech_by_the_character() -> None:
    facts = speak()
    assert (facts.counted, facts.demand.counts) == ({"characters": 8}, {"characters": 8})
    price = Price({"character": 15_000_000_000})
    # Eight characters at $15 a million.
    assert strict_bound(price, facts.demand).amount_nano == 120_000
    reader = BodyReader(facts.shape)
    reader.feed(answers.SPEECH_BYTES)
    assert reader.finish().complete
    assert facts.shape.needed == ()


def test_speech_by_the_token() -> None:
    facts = speak(model="gpt-4o-mini-tts-2025-12-15", stream_format="sse", instructions="Slowly.")
    assert facts.stream
    assert facts.demand.input_tokens == len(facts.body) + TEMPLATE_TOKENS
    assert facts.demand.output_tokens_limit == 8 * 40 + 1_200
    reader = StreamReader(facts.shape)
    audio = base64.b64encode(bytes(3_000)).decode()
    done = {"type": "speech.audio.done", "usage": {"input_tokens": 14, "output_tokens": 101, "total_tokens": 115}}
    for event in ({"type": "speech.audio.delta", "audio": audio}, done):
        reader.feed(b"data: " + json.dumps(event).encode() + b"\n\n")
    reading = reader.finish()[2]
    assert (reading.usage, reading.complete) == ({"input_tokens": 14, "output_tokens": 101}, True)
    assert reading.text_bytes == 30, "3,000 bytes at a hundred a token, had it said nothing"


def test_plain_audio_is_estimated_by_its_length() -> None:
    pcm = speak(model="gpt-4o-mini-tts", response_format="pcm").shape
    for shape, tokens in ((pcm, 2), (speak(model="gpt-4o-mini-tts").shape, 48), (SpeechShape(), 48)):
        reader = BodyReader(shape)
        reader.feed(bytes(4_800))
        assert reader.finish() == Reading({}, tokens, complete=True)
    assert BodyReader(pcm).finish() == Reading({}, 0, complete=True)


def test_an_error_of_a_speech_route_is_read_as_json() -> None:
    reader = BodyReader(SpeechShape())
    reader.feed(b'{"error": {"code": "busy"}}')
    assert reader.finish().failed == "busy"


@pytest.mark.parametrize("text", [None, 7, ["x"]])
def test_speech_without_text_is_refused(text: Any) -> None:
    with pytest.raises(RequestRefusedError) as caught:
        speak(input=text)
    assert caught.value.param == "input"


# ---- transcriptions -------------------------------------------------------------------------------------------------


def test_hearing_by_the_time() -> None:
    facts = hear(("file", wave(seconds=2.5)), ("response_format", "srt"))
    assert (facts.demand.counts, facts.counted) == ({"audio_ms": 4_000}, {"audio_ms": 3_000})
    # Four seconds at $0.36 an hour.
    assert strict_bound(WHISPER, facts.demand).amount_nano == 400_000
    assert facts.shape.needed == ("audio_ms",)
    unknown = hear(("file", webm(10_000)))
    assert (unknown.demand.counts, unknown.counted) == ({"audio_ms": 21_000}, {})


def test_hearing_by_the_token() -> None:
    parts = (("file", wave(seconds=60)), ("prompt", "Names: Anna, Beat"), ("stream", "true"))
    facts = hear(*parts, model="gpt-4o-mini-transcribe")
    text_bytes = len(facts.body) - len(wave(seconds=60))
    assert facts.stream
    # 61 seconds at 20 tokens each.
    assert facts.demand.input_tokens == 1_220 + text_bytes + TEMPLATE_TOKENS
    assert (facts.demand.output_tokens_limit, facts.demand.choices, facts.demand.parts) == (None, 1, {"audio_input"})
    chunked = hear(*parts, ("chunking_strategy[type]", "server_vad"), model="gpt-4o-transcribe")
    assert chunked.demand.choices == 7


def test_a_translation_is_bounded_like_a_transcription() -> None:
    body = form(("model", "whisper-1"), ("file", wave(seconds=1)))
    facts = DIALECT.read_request(RouteRequest(TRANSLATIONS, body, content_type=FORM_TYPE))
    assert facts.demand.counts == {"audio_ms": 2_000}


def test_two_speakers_have_samples_of_their_own() -> None:
    names = [("known_speaker_names[]", "Anna"), ("known_speaker_names[]", "Beat")]
    samples = [("known_speaker_references[]", "data:audio/wav;base64,AAAA")] * 2
    facts = hear(("file", wave(1)), *names, *samples, model="gpt-4o-transcribe-diarize")
    assert facts.demand.input_tokens > 2 * len("data:audio/wav;base64,AAAA")


@pytest.mark.parametrize("name", ["model", "stream", "response_format", "Model", "model[]"])
def test_a_file_is_no_text(name: str) -> None:
    """A server may take either for the field's value: what is decided by must be one thing."""
    sound, folded = ("file", wave()), name.lower().removesuffix("[]")
    assert refusal(("model", "whisper-1"), sound, (name, b"gpt-4o-transcribe")) == folded
    assert refusal((name, b"gpt-4o-transcribe"), ("model", "whisper-1"), sound) == folded
    assert refusal(("model", "whisper-1"), sound, ("file", "text")) == "file"
    assert refusal(("model", "whisper-1"), ("file", "text"), sound) == "file"


def test_what_is_no_form_or_lacks_a_field_is_refused() -> None:
    sound = ("file", wave())
    assert refusal(("model", "whisper-1")) == "file"
    assert refusal(("model", "whisper-1"), sound, sound) == "file"
    assert refusal(("model", "whisper-1"), ("file", "text")) == "file"
    assert refusal(sound) == "model"
    assert refusal(("model", "whisper-1"), ("model", "gpt-4o-transcribe"), sound) == "model"
    assert refusal(("model", "whisper-1"), sound, ("stream", "maybe")) == "stream"
    assert refusal(("model", "whisper-1"), sound, closed=False) is None
    assert refusal(("model", "whisper-1"), sound, content_type="application/json") is None
    assert refusal(("model", "whisper-1"), sound, content_type="multipart/form-data") is None
    assert refusal(*[("x", "y")] * 1_001) is None
    assert refusal(("model", "x" * (1024 * 1024 + 1)), sound) == "model"


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"--x\r\n", form(("model", "whisper-1"))[:-20], form(("", "x")), b"\r\n" * 100, b"--" * 1000],
)
def test_a_broken_form_is_refused(body: bytes) -> None:
    with pytest.raises(RequestRefusedError):
        DIALECT.read_request(RouteRequest(TRANSCRIPTIONS, body, content_type=FORM_TYPE))


def heard(shape: TranscriptionShape, body: bytes) -> Reading:
    reader = BodyReader(shape)
    reader.feed(body)
    return reader.finish()


@pytest.mark.parametrize(
    ("body", "usage"),
    [
        (answers.transcription(used=answers.duration_usage(9)), {"audio_ms": 9_000}),
        (answers.transcription(used=answers.duration_usage(8.5)), {"audio_ms": 8_500}),
        (answers.verbose_transcription(seconds=8.47), {"audio_ms": 9_000}),
        (answers.verbose_translation(seconds=8.47), {"audio_ms": 9_000}),
        (answers.translation(), {}),
        (answers.transcription(used=answers.duration_usage(0)), {"audio_ms": 0}),
    ],
)
def test_answers_by_the_time(body: dict[str, Any], usage: dict[str, int]) -> None:
    reading = heard(TranscriptionShape(), json.dumps(body).encode())
    assert (reading.usage, reading.complete) == (usage, True)


def test_answers_by_the_token_keep_audio_apart_from_text() -> None:
    body = answers.transcription(used=answers.token_usage(text=10, audio=140, output=45))
    expected = {"input_tokens": 150, "audio_input_tokens": 140, "output_tokens": 45}
    assert heard(TranscriptionShape(by_time=False), json.dumps(body).encode()).usage == expected


def test_subtitles_report_nothing() -> None:
    text = b"1\n00:00:00,000 --> 00:00:02,500\nHello there.\n"
    assert heard(TranscriptionShape(), text) == Reading({}, len(text), complete=True)


def test_a_streamed_transcription() -> None:
    events = answers.transcription_events(used=answers.token_usage(audio=14, output=45))
    reader = StreamReader(TranscriptionShape(by_time=False))
    for event in events:
        reader.feed(event)
    reading = reader.finish()[2]
    assert reading.usage == {"input_tokens": 14, "audio_input_tokens": 14, "output_tokens": 45}
    assert reading.complete
    cut = StreamReader(TranscriptionShape(by_time=False))
    cut.feed(events[0])
    assert cut.finish()[2] == Reading({}, len("Hello"), complete=False)
