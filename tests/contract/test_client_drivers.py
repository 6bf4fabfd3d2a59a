"""The drivers of the official clients, each against a stand-in for its vendor: every scenario, without the gateway.

What the clients send (`SENT`) is what the gateway must take; what they make of an answer is what its tests compare.
"""

import json
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pytest

from tests.support import clients
from tests.support.clients import CLIENTS, ask, run_claude_code, run_client
from tests.support.vendors import Answer, Received, StandInVendor, anthropic, json_answer, stream_answer

KEY: Final = "key-of-this-test"
REASON: Final = "budget bud_1 of team:ml is used up"
LABEL: Final = "x-scenario"
RED_PNG: Final = re.findall('RED_PNG = "([^"]+)"', (clients.DRIVERS / "python" / "driver.py").read_text())[0]

OPENAI_CHAT: Final = ("POST /v1/chat/completions",)
RESPONSES: Final = ("POST /v1/responses",)
MESSAGES: Final = ("POST /v1/messages",)
CHAT: Final = ("plain", "stream", "tools", "tools_stream", "vision", "structured")

OPENAI: Final[Mapping[str, tuple[str, ...]]] = {
    **dict.fromkeys((*CHAT, "stream_usage"), OPENAI_CHAT),
    **dict.fromkeys((f"responses_{kind}" for kind in ("stream", "tools", "tools_stream", "structured")), RESPONSES),
    "responses": RESPONSES,
    "responses_background": (*RESPONSES, "GET /v1/responses/*"),
    **dict.fromkeys(("completions", "completions_stream"), ("POST /v1/completions",)),
    "embed": ("POST /v1/embeddings",),
    "images": ("POST /v1/images/generations",),
    "speech": ("POST /v1/audio/speech",),
    "transcription": ("POST /v1/audio/transcriptions",),
    "translation": ("POST /v1/audio/translations",),
    "moderations": ("POST /v1/moderations",),
    "models": ("GET /v1/models",),
    "batch": ("POST /v1/files", "POST /v1/batches", "GET /v1/batches/*", "GET /v1/files/*/content"),
}
ANTHROPIC: Final[Mapping[str, tuple[str, ...]]] = {
    **dict.fromkeys((*CHAT, "stream_raw", "thinking_stream"), MESSAGES),
    "count_tokens": ("POST /v1/messages/count_tokens",),
    "models": ("GET /v1/models",),
    "batches": ("POST /v1/messages/batches", "GET /v1/messages/batches/*"),
    # The last address is the one that the vendor's answer before it gives, wherever that is.
    "batch_results": (
        "POST /v1/messages/batches",
        "GET /v1/messages/batches/*",
        "GET /v1/messages/batches/*/results",
    ),
}


def google(version: str) -> Mapping[str, tuple[str, ...]]:
    """What Google's clients send; they differ in the version they put into the path."""
    model = f"POST /{version}/models/*:"
    return {
        **dict.fromkeys(CHAT, (f"{model}generateContent",)),
        **dict.fromkeys(("stream", "tools_stream"), (f"{model}streamGenerateContent?alt=sse",)),
        "embed": (f"{model}batchEmbedContents",),
        "count_tokens": (f"{model}countTokens",),
        "models": (f"GET /{version}/models",),
    }


