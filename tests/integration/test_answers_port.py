"""`core.answers.Answers`: one suite over both implementations, in memory and in a real Valkey."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from services.adapters.memory_answers import MemoryAnswers
from services.adapters.valkey import ValkeyHotState
from services.adapters.valkey_answers import ValkeyAnswers
from services.adapters.valkey_connection import ValkeyConnection
from services.core.answers import Answer, Answers, decode_answer, encode_answer
from services.core.hotstate import OrgImage

ORG, NAME, LONG_MS = "acme", "rsv_1", 60_000
ANSWER = Answer("a hash", 1, '{"held_usd":"0.400000000","of":"Zürich"}')
EMPTY = OrgImage({}, {}, {}, {})


@dataclass
class AnswersRig:
    """Answers, and a way to let time pass: that of a server's keys can't be turned, so there it is waited for."""

    answers: Answers
    is_real: bool
    now_ms: int = 1_000

    async def wait(self, wait_ms: int) -> None:
        self.now_ms += wait_ms
        if self.is_real:
            await asyncio.sleep(wait_ms / 1000)


@pytest.fixture(params=["memory", "valkey"])
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[AnswersRig]:
    built: AnswersRig
    if request.param == "memory":
        built = AnswersRig(MemoryAnswers(lambda: built.now_ms), False)
        yield built
        return
    connection = ValkeyConnection(request.getfixturevalue("valkey_url"))
    yield AnswersRig(ValkeyAnswers(connection), True)
    await connection.close()


def test_an_answer_comes_back_as_it_was() -> None:
    assert decode_answer(encode_answer(ANSWER)) == ANSWER


async def test_a_name_is_claimed_by_one_of_many(rig: AnswersRig) -> None:
    told = await asyncio.gather(*(rig.answers.claim(ORG, NAME, f"hash {number}", LONG_MS) for number in range(10)))
    (winner,) = (number for number, each in enumerate(told) if each is None)
    assert {each for each in told if each is not None} == {Answer(f"hash {winner}")}
    assert await rig.answers.find(ORG, NAME) == Answer(f"hash {winner}")


async def test_what_was_finished_is_told_to_whoever_claims(rig: AnswersRig) -> None:
    assert await rig.answers.claim(ORG, NAME, "a hash", LONG_MS) is None
    await rig.answers.finish(ORG, NAME, ANSWER, LONG_MS)
    assert await rig.answers.claim(ORG, NAME, "another", LONG_MS) == ANSWER
    assert await rig.answers.find(ORG, NAME) == ANSWER


async def test_a_claim_that_lapsed_is_open_to_the_next(rig: AnswersRig) -> None:
    assert await rig.answers.claim(ORG, NAME, "a hash", 40) is None
    assert await rig.answers.claim(ORG, NAME, "another", LONG_MS) == Answer("a hash")
    await rig.wait(80)
    assert await rig.answers.find(ORG, NAME) is None
    assert await rig.answers.claim(ORG, NAME, "another", LONG_MS) is None


async def test_an_answer_outlives_its_claim_and_not_its_own_time(rig: AnswersRig) -> None:
    assert await rig.answers.claim(ORG, NAME, "a hash", 40) is None
    await rig.answers.finish(ORG, NAME, ANSWER, 400)
    await rig.wait(100)
    assert await rig.answers.find(ORG, NAME) == ANSWER
    await rig.wait(500)
    assert await rig.answers.find(ORG, NAME) is None


async def test_a_claim_that_is_dropped_is_open(rig: AnswersRig) -> None:
    assert await rig.answers.claim(ORG, NAME, "a hash", LONG_MS) is None
    await rig.answers.drop(ORG, NAME, "a hash")
    await rig.answers.drop(ORG, "nothing of that name", "a hash")
    assert await rig.answers.claim(ORG, NAME, "another", LONG_MS) is None


async def test_whoever_was_too_slow_drops_no_claim_of_another(rig: AnswersRig) -> None:
    assert await rig.answers.claim(ORG, NAME, "a hash", 40) is None
    await rig.wait(80)
    assert await rig.answers.claim(ORG, NAME, "another", LONG_MS) is None
    await rig.answers.drop(ORG, NAME, "a hash")
    assert await rig.answers.find(ORG, NAME) == Answer("another")


async def test_an_answer_is_not_dropped_with_its_claim(rig: AnswersRig) -> None:
    """Whoever was slow and failed takes back its claim, and another may have answered meanwhile."""
    await rig.answers.finish(ORG, NAME, ANSWER, LONG_MS)
    await rig.answers.drop(ORG, NAME, ANSWER.request_hash)
    assert await rig.answers.find(ORG, NAME) == ANSWER


async def test_an_answer_gives_way_to_a_later_one_alone(rig: AnswersRig) -> None:
    """Whoever gave up may still be written, long after another was told."""
    assert await rig.answers.claim(ORG, NAME, "a hash", LONG_MS) is None
    for status, there in ((2, 2), (2, 2), (1, 2), (1_800_000_000_000, 1_800_000_000_000), (3, 1_800_000_000_000)):
        told = await rig.answers.finish(ORG, NAME, Answer("a hash", status, f"{status} at first"), LONG_MS)
        assert told == await rig.answers.find(ORG, NAME) == Answer("a hash", there, f"{there} at first")


async def test_an_answer_that_gives_way_to_none_lapses_all_the_same(rig: AnswersRig) -> None:
    await rig.answers.finish(ORG, NAME, ANSWER, 40)
    assert await rig.answers.finish(ORG, NAME, Answer("another", 1), LONG_MS) == ANSWER
    await rig.wait(80)
    assert await rig.answers.finish(ORG, NAME, Answer("another", 1), LONG_MS) == Answer("another", 1)


async def test_orgs_and_names_are_apart(rig: AnswersRig) -> None:
    await rig.answers.finish(ORG, NAME, ANSWER, LONG_MS)
    assert await rig.answers.find("other", NAME) is None
    assert await rig.answers.find(ORG, NAME + "/end") is None
    assert await rig.answers.claim("other", NAME, "a hash", LONG_MS) is None


async def test_answers_outlive_a_rebuild_of_their_org(valkey_url: str) -> None:
    connection = ValkeyConnection(valkey_url)
    hot_state, answers = ValkeyHotState(connection), ValkeyAnswers(connection)
    assert await hot_state.load(ORG, EMPTY, "epoch-1")
    await answers.finish(ORG, NAME, ANSWER, LONG_MS)
    await connection.execute("DEL", f"{{{ORG}}}:epoch")
    assert await hot_state.load(ORG, EMPTY, "epoch-2")
    assert await answers.find(ORG, NAME) == ANSWER
    await connection.close()
