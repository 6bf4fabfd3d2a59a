"""What a caller of the reservation API says: bodies, read and checked, and the hash by which one is known again."""

import hashlib
import json
from typing import Annotated, Final, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from services.core.components import BY_COUNT
from services.core.events import Outcome
from services.core.identity import DIMENSIONS, Identity, IdentityError, check_name
from services.core.money import MAX_LIMIT_NANO, MoneyError, format_usd, parse_usd
from services.gateway.refusal import RefusedError

MAX_HOLD_SECONDS: Final = 30 * 86_400
_MAX_COUNT: Final = 10**12
_B = TypeVar("_B", bound=BaseModel)


def _usd(text: str) -> str:
    try:
        nano = parse_usd(text)
    except MoneyError as error:
        raise ValueError(str(error)) from error
    if not 0 <= nano <= MAX_LIMIT_NANO:
        raise ValueError(f"must be from 0 to {format_usd(MAX_LIMIT_NANO)} US dollars")
    return format_usd(nano)  # however it is written, it is the same request


def _name(text: str) -> str:
    try:
        return check_name("the name", text)
    except IdentityError as error:
        raise ValueError(str(error)) from error


def _counts(usage: dict[str, int]) -> dict[str, int]:
    for name, count in usage.items():
        if name not in BY_COUNT:
            raise ValueError(f"unknown count {name[:40]!r}; known are {', '.join(sorted(BY_COUNT))}")
        if not 0 <= count <= _MAX_COUNT:
            raise ValueError(f"{name} must be from 0 to {_MAX_COUNT}")
    return usage


# Money comes as decimal text: a JSON number is a float to most who write one.
Usd = Annotated[str, AfterValidator(_usd)]
Usage = Annotated[dict[str, int], AfterValidator(_counts)]
Name = Annotated[str, AfterValidator(_name)]
Seconds = Annotated[int, Field(ge=1, le=MAX_HOLD_SECONDS)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ReserveBody(_Body):
    """Hold `amount_usd`, or what `usage` of a vendor's `model` costs. `vendor` names what is paid for: a tool, say."""

    amount_usd: Usd | None = None
    usage: Usage | None = None
    vendor: Name = "direct"
    model: str = Field(default="", max_length=256)
    auth_mode: Literal["metered", "shared", "host-session", "local", "byok"] = "metered"
    hold_seconds: Seconds | None = None

    @model_validator(mode="after")
    def _one_amount(self) -> Self:
        if (self.amount_usd is None) == (self.usage is None):
            raise ValueError("say either amount_usd or usage")
        if self.usage is not None and not self.model:
            raise ValueError("usage needs vendor and model, whose prices it is to be taken at")
        return self


class SettleBody(_Body):
    """What it did cost: `cost_usd`, or `usage` at the prices of the reservation's model."""

    cost_usd: Usd | None = None
    usage: Usage | None = None
    outcome: Literal["completed", "partial", "cancelled"] = "completed"

    @model_validator(mode="after")
    def _one_cost(self) -> Self:
        if (self.cost_usd is None) == (self.usage is None):
            raise ValueError("say either cost_usd or usage")
        return self

    @property
    def told(self) -> Outcome:
        """The outcome as an event has it."""
        return self.outcome


class ExtendBody(_Body):
    """Hold `amount_usd` in all from now on, for `hold_seconds` from now; what is left out stays as it is."""

    amount_usd: Usd | None = None
    hold_seconds: Seconds | None = None

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.amount_usd is None and self.hold_seconds is None:
            raise ValueError("say amount_usd, hold_seconds or both")
        return self


class ReleaseBody(_Body):
    """Nothing was spent."""


def read(kind: type[_B], body: bytes) -> _B:
    """The body as `kind`; raises `RefusedError` (400) naming the field at fault."""
    try:
        return kind.model_validate_json(body or b"{}")
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or None
        message = first["msg"].removeprefix("Value error, ")
        raise RefusedError(
            400, "invalid_request", message if field is None else f"{field}: {message}", param=field
        ) from error


def request_hash(what: str, body: BaseModel, identity: Identity) -> str:
    """A digest of what is asked for, and for whom; equal requests have equal ones, however they are written.

    It is kept as long as the ledger: what a later release adds to bodies must not change it where it is left out.
    """
    who = {name: value for name in DIMENSIONS if (value := getattr(identity, name)) is not None}
    asked = body.model_dump(mode="json", exclude_defaults=True)
    text = json.dumps([what, asked, identity.org, who, list(identity.tags)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
