"""What control has published, held in memory: one compiled view an org, kept current by a pulse."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Final

import structlog

from services.core.catalog import Catalog, CatalogError, decode_catalog
from services.core.matching import BudgetIndex, Expressions
from services.core.ports import Directory, HotState, Pulse, UnavailableError
from services.core.pricebook import PriceBook
from services.core.snapshot import Snapshot, decode_snapshot
from services.gateway.pasts import Pasts, find_pasts, pasts_to_know

log = structlog.get_logger()

_CATALOGS_KEPT: Final = 8
# So many orgs' pasts are looked for with each poll.
_LOOKS: Final = 16
_REMEDY: Final = "run the gateway in the release of control"
# A snapshot of some hundred budgets or more takes so long that other calls would notice.
_READ_IN_THREAD_BYTES: Final = 65_536
_MALFORMED: Final = (ValueError, KeyError, TypeError, AttributeError)


class UnreadableError(UnavailableError):
    """What control has published can't be read by this gateway: it is damaged, or a newer control's."""


class HotClock:
    """The hot state's clock, estimated: only it decides windows, so proposals follow it and not this host's (P9)."""

    def __init__(self) -> None:
        self._offset_ms = time.time_ns() // 1_000_000 - time.monotonic_ns() // 1_000_000

    def now_ms(self) -> int:
        """The hot state's Unix milliseconds, as far as is known."""
        return time.monotonic_ns() // 1_000_000 + self._offset_ms

    def learn(self, now_ms: int) -> None:
        """Takes an answer's time as it arrives."""
        self._offset_ms = now_ms - time.monotonic_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class OrgView:
    """All that is needed to decide a call of one org. `pasts` says which of the budgets can't be checked yet."""

    snapshot: Snapshot
    budgets: BudgetIndex
    prices: PriceBook
    pasts: Pasts


async def _look_for_pasts(view: OrgView) -> None:
    with contextlib.suppress(UnavailableError):
        await view.pasts.look()


