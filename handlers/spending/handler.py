"""What GPUs cost and what of it is wasted: hours, waste, opportunities and trends of a group."""

import dataclasses
import math
import operator
import zlib
from collections.abc import Callable, Mapping, Sequence

import msgspec

from handlers.prices import PriceList
from handlers.settings import HandlersSettings
from handlers.slots import FLEET, STEP_NS, TICK_NS, TURNS, turn_of
from handlers.spending.gpu_minutes import GpuMinute, GpuMinutes
from handlers.spending.gpu_prices import PricedGpus, priced_gpus
from handlers.spending.opportunity import Streaks, savings
from handlers.spending.trend import DAY_HOURS, HISTORY_HOURS, Point, point, trend_lines
from handlers.spending.usage import HOUR_NS, Hour, figures, total
from schemas.analysis import Scope
from schemas.engines import EngineMetrics
from schemas.message import Message
from schemas.metrics import GpuMetrics
from schemas.protocols import Emit, Moment
from schemas.spending import Opportunity, Trend, Usage, Waste
from schemas.units import SECOND_NS, instant

MINUTE_NS = 60 * SECOND_NS
LEAST_GROUPS = 1000
LARGE_GPUS = 1000
"""A group of more has a share of them judged at each step until its turn: of 16,000 at once, all
of them held up messages for a tenth of a second."""
REPEAT_MINUTES = 10
"""Waste of a node, and opportunities that stay as they are, are told so often."""

_KEY_OF: Mapping[Scope, Callable[[GpuMetrics | EngineMetrics], str | None]] = {
    "node": operator.attrgetter("node"),
    "pool": operator.attrgetter("pool"),
    "fleet": lambda message: FLEET,
}
"""The group of a message."""


class _Ledger(msgspec.Struct, array_like=True):
    """The real, or the simulated, GPUs of a group: the running hour, the one before, a week."""

    hours: list[Hour] = []
    told_ns: int = -1
    """The last hour that was given out."""
    points: list[Point] = []
    streaks: Streaks = msgspec.field(default_factory=Streaks)
    booked_ns: int = 0
    """The end of the last minute in it."""
    told: list[tuple[str, int]] = []
    """Kinds and GPUs of the opportunities last published."""


class _Memory(msgspec.Struct, array_like=True):
    """A group's state that outlives the window."""

    key: str
    pool: str | None
    real: _Ledger | None
    simulated: _Ledger | None


@dataclasses.dataclass(slots=True)
class _Group:
    """What is remembered of one node, pool or the fleet; ledgers and prices by `simulated`."""

    minutes: GpuMinutes = dataclasses.field(default_factory=GpuMinutes)
    over: GpuMinutes | None = None
    """The minute before, until it is closed."""
    pool: str | None = None
    ledgers: dict[bool, _Ledger] = dataclasses.field(default_factory=dict)
    priced: dict[bool, PricedGpus] = dataclasses.field(default_factory=dict)
    """Of a pool: its GPUs in the last minute, and what they cost."""


