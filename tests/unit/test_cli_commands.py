"""The commands against a stand-in for the management API: what they send, and what they print."""

import json
import os
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from services import cli
from services.commands.demo import _told
from services.embedded.data_dir import DataDir, Instance

KEY = {
    "key_id": "key_1",
    "role": "agent",
    "team": "ml",
    "agent": None,
    "user": None,
    "project": None,
    "environment": None,
    "hint": "wxyz",
    "created_at": "2026-03-01T10:20:30.456Z",
    "revoked_at": None,
}
BUDGET = {
    "budget_id": "bud_1",
    "scope": {"kind": "team", "value": "ml"},
    "limit_usd": "50.000000000",
    "window": "day",
    "zone": "Europe/Berlin",
    "week_start": None,
    "anchor_day": None,
    "anchor_month": None,
    "anchor": None,
    "estimate": "calibrated",
    "extend": True,
    "parent_id": "bud_0",
    "child_mode": "isolated",
    "enforcement": "enforce",
    "when_full": "downgrade",
    "downgrade_to": "gpt-4o-mini",
    "thresholds": [50, 90],
    "updated_at": "2026-03-01T10:20:30.456Z",
    "backfilled": False,
    "standing": {
        "spent_usd": "1.250000001",
        "held_usd": "0.000000000",
        "remaining_usd": "48.749999999",
        "resets_at": "2026-03-02T00:00:00.000Z",
    },
    "made": {"team": True, "agent": False},
}
PART = {
    "budget_id": "sub_1",
    "parent_budget_id": "bud_1",
    "limit_usd": "5.000000000",
    "expires_at": "2026-03-01T11:20:30.456Z",
    "state": "live",
}
MADE_PART = {**PART, "reservation_id": "dlg_1", "key": "fk_live_" + "p" * 40}
TRANSACTION = {
    "transaction_id": "txn_1",
    "state": "settled",
    "created_at": "2026-03-01T10:20:30.456Z",
    "identity": {"team": "ml", "agent": None},
    "model_requested": "sandbox-small",
    "held_usd": "0.000200000",
    "cost_usd": "0.000123456",
}
SPEND = {
    "rows": [{"value": None, "cost_usd": "12.5", "settled": 1234, "expired": 0, "input_tokens": 5, "output_tokens": 6}],
    "rows_left_off": 2345,
    "total": {"cost_usd": "12.500000000", "denied": 7},
}
ESTIMATES = {
    "rows": [
        {
            "vendor": "openai",
            "model": "gpt-4o",
            "route": "chat.completions",
            "estimate_mode": "calibrated",
            "settled": 1500,
            "underestimated": 3,
            "underestimated_ppm": 2000,
            "held_usd": "2.500000000",
            "cost_usd": "1.250000000",
        }
    ]
}
CONNECTION = {
    "vendor": "openai",
    "dialect": "openai",
    "base_url": "https://api.example/v1",
    "key_hint": "wxyz",
    "prices_as": "openai",
    "auth_mode": "shared",
    "updated_at": "2026-03-01T10:20:30.456Z",
}
STATUS = {
    "org": "default",
    "config_version": 3,
    "published_version": 3,
    "published": True,
    "hot_state": "warm",
    "pending_catalogs": ["beef"],
    "alarms": {"fold_gap:spend.settlements.v1:0": "offset 7 is missing"},
}
PRICE = {
    "vendor": "openai",
    "model": "gpt-4o",
    "aliases": ["gpt-4o-2024-08-06"],
    "usd": {"input": "2.500000000", "output": "10.000000000", "cache_read": "1.250000000"},
    "tiers": [{"above_input_tokens": 200_000, "usd": {"input": "5.000000000"}}],
    "max_output_tokens": 16_384,
    "context_window": 128_000,
    "match": None,
    "source": "catalog",
    "catalog_version": "cafe",
}
DETAIL = {
    **PRICE,
    "requested": "gpt-4o-latest",
    "match": "normalised",
    "periods": [{"from": None, "daily": ["16:30:00", "00:30:00"], "usd": PRICE["usd"], "tiers": PRICE["tiers"]}],
    "variants": [{"when": {"processing": "batch"}, "from": "2026-10-01", "usd": {"input": "1.250000000"}, "tiers": []}],
    "prefixes": [],
    "minimums": {},
    "also_priced_by": ["azure"],
}
PROPOSAL = {
    "proposal_id": 2,
    "version": "beef",
    "base_version": "cafe",
    "state": "pending",
    "proposed_by": "control",
    "proposed_at": "2026-03-01T10:20:30.456Z",
    "decided_by": None,
    "decided_at": None,
    "reason": None,
    "in_use": False,
}
ENTRY = {"prices": [{"usd": {"input": "2.500000000"}}]}
DIFF = {
    "old_version": "cafe",
    "new_version": "beef",
    "added": 0,
    "removed": 1,
    "changed": 1,
    "models": [
        {"vendor": "openai", "model": "gone", "kind": "removed", "fields": [], "old": ENTRY, "new": None},
        {
            "vendor": "openai",
            "model": "gpt-4o",
            "kind": "changed",
            "fields": ["prices"],
            "old": ENTRY,
            "new": {"prices": [{"usd": {"input": "3.000000000"}}]},
        },
    ],
}
OVERRIDE = {
    "override_id": 1,
    "vendor": "openai",
    "model": "gpt-4o",
    "from": "2027-01-01",
    "period": {"usd": {"input": "2.000000000"}, "tiers": [], "variants": []},
    "created_by": "key_1",
    "created_at": "2026-03-01T10:20:30.456Z",
}
NO_RULE = dict.fromkeys(("budget_status", "timeout_ms", "fallbacks", "fail_open")) | {"vendor": "*", "route": "*"}
RULE = {
    "vendor": "openai",
    "route": "chat.completions",
    "budget_status": 429,
    "timeout_ms": 1500,
    "fallbacks": [{"vendor": "groq", "model": "openai/gpt-oss"}],
    "fail_open": True,
}
CAPS_PATH = "/api/admin/billing/cap-policy/default"
CAPS = {
    "orgId": "default",
    "configVersion": 4,
    "caps": {
        "metered.openai": {"daily": "10.000000000", "monthly": None, "perSession": "0.500000000"},
        "byok.google": {"monthly": "1.000000000"},
    },
}
ORG = {
    "name": "default",
    "config_version": 3,
    "catalog_version": "cafe",
    "hold_ms": 900_000,
    "unknown_models": {"policy": "fallback_price", "priced_as": {"vendor": "openai", "model": "gpt-4o"}},
    "allow_unpriced_routes": True,
    "expired_holds": "booked",
}


