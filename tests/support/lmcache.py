"""Requests to `api.lmcache`, and what a refused one says."""

from typing import Any

import msgspec

from agent.bus import Bus
from schemas.protocols import Answer, RequestError


class Lmcache:
    """Asks `api.lmcache.<operation>`, or with a namespace the subject that names it."""

    def __init__(self, bus: Bus, namespace: str = "") -> None:
        self._bus = bus
        self._suffix = f".{namespace}" if namespace else ""

    async def answer(self, operation: str, body: Any = None, **headers: str) -> Answer:
        """Header names are written with underscores."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        payload = b"" if body is None else body
        if not isinstance(payload, bytes):
            payload = msgspec.json.encode(payload)
        return await self._bus.request(
            f"api.lmcache.{operation}{self._suffix}", payload, named or None, timeout_seconds=20
        )

    async def ask(self, operation: str, body: Any = None, **headers: str) -> dict[str, Any]:
        answer = await self.answer(operation, body, **headers)
        return msgspec.json.decode(answer.payload, type=dict[str, Any])

    async def configure(self, **changes: Any) -> dict[str, Any]:
        return await self.ask("configure", changes)

    async def refused(self, operation: str, body: Any = None, **headers: str) -> RequestError:
        try:
            await self.answer(operation, body, **headers)
        except RequestError as error:
            return error
        raise AssertionError(f"{operation} {body!r} was not refused")
