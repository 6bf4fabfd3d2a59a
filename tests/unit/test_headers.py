"""Packed headers: every name and byte, repeats and order included, comes back."""

from hypothesis import given
from hypothesis import strategies as st

from services.adapters.headers import pack_headers, unpack_headers
from tests.support.strategies import texts


@given(st.lists(st.tuples(texts, st.binary(max_size=50)), max_size=5).map(tuple))
def test_headers_survive(headers: tuple[tuple[str, bytes], ...]) -> None:
    assert unpack_headers(pack_headers(headers)) == headers
