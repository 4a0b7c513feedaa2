"""History, utilization and standing advice, read back from real streams."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from typing import Any

import msgspec
import pytest
import structlog

from agent.bus import Bus
from handlers.foreign import ForeignMessages
from handlers.queries.history import History
from handlers.queries.range_reader import SCANS
from handlers.settings import HandlersSettings, QuerySettings
from schemas.analysis import Utilization
from schemas.api import HistoryReply, HistoryRequest, RecommendationsReply, UtilizationReply
from schemas.consolidation import Consolidation, ConsolidationsReply
from schemas.message import Message
from schemas.metrics import Rollup, Summary
from schemas.protocols import Call, Delivery, RequestError
from schemas.scaling import Decision, Execution, HeldAdvice, Recommendation
from schemas.units import SECOND_NS, instant, paired
from tests.support.asking import ask
from tests.support.samples import engine, gpu, host
from tests.support.server import NatsServer

pytestmark = pytest.mark.bus

MINUTE_NS = 60 * SECOND_NS


async def history(
    bus: Bus,
    subject: str,
    request: HistoryRequest | None = None,
    *,
    settings: QuerySettings | None = None,
    clock: Callable[[], int] = time.time_ns,
    counters: Counter[str] | None = None,
) -> HistoryReply:
    every = HandlersSettings(queries=settings or QuerySettings())
    payload = await ask(bus, subject, request, settings=every, clock=clock, counters=counters)
    return msgspec.json.decode(payload, type=HistoryReply)


async def recorded(bus: Bus, *messages: Message) -> None:
    """Publish and wait until the stream holds them all."""
    for index, message in enumerate(messages):
        await bus.publish_raw(
            message.subject(),
            msgspec.json.encode(message),
            message_id=f"{type(message).__name__}.{index}.{time.time_ns()}",
        )


def minute(
    minute_ns: int, kind: str = "gpu", source: str = "n1-g0", node: str | None = "n1"
) -> Rollup:
    return Rollup(
        kind=kind,  # type: ignore[arg-type]  # one of the literals
        id=source,
        node=node,
        minute_at=instant(minute_ns),
        metrics={"power_watts": Summary(min=1, mean=2, max=3, p95=3, count=12)},
        energy_joules=120.0,
    )


async def test_gpu_history_comes_from_the_raw_metrics(bus: Bus) -> None:
    await recorded(
        bus,
        gpu("g0", power_watts=100.0),
        gpu("g1", power_watts=200.0),
        gpu("g0", node="n2", simulated=True),
        host("n1", cpu=0.5),
    )

    everything = await history(bus, "api.gpu.history")
    one_node = await history(bus, "api.gpu.history.n1")
    one_gpu = await history(bus, "api.gpu.history", HistoryRequest(node="n1", gpu="g1"))

    assert (everything.source, everything.matched) == ("metrics", 3)
    assert [(s.node, s.gpu, s.simulated) for s in everything.samples] == [
        ("n1", "g0", False),
        ("n1", "g1", False),
        ("n2", "g0", True),
    ]
    assert [s.gpu for s in one_node.samples] == ["g0", "g1"]
    assert [s.values for s in one_gpu.samples] == [{"power_watts": 200.0}]


async def test_engine_history_comes_from_the_raw_metrics(bus: Bus) -> None:
    await recorded(
        bus,
        engine("e0", waiting=3, kv=0.5, ttft_p95_seconds=0.25),
        engine("e1", waiting=None),
        engine("e0", "n2", running=1, simulated=True),
        gpu("e0"),
    )

    everything = await history(bus, "api.engine.history")
    one_node = await history(bus, "api.engine.history.n1")
    one = await history(bus, "api.engine.history", HistoryRequest(node="n1", engine="e0"))

    assert (everything.source, everything.matched) == ("metrics", 3)
    assert [(s.node, s.engine, s.gpu, s.simulated) for s in everything.samples] == [
        ("n1", "e0", None, False),
        ("n1", "e1", None, False),
        ("n2", "e0", None, True),
    ]
    assert [s.engine for s in one_node.samples] == ["e0", "e1"]
    assert [s.values for s in one.samples] == [
        {"requests_waiting": 3, "kv_cache_usage_ratio": 0.5, "ttft_p95_seconds": 0.25}
    ]


async def test_system_history_of_one_node(bus: Bus) -> None:
    await recorded(bus, host("n1", cpu=0.25, memory=0.5), host("n2", cpu=0.75))

    reply = await history(bus, "api.system.history.n1")

    (sample,) = reply.samples
    assert sample.node == "n1"
    assert sample.values["cpu_utilization_ratio"] == 0.25


async def test_more_than_the_limit_is_thinned_evenly(bus: Bus) -> None:
    await recorded(bus, *(host(cpu=index / 100) for index in range(100)))

    reply = await history(bus, "api.system.history", HistoryRequest(limit=4))

    assert reply.matched == 100
    assert [s.values["cpu_utilization_ratio"] for s in reply.samples] == [0.0, 0.33, 0.66, 0.99]


@pytest.mark.parametrize(
    ("limit", "each"),
    [(32, [4] * 8), (12, [2, 2, 2, 2, 1, 1, 1, 1]), (3, [1, 1, 1, 0, 0, 0, 0, 0])],
)
async def test_every_gpu_keeps_its_share_of_a_thinned_history(
    bus: Bus, limit: int, each: list[int]
) -> None:
    rounds = range(20)
    await recorded(
        bus, *(gpu(f"g{i}", power_watts=float(number)) for number in rounds for i in range(8))
    )

    reply = await history(bus, "api.gpu.history", HistoryRequest(limit=limit))

    watts = [[s.values["power_watts"] for s in reply.samples if s.gpu == f"g{i}"] for i in range(8)]
    assert [len(one) for one in watts] == each
    assert {one[-1] for one in watts if one} == {19.0}
    assert [s.at for s in reply.samples] == sorted(s.at for s in reply.samples)


async def test_a_range_is_cut_at_both_ends(bus: Bus) -> None:
    await recorded(bus, host("before"))
    start_ns = time.time_ns()
    await recorded(bus, host("inside"))
    end_ns = time.time_ns()
    await recorded(bus, host("after"))

    request = HistoryRequest(start=instant(start_ns), end=instant(end_ns + 1000))
    reply = await history(bus, "api.system.history", request)

    assert [sample.node for sample in reply.samples] == ["inside"]


@pytest.mark.parametrize(("later_ns", "found"), [(0, 0), (1, 1)], ids=["at its end", "within"])
async def test_a_metric_at_the_border_of_two_ranges_is_in_one(
    bus: Bus, later_ns: int, found: int
) -> None:
    await recorded(bus, gpu(power_watts=1.0))
    (stored_ns,) = [one.stored_ns async for one in bus.read("METRICS", subject=">")]

    reply = await history(bus, "api.gpu.history", clock=lambda: stored_ns + later_ns)

    assert len(reply.samples) == found


async def test_where_raw_metrics_no_longer_reach_rollups_answer(bus: Bus) -> None:
    await recorded(bus, gpu(power_watts=1.0), minute(time.time_ns() - MINUTE_NS))
    await recorded(bus, gpu(power_watts=2.0))

    before = await history(bus, "api.gpu.history")
    await bus.jetstream.purge_stream("FLEET_METRICS", keep=1)
    after = await history(bus, "api.gpu.history")
    recent = await history(bus, "api.gpu.history", HistoryRequest(seconds=0.001))

    assert (before.source, before.matched) == ("metrics", 2)
    assert (after.source, after.matched) == ("rollups", 1)
    assert recent.source == "metrics"  # the raw metrics reach back this far


async def test_hosts_are_read_from_rollups_too(bus: Bus) -> None:
    earlier_ns = time.time_ns() - 5 * MINUTE_NS
    await recorded(
        bus,
        minute(earlier_ns, "host", "n1", "n1"),
        minute(earlier_ns, "host", "n2", "n2"),
        minute(earlier_ns, "pool", "chat", None),
    )

    reply = await history(bus, "api.system.history.n1", HistoryRequest(seconds=3600))

    (sample,) = reply.samples
    assert (reply.source, reply.matched, sample.node) == ("rollups", 1, "n1")
    assert sample.values["power_watts"]["p95"] == 3
    assert sample.values["energy_joules"] == 120.0


@pytest.mark.parametrize("kind", ["gpu", "engine"])
async def test_parts_are_read_from_rollups_by_node_and_part(bus: Bus, kind: str) -> None:
    now_ns = time.time_ns()
    earlier_ns = now_ns - 5 * MINUTE_NS
    other = "engine" if kind == "gpu" else "gpu"
    await recorded(
        bus,
        minute(earlier_ns, kind),
        minute(earlier_ns, kind, source="n1-g1"),
        minute(earlier_ns, kind, source="n2-g0", node="n2"),
        minute(earlier_ns, other),
        minute(now_ns - 120 * MINUTE_NS, kind),
    )
    g1: dict[str, Any] = {kind: "g1"}

    node = await history(bus, f"api.{kind}.history.n1", HistoryRequest(seconds=3600))
    one = await history(bus, f"api.{kind}.history.n1", HistoryRequest(seconds=3600, **g1))
    every = await history(bus, f"api.{kind}.history", HistoryRequest(seconds=3600, **g1))

    assert [(s.node, getattr(s, kind)) for s in node.samples] == [("n1", "g0"), ("n1", "g1")]
    assert [(s.node, getattr(s, kind)) for s in one.samples] == [("n1", "g1")]
    assert {getattr(s, other) for s in node.samples} == {None}
    assert every.samples == one.samples


@pytest.mark.parametrize("kind", ["gpu", "engine"])
async def test_minutes_of_names_with_dashes_are_told_apart_also_older_ones(
    bus: Bus, kind: str
) -> None:
    earlier_ns = time.time_ns() - 5 * MINUTE_NS
    pairs = [("a", "b-c"), ("a-b", "c")]
    for node, part in pairs:
        # As older versions recorded it, then as it is now.
        older = minute(earlier_ns, kind, f"{node}-{part}", node)
        today = minute(earlier_ns + MINUTE_NS, kind, paired(node, part), node)
        await recorded(bus, older, msgspec.structs.replace(today, **{kind: part}))

    no_part: dict[str, Any] = {}
    found = [
        await history(bus, f"api.{kind}.history.{node}", HistoryRequest(seconds=3600, **part))
        for node, name in pairs
        for part in ({kind: name}, no_part)
    ]

    of = [[(one.node, getattr(one, kind)) for one in reply.samples] for reply in found]
    assert of == [[pair] * 2 for pair in pairs for _ in range(2)]
    assert [one.at for one in found[0].samples] == [
        instant(earlier_ns),
        instant(earlier_ns + MINUTE_NS),
    ]


async def test_why_a_part_has_no_history_counts_older_minutes(bus: Bus) -> None:
    older = minute(time.time_ns() - 5 * MINUTE_NS, "gpu", "a-b-c", "a")
    await recorded(bus, older)

    asked = HistoryRequest(seconds=0.001, gpu="b-c")
    reply = await history(bus, "api.gpu.history.a", asked)

    assert reply.samples == []
    assert "FLEET_ROLLUPS reaches back to" in reply.text


async def test_too_much_raw_is_answered_from_rollups_and_too_much_of_those_refused(
    bus: Bus,
) -> None:
    await recorded(bus, *(host(cpu=0.5) for _ in range(10)))
    raw_bytes = 10 * len(msgspec.json.encode(host(cpu=0.5)))
    await recorded(bus, minute(time.time_ns() - MINUTE_NS, "host", "n1", "n1"))

    exact = await history(
        bus, "api.system.history", settings=QuerySettings(history_scan_bytes=raw_bytes)
    )
    less = await history(
        bus, "api.system.history", settings=QuerySettings(history_scan_bytes=raw_bytes - 1)
    )

    assert (exact.source, less.source) == ("metrics", "rollups")
    with pytest.raises(RequestError, match=r"413 .*more than 10 bytes"):
        await history(bus, "api.system.history", settings=QuerySettings(history_scan_bytes=10))


async def test_an_empty_installation_has_an_empty_history(bus: Bus) -> None:
    reply = await history(bus, "api.gpu.history")

    assert (reply.source, reply.samples, reply.matched) == ("rollups", [], 0)


async def test_foreign_messages_hide_no_others_and_are_counted_and_logged_once(bus: Bus) -> None:
    counters: Counter[str] = Counter()
    for number, payload in enumerate((b"\xff not json", b"[]")):
        await bus.publish_raw("metrics.host.n1", payload, message_id=f"host-{number}")
        await bus.publish_raw("recommendation.scale_up.p", payload, message_id=f"advice-{number}")
    await recorded(bus, host(cpu=0.5))

    with structlog.testing.capture_logs() as logged:
        reply = await history(bus, "api.system.history", counters=counters)
        await ask(bus, "api.optimize.recommendations", counters=counters)

    assert len(reply.samples) == 1
    assert counters == {"foreign_messages_total": 2 + 1}  # advice: the last of each subject
    assert [(line["event"], line["subject"]) for line in logged] == [
        ("message_passed_over", "metrics.host.n1"),
        ("message_passed_over", "recommendation.scale_up.p"),
    ]


NOW_NS = 1_800_000_000 * SECOND_NS


@pytest.mark.parametrize(
    ("subject", "request_", "text"),
    [
        pytest.param(
            "api.system.history",
            {"start": "2027-01-15T07:00:00Z", "seconds": 5},
            "400 seconds: ",
            id="start and seconds",
        ),
        pytest.param(
            "api.system.history",
            {"start": "2027-01-15T08:00:01Z"},
            "400 start: ",
            id="future start",
        ),
        pytest.param(
            "api.system.history", {"end": "2027-01-15T08:00:06Z"}, "400 end: ", id="future end"
        ),
        pytest.param(
            "api.gpu.history",
            {"start": "2027-01-15T07:00:00Z", "end": "2027-01-15T07:00:00Z"},
            "400 start: must be before end",
            id="empty range",
        ),
        pytest.param("api.system.history", {"gpu": "g0"}, "400 gpu: ", id="GPU of a system"),
        pytest.param("api.gpu.history", {"engine": "e0"}, "400 engine: ", id="engine of a GPU"),
        pytest.param("api.engine.history", {"gpu": "g0"}, "400 gpu: ", id="GPU of an engine"),
        pytest.param("api.gpu.history.n1", {"node": "n2"}, "400 node: ", id="two nodes"),
        pytest.param("api.gpu.history", {"from": 1}, "400 .*from", id="unknown field"),
        pytest.param("api.gpu.history", {"seconds": 0}, "400 .*seconds", id="no time at all"),
    ],
)
async def test_a_bad_range_names_the_field(
    bus: Bus, subject: str, request_: dict[str, object], text: str
) -> None:
    with pytest.raises(RequestError, match=text):
        await ask(bus, subject, request_, clock=lambda: NOW_NS)


async def test_a_stream_that_is_not_there_is_503(bus: Bus) -> None:
    await bus.jetstream.delete_stream("FLEET_METRICS")

    with pytest.raises(RequestError, match="503 the history cannot be read now"):
        await history(bus, "api.gpu.history")


async def test_a_server_that_does_not_answer_is_503(bus: Bus, nats: NatsServer) -> None:
    nats.pause()
    settings = QuerySettings(history_timeout_seconds=0.2)

    with pytest.raises(RequestError, match="503 the history could not be read in time"):
        await history(bus, "api.gpu.history", settings=settings)
    with pytest.raises(RequestError, match="503 the stream could not be read now"):
        await ask(bus, "api.optimize.recommendations", settings=HandlersSettings(queries=settings))
    nats.resume()


def judgement(scope: str, name: str, decided_ns: int, level: str = "low") -> Utilization:
    return Utilization(
        scope=scope,  # type: ignore[arg-type]  # one of the literals
        id=name,
        decided_at=instant(decided_ns),
        window_seconds=60,
        level=level,  # type: ignore[arg-type]  # one of the literals
        health="healthy",
        efficiency_ratio=0.5,
        resources=[],
        bottlenecks=[],
    )


@pytest.mark.parametrize(
    ("request_", "found"),
    [
        pytest.param({}, [("fleet", "all"), ("node", "n1"), ("pool", "chat")], id="all"),
        pytest.param({"node": "n1"}, [("node", "n1")], id="node"),
        pytest.param({"pool": "chat"}, [("pool", "chat")], id="pool"),
        pytest.param({"pool": "n1"}, [], id="a node is not a pool"),
    ],
)
async def test_utilization_is_the_last_judgement_of_each(
    bus: Bus, request_: dict[str, str], found: list[tuple[str, str]]
) -> None:
    now_ns = time.time_ns()
    await recorded(
        bus,
        judgement("node", "n1", now_ns, "idle"),
        judgement("node", "n1", now_ns, "high"),
        judgement("pool", "chat", now_ns),
        judgement("fleet", "all", now_ns),
        judgement("node", "gone", now_ns - 2 * 3600 * SECOND_NS),
    )

    payload = await ask(bus, "api.analysis.utilization", request_)

    reply = msgspec.json.decode(payload, type=UtilizationReply)
    assert [(row.scope, row.id) for row in reply.rows] == found
    assert all(row.level == "high" for row in reply.rows if row.id == "n1")
    assert bool(reply.text) == (not found)


def advice(action: str, pool: str, number: int, **fields: object) -> Recommendation:
    now_ns = time.time_ns()
    values: dict[str, object] = {
        "action": action,
        "pool": pool,
        "recommendation_id": f"{pool}.{action}.{number}",
        "idempotency_key": f"{pool}.{action}.{number}",
        "decided_at": instant(now_ns),
        "expires_at": instant(now_ns + MINUTE_NS),
        "replicas_from": 1,
        "replicas_to": 2,
        "reason": "requests_waiting",
        "text": "",
        "evidence": [],
        "confidence_ratio": 1.0,
        "risk": "low",
        "effective_after_seconds": 0.0,
    }
    return msgspec.convert(values | fields, Recommendation)


def verdict(of: Recommendation, word: str) -> Decision:
    return Decision(
        verdict=word,  # type: ignore[arg-type]  # one of the literals
        pool=of.pool,
        recommendation_id=of.recommendation_id,
        decided_at=of.decided_at,
        decided_by="test",
    )


def succeeded(of: Recommendation, *, dry_run: bool) -> Execution:
    return Execution(
        phase="succeeded",
        pool=of.pool,
        recommendation_id=of.recommendation_id,
        idempotency_key=of.idempotency_key,
        observed_at=of.decided_at,
        executed_by="test",
        dry_run=dry_run,
    )


async def test_only_standing_advice_is_listed(bus: Bus) -> None:
    standing = advice("scale_up", "a", 1)
    accepted = advice("scale_up", "b", 1)
    rehearsed = advice("scale_up", "c", 1)
    rejected = advice("scale_up", "d", 1)
    expired = advice("scale_up", "e", 1, expires_at=instant(time.time_ns() - SECOND_NS))
    superseded = advice("scale_up", "f", 1)
    successor = advice("scale_down", "f", 2, supersedes=superseded.recommendation_id)
    done = advice("scale_up", "g", 1)
    await recorded(
        bus, standing, accepted, rehearsed, rejected, expired, superseded, successor, done
    )
    await recorded(bus, verdict(accepted, "accepted"), verdict(rejected, "rejected"))
    await recorded(bus, succeeded(rehearsed, dry_run=True), succeeded(done, dry_run=False))

    everything = msgspec.json.decode(
        await ask(bus, "api.optimize.recommendations"), type=RecommendationsReply
    )
    one_pool = msgspec.json.decode(
        await ask(bus, "api.optimize.recommendations", {"pool": "f"}), type=RecommendationsReply
    )

    assert {row.pool for row in everything.rows} == {"a", "b", "c", "f"}
    assert [row.recommendation_id for row in one_pool.rows] == ["f.scale_down.2"]


@pytest.mark.parametrize("is_last", [True, False], ids=["back last", "newer last"])
async def test_advice_to_go_back_and_other_advice_on_its_subject_stand_both(
    bus: Bus, is_last: bool
) -> None:
    up, down = advice("scale_up", "p", 1), advice("scale_down", "p", 2)
    back = advice("scale_down", "p", 1, recommendation_id=f"{up.recommendation_id}.rollback",
                  reason="rollback")  # fmt: skip
    failed = msgspec.structs.replace(
        succeeded(up, dry_run=False), phase="failed", rollback=back.recommendation_id
    )
    older = advice("scale_down", "p", 0)
    await recorded(bus, older, *([down, back] if is_last else [back, down]), failed, failed)
    await recorded(bus, verdict(older, "superseded"))

    payload = await ask(bus, "api.optimize.scale_down", {"pool": "p"})
    reply = msgspec.json.decode(payload, type=RecommendationsReply)
    await recorded(bus, verdict(down, "expired"), verdict(back, "rejected"))
    after = await ask(bus, "api.optimize.scale_down", {"pool": "p"})

    listed = sorted(row.recommendation_id for row in reply.rows)
    assert listed == sorted([back.recommendation_id, down.recommendation_id])
    assert msgspec.json.decode(after, type=RecommendationsReply).rows == []


@pytest.mark.parametrize("number", [2, 25], ids=["a few", "many"])
async def test_advice_that_stands_for_long_is_closed_by_what_was_said_of_its_pool(
    bus: Bus, number: int
) -> None:
    hour_ago = instant(time.time_ns() - 60 * MINUTE_NS)
    old = [advice("tune_cache", f"p{n}", 1, decided_at=hour_ago) for n in range(number)]
    fresh, gone = advice("scale_up", "p0", 1), advice("scale_up", "p1", 1)
    await recorded(bus, *old, fresh, gone)
    await recorded(bus, verdict(old[0], "rejected"), verdict(gone, "rejected"))

    reply = msgspec.json.decode(
        await ask(bus, "api.optimize.recommendations"), type=RecommendationsReply
    )

    left = {one.recommendation_id for one in old[1:]} | {fresh.recommendation_id}
    assert {row.recommendation_id for row in reply.rows} == left


async def test_advice_is_listed_by_what_it_is_to_change(bus: Bus) -> None:
    up = [advice("scale_up", pool, 1) for pool in ("a", "b", "c")]
    rejected, down = advice("scale_up", "d", 1), advice("scale_down", "e", 1)
    await recorded(bus, *up, rejected, down, verdict(rejected, "rejected"))

    async def listed(action: str, **fields: object) -> RecommendationsReply:
        payload = await ask(bus, f"api.optimize.{action}", fields)
        return msgspec.json.decode(payload, type=RecommendationsReply)

    more, two = await listed("scale_up"), await listed("scale_up", limit=2)
    assert {row.pool for row in more.rows} == {"a", "b", "c"}
    assert (len(two.rows), two.total) == (2, 3)
    assert [row.pool for row in (await listed("scale_up", pool="b")).rows] == ["b"]
    assert (await listed("scale_down")).rows == [down]
    assert (await listed("scale_down", pool="a")).text == "no advice to scale down stands"
    with pytest.raises(RequestError, match="400 node: "):
        await listed("scale_down", node="n1")


async def test_no_advice_says_so(bus: Bus) -> None:
    payload = await ask(bus, "api.optimize.recommendations")

    reply = msgspec.json.decode(payload, type=RecommendationsReply)
    assert (reply.rows, reply.text) == ([], "no advice stands")


async def test_advice_once_rejected_stays_so_when_others_of_its_pool_are_too(bus: Bus) -> None:
    up, down = advice("scale_up", "p", 1), advice("scale_down", "p", 2)
    await recorded(bus, up, down, verdict(up, "rejected"), verdict(down, "rejected"))

    reply = msgspec.json.decode(
        await ask(bus, "api.optimize.recommendations"), type=RecommendationsReply
    )

    assert reply.rows == []


def held(pool: str, *, minutes_ago: float = 0.0, reason: str | None = "failure") -> HeldAdvice:
    decided_ns = time.time_ns() - round(minutes_ago * MINUTE_NS)
    return HeldAdvice(
        pool=pool,
        decided_at=instant(decided_ns),
        action="scale_down",
        replicas_from=4,
        replicas_to=3,
        reason=reason,  # type: ignore[arg-type]  # one of the literals
        text="too few",
    )


async def test_what_is_held_of_late_is_listed_by_pool(bus: Bus) -> None:
    await recorded(
        bus, held("b"), held("a", minutes_ago=15), held("gone", minutes_ago=25), held("c")
    )
    await recorded(bus, held("c", reason=None))

    everything = msgspec.json.decode(
        await ask(bus, "api.optimize.recommendations"), type=RecommendationsReply
    )
    one_pool = msgspec.json.decode(
        await ask(bus, "api.optimize.recommendations", {"pool": "b"}), type=RecommendationsReply
    )

    assert [row.pool for row in everything.held or ()] == ["a", "b"]
    assert [row.pool for row in one_pool.held or ()] == ["b"]


async def test_recommendations_have_no_node(bus: Bus) -> None:
    with pytest.raises(RequestError, match="400 node: "):
        await ask(bus, "api.optimize.recommendations", {"node": "n1"})


def plan(pool: str, usd: float | None, ago_seconds: float = 0.0) -> Consolidation:
    return Consolidation(
        id=pool,
        decided_at=instant(time.time_ns() - round(ago_seconds * SECOND_NS)),
        history_seconds=86400.0,
        nodes=3,
        nodes_after=2,
        left_out={"idle": 1},
        moves=[],
        saving_usd_per_hour=usd,
    )


async def test_plans_for_fewer_nodes_are_listed_by_saving_unless_outdated(bus: Bus) -> None:
    await recorded(bus, plan("a", 1.0), plan("b", None), plan("c", 3.0), plan("d", 9.0, 3700))

    everything = msgspec.json.decode(
        await ask(bus, "api.optimize.consolidate"), type=ConsolidationsReply
    )
    one_pool = msgspec.json.decode(
        await ask(bus, "api.optimize.consolidate", {"pool": "b"}), type=ConsolidationsReply
    )
    none = msgspec.json.decode(
        await ask(bus, "api.optimize.consolidate", {"pool": "x"}), type=ConsolidationsReply
    )

    assert [row.id for row in everything.rows] == ["c", "a", "b"]
    assert everything.total == 3
    assert [row.id for row in one_pool.rows] == ["b"]
    assert none.text == "no pool with GPUs on two nodes and more has been measured"
    with pytest.raises(RequestError, match="400 node: "):
        await ask(bus, "api.optimize.consolidate", {"node": "n1"})


async def test_scans_wait_for_one_another(bus: Bus) -> None:
    await recorded(bus, host("n1", cpu=0.25))
    now_reading, most = 0, 0

    class Watched:
        stream_bounds = bus.stream_bounds

        async def read(self, stream: str, **where: Any) -> AsyncGenerator[Delivery, None]:
            nonlocal now_reading, most
            now_reading += 1
            most = max(most, now_reading)
            try:
                async for delivery in bus.read(stream, **where):
                    yield delivery
            finally:
                now_reading -= 1

    foreign = ForeignMessages(Counter(), time.time_ns)
    answering = History("host", Watched(), QuerySettings(), time.time_ns, foreign)  # type: ignore[arg-type]
    call = Call("api.system.history", b"", {})
    replies = await asyncio.gather(*(answering.answer(HistoryRequest(), call) for _ in range(8)))

    assert [reply.matched for reply in replies] == [1] * 8
    assert most == SCANS
