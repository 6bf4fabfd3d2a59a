"""The `anthropic` client. Base URL: the root, without ``/v1`` (``https://host``, ``https://host/anthropic``).

Key: Bearer, as `auth_token` and `api_key` both do in this version; ``"credential": "auth_token"`` names the other.
"""

from typing import Any

from anthropic import Anthropic
from driver import WEATHER_PARAMETERS, Ask, Outcome, Place, counted, given, image, plain, prompt, serve, tool_call

TOOLS: dict[str, Any] = {
    "tools": [
        {"name": "get_weather", "description": "The weather in a city.", "input_schema": WEATHER_PARAMETERS},
    ],
    "tool_choice": {"type": "tool", "name": "get_weather"},
}


def client(ask: Ask) -> Anthropic:
    options = given(ask, max_retries="max_retries", timeout_s="timeout", headers="default_headers")
    return Anthropic(base_url=ask["base_url"], **{ask.get("credential", "api_key"): ask["api_key"]}, **options)


def question(ask: Ask, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt(ask)}]
    return {"model": ask["model"], "max_tokens": 256, "messages": messages, **fields, **ask.get("request", {})}


def read(message: Any, outcome: Outcome) -> None:
    outcome["text"] = "".join(block.text for block in message.content if block.type == "text")
    outcome["tool_calls"] = [
        tool_call(block.name, block.input) for block in message.content if block.type == "tool_use"
    ]
    outcome["usage"] = plain(message.usage)
    thinking = "".join(block.thinking for block in message.content if block.type == "thinking")
    outcome["data"] = {"stop_reason": message.stop_reason, "thinking": thinking}


def messages(ask: Ask, outcome: Outcome, **fields: Any) -> None:
    read(client(ask).messages.create(**question(ask, **fields)), outcome)


def stream(ask: Ask, outcome: Outcome, **fields: Any) -> None:
    with client(ask).messages.stream(**question(ask, **fields)) as events:
        for event in counted(ask, outcome, events):
            if event.type == "text":
                outcome["text"] += event.text
        if "hang_up_after" not in ask:
            read(events.get_final_message(), outcome)


def stream_raw(ask: Ask, outcome: Outcome) -> None:
    """``create(stream=True)``: the events as they come, with the usage of the last that has one."""
    with client(ask).messages.create(**question(ask, stream=True)) as events:
        for event in counted(ask, outcome, events):
            if event.type == "content_block_delta" and event.delta.type == "text_delta":
                outcome["text"] += event.delta.text
            elif event.type == "message_delta":
                outcome["usage"] = plain(event.usage)


def tools(ask: Ask, outcome: Outcome) -> None:
    messages(ask, outcome, **TOOLS)


def tools_stream(ask: Ask, outcome: Outcome) -> None:
    stream(ask, outcome, **TOOLS)


def vision(ask: Ask, outcome: Outcome) -> None:
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": image(ask)}}
    content = [picture, {"type": "text", "text": prompt(ask)}]
    messages(ask, outcome, messages=[{"role": "user", "content": content}])


def structured(ask: Ask, outcome: Outcome) -> None:
    message = client(ask).messages.parse(**question(ask, output_format=Place))
    read(message, outcome)
    outcome["parsed"] = plain(message.parsed_output)


def thinking_stream(ask: Ask, outcome: Outcome) -> None:
    stream(ask, outcome, max_tokens=2048, thinking={"type": "enabled", "budget_tokens": 1024})


def count_tokens(ask: Ask, outcome: Outcome) -> None:
    words = [{"role": "user", "content": prompt(ask)}]
    outcome["data"] = plain(client(ask).messages.count_tokens(model=ask["model"], messages=words))


def models(ask: Ask, outcome: Outcome) -> None:
    outcome["data"] = [each.id for each in client(ask).models.list()]


def submit(ours: Anthropic, ask: Ask) -> Any:
    requests = [{"custom_id": f"call-{place}", "params": question(ask)} for place in range(2)]
    return ours.messages.batches.create(requests=requests)  # type: ignore[arg-type]


def batches(ask: Ask, outcome: Outcome) -> None:
    """Submits a batch of two requests and looks at it once."""
    ours = client(ask)
    submitted = submit(ours, ask)
    batch = ours.messages.batches.retrieve(submitted.id)
    outcome["data"] = {"id": batch.id, "first": submitted.processing_status, "status": batch.processing_status}
    outcome["data"]["results_url"] = batch.results_url


def batch_results(ask: Ask, outcome: Outcome) -> None:
    """Reads the results of the batch `batch_id`, or of a new one. The client goes to the address in ``results_url``."""
    ours = client(ask)
    batch_id = ask.get("batch_id") or submit(ours, ask).id
    results = [plain(each) for each in ours.messages.batches.results(batch_id)]
    outcome["data"], outcome["chunks"] = results, len(results)


if __name__ == "__main__":
    serve(
        {
            "plain": messages,
            "stream": stream,
            "stream_raw": stream_raw,
            "tools": tools,
            "tools_stream": tools_stream,
            "vision": vision,
            "structured": structured,
            "thinking_stream": thinking_stream,
            "count_tokens": count_tokens,
            "models": models,
            "batches": batches,
            "batch_results": batch_results,
        }
    )
