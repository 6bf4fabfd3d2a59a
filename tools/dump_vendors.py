"""Writes ``docs/vendors.md`` from the dialects themselves: python -m tools.dump_vendors."""

from pathlib import Path

from services.core.dialects import COMPATIBLE_BASE_URLS
from services.gateway.vendors import Dialect, Route
from services.gateway.vendors.registry import DIALECTS

TARGET = Path(__file__).resolve().parents[1] / "docs" / "vendors.md"
HEAD = """# Vendors and their routes

Every route that the gateway serves, and how the cost of a call of it is known. A route that is not here is refused by
name, unless the org allows unpriced routes (`farthing org set --allow-unpriced-routes`).

- **held**: the most the call can cost is held before it leaves, and settled by its answer.
- **submitted**: held when it is submitted, settled when the work it starts has ended.
- **watched**: costs nothing, and tells the gateway how submitted work stands.
- **free**: costs nothing, so it passes without a hold; the caller is identified all the same.

A vendor's own paths are served as they are, and always under `/<vendor>/…` too. Where two vendors have the same path,
`X-Spend-Vendor` or the path's first segment picks one; without either it is the first of this page. The paths of
OpenAI's dialect are served without their version, too. `GET /v1/models` without a vendor's name is the gateway's own
list of all that the org can reach; under a name it is that vendor's.

This page is made by `python -m tools.dump_vendors`.

"""


def document() -> str:
    """The whole page."""
    parts = [HEAD, *(_section(dialect) for dialect in DIALECTS.values()), _presets()]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def _section(dialect: Dialect) -> str:
    where = dialect.default_base_url or "wherever a connection says"
    rows = "".join(_row(route) for route in dialect.routes)
    columns = "| route | request | billing | how its cost is known |\n|---|---|---|---|\n"
    return f"## {dialect.name}\n\nAt {where}.\n\n{columns}{rows}"


def _row(route: Route) -> str:
    return f"| {route.name} | `{route.method} {route.path}` | {route.billing} | {route.known_by} |\n"


def _presets() -> str:
    rows = "".join(f"| {name} | {url} |\n" for name, url in sorted(COMPATIBLE_BASE_URLS.items()))
    return (
        "## Any OpenAI-compatible server\n\n"
        "Connect it under a name of your own (`farthing connections set NAME --base-url URL`), and its paths are\n"
        "those of `openai` above, under `/NAME/…`. The addresses of these are known already:\n\n"
        f"| vendor | base URL |\n|---|---|\n{rows}"
    )


if __name__ == "__main__":
    TARGET.write_text(document())
