"""The only reader of the environment. Every setting is ``FARTHING_`` plus its name in capitals."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Settings of every service; each reads those it needs. Defaults: one machine, closed where in doubt."""

    model_config = SettingsConfigDict(env_prefix="FARTHING_", extra="ignore")

    # Where this process listens. Loopback unless told otherwise.
    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = Field(default=None, ge=0, le=65535, description="None: no metrics endpoint.")

    # The engines. The log is Kafka when `kafka` is set, else Valkey Streams at `log_url`.
    kafka: str | None = Field(default=None, description="Bootstrap servers, host:port[,host:port].")
    log_url: str = "redis://127.0.0.1:6380/0"
    redis_url: str = "redis://127.0.0.1:6379/0"
    postgres_dsn: SecretStr = SecretStr("postgresql://postgres@127.0.0.1:5432/farthing")
    clickhouse_dsn: SecretStr = SecretStr("chdb:///farthing-data/clickhouse")

    # The other services.
    control_url: str = "http://127.0.0.1:8081"
    ledger_url: str = "http://127.0.0.1:8082"
    sandbox_url: str | None = Field(default=None, description="Base URL of the sandbox vendor; None: there is none.")

    # Secrets and files of this process.
    master_key_file: Path = Path("farthing-data/secrets/master.key")
    outbox_path: Path = Path("farthing-data/outbox.sqlite")
    outbox_limit: int = Field(default=100_000, ge=1)
    state_dir: Path = Path("farthing-data")

    # Behaviour.
    header_prefix: str = "x-spend-"
    default_vendor: str = "openai"
    max_body_bytes: int = Field(default=32 * 1024 * 1024, ge=1024)
    max_response_bytes: int = Field(default=64 * 1024 * 1024, ge=1024)
    vendor_timeout_s: float = Field(default=120.0, gt=0)
    hold_seconds: int = Field(default=900, ge=1, description="How long a hold lives; longer than the vendor timeout.")
    reap_interval_s: float = Field(default=1.0, gt=0)
    poll_interval_s: float = Field(default=0.25, gt=0, description="How often a gateway looks for changes.")
    bootstrap_org: str | None = Field(default=None, description="Name of the org control makes at first start.")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    otlp_endpoint: str | None = Field(default=None, description="OTLP/HTTP base URL; None: no spans are exported.")


class ClientSettings(BaseSettings):
    """Where the command line finds a Farthing that is not on this machine."""

    model_config = SettingsConfigDict(env_prefix="FARTHING_", extra="ignore")

    url: str | None = Field(default=None, description="Base URL of the gateway.")
    admin_key: SecretStr | None = Field(default=None, description="An admin key of the org to manage.")


def variable(name: str) -> SecretStr | None:
    """The environment variable `name`, for a secret that a command takes by that name; None when it is unset."""
    text = os.environ.get(name)
    return None if text is None else SecretStr(text)


def environment_with(changes: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with `changes`, for a child process."""
    return {**os.environ, **changes}
