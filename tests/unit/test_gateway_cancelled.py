"""Requests that are cancelled, because their gateway ends say: no cost is lost, and nothing stays held for nobody."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from services.core.events import HoldResized, Reservation
from services.core.ports import NotSentError, UnavailableError
from services.core.snapshot import Connection, RouteRule, Target
from services.core.vendor_port import VendorRequest
from services.gateway import forward, releasing
from services.gateway.releasing import Releases
from services.gateway.server import make_server
from tests.support.asgi import Client
from tests.support.delegations import Scene, budget_of, scene_at
from tests.support.gateway import ScriptedAnswer, World, asking, chat, until, world
from tests.support.job_faults import There, job_faults
from tests.support.jobs import jsonl, line
from tests.support.reservations import Ledger, reserve

SIXTY = {"amount_usd": "0.60", "expires_in_seconds": 2_000_000}
FREE = (0, 0)


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path, relay_transport=Ledger()) as made:
        yield made


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with scene_at(tmp_path) as made:
        yield made


@pytest.fixture
async def jobs(tmp_path: Path) -> AsyncIterator[There]:
    async with job_faults(tmp_path) as made:
        yield made


class Reached:
    """A port's method that is reached and does not come back: `before` or after it has done what it does."""

    def __init__(self, method: Callable[..., Awaitable[Any]], *, before: bool = False) -> None:
        self._method = method
        self._before = before
        self.event = asyncio.Event()

    async def __call__(self, *arguments: Any, **named: Any) -> Any:
        if not self._before:
            await self._method(*arguments, **named)
        self.event.set()
        await asyncio.Event().wait()


async def cancel(task: asyncio.Future[Any], reached: Awaitable[object]) -> None:
    """Cancels a request once something is reached; sees that it ends as a cancelled one."""
    async with asyncio.timeout(5):
        await reached
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def calling(there: World, body: object = None) -> asyncio.Task[None]:
    return there.start(Client(body=(json.dumps(chat() if body is None else body).encode(),)))


def kinds(there: World) -> list[str]:
    return [type(each).__name__ for each in there.events()]


# ---- proxied calls --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [chat(), asking()])
async def test_what_a_vendor_has_is_settled_as_what_it_may_have_done(there: World, body: dict[str, Any]) -> None:
    there.vendor.head_at = asyncio.Event()
    await cancel(calling(there, body), until(lambda: there.vendor.requests))
    settlement = there.settlement()
    assert (settlement.outcome, settlement.usage_source) == ("partial", "estimated")
    assert settlement.cost_nano == settlement.held_nano > 0
    assert settlement.usage["output_tokens"] == 100
    assert [each.outcome for each in settlement.attempts] == ["broke_off"]


