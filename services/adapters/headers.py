"""Message headers as one text, for stores that keep a message in a few columns. Names, values and order stay exact."""

import orjson

Headers = tuple[tuple[str, bytes], ...]


def pack_headers(headers: Headers) -> bytes:
    """Headers as a JSON list of pairs; Latin-1 maps every byte of a value to one character."""
    return orjson.dumps([(name, value.decode("latin-1")) for name, value in headers])


def unpack_headers(packed: bytes) -> Headers:
    """The headers of `pack_headers`."""
    return tuple((name, value.encode("latin-1")) for name, value in orjson.loads(packed))
