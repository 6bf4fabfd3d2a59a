"""``farthing price``: one answer, or one a line; what is not said is found out; no price without a named reason."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from services.cli import app
from services.commands.errors import CommandError
from services.commands.price_answer import NoPriceError, instant, priced
from services.commands.price_lines import price_lines, read_answer
from services.commands.price_routes import UnknownRouteError, route_of, values_of
from services.core.catalog import Catalog, catalog_version, decode_catalog
from services.gateway.vendors.registry import routes_of

MAY_MS = 1_777_593_600_000  # 2026-05-01


def entry(vendor: str, model: str, usd: Mapping[str, str], **fields: Any) -> dict[str, Any]:
    return {"vendor": vendor, "model": model, "prices": [{"usd": usd}], **fields}


# Round prices, so that every cost below is plain: a dollar a million tokens is a thousand nano-dollars a token.
DOCUMENT: dict[str, Any] = {
    "format": 2,
    "models": [
        entry(
            "openai",
            "gpt-test",
            {"input": "2", "cache_read": "1", "output": "8"},
            variants=[
                {"when": {"processing": "batch"}, "usd": {"input": "1", "output": "4"}},
                {"when": {"service_tier": "priority"}, "from": "2026-06-01", "usd": {"input": "4", "output": "16"}},
            ],
        ),
        entry("openai", "embed-test", {"input": "3"}),
        entry("openai", "whisper-test", {"audio_duration": "0.36"}),
        entry("openai", "hear-test", {"input": "2", "audio_input": "6", "output": "10"}),
        {
            "vendor": "openai",
            "model": "dated-test",
            "prices": [
                {"usd": {"input": "1", "output": "1"}},
                {"from": "2026-06-01", "usd": {"input": "5", "output": "5"}},
            ],
        },
        entry("groq", "llama-test", {"input": "1", "output": "1"}),
    ],
}


def catalog_bytes() -> bytes:
    return json.dumps({"version": catalog_version(DOCUMENT), **DOCUMENT}).encode()


def catalog() -> Catalog:
    return decode_catalog(catalog_bytes())


def chat(model: str = "gpt-test", **changes: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": MAY_MS // 1000,
        "model": model,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": 40}},
        **changes,
    }


def transcript(*values: Mapping[str, Any], end: str = "data: [DONE]\n\n") -> str:
    return "".join(f"data: {json.dumps(value)}\n\n" for value in values) + end


def chunks(**usage: Any) -> list[dict[str, Any]]:
    head = {"object": "chat.completion.chunk", "created": MAY_MS // 1000, "model": "gpt-test"}
    return [
        {**head, "choices": [{"index": 0, "delta": {"content": "Hello"}}], "usage": None},
        {**head, "choices": [], "usage": usage or chat()["usage"]},
    ]


# Sixty tokens at two dollars a million, forty cached ones at one, ten of output at eight.
COST = "0.000240000"


def line(**fields: Any) -> bytes:
    return json.dumps({"id": "a", "vendor": "openai", **fields}).encode()


def prices_of(*lines: bytes, **defaults: Any) -> list[dict[str, Any]]:
    return [json.loads(each) for each in price_lines(catalog(), lines, defaults)]


# ---- One answer -----------------------------------------------------------------------------------------------------


def test_an_answer_is_priced_with_all_that_tells_how() -> None:
    (found,) = prices_of(line(body=chat()))
    assert found == {
        "id": "a",
        "vendor": "openai",
        "route": "chat.completions",
        "model": "gpt-test",
        "model_priced": "gpt-test",
        "match": "exact",
        "catalog_version": catalog().version,
        "at": "2026-05-01T00:00:00Z",
        "context": {},
        "complete": True,
        "usage": {"input_tokens": 100, "output_tokens": 10, "cache_read_tokens": 40},
        "components": [
            component("input", 60, "2.000000000", "0.000120000"),
            component("cache_read", 40, "1.000000000", "0.000040000"),
            component("output", 10, "8.000000000", "0.000080000"),
        ],
        "cost_usd": COST,
    }


def component(name: str, quantity: int, price_usd: str, cost_usd: str) -> dict[str, Any]:
    return {"component": name, "quantity": quantity, "price_usd": price_usd, "per": 1_000_000, "cost_usd": cost_usd}


def test_a_stream_costs_what_the_same_answer_costs() -> None:
    (found,) = prices_of(line(stream=transcript(*chunks())))
    assert (found["cost_usd"], found["complete"], found["at"]) == (COST, True, "2026-05-01T00:00:00Z")


def test_a_stream_that_broke_off_after_its_usage_says_so() -> None:
    head, usage = chunks()
    (found,) = prices_of(line(stream=transcript({**head, "usage": usage["usage"]}, end="data: {")))
    assert (found["cost_usd"], found["complete"]) == (COST, False)


def test_an_explicit_zero_is_a_zero() -> None:
    nothing = {"prompt_tokens": 0, "completion_tokens": 0}
    (found,) = prices_of(line(body=chat(usage=nothing)))
    assert found["cost_usd"] == "0.000000000"


def test_a_json_answer_about_streams_is_no_stream() -> None:
    said = [{"index": 0, "message": {"role": "assistant", "content": "data: [DONE]\n\ndata: {}"}}]
    (found,) = prices_of(line(body=json.dumps(chat(choices=said))))
    assert found["cost_usd"] == COST


def test_the_model_asked_for_counts_before_the_one_that_answered() -> None:
    (found,) = prices_of(line(body=chat("some-deployment"), model="openai/gpt-test-2026-01-31"))
    assert (found["model"], found["model_priced"], found["match"]) == (
        "openai/gpt-test-2026-01-31",
        "gpt-test",
        "normalised",
    )


def test_the_price_is_that_of_the_moment() -> None:
    usage = {"prompt_tokens": 100, "completion_tokens": 0}
    before, after, said, seconds = prices_of(
        line(body=chat("dated-test", usage=usage)),
        line(body=chat("dated-test", usage=usage, created=MAY_MS // 1000 + 31 * 86_400)),
        line(body=chat("dated-test", usage=usage), at="2026-06-01"),
        line(body=chat("dated-test", usage=usage), at=MAY_MS // 1000 + 31 * 86_400),
    )
    assert before["cost_usd"] == "0.000100000"
    assert {each["cost_usd"] for each in (after, said, seconds)} == {"0.000500000"}


def test_an_answer_without_a_time_is_priced_as_of_now() -> None:
    answer = read_answer({"vendor": "openai", "body": {**chat("dated-test"), "created": None}})
    early = priced(catalog(), answer, MAY_MS)
    late = priced(catalog(), answer, MAY_MS + 31 * 86_400_000)
    assert early["at"] == "2026-05-01T00:00:00Z"
    assert int(late["cost_usd"].replace(".", "")) == 5 * int(early["cost_usd"].replace(".", ""))


def test_what_picks_the_rates_comes_from_the_answer_or_its_caller() -> None:
    at = "2026-06-01"
    told, said, batch, before = prices_of(
        line(body=chat(service_tier="priority"), at=at),
        line(body=chat(service_tier="default"), at=at, service_tier="priority"),
        line(body=chat(service_tier="default"), at=at, batch=True),
        line(body=chat(service_tier="priority"), at="2026-05-31"),
    )
    # Sixty at four dollars and ten at sixteen; the cached forty have no price of their own tier.
    assert told["cost_usd"] == said["cost_usd"] == "0.000440000"
    assert told["context"] == {"service_tier": "priority"}
    assert batch["cost_usd"] == "0.000140000"
    # Before the tier had a price, what it cost is not known: the standard price would be a guess.
    assert before["error"] == "unpriced_context"
    assert "service_tier=priority" in before["message"]


@pytest.mark.parametrize("batch", ["false", "no", 1, {}])
def test_whether_it_was_a_batch_is_true_or_false(batch: object) -> None:
    (answer,) = prices_of(line(body=chat(), batch=batch))
    assert answer["error"] == "invalid_field"
    assert "batch" in answer["message"]


def test_a_vendor_that_speaks_another_s_protocol_has_prices_of_its_own() -> None:
    (found,) = prices_of(line(vendor="groq", body=chat("llama-test")))
    assert (found["vendor"], found["cost_usd"]) == ("groq", "0.000110000")


def test_embeddings_are_not_priced_as_chat() -> None:
    body = {"object": "list", "data": [], "model": "embed-test", "usage": {"prompt_tokens": 8, "total_tokens": 8}}
    (found,) = prices_of(line(body=body))
    assert (found["route"], found["cost_usd"]) == ("embeddings", "0.000024000")


def test_transcripts_are_priced_by_the_hour_or_by_the_token_as_their_model_is() -> None:
    by_time = {"text": "Hello", "usage": {"type": "duration", "seconds": 20}}
    tokens = {"input_tokens": 50, "output_tokens": 5, "input_token_details": {"audio_tokens": 50, "text_tokens": 0}}
    by_token = {"text": "Hello", "usage": {"type": "tokens", **tokens}}
    hour, token = prices_of(
        line(body=by_time, model="whisper-test", route="audio.transcriptions"),
        line(body=by_token, model="hear-test", route="audio.transcriptions"),
    )
    # A hundred and eightieth of an hour at 36 cents; fifty audio tokens at six dollars and five at ten.
    assert hour["cost_usd"] == "0.002000000"
    assert hour["components"][0]["per"] == 3_600_000
    assert token["cost_usd"] == "0.000350000"


# ---- Named errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "fields"),
    [
        ("invalid_field", {"body": chat(), "stream": "data: {}\n\n"}),
        ("invalid_field", {}),
        ("invalid_field", {"body": chat(), "vendor": None}),
        ("invalid_field", {"body": chat(), "model": 7}),
        ("invalid_field", {"body": chat(), "at": "yesterday"}),
        ("invalid_field", {"body": chat(), "at": True}),
        ("invalid_field", {"stream": ["data: {}"]}),
        ("unknown_vendor", {"body": chat(), "vendor": "nobody"}),
        ("unknown_route", {"body": chat(), "route": "chat"}),
        ("unknown_route", {"body": {"hello": "world"}}),
        ("unknown_route", {"stream": "data: hello\n\n"}),
        ("unreadable_answer", {"body": "{"}),
        ("unreadable_answer", {"body": 7}),
        ("usage_not_reported", {"body": chat(usage=None)}),
        ("usage_not_reported", {"body": chat(usage={"prompt_tokens": 5})}),
        ("usage_not_reported", {"body": chat(usage={"prompt_tokens": -5, "completion_tokens": "7"})}),
        ("usage_not_reported", {"stream": transcript(chunks()[0])}),
        ("model_missing", {"body": chat(model="")}),
        ("unknown_model", {"body": chat("gpt-test-2")}),
        ("unknown_model", {"body": chat("llama-test")}),
        ("unpriced_component", {"body": chat("embed-test")}),
    ],
)
def test_each_reason_has_a_name(code: str, fields: dict[str, Any]) -> None:
    (found,) = prices_of(line(**fields))
    assert found["error"] == code
    assert found["id"] == "a"
    assert found["message"]
    assert set(found) == {"error", "message", "id"}


def test_one_bad_line_stops_no_other() -> None:
    found = prices_of(line(body=chat()), b"nonsense\n", b"\n", b"[]\n", b"\xff\n", line(body=chat()))
    assert [each.get("error") for each in found] == [None, "invalid_line", "invalid_line", "invalid_line", None]
    # What has no id is called by the number of its line.
    assert [each["id"] for each in found] == ["a", 2, 4, 5, "a"]


def test_any_id_is_given_back() -> None:
    for name in (0, "", None, ["x"], {"a": 1}):
        (found,) = prices_of(json.dumps({"id": name, "vendor": "openai", "body": chat()}).encode())
        assert found["id"] == name


def test_a_line_overrides_the_options() -> None:
    mine, usual = prices_of(
        json.dumps({"body": chat("llama-test"), "vendor": "groq"}).encode(),
        json.dumps({"body": chat(), "vendor": None, "model": None}).encode(),
        vendor="openai",
    )
    assert (mine["vendor"], usual["vendor"]) == ("groq", "openai")


# ---- The command ----------------------------------------------------------------------------------------------------


def run(*arguments: str, given: bytes, tmp_path: Path) -> Result:
    path = tmp_path / "catalog.json"
    path.write_bytes(catalog_bytes())
    return CliRunner().invoke(app, ["price", "--catalog", str(path), *arguments], input=given)


def test_the_command_prices_what_it_reads(tmp_path: Path) -> None:
    result = run("--vendor", "openai", given=json.dumps(chat()).encode(), tmp_path=tmp_path)
    assert result.exit_code == 0
    assert f"Total US$ {COST}" in result.output
    assert "gpt-test priced as gpt-test (exact)" in result.output
    assert catalog().version in result.output
    assert "cache read" in result.output


def test_the_command_prints_json(tmp_path: Path) -> None:
    arguments = ("--vendor", "openai", "--route", "chat.completions", "--at", "2026-05-01", "--json")
    result = run(*arguments, given=json.dumps(chat()).encode(), tmp_path=tmp_path)
    assert json.loads(result.output)["cost_usd"] == COST


def test_the_command_prices_a_stream(tmp_path: Path) -> None:
    given = transcript(*chunks()).encode()
    result = run("--vendor", "openai", "--stream", "--json", given=given, tmp_path=tmp_path)
    assert json.loads(result.output)["cost_usd"] == COST


def test_the_command_names_what_went_wrong(tmp_path: Path) -> None:
    result = run("--vendor", "openai", given=json.dumps(chat("nothing")).encode(), tmp_path=tmp_path)
    assert isinstance(result.exception, CommandError)
    assert result.exception.code == "unknown_model"


@pytest.mark.parametrize(("lines", "code"), [([line(body=chat())], 0), ([line(body=chat()), b"x"], 1), ([], 0)])
def test_the_exit_code_says_whether_all_were_priced(lines: list[bytes], code: int, tmp_path: Path) -> None:
    result = run("--jsonl", given=b"\n".join(lines), tmp_path=tmp_path)
    assert result.exit_code == code
    assert len(result.output.splitlines()) == len(lines)


def test_a_catalog_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}")
    for name in ("other.json", "missing.json"):
        result = CliRunner().invoke(app, ["price", "--catalog", str(tmp_path / name), "--jsonl"], input=b"")
        assert isinstance(result.exception, CommandError)
        assert result.exception.code == "unreadable_catalog"


def test_it_knows_the_shipped_catalog() -> None:
    body = chat("gpt-4o", usage={"prompt_tokens": 1_000_000, "completion_tokens": 1_000_000})
    result = CliRunner().invoke(app, ["price", "--vendor", "openai", "--json"], input=json.dumps(body).encode())
    # Two and a half dollars and ten, by the vendor's list.
    assert json.loads(result.output)["cost_usd"] == "12.500000000"


# ---- Finding out ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vendor", "value", "route"),
    [
        ("openai", {"object": "chat.completion"}, "chat.completions"),
        ("openai", {"choices": [], "usage": {}}, "chat.completions"),
        ("openai", {"object": "text_completion"}, "completions"),
        ("openai", {"object": "response"}, "responses"),
        ("openai", {"type": "response.created", "response": {"object": "response"}}, "responses"),
        ("openai", {"object": "list", "data": [], "usage": {}}, "embeddings"),
        ("openai", {"created": 1, "data": [], "usage": {}}, "images.generations"),
        ("openai", {"text": "a", "usage": {}}, "audio.transcriptions"),
        ("openai", {"type": "transcript.text.done"}, "audio.transcriptions"),
        ("anthropic", {"type": "message"}, "messages"),
        ("anthropic", {"type": "message_start"}, "messages"),
        ("anthropic", {"custom_id": "a", "result": {}}, "messages.batches.results"),
        ("google", {"candidates": []}, "generateContent"),
        ("mistral", {"object": "chat.completion"}, "chat.completions"),
        ("mistral", {"pages": [], "usage_info": {}}, "ocr"),
        ("cohere", {"message": {}, "finish_reason": "COMPLETE"}, "chat"),
        ("cohere", {"type": "message-start"}, "chat"),
        ("cohere", {"text": "", "generation_id": ""}, "chat.v1"),
        ("cohere", {"event_type": "stream-start"}, "chat.v1"),
        ("cohere", {"embeddings": {}, "meta": {}}, "embed"),
        ("cohere", {"results": [], "meta": {}}, "rerank"),
        ("google", {"embeddings": []}, "batchEmbedContents"),
        ("google", {"embedding": {}}, "embedContent"),
    ],
)
def test_a_route_is_found_from_what_an_answer_says_it_is(vendor: str, value: dict[str, Any], route: str) -> None:
    assert route_of(KNOWN[vendor], [value], is_stream=False) == route


KNOWN = {
    "openai": routes_of("openai"),
    "anthropic": ("messages", "messages.batches", "messages.batches.results"),
    "mistral": ("chat.completions", "fim.completions", "embeddings", "ocr"),
    "cohere": ("chat", "chat.v1", "embed", "embed.v1", "rerank", "rerank.v1"),
    "google": ("generateContent", "streamGenerateContent", "embedContent", "batchEmbedContents"),
}


def test_a_route_is_found_only_among_the_vendor_s() -> None:
    with pytest.raises(UnknownRouteError):
        route_of(KNOWN["openai"], [{"type": "message"}], is_stream=False)
    assert route_of(KNOWN["google"], [{"candidates": []}], is_stream=True) == "streamGenerateContent"


@pytest.mark.parametrize(
    "head",
    [
        b'data: {"object": "x"}\n\n',
        b': hello\n\nevent: ping\ndata: {"object": "x"}\n\n',
        b'\xef\xbb\xbfdata: {"object": "x"}\r\n\r\n',
        b'[{"object": "x"}\n,{"object": "y"}]',
        b'{"object": "x"}\n{"object": "y"}\n',
        b": " + b"-" * 5_000 + b'\n\ndata: {"object": "x"}\n\n',
    ],
)
def test_the_first_values_of_a_transcript_are_read_in_any_framing(head: bytes) -> None:
    assert values_of(head)[0] == {"object": "x"}


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("2026-05-01", MAY_MS),
        ("2026-05-01T02:00:00+02:00", MAY_MS),
        ("2026-05-01T00:00:00Z", MAY_MS),
        (MAY_MS // 1000, MAY_MS),
        (MAY_MS, MAY_MS),
        (MAY_MS / 1000 + 0.25, MAY_MS + 250),
        ("soon", None),
        ("1969-12-31", None),
        ("9999-12-31T23:59:59-12:00", None),
        (float("inf"), None),
        (10**18, None),
        ("", None),
        (True, None),
        (-1, None),
        ([], None),
    ],
)
def test_moments(value: object, found: int | None) -> None:
    assert instant(value) == found


def test_an_answer_of_its_own_error_is_named_so() -> None:
    answer = read_answer({"vendor": "openai", "route": "chat.completions", "body": {"error": {"code": "overloaded"}}})
    with pytest.raises(NoPriceError):
        priced(catalog(), answer, MAY_MS)
