"""The official clients refused by the gateway: each raises its own typed exception, and asks no oftener than it must.

What each client does is written down, measured, where the clients' behaviour is described: which exception it raises
for which status, what of a refusal it keeps, and how often it asks again.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

import pytest

from tests.support.client_scenarios import BLOCKED, DIRECT, RATE_LIMITED, UNKNOWN_MODELS, unpriced_of
from tests.support.client_world import Run, run_of
from tests.support.clients import CLIENTS

CUT: Final = "cut"
Exceptions = Mapping[int | str, str]
OPENAI: Final[Exceptions] = {
    400: "BadRequestError",
    401: "AuthenticationError",
    402: "APIStatusError",
    403: "PermissionDeniedError",
    429: "RateLimitError",
    CUT: "APIError",
}
ANTHROPIC: Final[Exceptions] = {**OPENAI, 402: "PaymentRequiredError", CUT: "APIStatusError"}
GOOGLE: Final[Exceptions] = {**dict.fromkeys((400, 401, 402, 403, 429), "ClientError"), CUT: "ServerError"}
# The AI SDK wraps what it has tried again.
AI: Final[Exceptions] = {**dict.fromkeys((400, 401, 402, 403), "AI_APICallError"), 429: "AI_RetryError"}


def langchain(maker: str, exceptions: Exceptions) -> Exceptions:
    """LangChain's own exceptions, which are the vendor's too; it has none for 402."""
    return {
        **exceptions,
        400: f"{maker}InvalidRequestError",
        **{status: maker + exceptions[status] for status in (401, 403, 429)},
    }


# Client → status, or a stream that was cut → the exception's class.
EXCEPTIONS: Final[Mapping[str, Exceptions]] = {
    "openai": OPENAI,
    "anthropic": ANTHROPIC,
    "google-genai": GOOGLE,
    # It knows no errors within a stream; it fails to read one, and shows it.
    "mistralai": {**dict.fromkeys((400, 401, 402, 403, 429), "SDKError"), CUT: "ResponseValidationError"},
    "cohere": {
        400: "BadRequestError",
        401: "UnauthorizedError",
        402: "ApiError",
        403: "ForbiddenError",
        429: "TooManyRequestsError",
    },
    "langchain-openai": langchain("OpenAI", OPENAI),
    "langchain-anthropic": langchain("Anthropic", ANTHROPIC),
    "llama-index": OPENAI,
    "node-openai": {**OPENAI, 402: "APIError"},
    "node-anthropic": {**ANTHROPIC, CUT: "APIError"},
    # An error within a stream is thrown as it came: the provider makes no exception of it.
    "node-ai-openai": {**AI, CUT: "Object"},
    "node-ai-anthropic": {**AI, CUT: "Object"},
    "node-google": dict.fromkeys((400, 401, 402, 403, 429, CUT), "ApiError"),
}

# How many requests arrive when a short wait would help: clients heed ``Retry-After`` or not, but come no oftener.
TRIES: Final = {
    **dict.fromkeys(CLIENTS, 3),
    **dict.fromkeys(("google-genai", "node-google", "mistralai"), 1),
    "llama-index": 12,
}
TRIES_TO_STREAM: Final = {**TRIES, "cohere": 1, "llama-index": 4}
# These do not heed ``x-should-retry: false`` on a 429, or only in part: a budget's refusal is better a 402.
TRIES_IN_VAIN: Final = {
    **dict.fromkeys(CLIENTS, 1),
    **dict.fromkeys(("cohere", "node-ai-openai", "node-ai-anthropic", "llama-index"), 3),
}

KINDS: Final = {
    "openai": {400: "invalid_request_error", 401: "authentication_error", 402: "insufficient_quota"},
    "anthropic": {400: "invalid_request_error", 401: "authentication_error", 402: "billing_error"},
    "google": {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 402: "RESOURCE_EXHAUSTED"},
    "mistral": {400: "invalid_request_error", 401: "authentication_error", 402: "payment_required"},
}


@pytest.fixture(scope="module", params=CLIENTS)
def run(request: pytest.FixtureRequest) -> Run:
    """Each client's run."""
    return run_of(request.param)


