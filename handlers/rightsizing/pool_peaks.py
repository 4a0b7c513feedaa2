"""The GPUs and hosts of each pool, with what they needed at most."""

import dataclasses
import functools
import zlib
from collections.abc import Iterator, Sequence

import msgspec

from handlers.rightsizing.node_loads import Measured
from handlers.rightsizing.peaks import (
    GPU_SIGNALS,
    HOST_SIGNALS,
    MINUTE_NS,
    WINDOW_NS,
    WINDOWS_AN_HOUR,
    Facts,
    Part,
    Peaks,
    gpu_facts,
    gpu_ratios,
    host_facts,
    part_of,
)
from handlers.slots import TICK_NS
from schemas.metrics import GpuMetrics, HostMetrics

FORGET_WINDOWS = 2 * WINDOWS_AN_HOUR
"""What was silent for so long begins anew."""

_Key = tuple[str, str]
"""Node and GPU; without GPU: the host."""


@dataclasses.dataclass(slots=True)
class _Entry:
    """A GPU, or a host, of a pool."""

    peaks: Peaks
    part: Part
    heard_window: int
    latest: Facts | None = None
    """Of the open minute. Not the message: kept for a minute, each would be freed out of reach
    of the CPU's caches, which takes as long as all else that is done with it here."""


@dataclasses.dataclass(slots=True)
class _Pool:
    """The parts of a pool, and its own clock, which is `phase_ns` late."""

    phase_ns: int
    window: int
    """The open one."""
    parts: dict[_Key, _Entry] = dataclasses.field(default_factory=dict)
    order: list[_Key] | None = None
    """Their keys in order; None: others came or went since it was asked for."""

    def add(self, key: _Key, entry: _Entry) -> None:
        """Another part."""
        self.parts[key] = entry
        self.order = None

    def remove(self, key: _Key) -> None:
        """A part that is gone."""
        del self.parts[key]
        self.order = None

    def in_order(self) -> Iterator[_Entry]:
        """The parts by node and GPU. A snapshot asks each 5 s, for the first few of thousands."""
        if self.order is None:
            self.order = sorted(self.parts)
        return map(self.parts.__getitem__, self.order)


class _Memory(msgspec.Struct, array_like=True):
    """One GPU or host that outlives a restart, but for its open minute."""

    pool: str
    window: int
    """The one that was open."""
    part: Part
    heard_window: int
    peaks: bytes


