"""Control's table of dialects says of each what the gateway's dialect says."""

import pytest

from services.core.dialects import COMPATIBLE_BASE_URLS, DIALECTS, KEYLESS, default_base_url, default_dialect
from services.gateway.vendors import registry


def test_the_table_is_the_registry() -> None:
    assert {name: (each.default_base_url, each.base_has_version) for name, each in DIALECTS.items()} == {
        name: (each.default_base_url, each.base_has_version) for name, each in registry.DIALECTS.items()
    }


@pytest.mark.parametrize("vendor", [*DIALECTS, *COMPATIBLE_BASE_URLS, *sorted(KEYLESS), "somebody"])
def test_both_give_a_vendor_the_same_dialect(vendor: str) -> None:
    assert registry.dialect_of(vendor).name == default_dialect(vendor)


def test_an_address_is_known_only_in_the_dialect_that_is_spoken_there() -> None:
    assert default_base_url("anthropic", "anthropic") == "https://api.anthropic.com"
    assert default_base_url("anthropic", "openai") is None
    assert default_base_url("groq", "openai") == "https://api.groq.com/openai/v1"
    assert default_base_url("groq", "anthropic") is None
    assert default_base_url("ollama", "openai") is None
