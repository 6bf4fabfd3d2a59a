"""What control has published, held in memory: one compiled view an org, kept current by a pulse."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from services.core.budgets import BudgetIndex
from services.core.catalog import Catalog, CatalogError, decode_catalog
from services.core.ports import Directory, UnavailableError
from services.core.pricebook import PriceBook
from services.core.snapshot import Snapshot, decode_snapshot

log = structlog.get_logger()

_CATALOGS_KEPT: Final = 8
_REMEDY: Final = "run the gateway in the release of control"
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
    """All that is needed to decide a call of one org."""

    snapshot: Snapshot
    budgets: BudgetIndex
    prices: PriceBook


class Snapshots:
    """Views of orgs, loaded when first asked for and reloaded when control has published something newer.

    `on_change` is called when anything may have changed, before views are reloaded.
    """

    def __init__(
        self, directory: Directory, clock: HotClock, on_change: Callable[[], None], poll_interval_s: float
    ) -> None:
        self._directory = directory
        self._clock = clock
        self._on_change = on_change
        self._poll_interval_s = poll_interval_s
        self._views: dict[str, OrgView] = {}
        self._loading: dict[str, asyncio.Task[OrgView]] = {}
        self._catalogs: dict[str, Catalog] = {}
        self._unreadable: dict[str, int] = {}
        self._generation: int | None = None
        self._outdated = True
        self._seen_s: float | None = None
        self._wake = asyncio.Event()

    @property
    def generation(self) -> int | None:
        """The publication last seen; None when the hot state is bare or has not been reached yet."""
        return self._generation

    def age_s(self) -> float | None:
        """Seconds since the hot state was last reached; None before the first time."""
        return None if self._seen_s is None else time.monotonic() - self._seen_s

    async def view(self, org: str) -> OrgView:
        """The view of an org; raises `UnavailableError` when it can't be had."""
        view = self._views.get(org)
        return view if view is not None else await self._load(org)

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
        pulse = await self._directory.pulse()
        self._seen_s = time.monotonic()
        self._clock.learn(pulse.now_ms)
        if pulse.generation == self._generation and not self._outdated:
            return
        self._on_change()
        self._outdated = True
        self._outdated = pulse.generation is not None and await self._refresh()
        self._generation = pulse.generation

    async def _refresh(self) -> bool:
        """Reloads what is older than what control has published; true when something still is."""
        published = await self._directory.published_versions()
        outdated = False
        for org in {*self._views, *self._loading}:
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
            snapshot = decode_snapshot(body)
            budgets = BudgetIndex(snapshot.budgets)
        except _MALFORMED as error:
            raise UnreadableError(f"the snapshot of org {org} can't be read: {error!r}; {_REMEDY}") from error
        catalog = await self._catalog(snapshot.catalog_version)
        try:
            prices = PriceBook(catalog, snapshot.overrides, snapshot.unknown_models)
        except _MALFORMED as error:
            raise UnreadableError(f"the prices of org {org} can't be read: {error!r}; {_REMEDY}") from error
        view = OrgView(snapshot, budgets, prices)
        self._views[org] = view
        return view

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
