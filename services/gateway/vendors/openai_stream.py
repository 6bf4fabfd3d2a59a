"""Asking OpenAI's routes for streaming usage, every other byte as it was (GW-6)."""

from services.gateway.vendors.fields import Fields, invalid, members, spliced


def asks_for_usage(fields: Fields) -> bool:
    """Whether the client asked for a usage chunk itself."""
    options = fields.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict):
        raise invalid("stream_options", "stream_options must be an object")
    include = options.get("include_usage")
    if include is not None and not isinstance(include, bool):
        raise invalid("stream_options.include_usage", "stream_options.include_usage must be true or false")
    return bool(include)


def with_usage(body: bytes, fields: Fields) -> bytes:
    """The body with ``stream_options.include_usage`` set."""
    opening = body.index(b"{")
    if "stream_options" not in fields:
        return spliced(body, opening + 1, 0, b'"stream_options":{"include_usage":true},')
    options = fields["stream_options"]
    at = dict(members(body, opening))["stream_options"]
    if options is None:
        return spliced(body, at, len(b"null"), b'{"include_usage":true}')
    inner = list(members(body, at))
    spots = [start for key, start in inner if key == "include_usage"]
    if len(spots) > 1:
        raise invalid("stream_options", "the field 'include_usage' is there more than once; keep one")
    if spots:
        old = b"null" if options["include_usage"] is None else b"false"
        return spliced(body, spots[0], len(old), b"true")
    return spliced(body, at + 1, 0, b'"include_usage":true,' if inner else b'"include_usage":true')