def assert_refused(run: Run, label: str, status: int, code: str, reason: str, tries: int = 1) -> dict[str, Any]:
    """Asserts how a client was refused; the fields that it was told."""
    outcome = run.outcomes[label]
    assert not outcome["ok"]
    assert outcome["exception"].rpartition(".")[2] == EXCEPTIONS[run.name][status], outcome
    assert outcome["status"] == status
    assert reason in outcome["message"]
    assert run.arrivals[label] == tries
    assert run.requests(label) == [], "the vendor is not asked"
    fields = told(run, outcome)
    assert fields["reason" if run.vendor == "google" else "code"] == code
    assert fields["message"]
    assert fields["message"] in outcome["message"]
    if run.vendor in KINDS and status in KINDS[run.vendor]:
        assert fields["status" if run.vendor == "google" else "type"] == KINDS[run.vendor][status]
    return fields


def told(run: Run, outcome: Mapping[str, Any]) -> dict[str, Any]:
    """All fields of a refusal, from where the client keeps them: its body, else the text that came."""
    body = outcome.get("response_body") or outcome["body"] or outcome["message"]
    if isinstance(body, str):
        body = json.loads(body)
    assert isinstance(body, dict)
    if run.vendor in ("mistral", "cohere"):
        return body  # flat envelopes
    # OpenAI's clients hand out the inner object.
    inner = body.get("error", body)
    assert isinstance(inner, dict)
    return inner


def test_a_wrong_key(run: Run) -> None:
    assert_refused(run, "stranger", 401, "invalid_key", "this API key is unknown or revoked")


@pytest.mark.parametrize(
    ("label", "status"),
    [("exhausted", 402), ("exhausted-stream", 402), ("exhausted-429", 429), ("exhausted-403", 403)],
)
def test_an_exhausted_budget(run: Run, label: str, status: int) -> None:
    """402, or the status that the org's rule says, with all that is known of the budget."""
    budget_id = run.budget_ids["default" if status == 402 else f"strict-{status}"]
    reason = f"budget {budget_id} of team:broke has $0.000000001 left"
    tries = TRIES_IN_VAIN[run.name] if status == 429 else 1
    fields = assert_refused(run, label, status, "budget_exhausted", reason, tries)
    denials = run.denials(label)
    assert len(denials) == tries == len(run.recorded(label))
    last = denials[-1]
    assert (last.code, last.budget_id, last.scope, last.limit_nano) == ("budget_exhausted", budget_id, "team:broke", 1)
    assert last.reason == fields["message"]
    assert fields["transaction_id"] == last.transaction_id
    assert (fields["budget_id"], fields["scope"]) == (budget_id, "team:broke")
    assert (fields["limit_usd"], fields["remaining_usd"]) == ("0.000000001", "0.000000001")
    assert fields["spent_usd"] == fields["held_usd"] == "0.000000000"
    assert fields["resets_at"].endswith("Z")


def test_an_unknown_model(run: Run) -> None:
    model = UNKNOWN_MODELS[run.vendor]
    fields = assert_refused(run, "unknown-model", 400, "unknown_model", f"model {model!r} of vendor {run.vendor!r}")
    (denial,) = run.denials("unknown-model")
    assert fields["param"] == "model"
    assert fields["transaction_id"] == denial.transaction_id
    assert denial.facts.model_requested == model


def test_what_has_no_price_is_refused_by_the_field(run: Run) -> None:
    fields = assert_refused(run, "unpriced", 400, "unpriced_feature", "")
    assert fields["param"] == unpriced_of(run.name)[1]


def test_a_contradicting_identity(run: Run) -> None:
    fields = assert_refused(run, "mismatch", 403, "identity_mismatch", "x-spend-team says 'ops'")
    assert fields["param"] == "x-spend-team"


