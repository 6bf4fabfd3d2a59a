"""What is tried when a vendor fails: the targets that the org has named for the route, in order (GW-5)."""

import contextlib

from services.core.ports import UnavailableError
from services.core.snapshot import Target
from services.core.vendor_port import VendorResponse
from services.gateway.admit import AdmittedCall
from services.gateway.forward import Forwarder, VendorFailedError
from services.gateway.headers import Headers
from services.gateway.move import Mover
from services.gateway.renew import LiveHold, LiveHolds
from services.gateway.snapshots import OrgView, Snapshots


class Fallbacks:
    """Sends calls to their vendor and, when that fails, to the next target whose price the call's budgets can bear.

    A vendor that may have done what it was asked for is not followed by another: both could charge. When the last of
    them fails, its failure is the one that is told, and the call is on record as its; the attempts tell of the others.
    """

    def __init__(self, forwarder: Forwarder, mover: Mover, holds: LiveHolds, snapshots: Snapshots) -> None:
        self._forwarder = forwarder
        self._mover = mover
        self._holds = holds
        self._snapshots = snapshots

    async def send(self, hold: LiveHold, view: OrgView, headers: Headers) -> VendorResponse:
        """The head of the answer to the hold's call, which is another when another vendor has answered it.

        Raises `VendorFailedError`, and `CutOffError` when a model has thought for longer than can be held.
        """
        call = hold.call
        # A job is asked for by its id where it was submitted to: another vendor would not know it.
        targets = list(call.rule.fallbacks or ()) if call.asked.job is None else []
        while True:
            failure: VendorFailedError | None = None
            response: VendorResponse | None = None
            try:
                async with contextlib.nullcontext() if hold.growing is None else hold.growing.limiting():
                    response = await self._forwarder.send(call, headers)
                if response.status < 500:
                    return response
            except VendorFailedError as error:
                if error.was_sent:
                    raise
                failure = error
            try:
                moved = await self._moved(hold, call, view, targets)
            except BaseException:
                if response is not None:
                    await response.close()
                raise
            if moved is None:
                if response is not None:
                    return response
                assert failure is not None
                raise failure
            if response is not None:
                await response.close()
            call = moved

    async def _moved(
        self, hold: LiveHold, call: AdmittedCall, view: OrgView, targets: list[Target]
    ) -> AdmittedCall | None:
        """The call at the first of the targets that can take it, which are used up on the way; None where none can."""
        moved = None
        async with hold.turn():
            while targets and moved is None:
                # A vendor may have taken minutes to fail: limits of now decide, where they can be had.
                with contextlib.suppress(UnavailableError):
                    view = await self._snapshots.view(view.snapshot.org)
                moved = await self._mover.move(call, view, targets.pop(0))
            if moved is not None:
                self._holds.move(hold, moved)
        return moved
