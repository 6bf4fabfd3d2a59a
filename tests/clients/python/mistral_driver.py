"""The `mistralai` client. Base URL: the root, no ``/v1`` (``https://host``, ``https://host/mistral``). Key: Bearer.

`max_retries` switches its retries on (they are off by default): exponential backoff bounded by that many seconds.
"""

from typing import Any

from driver import WEATHER_PARAMETERS, Ask, Outcome, Place, counted, image, plain, prompt, serve, tool_call
from mistralai.client import Mistral
from mistralai.client.utils import BackoffStrategy, RetryConfig

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
    "tool_choice": "any",
}


def client(ask: Ask) -> Mistral:
    options: dict[str, Any] = {}
    if "timeout_s" in ask:
        options["timeout_ms"] = int(ask["timeout_s"] * 1000)
    if "max_retries" in ask:
        backoff = BackoffStrategy(500, 1_000, 1.5, ask["max_retries"] * 1_000)
        options["retry_config"] = RetryConfig("backoff", backoff, retry_connection_errors=True)
    return Mistral(api_key=ask["api_key"], server_url=ask["base_url"], **options)


def question(ask: Ask, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt(ask)}]
    asked = {"model": ask["model"], "messages": messages, **fields, **ask.get("request", {})}
    return asked | {"http_headers": ask.get("headers")}


def read(answer: Any, outcome: Outcome) -> None:
    message = answer.choices[0].message
    outcome["text"] = message.content or ""
    outcome["tool_calls"] = [
        tool_call(each.function.name, each.function.arguments) for each in message.tool_calls or []
    ]
    outcome["usage"] = plain(answer.usage)


def chat(ask: Ask, outcome: Outcome, **fields: Any) -> None:
    read(client(ask).chat.complete(**question(ask, **fields)), outcome)


def stream(ask: Ask, outcome: Outcome, **fields: Any) -> None:
    with client(ask).chat.stream(**question(ask, **fields)) as events:
        read_stream(ask, outcome, events)


def read_stream(ask: Ask, outcome: Outcome, events: Any) -> None:
    calls: dict[int, list[str]] = {}
    for event in counted(ask, outcome, events):
        outcome["usage"] = plain(event.data.usage) or outcome["usage"]
        for choice in event.data.choices[:1]:
            outcome["text"] += choice.delta.content or ""
            for part in choice.delta.tool_calls or []:
                pieces = calls.setdefault(part.index or 0, ["", ""])
                pieces[0] = part.function.name or pieces[0]
                pieces[1] += part.function.arguments or ""
    outcome["tool_calls"] = [tool_call(*pieces) for pieces in calls.values()]


def tools(ask: Ask, outcome: Outcome) -> None:
    chat(ask, outcome, **TOOLS)


def tools_stream(ask: Ask, outcome: Outcome) -> None:
    stream(ask, outcome, **TOOLS)


def vision(ask: Ask, outcome: Outcome) -> None:
    picture = {"type": "image_url", "image_url": f"data:image/png;base64,{image(ask)}"}
    chat(ask, outcome, messages=[{"role": "user", "content": [{"type": "text", "text": prompt(ask)}, picture]}])


def structured(ask: Ask, outcome: Outcome) -> None:
    answer = client(ask).chat.parse(response_format=Place, **question(ask))
    read(answer, outcome)
    outcome["parsed"] = plain(answer.choices[0].message.parsed)


def embed(ask: Ask, outcome: Outcome) -> None:
    answer = client(ask).embeddings.create(model=ask["model"], inputs=[prompt(ask)], http_headers=ask.get("headers"))
    outcome["data"] = {"vectors": len(answer.data), "dimensions": len(answer.data[0].embedding or [])}
    outcome["usage"] = plain(answer.usage)


def ocr(ask: Ask, outcome: Outcome) -> None:
    picture = {"type": "image_url", "image_url": f"data:image/png;base64,{image(ask)}"}
    answer = client(ask).ocr.process(
        model=ask["model"], document=picture, http_headers=ask.get("headers"), **ask.get("request", {})
    )
    outcome["text"] = "\n".join(page.markdown for page in answer.pages)
    outcome["usage"] = plain(answer.usage_info)


def fim(ask: Ask, outcome: Outcome) -> None:
    fields = {"suffix": "return total", **ask.get("request", {})}
    answer = client(ask).fim.complete(model=ask["model"], prompt=prompt(ask), http_headers=ask.get("headers"), **fields)
    read(answer, outcome)


def fim_stream(ask: Ask, outcome: Outcome) -> None:
    fields = {"suffix": "return total", **ask.get("request", {})}
    with client(ask).fim.stream(
        model=ask["model"], prompt=prompt(ask), http_headers=ask.get("headers"), **fields
    ) as events:
        read_stream(ask, outcome, events)


def models(ask: Ask, outcome: Outcome) -> None:
    outcome["data"] = [each.id for each in client(ask).models.list(http_headers=ask.get("headers")).data or []]


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
            "ocr": ocr,
            "fim": fim,
            "fim_stream": fim_stream,
            "models": models,
        }
    )
