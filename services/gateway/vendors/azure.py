"""Azure OpenAI: OpenAI's protocol under deployments with an ``api-version``, and in the newer ``/openai/v1`` form.

In the older form the deployment in the path decides which model runs, whatever the body names; so the deployment's
name is what is priced, and an org gives it a price of its own where it is none of the catalog's models.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from services.gateway.vendors import RequestFacts, Route, RouteRequest
from services.gateway.vendors import openai_routes as routes
from services.gateway.vendors.envelope import key_header
from services.gateway.vendors.fields import Fields, model_name, read_object, with_path_model
from services.gateway.vendors.openai import OpenAIDialect
from services.gateway.vendors.openai_audio import SPEECH_DECIDED, speech_facts, transcription_facts
from services.gateway.vendors.openai_chat import CHAT_DECIDED, chat_facts
from services.gateway.vendors.openai_images import images_facts
from services.gateway.vendors.openai_texts import (
    COMPLETION_DECIDED,
    EMBEDDING_DECIDED,
    completion_facts,
    embedding_facts,
)

_ROOT: Final = "/openai"
_DEPLOYMENT: Final = "/openai/deployments/{model}"
_UNDER_DEPLOYMENTS: Final = (
    routes.CHAT,
    routes.COMPLETIONS,
    routes.EMBEDDINGS,
    routes.IMAGES,
    routes.EDITS,
    routes.SPEECH,
    routes.TRANSCRIPTIONS,
    routes.TRANSLATIONS,
)
# Routes of the older form that are not below a deployment.
_UNVERSIONED: Final = ("responses", "batches", "files", "models")


def _at(route: Route, root: str) -> Route:
    return replace(route, path=root + route.path.removeprefix("/v1"))


def _routes() -> tuple[Route, ...]:
    every = (*routes.HELD, *routes.JOBS, *routes.FREE)
    return (
        *(_at(each, _DEPLOYMENT) for each in _UNDER_DEPLOYMENTS),
        *(_at(each, _ROOT + "/v1") for each in every if each is not routes.VARIATIONS),
        *(_at(each, _ROOT) for each in every if each.name.split(".")[0] in _UNVERSIONED),
    )


_BY_FIELDS: Final[Mapping[str, tuple[frozenset[str], Callable[[bytes, Fields, str], RequestFacts]]]] = {
    routes.CHAT.name: (CHAT_DECIDED, chat_facts),
    routes.COMPLETIONS.name: (COMPLETION_DECIDED, completion_facts),
    routes.EMBEDDINGS.name: (EMBEDDING_DECIDED, embedding_facts),
    routes.SPEECH.name: (SPEECH_DECIDED, speech_facts),
}
_BY_REQUEST: Final[Mapping[str, Callable[[RouteRequest, str | None], RequestFacts]]] = {
    routes.IMAGES.name: images_facts,
    routes.EDITS.name: images_facts,
    routes.TRANSCRIPTIONS.name: transcription_facts,
    routes.TRANSLATIONS.name: transcription_facts,
}


class AzureDialect(OpenAIDialect):
    """Azure OpenAI's protocol, behind `vendors.Dialect`."""

    name = "azure"
    routes = _routes()
    versions: Sequence[str] = ("openai",)
    base_has_version = False
    default_base_url = None
    key_headers: Sequence[str] = ("api-key", "authorization")

    def read_request(self, request: RouteRequest) -> RequestFacts:
        """The facts of a request; raises `RequestRefusedError` naming the field."""
        if "{model}" not in request.route.path:
            return super().read_request(request)
        deployment = model_name(request.params.get("model"), "deployment")
        name = request.route.name
        if name in _BY_REQUEST:
            return _BY_REQUEST[name](request, deployment)
        decided, read = _BY_FIELDS[name]
        return read(request.body, read_object(request.body, decided), deployment)

    def renamed(self, request: RouteRequest, model: str) -> RouteRequest:
        """The request for another model, which is another deployment."""
        if "model" in request.params:
            return with_path_model(request, model)
        return super().renamed(request, model)

    def credential_headers(self, vendor_key: str | None) -> tuple[tuple[bytes, bytes], ...]:
        """The key in ``api-key``; nothing without a key."""
        return key_header(b"api-key", vendor_key)
