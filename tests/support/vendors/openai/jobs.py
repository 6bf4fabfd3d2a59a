"""OpenAI's work in the background: responses polled for, and batches of lines."""

import json
import re
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from tests.support.vendors.openai import lists, responses
from tests.support.vendors.openai.uploads import Uploads
from tests.support.vendors.responder import Handler, needed
from tests.support.vendors.server import Answer, Received, json_answer, stream_answer

Match = re.Match[str]
RESPONSE_STATES = ("queued", "in_progress")
BATCH_STATES = ("validating", "in_progress", "finalizing")


class Jobs(Uploads):
    """Background responses and batches: each look takes one a step further, until it has ended."""

    def __init__(self) -> None:
        super().__init__()
        self.responses: dict[str, tuple[dict[str, Any], int | None]] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self._looks: dict[str, int] = {}

    def job_routes(self) -> Sequence[tuple[str, str, Handler]]:
        """The routes of batches."""
        return (
            ("POST", r"batches", self.take_batch),
            ("GET", r"batches", lambda _request, _found: json_answer(lists.page(list(self.batches.values())))),
            ("GET", r"batches/([^/]+)", self.show_batch),
            ("POST", r"batches/([^/]+)/cancel", self.cancel_batch),
        )

    @abstractmethod
    def answer_line(self, url: str, body: dict[str, Any]) -> tuple[int, Any]:
        """The answer of one line of a batch: status and body."""

    def keep_response(self, whole: dict[str, Any]) -> None:
        """Keeps a response; one in the background begins as queued."""
        self.responses[whole["id"]] = (whole, 0 if whole["background"] else None)

    def seen_response(self, response_id: str) -> dict[str, Any]:
        """A response as it is now; one in the background has gone a step further after this look."""
        whole, step = self.responses[response_id]
        if step is None or step >= len(RESPONSE_STATES):
            return whole
        self.responses[response_id] = (whole, step + 1)
        return {**whole, "status": RESPONSE_STATES[step], "output": [], "usage": None}

    def poll_response(self, request: Received, found: Match) -> Answer:
        """A response by its id, or its stream taken up after a sequence number."""
        if found[1] not in self.responses:
            return self.failure(404, f"Response with id '{found[1]}' not found.")
        if request.query("stream") == "true":
            after = int(request.query("starting_after") or -1)
            return stream_answer(responses.response_events(self.responses[found[1]][0], starting_after=after))
        return json_answer(self.seen_response(found[1]))

    def cancel_response(self, request: Received, found: Match) -> Answer:
        """Cancels a response in the background; one that has ended stays as it is."""
        if found[1] not in self.responses:
            return self.failure(404, f"Response with id '{found[1]}' not found.")
        whole, step = self.responses[found[1]]
        if step is not None and step < len(RESPONSE_STATES):
            whole = {**whole, "status": "cancelled", "output": [], "usage": None}
            self.responses[found[1]] = (whole, None)
        return json_answer(whole)

    def take_batch(self, request: Received, found: Match) -> Answer:
        """Takes a batch of a file uploaded before."""
        fields = request.json()
        needed(fields, "input_file_id", "endpoint", "completion_window")
        if fields["input_file_id"] not in self.files:
            return self.failure(400, f"Invalid input_file_id: {fields['input_file_id']}")
        number = f"batch_stand_in_{len(self.batches) + 1}"
        total = len(self._lines(fields["input_file_id"]))
        taken = lists.batch(number, "validating", fields["endpoint"], fields["input_file_id"], counts=(total, 0, 0))
        self.batches[number] = taken | {"metadata": fields.get("metadata") or {}}
        return json_answer(self.batches[number])

    def show_batch(self, request: Received, found: Match) -> Answer:
        """A batch as it is now: each look takes it a step further."""
        if found[1] not in self.batches:
            return self.failure(404, f"No batch found with id '{found[1]}'.")
        known = self.batches[found[1]]
        if known["status"] == "cancelling":
            known = self._ended(known, "cancelled", [])
        elif known["status"] in BATCH_STATES:
            step = self._looks[found[1]] = self._looks.get(found[1], 0) + 1
            if step < len(BATCH_STATES):
                known = {**known, "status": BATCH_STATES[step]}
            else:
                known = self._ended(known, "completed", self._lines(known["input_file_id"]))
        self.batches[found[1]] = known
        return json_answer(known)

    def cancel_batch(self, request: Received, found: Match) -> Answer:
        """Cancels a batch that has not ended."""
        if found[1] not in self.batches:
            return self.failure(404, f"No batch found with id '{found[1]}'.")
        known = self.batches[found[1]]
        if known["status"] not in BATCH_STATES:
            return self.failure(400, f"Cannot cancel a batch with status '{known['status']}'.")
        self.batches[found[1]] = {**known, "status": "cancelling"}
        return json_answer(self.batches[found[1]])

    def _lines(self, file_id: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.files[file_id][1].splitlines() if line.strip()]

    def _ended(self, known: dict[str, Any], status: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
        answers = [(line["custom_id"], *self.answer_line(line["url"], line["body"])) for line in lines]
        good = [lists.batch_line(name, body, status) for name, status, body in answers if status < 400]
        bad = [lists.batch_line(name, body, status) for name, status, body in answers if status >= 400]
        output = self._kept(f"{known['id']}_output.jsonl", good)
        error = self._kept(f"{known['id']}_error.jsonl", bad)
        counts = (known["request_counts"]["total"], len(good), len(bad))
        models = [line["body"].get("model") for line in lines]
        ended = lists.batch(
            known["id"],
            status,
            known["endpoint"],
            known["input_file_id"],
            output,
            error,
            counts,
            summed([line["response"]["body"] for line in good]),
            models[0] if models else None,
        )
        return ended | {"metadata": known["metadata"]}

    def _kept(self, name: str, lines: list[dict[str, Any]]) -> str | None:
        return str(self.keep_file(lists.batch_output(lines), name, "batch_output")["id"]) if lines else None


def summed(bodies: list[dict[str, Any]]) -> dict[str, Any]:
    """The usage of a batch: the sums over its answers, whichever names they use."""
    reports = [body.get("usage") or {} for body in bodies]

    def total(*paths: str) -> int:
        return sum(_at(report, path) for report in reports for path in paths)

    return lists.batch_usage(
        total("prompt_tokens", "input_tokens"),
        total("completion_tokens", "output_tokens"),
        total("prompt_tokens_details.cached_tokens", "input_tokens_details.cached_tokens"),
        total("completion_tokens_details.reasoning_tokens", "output_tokens_details.reasoning_tokens"),
    )


def _at(report: dict[str, Any], path: str) -> int:
    value: Any = report
    for step in path.split("."):
        value = (value or {}).get(step)
    return int(value or 0)
