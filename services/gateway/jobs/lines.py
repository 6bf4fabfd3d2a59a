"""What the lines of a batch can cost together: each bounded by itself, at its own model's price."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from services.core.estimate import Bound, Demand, UnboundedError, UnpricedComponentError, strict_bound
from services.core.jobs import JobPart
from services.core.pricebook import UNPRICED, PriceBook, Priced
from services.core.usage.reading import AnswerShape
from services.gateway.vendors import RequestFacts, RequestRefusedError
from services.gateway.vendors.openai_batch import BatchRequest, read_batch_line

# More than any vendor takes (OpenAI: 50,000; Azure: 100,000).
MAX_LINES: Final = 100_000
# Each has its price in the job's record. OpenAI takes one a file, and nobody has so many.
MAX_MODELS: Final = 64
_FILE: Final = "input_file_id"
# A thread that computes keeps every other waiting for the interpreter, five milliseconds at a time. Calls in flight
# must not notice a batch, so it stands back about once a millisecond.
_BREATH_S: Final = 0.0001
_READ_AT_A_TIME: Final = 8
_BOUND_AT_A_TIME: Final = 64


@dataclass(frozen=True, slots=True)
class BoundLines:
    """The first line's price, which stands for all, the bound of all lines, and what each model's lines make of it."""

    priced: Priced
    bound: Bound
    parts: tuple[JobPart, ...]


def read_input(batch: BatchRequest, content: bytes, shape: AnswerShape, body: bytes) -> RequestFacts:
    """The facts of a batch, those of its lines among them; a batch of free requests has none.

    `body` is the request's, `shape` its answer's. May take long: call it in a thread. Raises `RequestRefusedError`
    naming the line.
    """
    lines: list[RequestFacts] = []
    for number, line in enumerate(_lines(content), 1):
        if number % _READ_AT_A_TIME == 0:
            time.sleep(_BREATH_S)
        if len(lines) >= MAX_LINES:
            raise RequestRefusedError("invalid_request", _FILE, f"the input file has more than {MAX_LINES} lines")
        try:
            found = read_batch_line(batch.endpoint, line)
        except RequestRefusedError as error:
            raise RequestRefusedError(error.code, _FILE, f"line {number} of the input file: {error}") from error
        if found is not None and found.facts is not None:
            lines.append(replace(found.facts, body=b""))
    nothing = Demand(input_tokens=0, output_tokens_limit=0)
    model = lines[0].model if lines else ""
    context = lines[0].context if lines else {}
    return RequestFacts(
        model, False, nothing, shape, body, context=context, lines=tuple(lines), endpoint=batch.endpoint
    )


def bound_lines(prices: PriceBook, prices_as: str, at_ms: int, facts: RequestFacts) -> BoundLines:
    """The sum of the strict bounds of a batch's lines, and a nano-dollar for each line.

    The settlement rounds the whole batch once a component: of each line's bound less than a nano-dollar was rounded
    off. May take long: call it in a thread. Raises `RequestRefusedError` naming the line and its model.
    """
    found: dict[str, Priced] = {}
    sums: dict[str, _Sum] = {}
    lines = facts.lines
    for number, line in enumerate(lines, 1):
        if number % _BOUND_AT_A_TIME == 0:
            time.sleep(_BREATH_S)
        param, place = _place(facts, number)
        where = f"{place}: model {line.model!r}"
        if line.model not in found and len(found) == MAX_MODELS:
            message = f"{where} is one more than the {MAX_MODELS} models that a batch can have; submit it in parts"
            raise RequestRefusedError("invalid_request", param, message)
        priced = found.get(line.model) or prices.find(prices_as, line.model, at_ms)
        if priced is None:
            raise RequestRefusedError("unknown_model", param, f"{where} has no price, so the batch's cost has no bound")
        found[line.model] = priced
        try:
            bound = strict_bound(priced.price, line.demand)
        except UnboundedError as error:
            raise RequestRefusedError("invalid_request", param, f"{where}: {error}") from error
        except UnpricedComponentError as error:
            raise RequestRefusedError("unpriced_feature", param, f"{where}: {error}") from error
        sums.setdefault(line.model, _Sum()).add(bound, line.counted)
    first = found[lines[0].model]
    parts = tuple(each.part(model, found[model]) for model, each in sums.items())
    counts: dict[str, int] = {}
    for part in parts:
        for name, count in part.counts.items():
            counts[name] = counts.get(name, 0) + count
    amount_nano = sum(each.amount_nano for each in sums.values()) + len(lines)
    bound = Bound(
        sum(each.input_tokens for each in parts), sum(each.output_tokens for each in parts), amount_nano, counts
    )
    return BoundLines(first, bound, parts)


def free_batch(catalog_version: str) -> Priced:
    """The price of a batch of requests that are free."""
    return Priced("", "none", UNPRICED, catalog_version)


def whole_part(model: str, priced_at: Priced, bound: Bound, counted: Mapping[str, int]) -> JobPart:
    """The one part of a job that was bounded as a whole; `counted` is what its request itself is charged for."""
    sum_of_one = _Sum()
    sum_of_one.add(bound, counted)
    return sum_of_one.part(model, priced_at)


def _place(facts: RequestFacts, number: int) -> tuple[str, str]:
    """The field that a batch's line is in, and how to say which line."""
    if facts.endpoint:
        return _FILE, f"line {number} of the input file"
    return f"requests[{number - 1}]", f"requests[{number - 1}]"


def _lines(content: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(content):
        end = content.find(b"\n", at)
        end = len(content) if end == -1 else end
        yield content[at:end]
        at = end + 1


@dataclass(slots=True)
class _Sum:
    amount_nano: int = 0
    lines: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    line_input_tokens: int = 0
    line_output_tokens: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    line_counts: dict[str, int] = field(default_factory=dict)
    counted: dict[str, int] = field(default_factory=dict)
    line_counted: dict[str, int] = field(default_factory=dict)

    def add(self, bound: Bound, counted: Mapping[str, int]) -> None:
        self.amount_nano += bound.amount_nano
        self.lines += 1
        self.input_tokens += bound.input_tokens
        self.output_tokens += bound.output_tokens
        self.line_input_tokens = max(self.line_input_tokens, bound.input_tokens)
        self.line_output_tokens = max(self.line_output_tokens, bound.output_tokens)
        for counts, sums, most in (
            (bound.counts, self.counts, self.line_counts),
            (counted, self.counted, self.line_counted),
        ):
            for name, count in counts.items():
                sums[name] = sums.get(name, 0) + count
                most[name] = max(most.get(name, 0), count)

    def part(self, model: str, priced: Priced) -> JobPart:
        return JobPart(
            model=model,
            price=priced.price,
            lines=self.lines,
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            counts=self.counts,
            line_input_tokens=self.line_input_tokens,
            line_output_tokens=self.line_output_tokens,
            bound_nano=self.amount_nano,
            line_counts=self.line_counts,
            counted=self.counted,
            line_counted=self.line_counted,
        )