class StandIn:
    """Answers by (method, path), and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Any]] = []
        self.keys: list[str | None] = []
        self.once: str | None = None
        self.answers: dict[tuple[str, str], tuple[int, Any]] = {
            ("GET", "/api/v1/keys"): (200, {"keys": [KEY]}),
            ("POST", "/api/v1/keys"): (201, {**KEY, "key": "fk_live_" + "a" * 40}),
            ("DELETE", "/api/v1/keys/key_1"): (200, KEY),
            ("GET", "/api/v1/budgets?limit=500"): (200, {"budgets": [BUDGET], "next": None}),
            ("GET", "/api/v1/budgets?kind=user&value=%2A&limit=500"): (200, {"budgets": [BUDGET], "next": None}),
            ("PUT", "/api/v1/budgets"): (200, BUDGET),
            ("GET", "/api/v1/budgets/bud_1"): (200, BUDGET),
            ("GET", "/api/v1/budgets/bud_1?value=a&session=s"): (200, BUDGET),
            ("PATCH", "/api/v1/budgets/bud_1"): (200, BUDGET),
            ("DELETE", "/api/v1/budgets/bud_1"): (204, None),
            ("POST", "/v1/budgets/bud_1/delegate"): (201, MADE_PART),
            ("POST", "/v1/budgets/sub_1/end"): (200, {"budget_id": "sub_1", "state": "ended"}),
            ("GET", "/v1/budgets/sub_1"): (200, {**PART, "spent_usd": "1.250000000", "held_usd": "0.500000000"}),
            ("GET", "/api/v1/connections"): (200, {"connections": [CONNECTION]}),
            ("PUT", "/api/v1/connections/openai"): (200, CONNECTION),
            ("DELETE", "/api/v1/connections/openai"): (204, None),
            ("GET", "/api/v1/status"): (200, STATUS),
            ("GET", "/api/v1/prices?vendor=openai&limit=1000"): (
                200,
                {"catalog_version": "cafe", "prices": [PRICE], "next": None},
            ),
            ("GET", "/api/v1/prices/models/gpt-4o-latest?vendor=openai"): (200, DETAIL),
            ("GET", "/api/v1/catalogs"): (200, {"in_use": "cafe", "shipped": "beef", "proposals": [PROPOSAL]}),
            ("GET", "/api/v1/catalogs/diff"): (200, DIFF),
            ("GET", "/api/v1/catalogs/diff?from=cafe&to=beef&vendor=openai"): (200, DIFF),
            ("POST", "/api/v1/catalogs"): (201, PROPOSAL),
            ("POST", "/api/v1/catalogs/proposals"): (201, PROPOSAL),
            ("POST", "/api/v1/catalogs/beef/accept"): (200, PROPOSAL),
            ("POST", "/api/v1/catalogs/beef/reject"): (200, PROPOSAL),
            ("PUT", "/api/v1/price-overrides"): (200, OVERRIDE),
            ("DELETE", "/api/v1/price-overrides?vendor=openai&model=gpt-4o"): (204, None),
            ("GET", "/api/v1/price-overrides?history=true"): (200, {"overrides": [OVERRIDE]}),
            ("GET", "/api/v1/routes"): (200, {"rules": [RULE]}),
            ("PUT", "/api/v1/routes"): (200, RULE),
            ("DELETE", "/api/v1/routes?vendor=openai&route=%2A"): (204, None),
            ("GET", "/api/v1/org"): (200, ORG),
            ("PATCH", "/api/v1/org"): (200, ORG),
            ("GET", CAPS_PATH): (200, CAPS),
            ("PATCH", CAPS_PATH): (200, CAPS),
            ("GET", "/v1/spend?by=billing_class&window=7d"): (200, {**SPEND, "rows_left_off": 0}),
            ("GET", "/v1/spend?by=agent&window=7d"): (200, SPEND),
            ("GET", "/v1/estimates?window=7d&model=gpt-4o"): (200, ESTIMATES),
            ("GET", "/v1/transactions?limit=20&team=ml"): (200, {"transactions": [TRANSACTION], "next_cursor": "abc"}),
            ("GET", "/v1/transactions/txn_1"): (200, TRANSACTION),
        }
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                outer.asked.append((self.command, self.path, json.loads(body) if body else None))
                outer.keys.append(self.headers["authorization"])
                outer.once = self.headers["idempotency-key"]
                status, fields = outer.answers.get(
                    (self.command, self.path), (404, {"error": "not_found", "message": f"nothing at {self.path}"})
                )
                content = b"" if fields is None else json.dumps(fields).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = answer  # noqa: N815

            def log_message(self, *_arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandIn]:
    stand_in = StandIn()
    thread = threading.Thread(target=stand_in.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("FARTHING_URL", stand_in.url)
    monkeypatch.setenv("FARTHING_ADMIN_KEY", "fk_live_admin")
    monkeypatch.delenv("FARTHING_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    yield stand_in
    stand_in.server.shutdown()
    thread.join()
    stand_in.server.server_close()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> "Run":
    return Run(monkeypatch, capsys)


class Run:
    """Runs a command line in this process: exit code, standard output, standard error."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        self._monkeypatch.setattr(sys, "argv", ["farthing", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = self._capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    def json(self, *arguments: str) -> Any:
        code, out, err = self(*arguments, "--json")
        assert (code, err) == (0, ""), err
        assert out.count("\n") == 1
        return json.loads(out)


