"""Jobs as they are submitted, and answers that tell of them, where something goes wrong or is out of the ordinary."""

import asyncio
import gc
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.core.events import Denial, Reservation
from services.core.ports import NotSentError, TimedOutError, UnavailableError
from services.core.snapshot import Connection, Overrides, RouteRule, Target, UnknownModels
from services.gateway.jobs.submit import _Slots
from services.gateway.refusal import RefusedError
from services.gateway.vendors import RequestFacts, RequestRefusedError
from tests.support.asgi import Client, request, scope_of
from tests.support.gateway import (
    EVENT_STREAM,
    ScriptedAnswer,
    assert_refused,
    until,
    world,
)
from tests.support.job_faults import BATCH, COST_NANO, ENDED, OUTPUT, SUBMITTED, There, job_faults
from tests.support.jobs import BATCH_INPUT_NANO, BATCH_OUTPUT_NANO, jsonl, line, shipped
from tests.support.vendors import openai as answers


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[There]:
    async with job_faults(tmp_path) as made:
        yield made


async def test_the_answers_pass_unchanged_and_the_vendor_has_its_usual_time(there: There) -> None:
    client = await there.submit()
    assert (client.status, client.content) == (200, BATCH)
    assert client.header("x-spend-transaction-id") is not None
    assert client.header("x-spend-cost") is None
    fetched, submitted = there.world.vendor.requests
    assert (fetched.method, fetched.url) == ("GET", "https://vendor.test/v1/files/file-1/content")
    assert dict(fetched.headers)[b"authorization"] == b"Bearer sk-vendor"
    assert json.loads(submitted.body) == SUBMITTED
    assert submitted.timeout_s == 120
    seen = await there.look(ENDED.encode(), OUTPUT)
    assert (seen.content, there.settlements()[0].cost_nano) == (ENDED.encode(), COST_NANO)


async def test_who_may_submit_is_asked_again_once_the_file_is_there(there: There) -> None:
    """It may have taken minutes: a key that was revoked in them buys nothing any more."""
    gate = asyncio.Event()
    there.world.answer(ScriptedAnswer([gate, jsonl(line("a"))]))
    submitting = asyncio.create_task(there.world.call(SUBMITTED, path="/v1/batches"))
    await until(lambda: there.world.vendor.requests)
    await there.world.org.revoke_key(there.world.key)
    await there.world.sync()
    gate.set()
    assert (await submitting).status == 401
    assert [each.method for each in there.world.vendor.requests] == ["GET"]
    assert (there.world.held_nano(), there.world.events()) == (0, [])


async def test_a_batch_is_held_by_the_budgets_of_when_its_file_was_there(there: There) -> None:
    gate = asyncio.Event()
    there.world.answer(ScriptedAnswer([gate, jsonl(line("a"))]))
    submitting = asyncio.create_task(there.world.call(SUBMITTED, path="/v1/batches"))
    await until(lambda: there.world.vendor.requests)
    await there.world.org.set_budget("0.00")
    await there.world.sync()
    gate.set()
    assert (await submitting).status == 402
    assert [each.method for each in there.world.vendor.requests] == ["GET"]


async def test_a_job_is_kept_when_the_hot_state_comes_back(there: There) -> None:
    there.jobs.fails += ["keep"]
    client = await there.submit()
    assert client.content == BATCH
    (job,) = there.jobs.all()
    (reservation,) = (each for each in there.world.events() if isinstance(each, Reservation))
    assert (job.transaction_id, job.held_nano) == (reservation.transaction_id, reservation.held_nano)
    assert there.world.held_nano() == reservation.held_nano


async def test_a_job_that_can_not_be_kept_leaves_its_hold(there: There, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.gateway.jobs.keeper._KEEP_PAUSES_S", (0.0, 0.0))
    there.jobs.fails += ["keep", "keep"]
    assert (await there.submit()).status == 200
    assert (there.jobs.all(), there.settlements()) == ([], [])
    assert there.world.held_nano() > 0


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (TimedOutError("too long"), 504),
        (UnavailableError("hung up"), 502),
        (ScriptedAnswer([b'{"id": "batch_', UnavailableError("broke off")]), 502),
        (ScriptedAnswer([b"[]"]), 200),
    ],
)
async def test_a_batch_that_may_have_begun_unseen_is_settled_at_its_bound(
    there: There, answer: Any, status: int
) -> None:
    client = await there.submit(line(1), line(2), answer=answer)
    assert client.status == status
    (settlement,) = there.settlements()
    assert (settlement.outcome, settlement.usage_source) == ("partial", "estimated")
    # All but a nano-dollar a line, which is for rounding.
    assert settlement.cost_nano == settlement.held_nano - 2
    assert there.jobs.all() == []


