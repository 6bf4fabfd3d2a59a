"""Budgets that hold what calls have been seen to cost, and how it is told when that was too little (PR-5)."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from services.core.budgets import Budget, EstimateMode
from services.core.calibrate import LEAST_SAMPLES
from services.core.events import Reservation, Settlement
from services.core.money import parse_usd
from services.gateway.observe import NoObserver
from tests.support.gateway import DAY, PublishedOrg, ScriptedAnswer, World, chat, world
from tests.support.growing import DONE, asking, reservation, resizes, streamed, text, usage


class Watching(NoObserver):
    """Remembers what was under-estimated."""

    def __init__(self) -> None:
        self.too_low: list[tuple[str, str]] = []

    def underestimated(self, vendor: str, estimate_mode: str) -> None:
        self.too_low.append((vendor, estimate_mode))


@pytest.fixture
def observer() -> Watching:
    return Watching()


@pytest.fixture
async def there(tmp_path: Path, observer: Watching) -> AsyncIterator[World]:
    async with world(tmp_path, observer=observer) as made:
        yield made


def answer(tokens_in: int = 10, tokens_out: int = 5) -> ScriptedAnswer:
    usage = {"prompt_tokens": tokens_in, "completion_tokens": tokens_out}
    return ScriptedAnswer([orjson.dumps({"object": "chat.completion", "choices": [], "usage": usage})])


async def set_budgets(there: World, *modes: EstimateMode, limit_usd: str = "100.00") -> None:
    scopes = (("org", "default"), ("team", "ml"), ("agent", "ada"))
    budgets = tuple(
        Budget(f"bud_{number}", kind, value, DAY, parse_usd(limit_usd), mode)  # type: ignore[arg-type]
        for number, ((kind, value), mode) in enumerate(zip(scopes, modes, strict=False))
    )
    await there.org.publish(budgets=budgets)
    await there.sync()


async def call(there: World, found: ScriptedAnswer, **fields: object) -> tuple[Reservation, Settlement]:
    there.answer(found)
    client = await there.call(chat(**fields), x_spend_agent="ada")
    assert client.status == 200, client.content
    reservation, settlement = there.events()[-2:]
    assert isinstance(reservation, Reservation)
    assert isinstance(settlement, Settlement)
    return reservation, settlement


async def teach(there: World, calls: int = LEAST_SAMPLES, **fields: object) -> Reservation:
    for _ in range(calls):
        reservation, _ = await call(there, answer(), **fields)
    return reservation


async def test_enough_calls_teach_what_to_hold(there: World, observer: Watching) -> None:
    await set_budgets(there, "calibrated")
    taught = await teach(there)
    assert {each.estimate_mode for each in there.events() if isinstance(each, Reservation | Settlement)} == {"strict"}
    bound_nano = taught.held_nano
    before_nano = there.held_nano()
    reservation, settlement = await call(there, answer())
    assert (reservation.estimate_mode, settlement.estimate_mode) == ("calibrated", "calibrated")
    # 10 at $0.15 and 5 at $0.60 a million, as thousandths of the bound, times 1.25; each rounded up.
    share = -(-4_500 * 1_000 // bound_nano)
    assert reservation.held_nano == -(-bound_nano * share * 1_250 // 1_000_000) < bound_nano
    assert there.held_nano() - before_nano == reservation.held_nano == settlement.held_nano
    assert (reservation.input_tokens_bound, reservation.output_tokens_bound) == (
        taught.input_tokens_bound,
        taught.output_tokens_bound,
    ), "what is known for certain is still told"
    assert settlement.cost_nano == 4_500
    assert observer.too_low == []


@pytest.mark.parametrize(
    ("modes", "held"),
    [
        (("calibrated", "calibrated", "calibrated"), "calibrated"),
        (("calibrated", "strict", "calibrated"), "strict"),
        (("strict",), "strict"),
        ((), "strict"),
    ],
)
async def test_one_strict_budget_makes_the_call_strict(
    there: World, modes: tuple[EstimateMode, ...], held: EstimateMode
) -> None:
    await set_budgets(there, *modes)
    taught = await teach(there)
    reservation, settlement = await call(there, answer())
    assert (reservation.estimate_mode, settlement.estimate_mode) == (held, held)
    assert (reservation.held_nano == taught.held_nano) == (held == "strict")


async def test_a_strict_budget_of_another_team_is_not_the_calls(there: World) -> None:
    await set_budgets(there, "calibrated")
    other = Budget("bud_ops", "team", "ops", DAY, parse_usd("1.00"))
    await there.org.publish(budgets=(*there.org.snapshot.budgets, other))
    await there.sync()
    await teach(there)
    assert (await call(there, answer()))[0].estimate_mode == "calibrated"


async def test_a_call_that_costs_more_is_settled_in_full_and_counted(there: World, observer: Watching) -> None:
    await set_budgets(there, "calibrated")
    await teach(there)
    reservation, settlement = await call(there, answer(tokens_out=100))
    assert settlement.cost_nano > reservation.held_nano == settlement.held_nano
    # 10 at $0.15 and 100 at $0.60 a million.
    assert settlement.cost_nano == 61_500
    assert observer.too_low == [("openai", "calibrated")]


async def test_other_models_and_routes_are_not_known_by_it(there: World) -> None:
    await set_budgets(there, "calibrated")
    await teach(there)
    there.answer(answer())
    sandbox = await there.call(chat(model="sandbox-small"), x_spend_agent="ada")
    assert sandbox.status == 200
    reservation = there.events()[-2]
    assert isinstance(reservation, Reservation)
    assert reservation.estimate_mode == "strict"


async def test_other_orgs_are_not_known_by_it(there: World) -> None:
    """What one org's calls cost would tell another of them, and hold too little for its own."""
    await set_budgets(there, "calibrated")
    await teach(there)
    other = PublishedOrg(there.directory, there.ports.hot_state, "globex")
    await other.warm_up()
    await other.connect("openai", "https://vendor.test/v1")
    budget = Budget("bud_globex", "org", "globex", DAY, parse_usd("100.00"), "calibrated")
    await other.publish(budgets=(budget,))
    key = await other.make_key()
    await there.sync()
    there.answer(answer())
    client = await there.call(chat(), authorization=f"Bearer {key}")
    assert client.status == 200, client.content
    reservation = there.events()[-2]
    assert isinstance(reservation, Reservation)
    assert (reservation.facts.identity.org, reservation.estimate_mode) == ("globex", "strict")
    assert (await call(there, answer()))[0].estimate_mode == "calibrated"


