"""The loop of a Python driver: scenarios as JSON lines on standard input, outcomes as JSON lines on standard output.

A scenario is ``{"base_url", "api_key", "model", "scenario", …}``; which other fields a driver takes:

- ``prompt``: the user's words;
- ``request``: fields for the call itself, over those the scenario sends anyway;
- ``headers``, ``max_retries``, ``timeout_s``: for the client's constructor, left to the client's default when absent;
- ``image_png``: the picture of ``vision``, in base64;
- ``hang_up_after``: in streams, close the stream after so many chunks.

An outcome is ``{"ok": true, "text", "tool_calls": [{"name", "arguments"}], "usage", "parsed", "chunks", "data",
"elapsed_s"}``: usage as the client reports it, `data` what a scenario without text yields. When the client raised it is
``{"ok": false, "exception", "mro", "causes", "status", "message", "body", "code", "type", "param", …}`` with what had
arrived before.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pydantic import BaseModel

Ask = dict[str, Any]
Outcome = dict[str, Any]
Scenario = Callable[[Ask, Outcome], None]

# Eight by eight pixels, all red.
RED_PNG = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAEUlEQVR42mP4z8CAFTEMLQkAKP8/wc53yE8AAAAASUVORK5CYII="


class Place(BaseModel):
    """What ``structured`` asks for."""

    city: str
    country: str


WEATHER_PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}


def prompt(ask: Ask) -> str:
    """The user's words."""
    return str(ask.get("prompt", "Say hello."))


def image(ask: Ask) -> str:
    """The picture of ``vision``, a PNG in base64."""
    return str(ask.get("image_png", RED_PNG))


def given(ask: Ask, **names: str) -> dict[str, Any]:
    """The options that the scenario names, under the client's own names for them."""
    return {theirs: ask[ours] for ours, theirs in names.items() if ours in ask}


def counted(ask: Ask, outcome: Outcome, stream: Iterable[Any]) -> Iterator[Any]:
    """A stream's chunks, counted, up to where the scenario hangs up."""
    for chunk in stream:
        outcome["chunks"] += 1
        yield chunk
        if outcome["chunks"] == ask.get("hang_up_after"):
            return


def plain(value: Any) -> Any:
    """A client's own object as JSON."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_unset=True)
    return value


def tool_call(name: str | None, arguments: Any) -> dict[str, Any]:
    """One tool call; arguments that came as text are decoded."""
    return {"name": name, "arguments": json.loads(arguments) if isinstance(arguments, str) else arguments}


def serve(scenarios: dict[str, Scenario]) -> None:
    """Runs what comes in until the input ends. ``error`` is ``plain``, expected to be refused."""
    scenarios = {**scenarios, "error": scenarios["plain"]}
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no outcome
    for line in sys.stdin:
        ask = json.loads(line)
        if ask["scenario"] == "scenarios":
            outcome: Outcome = {"ok": True, "data": sorted(scenarios)}
        else:
            outcome = run(scenarios[ask["scenario"]], ask)
        print(json.dumps(outcome, default=plain), file=answers, flush=True)


def run(scenario: Scenario, ask: Ask) -> Outcome:
    """The outcome of one scenario."""
    outcome: Outcome = {"text": "", "tool_calls": [], "usage": None, "parsed": None, "chunks": 0, "data": None}
    began_s = time.monotonic()
    try:
        scenario(ask, outcome)
        outcome["ok"] = True
    except Exception as error:
        outcome |= failure(error)
    outcome["elapsed_s"] = time.monotonic() - began_s
    return outcome


def failure(error: BaseException) -> Outcome:
    """What a caller can see of an exception."""
    response = getattr(error, "response", None)
    statuses = (
        getattr(error, "status_code", None),
        getattr(error, "code", None),
        getattr(response, "status_code", None),
    )
    facts = {name: getattr(error, name, None) for name in ("code", "type", "param")}
    body = getattr(error, "body", None)
    return {
        "ok": False,
        "exception": full_name(type(error)),
        "mro": [each.__name__ for each in type(error).__mro__],
        "causes": [full_name(type(each)) for each in causes(error)],
        "status": next((each for each in statuses if isinstance(each, int)), None),
        "message": str(error),
        "body": plain(getattr(error, "details", None) if body is None else body),
        **{name: value for name, value in facts.items() if isinstance(value, str)},
    }


def causes(error: BaseException) -> Iterator[BaseException]:
    """The exceptions behind an exception, nearest first."""
    seen = {error}
    while (behind := error.__cause__ or error.__context__) is not None and behind not in seen:
        yield behind
        seen.add(behind)
        error = behind


def full_name(kind: type) -> str:
    """A class's name with its module."""
    return f"{kind.__module__}.{kind.__qualname__}"
