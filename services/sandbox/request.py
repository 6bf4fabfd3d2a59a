"""What a request asks of the sandbox."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

MODELS: Final[Mapping[str, int]] = {"sandbox-small": 4_096, "sandbox-large": 16_384}
"""Each model and the most output tokens it writes. The price catalog says the same."""

DEFAULT_OUTPUT_TOKENS: Final = 24
MAX_CHOICES: Final = 128
FAULTS: Final = ("error_500", "hang_up", "no_usage")

# The highest value of each numeric control.
_CONTROLS: Final = {
    "output_tokens": 1_000_000,
    "delay_ms": 600_000,
    "chunk_delay_ms": 60_000,
    "fault_after_chunks": 1_000_000,
}
_BYTES_PER_TOKEN: Final = 4
_TOKENS_PER_MESSAGE: Final = 3


class BadRequestError(ValueError):
    """The request makes no sense; `param` names the field."""

    def __init__(self, param: str | None, message: str) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A request as the sandbox will answer it. `output_tokens` is for each choice, limits applied."""

    model: str
    stream: bool
    include_usage: bool
    choices: int
    input_tokens: int
    output_tokens: int
    finish_reason: str
    delay_s: float
    chunk_delay_s: float
    fault: str | None
    fault_after_chunks: int


def read_request(body: bytes) -> ChatRequest:
    """The request of a JSON body; raises `BadRequestError`."""
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequestError(None, f"the request body is not JSON in UTF-8: {error}") from error
    if not isinstance(fields, dict):
        raise BadRequestError(None, "the request body must be a JSON object")
    model = fields.get("model")
    if not isinstance(model, str) or model not in MODELS:
        raise BadRequestError("model", f"the sandbox has no such model; use one of {', '.join(MODELS)}")
    controls = _controls(fields)
    wanted = controls.get("output_tokens", DEFAULT_OUTPUT_TOKENS)
    most = _output_limit(fields, MODELS[model])
    fault = controls.get("fault")
    return ChatRequest(
        model=model,
        stream=_flag(fields, "stream"),
        include_usage=_includes_usage(fields),
        choices=_whole(fields, "n", "n", 1, MAX_CHOICES) or 1,
        input_tokens=_input_tokens(fields),
        output_tokens=min(wanted, most),
        finish_reason="length" if wanted > most else "stop",
        delay_s=controls.get("delay_ms", 0) / 1000,
        chunk_delay_s=controls.get("chunk_delay_ms", 0) / 1000,
        fault=fault,
        fault_after_chunks=controls.get("fault_after_chunks", 1),
    )


def _controls(fields: Mapping[str, Any]) -> dict[str, Any]:
    controls = fields.get("sandbox")
    if controls is None:
        return {}
    if not isinstance(controls, dict):
        raise BadRequestError("sandbox", "sandbox must be an object")
    known = (*_CONTROLS, "fault")
    for name in controls:
        if name not in known:
            raise BadRequestError(f"sandbox.{name[:40]}", f"no such control; use {', '.join(known)}")
    numbers = {name: _whole(controls, name, f"sandbox.{name}", 0, most) for name, most in _CONTROLS.items()}
    fault = controls.get("fault")
    if fault is not None and fault not in FAULTS:
        raise BadRequestError("sandbox.fault", f"no such fault; use one of {', '.join(FAULTS)}")
    return {name: value for name, value in {**numbers, "fault": fault}.items() if value is not None}


def _output_limit(fields: Mapping[str, Any], model_most: int) -> int:
    limits = [_whole(fields, name, name, 1, model_most) for name in ("max_completion_tokens", "max_tokens")]
    return next((limit for limit in limits if limit is not None), model_most)


def _includes_usage(fields: Mapping[str, Any]) -> bool:
    options = fields.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict):
        raise BadRequestError("stream_options", "stream_options must be an object")
    return _flag(options, "include_usage")


def _flag(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise BadRequestError(name, f"{name} must be true or false")
    return bool(value)


def _whole(fields: Mapping[str, Any], name: str, param: str, least: int, most: int) -> int | None:
    value = fields.get(name)
    if value is None:
        return None
    if type(value) is not int or not least <= value <= most:
        raise BadRequestError(param, f"{param} must be a whole number from {least} to {most}")
    return value


def _input_tokens(fields: Mapping[str, Any]) -> int:
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequestError("messages", "messages must be a list of at least one message")
    tokens = 0
    for message in messages:
        if not isinstance(message, dict):
            raise BadRequestError("messages", "each of messages must be an object")
        tokens += _TOKENS_PER_MESSAGE + -(-_text_bytes(message.get("content")) // _BYTES_PER_TOKEN)
    return tokens


def _text_bytes(content: object) -> int:
    if isinstance(content, str):
        return len(content.encode())
    if isinstance(content, list):
        return sum(_text_bytes(part.get("text")) for part in content if isinstance(part, dict))
    if content is not None:
        raise BadRequestError("messages", "the content of a message must be text or a list of parts")
    return 0
