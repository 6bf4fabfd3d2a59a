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
# What some servers leave out of a path before they look at it: parameters of a segment, what looks like a query, blanks
# and characters that can't be seen.
_LAX: Final = re.compile(r";[^/]*|[?#].*|[\x00-\x20\x7f-\xa0\s\u200b-\u200f\u2060\ufeff]", re.DOTALL)
# How often a path may be encoded over and over before nobody decodes it any more.
_DECODINGS: Final = 8
# What an id is made of. No server reads it in another way: nothing in it is left out, decoded or a path of its own.
_ID: Final = re.compile(r"(?!\.)(?=.*[A-Za-z0-9])[A-Za-z0-9._:@~+=,-]+(?<!\.)")
# Sub-delimiters that vendors use in a segment as they are.
PLAIN: Final = "-._~!$&'()*+,;=:@"
_BILLABLE: Final = ("held", "submitted")


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


class _Likeness:
    """Paths, for asking whether a server that is lax about spelling may take another one for one of them."""

    def __init__(self) -> None:
        self._literal: set[str] = set()
        self._patterns: list[re.Pattern[str]] = []

    def add(self, path: str, pattern: re.Pattern[str] | None) -> None:
        if pattern is None:
            self._literal.add(path.lower())
        else:
            self._patterns.append(re.compile(pattern.pattern, re.IGNORECASE))

    def has(self, plain: str) -> bool:
        """Whether a path, as the laxest server reads it, is one of these."""
        return plain.lower() in self._literal or any(pattern.fullmatch(plain) for pattern in self._patterns)


class RouteTable:
    """The routes of dialects, in their order of preference.

    A path whose braces would stand for something that is no id leads to no route that is free: whatever passes unheld
    must be no billable route in the eyes of any server that it comes to.
    """

    def __init__(self, dialects: Iterable[Dialect]) -> None:
        self._literal: dict[str, list[Candidate]] = {}
        self._patterns: dict[tuple[int, str], list[tuple[re.Pattern[str], Dialect, Route]]] = {}
        self._versions: set[str] = set()
        self._known = _Likeness()
        self._billable = _Likeness()
        for dialect in dialects:
            self._versions.update(dialect.versions)
            for route in dialect.routes:
                for path in _spellings(dialect, route):
                    pattern = _pattern(path, dialect) if "{" in path else None
                    if pattern is None:
                        self._literal.setdefault(path, []).append(Candidate(dialect, route))
                    else:
                        self._patterns.setdefault(_head(path), []).append((pattern, dialect, route))
                    self._known.add(path, pattern)
                    if route.billing in _BILLABLE:
                        self._billable.add(path, pattern)

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
        if any(pattern.fullmatch(path) for pattern, _, _ in self._patterns.get(_head(path), ())):
            return True  # of a free route, with something in it that is no id
        plain = _as_lax(path)
        return any(segment in (".", "..") for segment in plain.split("/")) or self._known.has(plain.rstrip("/."))

    def _at(self, path: str) -> list[Candidate]:
        found = list(self._literal.get(path, ()))
        for pattern, dialect, route in self._patterns.get(_head(path), ()):
            match = pattern.fullmatch(path)
            if match is None:
                continue
            params = {name: unquote(text) for name, text in match.groupdict().items()}
            if route.billing in _BILLABLE or self._is_safe(path, route, params):
                found.append(Candidate(dialect, route, params))
        return found

    def _is_safe(self, path: str, route: Route, params: Mapping[str, str]) -> bool:
        """Whether a path of a free route is nothing else to anybody."""
        for name, text in params.items():
            # Models of other makers are called after them, with a slash; nothing that is only read can be billed.
            ids = text.split("/") if name == "model" and route.method == "GET" else (text,)
            if not all(map(_ID.fullmatch, ids)):
                return False
        return not self._billable.has(_as_lax(path).rstrip("/."))


def _as_lax(path: str) -> str:
    """A path as the laxest server reads it."""
    for _ in range(_DECODINGS):
        if "%" not in path:
            break
        path = unquote(path)
    return re.sub("/+", "/", _LAX.sub("", path.replace("\\", "/")))


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
