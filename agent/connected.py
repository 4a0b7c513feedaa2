"""A client's connection, and requests with JSON answers over it."""

import math
import os
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec

from agent.bus import Bus, connect
from agent.discovery import find_bus, with_password
from agent.settings import load
from schemas.protocols import RequestError

T = TypeVar("T")

TIMEOUT_SECONDS = 5.0


class Connected:
    """A bus that this client may have opened itself, and then closes."""

    def __init__(self, bus: Bus, *, owns_bus: bool = False) -> None:
        self._bus = bus
        self._owns_bus = owns_bus

    @classmethod
    async def connect(cls, url: str | None = None, *, root: str = "fleet.v1") -> Self:
        """Connect; use the result as an async context manager, or `close` it.

        Without `url` the bus is found as the commands do: NATS_URL, the running `up` of this user
        (with all rights), or 127.0.0.1:4222.

        Raises:
            agent.bus.BusError: no usable server; the text says what to do.
            ValueError: settings in the environment are wrong.
        """
        if url is None:
            settings = load(environ=os.environ).settings
            found = find_bus(None, os.environ, settings.state_folder())
            url = with_password(found.url, settings.nats.password_file)
        return cls(await connect(url, name="client", root=root), owns_bus=True)

    async def close(self) -> None:
        """Close the connection if this client opened it."""
        if self._owns_bus:
            await self._bus.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def _ask(
        self,
        subject: str,
        body: msgspec.Struct | Mapping[str, Any] | None,
        reply: type[T],
        *,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> T:
        payload = b"" if body is None else _encoded(body)
        answer = await self._bus.request(subject, payload, timeout_seconds=timeout_seconds)
        return msgspec.json.decode(answer.payload, type=reply)


def _encoded(body: msgspec.Struct | Mapping[str, Any]) -> bytes:
    """As JSON, which has no NaN: it would be sent as null, and taken for what was not given.

    Raises:
        RequestError: 400, and the field that is no finite number.
    """
    fields = msgspec.to_builtins(body)
    for name, value in fields.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise RequestError(400, f"{name}: {value:g} is no finite number")
    return msgspec.json.encode(fields)
