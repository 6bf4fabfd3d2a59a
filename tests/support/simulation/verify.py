"""What must be so once a simulated world has come to rest, promise by promise, by the independent checker."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from random import Random
from typing import Any

from services.core.fold import apply, load, step_of
from services.core.hotstate import OrgImage, OrgState
from services.core.ports import Incoming, TopicPartition
from tests.support.checker import (
    Transaction,
    Verdict,
    check_answers,
    check_endings,
    check_fences,
    check_figures,
    check_offsets,
    check_parents,
    check_windows,
    is_past,
    judge,
    readable,
)
from tests.support.checker_answers import check_recorded, check_told
from tests.support.checker_budgets import Configurations
from tests.support.checker_caps import CapChecker
from tests.support.checker_parents import check_payers
from tests.support.checker_parts import check_parts
from tests.support.history import TOPICS, decode_once
from tests.support.simulation.troubles import ALERTS, DENIALS
from tests.support.simulation.world import ORGS, World

Spent = dict[tuple[str, str], int]
Figures = tuple[Spent, Spent]


def verify(world: World) -> list[tuple[str, str]]:
    """Everything that is not as promised, each with its promise; what the run itself has noticed comes first."""
    if world.problems:
        return world.problems
    try:
        verdict = judge(each for each in world.history if each.topic in (*TOPICS, DENIALS))
    except AssertionError as error:
        return [("P3", str(error))]
    return list(_findings(world, verdict))


def sights(world: World) -> Counter[str]:
    """What the log of a run has to show, counted."""
    seen: Counter[str] = Counter()
    ended: set[str] = set()
    for message in world.history:
        event = readable(message)
        if event is None:
            seen["alert" if message.topic == ALERTS else "unreadable"] += 1
            continue
        seen[event["type"]] += 1
        seen.update(flag.partition(":")[0] for flag in event["flags"])
        seen.update(name for name in ("parent_charged", "would_block") if event.get(name))
        if "outcome" in event:
            seen["outcome " + event["outcome"]] += 1
            seen["estimate " + event["estimate_mode"]] += 1
            seen["late settlement"] += event["transaction_id"] in ended
        if event["type"] == "spend.hold.expired.v1":
            ended.add(event["transaction_id"])
    seen["absent"] = world.absence.is_over
    seen["backfilled"] = sum(len(world.at_rest.state(org).filled) for org in ORGS)
    seen["asked again"] = len(world.witness.repeats)
    seen["released"] = len(world.witness.released)
    seen.update(f"told {each.asked.kind} {each.status}" for each in world.clients.told)
    seen["parts"] = len(world.control.kept)
    return seen


def _findings(world: World, verdict: Verdict) -> Iterator[tuple[str, str]]:
    messages = [each for each in world.history if each.topic in TOPICS]
    for org in ORGS:
        of_org = [each for each in messages if (event := readable(each)) and event["identity"]["org"] == org]
        yield from _findings_of(world, verdict.of_org(org), org, of_org)
    yield from (("P2", each) for each in check_answers(world.witness.repeats))
    yield from (("P2", each) for each in check_told(world.clients.told))
    yield from (("P2", each) for each in check_recorded(verdict, world.clients.told))
    yield from (("P2", each) for each in _done_again(world))
    recorded = set().union(*(disk.recorded for disk in world.disks))
    yield from (("P3", each) for each in check_endings(verdict, sorted(recorded)))
    yield from (("P9", each) for each in check_windows(verdict, world.witness.admitted, world.witness.changed))
    folded = {(place.topic, place.partition): offset for place, offset in world.at_rest.fold_fences.items()}
    yield from (("P10", each) for each in check_offsets(messages, _dead_letters(world), folded))


def _done_again(world: World) -> Iterator[str]:
    """What was done anew when all that had been answered was asked for once more, long after."""
    known = {(event["producer"], event["sequence"]) for each in world.history if (event := readable(each))}
    for message in world.log.history[len(world.history) :]:
        event = readable(message)
        # The end of a reservation is recorded twice where nobody could know that it had been.
        if event is not None and (event["producer"], event["sequence"]) not in known:
            yield f"{event['transaction_id']} was asked for again, and there is a new {event['type']}"


def _findings_of(world: World, verdict: Verdict, org: str, messages: list[Incoming]) -> Iterator[tuple[str, str]]:
    configurations, loads = world.configurations[org], world.witness.loads[org]
    caps = CapChecker(
        configurations.limits(),
        loads,
        world.lost,
        world.witness.resized,
        configurations.implied_slots,
        world.witness.folds[org],
    )
    for message in messages:
        caps.foresee(message)
    for message in messages:
        caps.take(message)
    yield from (("P1", each) for each in caps.findings)
    yield from (("BU-3", each) for each in check_parents(verdict, configurations.parents(), configurations.covers()))
    yield from (("BU-3", each) for each in check_payers(verdict, configurations.versions))
    unheld = caps.strays() | {name for name, each in verdict.transactions.items() if _is_let_through(each)}
    yield from (("BU-9", each) for each in check_parts(verdict, configurations.limits(), unheld))
    state, now_ms = world.at_rest.state(org), world.rest_ms
    spent, held = figures(state)
    counts = _counts(configurations)
    known = {slot: amount for slot, amount in spent.items() if counts(slot)}
    implied = {slot: amount for slot, amount in configurations.implied(verdict).items() if counts(slot)}
    yield from (("P4", each) for each in check_figures(verdict, known, held, now_ms, implied, counts))
    alerts = [each for each in world.history if each.topic == ALERTS and each.key == org.encode()]
    was_lost = bool(loads) or org in world.untold
    yield from (("BU-4", each) for each in configurations.check_alerts(alerts, spent, was_lost=was_lost))
    yield from (("P5", each) for each in _replayed(world, verdict, messages))
    yield from (("P6", each) for each in _rebuilt(state, world.rebuilt[org], now_ms, counts))
    yield from (("P10", each) for each in check_fences(messages, state.fences))


def _is_let_through(call: Transaction) -> bool:
    return call.reservation is not None and "fail_open" in call.reservation["flags"]


def figures(state: OrgState) -> Figures:
    """What a hot state says is spent and held by (budget, window): of rings, each bucket's spend, and one hold."""
    spent = {slot: each.spent_nano for slot, each in state.windows.items()}
    held = {slot: each.held_nano for slot, each in state.windows.items()}
    for (budget_id, bucket_ms, count), ring in state.rings.items():
        window = f"r:{bucket_ms}:{count}"
        held[budget_id, window] = ring.held_nano
        for bucket, amount in ring.buckets.items():
            spent[budget_id, f"{window}:{bucket}"] = amount
        assert ring.total_nano == sum(ring.buckets.values())
    return spent, held


