"""What a Gemini request can cost, by its fields, and what Google's dialect says when it refuses."""

import base64
import json
import struct
from typing import Any

import pytest

from services.core.estimate import UnboundedError, UnpricedComponentError, strict_bound
from services.core.pricing import Price, Tier, Variant, price_usage
from services.core.usage.reading import BodyReader
from services.gateway.vendors import RequestFacts, RequestRefusedError, Route, RouteRequest
from services.gateway.vendors.fields import TEMPLATE_TOKENS
from services.gateway.vendors.google import GoogleDialect
from services.gateway.vendors.google_media import ALL_MEDIA, MAX_IMAGE_TOKENS
from tests.support.vendors.google import generated, modalities, usage

DIALECT = GoogleDialect()
FLASH = "gemini-2.5-flash"
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(3_000)).decode()
OUTPUTS = {"audio_output", "image_output", "video_output"}
PRICE = Price({"input": 300_000_000, "output": 2_500_000_000}, context_window=1_048_576)


def route(name: str, path: str = "/v1beta/models/") -> Route:
    return next(each for each in DIALECT.routes if each.name == name and each.path.startswith(path))


def request_of(
    fields: object, name: str = "generateContent", model: str = FLASH, path: str = "/v1beta/models/", **more: Any
) -> RouteRequest:
    body = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return RouteRequest(route(name, path), body, {"model": model}, **more)


def read(fields: object, name: str = "generateContent", model: str = FLASH, **more: Any) -> RequestFacts:
    return DIALECT.read_request(request_of(fields, name, model, **more))


def asked(*parts: object, **fields: Any) -> dict[str, Any]:
    return {"contents": [{"role": "user", "parts": list(parts) or [{"text": "Hi"}]}], **fields}


def configured(**config: Any) -> dict[str, Any]:
    return asked(generationConfig=config)


def inline(kind: str, data: str) -> dict[str, Any]:
    return {"inlineData": {"mimeType": kind, "data": data}}


def wave(rate_hz: int, block: int, size: int) -> str:
    head = b"RIFF" + struct.pack("<I", 36 + size) + b"WAVEfmt "
    head += struct.pack("<IHHIIHH", 16, 1, 1, rate_hz, rate_hz * block, block, 8 * block)
    return base64.b64encode(head + b"data" + struct.pack("<I", size) + bytes(size)).decode()


# ---- routes ----------------------------------------------------------------------------------------------------------


def test_every_route_that_costs_money_is_held_read_and_priced_by_its_answer() -> None:
    assert len({(each.method, each.path) for each in DIALECT.routes}) == len(DIALECT.routes)
    for each in DIALECT.routes:
        assert each.path.split("/")[1] in DIALECT.versions
        if each.billing == "held":
            assert each.name in DIALECT.shapes
        else:
            assert (each.billing, each.name) in {("free", "countTokens"), ("free", "models"), ("free", "models.get")}
    held = {each.path for each in DIALECT.routes if each.billing == "held"}
    for version in ("v1", "v1beta"):
        for name in ("generateContent", "streamGenerateContent", "embedContent", "batchEmbedContents"):
            assert f"/{version}/models/{{model}}:{name}" in held
    assert "/v1/projects/{id}/locations/global/publishers/google/models/{model}:generateContent" in held


def test_the_model_is_in_the_path_and_the_body_goes_on_unchanged() -> None:
    body = b' {"contents":[{"parts":[{"text":"Hi"}]}]} '
    facts = read(body)
    assert (facts.model, facts.stream, facts.framing) == (FLASH, False, "json_array")
    assert facts.body is body
    assert facts.hide_usage_chunk is False
    demand = facts.demand
    assert demand.input_tokens == len(body) + TEMPLATE_TOKENS
    assert (demand.output_tokens_limit, demand.choices, demand.rounds) == (None, 1, 1)
    assert (demand.parts, demand.required, demand.unseen) == (OUTPUTS, frozenset(), None)
    assert demand.limit_param == "generationConfig.maxOutputTokens"


