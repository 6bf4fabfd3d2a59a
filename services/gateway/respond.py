"""Towards the client: our response headers and trailing comment (GW-7), refusals in the vendor's envelope (GW-8)."""

import json
from collections.abc import Mapping
from typing import Final

from services.core.money import format_usd
from services.gateway.admit import AdmittedCall
from services.gateway.body import Send
from services.gateway.headers import CONTROL, DEFAULT_PREFIX, Headers, end_to_end
from services.gateway.hold import FAIL_OPEN
from services.gateway.refusal import RefusedError
from services.gateway.settle import Settled
from services.gateway.vendors import Dialect

JSON: Final = (b"content-type", b"application/json")
# Most vendors' clients heed it; without it some ask again and again for what will never be.
DONT_RETRY: Final = (b"x-should-retry", b"false")

# What speaks of the vendor's own origin or connection, and its body's length, which is ours to say.
_NOT_FOR_CLIENTS: Final = frozenset((b"content-length", b"set-cookie", b"alt-svc", b"strict-transport-security"))


class ResponseHeaders:
    """Our response headers under a given prefix (lower case, with its last dash)."""

    def __init__(self, prefix: str) -> None:
        start = prefix.encode()
        self._prefixes = (start, DEFAULT_PREFIX)
        self._transaction = start + b"transaction-id"
        self._model = start + b"model"
        self._retries = start + b"retry-count"
        self._budget = start + b"budget-id"
        self._remaining = start + b"budget-remaining"
        self._overhead = start + b"latency-overhead"
        self._cost = start + b"cost"
        self._tokens_in = start + b"tokens-in"
        self._tokens_out = start + b"tokens-out"
        self._fail_open = start + b"fail-open"

    def of_vendor(self, headers: Headers) -> list[tuple[bytes, bytes]]:
        """A vendor's response headers as they go on, without its content length and what no server may send."""
        return [
            (name, value)
            for name, value in end_to_end(headers, _NOT_FOR_CLIENTS)
            if not name.startswith(self._prefixes) and CONTROL.search(value) is None
        ]

    def of_call(self, call: AdmittedCall, settled: Settled | None) -> list[tuple[bytes, bytes]]:
        """What is known of a call: before its end (`settled` None) the budget still counts all that is held."""
        overhead_us = call.timing.overhead_ns() // 1000
        headers = [
            (self._transaction, call.transaction_id.encode()),
            (self._model, call.facts.model_priced.encode()),
            (self._retries, b"%d" % max(0, len(call.attempts) - 1)),
            (self._overhead, b"%d.%03d" % divmod(overhead_us, 1000)),
        ]
        if FAIL_OPEN in call.facts.flags:
            headers.append((self._fail_open, b"true"))
        if call.standing is not None:
            remaining_nano = call.standing.remaining_nano
            if settled is not None and settled.remaining_nano is not None:
                remaining_nano = settled.remaining_nano
            headers.append((self._budget, call.standing.budget_id.encode()))
            headers.append((self._remaining, format_usd(remaining_nano).encode()))
        if settled is not None:
            headers.append((self._cost, format_usd(settled.cost_nano).encode()))
            headers.append((self._tokens_in, b"%d" % settled.tokens_in))
            headers.append((self._tokens_out, b"%d" % settled.tokens_out))
        return headers


def trailing_comment(call: AdmittedCall, settled: Settled) -> bytes:
    """What a stream did cost, as an SSE comment after its end."""
    fields: dict[str, object] = {
        "transaction_id": call.transaction_id,
        "model": call.facts.model_priced,
        "cost_usd": format_usd(settled.cost_nano),
        "tokens_in": settled.tokens_in,
        "tokens_out": settled.tokens_out,
        "usage_source": settled.source,
        "outcome": settled.outcome,
    }
    if call.standing is not None and settled.remaining_nano is not None:
        fields["budget_id"] = call.standing.budget_id
        fields["budget_remaining_usd"] = format_usd(settled.remaining_nano)
    return b": spend " + json.dumps(fields, separators=(",", ":")).encode() + b"\n\n"


async def send_whole(send: Send, status: int, headers: Headers, body: bytes) -> None:
    """A complete response."""
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


async def send_refusal(send: Send, dialect: Dialect, refusal: RefusedError, headers: Headers = ()) -> None:
    """A refusal in the dialect's own error envelope, which tells clients not to try again where that would not help."""
    body = dialect.error_body(refusal.status, refusal.code, refusal.message, refusal.param, refusal.fields)
    own = [*refusal.headers, *headers]
    told = any(name in (b"retry-after", DONT_RETRY[0]) for name, _ in own)
    hint = [DONT_RETRY] if refusal.status < 500 and not told else []
    await send_whole(send, refusal.status, [JSON, *own, *hint], body)


async def send_ok(send: Send, fields: Mapping[str, object]) -> None:
    """A successful answer of a route of our own."""
    await send_whole(send, 200, [JSON], json.dumps(fields, separators=(",", ":")).encode())


async def send_plain(
    send: Send,
    status: int,
    code: str,
    message: str,
    *,
    headers: Headers = (),
    fields: Mapping[str, object] | None = None,
) -> None:
    """An answer of a route of our own that is no success."""
    body = json.dumps({"error": code, "message": message, **(fields or {})}, separators=(",", ":")).encode()
    await send_whole(send, status, [JSON, *headers], body)
