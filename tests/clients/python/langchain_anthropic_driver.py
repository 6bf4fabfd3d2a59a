"""`langchain-anthropic`. Base URL: the root, without ``/v1`` (``https://host``, ``https://host/anthropic``)."""

from typing import Any

import langchain_common as common
from driver import Ask, Outcome, given, serve
from langchain_anthropic import ChatAnthropic


def model(ask: Ask, **fields: Any) -> ChatAnthropic:
    named = given(ask, max_retries="max_retries", timeout_s="timeout", headers="default_headers")
    whole = {"max_tokens": 256, **named, **fields}
    return ChatAnthropic(model=ask["model"], base_url=ask["base_url"], api_key=ask["api_key"], **whole)


def chat(ask: Ask, outcome: Outcome) -> None:
    common.invoke(model(ask), ask, outcome)


def stream(ask: Ask, outcome: Outcome) -> None:
    common.stream(model(ask), ask, outcome)


def tools(ask: Ask, outcome: Outcome) -> None:
    common.invoke(common.with_tool(model(ask)), ask, outcome)


def tools_stream(ask: Ask, outcome: Outcome) -> None:
    common.stream(common.with_tool(model(ask)), ask, outcome)


def vision(ask: Ask, outcome: Outcome) -> None:
    common.vision(model(ask), ask, outcome)


def structured(ask: Ask, outcome: Outcome) -> None:
    """By the vendor's structured outputs, not by a forced tool call."""
    common.structured(model(ask), ask, outcome, method="json_schema")


def thinking_stream(ask: Ask, outcome: Outcome) -> None:
    thinking = {"type": "enabled", "budget_tokens": 1024}
    common.stream(model(ask, max_tokens=2048, thinking=thinking), ask, outcome)


if __name__ == "__main__":
    serve(
        {
            "plain": chat,
            "stream": stream,
            "tools": tools,
            "tools_stream": tools_stream,
            "vision": vision,
            "structured": structured,
            "thinking_stream": thinking_stream,
        }
    )
