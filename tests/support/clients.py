"""Drives the vendors' official clients, unmodified, each in a process of its own (see tools/setup_clients.sh).

What a scenario and an outcome hold is written in tests/clients/python/driver.py. Everything here blocks: in an
asynchronous test, call it through `asyncio.to_thread`.
"""

import json
import os
import platform
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import certifi

ROOT: Final = Path(__file__).resolve().parents[2]
ENVIRONMENTS: Final = ROOT / ".tools" / "clients"
DRIVERS: Final = ROOT / "tests" / "clients"

_CHAT: Final = ("plain", "stream", "tools", "tools_stream", "vision", "structured", "error")
_OPENAI: Final = (
    *_CHAT,
    *("stream_usage", "responses", "responses_stream", "responses_tools", "responses_tools_stream"),
    *("responses_structured", "completions", "embed", "images", "speech", "moderations", "models"),
)
_ANTHROPIC: Final = (
    *_CHAT,
    *("stream_raw", "thinking_stream", "count_tokens", "models", "batches", "batch_results"),
)


@dataclass(frozen=True)
class Client:
    """How a client is run. `base_path` is what its base URL has after the host (and the vendor's prefix, if any).

    `vendor` is whose dialect it speaks; `key_header` is the header in which it sends its key.
    """

    vendor: Literal["openai", "anthropic", "google", "mistral", "cohere"]
    environment: Literal["python-sdks", "python-frameworks", "node"]
    driver: str
    base_path: Literal["", "/v1"]
    key_header: Literal["authorization", "x-api-key", "x-goog-api-key"]
    scenarios: tuple[str, ...]

    def command(self) -> list[str]:
        """The driver's command line; raises `MissingEnvironmentError` when it can't run."""
        place = ENVIRONMENTS / self.environment
        if self.environment == "node":
            script = existing(place / "drivers" / self.driver)
            existing(place / "node_modules")
            # The drivers are seen through a link beside node_modules, so that their imports are found there.
            return ["node", "--preserve-symlinks", "--preserve-symlinks-main", str(script)]
        return [str(existing(place / "bin" / "python")), str(DRIVERS / "python" / self.driver)]


CLIENTS: Final[Mapping[str, Client]] = {
    "openai": Client(
        "openai",
        "python-sdks",
        "openai_driver.py",
        "/v1",
        "authorization",
        (*_OPENAI, "responses_background", "completions_stream", "transcription", "translation", "batch"),
    ),
    "anthropic": Client("anthropic", "python-sdks", "anthropic_driver.py", "", "authorization", _ANTHROPIC),
    "google-genai": Client(
        "google", "python-sdks", "google_driver.py", "", "x-goog-api-key", (*_CHAT, "embed", "count_tokens", "models")
    ),
    "mistralai": Client(
        "mistral",
        "python-sdks",
        "mistral_driver.py",
        "",
        "authorization",
        (*_CHAT, "embed", "ocr", "fim", "fim_stream", "models"),
    ),
    "cohere": Client(
        "cohere",
        "python-sdks",
        "cohere_driver.py",
        "",
        "authorization",
        (*_CHAT, "embed", "rerank", "models", "v1_chat", "v1_stream", "v1_embed", "v1_rerank"),
    ),
    "langchain-openai": Client(
        "openai",
        "python-frameworks",
        "langchain_openai_driver.py",
        "/v1",
        "authorization",
        (*_CHAT, "stream_usage", "responses", "responses_stream", "embed"),
    ),
    "langchain-anthropic": Client(
        "anthropic",
        "python-frameworks",
        "langchain_anthropic_driver.py",
        "",
        "authorization",
        (*_CHAT, "thinking_stream"),
    ),
    "llama-index": Client(
        "openai",
        "python-frameworks",
        "llama_index_driver.py",
        "/v1",
        "authorization",
        (*_CHAT, "complete", "responses"),
    ),
    "node-openai": Client("openai", "node", "openai.mjs", "/v1", "authorization", _OPENAI),
    "node-anthropic": Client("anthropic", "node", "anthropic.mjs", "", "authorization", _ANTHROPIC),
    "node-ai-openai": Client(
        "openai",
        "node",
        "ai_openai.mjs",
        "/v1",
        "authorization",
        (*_CHAT, *(f"chat_{name}" for name in _CHAT if name != "error"), "embed"),
    ),
    "node-ai-anthropic": Client("anthropic", "node", "ai_anthropic.mjs", "/v1", "x-api-key", _CHAT),
    "node-google": Client(
        "google", "node", "google.mjs", "", "x-goog-api-key", (*_CHAT, "embed", "count_tokens", "models")
    ),
}


