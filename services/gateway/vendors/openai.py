"""OpenAI's dialect: chat completions, of OpenAI itself and of every server that is compatible with it.

A request is read once, and refused when its cost could escape the bound: a key that two parsers could read differently,
a feature that costs what no token price covers, content that the vendor fetches and the gateway can't see.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import orjson

from services.gateway.vendors import Meter, RequestFacts, RequestRefusedError
from services.gateway.vendors.openai_meter import meter_for

CHAT: Final = "chat.completions"

# What one image can count as input at most: gpt-4o-mini's 2,833 tokens plus 5,667 for each of up to 8 tiles (OpenAI,
# "Images and vision"); patch-based models stay far below.
MAX_IMAGE_TOKENS: Final = 48_169

# Tokens are at least one byte long, and the JSON around each message outweighs what a chat template puts there. This
# is for what templates add of their own accord, whatever the request says (default system prompts, channel rules).
TEMPLATE_TOKENS: Final = 256

MAX_CHOICES: Final = 128
MAX_OUTPUT_TOKENS: Final = 2**31 - 1
MAX_MODEL_LENGTH: Final = 256

# Far beyond what any model takes; they keep the time and memory that one body can cost in proportion.
MAX_FIELDS: Final = 1_000
MAX_MESSAGES: Final = 20_000
MAX_PARTS: Final = 20_000
MAX_TOOLS: Final = 1_000
MAX_VALUES: Final = 2_000_000

# Fields that bring charges or content which nothing here can bound or price yet, and what to say of them.
_UNPRICED: Final = {
    "web_search_options": "web search is charged by the search, which is not priced yet; leave web_search_options out",
    "prediction": "predicted outputs are charged beyond max_tokens, which is not priced yet; leave prediction out",
    "models": "a list of fallback models can't be priced; name one model in 'model' and leave models out",
    "plugins": "plugins are charged apart from tokens, which is not priced yet; leave plugins out",
    "best_of": "best_of generates more than it returns, which is not priced yet; leave best_of out, or use n",
}
_DECIDED: Final = frozenset(
    {
        "model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "n",
        "service_tier", "modalities", "audio", "tools", *_UNPRICED,
    }
)  # fmt: skip
_QUOTED: Final = {name: b'"%s"' % name.encode() for name in _DECIDED}
_TEXT_PARTS: Final = ("text", "refusal")
_FREE_TOOLS: Final = ("function", "custom")

_SPACE: Final = re.compile(r"[ \t\n\r]*")
# Skips a value at the speed of C. Numbers stay text: their conversion costs more than they are long, or is refused.
_SKIM: Final = json.JSONDecoder(parse_int=str, parse_float=str)
# From this size on, skimming the body once is quicker than counting each name in it.
_SKIM_BYTES: Final = 64 * 1024
# A letter or underscore of a key, written as an escape.
_ESCAPED_LETTER: Final = re.compile(rb"\\u00[4-7]")

_ERROR_TYPES: Final = {
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    429: "rate_limit_error",
}

Fields = dict[str, Any]


class OpenAIDialect:
    """OpenAI's protocol, behind `vendors.Dialect`."""

    name = "openai"

    def read_request(self, route: str, body: bytes) -> RequestFacts:
        """The facts of a request on `route` (``chat.completions``); raises `RequestRefusedError` naming the field."""
        if route != CHAT:
            raise RequestRefusedError("unpriced_feature", None, f"calls of {route} can't be priced yet")
        _refuse_too_many_values(body)
        try:
            fields = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise _invalid(None, f"the request body is not JSON in UTF-8: {error}") from error
        if not isinstance(fields, dict):
            raise _invalid(None, "the request body must be a JSON object")
        if len(fields) > MAX_FIELDS:
            raise _too_many_fields()
        _refuse_ambiguous_keys(body, fields)
        _refuse_unpriced(fields)
        model = fields.get("model")
        if not isinstance(model, str) or not 0 < len(model) <= MAX_MODEL_LENGTH or not model.isprintable():
            raise _invalid("model", f"model must be a name of 1 to {MAX_MODEL_LENGTH} printable characters")
        stream = fields.get("stream")
        if stream is not None and not isinstance(stream, bool):
            raise _invalid("stream", "stream must be true or false")
        images, components = _read_content(fields)
        choices = _whole(fields, "n", MAX_CHOICES) or 1
        limits = (
            _whole(fields, "max_tokens", MAX_OUTPUT_TOKENS),
            _whole(fields, "max_completion_tokens", MAX_OUTPUT_TOKENS),
        )
        hide = bool(stream) and not _asks_for_usage(fields)
        return RequestFacts(
            model=model,
            stream=bool(stream),
            input_tokens_bound=len(body) + images * MAX_IMAGE_TOKENS + TEMPLATE_TOKENS,
            # Which of the two a server heeds is its own affair, so the larger one is the bound.
            output_tokens_limit=max(limits[0] or 0, limits[1] or 0) or None,
            choices=choices,
            body=_with_usage(body, fields) if hide else body,
            hide_usage_chunk=hide,
            components=components,
        )

    def meter(self, facts: RequestFacts, status: int, headers: Mapping[bytes, bytes]) -> Meter:
        """A meter for a response with this head."""
        return meter_for(facts, status, headers)

    def credential_headers(self, vendor_key: str | None) -> tuple[tuple[bytes, bytes], ...]:
        """The key as a bearer token; nothing without a key."""
        return () if vendor_key is None else ((b"authorization", b"Bearer " + vendor_key.encode()),)

    def error_body(
        self, status: int, code: str, message: str, param: str | None, fields: Mapping[str, object]
    ) -> bytes:
        """``{"error": {"message", "type", "param", "code", …fields}}``."""
        kind = _ERROR_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
        envelope = {"message": message, "type": kind, "param": param, "code": code}
        return orjson.dumps({"error": {**envelope, **fields, **envelope}})

    def stream_error(self, code: str, message: str, fields: Mapping[str, object]) -> bytes:
        """An event with the error; OpenAI's clients raise it. Blank lines first end whatever event was under way."""
        return b"\n\ndata: " + self.error_body(500, code, message, None, fields) + b"\n\n"