def _counts(configurations: Configurations) -> Callable[[tuple[str, str]], bool]:
    """Whether a slot's figure matters: the old windows of budgets that were backfilled in them belong to nobody."""
    unsettled = configurations.unsettled()

    def counts(slot: tuple[str, str]) -> bool:
        budget_id, window = slot
        return budget_id.partition("@")[0] not in unsettled or configurations.windows_of(budget_id)(window)

    return counts


def _replayed(world: World, verdict: Verdict, messages: list[Incoming]) -> list[str]:
    """The whole log folded once more: its partitions in another order, some of it twice, in batches of any size."""
    rng = Random(f"replay:{world.plan.seed}")
    state, now_ms = OrgState(), world.rest_ms
    load(state, OrgImage({}, {}, {}, {}), "replay", now_ms)
    left: dict[TopicPartition, list[Incoming]] = {}
    for message in messages:
        left.setdefault(message.place, []).append(message)
    while left := {place: rest for place, rest in left.items() if rest}:
        place = rng.choice(sorted(left))
        count = rng.randint(1, 8)
        batch, left[place] = left[place][:count], left[place][count:]
        for _ in range(1 + (rng.random() < 0.3)):
            steps = [step_of(decode_once(message.value), message.offset) for message in batch]
            known = [step for step in steps if step is not None]
            apply(state, place.topic, place.partition, known, batch[-1].offset + 1, now_ms)
    return check_figures(verdict, *figures(state), now_ms)


def _rebuilt(state: OrgState, rebuilt: OrgState, now_ms: int, counts: Callable[[tuple[str, str]], bool]) -> list[str]:
    """What the hot state decides by, and what it would if it were lost and rebuilt now: nothing may differ."""
    before, after = _digest(state, now_ms), _digest(rebuilt, now_ms)
    return [
        f"{kind} of {slot} was {was}, and is rebuilt as {after[kind].get(slot)}"
        for kind, slots in before.items()
        for slot in sorted(slots.keys() | after[kind].keys())
        if (was := slots.get(slot)) != after[kind].get(slot) and (kind != "spent" or counts(slot))
    ]


def _digest(state: OrgState, now_ms: int) -> Mapping[str, Mapping[Any, int]]:
    """What a state decides by, but for what no longer counts."""
    spent, held = figures(state)
    return {
        "spent": {
            slot: amount
            for slot, amount in spent.items()
            if amount and not (slot[1][:2] in ("r:", "c:") and _has_left(slot[1], now_ms))
        },
        "held": {slot: amount for slot, amount in held.items() if amount},
        "due": state.due,
        "producers": state.producers,
    }


def _has_left(window: str, now_ms: int) -> bool:
    if window.startswith("c:"):
        return is_past(window, now_ms)
    _, bucket_ms, count, bucket = window.split(":")
    return int(bucket) < now_ms // int(bucket_ms) - int(count)


def _dead_letters(world: World) -> list[tuple[str, int, int]]:
    letters = []
    for message in world.history:
        if message.topic.endswith(".dlq"):
            told = dict(message.headers)
            letters.append(
                (
                    told["farthing-topic"].decode(),
                    int(told["farthing-partition"]),
                    int(told["farthing-offset"]),
                )
            )
    return letters
