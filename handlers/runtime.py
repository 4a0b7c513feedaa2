"""Runs the handlers on the metrics stream: slots by lease, watermarks, publishing."""

import asyncio
import contextlib
import dataclasses
import math
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Sequence
from types import TracebackType
from typing import Self

import structlog

from handlers.admission import Admission
from handlers.decoding import decode
from handlers.members import Members
from handlers.outgoing import Outgoing
from handlers.slot_group import SlotGroup
from handlers.slots import Routed, Slot, Watermark, slot_of
from handlers.watermarks import Watermarks
from schemas.engines import EngineMetrics
from schemas.lifecycle import Component
from schemas.message import UNDECODABLE, Message
from schemas.protocols import (
    Bucket,
    Delivery,
    Handler,
    Lease,
    Leases,
    Moment,
    Publisher,
    PublishError,
    RevisionConflictError,
    Subscriber,
)
from schemas.units import SECOND_NS, instant

log = structlog.get_logger()

BALANCE_SECONDS = 1.0
SAVE_SECONDS = 5.0
REBUILD_SECONDS = 5.0
SILENCE_NS = 2 * SECOND_NS
MAX_UNPUBLISHED = 50_000

COUNTERS = (
    "foreign_messages_total",
    "handler_failures_total",
    "messages_total",
    "publish_retries_total",
    "published_total",
    "slots_lost_total",
    "slots_not_acquired_total",
    "undecodable_total",
    "unpublishable_total",
    "watermarks_not_saved_total",
    "watermarks_unreadable_total",
)
"""What the handlers count; there from the start, so that 0 can be told from a wrong name."""


@dataclasses.dataclass(slots=True, eq=False)
class _Owned:
    """A slot we hold, its lease, and what it still has to publish."""

    slot: Slot
    lease: Lease
    revision: int
    unpublished: int = 0
    saved: Watermark | None = None
    not_saved: str = ""
    given_up: bool = False

    @property
    def current(self) -> bool:
        """Whether the slot is still ours."""
        return self.lease.held and not self.given_up


