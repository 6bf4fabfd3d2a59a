"""Which budgets a call falls under: every scope, every ancestor, expressions last, and never too few (BU-1, BU-3)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.adapters.cel import Cel
from services.core.budgets import EACH, MAX_BUDGETS_PER_CALL, MAX_DEPTH, SCOPE_KINDS, Budget, Proposal, ScopeKind
from services.core.events import CallFacts
from services.core.identity import Identity
from services.core.matching import (
    CONTEXT_FIELDS,
    BudgetIndex,
    ExpressionError,
    Predicate,
    TooManyBudgetsError,
    asks_for_session,
    context_of,
    instance_id,
    proposals_for,
)
from services.core.parts import ROUTE as PART_ROUTE
from services.core.parts import VENDOR as PART_VENDOR
from services.core.windows import (
    CalendarSpan,
    CalendarWindow,
    LifetimeWindow,
    RollingWindow,
    SessionSpan,
    SessionWindow,
)

DAY = CalendarWindow("day", "UTC")
WHO = Identity(
    org="acme",
    key_id="key_1",
    team="ml",
    agent="crawler",
    user="ada@example.org",
    project="apollo",
    session="ses-1",
    environment="prod",
    tags=("nightly", "eval"),
)
CALL = CallFacts(
    identity=WHO,
    vendor="openai",
    route="chat.completions",
    model_requested="gpt-4o",
    model_priced="gpt-4o",
    match="exact",
    catalog_version="v1",
    config_version=1,
)
BARE = replace(CALL, identity=Identity("acme", "key_1"))
# One value of each kind that `CALL` is in.
VALUES: Mapping[ScopeKind, str] = {
    "org": "acme",
    "environment": "prod",
    "billing_class": "metered.openai",
    "vendor": "openai",
    "model": "gpt-4o",
    "tag": "eval",
    "team": "ml",
    "project": "apollo",
    "user": "ada@example.org",
    "agent": "crawler",
    "key": "key_1",
    "session": "ses-1",
}


def budget(budget_id: str, kind: ScopeKind = "org", value: str = "acme", **changes: Any) -> Budget:
    return Budget(budget_id, kind, value, changes.pop("window", DAY), changes.pop("limit_nano", 1), **changes)


def ids(*budgets: Budget, facts: CallFacts = CALL, models: tuple[str, ...] = ()) -> list[str]:
    return [each.budget_id for each in BudgetIndex(budgets, Cel()).matching(facts, models).applicable]


# ---- scopes ---------------------------------------------------------------------------------------------------------


def test_there_is_a_value_of_every_scope_here() -> None:
    assert set(VALUES) | {"cel"} == set(SCOPE_KINDS)


@pytest.mark.parametrize(("kind", "value"), VALUES.items())
def test_a_call_falls_under_the_budget_of_its_own_value_and_of_no_other(kind: ScopeKind, value: str) -> None:
    assert ids(budget("bud_own", kind, value), budget("bud_other", kind, value + "x")) == ["bud_own"]


@pytest.mark.parametrize(("kind", "value"), VALUES.items())
def test_a_budget_of_each_value_is_one_of_its_own_for_every_value(kind: ScopeKind, value: str) -> None:
    (found, *more) = BudgetIndex([budget("bud_each", kind, EACH)]).matching(CALL).applicable
    assert (found.budget_id, found.scope) == (instance_id("bud_each", value), f"{kind}:{value}")
    assert [each.scope for each in more] == (["tag:nightly"] if kind == "tag" else [])


@pytest.mark.parametrize("kind", ["environment", "tag", "team", "project", "user", "agent", "session"])
def test_what_a_call_leaves_open_matches_nothing(kind: ScopeKind) -> None:
    assert ids(budget("bud_1", kind, VALUES[kind]), budget("bud_2", kind, EACH), facts=BARE) == []


def test_one_name_of_two_kinds_is_told_apart() -> None:
    facts = replace(CALL, identity=Identity("acme", "key_1", agent="same"))
    assert ids(budget("bud_1", "team", "same"), budget("bud_2", "agent", "same"), facts=facts) == ["bud_2"]


def test_budgets_come_from_the_widest_to_the_narrowest_and_then_by_id() -> None:
    named = [budget(f"bud_{kind}", kind, value) for kind, value in VALUES.items()]
    twins = [budget("bud_a", "team", "ml"), budget("bud_z", "team", "ml"), budget("bud_m", "team", EACH)]
    cel = budget("bud_cel", "cel", "everything", expression="true")
    found = ids(cel, *twins, *reversed(named))
    assert found == [
        *("bud_org", "bud_environment", "bud_billing_class", "bud_vendor", "bud_model", "bud_tag"),
        *("bud_a", "bud_m@ml", "bud_team", "bud_z", "bud_project", "bud_user", "bud_agent", "bud_key", "bud_session"),
        "bud_cel",
    ]


def test_a_model_budget_caps_what_is_priced_as_its_model_under_any_spelling() -> None:
    dated = replace(CALL, model_requested="openai/gpt-4o-2024-08-06", match="normalised")
    assert ids(budget("bud_1", "model", "gpt-4o"), facts=dated) == ["bud_1"]
    assert ids(budget("bud_1", "model", "openai/gpt-4o-2024-08-06"), facts=dated) == ["bud_1"]


@pytest.mark.parametrize("asked", ["gpt-4o-2024-08-06", "OpenAI/gpt-4o-2024-08-06", "models/gpt-4o-2024-08-06"])
@pytest.mark.parametrize("name", ["gpt-4o-2024-08-06", "GPT-4o-2024-08-06"])
def test_a_model_has_its_budget_with_its_vendors_prefix_and_in_capitals_too(asked: str, name: str) -> None:
    facts = replace(CALL, model_requested=asked, match="normalised")
    assert ids(budget("bud_1", "model", name), facts=facts) == ["bud_1"]
    assert ids(budget("bud_1", "model", name), models=(asked,)) == ["bud_1"]
    assert ids(budget("bud_1", "model", name), facts=replace(facts, model_requested="gpt-4o-2024-08-07")) == []


def test_a_budget_of_each_model_takes_a_model_by_its_names_as_they_are_written() -> None:
    facts = replace(CALL, model_requested="openai/Llama", match="none")
    assert ids(budget("bud_1", "model", EACH), facts=facts) == ["bud_1@Llama", "bud_1@openai/Llama"]


def test_a_model_whose_price_only_stands_in_is_not_charged() -> None:
    unknown = replace(CALL, model_requested="brand-new", match="fallback")
    assert ids(budget("bud_1", "model", "gpt-4o"), budget("bud_2", "model", "brand-new"), facts=unknown) == ["bud_2"]


def test_every_model_of_a_batch_is_matched() -> None:
    index = [budget("bud_1", "model", "dear"), budget("bud_2", "model", "gpt-4o"), budget("bud_3", "model", "other")]
    assert ids(*index, models=("gpt-4o", "dear")) == ["bud_1", "bud_2"]


def test_a_call_of_no_model_is_in_no_budget_of_each_model() -> None:
    assert ids(budget("bud_1", "model", EACH), facts=replace(CALL, model_requested="", model_priced="")) == []


def test_the_figures_of_a_value_have_an_id_that_can_be_written_everywhere() -> None:
    assert instance_id("bud_1", "ada@example.org") == "bud_1@ada@example.org"
    hashed = instance_id("bud_1", "a:b")
    assert hashed.startswith("bud_1@@")
    assert ":" not in hashed
    assert instance_id("bud_1", "x" * 200) != instance_id("bud_1", "x" * 199)
    assert len(instance_id("bud_1", "x" * 200)) < 60


def test_a_budget_is_found_by_the_id_of_one_of_its_values() -> None:
    index = BudgetIndex([budget("bud_1", "user", EACH)])
    for value in ("ada", "ada@example.org", "a:b"):
        found = index.find(instance_id("bud_1", value))
        assert found is not None
        assert found.budget_id == "bud_1"
    assert index.find("bud_2") is None


# ---- parents --------------------------------------------------------------------------------------------------------


def chain(length: int, kind: ScopeKind = "team", value: str = "other") -> list[Budget]:
    """`bud_0` is the deepest and matches by agent; its ancestors match nothing by themselves."""
    return [
        budget(
            f"bud_{depth}",
            "agent" if depth == 0 else kind,
            "crawler" if depth == 0 else value,
            parent_id=f"bud_{depth + 1}" if depth + 1 < length else None,
        )
        for depth in range(length)
    ]


def test_every_ancestor_of_a_match_is_charged_whether_it_matches_or_not() -> None:
    assert sorted(ids(*chain(MAX_DEPTH))) == [f"bud_{depth}" for depth in range(MAX_DEPTH)]


def test_an_ancestor_of_several_is_charged_once() -> None:
    family = [
        budget("bud_p"),
        budget("bud_a", "team", "ml", parent_id="bud_p"),
        budget("bud_b", "agent", "crawler", parent_id="bud_p"),
        budget("bud_c", "user", EACH, parent_id="bud_p"),
    ]
    assert ids(*family) == ["bud_p", "bud_a", "bud_c@ada@example.org", "bud_b"]


def test_a_child_that_does_not_match_is_not_charged_with_its_parent() -> None:
    assert ids(budget("bud_p"), budget("bud_a", "team", "web", parent_id="bud_p")) == ["bud_p"]


def test_the_ancestors_of_an_expression_are_charged() -> None:
    assert ids(budget("bud_p", "team", "other"), budget("bud_c", "cel", "c", expression="true", parent_id="bud_p")) == [
        "bud_p",
        "bud_c",
    ]


@pytest.mark.parametrize(
    "budgets",
    [
        [budget("bud_1", parent_id="bud_gone")],
        [budget("bud_1", parent_id="bud_1")],
        [budget("bud_1", parent_id="bud_2"), budget("bud_2", parent_id="bud_1")],
        [budget("bud_1", parent_id="bud_2"), budget("bud_2", "user", EACH)],
        chain(MAX_DEPTH + 1),
    ],
    ids=["missing", "itself", "a circle", "of each value", "too deep"],
)
def test_parents_that_can_not_be_are_refused(budgets: list[Budget]) -> None:
    with pytest.raises(ValueError, match=r"bud_[01]"):
        BudgetIndex(budgets)


# ---- expressions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "matches"),
    [
        ('team == "ml"', True),
        ('team == "web"', False),
        ('"eval" in tags && vendor == "openai"', True),
        ('tags.exists(tag, tag == "nightly")', True),
        ('model.startsWith("gpt-") && billing_class == "metered.openai"', True),
        ('route == "embeddings" || environment == "prod"', True),
        ('user == "" || session == ""', False),
    ],
)
def test_an_expression_matches_by_what_it_says(expression: str, matches: bool) -> None:
    assert ids(budget("bud_1", "cel", "name", expression=expression)) == (["bud_1"] if matches else [])


def test_an_expression_sees_what_is_left_open_as_empty() -> None:
    everything = " && ".join(f'{name} == ""' for name in ("team", "agent", "user", "project", "session", "environment"))
    assert ids(budget("bud_1", "cel", "open", expression=everything + " && size(tags) == 0"), facts=BARE) == ["bud_1"]


def test_the_context_has_the_documented_names() -> None:
    assert context_of(CALL).keys() == CONTEXT_FIELDS


def test_an_expression_that_fails_counts_as_a_match_and_is_flagged() -> None:
    index = BudgetIndex(
        [
            budget("bud_fails", "cel", "a", expression='tags[0] == "x"'),
            budget("bud_true", "cel", "b", expression="true"),
        ],
        Cel(),
    )
    found = index.matching(BARE)
    assert [each.budget_id for each in found.applicable] == ["bud_fails", "bud_true"]
    assert found.flags == ("expression_error:bud_fails",)
    assert index.matching(BARE) == found, "what is remembered of a context is the same"
    fine = index.matching(CALL)
    assert ([each.budget_id for each in fine.applicable], fine.flags) == (["bud_true"], ())


class Counting:
    """`matching.Expressions` whose expressions are true for the vendors that they name, and count their calls."""

    def __init__(self) -> None:
        self.calls = 0

    def compile(self, text: str) -> Predicate:
        def evaluate(context: Mapping[str, Any]) -> bool:
            self.calls += 1
            return bool(context["vendor"] == text)

        return evaluate


def test_calls_alike_are_evaluated_once_and_others_again() -> None:
    counting = Counting()
    index = BudgetIndex([budget("bud_1", "cel", "a", expression="openai")], counting)
    assert [len(index.matching(CALL).applicable) for _ in range(5)] == [1] * 5
    assert counting.calls == 1
    changes: list[dict[str, Any]] = [
        {"identity": replace(WHO, session="ses-2")},
        {"vendor": "groq"},
        {"route": "embeddings"},
        {"model_requested": "gpt-4o-mini"},
        {"auth_mode": "byok"},
    ]
    for number, change in enumerate(changes, 2):
        expected = 0 if "vendor" in change else 1
        assert len(index.matching(replace(CALL, **change)).applicable) == expected
        assert counting.calls == number


def test_so_many_contexts_are_remembered_and_no_more() -> None:
    index = BudgetIndex([budget("bud_1", "cel", "a", expression="openai")], Counting())
    for number in range(3000):
        index.matching(replace(CALL, model_requested=f"m{number}"))
    assert len(index._expressions_known) == 1024


def test_an_expression_that_can_not_be_compiled_is_refused() -> None:
    with pytest.raises(ExpressionError, match="unknown name 'nobody'"):
        BudgetIndex([budget("bud_1", "cel", "a", expression='nobody == "x"')], Cel())
    with pytest.raises(ExpressionError, match="bud_1"):
        BudgetIndex([budget("bud_1", "cel", "a", expression="true")])


def test_an_expression_sees_every_name_of_the_models_that_a_call_asks_for_and_is_priced_as() -> None:
    index = BudgetIndex([budget("bud_1", "cel", "a", expression='model == "gpt-4o"')], Cel())
    mini = replace(CALL, model_requested="gpt-4o-mini", model_priced="gpt-4o-mini")
    assert [len(index.matching(mini, names).applicable) for names in ((), ("gpt-4o-mini", "gpt-4o"), ())] == [0, 1, 0]
    dated = replace(CALL, model_requested="gpt-4o-2024-08-06", match="normalised")
    assert len(index.matching(dated).applicable) == 1
    assert len(index.matching(replace(dated, match="default")).applicable) == 0, "a price that only stands in"
    assert len(index.matching(replace(BARE, model_requested="", model_priced=""), ("gpt-4o",)).applicable) == 1


def test_an_expression_that_speaks_of_no_model_is_evaluated_once_for_all_names() -> None:
    counting = Counting()
    index = BudgetIndex([budget("bud_1", "cel", "a", expression="groq")], counting)
    index.matching(CALL, tuple(f"m{number}" for number in range(100)))
    assert counting.calls == 1


def test_an_expression_that_fails_for_one_of_many_names_is_flagged_once() -> None:
    index = BudgetIndex([budget("bud_1", "cel", "a", expression='model == "a" ? false : tags[0] == model')], Cel())
    found = index.matching(replace(BARE, model_requested="a", model_priced="a"), ("b", "c"))
    assert ([each.budget_id for each in found.applicable], found.flags) == (["bud_1"], ("expression_error:bud_1",))


# ---- limits and sessions --------------------------------------------------------------------------------------------


def test_so_many_budgets_and_no_more_are_held_against() -> None:
    budgets = [budget(f"bud_{number}", "team", "ml") for number in range(MAX_BUDGETS_PER_CALL + 1)]
    assert len(ids(*budgets[:-1])) == MAX_BUDGETS_PER_CALL
    with pytest.raises(TooManyBudgetsError, match="65 budgets, and one call can be held against 64") as caught:
        ids(*budgets)
    assert caught.value.count == MAX_BUDGETS_PER_CALL + 1


def test_a_session_is_asked_for_where_a_budget_caps_each_and_does_more_than_watch() -> None:
    session = budget("bud_s", window=SessionWindow())
    watching = budget("bud_w", window=SessionWindow(), enforcement="monitor")
    needy = asks_for_session(BudgetIndex([session, watching]).matching(CALL))
    assert needy is not None
    assert needy.budget_id == "bud_s"
    for changes in ({"when_full": "downgrade", "downgrade_to": "m"}, {"parent_id": "bud_p", "child_mode": "fallback"}):
        index = BudgetIndex([budget("bud_p"), budget("bud_s", window=SessionWindow(), **changes)])
        assert asks_for_session(index.matching(BARE)) is not None, changes
    only = BudgetIndex([watching, budget("bud_d")]).matching(BARE)
    assert asks_for_session(only) is None
    assert [each.budget_id for each in proposals_for(only, None, 0)] == ["bud_d"]


def test_a_full_child_lets_only_those_pay_that_the_call_is_charged_to() -> None:
    """A parent of sessions that only watches does not see a call of no session, and can't pay for it."""
    child = budget("bud_c", "team", "ml", parent_id="bud_w", child_mode="fallback")
    watching = budget("bud_w", "team", "none", window=SessionWindow(), enforcement="monitor")
    part = budget("sub_1", "key", "key_1", covers=("bud_w", "bud_p"))

    def rules(call: CallFacts, session: str | None, *budgets: Budget) -> dict[str, str]:
        proposals = proposals_for(BudgetIndex(budgets).matching(call), session, 0)
        return {each.budget_id: each.full_rule for each in proposals}

    assert rules(CALL, None, child, watching) == {"bud_c": "block"}
    assert rules(CALL, "ses-1", child, watching) == {"bud_c": "parent", "bud_w": "pass"}
    above = replace(watching, parent_id="bud_p"), budget("bud_p", "team", "none")
    assert rules(CALL, None, child, *above) == {"bud_c": "parent", "bud_p": "block"}
    assert rules(CALL, None, child, *above, part) == {"bud_c": "parent", "sub_1": "block"}
    assert rules(CALL, None, child, watching, replace(part, covers=("bud_x",))) == {"bud_c": "block", "sub_1": "block"}


