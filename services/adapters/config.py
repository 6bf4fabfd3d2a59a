"""The only reader of the environment. Every setting is ``FARTHING_`` plus its name in capitals."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.adapters.valkey_connect import check_log_address, parse_address


class Settings(BaseSettings):
    """Settings of every service; each reads those it needs. Defaults: one machine, closed where in doubt."""

    # Addresses may hold passwords, and an error is logged.
    model_config = SettingsConfigDict(env_prefix="FARTHING_", extra="ignore", hide_input_in_errors=True)

    host: str = Field(default="127.0.0.1", description="Address this process listens on.")
    port: int = Field(default=8080, ge=0, le=65535, description="Port this process listens on.")
    metrics_host: str = Field(default="127.0.0.1", description="Address of the metrics endpoint.")
    metrics_port: int | None = Field(
        default=None, ge=0, le=65535, description="Port of the metrics endpoint; unset: none."
    )

    kafka: str | None = Field(
        default=None, description="Kafka's bootstrap servers, `host:port,…`; unset: the log is at `LOG_URL`."
    )
    log_url: str = Field(
        default="redis://127.0.0.1:6380/0", description="The Valkey whose streams are the log, without Kafka."
    )
    redis_url: str = Field(
        default="redis://127.0.0.1:6379/0",
        description="The Valkey or Redis of the hot state: `redis://host:port/0`, a cluster "
        "`redis+cluster://host:port,host:port`, or by Sentinels `redis+sentinel://host:port,host:port/name/0`.",
    )
    postgres_dsn: SecretStr = Field(
        default=SecretStr("postgresql://postgres@127.0.0.1:5432/farthing"), description="Control's database."
    )
    clickhouse_dsn: SecretStr = Field(
        default=SecretStr("chdb:///farthing-data/clickhouse"),
        description="The ledger's database: `chdb:///path` in process, or `http(s)://user:password@host:port/database`.",
    )

    control_url: str = Field(default="http://127.0.0.1:8081", description="Where the gateway finds control.")
    ledger_url: str = Field(
        default="http://127.0.0.1:8082", description="Where gateway and aggregator find the ledger."
    )
    sandbox_url: str | None = Field(
        default=None, description="The sandbox vendor's base URL; unset: there is no sandbox."
    )

    master_key_file: Path = Field(
        default=Path("farthing-data/secrets/master.key"),
        description="The master key, mode 0600. Control makes it at first start.",
    )
    outbox_path: Path = Field(
        default=Path("farthing-data/outbox.sqlite"),
        description="A gateway's outbox; one file a gateway, on a disk that lasts.",
    )
    outbox_limit: int = Field(
        default=100_000, ge=1, description="Events an outbox keeps at most; past it calls get 503."
    )
    state_dir: Path = Field(default=Path("farthing-data"), description="Where control leaves the first keys.")

    header_prefix: str = Field(default="x-spend-", description="How identity and answer headers begin.")
    default_vendor: str = Field(default="openai", description="The vendor of a call that names none.")
    max_body_bytes: int = Field(default=32 * 1024 * 1024, ge=1024, description="The largest request body; past it 413.")
    max_response_bytes: int = Field(
        default=64 * 1024 * 1024,
        ge=1024,
        description="The largest answer held back to send its cost in the head (past it, none), "
        "and the largest input file of a batch.",
    )
    vendor_timeout_s: float = Field(default=120.0, gt=0, description="How long a vendor may take to answer.")
    hold_seconds: int = Field(default=900, ge=1, description="How long a hold lives; longer than the vendor timeout.")
    reap_interval_s: float = Field(
        default=1.0, gt=0, description="How often the aggregator looks for holds past their time."
    )
    poll_interval_s: float = Field(
        default=0.25, gt=0, description="How often gateways look for changes, the aggregator for orgs."
    )
    bootstrap_org: str | None = Field(
        default=None, description="The org control makes at first start, with its first keys."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="What is logged.")
    otlp_endpoint: str | None = Field(default=None, description="OTLP over HTTP, base URL; unset: no spans are sent.")

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, url: str) -> str:
        parse_address(url)
        return url

    @field_validator("log_url")
    @classmethod
    def _check_log_url(cls, url: str) -> str:
        check_log_address(url)
        return url


class ClientSettings(BaseSettings):
    """Where the command line finds a Farthing that is not on this machine."""

    model_config = SettingsConfigDict(env_prefix="FARTHING_", extra="ignore")

    url: str | None = Field(default=None, description="Base URL of the gateway.")
    admin_key: SecretStr | None = Field(default=None, description="An admin key of the org to manage.")
    key: SecretStr | None = Field(default=None, description="A key to call the gateway by, as an agent does.")


def variable(name: str) -> SecretStr | None:
    """The environment variable `name`, for a secret that a command takes by that name; None when it is unset."""
    text = os.environ.get(name)
    return None if text is None else SecretStr(text)


def environment_with(changes: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with `changes`, for a child process."""
    return {**os.environ, **changes}