async def test_calls_that_tell_nothing_teach_nothing(there: World) -> None:
    """Estimates, refusals and broken answers are not what a call costs."""
    await set_budgets(there, "calibrated")
    await teach(there, LEAST_SAMPLES - 1)
    no_usage = orjson.dumps({"object": "chat.completion", "choices": []})
    there.answer(ScriptedAnswer([no_usage]), ScriptedAnswer([b"{}"], 400), ScriptedAnswer([no_usage[:10]]))
    for _ in range(3):
        await there.call(x_spend_agent="ada")
    assert (await call(there, answer()))[0].estimate_mode == "strict"
    assert (await call(there, answer()))[0].estimate_mode == "calibrated"


async def test_a_budget_without_room_for_bounds_has_room_for_estimates(there: World) -> None:
    await set_budgets(there, "calibrated")
    bound_nano = (await teach(there, max_tokens=10_000)).held_nano
    room_nano = bound_nano // 10
    budget = replace(there.org.snapshot.budgets[0], budget_id="bud_small", limit_nano=room_nano)
    await there.org.publish(budgets=(budget,))
    await there.sync()
    reservation, _ = await call(there, answer(), max_tokens=10_000)
    assert 0 < reservation.held_nano <= room_nano
    strict = replace(budget, budget_id="bud_strict", estimate="strict")
    await there.org.publish(budgets=(strict,))
    await there.sync()
    client = await there.call(chat(max_tokens=10_000), x_spend_agent="ada")
    assert client.status == 402
    assert parse_usd(client.json()["error"]["estimate_usd"]) == bound_nano


