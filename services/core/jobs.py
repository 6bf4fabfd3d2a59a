"""Jobs: work of a vendor's that goes on after its answer (batches, background responses), held until it has ended.

A job's record is kept beside the hot state and has all that its settlement needs, so that any gateway can settle it. It
is no part of the ledger's truth: if it is lost, the job's hold outlives its time and is booked at its estimate (or let
go, where its org wants that: BU-5), as it is when a gateway dies between the end of a claim and the settlement.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal, Protocol, cast

from services.core.budgets import Charge
from services.core.codec import decode_facts, encode_facts
from services.core.estimate import HoldMode
from services.core.events import Attempt, CallFacts
from services.core.pricing import Price, Tier, Variant

JobKind = Literal["openai.batch", "openai.response", "anthropic.batch"]

# How long a job's hold lives. A batch ends within a day (OpenAI, "Batch API": completion window; Anthropic, "Batch
# processing": 24 hours) and a little for it to be finished and seen; a response in the background much sooner.
HOLD_MS: Final[Mapping[JobKind, int]] = {
    "openai.batch": 26 * 3_600_000,
    "anthropic.batch": 26 * 3_600_000,
    "openai.response": 2 * 3_600_000,
}
# For this long a job that was ended can't be kept again: whoever keeps it goes on trying for less than a minute.
ENDED_MS: Final = 3_600_000
# After this long nobody asks for a job any more. By then its hold has long been booked at its estimate.
GIVE_UP_MS: Final = 3 * 24 * 3_600_000
_NO_COUNTS: Final[Mapping[str, int]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class JobPart:
    """What a job's lines of one model can use in all, and the most that one of them can; tokens and other counts.

    A job without lines of its own is one line. `price` is the model's as it was when the job was held, `bound_nano` the
    part of the job's bound that these lines are. `counts` bounds the other counts of all lines, `line_counts` those of
    one; `counted` and `line_counted` are, in the same way, what the lines' requests themselves are charged for, which
    no answer reports (a search that a request asks for).
    """

    model: str
    price: Price
    lines: int
    input_tokens: int
    output_tokens: int
    counts: Mapping[str, int]
    line_input_tokens: int
    line_output_tokens: int
    bound_nano: int
    line_counts: Mapping[str, int] = field(default_factory=lambda: _NO_COUNTS)
    counted: Mapping[str, int] = field(default_factory=lambda: _NO_COUNTS)
    line_counted: Mapping[str, int] = field(default_factory=lambda: _NO_COUNTS)


@dataclass(frozen=True, slots=True)
class Job:
    """A job and all that its settlement needs.

    `path`, `query` and `headers` lead back to it: it was submitted to `path` below the vendor's base URL. `endpoint` is
    the route of an OpenAI batch's lines. `context` is the price context its request decided. `by_own_key`: it was
    submitted with its caller's own vendor key, which is not kept, so only that caller can ask for it. `tries` counts
    the times that its results could not be had; `gone` those of them when the vendor knew nothing of it, which counts
    again from `gone_from_ms` on. `parent_charged` and `admitted_at_ms` are those of its settlement.
    """

    org: str
    vendor: str
    job_id: str
    kind: JobKind
    dialect: str
    path: str
    query: str
    headers: tuple[tuple[str, str], ...]
    endpoint: str
    transaction_id: str
    facts: CallFacts
    charges: tuple[Charge, ...]
    held_nano: int
    bound_nano: int
    estimate_mode: HoldMode
    context: Mapping[str, str]
    parts: tuple[JobPart, ...]
    http_status: int
    attempts: tuple[Attempt, ...]
    latency_us: Mapping[str, int]
    trace: tuple[tuple[str, str], ...]
    by_own_key: bool
    gives_up_at_ms: int
    tries: int = 0
    gone: int = 0
    gone_from_ms: int = 0
    parent_charged: tuple[str, ...] = ()
    admitted_at_ms: int = 0


@dataclass(frozen=True, slots=True)
class Claim:
    """A job that one gateway has to itself for a while; `token` proves it."""

    job: Job
    token: str = field(repr=False)


class Jobs(Protocol):
    """Jobs under way, shared by all gateways. One conformance suite holds every implementation.

    Raises `ports.UnavailableError`. What is lost here costs exactness, never money: see the module.
    """

    async def keep(self, job: Job, next_ms: int, *, again: bool = False) -> None:
        """Keeps a new job, to be asked for in `next_ms`; one that is there already stays as it is.

        One that was ended in the last `ENDED_MS` is not kept: whoever had no answer from a first `keep` may try once
        more after others have found the job and ended it. `again` is for who ended it and could not settle it.
        """

    async def claim(self, org: str, vendor: str, job_id: str, lease_ms: int) -> Claim | None:
        """The job, for this caller alone until `lease_ms` have passed; None when there is none, or another has it."""

    async def claim_due(self, org: str, limit: int, lease_ms: int) -> Sequence[Claim]:
        """Up to `limit` jobs that are to be asked for by now, each claimed."""

    async def put_back(self, claim: Claim, next_ms: int) -> None:
        """Gives a claim up; its job, as it is now, is to be asked for in `next_ms`. Nothing once the lease is over and
        another has claimed it."""

    async def end(self, claim: Claim) -> bool:
        """Forgets the job; whether this claim still held it. Who is told so may settle it, and nobody else may."""


def encode_job(job: Job) -> bytes:
    """The job as JSON."""
    fields = {
        **{name: getattr(job, name) for name in (*_PLAIN, *_LATER)},
        "facts": encode_facts(job.facts),
        "charges": [[each.budget_id, each.scope, each.window] for each in job.charges],
        "parent_charged": list(job.parent_charged),
        "context": dict(job.context),
        "latency_us": dict(job.latency_us),
        "attempts": [asdict(each) for each in job.attempts],
        "parts": [_part_fields(each) for each in job.parts],
    }
    return json.dumps(fields, separators=(",", ":")).encode()


def decode_job(body: bytes) -> Job:
    """The job of `encode_job` JSON; raises `ValueError`, `KeyError` or `TypeError` on any other."""
    fields = json.loads(body)
    return Job(
        **{
            **{name: fields[name] for name in _PLAIN},
            **{name: fields.get(name, 0) for name in _LATER},
            "facts": decode_facts(fields["facts"]),
            "charges": tuple(Charge(*each) for each in fields["charges"]),
            "parent_charged": tuple(fields.get("parent_charged", ())),
            "context": fields["context"],
            "latency_us": fields["latency_us"],
            "attempts": tuple(Attempt(**each) for each in fields["attempts"]),
            "parts": tuple(_part(each) for each in fields["parts"]),
            "headers": tuple((name, value) for name, value in fields["headers"]),
            "trace": tuple((name, value) for name, value in fields["trace"]),
        }
    )


_PLAIN: Final = (
    "org", "vendor", "job_id", "kind", "dialect", "path", "query", "headers", "endpoint", "transaction_id", "held_nano",
    "bound_nano", "estimate_mode", "http_status", "trace", "by_own_key", "gives_up_at_ms", "tries",
)  # fmt: skip
# Counts that records of earlier gateways do not have.
_LATER: Final = ("gone", "gone_from_ms", "admitted_at_ms")


def _part_fields(part: JobPart) -> dict[str, object]:
    price = part.price
    return {
        "model": part.model,
        "lines": part.lines,
        "input_tokens": part.input_tokens,
        "output_tokens": part.output_tokens,
        "counts": dict(part.counts),
        "line_input_tokens": part.line_input_tokens,
        "line_output_tokens": part.line_output_tokens,
        "bound_nano": part.bound_nano,
        "line_counts": dict(part.line_counts),
        "counted": dict(part.counted),
        "line_counted": dict(part.line_counted),
        "price": {
            "rates": dict(price.rates),
            "tiers": _tiers_fields(price.tiers),
            "max_output_tokens": price.max_output_tokens,
            "context_window": price.context_window,
            "minimums": dict(price.minimums),
            "variants": [
                {"when": dict(each.when), "rates": dict(each.rates), "tiers": _tiers_fields(each.tiers)}
                for each in price.variants
            ],
        },
    }


def _part(fields: Mapping[str, Any]) -> JobPart:
    price = fields["price"]
    variants = tuple(Variant(each["when"], each["rates"], _tiers(each["tiers"])) for each in price["variants"])
    return JobPart(
        **{
            **fields,
            "price": Price(
                price["rates"],
                _tiers(price["tiers"]),
                price["max_output_tokens"],
                price["context_window"],
                variants,
                price["minimums"],
            ),
        }
    )


def _tiers_fields(tiers: tuple[Tier, ...]) -> list[object]:
    return [[each.above_input_tokens, dict(each.rates)] for each in tiers]


def _tiers(items: Sequence[Any]) -> tuple[Tier, ...]:
    return tuple(Tier(above, rates) for above, rates in cast("Sequence[tuple[int, dict[str, int]]]", items))
