"""Azure OpenAI: deployments in the path, the newer paths, the credential, and what is priced."""

import dataclasses
from typing import Any

import orjson
import pytest

from services.core.usage.reading import StreamReader
from services.gateway.vendors import Dialect, RequestFacts, RequestRefusedError, Route, RouteRequest
from services.gateway.vendors.azure import AzureDialect
from services.gateway.vendors.fields import TEMPLATE_TOKENS
from services.gateway.vendors.openai import OpenAIDialect
from tests.support.audio import wave
from tests.support.forms import FORM_TYPE, form
from tests.support.vendors import openai as answers

DIALECT: Dialect = AzureDialect()
DEPLOYMENT = {"model": "our-gpt-4o"}
HELLO = [{"role": "user", "content": "Hello"}]


def route(method: str, path: str) -> Route:
    return next(each for each in DIALECT.routes if (each.method, each.path) == (method, path))


def under_deployment(path: str, body: dict[str, Any] | bytes, content_type: str = "application/json") -> RequestFacts:
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    at = route("POST", "/openai/deployments/{model}/" + path)
    return DIALECT.read_request(
        RouteRequest(at, data, DEPLOYMENT, query="api-version=2024-10-21", content_type=content_type)
    )


def test_a_deployment_s_chat_completion() -> None:
    body = {"messages": HELLO, "max_tokens": 5, "stream": True}
    facts = under_deployment("chat/completions", body)
    assert (facts.model, facts.hide_usage_chunk) == ("our-gpt-4o", True)
    assert orjson.loads(facts.body) == {**body, "stream_options": {"include_usage": True}}
    assert facts.demand.input_tokens == len(orjson.dumps(body)) + TEMPLATE_TOKENS


def test_the_deployment_is_priced_whatever_the_body_names() -> None:
    facts = under_deployment("chat/completions", {"model": "gpt-4o-mini", "messages": HELLO})
    assert facts.model == "our-gpt-4o"


def test_every_route_under_a_deployment() -> None:
    assert under_deployment("completions", {"prompt": ["a", "b"], "max_tokens": 1}).demand.choices == 2
    assert under_deployment("embeddings", {"input": "a"}).demand.output_tokens_limit == 0
    assert under_deployment("images/generations", {"prompt": "a", "n": 2}).demand.counts == {"images": 2}
    assert under_deployment("audio/speech", {"input": "abc"}).counted == {"characters": 3}
    heard = under_deployment("audio/transcriptions", form(("file", wave(seconds=1))), FORM_TYPE)
    assert (heard.model, heard.demand.counts) == ("our-gpt-4o", {"audio_ms": 2_000})
    translated = under_deployment("audio/translations", form(("file", wave(seconds=1))), FORM_TYPE)
    assert translated.counted == {"audio_ms": 1_000}
    edited = under_deployment("images/edits", form(("image", b"png"), ("prompt", "x")), FORM_TYPE)
    assert edited.demand.counts == {"images": 1}


def test_the_newer_paths_name_the_deployment_in_the_body() -> None:
    at = route("POST", "/openai/v1/responses")
    facts = DIALECT.read_request(RouteRequest(at, orjson.dumps({"model": "our-gpt-4o", "input": "Hello"})))
    assert facts.model == "our-gpt-4o"
    with pytest.raises(RequestRefusedError) as caught:
        DIALECT.read_request(
            RouteRequest(route("POST", "/openai/v1/chat/completions"), orjson.dumps({"messages": HELLO}))
        )
    assert caught.value.param == "model"


def test_a_data_source_is_refused_by_name() -> None:
    with pytest.raises(RequestRefusedError) as caught:
        under_deployment("chat/completions", {"messages": HELLO, "data_sources": [{"type": "azure_search"}]})
    assert (caught.value.code, caught.value.param) == ("unpriced_feature", "data_sources")


def test_a_second_key_is_refused_here_too() -> None:
    body = orjson.dumps({"messages": HELLO, "max_tokens": 5})[:-1] + b',"max_tokens":50}'
    with pytest.raises(RequestRefusedError) as caught:
        under_deployment("chat/completions", body)
    assert caught.value.param == "max_tokens"


def test_no_route_is_less_guarded_than_openai_s_own() -> None:
    billing = {each.name: each.billing for each in OpenAIDialect.routes}
    assert {(each.name, each.billing) for each in DIALECT.routes} <= set(billing.items())
    assert len({(each.method, each.path) for each in DIALECT.routes}) == len(DIALECT.routes)
    for each in DIALECT.routes:
        assert each.path.startswith("/openai/")
        if each.billing == "held":
            assert each.name in DIALECT.shapes


def test_another_model_is_another_deployment() -> None:
    request = RouteRequest(
        route("POST", "/openai/deployments/{model}/chat/completions"), b'{"messages":[]}', DEPLOYMENT
    )
    assert DIALECT.renamed(request, "other") == dataclasses.replace(request, params={"model": "other"})
    newer = RouteRequest(route("POST", "/openai/v1/chat/completions"), b'{"model":"a","messages":[]}')
    assert DIALECT.renamed(newer, "b").body == b'{"model":"b","messages":[]}'


def test_the_credential() -> None:
    assert DIALECT.credential_headers("key") == ((b"api-key", b"key"),)
    assert DIALECT.credential_headers(None) == ()
    assert DIALECT.default_base_url is None


def test_a_filter_report_before_the_answer_is_no_usage_chunk() -> None:
    shape = under_deployment("chat/completions", {"messages": HELLO}).shape
    reader = StreamReader(shape)
    first = {"choices": [], "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": {}}]}
    stream = answers.events([first, *answers.chunks(answers.text_deltas("Hi"), used=answers.usage(9, 1))])
    passed = [hidden for piece in stream for _, hidden in reader.feed(piece)]
    assert passed.count(True) == 1
    assert passed[0] is False
    assert reader.finish()[2].usage["input_tokens"] == 9
