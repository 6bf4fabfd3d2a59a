"""Prices, catalogs, own prices and route rules: from the management API to what gateways are given."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.adapters.valkey import ValkeyDirectory, ValkeyHotState
from services.adapters.valkey_connection import ValkeyConnection
from services.control.errors import ErrorAnswer
from services.control.keys.service import NewKey, make_key
from services.control.orgs import queries as org_queries
from services.core.catalog import catalog_version, decode_catalog
from services.core.pricebook import PriceBook
from services.core.snapshot import RouteRule, Snapshot, Target, UnknownModels, decode_snapshot
from tests.support.control import Away, Control, running_control


@pytest.fixture
async def valkey(valkey_url: str) -> AsyncIterator[ValkeyConnection]:
    connection = ValkeyConnection(valkey_url)
    yield connection
    await connection.close()


@pytest.fixture
def directory(valkey: ValkeyConnection) -> ValkeyDirectory:
    return ValkeyDirectory(valkey)


@pytest.fixture
async def control(
    postgres_dsn: str, valkey: ValkeyConnection, directory: ValkeyDirectory, tmp_path: Path
) -> AsyncIterator[Control]:
    async with running_control(postgres_dsn, tmp_path, ValkeyHotState(valkey), directory) as control:
        yield control


async def refused(control: Control, status: int, method: str, path: str, body: Any = None) -> ErrorAnswer:
    """The error of a call that has to fail with a status."""
    response = await control.call(method, path, body)
    assert response.status_code == status, response.text
    return ErrorAnswer.model_validate_json(response.content, strict=True)


async def snapshot(directory: ValkeyDirectory) -> Snapshot:
    body = await directory.snapshot("default")
    assert body is not None
    return decode_snapshot(body)


async def gateways_book(directory: ValkeyDirectory) -> PriceBook:
    """The prices as a gateway makes them of what is published."""
    published = await snapshot(directory)
    catalog = await directory.catalog(published.catalog_version)
    assert catalog is not None
    return PriceBook(decode_catalog(catalog), published.overrides, published.unknown_models)


def document(usd: str = "1.00", **models: str) -> dict[str, Any]:
    """A small catalog of its own: model ``m`` at `usd`, and others by name."""
    entries = [
        {"vendor": "acme", "model": model, "prices": [{"usd": {"input": price, "output": "2"}}]}
        for model, price in {"m": usd, **models}.items()
    ]
    content = {"format": 2, "as_of": "2026-11-27", "source": "a contract", "models": entries}
    return {"version": catalog_version(content), **content}


def shipped(usd: str = "1.00", **models: str) -> tuple[str, bytes]:
    """A catalog as a release would ship it, and its version."""
    made = document(usd, **models)
    return made["version"], json.dumps(made).encode()


# ---- prices ---------------------------------------------------------------------------------------------------------


async def test_prices_are_read_in_pages(control: Control) -> None:
    everything: list[Any] = []
    cursor = ""
    while True:
        page = await control.ask("GET", f"prices?limit=500{cursor}")
        assert page["catalog_version"] == control.context.prices.shipped_version
        everything += page["prices"]
        if page["next"] is None:
            break
        assert len(page["prices"]) == 500
        cursor = f"&cursor={page['next']}"
    names = [(each["vendor"], each["model"]) for each in everything]
    assert names == sorted(set(names))
    assert len(names) > 500
    sandbox = (await control.ask("GET", "prices?vendor=sandbox"))["prices"]
    assert [each["model"] for each in sandbox] == ["sandbox-large", "sandbox-small"]
    assert all(each in everything for each in sandbox)
    [small] = (await control.ask("GET", "prices?vendor=sandbox&model=sandbox-small"))["prices"]
    assert small == sandbox[1] | {"match": "exact"}
    assert (small["usd"]["input"], small["source"]) == ("0.150000000", "catalog")
    assert (await control.ask("GET", "prices?vendor=nobody"))["prices"] == []
    assert (await control.ask("GET", "prices?vendor=openai&model=gpt-unheard-of"))["prices"] == []


async def test_a_model_is_shown_with_its_history_as_the_gateway_finds_it(control: Control) -> None:
    shown = await control.ask("GET", "prices/gpt-4o")
    assert (shown["vendor"], shown["model"], shown["match"]) == ("openai", "gpt-4o", "exact")
    assert shown["catalog_version"] == (await control.ask("GET", "org"))["catalog_version"]
    assert shown["usd"] == shown["periods"][-1]["usd"]
    assert "azure" in shown["also_priced_by"]
    dated = await control.ask("GET", "prices/openai/gpt-4o-2031-01-01?vendor=openai")
    assert (dated["model"], dated["match"], dated["requested"]) == ("gpt-4o", "normalised", "openai/gpt-4o-2031-01-01")
    error = await refused(control, 404, "GET", "prices/gpt-unheard-of?vendor=openai")
    assert "'gpt-unheard-of' of vendor 'openai'" in error.message


# ---- own prices -----------------------------------------------------------------------------------------------------


async def test_an_own_price_holds_on_the_gateways_and_is_withdrawn(
    control: Control, directory: ValkeyDirectory
) -> None:
    body = {"vendor": "openai", "model": "gpt-4o", "usd": {"input": "2", "output": "0"}, "from": "2026-01-01"}
    made = await control.ask("PUT", "price-overrides", body)
    assert made["period"]["usd"] == {"input": "2.000000000", "output": "0.000000000"}
    now_ms = await control.context.hot.now_ms()
    found = (await gateways_book(directory)).find("openai", "gpt-4o", now_ms)
    assert found is not None
    assert (dict(found.price.rates), found.match) == ({"input": 2_000_000_000, "output": 0}, "exact")
    shown = await control.ask("GET", "prices/gpt-4o")
    assert (shown["source"], shown["usd"]) == ("override", made["period"]["usd"])
    assert shown["catalog_version"] == found.catalog_version
    assert [each["from"] for each in shown["periods"]] == [None, "2026-01-01"]
    listed = (await control.ask("GET", "prices?vendor=openai&limit=1000"))["prices"]
    assert [each["source"] for each in listed if each["model"] == "gpt-4o"] == ["override"]

    # A price of the same day takes its place; another day's stands beside it.
    await control.ask("PUT", "price-overrides", body | {"usd": {"input": "3", "output": "1"}})
    await control.ask("PUT", "price-overrides", body | {"from": "2999-12-31"})
    in_force = (await control.ask("GET", "price-overrides?vendor=openai&model=gpt-4o"))["overrides"]
    assert [(each["from"], each["period"]["usd"]["input"]) for each in in_force] == [
        ("2026-01-01", "3.000000000"),
        ("2999-12-31", "2.000000000"),
    ]
    assert (await control.ask("GET", "prices/gpt-4o"))["usd"]["input"] == "3.000000000"
    await control.ask("DELETE", "price-overrides?vendor=openai&model=gpt-4o&from=2026-01-01")
    assert (await control.ask("GET", "prices/gpt-4o"))["usd"]["input"] == "2.500000000"
    await control.ask("DELETE", "price-overrides?vendor=openai&model=gpt-4o")
    assert await control.ask("GET", "price-overrides") == {"overrides": []}
    assert (await snapshot(directory)).overrides is None
    assert (await control.ask("GET", "prices/gpt-4o"))["source"] == "catalog"
    assert (await refused(control, 404, "DELETE", "price-overrides?vendor=openai&model=gpt-4o")).error == "not_found"

    history = (await control.ask("GET", "price-overrides?history=true"))["overrides"]
    assert [(each["from"], each["period"] is None) for each in history] == [
        ("2999-12-31", True),
        ("2026-01-01", True),
        ("2999-12-31", False),
        ("2026-01-01", False),
        ("2026-01-01", False),
    ]
    actions = [each["action"] for each in (await control.ask("GET", "audit"))["entries"]]
    assert actions[:5] == ["price.withdraw", "price.withdraw", "price.override", "price.override", "price.override"]


async def test_a_server_of_ones_own_is_priced_then_connected(control: Control, directory: ValkeyDirectory) -> None:
    body = {"base_url": "http://127.0.0.1:8000/v1"}
    error = await refused(control, 400, "PUT", "connections/vllm", body)
    assert (error.field, "farthing prices override" in error.message) == ("prices_as", True)
    await control.ask("PUT", "price-overrides", {"vendor": "vllm", "model": "llama", "usd": {"input": "0"}})
    made = await control.ask("PUT", "connections/vllm", body)
    assert (made["prices_as"], made["dialect"], made["key_hint"]) == ("vllm", "openai", None)
    found = (await gateways_book(directory)).find("vllm", "llama", await control.context.hot.now_ms())
    assert found is not None
    assert dict(found.price.rates) == {"input": 0}


BAD_OVERRIDES: list[tuple[dict[str, Any], str, str]] = [
    ({"vendor": "Open AI"}, "vendor", "lower-case"),
    ({"vendor": "v1"}, "vendor", "choose another"),
    ({"vendor": ...}, "vendor", "is required"),
    ({"model": ""}, "model", "must not be empty"),
    ({"model": " gpt-4o"}, "model", "without blanks"),
    ({"model": "gpt\u00004o"}, "model", "printable"),
    ({"usd": {}}, "usd", "0 is a price"),
    ({"usd": {"inptu": "1"}}, "usd", "cache_read"),
    ({"usd": {"input": "-1"}}, "usd.input", "from 0"),
    ({"usd": {"input": "1e3"}}, "usd.input", "'12.50'"),
    ({"usd": {"input": 1.5}}, "usd.input", "must be a JSON string"),
    ({"usd": {"input": "0.0000000001"}}, "usd.input", "nine decimals"),
    ({"usd": {"input": "1000000.01"}}, "usd.input", "to 1000000.000000000"),
    ({"from": "tomorrow"}, "from", "2027-01-31"),
    ({"from": "20270131"}, "from", "2027-01-31"),
    ({"from": "2027-02-30"}, "from", "2027-01-31"),
    ({"from": "1066-10-14"}, "from", "from 1970"),
    ({"tiers": [{"above_input_tokens": 0, "usd": {"input": "1"}}]}, "tiers.0.above_input_tokens", "greater"),
    ({"tiers": [{"above_input_tokens": 9, "usd": {}}]}, "tiers.0.usd", "0 is a price"),
    (
        {"tiers": [{"above_input_tokens": 9, "usd": {"input": "1"}}] * 2},
        "tiers.1.above_input_tokens",
        "above the tier's before",
    ),
    ({"variants": [{"when": {}, "usd": {"input": "1"}}]}, "variants.0.when", "at least 1"),
    ({"variants": [{"when": {"a": "\u0000"}, "usd": {"input": "1"}}]}, "variants.0.when", "names and values"),
    ({"variants": [{"when": {"a": "b"}, "usd": {"input": "1"}}] * 2}, "variants.1.when", "leave one out"),
    ({"max_output_tokens": 0}, "max_output_tokens", "greater"),
    ({"context_window": "8k"}, "context_window", "whole number"),
    ({"price": "1"}, "price", "not a field"),
]


async def test_an_own_price_that_can_not_be_is_refused_by_field(control: Control, subtests: pytest.Subtests) -> None:
    for change, field, text in BAD_OVERRIDES:
        with subtests.test(str(change)):
            body = {"vendor": "openai", "model": "gpt-4o", "usd": {"input": "1"}} | change
            sent = {name: value for name, value in body.items() if value is not ...}
            error = await refused(control, 400, "PUT", "price-overrides", sent)
            assert (error.error, error.field) == ("invalid_request", field)
            assert text in error.message
    assert await control.ask("GET", "price-overrides?history=true") == {"overrides": []}


# ---- catalogs -------------------------------------------------------------------------------------------------------


async def test_a_new_org_begins_with_the_shipped_catalog(control: Control) -> None:
    history = await control.ask("GET", "catalogs")
    assert history["in_use"] == history["shipped"] == (await control.ask("GET", "org"))["catalog_version"]
    [first] = history["proposals"]
    assert (first["state"], first["proposed_by"], first["in_use"]) == ("accepted", "bootstrap", True)
    summary = await control.ask("GET", f"catalogs/{history['in_use']}")
    assert summary["models"] == sum(summary["vendors"].values()) > 1000
    assert summary["vendors"]["sandbox"] == 2
    assert (await control.ask("GET", "status"))["pending_catalogs"] == []
    assert (await refused(control, 409, "POST", "catalogs/proposals", {})).error == "already_in_use"


async def test_a_new_release_proposes_its_catalog_and_a_person_accepts_it(
    postgres_dsn: str, valkey: ValkeyConnection, directory: ValkeyDirectory, tmp_path: Path
) -> None:
    hot = ValkeyHotState(valkey)
    old_version, old = shipped("1.00", gone="5")
    new_version, new = shipped("1.50", fresh="7")
    async with running_control(postgres_dsn, tmp_path, hot, directory, shipped=old) as control:
        admin_key = control.admin_key
    async with running_control(postgres_dsn, tmp_path, hot, directory, shipped=new) as control:
        control.admin_key = admin_key
        for _ in range(2):
            await control.boot()
        await control.context.publisher.reconcile()
        assert (await control.ask("GET", "org"))["catalog_version"] == old_version
        assert (await snapshot(directory)).catalog_version == old_version
        assert (await control.ask("GET", "status"))["pending_catalogs"] == [new_version]
        history = await control.ask("GET", "catalogs")
        assert [(each["version"], each["state"], each["base_version"]) for each in history["proposals"]] == [
            (new_version, "pending", old_version),
            (old_version, "accepted", None),
        ]
        assert history["proposals"][0]["proposed_by"] == "control"

        diff = await control.ask("GET", "catalogs/diff")
        assert (diff["old_version"], diff["new_version"]) == (old_version, new_version)
        assert (diff["added"], diff["removed"], diff["changed"]) == (1, 1, 1)
        changes = {each["model"]: each for each in diff["models"]}
        assert {name: each["kind"] for name, each in changes.items()} == {
            "fresh": "added",
            "gone": "removed",
            "m": "changed",
        }
        assert changes["m"]["fields"] == ["prices"]
        assert changes["m"]["old"]["prices"][0]["usd"]["input"] == "1.000000000"
        assert changes["m"]["new"]["prices"][0]["usd"]["input"] == "1.500000000"
        assert (changes["fresh"]["old"], changes["gone"]["new"]) == (None, None)
        back = await control.ask("GET", f"catalogs/diff?from={new_version}&to={old_version}&vendor=acme")
        assert (back["added"], back["removed"], back["changed"]) == (1, 1, 1)
        assert (await control.ask("GET", f"catalogs/diff?to={new_version}&vendor=other"))["models"] == []

        accepted = await control.ask("POST", f"catalogs/{new_version}/accept")
        assert (accepted["state"], accepted["in_use"]) == ("accepted", True)
        assert (await snapshot(directory)).catalog_version == new_version
        assert await directory.catalog(new_version) is not None
        assert (await control.ask("GET", "status"))["pending_catalogs"] == []
        assert (await refused(control, 409, "POST", f"catalogs/{new_version}/accept")).error == "already_decided"
        # What the org had before may be asked for again.
        again = await control.ask("POST", "catalogs/proposals", {"version": old_version})
        assert (again["state"], again["base_version"]) == ("pending", new_version)
        assert (await refused(control, 409, "POST", "catalogs/proposals", {"version": old_version})).error == (
            "already_proposed"
        )
        actions = [
            (each["actor"] == "control", each["action"]) for each in (await control.ask("GET", "audit"))["entries"]
        ]
        assert actions[:3] == [(False, "catalog.propose"), (False, "catalog.accept"), (True, "catalog.propose")]


async def test_what_was_rejected_is_not_asked_about_again_and_what_was_not_decided_is_superseded(
    postgres_dsn: str, tmp_path: Path
) -> None:
    versions, bodies = zip(*(shipped(f"{number}.00") for number in range(1, 5)), strict=True)
    admin_key = ""
    states: list[dict[str, Any]] = []
    for body, decision in zip(bodies, ("", "reject", "", ""), strict=True):
        for _ in range(2):  # a restart of the same release asks for nothing new
            async with running_control(postgres_dsn, tmp_path, Away(), Away(), shipped=body) as control:
                admin_key = control.admin_key = control.admin_key or admin_key
                [newest, *_] = (await control.ask("GET", "catalogs"))["proposals"]
                if decision and newest["state"] == "pending":
                    path = f"catalogs/{newest['version']}/reject"
                    for bad in ({}, {"reason": ""}, {"reason": " "}, {"reason": "a\u0000b"}):
                        assert (await refused(control, 400, "POST", path, bad)).field == "reason"
                    answer = await control.ask("POST", path, {"reason": "not ours"})
                    assert (answer["state"], answer["reason"]) == ("rejected", "not ours")
                states = (await control.ask("GET", "catalogs"))["proposals"]
    assert [(each["version"], each["state"], each["reason"]) for each in states] == [
        (versions[3], "pending", None),
        (versions[2], "rejected", f"superseded by {versions[3]}"),
        (versions[1], "rejected", "not ours"),
        (versions[0], "accepted", None),
    ]


async def test_a_catalog_is_imported_whole_and_belongs_to_its_org(control: Control, directory: ValkeyDirectory) -> None:
    made = document("3.00", **{f"model-{number}": "4" for number in range(2000)})
    assert len(json.dumps(made)) > 65_536
    version = made.pop("version")
    proposal = await control.ask("POST", "catalogs", made)
    assert (proposal["version"], proposal["state"]) == (version, "pending")
    summary = await control.ask("GET", f"catalogs/{version}")
    assert (summary["models"], summary["source"], summary["in_use"]) == (2001, "a contract", False)
    assert (await refused(control, 409, "POST", "catalogs", {"version": version, **made})).error == "already_proposed"

    async with control.postgres.transaction() as connection:
        await org_queries.insert(connection, "other", control.context.prices.shipped_version, 1000)
    async with control.context.change("other", "test") as change:
        other = (await make_key(change, control.secrets, NewKey(role="org_admin"))).key
    for method, path in (("GET", f"catalogs/{version}"), ("POST", f"catalogs/{version}/accept")):
        assert (await control.call(method, path, key=other)).status_code == 404
    assert (await control.call("POST", "catalogs/proposals", {"version": version}, key=other)).status_code == 404
    assert (await control.ask("GET", "catalogs", key=other))["proposals"] == []

    await control.ask("POST", f"catalogs/{version}/accept")
    found = (await gateways_book(directory)).find("acme", "m", 0)
    assert found is not None
    assert (found.price.rates["input"], found.catalog_version) == (3_000_000_000, version)


BAD_CATALOGS: list[tuple[Any, str | None, str]] = [
    ([], None, "JSON object"),
    ({}, "format", "must be 2"),
    ({"format": 2, "models": {}}, "models", "at least one"),
    ({"format": 2, "models": []}, "models", "at least one"),
    ({"format": 3, "models": document()["models"]}, "format", "must be 2"),
    ({"format": 2}, "models", "at least one"),
    ({"format": 2, "models": [document()["models"][0] | {"vendor": 7}]}, "models", "must be texts"),
    (document() | {"source": "edited"}, "version", "edited since"),
    ({"format": 2, "models": [*document()["models"], {"vendor": "acme", "model": "n"}]}, "models.1", "prices"),
    (
        {"format": 2, "models": [{"vendor": "acme", "model": "n", "prices": [{"usd": {"input": "-1"}}]}]},
        "models.0",
        "negative",
    ),
    ({"format": 2, "models": document()["models"] * 2}, "version", "called 'm'"),
]


async def test_a_document_that_is_no_catalog_is_refused(control: Control, subtests: pytest.Subtests) -> None:
    for body, field, text in BAD_CATALOGS:
        with subtests.test(str(body)[:80]):
            error = await refused(control, 400, "POST", "catalogs", body)
            assert (error.error, error.field) == ("invalid_request", field)
            assert text in error.message
    headers = {"authorization": f"Bearer {control.admin_key}"}
    for content, status in ((b"{", 400), (b'{"models": NaN}', 400), (b"[" * 100_000, 400), (b" " * (17 << 20), 413)):
        response = await control.client.post("/api/v1/catalogs", content=content, headers=headers)
        assert response.status_code == status, response.text
    assert len((await control.ask("GET", "catalogs"))["proposals"]) == 1


# ---- what has no price ----------------------------------------------------------------------------------------------


async def test_the_org_says_what_becomes_of_models_and_routes_without_a_price(
    control: Control, directory: ValkeyDirectory
) -> None:
    org = await control.ask("GET", "org")
    assert org["unknown_models"] == {"policy": "reject", "priced_as": None}
    assert org["allow_unpriced_routes"] is False
    target = {"vendor": "openai", "model": "gpt-4o"}
    body = {"unknown_models": {"policy": "fallback_price", "priced_as": target}}
    assert (await control.ask("PATCH", "org", body))["unknown_models"] == body["unknown_models"]
    changed = await control.ask("PATCH", "org", {"allow_unpriced_routes": True})
    assert (changed["unknown_models"], changed["allow_unpriced_routes"]) == (body["unknown_models"], True)
    published = await snapshot(directory)
    assert published.unknown_models == UnknownModels("fallback_price", Target("openai", "gpt-4o"))
    assert published.allow_unpriced_routes is True
    found = (await gateways_book(directory)).find("openai", "gpt-unheard-of", 0)
    assert found is not None
    assert (found.model_priced, found.match) == ("gpt-4o", "fallback")
    await control.ask("PATCH", "org", {"unknown_models": {"policy": "allow_unpriced"}})
    assert (await snapshot(directory)).unknown_models == UnknownModels("allow_unpriced")
    assert (await control.ask("PUT", "connections/own", {"api_key": None, "base_url": "http://own/v1"}))[
        "prices_as"
    ] == ("own")
    entry = (await control.ask("GET", "audit"))["entries"][1]
    assert (entry["action"], entry["after"]["unknown_models"]["policy"]) == ("org.update", "allow_unpriced")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "unknown_models"),
        ({"unknown_models": {"policy": "guess"}}, "unknown_models.policy"),
        ({"unknown_models": {"policy": "fallback_price"}}, "unknown_models.priced_as"),
        (
            {"unknown_models": {"policy": "reject", "priced_as": {"vendor": "openai", "model": "gpt-4o"}}},
            "unknown_models.priced_as",
        ),
        (
            {"unknown_models": {"policy": "fallback_price", "priced_as": {"vendor": "openai", "model": "gpt-0"}}},
            "unknown_models.priced_as",
        ),
        ({"allow_unpriced_routes": "yes"}, "allow_unpriced_routes"),
        ({"hold_ms": 5}, "hold_ms"),
    ],
)
async def test_a_setting_that_can_not_be_is_refused_by_field(control: Control, body: Any, field: str) -> None:
    error = await refused(control, 400, "PATCH", "org", body)
    assert (error.error, error.field) == ("invalid_request", field)


# ---- route rules ----------------------------------------------------------------------------------------------------


async def test_rules_are_set_replaced_published_and_removed(control: Control, directory: ValkeyDirectory) -> None:
    await control.ask("PUT", "connections/openai", {"api_key": "sk-1"})
    await control.ask("PUT", "connections/groq", {"api_key": "sk-1"})
    groq = (await control.ask("GET", "prices?vendor=groq&limit=1"))["prices"][0]["model"]
    targets = [{"vendor": "groq", "model": groq}, {"vendor": "openai", "model": "gpt-4o-mini"}]
    body = {"vendor": "openai", "route": "chat.completions", "timeout_ms": 20_000, "fallbacks": targets}
    response = await control.call("PUT", "routes", {"budget_status": 429, "fail_open": True})
    assert (response.status_code, response.json()["vendor"], response.json()["route"]) == (201, "*", "*")
    assert (await control.call("PUT", "routes", body)).status_code == 201
    changed = body | {"budget_status": 403, "timeout_ms": 1000, "fail_open": False}
    response = await control.call("PUT", "routes", changed)
    assert (response.status_code, response.json()["timeout_ms"], response.json()["fail_open"]) == (200, 1000, False)
    rules = (await control.ask("GET", "routes"))["rules"]
    assert [(each["vendor"], each["route"]) for each in rules] == [("*", "*"), ("openai", "chat.completions")]
    assert rules[1] == response.json()
    published = await snapshot(directory)
    fallbacks = (Target("groq", groq), Target("openai", "gpt-4o-mini"))
    rule = RouteRule("openai", "chat.completions", 403, 1000, fallbacks, fail_open=False)
    assert published.rule("openai", "chat.completions") == rule
    assert published.rule("anthropic", "messages") == RouteRule("anthropic", "messages", 429, fail_open=True)

    error = await refused(control, 409, "DELETE", "connections/groq")
    assert (error.error, "'chat.completions'" in error.message) == ("connection_in_use", True)
    for vendor in ("groq", "openai"):
        body = {"api_key": "sk-2", "dialect": "anthropic", "base_url": "https://proxy", "prices_as": "openai"}
        assert (await refused(control, 409, "PUT", f"connections/{vendor}", body)).error == "connection_in_use"
    await control.ask("PUT", "connections/groq", {"api_key": "sk-2"})
    await control.ask("DELETE", "routes?vendor=openai&route=chat.completions")
    assert [each.vendor for each in (await snapshot(directory)).rules] == ["*"]
    await control.ask("DELETE", "connections/groq")
    actions = [each["action"] for each in (await control.ask("GET", "audit"))["entries"]]
    assert actions[:5] == [
        "connection.delete",
        "route.delete",
        "connection.update",
        "route.update",
        "route.create",
    ]


async def test_a_rule_may_say_no_more_than_that_its_route_fails_open(
    control: Control, directory: ValkeyDirectory
) -> None:
    assert (await control.ask("PUT", "routes", {"route": "embeddings", "fail_open": True}))["fail_open"] is True
    published = await snapshot(directory)
    assert published.rule("openai", "embeddings").fail_open is True
    assert published.rule("openai", "chat.completions").fail_open is None
    await control.ask("PUT", "routes", {"route": "embeddings", "fail_open": False})
    assert (await snapshot(directory)).rule("openai", "embeddings").fail_open is False


BAD_RULES: list[tuple[dict[str, Any], str, str]] = [
    ({}, "budget_status", "name what to rule"),
    ({"vendor": "Open AI", "budget_status": 402}, "vendor", "lower-case"),
    ({"route": "chat completions", "budget_status": 402}, "route", "chat.completions"),
    ({"budget_status": 200}, "budget_status", "402, 403, 429"),
    ({"budget_status": 500}, "budget_status", "402, 403, 429"),
    ({"budget_status": "402"}, "budget_status", "whole number"),
    ({"timeout_ms": 999}, "timeout_ms", "from 1000 to 900000"),
    ({"timeout_ms": 900_001}, "timeout_ms", "from 1000 to 900000"),
    ({"fallbacks": [{"vendor": "openai", "model": "gpt-4o"}]}, "fallbacks", "need a vendor"),
    (
        {"vendor": "openai", "fallbacks": [{"vendor": "mistral", "model": "m"}]},
        "fallbacks.0.vendor",
        "is not connected",
    ),
    (
        {"vendor": "openai", "fallbacks": [{"vendor": "anthropic", "model": "claude-sonnet-4-5"}]},
        "fallbacks.0.vendor",
        "speaks anthropic",
    ),
    ({"vendor": "openai", "fallbacks": [{"vendor": "sandbox", "model": "gpt-0"}]}, "fallbacks.0.model", "no price"),
    (
        {"vendor": "openai", "fallbacks": [{"vendor": "sandbox", "model": "sandbox-small"}] * 2},
        "fallbacks.1",
        "twice",
    ),
    ({"vendor": "openai", "fallbacks": [{"vendor": "sandbox", "model": "m"}] * 6}, "fallbacks", "at most 5"),
]


async def test_a_rule_that_can_not_be_is_refused_by_field(control: Control, subtests: pytest.Subtests) -> None:
    await control.ask("PUT", "connections/anthropic", {"api_key": "sk-1"})
    for body, field, text in BAD_RULES:
        with subtests.test(str(body)):
            error = await refused(control, 400, "PUT", "routes", body)
            assert (error.error, error.field) == ("invalid_request", field)
            assert text in error.message
    assert await control.ask("GET", "routes") == {"rules": []}