@pytest.mark.parametrize(
    ("arguments", "asked", "shown"),
    [
        (
            ["keys", "create", "--team", "ml", "--agent", "bot"],
            ("POST", "/api/v1/keys", {"team": "ml", "agent": "bot"}),
            ["fk_live_" + "a" * 40, "key_1", "once"],
        ),
        (["keys", "create", "--admin"], ("POST", "/api/v1/keys", {"role": "org_admin"}), ["fk_live_"]),
        (["keys", "list"], ("GET", "/api/v1/keys", None), ["key_1", "wxyz", "ml", "2026-03-01 10:20:30"]),
        (["keys", "revoke", "key_1"], ("DELETE", "/api/v1/keys/key_1", None), ["Revoked key_1"]),
        (
            ["budgets", "list", "--scope", "user:*"],
            ("GET", "/api/v1/budgets?kind=user&value=%2A&limit=500", None),
            ["bud_1", "team ml"],
        ),
        (
            ["budgets", "list"],
            ("GET", "/api/v1/budgets?limit=500", None),
            [
                "bud_1",
                "team ml",
                "day (Europe/Berlin)",
                "calibrated",
                "$50.00",
                "$1.250000001",
                "$0.00",
                "$48.749999999",
            ],
        ),
        (
            ["budgets", "set", "--team", "ml", "--limit", "50.00", "--window", "day", "--zone", "Europe/Berlin"],
            ("PUT", "/api/v1/budgets", {"limit_usd": "50.00", "window": "day", "zone": "Europe/Berlin", "team": "ml"}),
            ["team ml may spend $50.00 per day (Europe/Berlin) (bud_1).", "The team did not exist and was made."],
        ),
        (
            ["budgets", "set", "--org", "--limit", "9", "--window", "30d"],
            ("PUT", "/api/v1/budgets", {"limit_usd": "9", "window": "30d"}),
            ["bud_1"],
        ),
        (["budgets", "rm", "bud_1"], ("DELETE", "/api/v1/budgets/bud_1", None), ["Removed bud_1"]),
        (
            ["budgets", "delegate", "bud_1", "--amount", "5", "--expires", "90m", "--agent", "x", "--session", "run-7"],
            (
                "POST",
                "/v1/budgets/bud_1/delegate",
                {"amount_usd": "5", "expires_in_seconds": 5400, "agent": "x", "session": "run-7"},
            ),
            ["fk_live_" + "p" * 40, "sub_1", "$5.00 of bud_1 until 2026-03-01 11:20:30", "this once"],
        ),
        (["budgets", "end", "sub_1"], ("POST", "/v1/budgets/sub_1/end", {}), ["Ended sub_1."]),
        (
            ["budgets", "show", "sub_1"],
            ("GET", "/v1/budgets/sub_1", None),
            ["sub_1", "bud_1", "$5.00", "$1.25", "$0.50", "2026-03-01 11:20:30", "live"],
        ),
        (["budgets", "delete", "bud_1"], ("DELETE", "/api/v1/budgets/bud_1", None), ["Removed bud_1"]),
        (
            ["budgets", "show", "bud_1"],
            ("GET", "/api/v1/budgets/bud_1", None),
            [
                "team ml",
                "$50.00 per day (Europe/Berlin)",
                "$48.749999999",
                "2026-03-02 00:00:00",
                "downgrade to gpt-4o-mini",
                "bud_0",
                "50 %, 90 %",
                "calibrated, streams step by step",
                "not known yet",
            ],
        ),
        (
            ["budgets", "show", "bud_1", "--value", "a", "--session", "s"],
            ("GET", "/api/v1/budgets/bud_1?value=a&session=s", None),
            ["bud_1"],
        ),
        (
            [
                "budgets",
                "set",
                "--scope",
                "user:*",
                "--limit",
                "2",
                "--window",
                "week",
                "--week-start",
                "Sunday",
                "--parent",
                "bud_0",
                "--child-mode",
                "fallback",
                "--extend",
                "--threshold",
                "50",
                "--threshold",
                "90",
            ],
            (
                "PUT",
                "/api/v1/budgets",
                {
                    "limit_usd": "2",
                    "window": "week",
                    "week_start": 6,
                    "scope": {"kind": "user", "value": "*"},
                    "parent_id": "bud_0",
                    "child_mode": "fallback",
                    "extend": True,
                    "thresholds": [50, 90],
                },
            ),
            ["bud_1"],
        ),
        (
            [
                "budgets",
                "set",
                "--scope",
                "cel:nights",
                "--expression",
                "team == 'ml'",
                "--limit",
                "2",
                "--window",
                "every 14d",
                "--anchor",
                "2026-01-05T09:00:00Z",
                "--enforcement",
                "monitor",
                "--no-extend",
                "--no-thresholds",
            ],
            (
                "PUT",
                "/api/v1/budgets",
                {
                    "limit_usd": "2",
                    "window": "every 14d",
                    "anchor": "2026-01-05T09:00:00Z",
                    "scope": {"kind": "cel", "value": "nights", "expression": "team == 'ml'"},
                    "enforcement": "monitor",
                    "extend": False,
                    "thresholds": [],
                },
            ),
            ["bud_1"],
        ),
        (
            [
                "budgets",
                "change",
                "bud_1",
                "--window",
                "year",
                "--anchor-day",
                "6",
                "--anchor-month",
                "4",
                "--parent",
                "",
                "--when-full",
                "downgrade",
                "--downgrade-to",
                "gpt-4o-mini",
            ],
            (
                "PATCH",
                "/api/v1/budgets/bud_1",
                {
                    "window": "year",
                    "anchor_day": 6,
                    "anchor_month": 4,
                    "parent_id": None,
                    "when_full": "downgrade",
                    "downgrade_to": "gpt-4o-mini",
                },
            ),
            ["team ml may spend $50.00 per day (Europe/Berlin) (bud_1)."],
        ),
        (["connections", "list"], ("GET", "/api/v1/connections", None), ["openai", "https://api.example/v1", "wxyz"]),
        (["connections", "rm", "openai"], ("DELETE", "/api/v1/connections/openai", None), ["Disconnected openai"]),
        (
            ["connections", "set", "openai", "--no-key", "--base-url", "https://api.example/v1"],
            (
                "PUT",
                "/api/v1/connections/openai",
                {
                    "api_key": None,
                    "dialect": None,
                    "base_url": "https://api.example/v1",
                    "prices_as": None,
                    "auth_mode": None,
                },
            ),
            ["Connected openai at https://api.example/v1", "Its calls are shared.openai."],
        ),
        (
            ["spend", "--by", "billing_class", "--window", "7d"],
            ("GET", "/v1/spend?by=billing_class&window=7d", None),
            ["billing_class", "$12.50"],
        ),
        (
            [
                *("connections", "set", "openai", "--no-key", "--dialect", "anthropic"),
                *("--prices-as", "anthropic", "--auth-mode", "local"),
            ],
            (
                "PUT",
                "/api/v1/connections/openai",
                {
                    "api_key": None,
                    "dialect": "anthropic",
                    "base_url": None,
                    "prices_as": "anthropic",
                    "auth_mode": "local",
                },
            ),
            ["Connected openai"],
        ),
        (
            ["budgets", "set", "--org", "--limit", "9", "--window", "30d", "--estimate", "calibrated"],
            ("PUT", "/api/v1/budgets", {"limit_usd": "9", "window": "30d", "estimate": "calibrated"}),
            ["bud_1"],
        ),
        (
            ["prices", "list", "--vendor", "openai"],
            ("GET", "/api/v1/prices?vendor=openai&limit=1000", None),
            ["gpt-4o", "$2.50", "$10.00", "cache read $1.25", "> 200,000", "catalog"],
        ),
        (
            ["prices", "show", "models/gpt-4o-latest", "--vendor", "openai"],
            ("GET", "/api/v1/prices/models/gpt-4o-latest?vendor=openai", None),
            [
                "openai gpt-4o (asked for: gpt-4o-latest, normalised)",
                "the catalog in use (cafe)",
                "ever, 16:30:00 to 00:30:00 UTC",
                "above 200,000",
                "processing batch",
                "16,384 tokens",
                "gpt-4o-2024-08-06",
                "--vendor azure",
            ],
        ),
        (["prices", "catalogs"], ("GET", "/api/v1/catalogs", None), ["beef", "pending", "control"]),
        (
            ["prices", "diff"],
            ("GET", "/api/v1/catalogs/diff", None),
            ["From cafe to beef: 0 added, 1 removed, 1 changed.", "gone", "input $2.50", "input $3.00"],
        ),
        (
            ["prices", "diff", "beef", "--from", "cafe", "--vendor", "openai"],
            ("GET", "/api/v1/catalogs/diff?from=cafe&to=beef&vendor=openai", None),
            ["gpt-4o"],
        ),
        (
            ["prices", "propose"],
            ("POST", "/api/v1/catalogs/proposals", {"version": None}),
            ["Catalog beef is proposed", "farthing prices accept beef"],
        ),
        (["prices", "propose", "cafe"], ("POST", "/api/v1/catalogs/proposals", {"version": "cafe"}), ["beef"]),
        (["prices", "accept", "beef"], ("POST", "/api/v1/catalogs/beef/accept", {}), ["Catalog beef holds"]),
        (
            ["prices", "reject", "beef", "--reason", "not ours"],
            ("POST", "/api/v1/catalogs/beef/reject", {"reason": "not ours"}),
            ["Rejected catalog beef"],
        ),
        (
            [
                "prices",
                "override",
                "openai",
                "gpt-4o",
                "--usd",
                "input=2",
                "--usd",
                "output=0",
                "--from",
                "2027-01-01",
                "--tier",
                "200000:input=4",
                "--tier",
                "9:input=3",
                "--tier",
                "9:output=1",
                "--max-output-tokens",
                "50",
            ],
            (
                "PUT",
                "/api/v1/price-overrides",
                {
                    "vendor": "openai",
                    "model": "gpt-4o",
                    "usd": {"input": "2", "output": "0"},
                    "tiers": [
                        {"above_input_tokens": 9, "usd": {"input": "3", "output": "1"}},
                        {"above_input_tokens": 200_000, "usd": {"input": "4"}},
                    ],
                    "from": "2027-01-01",
                    "max_output_tokens": 50,
                    "context_window": None,
                },
            ),
            ["openai gpt-4o costs input $2.00 from 2027-01-01 on."],
        ),
        (
            ["prices", "override", "openai", "gpt-4o", "--withdraw"],
            ("DELETE", "/api/v1/price-overrides?vendor=openai&model=gpt-4o", None),
            ["Withdrew the own price of openai gpt-4o"],
        ),
        (
            ["prices", "overrides", "--history"],
            ("GET", "/api/v1/price-overrides?history=true", None),
            ["2027-01-01", "input $2.00", "key_1"],
        ),
        (
            ["routes", "list"],
            ("GET", "/api/v1/routes", None),
            ["chat.completions", "429", "1.5 s", "pass", "groq/openai/gpt-oss"],
        ),
        (
            [
                "routes",
                "set",
                "--vendor",
                "openai",
                "--route",
                "chat.completions",
                "--budget-status",
                "429",
                "--timeout",
                "1.5",
                "--fallback",
                "groq/openai/gpt-oss",
                "--fail-open",
            ],
            ("PUT", "/api/v1/routes", RULE),
            ["vendor openai, route chat.completions is set"],
        ),
        (
            ["routes", "set", "--no-fallback"],
            ("PUT", "/api/v1/routes", {**NO_RULE, "fallbacks": []}),
            ["is set"],
        ),
        (
            ["routes", "set", "--fail-closed"],
            ("PUT", "/api/v1/routes", {**NO_RULE, "fail_open": False}),
            ["is set"],
        ),
        (
            ["routes", "rm", "--vendor", "openai"],
            ("DELETE", "/api/v1/routes?vendor=openai&route=%2A", None),
            ["Removed the rule of vendor openai, route *"],
        ),
        (
            ["org", "show"],
            ("GET", "/api/v1/org", None),
            ["default", "cafe", "fallback_price of openai/gpt-4o", "A hold lives 900 s; one that expires is booked."],
        ),
        (
            ["org", "set", "--expired-holds", "released"],
            ("PATCH", "/api/v1/org", {"expired_holds": "released"}),
            ["A hold lives 900 s"],
        ),
        (
            ["org", "set", "--unknown-models", "fallback_price", "--priced-as", "openai/gpt-4o"],
            (
                "PATCH",
                "/api/v1/org",
                {"unknown_models": {"policy": "fallback_price", "priced_as": {"vendor": "openai", "model": "gpt-4o"}}},
            ),
            ["Models without a price: fallback_price"],
        ),
        (
            ["org", "set", "--unknown-models", "reject", "--allow-unpriced-routes"],
            (
                "PATCH",
                "/api/v1/org",
                {"unknown_models": {"policy": "reject", "priced_as": None}, "allow_unpriced_routes": True},
            ),
            ["Routes without a price: let through"],
        ),
        (
            ["status"],
            ("GET", "/api/v1/status", None),
            ["warm", "version 3", "catalog beef is proposed", "ALARM fold_gap", "offset 7 is missing"],
        ),
        (
            ["spend", "--by", "agent", "--window", "7d"],
            ("GET", "/v1/spend?by=agent&window=7d", None),
            ["1,234", "$12.50", "2,345 more are in the total only", "7 calls were refused"],
        ),
        (
            ["estimates", "--window", "7d", "--model", "gpt-4o"],
            ("GET", "/v1/estimates?window=7d&model=gpt-4o", None),
            ["chat.completions", "calibrated", "1,500", "2,000", "$2.50", "$1.25"],
        ),
        (
            ["transactions", "--team", "ml"],
            ("GET", "/v1/transactions?limit=20&team=ml", None),
            ["txn_1", "settled", "sandbox-small", "$0.000123456", "--cursor abc"],
        ),
        (["transactions", "txn_1"], ("GET", "/v1/transactions/txn_1", None), ['"transaction_id": "txn_1"']),
    ],
)
def test_asks_the_api_and_shows_its_answer(
    api: StandIn, run: Run, arguments: list[str], asked: tuple[str, str, Any], shown: list[str]
) -> None:
    code, out, err = run(*arguments)
    assert (code, err) == (0, "")
    for text in shown:
        assert text in out
    answer = run.json(*arguments)
    assert isinstance(answer, dict)
    assert api.asked == [asked, asked]
    assert set(api.keys) == {"Bearer fk_live_admin"}


