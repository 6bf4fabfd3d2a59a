"""`llama-index-llms-openai`. Base URL: with ``/v1`` (``https://host/v1``, ``https://host/openai/v1``). Key: Bearer.

The model must be one of OpenAI's: it looks up the context window in a list of its own.
"""

import base64
from typing import Any

from driver import Ask, Outcome, Place, counted, given, image, plain, prompt, serve, tool_call
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai import OpenAI, OpenAIResponses


def options(ask: Ask) -> dict[str, Any]:
    named = given(ask, max_retries="max_retries", timeout_s="timeout", headers="default_headers")
    whole = {"model": ask["model"], "api_base": ask["base_url"], "api_key": ask["api_key"], **named}
    return {**whole, "additional_kwargs": ask.get("request", {})}


def model(ask: Ask) -> OpenAI:
    return OpenAI(**options(ask))


def words(ask: Ask) -> list[ChatMessage]:
    return [ChatMessage(role="user", content=prompt(ask))]


def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"It rains in {city}."


def read(response: Any, outcome: Outcome) -> None:
    outcome["text"] = response.message.content or ""
    outcome["usage"] = plain(getattr(response.raw, "usage", None)) or outcome["usage"]


def chat(ask: Ask, outcome: Outcome) -> None:
    read(model(ask).chat(words(ask)), outcome)


def complete(ask: Ask, outcome: Outcome) -> None:
    response = model(ask).complete(prompt(ask))
    outcome["text"], outcome["usage"] = response.text, plain(getattr(response.raw, "usage", None))


def stream(ask: Ask, outcome: Outcome) -> None:
    for response in counted(ask, outcome, model(ask).stream_chat(words(ask))):
        read(response, outcome)


def calls(llm: OpenAI, response: Any) -> list[dict[str, Any]]:
    found = llm.get_tool_calls_from_response(response, error_on_no_tool_call=False)
    return [tool_call(each.tool_name, each.tool_kwargs) for each in found]


def tool() -> FunctionTool:
    return FunctionTool.from_defaults(fn=get_weather)


def tools(ask: Ask, outcome: Outcome) -> None:
    llm = model(ask)
    response = llm.chat_with_tools([tool()], user_msg=prompt(ask), tool_required=True)
    read(response, outcome)
    outcome["tool_calls"] = calls(llm, response)


def tools_stream(ask: Ask, outcome: Outcome) -> None:
    llm = model(ask)
    last: Any = None
    chunks = llm.stream_chat_with_tools([tool()], user_msg=prompt(ask), tool_required=True)
    for last in counted(ask, outcome, chunks):
        read(last, outcome)
    outcome["tool_calls"] = calls(llm, last)


def vision(ask: Ask, outcome: Outcome) -> None:
    picture = ImageBlock(image=base64.b64decode(image(ask)), image_mimetype="image/png")
    message = ChatMessage(role="user", blocks=[TextBlock(text=prompt(ask)), picture])
    read(model(ask).chat([message]), outcome)


def structured(ask: Ask, outcome: Outcome) -> None:
    outcome["parsed"] = plain(model(ask).structured_predict(Place, PromptTemplate("{words}"), words=prompt(ask)))


def responses(ask: Ask, outcome: Outcome) -> None:
    read(OpenAIResponses(**options(ask)).chat(words(ask)), outcome)


if __name__ == "__main__":
    serve(
        {
            "plain": chat,
            "complete": complete,
            "stream": stream,
            "tools": tools,
            "tools_stream": tools_stream,
            "vision": vision,
            "structured": structured,
            "responses": responses,
        }
    )
