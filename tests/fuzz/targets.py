"""What is fuzzed, and what must hold whatever comes in.

Answers and streams: no error, whatever the bytes; counts are counts; the client's bytes are the vendor's; the cut does
not matter; the usage can be priced. Requests: facts or a refusal that names what to do, nothing else.
"""

import gzip
import importlib
import pkgutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Final

import brotli
import zstandard

import services.core.usage
from services.core.components import COMPONENTS
from services.core.estimate import Demand, UnboundedError, UnpricedComponentError, strict_bound
from services.core.pricing import Price, price_usage
from services.core.usage.framing import splitter_for
from services.core.usage.reading import MAX_COUNT, AnswerShape, Framing, Reading, StreamReader
from services.gateway.meter import Metered, meter_for
from services.gateway.vendors import Dialect, RequestFacts, RequestRefusedError, Route, RouteRequest
from services.gateway.vendors.registry import DIALECTS, all_routes
from tests.fuzz import corpus
from tests.fuzz.mutate import Mutator

FRAMINGS: Final[tuple[Framing, ...]] = ("sse", "json_array", "lines")
PRICE: Final = Price(
    {name: 1_000_000 + place for place, name in enumerate(COMPONENTS)}, max_output_tokens=4096, context_window=100_000
)
_STREAM_TYPES: Final = {
    "sse": b"text/event-stream",
    "json_array": b"application/json",
    "lines": b"application/x-ndjson",
}


