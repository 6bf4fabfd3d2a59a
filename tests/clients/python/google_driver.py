"""The `google-genai` client. Base URL: the root, without a version (``https://host``, ``https://host/google``).

It adds a version of its own, which ``"api_version"`` changes. Key: ``x-goog-api-key``.
"""

import base64
from typing import Any

from driver import WEATHER_PARAMETERS, Ask, Outcome, Place, counted, given, image, plain, prompt, serve, tool_call
from google import genai
from google.genai import types


def client(ask: Ask) -> genai.Client:
    """A client, to be kept under a name while it is used: it closes its connections when it is collected."""
    options: dict[str, Any] = given(ask, headers="headers", api_version="api_version")
    if "timeout_s" in ask:
        options["timeout"] = int(ask["timeout_s"] * 1000)
    if "max_retries" in ask:
        options["retry_options"] = types.HttpRetryOptions(attempts=ask["max_retries"] + 1)
    return genai.Client(api_key=ask["api_key"], http_options=types.HttpOptions(base_url=ask["base_url"], **options))


def config(ask: Ask, **fields: Any) -> types.GenerateContentConfig:
    return types.GenerateContentConfig(**fields, **ask.get("request", {}))


def forced_tool(ask: Ask) -> types.GenerateContentConfig:
    schema = {name: value for name, value in WEATHER_PARAMETERS.items() if name != "additionalProperties"}
    function = types.FunctionDeclaration(
        name="get_weather", description="The weather in a city.", parameters_json_schema=schema
    )
    calling = types.FunctionCallingConfig(
        mode=types.FunctionCallingConfigMode.ANY, allowed_function_names=["get_weather"]
    )
    return config(
        ask,
        tools=[types.Tool(function_declarations=[function])],
        tool_config=types.ToolConfig(function_calling_config=calling),
    )


def read(answer: types.GenerateContentResponse, outcome: Outcome) -> None:
    """Adds one answer, or one chunk of it."""
    for candidate in (answer.candidates or [])[:1]:
        parts = (candidate.content.parts if candidate.content else None) or []
        outcome["text"] += "".join(part.text for part in parts if part.text and not part.thought)
        calls = [part.function_call for part in parts if part.function_call]
        outcome["tool_calls"] += [tool_call(call.name, call.args) for call in calls]
    outcome["usage"] = plain(answer.usage_metadata) or outcome["usage"]


def generate(ask: Ask, outcome: Outcome) -> None:
    ours = client(ask)
    read(ours.models.generate_content(model=ask["model"], contents=prompt(ask), config=config(ask)), outcome)


def stream(ask: Ask, outcome: Outcome, settings: types.GenerateContentConfig | None = None) -> None:
    ours = client(ask)
    chunks = ours.models.generate_content_stream(
        model=ask["model"], contents=prompt(ask), config=settings or config(ask)
    )
    for chunk in counted(ask, outcome, chunks):
        read(chunk, outcome)


def tools(ask: Ask, outcome: Outcome) -> None:
    ours = client(ask)
    read(ours.models.generate_content(model=ask["model"], contents=prompt(ask), config=forced_tool(ask)), outcome)


def tools_stream(ask: Ask, outcome: Outcome) -> None:
    stream(ask, outcome, forced_tool(ask))


def vision(ask: Ask, outcome: Outcome) -> None:
    picture = types.Part.from_bytes(data=base64.b64decode(image(ask)), mime_type="image/png")
    ours = client(ask)
    read(ours.models.generate_content(model=ask["model"], contents=[picture, prompt(ask)], config=config(ask)), outcome)


def structured(ask: Ask, outcome: Outcome) -> None:
    settings = config(ask, response_mime_type="application/json", response_schema=Place)
    ours = client(ask)
    answer = ours.models.generate_content(model=ask["model"], contents=prompt(ask), config=settings)
    read(answer, outcome)
    outcome["parsed"] = plain(answer.parsed)


def embed(ask: Ask, outcome: Outcome) -> None:
    ours = client(ask)
    answer = ours.models.embed_content(model=ask["model"], contents=prompt(ask))
    vectors = [each.values or [] for each in answer.embeddings or []]
    outcome["data"] = {"vectors": len(vectors), "dimensions": len(vectors[0])}


def count_tokens(ask: Ask, outcome: Outcome) -> None:
    ours = client(ask)
    answer = ours.models.count_tokens(model=ask["model"], contents=prompt(ask))
    outcome["data"] = {"total_tokens": answer.total_tokens}


def models(ask: Ask, outcome: Outcome) -> None:
    ours = client(ask)
    outcome["data"] = [each.name for each in ours.models.list()]


if __name__ == "__main__":
    serve(
        {
            "plain": generate,
            "stream": stream,
            "tools": tools,
            "tools_stream": tools_stream,
            "vision": vision,
            "structured": structured,
            "embed": embed,
            "count_tokens": count_tokens,
            "models": models,
        }
    )