def test_proposals_carry_the_window_the_rule_and_the_value_of_a_budget() -> None:
    index = BudgetIndex(
        [
            budget("bud_s", "user", EACH, window=SessionWindow(), limit_nano=7, enforcement="monitor"),
            budget("bud_l", window=LifetimeWindow(), when_full="downgrade", downgrade_to="gpt-4o-mini"),
            budget("bud_r", "team", "ml", window=RollingWindow(3_600_000)),
        ]
    )
    lifetime, rolling, session = proposals_for(index.matching(CALL), "ses-1", 90_000_000)
    assert session == Proposal("bud_s@ada@example.org", "user:ada@example.org", SessionSpan("ses-1"), 7, "pass")
    assert (lifetime.span.key(), lifetime.full_rule) == ("l", "downgrade")
    assert (rolling.span.key(), rolling.full_rule) == ("r:60000:60:1500", "block")
    (day,) = proposals_for(BudgetIndex([budget("bud_d")]).matching(CALL), None, 90_000_000)
    assert day.span == CalendarSpan(86_400_000, 172_800_000)


# ---- against the plain reading of the rules -------------------------------------------------------------------------

scopes = st.sampled_from(
    [("team", "ml"), ("team", "web"), ("user", EACH), ("org", "acme"), ("tag", EACH), ("tag", "eval")]
)


