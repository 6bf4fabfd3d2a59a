"""Models without a price, an org's own prices, and routes that nothing is known of (PR-2, GW-1)."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.core.events import Denial, Reservation
from services.core.ports import UnavailableError
from services.core.snapshot import Connection, Overrides, Target, UnknownModels
from tests.support.asgi import request
from tests.support.gateway import (
    EVENT_STREAM,
    ScriptedAnswer,
    World,
    asking,
    assert_refused,
    chat,
    stream_events,
    world,
)

OK = b'{"object":"chat.completion","choices":[],"usage":{"prompt_tokens":10,"completion_tokens":5}}'


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        yield made


def own_price(model: str, usd: str, vendor: str = "openai") -> Overrides:
    entry = {"vendor": vendor, "model": model, "prices": [{"usd": {"input": usd, "output": usd}}]}
    return Overrides("0badcafe", (entry,))


async def publish(there: World, **changes: object) -> None:
    await there.org.publish(**changes)
    await there.sync()


# ---- models ---------------------------------------------------------------------------------------------------------


async def test_an_unknown_model_is_refused_by_name(there: World) -> None:
    assert_refused(await there.call(chat(model="gpt-99")), 400, "unknown_model", "'gpt-99'", "'openai'")
    (denial,) = there.events()
    assert isinstance(denial, Denial)
    assert there.vendor.requests == []


async def test_a_fallback_price_holds_and_settles_and_says_so(there: World) -> None:
    await publish(there, unknown_models=UnknownModels("fallback_price", Target("openai", "gpt-4o-mini")))
    await there.org.set_budget("1.00")
    await there.sync()
    there.answer(ScriptedAnswer([OK]), ScriptedAnswer([OK]))
    client = await there.call(chat(model="gpt-99"))
    assert client.status == 200
    assert client.header("x-spend-model") == "gpt-4o-mini"
    assert b'"model":"gpt-99"' in there.vendor.requests[0].body, "the vendor gets what was asked for"
    settlement = there.settlement()
    assert (settlement.facts.model_requested, settlement.facts.model_priced, settlement.facts.match) == (
        "gpt-99",
        "gpt-4o-mini",
        "fallback",
    )
    # 10 at $0.15 and 5 at $0.60 a million.
    assert settlement.cost_nano == 4_500
    assert (await there.call()).status == 200
    assert there.events()[-1].facts.match == "exact"


async def test_a_fallback_price_without_a_price_refuses(there: World) -> None:
    await publish(there, unknown_models=UnknownModels("fallback_price", Target("openai", "gpt-98")))
    assert_refused(await there.call(chat(model="gpt-99")), 400, "unknown_model", "'gpt-99'")


async def test_an_org_may_let_unpriced_models_pass_flagged_and_unheld(there: World) -> None:
    await publish(there, unknown_models=UnknownModels("allow_unpriced"))
    await there.org.set_budget("0.000000001")
    await there.sync()
    there.answer(ScriptedAnswer([OK]))
    assert (await there.call(chat(model="gpt-99"))).status == 200
    reservation, settlement = there.events()
    assert isinstance(reservation, Reservation)
    assert (reservation.facts.match, reservation.held_nano) == ("none", 0)
    assert settlement.facts.match == "none"
    assert settlement.facts.model_priced == "gpt-99"
    assert there.settlement().usage == {"input_tokens": 10, "output_tokens": 5}
    assert there.settlement().cost_nano == 0
    assert_refused(await there.call(), 402, "budget_exhausted")


async def test_an_orgs_own_price_wins_and_both_versions_are_on_record(there: World) -> None:
    await publish(there, overrides=own_price("gpt-4o-mini", "1.000000000"))
    there.answer(ScriptedAnswer([OK]))
    assert (await there.call()).status == 200
    for event in there.events():
        assert event.facts.catalog_version == f"{there.org.snapshot.catalog_version}+0badcafe"
    settlement = there.settlement()
    assert settlement.cost_nano == 15_000
    assert {each.price_nano for each in settlement.components} == {1_000_000_000}


async def test_zero_is_a_price(there: World) -> None:
    """A model of one's own costs nothing: that is known, so it needs no room and is not flagged."""
    vllm = Connection("vllm", "openai", "http://vllm.test/v1", None, "vllm")
    await publish(there, overrides=own_price("llama", "0.000000000", "vllm"), connections={"vllm": vllm})
    await there.org.set_budget("0.000000001")
    await there.sync()
    there.answer(ScriptedAnswer([OK]))
    assert (await there.call(chat(model="llama"), x_spend_vendor="vllm")).status == 200
    settlement = there.settlement()
    assert (settlement.facts.match, settlement.cost_nano, settlement.unpriced) == ("exact", 0, ())
    assert [each.component for each in settlement.components] == ["input", "output"]


async def test_prices_of_another_vendors_name_are_taken_where_the_connection_says_so(there: World) -> None:
    mirror = Connection("mirror", "openai", "http://mirror.test/v1", None, "vllm")
    await publish(there, overrides=own_price("llama", "2.000000000", "vllm"), connections={"mirror": mirror})
    there.answer(ScriptedAnswer([OK]))
    assert (await there.call(chat(model="llama"), x_spend_vendor="mirror")).status == 200
    assert there.settlement().cost_nano == 30_000
    assert there.settlement().facts.vendor == "mirror"


