"""Alarms of orgs, for operators to see: in the hot state, and as a metric."""

from services.aggregator.observe import Observer
from services.core.ports import HotState


class Alarms:
    """The alarms of one kind, ``<kind>:<org>``. Those that an earlier process left are known, too."""

    def __init__(self, hot: HotState, observer: Observer, kind: str) -> None:
        self._hot = hot
        self._observer = observer
        self._prefix = f"{kind}:"
        self._raised: set[str] | None = None

    async def raised(self) -> set[str]:
        """The orgs whose alarms are raised. Raises `UnavailableError`."""
        if self._raised is None:
            names = [name for name in await self._hot.alarms() if name.startswith(self._prefix)]
            for name in names:
                self._observer.alarm(name, True)
            self._raised = {name[len(self._prefix) :] for name in names}
        return self._raised

    async def set(self, org: str, text: str | None, *, again: bool = False) -> bool:
        """Raises the org's alarm, or clears it (None). False when it was so already, and nothing is done but `again`.

        Raises `UnavailableError`.
        """
        raised = await self.raised()
        is_known = (text is not None) == (org in raised)
        if is_known and not again:
            return False
        name = f"{self._prefix}{org}"
        if text is None:
            await self._hot.clear_alarm(name)
            raised.discard(org)
        else:
            await self._hot.set_alarm(name, text)
            raised.add(org)
        self._observer.alarm(name, text is not None)
        return not is_known
