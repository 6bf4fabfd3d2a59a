"""What OpenAI's routes have in common in a request: content parts and what they can count as, tiers, caching."""

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any, Final

from services.core.pricing import NO_CONTEXT, Context
from services.gateway.vendors.audio_lengths import audio_length
from services.gateway.vendors.fields import TEMPLATE_TOKENS, Fields, invalid, unpriced

# What one image can count as input at most. Tiles: gpt-4o-mini's 2,833 tokens and 5,667 for each of up to 8 tiles; the
# other models with tiles have at most 85 + 8 * 170 = 1,445. Patches: 1,536 of them at 2.46 = 3,779 (gpt-4.1-nano), and
# 10,000 in original detail of later models, which is below the first figure whatever the multiplier so far (OpenAI,
# "Images and vision"). Servers of other makers stay below it, too.
MAX_IMAGE_TOKENS: Final = 48_169
_MAX_IMAGE_TOKENS_OF_EARLIER: Final = 3_779
_EARLIER: Final = re.compile(r"gpt-4\.1|gpt-4o(?!-mini)|gpt-5(?!\.)|o1|o3|o4-mini")

# Audio counts 10 tokens a second as input (OpenAI, "Managing costs": one for each 100 ms); twice that, to be sure.
_MS_PER_AUDIO_TOKEN: Final = 50

MAX_PARTS: Final = 20_000

# Tiers that a vendor may choose where the request leaves it open: a project's settings say which (OpenAI, "Priority
# processing"). Tiers with the standard price need no price of their own.
_OPEN_TIERS: Final[tuple[Context, ...]] = (NO_CONTEXT, {"service_tier": "priority"}, {"service_tier": "scale"})
_STANDARD_TIERS: Final = frozenset({"default", "standard", "standard_only", "on_demand", "scale", "flex"})
_ANSWERED_AS: Final[Mapping[str, str]] = {"fast": "priority"}


class Content:
    """Adds up what the content of a request can count as. `param` is the field that it is in."""

    def __init__(self, model: str, param: str) -> None:
        self._param = param
        self._image_tokens = _MAX_IMAGE_TOKENS_OF_EARLIER if _EARLIER.match(model) else MAX_IMAGE_TOKENS
        self._parts = 0
        self._tokens = 0
        self._data_length = 0
        self.priced: set[str] = set()
        self.required: set[str] = set()
        self.unseen: str | None = None

    def input_tokens(self, body: bytes) -> int:
        """The most tokens of one run: a token is at least one byte of the body, images and audio aside."""
        return len(body) - self._data_length + self._tokens + TEMPLATE_TOKENS

    def count_parts(self, parts: list[Any]) -> None:
        """Refuses more content parts than there could be reason for."""
        self._parts += len(parts)
        if self._parts > MAX_PARTS:
            raise invalid(self._param, f"{self._param} has more than {MAX_PARTS} content parts; send fewer")

    def add_image(self, url: object) -> None:
        """An image, by its address, its data or its file id."""
        self._tokens += self._image_tokens
        self.priced |= {"image_input", "image_cache_read"}
        if isinstance(url, str) and url.startswith("data:"):
            self._data_length += len(url)

    def add_audio(self, audio: object) -> None:
        """Audio as ``{"data": base64, "format"}``; where its length can't be told, the window bounds it."""
        self.priced |= {"audio_input", "audio_cache_read"}
        self.required.add("audio_input")
        coded = audio.get("data") if isinstance(audio, dict) else None
        if not isinstance(coded, str):
            raise invalid(self._param, "input_audio must have its data in base64")
        try:
            length = audio_length(base64.b64decode(coded.split(",", 1)[-1], validate=True))
        except (binascii.Error, ValueError) as error:
            raise invalid(self._param, "input_audio must have its data in base64") from error
        self._data_length += len(coded)
        self._tokens += -(-length.most_ms // _MS_PER_AUDIO_TOKEN)

    def add_unseen(self, data: object = None) -> None:
        """Content whose length can't be seen: a file, `data` being its bytes in base64, or what the vendor keeps."""
        self.unseen = self._param
        if isinstance(data, str):
            self._data_length += len(data)
        self.priced |= {"image_input", "image_cache_read"}

    def add_earlier_audio(self) -> None:
        """A spoken answer that the vendor keeps."""
        self.add_unseen()
        self.priced |= {"audio_input", "audio_cache_read"}
        self.required.add("audio_input")

    def note_caching(self, part: Mapping[str, Any]) -> None:
        """A cache breakpoint of a part, which may ask for a longer, dearer life."""
        note_cache_life(part.get("prompt_cache_breakpoint"), self.priced, self.required)


def note_cache_life(options: object, priced: set[str], required: set[str]) -> None:
    """Takes note of cache writes that live longer than usual; they need a price of their own."""
    if isinstance(options, dict) and options.get("ttl") not in (None, "30m"):
        priced.add("cache_write_1h")
        required.add("cache_write_1h")


def tiers_of(fields: Fields) -> tuple[tuple[Context, ...], Context]:
    """The price contexts in reach of a request, and those that must have a price of their own."""
    tier = fields.get("service_tier")
    if tier is None or tier == "auto":
        return _OPEN_TIERS, NO_CONTEXT
    if not isinstance(tier, str):
        raise invalid("service_tier", "service_tier must be a name")
    asked = {"service_tier": _ANSWERED_AS.get(tier, tier)}
    if tier == "default":
        return (NO_CONTEXT,), NO_CONTEXT
    # A vendor may serve a request in the standard tier whatever it asked for.
    return (NO_CONTEXT, asked), NO_CONTEXT if tier in _STANDARD_TIERS else asked


def refuse_present(fields: Fields, reasons: Mapping[str, str]) -> None:
    """Refuses fields that bring charges which nothing here can bound; `reasons` says what of each."""
    for name in fields.keys() & reasons.keys():
        if fields[name] is not None:
            raise unpriced(name, reasons[name])
