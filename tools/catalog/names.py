"""The names under which a model of `genai-prices` is found: exact ones, and few prefixes.

`genai-prices` means to recognise whatever a log may say, so it matches by patterns, too. A gateway that has to be right
before the call can't: what only begins like a known name may be a later model with another price. A pattern therefore
gives the one name that its own text is. The look-up of `services.core.catalog` then takes off what pins a release.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from genai_prices.types import (
    ClauseAnd,
    ClauseContains,
    ClauseEndsWith,
    ClauseEquals,
    ClauseOr,
    ClauseRegex,
    ClauseStartsWith,
    MatchLogic,
    ModelInfo,
    Provider,
)

# Names whose rest is chosen by the customer (a fine-tuned model's), so that they can't be listed. What stands before
# it must name the model to its end.
_PREFIXES: Final = {
    "ft:gpt-3.5-turbo": ("ft:gpt-3.5-turbo:", "ft:gpt-3.5-turbo-0", "ft:gpt-3.5-turbo-1"),
    "ft:gpt-4o-2024-": ("ft:gpt-4o-2024-",),
    "ft:gpt-4o-mini-2024-": ("ft:gpt-4o-mini-2024-",),
    "gpt-4o-mini-2024-07-18.ft-": ("gpt-4o-mini-2024-07-18.ft-",),
}

# Names in use that genai-prices knows by a pattern only, as their vendors' lists of models have them.
_IN_USE: Final = {
    "computer-use": ("computer-use-preview",),
    "magistral-medium": ("magistral-medium-2506", "magistral-medium-2507", "magistral-medium-2509"),
    "magistral-small-": (
        "magistral-small-latest",
        "magistral-small-2506",
        "magistral-small-2507",
        "magistral-small-2509",
    ),
    "moderation": ("omni-moderation-latest", "text-moderation-latest"),
}

# The end of a pattern that stops within a name: ``claude-sonnet-4-2025``, ``gemini-2.0-flash-0``, ``magistral-small-``.
_CUT_SHORT: Final = re.compile(r"-(?:20\d\d|0)?")
# A pattern of a name with a release pinned to it, which the look-up knows without it.
_PINNED: Final = re.compile(r"\^(?P<name>.*?)(?:-|\[-@\])\\d\{[48]\}(?:-\\d\{2\}-\\d\{2\})?\$")

# Bedrock's names end with a version, and begin with the regions between which a call may be routed.
_BEDROCK_VERSION: Final = re.compile(r"-v\d+(?::\d+)?$")
_BEDROCK_REGIONS: Final = ("", "us.", "eu.", "apac.")


@dataclass
class Names:
    """Exact names, prefixes, and the patterns that neither of them stands for."""

    exact: list[str] = field(default_factory=list)
    prefixes: list[str] = field(default_factory=list)
    not_taken: list[str] = field(default_factory=list)


def names_of(provider: Provider, model: ModelInfo) -> Names:
    """The names of one model that genai-prices gives to no other of its vendor."""
    found = Names()
    if not model.id.startswith("regional.") and model.id[-1] != "-" and provider.find_model(model.id) is model:
        found.exact.append(model.id)
    for clause in _clauses(model.match):
        exact = [clause.equals] if isinstance(clause, ClauseEquals) else _spelled_out(clause)
        if provider.id == "aws" and not isinstance(clause, ClauseEquals):
            exact = [*exact, *_on_bedrock(model, exact)]
        # An earlier entry may match the same name; genai-prices gives the price of the first.
        found.exact += [name for name in exact if name not in found.exact and provider.find_model(name) is model]
        if not isinstance(clause, ClauseEquals):
            text = _text(clause)
            found.prefixes += _PREFIXES.get(text, ())
            if text not in _PREFIXES and not _is_pinned(clause, found.exact):
                found.not_taken.append(_described(clause))
    return found


def _clauses(match: MatchLogic) -> Sequence[MatchLogic]:
    return match.or_ if isinstance(match, ClauseOr) else [match]


def _spelled_out(clause: MatchLogic) -> list[str]:
    text = _text(clause).lstrip("/")
    if isinstance(clause, ClauseRegex) or text in _PREFIXES:
        return []
    names = [*_IN_USE.get(text, ())]
    bare = text.removesuffix("@")
    cut = _CUT_SHORT.search(bare, max(bare.rfind("-"), 0))
    if cut is None or cut.end() != len(bare):
        names.append(bare)
    return names


def _text(clause: MatchLogic) -> str:
    if isinstance(clause, ClauseAnd):
        return _text(clause.and_[0])
    return str(next(iter(vars(clause).values())))


def _is_pinned(clause: MatchLogic, exact: Sequence[str]) -> bool:
    if not isinstance(clause, ClauseRegex):
        return False
    pinned = _PINNED.fullmatch(clause.regex)
    return pinned is not None and pinned["name"].replace("\\", "") in exact


def _described(clause: MatchLogic) -> str:
    if isinstance(clause, ClauseAnd):
        return " and ".join(_described(each) for each in clause.and_)
    words = {
        ClauseStartsWith: "begins with",
        ClauseContains: "contains",
        ClauseEndsWith: "ends with",
        ClauseRegex: "matches",
    }
    return f"{words[type(clause)]} {_text(clause)!r}"


def _on_bedrock(model: ModelInfo, texts: Sequence[str]) -> Iterator[str]:
    """The names that a pattern stands for on Bedrock: with a version, and in groups of regions where it says none."""
    listed = model.id.removeprefix("regional.")
    version = _BEDROCK_VERSION.search(listed)
    for text in texts:
        if listed.startswith(text) or text in listed:
            yield from (region + listed for region in _BEDROCK_REGIONS if region not in ("", listed[: len(region)]))
            yield listed
        if version is not None and _BEDROCK_VERSION.search(text) is None:
            yield text + version[0]
        elif re.search(r"-v\d+$", text):
            yield text + ":0"
