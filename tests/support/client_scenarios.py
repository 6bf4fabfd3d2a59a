"""What each client is asked to do in its one run (`client_world`): every kind of answer, and every kind of refusal."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from services.gateway.refusal import RefusedError
from tests.support.clients import CLIENTS

LABEL: Final = "x-scenario"
DIRECT: Final = "direct-"
ACME: Final = "acme"
VENDOR_KEY: Final = "sk-vendor-of-the-org"
OWN_KEY: Final = "sk-vendor-of-the-caller"
WRONG_KEY: Final = "fk_live_" + "x" * 40
# Budgets of some orgs refuse with another status than 402.
REFUSED_BY_RULE: Final = (429, 403)

# Batches and work in the background have tests of their own.
ELSEWHERE: Final = {"error", "batch", "batches", "batch_results", "responses_background"}

# Where a client is to go when its own path leads to another vendor: OpenAI's routes have the same names.
HOMES: Final[Mapping[str, str]] = {"mistral": "/mistral"}
HOMES_OF_LISTS: Final[Mapping[str, str]] = {"google": "/google", "cohere": "/cohere"}

# What scenarios send beside what their driver sends anyway.
SENT_BESIDE: Final[Mapping[tuple[str, str], Mapping[str, Any]]] = {("mistralai", "ocr"): {"request": {"pages": [0]}}}


def _provided(tool_id: str, name: str) -> dict[str, Any]:
    """A tool of the vendor's, as the AI SDK describes it."""
    return {"type": "provider", "id": tool_id, "name": name, "args": {}}


def _saying(part: Mapping[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [part]}]}


@dataclass(frozen=True)
class Scenario:
    """One thing to ask for. `name` is its label; `kind` what the driver calls it; `fields` are further ones of its.

    `team` is pinned in its key; team ``broke`` has nothing left. `own_key` says where the caller's own vendor key is.
    `cut_after` is after how many pieces the vendor hangs up, `declined_as` the status with which it refuses.
    `refusal` makes what the gateway refuses it with.
    """

    name: str
    kind: str
    prefix: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    team: str = "ml"
    budget_status: int | None = None
    own_key: Literal["apart", "beside"] | None = None
    is_stranger: bool = False
    cut_after: int | None = None
    declined_as: int | None = None
    refusal: Callable[[], RefusedError] | None = None


def kinds_of(client: str) -> tuple[str, ...]:
    """What a client is asked for, as its driver calls it."""
    return tuple(kind for kind in CLIENTS[client].scenarios if kind not in ELSEWHERE)


def scenarios_of(client: str) -> Iterator[Scenario]:
    """All scenarios of a client: of the vendor itself, through the gateway, by other ways, and refused."""
    vendor = CLIENTS[client].vendor
    home = HOMES.get(vendor, "")
    for kind in kinds_of(client):
        fields = SENT_BESIDE.get((client, kind), {})
        yield Scenario(DIRECT + kind, kind, fields=fields)
        yield Scenario(kind, kind, HOMES_OF_LISTS.get(vendor, home) if kind == "models" else home, fields)
    yield from _ways(vendor, home)
    yield from _refusals(client, home)


def _ways(vendor: str, home: str) -> Iterator[Scenario]:
    yield Scenario("prefix-plain", "plain", f"/{vendor}")
    yield Scenario("acme-stream", "stream", f"/{ACME}")
    yield Scenario("named-plain", "plain", fields={"headers": {"X-Spend-Vendor": ACME}})
    yield Scenario("own-apart-stream", "stream", home, own_key="apart")
    yield Scenario("own-beside-plain", "plain", home, own_key="beside")


def _refusals(client: str, home: str) -> Iterator[Scenario]:
    vendor = CLIENTS[client].vendor
    yield Scenario("stranger", "error", home, is_stranger=True)
    for kind, name in (("error", "exhausted"), ("stream", "exhausted-stream")):
        yield Scenario(name, kind, home, team="broke")
    for status in REFUSED_BY_RULE:
        yield Scenario(f"exhausted-{status}", "error", home, team="broke", budget_status=status)
    yield Scenario("unknown-model", "error", home, {"model": UNKNOWN_MODELS[vendor]})
    yield Scenario("unpriced", "error", home, {"request": unpriced_of(client)[0]})
    yield Scenario("mismatch", "error", home, {"headers": {"X-Spend-Team": "ops"}})
    yield Scenario("limited", "error", home, refusal=rate_limited)
    yield Scenario("limited-stream", "stream", home, refusal=rate_limited)
    yield Scenario("blocked", "error", home, refusal=blocked)
    for each in (DIRECT, ""):
        yield Scenario(f"{each}declined", "error", home, declined_as=400)
    yield Scenario("cut", "stream", home, cut_after=2 if vendor == "google" else 6)
    for kind in sorted({"responses_stream", "v1_stream"} & set(kinds_of(client))):
        yield Scenario(f"cut-{kind}", kind, home, cut_after=6)


# Real names, because some clients look them up in lists of their own; the tests' catalog does not have them.
UNKNOWN_MODELS: Final = {
    "openai": "gpt-4",
    "anthropic": "claude-3-haiku-20240307",
    "google": "gemini-1.5-pro",
    "mistral": "open-mistral-7b",
    "cohere": "command-r-plus",
}
_PLUGINS: Final = {"plugins": [{"id": "web"}]}
# By client, or else by vendor: what brings charges that the gateway can't bound, and the field that it names.
UNPRICED: Final[Mapping[str, tuple[Mapping[str, Any], str]]] = {
    "openai": ({"extra_body": _PLUGINS}, "plugins"),
    "node-openai": (_PLUGINS, "plugins"),
    "node-ai-openai": ({"tools": {"search": _provided("openai.web_search", "web_search")}}, "max_tool_calls"),
    "anthropic": ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.max_uses"),
    "node-ai-anthropic": (
        {"tools": {"search": _provided("anthropic.web_search_20250305", "web_search")}},
        "tools.max_uses",
    ),
    "google-genai": ({"tools": [{"google_maps": {}}]}, "tools"),
    "node-google": ({"tools": [{"googleMaps": {}}]}, "tools"),
    "mistral": (_saying({"type": "document_url", "document_url": "https://example.com/a.pdf"}), "messages"),
    "cohere": (_saying({"type": "video", "video": "AAAA"}), "messages"),
}


def unpriced_of(client: str) -> tuple[Mapping[str, Any], str]:
    """What a client sends in vain because it has no bound, and which field its refusal names."""
    return UNPRICED[client] if client in UNPRICED else UNPRICED[CLIENTS[client].vendor]


RETRY_AFTER_S: Final = 1
RATE_LIMITED: Final = "team:ml is over its 10 requests a minute"
BLOCKED: Final = "policy pol_1 keeps card numbers from leaving"


def rate_limited() -> RefusedError:
    """A refusal for which waiting helps."""
    fields = {"scope": "team:ml", "transaction_id": "txn_limited"}
    headers = ((b"retry-after", b"%d" % RETRY_AFTER_S),)
    return RefusedError(429, "rate_limited", RATE_LIMITED, fields=fields, headers=headers)


def blocked() -> RefusedError:
    """A refusal for which it does not."""
    fields = {"policy_id": "pol_1", "transaction_id": "txn_blocked"}
    return RefusedError(403, "policy_blocked", BLOCKED, fields=fields)