def _invalid(param: str | None, message: str) -> RequestRefusedError:
    return RequestRefusedError("invalid_request", param, message)


def _unpriced(param: str, message: str) -> RequestRefusedError:
    return RequestRefusedError("unpriced_feature", param, message)


def _whole(fields: Fields, name: str, most: int) -> int | None:
    value = fields.get(name)
    if value is None:
        return None
    if type(value) is not int or not 1 <= value <= most:
        raise _invalid(name, f"{name} must be a whole number from 1 to {most}")
    return value


# ---- keys that two parsers could read differently -------------------------------------------------------------------


def _refuse_ambiguous_keys(body: bytes, fields: Fields) -> None:
    """Refuses a field we decide by that is there twice, or once more in other letters.

    Parsers differ in which of two equal keys they take, and some ignore case: the vendor might run another model, or
    with another limit, than the one that was priced.
    """
    for key in fields:
        folded = key.casefold()
        if folded != key and folded in _DECIDED:
            raise _invalid(folded, f"the field {key[:40]!r} could be taken for {folded!r}; use {folded!r} only")
    names = fields.keys() & _DECIDED
    if (
        len(body) < _SKIM_BYTES
        and all(body.count(_QUOTED[name]) == 1 for name in names)
        and _ESCAPED_LETTER.search(body) is None
    ):
        return  # Each is spelled out once in the whole body, so it can't be there twice. The usual case, and cheap.
    seen = set()
    for key, _ in _members(body, body.index(b"{")):
        if key in names and key in seen:
            raise _invalid(key, f"the field {key!r} is there more than once; keep one")
        seen.add(key)


def _refuse_too_many_values(body: bytes) -> None:
    """Refuses what would take seconds and hundreds of megabytes to parse, before it is parsed."""
    # Every value has a comma before it or opens an object or list, so there are no more of them than of these.
    if len(body) > MAX_VALUES and sum(map(body.count, (b",", b"{", b"["))) > MAX_VALUES:
        message = f"the request body has more than {MAX_VALUES} commas and opening brackets; send less in one request"
        raise _invalid(None, message)


def _too_many_fields() -> RequestRefusedError:
    return _invalid(None, f"an object of the request has more than {MAX_FIELDS} fields; send fewer")


def _members(body: bytes, opening: int) -> Iterator[tuple[str, int]]:
    """Each key of the object that opens at `opening`, in order, and where its value starts. `body` is valid JSON.

    Only ASCII keys are read as they are. Raises `RequestRefusedError` for more than `MAX_FIELDS` members.
    """
    # One character a byte: what is found in the text is there in the body too.
    text = body.decode("latin-1")
    at = _past_space(text, opening + 1)
    count = 0
    while text[at] != "}":
        count += 1
        if count > MAX_FIELDS:
            raise _too_many_fields()
        key, at = _SKIM.raw_decode(text, at)
        start = _past_space(text, _past_space(text, at) + 1)
        yield key, start
        try:
            _, at = _SKIM.raw_decode(text, start)
        except RecursionError as error:
            raise _invalid(None, "the request body is nested too deeply; nest it less") from error
        at = _past_space(text, at)
        if text[at] == ",":
            at = _past_space(text, at + 1)