# What each scenario asks for, when it is not the vendor's chat model.
MODELS: Final[Mapping[str, Mapping[str, str]]] = {
    "openai": {
        "": "gpt-4o-mini",
        "completions": "gpt-3.5-turbo-instruct",
        "completions_stream": "gpt-3.5-turbo-instruct",
        "embed": "text-embedding-3-small",
        "images": "gpt-image-1",
        "speech": "tts-1",
        "transcription": "gpt-4o-mini-transcribe",
        "translation": "whisper-1",
        "moderations": "omni-moderation-latest",
    },
    "anthropic": {"": "claude-sonnet-4-5"},
    "google": {"": "gemini-2.5-flash", "embed": "gemini-embedding-001"},
    "mistral": {
        "": "mistral-small-latest",
        "embed": "mistral-embed",
        "ocr": "mistral-ocr-latest",
        "fim": "codestral-latest",
        "fim_stream": "codestral-latest",
    },
    "cohere": {
        "": "command-a-03-2025",
        "vision": "command-a-vision-07-2025",
        "embed": "embed-v4.0",
        "rerank": "rerank-v3.5",
        "v1_embed": "embed-english-v3.0",
        "v1_rerank": "rerank-v3.5",
    },
}


class MissingEnvironmentError(RuntimeError):
    """The clients are not installed."""


class DriverFailedError(RuntimeError):
    """A driver ended, or ran out of time, before it had answered every scenario."""


def existing(path: Path) -> Path:
    """The path, when it is there; raises `MissingEnvironmentError`."""
    if not path.exists():
        raise MissingEnvironmentError(f"{path} is not there: run tools/setup_clients.sh")
    return path


def base_url(name: str, root: str, prefix: str = "") -> str:
    """A client's base URL for a server at `root`, with the vendor's `prefix` ("/openai") or without."""
    return root.rstrip("/") + prefix + CLIENTS[name].base_path


def ask(name: str, scenario: str, root: str, api_key: str, prefix: str = "", **fields: Any) -> dict[str, Any]:
    """A scenario for a server at `root`, with a model that fits unless `fields` name one."""
    models = MODELS[CLIENTS[name].vendor]
    model = models.get(scenario, models[""])
    address = base_url(name, root, prefix)
    return {"base_url": address, "api_key": api_key, "model": model, "scenario": scenario, **fields}


def run_client(name: str, scenario: Mapping[str, Any], timeout_s: float = 60) -> dict[str, Any]:
    """The outcome of one scenario. Raises as `run_client_many` does."""
    return run_client_many(name, [scenario], timeout_s)[0]


def run_client_many(name: str, scenarios: Sequence[Mapping[str, Any]], timeout_s: float = 60) -> list[dict[str, Any]]:
    """The outcomes of scenarios, run one after the other in one process, because importing a client takes seconds.

    Raises `MissingEnvironmentError` when the client is not installed, `ValueError` for a scenario it does not have, and
    `DriverFailedError`, with what the driver wrote to standard error, when not every scenario was answered in time.
    """
    client = CLIENTS[name]
    for each in scenarios:
        if each["scenario"] not in client.scenarios:
            raise ValueError(f"{name} has no scenario {each['scenario']!r}; it has {', '.join(client.scenarios)}")
    return drive(name, scenarios, timeout_s)


