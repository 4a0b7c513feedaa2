"""What GPUs and hosts needed at most, by ten minutes, over a day or more. Pure."""

import math
import operator
from collections.abc import Callable, Sequence
from typing import TypeAlias

import msgspec

from schemas.metrics import GpuMetrics, HostMetrics
from schemas.units import SECOND_NS

MINUTE_NS = 60 * SECOND_NS
WINDOW_NS = 10 * MINUTE_NS
WINDOWS_AN_HOUR = 6
STEPS = 200
"""Shares are kept in so many steps, rounded up: a byte each."""
UNKNOWN = 255
_UNKNOWN_BYTE = bytes([UNKNOWN])
LEAST_KNOWN = 0.9
"""A history with more gaps than the rest of it tells nothing."""

GPU_SIGNALS = ("memory", "busy", "bandwidth", "tensor")
HOST_SIGNALS = ("memory",)


def packed(ratio: float | None) -> int:
    """A share as a byte, rounded up to half a per cent: 0 → 0, 0.501 → 101, 1 → 200."""
    # Not quite up, so that 0.07 · 200 = 14.000000000000002 stays 14.
    return UNKNOWN if ratio is None else min(STEPS, math.ceil(ratio * STEPS - 1e-6))


class History:
    """One signal by ten minutes, the oldest first; `UNKNOWN`: not measured."""

    __slots__ = ("_known", "_peak", "values")

    def __init__(self, values: bytes) -> None:
        # Thousands are made at once, and of most of them the peak alone is asked for: no sorting.
        self.values = values
        unknown = values.count(UNKNOWN)
        self._known = len(values) - unknown
        known = values.replace(_UNKNOWN_BYTE, b"") if unknown else values
        self._peak = max(known, default=UNKNOWN)

    @property
    def known_ratio(self) -> float:
        """The share of the windows that was measured."""
        return self._known / len(self.values)

    @property
    def peak(self) -> float:
        """The highest of at least one that was measured."""
        return self._peak / STEPS

    @property
    def p99(self) -> float:
        """Nearest rank: of the 144 windows of a day the second highest."""
        value, count = self._peak, self.values.count
        higher = self._known - math.ceil(0.99 * self._known)
        while (found := count(value)) <= higher:
            higher -= found
            value -= 1
        return value / STEPS


class Peaks:
    """The history of one GPU or host: of each window the highest minute, as a share.

    A minute counts by its mean, and memory by its highest sample: what does not fit for a moment
    fails. About 0.8 KB for a GPU and a day.
    """

    __slots__ = ("_counts", "_length", "_open", "_ring", "_signals", "_sums", "highest")

    def __init__(self, signals: Sequence[str], windows: int) -> None:
        self._signals = tuple(signals)
        self._length = windows
        self._ring = bytearray([UNKNOWN]) * (windows * len(signals))
        self._open = bytearray([UNKNOWN]) * len(signals)
        self._sums = [0.0] * len(signals)
        self._counts = [0] * len(signals)
        self.highest: float | None = None  # of memory, in the open minute

    def add(self, *ratios: float | None) -> None:
        """Take a sample: memory first, then the means' signals."""
        memory = ratios[0]
        if memory is not None and (self.highest is None or memory > self.highest):
            self.highest = memory
        for number, ratio in enumerate(ratios):
            if ratio is not None and number:
                self._sums[number] += ratio
                self._counts[number] += 1

    def close_minute(self) -> None:
        """The minute is over."""
        self._raise_to(0, packed(self.highest))
        self.highest = None
        for number, count in enumerate(self._counts):
            if count:
                self._raise_to(number, packed(self._sums[number] / count))
                self._sums[number] = 0.0
                self._counts[number] = 0

    def close_window(self, window: int, is_known: bool = True) -> None:
        """Window number `window`, counted from the epoch, is over; or nothing is known of it."""
        place = window % self._length
        for number in range(len(self._signals)):
            value = self._open[number] if is_known else UNKNOWN
            self._ring[number * self._length + place] = value
        if is_known:
            self._open = bytearray([UNKNOWN]) * len(self._signals)

    def history(self, signal: str, last_window: int) -> History:
        """The windows up to `last_window`."""
        begin = self._signals.index(signal) * self._length
        ring = self._ring[begin : begin + self._length]
        cut = (last_window + 1) % self._length
        return History(bytes(ring[cut:] + ring[:cut]))

    def snapshot(self) -> bytes:
        """Ring and open window; not the open minute."""
        return bytes(self._ring + self._open)

    def restore(self, snapshot: bytes) -> None:
        """Take them over, unless they are of another length."""
        if len(snapshot) == len(self._ring) + len(self._open):
            self._ring = bytearray(snapshot[: len(self._ring)])
            self._open = bytearray(snapshot[len(self._ring) :])

    def _raise_to(self, number: int, value: int) -> None:
        before = self._open[number]
        if value != UNKNOWN and (before == UNKNOWN or value > before):
            self._open[number] = value


class Part(msgspec.Struct, array_like=True):
    """What a GPU or host is. `gpu` empty: the host."""

    node: str
    gpu: str
    name: str | None = None
    memory_bytes: int | None = None
    is_whole: bool = True
    """Without MIG: what its instances hold is not seen."""
    simulated: bool = False
    labels: dict[str, str] = {}
    """Of its node."""


gpu_ratios: Callable[[GpuMetrics], tuple[float | None, ...]] = operator.attrgetter(
    "memory_utilization_ratio",
    "utilization_ratio",
    "dram_activity_ratio",
    "tensor_activity_ratio",
)
"""The signals of a sample, as `GPU_SIGNALS` has them."""


Facts: TypeAlias = tuple[str | None, int | None, bool | None, bool, dict[str, str]]
"""What a sample says of its GPU or host: name, bytes of memory, whether MIG is on, simulated, and
the labels of the node."""

gpu_facts: Callable[[GpuMetrics], Facts] = operator.attrgetter(
    "name", "memory_total_bytes", "is_mig_enabled", "simulated", "labels"
)


def host_facts(message: HostMetrics) -> Facts:
    """Those of a host, which has no name and no MIG."""
    size = message.memory.total_bytes if message.memory else None
    return None, size, None, message.simulated, message.labels


def part_of(node: str, gpu: str, facts: Facts) -> Part:
    """A GPU, or where `gpu` is empty a host, by what a sample said of it."""
    name, memory_bytes, is_mig_enabled, simulated, labels = facts
    return Part(node, gpu, name, memory_bytes, is_mig_enabled is not True, simulated, labels)
