"""What metering costs: µs per JSON answer and per streamed chunk, and bytes a second, for every answer shape.

The answers are those of tests/golden/answers. A stream's middle is repeated, since real ones are mostly middle, and
comes one event a chunk. Beside it, in the same run and on the same bytes: `orjson.loads` alone (what any reader must
pay), and passing the bytes on unread. Each is measured in turn, several rounds: trust the ratios, not the absolute
figures.

    python -m bench.readers [--rounds 5] [--seconds 0.05] [--only openai]
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from services.core.estimate import Demand
from services.core.usage.framing import splitter_for
from services.core.usage.reading import AnswerShape, Framing
from services.gateway.meter import Meter, meter_for
from services.gateway.vendors import RequestFacts
from services.gateway.vendors.registry import framing_of, shape_of

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden" / "answers"
MIDDLE_REPEATED = 50


@dataclass(frozen=True, slots=True)
class Sample:
    """Answers of one route: the chunks of each, the JSON texts in all of them, and how a chunk is called."""

    name: str
    unit: str
    answers: list[list[bytes]]
    texts: list[bytes]
    facts: RequestFacts
    content_type: bytes

    @property
    def chunks(self) -> int:
        """Chunks of all answers."""
        return sum(map(len, self.answers))

    @property
    def size(self) -> int:
        """Bytes of all answers."""
        return sum(len(chunk) for answer in self.answers for chunk in answer)


def samples(only: str) -> Iterator[Sample]:
    """The answers of every route that has some, whole and streamed apart."""
    for path in sorted(GOLDEN.glob("*/*.json")):
        vendor, route = path.parent.name, path.stem
        cases = json.loads(path.read_text())
        try:
            shape, framing = shape_of(vendor, route), framing_of(vendor, route)
        except KeyError:
            continue
        if only not in f"{vendor} {route}":
            continue
        bodies = [orjson.dumps(case["body"]) for case in cases if isinstance(case.get("body"), dict)]
        streams = ["".join(case["stream"]).encode() for case in cases if case.get("stream")]
        if bodies:
            yield Sample(
                f"{vendor} {route}", "answer", [[body] for body in bodies], bodies, facts(shape, framing, stream=False),
                b"application/json",
            )  # fmt: skip
        for kind in ("sse", "json_array", "lines"):
            of_kind = [long_stream(stream, kind) for stream in streams if framing_in(stream) == kind]
            if of_kind:
                answers, texts = [chunks for chunks, _ in of_kind], [text for _, texts in of_kind for text in texts]
                content_type = {"sse": b"text/event-stream", "lines": b"application/x-ndjson"}.get(kind, b"")
                yield Sample(
                    f"{vendor} {route} ({kind})", "chunk", answers, texts, facts(shape, kind, stream=True), content_type
                )


def facts(shape: AnswerShape, framing: Framing, *, stream: bool) -> RequestFacts:
    """What the meter needs of the request that is answered."""
    return RequestFacts("model", stream, Demand(1000, 1000), shape, b"", framing)


def framing_in(stream: bytes) -> Framing:
    """How a golden stream comes."""
    return "json_array" if stream.startswith(b"[") else "lines" if stream.startswith(b"{") else "sse"


def long_stream(stream: bytes, framing: Framing) -> tuple[list[bytes], list[bytes]]:
    """The frames of a stream with its middle repeated, and the JSON texts in them."""
    splitter = splitter_for(framing)
    frames = [*splitter.feed(stream), splitter.finish()]
    frames = frames[:1] + frames[1:-2] * MIDDLE_REPEATED + frames[-2:]
    texts = [frame.data for frame in frames if frame.data is not None and frame.data.strip() != b"[DONE]"]
    return [frame.raw for frame in frames if frame.raw], texts


def seconds_of(work: Callable[[], None], least: float) -> float:
    """How long `work` takes, as a mean over at least so many seconds of it."""
    begun = time.process_time()
    times = 0
    while (taken := time.process_time() - begun) < least:
        work()
        times += 1
    return taken / times


def measure(sample: Sample, rounds: int, least: float) -> list[tuple[float, float, float]]:
    """Seconds for all of a sample's answers in each round: metered, parsed only, passed on only."""
    headers = {b"content-type": sample.content_type}

    def through(meter: Meter, chunks: list[bytes]) -> None:
        for chunk in chunks:
            meter.feed(chunk)
        meter.finish()

    def metered() -> None:
        for chunks in sample.answers:
            through(meter_for(sample.facts, 200, headers), chunks)

    def parsed() -> None:
        for text in sample.texts:
            orjson.loads(text)

    def passed_on() -> None:
        for chunks in sample.answers:
            through(meter_for(sample.facts, 500, headers), chunks)

    metered()
    return [
        (seconds_of(metered, least), seconds_of(parsed, least), seconds_of(passed_on, least)) for _ in range(rounds)
    ]


def main() -> None:
    """Measures every sample and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.05, help="for each measurement")
    parser.add_argument("--only", default="", help="routes whose name has this in it")
    options = parser.parse_args()
    print(f"python {platform.python_version()}, {os.cpu_count()} cores, medians over {options.rounds} rounds")
    print(f"{'answers':<44}{'bytes each':>11}{'µs each':>9}{'MB/s':>8}{'of orjson':>11}{'passed on':>11}")
    for sample in samples(options.only):
        results = measure(sample, options.rounds, options.seconds)
        seconds = statistics.median(metered for metered, _, _ in results)
        to_parsing = statistics.median(metered / parsed for metered, parsed, _ in results)
        to_passing = statistics.median(metered / passed for metered, _, passed in results)
        name = f"{sample.name}, a {sample.unit}"
        print(
            f"{name:<44}{sample.size / sample.chunks:>11.0f}{1e6 * seconds / sample.chunks:>9.2f}"
            f"{sample.size / seconds / 1e6:>8.1f}{to_parsing:>10.1f}x{to_passing:>10.1f}x"
        )


if __name__ == "__main__":
    main()
