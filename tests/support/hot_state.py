"""The hot state in Valkey as tests need it: on a clock they turn, and read back whole, straight from its keys."""

import json
from typing import Any

from services.adapters.valkey import ValkeyHotState
from services.adapters.valkey_connection import ValkeyConnection
from services.adapters.valkey_scripts import Script
from services.core.budgets import Charge
from services.core.hotstate import Figures, Hold, OrgState, Ring


def with_turned_clock(hot: ValkeyHotState) -> ValkeyHotState:
    """The same hot state, its scripts as in production but for the clock, which is a key for `turn_clock` to set."""
    clock = "redis.call('HMGET', 'test:clock', 'seconds', 'micros')"
    sources = {name: script.source for name, script in hot._scripts.items()}
    assert all(source.count("redis.call('TIME')") == 1 for source in sources.values())
    hot._scripts = {name: Script.of(text.replace("redis.call('TIME')", clock)) for name, text in sources.items()}
    return hot


async def turn_clock(connection: ValkeyConnection, now_ms: int) -> None:
    """Sets the clock of every hot state made by `with_turned_clock` on this server, to Unix milliseconds."""
    seconds, millis = divmod(now_ms, 1000)
    await connection.execute("HSET", "test:clock", "seconds", seconds, "micros", millis * 1000 + 999)


async def read_state(connection: ValkeyConnection, org: str) -> OrgState:
    """The state that the keys of an org spell out; raises on a key that should not be there."""
    state = OrgState()
    for key in await _keys(connection, org):
        await _read_key(connection, state, key, key.removeprefix(f"{{{org}}}:"))
    return state


async def read_expiries(connection: ValkeyConnection, org: str) -> dict[str, int | None]:
    """When each key of an org goes, in Unix milliseconds; None for those that stay."""
    keys = await _keys(connection, org)
    times = await connection.execute_all([("PEXPIRETIME", key) for key in keys])
    return {key: None if time == -1 else time for key, time in zip(keys, times, strict=True)}


async def _keys(connection: ValkeyConnection, org: str) -> list[str]:
    return sorted(key.decode() for key in await connection.execute("KEYS", f"{{{org}}}:*"))


async def _read_key(connection: ValkeyConnection, state: OrgState, key: str, name: str) -> None:
    kind, _, rest = name.partition(":")
    if name == "epoch":
        state.epoch, _, loaded_at = (await connection.execute("GET", key)).decode().partition("@")
        state.loaded_at_ms = int(loaded_at)
    elif name == "cfg":
        state.config_version = int(await connection.execute("HGET", key, "v"))
    elif name == "hx":
        flat = await connection.execute("ZRANGE", key, 0, -1, "WITHSCORES")
        state.due = {member.decode(): int(score) for member, score in zip(flat[::2], flat[1::2], strict=True)}
    elif kind == "f":
        topic, _, partition = rest.rpartition(":")
        state.fences[topic, int(partition)] = int(await connection.execute("GET", key))
    else:
        fields = await _hash(connection, key)
        if kind == "b":
            budget_id, _, window = rest.partition(":")
            state.windows[budget_id, window] = Figures(**{f"{field}_nano": int(text) for field, text in fields.items()})
        elif kind == "r":
            budget_id, bucket_ms, count = rest.split(":")
            state.rings[budget_id, int(bucket_ms), int(count)] = _ring(fields)
        elif kind == "h":
            expires = await connection.execute("PEXPIRETIME", key)
            state.holds[rest] = _hold(fields, None if expires == -1 else expires)
        elif kind == "p":
            topic, _, partition = rest.rpartition(":")
            for producer, sequence in fields.items():
                state.producers[topic, int(partition), producer] = int(sequence)
        else:
            raise AssertionError(f"unexpected key {key}")


async def _hash(connection: ValkeyConnection, key: str) -> dict[str, str]:
    flat: list[bytes] = await connection.execute("HGETALL", key)
    return {name.decode(): text.decode() for name, text in zip(flat[::2], flat[1::2], strict=True)}


def _ring(fields: dict[str, str]) -> Ring:
    numbers = {name: int(text) for name, text in fields.items()}
    low, total_nano, held_nano = numbers.pop("low"), numbers.pop("total", 0), numbers.pop("held", 0)
    return Ring(low, total_nano, held_nano, {int(bucket): nano for bucket, nano in numbers.items()})


def _hold(fields: dict[str, str], forget_at_ms: int | None) -> Hold:
    phase: Any = fields["phase"]
    return Hold(
        amount_nano=int(fields["amount"]),
        charges=tuple(Charge(*each) for each in json.loads(fields["charges"])),
        context=fields.get("context", ""),
        expires_at_ms=int(fields["expires"]),
        phase=phase,
        booked_nano=int(fields.get("booked", "0")),
        admitted_at_ms=int(fields["admitted"]),
        forget_at_ms=forget_at_ms,
        resized_at_ms=int(fields.get("resized", "0")),
    )
