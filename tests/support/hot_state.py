"""The hot state in Valkey as tests need it: on a clock they turn, and read back whole, straight from its keys."""

import json
from typing import Any, Final

from services.adapters.valkey import ValkeyHotState
from services.adapters.valkey_connection import ValkeyConnection
from services.adapters.valkey_marks import MARKED, MARKS
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
    state, _ = await read_all(connection, org)
    return state


async def read_expiries(connection: ValkeyConnection, org: str) -> dict[str, int | None]:
    """When each key of an org goes, in Unix milliseconds; None for those that stay."""
    _, expiries = await read_all(connection, org)
    return expiries


async def read_all(connection: ValkeyConnection, org: str) -> tuple[OrgState, dict[str, int | None]]:
    """Both of the above, at one instant."""
    state = OrgState()
    expiries: dict[str, int | None] = {}
    for name, kind, time, value in await connection.execute("EVAL", _READ, 1, f"{{{org}}}:epoch", f"{{{org}}}:*"):
        key = name.decode()
        expiries[key] = None if time == -1 else time
        read: Any = value.decode() if kind == b"string" else value if kind == b"set" else _pairs(value)
        _read_key(state, key.removeprefix(f"{{{org}}}:"), read, expiries[key])
    assert state.epoch is None or f"{{{org}}}:loading" not in expiries, "who has loaded it is done"
    return state, expiries


async def end_idle_sessions(connection: ValkeyConnection, org: str, now_ms: int) -> None:
    """Lets go of the sessions that are forgotten at `now_ms`, as a server whose own clock that is has."""
    await connection.execute("EVAL", _END_SESSIONS, 1, f"{{{org}}}:epoch", f"{{{org}}}:b:*:s:*", now_ms)


_READ: Final = """
local read = {
  string = { 'GET' }, hash = { 'HGETALL' }, set = { 'SMEMBERS' }, zset = { 'ZRANGE', 0, -1, 'WITHSCORES' }
}
local found = {}
for _, key in ipairs(redis.call('KEYS', ARGV[1])) do
  local kind = redis.call('TYPE', key).ok
  local command, first, last, with = unpack(read[kind])
  local value = first and redis.call(command, key, first, last, with) or redis.call(command, key)
  found[#found + 1] = { key, kind, redis.call('PEXPIRETIME', key), value }
end
return found
"""
_END_SESSIONS: Final = """
for _, key in ipairs(redis.call('KEYS', ARGV[1])) do
  local ends = redis.call('PEXPIRETIME', key)
  if ends > 0 and ends <= tonumber(ARGV[2]) then
    redis.call('DEL', key)
  end
end
"""


def _read_key(state: OrgState, name: str, value: Any, expires_at_ms: int | None) -> None:
    kind, _, rest = name.partition(":")
    if name == "epoch":
        state.epoch, _, loaded_at = value.partition("@")
        state.loaded_at_ms = int(loaded_at)
    elif name == "loading":
        pass  # whose it is to load, and that is not of the org's state
    elif name == "cfg":
        state.config_version = int(value["v"])
    elif name == "hx":
        state.due = {member: int(score) for member, score in value.items()}
    elif kind == "f":
        topic, _, partition = rest.rpartition(":")
        state.fences[topic, int(partition)] = int(value)
    elif kind == "b":
        budget_id, _, window = rest.partition(":")
        figures = Figures(**{f"{field}_nano": int(text) for field, text in value.items()})
        figures.forget_at_ms = expires_at_ms if window.startswith("s:") else None
        state.windows[budget_id, window] = figures
    elif kind == "r":
        budget_id, bucket_ms, count = rest.split(":")
        state.rings[budget_id, int(bucket_ms), int(count)] = _ring(value)
    elif kind == "h":
        state.holds[rest] = _hold(value, expires_at_ms)
    elif kind == "p":
        topic, _, partition = rest.rpartition(":")
        for producer, sequence in value.items():
            number, _, day = sequence.partition(".")
            state.producers[topic, int(partition), producer] = int(number)
            if day:
                state.silent[topic, int(partition), producer] = int(day)
    elif name == MARKS:
        marks = dict(value)
        state.marks = marks.pop(MARKED)
        state.filled = {budget_id: int(version) for budget_id, version in marks.items()}
    elif kind == "t":
        budget_id, _, window = rest.partition(":")
        state.crossed[budget_id, window] = {int(percent) for percent in value}
    else:
        raise AssertionError(f"unexpected key {name}")


def _pairs(flat: list[bytes]) -> dict[str, str]:
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
        option=int(fields.get("option", "0")),
        implied=tuple(Charge(*each) for each in json.loads(fields.get("implied", "[]"))),
        left=tuple((Charge(*each), int(amount)) for *each, amount in json.loads(fields.get("left", "[]"))),
    )
