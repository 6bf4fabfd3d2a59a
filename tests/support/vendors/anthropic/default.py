"""What Anthropic answers when no answer was scripted."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tests.support.vendors.anthropic import lists, messages
from tests.support.vendors.anthropic.errors import error, failure
from tests.support.vendors.framing import dump
from tests.support.vendors.responder import BadRequestError, Handler, Responder, bearer, cut, length_of
from tests.support.vendors.sampling import sample
from tests.support.vendors.server import Answer, Received, bytes_answer, json_answer, stream_answer

Match = re.Match[str]
WORDS = ("Hello", "!", " How", " can", " I", " help", " you", " today", "?")


class AnthropicResponder(Responder):
    """Anthropic. It wants ``x-api-key`` or a bearer token, and ``anthropic-version``."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {}

    def routes(self) -> Sequence[tuple[str, str, Handler]]:
        """Every documented route."""
        one = r"messages/batches/([^/]+)"
        return (
            ("POST", r"messages", self.answer),
            ("POST", r"messages/count_tokens", self.count),
            ("GET", r"models", lambda _request, _found: json_answer(lists.models())),
            ("GET", r"models/([^/]+)", lambda _request, found: json_answer(lists.model(found[1]))),
            ("POST", r"messages/batches", self.take_batch),
            ("GET", r"messages/batches", self.list_batches),
            ("GET", one, self.show_batch),
            ("GET", rf"{one}/results", self.give_results),
            ("POST", rf"{one}/cancel", self.cancel_batch),
            ("DELETE", one, self.delete_batch),
        )

    @staticmethod
    def credential(request: Received) -> str | None:
        """``x-api-key``, or a bearer token."""
        return request.header("x-api-key") or bearer(request)

    def failure(self, status: int, message: str | None = None) -> Answer:
        """An error in Anthropic's envelope."""
        return failure(status, message=message)

    def __call__(self, request: Received) -> Answer:
        if request.credential and request.header("anthropic-version") is None:
            return self.failure(400, "anthropic-version: header is required")
        answer = super().__call__(request)
        named = tuple(("request-id" if name == "x-request-id" else name, value) for name, value in answer.headers)
        return replace(answer, headers=named)

    def answer(self, request: Received, found: Match) -> Answer:
        """A message: text, a forced tool call, or what a schema asks for; with thinking and web search if asked."""
        fields = request.json()
        whole = whole_message(fields)
        return stream_answer(messages.stream(whole)) if fields.get("stream") else json_answer(whole)

    def count(self, request: Received, found: Match) -> Answer:
        """A count of the tokens of a request."""
        needed_here(request.json(), "model", "messages")
        return json_answer(lists.token_count(length_of(request)))

    def take_batch(self, request: Received, found: Match) -> Answer:
        """Takes a batch; the first look at it finds it ended."""
        requests = request.json()["requests"]
        number = f"msgbatch_stand_in_{len(self.batches) + 1}"
        taken = lists.batch(number, "in_progress", (len(requests), 0, 0, 0, 0))
        self.batches[number] = (taken, [result(line) for line in requests])
        return json_answer(taken)

    def list_batches(self, request: Received, found: Match) -> Answer:
        """Every batch."""
        return json_answer(lists.page([known for known, _ in self.batches.values()]))

    def show_batch(self, request: Received, found: Match) -> Answer:
        """A batch, which has ended by now."""
        if found[1] not in self.batches:
            return self.failure(404, f"batch {found[1]} not found")
        known, results = self.batches[found[1]]
        if known["processing_status"] != "ended":
            canceled = known["cancel_initiated_at"] is not None
            if canceled:
                results = [lists.batch_result(line["custom_id"], kind="canceled") for line in results]
            kinds = [line["result"]["type"] for line in results]
            counts = (0, *(kinds.count(kind) for kind in ("succeeded", "errored", "canceled", "expired")))
            url = f"http://{request.header('host')}/v1/messages/batches/{found[1]}/results"
            known = lists.batch(found[1], "ended", counts, url, canceled)  # type: ignore[arg-type]
            self.batches[found[1]] = (known, results)
        return json_answer(known)

    def give_results(self, request: Received, found: Match) -> Answer:
        """The results of a batch that has ended, last request first: their order means nothing."""
        known = self.batches.get(found[1])
        if known is None or known[0]["processing_status"] != "ended":
            return self.failure(404, f"batch {found[1]} has no results")
        return bytes_answer(lists.batch_results(known[1][::-1]), "application/x-jsonl")

    def cancel_batch(self, request: Received, found: Match) -> Answer:
        """Cancels a batch."""
        if found[1] not in self.batches:
            return self.failure(404, f"batch {found[1]} not found")
        known, results = self.batches[found[1]]
        total = (len(results), 0, 0, 0, 0)
        if known["processing_status"] != "ended":
            known = lists.batch(found[1], "canceling", total, canceled=True)
        self.batches[found[1]] = (known, results)
        return json_answer(known)

    def delete_batch(self, request: Received, found: Match) -> Answer:
        """Forgets a batch."""
        if self.batches.pop(found[1], None) is None:
            return self.failure(404, f"batch {found[1]} not found")
        return json_answer({"id": found[1], "type": "message_batch_deleted"})