# Client → scenario → the requests it makes; a star stands for a name or an id.
SENT: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    "openai": OPENAI,
    "anthropic": ANTHROPIC,
    "google-genai": google("v1"),
    "mistralai": {
        **dict.fromkeys(CHAT, OPENAI_CHAT),
        "embed": ("POST /v1/embeddings",),
        "ocr": ("POST /v1/ocr",),
        **dict.fromkeys(("fim", "fim_stream"), ("POST /v1/fim/completions",)),
        "models": ("GET /v1/models",),
    },
    "cohere": {
        **dict.fromkeys(CHAT, ("POST /v2/chat",)),
        "embed": ("POST /v2/embed",),
        "rerank": ("POST /v2/rerank",),
        "models": ("GET /v1/models",),
        **dict.fromkeys(("v1_chat", "v1_stream"), ("POST /v1/chat",)),
        "v1_embed": ("POST /v1/embed",),
        "v1_rerank": ("POST /v1/rerank",),
    },
    "langchain-openai": OPENAI,
    "langchain-anthropic": ANTHROPIC,
    "llama-index": {**OPENAI, "complete": OPENAI_CHAT},
    "node-openai": OPENAI,
    "node-anthropic": ANTHROPIC,
    "node-ai-openai": {
        **dict.fromkeys(CHAT, RESPONSES),
        **{f"chat_{kind}": OPENAI_CHAT for kind in CHAT},
        "embed": ("POST /v1/embeddings",),
    },
    "node-ai-anthropic": ANTHROPIC,
    "node-google": google("v1beta"),
}


class Run:
    """Every scenario of one client, run once: outcomes and requests by the label of the scenario.

    Beside the scenarios themselves there are ``refused`` (402), ``refused_stream``, ``unavailable`` (503, with no
    retries allowed) and ``left`` (the client closes the stream after a chunk).
    """

    def __init__(self, name: str) -> None:
        client = CLIENTS[name]
        self.name = name
        self.vendor = StandInVendor(client.vendor, accepts=KEY)
        normal, self.vendor.otherwise = self.vendor.otherwise, self._answer
        self._normal = normal
        self.vendor.start()
        try:
            asked = {kind: self._ask(kind, kind) for kind in client.scenarios if kind != "error"}
            asked |= {
                "refused": self._ask("error", "refused"),
                "refused_stream": self._ask("stream", "refused_stream"),
                "unavailable": self._ask("error", "unavailable", max_retries=0),
                "left": self._ask("stream", "left", hang_up_after=1),
            }
            self.known, *outcomes = clients.drive(name, [{"scenario": "scenarios"}, *asked.values()], timeout_s=120)
            self.outcomes = dict(zip(asked, outcomes, strict=True))
        finally:
            self.vendor.stop()

    def _ask(self, scenario: str, label: str, **fields: Any) -> dict[str, Any]:
        return ask(self.name, scenario, self.vendor.root, KEY, headers={LABEL: label}, **fields)

    def _answer(self, request: Received) -> Answer:
        label = request.header(LABEL)
        if label in ("refused", "refused_stream"):
            return refusal(CLIENTS[self.name].vendor)
        if label == "unavailable":
            return json_answer({"error": {"message": "overloaded", "type": "overloaded_error"}}, 503)
        answer = self._normal(request)
        # Described as always there, and left out by the vendor when there are none: the AI SDK refuses a null.
        return replace(answer, pieces=tuple(piece.replace(b',"citations":null', b"") for piece in answer.pieces))

    def requests(self, label: str) -> list[Received]:
        """What a scenario sent."""
        return [request for request in self.vendor.requests if request.header(LABEL) == label]


def refusal(vendor: str) -> Answer:
    """A refusal as the gateway gives it, in the vendor's envelope."""
    error: dict[str, Any] = {"type": "budget_exhausted", "code": "budget_exhausted", "message": REASON}
    bodies: dict[str, Any] = {
        "anthropic": {"type": "error", "error": error},
        "google": {"error": {"code": 402, "message": REASON, "status": "RESOURCE_EXHAUSTED"}},
        "cohere": {"message": REASON, "error": error},
    }
    return json_answer(bodies.get(vendor, {"error": error}), 402)


def starred(request: Received) -> str:
    """A request as `SENT` writes it."""
    address = urlsplit(request.target)
    path = re.sub(r"(/responses/|/batches/|/files/|/models/)[^/:]+", r"\1*", address.path)
    return f"{request.method} {path}" + (f"?{address.query}" if address.query else "")


def numbers(value: Any) -> list[float]:
    """Every number in a JSON value."""
    if isinstance(value, dict):
        return [each for part in value.values() for each in numbers(part)]
    return [value] if isinstance(value, int | float) else []


