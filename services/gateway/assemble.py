"""Puts the gateway together from ports and options: the same for app.py and for every test."""

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Final

import httpx

from services.core.answers import Answers
from services.core.calibrate import Calibration
from services.core.jobs import Jobs
from services.core.matching import Expressions
from services.core.ports import Directory, HotState, UnavailableError
from services.core.vendor_port import VendorTransport
from services.gateway.admit import Admitter
from services.gateway.calls import GovernedCalls, Serving
from services.gateway.connect import Connector, OpenSealed
from services.gateway.delegations.backing import Backing
from services.gateway.delegations.control import ControlDelegations
from services.gateway.delegations.desk import Desk
from services.gateway.delegations.serve import DelegationApi
from services.gateway.deny import Denier
from services.gateway.fallback import Fallbacks
from services.gateway.forward import Forwarder
from services.gateway.free import FreeCalls
from services.gateway.hold import Holder
from services.gateway.identify import Authenticator
from services.gateway.jobs.access import Fetcher
from services.gateway.jobs.keeper import Keeper
from services.gateway.jobs.poll import Poller
from services.gateway.jobs.settle import JobSettler
from services.gateway.jobs.submit import Submissions
from services.gateway.jobs.watch import Watch
from services.gateway.models import ModelList
from services.gateway.move import Mover
from services.gateway.observe import NoObserver, Observer, PassOn, Tracing
from services.gateway.record import Recorder
from services.gateway.relay import Relay
from services.gateway.releasing import Releases
from services.gateway.renew import LiveHolds
from services.gateway.reservations.book import Book
from services.gateway.reservations.holding import Holding
from services.gateway.reservations.past import History
from services.gateway.reservations.recorded import RecordedTransactions
from services.gateway.reservations.serve import ReservationApi
from services.gateway.respond import ResponseHeaders
from services.gateway.routes import Gateway, Surface
from services.gateway.settle import Settler
from services.gateway.snapshots import HotClock, Snapshots
from services.gateway.table import RouteTable
from services.gateway.unrecorded import Settlements
from services.gateway.vendors.registry import DIALECTS

# A hot state that has not been reached for this long is taken to be away.
_STALE_S: Final = 3.0
# Whether any org is served is told within this time, by as many orgs as are looked at then.
_LOOK_S: Final = 1.0
_LOOKED_AT: Final = 100
_NO_OBSERVER: Final = NoObserver()
_PASS_ON: Final = PassOn()


@dataclass(frozen=True, slots=True)
class Ports:
    """What the gateway needs of the outside world. `relay_transport` reaches the services behind the one address."""

    directory: Directory
    hot_state: HotState
    outbox: Recorder
    vendors: VendorTransport
    relay_transport: httpx.AsyncBaseTransport
    open_sealed: OpenSealed
    pepper: bytes
    jobs: Jobs
    answers: Answers
    expressions: Expressions
    internal_token: str = ""
    observer: Observer = _NO_OBSERVER
    tracing: Tracing = _PASS_ON


@dataclass(frozen=True, slots=True)
class Options:
    """How the gateway behaves; names and defaults as in the settings."""

    control_url: str
    ledger_url: str
    sandbox_url: str | None = None
    default_vendor: str = "openai"
    header_prefix: str = "x-spend-"
    max_body_bytes: int = 32 * 1024 * 1024
    max_response_bytes: int = 64 * 1024 * 1024
    vendor_timeout_s: float = 120.0
    poll_interval_s: float = 0.25
    job_poll_interval_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Assembly:
    """The application, and what must run or be waited for beside it."""

    app: Gateway
    snapshots: Snapshots
    admitter: Admitter
    poller: Poller
    keeper: Keeper
    watch: Watch
    holds: LiveHolds
    releases: Releases
    settlements: Settlements

    async def finish_jobs(self, timeout_s: float) -> None:
        """Waits for jobs that are being kept or settled, once no more calls are served."""
        await asyncio.gather(self.keeper.finish_tasks(timeout_s), self.watch.finish_tasks(timeout_s))


