"""The last metrics of every node, GPU and engine, in memory."""

from typing import TypeAlias

import msgspec

from handlers.window import ExpiringDict
from schemas.engines import EngineMetrics
from schemas.message import Message
from schemas.metrics import GpuMetrics, HostMetrics
from schemas.units import SECOND_NS

Metrics: TypeAlias = HostMetrics | GpuMetrics | EngineMetrics


class Latest(msgspec.Struct, frozen=True, gc=False):
    """The last message of one source and the stream time at which it was stored."""

    message: Metrics
    stored_ns: int
    encoded: dict[str, msgspec.Raw] = {}
    """By view, what was answered of it: the next to ask get the same bytes."""


class LatestStore:
    """Remembers one message per source and forgets it after `forget_seconds`.

    Not persistent: a restarted process fills it from the last message per subject of the stream.
    """

    def __init__(self, forget_seconds: float) -> None:
        ttl_ns = int(forget_seconds * SECOND_NS)
        self._kinds = {kind: _Kind(ttl_ns) for kind in (HostMetrics, GpuMetrics, EngineMetrics)}

    def accept(self, message: Message, stored_ns: int) -> None:
        """Remember `message`, the last of its source in the stream; other types pass by.

        Whatever its instant: the server's clock may have been set back.
        """
        if isinstance(message, HostMetrics | GpuMetrics | EngineMetrics):
            self._kinds[type(message)].put(Latest(message, stored_ns))

    def latest(
        self,
        kind: type[Metrics],
        now_ns: int,
        *,
        node: str | None = None,
        pool: str | None = None,
        limit: int = 1000,
    ) -> tuple[list[Latest], int]:
        """The first `limit` that match, by node, then GPU index or engine; and how many match.

        O(parts of the node), else O(all) with little for each.
        """
        return self._kinds[kind].matching(now_ns, node, pool, limit)

    def heard(
        self, kind: type[Metrics], now_ns: int, *, node: str | None = None, pool: str | None = None
    ) -> list[Latest]:
        """All that match, in no order: to count them takes a tenth of what `latest` does."""
        return self._kinds[kind].heard(now_ns, node, pool)

    def knows(self, node: str, now_ns: int) -> bool:
        """Whether anything came from `node`."""
        return any(kind.matching(now_ns, node, None, 1)[1] for kind in self._kinds.values())


class _Kind:
    """The last messages of one type, found by node as well."""

    def __init__(self, ttl_ns: int) -> None:
        self._latest: ExpiringDict[tuple[str, str], Latest] = ExpiringDict(
            ttl_ns, on_forgotten=self._forget
        )
        self._pools: dict[str, dict[str, str | None]] = {}  # of each part of each node

    def put(self, latest: Latest) -> None:
        message = latest.message
        part = _part(message)
        pools = self._pools.get(message.node)
        if pools is None:
            pools = self._pools[message.node] = {}
        pools[part] = message.pool
        self._latest.put((message.node, part), latest, latest.stored_ns)

    def matching(
        self, now_ns: int, node: str | None, pool: str | None, limit: int
    ) -> tuple[list[Latest], int]:
        self._latest.expire(now_ns)
        found: list[Latest] = []
        total = 0
        for name in sorted(self._pools) if node is None else (node,):
            pools = self._pools.get(name, {})
            parts = [part for part, its_pool in pools.items() if pool in {None, its_pool}]
            total += len(parts)
            if len(found) < limit:
                latest = [self._latest.get((name, part), now_ns) for part in parts]
                found += sorted((one for one in latest if one is not None), key=_order)
        return found[:limit], total

    def heard(self, now_ns: int, node: str | None, pool: str | None) -> list[Latest]:
        if node is None and pool is None:
            return self._latest.values(now_ns)
        nodes = self._pools if node is None else {node: self._pools.get(node, {})}
        keys = [
            (name, part)
            for name, pools in nodes.items()
            for part, its_pool in pools.items()
            if pool in {None, its_pool}
        ]
        found = (self._latest.get(key, now_ns) for key in keys)
        return [one for one in found if one is not None]

    def _forget(self, key: tuple[str, str]) -> None:
        node, part = key
        pools = self._pools[node]
        del pools[part]
        if not pools:
            del self._pools[node]


def _part(message: Metrics) -> str:
    if isinstance(message, GpuMetrics):
        return message.gpu
    return message.engine if isinstance(message, EngineMetrics) else ""


def _order(latest: Latest) -> tuple[str, int, str]:
    message = latest.message
    index = message.index if isinstance(message, GpuMetrics) else 0
    return message.node, index, _part(message)
