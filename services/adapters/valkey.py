"""The hot state and the directory in Valkey or Redis: Lua scripts decide, each the twin of a function in core."""

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from services.adapters.valkey_connection import Argument, HotConnection
from services.adapters.valkey_fences import ValkeyFences
from services.adapters.valkey_holds import reserve_answer, reserve_call, resize_answer, resize_call
from services.adapters.valkey_loading import ValkeyLoading
from services.adapters.valkey_marks import MARKS, ValkeyMarks
from services.adapters.valkey_scripts import (
    Call,
    charges_json,
    figures_key,
    load_scripts,
    org_key,
    parse_charges,
    proposal_arguments,
)
from services.core.budgets import Proposal, Standing, standing
from services.core.hotstate import (
    Applied,
    ApplyAnswer,
    Behind,
    Cold,
    DueHold,
    FoldStep,
    HoldRequest,
    Outdated,
    ReserveAnswer,
)
from services.core.identity import KeyRecord
from services.core.ports import Pulse, TopicPartition, UnavailableError
from services.core.reserve import at_bucket
from services.core.windows import parse_span

# One script's worth of events: the server does nothing else meanwhile, and a reservation must not wait for long.
MAX_STEPS: Final = 128
# A withdrawn key's record stays this long, to stop an older publication that is still under way.
WITHDRAWN_MS: Final = 24 * 3_600_000
# A catalog outlives its last use by this much: a gateway may still be at a snapshot that names it.
UNUSED_CATALOG_MS: Final = 30 * 24 * 3_600_000
_PIPELINED: Final = 1000
# What control publishes for all orgs has one slot: it is there as a whole, or gone as a whole. No org has such a name.
_CONTROL: Final = "{@control}:"
_GENERATION: Final = f"{_CONTROL}generation"
_ORGS: Final = f"{_CONTROL}orgs"
_SEEN: Final = f"{_CONTROL}seen"


class UnsafeHotStateError(RuntimeError):
    """The server's settings could lose an org's spend without a trace."""


