"""What picks a call's rates besides its model, where its request and its answer speak of it."""

from services.core.estimate import Demand
from services.core.usage.openai_chat import ChatShape
from services.core.usage.reading import Reading
from services.gateway.meter import Metered
from services.gateway.settle import price_context
from services.gateway.vendors import RequestFacts

CONTEXTS = {"service_tier": "priority", "processing": "batch"}
ASKED = RequestFacts("m", False, Demand(1, 1), ChatShape(), b"", context=CONTEXTS)


def test_the_tier_that_the_vendor_says_it_served_is_what_is_priced() -> None:
    said = Metered({}, "reported", True, Reading({}, 0, True, context={"service_tier": "standard"}))
    assert price_context(ASKED, said) == {"service_tier": "standard", "processing": "batch"}


def test_what_the_answer_does_not_say_is_as_it_was_asked_for() -> None:
    assert price_context(ASKED, Metered({}, "reported", True, Reading({}, 0, True))) == CONTEXTS
    assert price_context(ASKED, Metered({}, "estimated", False)) == CONTEXTS
