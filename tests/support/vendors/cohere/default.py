"""What Cohere answers when no answer was scripted."""

import re
from collections.abc import Sequence
from typing import Any

from tests.support.vendors.cohere import answers
from tests.support.vendors.cohere.errors import failure
from tests.support.vendors.framing import dump
from tests.support.vendors.responder import BadRequestError, Handler, Responder, cut, words_of
from tests.support.vendors.sampling import sample
from tests.support.vendors.server import Answer, Received, json_answer, stream_answer

Match = re.Match[str]
LINES = "application/stream+json"


class CohereResponder(Responder):
    """Cohere. It wants a bearer token."""

    def routes(self) -> Sequence[tuple[str, str, Handler]]:
        """Every documented route that is charged, and the free ones beside them."""
        return (
            ("POST", r"v2/chat", self.chat_v2),
            ("POST", r"v1/chat", self.chat_v1),
            ("POST", r"v(1|2)/embed", self.embed),
            ("POST", r"v(1|2)/rerank", self.rerank),
            ("POST", r"v1/tokenize", lambda request, _found: json_answer(answers.tokens(request.json()["text"]))),
            ("GET", r"v1/models", lambda _request, _found: json_answer(answers.models())),
            ("GET", r"v1/models/([^/]+)", lambda _request, found: json_answer(answers.model(found[1]))),
        )

    def failure(self, status: int, message: str | None = None) -> Answer:
        """An error in Cohere's envelope."""
        return failure(status, message=message)

    def chat_v2(self, request: Received, found: Match) -> Answer:
        """A chat of v2: text, a required call, or what a schema asks for."""
        fields = request.json()
        named(fields, "model", "messages")
        words, billed, short = spoken(fields)
        tools = [tool["function"] for tool in fields.get("tools") or ()]
        calls = []
        if tools and fields.get("tool_choice") == "REQUIRED":
            schema = tools[0].get("parameters") or {"type": "object"}
            calls, short = [answers.tool_call(tools[0]["name"], sample(schema))], False
        used = answers.usage(5, billed, 71, billed)
        reason = "MAX_TOKENS" if short else None
        thinks = (fields.get("thinking") or {}).get("type") == "enabled"
        thought = "The user greets me." if thinks else None
        whole = answers.chat_v2("".join(words), calls, used, reason, thought)
        return stream_answer(answers.stream_v2(whole, words)) if fields.get("stream") else json_answer(whole)

    def chat_v1(self, request: Received, found: Match) -> Answer:
        """A chat of v1, streamed as JSON lines, or as events to who accepts only those."""
        fields = request.json()
        named(fields, "message")
        words, billed, short = spoken(fields)
        used = answers.meta(tokens=(71, billed), input_tokens=5, output_tokens=billed)
        calls: list[dict[str, Any]] = []
        if fields.get("tools") and fields.get("force_single_step"):
            tool = fields["tools"][0]
            names = tool.get("parameter_definitions") or {}
            calls, words = [{"name": tool["name"], "parameters": dict.fromkeys(names, "Zürich")}], []
        reason = "MAX_TOKENS" if short else "COMPLETE"
        whole = answers.chat_v1("".join(words), calls, used, reason, fields["message"])
        if not fields.get("stream"):
            return json_answer(whole)
        as_events = (request.header("accept") or request.header("accepts")) == "text/event-stream"
        return stream_answer(answers.stream_v1(whole, words, as_events), "text/event-stream" if as_events else LINES)

    def embed(self, request: Received, found: Match) -> Answer:
        """Embeddings of texts, of images, or of both in `inputs`."""
        fields = request.json()
        if found[1] == "2":
            named(fields, "model", "input_type")
        texts, images = list(fields.get("texts") or ()), len(fields.get("images") or ())
        for one in fields.get("inputs") or ():
            texts += [part["text"] for part in one["content"] if part["type"] == "text"]
            images += sum(part["type"] == "image_url" for part in one["content"])
        kinds = fields.get("embedding_types")
        length = fields.get("output_dimension") or 4
        if found[1] == "1" and not kinds and not images:
            return json_answer(answers.embeddings_floats(texts, length=length))
        by_type = answers.embeddings_by_type(texts, kinds or ("float",), None, images, length, found[1])
        return json_answer(by_type)

    def rerank(self, request: Received, found: Match) -> Answer:
        """Documents in a new order: a search unit a hundred of them."""
        fields = request.json()
        named(fields, "query", "documents")
        documents = fields["documents"]
        units = -(-len(documents) // 100)
        back = found[1] == "1" and fields.get("return_documents")
        texts = [one if isinstance(one, str) else one.get("text", "") for one in documents] if back else None
        return json_answer(answers.rerank(len(documents), fields.get("top_n"), units, texts, found[1]))


def named(fields: dict[str, Any], *names: str) -> None:
    """Raises `BadRequestError` in Cohere's words for the first field that is not there."""
    for name in names:
        if name not in fields:
            raise BadRequestError(f"invalid request: {name} is required")


def spoken(fields: dict[str, Any]) -> tuple[list[str], int, bool]:
    """The words of an answer, its tokens, and whether a limit cut it short."""
    words: Sequence[str] = answers.WORDS
    form = fields.get("response_format") or {}
    if form.get("type") == "json_object":
        words = words_of(dump(sample(form.get("json_schema") or form.get("schema") or {"type": "object"})).decode())
    return cut(words, 9, fields.get("max_tokens"))