def assemble(ports: Ports, options: Options) -> Assembly:
    """The gateway. Run `snapshots.run()`, `poller.run()` and `holds.run()` beside it."""
    table = RouteTable(DIALECTS.values())
    clock = HotClock()
    prefix = options.header_prefix.lower()
    authenticator = Authenticator(ports.directory, ports.pepper, prefix)
    snapshots = Snapshots(
        ports.directory, ports.hot_state, clock, authenticator.forget, options.poll_interval_s, ports.expressions
    )
    connector = Connector(ports.open_sealed, options.sandbox_url, options.default_vendor, prefix)
    calibration = Calibration()
    releases, settlements = Releases(ports.hot_state), Settlements(ports.outbox)
    admitter = Admitter(
        snapshots=snapshots,
        clock=clock,
        holder=Holder(ports.hot_state, clock, snapshots, releases),
        outbox=ports.outbox,
        tracing=ports.tracing,
        connector=connector,
        denier=Denier(ports.outbox, prefix),
        calibration=calibration,
    )
    names, timeout_s = ResponseHeaders(prefix), options.vendor_timeout_s
    free = FreeCalls(ports.vendors, connector, names, max_body_bytes=options.max_body_bytes, timeout_s=timeout_s)
    fetcher = Fetcher(ports.vendors, timeout_s)
    keeper = Keeper(ports.jobs, fetcher, JobSettler(ports.outbox, ports.observer, calibration), clock)
    watch = Watch(free, keeper, names, options.max_response_bytes)
    holds = LiveHolds(ports.hot_state, ports.outbox, snapshots, clock)
    calls = GovernedCalls(
        Serving(
            table=table,
            authenticator=authenticator,
            connector=connector,
            admitter=admitter,
            fallbacks=Fallbacks(
                Forwarder(ports.vendors, ports.observer, timeout_s),
                Mover(connector, ports.hot_state, ports.outbox, clock, calibration),
                holds,
                snapshots,
            ),
            holds=holds,
            settler=Settler(settlements, ports.observer, calibration),
            free=free,
            watch=watch,
            submissions=Submissions(fetcher, connector, max_bytes=options.max_response_bytes, timeout_s=timeout_s),
            keeper=keeper,
            models=ModelList(connector),
            observer=ports.observer,
            header_prefix=prefix,
            max_body_bytes=options.max_body_bytes,
            max_response_bytes=options.max_response_bytes,
        )
    )
    poller = _poller(ports, snapshots, clock, connector, keeper, fetcher, options.job_poll_interval_s)
    app = Gateway(_surface(ports, options, table, calls, authenticator, snapshots, clock, releases))
    return Assembly(app, snapshots, admitter, poller, keeper, watch, holds, releases, settlements)


def _poller(
    ports: Ports,
    snapshots: Snapshots,
    clock: HotClock,
    connector: Connector,
    keeper: Keeper,
    fetcher: Fetcher,
    interval_s: float,
) -> Poller:
    return Poller(
        directory=ports.directory,
        snapshots=snapshots,
        clock=clock,
        connector=connector,
        jobs=ports.jobs,
        keeper=keeper,
        fetcher=fetcher,
        interval_s=interval_s,
    )


def _surface(
    ports: Ports,
    options: Options,
    table: RouteTable,
    calls: GovernedCalls,
    authenticator: Authenticator,
    snapshots: Snapshots,
    clock: HotClock,
    releases: Releases,
) -> Surface:
    prefix = options.header_prefix.lower()
    history = History(ports.answers, RecordedTransactions(options.ledger_url, ports.relay_transport))
    holding = Holding(snapshots, clock, ports.hot_state, ports.outbox, prefix + "session", releases.add)
    control = ControlDelegations(options.control_url, ports.internal_token, ports.relay_transport)
    backing = Backing(holding, history, control, ports.directory, ports.pepper, clock)
    desk = Desk(holding, history, control, backing, ports.hot_state, clock)
    return Surface(
        table=table,
        calls=calls,
        control=Relay("control", options.control_url, ports.relay_transport),
        ledger=Relay("ledger", options.ledger_url, ports.relay_transport),
        reservations=ReservationApi(authenticator, snapshots, Book(holding, clock, history), prefix),
        delegations=DelegationApi(authenticator, snapshots, desk, prefix),
        readiness=_Readiness(ports, snapshots).reason,
    )


class _Readiness:
    def __init__(self, ports: Ports, snapshots: Snapshots) -> None:
        self._ports = ports
        self._snapshots = snapshots

    async def reason(self) -> str | None:
        """Why no call can be served right now, or None: one warm org or one route that fails open is of use."""
        reason = await self._spend_state()
        if reason is not None and not self._snapshots.has_fail_open:
            return reason
        if self._ports.outbox.is_full():
            return "the outbox is full: the event log has been away too long"
        return None

    async def _spend_state(self) -> str | None:
        age_s = self._snapshots.age_s()
        if age_s is None:
            return "the hot state can't be reached"
        if age_s <= _STALE_S:
            if self._snapshots.generation is None:
                return "control has not published anything yet"
            try:
                epochs = await self._ports.hot_state.epochs(await self._ports.directory.orgs())
            except UnavailableError:
                pass
            else:
                return None if any(epochs.values()) else "the hot state is being rebuilt"
        # Of a cluster one server may be away, and the orgs of the others are served.
        return None if await self._is_any_warm() else "the hot state can't be reached"

    async def _is_any_warm(self) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_S):
                for org in self._snapshots.orgs[:_LOOKED_AT]:
                    with contextlib.suppress(UnavailableError):
                        if any((await self._ports.hot_state.epochs([org])).values()):
                            return True
        return False