async def test_a_batch_that_never_left_costs_nothing(there: There, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.gateway.forward.RETRY_PAUSES_S", ())
    client = await there.submit(answer=NotSentError("nobody there"))
    assert client.status == 502
    (settlement,) = there.settlements()
    assert (settlement.outcome, settlement.cost_nano) == ("vendor_error", 0)


async def test_no_other_vendor_gets_a_job(there: There) -> None:
    """Its id would mean nothing where its caller asks for it."""
    await there.world.org.connect("other", "https://other.test/v1")
    rule = RouteRule("openai", "*", fallbacks=(Target("other", "gpt-4o-mini"),))
    await there.world.org.publish(rules=(rule,))
    await there.world.sync()
    there.world.answer(*(ScriptedAnswer([b"{}"], 500) for _ in range(3)))
    body = {"model": "gpt-4o-mini", "input": "Hi", "background": True, "max_output_tokens": 9}
    assert (await there.world.call(body, path="/v1/responses")).status == 500
    assert {each.url for each in there.world.vendor.requests} == {"https://vendor.test/v1/responses"}


async def test_a_caller_that_leaves_after_submitting_has_a_job_all_the_same(there: There) -> None:
    vendor = there.world.vendor
    slow = asyncio.Event()
    there.world.answer(ScriptedAnswer([jsonl(line(1))]), ScriptedAnswer([slow, BATCH]))
    client = Client(body=(json.dumps(SUBMITTED).encode(),))
    scope = scope_of("/v1/batches", there.world.headers())
    task = asyncio.ensure_future(there.world.assembly.app(scope, client.receive, client.send))
    await until(lambda: len(vendor.requests) == 2)
    client.hang_up()
    slow.set()
    await task
    assert len(there.jobs.all()) == 1


async def test_each_line_costs_what_its_own_model_does(there: There) -> None:
    await there.world.org.publish(overrides=Overrides("own", (shipped("openai", "gpt-4o"),)))
    await there.world.sync()
    await there.submit(line(1), line(2, model="gpt-4o"))
    used = answers.usage(1_000, 100)
    output = answers.batch_output(
        [
            answers.batch_line("line-2", answers.completion("gpt-4o-2024-08-06", used=used)),
            answers.batch_line("line-1", answers.completion("gpt-4o-mini-2024-07-18", used=used)),
        ]
    )
    await there.look(ENDED.encode(), output)
    (settlement,) = there.settlements()
    # gpt-4o: $1.25 and $5 a million in a batch (OpenAI, "Pricing").
    mini = 1_000 * BATCH_INPUT_NANO + 100 * BATCH_OUTPUT_NANO
    assert settlement.cost_nano == mini + 1_000 * 1_250 + 100 * 5_000
    assert settlement.usage["input_tokens"] == 2_000
    assert sorted(each.price_nano for each in settlement.components) == [
        75_000_000, 300_000_000, 1_250_000_000, 5_000_000_000
    ]  # fmt: skip


async def test_a_file_past_the_limit_is_refused(tmp_path: Path) -> None:
    async with world(tmp_path, max_response_bytes=1_000) as inner:
        inner.answer(ScriptedAnswer([b"x" * 600, b"x" * 600]))
        client = await inner.call(SUBMITTED, path="/v1/batches")
        assert_refused(client, 413, "request_too_large", "1000 bytes", "parts")
        assert client.json()["error"]["param"] == "input_file_id"
        assert inner.held_nano() == 0


@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [
        (ScriptedAnswer([b"{}"], 404), 400, "invalid_request"),
        (UnavailableError("away"), 502, "vendor_unreachable"),
        (ScriptedAnswer([b"{", UnavailableError("broke off")]), 502, "vendor_unreachable"),
        (ScriptedAnswer([b"\xff"], headers=((b"content-encoding", b"odd"),)), 502, "vendor_unreachable"),
        (ScriptedAnswer([b"no json"]), 400, "invalid_request"),
    ],
)
async def test_without_its_input_file_nothing_is_submitted(there: There, answer: Any, status: int, code: str) -> None:
    there.world.answer(answer)
    client = await there.world.call(SUBMITTED, path="/v1/batches")
    assert (client.status, client.json()["error"]["code"]) == (status, code), client.json()
    assert len(there.world.vendor.requests) == 1
    assert not [each for each in there.world.events() if not isinstance(each, Denial)]


