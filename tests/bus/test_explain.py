"""From one recommendation back to the messages behind it, and what is no longer there."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from agent.bus import Bus
from agent.decisions import explain
from agent.views.advice_text import advice_lines, story_lines
from handlers.decisions import gpu_sources
from handlers.decisions.advice_log import AdviceLog
from handlers.decisions.explain import Explain
from handlers.foreign import ForeignMessages
from handlers.queries.reading import Reading
from handlers.settings import QuerySettings
from schemas.changes import CacheChange
from schemas.decisions import ExplainRequest, Explanation
from schemas.engines import CacheMetrics, EngineMetrics
from schemas.metrics import GpuMetrics, Rollup, Summary
from schemas.protocols import Call, Delivery, PublishError, RequestError
from schemas.scaling import ROLLBACK, Evidence, Forecast, ForecastHorizon, Recommendation
from schemas.units import SECOND_NS, instant
from tests.support.advice import advice, decision, step, tell
from tests.support.executing import serving
from tests.support.insights import opportunity, waste
from tests.support.samples import engine, gpu
from tests.support.waiting import until_async

pytestmark = pytest.mark.bus

MINUTE_NS = 60 * SECOND_NS


@pytest.fixture(autouse=True)
async def handlers(bus: Bus) -> AsyncIterator[None]:
    async with serving(bus):
        yield


async def measured(bus: Bus, *metrics: EngineMetrics | GpuMetrics) -> int:
    """Publish these; returns the number of the last one in the stream."""
    _, before = await bus.stream_bounds("METRICS")
    for one in metrics:
        await bus.publish(one)
    await until_stored(bus, before + len(metrics))
    return before + len(metrics)


async def until_stored(bus: Bus, sequence: int) -> None:
    async def is_stored() -> bool:
        return (await bus.stream_bounds("METRICS"))[1] == sequence

    await until_async(is_stored)


def because(begin: int | None, end: int | None, **fields: Any) -> Recommendation:
    evidence = [
        Evidence(
            signal=signal,
            value=value,
            threshold=5.0,
            window_seconds=30.0,
            engines=["e0", "e1"],
            stream_from=begin,
            stream_to=end,
        )
        for signal, value in (
            ("requests_waiting", 40.0),
            ("capacity_usage_ratio", 0.75),
            ("requests_waiting_projected", 20.0),
        )
    ]
    return advice(evidence=evidence, **fields)


async def story_of(bus: Bus, one: Recommendation) -> Explanation:
    await tell(bus, one)
    return await explain(bus, one.recommendation_id)


async def test_advice_leads_back_to_what_each_engine_reported(bus: Bus) -> None:
    before = await measured(bus, engine("e0", waiting=99))
    end = await measured(
        bus,
        engine("e0", waiting=30, running=3, running_max=4),
        engine("e1", node="n2", waiting=None, running=1),
        engine("x", pool="other", waiting=1),
        engine("e0", waiting=41, running=3, running_max=4),
    )
    await measured(bus, engine("e0", waiting=0))

    story = await story_of(bus, because(before + 1, end))

    assert story.read_from == "metrics"
    assert story.missing == []
    assert [(one.node, one.engine, one.messages) for one in story.engines] == [
        ("n1", "e0", 2),
        ("n2", "e1", 1),
    ]
    first, second = story.engines
    assert (first.first_sequence, first.last_sequence) == (before + 1, end)
    assert first.values == {"requests_waiting": 41.0, "capacity_usage_ratio": 0.75}
    assert second.values == {"requests_waiting": None, "capacity_usage_ratio": None}


async def test_advice_that_counts_gpus_leads_back_to_those_of_the_pool(bus: Bus) -> None:
    def sample(name: str, busy: float | None, pool: str = "chat") -> GpuMetrics:
        return gpu(name, pool=pool, utilization_ratio=busy, memory_utilization_ratio=0.9)

    before = await measured(bus, sample("g0", 0.1))
    end = await measured(
        bus,
        engine("e0", waiting=1),
        sample("g0", 0.6),
        sample("g1", None),
        sample("x", 1.0, pool="other"),
        sample("g0", 0.9),
        sample("g0", 0.8),
    )
    await measured(bus, sample("g0", 0.2))
    busy = Evidence(
        signal="gpu_busy_ratio", value=0.8, threshold=0.7, stream_from=before + 1, stream_to=end
    )

    story = await story_of(bus, advice(evidence=[busy]))

    memory = {"memory_utilization_ratio": 0.9}
    assert story.missing == []
    assert [(one.subject, one.messages) for one in story.sources] == [
        ("metrics.gpu.n1.g0", 3),
        ("metrics.gpu.n1.g1", 1),
    ]
    first, second = story.sources
    assert first.first == {"utilization_ratio": 0.6} | memory
    assert first.last == {"utilization_ratio": 0.8} | memory
    assert first.highest == {"utilization_ratio": 0.9} | memory
    assert second.highest == {"utilization_ratio": None} | memory
    assert any("metrics.gpu.n1.g0: 3 messages" in line for line in story_lines(story))


async def test_gpus_that_are_gone_are_said(bus: Bus) -> None:
    end = await measured(bus, engine("e0", waiting=1))
    busy = Evidence(signal="gpu_busy_ratio", value=0.8, stream_from=end, stream_to=end)

    story = await story_of(bus, advice(evidence=[busy]))

    assert story.sources == []
    assert story.missing == ["the messages of the pool's GPUs behind gpu_busy_ratio are gone"]


async def remove_up_to(bus: Bus, sequence: int) -> None:
    await bus.jetstream.purge_stream("FLEET_METRICS", seq=sequence + 1)


async def test_what_is_gone_in_part_is_said(bus: Bus) -> None:
    end = await measured(bus, *(engine("e0", waiting=number) for number in range(5)))
    await remove_up_to(bus, 2)

    story = await story_of(bus, because(1, end))

    assert story.missing == ["of messages 1 to 5 1 to 2 are gone: FLEET_METRICS begins at 3"]
    assert [one.messages for one in story.engines] == [3]


async def test_where_metrics_are_gone_the_minutes_of_the_pool_are_shown(bus: Bus) -> None:
    end = await measured(bus, *(engine("e0", waiting=number) for number in range(3)))
    await remove_up_to(bus, end)
    now_ns = time.time_ns()
    summary = Summary(min=1.0, mean=7.0, max=9.0, p95=9.0, count=12)
    for pool in ("chat", "other"):
        rollup = Rollup(
            kind="pool",
            id=pool,
            pool=pool,
            minute_at=instant(now_ns - MINUTE_NS),
            metrics={"engine_requests_waiting": summary, "gpu_utilization_ratio": summary},
        )
        await bus.publish(rollup, message_id=pool)
    one = because(1, end, decided_at=instant(time.time_ns() + SECOND_NS))
    busy = Evidence(signal="gpu_busy_ratio", value=0.8, stream_from=1, stream_to=end)

    story = await story_of(bus, msgspec.structs.replace(one, evidence=[*one.evidence, busy]))

    assert (story.read_from, story.engines) == ("rollups", [])
    assert [rollup.id for rollup in story.rollups] == ["chat"]
    assert story.missing == ["of messages 1 to 3 all are gone: FLEET_METRICS begins at 4"]
    minute = "engine_requests_waiting 7, gpu_utilization_ratio 7"
    assert any(minute in line for line in story_lines(story))


async def test_what_cannot_be_found_is_told_and_nothing_is_invented(bus: Bus) -> None:
    anew = await story_of(bus, because(100, 200))
    unnamed = await story_of(bus, because(None, None, recommendation_id="chat.scale_up.2"))
    planned = await story_of(bus, advice(3, reason="forecast"))

    assert anew.missing[0] == "FLEET_METRICS ends at 0, before 200: it was made anew since"
    assert unnamed.missing[0] == "the evidence names no messages"
    for story in (anew, unnamed, planned):
        assert (story.read_from, story.engines, story.rollups) == ("nothing", [], [])
        assert "FLEET_ROLLUPS has no minute of the pool before it" in story.missing
    assert planned.missing[-1].startswith("FLEET_EVENTS has no forecast")


@pytest.mark.parametrize("stream", ["METRICS", "EVENTS"])
async def test_a_stream_that_cannot_be_read_now_costs_only_what_is_in_it(
    bus: Bus, stream: str
) -> None:
    class Fails:
        """Everything but one stream."""

        stream_bounds = staticmethod(bus.stream_bounds)

        async def read(self, name: str, **part: Any) -> AsyncIterator[Delivery]:
            if name == stream:
                raise PublishError("too slow")
            async with contextlib.aclosing(bus.read(name, **part)) as deliveries:
                async for delivery in deliveries:
                    yield delivery

    one = because(1, await measured(bus, engine("e0", waiting=41)))
    await tell(bus, one)
    subscriber: Any = Fails()
    reading = Reading(subscriber, QuerySettings(), ForeignMessages(Counter(), time.time_ns))
    explaining = Explain(AdviceLog(reading), reading, time.time_ns)

    story = await explaining.explain(
        ExplainRequest(recommendation_id=one.recommendation_id), Call("", b"", {})
    )

    assert f"FLEET_{stream}: the stream could not be read now" in story.missing
    assert len(story.trail) == 1
    assert len(story.engines) == (stream != "METRICS")


async def test_gpus_that_take_too_long_to_read_cost_only_themselves(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hangs:
        """What GPUs said never comes."""

        stream_bounds = staticmethod(bus.stream_bounds)

        async def read(self, name: str, **part: Any) -> AsyncIterator[Delivery]:
            if part["subject"].startswith("metrics.gpu"):
                await asyncio.Event().wait()
            async with contextlib.aclosing(bus.read(name, **part)) as deliveries:
                async for delivery in deliveries:
                    yield delivery

    monkeypatch.setattr(gpu_sources, "MOST_SECONDS", 0.05)
    end = await measured(bus, engine("e0", waiting=41))
    busy = Evidence(signal="gpu_busy_ratio", value=0.8, stream_from=end, stream_to=end)
    one = advice(evidence=[busy])
    await tell(bus, one)
    subscriber: Any = Hangs()
    reading = Reading(subscriber, QuerySettings(), ForeignMessages(Counter(), time.time_ns))

    story = await Explain(AdviceLog(reading), reading, time.time_ns).explain(
        ExplainRequest(recommendation_id=one.recommendation_id), Call("", b"", {})
    )

    assert story.missing == ["FLEET_METRICS: its GPUs could not be read in 0.05 s"]
    assert (len(story.engines), story.sources) == (1, [])


async def test_the_forecast_before_it_is_shown(bus: Bus) -> None:
    horizon = ForecastHorizon(
        ahead_seconds=180.0, p10=1.0, p50=2.0, p90=3.0, coverage_ratio=0.8, scored=9
    )
    for number, pool in enumerate(("chat", "chat", "other")):
        forecast = Forecast(
            pool=pool,
            signal="requests_in_flight",
            minute_at=instant(time.time_ns() - MINUTE_NS),
            last=float(number),
            horizons=[horizon],
        )
        await bus.publish(forecast, message_id=f"f{number}")

    story = await story_of(bus, advice(decided_at=instant(time.time_ns() + SECOND_NS)))

    assert [(one.pool, one.last) for one in story.forecasts] == [("chat", 1.0)]


async def test_what_the_pools_gpus_cost_before_it_is_shown(bus: Bus) -> None:
    now_ns = time.time_ns()
    told = [
        waste(usd_per_hour=1.0),
        waste(),
        waste(name="other", usd_per_hour=9.0),
        opportunity(),
    ]
    for number, one in enumerate(told):
        await bus.publish(one, message_id=f"m{number}")
    later = instant(time.time_ns() + SECOND_NS)

    story = await story_of(bus, advice(decided_at=later))
    before = await story_of(bus, advice(2, decided_at=instant(now_ns - MINUTE_NS)))
    settled = msgspec.structs.replace(opportunity(), savings=[])
    await bus.publish(settled, message_id="settled")
    nothing_to_save = await story_of(bus, advice(3, decided_at=later))

    assert story.waste is not None
    assert story.waste.figures.usd_per_hour == pytest.approx(32.0)
    assert story.opportunity == opportunity()
    assert (before.waste, before.opportunity) == (None, None)
    assert nothing_to_save.opportunity is None
    text = "\n".join(story_lines(story))
    assert (
        "cost of the pool's GPUs, as told before it\n"
        "  pool chat: $32.00 an hour for 8.0 GPUs, wasted $22.00 an hour, $16,060 a month (69 %)\n"
        "  $5,840 a month, effort low, pool chat: Release 2 GPUs: nothing runs there" in text
    )
    assert "cost of the pool" not in "\n".join(story_lines(before))


async def test_the_lines_tell_the_whole_story_and_obey_no_terminal_codes(bus: Bus) -> None:
    end = await measured(bus, engine("e0", waiting=41))
    one = because(1, end, text="more \x1b[31m", saving_usd_per_hour=-4.0)
    await tell(bus, one, decision(one, reason="seen \x1b[2J"), step(one), step(one, "started"))
    await tell(bus, step(one, "failed", error="quota", replicas_before=2, replicas_after=2))

    lines = list(story_lines(await explain(bus, one.recommendation_id)))

    text = "\n".join(lines)
    assert lines[0] == "chat.scale_up.1  scale_up chat 2 → 3  [failed]"
    assert "requests_waiting 40, against 5, over 30.0 s, messages 1 to 1" in text
    assert "n1/e0: 1 messages, 1 to 1; in the last requests_waiting 41" in text
    assert "decision.accepted.chat  by operator:ann: seen \\x1b[2J" in text
    assert "execution failed (2 → 2 replicas): quota, by executor:x1" in text
    assert lines[-1].startswith(
        "next: look why, then: resource-agent approve chat.scale_up.1 --execute"
    )
    assert "\x1b" not in text


async def test_what_no_executor_can_do_is_not_to_be_tried_again(bus: Bus) -> None:
    one = advice(action="right_size")
    await tell(bus, one, decision(one), step(one), step(one, "failed", error="it cannot"))

    story = await explain(bus, one.recommendation_id)

    assert story.state == "failed"
    assert list(story_lines(story))[-1] == "next: carry it out: no executor can"


async def test_what_has_failed_does_not_go_before_the_way_back(bus: Bus) -> None:
    one = advice()
    back = advice(
        action="scale_down",
        recommendation_id=f"{one.recommendation_id}.rollback",
        reason=ROLLBACK,
        replicas_from=one.replicas_to,
        replicas_to=one.replicas_from,
    )
    await tell(bus, one, back)
    stories = [await explain(bus, one.recommendation_id) for one in (one, back)]

    assert any("contradicts" in line for line in advice_lines(stories[1], stories))

    await tell(bus, decision(one), step(one), step(one, "failed", error="quota"))
    stories = [await explain(bus, one.recommendation_id) for one in (one, back)]

    assert [story.state for story in stories] == ["failed", "open"]
    assert not [line for line in advice_lines(stories[1], stories) if "contradicts" in line]


async def test_accepted_advice_from_simulated_evidence_has_nothing_next(bus: Bus) -> None:
    one = because(1, await measured(bus, engine("e0", waiting=41)), simulated=True)
    await tell(bus, one, decision(one))

    lines = list(story_lines(await explain(bus, one.recommendation_id)))

    assert lines[-1] == "next: nothing: no executor carries out what is from simulated evidence"


async def test_what_measured_a_signal_or_gave_a_price_is_told(bus: Bus) -> None:
    end = await measured(bus, engine("e0", waiting=41))
    one = because(1, end)
    price = ["2 × \x1b[2J at 3.99 USD (Lambda)"]
    found = [
        *one.evidence,
        Evidence(signal="gpu_busy_ratio", value=0.9, threshold=0.7, sources=["nvml", "dcgm"]),
        Evidence(signal="usd_per_replica_hour", value=7.98, sources=price),
    ]
    one = msgspec.structs.replace(one, evidence=found)

    story = await story_of(bus, one)

    text = "\n".join(story_lines(story))
    assert "gpu_busy_ratio 0.9, against 0.7, by nvml; dcgm" in text
    assert "usd_per_replica_hour 7.98, by 2 × \\x1b[2J at 3.99 USD (Lambda)" in text
    assert [each.values for each in story.engines] == [
        {"requests_waiting": 41.0, "capacity_usage_ratio": None}
    ]


async def test_an_id_that_a_stranger_chose_is_shown_and_not_obeyed(bus: Bus) -> None:
    hostile = advice(recommendation_id="chat.scale_up.1.\x1b[2J", expires_at=instant(0))

    story = await story_of(bus, hostile)

    other = await story_of(bus, advice(2, replicas_to=9))

    lines = [*story_lines(story), *advice_lines(story, [story, other])]
    assert lines[0].startswith("chat.scale_up.1.\\x1b[2J  scale_up chat")
    assert any("contradicts chat.scale_up.2" in line for line in lines)
    assert "\x1b" not in "".join(lines)


async def test_a_story_survives_the_wire(bus: Bus) -> None:
    story = await story_of(bus, advice())

    assert msgspec.json.decode(msgspec.json.encode(story), type=Explanation) == story


async def test_advice_on_a_cache_leads_back_to_what_its_counters_were(bus: Bus) -> None:
    for name, hits in (("c1", 5), ("c2", 6), ("c1", 7), ("c1", 90)):
        await bus.publish(
            CacheMetrics(
                instance=name,
                namespace="default",
                observed_at=instant(time.time_ns()),
                hits_total=hits,
            )
        )
    fields = ["hits_total", "misses_total", "is_enabled"]
    evidence = [
        Evidence(
            signal="hit_ratio", value=0.1, stream_from=1, stream_to=3, subject=s, fields=fields
        )
        for s in ("metrics.cache.c1", "metrics.cache.c3")
    ]
    change = CacheChange(
        instance="c1",
        cause="low_hit_ratio",
        text="look",
        signal="hit_ratio",
        now=0.1,
        expected=None,
    )
    await until_stored(bus, 4)

    story = await story_of(
        bus, advice(action="tune_cache", evidence=evidence, cache_changes=[change])
    )

    (source,) = story.sources
    assert (source.subject, source.messages) == ("metrics.cache.c1", 2)
    assert source.first == {"hits_total": 5.0, "misses_total": None, "is_enabled": None}
    assert source.last["hits_total"] == 7.0
    assert story.missing == ["the messages of metrics.cache.c3 behind hit_ratio are gone"]
    lines = list(story_lines(story))
    assert lines[0] == "chat.tune_cache.1  tune_cache chat (low_hit_ratio)  [open]"
    assert any("hits_total 5 → 7 (highest 7), misses_total - → -" in line for line in lines)


async def test_a_subject_that_is_none_of_metrics_is_no_evidence(bus: Bus) -> None:
    one = advice(evidence=[Evidence(signal="x", value=1.0, subject="metrics.cache.>")])

    with pytest.raises(RequestError, match="404"):
        await story_of(bus, one)


async def test_advice_on_gpus_leads_back_to_the_minutes_of_the_one_that_needs_most(
    bus: Bus,
) -> None:
    start_ns = (time.time_ns() // MINUTE_NS - 20) * MINUTE_NS
    for minute in range(20):
        used = Summary(min=0.1, mean=0.2, max=0.3 + minute / 100, p95=0.2, count=12)
        rollup = Rollup(
            kind="gpu",
            id="n1-g0",
            node="n1",
            minute_at=instant(start_ns + minute * MINUTE_NS),
            metrics={"memory_utilization_ratio": used, "dram_activity_ratio": used},
        )
        await bus.publish(rollup, message_id=f"r{minute}")
    evidence = Evidence(
        signal="memory_used_bytes_p99",
        value=1.0,
        subject="rollup.gpu.n1-g0",
        fields=["memory_utilization_ratio", "dram_activity_ratio", "tensor_activity_ratio"],
        measured_from=instant(start_ns + 5 * MINUTE_NS),
        # As its minutes would be stored: all of these were stored now.
        measured_to=instant(start_ns + 15 * MINUTE_NS),
    )

    story = await story_of(bus, advice(action="right_size", evidence=[evidence]))

    (source,) = story.sources
    assert (source.subject, source.messages) == ("rollup.gpu.n1-g0", 10)
    assert source.highest == {
        "memory_utilization_ratio": 0.44,
        "dram_activity_ratio": 0.2,
        "tensor_activity_ratio": None,
    }


async def test_advice_to_go_back_leads_to_the_execution_that_failed(bus: Bus) -> None:
    one = because(1, await measured(bus, engine("e0", waiting=41)))
    back = advice(
        action="scale_down",
        recommendation_id=f"{one.recommendation_id}.rollback",
        reason=ROLLBACK,
        evidence=[Evidence(signal="replicas_observed", value=4.0, threshold=3.0)],
    )
    await tell(bus, one, decision(one), step(one), step(one, "started"))
    early = await story_of(bus, back)
    failed = step(one, "failed", error="quota", rollback=back.recommendation_id)
    await tell(bus, failed, decision(back, "rejected"))

    story = await explain(bus, back.recommendation_id)

    assert [entry.subject.split(".")[0] for entry in story.trail] == [
        *("recommendation", "decision", "execution", "execution"),
        *("recommendation", "execution", "decision"),
    ]
    assert [(one.node, one.engine) for one in story.engines] == [("n1", "e0")]
    assert story.missing == []
    assert "execution failed: quota" in "\n".join(story_lines(story))
    assert early.missing == ["the failed execution behind it is not in FLEET_RECOMMENDATIONS"]
    assert len(early.trail) == 1
