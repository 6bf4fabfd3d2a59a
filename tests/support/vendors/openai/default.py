"""What OpenAI answers when no answer was scripted."""

import json
import re
from collections.abc import Sequence
from typing import Any

from tests.support.vendors.openai import chat, lists, responses
from tests.support.vendors.openai.errors import BODIES, error, failure
from tests.support.vendors.openai.jobs import Jobs
from tests.support.vendors.responder import Handler, bearer, cut, needed, words_of
from tests.support.vendors.sampling import sample
from tests.support.vendors.server import Answer, Received, error_answer, json_answer, stream_answer

Match = re.Match[str]


class OpenAIResponder(Jobs):
    """OpenAI, and whoever speaks its dialect: any prefix before the route is taken, Azure's deployments too."""

    def routes(self) -> Sequence[tuple[str, str, Handler]]:
        """Every documented route."""
        return (
            ("POST", r"chat/completions", self.chat),
            ("POST", r"responses/input_tokens", lambda _request, _found: json_answer(responses.input_tokens())),
            ("POST", r"responses", self.respond),
            ("GET", r"responses/([^/]+)", self.poll_response),
            ("POST", r"responses/([^/]+)/cancel", self.cancel_response),
            ("POST", r"completions", self.complete),
            ("POST", r"embeddings", self.embed),
            ("POST", r"moderations", self.moderate),
            ("GET", r"models", lambda _request, _found: json_answer(lists.models())),
            ("GET", r"models/(.+)", lambda _request, found: json_answer(lists.model(found[1]))),
            *self.upload_routes(),
            *self.job_routes(),
        )

    @staticmethod
    def credential(request: Received) -> str | None:
        """A bearer token, or Azure's ``api-key``."""
        return bearer(request) or request.header("api-key")

    def failure(self, status: int, message: str | None = None) -> Answer:
        """An error in OpenAI's envelope, with another message if one is given."""
        if message is None:
            return failure(status)
        detail = BODIES[status]["error"]
        return error_answer(error(message, detail["type"], None, detail["code"] if status == 401 else None), status)

    def chat(self, request: Received, found: Match) -> Answer:
        """A chat completion: text, a forced tool call, or what a schema asks for."""
        fields = request.json()
        needed(fields, "messages")
        model = model_of(request, fields)
        choices = fields.get("n") or 1
        call = forced_call(fields)
        words, tokens, short = cut(chat_words(fields), 9, chat_limit(fields))
        used = chat.usage(13, tokens * choices)
        reason = "tool_calls" if call else "length" if short else "stop"
        tier = answered_tier(fields)
        if not fields.get("stream"):
            whole = "".join(words) if short or wants_schema(fields) else chat.HELLO
            calls = [call] if call else []
            text = None if call else whole
            body = chat.completion(model, text, calls, used, choices, finish_reason=reason, service_tier=tier)
            return json_answer(body)
        reports = (fields.get("stream_options") or {}).get("include_usage")
        deltas = chat.tool_deltas(call) if call else chat.text_deltas(*words)
        chunks = chat.chunks(deltas, model, used if reports else None, reason, choices, tier)
        return stream_answer(chat.events(chunks))

    def complete(self, request: Received, found: Match) -> Answer:
        """A completion of a prompt, or of several."""
        fields = request.json()
        needed(fields, "prompt")
        model = model_of(request, fields)
        prompts = fields["prompt"] if several(fields["prompt"]) else [fields["prompt"]]
        choices = (fields.get("n") or 1) * len(prompts)
        words, tokens, short = cut([" Hello", " there", "."], 3, fields.get("max_tokens", 16))
        used = chat.plain_usage(5 * len(prompts), tokens * choices * max(1, fields.get("best_of") or 1))
        if not fields.get("stream"):
            reason = "length" if short else "stop"
            return json_answer(chat.text_completion(model, "".join(words), used, choices, reason))
        reports = (fields.get("stream_options") or {}).get("include_usage")
        return stream_answer(chat.events(chat.text_completion_chunks(words, model, used if reports else None, choices)))

    def respond(self, request: Received, found: Match) -> Answer:
        """A response; one in the background is answered queued, and found by its id."""
        fields = request.json()
        whole = whole_response(fields, model_of(request, fields), f"resp_stand_in_{len(self.responses) + 1}")
        self.keep_response(whole)
        if fields.get("stream"):
            return stream_answer(responses.response_events(whole))
        return json_answer(self.seen_response(whole["id"]) if fields.get("background") else whole)

    def embed(self, request: Received, found: Match) -> Answer:
        """Embeddings: a vector an input, eight tokens each."""
        fields = request.json()
        needed(fields, "input")
        count = len(fields["input"]) if several(fields["input"]) else 1
        coded = fields.get("encoding_format") == "base64"
        length = fields.get("dimensions") or 4
        return json_answer(lists.embeddings(model_of(request, fields), count, 8 * count, coded, length))

    def moderate(self, request: Received, found: Match) -> Answer:
        """A moderation of each input."""
        fields = request.json()
        needed(fields, "input")
        given = fields["input"]
        count = len(given) if isinstance(given, list) and given and isinstance(given[0], str) else 1
        return json_answer(lists.moderation(fields.get("model") or "omni-moderation-latest", count))

    def answer_line(self, url: str, body: dict[str, Any]) -> tuple[int, Any]:
        """The answer of one line of a batch."""
        target = "/" + url.strip("/")
        answer = self(Received("POST", target, (), json.dumps(body).encode(), self.accepts or "batch"))
        return answer.status, json.loads(answer.body)