@pytest.mark.parametrize(
    ("query", "framing"), [("", "json_array"), ("alt=sse", "sse"), ("alt=json", "json_array"), ("key=k&alt=sse", "sse")]
)
def test_a_stream_comes_in_events_or_in_one_array(query: str, framing: str) -> None:
    facts = read(asked(), "streamGenerateContent", query=query)
    assert (facts.stream, facts.framing) == (True, framing)


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"query": "fields=candidates"}, "fields"),
        ({"query": "%24fields=candidates"}, "$fields"),
        ({"query": "alt=proto"}, "alt"),
        ({"query": "alt=sse&alt=json"}, "alt"),
        ({"query": "$alt=proto"}, "$alt"),
        ({"query": "callback=f"}, "callback"),
        ({"headers": [(b"X-Goog-FieldMask", b"candidates")]}, "X-Goog-FieldMask"),
        ({"headers": [(b"x-http-method-override", b"GET")]}, "x-http-method-override"),
        ({"headers": [(b"x-vertex-ai-llm-shared-request-type", b"priority")]}, "x-vertex-ai-llm-shared-request-type"),
    ],
)
@pytest.mark.parametrize("name", ["generateContent", "embedContent"])
def test_what_would_hide_the_usage_of_an_answer_is_refused(name: str, more: dict[str, Any], param: str) -> None:
    fields = asked() if name == "generateContent" else {"content": {"parts": [{"text": "Hi"}]}}
    with pytest.raises(RequestRefusedError) as refused:
        read(fields, name, **more)
    assert refused.value.param == param


def test_a_tuned_model_is_not_priced_as_a_base_model_of_its_name() -> None:
    facts = read(asked(), path="/v1beta/tunedModels/")
    assert facts.model == f"tunedModels/{FLASH}"


def test_a_body_may_only_name_the_model_of_the_path() -> None:
    assert read(asked(model=f"models/{FLASH}")).model == FLASH
    with pytest.raises(RequestRefusedError, match="path names the model") as refused:
        read(asked(model="models/gemini-2.5-pro"))
    assert refused.value.param == "model"


def test_a_fallback_renames_the_path_only() -> None:
    renamed = DIALECT.renamed(request_of(asked()), "gemini-2.5-flash-lite")
    assert dict(renamed.params) == {"model": "gemini-2.5-flash-lite"}
    assert renamed.body == json.dumps(asked()).encode()
    for name in ("embedContent", "batchEmbedContents"):
        with pytest.raises(RequestRefusedError, match="can't stand in"):
            DIALECT.renamed(request_of({}, name), "gemini-embedding-2")
    with pytest.raises(RequestRefusedError, match="tuned"):
        DIALECT.renamed(request_of(asked(), path="/v1/tunedModels/"), FLASH)


# ---- both spellings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", ["generationConfig", "generation_config"])
@pytest.mark.parametrize("limit", ["maxOutputTokens", "max_output_tokens"])
def test_a_limit_counts_in_either_spelling(config: str, limit: str) -> None:
    assert read(asked(**{config: {limit: 77}})).demand.output_tokens_limit == 77


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"contents":[{}],"generationConfig":{"maxOutputTokens":9,"max_output_tokens":9000}}', "maxOutputTokens"),
        (b'{"contents":[{}],"generationConfig":{"candidateCount":1,"candidateCount":8}}', "candidateCount"),
        (b'{"contents":[{}],"generationConfig":{},"generation_config":{"maxOutputTokens":9}}', "generationConfig"),
        (b'{"contents":[{}],"generationConfig":{"maxOutputTokens":9,"max\\u005foutput_tokens":9}}', "maxOutputTokens"),
        (b'{"contents":[{"parts":[{"fileData":{}}],"parts":[{"text":"Hi"}]}]}', "parts"),
        (b'{"contents":[{"parts":[{"text":"Hi","inlineData":{},"inline_data":{}}]}]}', "inlineData"),
        (b'{"contents":[{}],"contents":[{}]}', "contents"),
    ],
)
def test_a_field_that_is_there_twice_is_refused_at_any_depth(body: bytes, param: str) -> None:
    with pytest.raises(RequestRefusedError, match="more than once") as refused:
        read(body)
    assert (refused.value.code, refused.value.param) == ("invalid_request", param)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"contents":1e999}', b'{"contents":' + b"[" * 5_000 + b"]" * 5_000 + b"}", b'"\xff"']
)
def test_a_body_that_can_not_be_read_is_refused(body: bytes) -> None:
    with pytest.raises(RequestRefusedError):
        read(body)


# ---- output ----------------------------------------------------------------------------------------------------------


