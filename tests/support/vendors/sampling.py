"""A value that conforms to a JSON Schema: what a vendor answers when structured output was asked for."""

from typing import Any

TEXTS = {
    "date-time": "2026-01-02T03:04:05Z",
    "date": "2026-01-02",
    "time": "03:04:05Z",
    "email": "someone@example.com",
    "uuid": "0b5e1c1e-6f1e-4c5d-9f57-2f1f3a5f9c11",
    "uri": "https://example.com/",
}


DEEPEST = 6


def sample(schema: Any, root: Any = None, depth: int = 0) -> Any:
    """A value of a schema, every named property filled. Type names may be in capitals, as Google writes them.

    A schema that refers to itself is followed six levels down: below, lists are empty and only what is required is
    filled.
    """
    root = schema if root is None else root
    if not isinstance(schema, dict):
        return None
    if "$ref" in schema:
        return sample(resolve(schema["$ref"], root), root, depth + 1)
    for fixed in ("const", "default"):
        if fixed in schema:
            return schema[fixed]
    if schema.get("enum"):
        return schema["enum"][0]
    for choice in ("anyOf", "oneOf"):
        if schema.get(choice):
            # The last of the alternatives is the plainest as a rule: null, where null is allowed.
            return sample(schema[choice][-1 if depth > DEEPEST else 0], root, depth + 1)
    if schema.get("allOf"):
        parts = [sample(part, root, depth + 1) for part in schema["allOf"]]
        return {name: value for part in parts if isinstance(part, dict) for name, value in part.items()} or parts[0]
    return of_type(schema, root, depth)


def of_type(schema: dict[str, Any], root: Any, depth: int) -> Any:
    """A value of a schema that names a type."""
    kind = schema.get("type", "object" if "properties" in schema else "string")
    kind = (kind[0] if isinstance(kind, list) else kind).lower()
    if kind == "object":
        known = schema.get("properties", {})
        kept = (
            known if depth <= DEEPEST else {name: known[name] for name in schema.get("required", ()) if name in known}
        )
        return {name: sample(part, root, depth + 1) for name, part in kept.items()}
    if kind == "array":
        least = int(schema.get("minItems", 0))
        count = least if depth > DEEPEST else max(1, least)
        return [sample(schema.get("items", {}), root, depth + 1) for _ in range(count)]
    if kind in ("integer", "number"):
        least = schema.get("minimum", schema.get("exclusiveMinimum", 0) + ("exclusiveMinimum" in schema))
        return min(max(7, least), schema.get("maximum", max(7, least)))
    if kind == "boolean":
        return True
    if kind == "null":
        return None
    text = TEXTS.get(schema.get("format", ""), "Zürich")
    return text.ljust(int(schema.get("minLength", 0)), "x")[: int(schema.get("maxLength", len(text) + 9999))]


def resolve(reference: str, root: Any) -> Any:
    """What a reference within the same document points at. Raises `KeyError` for one that points at nothing."""
    node = root
    for step in reference.removeprefix("#").strip("/").split("/"):
        node = node[step.replace("~1", "/").replace("~0", "~")] if step else node
    return node
