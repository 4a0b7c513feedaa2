"""The handlers' runtime on a real stream: slots, watermarks, kills, replays."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import Any

import msgspec
import pytest

from agent.bus import Bus, connect
from agent.bus.lease import BucketLeases
from handlers import runtime as runtime_module
from handlers import slots as slots_module
from handlers.admission import Admission
from handlers.decoding import decode
from handlers.members import Members
from handlers.runtime import HandlersRuntime
from handlers.slots import STEP_NS, TICK_NS, Routed, Slot, Watermark, replay, slot_of
from schemas.archive import Expired
from schemas.engines import CacheMetrics, EngineMetrics
from schemas.message import Message
from schemas.metrics import HostMetrics
from schemas.protocols import (
    Delivery,
    Emit,
    Handler,
    Moment,
    PublishError,
    RevisionConflictError,
    TooLargeError,
)
from schemas.scaling import Decision
from schemas.units import SECOND_NS, instant
from tests.support.samples import host
from tests.support.waiting import until, until_async


class EveryTenth:
    """Says something at every tenth message of a key; counts through restarts by its snapshot."""

    name = "every_tenth"
    scope = "node"
    consumes: tuple[type[Message], ...] = ()
    window_ns = 60 * SECOND_NS

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def handle(self, message: Any, now: Moment) -> Sequence[Emit]:
        count = self.counts[message.node] = self.counts.get(message.node, 0) + 1
        if count % 10:
            return ()
        return (event(message.node, count, now.ns),)

    def tick(self, now: Moment) -> Sequence[Emit]:
        return ()

    def snapshot(self) -> bytes | None:
        return msgspec.json.encode(self.counts)

    def restore(self, snapshot: bytes) -> None:
        self.counts = msgspec.json.decode(snapshot, type=dict[str, int])


def event(node: str, count: int, ns: int = 0) -> Emit:
    what = Expired(namespace=node, key=str(count), version="1", observed_at=instant(ns))
    return Emit(what, f"{node}.{count}")


def engine(node: str, number: int) -> Message:
    return EngineMetrics(
        node=node,
        engine="e",
        pool="p",
        model="m",
        observed_at=instant(0),
        requests_running=number,
    )


def make_handlers() -> Sequence[Handler]:
    handler = EveryTenth()
    handler.consumes = (type(engine("n", 0)),)
    return (handler,)  # type: ignore[return-value]  # `scope` is a plain str here


@contextlib.asynccontextmanager
async def runtime(
    bus: Bus,
    owner: str,
    registered: Sequence[str] = (),
    slots: int = 4,
    make_handlers: Callable[[], Sequence[Handler]] = make_handlers,
    clock: Callable[[], int] = time.time_ns,
    admission: Admission | None = None,
    history: Bus | None = None,
) -> AsyncIterator[HandlersRuntime]:
    leases = BucketLeases(bus.bucket("lease"), owner)
    async with HandlersRuntime(
        publisher=bus,
        subscriber=bus,
        history=history,
        state=bus.bucket("state"),
        leases=leases,
        make_handlers=make_handlers,
        slots=slots,
        name=owner,
        registered=lambda: registered,
        admission=admission or Admission(1000, 1000),
        clock=clock,
    ) as running:
        async with asyncio.timeout(10):
            await running.started.wait()
        yield running
    await leases.close()


async def published(bus: Bus) -> list[tuple[str, str]]:
    """(node, count) of each event in the stream, in stream order."""
    found = []
    async for delivery in bus.read("EVENTS"):
        event = msgspec.json.decode(delivery.payload)
        found.append((event["namespace"], event["key"]))
    return found


async def wait_published(bus: Bus, count: int) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []

    async def enough() -> bool:
        found[:] = await published(bus)
        return len(found) >= count

    await until_async(enough, seconds=40)
    return found


class Ticks(EveryTenth):
    """Keeps the instants of its ticks."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def tick(self, now: Moment) -> Sequence[Emit]:
        self.seen.append(now.ns)
        return ()