def test_a_catalog_is_imported_from_a_file(api: StandIn, run: Run, tmp_path: Path) -> None:
    document = {"format": 2, "models": []}
    (tmp_path / "catalog.json").write_text(json.dumps(document))
    assert "Catalog beef is proposed" in run("prices", "import", "catalog.json")[1]
    assert api.asked == [("POST", "/api/v1/catalogs", document)]
    for content, message in (("{", "is not JSON"), ("[]", "holds no JSON object")):
        (tmp_path / "catalog.json").write_text(content)
        code, _, err = run("prices", "import", "catalog.json")
        assert (code, message in err) == (1, True)


def test_prices_are_listed_over_all_pages(api: StandIn, run: Run) -> None:
    pages = {"": ("a", "x"), "&cursor=a": ("b", "y"), "&cursor=b": ("c", None)}
    for size in (1000, 2, 1):
        for query, (model, following) in pages.items():
            answer = {"catalog_version": "cafe", "prices": [PRICE | {"model": model}], "next": following and model}
            api.answers["GET", f"/api/v1/prices?limit={size}{query}"] = (200, answer)
    assert [each["model"] for each in run.json("prices", "list")["prices"]] == ["a", "b", "c"]
    assert [each["model"] for each in run.json("prices", "list", "--limit", "2")["prices"]] == ["a", "b"]


