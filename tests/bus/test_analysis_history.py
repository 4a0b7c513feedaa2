"""What was judged, cached and advised in a time range, read back from real streams."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from agent.bus import Bus
from handlers.queries.thinning import REPLY_BYTES
from handlers.rollup import RollupHandler
from handlers.settings import HandlersSettings, QuerySettings, RollupSettings
from schemas.analysis import Utilization
from schemas.api import HistoryReply
from schemas.engines import CacheMetrics
from schemas.history import (
    AdviceHistoryReply,
    AdviceHistoryRequest,
    AnalysisHistoryReply,
    AnalysisHistoryRequest,
    AnalysisKind,
    AnalysisRow,
    CacheHistoryReply,
    CacheHistoryRequest,
)
from schemas.message import Message
from schemas.metrics import Rollup, Summary
from schemas.protocols import Delivery, Moment, RequestError
from schemas.spending import Opportunity, Trend, Usage, Waste
from schemas.units import SECOND_NS, instant
from tests.support.advice import advice, decision, step, tell
from tests.support.asking import ask
from tests.support.server import NatsServer

pytestmark = pytest.mark.bus

M = TypeVar("M", bound=Message)

MINUTE_NS = 60 * SECOND_NS
HOUR_NS = 60 * MINUTE_NS
DAY_NS = 24 * HOUR_NS
WIRE = Path(__file__).parents[1] / "wire"


def like(kind: type[M], **fields: Any) -> M:
    """The message of that type in tests/wire, with other fields."""
    tree = msgspec.json.decode((WIRE / f"{kind.__name__.lower()}.json").read_bytes())
    return msgspec.convert(tree | fields, kind)


async def put(bus: Bus, *messages: Message) -> None:
    for message in messages:
        await bus.publish_raw(
            message.subject(),
            msgspec.json.encode(message),
            message_id=f"{message.subject()}.{next(_numbers)}",
        )


_numbers = iter(range(10**9))


async def stored(bus: Bus, stream: str, subject: str = ">") -> list[Delivery]:
    return [delivery async for delivery in bus.read(stream, subject=subject)]


async def analysis(
    bus: Bus,
    kind: AnalysisKind,
    *,
    settings: QuerySettings | None = None,
    clock: Callable[[], int] = time.time_ns,
    counters: Counter[str] | None = None,
    **fields: Any,
) -> AnalysisHistoryReply:
    payload = await ask(
        bus,
        "api.analysis.history",
        AnalysisHistoryRequest(kind=kind, **fields),
        settings=HandlersSettings(queries=settings or QuerySettings()),
        clock=clock,
        counters=counters,
    )
    return msgspec.json.decode(payload, type=AnalysisHistoryReply)


def where(rows: list[AnalysisRow]) -> list[tuple[str, str]]:
    return [(row.scope, row.id) for row in rows]


def hour(begin_ns: int, scope: str = "pool", name: str = "chat", **fields: Any) -> Usage:
    return like(Usage, scope=scope, id=name, hour_at=instant(begin_ns), **fields)


def minute(begin_ns: int, kind: str, name: str, **metrics: float) -> Rollup:
    return Rollup(
        kind=kind,  # type: ignore[arg-type]  # one of the literals
        id=name,
        node=name if kind == "host" else None,
        minute_at=instant(begin_ns),
        metrics={
            metric: Summary(min=0.0, mean=value, max=2 * value, p95=value, count=12)
            for metric, value in metrics.items()
        },
    )


async def test_what_was_judged_comes_in_time_order_with_its_stored_instant(bus: Bus) -> None:
    await put(
        bus,
        like(Utilization, scope="pool", id="chat"),
        like(Utilization, scope="fleet", id="all"),
        like(Utilization, scope="node", id="n1"),
        like(Waste, scope="pool", id="chat"),
    )

    reply = await analysis(bus, "utilization")

    deliveries = await stored(bus, "EVENTS", "analysis.utilization.>")
    assert where(reply.rows) == [("pool", "chat"), ("fleet", "all"), ("node", "n1")]
    assert [row.at for row in reply.rows] == [instant(one.stored_ns) for one in deliveries]
    assert (reply.source, reply.matched, reply.text) == ("events", 3, "")
    assert {row.message is None for row in reply.rows} == {True}


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        pytest.param({"node": "n1"}, [("node", "n1")], id="node"),
        pytest.param({"pool": "chat"}, [("pool", "chat")], id="pool"),
        pytest.param({"pool": "n1"}, [], id="a node is not a pool"),
        pytest.param({"scope": "pool"}, [("pool", "chat"), ("pool", "other")], id="pools"),
        pytest.param({"scope": "fleet"}, [("fleet", "all")], id="fleet"),
    ],
)
async def test_one_place_or_all_of_a_scope(
    bus: Bus, fields: dict[str, Any], found: list[tuple[str, str]]
) -> None:
    places = [("pool", "chat"), ("pool", "other"), ("node", "n1"), ("fleet", "all")]
    await put(bus, *(like(Utilization, scope=scope, id=name) for scope, name in places))

    assert where((await analysis(bus, "utilization", **fields)).rows) == found


async def test_values_are_what_was_measured_and_messages_are_given_on_request(bus: Bus) -> None:
    messages: dict[AnalysisKind, Message] = {
        "utilization": like(Utilization, efficiency_ratio=None),
        "waste": like(Waste),
        "trend": like(Trend),
        "opportunity": like(Opportunity),
    }
    await put(bus, *messages.values())

    values = {}
    for kind, message in messages.items():
        (row,) = (await analysis(bus, kind, messages=True)).rows
        values[kind] = row.values
        assert row.message == msgspec.to_builtins(message)

    utilization = like(Utilization)
    assert values["utilization"]["level"] == utilization.level
    assert values["utilization"]["bottlenecks"] == len(utilization.bottlenecks)
    for use in utilization.resources:
        assert values["utilization"][f"{use.resource}_mean_ratio"] == use.mean_ratio
    assert "efficiency_ratio" not in values["utilization"]
    assert values["waste"]["waste_usd_per_hour"] == like(Waste).figures.waste_usd_per_hour
    assert values["trend"]["utilization_ratio_direction"] == "rising"
    assert values["trend"]["utilization_ratio_slope_per_day"] == 0.4
    saving = like(Opportunity).savings[0]
    assert values["opportunity"][f"{saving.kind}_gpus"] == saving.gpus
    assert values["opportunity"]["savings"] == len(like(Opportunity).savings)


async def test_both_ends_of_a_range_are_exact(bus: Bus) -> None:
    for number in range(3):
        await put(bus, like(Utilization, nodes=number))
    _, second, third = [
        one.stored_ns // 1000 * 1000 for one in await stored(bus, "EVENTS", "analysis.>")
    ]

    async def nodes(start_ns: int, end_ns: int) -> list[Any]:
        reply = await analysis(bus, "utilization", start=instant(start_ns), end=instant(end_ns))
        assert (reply.start, reply.end) == (instant(start_ns), instant(end_ns))
        return [row.values["nodes"] for row in reply.rows]

    assert await nodes(second, third) == [1]
    assert await nodes(second, third + 1000) == [1, 2]
    assert await nodes(second + 1000, third + 1000) == [2]


@pytest.mark.parametrize(
    ("later_ns", "found"),
    [pytest.param(0, [0], id="its begin, not its end"), pytest.param(1, [1], id="later by 1 ns")],
)
async def test_the_last_seconds_are_exact_to_the_nanosecond(
    bus: Bus, later_ns: int, found: list[int]
) -> None:
    for number in range(2):
        await put(bus, like(Utilization, nodes=number))
    first, second = [one.stored_ns for one in await stored(bus, "EVENTS", "analysis.>")]

    reply = await analysis(
        bus,
        "utilization",
        clock=lambda: second + later_ns,
        seconds=(second - first + 0.5) / SECOND_NS,  # so that none is lost by rounding
    )

    assert [row.values["nodes"] for row in reply.rows] == found


async def test_more_than_the_limit_is_thinned_evenly_by_place(bus: Bus) -> None:
    for number in range(20):
        await put(
            bus,
            like(Utilization, scope="pool", id="a", nodes=number),
            like(Utilization, scope="pool", id="b", nodes=number),
        )

    reply = await analysis(bus, "utilization", limit=8)

    assert reply.matched == 40
    for pool in "ab":
        kept = [row.values["nodes"] for row in reply.rows if row.id == pool]
        assert kept == [0, 6, 12, 19]
    assert [row.at for row in reply.rows] == sorted(row.at for row in reply.rows)


async def test_an_answer_is_thinned_to_what_a_message_holds(bus: Bus) -> None:
    text = "x" * 40_000
    waste = like(Waste)
    models = {f"{text}{i}": use for i, use in enumerate(waste.hours[0].models.values())}
    fat = msgspec.structs.replace(
        waste, hours=[msgspec.structs.replace(waste.hours[0], models=models)]
    )
    await put(bus, *[fat] * 40)

    reply = await analysis(bus, "waste", messages=True)
    payload = msgspec.json.encode(reply)

    assert reply.matched == 40
    assert 10 < len(reply.rows) < 40
    assert REPLY_BYTES / 2 < len(payload) < REPLY_BYTES + 10_000
    assert len((await analysis(bus, "waste")).rows) == 40


async def test_where_events_no_longer_reach_hours_answer(bus: Bus) -> None:
    now_ns = time.time_ns() // HOUR_NS * HOUR_NS
    begins = [now_ns - number * HOUR_NS for number in (30, 20, 10)]
    await put(bus, *(hour(begin_ns, utilization_ratio=0.25) for begin_ns in begins))
    await put(bus, like(Waste, scope="pool", id="chat"), like(Trend, scope="pool", id="chat"))

    waste = await analysis(bus, "waste", pool="chat", seconds=2 * 86_400)
    trend = await analysis(bus, "trend", pool="chat", seconds=2 * 86_400)
    use = await analysis(bus, "utilization", pool="chat", seconds=2 * 86_400)

    assert {reply.source for reply in (waste, trend, use)} == {"rollups"}
    assert [row.at for row in waste.rows] == [instant(begin_ns) for begin_ns in begins]
    assert {row.period_seconds for row in waste.rows} == {3600.0}
    assert waste.rows[0].values["waste_usd"] == pytest.approx(22.0)
    assert waste.rows[0].values["waste_ratio"] == pytest.approx(0.6875)
    assert trend.rows[0].values["utilization_ratio"] == 0.25
    # What an hour does not hold is not there: no slope, no level, no bottlenecks.
    assert not {name for name in trend.rows[0].values if name.endswith(("_per_day", "direction"))}
    assert use.rows[0].values == {"gpu_mean_ratio": 0.25}


async def test_events_answer_where_nothing_older_is_recorded(bus: Bus) -> None:
    begin_ns = time.time_ns() // HOUR_NS * HOUR_NS
    await put(bus, hour(begin_ns), like(Waste, scope="pool", id="chat"))

    reply = await analysis(bus, "waste", seconds=30 * 86_400)

    assert (reply.source, reply.matched) == ("events", 1)


@pytest.mark.parametrize(
    ("seconds", "source"), [pytest.param(50_000, "events", id="little"), (3_600, "rollups")]
)
async def test_events_answer_where_they_lack_little_of_the_range(
    bus: Bus, seconds: int, source: str
) -> None:
    begin_ns = time.time_ns() - 50 * MINUTE_NS
    await put(
        bus,
        minute(begin_ns, "host", "n1", cpu_utilization_ratio=0.5),
        like(Utilization, scope="node", id="n1"),
    )

    assert (await analysis(bus, "utilization", node="n1", seconds=seconds)).source == source


async def test_each_place_is_told_from_one_source(bus: Bus) -> None:
    now_ns = time.time_ns()
    await put(
        bus,
        hour(now_ns - 9 * HOUR_NS),
        like(Waste, scope="pool", id="chat"),
        like(Waste, scope="pool", id="new"),
    )

    reply = await analysis(bus, "waste", scope="pool", seconds=86_400)

    assert reply.source == "both"
    assert [(row.id, row.source) for row in reply.rows] == [("chat", "rollups"), ("new", "events")]


async def test_a_purged_stream_is_answered_from_rollups(bus: Bus) -> None:
    earlier_ns = time.time_ns() - 3 * HOUR_NS
    await put(bus, hour(earlier_ns), hour(earlier_ns, utilization_ratio=0.99))
    for _ in range(5):
        await put(bus, like(Waste, scope="pool", id="chat"))
    await bus.jetstream.purge_stream("FLEET_EVENTS")

    reply = await analysis(bus, "waste", pool="chat")

    (row,) = reply.rows  # of an hour told twice the first
    assert row.source == "rollups"
    assert row.values["utilization_ratio"] == pytest.approx(0.21875)


async def test_hours_of_simulated_gpus_count_only_where_there_are_no_others(bus: Bus) -> None:
    earlier_ns = time.time_ns() - 3 * HOUR_NS
    await put(
        bus,
        hour(earlier_ns),
        hour(earlier_ns, simulated=True),
        hour(earlier_ns, name="lab", simulated=True),
    )

    rows = (await analysis(bus, "waste", scope="pool")).rows

    assert sorted((row.id, row.simulated) for row in rows) == [("chat", False), ("lab", True)]


async def test_utilization_of_machines_and_pools_comes_from_their_minutes(bus: Bus) -> None:
    begin_ns = time.time_ns() - HOUR_NS
    await put(
        bus,
        minute(begin_ns, "host", "n1", cpu_utilization_ratio=0.25, memory_utilization_ratio=0.5),
        minute(begin_ns - DAY_NS, "host", "n1", cpu_utilization_ratio=0.25),
        minute(begin_ns, "pool", "chat", gpu_utilization_ratio=0.5, host_cpu_utilization_ratio=0.1),
        hour(begin_ns, "node", "n1", utilization_ratio=0.75),
    )

    node = await analysis(bus, "utilization", node="n1")
    pool = await analysis(bus, "utilization", pool="chat")

    assert [(row.period_seconds, row.values) for row in node.rows] == [
        (3600.0, {"gpu_mean_ratio": 0.75}),
        (60.0, {"cpu_mean_ratio": 0.25, "cpu_peak_ratio": 0.5, "memory_mean_ratio": 0.5,
                "memory_peak_ratio": 1.0}),
    ]  # fmt: skip
    assert [row.values["gpu_mean_ratio"] for row in pool.rows] == [0.5]
    assert (node.source, pool.source) == ("rollups", "rollups")


async def test_no_time_of_a_pool_is_told_by_its_minutes_and_its_hour(bus: Bus) -> None:
    begin_ns = time.time_ns() // HOUR_NS * HOUR_NS - 5 * HOUR_NS
    hours = [hour(begin_ns + number * HOUR_NS, utilization_ratio=0.25) for number in range(4)]
    busy = {"gpu_utilization_ratio": 0.5}
    await put(
        bus,
        *hours,
        minute(begin_ns + HOUR_NS, "pool", "chat", **busy),
        minute(begin_ns + 2 * HOUR_NS - MINUTE_NS, "pool", "chat", **busy),
        minute(begin_ns + 2 * HOUR_NS, "pool", "chat", host_cpu_utilization_ratio=0.1),
    )

    reply = await analysis(bus, "utilization", pool="chat")

    assert [
        (row.at, row.values["gpu_mean_ratio"])
        for row in reply.rows
        if "gpu_mean_ratio" in row.values
    ] == [
        (instant(begin_ns), 0.25),
        (instant(begin_ns + HOUR_NS), 0.5),
        (instant(begin_ns + 2 * HOUR_NS - MINUTE_NS), 0.5),
        (instant(begin_ns + 2 * HOUR_NS), 0.25),
        (instant(begin_ns + 3 * HOUR_NS), 0.25),
    ]


async def test_too_many_minutes_leave_the_hours_and_too_many_hours_are_refused(bus: Bus) -> None:
    begin_ns = time.time_ns() - HOUR_NS
    minutes = [
        minute(begin_ns + number * SECOND_NS, "host", "n1", cpu_utilization_ratio=0.5)
        for number in range(50)
    ]
    await put(bus, hour(begin_ns, "node", "n1"), *minutes)
    room = len(msgspec.json.encode(hour(begin_ns, "node", "n1"))) + 100

    hours = await analysis(
        bus, "utilization", node="n1", settings=QuerySettings(history_scan_bytes=room)
    )

    assert [row.period_seconds for row in hours.rows] == [3600.0]
    with pytest.raises(RequestError, match=r"413 .*name a node, a pool or a scope"):
        await analysis(
            bus, "utilization", node="n1", settings=QuerySettings(history_scan_bytes=100)
        )


async def test_too_many_events_are_answered_from_rollups_or_refused(bus: Bus) -> None:
    size = len(msgspec.json.encode(like(Utilization, scope="pool", id="chat")))
    few = QuerySettings(history_scan_bytes=2 * size)
    await put(bus, *[like(Utilization, scope="pool", id="chat")] * 3)
    await put(bus, *[like(Opportunity, scope="pool", id="chat")] * 30)

    with pytest.raises(RequestError, match=r"413 .*name a node, a pool or a scope"):
        await analysis(bus, "utilization", settings=few)
    with pytest.raises(RequestError, match=r"413 .*name a node, a pool or a scope"):
        await analysis(bus, "opportunity", settings=few)
    minutes = minute(time.time_ns() - HOUR_NS, "pool", "chat", gpu_utilization_ratio=0.5)
    await put(bus, minutes)

    assert (await analysis(bus, "utilization", settings=few)).source == "rollups"


async def test_an_empty_answer_says_why(bus: Bus) -> None:
    nothing = await analysis(bus, "waste", pool="chat")
    await put(bus, hour(time.time_ns() - 50 * HOUR_NS), like(Waste, scope="pool", id="chat"))
    event, rollup = [(await stored(bus, stream, "*.>"))[0] for stream in ("EVENTS", "ROLLUPS")]
    before = await analysis(
        bus,
        "waste",
        pool="chat",
        start=instant(time.time_ns() - 3 * HOUR_NS),
        end=instant(time.time_ns() - 2 * HOUR_NS),
    )

    assert (nothing.rows, nothing.matched, nothing.source) == ([], 0, "events")
    assert nothing.text == (
        "no waste of pool 'chat' is recorded: there is none in FLEET_EVENTS and FLEET_ROLLUPS"
    )
    assert before.text == (
        "no waste of pool 'chat' is recorded in this range; FLEET_EVENTS reaches back to "
        f"{instant(event.stored_ns):%F %T}Z and FLEET_ROLLUPS to {instant(rollup.stored_ns):%F %T}Z"
    )


async def test_a_foreign_message_is_skipped_and_counted(bus: Bus) -> None:
    counters: Counter[str] = Counter()
    for number, subject in enumerate(
        ["analysis.waste.pool.chat", "analysis.waste.galaxy.x", "rollup.usage.pool.chat"]
    ):
        await bus.publish_raw(subject, b"\xff[", message_id=f"foreign-{number}")
    await put(bus, like(Waste, scope="pool", id="chat"))

    reply = await analysis(bus, "waste", counters=counters)

    assert where(reply.rows) == [("pool", "chat")]
    assert counters["foreign_messages_total"] == 3


NOW_NS = 1_800_000_000 * SECOND_NS
BAD_RANGES = [
    pytest.param(
        {"start": "2027-01-15T07:00:00Z", "end": "2027-01-15T07:00:00Z"},
        "400 start: must be before end",
        id="start at the end",
    ),
    pytest.param(
        {"start": "2027-01-15T07:00:01Z", "end": "2027-01-15T07:00:00Z"},
        "400 start: must be before end",
        id="start after the end",
    ),
    pytest.param({"start": "2027-01-15T07:00:00Z", "seconds": 5}, "400 seconds: ", id="both"),
    pytest.param({"end": "2027-01-15T08:00:06Z"}, "400 end: ", id="future end"),
    pytest.param({"start": "2027-01-15T08:00:01Z"}, "400 start: ", id="future start"),
    pytest.param({"end": "1960-01-01T00:00:00Z"}, "400 end: lies before 1970", id="long ago"),
    pytest.param({"seconds": 91 * 86_400}, r"400 .*seconds", id="91 days"),
    pytest.param(
        {"start": "2026-10-16T08:00:00Z"}, "400 start: more than 90 days", id="91 days by start"
    ),
    pytest.param({"start": "0001-01-01T00:00:00Z"}, "400 start: more than 90 days", id="year 1"),
    pytest.param({"seconds": 0}, r"400 .*seconds", id="no time at all"),
    pytest.param({"limit": 10_001}, r"400 .*limit", id="too many"),
    pytest.param({"from": 1}, r"400 .*from", id="unknown field"),
]


@pytest.mark.parametrize(
    ("subject", "fixed"),
    [
        ("api.analysis.history", {"kind": "waste"}),
        ("api.cache.history", {}),
        ("api.optimize.history", {}),
        ("api.gpu.history", {}),
        ("api.system.history", {}),
        ("api.engine.history", {}),
    ],
)
@pytest.mark.parametrize(("fields", "text"), BAD_RANGES)
async def test_a_bad_range_names_the_field(
    bus: Bus, subject: str, fixed: dict[str, Any], fields: dict[str, Any], text: str
) -> None:
    with pytest.raises(RequestError, match=text):
        await ask(bus, subject, fixed | fields, clock=lambda: NOW_NS)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        pytest.param({}, r"400 .*kind", id="no kind"),
        pytest.param({"kind": "wastes"}, r"400 .*kind", id="unknown kind"),
        pytest.param({"kind": "waste", "node": "n", "pool": "p"}, "400 node and pool", id="two"),
        pytest.param({"kind": "waste", "node": "n", "scope": "pool"}, "400 scope: ", id="scope"),
        pytest.param({"kind": "waste", "node": "n.*"}, r"400 .*node", id="no token"),
    ],
)
async def test_a_bad_place_or_kind_names_the_field(
    bus: Bus, fields: dict[str, Any], text: str
) -> None:
    with pytest.raises(RequestError, match=text):
        await ask(bus, "api.analysis.history", fields)


@pytest.mark.parametrize(
    ("subject", "fixed"),
    [
        ("api.analysis.history", {"kind": "waste"}),
        ("api.cache.history", {}),
        ("api.optimize.history", {}),
    ],
)
async def test_a_server_that_does_not_answer_is_503(
    bus: Bus, nats: NatsServer, subject: str, fixed: dict[str, Any]
) -> None:
    nats.pause()
    settings = HandlersSettings(queries=QuerySettings(history_timeout_seconds=0.2))

    with pytest.raises(RequestError, match="503 the history could not be read in time"):
        await ask(bus, subject, fixed, settings=settings)
    nats.resume()


async def test_many_events_leave_the_loop_to_others(bus: Bus) -> None:
    payload = msgspec.json.encode(like(Utilization, resources=[], bottlenecks=[], gpus=[]))
    places, each = 50, 200
    for number in range(each):
        await asyncio.gather(
            *(
                bus.publish_raw(
                    f"analysis.utilization.node.n{place}", payload, message_id=f"{place}.{number}"
                )
                for place in range(places)
            )
        )
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            began = time.monotonic()
            await asyncio.sleep(0)
            longest = max(longest, time.monotonic() - began)

    watching = asyncio.create_task(watch())
    began = time.monotonic()
    reply = await analysis(bus, "utilization", limit=10_000)
    watching.cancel()

    assert reply.matched == places * each
    assert len({row.id for row in reply.rows}) == places
    assert longest < (time.monotonic() - began) / 2


async def caches(
    bus: Bus, *, settings: QuerySettings | None = None, **fields: Any
) -> CacheHistoryReply:
    payload = await ask(
        bus,
        "api.cache.history",
        CacheHistoryRequest(**fields),
        settings=HandlersSettings(queries=settings or QuerySettings()),
    )
    return msgspec.json.decode(payload, type=CacheHistoryReply)


def cache(instance: str, namespace: str, **fields: Any) -> CacheMetrics:
    return CacheMetrics(
        instance=instance, namespace=namespace, observed_at=instant(time.time_ns()), **fields
    )


async def test_caches_come_from_the_raw_metrics_each_namespace_by_itself(bus: Bus) -> None:
    for number in range(10):
        await put(
            bus,
            cache("c1", "chat", entries=number, hit_ratio=None),
            cache("c1", "batch", entries=100 + number),
            cache("lm", "lmcache", node="n1", pool="p", used_bytes=5),
        )

    everything = await caches(bus)
    thinned = await caches(bus, limit=6)
    one = await caches(bus, instance="c1", namespace="batch")
    other = await caches(bus, namespace="lmcache", limit=1)

    assert (everything.source, everything.matched) == ("metrics", 30)
    assert everything.samples[0].values == {"entries": 0.0}
    assert {(s.instance, s.namespace) for s in one.samples} == {("c1", "batch")}
    assert one.matched == 10
    kept = [(s.namespace, s.values.get("entries")) for s in thinned.samples]
    assert kept == [("chat", 0.0), ("batch", 100.0), ("lmcache", None),
                    ("chat", 9.0), ("batch", 109.0), ("lmcache", None)]  # fmt: skip
    (sample,) = other.samples
    assert (other.matched, sample.instance, sample.node, sample.pool) == (10, "lm", "n1", "p")


async def test_caches_come_from_minutes_where_the_metrics_are_gone(bus: Bus) -> None:
    begin_ns = time.time_ns() // MINUTE_NS * MINUTE_NS - 3 * MINUTE_NS
    handler = RollupHandler(RollupSettings(), "fleet")
    for second, (name, entries) in enumerate([("chat", 4), ("chat", 8), ("batch", 100)]):
        now = Moment(begin_ns + second * SECOND_NS, second)
        handler.handle(cache("c1", name, entries=entries), now)
    minutes = [emit.message for emit in handler.tick(Moment(begin_ns + 2 * MINUTE_NS, 9))]
    await put(bus, *minutes)

    everything = await caches(bus, instance="c1")
    chat = await caches(bus, instance="c1", namespace="chat")
    other = await caches(bus, instance="c2")

    assert [one.subject() for one in minutes] == ["rollup.cache.c1-batch", "rollup.cache.c1-chat"]
    assert (everything.source, everything.matched) == ("rollups", 2)
    (sample,) = chat.samples
    assert (sample.at, sample.instance, sample.namespace) == (instant(begin_ns), "c1", "chat")
    assert sample.values == {"entries": {"min": 4, "mean": 6, "max": 8, "p95": 8, "count": 2}}
    assert other.text.startswith("no cache metric of instance 'c2' is recorded in this range")


async def test_many_gpus_minutes_are_thinned_to_what_a_message_holds(bus: Bus) -> None:
    begin_ns = time.time_ns() - HOUR_NS
    metrics = {f"{'m' * 60}{number}": 0.5 for number in range(20)}
    await put(
        bus,
        *(
            msgspec.structs.replace(
                minute(begin_ns + number * SECOND_NS, "gpu", f"n1-g{number % 2}", **metrics),
                node="n1",
            )
            for number in range(600)
        ),
    )

    payload = await ask(bus, "api.gpu.history", {"seconds": 7200})
    reply = msgspec.json.decode(payload, type=HistoryReply)

    assert reply.matched == 600
    assert REPLY_BYTES / 2 < len(payload) < REPLY_BYTES + 1000
    counts = Counter(sample.gpu for sample in reply.samples)
    assert abs(counts["g0"] - counts["g1"]) <= 1


async def test_an_empty_history_of_metrics_says_why(bus: Bus) -> None:
    reply = msgspec.json.decode(await ask(bus, "api.gpu.history.n1"), type=HistoryReply)

    assert reply.text == (
        "no GPU metric of node 'n1' is recorded: there is none in FLEET_METRICS and FLEET_ROLLUPS"
    )


async def advised(bus: Bus, **fields: Any) -> AdviceHistoryReply:
    payload = await ask(bus, "api.optimize.history", AdviceHistoryRequest(**fields))
    return msgspec.json.decode(payload, type=AdviceHistoryReply)


async def test_advice_is_told_with_what_became_of_it(bus: Bus) -> None:
    first, second, third = (advice(number) for number in range(3))
    fourth = advice(4, supersedes=third.recommendation_id)
    other = advice(5, pool="other", action="consolidate")
    await tell(bus, first, second, third, fourth, other, first)
    await tell(bus, decision(first, "rejected", reason="no"), decision(second))
    await tell(bus, *(step(second, phase) for phase in ("requested", "started", "succeeded")))
    await bus.publish_raw("decision.accepted.p", b"[]", message_id="foreign")

    everything = await advised(bus)
    states = {row.life.advice.recommendation_id: row.state for row in everything.rows}

    assert states == {
        first.recommendation_id: "rejected",
        second.recommendation_id: "executed",
        third.recommendation_id: "superseded",
        fourth.recommendation_id: "open",
        other.recommendation_id: "open",
    }
    assert [row.at for row in everything.rows] == sorted(row.at for row in everything.rows)
    assert everything.rows[0].closed.endswith("rejected it: no")
    one = await advised(bus, pool="other")
    assert [row.life.advice.pool for row in one.rows] == ["other"]
    assert (await advised(bus, action="consolidate")).matched == 1
    newest = await advised(bus, limit=2)
    assert (newest.matched, [row.life.advice.recommendation_id for row in newest.rows]) == (
        5,
        [fourth.recommendation_id, other.recommendation_id],
    )


async def test_what_was_decided_after_the_range_counts_and_later_advice_does_not(
    bus: Bus,
) -> None:
    early, late = advice(1), advice(2)
    await tell(bus, early, late, decision(early, "rejected"))
    begin, end = (
        one.stored_ns // 1000 * 1000
        for one in await stored(bus, "RECOMMENDATIONS", "recommendation.>")
    )

    reply = await advised(bus, start=instant(begin), end=instant(end))

    assert [(row.life.advice.recommendation_id, row.state) for row in reply.rows] == [
        (early.recommendation_id, "rejected")
    ]
    empty = await advised(bus, pool="nowhere")
    assert empty.text == (
        "no recommendation on pool 'nowhere' is recorded: there is none in FLEET_RECOMMENDATIONS"
    )
