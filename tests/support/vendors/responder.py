"""What every vendor's default responder shares: its table of routes, its credential check, cutting an answer short."""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from tests.support.vendors.server import Answer, Received

Handler = Callable[[Received, "re.Match[str]"], Answer]


class BadRequestError(Exception):
    """The request is not what the vendor documents; the text is what the vendor would say."""


class Responder(ABC):
    """Answers requests the way a vendor does. Made anew for each server: files, batches and the like are kept in it.

    `accepts` is the one good credential, or None for any. Without `demands` none is needed (a local server).
    """

    def __init__(self) -> None:
        self.accepts: str | None = None
        self.demands = True

    @abstractmethod
    def routes(self) -> Sequence[tuple[str, str, Handler]]:
        """Method, pattern of the path's end, and what answers."""

    @abstractmethod
    def failure(self, status: int, message: str | None = None) -> Answer:
        """The vendor's error of a status."""

    @staticmethod
    def credential(request: Received) -> str | None:
        """What the vendor takes for the caller's key: here a bearer token."""
        return bearer(request)

    def __call__(self, request: Received) -> Answer:
        if self.demands and (not request.credential or self.accepts not in (None, request.credential)):
            return self.failure(401)
        for method, pattern, handler in self.routes():
            if method == request.method and (found := re.search(rf"(?:^|/){pattern}$", request.path)):
                try:
                    return handler(request, found)
                except BadRequestError as fault:
                    return self.failure(400, str(fault))
                except (KeyError, json.JSONDecodeError) as fault:
                    return self.failure(400, f"missing or malformed: {fault}")
        return self.failure(404, f"Invalid URL ({request.method} {request.path})")


def bearer(request: Received) -> str | None:
    """The token of ``authorization: Bearer …``."""
    scheme, _, token = (request.header("authorization") or "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def cut(words: Sequence[str], tokens: int, limit: int | None) -> tuple[list[str], int, bool]:
    """An answer of `tokens` tokens under an output limit: its words, its tokens, and whether it was cut short."""
    if limit is None or tokens <= limit:
        return list(words), tokens, False
    return list(words[: max(0, limit)]), max(0, limit), True


def words_of(text: str) -> list[str]:
    """A text in the pieces it is streamed in: words with the space before them."""
    return re.findall(r"\s*\S+|\s+$", text)


def length_of(request: Received) -> int:
    """A count of input tokens for a request: a token for four bytes, so that a longer request costs more."""
    return max(1, len(request.body) // 4)


def needed(fields: dict[str, Any], *names: str) -> None:
    """Raises `BadRequestError` naming the first field that is not there."""
    for name in names:
        if name not in fields:
            raise BadRequestError(f"Missing required parameter: '{name}'.")
