"""Which route a path is, how it goes on to the vendor, and what is left of the query."""

from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import unquote

import pytest

from services.core.snapshot import Connection
from services.core.vendor_port import VendorRequest
from services.gateway.table import RouteTable, path_below, spelled
from services.gateway.vendors import Dialect, Route
from services.gateway.vendors.registry import DIALECTS, all_routes
from tests.support.asgi import Client, request
from tests.support.gateway import World, world
from tests.support.routes import NO_IDS, WatchingVendor, base_of, connect_all, sample

TABLE = RouteTable(DIALECTS.values())
ROUTES = list(all_routes())
IDS = [f"{dialect.name}-{route.method}-{route.path}" for dialect, route in ROUTES]
OF_IDS = [(dialect, route) for dialect, route in ROUTES if route.billing in ("free", "watched") and "{" in route.path]
ROUTE = {(dialect.name, route.name): route for dialect, route in reversed(ROUTES)}
CHAT = sample(ROUTE["openai", "chat.completions"]).body
MESSAGES = sample(ROUTE["anthropic", "messages"]).body
GENERATE = sample(ROUTE["google", "generateContent"]).body


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[World]:
    made: World
    async with world(tmp_path, vendors=WatchingVendor(lambda: made)) as made:
        await connect_all(made)
        yield made


def sent(there: World) -> list[VendorRequest]:
    assert isinstance(there.ports.vendors, WatchingVendor)
    return [asked for asked, _, _ in there.ports.vendors.seen]


async def ask(
    there: World, path: str, body: bytes = b"", *, method: str = "POST", query: str = "", **headers: str
) -> Client:
    given = there.headers(**headers)
    return await request(there.assembly.app, path, body, headers=given, method=method, query=query)


# ---- the table alone ------------------------------------------------------------------------------------------------


def named(path: str, method: str = "POST", *, has_api_version: bool = False) -> list[tuple[str, str]]:
    place = TABLE.find(method, path, has_api_version=has_api_version)
    return [(each.dialect.name, each.route.name) for each in place.candidates]


@pytest.mark.parametrize(("dialect", "route"), ROUTES, ids=IDS)
def test_every_route_is_found_under_its_own_path_and_under_its_vendors_name(dialect: Dialect, route: Route) -> None:
    path = sample(route).path
    assert (dialect.name, route.name) in named(f"/{dialect.name}{path}", route.method)
    assert TABLE.find(route.method, f"/{dialect.name}{path}").vendor == dialect.name
    is_azure = dialect.name == "azure"  # the first segment of its paths is another vendor's name
    assert (dialect.name, route.name) in named(path, route.method, has_api_version=is_azure)
    if dialect.base_has_version:
        assert (dialect.name, route.name) in named(path.removeprefix("/v1"), route.method)
        assert (dialect.name, route.name) in named(f"/{dialect.name}" + path.removeprefix("/v1"), route.method)
    assert (dialect.name, route.name) in named(f"/house-{dialect.name}{path}", route.method), "a vendor of one's own"


@pytest.mark.parametrize(("dialect", "route"), ROUTES, ids=IDS)
def test_a_path_below_a_base_url_is_the_vendors_own(dialect: Dialect, route: Route) -> None:
    path = sample(route).path
    found = next(each for each in TABLE.find(route.method, f"/{dialect.name}{path}").candidates if each.route == route)
    version = path.split("/")[1]
    for base in ("https://v.test", f"https://v.test/{version}", f"https://v.test/deep/{version}/"):
        told = path_below(base, dialect, found)
        expected = path.removeprefix(f"/{version}")
        if not dialect.base_has_version and "/" + version not in base:
            expected = path
        assert told == expected


