"""What Mistral answers when no answer was scripted."""

import re
from collections.abc import Sequence
from typing import Any

from tests.support.vendors.framing import dump
from tests.support.vendors.mistral import answers
from tests.support.vendors.mistral.errors import error, failure, validation
from tests.support.vendors.responder import Handler, Responder, cut, words_of
from tests.support.vendors.sampling import sample
from tests.support.vendors.server import Answer, Received, json_answer, stream_answer

Match = re.Match[str]


class MistralResponder(Responder):
    """Mistral. It wants a bearer token."""

    def routes(self) -> Sequence[tuple[str, str, Handler]]:
        """Every documented route that is charged, and the free ones beside them."""
        return (
            ("POST", r"chat/completions", self.chat),
            ("POST", r"fim/completions", self.fill),
            ("POST", r"embeddings", self.embed),
            ("POST", r"ocr", self.read),
            ("POST", r"(?:chat/)?moderations", self.moderate),
            ("GET", r"models", lambda _request, _found: json_answer(answers.models())),
            ("GET", r"models/([^/]+)", lambda _request, found: json_answer(answers.model(found[1]))),
        )

    def failure(self, status: int, message: str | None = None) -> Answer:
        """An error in Mistral's envelope."""
        if message is None or status != 400:
            return failure(status)
        return failure(400, body=error(message, "invalid_request_error"))

    def chat(self, request: Received, found: Match) -> Answer:
        """A chat completion: text, a forced call, or what a schema asks for."""
        fields = request.json()
        for name in ("model", "messages"):
            if name not in fields:
                return failure(422, body=validation(name))
        call = forced_call(fields)
        form = fields.get("response_format") or {}
        words: Sequence[str] = answers.WORDS
        if form.get("type") in ("json_schema", "json_object"):
            described = form.get("json_schema") or {}
            schema = described.get("schema") or described.get("schema_definition") or {"type": "object"}
            words = words_of(dump(sample(schema)).decode())
        return self._complete(fields, words, call)

    def fill(self, request: Received, found: Match) -> Answer:
        """Code between a prompt and a suffix."""
        fields = request.json()
        for name in ("model", "prompt"):
            if name not in fields:
                return failure(422, body=validation(name))
        return self._complete(fields, ("    return", " a", " + b", "\n"), None)

    def _complete(self, fields: dict[str, Any], words: Sequence[str], call: dict[str, Any] | None) -> Answer:
        choices = fields.get("n") or 1
        kept, tokens, short = cut(words, 9, fields.get("max_tokens"))
        reason = "length" if short and call is None else None
        used = answers.usage(13, tokens * choices)
        calls = [call] if call else []
        if fields.get("stream"):
            chunks = answers.chunks(fields["model"], kept, calls, used, choices, reason)
            return stream_answer(answers.events(chunks), "text/event-stream")
        text = "" if call else "".join(kept)
        return json_answer(answers.completion(fields["model"], text, calls, used, choices, reason))

    def embed(self, request: Received, found: Match) -> Answer:
        """Embeddings: a vector an input, eight tokens each."""
        fields = request.json()
        given = fields.get("input", fields.get("inputs"))
        if given is None:
            return failure(422, body=validation("input"))
        count = len(given) if isinstance(given, list) else 1
        length = fields.get("output_dimension") or 4
        return json_answer(answers.embeddings(fields["model"], count, 8 * count, length))

    def read(self, request: Received, found: Match) -> Answer:
        """The pages asked for, two unless `pages` names them; annotated if a format for the document is given."""
        fields = request.json()
        if "document" not in fields:
            return failure(422, body=validation("document"))
        asked = fields.get("pages")
        pages = len(asked) if isinstance(asked, list) else 2
        form = fields.get("document_annotation_format")
        described = (form or {}).get("json_schema") or {}
        schema = described.get("schema") or {"type": "object"}
        annotation = dump(sample(schema)).decode() if form else None
        return json_answer(answers.ocr(fields.get("model") or "mistral-ocr-latest", pages, annotation=annotation))

    def moderate(self, request: Received, found: Match) -> Answer:
        """A moderation of each input."""
        fields = request.json()
        given = fields["input"]
        texts = isinstance(given, list) and bool(given) and isinstance(given[0], str)
        return json_answer(answers.moderation(fields["model"], len(given) if texts else 1))


def forced_call(fields: dict[str, Any]) -> dict[str, Any] | None:
    """The tool call the request insists on, or None."""
    choice = fields.get("tool_choice")
    tools = [tool["function"] for tool in fields.get("tools") or () if "function" in tool]
    if not tools or choice in (None, "auto", "none"):
        return None
    named = choice.get("function", {}).get("name") if isinstance(choice, dict) else None
    tool = next((tool for tool in tools if tool["name"] == named), tools[0])
    return answers.tool_call(tool["name"], sample(tool.get("parameters") or {"type": "object"}))
