"""Money over the bus: recorded hours in real streams, and what the endpoints say of them."""

import itertools
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest

from agent.bus import Bus
from handlers.prices import PriceRule, PriceSettings
from handlers.settings import HandlersSettings, QuerySettings
from schemas.api import Filter
from schemas.archive_money import GIB, NOTHING_USED, ArchiveSpending, ArchiveUsage
from schemas.protocols import RequestError
from schemas.report import (
    OpportunitiesReply,
    Report,
    ReportRequest,
    TrendsReply,
    WasteReply,
)
from schemas.spending import Opportunity, Waste
from schemas.units import instant
from tests.support.asking import ask
from tests.support.fleets import busy, recorded, said
from tests.support.spending import HOUR_NS, NOW_NS, SETTINGS, fleet, record

pytestmark = pytest.mark.bus


def clock() -> int:
    return NOW_NS


async def report(bus: Bus, settings: HandlersSettings = SETTINGS, **fields: Any) -> Report:
    payload = await ask(
        bus, "api.analysis.report", ReportRequest(**fields), settings=settings, clock=clock
    )
    return msgspec.json.decode(payload, type=Report)


async def test_a_report_adds_up_recorded_hours_and_the_running_one(bus: Bus) -> None:
    start_ns = await record(bus, 5)

    found = await report(bus, seconds=5 * 3600.0)

    # Every fourth minute of five hours, and ten of the running one.
    minutes = 5 * 15 + 10
    assert found.start == instant(start_ns)
    assert found.figures.gpu_hours == pytest.approx(4 * minutes / 60)
    assert found.figures.usd == pytest.approx(3 * 4 * minutes / 60)
    assert found.figures.idle_usd == pytest.approx(4 * minutes / 60)
    assert found.figures.under_used_usd == pytest.approx(2 * minutes / 60)
    assert [group.id for group in found.pools] == ["chat", "batch"]
    assert [group.id for group in found.nodes] == ["n1", "n2", "n3"]
    pools = sum(group.figures.usd or 0 for group in found.pools)
    assert pools == pytest.approx(found.figures.usd)
    assert [step.figures.gpu_hours for step in found.steps] == pytest.approx(
        [1.0] * 5 + [4 * 10 / 60]
    )
    assert [(model.name, model.usd_per_gpu_hour, model.price_source) for model in found.models] == [
        ("NVIDIA H100 80GB HBM3", 4.0, "contract"),
        ("AMD Instinct MI300X", None, None),
    ]
    assert found.simulated is False
    notes = "; ".join(found.notes)
    for text in (
        "of the period was measured",
        "(AMD Instinct MI300X)",
        "is of 2020-01-01, more than 90 days old",
        "simulated GPUs are left out",
    ):
        assert text in notes


async def test_a_report_of_one_pool_or_node_is_of_that_alone(bus: Bus) -> None:
    await record(bus, 2)

    pool = await report(bus, seconds=2 * 3600.0, pool="chat")
    node = await report(bus, seconds=2 * 3600.0, node="n2")
    nobody = await report(bus, seconds=2 * 3600.0, pool="none")

    minutes = 2 * 15 + 10
    assert pool.figures.gpu_hours == pytest.approx(2 * minutes / 60)
    assert ([g.id for g in pool.pools], [g.id for g in pool.nodes]) == ([], ["n1"])
    # Of the running hour a node tells every ten minutes only.
    assert 4 * 30 / 60 <= (node.figures.usd or 0) <= 4 * minutes / 60
    assert (node.pools, node.nodes) == ([], [])
    assert nobody.text == "No GPU was measured in this period."
    assert (nobody.figures.usd, nobody.figures.gpus) == (None, None)
    assert (nobody.steps, nobody.before) == ([], None)


async def test_a_little_that_was_measured_is_not_told_as_nothing(bus: Bus) -> None:
    await record(bus, 1)

    found = await report(bus, seconds=30 * 86_400.0)

    assert "less than 1% of the period was measured; nothing is assumed of the rest" in found.notes
    assert found.figures.usd is not None