# ---- routes ---------------------------------------------------------------------------------------------------------


async def test_an_unpriced_route_goes_on_as_it_is(there: World) -> None:
    await publish(there, allow_unpriced_routes=True)
    there.answer(ScriptedAnswer([b"\x00\xffbytes"], 201, headers=((b"Content-Type", b"application/octet-stream"),)))
    client = await request(
        there.assembly.app,
        "/v1/videos/a%2Fb%25/{c}",
        b"any \x00 bytes",
        headers=[*there.headers(), ("content-type", "x/y"), ("openai-beta", "videos=v1")],
        method="PATCH",
        query="limit=5",
    )
    assert (client.status, client.content) == (201, b"\x00\xffbytes")
    (asked,) = there.vendor.requests
    assert (asked.method, asked.body) == ("PATCH", b"any \x00 bytes")
    assert asked.url == "https://vendor.test/v1/videos/a%2Fb%25/%7Bc%7D?limit=5"
    assert (b"openai-beta", b"videos=v1") in asked.headers
    assert (b"authorization", b"Bearer sk-vendor") in asked.headers
    settlement = there.settlement()
    assert (settlement.outcome, settlement.cost_nano, settlement.held_nano) == ("completed", 0, 0)
    assert (settlement.facts.model_requested, settlement.facts.match) == ("", "none")
    assert (settlement.usage_source, settlement.usage) == ("none", {}), "nobody has reported that it cost nothing"
    assert client.header("x-spend-usage-source") in (None, "none")


async def test_an_unpriced_stream_passes_too(there: World) -> None:
    await publish(there, allow_unpriced_routes=True)
    there.answer(ScriptedAnswer(stream_events(), headers=EVENT_STREAM))
    client = await there.call(asking(), path="/v1/realtime/something")
    assert client.content == b"".join(stream_events())
    assert client.ended
    settlement = there.settlement()
    assert (settlement.cost_nano, settlement.usage_source, settlement.outcome) == (0, "none", "completed")


async def test_an_unpriced_call_without_an_answer_reports_nothing(there: World) -> None:
    await publish(there, allow_unpriced_routes=True)
    there.answer(UnavailableError("hung up"))
    assert (await there.call({}, path="/v1/things/x")).status == 502
    settlement = there.settlement()
    assert (settlement.outcome, settlement.usage_source, settlement.cost_nano) == ("partial", "none", 0)


async def test_an_unpriced_route_goes_to_the_vendor_that_is_named(there: World) -> None:
    others = {
        "anthropic": Connection("anthropic", "anthropic", "https://anthropic.test", "sealed:sk-a", "anthropic"),
        "gemini-eu": Connection("gemini-eu", "google", "https://eu.test", "sealed:sk-g", "google"),
        "google": Connection("google", "google", "https://google.test", "sealed:sk-g", "google"),
    }
    await publish(there, allow_unpriced_routes=True, connections={**there.org.snapshot.connections, **others})
    for path, headers, url in (
        ("/v1/complete", {"x_spend_vendor": "anthropic"}, "https://anthropic.test/v1/complete"),
        ("/v1/complete", {"anthropic_version": "2023-06-01"}, "https://anthropic.test/v1/complete"),
        ("/anthropic/v1/complete", {}, "https://anthropic.test/v1/complete"),
        ("/gemini-eu/v1beta/files:register", {}, "https://eu.test/v1beta/files:register"),
        ("/v1beta/files:register", {}, "https://google.test/v1beta/files:register"),
        ("/v1/complete", {}, "https://vendor.test/v1/complete"),
    ):
        there.answer(ScriptedAnswer([b"{}"]))
        client = await there.call({}, path=path, **headers)
        assert client.status == 200, client.content
        assert there.vendor.requests[-1].url == url


async def test_an_unpriced_route_of_a_vendor_without_a_connection_is_refused(there: World) -> None:
    await publish(there, allow_unpriced_routes=True)
    assert_refused(await there.call({}, path="/nobody/v1/things"), 400, "no_vendor_connection", "'nobody'")
    assert there.vendor.requests == []


async def test_a_very_long_path_does_not_make_a_very_long_event(there: World) -> None:
    await publish(there, allow_unpriced_routes=True)
    there.answer(ScriptedAnswer([b"{}"]))
    path = "/v1/things/" + "x" * 5_000
    assert (await there.call({}, path=path)).status == 200
    assert there.vendor.requests[0].url.endswith(path)
    assert len(there.settlement().facts.route) == 200


async def test_priced_routes_are_gated_as_ever_where_others_may_pass(there: World) -> None:
    await publish(there, allow_unpriced_routes=True)
    await there.org.set_budget("0.000000000")
    await there.sync()
    assert_refused(await there.call(), 402, "budget_exhausted")
    assert_refused(await there.call(chat(model="gpt-99")), 400, "unknown_model")
    client = await request(there.assembly.app, "/v1/embeddings", b"", headers=there.headers(), method="PUT")
    assert client.status == 405