@pytest.fixture(scope="module", params=CLIENTS)
def run(request: pytest.FixtureRequest) -> Run:
    """Each client's run."""
    return Run(request.param)


def test_every_scenario_succeeds(run: Run) -> None:
    meant_to_fail = ("refused", "refused_stream", "unavailable")
    failed = {label: told for label, told in run.outcomes.items() if not told["ok"] and label not in meant_to_fail}
    assert failed == {}


def test_every_scenario_yields_something(run: Run) -> None:
    told = {label: run.outcomes[label] for label in CLIENTS[run.name].scenarios if label != "error"}
    empty = [label for label, each in told.items() if not (each["text"] or each["tool_calls"] or each["data"])]
    # LlamaIndex gives the object and keeps the text it was read from to itself.
    assert empty == (["structured"] if run.name == "llama-index" else [])


def test_the_driver_has_the_scenarios_that_are_declared(run: Run) -> None:
    assert run.known["data"] == sorted(CLIENTS[run.name].scenarios)


def test_each_scenario_sends_the_requests_that_are_listed(run: Run) -> None:
    scenarios = [kind for kind in CLIENTS[run.name].scenarios if kind != "error"]
    sent = {kind: tuple(dict.fromkeys(map(starred, run.requests(kind)))) for kind in scenarios}
    assert sent == {kind: SENT[run.name][kind] for kind in scenarios}


def test_the_key_goes_into_the_header_that_is_declared(run: Run) -> None:
    header = CLIENTS[run.name].key_header
    values = {request.header(header) for request in run.vendor.requests}
    assert values == {f"Bearer {KEY}" if header == "authorization" else KEY}


def test_text_arrives_whole_and_in_chunks(run: Run) -> None:
    plain, stream = run.outcomes["plain"], run.outcomes["stream"]
    assert plain["text"].startswith("Hello")
    assert stream["text"].startswith("Hello")
    assert plain["chunks"] == 0
    assert stream["chunks"] > 1


def test_usage_is_read_as_the_client_reports_it(run: Run) -> None:
    """A number of tokens, at some depth."""
    assert any(count > 0 for count in numbers(run.outcomes["plain"]["usage"]))


@pytest.mark.parametrize("scenario", ["tools", "tools_stream"])
def test_a_forced_tool_is_called(run: Run, scenario: str) -> None:
    (call,) = run.outcomes[scenario]["tool_calls"]
    assert call["name"] == "get_weather"
    assert isinstance(call["arguments"]["city"], str)


def test_structured_output_is_parsed(run: Run) -> None:
    parsed = run.outcomes["structured"]["parsed"]
    assert {name: type(value) for name, value in parsed.items()} == {"city": str, "country": str}


def test_a_picture_is_sent_inline(run: Run) -> None:
    """In base64; Google's Python client writes it in the alphabet meant for addresses."""
    (request,) = run.requests("vision")
    assert RED_PNG in request.body.decode().translate(str.maketrans("-_", "+/"))


def test_both_drivers_send_the_same_picture() -> None:
    assert json.dumps(RED_PNG) in (clients.DRIVERS / "node" / "driver.mjs").read_text()


def test_a_refusal_is_told_with_its_status_and_reason_after_one_request(run: Run) -> None:
    for label in ("refused", "refused_stream"):
        outcome = run.outcomes[label]
        assert not outcome["ok"]
        assert outcome["status"] == 402
        assert REASON in outcome["message"]
        assert outcome["exception"].rpartition(".")[2] in {*outcome["mro"], "AI_APICallError"}
        assert len(run.requests(label)) == 1


def test_no_retries_means_one_request(run: Run) -> None:
    assert not run.outcomes["unavailable"]["ok"]
    assert run.outcomes["unavailable"]["status"] == 503
    assert len(run.requests("unavailable")) == 1


def test_a_client_can_leave_a_stream(run: Run) -> None:
    assert run.outcomes["left"]["chunks"] == 1


# ---- Claude Code ----------------------------------------------------------------------------------------------------