async def test_gpus_of_which_nothing_was_measured_are_not_told_as_used(bus: Bus) -> None:
    await record(bus, 1, lambda _minute: [{"gpu_id": "a", "name": "NVIDIA H100 80GB HBM3"}])

    found = await report(bus, seconds=3600.0)

    assert found.figures.usd == pytest.approx(found.figures.unknown_usd)
    assert (found.figures.waste_usd, found.figures.waste_ratio) == (None, None)
    assert "What they did was not measured, so nothing is said of waste." in found.text


async def test_a_period_of_simulated_gpus_alone_says_so(bus: Bus) -> None:
    await record(bus, 1, lambda _minute: [{"gpu_id": "s", "simulated": True}])

    found = await report(bus, seconds=3600.0)

    assert found.text == "Only simulated GPUs were measured in this period, and they are left out."
    assert (found.figures.gpus, found.simulated) == (None, False)


async def test_simulated_gpus_count_when_asked_for(bus: Bus) -> None:
    await record(bus, 1)

    found = await report(bus, seconds=3600.0, simulated=True)

    assert found.simulated is True
    # Five GPUs, a simulated one among them, in 15 minutes of the hour before and ten of this.
    assert found.figures.gpu_hours == pytest.approx(5 * 25 / 60)
    pools, nodes = (
        sum(one.figures.usd or 0 for one in parts) for parts in (found.pools, found.nodes)
    )
    assert found.figures.usd is not None
    assert pools == pytest.approx(found.figures.usd)  # what is in no pool has no price here
    assert nodes <= found.figures.usd + 1e-9  # up to ten minutes are missing
    assert "simulated GPUs are counted" in found.notes


async def test_a_period_is_compared_with_the_one_before(bus: Bus) -> None:
    def growing(minute: int) -> list[dict[str, Any]]:
        return [busy("a"), *([busy("b")] if minute >= 24 * 60 else [])]

    await record(bus, 48, growing, every=20)

    found = await report(bus, seconds=24 * 3600.0)

    assert found.before is not None
    assert found.before.gpus == pytest.approx(1)
    assert found.figures.gpus == pytest.approx(2, rel=0.01)
    changes = {line.metric: line.change_ratio for line in found.trends}
    assert changes["usd_per_hour"] == pytest.approx(1.0, abs=0.02)


async def test_what_stands_now_is_in_a_report_of_now_only(bus: Bus) -> None:
    start_ns = await record(bus, 3, every=1)

    now = await report(bus, seconds=2 * 3600.0)
    past = await report(bus, start=instant(start_ns), end=instant(start_ns + HOUR_NS))

    assert [(one.scope, one.id, one.saving.kind) for one in now.savings] == [
        ("pool", "chat", "release_idle"),
        ("node", "n3", "release_idle"),
    ]
    assert [one.saving.saving_usd_per_month for one in now.savings] == [2920.0, None]
    assert "would save $2,920 a month" in now.text
    assert past.savings == []
    assert past.figures.gpu_hours == pytest.approx(4)


async def test_each_step_of_a_long_report_is_of_one_day(bus: Bus) -> None:
    start_ns = await record(bus, 10 * 24, lambda _: [busy("a")], every=60)

    found = await report(bus, start=instant(start_ns))

    begin, *others = [step.at for step in found.steps]
    assert begin == instant(start_ns)
    assert {at.hour % 2 for at in others} == {0}
    assert {b - a for a, b in itertools.pairwise(others)} == {timedelta(hours=2)}
    hours = [step.figures.gpu_hours for step in found.steps]
    assert sum(hours) == pytest.approx(found.figures.gpu_hours)
    assert max(hours[:-1]) == pytest.approx(2 / 60)


@pytest.mark.parametrize(("days", "hours"), [(7, 1), (14, 2), (30, 4), (60, 8), (80, 12), (90, 12)])
async def test_a_day_has_a_whole_number_of_steps(bus: Bus, days: int, hours: int) -> None:
    found = await report(bus, seconds=days * 86_400.0)

    assert found.step_seconds == hours * 3600


async def test_a_price_by_node_is_no_price_of_the_model(bus: Bus) -> None:
    await record(bus, 1)
    spot = PriceRule(node="spot-*", usd_per_gpu_hour=1.0)
    settings = HandlersSettings(prices=PriceSettings(rules=(spot, *SETTINGS.prices.rules)))

    found = await report(bus, settings, seconds=3600.0)

    assert {(m.usd_per_gpu_hour, m.price_source) for m in found.models} == {
        (None, "by node, pool or label")
    }
    assert not [note for note in found.notes if note.startswith("the price of")]