def needed_here(fields: dict[str, Any], *names: str) -> None:
    """Raises `BadRequestError` in Anthropic's words for the first field that is not there."""
    for name in names:
        if name not in fields:
            raise BadRequestError(f"{name}: Field required")


def whole_message(fields: dict[str, Any], tier: str = "standard") -> dict[str, Any]:
    """The whole answer to a request."""
    needed_here(fields, "model", "messages", "max_tokens")
    content: list[dict[str, Any]] = []
    thinks = (fields.get("thinking") or {}).get("type") in ("enabled", "adaptive")
    if thinks:
        content.append(messages.thinking_block())
    tools = fields.get("tools") or []
    searches = sum(str(tool.get("type", "")).startswith("web_search") for tool in tools)
    for place in range(searches):
        content += messages.search_blocks(place=place)
    tool = forced_tool(fields, tools)
    schema = asked_schema(fields)
    words, tokens, short = cut(WORDS, 12, fields["max_tokens"])
    if tool is not None:
        content.append(messages.tool_block(tool["name"], sample(tool.get("input_schema") or {"type": "object"})))
    elif schema is not None:
        content.append(messages.text_block(dump(sample(schema)).decode()))
    else:
        content.append(messages.text_block("".join(words)))
    used = messages.usage(
        13,
        tokens,
        thinking=min(5, tokens) if thinks else None,
        web_searches=searches or None,
        service_tier=tier,
    )
    reason = "tool_use" if tool is not None else "max_tokens" if short else "end_turn"
    return messages.message(fields["model"], content, used, reason)


def forced_tool(fields: dict[str, Any], tools: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The tool the request insists on, or None."""
    choice = fields.get("tool_choice") or {}
    own = [tool for tool in tools if "input_schema" in tool]
    if not own or choice.get("type") not in ("any", "tool"):
        return None
    return next((tool for tool in own if tool["name"] == choice.get("name")), own[0])


def asked_schema(fields: dict[str, Any]) -> dict[str, Any] | None:
    """The schema of structured output: in ``output_config.format``, or ``output_format`` as the beta had it."""
    form = (fields.get("output_config") or {}).get("format") or fields.get("output_format") or {}
    return form.get("schema") if form.get("type") == "json_schema" else None


def result(line: dict[str, Any]) -> dict[str, Any]:
    """The result of one line of a batch."""
    try:
        return lists.batch_result(line["custom_id"], whole_message(line["params"], "batch"))
    except BadRequestError as fault:
        return lists.batch_result(line["custom_id"], error=error("invalid_request_error", str(fault), None))