class PoolPeaks:
    """Keeps the history of every GPU and host, pool by pool. O(1) a sample.

    Minutes and ten minutes of a pool begin at instants of its own, the same everywhere: those of
    thousands of GPUs closed at once would hold up messages.
    """

    def __init__(self, windows: int) -> None:
        self._windows = windows
        self._pools: dict[str, _Pool] = {}

    def add(self, pool: str, message: GpuMetrics | HostMetrics, now_ns: int) -> None:
        """Add the sample to the open minute of its GPU or host; MIG instances are their GPU's."""
        found = self._pools.get(pool)
        if found is None:
            phase_ns = phase(pool)
            found = self._pools[pool] = _Pool(phase_ns, (now_ns - phase_ns) // WINDOW_NS)
        elif (window := (now_ns - found.phase_ns) // WINDOW_NS) > found.window:
            self._close_minute(found, window)  # the stream was silent, without a tick
        if isinstance(message, GpuMetrics):
            if message.parent is not None:
                return
            key, facts = (message.node, message.gpu), gpu_facts(message)
            ratios = gpu_ratios(message)
        else:
            key, facts = (message.node, ""), host_facts(message)
            ratios = (message.memory.utilization_ratio if message.memory else None,)
        entry = found.parts.get(key)
        if entry is None:
            entry = _Entry(self._peaks(key), part_of(*key, facts), found.window)
            found.add(key, entry)
        entry.peaks.add(*ratios)
        entry.latest = facts

    def close(self, before_ns: int, now_ns: int) -> list[str]:
        """Close the minutes that ended in between; returns the pools whose ten minutes did, too."""
        ended = []
        for name, pool in self._pools.items():
            pool_ns = now_ns - pool.phase_ns
            if pool_ns // MINUTE_NS <= (before_ns - pool.phase_ns) // MINUTE_NS:
                continue
            if self._close_minute(pool, pool_ns // WINDOW_NS):
                ended.append(name)
        return sorted(ended)

    def __contains__(self, pool: str) -> bool:
        """Whether anything of it was heard of late."""
        return pool in self._pools

    def end_ns(self, pool: str) -> int:
        """When the last ten minutes ended."""
        return self._pools[pool].window * WINDOW_NS + self._pools[pool].phase_ns

    def measured(self, pool: str) -> list[Measured]:
        """The GPUs and hosts heard of in the last two hours, of real GPUs alone if there are any.

        By node and GPU. What was silent for longer is forgotten; a pool that has nothing else is,
        too.
        """
        of_pool = self._pools[pool]
        parts, last = of_pool.parts, of_pool.window - 1
        for key in [k for k, e in parts.items() if e.heard_window < last - FORGET_WINDOWS]:
            of_pool.remove(key)
        if not parts:
            del self._pools[pool]
        found = [
            Measured(
                entry.part,
                functools.partial(entry.peaks.history, last_window=last),
                is_silent=entry.heard_window < last,
            )
            for entry in of_pool.in_order()
        ]
        has_real = any(one.part.gpu and not one.part.simulated for one in found)
        return [one for one in found if not (has_real and one.part.simulated)]

    def snapshot(self, most_bytes: int) -> list[msgspec.Raw]:
        """All of them, by pool, as far as they fit."""
        found: list[msgspec.Raw] = []
        size = 0
        for name, pool in sorted(self._pools.items()):
            for entry in pool.in_order():
                heard, peaks = entry.heard_window, entry.peaks.snapshot()
                memory = _Memory(name, pool.window, entry.part, heard, peaks)
                one = msgspec.Raw(msgspec.msgpack.encode(memory))
                size += len(one)
                if size > most_bytes:
                    return found
                found.append(one)
        return found

    def restore(self, snapshot: Sequence[msgspec.Raw]) -> None:
        """Take over what was kept; open minutes stay."""
        for raw in snapshot:
            memory = msgspec.msgpack.decode(raw, type=_Memory)
            name = memory.pool
            pool = self._pools.setdefault(name, _Pool(phase(name), memory.window))
            key = (memory.part.node, memory.part.gpu)
            entry = pool.parts.get(key)
            if entry is None:
                entry = _Entry(self._peaks(key), memory.part, memory.heard_window)
                pool.add(key, entry)
            entry.peaks.restore(memory.peaks)
            entry.heard_window = max(entry.heard_window, memory.heard_window)
            self._close_windows(entry, memory.window, pool.window)

    def _peaks(self, key: _Key) -> Peaks:
        return Peaks(GPU_SIGNALS if key[1] else HOST_SIGNALS, self._windows)

    def _close_minute(self, pool: _Pool, window: int) -> bool:
        """With all before `window`, the open one from now on; whether that is another."""
        for entry in pool.parts.values():
            if entry.latest is not None:
                entry.part = part_of(entry.part.node, entry.part.gpu, entry.latest)
                entry.heard_window = pool.window
                entry.latest = None
                entry.peaks.close_minute()
            self._close_windows(entry, pool.window, window)
        has_ended, pool.window = window > pool.window, max(window, pool.window)
        return has_ended

    def _close_windows(self, entry: _Entry, open_window: int, window: int) -> None:
        """Those before `window`: of the ones that were skipped nothing is known."""
        if window > open_window:
            entry.peaks.close_window(open_window)
        for skipped in range(max(open_window + 1, window - self._windows), window):
            entry.peaks.close_window(skipped, is_known=False)


def phase(pool: str) -> int:
    """By how much the clock of a pool is late, in ns: one of the ticks in ten minutes."""
    return zlib.crc32(pool.encode()) % (WINDOW_NS // TICK_NS) * TICK_NS
