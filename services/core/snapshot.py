"""The compiled snapshot of an org: all a gateway needs to decide, versioned, published into the hot state."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar, get_args

from services.core.billing import CONNECTION_AUTH_MODES, METERED, ConnectionAuthMode
from services.core.budgets import ESTIMATE_MODES, SCOPE_KINDS, Budget, ChildMode, Enforcement, WhenFull
from services.core.windows import (
    CALENDAR_UNITS,
    CalendarWindow,
    IntervalWindow,
    LifetimeWindow,
    RollingWindow,
    SessionWindow,
    Window,
    check_zone,
)

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Connection:
    """How to reach a vendor for an org. `sealed_key` is the vendor key, AES-256-GCM under the org's own key (VA-1).

    `auth_mode` says how its calls are paid for, but for those that bring a key of their own (BU-7).
    """

    vendor: str
    dialect: str
    base_url: str
    sealed_key: str | None
    prices_as: str
    auth_mode: ConnectionAuthMode = METERED


UnknownModelPolicy = Literal["reject", "fallback_price", "allow_unpriced"]
UNKNOWN_MODEL_POLICIES: Final[tuple[UnknownModelPolicy, ...]] = ("reject", "fallback_price", "allow_unpriced")
ANY: Final = "*"


@dataclass(frozen=True, slots=True)
class Target:
    """A vendor and a model of it."""

    vendor: str
    model: str


@dataclass(frozen=True, slots=True)
class UnknownModels:
    """What becomes of a call whose model has no price (PR-2). `priced_as` is set for ``fallback_price`` only."""

    policy: UnknownModelPolicy = "reject"
    priced_as: Target | None = None


@dataclass(frozen=True, slots=True)
class RouteRule:
    """How calls of a vendor's route are treated; `*` is any vendor or any route, and what is None is left as it is.

    `budget_status` is the HTTP status of a budget's refusal; `fallbacks` are tried in order when the vendor fails;
    `fail_open` lets calls pass without a hold while the spend state is away (GW-9).
    """

    vendor: str = ANY
    route: str = ANY
    budget_status: int | None = None
    timeout_ms: int | None = None
    fallbacks: tuple[Target, ...] | None = None
    fail_open: bool | None = None


@dataclass(frozen=True, slots=True)
class Overrides:
    """An org's own prices, as entries of a catalog (`core.catalog`); `version` is a hash of them."""

    version: str
    entries: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An org as compiled: `version` grows with every change."""

    org: str
    version: int
    catalog_version: str
    hold_ms: int
    book_expired: bool
    budgets: tuple[Budget, ...]
    connections: Mapping[str, Connection]
    overrides: Overrides | None = None
    unknown_models: UnknownModels = UnknownModels()
    allow_unpriced_routes: bool = False
    rules: tuple[RouteRule, ...] = ()

    def rule(self, vendor: str, route: str) -> RouteRule:
        """What holds for a vendor's route: of each setting, the most particular rule's that has it."""
        found = RouteRule(vendor, route)
        for wanted in ((vendor, route), (vendor, ANY), (ANY, route), (ANY, ANY)):
            for each in self.rules:
                if (each.vendor, each.route) == wanted:
                    found = RouteRule(
                        vendor,
                        route,
                        each.budget_status if found.budget_status is None else found.budget_status,
                        each.timeout_ms if found.timeout_ms is None else found.timeout_ms,
                        each.fallbacks if found.fallbacks is None else found.fallbacks,
                        each.fail_open if found.fail_open is None else found.fail_open,
                    )
        return found


def encode_snapshot(snapshot: Snapshot) -> bytes:
    """The snapshot as JSON."""
    return json.dumps(
        {
            "org": snapshot.org,
            "version": snapshot.version,
            "catalog_version": snapshot.catalog_version,
            "hold_ms": snapshot.hold_ms,
            "book_expired": snapshot.book_expired,
            "budgets": [_budget_fields(each) for each in snapshot.budgets],
            "connections": [
                {
                    "vendor": each.vendor,
                    "dialect": each.dialect,
                    "base_url": each.base_url,
                    "sealed_key": each.sealed_key,
                    "prices_as": each.prices_as,
                    "auth_mode": each.auth_mode,
                }
                for each in snapshot.connections.values()
            ],
            "overrides": None
            if snapshot.overrides is None
            else {"version": snapshot.overrides.version, "entries": list(snapshot.overrides.entries)},
            "unknown_models": {
                "policy": snapshot.unknown_models.policy,
                "priced_as": _target_fields(snapshot.unknown_models.priced_as),
            },
            "allow_unpriced_routes": snapshot.allow_unpriced_routes,
            "rules": [_rule_fields(each) for each in snapshot.rules],
        },
        sort_keys=True,
        separators=(",", ":"),
    ).encode()


def decode_snapshot(value: bytes) -> Snapshot:
    """The snapshot of `encode_snapshot` bytes; fields that a newer control adds are passed over.

    Raises `ValueError` for anything else, naming the field. A word that is not known is such a thing, for what is not
    understood can't be enforced: a kind of scope, a unit of a window, a rule.
    """
    fields: dict[str, Any] = json.loads(value)
    try:
        return Snapshot(
            org=_text(fields, "org"),
            version=_whole(fields, "version"),
            catalog_version=_text(fields, "catalog_version"),
            hold_ms=_whole(fields, "hold_ms", 1),
            book_expired=_flag(fields["book_expired"], "book_expired"),
            budgets=tuple(_named(_budget_of, each, "budget_id") for each in fields["budgets"]),
            connections={each["vendor"]: _named(_connection_of, each, "vendor") for each in fields["connections"]},
            # A control of an earlier release does not write these.
            overrides=_overrides_of(fields.get("overrides")),
            unknown_models=_unknown_models_of(fields.get("unknown_models")),
            allow_unpriced_routes=_flag(fields.get("allow_unpriced_routes", False), "allow_unpriced_routes"),
            rules=tuple(_rule_of(each) for each in fields.get("rules", ())),
        )
    except KeyError as error:
        raise ValueError(f"there is no {error.args[0]}") from error
    except (TypeError, AttributeError) as error:
        raise ValueError(f"it is not made as a snapshot is: {error}") from error


_PLAIN_BUDGET: Final = (
    "expression", "parent_id", "child_mode", "enforcement", "when_full", "downgrade_to", "extend", "since_version",
    "is_cap", "ends_at_ms",
)  # fmt: skip
# What a field may say, for those that have a closed list of words.
_ENDLESS: Final = ("session", "lifetime")
_BUDGET_TEXTS: Final = ("expression", "parent_id", "downgrade_to")
_BUDGET_WORDS: Final[Mapping[str, tuple[str, ...]]] = {
    "scope_kind": SCOPE_KINDS,
    "estimate": ESTIMATE_MODES,
    "child_mode": get_args(ChildMode),
    "enforcement": get_args(Enforcement),
    "when_full": get_args(WhenFull),
}


def _named(make: Callable[[Mapping[str, Any]], _T], fields: Mapping[str, Any], name: str) -> _T:
    """What `make` makes of one entry of a list; its errors say of which."""
    try:
        return make(fields)
    except KeyError as error:
        raise ValueError(f"{name} {fields.get(name)}: there is no {error.args[0]}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{name} {fields.get(name)}: {error}") from error


def _word(value: Any, name: str, words: Collection[str]) -> Any:
    if type(value) is not str or value not in words:
        raise ValueError(f"{name} {str(value)[:40]!r} is none of {', '.join(sorted(words))}")
    return value


def _whole(fields: Mapping[str, Any], name: str, least: int = 0, most: int | None = None) -> int:
    value = fields[name]
    if type(value) is not int or value < least or (most is not None and value > most):
        raise ValueError(f"{name} {str(value)[:40]!r} is not a whole number from {least} to {most or 'any'}")
    return value


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields[name]
    if type(value) is not str:
        raise ValueError(f"{name} {str(value)[:40]!r} is not a text")
    return value


def _flag(value: Any, name: str) -> bool:
    if type(value) is not bool:
        raise ValueError(f"{name} {str(value)[:40]!r} is neither true nor false")
    return value


def _budget_fields(budget: Budget) -> dict[str, Any]:
    return {
        "budget_id": budget.budget_id,
        "scope_kind": budget.scope_kind,
        "scope_value": budget.scope_value,
        "window": _window_fields(budget.window),
        "limit_nano": budget.limit_nano,
        "estimate": budget.estimate,
        "thresholds": list(budget.thresholds),
        "covers": list(budget.covers),
        **{name: getattr(budget, name) for name in _PLAIN_BUDGET},
    }


def _budget_of(fields: Mapping[str, Any]) -> Budget:
    for name in _BUDGET_TEXTS:
        if fields.get(name) is not None:
            _text(fields, name)
    for name, words in _BUDGET_WORDS.items():
        if name in fields and fields[name] not in words:
            _word(fields[name], name, words)
    # A control of an earlier release writes fewer of these; the budget's defaults are what it meant.
    later = {name: fields[name] for name in ("estimate", *_PLAIN_BUDGET) if name in fields}
    for name in ("thresholds", "covers"):
        if name in fields:
            if type(fields[name]) is not list:
                raise ValueError(f"{name} is not a list")
            later[name] = tuple(fields[name])
    if type(fields["window"]) is not dict:
        raise ValueError("window is not an object")
    for name in ("since_version", "ends_at_ms"):
        if later.get(name) is not None:
            _whole(later, name)
    for name in ("extend", "is_cap"):
        if name in later:
            _flag(later[name], name)
    return Budget(
        _text(fields, "budget_id"),
        fields["scope_kind"],
        _text(fields, "scope_value"),
        _window_of(fields["window"]),
        _whole(fields, "limit_nano"),
        **later,
    )


def _target_fields(target: Target | None) -> dict[str, str] | None:
    return None if target is None else {"vendor": target.vendor, "model": target.model}


def _target_of(fields: Mapping[str, str] | None) -> Target | None:
    return None if fields is None else Target(fields["vendor"], fields["model"])


def _rule_fields(rule: RouteRule) -> dict[str, Any]:
    return {
        "vendor": rule.vendor,
        "route": rule.route,
        "budget_status": rule.budget_status,
        "timeout_ms": rule.timeout_ms,
        "fallbacks": None if rule.fallbacks is None else [_target_fields(each) for each in rule.fallbacks],
        "fail_open": rule.fail_open,
    }


def _rule_of(fields: Mapping[str, Any]) -> RouteRule:
    targets: Sequence[Mapping[str, str]] | None = fields["fallbacks"]
    fallbacks = None if targets is None else tuple(Target(each["vendor"], each["model"]) for each in targets)
    return RouteRule(
        fields["vendor"],
        fields["route"],
        fields["budget_status"],
        fields["timeout_ms"],
        fallbacks,
        fields.get("fail_open"),  # a control of an earlier release does not write it
    )


def _overrides_of(fields: Mapping[str, Any] | None) -> Overrides | None:
    return None if fields is None else Overrides(fields["version"], tuple(fields["entries"]))


def _unknown_models_of(fields: Mapping[str, Any] | None) -> UnknownModels:
    if fields is None:
        return UnknownModels()
    policy = _word(fields["policy"], "unknown_models.policy", UNKNOWN_MODEL_POLICIES)
    return UnknownModels(policy, _target_of(fields["priced_as"]))


def _connection_of(fields: Mapping[str, Any]) -> Connection:
    return Connection(
        fields["vendor"],
        fields["dialect"],
        fields["base_url"],
        fields["sealed_key"],
        fields["prices_as"],
        # A control of an earlier release does not write it.
        _word(fields.get("auth_mode", METERED), "auth_mode", CONNECTION_AUTH_MODES),
    )


def _window_fields(window: Window) -> dict[str, Any]:
    match window:
        case CalendarWindow():
            return {
                "unit": window.unit,
                "zone": window.zone,
                "week_start": window.week_start,
                "anchor_day": window.anchor_day,
                "anchor_month": window.anchor_month,
            }
        case RollingWindow():
            return {"length_ms": window.length_ms}
        case IntervalWindow():
            return {"every_ms": window.length_ms, "anchor_ms": window.anchor_ms}
        case SessionWindow():
            return {"of": "session"}
        case LifetimeWindow():
            return {"of": "lifetime"}


def _window_of(fields: Mapping[str, Any]) -> Window:
    if "length_ms" in fields:
        return RollingWindow(_whole(fields, "length_ms", 1))
    if "every_ms" in fields:
        return IntervalWindow(_whole(fields, "every_ms", 1), _whole(fields, "anchor_ms"))
    if "of" in fields:
        of = _word(fields["of"], "window.of", _ENDLESS)
        return SessionWindow() if of == "session" else LifetimeWindow()
    # A control of an earlier release does not write the last three.
    dated = {"week_start": 0, "anchor_day": 1, "anchor_month": 1, **fields}
    return CalendarWindow(
        _word(fields["unit"], "window.unit", CALENDAR_UNITS),
        check_zone(fields["zone"]),
        _whole(dated, "week_start", 0, 6),
        _whole(dated, "anchor_day", 1, 31),
        _whole(dated, "anchor_month", 1, 12),
    )
