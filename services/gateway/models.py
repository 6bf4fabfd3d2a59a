"""Which models a caller can use: everything with a price among the vendors that its org can reach."""

from services.gateway.admit import Admitter
from services.gateway.body import Message, Send
from services.gateway.headers import HeaderReader
from services.gateway.identify import Authenticator
from services.gateway.observe import Observer
from services.gateway.refusal import RefusedError
from services.gateway.respond import send_ok, send_refusal
from services.gateway.vendors import Dialect


class ModelList:
    """Serves ``GET /v1/models``: identified like a call, but nothing is held, because nothing is used."""

    def __init__(
        self, authenticator: Authenticator, admitter: Admitter, observer: Observer, dialect: Dialect, header_prefix: str
    ) -> None:
        self._reader = HeaderReader(header_prefix)
        self._authenticator = authenticator
        self._admitter = admitter
        self._observer = observer
        self._dialect = dialect

    async def serve(self, scope: Message, send: Send, vendor: str | None) -> None:
        """The list, in OpenAI's form; of one vendor only, where the path names it."""
        try:
            identity = await self._authenticator.identify(self._reader.read(scope["headers"]))
            view = await self._admitter.view(identity.org)
        except RefusedError as refusal:
            self._observer.denied(refusal.code)
            await send_refusal(send, self._dialect, refusal)
            return
        models = [
            {"id": model, "object": "model", "created": 0, "owned_by": connection.vendor}
            for connection in self._admitter.connections(view).values()
            if vendor in (None, connection.vendor)
            for model in sorted(view.catalog.prices.get(connection.prices_as, ()))
        ]
        await send_ok(send, {"object": "list", "data": models})
