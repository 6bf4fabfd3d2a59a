"""What is tried when a vendor fails: the targets that the org has named for the route, in order (GW-5)."""

from services.core.ports import VendorResponse
from services.gateway.admit import AdmittedCall
from services.gateway.forward import Forwarder, VendorFailedError
from services.gateway.headers import Headers
from services.gateway.move import Mover
from services.gateway.snapshots import OrgView


class Fallbacks:
    """Sends calls to their vendor and, when that fails, to the next target whose price the call's budgets can bear.

    A vendor that may have done what it was asked for is not followed by another: both could charge. When the last of
    them fails, its failure is the one that is told, and the call is on record as its; the attempts tell of the others.
    """

    def __init__(self, forwarder: Forwarder, mover: Mover) -> None:
        self._forwarder = forwarder
        self._mover = mover

    async def send(self, call: AdmittedCall, view: OrgView, headers: Headers) -> tuple[AdmittedCall, VendorResponse]:
        """The call as it was answered, and the head of its answer. Raises `VendorFailedError`."""
        # A job is asked for by its id where it was submitted to: another vendor would not know it.
        targets = list(call.rule.fallbacks or ()) if call.asked.job is None else []
        while True:
            failure: VendorFailedError | None = None
            response: VendorResponse | None = None
            try:
                response = await self._forwarder.send(call, headers)
                if response.status < 500:
                    return call, response
            except VendorFailedError as error:
                if error.was_sent:
                    raise
                failure = error
            moved = None
            while targets and moved is None:
                moved = await self._mover.move(call, view, targets.pop(0))
            if moved is None:
                if response is not None:
                    return call, response
                assert failure is not None
                raise failure
            if response is not None:
                await response.close()
            call = moved
