"""An org's image as SQL sums it up is what folding every row with `core.fold` gives, for any history of calls."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.adapters.clickhouse import ClickHouse
from services.adapters.ledger_http import _image
from services.core.budgets import Charge
from services.core.codec import decode, encode_facts, to_message
from services.core.events import CallFacts, Denial, Expiry, HoldResized, Reservation, Settlement, Stamped
from services.core.fold import apply, load, step_of
from services.core.hotstate import EXPIRY_PRODUCER, OrgState
from services.core.identity import Identity
from services.core.ports import Incoming, Outgoing
from services.core.windows import CalendarWindow, LifetimeWindow, RollingWindow, SessionWindow, Window, span_at
from services.ledger.image import image_fields, org_image
from tests.support.ledger import Rig, new_log, now_ms
from tests.support.memory_log import MemoryLog

HOUR_MS = 3_600_000
WINDOWS: tuple[Window, ...] = (
    CalendarWindow("hour", "UTC"),
    CalendarWindow("day", "Europe/Berlin"),
    CalendarWindow("month", "UTC"),
    RollingWindow(HOUR_MS),
    RollingWindow(30 * 24 * HOUR_MS),
    CalendarWindow("year", "UTC"),
    SessionWindow(),
    LifetimeWindow(),
)
ENDED = 6  # as many of them have an end
AGES_MS = (0, 5 * 60_000, 3 * HOUR_MS, 30 * HOUR_MS, 40 * 24 * HOUR_MS)

_orgs = itertools.count(1)
_logs: dict[int, MemoryLog] = {}


@dataclass(frozen=True)
class Step:
    """One publication: an event of call `call` by `producer`, or (``again``) an earlier message once more."""

    kind: str
    call: int
    amount_nano: int
    producer: int


steps = st.builds(
    Step,
    kind=st.sampled_from(("reserve", "reserve", "resize", "resize", "settle", "settle", "expire", "deny", "again")),
    call=st.integers(0, 7),
    amount_nano=st.integers(0, 10_000),
    producer=st.integers(1, 2),
)


def charges_of(call: int, now: int, change: int = 0) -> tuple[Charge, ...]:
    """Each call was admitted at an age of its own and falls under some of the budgets; under others when it changes."""
    admitted_ms = now - AGES_MS[call % len(AGES_MS)]
    return tuple(
        Charge(f"bud_{number}", f"team:t{number}", span_at(window, admitted_ms, f"run:{call % 2}").key())
        for number, window in enumerate(WINDOWS)
        if (call + number + change) % 3 and (number < ENDED or call % 4)
    )


def messages_of(org: str, history: Sequence[Step], now: int) -> list[Outgoing]:
    facts = CallFacts(Identity(org, "key_1", team="t"), "sandbox", "/v1/x", "m", "m", "exact", "c", 1)
    resized_facts = replace(facts, vendor="other", model_priced="o")
    sequences: dict[str, int] = {}
    messages: list[Outgoing] = []
    reserved: set[int] = set()
    for step in history:
        name = f"txn_{org}_{step.call}"
        # All on one day, however old the call: an insert a topic is enough.
        head: tuple[str, int, CallFacts] = (name, now - now % (24 * HOUR_MS), facts)
        # What an event says it is charged to is what counts, whatever others of the call have said.
        charges = charges_of(step.call, now, step.amount_nano % 3 if step.kind != "reserve" else 0)
        if step.kind == "resize" and step.call not in reserved:
            continue  # whoever changes a hold has published its reservation, in the same partition
        if step.kind == "again":
            messages.extend(messages[step.call : step.call + 1])
            continue
        if step.kind == "expire":
            expiry = Expiry(*head, held_nano=step.amount_nano, booked_nano=step.amount_nano, charges=charges)
            messages.append(to_message(Stamped(expiry, EXPIRY_PRODUCER + name, 1)))
            continue
        event: Reservation | HoldResized | Settlement | Denial
        if step.kind == "resize":
            # Now and then one is told of after a later one.
            time_ms = head[1] + step.amount_nano % 3
            event = HoldResized(
                name, time_ms, resized_facts, step.amount_nano, charges, now + 90_000 + step.amount_nano
            )
        elif step.kind == "reserve":
            reserved.add(step.call)
            event = Reservation(*head, "strict", 1, 1, step.amount_nano, charges, now + 60_000)
        elif step.kind == "settle":
            event = Settlement(
                *head, "completed", "reported", {}, (), step.amount_nano, step.amount_nano, charges, 200, 0
            )
        else:
            event = Denial(*head, "unknown_model", "", 0)
        producer = f"gw_{org}_{step.producer}"
        sequences[producer] = sequences.get(producer, 0) + 1
        messages.append(to_message(Stamped(event, producer, sequences[producer])))
    return messages


def folded(org: str, messages: Sequence[Incoming], now: int) -> OrgState:
    state = OrgState(epoch="folded")
    for message in messages:
        stamped = decode(message.value)
        step = step_of(stamped, message.offset)
        if step is not None and stamped.event.facts.identity.org == org:
            apply(state, message.topic, message.partition, [step], message.offset + 1, now)
    return state


def figures(state: OrgState) -> dict[Any, tuple[int, int, dict[int, int]]]:
    """Every budget's figures but those that say nothing."""
    found: dict[Any, tuple[int, int, dict[int, int]]] = {
        slot: (window.spent_nano, window.held_nano, {}) for slot, window in state.windows.items()
    }
    for slot, ring in state.rings.items():
        buckets = {bucket: spent for bucket, spent in ring.buckets.items() if spent}
        found[slot] = (ring.total_nano, ring.held_nano, buckets)
    return {slot: each for slot, each in found.items() if each != (0, 0, {})}