async def test_a_file_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    async with world(tmp_path, vendor_timeout_s=0.05) as inner:
        inner.answer(ScriptedAnswer([asyncio.Event()]))
        client = await inner.call(SUBMITTED, path="/v1/batches")
        assert_refused(client, 504, "vendor_timeout", "0.05 s")


async def test_a_batch_of_free_requests_is_passed_on_and_settled_at_nothing(there: There) -> None:
    moderation = {"custom_id": "m", "method": "POST", "url": "/v1/moderations", "body": {"input": "hi"}}
    client = await there.submit(moderation, endpoint="/v1/moderations")
    assert client.status == 200
    (settlement,) = there.settlements()
    assert (settlement.held_nano, settlement.cost_nano, settlement.outcome) == (0, 0, "completed")
    assert there.jobs.all() == []


@pytest.mark.parametrize("root", ["/openai/v1", "/openai"])
async def test_azure_is_asked_in_the_form_that_the_batch_was_submitted_in(there: There, root: str) -> None:
    azure = Connection("azure", "azure", "https://res.test", "sealed:sk-azure", "openai")
    await there.world.org.publish(connections={"azure": azure})
    await there.world.sync()
    there.world.answer(ScriptedAnswer([jsonl(line(1))]), ScriptedAnswer([BATCH]))
    body = json.dumps(SUBMITTED).encode()
    headers = [*there.world.headers(), ("content-type", "application/json")]
    client = await request(
        there.world.assembly.app, f"/azure{root}/batches", body, headers=headers, query="api-version=2025-04-01-preview"
    )
    assert client.status == 200, client.json()
    there.wait(60_000)
    await there.poll(ENDED.encode(), OUTPUT)
    assert [each.cost_nano for each in there.settlements()] == [COST_NANO]
    version = "?api-version=2025-04-01-preview"
    assert [each.url.removeprefix("https://res.test" + root) for each in there.world.vendor.requests] == [
        f"/files/file-1/content{version}",
        f"/batches{version}",
        f"/batches/batch_1{version}",
        f"/files/file-2/content{version}",
    ]
    assert {dict(each.headers)[b"api-key"] for each in there.world.vendor.requests} == {b"sk-azure"}


async def test_a_list_of_batches_settles_those_that_have_ended(there: There) -> None:
    await there.submit()
    page = answers.page([json.loads(ENDED), answers.batch("batch_2", "in_progress")])
    await there.look(json.dumps(page).encode(), OUTPUT, path="/v1/batches")
    assert [each.cost_nano for each in there.settlements()] == [COST_NANO]


async def test_a_stream_taken_up_again_settles_its_response(there: There) -> None:
    whole = answers.response(used=answers.response_usage(20, 30), response_id="resp_1", background=True)
    queued = json.dumps({**whole, "status": "queued", "usage": None, "output": []}).encode()
    there.world.answer(ScriptedAnswer([queued]))
    body = {"model": "gpt-4o-mini", "input": "Hi", "background": True, "max_output_tokens": 60}
    await there.world.call(body, path="/v1/responses")
    assert len(there.jobs.all()) == 1
    events = answers.response_events(whole)
    there.world.answer(ScriptedAnswer(events, headers=EVENT_STREAM))
    client = await request(
        there.world.assembly.app,
        "/v1/responses/resp_1",
        headers=there.world.headers(),
        method="GET",
        query="stream=true",
    )
    assert client.content == b"".join(events)
    (settlement,) = there.settlements()
    assert settlement.cost_nano == 20 * 150 + 30 * 600