class HandlersRuntime:
    """Feeds FLEET_METRICS to the handlers of the slots this process owns.

    Guarantees: every message after a slot's watermark is handled by exactly one owner at a time,
    in stream order; what a handler gives out is published until acknowledged, before the
    watermark moves on. After a crash the next owner repeats from the watermark; message ids make
    the repeats duplicates. Bounded by `MAX_UNPUBLISHED`: a slot that cannot publish is given up
    and rebuilt from its watermark.

    The slots are shared with those of the `registered` processes that are alive; `name` is this
    one's among them.

    `history` reads what is recorded, best on a connection of its own: megabytes of it on the one
    of `subscriber` hold up renewals of leases and acknowledgements until they are worked off.

    While the stream is silent the handlers' ticks follow the time that passes here, set right by
    the timestamps of live messages; steps of our clock change nothing. Before the first live
    message nothing sets it right, so there are no such ticks: a process that starts while every
    node is silent finds them stale only once one of them, whichever, speaks.
    """

    def __init__(
        self,
        *,
        publisher: Publisher,
        subscriber: Subscriber,
        history: Subscriber | None = None,
        state: Bucket,
        leases: Leases,
        make_handlers: Callable[[], Sequence[Handler]],
        slots: int,
        name: str,
        registered: Callable[[], Iterable[str]],
        admission: Admission,
        observe: Callable[[Message, int], None] = lambda message, stored_ns: None,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self.counters: Counter[str] = Counter(dict.fromkeys(COUNTERS, 0))
        self._outgoing = Outgoing(publisher, self.counters, self._start)
        self._subscriber = subscriber
        self._history = history or subscriber
        self._watermarks = Watermarks(state, self.counters)
        self._leases = leases
        self._make_handlers = make_handlers
        self._slots = slots
        self._members = Members(leases, name, registered)
        self._admission = admission
        self._observe = observe
        self._clock = clock
        self._owned: dict[int, _Owned] = {}
        self._attached: SlotGroup[_Owned] = SlotGroup()
        self._live_sequence = 0
        self._replayed = 0
        self._last_stored_ns = 0
        self._clock_offset_ns: deque[int] = deque(maxlen=64)
        self._failed_handlers: set[str] = set()
        self._unfollow: Callable[[], Awaitable[None]] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False
        self._made_anew = False
        self.started = asyncio.Event()

    async def __aenter__(self) -> Self:
        async for delivery in self._history.read("METRICS", last_per_subject=True):
            self._remember(delivery)
        _, self._live_sequence = await self._subscriber.stream_bounds("METRICS")
        self._unfollow = await self._subscriber.follow(
            "METRICS", self._on_live, start_sequence=self._live_sequence + 1
        )
        for loop in (self._balance_loop, self._tick_loop, self._save_loop):
            self._start(loop(), loop.__name__)
        return self

    async def wait_started(self) -> None:
        """Return once the first slots are rebuilt, or after a while: rebuilding goes on then."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REBUILD_SECONDS):
                await self.started.wait()

    def judges_fleet(self) -> bool:
        """Whether the slot of the whole fleet is here."""
        index = slot_of("fleet", "all", self._slots)
        return any(owned.slot.index == index for owned in self._attached)

    def _start(self, loop: Coroutine[None, None, None], name: str) -> None:
        task = asyncio.create_task(loop, name=f"handlers{name}")
        task.add_done_callback(self._on_ended)
        self._tasks.append(task)

    def _on_ended(self, task: asyncio.Task[None]) -> None:
        if not self._stopping:
            log.error("loop_ended", loop=task.get_name(), reason=_end_of(task))

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping = True
        if self._unfollow is not None:
            await self._unfollow()
        await self._outgoing.settle()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for owned in list(self._owned.values()):
            await self._save(owned)
            await self._give_up(owned)

    def _remember(self, delivery: Delivery) -> None:
        self._last_stored_ns = max(self._last_stored_ns, delivery.stored_ns)
        try:
            message = decode(delivery)
        except (ValueError, *UNDECODABLE):
            self.counters["undecodable_total"] += 1
            return
        if self._admission.admits(message, delivery.stored_ns):
            self._observe(message, delivery.stored_ns)

    def _on_live(self, delivery: Delivery) -> Awaitable[None] | None:
        again = delivery.sequence == self._live_sequence  # its reader was cut off in the middle
        if delivery.sequence <= self._live_sequence and not (
            again and delivery.stored_ns == self._last_stored_ns
        ):
            self._made_anew = True
        self._live_sequence = delivery.sequence
        self._last_stored_ns = delivery.stored_ns
        # Monotonic: a wall clock that is set right would make every node stale at once.
        self._clock_offset_ns.append(delivery.stored_ns - time.monotonic_ns())
        self.counters["messages_total"] += 1
        try:
            message = decode(delivery)
        except (ValueError, *UNDECODABLE):
            self.counters["undecodable_total"] += 1
            raise
        if not self._admission.admits(message, delivery.stored_ns):
            return None
        self._observe(message, delivery.stored_ns)
        return self._feed(self._attached, message, delivery)

    def _handler_failed(self, handler: Handler, error: Exception) -> None:
        self.counters["handler_failures_total"] += 1
        if handler.name not in self._failed_handlers:
            self._failed_handlers.add(handler.name)
            log.error("handler_failed", handler=handler.name, error=repr(error))

    async def _balance_loop(self) -> None:
        while not self._stopping:
            # A stream made anew counts from 1 again: slots would take its messages for old ones.
            made_anew, self._made_anew = self._made_anew, False
            for owned in list(self._owned.values()):
                if made_anew or not owned.lease.held or owned.unpublished > MAX_UNPUBLISHED:
                    self.counters["slots_lost_total"] += 1
                    await self._give_up(owned)
            try:
                share = math.ceil(self._slots / await self._members.count())
                for owned in list(self._owned.values())[share:]:
                    await self._hand_over(owned)
                await self._acquire(share - len(self._owned))
            except Exception as error:
                # Whatever it was: without this loop nobody handles anything any more.
                self.counters["slots_not_acquired_total"] += 1
                log.warning("slots_not_acquired", error=repr(error))
            if self._owned:
                self.started.set()
            await asyncio.sleep(BALANCE_SECONDS)

    async def _acquire(self, wanted: int) -> None:
        acquired: list[_Owned] = []
        try:
            await self._acquire_into(acquired, wanted)
        except BaseException:
            # Held but never fed, they would be nobody's: another round, or process, starts anew.
            for owned in acquired:
                await self._give_up(owned)
            raise

    async def _acquire_into(self, acquired: list[_Owned], wanted: int) -> None:
        for index in range(self._slots):
            if len(acquired) >= wanted or self._stopping:
                break
            if index in self._owned:
                continue
            lease = await self._leases.try_acquire(f"handlers.slot.{index}")
            if lease is None:
                continue
            try:
                watermark, revision = await self._watermarks.load(index, self._fresh)
            except BaseException:
                await self._leases.release(lease)
                raise
            slot = Slot(index, self._slots, self._make_handlers(), watermark, self._handler_failed)
            owned = _Owned(slot, lease, revision, saved=watermark)
            self._owned[index] = owned
            acquired.append(owned)
        if acquired:
            await self._catch_up(acquired)
            log.info("slots_acquired", slots=[owned.slot.index for owned in acquired])

    async def _fresh(self) -> Watermark:
        """One of where the stream is now."""
        _, last_sequence = await self._subscriber.stream_bounds("METRICS")
        return Watermark(sequence=last_sequence, ns=self._last_stored_ns)

    async def _catch_up(self, acquired: Sequence[_Owned]) -> None:
        """Feed the new slots from their windows up to where the live reader is, then join it."""
        group: SlotGroup[_Owned] = SlotGroup()
        for owned in acquired:
            group.join(owned, owned.slot)
        start_ns = min(owned.slot.start_ns for owned in acquired)
        whole_ns = min(owned.slot.whole_ns for owned in acquired)
        _, reached = await self._subscriber.stream_bounds("METRICS")
        if whole_ns > start_ns:
            engines = self._history.read(
                "METRICS", subject=EngineMetrics.pattern(), start_ns=start_ns, end_ns=whole_ns
            )
            await self._replay(group, engines)
        # A little earlier: NATS takes microseconds. Slots pass over what they have seen.
        whole = self._history.read("METRICS", start_ns=max(start_ns, whole_ns - SECOND_NS))
        await self._replay(group, whole)
        while reached < self._live_sequence:
            target = self._live_sequence
            newer = self._history.read("METRICS", start_sequence=reached + 1)
            await self._replay(group, newer)
            reached = target
        # No await since the last look at the live sequence: nothing can slip in between.
        for owned in acquired:
            self._attached.join(owned, owned.slot)

    async def _replay(
        self, group: SlotGroup[_Owned], history: AsyncGenerator[Delivery, None]
    ) -> None:
        async with contextlib.aclosing(history):
            async for delivery in history:
                self._replayed = delivery.sequence
                try:
                    message = decode(delivery)
                except (ValueError, *UNDECODABLE):
                    continue
                if not self._admission.admits(message, delivery.stored_ns):
                    continue
                waiting = self._feed(group, message, delivery)
                if waiting is not None:
                    await waiting

    def _feed(
        self, to: SlotGroup[_Owned], message: Message, delivery: Delivery
    ) -> Awaitable[None] | None:
        """At once, or, where ticks are due, slot by slot: they judge every node."""
        now = Moment(delivery.stored_ns, delivery.sequence)
        if to.is_due(now.ns):
            return self._feed_in_steps(to, Routed(message, now))
        for owned, emits in to.feed(message, now):
            self._outgoing.add(owned, emits)
        return None

    async def _feed_in_steps(self, to: SlotGroup[_Owned], routed: Routed) -> None:
        for owned in to:
            self._outgoing.add(owned, owned.slot.feed(routed))
            await asyncio.sleep(0)

    async def _hand_over(self, owned: _Owned) -> None:
        self._detach(owned)
        await self._save(owned)
        await self._give_up(owned)

    def _detach(self, owned: _Owned) -> None:
        self._attached.leave(owned.slot)

    async def _give_up(self, owned: _Owned) -> None:
        self._detach(owned)
        owned.given_up = True
        self._owned.pop(owned.slot.index, None)
        await self._leases.release(owned.lease)

    def _now_ns(self) -> int:
        """Stream time now: time passed here, set right by the timestamps of live messages."""
        return time.monotonic_ns() + max(self._clock_offset_ns)

    async def _tick_loop(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            if not self._clock_offset_ns:
                continue
            now_ns = self._now_ns() - SILENCE_NS
            if now_ns <= self._last_stored_ns:
                continue
            for owned in self._attached:
                emits = owned.slot.advance(now_ns, self._live_sequence)
                self._outgoing.add(owned, emits)
                await asyncio.sleep(0)

    async def _save_loop(self) -> None:
        while True:
            await asyncio.sleep(SAVE_SECONDS)
            for owned in self._attached:
                await self._save(owned)

    async def _save(self, owned: _Owned) -> None:
        if owned.unpublished or not owned.lease.held:
            return
        watermark = owned.slot.watermark()
        if watermark == owned.saved:
            return
        try:
            owned.revision = await self._watermarks.save(
                owned.slot.index, watermark, owned.revision
            )
            owned.saved = watermark
            owned.not_saved = ""
        except RevisionConflictError:
            # Somebody else saved: the slot is no longer ours, whatever the lease says.
            log.warning("slot_taken", slot=owned.slot.index)
            await self._give_up(owned)
        except PublishError as error:
            self.counters["watermarks_not_saved_total"] += 1
            if not owned.not_saved:
                log.warning("watermark_not_saved", slot=owned.slot.index, error=str(error))
            owned.not_saved = str(error)

    def components(self) -> list[Component]:
        """Slots owned and attached, events that wait, and loops that should not have ended."""
        owned, attached = len(self._owned), len(self._attached)
        waiting = self._outgoing.waiting()
        unsaved = [one for one in self._owned.values() if one.not_saved]
        slots = f"{attached} of {self._slots} slots here"
        if attached < owned:
            slots += f", {owned - attached} being rebuilt: read up to message {self._replayed}"
        ended = [] if self._stopping else [task for task in self._tasks if task.done()]
        return [
            self._component("slots", attached == owned, slots),
            self._component("sources", self._admission.refused == 0, self._admission.text()),
            self._component(
                "watermarks",
                not unsaved,
                f"slot {unsaved[0].slot.index} is not saved, so that much is done again after a "
                f"restart: {unsaved[0].not_saved}"
                if unsaved
                else "saved",
            ),
            self._component(
                "publishing", waiting < MAX_UNPUBLISHED // 10, f"{waiting} events wait"
            ),
            *(
                Component(
                    name=task.get_name(),
                    state="failed",
                    text=f"loop {task.get_name()} ended: {_end_of(task)}",
                    probed_at=instant(self._clock()),
                )
                for task in ended
            ),
        ]

    def _component(self, name: str, good: bool, text: str) -> Component:
        return Component(
            name=name,
            state="ok" if good else "degraded",
            text=text,
            probed_at=instant(self._clock()),
        )


def _end_of(task: asyncio.Task[None]) -> str:
    return "cancelled" if task.cancelled() else repr(task.exception())
