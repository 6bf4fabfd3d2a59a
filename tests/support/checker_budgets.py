"""What published budgets mean for calls, by the independent model: matches, windows, implied charges and thresholds.

Like `checker`, it imports nothing of Farthing: it reads the JSON that control publishes and the events of the log.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from tests.support.checker import Message, Verdict, milliseconds, nano

Fields = Mapping[str, Any]
# Expressions that the model knows the meaning of, as functions of an event.
Expressions = Mapping[str, Callable[[Fields], bool]]
Spent = dict[tuple[str, str], int]


class Configurations:
    """Everything that was published of one org, by version."""

    def __init__(self, expressions: Expressions) -> None:
        self._expressions = expressions
        self.versions: dict[int, dict[str, Fields]] = {}

    def take(self, published: bytes) -> None:
        """A snapshot as published."""
        fields = json.loads(published)
        self.versions[fields["version"]] = {each["budget_id"]: each for each in fields["budgets"]}

    @property
    def current(self) -> Mapping[str, Fields]:
        """The budgets that were published last."""
        return self.versions[max(self.versions)]

    def limits(self) -> dict[int, dict[str, int | None]]:
        """The limits in nano-dollars by version and budget; None where a full budget stops nothing."""
        return {
            version: {name: None if _only_watches(each) else each["limit_nano"] for name, each in budgets.items()}
            for version, budgets in self.versions.items()
        }

    def parents(self) -> dict[int, dict[str, str | None]]:
        """The parents by version and budget; None, too, where the parent does not see calls that name no session."""
        return {
            version: {name: self._seeing_parent(budgets, each) for name, each in budgets.items()}
            for version, budgets in self.versions.items()
        }

    def _seeing_parent(self, budgets: Mapping[str, Fields], budget: Fields) -> str | None:
        parent: str | None = budget["parent_id"]
        if parent is not None and budgets[parent]["window"].get("of") == "session" and _only_watches(budgets[parent]):
            return None
        return parent

    def covers(self) -> dict[int, dict[str, list[str]]]:
        """What each part was carved from, by version."""
        return {
            version: {name: each["covers"] for name, each in budgets.items() if each["covers"]}
            for version, budgets in self.versions.items()
        }

    def unsettled(self) -> set[str]:
        """Budgets that were once backfilled, and have another window now or are gone: what their old windows hold is
        nobody's business any more."""
        return {
            name
            for budgets in self.versions.values()
            for name, each in budgets.items()
            if each["since_version"] and self.current.get(name, {}).get("window") != each["window"]
        }

    def windows_of(self, budget_id: str) -> Callable[[str], bool]:
        """Whether a window key is one of a budget's present window."""
        budget = self.current.get(budget_id.partition("@")[0])
        return lambda window: budget is not None and _is_of(budget["window"], window)

    def implied(self, verdict: Verdict) -> Spent:
        """What calls of earlier configurations have spent of budgets that count them all the same (BU-8)."""
        spent: Spent = defaultdict(int)
        for each in verdict.transactions.values():
            event = each.settlement or each.expiry
            if event is None or event.get("route") == "delegation":
                continue  # what a part did cost are its calls, which are charged themselves
            for budget in self.current.values():
                if event["config_version"] >= budget["since_version"] and not _is_in_old_window(budget, event):
                    continue
                said = _said(budget, event)
                for slot in {*self._slots(budget, event), *self._as_parent(budget, event)}:
                    if slot[0] not in said:
                        spent[slot] += each.spent_nano
        return {slot: amount for slot, amount in spent.items() if amount}

    def implied_slots(self, event: Fields, admitted: str) -> Iterable[tuple[str, str, int]]:
        """What an event of an earlier configuration counts against without saying so, of the present budgets: (budget
        id, window), and the version from which on it does. `admitted` is when its call was, as events spell it."""
        if event.get("route") == "delegation":
            return
        told = {**event, "admitted_at": admitted}
        for budget in self.current.values():
            if event["config_version"] >= budget["since_version"]:
                continue
            said = _said(budget, event)
            for budget_id, window in sorted({*self._slots(budget, told), *self._as_parent(budget, told)}):
                if budget_id not in said:
                    yield budget_id, window, budget["since_version"]

    def _as_parent(self, budget: Fields, event: Fields) -> Iterable[tuple[str, str]]:
        """What was charged to a budget in a window that it had counts in the one that it has, if only as a child's."""
        session = event["identity"]["session"]
        if budget["window"].get("of") == "session" and session is None:
            return
        if any(charge["budget_id"] == budget["budget_id"] for charge in event["charges"]):
            yield budget["budget_id"], span_key(budget["window"], milliseconds(event["admitted_at"]), session)

    def _slots(self, budget: Fields, event: Fields) -> Iterable[tuple[str, str]]:
        session = event["identity"]["session"]
        if budget["window"].get("of") == "session" and session is None:
            return
        window = span_key(budget["window"], milliseconds(event["admitted_at"]), session)
        kind, value = budget["scope_kind"], budget["scope_value"]
        if kind == "cel":
            if self._expressions[budget["expression"]](event):
                yield budget["budget_id"], window
            return
        for own in _values(kind, event):
            if value == "*":
                yield f"{budget['budget_id']}@{own}", window
            elif value == own:
                yield budget["budget_id"], window

    def check_alerts(
        self, alerts: Iterable[Message], spent: Mapping[tuple[str, str], int], *, was_lost: bool = False
    ) -> list[str]:
        """BU-4: what was told was true by the limits of then; what is spent now of a window has been told of.

        `spent` are the figures at the end. Of budgets whose limit has changed, and of rings, only the first is known;
        so it is when the hot state `was_lost`: what a rebuild folds is told of with the next spend of its window.
        """
        findings = []
        told: set[tuple[str, str, int]] = set()
        for message in alerts:
            event = json.loads(message.value)
            told.add((event["budget_id"], event["window"], event["percent"]))
            budget = self.versions[event["config_version"]][event["budget_id"].partition("@")[0]]
            limit_nano = nano(event["limit_usd"])
            if limit_nano != budget["limit_nano"] or event["percent"] not in budget["thresholds"]:
                findings.append(f"{event['producer']} tells of a limit or threshold that was not set")
            if nano(event["spent_usd"]) * 100 < limit_nano * event["percent"]:
                findings.append(f"{event['producer']} tells of {event['spent_usd']} of {event['limit_usd']}")
        for (budget_id, window), amount in spent.items():
            name = budget_id.partition("@")[0]
            if was_lost or window.startswith("r:") or not self._never_changed(name):
                continue
            for percent in self.current[name]["thresholds"]:
                is_crossed = amount > 0 and amount * 100 >= self.current[name]["limit_nano"] * percent
                if is_crossed and (budget_id, window, percent) not in told:
                    findings.append(f"nobody was told that {budget_id} has spent {percent} % in {window}")
        return findings

    def _never_changed(self, name: str) -> bool:
        seen = [budgets.get(name) for budgets in self.versions.values()]
        return all(each == seen[0] for each in seen) and seen[0] is not None