@pytest.mark.parametrize("streams", [False, True])
async def test_a_response_that_failed_without_a_word_costs_nothing(there: There, streams: bool) -> None:
    failed = answers.response(response_id="resp_1", background=True)
    failed |= {"status": "failed", "usage": None, "output": [], "error": {"code": "server_error", "message": "sorry"}}
    there.world.answer(ScriptedAnswer([json.dumps({**failed, "status": "queued", "error": None}).encode()]))
    body = {"model": "gpt-4o-mini", "input": "Hi", "background": True, "max_output_tokens": 60}
    await there.world.call(body, path="/v1/responses")
    assert there.settlements() == []
    event = (
        b"event: response.failed\ndata: %s\n\n" % json.dumps({"type": "response.failed", "response": failed}).encode()
    )
    there.world.answer(
        ScriptedAnswer([event], headers=EVENT_STREAM) if streams else ScriptedAnswer([json.dumps(failed).encode()])
    )
    await request(there.world.assembly.app, "/v1/responses/resp_1", headers=there.world.headers(), method="GET")
    (settlement,) = there.settlements()
    assert (settlement.outcome, settlement.cost_nano, settlement.usage_source) == ("vendor_error", 0, "none")


async def test_an_answer_past_the_limit_is_passed_on_unread(tmp_path: Path) -> None:
    async with world(tmp_path, max_response_bytes=1_000) as inner:
        parts = [b"x" * 600, b"y" * 600, b"z" * 600]
        inner.answer(ScriptedAnswer(parts))
        client = await request(inner.assembly.app, "/v1/batches/b", headers=inner.headers(), method="GET")
        assert (client.status, client.content, client.ended) == (200, b"".join(parts), True)


async def test_a_vendor_that_breaks_off_in_a_status_is_a_502(there: There) -> None:
    there.world.answer(ScriptedAnswer([b"{", UnavailableError("broke off")]))
    client = await request(there.world.assembly.app, "/v1/batches/b", headers=there.world.headers(), method="GET")
    assert_refused(client, 502, "vendor_unreachable", "broke off")


# ---- what requests themselves are charged for -----------------------------------------------------------------------

SEARCH_NANO = 10_000_000  # $10 for a thousand (OpenAI, "Pricing": web search)
SEARCHES: dict[str, Any] = {"model": "gpt-4o-mini", "web_search_options": {}}


def output(*names: str) -> bytes:
    used = answers.usage(13, 9)
    return answers.batch_output([answers.batch_line(each, answers.completion(used=used)) for each in names])


async def test_a_search_that_a_line_asks_for_is_charged(there: There) -> None:
    client = await there.submit(line(1, **SEARCHES))
    assert client.status == 200, client.json()
    await there.look(ENDED.encode(), output("line-1"))
    (settlement,) = there.settlements()
    assert (settlement.cost_nano, settlement.usage["web_searches"]) == (COST_NANO + SEARCH_NANO, 1)
    assert (settlement.usage_source, settlement.unpriced) == ("reported", ())


async def test_lines_that_ask_for_no_search_are_charged_for_none(there: There) -> None:
    await there.submit(line(1), line(2, **SEARCHES), line(3), line(4, **SEARCHES))
    await there.look(ENDED.encode(), output("line-1", "line-2", "line-3", "line-4"))
    (settlement,) = there.settlements()
    assert (settlement.cost_nano, settlement.usage_source) == (4 * COST_NANO + 2 * SEARCH_NANO, "reported")


async def test_where_nobody_knows_which_lines_were_answered_their_searches_are_an_estimate(there: There) -> None:
    await there.submit(line(1), line(2, **SEARCHES))
    await there.look(ENDED.encode(), output("line-1"))
    (settlement,) = there.settlements()
    assert (settlement.cost_nano, settlement.usage_source) == (COST_NANO + SEARCH_NANO, "estimated")


async def test_a_line_that_can_not_be_read_may_have_searched(there: There) -> None:
    await there.submit(line(1, **SEARCHES), line(2, **SEARCHES))
    await there.look(ENDED.encode(), b"no json\n" * 5)
    (settlement,) = there.settlements()
    assert settlement.usage["web_searches"] == 2
    assert settlement.cost_nano == settlement.held_nano - 2


