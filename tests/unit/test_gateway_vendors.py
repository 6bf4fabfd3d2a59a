"""Which vendor a call goes to, with which key, and what is kept out of files."""

import contextlib
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.core.events import Denial
from services.core.snapshot import Connection
from services.gateway.vendors import RequestFacts, RouteRequest
from services.gateway.vendors.openai import OpenAIDialect
from tests.support.gateway import ScriptedAnswer, World, assert_refused, chat, world

OK = b'{"object":"chat.completion","choices":[],"usage":{"prompt_tokens":10,"completion_tokens":5}}'


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        yield made


async def test_header_or_path_pick_the_vendor(there: World) -> None:
    await there.org.connect("mirror", "https://mirror.test/openai/v1/", None)
    await there.sync()
    there.answer(ScriptedAnswer([OK]), ScriptedAnswer([OK]))
    assert (await there.call(x_spend_vendor="mirror")).status == 200
    assert (await there.call(path="/mirror/v1/chat/completions")).status == 200
    assert {each.url for each in there.vendor.requests} == {"https://mirror.test/openai/v1/chat/completions"}
    client = await there.call(path="/mirror/v1/chat/completions", x_spend_vendor="openai")
    assert_refused(client, 400, "invalid_request", "x-spend-vendor", "'mirror'")


async def test_a_vendor_without_a_connection_is_refused_and_on_record(there: World) -> None:
    assert_refused(await there.call(x_spend_vendor="nobody"), 400, "no_vendor_connection", "connections set nobody")
    (denial,) = there.events()
    assert isinstance(denial, Denial)
    assert denial.facts.vendor == "nobody"


async def test_a_vendor_key_that_cannot_be_opened_is_refused(there: World) -> None:
    await there.org.connect("openai", "https://vendor.test/v1", "garbled")
    await there.sync()
    assert_refused(await there.call(), 400, "no_vendor_connection", "set the connection again")
    assert there.hot_state.store.state("default").holds == {}


async def test_a_connection_of_another_dialect_is_refused(there: World) -> None:
    other = Connection("other", "anthropic", "https://other.test", None, "anthropic")
    await there.org.publish(connections={"other": other})
    await there.sync()
    assert_refused(await there.call(x_spend_vendor="other"), 400, "no_vendor_connection", "anthropic")


async def test_the_outbox_file_holds_no_body_and_no_key(there: World, tmp_path: Path) -> None:
    there.answer(ScriptedAnswer([OK]))
    await there.call()
    with contextlib.closing(sqlite3.connect(tmp_path / "outbox.sqlite")) as database:
        text = repr(database.execute("SELECT * FROM outbox").fetchall())
    assert "How much is a farthing?" not in text
    assert there.key not in text
    assert "sk-vendor" not in text


async def test_a_large_body_is_read_beside_the_event_loop(there: World, monkeypatch: pytest.MonkeyPatch) -> None:
    readers = []
    read_request = OpenAIDialect.read_request

    def reading(dialect: OpenAIDialect, asked: RouteRequest) -> RequestFacts:
        readers.append(threading.current_thread())
        return read_request(dialect, asked)

    monkeypatch.setattr(OpenAIDialect, "read_request", reading)
    there.answer(ScriptedAnswer([OK]), ScriptedAnswer([OK]))
    assert (await there.call()).status == 200
    assert (await there.call(chat(user="u" * 300_000, max_tokens=10))).status == 200
    assert_refused(await there.call(chat(user="u" * 300_000, n=0)), 400, "invalid_request", "n")
    assert readers[0] is threading.current_thread()
    assert threading.current_thread() not in readers[1:]
    assert len(readers) == 3