def test_candidates_are_not_bounded_as_one() -> None:
    demand = read(configured(candidateCount=3, maxOutputTokens=100)).demand
    assert (demand.choices, demand.output_tokens_limit) == (3, 100)
    assert strict_bound(PRICE, demand).output_tokens == 300


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        ({"maxOutputTokens": 100, "thinkingConfig": {"thinkingBudget": -1}}, 100),
        ({"maxOutputTokens": 100, "thinkingConfig": {"thinkingBudget": 24_576}}, 24_576),
        ({"maxOutputTokens": 9_000, "thinkingConfig": {"thinkingBudget": 4_000}}, 9_000),
        ({"thinkingConfig": {"thinkingBudget": 4_000}}, None),
        ({"maxOutputTokens": 100, "responseModalities": ["TEXT"]}, 100),
        ({"maxOutputTokens": 100, "responseModalities": ["text", "IMAGE"]}, 100 + 10 * 2_520),
        ({"maxOutputTokens": 100, "responseModalities": ["VIDEO"]}, None),
        ({"maxOutputTokens": 100, "responseModalities": None}, 100),
    ],
)
def test_thoughts_and_images_are_within_the_limit(config: dict[str, Any], limit: int | None) -> None:
    assert read(configured(**config)).demand.output_tokens_limit == limit


def test_a_model_that_draws_unasked_is_bounded_with_its_images() -> None:
    for model in ("gemini-2.5-flash-image", "gemini-nano-banana-2.1"):
        assert read(configured(maxOutputTokens=100), model=model).demand.output_tokens_limit == 100 + 25_200


def test_images_asked_for_must_have_a_price() -> None:
    demand = read(configured(responseModalities=["IMAGE"])).demand
    assert demand.required == {"image_output"}
    with pytest.raises(UnpricedComponentError, match="image output"):
        strict_bound(PRICE, demand)
    speech = read(configured(responseModalities=["AUDIO"])).demand
    assert (speech.required, speech.parts) == (frozenset(), OUTPUTS)


@pytest.mark.parametrize(
    ("config", "param"),
    [
        ({"maxOutputTokens": 0}, "maxOutputTokens"),
        ({"maxOutputTokens": "100"}, "maxOutputTokens"),
        ({"maxOutputTokens": 1.5}, "maxOutputTokens"),
        ({"candidateCount": 9}, "candidateCount"),
        ({"thinkingConfig": {"thinkingBudget": -2}}, "thinkingBudget"),
        ({"thinkingConfig": []}, "thinkingConfig"),
        ({"responseModalities": [1]}, "generationConfig.responseModalities"),
        ({"responseModalities": ["SMELL"]}, "generationConfig.responseModalities"),
        ({"routingConfig": {}}, "generationConfig.routingConfig"),
        ({"model_selection_config": {}}, "generationConfig.modelSelectionConfig"),
    ],
)
def test_what_is_wrong_with_the_configuration_is_named(config: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestRefusedError) as refused:
        read(configured(**config))
    assert refused.value.param == param


# ---- input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spelled", ["inlineData", "inline_data"])
def test_an_image_counts_by_the_rules_and_not_by_its_bytes(spelled: str) -> None:
    body = asked({"text": "What?"}, {spelled: {"mimeType": "image/png", "data": PNG}})
    demand = read(body).demand
    assert demand.input_tokens == len(json.dumps(body)) - len(PNG) + MAX_IMAGE_TOKENS + TEMPLATE_TOKENS
    assert demand.parts == {"image_input", "image_cache_read"} | OUTPUTS


def test_an_image_can_ask_for_more_tokens() -> None:
    small = read(asked({**inline("image/png", PNG), "mediaResolution": {"numTokens": 70}})).demand
    large = read(asked({**inline("image/png", PNG), "mediaResolution": {"numTokens": 9_000}})).demand
    assert large.input_tokens - small.input_tokens == 9_000 - MAX_IMAGE_TOKENS + len("9000") - len("70")


def test_text_in_a_file_counts_by_its_bytes() -> None:
    data = base64.b64encode(b"a,b\n" * 500).decode()
    body = asked(inline("text/csv", data))
    demand = read(body).demand
    assert (demand.input_tokens, demand.unseen) == (len(json.dumps(body)) + TEMPLATE_TOKENS, None)


