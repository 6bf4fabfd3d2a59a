"""What Gemini answers when no answer was scripted."""

import re
from collections.abc import Sequence
from typing import Any

from tests.support.vendors.framing import dump
from tests.support.vendors.google import answers
from tests.support.vendors.google.errors import INVALID_KEY, failure
from tests.support.vendors.responder import BadRequestError, Handler, Responder, bearer, cut, length_of
from tests.support.vendors.sampling import sample
from tests.support.vendors.server import Answer, Received, error_answer, json_answer, stream_answer

Match = re.Match[str]


class GoogleResponder(Responder):
    """Gemini. It wants ``x-goog-api-key``, the query's ``key`` or a bearer token; ``v1`` and ``v1beta`` are alike."""

    def routes(self) -> Sequence[tuple[str, str, Handler]]:
        """Every documented route."""
        model = r"((?:tuned)?[mM]odels/[^/:]+)"
        return (
            ("POST", rf"{model}:generateContent", self.generate),
            ("POST", rf"{model}:streamGenerateContent", self.generate),
            ("POST", rf"{model}:embedContent", self.embed),
            ("POST", rf"{model}:batchEmbedContents", self.embed_several),
            ("POST", rf"{model}:countTokens", self.count),
            ("GET", r"models", lambda _request, _found: json_answer(answers.models())),
            ("GET", r"models/([^/:]+)", lambda _request, found: json_answer(answers.model(found[1]))),
        )

    @staticmethod
    def credential(request: Received) -> str | None:
        """A key in the header or the query, or a bearer token."""
        return request.header("x-goog-api-key") or request.query("key") or bearer(request)

    def failure(self, status: int, message: str | None = None) -> Answer:
        """An error in Google's envelope; a wrong key is a bad request to it."""
        return error_answer(INVALID_KEY, 400) if status == 401 else failure(status, message=message)

    def __call__(self, request: Received) -> Answer:
        return super().__call__(request) if request.credential or not self.demands else failure(403)

    def generate(self, request: Received, found: Match) -> Answer:
        """Content: text, a forced function call, or what a schema asks for; streamed as events or as an array."""
        fields = request.json()
        if not fields.get("contents"):
            raise BadRequestError("* GenerateContentRequest.contents: contents is not specified")
        model = found[1].partition("/")[2]
        config = either(fields, "generationConfig") or {}
        choices = either(config, "candidateCount") or 1
        thinks = either(either(config, "thinkingConfig") or {}, "includeThoughts")
        words, tokens, short = cut(answers.WORDS, 9, either(config, "maxOutputTokens"))
        steps = [[answers.text_part(word)] for word in words] or [[]]
        if (forced := forced_part(fields)) or (forced := structured_part(config)):
            steps, short = [[forced]], False
        if thinks:
            steps = [[answers.thought_part()], *steps]
        searches = any(either(tool, "googleSearch") is not None for tool in fields.get("tools") or ())
        grounded = answers.grounding() if searches else None
        used = answers.usage(13, tokens * choices, thoughts=5 if thinks else None)
        reason = "MAX_TOKENS" if short else "STOP"
        if not request.path.endswith("streamGenerateContent"):
            parts = merged([part for step in steps for part in step])
            found_all = [answers.candidate(parts, reason, index, grounded) for index in range(choices)]
            return json_answer(answers.generated(model, found_all, used))
        chunks = answers.chunks(model, steps, used, reason, grounded, choices)
        if request.query("alt") == "sse":
            return stream_answer(answers.event_stream(chunks), "text/event-stream")
        return stream_answer(answers.array_stream(chunks), "application/json; charset=UTF-8")

    def embed(self, request: Received, found: Match) -> Answer:
        """One embedding; newer models report usage."""
        fields = request.json()
        if "content" not in fields:
            raise BadRequestError("* EmbedContentRequest.content: content is not specified")
        used = answers.embedding_usage(8) if reports_embedding(found[1]) else None
        return json_answer(answers.embedding(used, either(fields, "outputDimensionality") or 4))

    def embed_several(self, request: Received, found: Match) -> Answer:
        """An embedding for each request."""
        requests = request.json()["requests"]
        used = answers.embedding_usage(8 * len(requests)) if reports_embedding(found[1]) else None
        length = (either(requests[0], "outputDimensionality") or 4) if requests else 4
        return json_answer(answers.embeddings(len(requests), used, length))

    def count(self, request: Received, found: Match) -> Answer:
        """A count of the tokens of a request."""
        return json_answer(answers.token_count(length_of(request)))


def either(fields: dict[str, Any], name: str) -> Any:
    """A field by its name in camel case or in snake case: Google reads both, and its own clients mix them."""
    return fields.get(name, fields.get(re.sub(r"[A-Z]", lambda found: "_" + found[0].lower(), name)))


def reports_embedding(model: str) -> bool:
    """Whether an embedding model reports usage: from the second generation on."""
    return re.search(r"embedding-[2-9]", model) is not None


def forced_part(fields: dict[str, Any]) -> dict[str, Any] | None:
    """The function call the request insists on, or None."""
    config = either(either(fields, "toolConfig") or {}, "functionCallingConfig") or {}
    functions = [
        function for tool in fields.get("tools") or () for function in either(tool, "functionDeclarations") or ()
    ]
    if str(config.get("mode", "")).upper() != "ANY" or not functions:
        return None
    allowed = either(config, "allowedFunctionNames") or [functions[0]["name"]]
    function = next((function for function in functions if function["name"] in allowed), functions[0])
    schema = function.get("parameters") or either(function, "parametersJsonSchema") or {"type": "object"}
    return answers.call_part(function["name"], sample(schema))


def structured_part(config: dict[str, Any]) -> dict[str, Any] | None:
    """A text of the JSON asked for, or None."""
    if either(config, "responseMimeType") != "application/json":
        return None
    schema = either(config, "responseSchema") or either(config, "responseJsonSchema") or {"type": "object"}
    return answers.text_part(dump(sample(schema)).decode())


def merged(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Parts with neighbouring texts joined, as an answer has them that is not streamed."""
    whole: list[dict[str, Any]] = []
    for part in parts:
        if whole and set(part) == {"text"} == set(whole[-1]):
            whole[-1] = {"text": whole[-1]["text"] + part["text"]}
        else:
            whole.append(part)
    return whole
