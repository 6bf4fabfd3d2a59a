"""Where a call goes: the vendor, the dialect it speaks there, its address, and whose key opens it (GW-1, GW-2)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from services.core.billing import BYOK, METERED, AuthMode
from services.core.dialects import default_base_url, default_dialect
from services.core.identity import IdentityError, check_name, is_key_text
from services.core.snapshot import Connection, Snapshot
from services.gateway.headers import CallHeaders
from services.gateway.refusal import RefusedError
from services.gateway.table import Candidate, Place
from services.gateway.vendors import Dialect
from services.gateway.vendors.registry import DIALECTS, dialect_of

SANDBOX: Final = "sandbox"

OpenSealed = Callable[[str, str, str], str]


@dataclass(frozen=True, slots=True)
class Target:
    """Where a call goes: `base_url` up to and without the route, and the vendor's key in the clear."""

    vendor: str
    base_url: str
    prices_as: str
    vendor_key: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Choice:
    """The route that a request takes. `vendor` None: the model, or else the default vendor, decides."""

    candidate: Candidate
    vendor: str | None


class Connector:
    """Finds connections. `open_sealed` decrypts a vendor key for (org, vendor, sealed text), raising `ValueError`."""

    def __init__(
        self, open_sealed: OpenSealed, sandbox_url: str | None, default_vendor: str, header_prefix: str
    ) -> None:
        self._open_sealed = open_sealed
        self._vendor_header = header_prefix + "vendor"
        self.default_vendor: Final = default_vendor
        self._sandbox = None
        if sandbox_url is not None:
            self._sandbox = Connection(SANDBOX, "openai", sandbox_url.rstrip("/") + "/v1", None, SANDBOX)

    def all(self, snapshot: Snapshot) -> Mapping[str, Connection]:
        """Every vendor the org can reach, the sandbox included when there is one."""
        sandbox = {} if self._sandbox is None else {SANDBOX: self._sandbox}
        return {**snapshot.connections, **sandbox}

    def named_vendor(self, headers: CallHeaders, in_path: str | None) -> str | None:
        """The vendor that the caller names, by path or header. Raises `RefusedError` (400)."""
        name = headers.spend.get(self._vendor_header)
        if name is None:
            return in_path
        try:
            check_name(self._vendor_header, name)
        except IdentityError as error:
            raise RefusedError(400, "invalid_request", str(error), param=error.field) from error
        if in_path is not None and in_path != name:
            message = f"{self._vendor_header} says {name!r}, but the path names {in_path!r}; drop one of them"
            raise RefusedError(400, "invalid_request", message, param=self._vendor_header)
        return name

    def choose(self, snapshot: Snapshot, headers: CallHeaders, place: Place) -> Choice:
        """Which of a place's candidates is meant. Raises `RefusedError` (400)."""
        vendor = self.named_vendor(headers, place.vendor)
        if vendor is None:
            candidate = preferred(headers, place)
            return Choice(candidate, None if candidate.dialect.name == "openai" else candidate.dialect.name)
        dialect = self.dialect(snapshot, vendor)
        for candidate in place.candidates:
            if candidate.dialect.name == dialect.name:
                return Choice(candidate, vendor)
        theirs = place.candidates[0].dialect.name
        message = f"vendor {vendor!r} speaks {dialect.name}, but this route is {theirs}'s; use its own route"
        raise RefusedError(400, "no_vendor_connection", message)

    def spoken(self, snapshot: Snapshot, headers: CallHeaders, place: Place) -> Dialect:
        """What a request at a place without candidates is written in. Raises `RefusedError` (400)."""
        vendor = self.named_vendor(headers, place.vendor)
        return likely_dialect(headers, place) if vendor is None else self.dialect(snapshot, vendor)

    def dialect(self, snapshot: Snapshot, vendor: str) -> Dialect:
        """What a vendor speaks: by its connection, else by its name."""
        connection = self.all(snapshot).get(vendor)
        return dialect_of(vendor) if connection is None else DIALECTS.get(connection.dialect, dialect_of(vendor))

    def default_for(self, model: str) -> str:
        """The vendor of a call in OpenAI's dialect that names none."""
        return SANDBOX if self._sandbox is not None and model.startswith("sandbox-") else self.default_vendor

    def connection(self, snapshot: Snapshot, vendor: str, *, brings_key: bool) -> Connection | None:
        """The org's connection to a vendor; for a caller with a key of its own, the vendor's own address will do."""
        found = self._sandbox if vendor == SANDBOX else snapshot.connections.get(vendor)
        if found is not None or not brings_key:
            return found
        dialect = default_dialect(vendor)
        base_url = default_base_url(vendor, dialect)
        return None if base_url is None else Connection(vendor, dialect, base_url, None, vendor)

    def auth_mode(self, snapshot: Snapshot, vendor: str, *, brings_key: bool) -> AuthMode:
        """How a call of the vendor is paid for: by the caller's own key, else as the org's connection says (BU-7)."""
        if brings_key:
            return BYOK
        found = self.connection(snapshot, vendor, brings_key=False)
        return METERED if found is None else found.auth_mode

    def speaking(self, dialect: Dialect, snapshot: Snapshot, vendor: str, *, brings_key: bool) -> Connection:
        """The connection to a vendor that speaks that dialect; raises `ValueError` saying what is in the way."""
        connection = self.connection(snapshot, vendor, brings_key=brings_key)
        if connection is None and vendor == SANDBOX:
            raise ValueError("the sandbox vendor is switched off here; name the model of a connected vendor")
        if connection is None:
            make = f"farthing connections set {vendor} --key-env NAME"
            raise ValueError(f"no connection to vendor {vendor!r}; make one: {make}")
        if connection.dialect != dialect.name:
            theirs = f"speaks {connection.dialect}, but this route is {dialect.name}'s"
            raise ValueError(f"vendor {vendor!r} {theirs}; use its own route")
        return connection

    def target(self, org: str, connection: Connection, own_key: str | None) -> Target:
        """The connection, opened. Raises `ValueError` when the stored key can't be."""
        key = own_key
        if key is None and connection.sealed_key is not None:
            key = self._open_sealed(org, connection.vendor, connection.sealed_key)
        return Target(connection.vendor, connection.base_url.rstrip("/"), connection.prices_as, key)