def _raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(1, wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


ENCODINGS: Final[tuple[tuple[bytes, Callable[[bytes], bytes]], ...]] = (
    (b"gzip", lambda data: gzip.compress(data, 1)),
    (b"gzip", lambda data: gzip.compress(data[:99], 1) + gzip.compress(data[99:], 1)),
    (b"deflate", lambda data: zlib.compress(data, 1)),
    (b"deflate", _raw_deflate),
    (b"br", lambda data: brotli.compress(data, quality=1)),
    (b"zstd", lambda data: zstandard.ZstdCompressor(1).compress(data)),
    (b"zstd", lambda data: zstandard.ZstdCompressor(1).compress(data[:99]) + zstandard.compress(data[99:])),
    (b"gzip, br", lambda data: data),
    (b"br", lambda data: data),
    (b"zstd", lambda data: data),
)


@dataclass(frozen=True, slots=True)
class Target:
    """One thing to fuzz: its name, and a run with one mutated input."""

    name: str
    run: Callable[[Mutator], None]


def targets() -> tuple[tuple[Target, ...], ...]:
    """Every target, in groups that get an equal share of the inputs."""
    shapes = sorted(_shapes(), key=lambda each: each[0])
    readers = [
        Target(f"{name} {kind}", _partial(run, shape, framing))
        for name, shape, framing in shapes
        for kind, run in (("body", _run_body), ("stream", _run_stream))
    ]
    packed = [Target(f"{name} packed", _partial(_run_packed, shape, framing)) for name, shape, framing in shapes]
    framings = [Target(f"{framing} frames", _partial(_run_frames, None, framing)) for framing in FRAMINGS]
    requests = [
        Target(f"{dialect.name} {route.name} request", _partial_request(dialect, route))
        for dialect, route in all_routes()
        if route.billing in ("held", "submitted")
    ]
    return tuple(readers), tuple(readers), (*packed, *framings), tuple(requests)


def _partial(run: Callable[[Mutator, Any, Framing], None], shape: Any, framing: Framing) -> Callable[[Mutator], None]:
    return lambda mutator: run(mutator, shape, framing)


def _partial_request(dialect: Dialect, route: Route) -> Callable[[Mutator], None]:
    return lambda mutator: _run_request(mutator, dialect, route)


def _shapes() -> Iterator[tuple[str, AnswerShape, Framing]]:
    """The shapes of every route, and those that no route has (yet) and need nothing to be made."""
    known = set()
    for dialect in DIALECTS.values():
        for route, answers in dialect.shapes.items():
            known.add(type(answers.shape))
            yield f"{dialect.name} {route}", answers.shape, answers.framing
    for module in pkgutil.iter_modules(services.core.usage.__path__):
        for name, kind in vars(importlib.import_module(f"services.core.usage.{module.name}")).items():
            if name.endswith("Shape") and isinstance(kind, type) and kind not in known and kind is not AnswerShape:
                known.add(kind)
                try:
                    yield f"{module.name} {name}", kind(), "sse"
                except TypeError:
                    continue


# ---- answers --------------------------------------------------------------------------------------------------------


def _facts(random: Random, shape: AnswerShape, framing: Framing, *, stream: bool) -> RequestFacts:
    demand = Demand(1000, random.choice((None, 0, 50)), counts={"web_searches": 3}, choices=random.choice((1, 2)))
    counted = random.choice(({}, {}, {"characters": 7}))
    hide = stream and random.random() < 0.4
    return RequestFacts("gpt-4o", stream, demand, shape, b"", framing, hide_usage_chunk=hide, counted=counted)


def _run_body(mutator: Mutator, shape: AnswerShape, framing: Framing) -> None:
    seed = mutator.random.choice(corpus.answers())
    data = mutator.text(mutator.random.choice(seed.events)[1])
    facts = _facts(mutator.random, shape, framing, stream=mutator.random.random() < 0.2)
    headers = {b"content-type": b"application/json; charset=utf-8"}
    pieces = mutator.pieces(data)
    passed_on, metered = _metered(facts, headers, pieces)
    assert passed_on == data, "bytes to the client changed"
    _check(metered, len(data))
    assert len(pieces) == 1 or _metered(facts, headers, [data])[1] == metered, "the cut mattered"


def _run_stream(mutator: Mutator, shape: AnswerShape, framing: Framing) -> None:
    data = _stream(mutator, framing)
    facts = _facts(mutator.random, shape, framing, stream=True)
    headers = {b"content-type": _STREAM_TYPES[framing]}
    pieces = mutator.pieces(data)
    passed_on, metered = _metered(facts, headers, pieces)
    _check(metered, len(data))
    assert passed_on == (_without_usage(shape, framing, data) if facts.hide_usage_chunk else data), "bytes changed"
    assert len(pieces) == 1 or _metered(facts, headers, [data])[1] == metered, "the cut mattered"


def _run_packed(mutator: Mutator, shape: AnswerShape, framing: Framing) -> None:
    """An answer in some content encoding, and that broken."""
    stream = mutator.random.random() < 0.5
    data = _stream(mutator, framing) if stream else mutator.text(mutator.random.choice(corpus.answers()).events[0][1])
    encoding, pack = mutator.random.choice(ENCODINGS)
    packed = pack(data)
    if mutator.random.random() < 0.5:
        packed = mutator.raw(packed)
    facts = replace(_facts(mutator.random, shape, framing, stream=stream), hide_usage_chunk=stream)
    content_type = _STREAM_TYPES[framing] if stream else b"application/json"
    headers = {b"content-type": content_type, b"content-encoding": encoding}
    passed_on, metered = _metered(facts, headers, mutator.pieces(packed))
    assert passed_on == packed, "bytes to the client changed"
    _check(metered, None)


def _run_frames(mutator: Mutator, _: None, framing: Framing) -> None:
    data = _stream(mutator, mutator.random.choice((framing, framing, *FRAMINGS)))
    pieces = mutator.pieces(data)
    found = []
    for chunks in (pieces, [data]):
        splitter = splitter_for(framing)
        frames = [frame for chunk in chunks for frame in splitter.feed(chunk)]
        frames.append(splitter.finish())
        assert b"".join(frame.raw for frame in frames) == data, "bytes lost or changed"
        found.append([frame for frame in frames if frame.raw])
    assert found[0] == found[1], "the cut mattered"


def _stream(mutator: Mutator, framing: Framing) -> bytes:
    seed = mutator.random.choice(corpus.answers())
    data = mutator.framed(mutator.events(seed), framing)
    return mutator.raw(data) if mutator.random.random() < 0.3 else data


def _without_usage(shape: AnswerShape, framing: Framing, data: bytes) -> bytes:
    reader = StreamReader(shape, framing)
    kept = [raw for raw, only_usage in reader.feed(data) if not only_usage]
    rest, only_usage, _ = reader.finish()
    return b"".join(kept) + (b"" if only_usage else rest)


def _metered(facts: RequestFacts, headers: Mapping[bytes, bytes], pieces: list[bytes]) -> tuple[bytes, Metered]:
    meter = meter_for(facts, 200, headers)
    passed_on = [meter.feed(piece) for piece in pieces]
    rest, metered = meter.finish()
    return b"".join(passed_on) + rest, metered


def _check(metered: Metered, size: int | None) -> None:
    reading = metered.reading
    assert isinstance(reading, Reading)
    for usage in (reading.usage, metered.usage):
        for name, count in usage.items():
            assert type(name) is str, f"{name!r} is no name"
            assert type(count) is int, f"{name} is {count!r}"
            # What is for the record only, in nano-dollars, is no count.
            assert 0 <= count <= MAX_COUNT or (name.endswith("_nano") and count >= 0), f"{name} is {count}"
    assert type(reading.text_bytes) is int
    assert reading.text_bytes >= 0
    if size is not None:
        assert reading.text_bytes <= 2 * size, "more text than bytes"
    for word in (reading.model, reading.failed, reading.job, reading.status):
        assert word is None or type(word) is str, f"{word!r} is no text"
    assert all(type(name) is str and type(value) is str for name, value in reading.context.items())
    assert type(reading.complete) is bool
    assert type(metered.complete) is bool
    assert metered.source in ("reported", "estimated", "counted"), metered.source
    costs = price_usage(PRICE, metered.usage, reading.context)
    assert all(each.cost_nano >= 0 and each.quantity >= 0 for each in costs)


# ---- requests -------------------------------------------------------------------------------------------------------


def _run_request(mutator: Mutator, dialect: Dialect, route: Route) -> None:
    random = mutator.random
    body = random.choice(corpus.requests())
    body = mutator.text(body) if random.random() < 0.9 else mutator.raw(body)
    form = body.startswith(b"--")
    params = {"model": random.choice(("gpt-4o", "gemini-2.5-flash", "é👋", "")), "id": "a"}
    request = RouteRequest(
        route,
        body,
        {name: value for name, value in params.items() if f"{{{name}}}" in route.path},
        random.choice(("", "alt=sse", "alt=json&key=1", "beta=true", "%ff&&=")),
        random.choice((corpus.FORM_TYPE, "application/json")) if form else "application/json; charset=utf-8",
        random.choice(((), ((b"anthropic-beta", b"fast-mode-2026-02-01,\xff"),))),
    )
    try:
        facts = dialect.read_request(request)
    except RequestRefusedError as error:
        refusal = error
    else:
        _check_facts(dialect, request, facts)
        return
    assert refusal.code, "a refusal without a code"
    assert str(refusal), "a refusal without a word"


def _check_facts(dialect: Dialect, request: RouteRequest, facts: RequestFacts) -> None:
    assert type(facts.model) is str
    assert type(facts.stream) is bool
    assert facts.hide_usage_chunk or facts.body == request.body, "bytes to the vendor changed"
    try:
        bound = strict_bound(PRICE, facts.demand)
        assert bound.amount_nano >= 0
    except (UnboundedError, UnpricedComponentError):
        pass
    try:
        renamed = dialect.renamed(request, "another-model")
        assert dialect.read_request(renamed).model == "another-model", "renamed in vain"
    except RequestRefusedError:
        pass
