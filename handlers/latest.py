"""The last metrics of every node, GPU and engine, in memory."""

import dataclasses
from collections.abc import Sequence
from typing import TypeAlias

from handlers.window import ExpiringDict
from schemas.engines import EngineMetrics
from schemas.message import Message
from schemas.metrics import GpuMetrics, HostMetrics
from schemas.units import SECOND_NS

Metrics: TypeAlias = HostMetrics | GpuMetrics | EngineMetrics


@dataclasses.dataclass(frozen=True, slots=True)
class Latest:
    """The last message of one source and the stream time at which it was stored."""

    message: Metrics
    stored_ns: int


class LatestStore:
    """Remembers one message per source and forgets it after `forget_seconds`.

    Not persistent: a restarted process fills it from the last message per subject of the stream.
    """

    def __init__(self, forget_seconds: float) -> None:
        ttl_ns = int(forget_seconds * SECOND_NS)
        self._latest: dict[type[Message], ExpiringDict[tuple[str, str], Latest]] = {
            kind: ExpiringDict(ttl_ns) for kind in (HostMetrics, GpuMetrics, EngineMetrics)
        }

    def accept(self, message: Message, stored_ns: int) -> None:
        """Remember `message`, the last of its source in the stream; other types pass by.

        Whatever its instant: the server's clock may have been set back.
        """
        if isinstance(message, HostMetrics | GpuMetrics | EngineMetrics):
            key = (message.node, _part(message))
            self._latest[type(message)].put(key, Latest(message, stored_ns), stored_ns)

    def latest(self, kind: type[Metrics], now_ns: int) -> Sequence[Latest]:
        """All that is remembered of one type, by node, then GPU index or engine."""
        return sorted(
            (latest for _, latest in self._latest[kind].items(now_ns)),
            key=lambda latest: _order(latest.message),
        )

    def knows(self, node: str, now_ns: int) -> bool:
        """Whether anything came from `node`."""
        return any(
            key[0] == node for entries in self._latest.values() for key, _ in entries.items(now_ns)
        )


def _part(message: Metrics) -> str:
    if isinstance(message, GpuMetrics):
        return message.gpu
    return message.engine if isinstance(message, EngineMetrics) else ""


def _order(message: Metrics) -> tuple[str, int, str]:
    index = message.index if isinstance(message, GpuMetrics) else 0
    return message.node, index, _part(message)