@pytest.mark.parametrize(
    ("path", "vendor", "routes"),
    [
        ("/v1/chat/completions", None, [("openai", "chat.completions"), ("mistral", "chat.completions")]),
        ("/v1/messages", None, [("anthropic", "messages")]),
        ("/v1/embeddings", None, [("openai", "embeddings"), ("mistral", "embeddings")]),
        ("/v1beta/models/gemini-2.5-flash:generateContent", None, [("google", "generateContent")]),
        ("/v1/models/gemini-2.5-flash:generateContent", None, [("google", "generateContent")]),
        ("/v2/chat", None, [("cohere", "chat")]),
        ("/openai/v1/chat/completions", "openai", [("openai", "chat.completions"), ("mistral", "chat.completions")]),
        ("/azure/openai/v1/chat/completions", "azure", [("azure", "chat.completions")]),
        ("/openai/deployments/prod/chat/completions", None, [("azure", "chat.completions")]),
        ("/groq/v1/chat/completions", "groq", [("openai", "chat.completions"), ("mistral", "chat.completions")]),
        ("/groq/chat/completions", "groq", [("openai", "chat.completions")]),
        ("/chat/completions", None, [("openai", "chat.completions")]),
        ("/chat/v1/completions", "chat", [("openai", "completions")]),
        ("/a b/v1/chat/completions", None, []),
        ("//v1/chat/completions", None, []),
        ("/v1/", None, []),
        ("/v1", None, []),
        ("/", None, []),
        ("*", None, []),
    ],
)
def test_paths_in_particular(path: str, vendor: str | None, routes: list[tuple[str, str]]) -> None:
    assert named(path) == routes
    if routes:
        assert TABLE.find("POST", path).vendor == vendor


@pytest.mark.parametrize(
    ("raw", "model"),
    [
        ("gpt-4o", "gpt-4o"),
        ("ft:gpt-4o-mini:acme::7Qx", "ft:gpt-4o-mini:acme::7Qx"),
        ("ft%3Agpt-4o-mini%3Aacme%3A%3A7Qx", "ft:gpt-4o-mini:acme::7Qx"),
        ("meta-llama%2FLlama-3", "meta-llama/Llama-3"),
        ("50%25", "50%"),
        ("a%252Fb", "a%2Fb"),
        ("gr%C3%B6%C3%9Fe", "größe"),
        ("%7Bmodel%7D", "{model}"),
    ],
)
def test_a_models_name_is_decoded_once_and_goes_on_as_the_same_name(raw: str, model: str) -> None:
    path = "/openai/deployments/{}/chat/completions"
    place = TABLE.find("POST", spelled(path.format(raw).encode()), has_api_version=True)
    candidate = place.candidates[0]
    assert dict(candidate.params) == {"model": model}
    told = path_below("https://v.test", candidate.dialect, candidate)
    again = TABLE.find("POST", spelled(told.encode()), has_api_version=True).candidates[0]
    assert dict(again.params) == {"model": model}
    assert "{" not in told


@pytest.mark.parametrize("raw", ["gpt-4o", "ft:gpt-4o-mini:acme::7Qx", "ft%3Agpt-4o-mini%3Aa", "meta-llama%2FLlama-3"])
def test_a_models_name_is_read_in_a_free_path_too(raw: str) -> None:
    (candidate, *_) = TABLE.find("GET", spelled(f"/v1/models/{raw}".encode())).candidates
    assert dict(candidate.params) == {"model": unquote(raw)}
    told = path_below("https://v.test/v1", candidate.dialect, candidate)
    assert TABLE.find("GET", spelled(b"/v1" + told.encode())).candidates[0].params == candidate.params


@pytest.mark.parametrize(("dialect", "route"), OF_IDS, ids=[f"{d.name}-{r.method}-{r.path}" for d, r in OF_IDS])
def test_no_free_route_takes_what_is_no_id(dialect: Dialect, route: Route) -> None:
    for raw in NO_IDS:
        path = f"/{dialect.name}" + route.path.replace("{id}", raw).replace("{model}", raw)
        place = TABLE.find(route.method, spelled(path.encode()))
        assert route not in [each.route for each in place.candidates], path
        assert TABLE.resembles(place.below), path