class ValkeyHotState(ValkeyLoading, ValkeyMarks, ValkeyFences):
    """`ports.HotState`: a method is one round trip.

    But for `release`, `open_holds`, `load`, for `apply`, `filled` and `epochs` of many, and for
    `move_fold_fence` in a cluster.
    """

    def __init__(self, connection: HotConnection) -> None:
        self._connection = connection
        self._scripts = load_scripts()

    async def check_safe(self) -> None:
        """Raises `UnsafeHotStateError` when a server may evict keys, or is in a cluster but not addressed as one.

        And `UnavailableError` when none answers: ask again.
        """
        for told in await self._connection.execute_on_each("INFO"):
            self._check_settings(dict(line.split(b":", 1) for line in told.split(b"\r\n") if b":" in line))

    def _check_settings(self, settings: Mapping[bytes, bytes]) -> None:
        policy = settings.get(b"maxmemory_policy", b"unknown")
        if policy != b"noeviction" and settings.get(b"maxmemory") != b"0":
            raise UnsafeHotStateError(
                f"the hot state may evict keys (maxmemory-policy {policy.decode()}), and an evicted budget would read "
                "as nothing spent; set maxmemory-policy noeviction"
            )
        if settings.get(b"cluster_enabled") == b"1" and not self._connection.is_cluster:
            raise UnsafeHotStateError(
                "the hot state is a Redis Cluster; address it as one: redis+cluster://host:port,host:port,…"
            )

    async def reserve(self, request: HoldRequest) -> ReserveAnswer:
        """See the port."""
        return reserve_answer(request, await self._run("reserve", *reserve_call(request)))

    async def resize(self, request: HoldRequest) -> ReserveAnswer | None:
        """See the port."""
        return resize_answer(request, await self._run("resize", *resize_call(request)))

    async def release(self, org: str, reservation_id: str) -> bool:
        """See the port. Two round trips: the script has to be told the keys of what is charged, and checks them."""
        hold_key = org_key(org, f"h:{reservation_id}")
        text = await self._connection.execute("HGET", hold_key, "charges")
        if text is None:
            return False
        charges = parse_charges(text)
        figures = [figures_key(org, each.budget_id, parse_span(each.window)) for each in charges]
        keys = [hold_key, org_key(org, "hx"), *figures]
        windows = [each.window for each in charges]
        return bool(await self._run("release", keys, [reservation_id, text, *windows, org_key(org, "")]))

    async def apply(
        self,
        org: str,
        place: TopicPartition,
        steps: Sequence[FoldStep],
        next_offset: int,
        marks: str | None = None,
        above: int = 0,
    ) -> ApplyAnswer:
        """See the port. Many steps go in several scripts, each moving the fence behind its own."""
        applied = duplicates = 0
        for first in range(0, max(len(steps), 1), MAX_STEPS):
            some = steps[first : first + MAX_STEPS]
            following = first + MAX_STEPS
            fence = steps[following].offset if following < len(steps) else next_offset
            answer = await self._apply(org, place, some, fence, marks, above)
            if not isinstance(answer, Applied):
                return answer
            above = fence  # each goes on from the one before it, or not at all
            applied += answer.applied
            duplicates += answer.duplicates
        return Applied(applied, duplicates)

    async def claim_due(self, org: str, limit: int) -> tuple[DueHold, ...]:
        """See the port."""
        if limit <= 0:
            return ()
        keys = [org_key(org, "epoch"), org_key(org, "hx")]
        claimed = await self._run("claim", keys, [limit, org_key(org, "")])
        return tuple(
            DueHold(name.decode(), int(amount), parse_charges(charges), context.decode(), int(admitted_at))
            for name, amount, charges, context, admitted_at in claimed
        )

    async def peek(self, org: str, proposals: Sequence[Proposal]) -> tuple[Standing, ...] | None:
        """See the port."""
        keys: list[Argument] = [org_key(org, "epoch")]
        arguments: list[Argument] = []
        for proposal in proposals:
            key, words = proposal_arguments(org, proposal)
            keys.append(key)
            arguments.extend(words[:3])
        answer = await self._run("peek", keys, arguments)
        if not answer:
            return None
        now_ms, *figures = answer
        return tuple(
            standing(proposal, int(spent) - sum(map(int, left)), int(held))
            for proposal, (spent, held, left) in zip(at_bucket(proposals, now_ms), figures, strict=True)
        )

    async def now_ms(self) -> int:
        """See the port."""
        return _millis(await self._connection.execute("TIME"))

    async def epochs(self, orgs: Sequence[str]) -> Mapping[str, str | None]:
        """See the port. The server keeps `<epoch>@<when it was loaded>`."""
        answers: list[bytes | None] = []
        for first in range(0, len(orgs), _PIPELINED):
            keys = [org_key(org, "epoch") for org in orgs[first : first + _PIPELINED]]
            answers += await self._connection.execute_all([("GET", key) for key in keys])
        return {
            org: None if answer is None else answer.decode().partition("@")[0]
            for org, answer in zip(orgs, answers, strict=True)
        }

    async def set_alarm(self, name: str, text: str) -> None:
        """See the port."""
        await self._connection.execute("HSET", "alarms", name, text)

    async def clear_alarm(self, name: str) -> None:
        """See the port."""
        await self._connection.execute("HDEL", "alarms", name)

    async def alarms(self) -> Mapping[str, str]:
        """See the port."""
        return {
            name.decode(): text.decode() for name, text in _pairs(await self._connection.execute("HGETALL", "alarms"))
        }

    async def close(self) -> None:
        """See the port."""
        await self._connection.close()

    async def _run(self, name: str, keys: Sequence[Argument], arguments: Sequence[Argument]) -> Any:
        return await self._scripts[name].run(self._connection, keys, arguments)

    async def _apply(
        self,
        org: str,
        place: TopicPartition,
        steps: Sequence[FoldStep],
        next_offset: int,
        marks: str | None,
        above: int,
    ) -> ApplyAnswer:
        where = f"{place.topic}:{place.partition}"
        keys = [org_key(org, name) for name in ("epoch", f"f:{where}", f"p:{where}", "hx", MARKS)]
        call = Call(org, keys, [org_key(org, ""), next_offset, "-" if marks is None else f"={marks}", above])
        for step in steps:
            call.add(step.kind, step.offset, step.producer, step.sequence, step.reservation_id, step.amount_nano)
            call.add(step.context, step.expires_at_ms, step.time_ms, call.number(f"h:{step.reservation_id}"))
            call.add(charges_json(step.charges))
            call.add_charges(step.charges)
            call.add_implied(step.implied)
        answer = await self._run("apply", call.keys, call.arguments)
        if answer in ([b"outdated"], [b"behind"]):
            return Outdated() if answer == [b"outdated"] else Behind()
        return Applied(*answer) if answer else Cold()


