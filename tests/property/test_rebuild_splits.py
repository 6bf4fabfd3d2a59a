"""Wherever the ledger stands in a history, ledger and log tail together give the state that folding all of it gives."""

import asyncio
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from services.aggregator.rebuild import Replay
from services.core.codec import decode
from services.core.fold import apply, load, step_of
from services.core.hotstate import OrgImage, OrgState
from services.core.ports import Incoming, Outgoing, TopicPartition
from tests.support.aggregation import NOW_MS
from tests.support.history import TOPICS, Caller, ledger_image
from tests.support.memory_log import MemoryLog

PLACES = tuple(TopicPartition(topic, 0) for topic in TOPICS)
EMPTY = OrgImage({}, {}, {}, {})

# A deed: what happens, to which call, at what amount, at which gateway; and whether its message is published twice.
DEEDS = st.tuples(
    st.sampled_from(["reserve", "resize", "settle", "expire"]),
    st.integers(0, 5),
    st.integers(0, 3),
    st.sampled_from(["gw_1", "gw_2"]),
    st.booleans(),
)


def history(deeds: list[tuple[str, int, int, str, bool]]) -> list[Incoming]:
    """The deeds as a log has them."""
    messages: list[Outgoing] = []
    callers = {producer: Caller(NOW_MS, producer=producer) for producer in ("gw_1", "gw_2")}
    reserved: set[str] = set()
    for kind, number, amount, producer, is_repeated in deeds:
        caller, name = callers[producer], f"txn_{number}"
        if kind == "resize" and name not in reserved:
            continue  # whoever changes a hold has published its reservation, in the same partition
        if kind == "reserve":
            reserved.add(name)
            message = caller.reservation(name, 1000)
        elif kind == "resize":
            message = caller.resize(name, 700 * amount, later_ms=amount % 3)
        elif kind == "settle":
            message = caller.settlement(name, 100 * amount)
        else:
            message = caller.expiry(name, 1000 * (amount % 2))
        messages += [message] * (1 + is_repeated)
    log = MemoryLog(dict.fromkeys(TOPICS, 1))
    asyncio.run(log.publish(messages))
    return [message for place in PLACES for message in log.messages(place)]


def meaning(state: OrgState) -> dict[str, Any]:
    """A state without what depends on the way it came about: figures that are zero, and what ended holds remember."""
    return {
        "windows": {
            slot: (each.spent_nano, each.held_nano)
            for slot, each in state.windows.items()
            if each.spent_nano or each.held_nano
        },
        "rings": {
            slot: (each.total_nano, each.held_nano, {bucket: nano for bucket, nano in each.buckets.items() if nano})
            for slot, each in state.rings.items()
            if each.total_nano or each.held_nano
        },
        "open": {name: hold for name, hold in state.holds.items() if hold.phase == "held"},
        "ended": {name: (hold.phase, hold.booked_nano) for name, hold in state.holds.items() if hold.phase != "held"},
        "due": state.due,
        "fences": state.fences,
        "producers": state.producers,
    }


@given(st.lists(DEEDS, max_size=25), st.data())
def test_any_split_of_the_history_rebuilds_to_the_same_state(
    deeds: list[tuple[str, int, int, str, bool]], data: st.DataObject
) -> None:
    messages = history(deeds)
    ends = {place: sum(message.place == place for message in messages) for place in PLACES}
    taken = {place: data.draw(st.integers(0, end), label=f"ledger has of {place.topic}") for place, end in ends.items()}

    whole = OrgState()
    load(whole, EMPTY, "epoch", NOW_MS)
    replay = Replay(ledger_image("default", messages, taken), NOW_MS)
    # The fold and the rebuild each see the partitions in an order of their own.
    for message in messages:
        step = step_of(decode(message.value), message.offset)
        assert step is not None
        apply(whole, message.topic, message.partition, [step], message.offset + 1, NOW_MS)
    for message in data.draw(st.sampled_from([messages, sorted(messages, key=lambda each: (each.offset, each.topic))])):
        step = step_of(decode(message.value), message.offset)
        assert step is not None
        replay.fold(message.place, step)
    whole.fences = {(place.topic, place.partition): end for place, end in ends.items()}

    rebuilt = OrgState()
    load(rebuilt, replay.image(ends), "epoch", NOW_MS)
    assert meaning(rebuilt) == meaning(whole)
