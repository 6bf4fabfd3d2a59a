"""What hot state and ledger say once all is quiet, held against the books."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from tests.chaos.rounds.arena import Arena
from tests.chaos.rounds.books import Books
from tests.chaos.rounds.judging import Limits
from tests.support.agreement import hot_figures
from tests.support.checker import nano

_PAGE: Final = 500


@dataclass
class Agreement:
    """Money in nano-dollars that hot state and ledger do not have, or have too much of; and in words what differs."""

    missing: int = 0
    too_much: int = 0
    findings: list[str] = field(default_factory=list)

    def compare(self, what: str, has: int, meant: int) -> None:
        """One figure, and what the log means it to be."""
        if has != meant:
            self.findings.append(f"{what} is {has}, and the log says {meant}")
            self.missing = max(self.missing, meant - has)
            self.too_much = max(self.too_much, has - meant)


def read_audit(made: Arena, limits: Limits, since_entry: int) -> int:
    """Takes the audit's new entries into the limits; the last entry there is."""
    entries: list[dict[str, Any]] = []
    cursor: int | None = None
    while True:
        page = made.cluster.admin("GET", f"/api/v1/audit?limit={_PAGE}" + (f"&before={cursor}" if cursor else ""))
        entries += [each for each in page["entries"] if each["entry_id"] > since_entry]
        cursor = page["next"]
        if cursor is None or page["entries"][-1]["entry_id"] <= since_entry:
            break
    for entry in sorted(entries, key=lambda each: int(each["entry_id"])):
        limits.take(entry)
    return max([since_entry, *(int(each["entry_id"]) for each in entries)])


async def end_parts(made: Arena, limits: Limits) -> None:
    """Ends the parts whose holders could not: they would be held for an hour."""
    headers = {"authorization": f"Bearer {made.cluster.admin_key}"}
    async with httpx.AsyncClient(headers=headers, timeout=20, base_url=made.cluster.url()) as client:
        for budget_id in sorted(limits.open_parts):
            answer = await client.post(f"/v1/budgets/{budget_id}/end", json={})
            assert answer.status_code == 200, answer.text


class Rest:
    """Compares, each time all is quiet. Rows of the ledger are read once, its sum each time."""

    def __init__(self, made: Arena) -> None:
        self._made = made
        self._compared: set[str] = set()

    async def agreement(self, books: Books) -> Agreement:
        """How hot state and ledger agree with the log now."""
        found = Agreement()
        await asyncio.to_thread(self._compare_hot_state, books, found)
        await asyncio.to_thread(self._compare_ledger, books, found)
        return found

    def _compare_hot_state(self, books: Books, found: Agreement) -> None:
        spent, held = hot_figures(self._made.cluster.redis_url)
        for budget_id in sorted(spent.keys() | books.spent.keys()):
            found.compare(f"spent of {budget_id}", spent.get(budget_id, 0), books.spent.get(budget_id, 0))
        for budget_id, amount in held.items():
            found.compare(f"held of {budget_id}, when nothing is open,", amount, 0)

    def _compare_ledger(self, books: Books, found: Agreement) -> None:
        headers = {"authorization": f"Bearer {self._made.cluster.admin_key}"}
        with httpx.Client(headers=headers, timeout=60, base_url=self._made.cluster.url("ledger")) as client:
            rows = self._new_rows(client, books)
            total = _get(client, "/v1/spend", {"window": "30d", "by": "vendor"})["total"]
        for name, call in books.calls.items():
            if name in self._compared or not (call.opened or call.is_denied):
                continue
            self._compared.add(name)
            row = rows.pop(name, None)
            if row is None:
                found.findings.append(f"the ledger does not have {name}")
            elif call.cost is not None and nano(row["cost_usd"]) != call.cost:
                found.compare(f"the ledger's cost of {name}", nano(row["cost_usd"]), call.cost)
        unknown = [name for name in rows if name not in self._compared]
        found.findings += [f"the ledger has {name}, and the log does not" for name in unknown]
        # What a part has cost is the cost of its calls.
        parts = sum(call.counted for name, call in books.calls.items() if name.startswith("dlg_"))
        found.compare("the ledger's sum", nano(total["cost_usd"]), books.total() - parts)

    def _new_rows(self, client: httpx.Client, books: Books) -> dict[str, Any]:
        """The ledger's transactions, newest first, down to where everything was compared before."""
        rows: dict[str, Any] = {}
        cursor: str | None = ""
        while cursor is not None:
            params = {"limit": str(_PAGE)} | ({"cursor": cursor} if cursor else {})
            page = _get(client, "/v1/transactions", params)
            rows |= {row["transaction_id"]: row for row in page["transactions"]}
            cursor = page["next_cursor"]
            if all(row["transaction_id"] in self._compared for row in page["transactions"]):
                break
        return rows


def _get(client: httpx.Client, path: str, params: Mapping[str, str]) -> dict[str, Any]:
    answer = client.get(path, params=params)
    assert answer.status_code == 200, answer.text
    fields: dict[str, Any] = answer.json()
    return fields
