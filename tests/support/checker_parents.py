"""BU-3: whoever is left out has somebody above it that pays, by the independent model."""

from collections.abc import Iterator, Mapping
from typing import Any

from tests.support.checker import Verdict

Fields = Mapping[str, Any]
# What was published of one org, by version and budget.
Versions = Mapping[int, Mapping[str, Fields]]


def check_payers(verdict: Verdict, versions: Versions) -> Iterator[str]:
    """A full child that was left out of a charge has let a budget above it pay, or a part that covers such a one.

    A hold is changed by the configuration of then, and its events stay of the one that it was made under: above a
    budget is what was so in any configuration since.
    """
    for name, each in verdict.transactions.items():
        for event in (each.reservation, each.settlement):
            if event is None:
                continue
            charged = {charge["budget_id"].partition("@")[0] for charge in event["charges"]}
            known = versions[event["config_version"]]
            paying = charged.union(*(known[part]["covers"] for part in charged if part in known))
            for left_out in event["parent_charged"]:
                if not paying & _above(left_out.partition("@")[0], event["config_version"], versions):
                    yield f"{name} left out {left_out}, and nobody above it pays"


def _above(budget_id: str, since_version: int, versions: Versions) -> set[str]:
    found: set[str] = set()
    for version, budgets in versions.items():
        below = budgets.get(budget_id)
        while version >= since_version and below is not None and below["parent_id"] is not None:
            found.add(below["parent_id"])
            below = budgets.get(below["parent_id"])
    return found
