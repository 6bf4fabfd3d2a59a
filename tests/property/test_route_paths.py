"""Paths: whatever stands for a model goes to the vendor as the very same name, and no path upsets the table."""

import re
import string
from urllib.parse import quote, unquote

from hypothesis import given
from hypothesis import strategies as st

from services.gateway.table import PLAIN, RouteTable, path_below, spelled
from services.gateway.vendors import Dialect, Route
from services.gateway.vendors.registry import DIALECTS, all_routes

TABLE = RouteTable(DIALECTS.values())
HELD = ("held", "submitted")
TAKING_MODELS = [
    (dialect, route) for dialect, route in all_routes() if "{model}" in route.path and route.billing in HELD
]
FREE = [(dialect, route) for dialect, route in all_routes() if "{" in route.path and route.billing not in HELD]
# Google's models have no colon in their names: a method follows it.
models = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=40)
IN_IDS = set(string.ascii_letters + string.digits + "._:@~+=,-")
spellings = st.sampled_from(("", PLAIN, "-._~:"))
raw_paths = st.one_of(
    st.binary(max_size=60).map(lambda data: b"/" + data),
    st.lists(
        st.sampled_from((b"v1", b"v1beta", b"openai", b"models", b"chat", b"files", b"%2F", b"%25", b"{x}", b"")),
        max_size=6,
    ).map(lambda parts: b"/" + b"/".join(parts)),
)


@given(st.sampled_from(TAKING_MODELS), models, spellings)
def test_a_model_in_a_path_reaches_its_vendor_as_it_is_called(at: tuple[Dialect, Route], model: str, safe: str) -> None:
    dialect, route = at
    if dialect.name == "google":
        model = model.replace(":", "-")
    raw = f"/{dialect.name}" + route.path.replace("{model}", quote(model, safe=safe)).replace("{id}", "p-1")
    place = TABLE.find(route.method, spelled(raw.encode()))
    candidate = next(each for each in place.candidates if (each.dialect, each.route) == (dialect, route))
    assert candidate.params["model"] == model
    told = path_below("https://v.test/base", dialect, candidate)
    assert told.isascii()
    assert not set(told) & set(' ?#{}"<>\\^`|')
    assert [unquote(part) for part in told.split("/")] == [
        part.replace("{model}", model).replace("{id}", "p-1")
        for part in (route.path.removeprefix("/v1") if dialect.base_has_version else route.path).split("/")
    ]


@given(st.sampled_from(FREE), models, spellings)
def test_a_free_route_takes_ids_and_nothing_else(at: tuple[Dialect, Route], text: str, safe: str) -> None:
    dialect, route = at
    path = f"/{dialect.name}" + re.sub(r"\{\w+\}", lambda _: quote(text, safe=safe), route.path)
    place = TABLE.find(route.method, spelled(path.encode()))
    for candidate in place.candidates:
        if candidate.route.billing in HELD:
            continue
        for name, value in candidate.params.items():
            assert set(value) <= IN_IDS | ({"/"} if name == "model" else set()), value
            assert all(set(part) - set(".:@~+=,-_") for part in value.split("/")), value
            assert all(part.strip(".") == part for part in value.split("/")), value
    if text.isascii() and text.isalnum():
        assert (dialect, route) in [(each.dialect, each.route) for each in place.candidates] or text == "compact"


@given(raw_paths, st.sampled_from(("GET", "POST", "DELETE", "PATCH")), st.booleans())
def test_any_path_has_a_place(raw: bytes, method: str, has_api_version: bool) -> None:
    path = spelled(raw)
    place = TABLE.find(method, path, has_api_version=has_api_version)
    assert all(each.route.method == method for each in place.candidates)
    assert method not in place.allowed
    for candidate in place.candidates:
        assert path_below("https://v.test", candidate.dialect, candidate).startswith("/")
        assert TABLE.resembles(place.below)
    TABLE.resembles(path)


@given(raw_paths)
def test_spelling_is_decoded_once(raw: bytes) -> None:
    path = spelled(raw)
    if b"%" in raw:
        assert path.count("/") == raw.count(b"/")
        assert unquote(path) == unquote(unquote(raw.decode("latin-1")).replace("%", "%25"))
    else:
        assert path == raw.decode("latin-1")
