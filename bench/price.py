"""How many answers a second ``farthing price --jsonl`` prices, on one core: ``python -m bench.price``.

The command runs as a user would run it, start included, on JSON answers and on transcripts of streams.
"""

import argparse
import json
import subprocess
import sys
import time
from typing import Any, Final

_TEXT: Final = "What a call costs is known when it has ended, and what it can cost before it began. " * 6
_USAGE: Final = {
    "prompt_tokens": 1_200,
    "completion_tokens": 150,
    "total_tokens": 1_350,
    "prompt_tokens_details": {"cached_tokens": 1_024, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 64},
}


def answer(number: int) -> dict[str, Any]:
    """A line with a JSON answer."""
    choices = [{"index": 0, "message": {"role": "assistant", "content": _TEXT}, "finish_reason": "stop"}]
    head = {"id": f"chatcmpl-{number}", "object": "chat.completion", "created": 1_795_737_600 + number}
    body = {**head, "model": "gpt-4o-2024-08-06", "choices": choices, "usage": _USAGE, "service_tier": "default"}
    return {"id": number, "vendor": "openai", "body": body}


def transcript(number: int) -> dict[str, Any]:
    """A line with a stream of eighty events."""
    head = {"id": f"chatcmpl-{number}", "object": "chat.completion.chunk", "created": 1_795_737_600 + number}
    head["model"] = "gpt-4o-2024-08-06"
    words = _TEXT.split(" ")[:78]
    chunks: list[dict[str, Any]] = [{**head, "choices": [{"index": 0, "delta": {"content": word}}]} for word in words]
    chunks.append({**head, "choices": [], "usage": _USAGE})
    events = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
    return {"id": number, "vendor": "openai", "stream": "".join([*events, "data: [DONE]\n\n"])}


def run(lines: list[bytes]) -> float:
    """Seconds that pricing the lines takes, start included; exits where one has no price."""
    command = [sys.executable, "-c", "from services.cli import main; main()", "price", "--jsonl"]
    begin = time.perf_counter()
    done = subprocess.run(command, input=b"".join(lines), capture_output=True, check=False)
    if done.returncode != 0:
        sys.exit(done.stderr.decode() or done.stdout[:500].decode())
    return time.perf_counter() - begin


def main() -> None:
    """Prints answers a second."""
    parser = argparse.ArgumentParser(description="Benchmark the price check.")
    parser.add_argument("--answers", type=int, default=20_000)
    many: int = parser.parse_args().answers
    for name, make in (("JSON answers", answer), ("streams of 80 events", transcript)):
        lines = [json.dumps(make(number)).encode() + b"\n" for number in range(many)]
        size = sum(map(len, lines))
        seconds = run(lines)
        print(f"{name}: {many / seconds:,.0f} a second, {size / seconds / 1e6:,.1f} MB/s, start included")


if __name__ == "__main__":
    main()
