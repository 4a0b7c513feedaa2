"""The typed client: `ResourceAgent` for metrics and health, `CacheClient` for the cache."""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec

from agent.bus import Bus, connect
from schemas.api import CacheReply, Filter, HealthReply, HistoryReply, HistoryRequest, LatestReply
from schemas.cache import INLINE_LIMIT_BYTES, MAX_KEY_BYTES, encode_header
from schemas.units import token

T = TypeVar("T")

TIMEOUT_SECONDS = 5.0


class _Connected:
    """A bus that this client may have opened itself, and then closes."""

    def __init__(self, bus: Bus, *, owns_bus: bool = False) -> None:
        self._bus = bus
        self._owns_bus = owns_bus

    @classmethod
    async def connect(cls, url: str = "nats://127.0.0.1:4222", *, root: str = "fleet.v1") -> Self:
        """Connect; use the result as an async context manager, or `close` it.

        Raises:
            agent.bus.BusError: no usable server; the text says what to do.
        """
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

    async def _ask(self, subject: str, body: msgspec.Struct | None, reply: type[T]) -> T:
        payload = b"" if body is None else msgspec.json.encode(body)
        answer = await self._bus.request(subject, payload, timeout_seconds=TIMEOUT_SECONDS)
        return msgspec.json.decode(answer.payload, type=reply)


class ResourceAgent(_Connected):
    """Asks the fleet. Every call raises `schemas.protocols.RequestError` when it is refused.

    With `fresh_from=NODE` that node's agent answers with a sample at most a second old; otherwise
    the handlers answer for the whole fleet from the last metrics seen, each row with its age.
    """

    async def gpu(
        self,
        name: str = "metrics",
        *,
        node: str | None = None,
        pool: str | None = None,
        limit: int = 1000,
        fresh_from: str | None = None,
    ) -> LatestReply:
        """`name`: metrics, utilization, temperature, memory or power."""
        return await self._latest("gpu", name, node, pool, limit, fresh_from)

    async def system(
        self,
        name: str = "all",
        *,
        node: str | None = None,
        pool: str | None = None,
        limit: int = 1000,
        fresh_from: str | None = None,
    ) -> LatestReply:
        """`name`: cpu, memory, disk, network or all."""
        return await self._latest("system", name, node, pool, limit, fresh_from)

    async def _latest(
        self,
        group: str,
        name: str,
        node: str | None,
        pool: str | None,
        limit: int,
        fresh_from: str | None,
    ) -> LatestReply:
        if fresh_from is not None:
            return await self._ask(f"api.{group}.{name}.{token(fresh_from)}", None, LatestReply)
        wanted = Filter(node=token(node) if node else None, pool=pool, limit=limit)
        return await self._ask(f"api.{group}.{name}", wanted, LatestReply)

    async def get_gpu_metrics(self, node: str | None = None) -> LatestReply:
        """All GPU values, of one node or of the fleet."""
        return await self.gpu("metrics", node=node)

    async def gpu_history(
        self,
        *,
        node: str | None = None,
        gpu: str | None = None,
        seconds: float | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
        limit: int = 1000,
    ) -> HistoryReply:
        """GPU samples of a time range; the reply says whether from raw metrics or rollups."""
        request = HistoryRequest(
            node=token(node) if node else None,
            gpu=gpu,
            seconds=seconds,
            start=start,
            end=end,
            limit=limit,
        )
        return await self._ask("api.gpu.history", request, HistoryReply)

    async def system_history(
        self,
        *,
        node: str | None = None,
        seconds: float | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
        limit: int = 1000,
    ) -> HistoryReply:
        """Host samples of a time range; the reply says whether from raw metrics or rollups."""
        request = HistoryRequest(
            node=token(node) if node else None, seconds=seconds, start=start, end=end, limit=limit
        )
        return await self._ask("api.system.history", request, HistoryReply)

    async def health(self, name: str = "detailed") -> HealthReply:
        """`name`: root, basic, detailed, ready or live; for the whole installation."""
        return await self._ask(f"api.health.{name}", None, HealthReply)


class CacheClient(_Connected):
    """One namespace of the cache. Values up to 512 KiB, keys up to 10 KiB of UTF-8."""

    namespace = "default"

    def of(self, namespace: str) -> Self:
        """The same connection, another namespace."""
        other = type(self)(self._bus)
        other.namespace = token(namespace)
        return other

    async def get(self, key: str, *, restore: bool = True) -> bytes | None:
        """The value, or None. A miss in RAM asks the archive, unless `restore` is off."""
        headers = None if restore else {"Fleet-No-Restore": "1"}
        answer = await self._bus.request(
            f"cache.{self.namespace}.get",
            _key_bytes(key),
            headers,
            timeout_seconds=TIMEOUT_SECONDS,
        )
        return None if answer.headers.get("Fleet-Status") == "miss" else answer.payload

    async def put(
        self,
        key: str,
        value: bytes,
        *,
        ttl_seconds: float | None = None,
        prefix_tokens: int | None = None,
        parent: str | None = None,
        cost_seconds: float | None = None,
        request_class: str | None = None,
        tags: Sequence[str] = (),
        meta: Mapping[str, str] | None = None,
        version: str | None = None,
    ) -> str:
        """Store the value and return its version.

        `version` compares and sets: RequestError 409 if the entry has another one.

        Raises:
            ValueError: key or value is larger than the limit, or no such time to live is
                possible; nothing was sent.
        """
        _key_bytes(key)
        if ttl_seconds is not None and not 0 <= ttl_seconds < math.inf:
            raise ValueError(f"a time to live of {ttl_seconds:g} s: it must be finite, 0 or more")
        if len(value) > INLINE_LIMIT_BYTES:
            raise ValueError(
                f"value of {len(value)} bytes exceeds the limit of {INLINE_LIMIT_BYTES} bytes"
            )
        optional: dict[str, Any] = {
            "Fleet-Ttl-Seconds": ttl_seconds,
            "Fleet-Prefix-Tokens": prefix_tokens,
            "Fleet-Parent": encode_header(parent) if parent else None,
            "Fleet-Cost-Seconds": cost_seconds,
            "Fleet-Class": encode_header(request_class) if request_class else None,
            "Fleet-Tags": ",".join(map(encode_header, tags)) or None,
            "Fleet-Meta": encode_header(msgspec.json.encode(dict(meta)).decode()) if meta else None,
            "Fleet-Version": version,
        }
        headers = {name: str(text) for name, text in optional.items() if text is not None}
        headers["Fleet-Key"] = encode_header(key)
        answer = await self._bus.request(
            f"cache.{self.namespace}.put", value, headers, timeout_seconds=TIMEOUT_SECONDS
        )
        return answer.headers["Fleet-Version"]

    async def delete(self, key: str) -> CacheReply:
        """Remove the entry from RAM and archive; `existed` tells whether RAM had it."""
        answer = await self._bus.request(
            f"cache.{self.namespace}.delete", _key_bytes(key), timeout_seconds=TIMEOUT_SECONDS
        )
        return msgspec.json.decode(answer.payload, type=CacheReply)


def _key_bytes(key: str) -> bytes:
    encoded = key.encode()
    if not encoded:
        raise ValueError("the key is empty")
    if len(encoded) > MAX_KEY_BYTES:
        raise ValueError(f"key of {len(encoded)} bytes exceeds the limit of {MAX_KEY_BYTES} bytes")
    return encoded
