"""What the tools of an Anthropic request can bring about: tokens of their descriptions, runs, and charges."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from services.gateway.vendors.fields import Fields, invalid, objects, unpriced

MAX_TOOLS: Final = 10_000
MAX_USES: Final = 1_000

# A request with tools gets a system prompt that explains them, and each tool whose schema is the vendor's a description
# (Anthropic, "Pricing", tool use: prompts of up to 530 tokens; bash 245, text editor 700, computer use 735 and 499 of
# prompt). These are several times that, for models to come; a toolset stands for some dozens of such tools.
PROMPT_TOKENS: Final = 2_048
_DESCRIPTION_TOKENS: Final = 4_096
_TOOLSET_TOKENS: Final = 65_536

# One request runs the model again after its server tools at most this often, then it pauses (``pause_turn``).
MAX_ROUNDS: Final = 10

_CLIENT: Final = ("bash_", "text_editor_", "computer_", "memory_")
_TOOLSETS: Final = ("computer_toolset_", "browser_toolset_")
_WEB: Final = ("web_search_", "web_fetch_")
_LOOPING: Final = (*_WEB, "code_execution_", "tool_search_tool_")
# Versions of web search and fetch before the one from which on code execution beside them is free ("Pricing").
_PAID_CODE: Final = ("web_search_20250305", "web_fetch_20250910")


@dataclass(slots=True)
class Tools:
    """What was found: the definitions, tokens that the vendor adds, how often the model can be run, and charges."""

    definitions: Sequence[Fields]
    prompt_tokens: int = 0
    rounds: int = 1
    counts: dict[str, int] = field(default_factory=dict)


def read_tools(fields: Fields, inline: Sequence[Fields] = ()) -> Tools:
    """What ``tools`` and ``mcp_servers`` hold, and tools defined in messages (`inline`).

    Raises `RequestRefusedError` naming what can't be priced.
    """
    definitions = [*objects(fields, "tools", MAX_TOOLS), *inline]
    found = Tools(definitions, PROMPT_TOKENS if definitions else 0)
    for tool in definitions:
        kind = tool.get("type")
        if kind is None or kind == "custom":
            continue
        if not isinstance(kind, str):
            raise invalid("tools", "the type of a tool must be a name")
        _read_vendor_tool(kind, tool, found)
    if objects(fields, "mcp_servers", MAX_TOOLS):
        found.rounds = MAX_ROUNDS
    _refuse_paid_code(definitions)
    return found


def _read_vendor_tool(kind: str, tool: Fields, found: Tools) -> None:
    if kind.startswith(_TOOLSETS):
        found.prompt_tokens += _TOOLSET_TOKENS
        return
    found.prompt_tokens += _DESCRIPTION_TOKENS
    if kind.startswith("web_search_"):
        found.counts["web_searches"] = found.counts.get("web_searches", 0) + _uses(tool)
    if kind.startswith(_LOOPING) or kind == "mcp_toolset":
        found.rounds = MAX_ROUNDS
    elif kind.startswith("advisor_"):
        raise unpriced(
            "tools", "the advisor tool runs another model, which can't be priced here; leave it out of tools"
        )
    elif not kind.startswith(_CLIENT):
        raise unpriced("tools", f"tools of type {kind[:60]!r} are not priced; leave it out of tools")


def _uses(tool: Fields) -> int:
    most: Any = tool.get("max_uses")
    if most is None:
        raise unpriced("tools.max_uses", "web search is charged by the search; set max_uses on the web_search tool")
    if type(most) is not int or not 1 <= most <= MAX_USES:
        raise invalid("tools.max_uses", f"max_uses must be a whole number from 1 to {MAX_USES}")
    return most


def _refuse_paid_code(definitions: Sequence[Fields]) -> None:
    """Refuses code execution by itself: it is charged by its time, which no request bounds and no answer tells."""
    kinds = [str(each.get("type")) for each in definitions]
    runs = any(each.startswith("code_execution_") for each in kinds)
    free = any(each.startswith(_WEB) and not each.startswith(_PAID_CODE) for each in kinds)
    if runs and not free:
        message = (
            "code execution is charged by time, which can't be bounded; leave it out of tools, or use it with "
            "web_search_20260209, web_fetch_20260209 or later, where it is free"
        )
        raise unpriced("tools", message)
