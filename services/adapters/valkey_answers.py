"""`core.answers.Answers` in Valkey or Redis (7 or newer), one key an answer, in its org's slot.

Like jobs, answers must outlive a rebuild, which clears the org's own keys: so theirs begin with ``answers:``.
"""

from typing import Final

from services.adapters.valkey_connection import HotConnection
from services.core.answers import Answer, decode_answer, encode_answer

# Forgets KEYS[1] while it is the claim ARGV[1].
_DROP: Final = """#!lua
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
end
"""
# Keeps ARGV[1], of status ARGV[3], for ARGV[2] milliseconds, unless one of its status or a higher one is there.
_FINISH: Final = """#!lua
local there = redis.call('GET', KEYS[1])
if there and cjson.decode(there)[2] >= tonumber(ARGV[3]) then
  return there
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]
"""


class ValkeyAnswers:
    """Answers, each a string that the server forgets by itself."""

    def __init__(self, connection: HotConnection) -> None:
        self._connection = connection

    async def claim(self, org: str, name: str, request_hash: str, keep_ms: int) -> Answer | None:
        """See the port."""
        claim = encode_answer(Answer(request_hash))
        there = await self._connection.execute("SET", _key(org, name), claim, "NX", "GET", "PX", keep_ms)
        return None if there is None else decode_answer(there)

    async def finish(self, org: str, name: str, answer: Answer, keep_ms: int) -> Answer:
        """See the port."""
        arguments = (encode_answer(answer), keep_ms, answer.status)
        return decode_answer(await self._connection.execute("EVAL", _FINISH, 1, _key(org, name), *arguments))

    async def find(self, org: str, name: str) -> Answer | None:
        """See the port."""
        there = await self._connection.execute("GET", _key(org, name))
        return None if there is None else decode_answer(there)

    async def drop(self, org: str, name: str, request_hash: str) -> None:
        """See the port."""
        await self._connection.execute("EVAL", _DROP, 1, _key(org, name), encode_answer(Answer(request_hash)))


def _key(org: str, name: str) -> str:
    return f"answers:{{{org}}}:{name}"