async def test_a_batch_of_too_many_models_is_refused_by_its_line(there: There) -> None:
    policy = UnknownModels("allow_unpriced")
    await there.world.org.publish(unknown_models=policy)
    await there.world.sync()
    lines = [line(number, model=f"ft:gpt-4o-mini:{number}") for number in range(64)]
    assert (await there.submit(*lines, *lines)).status == 200
    there.world.vendor.script.clear()
    there.world.answer(ScriptedAnswer([jsonl(*lines, line(64), line(65, model="one-more"))]))
    client = await there.world.call(SUBMITTED, path="/v1/batches")
    assert_refused(client, 400, "invalid_request", "line 65 of the input file", "64 models", "in parts")
    assert client.json()["error"]["param"] == "input_file_id"


# ---- many at once ---------------------------------------------------------------------------------------------------


async def test_a_batch_waits_for_its_orgs_last_one_and_is_told_when_that_takes_long(
    there: There, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.gateway.jobs.submit._BUSY_S", 0.05)
    slow = asyncio.Event()
    there.world.answer(ScriptedAnswer([slow, jsonl(line(1))]), ScriptedAnswer([BATCH]))
    first = asyncio.ensure_future(there.world.call(SUBMITTED, path="/v1/batches"))
    await until(lambda: there.world.vendor.requests)
    client = await there.world.call(SUBMITTED, path="/v1/batches")
    assert_refused(client, 429, "too_many_requests", "one at a time", "10 seconds")
    assert client.header("retry-after") == "10"
    slow.set()
    assert (await first).status == 200
    assert len(there.world.vendor.requests) == 2
    assert (await there.submit()).status == 200


async def test_a_batch_that_has_waited_has_all_its_time(tmp_path: Path) -> None:
    async with world(tmp_path, vendor_timeout_s=0.8) as inner:
        waits = [asyncio.Event(), asyncio.Event()]
        for each in waits:
            inner.answer(ScriptedAnswer([each, b"no json"]))
        calls = [asyncio.ensure_future(inner.call(SUBMITTED, path="/v1/batches")) for _ in waits]
        await until(lambda: inner.vendor.requests)
        await asyncio.sleep(0.5)
        waits[0].set()
        await until(lambda: len(inner.vendor.requests) == 2)
        await asyncio.sleep(0.5)
        waits[1].set()
        assert [(await each).status for each in calls] == [400, 400]


async def test_orgs_do_not_wait_for_each_other_until_all_room_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.gateway.jobs.submit._BUSY_S", 0.05)
    monkeypatch.setattr("services.gateway.jobs.submit._AT_A_TIME", 3)
    slots = _Slots()
    frees = [await slots.take(org) for org in ("one", "two", "three")]
    with pytest.raises(RefusedError) as caught:
        await slots.take("four")
    assert (caught.value.status, caught.value.headers) == (503, ((b"retry-after", b"10"),))
    with pytest.raises(RefusedError) as caught:
        await slots.take("one")
    assert caught.value.status == 429
    frees.pop()()
    frees.append(await slots.take("four"))
    while frees:
        frees.pop()()
    del caught  # its traceback knows the slots
    await asyncio.sleep(0)
    gc.collect()
    assert not slots._of_org


async def test_a_file_that_is_still_being_read_has_its_slot_when_its_caller_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.gateway.jobs.submit._BUSY_S", 0.05)
    ended = threading.Event()

    def slowly(*_: object) -> RequestFacts:
        assert ended.wait(10)
        raise RequestRefusedError("invalid_request", "input_file_id", "no line of it can be read")

    monkeypatch.setattr("services.gateway.jobs.submit.read_input", slowly)
    async with world(tmp_path, vendor_timeout_s=0.2) as inner:
        inner.answer(ScriptedAnswer([b"{}"]), ScriptedAnswer([b"{}"]))
        assert (await inner.call(SUBMITTED, path="/v1/batches")).status == 504
        assert (await inner.call(SUBMITTED, path="/v1/batches")).status == 429
        ended.set()
        monkeypatch.setattr("services.gateway.jobs.submit._BUSY_S", 5.0)
        assert (await inner.call(SUBMITTED, path="/v1/batches")).status == 400