@given(st.lists(scopes, min_size=1, max_size=7), st.data())
def test_the_index_finds_what_looking_at_every_budget_finds(
    chosen: list[tuple[ScopeKind, str]], data: st.DataObject
) -> None:
    budgets: list[Budget] = []
    for number, (kind, value) in enumerate(chosen):
        parents = [each.budget_id for each in budgets if each.scope_value != EACH]
        parent_id = data.draw(st.none() | st.sampled_from(parents)) if parents else None
        budgets.append(budget(f"bud_{number}", kind, value, parent_id=parent_id))
    by_id = {each.budget_id: each for each in budgets}
    own = {"team": ["ml"], "user": ["ada@example.org"], "org": ["acme"], "tag": ["nightly", "eval"]}
    expected = set()
    for each in budgets:
        values = [value for value in own[each.scope_kind] if each.scope_value in (value, EACH)]
        for value in values:
            expected.add(instance_id(each.budget_id, value) if each.scope_value == EACH else each.budget_id)
        parent_id = each.parent_id if values else None
        while parent_id is not None:
            expected.add(parent_id)
            parent_id = by_id[parent_id].parent_id
    found = ids(*budgets)
    assert sorted(found) == sorted(expected)


# ---- the carving of a part ------------------------------------------------------------------------------------------