class Snapshots:
    """Views of orgs, loaded when first asked for and reloaded when control has published something newer.

    `on_change` is called when anything may have changed, before views are reloaded. `expressions` compiles those of
    budgets.
    """

    def __init__(
        self,
        directory: Directory,
        hot_state: HotState,
        clock: HotClock,
        on_change: Callable[[], None],
        poll_interval_s: float,
        expressions: Expressions | None = None,
    ) -> None:
        self._directory = directory
        self._hot_state = hot_state
        self._clock = clock
        self._on_change = on_change
        self._poll_interval_s = poll_interval_s
        self._expressions = expressions
        self._views: dict[str, OrgView] = {}
        self._loading: dict[str, asyncio.Task[OrgView]] = {}
        self._catalogs: dict[str, Catalog] = {}
        # The orgs with budgets whose past is looked for, the one that has waited longest first.
        self._unknown: dict[str, None] = {}
        self._unreadable: dict[str, int] = {}
        # The last look has failed: who answers next may have lost what was written last.
        self._has_failed = False
        self._generation: int | None = None
        self._outdated = True
        self._seen_s: float | None = None
        self._current_s: float | None = None
        self._control_ms: int | None = None
        self._wake = asyncio.Event()

    @property
    def generation(self) -> int | None:
        """The publication last seen; None when the hot state is bare or has not been reached yet."""
        return self._generation

    @property
    def orgs(self) -> tuple[str, ...]:
        """The orgs that are held in memory."""
        return tuple(self._views)

    @property
    def has_fail_open(self) -> bool:
        """Whether a route of any org that is held in memory lets calls pass without the spend state (GW-9)."""
        return any(rule.fail_open for view in self._views.values() for rule in view.snapshot.rules)

    def age_s(self) -> float | None:
        """Seconds since the hot state was last reached; None before the first time."""
        return None if self._seen_s is None else time.monotonic() - self._seen_s

    def control_age_s(self) -> float | None:
        """Seconds since control last said that it is there; None when it never did."""
        return None if self._control_ms is None else max(0, self._clock.now_ms() - self._control_ms) / 1000

    def config_age_s(self) -> float | None:
        """Seconds since every view was last known to be what control has published; None before the first time.

        Calls go on by the last views for as long as it takes (CO-4).
        """
        return None if self._current_s is None else time.monotonic() - self._current_s

    async def view(self, org: str) -> OrgView:
        """The view of an org; raises `UnavailableError` when it can't be had."""
        view = self._views.get(org)
        return view if view is not None else await self._load(org)

    async def since(self, org: str, config_version: int) -> OrgView:
        """The view of an org by what control has published as `config_version`, or after that.

        The last one, where that can't be read. Raises `UnavailableError` when it can't be had.
        """
        view = await self.view(org)
        for _ in range(2):  # a load that was under way may have begun before the publication
            if max(view.snapshot.version, self._unreadable.get(org, 0)) >= config_version:
                return view
            view = await self._load(org)
        if view.snapshot.version < config_version:
            raise UnavailableError(f"version {config_version} of org {org}'s configuration is not there")
        return view

    def hint(self, view: OrgView, config_version: int) -> None:
        """Tells of a version seen elsewhere; a newer one than the view's is fetched at once, if it can be read."""
        if config_version > max(view.snapshot.version, self._unreadable.get(view.snapshot.org, 0)):
            self._outdated = True
            self._wake.set()

    async def run(self) -> None:
        """Polls until cancelled."""
        reachable = True
        while True:
            try:
                await self.poll()
            except UnavailableError as error:
                if reachable:  # once an outage: hundreds of equal lines help nobody
                    log.warning("hot_state_lost", reason=str(error))
                reachable = False
            else:
                if not reachable:
                    log.info("hot_state_back")
                reachable = True
            try:
                async with asyncio.timeout(self._poll_interval_s):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def poll(self) -> None:
        """Looks once for changes and takes them in; raises `UnavailableError`."""
        self._wake.clear()
        pulse = await self._pulse()
        self._seen_s = time.monotonic()
        self._clock.learn(pulse.now_ms)
        self._control_ms = pulse.control_seen_ms or self._control_ms
        if pulse.generation != self._generation or self._outdated:
            if pulse.generation is not None:  # a bare state says nothing of what is cached: what fails open goes on
                self._on_change()
            self._outdated = True
            self._outdated = pulse.generation is not None and await self._refresh()
            self._generation = pulse.generation
        self._note_current()
        if self._unknown:
            await self._look_for_pasts()

    async def _pulse(self) -> Pulse:
        """The pulse. Where the hot state may have lost something, no past is taken to be known any more."""
        try:
            pulse = await self._directory.pulse()
        except UnavailableError:
            self._has_failed = True
            raise
        if self._has_failed or pulse.generation is None or pulse.generation < (self._generation or 0):
            self._has_failed = False
            for org, view in self._views.items():
                view.pasts.doubt()
                if view.pasts.unknown:
                    self._unknown[org] = None
        return pulse

    def _note_current(self) -> None:
        unread = any(
            org in self._views and version > self._views[org].snapshot.version
            for org, version in self._unreadable.items()
        )
        if self._generation is not None and not self._outdated and not unread:
            self._current_s = self._seen_s

    async def _look_for_pasts(self) -> None:
        """Looks for pasts of budgets that no call waits for: so that their org's calls need not ask any more."""
        orgs = list(islice(self._unknown, _LOOKS))
        for org in orgs:
            del self._unknown[org]
        views = [view for org in orgs if (view := self._views.get(org)) is not None and view.pasts.unknown]
        self._unknown |= {view.snapshot.org: None for view in views}
        await asyncio.gather(*(_look_for_pasts(view) for view in views))

    async def _refresh(self) -> bool:
        """Reloads what is older than what control has published; true when something still is."""
        published = await self._directory.published_versions()
        outdated = False
        failure: UnavailableError | None = None
        for org in dict.fromkeys((*self._views, *self._loading)):
            view = self._views.get(org)
            if org not in published:
                self._views.pop(org, None)
            elif view is None or view.snapshot.version != published[org]:
                # A load that was under way may have begun before the publication.
                joins = org in self._loading
                try:
                    outdated |= (await self._load(org)).snapshot.version < published[org]
                except UnreadableError as error:
                    if joins:
                        outdated = True
                        continue
                    # Reading it again changes nothing: the next publication is the next try, for this org alone.
                    self._unreadable[org] = published[org]
                    log.error("publication_unreadable", org=org, config_version=published[org], reason=str(error))
                except UnavailableError as error:  # of a cluster one server may be away: the other orgs are seen to
                    failure = error
        if failure is not None:
            raise failure
        return outdated

    async def _load(self, org: str) -> OrgView:
        """Loads a view once for everyone who asks at the same time, whoever of them goes away."""
        task = self._loading.get(org)
        if task is None:
            task = self._loading[org] = asyncio.create_task(self._fetch(org))
            task.add_done_callback(lambda _: self._loading.pop(org))
        return await asyncio.shield(task)

    async def _fetch(self, org: str) -> OrgView:
        body = await self._directory.snapshot(org)
        if body is None:
            raise UnavailableError(f"org {org} has not been published")
        try:
            if len(body) > _READ_IN_THREAD_BYTES:
                snapshot, budgets, since = await asyncio.to_thread(self._compile, body)
            else:
                snapshot, budgets, since = self._compile(body)
        except _MALFORMED as error:
            raise UnreadableError(f"the snapshot of org {org} can't be read: {error!r}; {_REMEDY}") from error
        catalog = await self._catalog(snapshot.catalog_version)
        try:
            prices = PriceBook(catalog, snapshot.overrides, snapshot.unknown_models)
        except _MALFORMED as error:
            raise UnreadableError(f"the prices of org {org} can't be read: {error!r}; {_REMEDY}") from error
        before = self._views.get(org)
        pasts = await find_pasts(self._hot_state, org, since, None if before is None else before.pasts)
        view = OrgView(snapshot, budgets, prices, pasts)
        self._views[org] = view
        if pasts.unknown:
            self._unknown[org] = None
        return view

    def _compile(self, body: bytes) -> tuple[Snapshot, BudgetIndex, dict[str, int]]:
        snapshot = decode_snapshot(body)
        return snapshot, BudgetIndex(snapshot.budgets, self._expressions), pasts_to_know(snapshot.budgets)

    async def _catalog(self, version: str) -> Catalog:
        catalog = self._catalogs.get(version)
        if catalog is None:
            body = await self._directory.catalog(version)
            if body is None:
                raise UnavailableError(f"price catalog {version} has not been published")
            try:
                # It takes long enough that other calls would notice.
                catalog = self._catalogs[version] = await asyncio.to_thread(decode_catalog, body)
            except CatalogError as error:
                raise UnreadableError(f"price catalog {version} can't be read: {error}; {_REMEDY}") from error
            while len(self._catalogs) > _CATALOGS_KEPT:
                del self._catalogs[next(iter(self._catalogs))]
        return catalog
