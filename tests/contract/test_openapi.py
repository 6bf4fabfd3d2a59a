"""The management API is what ``schemas/openapi/control.json`` says it is; the ledger's file is that of its code.

That the ledger answers as its description says is tested with its API, which needs a ledger.
"""

import json
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from services.control.api import build_api
from services.core.catalog import catalog_version
from tests.support.control import Away, running_control
from tools.dump_openapi import CONTROL, LEDGER, describe

OPERATIONS = {
    "GET /api/v1/org",
    "PATCH /api/v1/org",
    "GET /api/v1/status",
    "GET /api/v1/teams",
    "POST /api/v1/teams",
    "GET /api/v1/agents",
    "POST /api/v1/agents",
    "GET /api/v1/keys",
    "POST /api/v1/keys",
    "DELETE /api/v1/keys/{key_id}",
    "GET /api/v1/budgets",
    "PUT /api/v1/budgets",
    "GET /api/v1/budgets/{budget_id}",
    "PATCH /api/v1/budgets/{budget_id}",
    "DELETE /api/v1/budgets/{budget_id}",
    "GET /api/v1/connections",
    "PUT /api/v1/connections/{vendor}",
    "DELETE /api/v1/connections/{vendor}",
    "GET /api/v1/routes",
    "PUT /api/v1/routes",
    "DELETE /api/v1/routes",
    "GET /api/v1/prices",
    "GET /api/v1/prices/{model}",
    "GET /api/v1/price-overrides",
    "PUT /api/v1/price-overrides",
    "DELETE /api/v1/price-overrides",
    "GET /api/v1/catalogs",
    "POST /api/v1/catalogs",
    "POST /api/v1/catalogs/proposals",
    "GET /api/v1/catalogs/diff",
    "GET /api/v1/catalogs/{version}",
    "POST /api/v1/catalogs/{version}/accept",
    "POST /api/v1/catalogs/{version}/reject",
    "GET /api/v1/audit",
    "GET /api/admin/billing/cap-policy/{orgId}",
    "PATCH /api/admin/billing/cap-policy/{orgId}",
}


@pytest.fixture(scope="module")
def description() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(CONTROL.read_text())
    return document


def operations(description: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        f"{method.upper()} {path}": operation
        for path, methods in description["paths"].items()
        for method, operation in methods.items()
    }


@pytest.mark.parametrize("path", [CONTROL, LEDGER], ids=lambda path: path.name)
def test_the_committed_descriptions_are_current(path: Path) -> None:
    assert path.read_text() == describe(path), "run: python -m tools.dump_openapi"


def test_the_ledgers_description_tells_what_callers_may_ask() -> None:
    ledger = json.loads(LEDGER.read_text())
    parameters = {
        name: {each["name"] for each in operation.get("parameters", ())}
        for name, operation in operations(ledger).items()
    }
    filters = {"team", "agent", "vendor", "model", "since", "until"}
    assert parameters == {
        "GET /v1/transactions": filters | {"limit", "cursor", "state"},
        "GET /v1/transactions/{transaction_id}": {"transaction_id", "wait"},
        "GET /v1/spend": filters | {"by", "window", "zone"},
        "GET /v1/estimates": filters | {"window", "zone"},
        "GET /v1/reconciliation": set(),
        "GET /api/admin/billing/spend": {
            *("orgId", "window", "by", "billingClass", "project", "limit", "cursor"),
        },
    }
    for operation in operations(ledger).values():
        assert operation["security"] == [{"key": []}]
        assert operation["description"]
        assert all(each["description"] for each in operation.get("parameters", ()))
        for status, answer in operation["responses"].items():
            assert ("ErrorAnswer" in str(answer["content"])) == (status != "200")
    assert ledger["components"]["securitySchemes"]["key"]["scheme"] == "bearer"


async def test_the_description_and_its_pages_are_served(description: dict[str, Any]) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(build_api()), base_url="http://control") as client:
        assert (await client.get("/openapi.json")).json() == description
        for page in ("/docs", "/redoc"):
            response = await client.get(page)
            assert response.status_code == 200
            assert "/openapi.json" in response.text


def test_every_operation_is_there_and_needs_a_key(description: dict[str, Any]) -> None:
    assert set(operations(description)) == OPERATIONS
    for operation in operations(description).values():
        assert operation["security"] == [{"admin key": []}]
        assert operation["description"]
    assert description["components"]["securitySchemes"]["admin key"]["scheme"] == "bearer"