def preferred(headers: CallHeaders, place: Place) -> Candidate:
    """The candidate that a request of no named vendor means: Anthropic's clients always say their version."""
    if _says_anthropic(headers):
        for candidate in place.candidates:
            if candidate.dialect.name == "anthropic":
                return candidate
    return place.candidates[0]


def likely_dialect(headers: CallHeaders, place: Place) -> Dialect:
    """What a request most likely speaks, before it is known who asks: its refusal is written in that."""
    if place.candidates:
        named = (each.dialect for each in place.candidates if each.dialect.name == place.vendor)
        return next(named, preferred(headers, place).dialect)
    if place.vendor is not None:
        return dialect_of(place.vendor)
    version = place.below.split("/", 2)[1]
    spoken = [each for each in DIALECTS.values() if version in each.versions]
    if _says_anthropic(headers) and DIALECTS["anthropic"] in spoken:
        return DIALECTS["anthropic"]
    return spoken[0] if spoken else dialect_of("")


def _says_anthropic(headers: CallHeaders) -> bool:
    return any(name == b"anthropic-version" for name, _ in headers.forwarded)


def own_key(headers: CallHeaders, dialect: Dialect) -> str | None:
    """The caller's own key of the vendor, if one came: in its own header, or where the vendor's clients send theirs."""
    if headers.vendor_key is not None:
        return headers.vendor_key
    texts = (headers.credentials.get(name) for name in dialect.key_headers)
    return next((text for text in texts if text is not None and not is_key_text(text)), None)
