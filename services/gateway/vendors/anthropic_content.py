"""What the content of an Anthropic request can count as input, beyond its bytes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from services.gateway.vendors.fields import Fields, encoded, invalid
from services.gateway.vendors.messages import messages_of

# An image is scaled down until it counts no more than this, however it comes (Anthropic, "Images and vision": 4,784
# visual tokens for models that take high resolution, 1,568 for the others).
MAX_IMAGE_TOKENS: Final = 4_784

MAX_MESSAGES: Final = 100_000
MAX_BLOCKS: Final = 100_000

# Blocks whose text is in the request: a token of it is at least a byte.
_PLAIN: Final = frozenset(
    {
        "text", "thinking", "redacted_thinking", "tool_use", "server_tool_use", "tool_result", "search_result",
        "web_search_result", "web_search_tool_result", "web_search_tool_result_error",
        "web_fetch_result", "web_fetch_tool_result", "web_fetch_tool_result_error",
        "code_execution_result", "encrypted_code_execution_result", "code_execution_output",
        "code_execution_tool_result", "code_execution_tool_result_error",
        "bash_code_execution_result", "bash_code_execution_output",
        "bash_code_execution_tool_result", "bash_code_execution_tool_result_error",
        "text_editor_code_execution_view_result", "text_editor_code_execution_create_result",
        "text_editor_code_execution_str_replace_result",
        "text_editor_code_execution_tool_result", "text_editor_code_execution_tool_result_error",
        "tool_search_tool_result", "tool_search_tool_search_result", "tool_search_tool_result_error",
        "mcp_tool_use", "mcp_tool_result", "mcp_tool_listing", "compaction", "fallback", "browser_state",
        "tool_removal", "advisor_tool_result", "advisor_result", "advisor_redacted_result",
    }
)  # fmt: skip
_TEXT_SOURCES: Final = ("text", "content")


@dataclass(slots=True)
class Content:
    """What was found: how many images, tools defined within messages, the names of those whose definitions are put in
    again, and `unseen`, the field whose length can't be seen (a document by its address, a PDF, a block not known yet).
    """

    images: int = 0
    definitions: list[Fields] = field(default_factory=list)
    references: list[str] = field(default_factory=list)
    unseen: str | None = None


def read_content(fields: Fields) -> Content:
    """What ``system`` and ``messages`` hold; raises `RequestRefusedError` for what is no message."""
    messages = messages_of(fields, MAX_MESSAGES)
    found = Content()
    blocks = 0
    pending = _blocks(fields.get("system"), "system")
    for message in messages:
        pending += _blocks(message.get("content"), "messages")
    while pending:
        block = pending.pop()
        blocks += 1
        if blocks > MAX_BLOCKS:
            raise invalid("messages", f"messages has more than {MAX_BLOCKS} content blocks; send fewer")
        _read_block(block, found)
        pending += _inside(block)
    return found


def _blocks(content: object, param: str) -> list[Fields]:
    if content is None or isinstance(content, str):
        return []
    if not isinstance(content, list) or not all(isinstance(each, dict) for each in content):
        raise invalid(param, f"content of {param} must be text or a list of blocks")
    return list(content)


def _read_block(block: Fields, found: Content) -> None:
    kind = str(block.get("type"))
    # What a block carries counts, whatever it says it is.
    source = block.get("source")
    source_kind = source.get("type") if isinstance(source, dict) else None
    if kind == "image":
        found.images += 1
    elif kind == "document":
        # A PDF counts by its pages, as text and as images, which its bytes don't bound.
        if source_kind not in _TEXT_SOURCES:
            found.unseen = "messages"
    elif kind == "tool_reference":
        found.references.append(str(block.get("tool_name")))
    elif kind == "tool_addition":
        _read_addition(block.get("tool"), found)
    elif kind not in _PLAIN or isinstance(source, dict):
        found.unseen = "messages"


def _read_addition(tool: object, found: Content) -> None:
    """A tool offered from here on: one of ``tools`` once more, or one that is defined only here."""
    kind = tool.get("type") if isinstance(tool, dict) else None
    definition = tool.get("definition") if isinstance(tool, dict) else None
    if isinstance(definition, dict):
        found.definitions.append(definition)
    elif kind == "tool_reference" and isinstance(tool, dict):
        found.references.append(str(tool.get("name")))
    elif kind not in ("mcp_tool_reference", "mcp_toolset_reference"):
        raise invalid("messages", "the tool of a tool_addition must be a reference or a definition")


def _inside(block: Fields) -> Iterator[Fields]:
    """The blocks in a block: a tool's result, a document made of blocks, the tools a search found."""
    source = block.get("source")
    for holder in (block, source if isinstance(source, dict) else {}):
        for name in ("content", "tool_references"):
            inner = holder.get(name)
            if isinstance(inner, dict):
                yield inner
            elif isinstance(inner, list):
                yield from (each for each in inner if isinstance(each, dict))


def reference_bytes(references: Sequence[str], tools: Sequence[Fields]) -> int:
    """The bytes of the definitions that references put into the prompt again; an unknown name may be the longest."""
    if not references:
        return 0
    sizes = {str(each.get("name")): len(encoded(each, "tools")) for each in tools}
    longest = max(sizes.values(), default=0)
    return sum(sizes.get(name, longest) for name in references)
