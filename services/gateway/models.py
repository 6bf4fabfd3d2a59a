"""Which models a caller can use: what is listed under the names of the vendors that its org can reach."""

from services.gateway.body import Send
from services.gateway.connect import Connector
from services.gateway.respond import send_ok
from services.gateway.snapshots import OrgView
from services.gateway.table import Candidate

PATH = "/v1/models"


class ModelList:
    """Answers ``GET /v1/models`` in OpenAI's dialect: nothing is held, because nothing is used.

    It is the gateway's to answer, not a vendor's: one list spans every vendor within reach.
    """

    def __init__(self, connector: Connector) -> None:
        self._connector = connector

    @staticmethod
    def is_asked_for(candidate: Candidate) -> bool:
        """Whether a route is the list of models, in the dialect that the list is in."""
        return (candidate.dialect.name, candidate.route.method, candidate.route.path) == ("openai", "GET", PATH)

    async def serve(self, send: Send, view: OrgView, vendor: str | None) -> None:
        """The list, in OpenAI's form; of one vendor only, where the caller names it."""
        models = [
            {"id": model, "object": "model", "created": 0, "owned_by": connection.vendor}
            for connection in self._connector.all(view.snapshot).values()
            if vendor in (None, connection.vendor)
            for model in sorted(view.prices.names(connection.prices_as))
        ]
        await send_ok(send, {"object": "list", "data": models})
