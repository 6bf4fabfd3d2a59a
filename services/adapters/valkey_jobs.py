"""`core.jobs.Jobs` in Valkey or Redis, beside the hot state and outside every org's own keys.

A rebuild clears an org's keys, and a job must outlive that: so its keys begin with ``jobs:``, though they share the
org's slot. ``jobs:{org}`` is a hash of the records by ``vendor/id``, ``jobs:{org}:claims`` one of ``until token``,
``jobs:{org}:due`` orders the names by when they are to be asked for, and ``jobs:{org}:ended`` those that were ended by
when that may be forgotten. The clock is the server's.
"""

import secrets
from collections.abc import Sequence
from typing import Any, Final

import structlog

from services.adapters.valkey_connection import Argument, HotConnection
from services.adapters.valkey_scripts import Script
from services.core.jobs import ENDED_MS, Claim, Job, decode_job, encode_job

log = structlog.get_logger()

# KEYS: records, claims, due, ended. `take` claims the job ARGV names, unless another has it.
_HEAD: Final = """#!lua
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function take(name, lease, token)
  local body = redis.call('HGET', KEYS[1], name)
  if not body then
    redis.call('ZREM', KEYS[3], name)
    return false
  end
  local claim = redis.call('HGET', KEYS[2], name)
  if claim and tonumber(string.match(claim, '^%d+')) > now then
    return false
  end
  local ends = string.format('%d', now + lease)
  redis.call('HSET', KEYS[2], name, ends .. ' ' .. token)
  redis.call('ZADD', KEYS[3], ends, name)
  return body
end
local function has(name, token)
  local claim = redis.call('HGET', KEYS[2], name)
  return claim and string.match(claim, ' (.*)$') == token
end
"""
# ARGV: name, record, milliseconds until it is due, 1 for one that may have been ended.
_KEEP: Final = """
local ended = redis.call('ZSCORE', KEYS[4], ARGV[1])
if ended and tonumber(ended) > now and ARGV[4] ~= '1' then
  return
end
if redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2]) == 1 then
  redis.call('ZADD', KEYS[3], string.format('%d', now + ARGV[3]), ARGV[1])
end
"""
# ARGV: name, lease in milliseconds, token.
_CLAIM: Final = "return take(ARGV[1], ARGV[2], ARGV[3])"
# ARGV: most, lease in milliseconds, token.
_CLAIM_DUE: Final = """
local claimed = {}
for _, name in ipairs(redis.call('ZRANGE', KEYS[3], '-inf', now, 'BYSCORE', 'LIMIT', 0, ARGV[1])) do
  local body = take(name, ARGV[2], ARGV[3])
  if body then
    claimed[#claimed + 1] = body
  end
end
return claimed
"""
# ARGV: name, token, record, milliseconds until it is due.
_PUT_BACK: Final = """
if has(ARGV[1], ARGV[2]) then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
  redis.call('HDEL', KEYS[2], ARGV[1])
  redis.call('ZADD', KEYS[3], string.format('%d', now + ARGV[4]), ARGV[1])
end
"""
# ARGV: name, token, milliseconds until its end may be forgotten.
_END: Final = """
if not has(ARGV[1], ARGV[2]) then
  return 0
end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', now)
redis.call('ZADD', KEYS[4], string.format('%d', now + ARGV[3]), ARGV[1])
redis.call('PEXPIRE', KEYS[4], ARGV[3])
return 1
"""


class ValkeyJobs:
    """`core.jobs.Jobs`: every method is one round trip."""

    def __init__(self, connection: HotConnection) -> None:
        self._connection = connection
        bodies = {"keep": _KEEP, "claim": _CLAIM, "claim_due": _CLAIM_DUE, "put_back": _PUT_BACK, "end": _END}
        self._scripts = {name: Script.of(_HEAD + body) for name, body in bodies.items()}

    async def keep(self, job: Job, next_ms: int, *, again: bool = False) -> None:
        """See the port."""
        await self._run("keep", job.org, _name(job.vendor, job.job_id), encode_job(job), next_ms, int(again))

    async def claim(self, org: str, vendor: str, job_id: str, lease_ms: int) -> Claim | None:
        """See the port."""
        token = secrets.token_hex(8)
        body = await self._run("claim", org, _name(vendor, job_id), lease_ms, token)
        return None if body is None else _claim(body, token)

    async def claim_due(self, org: str, limit: int, lease_ms: int) -> Sequence[Claim]:
        """See the port."""
        token = secrets.token_hex(8)
        claims = [_claim(body, token) for body in await self._run("claim_due", org, limit, lease_ms, token)]
        return [each for each in claims if each is not None]

    async def put_back(self, claim: Claim, next_ms: int) -> None:
        """See the port."""
        job = claim.job
        await self._run("put_back", job.org, _name(job.vendor, job.job_id), claim.token, encode_job(job), next_ms)

    async def end(self, claim: Claim) -> bool:
        """See the port."""
        job = claim.job
        return bool(await self._run("end", job.org, _name(job.vendor, job.job_id), claim.token, ENDED_MS))

    async def _run(self, script: str, org: str, *arguments: Argument) -> Any:
        place = f"jobs:{{{org}}}"
        keys = [place, f"{place}:claims", f"{place}:due", f"{place}:ended"]
        return await self._scripts[script].run(self._connection, keys, arguments)


def _name(vendor: str, job_id: str) -> str:
    return f"{vendor}/{job_id}"


def _claim(body: bytes, token: str) -> Claim | None:
    """None for the record of a newer gateway, which will come to it."""
    try:
        return Claim(decode_job(body), token)
    except (ValueError, KeyError, TypeError) as error:
        log.warning("job_not_read", reason=repr(error))
        return None
