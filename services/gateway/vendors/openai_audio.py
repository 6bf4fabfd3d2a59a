"""OpenAI's audio routes: speech, transcriptions and translations, and what they can cost."""

import re
from typing import Final

from services.core.estimate import Demand
from services.core.usage.openai_audio import (
    COMPRESSED_BYTES_PER_TOKEN,
    PCM_BYTES_PER_TOKEN,
    SpeechShape,
    TranscriptionShape,
    whole_seconds_ms,
)
from services.gateway.vendors import RequestFacts, RouteRequest
from services.gateway.vendors.audio_lengths import AudioLength, audio_length
from services.gateway.vendors.fields import TEMPLATE_TOKENS, Fields, invalid, model_name, read_object
from services.gateway.vendors.forms import form_flag, read_form

SPEECH_DECIDED: Final = frozenset({"model", "input", "instructions", "response_format", "stream_format"})
_HEARD_DECIDED: Final = frozenset({"model", "file", "prompt", "stream", "response_format", "chunking_strategy"})

# These are charged by the token; any other model that speaks by the character, any other that hears by the time.
_SPEAKS_BY_TOKEN: Final = re.compile(r"gpt-[\w.]+(?:-mini)?-tts")
_HEARS_BY_TOKEN: Final = re.compile(r"gpt-4o(?:-mini)?-transcribe")

# Speech counts 20 tokens a second. Two seconds for every character, and a minute more, are beyond the slowest reading
# aloud (a quarter of the usual fifteen characters a second) with the longest pauses that instructions bring about.
_TOKENS_PER_CHARACTER: Final = 40
_SPEECH_SLACK_TOKENS: Final = 1_200

# Audio counts 10 tokens a second as input (OpenAI, "Managing costs": one for each 100 ms); twice that, to be sure.
_MS_PER_TOKEN: Final = 50
# Audio that is cut into chunks is written down one by one, each up to the model's maximum; they are longer than this.
_SHORTEST_CHUNK_MS: Final = 10_000

_BY_TIME_SHAPE: Final = TranscriptionShape()
_BY_TOKEN_SHAPE: Final = TranscriptionShape(by_time=False)
_BY_CHARACTER_SHAPE: Final = SpeechShape(by_character=True)
_COMPRESSED_SHAPE: Final = SpeechShape(bytes_per_token=COMPRESSED_BYTES_PER_TOKEN)
_PCM_SHAPE: Final = SpeechShape(bytes_per_token=PCM_BYTES_PER_TOKEN)


def read_speech(request: RouteRequest) -> RequestFacts:
    """The facts of a request for speech; raises `RequestRefusedError` naming the field."""
    fields = read_object(request.body, SPEECH_DECIDED)
    return speech_facts(request.body, fields, model_name(fields.get("model")))


def speech_facts(body: bytes, fields: Fields, model: str) -> RequestFacts:
    """The facts of a request for speech by a model, which Azure names in the path."""
    text = fields.get("input")
    if not isinstance(text, str):
        raise invalid("input", "input must be the text to speak")
    stream = fields.get("stream_format") == "sse"
    if _SPEAKS_BY_TOKEN.match(model) is None:
        characters = {"characters": len(text)}
        return RequestFacts(
            model=model,
            stream=stream,
            demand=Demand(0, 0, counts=characters),
            shape=_BY_CHARACTER_SHAPE,
            body=body,
            counted=characters,
        )
    return RequestFacts(
        model=model,
        stream=stream,
        demand=Demand(
            input_tokens=len(body) + TEMPLATE_TOKENS,
            output_tokens_limit=len(text) * _TOKENS_PER_CHARACTER + _SPEECH_SLACK_TOKENS,
            parts=frozenset({"audio_output"}),
        ),
        shape=_PCM_SHAPE if fields.get("response_format") in ("pcm", "wav") else _COMPRESSED_SHAPE,
        body=body,
    )


def read_transcription(request: RouteRequest) -> RequestFacts:
    """The facts of a transcription or translation; raises `RequestRefusedError` naming the field."""
    return transcription_facts(request, None)


def transcription_facts(request: RouteRequest, model: str | None) -> RequestFacts:
    """The facts of a transcription or translation by a model, which Azure names in the path."""
    form = read_form(request.body, request.content_type, _HEARD_DECIDED)
    model = model or model_name(form.texts.get("model"))
    files = form.files.get("file", [])
    if len(files) != 1:
        raise invalid("file", f"the form must have one file in 'file', and has {len(files)}")
    length = audio_length(files[0])
    stream = form_flag(form.texts, "stream")
    if _HEARS_BY_TOKEN.match(model) is None:
        return _by_time(request.body, model, length, stream)
    # Whatever is no audio is text; speakers' samples come as text, too, and bound themselves by their bytes.
    text_bytes = len(request.body) - len(files[0])
    chunks = 1
    if any(name.startswith("chunking_strategy") and value for name, value in form.texts.items()):
        chunks += length.most_ms // _SHORTEST_CHUNK_MS
    return RequestFacts(
        model=model,
        stream=stream,
        demand=Demand(
            input_tokens=-(-length.most_ms // _MS_PER_TOKEN) + text_bytes * chunks + TEMPLATE_TOKENS * chunks,
            output_tokens_limit=None,
            choices=chunks,
            parts=frozenset({"audio_input"}),
            limit_param="model",
        ),
        shape=_BY_TOKEN_SHAPE,
        body=request.body,
    )


def _by_time(body: bytes, model: str, length: AudioLength, stream: bool) -> RequestFacts:
    counted = {} if length.exact_ms is None else {"audio_ms": whole_seconds_ms(length.exact_ms)}
    return RequestFacts(
        model=model,
        stream=stream,
        demand=Demand(0, 0, counts={"audio_ms": whole_seconds_ms(length.most_ms)}),
        shape=_BY_TIME_SHAPE,
        body=body,
        # Stands in for what text, SRT and VTT answers do not report.
        counted=counted,
    )