@pytest.mark.parametrize(
    ("kind", "data", "seconds"),
    [
        ("audio/wav", wave(16_000, 2, 64_000), 2 + 1),  # What the head says, and a second for what decoders add.
        ("audio/flac", base64.b64encode(bytes(1_500)).decode(), 3 + 1),  # No length is stated: 4 kbit/s at least.
    ],
)
def test_audio_counts_by_its_length(kind: str, data: str, seconds: int) -> None:
    body = asked(inline(kind, data))
    demand = read(body).demand
    assert (demand.parts, demand.unseen) == ({"audio_input", "audio_cache_read"} | OUTPUTS, None)
    assert demand.input_tokens == len(json.dumps(body)) - len(data) + 32 * seconds + TEMPLATE_TOKENS


def test_audio_that_is_no_base64_can_not_be_seen() -> None:
    assert read(asked(inline("audio/wav", "not base64!"))).demand.unseen == "contents"


@pytest.mark.parametrize(
    ("fields", "unseen"),
    [
        (asked({"fileData": {"fileUri": "https://example.com/a.pdf"}}), "contents"),
        (asked({"file_data": {"file_uri": "gs://a/b.mp4"}}), "contents"),
        (asked(inline("video/mp4", PNG)), "contents"),
        (asked(inline("application/pdf", PNG)), "contents"),
        (asked(inline("application/octet-stream", PNG)), "contents"),
        (asked({"functionResponse": {"name": "f", "parts": [{"fileData": {"fileUri": "x"}}]}}), "contents"),
        (asked(systemInstruction={"parts": [{"fileData": {"fileUri": "x"}}]}), "systemInstruction"),
        (asked(cachedContent="cachedContents/a"), "cachedContent"),
        (asked(cached_content="cachedContents/a"), "cachedContent"),
        (asked(tools=[{"urlContext": {}}]), "tools"),
    ],
)
def test_what_can_not_be_seen_may_fill_the_window(fields: dict[str, Any], unseen: str) -> None:
    demand = read(fields).demand
    assert (demand.unseen, demand.parts) == (unseen, ALL_MEDIA | OUTPUTS)
    assert strict_bound(PRICE, demand).input_tokens == 1_048_576
    with pytest.raises(UnboundedError, match=unseen):
        strict_bound(Price(PRICE.rates, max_output_tokens=8_192), demand)


def test_an_image_in_a_function_response_counts() -> None:
    body = asked({"functionResponse": {"name": "f", "response": {"x": 1}, "parts": [inline("image/png", PNG)]}})
    assert read(body).demand.input_tokens == len(json.dumps(body)) - len(PNG) + MAX_IMAGE_TOKENS + TEMPLATE_TOKENS