@pytest.mark.parametrize(
    "path",
    ["/v1/responses/COMPACT", "/responses/Compact", "/v1/models/m-1:generateContent", "/v1/models/m:GENERATECONTENT"],
)
def test_no_free_route_takes_a_billable_ones_path(path: str) -> None:
    assert all(each.route.billing == "held" for each in TABLE.find("GET", path).candidates)
    assert TABLE.resembles(path)


def test_openais_name_is_not_taken_for_azures_path_without_azures_version() -> None:
    for path in ("/openai/responses", "/openai/v1/responses"):
        assert named(path)[0] == ("openai", "responses")
        assert TABLE.find("POST", path).vendor == "openai"
        assert named(path, has_api_version=True) == [("azure", "responses")]
        assert TABLE.find("POST", path, has_api_version=True).vendor is None
    assert named("/groq/v1/embeddings", has_api_version=True)[0] == ("openai", "embeddings")


def test_a_wrong_method_says_which_is_right() -> None:
    place = TABLE.find("PUT", "/v1/messages/batches/b1")
    assert (place.candidates, place.allowed) == ((), ("DELETE", "GET"))


# ---- through the gateway --------------------------------------------------------------------------------------------


async def test_the_vendor_header_picks_among_equals(there: World) -> None:
    for vendor, url in (
        ("openai", "https://openai.test/v1/chat/completions"),
        ("mistral", "https://mistral.test/v1/chat/completions"),
    ):
        client = await ask(there, "/v1/chat/completions", CHAT, x_spend_vendor=vendor)
        assert client.status == 200, client.content
        assert sent(there)[-1].url == url
        assert (b"authorization", f"Bearer sk-{vendor}".encode()) in sent(there)[-1].headers
    client = await ask(there, "/v1/chat/completions", CHAT)
    assert sent(there)[-1].url.startswith("https://openai.test/")


async def test_anthropics_clients_are_known_by_their_version(there: World) -> None:
    client = await ask(there, "/v1/models", method="GET", anthropic_version="2023-06-01")
    assert client.status == 200
    assert sent(there)[-1].url == "https://anthropic.test/v1/models"
    assert (b"anthropic-version", b"2023-06-01") in sent(there)[-1].headers
    refused = await ask(there, "/v1/messages", MESSAGES, anthropic_version="2026-10-21", authorization="Bearer x")
    assert (refused.status, refused.json()["type"]) == (401, "error")
    unknown = await ask(there, "/v1/complete", b"{}", anthropic_version="2023-06-01")
    assert (unknown.status, unknown.json()["type"]) == (404, "error")


@pytest.mark.parametrize("vendor", ["anthropic", "google", "mistral", "cohere"])
async def test_the_list_of_models_is_ours_for_openai_and_theirs_for_others(there: World, vendor: str) -> None:
    ours = await ask(there, "/v1/models", method="GET")
    assert {each["owned_by"] for each in ours.json()["data"]} >= {"openai", vendor}
    assert sent(there) == []
    theirs = await ask(there, "/v1/models", method="GET", x_spend_vendor=vendor)
    assert theirs.content == b'{"id":"id-1"}'
    assert [each.url for each in sent(there)] == [f"https://{vendor}.test/v1/models"]