class ValkeyDirectory:
    """`ports.Directory`. A record is a hash `v`, `body`; a withdrawn key has an empty body for a day.

    In a cluster an org's snapshot may be lost with its server, while all else is there: `published_versions` looks.
    """

    def __init__(self, connection: HotConnection) -> None:
        self._connection = connection
        self._scripts = load_scripts()

    async def pulse(self) -> Pulse:
        """See the port."""
        generation, seen, time = await self._connection.execute_all([("GET", _GENERATION), ("GET", _SEEN), ("TIME",)])
        return Pulse(
            None if generation is None else int(generation), _millis(time), None if seen is None else int(seen)
        )

    async def beat(self) -> None:
        """See the port."""
        await self._connection.execute("SET", _SEEN, _millis(await self._connection.execute("TIME")))

    async def find_key(self, key_hash: str) -> KeyRecord | None:
        """See the port."""
        generation, body = await self._connection.execute_all(
            [("GET", _GENERATION), ("HGET", key_key(key_hash), "body")]
        )
        if generation is None:
            raise UnavailableError("the hot state is bare: control has yet to publish keys into it")
        return _key_record(json.loads(body)) if body else None

    async def snapshot(self, org: str) -> bytes | None:
        """See the port."""
        body: bytes | None = await self._connection.execute("HGET", org_key(org, "cfg"), "body")
        return body

    async def catalog(self, version: str) -> bytes | None:
        """See the port."""
        body: bytes | None = await self._connection.execute("GET", _catalog_key(version))
        return body

    async def orgs(self) -> tuple[str, ...]:
        """See the port."""
        return tuple(await self.published_versions())

    async def publish_org(
        self,
        org: str,
        version: int,
        snapshot: bytes,
        keys: Mapping[str, KeyRecord],
        revoked: Sequence[str],
        *,
        forgotten: Sequence[str] = (),
        announce: bool = True,
    ) -> bool:
        """See the port. Cut short at any point, it is made whole by publishing again; gateways look when it is done."""
        if not await self._publish(org_key(org, "cfg"), version, snapshot):
            return False
        records = {key_hash: _key_body(record) for key_hash, record in keys.items()}
        records |= dict.fromkeys(revoked, b"")
        bodies = list(records.items())
        for first in range(0, len(bodies), _PIPELINED):
            some = bodies[first : first + _PIPELINED]
            await asyncio.gather(*(self._publish(key_key(name), version, body) for name, body in some))
        for first in range(0, len(forgotten), _PIPELINED):
            await self._connection.execute("UNLINK", *map(key_key, forgotten[first : first + _PIPELINED]))
        # In one write, so that no gateway looks in between; what is cut off after the first is published again.
        announcement = ("EVAL", self._scripts["announce"].source, 1, _GENERATION)
        await self._connection.execute_all([*([announcement] if announce else []), ("HSET", _ORGS, org, version)])
        return True

    async def publish_catalog(self, version: str, catalog: bytes) -> None:
        """See the port."""
        await self._connection.execute("SET", _catalog_key(version), catalog, "NX")

    async def keep_catalog(self, version: str) -> bool:
        """See the port."""
        key = _catalog_key(version)
        # In this order: what is there after it was made to stay, stays.
        _, is_there = await self._connection.execute_all([("PERSIST", key), ("EXISTS", key)])
        return bool(is_there)

    async def let_catalogs_go(self, versions: Sequence[str]) -> None:
        """See the port."""
        await self._connection.execute_all(
            [("PEXPIRE", _catalog_key(version), UNUSED_CATALOG_MS, "NX") for version in versions]
        )

    async def published_versions(self) -> Mapping[str, int]:
        """See the port."""
        flat = await self._connection.execute("HGETALL", _ORGS)
        published = {org.decode(): int(version) for org, version in _pairs(flat)}
        return await self._as_found(published) if self._connection.is_cluster else published

    async def _as_found(self, published: Mapping[str, int]) -> dict[str, int]:
        """The versions, but 0 for an org whose snapshot is gone. Of a server that is away nobody knows better."""
        asked = (self._connection.execute("HGET", org_key(org, "cfg"), "v") for org in published)
        answers = await asyncio.gather(*asked, return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, UnavailableError):
                raise answer
        return {
            org: 0 if answer is None else version
            for (org, version), answer in zip(published.items(), answers, strict=True)
        }

    async def _publish(self, key: str, version: int, body: bytes) -> bool:
        return bool(await self._scripts["publish"].run(self._connection, [key], [version, body, WITHDRAWN_MS]))


def key_key(key_hash: str) -> str:
    """The key of an API key's record."""
    return f"{_CONTROL}key:{key_hash}"


def _catalog_key(version: str) -> str:
    return f"{_CONTROL}catalog:{version}"


def _key_body(record: KeyRecord) -> bytes:
    fields = {"key_id": record.key_id, "org": record.org, "role": record.role, "pins": dict(record.pins)}
    return json.dumps(fields).encode()


def _key_record(fields: dict[str, Any]) -> KeyRecord:
    return KeyRecord(fields["key_id"], fields["org"], fields["role"], fields["pins"])


def _millis(time: Sequence[bytes]) -> int:
    seconds, micros = time
    return int(seconds) * 1000 + int(micros) // 1000


def _pairs(flat: Sequence[bytes]) -> Iterable[tuple[bytes, bytes]]:
    return zip(flat[::2], flat[1::2], strict=True)