PART = replace(
    CALL, vendor=PART_VENDOR, route=PART_ROUTE, model_requested="", model_priced="", match="none", auth_mode="metered"
)
# What a budget says of vendors, models and billing classes alone.
OF_CALLS: Mapping[ScopeKind, str] = {
    "vendor": PART_VENDOR,
    "billing_class": f"metered.{PART_VENDOR}",
    "model": "gpt-4o",
}


@pytest.mark.parametrize("kind", OF_CALLS)
def test_a_part_is_carved_from_no_budget_that_only_calls_fall_under(kind: ScopeKind) -> None:
    umbrella = budget("bud_umbrella", "team", "other")
    named = budget("bud_named", kind, OF_CALLS[kind], parent_id="bud_umbrella", is_cap=kind == "billing_class")
    each = budget("bud_each", kind, EACH)
    assert ids(umbrella, named, each, budget("bud_org"), facts=PART) == ["bud_org"]
    assert ids(umbrella, named, each, facts=PART, models=("gpt-4o",)) == []


@pytest.mark.parametrize("kind", sorted(set(VALUES) - set(OF_CALLS)))
def test_a_part_is_carved_from_all_else_that_its_maker_falls_under(kind: ScopeKind) -> None:
    found = ids(budget("bud_own", kind, VALUES[kind]), budget("bud_each", kind, EACH), facts=PART)
    assert "bud_own" in found
    assert instance_id("bud_each", VALUES[kind]) in found