async def test_a_vendor_of_ones_own_speaks_what_its_connection_says(there: World) -> None:
    own = {
        "gemini-eu": Connection("gemini-eu", "google", "https://eu.test/gateway/v1beta", "sealed:sk-eu", "google"),
        "vllm": Connection("vllm", "openai", "http://vllm.test:8000/v1/", None, "openai"),
        "claude-eu": Connection("claude-eu", "anthropic", "https://claude.test", "sealed:sk-c", "anthropic"),
    }
    await there.org.publish(connections={**there.org.snapshot.connections, **own})
    await there.sync()
    for path, body, url in (
        (
            "/gemini-eu/v1beta/models/m-1:generateContent",
            GENERATE,
            "https://eu.test/gateway/v1beta/models/m-1:generateContent",
        ),
        (
            "/gemini-eu/v1/models/m-1:generateContent",
            GENERATE,
            "https://eu.test/gateway/v1beta/v1/models/m-1:generateContent",
        ),
        ("/vllm/v1/chat/completions", CHAT, "http://vllm.test:8000/v1/chat/completions"),
        ("/vllm/chat/completions", CHAT, "http://vllm.test:8000/v1/chat/completions"),
        ("/claude-eu/v1/messages", MESSAGES, "https://claude.test/v1/messages"),
    ):
        client = await ask(there, path, body)
        assert client.status == 200, client.content
        assert sent(there)[-1].url == url
    refused = await ask(there, "/claude-eu/v1/chat/completions", CHAT)
    assert refused.status == 400
    assert "speaks anthropic" in refused.json()["error"]["message"]


async def test_azures_deployments_and_version(there: World) -> None:
    client = await ask(there, "/azure/openai/deployments/m-1/chat/completions", CHAT, query="api-version=2024-10-21")
    assert client.status == 200, client.content
    assert (
        sent(there)[-1].url
        == f"{base_of(DIALECTS['azure'])}/openai/deployments/m-1/chat/completions?api-version=2024-10-21"
    )
    assert (b"api-key", b"sk-azure") in sent(there)[-1].headers


# ---- keys in the query ----------------------------------------------------------------------------------------------

GOOGLE_PATH = "/v1beta/models/m-1:generateContent"


@pytest.mark.parametrize("name", ["key", "%6bey", "k%65y"])
async def test_our_key_in_the_query_says_who_asks_and_goes_no_further(there: World, name: str) -> None:
    query = f"alt=json&{name}={there.key}&prettyPrint=false"
    client = await request(there.assembly.app, GOOGLE_PATH, GENERATE, query=query)
    assert client.status == 200, client.content
    (asked,) = sent(there)
    assert asked.url == "https://google.test/v1beta/models/m-1:generateContent?alt=json&prettyPrint=false"
    assert (b"x-goog-api-key", b"sk-google") in asked.headers
    assert there.settlement().facts.auth_mode == "metered"
    assert there.key not in repr(asked)


async def test_our_key_in_the_query_is_found_beside_a_vendors_key_in_its_header(there: World) -> None:
    client = await request(
        there.assembly.app, GOOGLE_PATH, GENERATE, headers=[("x-goog-api-key", "AIza-own")], query=f"key={there.key}"
    )
    assert client.status == 200, client.content


async def test_a_vendors_key_in_the_query_goes_on_in_its_header(there: World) -> None:
    for path, body in ((GOOGLE_PATH, GENERATE), ("/v1beta/models", b"")):
        method = "POST" if body else "GET"
        client = await request(
            there.assembly.app,
            path,
            body,
            method=method,
            headers=[("x-spend-key", there.key)],
            query="key=AIza-own%2B1&alt=json",
        )
        assert client.status == 200, client.content
        asked = sent(there)[-1]
        assert asked.url.endswith("?alt=json")
        assert (b"x-goog-api-key", b"AIza-own+1") in asked.headers
    assert there.settlement().facts.auth_mode == "byok"


@pytest.mark.parametrize("query", ["key=a%0d%0aX-Evil:%201", "key=%00", "key=%C3%BC"])
async def test_a_key_in_the_query_that_no_header_can_hold_is_refused(there: World, query: str) -> None:
    client = await request(there.assembly.app, GOOGLE_PATH, GENERATE, headers=[("x-spend-key", there.key)], query=query)
    assert client.status == 400
    assert client.json()["error"]["param"] == "key"
    assert sent(there) == []


async def test_an_empty_key_in_the_query_is_none(there: World) -> None:
    client = await ask(there, GOOGLE_PATH, GENERATE, query="key=&monkey=1")
    assert client.status == 200, client.content
    assert sent(there)[0].url.endswith("?monkey=1")
    assert (b"x-goog-api-key", b"sk-google") in sent(there)[0].headers
