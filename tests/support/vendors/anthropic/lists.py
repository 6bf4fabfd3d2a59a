"""Anthropic's other routes: token counts, models, and batches of messages."""

from collections.abc import Sequence
from typing import Any

from tests.support.vendors.framing import json_lines

CREATED = "2026-01-02T03:04:05Z"
COUNTS = ("processing", "succeeded", "errored", "canceled", "expired")


def token_count(input_tokens: int = 13) -> dict[str, Any]:
    """The answer of count_tokens: an estimate, and free."""
    return {"input_tokens": input_tokens}


def model(name: str = "claude-sonnet-4-5-20250929") -> dict[str, Any]:
    """One model."""
    return {
        "type": "model",
        "id": name,
        "display_name": name.replace("-", " ").title(),
        "created_at": "2025-09-29T00:00:00Z",
        "lifecycle": "active",
        "max_input_tokens": 200_000,
        "max_tokens": 64_000,
    }


def models(
    names: Sequence[str] = ("claude-sonnet-4-5-20250929", "claude-haiku-4-5-20251001"),
) -> dict[str, Any]:
    """The list of models."""
    return page([model(name) for name in names])


def page(values: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A page of models or batches: the last one."""
    ends = (values[0]["id"], values[-1]["id"]) if values else (None, None)
    return {"data": list(values), "has_more": False, "first_id": ends[0], "last_id": ends[1]}


def batch(
    batch_id: str = "msgbatch_01HkcTjaV5uDC8jWR4ZsDV8d",
    status: str = "ended",
    counts: tuple[int, int, int, int, int] = (0, 2, 0, 0, 0),
    results_url: str | None = None,
    canceled: bool = False,
) -> dict[str, Any]:
    """A batch: ``in_progress``, ``canceling`` or ``ended``; `counts` in the order of `COUNTS`."""
    return {
        "id": batch_id,
        "type": "message_batch",
        "processing_status": status,
        "request_counts": dict(zip(COUNTS, counts, strict=True)),
        "created_at": CREATED,
        "expires_at": "2026-01-03T03:04:05Z",
        "ended_at": "2026-01-02T03:14:05Z" if status == "ended" else None,
        "cancel_initiated_at": CREATED if canceled else None,
        "archived_at": None,
        "results_url": results_url,
    }


def batch_result(
    custom_id: str, message: dict[str, Any] | None = None, error: dict[str, Any] | None = None, kind: str = "expired"
) -> dict[str, Any]:
    """A line of a batch's results: a message, an error body, or ``canceled`` or ``expired``, which cost nothing."""
    if message is not None:
        return {"custom_id": custom_id, "result": {"type": "succeeded", "message": message}}
    if error is not None:
        return {"custom_id": custom_id, "result": {"type": "errored", "error": error}}
    return {"custom_id": custom_id, "result": {"type": kind}}


def batch_results(lines: Sequence[dict[str, Any]]) -> bytes:
    """The results, a JSON text a line, in any order."""
    return b"".join(json_lines(lines))
