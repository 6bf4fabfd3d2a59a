"""The `openai` client. Base URL: with ``/v1`` (``https://host/v1``, ``https://host/openai/v1``). Key: Bearer."""

import io
import json
import time
from typing import Any

from driver import WEATHER_PARAMETERS, Ask, Outcome, Place, counted, given, image, plain, prompt, serve, tool_call
from openai import OpenAI

FUNCTION = {"name": "get_weather", "description": "The weather in a city.", "parameters": WEATHER_PARAMETERS}
TOOLS: dict[str, Any] = {
    "tools": [{"type": "function", "function": FUNCTION}],
    "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
}
RESPONSES_TOOLS: dict[str, Any] = {
    "tools": [{"type": "function", **FUNCTION}],
    "tool_choice": {"type": "function", "name": "get_weather"},
}


def client(ask: Ask) -> OpenAI:
    options = given(ask, max_retries="max_retries", timeout_s="timeout", headers="default_headers")
    return OpenAI(api_key=ask["api_key"], base_url=ask["base_url"], **options)


def question(ask: Ask, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt(ask)}]
    return {"model": ask["model"], "messages": messages, **fields, **ask.get("request", {})}


def read(completion: Any, outcome: Outcome) -> None:
    message = completion.choices[0].message
    outcome["text"] = message.content or ""
    outcome["tool_calls"] = [
        tool_call(each.function.name, each.function.arguments) for each in message.tool_calls or []
    ]
    outcome["usage"] = plain(completion.usage)


def chat(ask: Ask, outcome: Outcome) -> None:
    read(client(ask).chat.completions.create(**question(ask)), outcome)


def stream(ask: Ask, outcome: Outcome, **fields: Any) -> None:
    calls: dict[int, list[str]] = {}
    with client(ask).chat.completions.create(**question(ask, stream=True, **fields)) as chunks:
        for chunk in counted(ask, outcome, chunks):
            outcome["usage"] = plain(chunk.usage) or outcome["usage"]
            for choice in chunk.choices[:1]:
                outcome["text"] += choice.delta.content or ""
                for part in choice.delta.tool_calls or []:
                    pieces = calls.setdefault(part.index, ["", ""])
                    pieces[0] += part.function.name or ""
                    pieces[1] += part.function.arguments or ""
    outcome["tool_calls"] = [tool_call(*pieces) for pieces in calls.values()]


def stream_usage(ask: Ask, outcome: Outcome) -> None:
    stream(ask, outcome, stream_options={"include_usage": True})


def tools(ask: Ask, outcome: Outcome) -> None:
    read(client(ask).chat.completions.create(**question(ask, **TOOLS)), outcome)


def tools_stream(ask: Ask, outcome: Outcome) -> None:
    stream(ask, outcome, **TOOLS)


def vision(ask: Ask, outcome: Outcome) -> None:
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image(ask)}"}}
    messages = [{"role": "user", "content": [{"type": "text", "text": prompt(ask)}, picture]}]
    read(client(ask).chat.completions.create(**question(ask, messages=messages)), outcome)


def structured(ask: Ask, outcome: Outcome) -> None:
    completion = client(ask).chat.completions.parse(**question(ask, response_format=Place))
    read(completion, outcome)
    outcome["parsed"] = plain(completion.choices[0].message.parsed)


def input_of(ask: Ask, **fields: Any) -> dict[str, Any]:
    return {"model": ask["model"], "input": prompt(ask), **fields, **ask.get("request", {})}


def read_response(response: Any, outcome: Outcome) -> None:
    outcome["text"] = response.output_text
    functions = [item for item in response.output if item.type == "function_call"]
    outcome["tool_calls"] = [tool_call(item.name, item.arguments) for item in functions]
    outcome["usage"] = plain(response.usage)
    outcome["data"] = {"status": response.status}


def responses(ask: Ask, outcome: Outcome) -> None:
    read_response(client(ask).responses.create(**input_of(ask)), outcome)


def responses_stream(ask: Ask, outcome: Outcome, **fields: Any) -> None:
    kinds = []
    with client(ask).responses.create(**input_of(ask, stream=True, **fields)) as events:
        for event in counted(ask, outcome, events):
            kinds.append(event.type)
            if event.type == "response.output_text.delta":
                outcome["text"] += event.delta
            elif event.type in {"response.completed", "response.incomplete", "response.failed"}:
                read_response(event.response, outcome)
    outcome["data"] = {**(outcome["data"] or {}), "events": kinds}


def responses_tools(ask: Ask, outcome: Outcome) -> None:
    read_response(client(ask).responses.create(**input_of(ask, **RESPONSES_TOOLS)), outcome)


def responses_tools_stream(ask: Ask, outcome: Outcome) -> None:
    responses_stream(ask, outcome, **RESPONSES_TOOLS)


def responses_structured(ask: Ask, outcome: Outcome) -> None:
    response = client(ask).responses.parse(**input_of(ask, text_format=Place))
    read_response(response, outcome)
    outcome["parsed"] = plain(response.output_parsed)


