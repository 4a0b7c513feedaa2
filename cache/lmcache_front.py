"""`api.lmcache.<operation>`, whose namespace stands in the body: asked of whoever owns it."""

from collections.abc import Awaitable, Callable

import msgspec

from cache.lmcache import OPERATIONS, LmcacheEndpoints, read_request
from schemas.protocols import Answer, Call, Endpoint, HandleCall, Requester, RequestError
from schemas.units import Token

TIMEOUT_SECONDS = 30.0


class _Addressed(msgspec.Struct, frozen=True):
    """What every request may say; the owner reads the rest."""

    namespace: Token | None = None


class LmcacheFront:
    """Served by every instance: answers for what it owns, and asks the owner of the others."""

    def __init__(
        self, owned: Callable[[str], LmcacheEndpoints | None], requester: Requester
    ) -> None:
        self._owned = owned
        self._requester = requester

    def endpoints(self) -> list[Endpoint]:
        """One for each operation."""
        return [
            Endpoint(
                f"lmcache_{operation}",
                f"api.lmcache.{operation}",
                self._handler(operation),
                request_type=request,
                reply_type=reply,
            )
            for operation, (request, reply) in OPERATIONS.items()
        ]

    def _handler(self, operation: str) -> HandleCall:
        def handle(call: Call) -> Answer | Awaitable[Answer]:
            namespace = read_request(call, _Addressed).namespace or "default"
            here = self._owned(namespace)
            if here is not None:
                return here.handlers[operation](call)
            return self._ask_owner(f"api.lmcache.{operation}.{namespace}", call, namespace)

        return handle

    async def _ask_owner(self, subject: str, call: Call, namespace: str) -> Answer:
        try:
            return await self._requester.request(
                subject, call.payload, call.headers, timeout_seconds=TIMEOUT_SECONDS
            )
        except RequestError as error:
            if error.code == 503:
                raise RequestError(503, f"namespace {namespace}: {error.text}") from None
            raise