def test_what_google_takes_for_a_list_of_one_is_read_as_one() -> None:
    body = {"contents": {"parts": {"text": "Hi"}}, "system_instruction": {"parts": {"fileData": {"fileUri": "x"}}}}
    assert read(body).demand.unseen == "systemInstruction"
    assert read({"contents": {"parts": "Hi"}, "systemInstruction": "Be brief"}).demand.unseen is None


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({}, "invalid_request", "contents"),
        ({"contents": []}, "invalid_request", "contents"),
        ({"contents": "Hi"}, "invalid_request", "contents"),
        ({"contents": [7]}, "invalid_request", "contents"),
        (asked(7), "invalid_request", "contents"),
        (asked({"hologram": {}}), "unpriced_feature", "contents"),
        (asked({"inlineData": {"mimeType": "image/png"}}), "invalid_request", "contents"),
        (asked({"inlineData": {"data": PNG}}), "invalid_request", "contents"),
        (asked({"inlineData": "x"}), "invalid_request", "inlineData"),
        (asked(newThing={}), "unpriced_feature", "newThing"),
        (asked(serviceTier="ludicrous"), "invalid_request", "serviceTier"),
        (asked(serviceTier=3), "invalid_request", "serviceTier"),
        (asked(tools=[{"codeExecution": {}}]), "unpriced_feature", "tools"),
        (asked(tools=[{"code_execution": {}}]), "unpriced_feature", "tools"),
        (asked(tools=[{"googleMaps": {}}]), "unpriced_feature", "tools"),
        (asked(tools=[{"fileSearch": {}}]), "unpriced_feature", "tools"),
        (asked(tools=[{"mcpServers": []}]), "unpriced_feature", "tools"),
        (asked(tools=[{"enterpriseWebSearch": {}}]), "unpriced_feature", "tools"),
        (asked(tools=["googleSearch"]), "invalid_request", "tools"),
        (asked(generationConfig=[]), "invalid_request", "generationConfig"),
    ],
)
def test_every_refusal_names_the_field(fields: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(RequestRefusedError) as refused:
        read(fields)
    assert (refused.value.code, refused.value.param) == (code, param)


# ---- tools and tiers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tool", ["googleSearch", "google_search", "googleSearchRetrieval", "google_search_retrieval"])
def test_a_search_is_bounded_where_the_prompt_is_charged_and_refused_where_the_query_is(tool: str) -> None:
    body = asked(tools=[{"functionDeclarations": [{"name": "f"}], tool: {}, "codeExecution": None}])
    demand = read(body).demand
    assert (dict(demand.counts), demand.unseen) == ({"web_searches": 1}, "tools")
    for model in ("gemini-3-flash-preview", "gemini-4-argon", "gemini-flash-latest"):
        with pytest.raises(RequestRefusedError, match="charged for each search") as refused:
            read(body, model=model)
        assert (refused.value.code, refused.value.param) == ("unpriced_feature", "tools")


def test_functions_cost_nothing_extra() -> None:
    demand = read(asked(tools=[{"functionDeclarations": [{"name": "f"}]}])).demand
    assert (dict(demand.counts), demand.unseen, demand.rounds) == ({}, None, 1)


def test_a_dearer_tier_needs_rates_of_its_own() -> None:
    tiered = Price(
        PRICE.rates,
        variants=(Variant({"service_tier": "priority"}, {"input": 540_000_000, "output": 4_500_000_000}),),
        max_output_tokens=10,
    )
    facts = read(asked(serviceTier="priority"))
    assert dict(facts.context) == {"service_tier": "priority"}
    plain = strict_bound(tiered, read(asked(serviceTier="standard")).demand).amount_nano
    assert strict_bound(tiered, facts.demand).amount_nano > plain
    with pytest.raises(UnpricedComponentError, match="service tier priority"):
        strict_bound(PRICE, facts.demand)


@pytest.mark.parametrize("tier", ["flex", "FLEX", "SERVICE_TIER_FLEX"])
def test_flex_may_still_be_served_as_standard(tier: str) -> None:
    flex = Variant({"service_tier": "flex"}, {"input": 150_000_000, "output": 1_250_000_000})
    facts = read(asked(service_tier=tier))
    assert dict(facts.context) == {"service_tier": "flex"}
    tiered = Price(PRICE.rates, variants=(flex,), max_output_tokens=10)
    standard = strict_bound(tiered, read(asked(service_tier=None)).demand)
    assert strict_bound(tiered, facts.demand).amount_nano >= standard.amount_nano


# ---- how others failed -----------------------------------------------------------------------------------------------


def cost(price: Price, answer: dict[str, Any], facts: RequestFacts) -> int:
    reader = BodyReader(facts.shape)
    reader.feed(json.dumps(answer).encode())
    return sum(each.cost_nano for each in price_usage(price, reader.finish().usage))


def test_the_long_context_tier_is_not_ignored() -> None:
    pro = Price(
        {"input": 1_250_000_000, "output": 10_000_000_000},
        (Tier(200_000, {"input": 2_500_000_000, "output": 15_000_000_000}),),
        max_output_tokens=1_000,
    )
    facts = read(asked({"text": "x" * 200_000}))
    answer = generated("gemini-2.5-pro", used=usage(200_001, 1_000))
    assert cost(pro, answer, facts) == 200_001 * 2_500 + 1_000 * 15_000
    assert strict_bound(pro, facts.demand).amount_nano >= cost(pro, answer, facts)


def test_audio_tokens_are_not_priced_as_text() -> None:
    price = Price({"input": 300_000_000, "audio_input": 1_000_000_000, "output": 2_500_000_000}, max_output_tokens=10)
    facts = read(asked(inline("audio/wav", wave(16_000, 2, 64_000))))
    used = usage(64, 0) | {"promptTokensDetails": modalities({"AUDIO": 64})}
    assert cost(price, generated(used=used), facts) == 64 * 1_000
    assert strict_bound(price, facts.demand).amount_nano >= 64 * 1_000


# ---- embeddings ------------------------------------------------------------------------------------------------------


def embed(*parts: object, **fields: Any) -> dict[str, Any]:
    return {"content": {"parts": list(parts) or [{"text": "Hi"}]}, **fields}


def test_an_embedding_writes_no_tokens() -> None:
    body = embed(model="models/gemini-embedding-001", taskType="RETRIEVAL_QUERY", outputDimensionality=64)
    facts = read(body, "embedContent", "gemini-embedding-001")
    assert (facts.demand.output_tokens_limit, facts.stream) == (0, False)
    assert facts.demand.input_tokens == len(json.dumps(body)) + TEMPLATE_TOKENS
    assert strict_bound(Price({"input": 150_000_000}), facts.demand).output_tokens == 0


def test_a_batch_of_embeddings_is_one_request_with_all_its_contents() -> None:
    body = {"requests": [embed(), embed(inline("image/png", PNG))]}
    demand = read(body, "batchEmbedContents", "gemini-embedding-2").demand
    text = len(json.dumps(body)) - len(PNG)
    assert demand.input_tokens == text + MAX_IMAGE_TOKENS + 2 * TEMPLATE_TOKENS
    assert (demand.required, demand.rounds) == ({"image_input"}, 1)


def test_each_content_of_a_batch_may_fill_the_window() -> None:
    video = embed(inline("video/mp4", PNG))
    demand = read({"requests": [video, embed()]}, "batchEmbedContents", "gemini-embedding-2").demand
    assert (demand.unseen, demand.rounds, demand.required) == (
        "content", 2, {"image_input", "audio_input", "video_input"},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "fields", "param"),
    [
        ("embedContent", {}, "content"),
        ("embedContent", embed(model="models/other"), "model"),
        ("embedContent", embed(tools=[]), "tools"),
        ("batchEmbedContents", {"requests": []}, "requests"),
        ("batchEmbedContents", {"requests": [embed(model="models/other")]}, "model"),
        ("batchEmbedContents", {"requests": [embed()], "other": 1}, "other"),
        ("batchEmbedContents", {"requests": [3]}, "requests"),
    ],
)
def test_a_refused_embedding_names_the_field(name: str, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestRefusedError) as refused:
        read(fields, name, "gemini-embedding-2")
    assert refused.value.param == param


