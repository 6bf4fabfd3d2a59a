"""The one field of a vendor's answer that is not passed on as it is: where a batch's results are (ADR 10)."""

import re
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

import orjson

from services.gateway.body import Message
from services.gateway.table import Candidate, Place

# In descriptions of batches only, which hold nothing that a model or a user wrote.
_RESULTS_URL: Final = re.compile(rb'("results_url"\s*:\s*)("(?:[^"\\]|\\.)*")')
_RESULTS_PATH: Final = re.compile(r"/v1/messages/batches/[^/]+/results")
_HOST: Final = re.compile(rb"[A-Za-z0-9.\-_\[\]:]{1,255}")
_BATCHES: Final = "messages.batches"

Rewrite = Callable[[bytes], bytes]


def rewrites(scope: Message, place: Place, candidate: Candidate) -> Rewrite | None:
    """What puts this gateway's address into a batch's description; None for any other answer.

    Anthropic's clients fetch a batch's results from the absolute address that its description names, with the key they
    were given, which is ours.
    """
    name = candidate.route.name
    if candidate.dialect.name != "anthropic" or not name.startswith(_BATCHES) or name.endswith(".results"):
        return None
    here = _origin(scope) + scope["path"].removesuffix(place.below)

    def rewritten(found: re.Match[bytes]) -> bytes:
        path = urlsplit(orjson.loads(found[2])).path
        own = _RESULTS_PATH.search(path)
        return found[1] + orjson.dumps(here + (path if own is None else own[0]))

    return lambda body: _RESULTS_URL.sub(rewritten, body)


def _origin(scope: Message) -> str:
    """This gateway as its client sees it: a proxy that ends TLS in front of it says so in ``x-forwarded-proto``."""
    named = dict(scope["headers"])
    host = named.get(b"host", b"")
    if _HOST.fullmatch(host) is None:
        return ""
    forwarded = named.get(b"x-forwarded-proto", b"").strip().lower()
    scheme = forwarded.decode() if forwarded in (b"http", b"https") else scope.get("scheme", "http")
    return f"{scheme}://{host.decode()}"
