"""Which route a path is: of every dialect, under its own path, and under a vendor's name before it."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote, unquote

from services.core.identity import IdentityError, check_name
from services.gateway.vendors import Dialect, Route

_PARAMETER: Final = re.compile(r"\{(\w+)\}")
_VERSION: Final = re.compile(r"v\d+\w*")
# What some servers leave out of a path before they look at it: parameters of a segment, blanks and control characters.
_LAX: Final = re.compile(r";[^/]*|[\x00-\x20\x7f]")
# Sub-delimiters that vendors use in a segment as they are.
PLAIN: Final = "-._~!$&'()*+,;=:@"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A dialect's route that a path can be, and what the path's braces stand for."""

    dialect: Dialect
    route: Route
    params: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Place:
    """What a path leads to: candidates in the order of preference, and the vendor it names, if it does.

    `allowed` are the methods of routes at that path when none takes the method asked for. `is_vendors` tells a path
    that looks like one of a vendor's API from any other; `below` is the path without the vendor's name.
    """

    candidates: tuple[Candidate, ...]
    vendor: str | None
    below: str
    allowed: tuple[str, ...] = ()
    is_vendors: bool = False


class RouteTable:
    """The routes of dialects, in their order of preference."""

    def __init__(self, dialects: Iterable[Dialect]) -> None:
        self._literal: dict[str, list[Candidate]] = {}
        self._patterns: dict[tuple[int, str], list[tuple[re.Pattern[str], Dialect, Route]]] = {}
        self._versions: set[str] = set()
        for dialect in dialects:
            self._versions.update(dialect.versions)
            for route in dialect.routes:
                for path in _spellings(dialect, route):
                    if "{" in path:
                        self._patterns.setdefault(_head(path), []).append((_pattern(path, dialect), dialect, route))
                    else:
                        self._literal.setdefault(path, []).append(Candidate(dialect, route))

    def find(self, method: str, path: str, *, has_api_version: bool = False) -> Place:
        """What a request of that method and path (as `spelled`) is.

        A vendor's name may also be how a path of its own begins. Below a name with a version after it, the name wins;
        so it does over Azure's (``/openai/responses``), unless the query has the version that Azure's clients send.
        """
        if not path.startswith("/"):  # HTTP has a request for the server itself, whose path is an asterisk
            return Place((), None, path)
        vendor, below = _vendor_of(path)
        named = [] if vendor is None else self._at(below)
        at = self._at(path)
        name_wins = _VERSION.fullmatch(below.split("/", 2)[1]) is not None or all(map(_is_azures, at))
        if named and not (at and (has_api_version or not name_wins)):
            return _place(method, named, vendor, below)
        if at:
            return _place(method, at, None, path)
        return Place((), vendor, below, is_vendors=below.split("/", 2)[1] in self._versions)

    def resembles(self, path: str) -> bool:
        """Whether a vendor that is lax about spelling may take a path for that of a route here."""
        plain = _LAX.sub("", unquote(unquote(path)).replace("\\", "/"))
        plain = re.sub("/+", "/", plain).rstrip("/.")
        if plain.lower() in {known.lower() for known in self._literal}:
            return True
        patterns = (pattern for found in self._patterns.values() for pattern, _, _ in found)
        return any(re.fullmatch(pattern.pattern, plain, re.IGNORECASE) for pattern in patterns)

    def _at(self, path: str) -> list[Candidate]:
        found = list(self._literal.get(path, ()))
        for pattern, dialect, route in self._patterns.get(_head(path), ()):
            match = pattern.fullmatch(path)
            if match is not None:
                found.append(
                    Candidate(dialect, route, {name: unquote(text) for name, text in match.groupdict().items()})
                )
        return found


def spelled(raw_path: bytes) -> str:
    """A request's path decoded once, segment by segment: a slash or percent sign inside of one stays encoded."""
    path = raw_path.decode("latin-1")
    if "%" not in path:
        return path
    return "/".join(unquote(segment).replace("%", "%25").replace("/", "%2F") for segment in path.split("/"))


def path_below(base_url: str, dialect: Dialect, candidate: Candidate) -> str:
    """The path of a route below a connection's base URL, which may hold the path's version already."""
    path = _PARAMETER.sub(lambda match: quote(candidate.params[match[1]], safe=PLAIN), candidate.route.path)
    version = path.split("/", 2)[1]
    if dialect.base_has_version or base_url.rstrip("/").endswith("/" + version):
        return path.removeprefix("/" + version)
    return path


def _is_azures(candidate: Candidate) -> bool:
    return candidate.dialect.name == "azure"


def _place(method: str, found: list[Candidate], vendor: str | None, below: str) -> Place:
    fitting = tuple(each for each in found if each.route.method == method)
    allowed = () if fitting else tuple(sorted({each.route.method for each in found}))
    return Place(fitting, vendor, below, allowed, is_vendors=True)


def _spellings(dialect: Dialect, route: Route) -> Iterable[str]:
    yield route.path
    # Some clients are given the bare address and leave the version out.
    if dialect.base_has_version:
        yield "/" + route.path.split("/", 2)[2]


def _head(path: str) -> tuple[int, str]:
    """What a path and the pattern that it matches have in common: how many segments, and the first, always literal."""
    return path.count("/"), path.split("/", 2)[1]


def _pattern(path: str, dialect: Dialect) -> re.Pattern[str]:
    parts = _PARAMETER.split(path)
    # What follows a colon in Google's paths is a method, and no model's name: a free route must not take one in.
    bounds = {"model": "[^/:]+" if dialect.name == "google" else "[^/]+?"}
    return re.compile(
        "".join(
            re.escape(part) if i % 2 == 0 else f"(?P<{part}>{bounds.get(part, '[^/]+?')})"
            for i, part in enumerate(parts)
        )
    )


def _vendor_of(path: str) -> tuple[str | None, str]:
    """The vendor that a path may name (``/openai/v1/…``), and the rest of the path."""
    _, first, *rest = path.split("/", 2)
    if not rest or _VERSION.fullmatch(first) is not None:
        return None, path
    try:
        return check_name("vendor", first), "/" + rest[0]
    except IdentityError:
        return None, path
