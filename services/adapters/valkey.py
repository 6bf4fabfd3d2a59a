"""The hot state and the directory in Valkey or Redis: Lua scripts decide, each the twin of a function in core."""

import asyncio
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from services.adapters.valkey_connection import Argument, ValkeyConnection
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
from services.core.fold import lasting_producers
from services.core.hotstate import (
    Admitted,
    Applied,
    ApplyAnswer,
    Cold,
    DueHold,
    FoldStep,
    Hold,
    HoldRequest,
    OrgImage,
    Refused,
    ReserveAnswer,
    StaleWindow,
)
from services.core.identity import KeyRecord
from services.core.ports import Pulse, TopicPartition, UnavailableError
from services.core.reserve import at_bucket, lacking
from services.core.windows import parse_span

# One script's worth of events: the server does nothing else meanwhile, and a reservation must not wait for long.
MAX_STEPS: Final = 128
# A withdrawn key's record stays this long, to stop an older publication that is still under way.
WITHDRAWN_MS: Final = 24 * 3_600_000
_PIPELINED: Final = 1000
_GENERATION: Final = "control:generation"


class UnsafeHotStateError(RuntimeError):
    """The server's settings could lose an org's spend without a trace."""


class ValkeyHotState:
    """`ports.HotState`: every method is one round trip, but for `release`, `claim_due`, `apply` of many and `load`."""

    def __init__(self, connection: ValkeyConnection) -> None:
        self._connection = connection
        self._scripts = load_scripts()

    async def check_safe(self) -> None:
        """Raises `UnsafeHotStateError` when the server may evict keys or is a Redis Cluster.

        And `UnavailableError` when it does not say: ask again.
        """
        memory, cluster = await self._connection.execute_all([("INFO", "memory"), ("INFO", "cluster")])
        settings = dict(line.split(b":", 1) for line in (memory + cluster).split(b"\r\n") if b":" in line)
        policy = settings.get(b"maxmemory_policy", b"unknown")
        if policy != b"noeviction" and settings.get(b"maxmemory") != b"0":
            raise UnsafeHotStateError(
                f"the hot state may evict keys (maxmemory-policy {policy.decode()}), and an evicted budget would read "
                "as nothing spent; set maxmemory-policy noeviction"
            )
        if settings.get(b"cluster_enabled") == b"1":
            raise UnsafeHotStateError(
                "the hot state is a Redis Cluster, which is not supported yet (no MOVED redirection is followed); "
                "use one server, with replicas if you like"
            )

    async def reserve(self, request: HoldRequest) -> ReserveAnswer:
        """See the port."""
        org, name = request.org, request.reservation_id
        keys: list[Argument] = [
            org_key(org, "epoch"),
            org_key(org, "cfg"),
            org_key(org, f"h:{name}"),
            org_key(org, "hx"),
        ]
        arguments: list[Argument] = [name, request.amount_nano, request.hold_ms, request.context]
        for proposal in request.proposals:
            key, words = proposal_arguments(org, proposal)
            keys.append(key)
            arguments.extend(words)
        return _reserve_answer(request, await self._run("reserve", keys, arguments))

    async def resize(self, request: HoldRequest) -> ReserveAnswer | None:
        """See the port."""
        org, name = request.org, request.reservation_id
        charges = [proposal.charge() for proposal in request.proposals]
        keys: list[Argument] = [org_key(org, key) for key in ("epoch", "cfg", f"h:{name}", "hx")]
        arguments: list[Argument] = [
            name,
            request.amount_nano,
            request.hold_ms,
            request.context,
            charges_json(charges),
        ]
        for proposal in request.proposals:
            keys.append(figures_key(org, proposal.budget_id, proposal.span))
            arguments.extend((proposal.span.key(), proposal.limit_nano))
        answer = await self._run("resize", keys, arguments)
        return None if answer[0] == b"gone" else _reserve_answer(request, answer)

    async def release(self, org: str, reservation_id: str) -> bool:
        """See the port."""
        hold_key = org_key(org, f"h:{reservation_id}")
        text = await self._connection.execute("HGET", hold_key, "charges")
        if text is None:
            return False
        charges = parse_charges(text)
        figures = [figures_key(org, each.budget_id, parse_span(each.window)) for each in charges]
        keys = [hold_key, org_key(org, "hx"), *figures]
        released = await self._run("release", keys, [reservation_id, text, *(each.window for each in charges)])
        return bool(released)

    async def apply(self, org: str, place: TopicPartition, steps: Sequence[FoldStep], next_offset: int) -> ApplyAnswer:
        """See the port. Many steps go in several scripts, each moving the fence behind its own."""
        applied = duplicates = 0
        for first in range(0, max(len(steps), 1), MAX_STEPS):
            some = steps[first : first + MAX_STEPS]
            following = first + MAX_STEPS
            fence = steps[following].offset if following < len(steps) else next_offset
            answer = await self._apply(org, place, some, fence)
            if isinstance(answer, Cold):
                return answer
            applied += answer.applied
            duplicates += answer.duplicates
        return Applied(applied, duplicates)

    async def claim_due(self, org: str, limit: int) -> tuple[DueHold, ...]:
        """See the port. Another reaper may take some of those that are next, so there may be fewer than `limit`."""
        due_key = org_key(org, "hx")
        names: list[bytes] = await self._connection.execute("ZRANGE", due_key, 0, limit - 1) if limit > 0 else []
        if not names:
            return ()
        keys = [org_key(org, "epoch"), due_key, *(org_key(org, f"h:{name.decode()}") for name in names)]
        return tuple(
            DueHold(name.decode(), int(amount), parse_charges(charges), context.decode(), int(admitted_at))
            for name, amount, charges, context, admitted_at in await self._run("claim", keys, names)
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

    async def load(self, org: str, image: OrgImage, epoch: str) -> bool:
        """See the port. What an org that went cold has left behind goes first."""
        epoch_key = org_key(org, "epoch")
        left = await self._left_by(org)
        for first in range(0, len(left), _PIPELINED):
            if not await self._run("clear", [epoch_key, *left[first : first + _PIPELINED]], []):
                return False
        call = Call(org, [epoch_key, org_key(org, "hx")], [epoch])
        for (budget_id, window), spent_nano in image.spent_nano.items():
            call.add("spent", call.figures_number(budget_id, window), window, spent_nano)
        for name, hold in image.holds.items():
            _add_hold(call, name, hold)
        for (topic, partition), next_offset in image.fences.items():
            call.add("fence", call.number(f"f:{topic}:{partition}"), next_offset)
        for (topic, partition, producer), sequence in lasting_producers(image.producers).items():
            call.add("producer", call.number(f"p:{topic}:{partition}"), producer, sequence)
        return bool(await self._run("load", call.keys, call.arguments))

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

    async def fold_fences(self, places: Sequence[TopicPartition]) -> Mapping[TopicPartition, int | None]:
        """See the port."""
        answers = await self._connection.execute_all([("GET", _fold_key(place)) for place in places])
        return {place: None if answer is None else int(answer) for place, answer in zip(places, answers, strict=True)}

    async def move_fold_fence(self, place: TopicPartition, next_offset: int) -> None:
        """See the port."""
        await self._run("forward", [_fold_key(place)], [next_offset])

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
        self, org: str, place: TopicPartition, steps: Sequence[FoldStep], next_offset: int
    ) -> Applied | Cold:
        where = f"{place.topic}:{place.partition}"
        keys = [org_key(org, name) for name in ("epoch", f"f:{where}", f"p:{where}", "hx")]
        call = Call(org, keys, [org_key(org, ""), next_offset])
        for step in steps:
            call.add(step.kind, step.offset, step.producer, step.sequence, step.reservation_id, step.amount_nano)
            call.add(step.context, step.expires_at_ms, step.time_ms, call.number(f"h:{step.reservation_id}"))
            call.add(charges_json(step.charges))
            call.add_charges(step.charges)
        answer = await self._run("apply", call.keys, call.arguments)
        return Applied(*answer) if answer else Cold()

    async def _left_by(self, org: str) -> list[bytes]:
        """Every key of an org but its configuration, which is control's."""
        kept = org_key(org, "cfg").encode()
        pattern = re.sub(r"([\\*?\[\]])", r"\\\1", org_key(org, "")) + "*"
        left: list[bytes] = []
        cursor = b"0"
        while True:
            cursor, keys = await self._connection.execute("SCAN", cursor, "MATCH", pattern, "COUNT", _PIPELINED)
            left.extend(key for key in keys if key != kept)
            if cursor == b"0":
                return left