async def test_a_refusal_tells_the_estimate_that_was_to_be_held(there: World) -> None:
    await set_budgets(there, "calibrated")
    await teach(there)
    reservation, _ = await call(there, answer())
    budget = replace(there.org.snapshot.budgets[0], budget_id="bud_none", limit_nano=reservation.held_nano - 1)
    await there.org.publish(budgets=(budget,))
    await there.sync()
    client = await there.call(x_spend_agent="ada")
    assert client.status == 402
    assert parse_usd(client.json()["error"]["estimate_usd"]) == reservation.held_nano


async def test_dearer_calls_are_learned_too(there: World) -> None:
    await set_budgets(there, "calibrated")
    await teach(there)
    cheap, _ = await call(there, answer())
    for _ in range(20):
        await call(there, answer(tokens_out=60))
    dear, _ = await call(there, answer())
    assert dear.held_nano > cheap.held_nano


# ---- streams --------------------------------------------------------------------------------------------------------


async def taught(there: World, tokens_out: int = 400) -> int:
    """What a stream is held at by an org whose streams have cost so much; all that it held before is let go."""
    await set_budgets(there, "calibrated")
    for _ in range(LEAST_SAMPLES):
        there.answer(streamed(usage(tokens_out), DONE))
        await there.call(asking(max_tokens=10_000), x_spend_agent="ada")
    state = there.hot_state.store.state("default")
    for part in (state.windows, state.holds, state.due):
        part.clear()
    there.outbox.forget(10**9)
    there.answer(streamed(usage(tokens_out), DONE))
    await there.call(asking(max_tokens=10_000), x_spend_agent="ada")
    held_nano = there.held_nano()
    for part in (state.windows, state.holds, state.due):
        part.clear()
    there.outbox.forget(10**9)
    return held_nano


async def test_a_stream_that_likely_costs_more_than_was_learned_extends_its_hold(there: World) -> None:
    held_nano = await taught(there)
    # 20,000 bytes are likely 5,000 tokens, far more than the 400 of all before it.
    pieces = [text(1_000) for _ in range(20)]
    there.answer(streamed(*pieces, usage(5_000), DONE))
    client = await there.call(asking(max_tokens=10_000), x_spend_agent="ada")
    assert client.content == b"".join([*pieces, usage(5_000), DONE])
    settlement = there.settlement()
    assert (settlement.estimate_mode, settlement.outcome) == ("calibrated", "completed")
    assert reservation(there).held_nano == held_nano < settlement.cost_nano <= settlement.held_nano
    assert there.held_nano() == settlement.held_nano == resizes(there)[-1].held_nano


async def test_a_stream_as_all_the_others_needs_no_extension(there: World) -> None:
    await taught(there)
    there.answer(streamed(*(text(100) for _ in range(12)), usage(300), DONE))
    await there.call(asking(max_tokens=10_000), x_spend_agent="ada")
    assert there.settlement().outcome == "completed"
    assert len(resizes(there)) <= 1


async def test_a_stream_that_likely_costs_more_than_its_budgets_have_is_ended(there: World) -> None:
    held_nano = await taught(there)
    await there.org.publish(budgets=(replace(there.org.snapshot.budgets[0], limit_nano=held_nano),))
    await there.sync()
    there.answer(streamed(*(text(1_000) for _ in range(20)), usage(5_000), DONE))
    client = await there.call(asking(max_tokens=10_000), x_spend_agent="ada")
    assert b'"code":"budget_exhausted"' in client.content
    assert client.content.count(b"xxx") < 20 * 1_000
    assert there.settlement().outcome == "cut_off"


async def test_what_a_stream_says_of_its_input_counts(there: World) -> None:
    """An input that alone costs more than was learned is seen as soon as it is told."""
    held_nano = await taught(there)
    tokens_in = 40_000
    told = {"prompt_tokens": tokens_in, "completion_tokens": 1}
    there.answer(streamed(text(10, usage=told), text(10), usage(5, tokens_in), DONE))
    await there.call(asking(max_tokens=10_000), x_spend_agent="ada")
    assert tokens_in * 150 > held_nano
    # What is held is never more than the bound, which such an input is beyond.
    assert resizes(there)[-1].held_nano > held_nano
