"""The ledger's sums over its internal HTTP API, for rebuilding the hot state. The shape is the ledger's own image."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar
from urllib.parse import quote

import httpx
import orjson

from services.core.backfill import CallQuery, CallSum, query_fields
from services.core.budgets import Charge
from services.core.events import CallFacts
from services.core.hotstate import Hold, OrgImage
from services.core.identity import DIMENSIONS, Identity
from services.core.ports import LedgerImage, TopicPartition, UnavailableError

_T = TypeVar("_T")

IMAGE_TIMEOUT_S: Final = 300.0


class LedgerAnswerError(RuntimeError):
    """The ledger answered what can't be used: another secret, or another release. Asking again would not help."""


class HttpLedgerView:
    """`ports.LedgerView` over HTTP. `token` is the internal token.

    `timeout_s` bounds connecting and each wait, but for the wait for an image: that may take `image_timeout_s`, because
    a long history is summed up for it, and asking again would only begin that anew.
    """

    def __init__(
        self, base_url: str, token: str, *, timeout_s: float = 30.0, image_timeout_s: float = IMAGE_TIMEOUT_S
    ) -> None:
        self._timeout = httpx.Timeout(timeout_s)
        self._image_timeout = httpx.Timeout(timeout_s, read=image_timeout_s)
        # A proxy of the environment has no business between our own services.
        self._client = httpx.AsyncClient(
            base_url=base_url, headers={"authorization": f"Bearer {token}"}, timeout=self._timeout, trust_env=False
        )

    async def next_offsets(self) -> Mapping[TopicPartition, int]:
        """`GET /internal/v1/next-offsets`."""
        return _read(_offsets, await self._get("/internal/v1/next-offsets", self._timeout))

    async def org_image(self, org: str) -> LedgerImage:
        """`GET /internal/v1/orgs/{org}/image`."""
        path = f"/internal/v1/orgs/{quote(org, safe='')}/image"
        return _read(_image, await self._get(path, self._image_timeout))

    async def call_sums(self, org: str, query: CallQuery) -> Sequence[CallSum]:
        """`POST /internal/v1/orgs/{org}/calls`."""
        path = f"/internal/v1/orgs/{quote(org, safe='')}/calls"
        answer = await self._ask("POST", path, self._image_timeout, orjson.dumps(query_fields(query)))
        return _read(lambda fields: [_call_sum(org, each) for each in fields["calls"]], answer)

    async def close(self) -> None:
        """Closes all connections."""
        await self._client.aclose()

    async def _get(self, path: str, patience: httpx.Timeout) -> bytes:
        return await self._ask("GET", path, patience, None)

    async def _ask(self, method: str, path: str, patience: httpx.Timeout, body: bytes | None) -> bytes:
        try:
            response = await self._client.request(method, path, content=body, timeout=patience)
        except httpx.HTTPError as error:
            raise UnavailableError(f"the ledger: {type(error).__name__} {error}".rstrip()) from error
        if response.is_server_error:
            raise UnavailableError(f"the ledger answers {response.status_code}")
        if response.status_code == httpx.codes.UNAUTHORIZED:
            raise LedgerAnswerError(
                "the ledger refuses the internal token; both services need the same master key file"
            )
        if response.status_code != httpx.codes.OK:
            raise LedgerAnswerError(f"the ledger answers {response.status_code} to {path}")
        return response.content


def _image(fields: Any) -> LedgerImage:
    next_offsets = _offsets(fields)
    return LedgerImage(
        next_offsets,
        OrgImage(
            spent_nano={(each["budget_id"], each["window"]): int(each["spent_nano"]) for each in fields["spent"]},
            holds={each["reservation_id"]: _hold(each) for each in fields["holds"]},
            fences={(place.topic, place.partition): offset for place, offset in next_offsets.items()},
            producers={
                (each["topic"], int(each["partition"]), each["producer"]): int(each["sequence"])
                for each in fields["producers"]
            },
        ),
    )


def _call_sum(org: str, fields: Any) -> CallSum:
    told = fields["facts"]
    who = {name: told[name] for name in DIMENSIONS}
    return CallSum(
        CallFacts(
            Identity(org, told["key_id"], tags=tuple(told["tags"]), **who),
            vendor=told["vendor"],
            route=told["route"],
            model_requested=told["model_requested"],
            model_priced=told["model_priced"],
            match=told["match"],
            catalog_version="",
            config_version=int(told["config_version"]),
            auth_mode=told["auth_mode"],
        ),
        int(fields["admitted_at_ms"]),
        tuple((budget_id, window) for budget_id, window in fields["charged"]),
        int(fields["amount_nano"]),
        int(fields["last_ms"]),
    )


def _hold(fields: Any) -> Hold:
    if fields["phase"] not in ("held", "settled", "expired"):
        raise ValueError(f"a hold's phase is {fields['phase']!r}")
    return Hold(
        amount_nano=int(fields["amount_nano"]),
        charges=tuple(Charge(each["budget_id"], each["scope"], each["window"]) for each in fields["charges"]),
        context=fields["context"],
        expires_at_ms=int(fields["expires_at_ms"]),
        phase=fields["phase"],
        booked_nano=int(fields["booked_nano"]),
        admitted_at_ms=int(fields["admitted_at_ms"]),
        forget_at_ms=fields["forget_at_ms"],
        resized_at_ms=fields.get("resized_at_ms", 0),
    )


def _offsets(fields: Any) -> dict[TopicPartition, int]:
    return {
        TopicPartition(each["topic"], int(each["partition"])): int(each["offset"]) for each in fields["next_offsets"]
    }


def _read(shape: Callable[[Any], _T], content: bytes) -> _T:
    try:
        return shape(orjson.loads(content))
    except (ValueError, KeyError, TypeError) as error:
        raise LedgerAnswerError(f"the ledger's answer can't be read: {type(error).__name__}: {error}") from error
