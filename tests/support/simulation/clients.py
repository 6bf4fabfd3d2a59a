"""The clients of the reservation API and of delegations: each asks until it is told, and then asks again."""

import asyncio
import json
from random import Random
from typing import TYPE_CHECKING

from tests.support.asgi import Client, scope_of
from tests.support.checker_answers import Asked, Told
from tests.support.simulation.errands import Carving, Deed, Errand, usd
from tests.support.simulation.plan import ORG, Call
from tests.support.simulation.troubles import KEYS

if TYPE_CHECKING:
    from tests.support.simulation.world import World

BEARER = KEYS[ORG]
# How often a request is made until it is decided.
_TRIES = 7
_CARVED_AT_MOST = 3
RESERVATIONS, BUDGETS = "/v1/reservations", "/v1/budgets"
Headers = tuple[tuple[str, str], ...]


class Clients:
    """All clients of a world. `told` is everything that they were answered, in that order."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._rng = Random(f"clients:{world.plan.seed}")
        self.told: list[Told] = []
        # Every request that was decided, to be asked again.
        self._decided: dict[Asked, tuple[str, Headers]] = {}

    async def run(self) -> None:
        """Everything that they are there for."""
        errands = self._world.errands
        reserving = [self._reserve(each, BEARER, each.at_s) for each in errands.reserving]
        carving = [self._carve(each, BEARER, each.at_s) for each in errands.carving]
        await asyncio.gather(*reserving, *carving)

    async def ask_again(self) -> None:
        """Asks once more for all that was decided and is told for ever."""
        away_s = self._world.absence.seconds if self._world.absence.is_over else 0.0
        late = self._world.errands.afterwards_s + away_s > 40 * 3_600
        for asked, (bearer, headers) in list(self._decided.items()):
            # The answer to a change of a hold is kept for two days alone, and a part's key goes with it.
            if bearer == BEARER and not (late and asked.kind == "extend"):
                await self._until_decided(asked, bearer, headers)

    # ---- one request ------------------------------------------------------------------------------------------------

    async def _ask(self, asked: Asked, bearer: str, headers: Headers) -> Told | None:
        """One try, at any gateway; None when it came to nothing, as far as its client can tell."""
        world, rng = self._world, self._rng
        process, app = world.apps[rng.randrange(world.plan.gateways)]
        if not process.is_alive:
            return None
        client, done = Client(body=(asked.body.encode(),)), asyncio.Event()

        async def serve() -> None:
            every = [("authorization", f"Bearer {bearer}"), *headers]
            await app(scope_of(asked.path, every, "POST"), client.receive, client.send)
            done.set()

        world.trace("asks", process.name, asked.name, asked.body)
        world.serve(process, serve(), "errand")
        try:
            async with asyncio.timeout(rng.choice((0.1, 3.0, 6.0, 6.0))):
                await done.wait()
        except TimeoutError:
            client.hang_up()
            world.trace("no answer", asked.name)
            return None
        fields = json.loads(client.content)
        world.trace("told", asked.name, client.status, fields.get("error", ""))
        told = Told(asked, client.status, fields)
        self.told.append(told)
        if told.status == 401 and world.control.is_live(bearer):
            world.problem("BU-9", f"{asked.name}: the key of a part that lives was called unknown")
        return told

    async def _until_decided(self, asked: Asked, bearer: str, headers: Headers, *, tries: int = _TRIES) -> Told | None:
        """The answer that decides, or another that asking again does not change; None when there was none."""
        for number in range(tries):
            told = await self._ask(asked, bearer, headers)
            if told is not None and told.is_decided:
                if asked.is_repeatable:
                    self._decided.setdefault(asked, (bearer, headers))
                return told
            if told is not None and told.status != 503:
                return told
            await asyncio.sleep(self._rng.uniform(0, 0.5 * (number + 1)))
        return None

    async def _repeat(self, asked: Asked, bearer: str, headers: Headers, times: int) -> None:
        for _ in range(times):
            await asyncio.sleep(self._rng.choice((0.0, 0.3, 3.0)) * self._rng.random())
            await self._ask(asked, bearer, headers)

    # ---- reservations -----------------------------------------------------------------------------------------------

    async def _reserve(self, errand: Errand, bearer: str, after_s: float) -> None:
        await asyncio.sleep(after_s)
        headers = _identity(errand.user, errand.session)
        keyed = headers if errand.key is None else (*headers, ("idempotency-key", errand.key))
        asked = Asked(errand.name, "reserve", RESERVATIONS, json.dumps(errand.body), errand.key)
        if errand.key is not None and self._rng.random() < 0.3:
            # Two at once: the connection seemed to hang.
            first, second = await asyncio.gather(*(self._until_decided(asked, bearer, keyed) for _ in range(2)))
            told = first or second
        else:
            told = await self._until_decided(asked, bearer, keyed, tries=1 if errand.key is None else _TRIES)
        if told is None or not told.is_decided:
            return
        repeating = asyncio.ensure_future(
            self._repeat(asked, bearer, keyed, 0 if errand.key is None else errand.repeats)
        )
        if errand.others_body is not None:
            others = Asked(errand.name, "reserve", RESERVATIONS, json.dumps(errand.others_body), errand.key)
            await self._ask(others, bearer, keyed)
        if told.status == 201:
            for deed in errand.deeds:
                await self._do(errand.name, told.fields["reservation_id"], deed, bearer, headers)
        await repeating

    async def _do(self, name: str, reservation_id: str, deed: Deed, bearer: str, headers: Headers) -> None:
        await asyncio.sleep(deed.after_s)
        if deed.key is not None:
            headers = (*headers, ("idempotency-key", deed.key))
        path = f"{RESERVATIONS}/{reservation_id}/{deed.kind}"
        asked = Asked(name, deed.kind, path, json.dumps(deed.body), deed.key)
        await self._until_decided(asked, bearer, headers, tries=deed.tries or _TRIES)
        if deed.kind != "extend" or deed.key is not None:
            await self._repeat(asked, bearer, headers, deed.repeats)
        if deed.kind == "settle" and self._rng.random() < 0.3:
            other = Asked(name, "release", f"{RESERVATIONS}/{reservation_id}/release", "{}", None)
            await self._ask(other, bearer, headers)

    # ---- parts ------------------------------------------------------------------------------------------------------

    async def _carve(self, carving: Carving, bearer: str, after_s: float) -> None:
        await asyncio.sleep(after_s)
        headers = _identity(carving.user, carving.session)
        body = {"amount_usd": usd(carving.amount_nano), "expires_in_seconds": carving.lasts_s}
        path = f"{BUDGETS}/{carving.budget_id}/delegate"
        asked = Asked(carving.name, "delegate", path, json.dumps(body), carving.key)
        keyed = headers if carving.key is None else (*headers, ("idempotency-key", carving.key))
        told = await self._until_decided(asked, bearer, keyed, tries=_CARVED_AT_MOST)
        if told is None or told.status != 201:
            return
        key, part_id = told.fields["key"], told.fields["budget_id"]
        work = [self._spend(carving, key)]
        if carving.inner is not None:
            work.append(self._carve(carving.inner, key, self._rng.uniform(0.3, 1.5)))
        if carving.errand is not None:
            work.append(self._reserve(carving.errand, key, self._rng.uniform(0.3, 2.0)))
        if carving.ends_after_s is not None:
            work.append(self._end(carving, part_id, key if carving.ends_by_itself else bearer))
        if carving.key is not None:
            work.append(self._repeat(asked, bearer, keyed, carving.repeats))
        await asyncio.gather(*work)

    async def _spend(self, carving: Carving, key: str) -> None:
        began_s = self._world.loop.time()
        for at_s, max_tokens, is_stream in sorted(carving.calls):
            await asyncio.sleep(max(0.0, began_s + at_s - self._world.loop.time()))
            gateway = self._rng.randrange(self._world.plan.gateways)
            call = Call(0.0, ORG, gateway, carving.session, carving.user, max_tokens, is_stream, None)
            self._world.begin(call, key)

    async def _end(self, carving: Carving, part_id: str, bearer: str) -> None:
        assert carving.ends_after_s is not None, "it is ended by somebody"
        await asyncio.sleep(carving.ends_after_s)
        asked = Asked(carving.name, "end", f"{BUDGETS}/{part_id}/end", "{}", None)
        await self._until_decided(asked, bearer, _identity(carving.user, carving.session))


def _identity(user: str, session: str) -> Headers:
    return (("x-spend-user", user), ("x-spend-session", session))
