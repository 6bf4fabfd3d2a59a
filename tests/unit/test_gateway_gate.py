"""No billable route of any dialect goes past the gate, and no route that is not known goes anywhere."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from services.core.events import Denial, Reservation, Settlement
from services.gateway.vendors import Dialect, Route
from services.gateway.vendors.registry import DIALECTS, all_routes
from tests.support.asgi import Client, request
from tests.support.gateway import World, world
from tests.support.routes import NO_IDS, WatchingVendor, base_of, connect_all, routes_with_ids, sample

BILLABLE, BILLABLE_IDS = routes_with_ids("held", "submitted")
FREE, FREE_IDS = routes_with_ids("free", "watched")


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[World]:
    made: World
    async with world(tmp_path, vendors=WatchingVendor(lambda: made)) as made:
        await connect_all(made)
        yield made


def seen(there: World, route: Route | None = None) -> list[tuple[str, int, int]]:
    """What the vendors got: URL, and how much was held and how many events there were by then.

    A batch's input file is fetched before anything is known of its cost; `route` leaves such requests out.
    """
    assert isinstance(there.ports.vendors, WatchingVendor)
    return [
        (asked.url, held_nano, events)
        for asked, held_nano, events in there.ports.vendors.seen
        if route is None or asked.method == route.method
    ]


async def ask(there: World, dialect: Dialect, route: Route, prefix: str | None = None, **headers: str) -> Client:
    asked = sample(route)
    path = (f"/{dialect.name}" if prefix is None else prefix) + asked.path
    given = [*there.headers(**headers), ("content-type", asked.content_type)]
    return await request(there.assembly.app, path, asked.body, headers=given, method=route.method)


def test_every_route_is_one_of_four_kinds_and_what_costs_money_can_be_read() -> None:
    for dialect, route in all_routes():
        assert route.billing in ("held", "submitted", "watched", "free"), route
        if route.billing in ("held", "submitted"):
            assert route.name in dialect.shapes, route
    assert {dialect.name for dialect, _ in BILLABLE} == set(DIALECTS)
    names = {(dialect.name, route.name) for dialect, route in BILLABLE}
    # The known defect: images and audio outside the gate.
    for name in ("images.generations", "images.edits", "audio.speech", "audio.transcriptions", "audio.translations"):
        assert ("openai", name) in names
        assert ("azure", name) in names


@pytest.mark.parametrize(("dialect", "route"), BILLABLE, ids=BILLABLE_IDS)
async def test_without_room_no_billable_request_reaches_its_vendor(
    there: World, dialect: Dialect, route: Route
) -> None:
    await there.org.set_budget("0.000000000")
    await there.sync()
    client = await ask(there, dialect, route)
    assert client.status == 402, client.content
    assert b"budget_exhausted" in client.content.lower()
    assert seen(there, route) == []
    (denial,) = there.events()
    assert isinstance(denial, Denial)
    assert (denial.code, denial.facts.route, denial.facts.vendor) == ("budget_exhausted", route.name, dialect.name)
    assert denial.estimate_nano > 0
    assert there.held_nano() == 0


@pytest.mark.parametrize(("dialect", "route"), BILLABLE, ids=BILLABLE_IDS)
async def test_with_room_exactly_one_reservation_is_there_before_the_vendor_is(
    there: World, dialect: Dialect, route: Route
) -> None:
    await there.org.set_budget("1000.00")
    await there.sync()
    client = await ask(there, dialect, route)
    assert client.status == 200, client.content
    ((url, held_nano, events),) = seen(there, route)
    asked = sample(route)
    path = asked.path.removeprefix("/v1") if dialect.base_has_version else asked.path
    assert url == base_of(dialect) + path
    assert events == 1
    first, *rest = there.events()
    assert isinstance(first, Reservation)
    assert held_nano == first.held_nano > 0
    assert (first.facts.route, first.facts.vendor) == (route.name, dialect.name)
    assert not any(isinstance(each, Reservation) for each in rest)
    if route.billing == "held":
        (settlement,) = rest
        assert isinstance(settlement, Settlement)
        assert settlement.cost_nano <= first.held_nano


@pytest.mark.parametrize(("dialect", "route"), BILLABLE, ids=BILLABLE_IDS)
async def test_a_billable_route_is_found_without_its_vendors_name_too(
    there: World, dialect: Dialect, route: Route
) -> None:
    """Picked by header where several vendors have the path; gated all the same."""
    await there.org.set_budget("0.000000000")
    await there.sync()
    client = await ask(there, dialect, route, prefix="", x_spend_vendor=dialect.name)
    assert client.status == 402 or (dialect.name == "azure" and client.status == 400), client.content
    assert seen(there, route) == []


@pytest.mark.parametrize(("dialect", "route"), FREE, ids=FREE_IDS)
async def test_a_free_route_needs_a_key_and_nothing_else(there: World, dialect: Dialect, route: Route) -> None:
    await there.org.set_budget("0.000000000")
    await there.sync()
    stranger = await ask(there, dialect, route, authorization="Bearer fk_live_" + "x" * 40)
    assert stranger.status == 401
    assert seen(there) == []
    client = await ask(there, dialect, route)
    assert client.status == 200, client.content
    assert there.events() == []
    assert there.held_nano() == 0
    if (dialect.name, route.path) != ("openai", "/v1/models"):  # our own list
        assert len(seen(there)) == 1


STRANGE = (
    ("POST", "/v1/fine_tuning/jobs"),
    ("POST", "/openai/v1/videos"),
    ("POST", "/v1beta/models/veo-3:predictLongRunning"),
    ("POST", "/anthropic/v1/complete"),
    ("POST", "/mistral/v1/agents/completions"),
    ("POST", "/v2/summarize"),
    ("GET", "/azure/openai/assistants"),
    ("POST", "/groq/v1/audio/mixes"),
)
SPELLED = (
    "/v1//chat/completions",
    "/v1/chat/completions/",
    "/v1/Chat/Completions",
    "/v1/chat%2Fcompletions",
    "/v1/chat%252Fcompletions",
    "/openai/v1/chat//completions",
    "/v1/models/m-1%3Agenerate%43ontent/",
    "/v1beta/models//m-1:generateContent",
    "/v1beta/models/m-1:GenerateContent",
    "/anthropic/v1/messages/",
    "/azure/openai/deployments/m-1/chat/completions/",
    "/v2/CHAT",
    "/v1/chat/completions;x=1",
    "/v1/chat;a=b/completions",
    "/v1/chat%5Ccompletions",
    "/v1/chat/completions%20",
    "/v1/chat/completions%00",
    "/v1/chat/completions.",
    "/v1/chat/completions%C2%A0",
    "/v1/chat/completions%3Fx",
    "/v1/chat/completions%25253Bx",
    "/v1/chat/x%252F..%252Fcompletions",
    "/v1/chat/completions/x/%252e%252e",
)
OF_IDS = [(dialect, route) for dialect, route in FREE if "{" in route.path]
OF_IDS_IDS = [f"{dialect.name}-{route.method}-{route.path}" for dialect, route in OF_IDS]


@pytest.mark.parametrize(("method", "path"), STRANGE)
async def test_a_path_that_is_no_route_is_refused_by_name(there: World, method: str, path: str) -> None:
    client = await request(there.assembly.app, path, b"{}", headers=there.headers(), method=method)
    assert client.status == 404
    assert b"unknown_route" in client.content
    assert f"{method} {path}".encode() in client.content
    stranger = await request(there.assembly.app, path, b"{}", method=method)
    assert stranger.status == 401, "nobody is told more than who they are"
    assert seen(there) == []
    assert there.events() == []


@pytest.mark.parametrize(("method", "path"), STRANGE)
async def test_an_org_may_let_them_pass_flagged_and_unheld(there: World, method: str, path: str) -> None:
    groq = replace(there.org.snapshot.connections["openai"], vendor="groq", base_url="https://groq.test/v1")
    await there.org.publish(allow_unpriced_routes=True, connections={**there.org.snapshot.connections, "groq": groq})
    await there.org.set_budget("1.00")
    await there.sync()
    client = await request(there.assembly.app, path, b"{}", headers=there.headers(), method=method)
    assert client.status == 200, client.content
    ((_, held_nano, events),) = seen(there)
    assert (held_nano, events) == (0, 1)
    reservation, settlement = there.events()
    assert isinstance(reservation, Reservation)
    assert isinstance(settlement, Settlement)
    assert (reservation.facts.match, reservation.held_nano, settlement.cost_nano) == ("none", 0, 0)
    assert settlement.facts.route.startswith(method + " /")
    assert settlement.unpriced == ()


@pytest.mark.parametrize("path", SPELLED)
async def test_a_priced_route_in_another_spelling_never_passes_unpriced(there: World, path: str) -> None:
    await there.org.publish(allow_unpriced_routes=True)
    await there.org.set_budget("1000.00")
    await there.sync()
    client = await request(there.assembly.app, path, sample(BILLABLE[0][1]).body, headers=there.headers())
    assert client.status == 404, client.content
    assert b"unknown_route" in client.content
    assert b"spelled" in client.content
    assert seen(there) == []


@pytest.mark.parametrize("allow_unpriced_routes", [False, True])
@pytest.mark.parametrize(("dialect", "route"), OF_IDS, ids=OF_IDS_IDS)
async def test_a_free_route_is_no_way_around_the_gate(
    there: World, dialect: Dialect, route: Route, allow_unpriced_routes: bool
) -> None:
    """Nothing that a server behind may read as another path goes anywhere, whether its org allows unpriced routes."""
    await there.org.publish(allow_unpriced_routes=allow_unpriced_routes)
    await there.org.set_budget("0.000000000")
    await there.sync()
    body = sample(BILLABLE[0][1]).body
    own = (".", "..", "%2e%2e", "%2E", "", "/", ";x/y")
    for text in (*NO_IDS, *own):
        if not text.strip("/") and "}:" in route.path:
            continue  # a verb of no model is no route in any spelling
        path = f"/{dialect.name}" + route.path.replace("{id}", text).replace("{model}", text)
        client = await request(there.assembly.app, path, body, headers=there.headers(), method=route.method)
        assert client.status in (404, 405), (path, client.content)
    assert seen(there) == []
    assert there.events() == []


@pytest.mark.parametrize("end", [";x", "%2F", "%0A", "%20", "%00", "%252e", "%3B", "+", "", ".", "..", "%5c", "%3f"])
async def test_a_stored_chats_path_runs_no_chat(there: World, end: str) -> None:
    """Its update is free, and a slash away from the most expensive route there is."""
    await there.org.publish(allow_unpriced_routes=True)
    await there.org.set_budget("0.000000000")
    await there.sync()
    for start in ("/v1", "/openai/v1", "/openai", "", "/V1"):
        path = f"{start}/chat/completions/{end}"
        client = await request(there.assembly.app, path, sample(BILLABLE[0][1]).body, headers=there.headers())
        assert client.status == 404, (path, client.content)
    assert seen(there) == []


@pytest.mark.parametrize("name", ["X-HTTP-Method-Override", "X-Method-Override", "X-HTTP-Method"])
async def test_a_free_route_does_not_become_a_billable_one_on_its_way(there: World, name: str) -> None:
    """Google's servers take GET with such a header for a POST, and a model's path may hold a verb."""
    headers = [*there.headers(), (name, "POST")]
    path = "/v1beta/models/m-1:generateContent"
    client = await request(there.assembly.app, path, b"{}", headers=headers, method="GET")
    assert (client.status, client.header("allow")) == (405, "POST")
    assert seen(there) == []
    client = await request(there.assembly.app, "/v1/models/m-1", headers=headers, method="GET")
    assert client.status == 200
    assert isinstance(there.ports.vendors, WatchingVendor)
    ((asked, _, _),) = there.ports.vendors.seen
    assert name.lower().encode() not in dict(asked.headers)


@pytest.mark.parametrize("path", ["/v1/../v1/chat/completions", "/v1/%2e%2e/v1/embeddings", "/openai/v1/x/..%2F..%2Fy"])
async def test_a_path_with_dot_segments_leads_nowhere(there: World, path: str) -> None:
    await there.org.publish(allow_unpriced_routes=True)
    await there.sync()
    client = await request(there.assembly.app, path, b"{}", headers=there.headers())
    assert (client.status, client.json()["error"]) == (404, "not_found")
    assert seen(there) == []
