"""What the content of a Gemini request can count as input: text by its bytes, media by Google's token rules.

Sources: Google, "Understand and count tokens", "Media resolution", "Image understanding" and "Audio understanding".
"""

import base64
from dataclasses import dataclass
from typing import Final

from services.gateway.vendors.audio_lengths import audio_length
from services.gateway.vendors.fields import Fields, invalid, unpriced
from services.gateway.vendors.google_fields import MAX_ENTRIES, object_in, objects_in

# What one image can count as at most. It is scaled to fit 3,072 pixels a side and cut into tiles of 258 tokens, whose
# side is two thirds of the image's shorter one but 256 to 768 pixels: at most 24 of them, and an overview. Newer models
# count by resolution, 2,240 tokens at most.
MAX_IMAGE_TOKENS: Final = 25 * 258
AUDIO_TOKENS_PER_SECOND: Final = 32

_IMAGES: Final = frozenset({"image_input", "image_cache_read"})
_SOUND: Final = frozenset({"audio_input", "audio_cache_read"})
ALL_MEDIA: Final = _IMAGES | _SOUND | {"video_input"}

_TEXT_KINDS: Final = frozenset({"application/json", "application/x-javascript", "application/x-python"})

_PARTS: Final = frozenset(
    {
        "text", "inlineData", "fileData", "functionCall", "functionResponse", "executableCode", "codeExecutionResult",
        "thought", "thoughtSignature", "videoMetadata", "mediaResolution", "partMetadata", "toolCall", "toolResponse",
        "audioTranscription",
    }
)  # fmt: skip


@dataclass(slots=True)
class Content:
    """What contents add up to: tokens of media, bytes of base64 in the body that are no text, and priced parts.

    `unseen` names the field with content whose length can't be seen; then the input may fill the context window.
    """

    tokens: int = 0
    data_bytes: int = 0
    parts: frozenset[str] = frozenset()
    unseen: str | None = None

    def add(self, value: object, param: str) -> None:
        """Adds contents (or one): raises `RequestRefusedError` for what can't be read or priced."""
        for content in objects_in(value, param):
            self._add_parts(content.get("parts"), param)

    def hide(self, param: str) -> None:
        """Notes content that can't be seen and may be anything."""
        self.parts |= ALL_MEDIA
        self.unseen = self.unseen or param

    def _add_parts(self, value: object, param: str) -> None:
        if isinstance(value, list) and len(value) > MAX_ENTRIES:
            raise invalid(param, f"{param} has more than {MAX_ENTRIES} parts; send fewer")
        # A part may be bare text where only one is due: its bytes count with the body's.
        found = [each for each in value if not isinstance(each, str)] if isinstance(value, list) else value
        for part in objects_in(None if isinstance(found, str) else found, param):
            if len(part) == 1 and "text" in part:
                continue
            for name in part.keys() - _PARTS:
                raise unpriced(param, f"parts with {str(name)[:40]!r} are not priced yet; leave them out")
            self._add_data(part, param)
            answer = object_in(part, "functionResponse")
            for inner in objects_in(answer.get("parts"), param):
                self._add_data(inner, param)

    def _add_data(self, part: Fields, param: str) -> None:
        if part.get("fileData") is not None:
            self.hide(param)
        if part.get("inlineData") is None:
            return
        blob = object_in(part, "inlineData")
        kind, data = blob.get("mimeType"), blob.get("data")
        if not isinstance(data, str) or not isinstance(kind, str):
            raise invalid(param, "inlineData must have mimeType and data, both text")
        kind = kind.partition(";")[0].strip().lower()
        if kind.startswith("text/") or kind in _TEXT_KINDS:
            return  # As text it has fewer bytes than in base64, and those count with the body's.
        self.data_bytes += len(data)
        if kind.startswith("image/"):
            wanted = object_in(part, "mediaResolution").get("numTokens")
            self.tokens += max(MAX_IMAGE_TOKENS, wanted if type(wanted) is int else 0)
            self.parts |= _IMAGES
            return
        sound = audio_tokens(data) if kind.startswith("audio/") else None
        if sound is None:
            # Frames that repeat cost next to nothing, and pages are compressed: bytes bound neither.
            self.hide(param)
        else:
            self.tokens += sound
            self.parts |= _SOUND


def audio_tokens(data: str) -> int | None:
    """The most tokens that audio in base64 can count as; None when it is no base64."""
    try:
        audio = base64.b64decode(data.replace("-", "+").replace("_", "/"), validate=True)
    except ValueError:
        return None
    return -(-audio_length(audio).most_ms // 1000) * AUDIO_TOKENS_PER_SECOND