def drive(name: str, scenarios: Sequence[Mapping[str, Any]], timeout_s: float) -> list[dict[str, Any]]:
    """The outcomes of scenarios the driver has, which are not looked up; ``scenarios`` tells their names."""
    lines = "".join(json.dumps(each) + "\n" for each in scenarios)
    command = CLIENTS[name].command()
    with quiet_environment() as variables:
        try:
            done = subprocess.run(
                command,
                input=lines,
                capture_output=True,
                encoding="utf-8",
                env=variables,
                cwd=variables["HOME"],
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as late:
            raise DriverFailedError(
                f"{name} took more than {timeout_s:g} s: {_tail(late.stdout)}{_tail(late.stderr)}"
            ) from late
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    if done.returncode != 0 or len(outcomes) != len(scenarios):
        told = f"{name} answered {len(outcomes)} of {len(scenarios)} scenarios and ended with {done.returncode}"
        raise DriverFailedError(f"{told}: {_tail(done.stderr)}")
    return outcomes


def _tail(output: str | bytes | None) -> str:
    text = output.decode(errors="replace") if isinstance(output, bytes) else output or ""
    return text[-4_000:]


@contextmanager
def quiet_environment() -> Iterator[dict[str, str]]:
    """The environment of a client: a home of its own, no telemetry, and no way out but to 127.0.0.1.

    Proxies lead to a port that refuses. (Node's own `fetch` reads no proxy variables; Claude Code does.)
    """
    with (
        tempfile.TemporaryDirectory(prefix="farthing-client-") as home,
        tempfile.NamedTemporaryFile("w", prefix="farthing-client-", suffix=".pem") as trusted,
        socket.socket() as refusing,
    ):
        trusted.write(one_certificate())
        trusted.flush()
        refusing.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused, and nobody else gets it
        proxy = f"http://127.0.0.1:{refusing.getsockname()[1]}"
        yield {
            "HOME": home,
            "TMPDIR": home,
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            "PYTHONUTF8": "1",
            **dict.fromkeys(
                ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"), proxy
            ),
            **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1"),
            # They speak plain HTTP here, and to read all the world's certificates would take most of their time.
            "SSL_CERT_FILE": trusted.name,
            "DO_NOT_TRACK": "1",
            "DISABLE_TELEMETRY": "1",
            "LANGSMITH_TRACING": "false",
            "OTEL_SDK_DISABLED": "true",
        }


def one_certificate() -> str:
    """One certificate of those that Python's clients trust."""
    everything = Path(certifi.where()).read_text()
    end = "-----END CERTIFICATE-----\n"
    return everything[everything.index("-----BEGIN") : everything.index(end)] + end


def run_claude_code(
    base_url: str,
    key: str,
    prompt: str,
    *,
    credential: Literal["api_key", "auth_token"] = "api_key",
    model: str | None = None,
    allowed_tools: Sequence[str] = ("Bash",),
    bare: bool = True,
    variables: Mapping[str, str] | None = None,
    arguments: Sequence[str] = (),
    timeout_s: float = 120,
) -> dict[str, Any]:
    """One run of Claude Code in print mode: ``{"ok", "text", "result", "returncode", "stderr", "elapsed_s"}``.

    `base_url` is the root, without ``/v1``; an ``api_key`` goes into ``x-api-key``, an ``auth_token`` is a Bearer.
    `result` is the object it prints, `text` the answer (or the error) in it. Without `bare` it sends all its tools.
    Raises `MissingEnvironmentError`, and `DriverFailedError` when it takes longer than `timeout_s` or prints no result.
    """
    command = [str(claude_binary()), "-p", prompt, "--output-format", "json", "--allowedTools", ",".join(allowed_tools)]
    command += [*(("--bare",) if bare else ()), *(("--model", model) if model else ()), *arguments]
    began_s = time.monotonic()
    with quiet_environment() as quiet:
        settings = {
            "ANTHROPIC_BASE_URL": base_url,
            f"ANTHROPIC_{credential.upper()}": key,
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_AUTOUPDATER": "1",
            "DISABLE_ERROR_REPORTING": "1",
            **(variables or {}),
        }
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                env=quiet | settings,
                cwd=quiet["HOME"],
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as late:
            raise DriverFailedError(f"Claude Code took more than {timeout_s:g} s: {_tail(late.stderr)}") from late
    try:
        result = json.loads(done.stdout)
    except ValueError as fault:
        raise DriverFailedError(f"Claude Code printed no result: {_tail(done.stdout)}{_tail(done.stderr)}") from fault
    return {
        "ok": done.returncode == 0 and not result.get("is_error"),
        "text": result.get("result", ""),
        "result": result,
        "returncode": done.returncode,
        "stderr": _tail(done.stderr),
        "elapsed_s": time.monotonic() - began_s,
    }


def claude_binary() -> Path:
    """Claude Code's own program, which comes in a package of its own for each system and processor."""
    system = {"Linux": "linux", "Darwin": "darwin"}[platform.system()]
    processor = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64", "arm64": "arm64"}[platform.machine().lower()]
    musl = "-musl" if system == "linux" and any(Path("/lib").glob("ld-musl-*")) else ""
    package = f"claude-code-{system}-{processor}{musl}"
    return existing(ENVIRONMENTS / "node" / "node_modules" / "@anthropic-ai" / package / "claude")
