"""A Gemini request read: protobuf's JSON takes every field in two spellings, so both are read as one.

The API accepts ``maxOutputTokens`` and ``max_output_tokens`` alike. Here the field's own spelling is the camel one, at
every depth, and a field that is there twice, in whichever spelling, is refused: two parsers could heed different ones.
"""

import re
from typing import Any, Final

from services.gateway.vendors.fields import Fields, invalid, parsed_by_pairs, read_object

MAX_ENTRIES: Final = 20_000

# Every field that a decision rests on, and what only a Gemini request could mean by it.
_NAMES: Final = (
    "systemInstruction", "generationConfig", "cachedContent", "serviceTier", "toolConfig", "safetySettings",
    "modelArmorConfig", "maxOutputTokens", "candidateCount", "thinkingConfig", "thinkingBudget", "thinkingLevel",
    "includeThoughts", "responseModalities", "mediaResolution", "numTokens", "inlineData", "fileData", "mimeType",
    "fileUri", "videoMetadata", "partMetadata", "audioTranscription", "functionCall", "functionResponse",
    "functionDeclarations", "executableCode", "codeExecutionResult", "thoughtSignature", "toolCall", "toolResponse",
    "googleSearch", "googleSearchRetrieval", "googleMaps", "codeExecution", "fileSearch", "urlContext",
    "computerUse", "mcpServers", "enterpriseWebSearch", "parallelAiSearch", "exaAiSearch", "externalApi",
    "routingConfig", "modelConfig", "modelSelectionConfig", "imageConfig", "speechConfig", "outputDimensionality",
    "taskType", "embedContentConfig",
)  # fmt: skip
_CAMEL: Final = {re.sub(r"[A-Z]", lambda found: "_" + found[0].lower(), name): name for name in _NAMES}


def read_fields(body: bytes) -> Fields:
    """The fields of a request body, each under its camel spelling; raises `RequestRefusedError`."""
    read_object(body, frozenset())
    fields: Fields = parsed_by_pairs(body, _distinct)
    return fields


def _distinct(pairs: list[tuple[str, Any]]) -> Fields:
    fields = {_CAMEL.get(name, name): value for name, value in pairs}
    if len(fields) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            camel = _CAMEL.get(name, name)
            if camel in seen:
                raise invalid(
                    camel[:40], f"the field {camel[:40]!r} is there more than once; keep one, in one spelling"
                )
            seen.add(camel)
    return fields


def object_in(fields: Fields, name: str) -> Fields:
    """The object in a field, empty when it is missing or null."""
    value = fields.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise invalid(name, f"{name} must be an object")
    return value


def objects_in(value: object, param: str) -> list[Fields]:
    """The objects of a repeated field: a list, or a single one, as Google's parser takes it; none for null."""
    if value is None:
        return []
    found: list[Any] = value if isinstance(value, list) else [value]
    if len(found) > MAX_ENTRIES:
        raise invalid(param, f"{param} has a list of {len(found)} entries; send at most {MAX_ENTRIES}")
    if not all(isinstance(each, dict) for each in found):
        raise invalid(param, f"each entry of {param} must be an object")
    return found