def _past_space(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    assert space is not None, "it matches nothing, too"
    return space.end()


# ---- what can't be bounded or priced --------------------------------------------------------------------------------


def _refuse_unpriced(fields: Fields) -> None:
    for name in fields.keys() & _UNPRICED.keys():
        if fields[name] is not None:
            raise _unpriced(name, _UNPRICED[name])
    tier = fields.get("service_tier")
    if tier is not None and tier not in ("auto", "default"):
        raise _unpriced("service_tier", "only the standard service tier is priced; leave service_tier out")
    tools = fields.get("tools")
    if tools is None:
        return
    if not isinstance(tools, list):
        raise _invalid("tools", "tools must be a list")
    if len(tools) > MAX_TOOLS:
        raise _invalid("tools", f"tools has {len(tools)} entries; send at most {MAX_TOOLS}")
    for tool in tools:
        if not isinstance(tool, dict):
            raise _invalid("tools", "each of tools must be an object")
        if tool.get("type", "function") not in _FREE_TOOLS:
            raise _unpriced("tools", "tools that the vendor runs are not priced yet; use function or custom tools")


def _read_content(fields: Fields) -> tuple[int, tuple[str, ...]]:
    """How many images the messages have, and which priced components the call uses beyond text."""
    messages = fields.get("messages")
    if not isinstance(messages, list):
        raise _invalid("messages", "messages must be a list")
    if len(messages) > MAX_MESSAGES:
        raise _invalid("messages", f"messages has {len(messages)} entries; send at most {MAX_MESSAGES}")
    images = 0
    parts = 0
    hears = False
    for message in messages:
        if not isinstance(message, dict):
            raise _invalid("messages", "each of messages must be an object")
        if message.get("audio") is not None:
            raise _unpriced("messages", "the length of an earlier spoken answer can't be seen here; send its text")
        content = message.get("content")
        if isinstance(content, list):
            parts += len(content)
            if parts > MAX_PARTS:
                raise _invalid("messages", f"messages has more than {MAX_PARTS} content parts; send fewer")
            for part in content:
                image, audio = _read_part(part)
                images += image
                hears = hears or audio
        elif content is not None and not isinstance(content, str):
            raise _invalid("messages", "the content of a message must be text or a list of parts")
    speaks = _speaks(fields)
    return images, ("audio_input",) * hears + ("audio_output",) * speaks


def _read_part(part: object) -> tuple[bool, bool]:
    """Whether a content part is an image, and whether it is audio."""
    if isinstance(part, str):
        return False, False
    if not isinstance(part, dict):
        raise _invalid("messages", "each content part must be an object")
    kind = part.get("type")
    # What a part carries counts, whatever it says it is.
    if kind == "file" or "file" in part:
        raise _unpriced("messages", "the length of a file can't be seen here, so it can't be priced; send its text")
    image = kind == "image_url" or "image_url" in part
    audio = kind == "input_audio" or "input_audio" in part
    if not image and not audio and kind not in _TEXT_PARTS:
        raise _unpriced("messages", f"content parts of type {str(kind)[:40]!r} are not priced yet")
    return image, audio


def _speaks(fields: Fields) -> bool:
    modalities = fields.get("modalities")
    if modalities is None:
        return fields.get("audio") is not None
    if not isinstance(modalities, list) or not all(isinstance(each, str) for each in modalities):
        raise _invalid("modalities", "modalities must be a list of names")
    if not set(modalities) <= {"text", "audio"}:
        raise _unpriced("modalities", "only text and audio output are priced")
    return "audio" in modalities or fields.get("audio") is not None


# ---- asking for usage (GW-6) ----------------------------------------------------------------------------------------


def _asks_for_usage(fields: Fields) -> bool:
    options = fields.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict):
        raise _invalid("stream_options", "stream_options must be an object")
    include = options.get("include_usage")
    if include is not None and not isinstance(include, bool):
        raise _invalid("stream_options.include_usage", "stream_options.include_usage must be true or false")
    return bool(include)


def _with_usage(body: bytes, fields: Fields) -> bytes:
    """The body with ``stream_options.include_usage`` set, every other byte as it was."""
    opening = body.index(b"{")
    if "stream_options" not in fields:
        return _spliced(body, opening + 1, 0, b'"stream_options":{"include_usage":true},')
    options = fields["stream_options"]
    at = dict(_members(body, opening))["stream_options"]
    if options is None:
        return _spliced(body, at, len(b"null"), b'{"include_usage":true}')
    inner = list(_members(body, at))
    spots = [start for key, start in inner if key == "include_usage"]
    if len(spots) > 1:
        raise _invalid("stream_options", "the field 'include_usage' is there more than once; keep one")
    if spots:
        old = b"null" if options["include_usage"] is None else b"false"
        return _spliced(body, spots[0], len(old), b"true")
    return _spliced(body, at + 1, 0, b'"include_usage":true,' if inner else b'"include_usage":true')


def _spliced(body: bytes, at: int, length: int, new: bytes) -> bytes:
    return body[:at] + new + body[at + length :]
