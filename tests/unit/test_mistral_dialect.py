"""What a Mistral request can cost, by its fields, and what its dialect says when it refuses."""

import base64
import json
import struct
from typing import Any

import pytest

from services.core.estimate import UnboundedError, UnpricedComponentError, strict_bound
from services.core.pricing import Price, Variant
from services.gateway.vendors import RequestFacts, RequestRefusedError, RouteRequest
from services.gateway.vendors.fields import TEMPLATE_TOKENS
from services.gateway.vendors.mistral import MistralDialect
from services.gateway.vendors.mistral_chat import MAX_IMAGE_TOKENS, REASONING_TOKENS

DIALECT = MistralDialect()
SMALL = "mistral-small-latest"
PRICE = Price({"input": 150_000_000, "output": 600_000_000}, context_window=262_144)
PICTURE = "data:image/png;base64," + base64.b64encode(bytes(3_000)).decode()


def wave(seconds: int, rate_hz: int = 8_000) -> bytes:
    size = seconds * rate_hz * 2
    head = b"RIFF" + struct.pack("<I", 36 + size) + b"WAVEfmt "
    head += struct.pack("<IHHIIHH", 16, 1, 1, rate_hz, rate_hz * 2, 2, 16)
    return head + b"data" + struct.pack("<I", size) + bytes(size)


SOUND = base64.b64encode(wave(2)).decode()


def request_of(fields: object, name: str = "chat.completions", **more: Any) -> RouteRequest:
    body = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return RouteRequest(next(each for each in DIALECT.routes if each.name == name), body, **more)


def read(fields: object, name: str = "chat.completions", **more: Any) -> RequestFacts:
    return DIALECT.read_request(request_of(fields, name, **more))


def asked(*parts: object, **fields: Any) -> dict[str, Any]:
    return {"model": SMALL, "messages": [{"role": "user", "content": list(parts) or "Hi"}], **fields}


def form(**fields: object) -> tuple[bytes, str]:
    lines = []
    for name, value in fields.items():
        is_file = isinstance(value, bytes)
        named = f'; filename="{name}.wav"' if is_file else ""
        data = value if isinstance(value, bytes) else str(value).encode()
        lines.append(f'--B\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'.encode() + data + b"\r\n")
    return b"".join(lines) + b"--B--\r\n", "multipart/form-data; boundary=B"


def hear(**fields: object) -> RequestFacts:
    body, kind = form(**fields)
    return read(body, "audio.transcriptions", content_type=kind)


# ---- routes -----------------------------------------------------------------------------------------------------


def test_every_route_that_costs_money_is_held_read_and_priced_by_its_answer() -> None:
    assert len({(each.method, each.path) for each in DIALECT.routes}) == len(DIALECT.routes)
    held = {each.name for each in DIALECT.routes if each.billing == "held"}
    assert held == set(DIALECT.shapes)
    assert {each.name for each in DIALECT.routes if each.billing != "held"} == {"models", "models.get"}
    paths = {each.path for each in DIALECT.routes}
    assert {"/v1/chat/completions", "/v1/fim/completions", "/v1/embeddings", "/v1/ocr"} <= paths
    assert {"/v1/moderations", "/v1/chat/moderations", "/v1/classifications", "/v1/audio/transcriptions"} <= paths
    assert not any("agents" in path or "conversations" in path for path in paths)


# ---- chat -----------------------------------------------------------------------------------------------------------


def test_a_chat_as_it_is() -> None:
    body = b' {"model":"mistral-small-latest","messages":[{"role":"user","content":"Hi"}],"stream":true} '
    facts = read(body)
    assert (facts.model, facts.stream, facts.framing, facts.hide_usage_chunk) == (SMALL, True, "sse", False)
    assert facts.body is body
    demand = facts.demand
    assert (demand.input_tokens, demand.output_tokens_limit) == (len(body) + TEMPLATE_TOKENS, None)
    assert (demand.choices, demand.parts, dict(demand.counts)) == (1, frozenset(), {})


def test_choices_are_not_bounded_as_one() -> None:
    demand = read(asked(n=4, max_tokens=100)).demand
    assert strict_bound(PRICE, demand).output_tokens == 400


def test_what_is_predicted_can_be_charged_beside_the_answer() -> None:
    prediction = {"type": "content", "content": "x" * 50}
    assert read(asked(max_tokens=100, prediction=prediction)).demand.output_tokens_limit == 150
    with pytest.raises(RequestRefusedError, match="prediction") as refused:
        read(asked(prediction=prediction))
    assert refused.value.param == "max_tokens"


@pytest.mark.parametrize(
    "fields", [{"prompt_mode": "reasoning"}, {"reasoning_effort": "high"}, {"model": "magistral-medium-latest"}]
)
def test_reasoning_brings_a_system_prompt(fields: dict[str, Any]) -> None:
    body = asked(**fields)
    assert read(body).demand.input_tokens == len(json.dumps(body)) + TEMPLATE_TOKENS + REASONING_TOKENS


