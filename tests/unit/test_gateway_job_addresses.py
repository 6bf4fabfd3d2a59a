"""The one field of an answer that changes on its way: the address of a batch's results (ADR 10)."""

import json
from typing import Any

import pytest

from services.gateway.jobs.addresses import rewrites
from services.gateway.table import RouteTable
from services.gateway.vendors.registry import DIALECTS

TABLE = RouteTable(DIALECTS.values())
OWN = "/v1/messages/batches/msgbatch_1/results"
THEIRS = f"https://api.anthropic.com{OWN}"


def rewritten(body: bytes, path: str = OWN.removesuffix("/results"), method: str = "GET", **scope: Any) -> bytes | None:
    """The body as it reaches a client that called `path`; None when it is not for changing."""
    place = TABLE.find(method, path)
    (candidate,) = (each for each in place.candidates if each.dialect.name == "anthropic")
    headers = [(name.replace("_", "-").encode(), value) for name, value in scope.items() if name != "scheme"]
    whole = {"path": path, "scheme": scope.get("scheme", "http"), "headers": headers}
    rewrite = rewrites(whole, place, candidate)
    return None if rewrite is None else rewrite(body)


def address(url: str | None = THEIRS, **scope: Any) -> str | None:
    """The address that a client is given instead of `url`."""
    body = rewritten(json.dumps({"results_url": url}).encode(), **scope)
    assert body is not None
    found: str | None = json.loads(body)["results_url"]
    return found


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ({"host": b"gate:8080"}, f"http://gate:8080{OWN}"),
        ({"host": b"gate", "scheme": "https"}, f"https://gate{OWN}"),
        ({"host": b"gate", "x_forwarded_proto": b"https"}, f"https://gate{OWN}"),
        ({"host": b"gate", "scheme": "https", "x_forwarded_proto": b"HTTP"}, f"http://gate{OWN}"),
        ({"host": b"gate", "x_forwarded_proto": b"javascript"}, f"http://gate{OWN}"),
        ({"host": b"[::1]:8080"}, f"http://[::1]:8080{OWN}"),
        ({"host": b"gate", "path": "/anthropic/v1/messages/batches"}, f"http://gate/anthropic{OWN}"),
        ({}, OWN),
        ({"host": b'gate" onload="'}, OWN),
        ({"host": b"gate/../evil"}, OWN),
    ],
)
def test_the_address_is_what_the_client_called(scope: dict[str, Any], expected: str) -> None:
    assert address(**scope) == expected


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [
        (f"https://proxy.test/some/prefix{OWN}", f"http://gate{OWN}"),
        (f"{THEIRS}?token=1", f"http://gate{OWN}"),
        ("https://storage.test/elsewhere", "http://gate/elsewhere"),
        ("/relative", "http://gate/relative"),
    ],
)
def test_no_other_host_is_ever_named(theirs: str, expected: str) -> None:
    assert address(theirs, host=b"gate") == expected


def test_an_address_that_is_not_there_yet_stays_so() -> None:
    assert address(None, host=b"gate") is None


def test_nothing_else_changes() -> None:
    body = '{ "a": 1.50,"results_url" :\n "%s", "é": "\\u00e9", "data": [{"results_url":"%s"}]}'
    theirs = THEIRS.replace("/", "\\/")
    here = f"http://gate{OWN}"
    assert rewritten((body % (theirs, THEIRS)).encode(), host=b"gate") == (body % (here, here)).encode()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/messages/batches"),
        ("POST", "/v1/messages/batches"),
        ("POST", "/v1/messages/batches/msgbatch_1/cancel"),
        ("DELETE", "/v1/messages/batches/msgbatch_1"),
    ],
)
def test_every_description_of_a_batch_is_changed(method: str, path: str) -> None:
    assert rewritten(b"{}", path, method, host=b"gate") == b"{}"


@pytest.mark.parametrize(("method", "path"), [("GET", OWN), ("POST", "/v1/messages"), ("GET", "/v1/models")])
def test_what_models_wrote_is_never_touched(method: str, path: str) -> None:
    assert rewritten(b"{}", path, method, host=b"gate") is None