@pytest.mark.parametrize(
    ("expression", "is_carved"),
    [
        ('team == "ml"', True),
        ('team == "vendor"', False),
        ('vendor == "openai"', False),
        ('vendor != "openai"', False),
        ('auth_mode == "metered"', False),
        ('!billing_class.startsWith("byok")', False),
        ('route == "delegation"', False),
        ('model == ""', False),
        ('team == "ml" || vendor == "openai"', True),
        ('vendor == "openai" || team == "ml"', True),
        ('team == "ml" && vendor == "openai"', False),
        ('"eval" in tags', True),
        ('environment == "prod" ? tags[7] == "x" : true', False),
    ],
)
def test_a_part_is_carved_from_an_expression_that_is_true_of_all_its_calls(expression: str, is_carved: bool) -> None:
    index = BudgetIndex([budget("bud_1", "cel", "name", expression=expression)], Cel())
    for _ in range(2):
        found = index.matching(PART)
        assert ([each.budget_id for each in found.applicable], found.flags) == (["bud_1"] if is_carved else [], ())


def test_what_a_part_was_not_carved_from_caps_its_calls() -> None:
    part = budget("sub_1", "key", "key_1", covers=("bud_org", "bud_umbrella"))
    umbrella = budget("bud_umbrella", "team", "ml")
    vendor = budget("bud_vendor", "vendor", EACH, parent_id="bud_umbrella")
    cel = budget("bud_cel", "cel", "name", expression='vendor == "openai"')
    found = ids(part, umbrella, vendor, cel, budget("bud_org"), budget("cap_1", "billing_class", "metered.openai"))
    assert found == ["cap_1", "bud_vendor@openai", "sub_1", "bud_cel"]