async def test_energy_that_has_a_price_and_is_not_known_is_told(bus: Bus) -> None:
    await record(bus, 1, lambda _: [busy("a"), busy("b", power_watts=None)])
    by_energy = PriceSettings(rules=SETTINGS.prices.rules, usd_per_kwh=0.2)

    dear = await report(bus, HandlersSettings(prices=by_energy), seconds=3600.0)
    plain = await report(bus, seconds=3600.0)

    told = "the energy of 0.4 GPU-hours is not known, nor in the cost"  # 25 minutes
    assert told in dear.notes
    assert told not in plain.notes


async def test_a_short_report_says_what_it_lacks(bus: Bus) -> None:
    start_ns = await record(bus, 2)

    now = await report(bus, seconds=3600.0)
    past = await report(bus, start=instant(start_ns), end=instant(start_ns + HOUR_NS))

    lags = "of the running hour, nodes are told up to ten minutes later than the rest"
    no_trends = "no trends: they need 24 hours that were measured"
    assert {lags, no_trends} <= set(now.notes)
    assert lags not in past.notes
    assert no_trends in past.notes


async def test_an_hour_told_twice_counts_once(bus: Bus) -> None:
    await record(bus, 2)
    before = await report(bus, seconds=2 * 3600.0)

    await record(bus, 2, ids="again.")
    after = await report(bus, seconds=2 * 3600.0)

    assert after.figures == before.figures


async def test_a_whole_hour_counts_before_what_was_told_in_its_middle(bus: Bus) -> None:
    start_ns = await record(bus, 2)
    before = await report(bus, node="n1", seconds=2 * 3600.0)
    (whole,) = [
        emit.message
        for emit in said(recorded(range(61), fleet, start_ns=start_ns), SETTINGS)
        if isinstance(emit.message, Waste) and emit.message.subject() == "analysis.waste.node.n1"
    ][-1:]
    middle = [msgspec.structs.replace(hour, minutes=1) for hour in whole.hours]
    assert middle

    await bus.publish(msgspec.structs.replace(whole, hours=middle), message_id="late")
    after = await report(bus, node="n1", start=instant(start_ns), end=instant(start_ns + HOUR_NS))

    assert before.steps[0].figures == after.figures


async def test_an_opportunity_of_hours_ago_does_not_stand(bus: Bus) -> None:
    await record(bus, 3, every=1)
    told = await report(bus, seconds=3600.0)

    later = ask(
        bus,
        "api.analysis.report",
        ReportRequest(seconds=3600.0),
        settings=SETTINGS,
        clock=lambda: NOW_NS + 2 * HOUR_NS,
    )

    assert len(told.savings) == 2
    assert msgspec.json.decode(await later, type=Report).savings == []


async def test_a_foreign_message_among_the_hours_is_passed_over(bus: Bus) -> None:
    await record(bus, 1)
    await bus.publish_raw("rollup.usage.fleet.all", b"not json", message_id="x")

    assert (await report(bus, seconds=3600.0)).figures.gpu_hours > 0


async def test_what_is_too_much_to_read_is_left_out_or_refused(bus: Bus) -> None:
    await record(bus, 3)
    few = msgspec.structs.replace(SETTINGS, queries=QuerySettings(history_scan_bytes=5_000))
    none = msgspec.structs.replace(SETTINGS, queries=QuerySettings(history_scan_bytes=100))

    found = await report(bus, few, seconds=2 * 3600.0)

    assert found.figures.gpu_hours > 0
    assert found.nodes == []
    assert any(note.startswith("without its nodes: this holds more") for note in found.notes)
    with pytest.raises(RequestError, match="413"):
        await report(bus, none, seconds=2 * 3600.0)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"seconds": 3600.0, "start": datetime.fromisoformat("2026-01-01T00:00Z")}, "seconds"),
        ({"start": datetime.fromisoformat("2100-01-01T00:00Z")}, "start"),
        ({"start": datetime.fromisoformat("2020-01-01T00:00Z")}, "90 days"),
        ({"start": datetime.fromisoformat("0001-01-01T00:00Z")}, "90 days"),
        ({"end": datetime.fromisoformat("1960-01-01T00:00Z")}, "end"),
        ({"pool": "chat", "node": "n1"}, "pool"),
    ],
    ids=["two starts", "future", "too long", "year 1", "before the epoch", "node and pool"],
)
async def test_a_bad_period_is_refused_by_name(bus: Bus, fields: dict[str, Any], text: str) -> None:
    with pytest.raises(RequestError, match=f"400 .*{text}"):
        await report(bus, **fields)


