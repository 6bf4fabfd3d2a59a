"""OpenAI's images and audio: answers and event streams, with usage in tokens or in seconds."""

from collections.abc import Sequence
from typing import Any

from tests.support.vendors.framing import data_events, named_events
from tests.support.vendors.openai.chat import CREATED

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
SPEECH_BYTES = b"ID3\x04\x00\x00\x00\x00\x00\x00" + bytes(range(256))
WORDS = ("Hello", " there", ".")


def image_usage(text: int = 10, image: int = 0, output: int = 272, details: bool = True) -> dict[str, Any]:
    """A usage object: the input is the sum of `text` and `image` tokens; the output is image tokens.

    `details`: with the split of the output, which streams do not have.
    """
    answer: dict[str, Any] = {
        "input_tokens": text + image,
        "input_tokens_details": {"text_tokens": text, "image_tokens": image},
        "output_tokens": output,
        "total_tokens": text + image + output,
    }
    return {**answer, "output_tokens_details": {"image_tokens": output, "text_tokens": 0}} if details else answer


def images(
    count: int = 1,
    used: dict[str, Any] | None = None,
    *,
    links: bool = False,
    size: str = "1024x1024",
    quality: str = "low",
    report: bool = True,
) -> dict[str, Any]:
    """A JSON answer of generations or edits: `used` None means `image_usage()`.

    Without `report` it is as the DALL·E models answer: no usage, size or quality; with `links`, links for the data.
    """
    one = {"url": "https://example.com/image.png"} if links else {"b64_json": PIXEL}
    answer: dict[str, Any] = {"created": CREATED, "data": [one] * count}
    if not report:
        return answer
    shape = {"background": "opaque", "output_format": "png", "size": size, "quality": quality}
    return {**answer, **shape, "usage": image_usage() if used is None else used}


def image_events(
    used: dict[str, Any] | None = None,
    kind: str = "image_generation",
    partials: int = 1,
    size: str = "1024x1024",
    quality: str = "low",
) -> list[bytes]:
    """A stream of partial images and the whole one; `kind` is ``image_generation`` or ``image_edit``."""
    shape: dict[str, Any] = {
        "b64_json": PIXEL,
        "created_at": CREATED,
        "size": size,
        "quality": quality,
        "background": "opaque",
        "output_format": "png",
    }
    steps: list[dict[str, Any]] = [
        {"type": f"{kind}.partial_image", **shape, "partial_image_index": index} for index in range(partials)
    ]
    last = {"type": f"{kind}.completed", **shape, "usage": image_usage(details=False) if used is None else used}
    return named_events([*steps, last])


def token_usage(text: int = 0, audio: int = 14, output: int = 45) -> dict[str, Any]:
    """The usage of a transcription billed by tokens: the input is the sum of `text` and `audio`."""
    return {
        "type": "tokens",
        "input_tokens": text + audio,
        "input_token_details": {"text_tokens": text, "audio_tokens": audio},
        "output_tokens": output,
        "total_tokens": text + audio + output,
    }


def duration_usage(seconds: float = 3) -> dict[str, Any]:
    """The usage of a transcription billed by time."""
    return {"type": "duration", "seconds": seconds}


def transcription(text: str = "Hello there.", used: dict[str, Any] | None = None) -> dict[str, Any]:
    """A JSON transcription. `used` None: `token_usage()`; an empty dict leaves usage out."""
    report = token_usage() if used is None else used
    return {"text": text, "usage": report} if report else {"text": text}


def verbose_transcription(
    text: str = "Hello there.", seconds: float = 2.5, used: dict[str, Any] | None = None
) -> dict[str, Any]:
    """A verbose transcription: with its duration. `used` None: the duration rounded up to whole seconds."""
    segment = {
        "id": 0,
        "seek": 0,
        "start": 0.0,
        "end": seconds,
        "text": text,
        "tokens": [50364, 2425],
        "temperature": 0.0,
        "avg_logprob": -0.28,
        "compression_ratio": 1.2,
        "no_speech_prob": 0.01,
    }
    report = duration_usage(-(-seconds // 1)) if used is None else used
    return {"language": "english", "duration": seconds, "text": text, "segments": [segment], "usage": report}


def diarized_transcription(text: str = "Hello there.", used: dict[str, Any] | None = None) -> dict[str, Any]:
    """A transcription by speaker."""
    segment = {
        "type": "transcript.text.segment",
        "id": "seg_001",
        "start": 0.0,
        "end": 2.5,
        "text": text,
        "speaker": "A",
    }
    report = token_usage() if used is None else used
    return {"task": "transcribe", "duration": 2.5, "text": text, "segments": [segment], "usage": report}


def transcription_events(words: Sequence[str] = WORDS, used: dict[str, Any] | None = None) -> list[bytes]:
    """A streamed transcription: data only; usage is in the last event. `used` None: `token_usage()`."""
    steps: list[dict[str, Any]] = [{"type": "transcript.text.delta", "delta": word} for word in words]
    done = {"type": "transcript.text.done", "text": "".join(words), "usage": token_usage() if used is None else used}
    return data_events([*steps, done], done=False)


def translation(text: str = "Hello there.") -> dict[str, Any]:
    """A JSON translation: it reports no usage at all."""
    return {"text": text}


def verbose_translation(text: str = "Hello there.", seconds: float = 2.5) -> dict[str, Any]:
    """A verbose translation: no usage, but the duration it is billed by."""
    whole = verbose_transcription(text, seconds)
    return {name: whole[name] for name in ("language", "duration", "text", "segments")}


def speech_usage(input_tokens: int = 14, output_tokens: int = 101) -> dict[str, Any]:
    """The usage of streamed speech: text tokens in, audio tokens out."""
    return {
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "total_tokens": input_tokens + output_tokens,
    }


def speech_events(pieces: int = 3, used: dict[str, Any] | None = None) -> list[bytes]:
    """Streamed speech (``stream_format: sse``). Unstreamed speech is bytes and reports no usage: `SPEECH_BYTES`."""
    steps: list[dict[str, Any]] = [{"type": "speech.audio.delta", "audio": "SUQzBAAA"} for _ in range(pieces)]
    done = {"type": "speech.audio.done", "usage": speech_usage() if used is None else used}
    return data_events([*steps, done], done=False)
