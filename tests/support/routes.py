"""Every route of every dialect with a good request for it, and a catalog in which every such request has a price."""

import asyncio
import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from services.core.catalog import catalog_version
from services.core.components import COMPONENTS
from services.core.snapshot import Connection
from services.core.vendor_port import VendorRequest
from services.gateway.vendors import Dialect, Route
from services.gateway.vendors.registry import DIALECTS, all_routes
from tests.support.audio import wave
from tests.support.forms import FORM_TYPE, form
from tests.support.gateway import ScriptedAnswer, World
from tests.support.vendors.openai.media import PIXEL

MODEL: Final = "m-1"
# Audio and images are read by the rules of their models, so a request names one that has such rules.
_OWN_MODELS: Final = {
    "audio.speech": "tts-1",
    "audio.transcriptions": "whisper-1",
    "audio.translations": "whisper-1",
    "images.generations": "gpt-image-1",
    "images.edits": "gpt-image-1",
    "images.variations": "dall-e-2",
    "embedContent": "gemini-embedding-001",
    "batchEmbedContents": "gemini-embedding-001",
}
MODELS: Final = (MODEL, f"tunedModels/{MODEL}", "other", *sorted(set(_OWN_MODELS.values())))
_MESSAGES: Final = [{"role": "user", "content": "How much is a farthing?"}]
_CONTENTS: Final = [{"role": "user", "parts": [{"text": "How much is a farthing?"}]}]
_BATCH: Final = {"input_file_id": "file-1", "endpoint": "/v1/chat/completions", "completion_window": "24h"}
_LINE: Final = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions"}
_MESSAGE: Final = {"model": MODEL, "max_tokens": 100, "messages": _MESSAGES}


# What may stand in a path where an id belongs, and be left out, decoded once more or trimmed by a server behind.
NO_IDS: Final = (
    *(";x", "%3Bx", "%253Bx", "a;x", "%2F", "%252F", "%252f", "a%2F", "%2Fa", "%5C", "%255C", "a%5Cb", "a%2F%2Fb"),
    *("%0A", "%0D%0A", "%09", "%20", "+", "a%0A", "a%20b", "%00", "a%00", "%7F", "%C2%A0", "%C2%85", "%E2%80%8B"),
    *("%252e", "%252E%252E", "a%2F%252e%252e", "...", "a.", ".a", "%3Fx", "a%3Fx", "%23", "a%23b", "%25", "%2525"),
    *("%7Bid%7D", "gr%C3%B6%C3%9Fe", "%EF%BC%8F", "=", "-", "%2B", "'a'", "(a)", "a*", "a!", "$a", "a&b", "%FF"),
)


@dataclass(frozen=True, slots=True)
class Sample:
    """A request for a route: its own path, its body and what that is."""

    path: str
    body: bytes
    content_type: str = "application/json"


_JSON: Final[Mapping[str, dict[str, Any]]] = {
    "chat.completions": _MESSAGE,
    "responses": {"model": MODEL, "input": "Hello", "max_output_tokens": 100},
    "responses.compact": {"model": MODEL, "input": "Hello"},
    "completions": {"model": MODEL, "prompt": "Hello", "max_tokens": 100},
    "embeddings": {"model": MODEL, "input": "Hello"},
    "images.generations": {"model": "gpt-image-1", "prompt": "a coin", "size": "1024x1024", "quality": "low"},
    "audio.speech": {"model": "tts-1", "input": "Hello there.", "voice": "alloy"},
    "batches": _BATCH,
    "messages": _MESSAGE,
    "messages.batches": {"requests": [{"custom_id": "1", "params": _MESSAGE}]},
    "generateContent": {"contents": _CONTENTS, "generationConfig": {"maxOutputTokens": 100}},
    "streamGenerateContent": {"contents": _CONTENTS, "generationConfig": {"maxOutputTokens": 100}},
    "embedContent": {"content": {"parts": [{"text": "Hello"}]}},
    "batchEmbedContents": {
        "requests": [{"model": "models/gemini-embedding-001", "content": {"parts": [{"text": "Hello"}]}}]
    },
    "fim.completions": {"model": MODEL, "prompt": "def f(", "max_tokens": 100},
    "ocr": {
        "model": MODEL,
        "pages": [0],
        "document": {"type": "image_url", "image_url": "data:image/png;base64," + PIXEL},
    },
    "moderations": {"model": MODEL, "input": "Hello"},
    "chat.moderations": {"model": MODEL, "input": _MESSAGES},
    "classifications": {"model": MODEL, "input": "Hello"},
    "chat.classifications": {"model": MODEL, "input": {"messages": _MESSAGES}},
    "chat": _MESSAGE,
    "chat.v1": {"model": MODEL, "message": "Hello", "max_tokens": 100},
    "embed": {"model": MODEL, "texts": ["Hello"], "input_type": "search_query", "embedding_types": ["float"]},
    "embed.v1": {"model": MODEL, "texts": ["Hello"], "input_type": "search_query"},
    "rerank": {"model": MODEL, "query": "coin", "documents": ["farthing", "penny"]},
    "rerank.v1": {"model": MODEL, "query": "coin", "documents": ["farthing", "penny"]},
}
# The route that most calls to each vendor take: its path and a good body.
GOOD: Final[Mapping[str, tuple[str, bytes]]] = {
    "openai": ("/openai/v1/chat/completions", orjson.dumps(_MESSAGE)),
    "azure": ("/azure/openai/v1/chat/completions", orjson.dumps(_MESSAGE)),
    "anthropic": ("/v1/messages", orjson.dumps(_MESSAGE)),
    "google": (f"/v1beta/models/{MODEL}:generateContent", orjson.dumps(_JSON["generateContent"])),
    "mistral": ("/mistral/v1/chat/completions", orjson.dumps(_MESSAGE)),
    "cohere": ("/v2/chat", orjson.dumps(_MESSAGE)),
}
_PIXEL_BYTES: Final = base64.b64decode(PIXEL)
_FORMS: Final[Mapping[str, Callable[[], bytes]]] = {
    "images.edits": lambda: form(
        ("model", "gpt-image-1"),
        ("prompt", "a coin"),
        ("size", "1024x1024"),
        ("quality", "low"),
        ("image", _PIXEL_BYTES),
    ),
    "images.variations": lambda: form(("model", "dall-e-2"), ("size", "256x256"), ("image", _PIXEL_BYTES)),
    "audio.transcriptions": lambda: form(("model", "whisper-1"), ("file", wave(1))),
    "audio.translations": lambda: form(("model", "whisper-1"), ("file", wave(1))),
}