def span_key(window: Fields, now_ms: int, session: str | None) -> str:
    """The key of the span of a window that holds an instant."""
    if "length_ms" in window:
        bucket_ms = -(-window["length_ms"] // 60)
        return f"r:{bucket_ms}:60:{now_ms // bucket_ms}"
    if "every_ms" in window:
        start_ms = now_ms - (now_ms - window["anchor_ms"]) % window["every_ms"]
        return f"c:{start_ms}:{start_ms + window['every_ms']}"
    if "of" in window:
        return f"s:{session}" if window["of"] == "session" else "l"
    now = datetime.fromtimestamp(now_ms // 1000, UTC).astimezone(ZoneInfo(window["zone"]))
    begin = now.replace(minute=0, second=0, microsecond=0)
    length = timedelta(hours=1)
    if window["unit"] == "day":
        begin, length = begin.replace(hour=0), timedelta(days=1)
    assert window["unit"] in ("hour", "day"), "the model knows hours and days, of zones without summer time"
    return f"c:{round(begin.timestamp() * 1000)}:{round((begin + length).timestamp() * 1000)}"


def _said(budget: Fields, event: Fields) -> set[str]:
    """The ids by which an event is charged to a budget in the window that it has now, be it in another span of that
    than its call's: a reservation that grew is charged where it asked for more."""
    return {each["budget_id"] for each in event["charges"] if _is_of(budget["window"], each["window"])}


def _is_in_old_window(budget: Fields, event: Fields) -> bool:
    """Whether an event is charged to a budget, and only in windows that it no longer has."""
    charges = (each for each in event["charges"] if each["budget_id"].partition("@")[0] == budget["budget_id"])
    windows = [each["window"] for each in charges]
    return bool(windows) and not any(_is_of(budget["window"], each) for each in windows)


def _is_of(window: Fields, key: str) -> bool:
    kind, *numbers = key.split(":")
    if kind == "c":
        return span_key(window, int(numbers[0]), "") == key
    if kind == "r":
        return span_key(window, int(numbers[2]) * int(numbers[0]), "") == key
    return bool(window.get("of", "") == ("session" if kind == "s" else "lifetime"))


def _values(kind: str, event: Fields) -> list[str]:
    if kind in ("vendor", "billing_class"):
        return [event[kind]]
    if kind == "model":
        names = [event["model_requested"]]
        if event["match"] in ("exact", "normalised"):
            names.append(event["model_priced"])
        return list(dict.fromkeys(names))
    value = event["identity"]["key_id" if kind == "key" else kind]
    return [] if value is None else [value]


def _only_watches(budget: Fields) -> bool:
    return bool(budget["enforcement"] == "monitor" or budget["when_full"] == "alert")
