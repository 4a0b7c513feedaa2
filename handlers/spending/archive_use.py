"""What the archive of each namespace used and cost, hour by hour."""

from collections.abc import Sequence

import msgspec

from handlers.slots import TICK_NS
from handlers.spending.usage import HOUR_NS
from schemas.analysis import Scope
from schemas.archive_money import (
    NOTHING_USED,
    ArchiveMetrics,
    ArchivePrices,
    ArchiveSpending,
    ArchiveUsage,
    ArchiveUse,
    followed,
    grown,
    holding_nothing,
)
from schemas.message import Message
from schemas.protocols import Emit, Moment
from schemas.units import SECOND_NS, instant, to_ns

MINUTE_NS = 60 * SECOND_NS
MAX_SERIES = 1024
MAX_NAMESPACES = 256
"""Further ones are not counted; the state of each is about 3 KB in the snapshot."""
YOUNG_NS = MINUTE_NS
"""An archiver that began to count so shortly before the first one was heard counts in full."""
FORGET_NS = 8 * 24 * HOUR_NS
"""An archiver that was silent for so long is met anew."""


class _Series(msgspec.Struct, array_like=True):
    """The last counters of a namespace that one archiver told."""

    since_ns: int
    told_ns: int
    classes: dict[str, ArchiveUse]


class _Hour(msgspec.Struct, array_like=True):
    """One hour of a namespace, filled sample by sample."""

    hour_ns: int
    minutes: int = 0
    minute_ns: int = -1
    """The last that had a sample."""
    classes: dict[str, ArchiveUse] = {}
    prices: ArchivePrices | None = None
    is_told: bool = False

    def add(self, classes: dict[str, ArchiveUse], prices: ArchivePrices | None, ns: int) -> None:
        """Count the growth between two samples; a class that the last does not name holds nothing.

        Whoever keeps the index now read all of it: a class of which it says nothing is one of
        which only its predecessor held anything.
        """
        if self.minute_ns != ns // MINUTE_NS:
            self.minute_ns = ns // MINUTE_NS
            self.minutes += 1
        self.prices = prices
        for name in self.classes.keys() - classes.keys():
            self.classes[name] = holding_nothing(self.classes[name])
        for name, use in classes.items():
            self.classes[name] = followed(self.classes.get(name, NOTHING_USED), use)


class _Snapshot(msgspec.Struct):
    since_ns: int | None
    minute_end_ns: int
    series: dict[str, _Series]
    hours: dict[str, list[_Hour]]


class ArchiveUseHandler:
    """Adds up how the counters of ArchiveMetrics rose, whichever archiver told them.

    Counters that began after the first of all was heard, or just before, count from 0; those that
    were there before, from the first sample on. Gives out ArchiveUsage when an hour is over, and
    ArchiveSpending each minute.
    """

    name = "archive_use"
    scope: Scope = "fleet"
    consumes: tuple[type[Message], ...] = (ArchiveMetrics,)
    # All is in the snapshot; ticks must go on until the minute of the last sample is over.
    window_ns = 2 * MINUTE_NS + TICK_NS

    def __init__(self) -> None:
        self._since_ns: int | None = None
        """All that was said from then on was heard."""
        self._minute_end_ns = 0
        self._series: dict[str, _Series] = {}
        self._hours: dict[str, list[_Hour]] = {}
        self._snapshot: bytes | None = None

    def handle(self, message: ArchiveMetrics, now: Moment) -> Sequence[Emit]:
        """Count the growth since the last sample into the hour of this one."""
        emits = self.tick(now)
        if message.namespace not in self._hours and len(self._hours) >= MAX_NAMESPACES:
            return emits
        name = f"{message.instance}.{message.namespace}"
        if name not in self._series and len(self._series) >= MAX_SERIES:
            return emits
        self._snapshot = None
        if self._since_ns is None:
            self._since_ns = now.ns
        since_ns = to_ns(message.counted_since)
        known = self._series.get(name)
        begin: dict[str, ArchiveUse] = {}
        if known is not None and known.since_ns == since_ns:
            begin = known.classes
        elif known is None and since_ns < self._since_ns - YOUNG_NS:
            begin = message.classes
        growth = {
            ttl_class: grown(begin.get(ttl_class, NOTHING_USED), use, message.prices)
            for ttl_class, use in message.classes.items()
        }
        self._series[name] = _Series(since_ns, now.ns, message.classes)
        hours = self._hours.setdefault(message.namespace, [])
        hour_ns = now.ns // HOUR_NS * HOUR_NS
        if not hours or hours[-1].hour_ns < hour_ns:
            hours.append(_Hour(hour_ns))
        hours[-1].add(growth, message.prices, now.ns)
        return emits

    def tick(self, now: Moment) -> Sequence[Emit]:
        """Tell what a minute added, and the hours that are over."""
        if now.ns < self._minute_end_ns:
            return ()
        end_ns = now.ns // MINUTE_NS * MINUTE_NS
        is_first = self._minute_end_ns == 0
        self._minute_end_ns = end_ns + MINUTE_NS
        self._snapshot = None
        if is_first:
            return ()
        emits: list[Emit] = []
        for namespace, hours in sorted(self._hours.items()):
            emits += self._tell(namespace, hours, end_ns)
        self._forget(end_ns)
        return emits

    def snapshot(self) -> bytes | None:
        """The last counters, and the hours that are not forgotten yet."""
        if self._snapshot is None:
            state = _Snapshot(self._since_ns, self._minute_end_ns, self._series, self._hours)
            self._snapshot = msgspec.msgpack.encode(state)
        return self._snapshot

    def restore(self, snapshot: bytes) -> None:
        """Take them over."""
        state = msgspec.msgpack.decode(snapshot, type=_Snapshot)
        self._since_ns, self._minute_end_ns = state.since_ns, state.minute_end_ns
        self._series, self._hours = state.series, state.hours
        self._snapshot = None

    def _tell(self, namespace: str, hours: list[_Hour], end_ns: int) -> list[Emit]:
        running_ns = end_ns // HOUR_NS * HOUR_NS
        emits = []
        for hour in hours:
            if hour.hour_ns < running_ns and not hour.is_told:
                hour.is_told = True
                usage = _message(namespace, hour)
                emits.append(Emit(usage, f"archive_usage.{namespace}.{hour.hour_ns}"))
        del hours[: sum(hour.hour_ns < running_ns - HOUR_NS for hour in hours)]
        if hours and hours[-1].minute_ns == end_ns // MINUTE_NS - 1:
            spending = ArchiveSpending(
                namespace=namespace,
                decided_at=instant(end_ns),
                hours=[_message(namespace, hour) for hour in hours],
            )
            emits.append(Emit(spending, f"archive_spending.{namespace}.{end_ns}"))
        return emits

    def _forget(self, end_ns: int) -> None:
        self._hours = {name: hours for name, hours in self._hours.items() if hours}
        for name, series in list(self._series.items()):
            if series.told_ns < end_ns - FORGET_NS:
                del self._series[name]
                self._since_ns = max(self._since_ns or 0, series.told_ns)


def _message(namespace: str, hour: _Hour) -> ArchiveUsage:
    return ArchiveUsage(
        namespace=namespace,
        hour_at=instant(hour.hour_ns),
        minutes=hour.minutes,
        classes=dict(hour.classes),  # it grows on before this is sent
        prices=hour.prices,
    )