def model_of(request: Received, fields: dict[str, Any]) -> str:
    """The model asked for: in the body, or Azure's deployment in the path."""
    deployment = re.search(r"/deployments/([^/]+)/", request.path)
    if "model" not in fields and deployment is None:
        needed(fields, "model")
    return str(fields["model"] if "model" in fields or deployment is None else deployment[1])


def several(given: Any) -> bool:
    """Whether a prompt or input is a list of them, not one text or one list of tokens."""
    return isinstance(given, list) and bool(given) and not isinstance(given[0], int)


def answered_tier(fields: dict[str, Any]) -> str:
    """The service tier that answers: the one asked for, ``auto`` being ``default``."""
    asked = fields.get("service_tier") or "auto"
    return "default" if asked == "auto" else str(asked)


def chat_limit(fields: dict[str, Any]) -> int | None:
    """The output limit in force: the newer name wins."""
    limit = fields.get("max_completion_tokens")
    return fields.get("max_tokens") if limit is None else limit


def wants_schema(fields: dict[str, Any]) -> bool:
    """Whether structured output was asked for."""
    return (fields.get("response_format") or {}).get("type") in ("json_schema", "json_object")


def chat_words(fields: dict[str, Any]) -> list[str]:
    """The words of an answer: JSON of the schema asked for, or a greeting."""
    if not wants_schema(fields):
        return list(chat.HELLO_WORDS)
    schema = (fields["response_format"].get("json_schema") or {}).get("schema", {"type": "object"})
    return words_of(json.dumps(sample(schema), ensure_ascii=False))


def forced_call(fields: dict[str, Any]) -> dict[str, Any] | None:
    """The tool call the request insists on, with arguments that fit, or None."""
    choice = fields.get("tool_choice")
    tools = [tool["function"] for tool in fields.get("tools") or () if tool.get("type") == "function"]
    if not tools or choice in (None, "auto", "none"):
        return None
    named = choice.get("function", {}).get("name") if isinstance(choice, dict) else None
    tool = next((tool for tool in tools if tool["name"] == named), tools[0])
    return chat.tool_call(tool["name"], sample(tool.get("parameters") or {"type": "object"}))


def whole_response(fields: dict[str, Any], model: str, response_id: str) -> dict[str, Any]:
    """The whole answer of the responses route to a request."""
    tools = fields.get("tools") or []
    choice = fields.get("tool_choice", "auto")
    functions = [tool for tool in tools if tool.get("type") == "function"]
    form = (fields.get("text") or {}).get("format") or {"type": "text"}
    limit = fields.get("max_output_tokens")
    short = limit is not None and limit < 9
    if functions and choice not in ("auto", "none"):
        named = choice.get("name") if isinstance(choice, dict) else None
        tool = next((tool for tool in functions if tool["name"] == named), functions[0])
        output = [responses.call_item(tool["name"], sample(tool.get("parameters") or {"type": "object"}))]
    elif form["type"] in ("json_schema", "json_object"):
        text = json.dumps(sample(form.get("schema", {"type": "object"})), ensure_ascii=False)
        output = [responses.text_item(text)]
    else:
        words = list(chat.HELLO_WORDS)[:limit] if short else [chat.HELLO]
        output = [responses.text_item("".join(words), "incomplete" if short else "completed")]
    searches = [tool for tool in tools if tool["type"].startswith("web_search")]
    echoed = ("instructions", "metadata", "temperature", "top_p", "tool_choice", "tools", "parallel_tool_calls")
    echo = {name: fields[name] for name in (*echoed, "max_output_tokens", "previous_response_id") if name in fields}
    return responses.response(
        model,
        [*(responses.web_search_item() for _ in searches), *output],
        responses.response_usage(13, limit if short and limit is not None else 9),
        "incomplete" if short else "completed",
        response_id=response_id,
        background=bool(fields.get("background")),
        service_tier=answered_tier(fields),
        reason="max_output_tokens" if short else None,
        echo=echo,
    )