def test_every_error_form_is_documented(description: dict[str, Any]) -> None:
    for operation in operations(description).values():
        errors = {status: each for status, each in operation["responses"].items() if not status.startswith("2")}
        assert set(errors) == {"400", "401", "403", "404", "409", "413", "500", "503"}
        for error in errors.values():
            schema = error["content"]["application/json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/ErrorAnswer"}
    assert set(description["components"]["schemas"]["ErrorAnswer"]["required"]) == {"error", "message"}


def test_no_request_field_passes_unnoticed(description: dict[str, Any]) -> None:
    bodies = [
        operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        for name, operation in operations(description).items()
        if "requestBody" in operation and name != "POST /api/v1/catalogs"  # a document, kept with all that it says
    ]
    assert len(bodies) == 12
    for name in bodies:
        assert description["components"]["schemas"][name]["additionalProperties"] is False


async def test_answers_have_the_form_they_are_described_with(
    description: dict[str, Any], postgres_dsn: str, tmp_path: Path
) -> None:
    async with running_control(postgres_dsn, tmp_path, Away(), Away()) as control:
        key = await control.ask("POST", "keys", {"team": "ml", "agent": "ada"})
        budget = await control.ask("PUT", "budgets", {"team": "ml", "limit_usd": "1", "window": "day"})
        other = {"format": 2, "models": [{"vendor": "own", "model": "m", "prices": [{"usd": {"input": "1"}}]}]}
        imported = catalog_version(other)
        own = {"vendor": "own", "model": "m", "usd": {"input": "0"}}
        requests: list[tuple[str, str, Any]] = [
            ("GET", "org", None), ("GET", "status", None), ("GET", "teams", None), ("POST", "teams", {"name": "ops"}),
            ("GET", "agents", None), ("POST", "agents", {"name": "bob"}), ("GET", "keys", None), ("POST", "keys", {}),
            ("DELETE", f"keys/{key['key_id']}", None), ("GET", "budgets", None),
            ("PUT", "budgets", {"limit_usd": "1", "window": "1h"}), ("GET", f"budgets/{budget['budget_id']}", None),
            ("PATCH", f"budgets/{budget['budget_id']}", {"limit_usd": "2"}),
            ("DELETE", f"budgets/{budget['budget_id']}", None), ("PUT", "connections/openai", {"api_key": "sk-1"}),
            ("GET", "connections", None), ("DELETE", "connections/openai", None),
            ("PATCH", "org", {"allow_unpriced_routes": True}),
            ("PUT", "routes", {"budget_status": 403, "fallbacks": []}), ("GET", "routes", None),
            ("DELETE", "routes", None), ("GET", "prices", None), ("GET", "prices/gpt-4o", None),
            ("PUT", "price-overrides", own), ("GET", "price-overrides?history=true", None),
            ("DELETE", "price-overrides?vendor=own&model=m", None), ("POST", "catalogs", other),
            ("GET", "catalogs", None), ("GET", f"catalogs/{imported}", None), ("GET", "catalogs/diff", None),
            ("POST", f"catalogs/{imported}/reject", {"reason": "no"}),
            ("POST", "catalogs/proposals", {"version": imported}), ("POST", f"catalogs/{imported}/accept", None),
            ("GET", "audit", None),
            ("PATCH", "/api/admin/billing/cap-policy/default", {"caps": {"byok.openai": {"daily": 1}}}),
            ("GET", "/api/admin/billing/cap-policy/default", None),
        ]  # fmt: skip
        seen = set()
        for method, path, body in requests:
            response = await control.call(method, path, body)
            template = f"{method} /api/v1/{path.partition('?')[0]}".replace(key["key_id"], "{key_id}")
            template = template.replace(budget["budget_id"], "{budget_id}").replace(imported, "{version}")
            template = template.replace("gpt-4o", "{model}")
            if path.startswith("/api/admin/"):
                template = f"{method} /api/admin/billing/cap-policy/{{orgId}}"
            if path.startswith("connections/"):
                template = f"{method} /api/v1/connections/{{vendor}}"
            described = operations(description)[template]["responses"][str(response.status_code)]
            seen.add(template)
            if response.status_code == 204:
                assert response.content == b""
            else:
                schema = described["content"]["application/json"]["schema"] | {"components": description["components"]}
                jsonschema.validate(response.json(), schema)
        assert seen == OPERATIONS
        refused = await control.call("PUT", "budgets", {"limit_usd": "-1", "window": "day"})
        error = {"$ref": "#/components/schemas/ErrorAnswer", "components": description["components"]}
        jsonschema.validate(refused.json(), error)
