"""The scenarios that LangChain's chat models share: their interface is one, whatever the vendor."""

from typing import Any

from driver import WEATHER_PARAMETERS, Ask, Outcome, Place, counted, image, plain, prompt, tool_call
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage, HumanMessage

WEATHER = {"title": "get_weather", "description": "The weather in a city.", **WEATHER_PARAMETERS}


def read(message: BaseMessage, outcome: Outcome) -> None:
    outcome["text"] = str(message.text)
    outcome["tool_calls"] = [tool_call(each["name"], each["args"]) for each in getattr(message, "tool_calls", [])]
    outcome["usage"] = plain(getattr(message, "usage_metadata", None))


def invoke(model: Any, ask: Ask, outcome: Outcome) -> None:
    read(model.invoke(prompt(ask), **ask.get("request", {})), outcome)


def stream(model: Any, ask: Ask, outcome: Outcome) -> None:
    whole: Any = None
    for chunk in counted(ask, outcome, model.stream(prompt(ask), **ask.get("request", {}))):
        whole = chunk if whole is None else whole + chunk
        outcome["text"] = str(whole.text)
    read(whole, outcome)


def with_tool(model: BaseChatModel) -> Any:
    return model.bind_tools([WEATHER], tool_choice="get_weather")


def vision(model: BaseChatModel, ask: Ask, outcome: Outcome) -> None:
    picture = {"type": "image", "base64": image(ask), "mime_type": "image/png"}
    message = HumanMessage(content=[{"type": "text", "text": prompt(ask)}, picture])
    read(model.invoke([message], **ask.get("request", {})), outcome)


def structured(model: BaseChatModel, ask: Ask, outcome: Outcome, **options: Any) -> None:
    answer = model.with_structured_output(Place, include_raw=True, **options).invoke(prompt(ask))
    read(answer["raw"], outcome)  # type: ignore[index]
    outcome["parsed"] = plain(answer["parsed"])  # type: ignore[index]