@pytest.fixture
def claude_vendor() -> Iterator[StandInVendor]:
    vendor = StandInVendor("anthropic", accepts=KEY)
    vendor.start()
    yield vendor
    vendor.stop()


def converse(request: Received) -> Answer:
    """Asks for a command first, and repeats what it printed afterwards."""
    fields = request.json()
    results = [
        block
        for message in fields["messages"]
        if isinstance(message["content"], list)
        for block in message["content"]
        if block["type"] == "tool_result"
    ]
    if results:
        content = anthropic.text_block(f"It printed {results[-1]['content']}.")
        return stream_of(fields["model"], content, "end_turn")
    command = {"command": "echo $((6 * 7))", "description": "Multiplies"}
    return stream_of(fields["model"], anthropic.tool_block("Bash", command), "tool_use")


def stream_of(model: str, block: dict[str, Any], reason: str) -> Answer:
    """A streamed message of one block."""
    return stream_answer(anthropic.stream(anthropic.message(model, [block], anthropic.usage(), reason)))


@pytest.mark.parametrize(
    ("credential", "header", "value"),
    [("api_key", "x-api-key", KEY), ("auth_token", "authorization", f"Bearer {KEY}")],
)
def test_claude_code_holds_a_conversation_with_a_tool(
    claude_vendor: StandInVendor, credential: Any, header: str, value: str
) -> None:
    claude_vendor.otherwise = converse
    told = run_claude_code(claude_vendor.root, KEY, "What is six times seven?", credential=credential)
    assert told["ok"], told
    assert "It printed 42" in told["text"]
    sent = claude_vendor.requests
    assert [starred(request) for request in sent] == ["POST /v1/messages?beta=true"] * 2
    assert {request.header(header) for request in sent} == {value}


def test_claude_code_shows_the_reason_of_a_refusal_and_stops(claude_vendor: StandInVendor) -> None:
    claude_vendor.always(refusal("anthropic"))
    told = run_claude_code(claude_vendor.root, KEY, "say hi")
    assert not told["ok"]
    assert REASON in told["text"]
    assert len(claude_vendor.requests) == 1


# ---- the runner -----------------------------------------------------------------------------------------------------


def test_an_unknown_scenario_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"mistralai has no scenario 'speech'; it has plain, stream"):
        run_client("mistralai", ask("mistralai", "speech", "http://127.0.0.1:9", KEY))


@pytest.mark.parametrize("name", ["openai", "llama-index", "node-google"])
def test_a_missing_environment_says_how_to_make_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "ENVIRONMENTS", tmp_path)
    with pytest.raises(clients.MissingEnvironmentError, match=r"run tools/setup_clients\.sh"):
        run_client(name, ask(name, "plain", "http://127.0.0.1:9", KEY))


def test_missing_claude_code_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "ENVIRONMENTS", tmp_path)
    with pytest.raises(clients.MissingEnvironmentError, match=r"run tools/setup_clients\.sh"):
        run_claude_code("http://127.0.0.1:9", KEY, "say hi")


def test_a_driver_that_is_late_is_ended_with_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        root = f"http://127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(clients.DriverFailedError, match=r"node-google took more than 2 s"):
            run_client("node-google", ask("node-google", "plain", root, KEY), timeout_s=2)


def test_a_driver_that_ends_early_shows_what_it_wrote() -> None:
    with pytest.raises(
        clients.DriverFailedError, match=r"node-google answered 0 of 1 scenarios(.|\n)*no scenario called rest"
    ):
        clients.drive("node-google", [{"scenario": "rest"}], timeout_s=30)


def test_the_environment_of_a_client_leads_nowhere() -> None:
    with clients.quiet_environment() as variables:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            address = urlsplit(variables[name])
            with pytest.raises(ConnectionRefusedError), socket.create_connection((address.hostname, address.port)):
                pass
        assert list(Path(variables["HOME"]).iterdir()) == []
        assert not [name for name in variables if re.search("KEY|TOKEN|SECRET|INDEX|REGISTRY", name)]