def responses_background(ask: Ask, outcome: Outcome) -> None:
    """Submits in the background and asks until it is done."""
    ours = client(ask)
    response = ours.responses.create(**input_of(ask, background=True))
    outcome["data"] = {"first": response.status}
    for _ in range(20):
        if response.status not in {"queued", "in_progress"}:
            break
        time.sleep(0.1)
        response = ours.responses.retrieve(response.id)
    read_response(response, outcome)


def completions(ask: Ask, outcome: Outcome) -> None:
    completion = client(ask).completions.create(model=ask["model"], prompt=prompt(ask), **ask.get("request", {}))
    outcome["text"], outcome["usage"] = completion.choices[0].text, plain(completion.usage)


def completions_stream(ask: Ask, outcome: Outcome) -> None:
    fields = {"stream": True, **ask.get("request", {})}
    with client(ask).completions.create(model=ask["model"], prompt=prompt(ask), **fields) as chunks:
        for chunk in counted(ask, outcome, chunks):
            outcome["text"] += "".join(choice.text for choice in chunk.choices)
            outcome["usage"] = plain(chunk.usage) or outcome["usage"]


def embed(ask: Ask, outcome: Outcome) -> None:
    answer = client(ask).embeddings.create(model=ask["model"], input=[prompt(ask)], **ask.get("request", {}))
    outcome["data"] = {"vectors": len(answer.data), "dimensions": len(answer.data[0].embedding)}
    outcome["usage"] = plain(answer.usage)


def images(ask: Ask, outcome: Outcome) -> None:
    answer = client(ask).images.generate(model=ask["model"], prompt=prompt(ask), **ask.get("request", {}))
    outcome["data"] = {"images": len(answer.data or [])}
    outcome["usage"] = plain(answer.usage)


def speech(ask: Ask, outcome: Outcome) -> None:
    options = {"voice": "alloy", **ask.get("request", {})}
    answer = client(ask).audio.speech.create(model=ask["model"], input=prompt(ask), **options)
    outcome["data"] = {"bytes": len(answer.content)}


def silence() -> io.BytesIO:
    """A second of silence: WAV, 8 kHz, 16 bits, mono."""
    samples = bytes(16_000)
    head = b"RIFF" + (36 + len(samples)).to_bytes(4, "little") + b"WAVEfmt " + (16).to_bytes(4, "little")
    shape = b"\1\0\1\0" + (8_000).to_bytes(4, "little") + (16_000).to_bytes(4, "little") + b"\2\0\x10\0"
    file = io.BytesIO(head + shape + b"data" + len(samples).to_bytes(4, "little") + samples)
    file.name = "silence.wav"
    return file


def transcription(ask: Ask, outcome: Outcome) -> None:
    answer = client(ask).audio.transcriptions.create(model=ask["model"], file=silence(), **ask.get("request", {}))
    outcome["text"], outcome["usage"] = answer.text, plain(getattr(answer, "usage", None))


def translation(ask: Ask, outcome: Outcome) -> None:
    answer = client(ask).audio.translations.create(model=ask["model"], file=silence(), **ask.get("request", {}))
    outcome["text"] = answer.text


def moderations(ask: Ask, outcome: Outcome) -> None:
    answer = client(ask).moderations.create(model=ask["model"], input=prompt(ask))
    outcome["data"] = {"flagged": [each.flagged for each in answer.results]}


def models(ask: Ask, outcome: Outcome) -> None:
    outcome["data"] = [each.id for each in client(ask).models.list()]


def batch(ask: Ask, outcome: Outcome) -> None:
    """Uploads an input file of two requests, submits it, asks until it is done, and reads the output file."""
    ours = client(ask)
    requests = (
        {"custom_id": f"call-{place}", "method": "POST", "url": "/v1/chat/completions", "body": question(ask)}
        for place in range(2)
    )
    lines = "".join(json.dumps(request) + "\n" for request in requests)
    uploaded = ours.files.create(file=("requests.jsonl", lines.encode()), purpose="batch")
    job = ours.batches.create(input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h")
    outcome["data"] = {"first": job.status}
    for _ in range(20):
        if job.status not in {"validating", "in_progress", "finalizing"}:
            break
        time.sleep(0.1)
        job = ours.batches.retrieve(job.id)
    outcome["data"] |= {"status": job.status, "counts": plain(job.request_counts)}
    if job.output_file_id is not None:
        outcome["text"] = ours.files.content(job.output_file_id).text


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
            "responses_tools": responses_tools,
            "responses_tools_stream": responses_tools_stream,
            "responses_structured": responses_structured,
            "responses_background": responses_background,
            "completions": completions,
            "completions_stream": completions_stream,
            "embed": embed,
            "images": images,
            "speech": speech,
            "transcription": transcription,
            "translation": translation,
            "moderations": moderations,
            "models": models,
            "batch": batch,
        }
    )
