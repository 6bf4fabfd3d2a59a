"""OpenAI's routes that take files: images, audio, and files for batches."""

import re
from collections.abc import Sequence
from typing import Any

from tests.support.vendors.forms import fields_of, files_of
from tests.support.vendors.openai import lists, media
from tests.support.vendors.responder import BadRequestError, Handler, Responder, needed
from tests.support.vendors.server import Answer, Received, bytes_answer, json_answer, stream_answer

Match = re.Match[str]


class Uploads(Responder):
    """Images, audio and files."""

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[str, tuple[dict[str, Any], bytes]] = {}

    def upload_routes(self) -> Sequence[tuple[str, str, Handler]]:
        """The routes of images, audio and files."""
        return (
            ("POST", r"images/generations", self.draw),
            ("POST", r"images/edits", self.edit_image),
            ("POST", r"audio/speech", self.speak),
            ("POST", r"audio/transcriptions", self.transcribe),
            ("POST", r"audio/translations", self.translate),
            ("POST", r"files", self.take_file),
            ("GET", r"files", lambda _request, _found: json_answer(lists.page([f for f, _ in self.files.values()]))),
            ("GET", r"files/([^/]+)", self.show_file),
            ("GET", r"files/([^/]+)/content", self.give_content),
            ("DELETE", r"files/([^/]+)", self.delete_file),
        )

    def draw(self, request: Received, found: Match) -> Answer:
        """Images from a prompt."""
        fields = request.json()
        needed(fields, "prompt")
        return self._images(fields, "image_generation", media.image_usage(10, 0))

    def edit_image(self, request: Received, found: Match) -> Answer:
        """Images from images: a form, or JSON."""
        is_form = (request.header("content-type") or "").startswith("multipart/")
        fields: dict[str, Any] = dict(fields_of(request)) if is_form else request.json()
        if is_form and "image" not in files_of(request):
            raise BadRequestError("Missing required parameter: 'image'.")
        needed(fields, "prompt")
        return self._images(fields, "image_edit", media.image_usage(10, 194))

    def _images(self, fields: dict[str, Any], kind: str, used: dict[str, Any]) -> Answer:
        count = int(fields.get("n") or 1)
        old = str(fields.get("model", "dall-e-2")).startswith("dall-e")
        shape = {"size": _set(fields, "size", "1024x1024"), "quality": _set(fields, "quality", "low")}
        tokens = used["output_tokens"] * count
        used = media.image_usage(
            used["input_tokens_details"]["text_tokens"], used["input_tokens_details"]["image_tokens"]
        )
        used |= {"output_tokens": tokens, "total_tokens": used["input_tokens"] + tokens}
        used["output_tokens_details"] = {"image_tokens": tokens, "text_tokens": 0}
        if fields.get("stream") in (True, "true"):
            plain = {name: value for name, value in used.items() if name != "output_tokens_details"}
            return stream_answer(media.image_events(plain, kind, int(fields.get("partial_images") or 0), **shape))
        links = old and fields.get("response_format") != "b64_json"
        return json_answer(media.images(count, used, links=links, report=not old, **shape))

    def speak(self, request: Received, found: Match) -> Answer:
        """Speech: bytes, or events when asked."""
        fields = request.json()
        needed(fields, "model", "input", "voice")
        if fields.get("stream_format") == "sse":
            return stream_answer(media.speech_events(used=media.speech_usage(14, 101)))
        return bytes_answer(media.SPEECH_BYTES, "audio/mpeg", framing="chunked")

    def transcribe(self, request: Received, found: Match) -> Answer:
        """A transcription in the form asked for; whisper-1 never streams, and is billed by time."""
        fields = self._audio_form(request)
        by_time = fields["model"].startswith("whisper")
        form = fields.get("response_format", "json")
        if fields.get("stream") == "true" and not by_time:
            return stream_answer(media.transcription_events())
        if form == "verbose_json":
            return json_answer(media.verbose_transcription())
        if form == "diarized_json":
            return json_answer(media.diarized_transcription())
        if form in ("text", "srt", "vtt"):
            return bytes_answer(b"Hello there.\n", "text/plain; charset=utf-8")
        return json_answer(media.transcription(used=media.duration_usage() if by_time else None))

    def translate(self, request: Received, found: Match) -> Answer:
        """A translation into English."""
        form = self._audio_form(request).get("response_format", "json")
        if form in ("text", "srt", "vtt"):
            return bytes_answer(b"Hello there.\n", "text/plain; charset=utf-8")
        return json_answer(media.verbose_translation() if form == "verbose_json" else media.translation())

    def _audio_form(self, request: Received) -> dict[str, str]:
        fields = fields_of(request)
        needed(fields, "model")
        if "file" not in files_of(request):
            raise BadRequestError("Missing required parameter: 'file'.")
        return fields

    def take_file(self, request: Received, found: Match) -> Answer:
        """Keeps a file."""
        name, content = files_of(request)["file"]
        purpose = fields_of(request).get("purpose", "batch")
        return json_answer(self.keep_file(content, name, purpose))

    def keep_file(self, content: bytes, name: str, purpose: str) -> dict[str, Any]:
        """Keeps a file of the caller or of the vendor; how it is described."""
        number = f"file-stand-in-{len(self.files) + 1}"
        described = lists.file(number, len(content), name, purpose)
        self.files[number] = (described, content)
        return described

    def show_file(self, request: Received, found: Match) -> Answer:
        """Describes a file."""
        kept = self.files.get(found[1])
        return json_answer(kept[0]) if kept else self.failure(404, f"No such File object: {found[1]}")

    def give_content(self, request: Received, found: Match) -> Answer:
        """The bytes of a file."""
        kept = self.files.get(found[1])
        if kept is None:
            return self.failure(404, f"No such File object: {found[1]}")
        return bytes_answer(kept[1], "application/octet-stream")

    def delete_file(self, request: Received, found: Match) -> Answer:
        """Forgets a file."""
        if self.files.pop(found[1], None) is None:
            return self.failure(404, f"No such File object: {found[1]}")
        return json_answer({"id": found[1], "object": "file", "deleted": True})


def _set(fields: dict[str, Any], name: str, otherwise: str) -> str:
    value = fields.get(name)
    return otherwise if value in (None, "auto") else str(value)