@pytest.mark.parametrize("image", [PICTURE, {"url": PICTURE, "detail": "high"}])
def test_an_image_counts_by_the_rules_and_not_by_its_bytes(image: object) -> None:
    body = asked({"type": "image_url", "image_url": image})
    demand = read(body).demand
    assert demand.input_tokens == len(json.dumps(body)) - len(PICTURE) + MAX_IMAGE_TOKENS + TEMPLATE_TOKENS
    assert demand.parts == {"image_input"}


def test_an_image_at_an_address_counts_the_same() -> None:
    body = asked({"type": "image_url", "image_url": "https://example.com/a.png"})
    assert read(body).demand.input_tokens == len(json.dumps(body)) + MAX_IMAGE_TOKENS + TEMPLATE_TOKENS


@pytest.mark.parametrize("audio", [SOUND, {"data": SOUND, "format": "wav"}, "data:audio/wav;base64," + SOUND])
def test_audio_is_bounded_by_its_length(audio: Any) -> None:
    body = asked({"type": "input_audio", "input_audio": audio})
    demand = read(body).demand
    coded = audio["data"] if isinstance(audio, dict) else audio
    assert dict(demand.counts) == {"audio_ms": 3_000}  # Two seconds, and one for what decoders add.
    assert demand.input_tokens == len(json.dumps(body)) - len(coded) + 375 + TEMPLATE_TOKENS
    with pytest.raises(UnpricedComponentError, match="audio duration"):
        strict_bound(PRICE, demand)


@pytest.mark.parametrize("tier", ["standard", "DEFAULT", "standard_only"])
def test_the_standard_tier_is_only_that(tier: str) -> None:
    facts = read(asked(service_tier=tier))
    assert (facts.demand.contexts, dict(facts.context)) == (({},), {})


def test_a_dearer_tier_needs_rates_of_its_own_and_may_come_unasked() -> None:
    rates = {"input": 300_000_000, "output": 1_200_000_000}
    tiered = Price(PRICE.rates, variants=(Variant({"service_tier": "priority"}, rates),), max_output_tokens=10)
    asked_for = read(asked(service_tier="priority"))
    assert dict(asked_for.context) == {"service_tier": "priority"}
    with pytest.raises(UnpricedComponentError, match="service tier priority"):
        strict_bound(PRICE, asked_for.demand)
    unasked = read(asked())
    assert dict(unasked.context) == {}
    plain = strict_bound(tiered, read(asked(service_tier="standard")).demand).amount_nano
    assert strict_bound(tiered, unasked.demand).amount_nano > plain


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"messages": []}, "invalid_request", "model"),
        ({"model": SMALL}, "invalid_request", "messages"),
        (asked(messages="Hi"), "invalid_request", "messages"),
        (asked(messages=["Hi"]), "invalid_request", "messages"),
        (asked(messages=[{"content": 7}]), "invalid_request", "messages"),
        (asked(7), "invalid_request", "messages"),
        (asked({"type": "hologram"}), "unpriced_feature", "messages"),
        (asked({"type": "document_url", "document_url": "https://x"}), "unpriced_feature", "messages"),
        (asked({"type": "text", "text": "", "document_url": "https://x"}), "unpriced_feature", "messages"),
        (asked({"type": "file", "file_id": "f"}), "unpriced_feature", "messages"),
        (asked({"type": "image_url", "image_url": 3}), "invalid_request", "messages"),
        (asked({"type": "input_audio", "input_audio": "https://x/a.mp3"}), "unpriced_feature", "messages"),
        (asked({"type": "input_audio", "input_audio": "%%%"}), "invalid_request", "messages"),
        (asked({"type": "input_audio", "input_audio": []}), "invalid_request", "messages"),
        (asked(tools=[{"type": "web_search"}]), "unpriced_feature", "tools"),
        (asked(tools=[{"type": "connector", "id": "c"}]), "unpriced_feature", "tools"),
        (asked(guardrails=[{"block_on_error": True}]), "unpriced_feature", "guardrails"),
        (asked(max_completion_tokens=5), "unpriced_feature", "max_completion_tokens"),
        (asked(agent_id="a"), "unpriced_feature", "agent_id"),
        (asked(n=0), "invalid_request", "n"),
        (asked(max_tokens=0), "invalid_request", "max_tokens"),
        (asked(stream="yes"), "invalid_request", "stream"),
        (asked(service_tier=1), "invalid_request", "service_tier"),
        (asked(Max_Tokens=5), "invalid_request", "max_tokens"),
    ],
)
def test_every_refusal_names_the_field(fields: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(RequestRefusedError) as refused:
        read(fields)
    assert (refused.value.code, refused.value.param) == (code, param)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"model":"a","model":"b","messages":[]}', "model"),
        (b'{"model":"a","messages":[{"content":[{"type":"file"}],"content":"Hi"}]}', "content"),
        (b'{"model":"a","messages":[],"max_tokens":1,"max\\u005ftokens":9}', "max_tokens"),
    ],
)
def test_a_field_that_is_there_twice_is_refused_at_any_depth(body: bytes, param: str) -> None:
    with pytest.raises(RequestRefusedError, match="more than once") as refused:
        read(body)
    assert refused.value.param == param