# ---- credentials and errors ------------------------------------------------------------------------------------------


def test_the_key_goes_in_googles_own_header() -> None:
    assert DIALECT.credential_headers("AIza") == ((b"x-goog-api-key", b"AIza"),)
    assert DIALECT.credential_headers(None) == ()
    assert DIALECT.key_headers == ("x-goog-api-key",)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "INVALID_ARGUMENT"), (401, "UNAUTHENTICATED"), (402, "RESOURCE_EXHAUSTED"), (403, "PERMISSION_DENIED"),
        (404, "NOT_FOUND"), (413, "INVALID_ARGUMENT"), (429, "RESOURCE_EXHAUSTED"), (500, "INTERNAL"),
        (503, "UNAVAILABLE"), (504, "DEADLINE_EXCEEDED"), (599, "INTERNAL"),
    ],
)  # fmt: skip
def test_an_error_has_googles_envelope_and_all_our_fields(status: int, kind: str) -> None:
    fields = {"budget_id": "b1", "budget_remaining_usd": "0.10", "code": "never"}
    body = json.loads(DIALECT.error_body(status, "budget_exceeded", "No money left", "contents", fields))
    error = body["error"]
    assert list(body) == ["error"]
    assert (error["code"], error["status"], error["message"]) == (status, kind, "No money left")
    assert (error["reason"], error["param"]) == ("budget_exceeded", "contents")
    assert (error["budget_id"], error["budget_remaining_usd"]) == ("b1", "0.10")
    (info,) = error["details"]
    assert info["reason"] == "BUDGET_EXCEEDED"
    assert info["metadata"]["budget_id"] == "b1"


def test_an_error_in_mid_stream_is_an_event_or_ends_the_array() -> None:
    event = DIALECT.stream_error("vendor_timeout", "It took too long", {"request_id": "r"})
    assert event.startswith(b'\n\ndata: {"error":')
    assert event.endswith(b"}\n\n")
    error = json.loads(event.removeprefix(b"\n\ndata: "))["error"]
    assert (error["code"], error["status"], error["request_id"]) == (500, "INTERNAL", "r")
    end = DIALECT.stream_error("vendor_timeout", "It took too long", {}, "json_array")
    assert json.loads(b'[{"candidates":[]}' + end)[1]["error"]["message"] == "It took too long"
