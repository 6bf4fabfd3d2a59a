"""The ledger's image as the aggregator reads it, from the very JSON the ledger writes."""

import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from services.adapters.ledger_http import HttpLedgerView, LedgerAnswerError
from services.core.budgets import Charge
from services.core.hotstate import Hold, OrgImage
from services.core.ports import LedgerImage, TopicPartition, UnavailableError
from tests.support.ledger_stand_in import LedgerStandIn

PLACE = TopicPartition("spend.settlements.v1", 3)
CHARGES = (Charge("bud_1", "org:default", "c:0:1000"),)
IMAGE = LedgerImage(
    {PLACE: 7},
    OrgImage(
        spent_nano={("bud_1", "c:0:1000"): 2**60 + 1, ("bud_2", "r:60000:60:3"): -5},
        holds={
            "txn_1": Hold(1000, CHARGES, '{"vendor":"sandbox"}', 99, admitted_at_ms=9),
            "txn_2": Hold(1000, CHARGES, "", 99, "expired", 1000, 9),
        },
        fences={("spend.settlements.v1", 3): 7},
        producers={("spend.settlements.v1", 3, "gw_1"): 12},
    ),
)


@pytest.fixture
def ledger() -> Iterator[LedgerStandIn]:
    with LedgerStandIn("secret") as ledger:
        yield ledger


@pytest.fixture
async def view(ledger: LedgerStandIn) -> AsyncIterator[HttpLedgerView]:
    view = HttpLedgerView(ledger.url, "secret")
    yield view
    await view.close()


async def test_an_image_arrives_as_it_was_sent(ledger: LedgerStandIn, view: HttpLedgerView) -> None:
    ledger.images["team/ä"] = IMAGE
    assert await view.org_image("team/ä") == IMAGE
    assert ledger.asked == ["/internal/v1/orgs/team%2F%C3%A4/image"]


async def test_next_offsets(ledger: LedgerStandIn, view: HttpLedgerView) -> None:
    assert await view.next_offsets() == {}
    ledger.known = IMAGE
    assert await view.next_offsets() == {PLACE: 7}


async def test_a_ledger_in_trouble_is_asked_again(ledger: LedgerStandIn, view: HttpLedgerView) -> None:
    ledger.status = 503
    with pytest.raises(UnavailableError, match="answers 503"):
        await view.org_image("default")


async def test_a_ledger_that_is_not_there_is_asked_again() -> None:
    view = HttpLedgerView("http://127.0.0.1:1", "secret")
    with pytest.raises(UnavailableError, match="the ledger: ConnectError"):
        await view.next_offsets()
    await view.close()


async def test_an_image_may_take_longer_than_the_rest(ledger: LedgerStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = ledger.answer

    def slow(path: str) -> Any:
        time.sleep(0.3)
        return answer(path)

    monkeypatch.setattr(ledger, "answer", slow)
    view = HttpLedgerView(ledger.url, "secret", timeout_s=0.1)
    assert (await view.org_image("default")).image.holds == {}
    with pytest.raises(UnavailableError, match="ReadTimeout"):
        await view.next_offsets()
    await view.close()
    view = HttpLedgerView(ledger.url, "secret", image_timeout_s=0.1)
    with pytest.raises(UnavailableError, match="ReadTimeout"):
        await view.org_image("default")
    await view.close()


async def test_another_secret_is_said_as_such(ledger: LedgerStandIn) -> None:
    view = HttpLedgerView(ledger.url, "wrong")
    with pytest.raises(LedgerAnswerError, match="same master key file"):
        await view.next_offsets()
    await view.close()


async def test_an_answer_of_another_shape_is_refused(ledger: LedgerStandIn, view: HttpLedgerView) -> None:
    ledger.status = 404
    with pytest.raises(LedgerAnswerError, match="answers 404"):
        await view.org_image("default")
    ledger.status = 200
    ledger.answer = lambda path: {"next_offsets": [{"topic": "t"}]}  # type: ignore[method-assign]
    with pytest.raises(LedgerAnswerError, match="can't be read: KeyError"):
        await view.next_offsets()