def test_a_body_that_is_nested_too_deeply_is_refused() -> None:
    with pytest.raises(RequestRefusedError):
        read(b'{"model":"a","messages":[],"metadata":' + b"[" * 1_000 + b"]" * 1_000 + b"}")


def test_what_costs_nothing_extra_is_let_through() -> None:
    body = asked(
        {"type": "text", "text": "Hi"}, {"type": "thinking", "thinking": []}, {"type": "reference"},
        tools=[{"type": "function", "function": {"name": "f"}}, {"function": {"name": "g"}}], tool_choice="any",
        response_format={"type": "json_object"}, safe_prompt=True, random_seed=7, guardrails=None, prediction=None,
    )  # fmt: skip
    assert read(body).demand.input_tokens == len(json.dumps(body)) + TEMPLATE_TOKENS


# ---- code, embeddings, classifiers -----------------------------------------------------------------------------------


def test_code_is_bounded_by_its_prompt_and_suffix() -> None:
    body = {"model": "codestral-latest", "prompt": "def f(", "suffix": "return", "max_tokens": 7, "stream": True}
    facts = read(body, "fim.completions")
    assert (facts.stream, facts.demand.output_tokens_limit) == (True, 7)
    assert facts.demand.input_tokens == len(json.dumps(body)) + TEMPLATE_TOKENS
    with pytest.raises(RequestRefusedError) as refused:
        read({**body, "messages": []}, "fim.completions")
    assert refused.value.param == "messages"


@pytest.mark.parametrize("name", ["embeddings", "moderations", "chat.moderations", "classifications"])
def test_what_reads_only_writes_no_tokens(name: str) -> None:
    body = {"model": "some-model", "input": ["Hi", "there"]}
    demand = read(body, name).demand
    templates = 1 if name == "embeddings" else 2
    assert (demand.input_tokens, demand.output_tokens_limit) == (
        len(json.dumps(body)) + templates * TEMPLATE_TOKENS,
        0,
    )
    for missing in ({}, {"input": None}, {"input": []}, {"input": ""}):
        with pytest.raises(RequestRefusedError) as refused:
            read({"model": "some-model", **missing}, name)
        assert refused.value.param == "input"


# ---- OCR -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "pages"),
    [
        ({"document": {"type": "document_url", "document_url": "https://x/a.pdf"}}, 1_000),
        ({"document": {"type": "file", "file_id": "f"}}, 1_000),
        ({"document": {"type": "image_url", "image_url": "https://x/a.tiff"}}, 1_000),
        ({"document": {"type": "image_url", "image_url": "data:image/tiff;base64,AA"}}, 1_000),
        ({"document": {"type": "image_url", "image_url": PICTURE}}, 1),
        ({"document": {"type": "image_url", "image_url": {"url": PICTURE}}}, 1),
        ({"document": {"type": "image_url", "image_url": PICTURE, "file_id": "f"}}, 1_000),
        ({"document": {"file_id": "f"}, "pages": [0, 3, 7]}, 3),
        ({"document": {"file_id": "f"}, "pages": "0-5"}, 6),
        ({"document": {"file_id": "f"}, "pages": "0, 2-4,9"}, 5),
        ({"document": {"file_id": "f"}, "pages": "0-99999"}, 1_000),
        ({"document": {"file_id": "f"}, "pages": None}, 1_000),
    ],
)
def test_how_many_pages_are_read_at_most(fields: dict[str, Any], pages: int) -> None:
    demand = read({"model": "mistral-ocr-latest", **fields}, "ocr").demand
    assert (dict(demand.counts), demand.input_tokens, demand.output_tokens_limit) == ({"pages": pages}, 0, 0)
    bound = strict_bound(Price({"page": 2_000_000_000_000, "annotated_page": 3_000_000_000_000}), demand)
    assert bound.amount_nano >= pages * 2_000_000