async def test_what_never_left_costs_nothing(there: World, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = asyncio.Event()

    async def connecting(_request: VendorRequest) -> None:
        waiting.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            raise error from NotSentError("it was still connecting")

    monkeypatch.setattr(there.vendor, "send", connecting)
    await cancel(calling(there), waiting.wait())
    settlement = there.settlement()
    assert (settlement.outcome, settlement.cost_nano) == ("vendor_error", 0)
    assert [each.outcome for each in settlement.attempts] == ["unreachable"]


@pytest.mark.parametrize("failure", [ScriptedAnswer([b"down"], 503), NotSentError("refused")])
async def test_between_two_tries_no_vendor_is_at_work(
    there: World, monkeypatch: pytest.MonkeyPatch, failure: ScriptedAnswer | Exception
) -> None:
    monkeypatch.setattr(forward, "RETRY_PAUSES_S", (5.0, 5.0))
    there.answer(failure)
    task = calling(there)
    await until(lambda: there.vendor.requests)
    await asyncio.sleep(0.01)
    await cancel(task, asyncio.sleep(0))
    assert (there.settlement().outcome, there.settlement().cost_nano) == ("vendor_error", 0)


def at_work_from_the_second_on(there: World, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """The vendor answers the first request alone, and is at work on the next for ever; set once it is."""
    send, second = there.vendor.send, asyncio.Event()

    async def at_work(request: VendorRequest) -> ScriptedAnswer:
        if there.vendor.requests:
            second.set()
            await asyncio.Event().wait()
        return await send(request)

    monkeypatch.setattr(there.vendor, "send", at_work)
    return second


async def test_of_several_tries_the_last_one_counts(there: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "RETRY_PAUSES_S", (0.0, 0.0))
    there.answer(ScriptedAnswer([b"down"], 503), ScriptedAnswer([asyncio.Event()]))
    second = at_work_from_the_second_on(there, monkeypatch)
    await cancel(calling(there), second.wait())
    settlement = there.settlement()
    assert [each.outcome for each in settlement.attempts] == ["failed", "broke_off"]
    assert settlement.cost_nano == settlement.held_nano


async def with_fallback(there: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "RETRY_PAUSES_S", ())
    other = Connection("other", "openai", "https://other.test/v1", "sealed:x", "openai")
    rule = RouteRule("openai", "chat.completions", fallbacks=(Target("other", "gpt-4o-mini"),))
    await there.org.publish(connections={**there.org.snapshot.connections, "other": other}, rules=(rule,))
    await there.org.set_budget("100.00")
    await there.sync()
    there.answer(ScriptedAnswer([b"down"], 503))


@pytest.mark.parametrize("before", [True, False])
async def test_a_call_on_its_way_to_another_vendor_costs_nothing(
    there: World, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    await with_fallback(there, monkeypatch)
    moving = Reached(there.hot_state.resize, before=before)
    monkeypatch.setattr(there.hot_state, "resize", moving)
    await cancel(calling(there), moving.event.wait())
    assert kinds(there) == ["Reservation", "Settlement"]
    assert (there.settlement().outcome, there.settlement().cost_nano) == ("vendor_error", 0)


async def test_a_call_at_another_vendor_is_settled_as_that_ones(there: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await with_fallback(there, monkeypatch)
    second = at_work_from_the_second_on(there, monkeypatch)
    await cancel(calling(there), second.wait())
    resized = next(each for each in there.events() if isinstance(each, HoldResized))
    settlement = there.settlement()
    assert settlement.facts.vendor == "other"
    assert settlement.cost_nano == settlement.held_nano == resized.held_nano


async def test_a_batch_that_its_vendor_may_have_begun_is_settled_at_its_bound(jobs: There) -> None:
    send, submitting = jobs.world.vendor.send, asyncio.Event()

    async def at_work(request: VendorRequest) -> ScriptedAnswer:
        if request.method == "POST":
            submitting.set()
            await asyncio.Event().wait()
        return await send(request)

    jobs.world.vendor.send = at_work  # type: ignore[method-assign]
    await cancel(asyncio.ensure_future(jobs.submit(line(1), line(2))), submitting.wait())
    (settlement,) = jobs.settlements()
    assert (settlement.outcome, settlement.usage_source) == ("partial", "estimated")
    assert settlement.cost_nano == settlement.held_nano - 2
    assert jobs.jobs.all() == []


async def test_a_batch_whose_file_is_being_fetched_holds_nothing(jobs: There) -> None:
    jobs.world.answer(ScriptedAnswer([jsonl(line(1))[:5], asyncio.Event()]))
    submitting = asyncio.ensure_future(jobs.submit())
    await cancel(submitting, until(lambda: jobs.world.vendor.requests))
    assert (kinds(jobs.world), jobs.world.held_nano()) == ([], 0)


@pytest.mark.parametrize("before", [True, False])
async def test_what_may_be_held_for_a_call_that_is_gone_is_taken_back(
    there: World, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    await there.org.set_budget("1.00")
    await there.sync()
    reserving = Reached(there.hot_state.reserve, before=before)
    monkeypatch.setattr(there.hot_state, "reserve", reserving)
    monkeypatch.setattr(releasing, "_FIRST_PAUSE_S", 0.001)
    task = calling(there)
    await reserving.event.wait()
    assert (there.held_nano() > 0) == (not before)
    await cancel(task, asyncio.sleep(0))
    await until(lambda: there.assembly.releases.pending == 0)
    assert (there.held_nano(), there.events()) == (0, [])


# ---- reservations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [True, False])
async def test_a_reservation_that_nobody_can_ask_for_again_is_taken_back(
    there: World, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    await there.org.set_budget("1.00")
    await there.sync()
    reserving = Reached(there.hot_state.reserve, before=before)
    monkeypatch.setattr(there.hot_state, "reserve", reserving)
    monkeypatch.setattr(releasing, "_FIRST_PAUSE_S", 0.001)
    await cancel(asyncio.create_task(reserve(there)), reserving.event.wait())
    await until(lambda: there.assembly.releases.pending == 0)
    assert (there.held_nano(), there.events()) == (0, [])


async def test_what_a_key_holds_is_found_by_whoever_asks_again(there: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await there.org.set_budget("1.00")
    await there.sync()
    reserving = Reached(there.hot_state.reserve)
    with monkeypatch.context() as patched:
        patched.setattr(there.hot_state, "reserve", reserving)
        await cancel(asyncio.create_task(reserve(there, key="step-1")), reserving.event.wait())
    await asyncio.sleep(0.01)
    assert (there.assembly.releases.pending, there.held_nano()) == (0, 400_000_000)
    there.clock.now_ms += 10_001  # its claim has lapsed
    again = await reserve(there, key="step-1")
    assert (again.status, there.held_nano(), kinds(there)) == (201, 400_000_000, ["Reservation"])


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("key", [None, "step-1"])
async def test_a_reservation_that_was_not_told_is_ended_where_nobody_can_ask_for_it(
    there: World, monkeypatch: pytest.MonkeyPatch, before: bool, key: str | None
) -> None:
    await there.org.set_budget("1.00")
    await there.sync()
    keeping = Reached(there.ports.answers.finish, before=before)
    monkeypatch.setattr(there.ports.answers, "finish", keeping)
    await cancel(asyncio.create_task(reserve(there, key=key)), keeping.event.wait())
    assert kinds(there) == (["Reservation", "Settlement"] if key is None else ["Reservation"])
    if key is None:
        assert (there.settlement().outcome, there.settlement().cost_nano) == ("cancelled", 0)


# ---- parts of budgets -----------------------------------------------------------------------------------------------


def carving(scene: Scene, budget_id: str, once: str | None = None) -> asyncio.Task[Client]:
    return asyncio.create_task(scene.post(f"{budget_id}/delegate", SIXTY, once=once))


async def assert_nothing_is_left(scene: Scene, budget_id: str) -> None:
    """Nothing is held, and no part takes a place at control."""
    await scene.fold()
    assert scene.figures(budget_id) == FREE
    await until(lambda: all(each["has_lapsed"] for each in scene.control.kept.values()))
    assert (await scene.post(f"{budget_id}/delegate", SIXTY)).status == 201


@pytest.mark.parametrize("before", [True, False])
async def test_a_part_that_may_be_held_for_a_request_that_is_gone_is_taken_back(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    budget_id = await budget_of(scene)
    reserving = Reached(scene.there.hot_state.reserve, before=before)
    monkeypatch.setattr(releasing, "_FIRST_PAUSE_S", 0.001)
    with monkeypatch.context() as patched:
        patched.setattr(scene.there.hot_state, "reserve", reserving)
        await cancel(carving(scene, budget_id), reserving.event.wait())
    await until(lambda: scene.there.assembly.releases.pending == 0)
    await assert_nothing_is_left(scene, budget_id)


@pytest.mark.parametrize("before", [True, False])
async def test_a_part_that_control_may_have_made_is_given_back_and_ended(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    budget_id = await budget_of(scene)
    making = Reached(scene.control._make, before=before)
    with monkeypatch.context() as patched:
        patched.setattr(scene.control, "_make", making)
        await cancel(carving(scene, budget_id), making.event.wait())
    assert len(scene.control.kept) == (0 if before else 1)
    assert all(each["has_lapsed"] for each in scene.control.kept.values()), "it is waited for"
    await assert_nothing_is_left(scene, budget_id)


async def test_the_same_request_goes_on_with_what_a_cancelled_one_holds(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget_id = await budget_of(scene)
    making = Reached(scene.control._make, before=True)
    with monkeypatch.context() as patched:
        patched.setattr(scene.control, "_make", making)
        await cancel(carving(scene, budget_id, "run-7"), making.event.wait())
    assert (await carving(scene, budget_id, "run-7")).status == 201
    reservations = [each for each in scene.there.events() if isinstance(each, Reservation)]
    assert len(reservations) == 1, "there was no room for another"


@pytest.mark.parametrize("before", [True, False])
async def test_a_part_that_may_be_held_for_all_of_its_time_is_given_back(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    budget_id = await budget_of(scene)
    resizing = Reached(scene.there.hot_state.resize, before=before)
    with monkeypatch.context() as patched:
        patched.setattr(scene.there.hot_state, "resize", resizing)
        await cancel(carving(scene, budget_id), resizing.event.wait())
    await assert_nothing_is_left(scene, budget_id)


async def test_a_part_whose_key_is_lost_on_its_way_takes_no_place_at_control(scene: Scene) -> None:
    budget_id = await budget_of(scene)
    scene.control.loses.append("answer")
    told = await scene.post(f"{budget_id}/delegate", SIXTY)
    assert (told.status, "nothing is held" in told.json()["message"]) == (503, True)
    assert len(scene.control.kept) == 1
    await assert_nothing_is_left(scene, budget_id)


async def test_a_control_that_was_not_reached_has_no_part_to_end(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    budget_id = await budget_of(scene)
    lapsed: list[str] = []

    async def lapse(_control: object, _org: str, part_id: str, _actor: str) -> None:
        lapsed.append(part_id)

    monkeypatch.setattr("services.gateway.delegations.control.ControlDelegations.lapse", lapse)
    scene.control.is_away = True
    assert (await scene.post(f"{budget_id}/delegate", SIXTY)).status == 503
    scene.control.is_away = False
    await scene.fold()
    scene.control.loses.append("request")
    assert (await scene.post(f"{budget_id}/delegate", SIXTY)).status == 503
    await until(lambda: lapsed)
    assert len(lapsed) == 1


async def test_a_part_is_ended_as_soon_as_control_answers(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.gateway.delegations.backing._LAPSE_PAUSES_S", (0.0, 0.001, 0.001))
    budget_id = await budget_of(scene)
    tries = 0

    async def lapse(_control: object, _org: str, _part_id: str, _actor: str) -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise UnavailableError("control answers 500")

    monkeypatch.setattr("services.gateway.delegations.control.ControlDelegations.lapse", lapse)
    scene.control.loses.append("answer")
    assert (await scene.post(f"{budget_id}/delegate", SIXTY)).status == 503
    await until(lambda: tries == 3)


# ---- the end of a gateway -------------------------------------------------------------------------------------------


async def test_a_hold_that_comes_back_as_the_gateway_ends_does_not_keep_it(there: World) -> None:
    releases, asked = Releases(there.hot_state), asyncio.Event()

    async def away(_org: str, _name: str) -> bool:
        asked.set()
        raise UnavailableError("away")

    there.hot_state.release = away  # type: ignore[method-assign]
    releases.add("acme", "txn_1")
    await asked.wait()
    await asyncio.sleep(0)
    releases.add("acme", "txn_2")
    async with asyncio.timeout(5):
        await releases.finish(0.1)
    assert releases.pending == 0


async def test_the_server_waits_for_what_it_has_cancelled() -> None:
    begun, settled = asyncio.Event(), asyncio.Event()

    async def app(_scope: object, _receive: object, _send: object) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)
            settled.set()

    server = make_server(app, "127.0.0.1", 0, finish_s=0)  # type: ignore[arg-type]
    serving = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nhost: here\r\n\r\n")
    await begun.wait()
    server.should_exit = True
    await serving
    assert settled.is_set()
    writer.close()
    await writer.wait_closed()