@pytest.mark.parametrize("hours", [1, -1], ids=["forward", "back"])
async def test_a_step_of_our_clock_moves_no_tick(
    bus: Bus, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    monkeypatch.setattr(slots_module, "TICK_NS", SECOND_NS // 10)
    monkeypatch.setattr(runtime_module, "SILENCE_NS", 0)
    ticks, step_ns = Ticks(), 0

    def clock() -> int:
        return time.time_ns() + step_ns

    async with runtime(bus, "a", slots=1, make_handlers=lambda: (ticks,), clock=clock):  # type: ignore[arg-type,return-value]  # `scope` is a plain str here
        await bus.publish(engine("n1", 1))
        await until(lambda: len(ticks.seen) > 0, seconds=20)

        step_ns = hours * 3600 * SECOND_NS
        before = len(ticks.seen)
        await until(lambda: len(ticks.seen) > before, seconds=20)

    assert abs(ticks.seen[-1] - time.time_ns()) < 30 * SECOND_NS


async def test_a_condition_completed_by_a_message_is_published(bus: Bus) -> None:
    async with runtime(bus, "a"):
        for number in range(25):
            await bus.publish(engine("n1", number))
        found = await wait_published(bus, 2)

    assert found == [("n1", "10"), ("n1", "20")]


async def test_a_restart_goes_on_where_it_stopped_without_loss_or_repeat(bus: Bus) -> None:
    async with runtime(bus, "a"):
        for number in range(15):
            await bus.publish(engine("n1", number))
        await wait_published(bus, 1)
    for number in range(10):
        await bus.publish(engine("n1", number))

    async with runtime(bus, "b"):
        found = await wait_published(bus, 2)
        for number in range(5):
            await bus.publish(engine("n1", number))
        found = await wait_published(bus, 3)

    assert found == [("n1", "10"), ("n1", "20"), ("n1", "30")]


async def test_what_is_recorded_is_read_by_the_connection_for_it_alone(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with runtime(bus, "a"):
        for number in range(9):
            await bus.publish(engine("n1", number))
    history = await bus.beside("history")

    with monkeypatch.context() as patched:
        patched.setattr(bus, "read", None)
        async with runtime(bus, "a", history=history):
            await bus.publish(engine("n1", 9))
            async with asyncio.timeout(20):
                while (await bus.stream_bounds("EVENTS"))[1] == 0:
                    await bus.round_trip_seconds()

    assert await published(bus) == [("n1", "10")]


async def test_two_processes_and_a_kill_lose_nothing_and_double_nothing(
    bus: Bus, nats_url: str
) -> None:
    nodes = [f"n{number}" for number in range(8)]
    other = await connect(nats_url, name="other")
    both = ["victim", "survivor"]
    leases = BucketLeases(other.bucket("lease"), "victim")
    victim = HandlersRuntime(
        publisher=other,
        subscriber=other,
        state=other.bucket("state"),
        leases=leases,
        make_handlers=make_handlers,
        slots=4,
        name="victim",
        registered=lambda: both,
        admission=Admission(1000, 1000),
    )
    await victim.__aenter__()
    async with asyncio.timeout(10):
        await victim.started.wait()

    async with runtime(bus, "survivor", both) as survivor:
        await until(lambda: len(survivor._attached) == 2)
        for _ in range(15):
            for node in nodes:
                await bus.publish(engine(node, 1))
        await wait_published(bus, len(nodes))
        # The process is gone at once: nothing saved, nothing given back.
        for task in victim._tasks:
            task.cancel()
        for renewal in leases._renewals.values():
            renewal.cancel()
        await other._client.close()
        for _ in range(15):
            for node in nodes:
                await bus.publish(engine(node, 1))
        found = await wait_published(bus, 3 * len(nodes))
        await until(lambda: len(survivor._attached) >= 4)

    assert sorted(found) == sorted((node, count) for node in nodes for count in ("10", "20", "30"))
    await other.close()


async def test_a_joining_process_takes_its_share(bus: Bus, nats_url: str) -> None:
    both = ["first", "second"]
    async with (
        await connect(nats_url, name="second") as second_bus,
        runtime(bus, "first", both) as first,
    ):
        await until(lambda: len(first._attached) >= 4)
        async with runtime(second_bus, "second", both) as second:
            await until(lambda: len(second._attached) >= 2)

            assert set(first._owned) & set(second._owned) == set()
            assert len(first._owned) == 2


async def test_who_holds_a_lease_of_its_own_is_alive_and_nobody_dies_of_a_silent_server(
    bus: Bus,
) -> None:
    bucket, is_silent = bus.bucket("lease"), False
    names = ["a", "b", "dead"]

    async def get(key: str) -> tuple[bytes, int] | None:
        if is_silent:
            raise PublishError("no answer")
        return await bucket.get(key)

    ours = BucketLeases(Faulty(bucket, get=get), "a")
    theirs = BucketLeases(bucket, "b")
    members = Members(ours, "a", lambda: names)
    counts = [await members.count()]
    await Members(theirs, "b", lambda: names).count()
    counts.append(await members.count())
    is_silent = True
    counts.append(await members.count())
    is_silent = False
    await theirs.close()
    counts.append(await members.count())

    assert counts == [1, 2, 2, 1]
    await ours.close()


async def test_of_what_only_scaling_looks_back_to_the_engines_alone_are_read(bus: Bus) -> None:
    heard: list[str] = []

    class Hears(EveryTenth):
        def handle(self, message: Any, now: Moment) -> Sequence[Emit]:
            heard.append(f"{self.name}: {type(message).__name__}")
            return ()

    def two_handlers() -> Sequence[Handler]:
        engines, everything = Hears(), Hears()
        engines.name, engines.consumes = "engines", (EngineMetrics,)
        everything.name, everything.consumes = "everything", (HostMetrics, EngineMetrics)
        everything.window_ns = SECOND_NS
        return (engines, everything)  # type: ignore[return-value]  # `scope` is a plain str here

    await bus.publish(host("n1", cpu=0.5, memory=0.5))
    await bus.publish(engine("n1", 1))
    await until_async(lambda: has_messages(bus, 2))
    later = Watermark(sequence=2, ns=time.time_ns() + 10 * SECOND_NS)
    await bus.bucket("state").create("handlers.slot.0", later.encode())
    async with runtime(bus, "owner", slots=1, make_handlers=two_handlers):
        assert heard == ["engines: EngineMetrics", "everything: EngineMetrics"]


async def has_messages(bus: Bus, count: int) -> bool:
    return (await bus.stream_bounds("METRICS"))[1] == count


async def test_a_message_between_catching_up_and_joining_is_not_missed(bus: Bus) -> None:
    class Racing:
        """The bus, but one more message is stored whenever a reading of the stream has ended."""

        late = 10

        def __getattr__(self, name: str) -> Any:
            return getattr(bus, name)

        async def read(self, stream: str, **where: Any) -> AsyncGenerator[Delivery, None]:
            async for delivery in bus.read(stream, **where):
                yield delivery
            if where.get("last_per_subject") is None and self.late:
                self.late -= 1
                before = running.counters["messages_total"]
                await bus.publish(engine("n1", 1))
                await until(lambda: running.counters["messages_total"] > before)

    racing = Racing()
    running = HandlersRuntime(
        publisher=bus,
        subscriber=racing,
        state=bus.bucket("state"),
        leases=BucketLeases(bus.bucket("lease"), "a"),
        make_handlers=make_handlers,
        slots=1,
        name="a",
        registered=tuple,
        admission=Admission(1000, 1000),
    )
    async with running:
        found = await wait_published(bus, 1)

    assert found == [("n1", "10")]


async def test_undecodable_and_misplaced_metrics_are_counted_and_the_rest_goes_on(
    bus: Bus,
) -> None:
    async with runtime(bus, "a") as running:
        await bus.send("metrics.engine.n1.e", b"{not json")
        await bus.send("metrics.engine.n1.e", b'{"node": 5}')
        await bus.send("metrics.engine.n2.e", msgspec.json.encode(engine("n1", 1)))
        await bus.send("metrics.unknown.n1", b"{}")
        for number in range(10):
            await bus.publish(engine("n1", number))
        found = await wait_published(bus, 1)

    assert found == [("n1", "10")]
    assert running.counters["undecodable_total"] == 4


def routed(number: int, ns: int) -> Routed:
    return Routed(engine("n1", number), Moment(ns, number))


def test_a_rebuild_says_nothing_up_to_the_watermark_and_the_same_after_it() -> None:
    messages = [routed(number, number * SECOND_NS) for number in range(1, 31)]
    whole = replay(messages, make_handlers)

    slot = Slot(0, 1, make_handlers(), Watermark(sequence=0, ns=0))
    first = [emit for message in messages[:15] for emit in slot.feed(message)]
    watermark = slot.watermark()
    next_slot = Slot(0, 1, make_handlers(), watermark)
    second = [emit for message in messages for emit in next_slot.feed(message)]

    assert [emit.message_id for emit in first + second] == [emit.message_id for emit in whole]
    assert watermark.sequence == 15


def test_ticks_stand_on_a_grid_of_stream_time_before_the_message_at_it() -> None:
    order: list[tuple[str, int]] = []

    class Recorder(EveryTenth):
        def handle(self, message: Any, now: Moment) -> Sequence[Emit]:
            order.append(("message", now.ns))
            return ()

        def tick(self, now: Moment) -> Sequence[Emit]:
            order.append(("tick", now.ns))
            return ()

    recorder = Recorder()
    recorder.consumes = (type(engine("n", 0)),)
    slot = Slot(0, 1, (recorder,), Watermark(sequence=0, ns=0))  # type: ignore[arg-type]
    list(slot.feed(routed(1, TICK_NS + 1)))
    list(slot.feed(routed(2, 2 * TICK_NS)))
    list(slot.advance(3 * TICK_NS))

    assert order == [
        ("tick", TICK_NS),
        ("message", TICK_NS + 1),
        ("tick", 2 * TICK_NS),
        ("message", 2 * TICK_NS),
        ("tick", 3 * TICK_NS),
    ]


def test_who_asks_for_it_ticks_ten_times_as_often() -> None:
    ticks: list[tuple[str, int]] = []

    class Recorder(EveryTenth):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def tick(self, now: Moment) -> Sequence[Emit]:
            ticks.append((self.name, now.ns))
            return ()

    often, seldom = Recorder("often"), Recorder("seldom")
    often.tick_ns = STEP_NS  # type: ignore[attr-defined]
    slot = Slot(0, 1, (often, seldom), Watermark(sequence=0, ns=0))  # type: ignore[arg-type]
    slot.advance(2 * TICK_NS)

    assert [ns for name, ns in ticks if name == "seldom"] == [TICK_NS, 2 * TICK_NS]
    assert [ns for name, ns in ticks if name == "often"] == [
        STEP_NS * number for number in range(1, 21)
    ]
    assert slot.watermark().ns == 2 * TICK_NS


@pytest.mark.parametrize(
    ("key", "slot"),
    [pytest.param("n1", 4, id="n1"), pytest.param("n2", 5, id="n2")],
)
def test_slots_never_move(key: str, slot: int) -> None:
    assert slot_of("node", key, 8) == slot


def test_a_message_on_anothers_subject_is_refused() -> None:
    wrong = Delivery("metrics.cache.x", msgspec.json.encode(engine("n", 1)), {}, 1, 1)

    with pytest.raises((ValueError, msgspec.DecodeError)):
        decode(wrong)
    assert CacheMetrics.SUBJECT.startswith("metrics.cache.")


async def test_a_metrics_stream_made_anew_is_read_from_its_beginning(bus: Bus) -> None:
    async with runtime(bus, "a") as running:
        for number in range(15):
            await bus.publish(engine("n1", number))
        await wait_published(bus, 1)
        config = (await bus.jetstream.stream_info("FLEET_METRICS")).config
        await bus.jetstream.delete_stream("FLEET_METRICS")
        await bus.jetstream.add_stream(config)
        await bus.publish(engine("n2", 0))
        await until(lambda: running.counters["slots_lost_total"] >= 4)
        await until(lambda: len(running._attached) == 4)
        for number in range(10):
            await bus.publish(engine("n2", number))
        found = await wait_published(bus, 2)

    assert found == [("n1", "10"), ("n2", "10")]


async def test_a_handler_that_fails_stops_no_other(bus: Bus) -> None:
    class Failing(EveryTenth):
        name = "failing"

        def handle(self, message: Any, now: Moment) -> Sequence[Emit]:
            raise OverflowError("too large")

        def tick(self, now: Moment) -> Sequence[Emit]:
            raise OverflowError("too large")

    def with_failing() -> Sequence[Handler]:
        failing = Failing()
        failing.consumes = (EngineMetrics,)
        return (failing, *make_handlers())  # type: ignore[arg-type]  # `scope` is a plain str here

    leases = BucketLeases(bus.bucket("lease"), "a")
    async with HandlersRuntime(
        publisher=bus,
        subscriber=bus,
        state=bus.bucket("state"),
        leases=leases,
        make_handlers=with_failing,
        slots=1,
        name="a",
        registered=tuple,
        admission=Admission(1000, 1000),
    ) as running:
        await running.started.wait()
        for number in range(10):
            await bus.publish(engine("n1", number))
        found = await wait_published(bus, 1)

    await leases.close()
    assert found == [("n1", "10")]
    assert running.counters["handler_failures_total"] >= 10


class Faulty:
    """The bus, with a few of its methods replaced."""

    def __init__(self, bus: Any, **replaced: Any) -> None:
        self._bus = bus
        self.__dict__.update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)


def publishing(publish: Any) -> dict[str, Any]:
    """`publish`, and `publish_all` by means of it."""

    async def publish_all(messages: Sequence[tuple[Message, str]]) -> None:
        for message, message_id in messages:
            await publish(message, message_id=message_id)

    return {"publish": publish, "publish_all": publish_all}


def with_faults(bus: Bus, faulty: Any, **changed: Any) -> HandlersRuntime:
    arguments: dict[str, Any] = {
        "publisher": faulty,
        "subscriber": faulty,
        "state": bus.bucket("state"),
        "leases": BucketLeases(bus.bucket("lease"), "a"),
        "make_handlers": make_handlers,
        "slots": 2,
        "name": "a",
        "registered": tuple,
        "admission": Admission(1000, 1000),
    }
    return HandlersRuntime(**(arguments | changed))


async def test_a_failed_catch_up_gives_the_slots_back_and_the_next_round_takes_them(
    bus: Bus,
) -> None:
    failures = 1

    async def read(stream: str, **where: Any) -> AsyncGenerator[Delivery, None]:
        nonlocal failures
        if "start_ns" in where and failures:
            failures -= 1
            raise PublishError("the server is gone")
        async for delivery in bus.read(stream, **where):
            yield delivery

    running = with_faults(bus, Faulty(bus, read=read))

    async with running:
        await until(lambda: len(running._attached) >= 2)

        assert failures == 0
        assert set(running._owned.values()) == set(running._attached)


@pytest.mark.parametrize(
    "error", [PublishError("gone"), RevisionConflictError("taken")], ids=["server", "conflict"]
)
async def test_a_slot_whose_watermark_cannot_be_read_leaves_no_lease_behind(
    bus: Bus, error: Exception
) -> None:
    state, failures = bus.bucket("state"), 1

    async def get(key: str) -> tuple[bytes, int] | None:
        nonlocal failures
        if key == "handlers.slot.1" and failures:
            failures -= 1
            raise error
        return await state.get(key)

    running = with_faults(bus, bus, state=Faulty(state, get=get))

    async with running:
        await until(lambda: len(running._attached) >= 2)

        assert failures == 0


@pytest.mark.parametrize("is_last", [True, False], ids=["last", "hidden"])
async def test_a_start_on_a_stream_with_rubbish_succeeds(bus: Bus, is_last: bool) -> None:
    async with runtime(bus, "a", slots=1):
        await bus.publish(engine("n1", 0))
    for payload in (b"\xff", b'{"node":"\xff"}', b'{"a":' * 2000):
        await bus.publish_raw("metrics.engine.n1.e", payload, message_id=str(len(payload)))
    if not is_last:
        await bus.publish(engine("n1", 1))

    async with runtime(bus, "b", slots=1):
        for number in range(9 if is_last else 8):
            await bus.publish(engine("n1", number))
        found = await wait_published(bus, 1)

    assert found == [("n1", "10")]


async def test_a_watermark_that_does_not_decode_is_begun_anew(bus: Bus) -> None:
    await bus.bucket("state").put("handlers.slot.0", b"\xff rubbish")

    async with runtime(bus, "a", slots=1) as running:
        for number in range(10):
            await bus.publish(engine("n1", number))
        found = await wait_published(bus, 1)

    assert found == [("n1", "10")]
    assert running.counters["watermarks_unreadable_total"] == 1


@pytest.mark.parametrize(
    "error", [ValueError("not a subject"), TooLargeError("2 MiB")], ids=["no subject", "too large"]
)
async def test_an_event_that_can_never_be_published_is_dropped_and_counted(
    bus: Bus, error: Exception
) -> None:
    async def publish(message: Message, *, message_id: str | None = None) -> None:
        if message_id == "n1.10":
            raise error
        await bus.publish(message, message_id=message_id)

    async with with_faults(bus, Faulty(bus, **publishing(publish))) as running:
        await until(lambda: len(running._attached) >= 2)
        for number in range(20):
            await bus.publish(engine("n1", number))
        found = await wait_published(bus, 1)

        assert found == [("n1", "20")]
        assert running.counters["unpublishable_total"] == 1
        assert all(owned.unpublished == 0 for owned in running._attached)


async def test_a_missing_stream_holds_up_only_its_own_events(bus: Bus) -> None:
    class Both(EveryTenth):
        def handle(self, message: Any, now: Moment) -> Sequence[Emit]:
            emits = list(super().handle(message, now))
            advice = Decision(
                verdict="expired",
                pool="p",
                recommendation_id="r",
                decided_at=instant(now.ns),
                decided_by="handlers",
                reason="r",
            )
            return [*emits, *(Emit(advice, f"d.{e.message_id}") for e in emits)]

    def make() -> Sequence[Handler]:
        handler = Both()
        handler.consumes = (EngineMetrics,)
        return (handler,)  # type: ignore[return-value]  # `scope` is a plain str here

    told: list[str | None] = []

    async def publish(message: Message, *, message_id: str | None = None) -> None:
        if message.STREAM == "EVENTS":
            raise PublishError("no such stream")
        told.append(message_id)

    async with with_faults(bus, Faulty(bus, **publishing(publish)), make_handlers=make) as running:
        await until(lambda: len(running._attached) >= 2)
        for number in range(20):
            await bus.publish(engine("n1", number))
        await until(lambda: len(told) == 2)

        assert told == ["d.n1.10", "d.n1.20"]
        assert sum(owned.unpublished for owned in running._attached) == 2
        for owned in list(running._owned.values()):
            await running._give_up(owned)


async def test_events_that_wait_together_are_published_together(bus: Bus) -> None:
    batches: list[list[str]] = []

    async def publish_all(messages: Sequence[tuple[Message, str]]) -> None:
        batches.append([message_id for _, message_id in messages])
        await bus.publish_all(messages)

    async with with_faults(bus, Faulty(bus, publish_all=publish_all)) as running:
        await until(lambda: len(running._attached) >= 2)
        owned = next(iter(running._attached))
        running._outgoing.add(owned, [event("n1", number) for number in range(100)])
        await until(lambda: running.counters["published_total"] == 100)

        assert [len(batch) for batch in batches] == [64, 36]
        assert len(await published(bus)) == 100
        assert owned.unpublished == 0


async def test_a_loop_that_ended_is_a_failed_component(bus: Bus) -> None:
    async with runtime(bus, "a") as running:
        running._tasks[0].cancel()
        await until(running._tasks[0].done)
        failed = [part.text for part in running.components() if part.state == "failed"]

    assert len(failed) == 1
    assert "ended: cancelled" in failed[0]


def component(running: HandlersRuntime, name: str) -> tuple[str, str]:
    (found,) = (one for one in running.components() if one.name == name)
    return found.state, found.text


class Remembering(EveryTenth):
    """Its state is `content`; keeps what it was given back."""

    content = b""
    restored: list[bytes] = []  # noqa: RUF012 - of all instances

    def snapshot(self) -> bytes | None:
        return self.content

    def restore(self, snapshot: bytes) -> None:
        self.restored.append(snapshot)


def remembering(content: bytes) -> Callable[[], Sequence[Handler]]:
    def make() -> Sequence[Handler]:
        handler = Remembering()
        handler.consumes, handler.content = (EngineMetrics,), content
        return (handler,)  # type: ignore[return-value]  # `scope` is a plain str here

    return make


async def test_state_of_thousands_of_open_alerts_outlives_a_restart(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    alerts = msgspec.json.encode([f"disk of node-{number} is full" for number in range(100_000)])
    assert len(alerts) > 2 * bus.max_payload
    monkeypatch.setattr(Remembering, "restored", [])

    for owner in ("a", "b"):
        async with runtime(bus, owner, slots=1, make_handlers=remembering(alerts)) as running:
            await bus.publish(engine("n1", 1))
            await until(lambda: running.counters["messages_total"] == 1)

    assert Remembering.restored == [alerts]
    assert component(running, "watermarks") == ("ok", "saved")


async def test_state_that_cannot_be_saved_is_told_and_the_handlers_go_on(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime_module, "SAVE_SECONDS", 0.05)
    noise = random.Random(1).randbytes(2 * bus.max_payload)

    async with runtime(bus, "a", slots=1, make_handlers=remembering(noise)) as running:
        for number in range(10):
            await bus.publish(engine("n1", number))
        found = await wait_published(bus, 1)
        await until(lambda: running.counters["watermarks_not_saved_total"] > 1)
        state, text = component(running, "watermarks")

    assert found == [("n1", "10")]
    assert state == "degraded"
    assert "slot 0 is not saved" in text
    assert "maximum payload" in text


async def test_a_flood_of_names_is_refused_and_the_nodes_that_are_known_go_on(bus: Bus) -> None:
    async with runtime(bus, "a", admission=Admission(2, 1000)) as running:
        for number in range(10):
            for node in ("n1", "n2", f"flood{number}"):
                await bus.publish(engine(node, number))
        found = await wait_published(bus, 2)
        await until(lambda: running.counters["messages_total"] == 30)
        state, text = component(running, "sources")

    assert sorted(found) == [("n1", "10"), ("n2", "10")]
    assert (state, text) == (
        "degraded",
        "2 nodes in 1 pools followed, 10 messages of others refused",
    )


async def test_rebuilding_for_long_keeps_nobody_from_being_ready(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime_module, "REBUILD_SECONDS", 0.05)
    going_on = asyncio.Event()
    await bus.publish(engine("n1", 1))

    async def read(stream: str, **where: Any) -> AsyncGenerator[Delivery, None]:
        async for delivery in bus.read(stream, **where):
            yield delivery
            if "start_ns" in where:
                await going_on.wait()

    async with with_faults(bus, Faulty(bus, read=read)) as running:
        await running.wait_started()
        await until(lambda: component(running, "slots")[1].endswith("up to message 1"))
        rebuilding = component(running, "slots")
        going_on.set()
        await until(lambda: component(running, "slots")[0] == "ok")

    assert rebuilding == (
        "degraded",
        "0 of 2 slots here, 2 being rebuilt: read up to message 1",
    )
