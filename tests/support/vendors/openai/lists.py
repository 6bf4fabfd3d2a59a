"""OpenAI's small routes: embeddings, moderations, models, files and batches."""

import base64
import struct
from collections.abc import Sequence
from typing import Any

from tests.support.vendors.framing import json_lines
from tests.support.vendors.openai.chat import CREATED

VECTOR = (0.25, -0.5, 0.125, 0.75)
CATEGORIES = {
    "harassment": ["text"],
    "harassment/threatening": ["text"],
    "hate": ["text"],
    "hate/threatening": ["text"],
    "illicit": ["text"],
    "illicit/violent": ["text"],
    "self-harm": ["text"],
    "self-harm/instructions": ["text"],
    "self-harm/intent": ["text"],
    "sexual": ["text"],
    "sexual/minors": ["text"],
    "violence": ["text"],
    "violence/graphic": ["text"],
}


def embeddings(
    model: str = "text-embedding-3-small", count: int = 1, prompt: int = 8, coded: bool = False, length: int = 4
) -> dict[str, Any]:
    """Embeddings of `count` inputs, all together `prompt` tokens; `coded`: in base64, as the official clients ask."""
    vector = (VECTOR * (-(-length // len(VECTOR))))[:length]
    value: Any = base64.b64encode(struct.pack(f"<{length}f", *vector)).decode() if coded else list(vector)
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": index, "embedding": value} for index in range(count)],
        "model": model,
        "usage": {"prompt_tokens": prompt, "total_tokens": prompt},
    }


def moderation(model: str = "omni-moderation-latest", count: int = 1, flagged: bool = False) -> dict[str, Any]:
    """A moderation of `count` inputs. It is free, and reports no usage."""
    one = {
        "flagged": flagged,
        "categories": {name: flagged and name == "violence" for name in CATEGORIES},
        "category_scores": {name: 0.9 if flagged and name == "violence" else 0.0001 for name in CATEGORIES},
        "category_applied_input_types": CATEGORIES,
    }
    return {"id": "modr-0d9740456c391e43c445bf0f010940c7", "model": model, "results": [one] * count}


def model(name: str = "gpt-4o") -> dict[str, Any]:
    """One model."""
    return {"id": name, "object": "model", "created": CREATED, "owned_by": "system"}


def models(names: Sequence[str] = ("gpt-4o", "gpt-4o-mini", "text-embedding-3-small")) -> dict[str, Any]:
    """The list of models."""
    return {"object": "list", "data": [model(name) for name in names]}


def file(
    file_id: str = "file-stand-in-1",
    size: int = 120,
    filename: str = "batch.jsonl",
    purpose: str = "batch",
    status: str = "processed",
) -> dict[str, Any]:
    """A file as the vendor describes it; `size` in bytes."""
    return {
        "id": file_id,
        "object": "file",
        "bytes": size,
        "created_at": CREATED,
        "filename": filename,
        "purpose": purpose,
        "status": status,
    }


def page(values: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A page of files or batches: the last one."""
    ends = {"first_id": values[0]["id"], "last_id": values[-1]["id"]} if values else {"first_id": "", "last_id": ""}
    return {"object": "list", "data": list(values), **ends, "has_more": False}


def batch_usage(input_tokens: int = 26, output_tokens: int = 18, cached: int = 0, reasoning: int = 0) -> dict[str, Any]:
    """The sums over a batch, all requests together; batch prices apply to them."""
    return {
        "input_tokens": input_tokens,
        "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": output_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": input_tokens + output_tokens,
    }


def batch(
    batch_id: str = "batch_stand_in_1",
    status: str = "completed",
    endpoint: str = "/v1/chat/completions",
    input_file: str = "file-stand-in-1",
    output_file: str | None = None,
    error_file: str | None = None,
    counts: tuple[int, int, int] = (2, 2, 0),
    used: dict[str, Any] | None = None,
    model_name: str | None = None,
) -> dict[str, Any]:
    """A batch. `counts` are total, completed and failed; usage and the answering model only where given."""
    ended = status in ("completed", "failed", "expired", "cancelled")
    answer: dict[str, Any] = {
        "id": batch_id,
        "object": "batch",
        "endpoint": endpoint,
        "input_file_id": input_file,
        "completion_window": "24h",
        "status": status,
        "created_at": CREATED,
        "expires_at": CREATED + 86_400,
        "request_counts": dict(zip(("total", "completed", "failed"), counts, strict=True)),
        "metadata": {},
    }
    given = {"output_file_id": output_file, "error_file_id": error_file, "usage": used, "model": model_name}
    answer |= {name: value for name, value in given.items() if value is not None}
    return {**answer, f"{status}_at": CREATED + 60} if ended else answer


def batch_line(custom_id: str, body: dict[str, Any] | None, status: int = 200) -> dict[str, Any]:
    """A line of a batch's output file: an answer's body, or with None the error of a request that ran out of time."""
    if body is None:
        fault = {"code": "batch_expired", "message": "This request could not be executed before the window expired."}
        return {"id": f"batch_req_{custom_id}", "custom_id": custom_id, "response": None, "error": fault}
    answer = {"status_code": status, "request_id": f"req_{custom_id}", "body": body}
    return {"id": f"batch_req_{custom_id}", "custom_id": custom_id, "response": answer, "error": None}


def batch_output(lines: Sequence[dict[str, Any]]) -> bytes:
    """The content of an output file."""
    return b"".join(json_lines(lines))