async def test_waste_trends_and_opportunities_stand_for_each_group(bus: Bus) -> None:
    await record(bus, 2, every=1)

    def rows(payload: bytes, kind: type[Any]) -> list[tuple[str, str]]:
        return [(row.scope, row.id) for row in msgspec.json.decode(payload, type=kind).rows]

    waste = await ask(bus, "api.analysis.waste", settings=SETTINGS, clock=clock)
    chat = await ask(bus, "api.analysis.waste", Filter(pool="chat"), settings=SETTINGS, clock=clock)
    trends = await ask(bus, "api.analysis.trends", settings=SETTINGS, clock=clock)
    of_node = await ask(
        bus, "api.analysis.trends", Filter(node="n1"), settings=SETTINGS, clock=clock
    )
    of_nobody = await ask(
        bus, "api.analysis.trends", Filter(node="n9"), settings=SETTINGS, clock=clock
    )
    found = await ask(bus, "api.analysis.opportunities", settings=SETTINGS, clock=clock)

    pools = [("fleet", "all"), ("pool", "batch"), ("pool", "chat")]
    nodes = [("node", f"n{number}") for number in (1, 2, 3, 4)]
    assert rows(waste, WasteReply) == [pools[0], *nodes, *pools[1:]]
    assert rows(chat, WasteReply) == [("pool", "chat")]
    assert rows(trends, TrendsReply) == pools
    assert rows(of_node, TrendsReply) == [("node", "n1")]
    assert (
        msgspec.json.decode(of_nobody, type=TrendsReply).text == "no hour of GPUs is complete yet"
    )
    assert rows(found, OpportunitiesReply) == [("pool", "chat"), ("node", "n3")]


async def test_what_is_no_opportunity_any_more_does_not_stand(bus: Bus) -> None:
    await bus.publish(
        Opportunity(
            scope="pool",
            id="chat",
            decided_at=instant(NOW_NS),
            savings=[],
            saving_usd_per_month=None,
        ),
        message_id="o",
    )

    payload = await ask(bus, "api.analysis.opportunities", clock=clock)

    reply = msgspec.json.decode(payload, type=OpportunitiesReply)
    assert (reply.rows, reply.text) == ([], "nothing is worth changing, or not for long enough yet")


def archived(hour_ns: int, held_gib_hours: float) -> ArchiveUsage:
    use = msgspec.structs.replace(NOTHING_USED, held_byte_hours=held_gib_hours * GIB)
    return ArchiveUsage(
        namespace="default", hour_at=instant(hour_ns), minutes=60, classes={"1d": use}
    )


async def test_each_hour_of_the_archive_counts_once_and_whole(bus: Bus) -> None:
    now_hour_ns = NOW_NS // HOUR_NS * HOUR_NS
    over_ns = now_hour_ns - HOUR_NS
    await bus.publish(archived(over_ns, 2.0), message_id="hour")
    running = ArchiveSpending(
        namespace="default",
        decided_at=instant(NOW_NS),
        hours=[archived(over_ns, 1.5), archived(now_hour_ns, 0.25)],
    )
    await bus.publish(running, message_id="running")

    found = await report(bus, seconds=3600.0)
    node = await report(bus, seconds=3600.0, node="n1")
    other = await report(bus, seconds=3600.0, pool="chat")

    assert found.archive is not None
    assert found.archive.total.use.held_byte_hours == 2.25 * GIB
    assert found.archive.namespaces[0].pool is None
    assert (node.archive, other.archive) == (None, None)


async def test_where_nothing_was_archived_the_report_says_nothing_of_it(bus: Bus) -> None:
    found = await report(bus, seconds=3600.0)

    assert found.archive is None
    assert not any("archive" in note for note in found.notes)