class ValkeyDirectory:
    """`ports.Directory`. A record is a hash `v`, `body`; a withdrawn key has an empty body for a day."""

    def __init__(self, connection: ValkeyConnection) -> None:
        self._connection = connection
        self._scripts = load_scripts()

    async def pulse(self) -> Pulse:
        """See the port."""
        generation, time = await self._connection.execute_all([("GET", _GENERATION), ("TIME",)])
        return Pulse(None if generation is None else int(generation), _millis(time))

    async def find_key(self, key_hash: str) -> KeyRecord | None:
        """See the port."""
        generation, body = await self._connection.execute_all(
            [("GET", _GENERATION), ("HGET", f"key:{key_hash}", "body")]
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
        body: bytes | None = await self._connection.execute("GET", f"catalog:{version}")
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
            await asyncio.gather(*(self._publish(f"key:{name}", version, body) for name, body in some))
        # In one write, so that no gateway looks in between; what is cut off after the first is published again.
        announcement = ("EVAL", self._scripts["announce"].source, 1, _GENERATION)
        await self._connection.execute_all([*([announcement] if announce else []), ("HSET", "orgs", org, version)])
        return True

    async def publish_catalog(self, version: str, catalog: bytes) -> None:
        """See the port."""
        await self._connection.execute("SET", f"catalog:{version}", catalog, "NX")

    async def published_versions(self) -> Mapping[str, int]:
        """See the port."""
        return {
            org.decode(): int(version) for org, version in _pairs(await self._connection.execute("HGETALL", "orgs"))
        }

    async def _publish(self, key: str, version: int, body: bytes) -> bool:
        return bool(await self._scripts["publish"].run(self._connection, [key], [version, body, WITHDRAWN_MS]))


def _reserve_answer(request: HoldRequest, answer: list[Any]) -> ReserveAnswer:
    status = answer[0]
    if status == b"cold":
        return Cold()
    version, now_ms = int(answer[1]), answer[2]
    if status == b"stale":
        return StaleWindow(version, now_ms)
    proposals = at_bucket(request.proposals, now_ms)
    own_nano = request.amount_nano if status == b"held" else 0
    standings = tuple(
        standing(proposal, int(answer[at]), int(answer[at + 1]) + own_nano)
        for proposal, at in zip(proposals, range(5, len(answer), 2), strict=True)
    )
    if status == b"refused":
        return Refused(version, now_ms, lacking(standings, request.amount_nano))
    charges = parse_charges(answer[3]) if status == b"known" else tuple(each.charge() for each in proposals)
    return Admitted(version, now_ms, charges, standings, int(answer[4]))


def _add_hold(call: Call, name: str, hold: Hold) -> None:
    call.add(hold.phase, call.number(f"h:{name}"), hold.resized_at_ms)
    charges = charges_json(hold.charges)
    if hold.phase == "held":
        call.add(name, hold.amount_nano, charges, hold.context, hold.expires_at_ms, hold.admitted_at_ms)
        call.add_charges(hold.charges)
    else:
        call.add(hold.amount_nano, charges, hold.expires_at_ms, hold.admitted_at_ms)
        call.add(hold.booked_nano, hold.forget_at_ms or 0)


def _key_body(record: KeyRecord) -> bytes:
    fields = {"key_id": record.key_id, "org": record.org, "role": record.role, "pins": dict(record.pins)}
    return json.dumps(fields).encode()


def _key_record(fields: dict[str, Any]) -> KeyRecord:
    return KeyRecord(fields["key_id"], fields["org"], fields["role"], fields["pins"])


def _fold_key(place: TopicPartition) -> str:
    return f"fold:{place.topic}:{place.partition}"


def _millis(time: Sequence[bytes]) -> int:
    seconds, micros = time
    return int(seconds) * 1000 + int(micros) // 1000


def _pairs(flat: Sequence[bytes]) -> Iterable[tuple[bytes, bytes]]:
    return zip(flat[::2], flat[1::2], strict=True)
