"""The `cohere` client. Base URL: the root, without a version (``https://host``, ``https://host/cohere``). Key: Bearer.

`ClientV2` goes to ``/v2/…`` and to ``/v1/models``; the scenarios that begin with ``v1_`` use the first `Client`.
"""

import json
from typing import Any

import cohere
from driver import WEATHER_PARAMETERS, Ask, Outcome, Place, counted, given, image, plain, prompt, serve, tool_call

TOOLS: dict[str, Any] = {
    "tools": [
        {
            "type": "function",
            "function": {
                "name": "get_weather",
                "description": "The weather in a city.",
                "parameters": WEATHER_PARAMETERS,
            },
        }
    ],
    "tool_choice": "REQUIRED",
}


def options(ask: Ask) -> dict[str, Any]:
    return {"api_key": ask["api_key"], "base_url": ask["base_url"], **given(ask, timeout_s="timeout")}


def client(ask: Ask) -> cohere.ClientV2:
    return cohere.ClientV2(**options(ask))


def per_call(ask: Ask) -> dict[str, Any]:
    """The options this client takes with each call."""
    return {"request_options": given(ask, headers="additional_headers", max_retries="max_retries")}


def question(ask: Ask, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt(ask)}]
    return {"model": ask["model"], "messages": messages, **fields, **ask.get("request", {}), **per_call(ask)}


def read(answer: Any, outcome: Outcome) -> None:
    message = answer.message
    outcome["text"] = "".join(part.text for part in message.content or [] if part.type == "text")
    outcome["tool_calls"] = [
        tool_call(each.function.name, each.function.arguments) for each in message.tool_calls or []
    ]
    outcome["usage"] = plain(answer.usage)


def chat(ask: Ask, outcome: Outcome, **fields: Any) -> None:
    read(client(ask).chat(**question(ask, **fields)), outcome)


def stream(ask: Ask, outcome: Outcome, **fields: Any) -> None:
    calls: list[list[str]] = []
    chunks = client(ask).chat_stream(**question(ask, **fields))
    for event in counted(ask, outcome, chunks):
        if event.type == "content-delta":
            outcome["text"] += event.delta.message.content.text or ""
        elif event.type == "tool-call-start":
            function = event.delta.message.tool_calls.function
            calls.append([function.name, function.arguments or ""])
        elif event.type == "tool-call-delta":
            calls[-1][1] += event.delta.message.tool_calls.function.arguments
        elif event.type == "message-end":
            outcome["usage"] = plain(event.delta.usage)
            outcome["data"] = {"finish_reason": event.delta.finish_reason}
    chunks.close()
    outcome["tool_calls"] = [tool_call(*pieces) for pieces in calls]


def tools(ask: Ask, outcome: Outcome) -> None:
    chat(ask, outcome, **TOOLS)


def tools_stream(ask: Ask, outcome: Outcome) -> None:
    stream(ask, outcome, **TOOLS)


def vision(ask: Ask, outcome: Outcome) -> None:
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image(ask)}"}}
    chat(ask, outcome, messages=[{"role": "user", "content": [{"type": "text", "text": prompt(ask)}, picture]}])


def structured(ask: Ask, outcome: Outcome) -> None:
    """Cohere's client has no helper that parses: the schema goes with the request, the text is JSON."""
    schema = {"type": "json_object", "json_schema": Place.model_json_schema()}
    chat(ask, outcome, response_format=schema)
    outcome["parsed"] = json.loads(outcome["text"])


def embed(ask: Ask, outcome: Outcome) -> None:
    answer = client(ask).embed(
        model=ask["model"],
        texts=[prompt(ask)],
        input_type="search_document",
        embedding_types=["float"],
        **per_call(ask),
    )
    vectors = answer.embeddings.float_ or []
    outcome["data"] = {"vectors": len(vectors), "dimensions": len(vectors[0])}
    outcome["usage"] = plain(answer.meta)


def rerank(ask: Ask, outcome: Outcome) -> None:
    documents = ["A farthing is a quarter of a penny.", "Bern is in Switzerland."]
    answer = client(ask).rerank(model=ask["model"], query=prompt(ask), documents=documents, top_n=2, **per_call(ask))
    outcome["data"] = [each.index for each in answer.results]
    outcome["usage"] = plain(answer.meta)


def models(ask: Ask, outcome: Outcome) -> None:
    outcome["data"] = [each.name for each in client(ask).models.list(**per_call(ask)).models]


def v1_chat(ask: Ask, outcome: Outcome) -> None:
    fields = {**ask.get("request", {}), **per_call(ask)}
    answer = cohere.Client(**options(ask)).chat(model=ask["model"], message=prompt(ask), **fields)
    outcome["text"], outcome["usage"] = answer.text, plain(answer.meta)


def v1_stream(ask: Ask, outcome: Outcome) -> None:
    fields = {**ask.get("request", {}), **per_call(ask)}
    chunks = cohere.Client(**options(ask)).chat_stream(model=ask["model"], message=prompt(ask), **fields)
    for event in counted(ask, outcome, chunks):
        if event.event_type == "text-generation":
            outcome["text"] += event.text
        elif event.event_type == "stream-end":
            outcome["usage"] = plain(event.response.meta)
    chunks.close()


def v1_embed(ask: Ask, outcome: Outcome) -> None:
    answer = cohere.Client(**options(ask)).embed(
        model=ask["model"], texts=[prompt(ask)], input_type="search_document", **per_call(ask)
    )
    outcome["data"] = {"vectors": len(answer.embeddings), "dimensions": len(answer.embeddings[0])}
    outcome["usage"] = plain(answer.meta)


def v1_rerank(ask: Ask, outcome: Outcome) -> None:
    documents = ["A farthing is a quarter of a penny.", "Bern is in Switzerland."]
    answer = cohere.Client(**options(ask)).rerank(
        model=ask["model"], query=prompt(ask), documents=documents, top_n=2, **per_call(ask)
    )
    outcome["data"] = [each.index for each in answer.results]
    outcome["usage"] = plain(answer.meta)


if __name__ == "__main__":
    serve(
        {
            "plain": chat,
            "stream": stream,
            "tools": tools,
            "tools_stream": tools_stream,
            "vision": vision,
            "structured": structured,
            "embed": embed,
            "rerank": rerank,
            "models": models,
            "v1_chat": v1_chat,
            "v1_stream": v1_stream,
            "v1_embed": v1_embed,
            "v1_rerank": v1_rerank,
        }
    )
