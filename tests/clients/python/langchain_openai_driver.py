"""`langchain-openai`. Base URL: with ``/v1`` (``https://host/v1``, ``https://host/openai/v1``). Key: Bearer."""

from typing import Any

import langchain_common as common
from driver import Ask, Outcome, given, prompt, serve
from langchain_openai import ChatOpenAI, OpenAIEmbeddings


def options(ask: Ask) -> dict[str, Any]:
    named = given(ask, max_retries="max_retries", timeout_s="timeout", headers="default_headers")
    return {"model": ask["model"], "base_url": ask["base_url"], "api_key": ask["api_key"], **named}


def model(ask: Ask, **fields: Any) -> ChatOpenAI:
    return ChatOpenAI(**options(ask), **fields)


def chat(ask: Ask, outcome: Outcome) -> None:
    common.invoke(model(ask), ask, outcome)


def stream(ask: Ask, outcome: Outcome) -> None:
    common.stream(model(ask), ask, outcome)


def stream_usage(ask: Ask, outcome: Outcome) -> None:
    """With another base URL than OpenAI's, LangChain asks for a stream's usage only when told to."""
    common.stream(model(ask, stream_usage=True), ask, outcome)


def tools(ask: Ask, outcome: Outcome) -> None:
    common.invoke(common.with_tool(model(ask)), ask, outcome)


def tools_stream(ask: Ask, outcome: Outcome) -> None:
    common.stream(common.with_tool(model(ask)), ask, outcome)


def vision(ask: Ask, outcome: Outcome) -> None:
    common.vision(model(ask), ask, outcome)


def structured(ask: Ask, outcome: Outcome) -> None:
    common.structured(model(ask), ask, outcome)


def responses(ask: Ask, outcome: Outcome) -> None:
    common.invoke(model(ask, use_responses_api=True), ask, outcome)


def responses_stream(ask: Ask, outcome: Outcome) -> None:
    common.stream(model(ask, use_responses_api=True), ask, outcome)


def embed(ask: Ask, outcome: Outcome) -> None:
    """Its check of the input's length would fetch a tokenizer from elsewhere, so it is off."""
    vectors = OpenAIEmbeddings(**options(ask), check_embedding_ctx_length=False).embed_documents([prompt(ask)])
    outcome["data"] = {"vectors": len(vectors), "dimensions": len(vectors[0])}


if __name__ == "__main__":
    serve(
        {
            "plain": chat,
            "stream": stream,
            "stream_usage": stream_usage,
            "tools": tools,
            "tools_stream": tools_stream,
            "vision": vision,
            "structured": structured,
            "responses": responses,
            "responses_stream": responses_stream,
            "embed": embed,
        }
    )
