"""The management API as commands call it, and how they find it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx

from services.adapters.config import ClientSettings
from services.commands.errors import CommandError
from services.embedded import loopback
from services.embedded.data_dir import Instance, read_admin_key, read_instance

_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Target:
    """The Farthing to talk to, and the key to call it by.

    `instance` is set when it runs on this machine and was found by its data directory.
    """

    base_url: str
    key: str
    instance: Instance | None


def find_target(data_dir: Path, own_key: str | None = None) -> Target:
    """The Farthing named by FARTHING_URL and FARTHING_ADMIN_KEY, else the one that runs on `data_dir`.

    `own_key` is used in the admin key's place. Raises `CommandError` when there is none, or no admin key for it.
    """
    settings = ClientSettings()
    key = own_key or (None if settings.admin_key is None else settings.admin_key.get_secret_value())
    if settings.url is not None:
        if key is None:
            raise CommandError("FARTHING_URL is set and FARTHING_ADMIN_KEY is not; set both", "no_admin_key")
        return Target(settings.url.rstrip("/"), key, None)
    instance = read_instance(data_dir)
    if instance is None:
        raise CommandError(
            f"no Farthing runs on {data_dir}; start one with: farthing up, name another --data-dir, "
            "or set FARTHING_URL and FARTHING_ADMIN_KEY",
            "not_running",
        )
    key = key or read_admin_key(data_dir)
    if key is None:
        raise CommandError(f"there is no admin key in {data_dir}; set FARTHING_ADMIN_KEY", "no_admin_key")
    return Target(instance.base_url, key, instance)


class Api:
    """Calls to one Farthing; every failure is a `CommandError`."""

    def __init__(self, target: Target) -> None:
        self.target = target
        if target.instance is None:
            self._client = httpx.Client(base_url=target.base_url, timeout=_TIMEOUT_S)
        else:
            self._client = loopback.client(_TIMEOUT_S, target.base_url)
        self._client.headers["Authorization"] = f"Bearer {target.key}"

    def get(self, path: str, **query: object) -> Any:
        """The answer to a GET; parameters that are None are left out."""
        return self._call("GET", path, params=_query(query))

    def put(self, path: str, body: Mapping[str, object]) -> Any:
        """The answer to a PUT of `body`."""
        return self._call("PUT", path, json=body)

    def post(self, path: str, body: Mapping[str, object], headers: Mapping[str, str] | None = None) -> Any:
        """The answer to a POST of `body`."""
        return self._call("POST", path, json=body, headers=headers)

    def patch(self, path: str, body: Mapping[str, object]) -> Any:
        """The answer to a PATCH of `body`."""
        return self._call("PATCH", path, json=body)

    def delete(self, path: str, **query: object) -> Any:
        """The answer to a DELETE, None when there is none; parameters that are None are left out."""
        return self._call("DELETE", path, params=_query(query))

    def close(self) -> None:
        """Lets go of connections."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, method: str, path: str, **options: Any) -> Any:
        try:
            answer = self._client.request(method, path, **options)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = str(error) or type(error).__name__
            raise CommandError(
                f"Farthing at {self.target.base_url} does not answer ({reason}); is it running?", "unreachable"
            ) from error
        if not answer.is_success:
            raise _refusal(answer)
        if not answer.content:
            return None
        try:
            return answer.json()
        except ValueError as error:
            raise CommandError(
                f"{self.target.base_url} is no Farthing: its answer is not JSON", "unreachable"
            ) from error


def connect(data_dir: Path) -> Api:
    """The API of the Farthing that `find_target` finds."""
    return Api(find_target(data_dir))


def connect_as_caller(data_dir: Path) -> Api:
    """The same, called by the key in FARTHING_KEY as agents call it; without one, by the admin key."""
    key = ClientSettings().key
    return Api(find_target(data_dir, None if key is None else key.get_secret_value()))


def _query(parameters: Mapping[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in parameters.items() if value is not None}


def _refusal(answer: httpx.Response) -> CommandError:
    try:
        fields = answer.json()
        return CommandError(fields["message"], fields["error"], fields.get("field"))
    except (ValueError, KeyError, TypeError):
        return CommandError(f"{answer.request.url} answered {answer.status_code}: {answer.text[:200]}", "unexpected")
