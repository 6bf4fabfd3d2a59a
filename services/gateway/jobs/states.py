"""The three kinds of job: what their vendor says of how they stand, and where it keeps what they used."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

import orjson

from services.core.events import Outcome
from services.core.jobs import Job, JobKind
from services.core.usage.anthropic_messages import NEEDED, BatchResultsShape
from services.core.usage.openai_batch import SHAPES, read_output_line
from services.core.usage.openai_responses import ResponsesShape
from services.core.usage.reading import Reading, count_at, text_at

# By the status of a batch that has ended (OpenAI, "Batch API": status of a batch).
_BATCH_OUTCOMES: Final[Mapping[str, Outcome]] = {
    "completed": "completed",
    "expired": "partial",
    "cancelled": "cancelled",
    "failed": "vendor_error",
}
_RESPONSE_OUTCOMES: Final[Mapping[str, Outcome]] = {
    "completed": "completed",
    "incomplete": "completed",  # it came to an end that its own limits set, and is charged as such
    "cancelled": "cancelled",
    "failed": "vendor_error",
}
_RESPONSE: Final = ResponsesShape()
_RESULTS: Final = BatchResultsShape()


@dataclass(frozen=True, slots=True)
class Ending:
    """A job that has ended. `files` are the paths of its results below the vendor's base URL, as its routes are.

    `outcome` is None when only the results tell. `reading` is the use of a job whose answer has it, None when it had
    none to report.
    """

    job_id: str
    outcome: Outcome | None
    files: tuple[str, ...] = ()
    reading: Reading | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """A line of results. Not `charged`: the vendor refused or never ran it. `kind` is its own word for how it went."""

    charged: bool
    kind: str
    reading: Reading


def kind_of(dialect: str, route: str) -> JobKind | None:
    """The kind of job that an answer of a submitted or watched route tells of."""
    if dialect == "anthropic":
        return "anthropic.batch"
    noun = route.partition(".")[0]
    return "openai.batch" if noun == "batches" else "openai.response" if noun == "responses" else None


def ending_of(kind: JobKind, path: str, body: Mapping[str, Any]) -> Ending | None:
    """How a job has ended, by its vendor's answer; None while it goes on. `path` is where it was submitted."""
    job_id = text_at(body, "id")
    if job_id is None:
        return None
    if kind == "openai.batch":
        outcome = _BATCH_OUTCOMES.get(text_at(body, "status") or "")
        root = path.rpartition("/")[0]
        names = [text_at(body, name) for name in ("output_file_id", "error_file_id")]
        if count_at(body, ("request_counts", "completed")) and not names[0]:
            return None  # what it has done is still to be written
        files = tuple(f"{root}/files/{quote(name, safe='')}/content" for name in names if name)
        return None if outcome is None else Ending(job_id, outcome, files)
    if kind == "anthropic.batch":
        has_ended = text_at(body, "processing_status") == "ended"
        return Ending(job_id, None, (f"{status_path(path, job_id)}/results",)) if has_ended else None
    return response_ending(job_id, _RESPONSE.whole(body))


def response_ending(job_id: str, reading: Reading) -> Ending | None:
    """How a response in the background has ended, by its reading; None while it goes on.

    A failure that reports no use and wrote nothing is the vendor's, and it charges for none.
    """
    outcome = _RESPONSE_OUTCOMES.get(reading.status or "")
    if outcome is None:
        return None
    is_free = reading.failed is not None and not reading.usage and not reading.text_bytes
    return Ending(job_id, outcome, reading=None if is_free else reading)


def has_ended(kind: JobKind, reading: Reading) -> bool:
    """Whether a submission's answer is the end of its work, too: that of a response that was done at once."""
    return kind == "openai.response" and reading.complete and reading.status in _RESPONSE_OUTCOMES


def status_path(path: str, job_id: str) -> str:
    """Where a job that was submitted to `path` tells how it stands."""
    return f"{path}/{quote(job_id, safe='')}"


def needed_of(job: Job) -> Sequence[str]:
    """The counts that every charged line of a job has to report."""
    if job.kind == "openai.batch":
        shape = SHAPES.get(job.endpoint)
        return () if shape is None else shape.needed
    return NEEDED if job.kind == "anthropic.batch" else _RESPONSE.needed


def read_line(job: Job, line: bytes) -> Line | None:
    """A line of a job's results; None for a blank one. Raises `ValueError` for one that can't be read."""
    if job.kind == "openai.batch":
        answer = read_output_line(job.endpoint, line, orjson.loads)
        return None if answer is None else Line(answer.charged, "answered", answer.reading)
    if not line.strip():
        return None
    value = orjson.loads(line)
    if not isinstance(value, dict):
        raise ValueError("a line of a batch's results is no JSON object")
    reading = _RESULTS.whole(value)
    if reading.status is None:
        raise ValueError("a line of a batch's results does not say how its request went")
    # Only what succeeded is charged (Anthropic, "Batch processing").
    return Line(reading.status == "succeeded", reading.status, reading)


def outcome_of(kinds: Mapping[str, int]) -> Outcome:
    """How a batch went whose vendor says so line by line: `kinds` counts its results by their kind."""
    if kinds.get("canceled"):
        return "cancelled"
    if kinds.get("expired"):
        return "partial"
    return "completed" if kinds.get("succeeded") else "vendor_error"
