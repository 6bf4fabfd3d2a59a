"""Expressions see each call as it is, however calls and expressions follow one another."""

from typing import Any

import pytest

from services.adapters.cel import Cel
from services.core.matching import CONTEXT_FIELDS, ExpressionError


def context(**fields: Any) -> dict[str, Any]:
    return {name: [] if name == "tags" else "" for name in CONTEXT_FIELDS} | fields


def test_each_call_is_seen_as_it_is() -> None:
    is_ml, is_batch = Cel().compile('team == "ml"'), Cel().compile('"batch" in tags')
    calls = [context(team="ml"), context(tags=["batch"]), context(), context(team="ml", tags=["a", "batch"])]
    for _ in range(2):
        assert [is_ml(each) for each in calls] == [True, False, False, True]
        assert [is_batch(each) for each in calls] == [False, True, False, True]
        assert [(is_ml(each), is_batch(each)) for each in reversed(calls)] == [
            (True, True), (False, False), (False, True), (True, False),
        ]  # fmt: skip


def test_a_call_that_changes_is_seen_anew() -> None:
    is_ml, is_batch = Cel().compile('team == "ml"'), Cel().compile('"batch" in tags')
    call = context(tags=["a"])
    assert (is_ml(call), is_batch(call)) == (False, False)
    call["tags"].append("batch")
    assert (is_ml(call), is_batch(call)) == (False, True)
    call["team"] = "ml"
    assert (is_ml(call), is_batch(call)) == (True, True)


def test_the_name_a_macro_binds_is_not_left_to_the_next_expression() -> None:
    assert Cel().compile('tags.exists(user, user == "x")')(context(tags=["x"], user="ann"))
    assert Cel().compile('user == "ann"')(context(tags=["x"], user="ann"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("team ==", "."),
        ("teem == 'ml'", "unknown name 'teem'"),
        ("team", "gives str"),
        ("team == 'ml' ? 1 : 2", "gives int"),
        ("a" * 1_001, "at most 1000"),
        ("", "."),
        ("tags.all(a, tags.all(b, tags.all(c, a == b || b == c)))", "2 in each other"),
        ("tags.all(a, tags.all (b, tags.exists(c, a == b || b == c)))", "2 in each other"),
        ("tags.all(a, a != ')' && tags.all(b, b != ')' && tags.all(c, a == b)))", "2 in each other"),
        (" || ".join(["tags.exists(t, t == 'x')"] * 5), "4 times"),
    ],
)
def test_what_is_no_condition_is_refused(text: str, says: str) -> None:
    with pytest.raises(ExpressionError, match=says) as caught:
        Cel().compile(text)
    assert 0 < len(str(caught.value)) <= 400


def test_macros_that_are_not_in_each_other_are_no_burden() -> None:
    pairs = "tags.exists(a, tags.exists(b, a != b))"
    assert Cel().compile(f"{pairs} && {pairs}")(context(tags=["x", "y"]))
    assert Cel().compile("team == 'all(all(all('")(context(team="all(all(all("))


def test_an_error_of_one_call_is_an_error_and_leaves_the_next_alone() -> None:
    is_third = Cel().compile("session == '' || int(session) == 3")
    assert is_third(context(session="3"))
    with pytest.raises(ExpressionError):
        is_third(context(session="three"))
    assert not is_third(context(session="4"))
    assert is_third(context())