@pytest.mark.parametrize("name", ["bbox_annotation_format", "document_annotation_format"])
def test_annotations_must_have_a_price(name: str) -> None:
    body = {"model": "mistral-ocr-latest", "document": {"file_id": "f"}, "pages": [0], name: {"type": "json_schema"}}
    facts = read(body, "ocr")
    assert dict(facts.demand.counts) == {"pages": 1, "annotated_pages": 1}
    assert facts.shape.needed == ("pages", "annotated_pages")
    with pytest.raises(UnpricedComponentError, match="annotated page"):
        strict_bound(Price({"page": 1_000_000_000_000}), facts.demand)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "document"),
        ({"document": "https://x"}, "document"),
        ({"document": {}, "pages": []}, "pages"),
        ({"document": {}, "pages": [-1]}, "pages"),
        ({"document": {}, "pages": "5-2"}, "pages"),
        ({"document": {}, "pages": "1,,2"}, "pages"),
        ({"document": {}, "pages": 4}, "pages"),
        ({"document": {}, "pages": "all"}, "pages"),
        ({"document": {}, "model": None}, "model"),
        ({"document": {}, "webhook": "x"}, "webhook"),
    ],
)
def test_a_refused_ocr_names_the_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestRefusedError) as refused:
        read({"model": "mistral-ocr-latest", **fields}, "ocr")
    assert refused.value.param == param


# ---- transcriptions --------------------------------------------------------------------------------------------------


def test_a_transcription_is_bounded_by_its_audio() -> None:
    facts = hear(model="voxtral-mini-latest", file=wave(2), stream="true", language="en")
    assert (facts.model, facts.stream) == ("voxtral-mini-latest", True)
    assert dict(facts.demand.counts) == {"audio_ms": 3_000}
    assert (facts.demand.input_tokens, facts.demand.output_tokens_limit) == (0, 0)
    hour = Price({"audio_duration": 180_000_000})
    assert strict_bound(hour, facts.demand).amount_nano == 3 * 180_000_000 // 3_600


def test_a_chat_model_that_transcribes_is_bounded_in_tokens_too() -> None:
    demand = hear(model="voxtral-small-latest", file=wave(2)).demand
    assert demand.input_tokens > 375
    assert demand.output_tokens_limit is None
    with pytest.raises(UnboundedError):
        strict_bound(Price({"input": 1, "output": 1, "audio_duration": 1}), demand)
    assert hear(model="voxtral-small-transcribe-3-0", file=wave(2)).demand.input_tokens == 0


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": "v"}, "file"),
        ({"model": "v", "file": "text"}, "file"),
        ({"model": "v", "file_url": "https://x/a.mp3"}, "file_url"),
        ({"model": "v", "file_id": "f"}, "file_id"),
        ({"model": "v", "file": b"RIFF", "prompt": "x"}, "prompt"),
        ({"file": b"RIFF"}, "model"),
        ({"model": "v", "file": b"RIFF", "stream": "perhaps"}, "stream"),
    ],
)
def test_a_refused_transcription_names_the_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestRefusedError) as refused:
        hear(**fields)
    assert refused.value.param == param


# ---- fallback, credentials, errors -----------------------------------------------------------------------------------


def test_a_fallback_renames_the_model_and_nothing_else() -> None:
    renamed = DIALECT.renamed(request_of(b'{"messages":[],"model": "a" ,"n":1}'), "mistral-large-latest")
    assert renamed.body == b'{"messages":[],"model": "mistral-large-latest" ,"n":1}'
    for name in ("embeddings", "audio.transcriptions"):
        with pytest.raises(RequestRefusedError, match="stand in"):
            DIALECT.renamed(request_of({}, name), "b")


def test_the_key_is_a_bearer_token() -> None:
    assert DIALECT.credential_headers("k") == ((b"authorization", b"Bearer k"),)
    assert DIALECT.credential_headers(None) == ()


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"), (401, "authentication_error"), (402, "payment_required"),
        (403, "permission_error"), (404, "not_found"), (422, "invalid_request_error"), (429, "rate_limited"),
        (500, "internal_server_error"), (503, "unreachable_backend"),
    ],
)  # fmt: skip
def test_an_error_has_mistrals_flat_envelope_and_all_our_fields(status: int, kind: str) -> None:
    fields = {"budget_id": "b1", "budget_remaining_usd": "0.10", "code": "never"}
    body = json.loads(DIALECT.error_body(status, "budget_exceeded", "No money left", "max_tokens", fields))
    assert body == {
        "object": "error", "message": "No money left", "type": kind, "param": "max_tokens", "code": "budget_exceeded",
        "budget_id": "b1", "budget_remaining_usd": "0.10",
    }  # fmt: skip


def test_an_error_in_mid_stream_is_an_event() -> None:
    event = DIALECT.stream_error("vendor_timeout", "It took too long", {"request_id": "r"})
    assert event.startswith(b"\n\ndata: {")
    assert event.endswith(b"}\n\n")
    body = json.loads(event.removeprefix(b"\n\ndata: "))
    assert (body["object"], body["message"], body["request_id"]) == ("error", "It took too long", "r")