class WasteHandler:
    """Books each minute of each GPU, once it is over, into the hour of its group.

    Groups take turns within 5 s: all of thousands at once would hold up messages.

    One instance per scope. Gives out Usage when an hour is over, Waste each minute (of a node
    every tenth), Trend after each hour of a pool or the fleet, and Opportunity when it changes,
    of pools and of nodes in none: work does not move from pool to pool. What measured nothing for
    two hours is forgotten, after a day where it has a day of trends.
    """

    consumes: tuple[type[Message], ...] = (GpuMetrics, EngineMetrics)
    tick_ns = STEP_NS
    # The open minute, and the one before it until its turn, or the counters' last values from it.
    window_ns = 2 * MINUTE_NS + TICK_NS

    def __init__(self, settings: HandlersSettings, scope: Scope) -> None:
        self.name = f"waste_{scope}"
        self.scope: Scope = scope
        self._key_of = _KEY_OF[scope]
        self._settings = settings.waste
        self._states = settings.utilization
        self._prices = PriceList(settings.prices)
        self._groups: dict[str, _Group] = {}
        most = settings.max_pools if scope == "pool" else settings.max_nodes
        # A slot's share, and as many again of those that left within two hours.
        self._most_groups = max(LEAST_GROUPS, 2 * most // settings.slots)
        self._begin_ns = self._end_ns = 0  # of the open minute
        self._over_ns = 0  # the end of the one before
        self._turn = TURNS  # whose groups are closed next; TURNS: all are
        self._snapshot: bytes | None = None

    def handle(self, message: GpuMetrics | EngineMetrics, now: Moment) -> Sequence[Emit]:
        """Add the sample to its minute, after the one before was closed."""
        emits: Sequence[Emit] = ()
        if not self._begin_ns <= now.ns < self._end_ns:
            if now.ns < self._end_ns:
                return emits  # the server's clock was set back
            emits = self.tick(now)
        key = self._key_of(message)
        if key is None:
            return emits
        group = self._groups.get(key)
        if group is None:
            if len(self._groups) >= self._most_groups:
                return emits
            group = self._groups[key] = _Group()
        if isinstance(message, GpuMetrics):
            group.minutes.add_gpu(message)
        else:
            group.minutes.add_engine(message)
        return emits

    def tick(self, now: Moment) -> Sequence[Emit]:
        """Begin the next minute when one is over, and close that of the groups whose turn it is."""
        if now.ns < self._end_ns and self._turn == TURNS:
            return ()
        emits: list[Emit] = []
        if now.ns >= self._end_ns:
            emits += self._close_turns(TURNS)
            self._over_ns, self._turn = self._end_ns, 0
            self._begin_ns = now.ns // MINUTE_NS * MINUTE_NS
            self._end_ns = self._begin_ns + MINUTE_NS
            for group in self._groups.values():
                group.over, group.minutes = group.minutes, GpuMinutes()
        if self._turn < TURNS:
            emits += self._close_turns(min(TURNS, (now.ns - self._over_ns) // STEP_NS + 1))
        return emits

    def _close_turns(self, end: int) -> list[Emit]:
        """Of the groups whose turn is before `end` and has not come yet."""
        turns = range(self._turn, end)
        self._turn = max(self._turn, end)
        if not turns:
            return []
        self._snapshot = None
        emits: list[Emit] = []
        for key, group in sorted(self._groups.items(), key=operator.itemgetter(0)):
            if group.over is None:
                continue
            turn = turn_of(key)
            if turn >= end:
                if group.over.gpus > LARGE_GPUS:
                    group.over.judge_some(self._states, math.ceil(group.over.gpus / (turn + 1)))
                continue
            if turn in turns:
                emits += self._close(key, group, group.over, self._over_ns)
                group.minutes.follow(group.over)
                group.over = None
                if not (group.ledgers or group.minutes.has_samples):
                    del self._groups[key]
        return emits

    def priced(self, pool: str, simulated: bool) -> PricedGpus | None:
        """The real, or the simulated, GPUs of a pool in the last minute that was closed."""
        group = self._groups.get(pool)
        return None if group is None else group.priced.get(simulated)

    def snapshot(self) -> bytes | None:
        """The ledgers of the groups, by name, as far as they fit.

        One that does not fit is left out, or, before that, since when each of its GPUs rests.
        """
        if self._snapshot is None:
            packed, room = [], self._settings.snapshot_bytes
            for key, group in sorted(self._groups.items()):
                one = _packed(key, group)
                if len(one) > room:
                    one = _packed(key, group, with_resting=False)
                if len(one) <= room:
                    room -= len(one)
                    packed.append(msgspec.Raw(one))
            self._snapshot = msgspec.msgpack.encode(packed)
        return self._snapshot

    def restore(self, snapshot: bytes) -> None:
        """Take over the ledgers; open minutes stay."""
        for memory in msgspec.msgpack.decode(snapshot, type=list[_Memory]):
            group = self._groups.get(memory.key)
            if group is None:  # silent of late, but its turn is still to come
                group = self._groups[memory.key] = _Group()
                if turn_of(memory.key) >= self._turn:
                    group.over = GpuMinutes()
            group.pool = memory.pool
            ledgers = ((False, memory.real), (True, memory.simulated))
            group.ledgers = {which: ledger for which, ledger in ledgers if ledger is not None}
        self._snapshot = None

    def _close(self, key: str, group: _Group, over: GpuMinutes, end_ns: int) -> list[Emit]:
        """Book the group's minute that ended at `end_ns`; what there is to say of it."""
        group.pool = over.pool or group.pool
        minutes, tokens = over.close(self._states)
        emits: list[Emit] = []
        group.priced = {}
        measured: dict[bool, list[GpuMinute]] = {False: [], True: []}
        for minute in minutes:
            measured[minute.simulated].append(minute)
        for simulated, mine in measured.items():
            if mine and self.scope == "pool":
                group.priced[simulated] = priced_gpus(mine, self._prices, end_ns)
            if mine or simulated in tokens:
                ledger = group.ledgers.setdefault(simulated, _Ledger())
                self._book(ledger, mine, tokens.get(simulated, (None, None)), end_ns)
            if simulated in group.ledgers:
                ledger = group.ledgers[simulated]
                emits += self._hour_over(key, group, ledger, end_ns, simulated=simulated)
        if minutes:
            # Of simulated GPUs beside real ones nothing is said but their hours.
            simulated = False not in group.ledgers
            emits += self._judge(key, group, measured[simulated], end_ns, simulated=simulated)
        for simulated, ledger in list(group.ledgers.items()):
            if self._is_over(ledger, end_ns):
                del group.ledgers[simulated]
        return emits

    def _book(
        self,
        ledger: _Ledger,
        minutes: list[GpuMinute],
        tokens: tuple[float | None, float | None],
        end_ns: int,
    ) -> None:
        hour_ns = (end_ns - MINUTE_NS) // HOUR_NS * HOUR_NS
        if not ledger.hours or ledger.hours[-1].hour_ns != hour_ns:
            ledger.hours.append(Hour(hour_ns))
        hour = ledger.hours[-1]
        hour.minutes += 1
        for minute in minutes:
            hour.add(minute, self._prices, self._settings.target_ratio)
        hour.add_tokens(*tokens)
        if ledger.booked_ns != end_ns - MINUTE_NS:
            ledger.streaks = Streaks()  # nothing is known of the time in between
        ledger.booked_ns = end_ns
        ledger.streaks.add(minutes)

    def _hour_over(
        self, key: str, group: _Group, ledger: _Ledger, end_ns: int, *, simulated: bool
    ) -> list[Emit]:
        """Give out the hour that is over, and forget the ones that Waste does not need."""
        emits: list[Emit] = []
        running_ns = end_ns // HOUR_NS * HOUR_NS
        of = f"{self.scope}.{key}.{'simulated.' if simulated else ''}"
        for hour in ledger.hours:
            if hour.hour_ns >= running_ns or hour.hour_ns <= ledger.told_ns or hour.is_empty:
                continue
            ledger.told_ns = hour.hour_ns
            usage = self._usage(key, group, hour, simulated=simulated)
            emits.append(Emit(usage, f"usage.{of}{hour.hour_ns}"))
            if self.scope == "node" or (simulated and False in group.ledgers):
                continue
            ledger.points.append(point([usage]))
            del ledger.points[:-HISTORY_HOURS]
            trend = Trend(
                scope=self.scope,
                id=key,
                decided_at=instant(hour.hour_ns + HOUR_NS),
                since=instant(ledger.points[0].hour * HOUR_NS),
                lines=trend_lines(ledger.points),
                simulated=simulated,
            )
            emits.append(Emit(trend, f"trend.{of}{hour.hour_ns}"))
        ledger.hours = [hour for hour in ledger.hours if hour.hour_ns >= running_ns - HOUR_NS]
        return emits

    def _judge(
        self,
        key: str,
        group: _Group,
        minutes: list[GpuMinute],
        end_ns: int,
        *,
        simulated: bool,
    ) -> list[Emit]:
        """Waste and opportunities after the minute, as far as they are due.

        Beside its own hours Waste has those of the simulated GPUs, so that a report that counts
        them has them of a pool and of the fleet alike.
        """
        is_repeated = (end_ns // MINUTE_NS + zlib.crc32(key.encode())) % REPEAT_MINUTES == 0
        seeks = self.scope == "pool" or (self.scope == "node" and group.pool is None)
        tells = is_repeated or self.scope != "node"
        if not (seeks or tells):
            return []
        ledger = group.ledgers[simulated]
        emits: list[Emit] = []
        if tells:
            hours = [
                self._usage(key, group, hour, simulated=which)
                for which, of in sorted(group.ledgers.items())
                for hour in of.hours
            ]
            own = [hour for hour in hours if hour.simulated is simulated]
            waste = Waste(
                scope=self.scope,
                id=key,
                decided_at=instant(end_ns),
                since=(own or hours)[0].hour_at,
                figures=figures(own),
                hours=hours,
                simulated=simulated,
            )
            emits.append(Emit(waste, f"waste.{self.scope}.{key}.{end_ns}"))
        if not (seeks and minutes):
            return emits
        found = savings(minutes, ledger.streaks, ledger.points, self._prices, self._settings)
        told: list[tuple[str, int]] = [(one.kind, one.gpus) for one in found]
        if told != ledger.told or (found and is_repeated):
            ledger.told = told
            opportunity = Opportunity(
                scope=self.scope,
                id=key,
                decided_at=instant(end_ns),
                savings=found,
                saving_usd_per_month=total([one.saving_usd_per_month for one in found]),
                simulated=simulated,
            )
            emits.append(Emit(opportunity, f"opportunity.{self.scope}.{key}.{end_ns}"))
        return emits

    def _usage(self, key: str, group: _Group, hour: Hour, *, simulated: bool) -> Usage:
        pool = group.pool if self.scope == "node" else key if self.scope == "pool" else None
        return hour.message(self.scope, key, pool, simulated=simulated)

    def _is_over(self, ledger: _Ledger, end_ns: int) -> bool:
        """Nothing was measured for two hours, or, of what has a day of trends, for a day."""
        if ledger.hours:
            return False
        if len(ledger.points) < DAY_HOURS:
            return True
        return end_ns >= (ledger.points[-1].hour + DAY_HOURS) * HOUR_NS


def _packed(key: str, group: _Group, *, with_resting: bool = True) -> bytes:
    ledgers = group.ledgers
    if not with_resting:  # of 10,000 idle GPUs 250 KB; the hours are what counts
        ledgers = {which: _without_resting(ledger) for which, ledger in ledgers.items()}
    memory = _Memory(key, group.pool, ledgers.get(False), ledgers.get(True))
    return msgspec.msgpack.encode(memory)


def _without_resting(ledger: _Ledger) -> _Ledger:
    streaks = msgspec.structs.replace(ledger.streaks, resting={})
    return msgspec.structs.replace(ledger, streaks=streaks)