def test_a_policy(run: Run) -> None:
    fields = assert_refused(run, "blocked", 403, "policy_blocked", BLOCKED)
    assert (fields["policy_id"], fields["transaction_id"]) == ("pol_1", "txn_blocked")


def test_a_rate_limit_is_waited_for_by_clients_that_wait(run: Run) -> None:
    fields = assert_refused(run, "limited", 429, "rate_limited", RATE_LIMITED, TRIES[run.name])
    assert (fields["scope"], fields["transaction_id"]) == ("team:ml", "txn_limited")


def test_a_rate_limit_before_a_stream(run: Run) -> None:
    assert_refused(run, "limited-stream", 429, "rate_limited", RATE_LIMITED, TRIES_TO_STREAM[run.name])


def test_a_refusal_of_the_vendors_own_is_the_very_same(run: Run) -> None:
    """The exception, its text and its body; the call costs nothing."""
    ours, theirs = run.outcomes["declined"], run.outcomes[DIRECT + "declined"]
    if run.name == "cohere":
        # Its text has the headers of the answer, ours among them.
        ours, theirs = ({**each, "message": str(each["body"])} for each in (ours, theirs))
    assert ours == theirs
    assert not ours["ok"]
    assert ours["exception"].rpartition(".")[2] == EXCEPTIONS[run.name][400]
    _, settlement = run.call("declined")
    assert (settlement.outcome, settlement.cost_nano, settlement.http_status) == ("vendor_error", 0, 400)
    assert settlement.usage_source == "none"


def test_a_vendor_that_hangs_up_in_mid_stream(run: Run) -> None:
    """An error of the dialect's own form, and no second request."""
    outcome = run.outcomes["cut"]
    assert_partly_charged(run, "cut")
    if run.name == "cohere":
        # A stream of Cohere's ends in an error without an exception.
        assert (outcome["ok"], outcome["data"]) == (True, {"finish_reason": "ERROR"})
        return
    assert not outcome["ok"]
    assert outcome["exception"].rpartition(".")[2] == EXCEPTIONS[run.name][CUT], outcome
    reason = f"vendor {run.vendor!r} broke off in its answer"
    assert reason in (outcome["body"] if run.name == "mistralai" else outcome["message"])
    if run.name in ("anthropic", "langchain-anthropic"):
        assert outcome["status"] == 200


@pytest.mark.parametrize("name", [name for name, each in CLIENTS.items() if "responses_stream" in each.scenarios])
def test_a_stream_of_responses_that_breaks_off(name: str) -> None:
    run = run_of(name)
    assert_partly_charged(run, "cut-responses_stream")
    outcome = run.outcomes["cut-responses_stream"]
    assert not outcome["ok"]
    assert outcome["exception"].rpartition(".")[2] == "APIError"
    assert outcome["message"] == "vendor 'openai' broke off in its answer"
    assert outcome["body"]["code"] == "vendor_unreachable"
    assert outcome["body"]["transaction_id"] == run.call("cut-responses_stream")[1].transaction_id


def test_a_stream_of_lines_that_breaks_off_ends_in_a_cut_connection() -> None:
    """Cohere's first version has no error within a stream of lines that its client would know."""
    run = run_of("cohere")
    assert_partly_charged(run, "cut-v1_stream")
    assert not run.outcomes["cut-v1_stream"]["ok"]
    assert run.outcomes["cut-v1_stream"]["exception"] == "httpx.RemoteProtocolError"


def assert_partly_charged(run: Run, label: str) -> None:
    """Asserts that a call that broke off was one request, and is settled once for what was used of it."""
    assert run.outcomes[label]["chunks"] > 0
    assert run.arrivals[label] == len(run.requests(label)) == 1
    reservation, settlement = run.call(label)
    assert (settlement.outcome, settlement.http_status) == ("partial", 200)
    assert 0 < settlement.cost_nano <= reservation.held_nano