def sample(route: Route) -> Sample:
    """A good request for a held or submitted route; any request at all for a free one."""
    model = _OWN_MODELS.get(route.name, MODEL)
    path = route.path.replace("{model}", model).replace("{id}", "id-1")
    if route.billing not in ("held", "submitted"):
        return Sample(path, b"" if route.method == "GET" else b"{}")
    if route.name in _FORMS:
        return Sample(path, _FORMS[route.name](), FORM_TYPE)
    return Sample(path, orjson.dumps(_JSON[route.name]))


def routes_with_ids(*billings: str) -> tuple[list[tuple[Dialect, Route]], list[str]]:
    """The routes of those billings, and what to call each in a test."""
    found = [(dialect, route) for dialect, route in all_routes() if route.billing in billings]
    return found, [f"{dialect.name}-{route.method}-{route.path}" for dialect, route in found]


def full_catalog(nano_per_unit: int = 1_000_000) -> tuple[str, bytes]:
    """A catalog in which each of `MODELS` has a price for everything at every dialect's vendor: version and bytes."""
    amount = f"{nano_per_unit // 10**9}.{nano_per_unit % 10**9:09d}"
    prices = [{"usd": dict.fromkeys(COMPONENTS, amount)}]
    variants = [
        {"when": {"processing": "batch"}, "usd": dict.fromkeys(COMPONENTS, amount)},
    ]
    models = [
        {
            "vendor": vendor,
            "model": model,
            "prices": prices,
            "variants": variants,
            "max_output_tokens": 1_000,
            "context_window": 100_000,
        }
        for vendor in DIALECTS
        for model in MODELS
    ]
    document: dict[str, Any] = {"format": 2, "models": models}
    document["version"] = catalog_version(document)
    return document["version"], json.dumps(document).encode()


@dataclass
class WatchingVendor:
    """`vendor_port.VendorTransport` that answers anything, and notes of each request what was held and on record."""

    there: Callable[[], World]
    seen: list[tuple[VendorRequest, int, int]] = field(default_factory=list)

    async def send(self, request: VendorRequest) -> ScriptedAnswer:
        """An input file's lines where one is asked for, else an answer that says nothing."""
        await asyncio.sleep(0)
        world = self.there()
        self.seen.append((request, world.held_nano(), len(world.events())))
        if request.method == "GET" and request.url.split("?")[0].endswith("/files/file-1/content"):
            return ScriptedAnswer([orjson.dumps({**_LINE, "body": _MESSAGE}) + b"\n"])
        return ScriptedAnswer([b'{"id":"id-1"}'])

    async def close(self) -> None:
        pass


async def connect_all(there: World) -> None:
    """Publishes the full catalog and a connection to every dialect's vendor."""
    version, catalog = full_catalog()
    await there.directory.publish_catalog(version, catalog)
    connections = {
        name: Connection(name, name, base_of(dialect), f"sealed:sk-{name}", name) for name, dialect in DIALECTS.items()
    }
    await there.org.publish(catalog_version=version, connections=connections)
    await there.sync()


def base_of(dialect: Dialect) -> str:
    """The base URL of a dialect's vendor as `connect_all` makes it."""
    return f"https://{dialect.name}.test" + ("/v1" if dialect.base_has_version else "")