def test_budgets_are_listed_over_all_pages(api: StandIn, run: Run) -> None:
    api.answers["GET", "/api/v1/budgets?limit=500"] = (200, {"budgets": [BUDGET], "next": "bud_1"})
    rest = {"budgets": [BUDGET | {"budget_id": "bud_2"}], "next": None}
    api.answers["GET", "/api/v1/budgets?limit=500&cursor=bud_1"] = (200, rest)
    assert [each["budget_id"] for each in run.json("budgets", "list")["budgets"]] == ["bud_1", "bud_2"]


def test_a_price_is_shown_where_no_farthing_runs(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FARTHING_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    answer = run.json("prices", "show", "gpt-4o")
    assert (answer["prices_of"], answer["vendor"], answer["match"]) == ("shipped", "openai", "exact")
    assert answer["usd"]["input"] == "2.500000000"
    code, out, _ = run("prices", "show", "gpt-4o-mini")
    assert (code, "catalog that this command ships" in out) == (0, True)
    code, _, err = run("prices", "show", "gpt-unheard-of", "--vendor", "openai")
    assert (code, err) == (
        1,
        "farthing: there is no price of model 'gpt-unheard-of' of vendor 'openai' in the catalog of this release\n",
    )


def test_a_server_of_ones_own_needs_no_key(api: StandIn, run: Run) -> None:
    api.answers["PUT", "/api/v1/connections/vllm"] = (201, CONNECTION | {"vendor": "vllm"})
    assert "Connected vllm" in run("connections", "set", "vllm", "--base-url", "http://gpu:8000/v1")[1]
    assert api.asked[0][2]["api_key"] is None


@pytest.mark.parametrize(
    ("arguments", "cell", "shown"),
    [
        (
            ["set", "metered.openai", "--daily", "10.00", "--monthly", "off", "--per-session", "0.5"],
            {"metered.openai": {"daily": "10.00", "monthly": None, "perSession": "0.5"}},
            "metered.openai may spend $10.00 a day, anything a month (not enforced), $0.50 a session.",
        ),
        (
            ["set", "byok.google", "--monthly", "1"],
            {"byok.google": {"monthly": "1"}},
            "byok.google may spend $1.00 a month.",
        ),
        (["unset", "local.vllm"], {"local.vllm": None}, "local.vllm has no caps."),
    ],
)
def test_caps_are_changed_in_the_orgs_matrix(
    api: StandIn, run: Run, arguments: list[str], cell: dict[str, Any], shown: str
) -> None:
    code, out, err = run("caps", *arguments)
    assert (code, out, err) == (0, f"{shown}\n", "")
    assert api.asked == [("GET", "/api/v1/org", None), ("PATCH", CAPS_PATH, {"caps": cell})]
    assert run.json("caps", *arguments) == CAPS


def test_the_cap_matrix_is_shown(api: StandIn, run: Run) -> None:
    code, out, err = run("caps", "show")
    assert (code, err) == (0, "")
    rows = [line.split("  ") for line in out.splitlines()]
    cells = {row[0].strip(): [each.strip() for each in row[1:] if each.strip()] for row in rows if row[0]}
    assert cells["metered.openai"] == ["$10.00", "-", "not enforced", "-", "$0.50"]
    assert cells["byok.google"] == ["-", "-", "$1.00", "-", "-"]
    assert run.json("caps", "show") == CAPS
    standing = {"spentUsd": "1.000000000", "heldUsd": "0.500000000", "remainingUsd": "8.500000000", "resetsAt": "…"}
    for standings, left in (({"metered.openai": {"daily": standing, "monthly": None}}, "$8.50"), (None, "-")):
        api.answers["GET", CAPS_PATH] = (200, {**CAPS, "standings": standings})
        (row,) = (line for line in run("caps", "show")[1].splitlines() if "metered.openai" in line)
        assert [each.strip() for each in row.split("  ") if each.strip()][1:3] == ["$10.00", left]
    api.answers["GET", CAPS_PATH] = (200, {**CAPS, "caps": {}})
    assert "There are no caps." in run("caps", "show")[1]


def test_an_orgs_name_is_spelled_for_a_path(api: StandIn, run: Run) -> None:
    api.answers["GET", "/api/v1/org"] = (200, {**ORG, "name": "a/b@c"})
    api.answers["GET", "/api/admin/billing/cap-policy/a%2Fb%40c"] = (200, CAPS)
    assert run.json("caps", "show") == CAPS


def test_a_cap_has_to_be_named(api: StandIn, run: Run) -> None:
    code, out, err = run("caps", "set", "metered.openai")
    assert (code, out, err) == (1, "", "farthing: name a cap: --daily, --monthly or --per-session (daily)\n")
    assert api.asked == []


def test_json_is_the_answer_as_it_came(api: StandIn, run: Run) -> None:
    assert run.json("budgets", "list") == {"budgets": [BUDGET]}
    assert run.json("status") == {"base_url": api.url, **STATUS}
    assert run.json("budgets", "rm", "bud_1") == {"budget_id": "bud_1", "removed": True}


def test_a_vendor_key_comes_from_a_named_variable(api: StandIn, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_VENDOR_KEY", "sk-very-secret")
    _, out, err = run("connections", "set", "openai", "--key-env", "SOME_VENDOR_KEY")
    assert api.asked[0][2]["api_key"] == "sk-very-secret"
    assert "sk-very-secret" not in out + err


def test_a_vendor_key_comes_from_standard_input(api: StandIn, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", StringIO("sk-piped\n"))
    run("connections", "set", "openai")
    assert api.asked[0][2]["api_key"] == "sk-piped"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["connections", "set", "openai", "--key-env", "NO_SUCH_VARIABLE"], "NO_SUCH_VARIABLE is not set"),
        (["connections", "set", "openai"], "no key on standard input"),
        (["budgets", "set", "--limit", "1", "--window", "day"], "say what to cap"),
        (["budgets", "set", "--org", "--team", "ml", "--limit", "1", "--window", "day"], "say what to cap"),
        (["budgets", "set", "--org", "--scope", "user:a", "--limit", "1", "--window", "day"], "say what to cap"),
        (["budgets", "set", "--scope", "user", "--limit", "1", "--window", "day"], "must be KIND:VALUE"),
        (["budgets", "set", "--org", "--expression", "true", "--limit", "1", "--window", "day"], "--scope cel:NAME"),
        (["budgets", "change", "bud_1"], "say what to change"),
        (["budgets", "delegate", "bud_1", "--amount", "5", "--expires", "soon"], "such as 90m"),
        (["budgets", "end", "bud_1"], "farthing budgets rm bud_1"),
        (["budgets", "change", "bud_1", "--week-start", "7"], "must be a day of the week"),
        (["budgets", "change", "bud_1", "--threshold", "7", "--no-thresholds"], "exclude each other"),
        (["prices", "override", "openai", "gpt-4o", "--usd", "2.50"], "must be COMPONENT=USD"),
        (["prices", "override", "openai", "gpt-4o", "--usd", "input=1", "--usd", "input=2"], "each component once"),
        (["prices", "override", "openai", "gpt-4o", "--tier", "input=1"], "must be TOKENS:COMPONENT=USD"),
        (["prices", "override", "openai", "gpt-4o", "--withdraw", "--usd", "input=1"], "leave the others out"),
        (["prices", "import", "no-such-file.json"], "no-such-file.json can't be read"),
        (["routes", "set", "--fallback", "gpt-4o"], "must be VENDOR/MODEL"),
        (["routes", "set", "--fallback", "a/b", "--no-fallback"], "exclude each other"),
        (["org", "set", "--priced-as", "openai/gpt-4o"], "goes with --unknown-models"),
        (["org", "set", "--unknown-models", "fallback_price", "--priced-as", "gpt-4o"], "must be VENDOR/MODEL"),
        (["service", "nothing"], "there is no service 'nothing'"),
    ],
)
def test_what_can_not_be_asked_is_said_at_once(
    api: StandIn, run: Run, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.setattr(sys, "stdin", StringIO(""))
    code, out, err = run(*arguments)
    assert code == 1
    assert out == ""
    assert err.startswith("farthing: ")
    assert message in err
    assert api.asked == []


def test_an_error_of_the_api_is_its_message_and_field(api: StandIn, run: Run) -> None:
    refusal = {"error": "invalid_request", "message": "must not be negative; 0 blocks everything", "field": "limit_usd"}
    api.answers["PUT", "/api/v1/budgets"] = (400, refusal)
    arguments = ("budgets", "set", "--org", "--limit=-1", "--window", "day")
    assert run(*arguments) == (1, "", "farthing: must not be negative; 0 blocks everything (limit_usd)\n")
    code, out, _ = run(*arguments, "--json")
    assert code == 1
    assert json.loads(out) == refusal


def test_an_answer_that_is_not_farthings_is_said_so(api: StandIn, run: Run) -> None:
    api.answers["GET", "/api/v1/keys"] = (502, ["a proxy's page"])
    code, _, err = run("keys", "list")
    assert code == 1
    assert "answered 502" in err


def test_no_answer_is_said_so(api: StandIn, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARTHING_URL", "http://127.0.0.1:1")
    code, _, err = run("keys", "list")
    assert code == 1
    assert "http://127.0.0.1:1 does not answer" in err


def test_a_url_needs_a_key(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARTHING_URL", "http://127.0.0.1:1")
    monkeypatch.delenv("FARTHING_ADMIN_KEY", raising=False)
    assert run("status")[2] == "farthing: FARTHING_URL is set and FARTHING_ADMIN_KEY is not; set both\n"


def test_finds_the_instance_of_a_data_directory(
    api: StandIn, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("FARTHING_URL")
    monkeypatch.delenv("FARTHING_ADMIN_KEY")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    code, _, err = run("status")
    assert code == 1
    assert "no Farthing runs on farthing-data; start one with: farthing up" in err
    data = tmp_path / "elsewhere"
    running = DataDir.open(data)
    running.announce(Instance(api.url, api.url, os.getpid(), "0", {}))
    left_behind = (data / "instance.json").read_text()
    code, _, err = run("status", "--data-dir", "elsewhere")
    assert code == 1
    assert "there is no admin key in elsewhere" in err
    (data / "secrets" / "admin.key").write_text("fk_live_local\n")
    assert run.json("status", "--data-dir", "elsewhere")["base_url"] == api.url
    assert api.keys == ["Bearer fk_live_local"]
    running.close()
    (data / "instance.json").write_text(left_behind)
    assert "no Farthing runs on elsewhere" in run("status", "--data-dir", "elsewhere")[2]


@pytest.mark.parametrize(
    ("agree", "log_compared", "doctors", "demos"),
    [
        (
            True,
            True,
            "hot state, log and ledger agree to the nano-dollar",
            "Hot state, log and ledger agree to the nano-dollar.",
        ),
        (
            True,
            False,
            "hot state and ledger agree to the nano-dollar; the log no longer reaches back to compare",
            "Hot state and ledger agree to the nano-dollar; the log no longer reaches back to compare.",
        ),
        (False, True, "hot state, log and ledger differ", "Hot state, log and ledger DIFFER; see: farthing doctor"),
        (False, False, "hot state and ledger differ", "Hot state and ledger DIFFER; see: farthing doctor"),
    ],
)
def test_only_books_that_were_compared_are_said_to_agree(
    api: StandIn, run: Run, agree: bool, log_compared: bool, doctors: str, demos: str
) -> None:
    verdict = {"agree": agree, "log_compared": log_compared, "lagging": False, "budgets": []}
    api.answers["GET", "/v1/reconciliation"] = (200, verdict)
    _, out, _ = run("doctor", "--json")
    found = {each["name"]: each["detail"] for each in json.loads(out)["checks"]}
    assert found["reconciliation"] == doctors
    assert found["prices"].startswith("catalog beef is proposed")
    assert _told({"agree": agree, "reconciliation": verdict})[0] == demos


def test_a_part_is_handed_on_by_the_callers_own_key_or_else_the_admins(
    api: StandIn, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking = ("budgets", "delegate", "bud_1", "--amount", "5")
    assert run.json(*asking, "--idempotency-key", "run-7") == MADE_PART
    assert (api.keys[-1], api.once) == ("Bearer fk_live_admin", "run-7")
    monkeypatch.setenv("FARTHING_KEY", "fk_live_own")
    monkeypatch.delenv("FARTHING_ADMIN_KEY")
    assert "this once" in run(*asking)[1]
    assert (api.keys[-1], api.once) == ("Bearer fk_live_own", None)
    assert "this once" not in run(*asking, "--idempotency-key", "run-7")[1], "it can be asked for again"
    refusal = {"error": "not_found", "message": "no budget 'bud_1' that all of this key's calls are charged to"}
    api.answers["POST", "/v1/budgets/bud_1/delegate"] = (404, refusal)
    code, out, err = run(*asking)
    assert (code, out) == (1, "")
    assert err.startswith(f"farthing: {refusal['message']} (asked by the key in FARTHING_KEY")
    full = {"error": "budget_exhausted", "message": "budget bud_1 has $1.00 left"}
    api.answers["POST", "/v1/budgets/bud_1/delegate"] = (402, full)
    assert run(*asking)[2] == "farthing: budget bud_1 has $1.00 left\n"