def open_holds(state: OrgState) -> dict[str, Any]:
    return {
        name: (
            *(hold.amount_nano, hold.charges, hold.context, hold.expires_at_ms),
            *(hold.admitted_at_ms, hold.resized_at_ms),
        )
        for name, hold in state.holds.items()
        if hold.phase == "held"
    }


def ended_holds(state: OrgState) -> dict[str, Any]:
    """How each hold ended. (What it held is not compared: a fold that saw the ending first never learns it.)"""
    return {
        name: (hold.phase, hold.booked_nano, hold.charges) for name, hold in state.holds.items() if hold.phase != "held"
    }


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=st.lists(steps, max_size=30), settlements_first=st.booleans())
async def test_image_is_the_fold_of_all_rows(
    ledger_store: ClickHouse, history: list[Step], settlements_first: bool
) -> None:
    now, org = now_ms(), f"org{next(_orgs)}"
    log = _logs.setdefault(id(ledger_store), new_log(1))
    rig = Rig(ledger_store, log)
    sink = rig.sink()
    await sink._find_start()
    starts = dict(sink._next)
    await log.publish(messages_of(org, history, now))
    fresh = {place: [each for each in log.messages(place) if each.offset >= start] for place, start in starts.items()}
    for messages in fresh.values():
        await sink._take(messages)

    image = await org_image(ledger_store, org, now)
    over_the_wire = _image(image_fields(image))
    assert over_the_wire == image
    assert not any(producer.startswith(EXPIRY_PRODUCER) for _, _, producer in image.image.producers)
    loaded = OrgState()
    load(loaded, over_the_wire.image, "loaded", now)
    order = sorted(fresh, reverse=settlements_first)
    expected = folded(org, [message for place in order for message in fresh[place]], now)

    assert figures(loaded) == figures(expected)
    assert open_holds(loaded) == open_holds(expected)
    assert ended_holds(loaded) == ended_holds(expected)
    assert loaded.producers == expected.producers
    ends = await log.end_offsets(list(starts))
    assert image.next_offsets == {place: end for place, end in ends.items() if end}


def test_contexts_are_those_of_the_events() -> None:
    """An expiry is told from a hold's context alone, so a rebuilt hold must carry it."""
    facts = CallFacts(Identity("o", "k"), "sandbox", "/", "m", "m", "exact", "c", 1)
    step = step_of(Stamped(Reservation("txn_1", 0, facts, "strict", 1, 1, 1, (), 1), "gw_1", 1), 0)
    assert step is not None
    assert step.context == encode_facts(facts)
