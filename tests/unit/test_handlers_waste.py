"""Money by replay: what recorded minutes of GPUs cost, and what of it was wasted."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
import pytest

from handlers.prices import PriceRule, PriceSettings
from handlers.settings import HandlersSettings
from handlers.slots import FLEET, Routed, Slot, Watermark, turn_of
from handlers.spending import handler as spending
from handlers.spending.gpu_minutes import GpuMinutes
from handlers.spending.handler import MINUTE_NS
from handlers.spending.usage import figures
from schemas.message import Message
from schemas.protocols import Emit
from schemas.spending import Opportunity, Trend, Usage, Waste
from schemas.units import SECOND_NS
from tests.support.fleets import H100, busy, handlers, held, idle, minute_end, recorded, said

M = TypeVar("M", bound=Message)

FOUR_USD = HandlersSettings(
    prices=PriceSettings(rules=(PriceRule(gpu="H100", usd_per_gpu_hour=4.0),))
)


def of(kind: type[M], emits: Sequence[Emit], scope: str = "pool") -> list[M]:
    return [
        emit.message
        for emit in emits
        if isinstance(emit.message, kind) and getattr(emit.message, "scope", None) == scope
    ]


def eight(minute: int) -> list[dict[str, Any]]:
    """Two idle, one held, five at half of the target."""
    return [
        idle("i0"),
        idle("i1"),
        held("h0"),
        *(busy(f"b{index}", 0.35) for index in range(5)),
        {"engine": True, "tokens_per_second": 2000.0},
    ]


def test_an_hour_of_eight_gpus_in_dollars() -> None:
    (waste,) = of(Waste, said(recorded(range(60), eight), FOUR_USD))[-1:]

    figures = waste.figures
    assert figures.gpus == pytest.approx(8)
    assert figures.usd == pytest.approx(32)
    assert figures.idle_usd == pytest.approx(8)
    assert figures.idle_held_usd == pytest.approx(4)
    assert figures.under_used_usd == pytest.approx(5 * 4 * 0.5)
    assert figures.used_usd == pytest.approx(10)
    assert figures.unknown_usd == 0
    assert figures.waste_usd == pytest.approx(22)
    assert figures.waste_ratio == pytest.approx(22 / 32)
    assert figures.waste_usd_per_month == pytest.approx(22 * 730)
    assert figures.utilization_ratio == pytest.approx(5 * 0.35 / 8)
    assert figures.power_efficiency_ratio == pytest.approx(5 * (0.35 / 0.8) / 8)
    # The first minute's growth is not whole: power by time, the same here.
    assert figures.energy_joules == pytest.approx((5 * 560 + 3 * 70) * 3600, rel=1e-6)
    assert figures.idle_energy_joules == pytest.approx(3 * 70 * 3600, rel=1e-6)
    # Of the first minute only the growth after its first sample is known, and there is no rate.
    assert figures.tokens_per_second == pytest.approx(2000 * 59 / 60)
    assert figures.tokens_per_second_per_gpu == pytest.approx(2000 * 59 / 60 / 8)
    assert figures.usd_per_million_tokens == pytest.approx(32 / (2000 * 59 * 60 / 1e6))
    assert figures.usd_per_million_generation_tokens == pytest.approx(
        32 / (2000 * 59 * 60 / 4 / 1e6)
    )
    assert figures.joules_per_token == pytest.approx(3010 * 3600 / (2000 * 59 * 60))


def test_every_gpu_minute_is_in_exactly_one_state_and_the_parts_are_the_whole() -> None:
    def varied(minute: int) -> list[dict[str, Any]]:
        return [
            busy("a", (minute % 10) / 10),
            idle("b") if minute % 3 else held("b"),
            busy("c", None),
            *([busy("d", 0.9)] if minute % 2 else []),
        ]

    emits = said(recorded(range(180), varied), FOUR_USD)

    for scope in ("node", "pool", "fleet"):
        hours = of(Usage, emits, scope)
        assert len(hours) == 3
        for hour in hours:
            states = [hour.active, hour.idle_held, hour.idle, hour.unknown]
            assert sum(use.gpu_hours for use in states) == pytest.approx(3.5)
            assert sum(use.usd or 0 for use in states) == pytest.approx(3.5 * 4)
            assert hour.minutes == 60
            assert sum(model.gpu_hours for model in hour.models.values()) == pytest.approx(3.5)
            wasted = [hour.idle.usd, hour.idle_held.usd, hour.under_used_usd]
            assert sum(model.waste_usd or 0 for model in hour.models.values()) == pytest.approx(
                sum(usd or 0 for usd in wasted)
            )
    figures = of(Waste, emits)[-1].figures
    parts = (figures.used_usd, figures.waste_usd, figures.unknown_usd)
    assert sum(part or 0.0 for part in parts) == pytest.approx(figures.usd)
    waste = (figures.idle_usd, figures.idle_held_usd, figures.under_used_usd)
    assert sum(part or 0.0 for part in waste) == pytest.approx(figures.waste_usd)


def test_a_full_gpu_does_not_make_up_for_an_under_used_one() -> None:
    def uneven(minute: int) -> list[dict[str, Any]]:
        return [busy("low", 0.35), busy("full", 1.0), busy("right", 0.7)]

    figures = of(Waste, said(recorded(range(60), uneven), FOUR_USD))[-1].figures

    assert figures.under_used_gpu_hours == pytest.approx(0.5)
    assert figures.under_used_usd == figures.waste_usd == pytest.approx(2)
    assert figures.used_usd == pytest.approx(10)


def test_without_a_price_there_is_no_money_but_a_share() -> None:
    def unpriced(minute: int) -> list[dict[str, Any]]:
        return [idle("a", name="AMD Instinct MI300X"), busy("b", name=None)]

    figures = of(Waste, said(recorded(range(60), unpriced)))[-1].figures

    money = [name for name in figures.__struct_fields__ if "usd" in name]
    assert {getattr(figures, name) for name in money} == {None}
    assert figures.waste_ratio == pytest.approx(0.5)


def test_tokens_have_no_price_while_one_gpu_has_none() -> None:
    def half_priced(minute: int) -> list[dict[str, Any]]:
        return [
            busy("a"),
            busy("b", name="AMD Instinct MI300X"),
            {"engine": True, "tokens_per_second": 100.0},
        ]

    waste = of(Waste, said(recorded(range(60), half_priced), FOUR_USD))[-1]

    assert waste.figures.usd == pytest.approx(4)
    assert waste.figures.usd_per_million_tokens is None
    assert waste.hours[-1].unpriced_gpu_hours == pytest.approx(1)


def test_tokens_have_no_energy_while_that_of_a_gpu_is_unknown() -> None:
    def half_measured(minute: int) -> list[dict[str, Any]]:
        return [
            busy("a"),
            busy("b", power_watts=None),
            {"engine": True, "tokens_per_second": 100.0},
        ]

    figures = of(Waste, said(recorded(range(10), half_measured), FOUR_USD))[-1].figures

    assert figures.energy_joules == pytest.approx(560 * 600)
    assert figures.joules_per_token is None
    assert figures.tokens_per_second is not None


def test_labels_of_a_node_set_the_price_of_its_gpus() -> None:
    rules = (
        PriceRule(labels={"capacity": "spot"}, usd_per_gpu_hour=1.0),
        PriceRule(gpu="H100", usd_per_gpu_hour=4.0),
    )
    gpus = [idle("a", labels={"capacity": "spot"}), idle("b", labels={"capacity": "reserved"})]

    emits = said(
        recorded(range(60), lambda _: gpus), HandlersSettings(prices=PriceSettings(rules=rules))
    )

    assert of(Waste, emits)[-1].figures.usd == pytest.approx(1 + 4)
    savings = of(Opportunity, emits)[-1].savings
    assert sum(one.saving_usd_per_hour or 0.0 for one in savings) == pytest.approx(5)


def test_energy_is_added_to_the_gpu_hour_where_it_has_a_price() -> None:
    settings = HandlersSettings(
        prices=PriceSettings(
            rules=(PriceRule(usd_per_gpu_hour=1.0),), usd_per_kwh=0.5, pue=1.2, built_in=False
        )
    )

    figures = of(Waste, said(recorded(range(60), lambda _: [idle("a")]), settings))[-1].figures

    assert figures.usd == pytest.approx(1 + 0.07 * 1.2 * 0.5)
    assert figures.waste_usd == figures.usd


def test_energy_of_an_under_used_gpu_is_no_waste() -> None:
    settings = HandlersSettings(
        prices=PriceSettings(rules=(PriceRule(usd_per_gpu_hour=4.0),), usd_per_kwh=1.0)
    )

    of_half = of(Waste, said(recorded(range(60), lambda _: [busy("a", 0.35)]), settings))[-1]

    assert of_half.figures.usd == pytest.approx(4 + 0.56)
    assert of_half.figures.waste_usd == pytest.approx(2)


def test_the_32nd_model_and_further_ones_are_other() -> None:
    gpus = [busy(f"g{number}", name=f"model {number}") for number in range(40)]

    (usage,) = of(Usage, said(recorded(range(59, 61), lambda m: gpus[: 40 * (m < 60)]), FOUR_USD))

    assert len(usage.models) == 32
    assert usage.models["other"].gpu_hours == pytest.approx(9 / 60)


def test_what_comes_while_the_servers_clock_is_set_back_is_in_no_minute() -> None:
    stream = recorded(range(10), lambda _: [busy("a")])
    (late,) = recorded([3], lambda _: [busy("b")])[:1]
    slot = Slot(0, 1, handlers(FOUR_USD), Watermark(sequence=0, ns=0))

    emits = [emit for routed in stream for emit in slot.feed(routed)]
    emits += slot.feed(Routed(late.message, type(late.now)(late.now.ns, len(stream) + 1)))
    emits += slot.advance(minute_end(stream))

    assert of(Waste, emits)[-1].figures.gpu_hours == pytest.approx(10 / 60)


def test_duplicates_and_many_samples_count_no_gpu_twice() -> None:
    stream = recorded(range(60), eight)
    doubled = [
        Routed(routed.message, type(routed.now)(routed.now.ns, 2 * routed.now.sequence + copy))
        for routed in stream
        for copy in (0, 1)
    ]

    once = of(Waste, said(stream, FOUR_USD))[-1].figures
    twice = of(Waste, said(doubled, FOUR_USD))[-1].figures

    assert msgspec.structs.astuple(twice) == pytest.approx(msgspec.structs.astuple(once))


def test_the_energy_from_one_minutes_last_sample_to_the_next_ones_counts() -> None:
    def stepping(minute: int) -> list[dict[str, Any]]:
        # The counter is the truth, of what the gauge saw the peaks alone.
        return [busy("a", power_watts=500.0, energy_joules_total=1e6 + minute * 6000)]

    wastes = of(Waste, said(recorded(range(11), stepping), FOUR_USD))

    first, second = (waste.figures.energy_joules or 0.0 for waste in wastes[-2:])
    assert second - first == pytest.approx(6000)


@pytest.mark.parametrize(
    ("before", "after"),
    [pytest.param(1e9, 5.0, id="reset"), pytest.param(1e3, 9e14, id="more than a GPU draws")],
)
def test_a_counter_that_is_another_is_replaced_by_power(before: float, after: float) -> None:
    def broken(minute: int) -> list[dict[str, Any]]:
        return [busy("a", power_watts=500.0, energy_joules_total=before if minute < 10 else after)]

    wastes = of(Waste, said(recorded(range(11), broken), FOUR_USD))

    first, second = (waste.figures.energy_joules or 0.0 for waste in wastes[-2:])
    assert second - first == pytest.approx(500 * 60)


def test_power_that_no_gpu_draws_is_no_energy() -> None:
    def broken(minute: int) -> list[dict[str, Any]]:
        return [busy("a", power_watts=9e14, energy_joules_total=None)]

    emits = said(recorded(range(61), broken), FOUR_USD)

    assert {waste.figures.energy_joules for waste in of(Waste, emits)} == {None}


def test_nulls_everywhere_are_unknown_and_cost_all_the_same() -> None:
    def silent(minute: int) -> list[dict[str, Any]]:
        return [{"gpu_id": "a", "name": H100, "pool": "chat"}]

    figures = of(Waste, said(recorded(range(60), silent), FOUR_USD))[-1].figures

    assert figures.unknown_usd == figures.usd == pytest.approx(4)
    # Unknown is not nothing: whether some of it was wasted is not known.
    assert (figures.waste_usd, figures.waste_ratio, figures.waste_usd_per_month) == (None,) * 3
    for name in ("energy_joules", "utilization_ratio", "tokens_per_second", "joules_per_token"):
        assert getattr(figures, name) is None


def test_a_node_that_vanishes_or_changes_its_gpus_stops_costing() -> None:
    def changing(minute: int) -> list[dict[str, Any]]:
        if minute < 20:
            return [busy("a"), busy("b", node="n2")]
        return [busy("c")] if minute < 40 else [idle("other", node="n3", pool=None)]

    emits = said(recorded(range(60), changing), FOUR_USD)

    (hour,) = of(Usage, emits)
    assert hour.minutes == 40
    assert hour.active.gpu_hours == pytest.approx(1)
    assert {usage.id for usage in of(Usage, emits, "node")} == {"n1", "n2", "n3"}


def test_a_mig_instance_is_no_gpu_but_tells_what_its_gpu_does() -> None:
    def sliced(minute: int) -> list[dict[str, Any]]:
        whole = busy("g", None, is_mig_enabled=True, power_watts=200.0)
        slices = [busy(f"m{i}", ratio, name="MIG 1g", parent="g") for i, ratio in enumerate([0, 1])]
        return [whole, *slices]

    (hour,) = of(Usage, said(recorded(range(60), sliced), FOUR_USD))

    assert hour.active.gpu_hours == pytest.approx(1)
    assert hour.under_used_gpu_hours == 0  # how much of the GPU is used is not known
    assert list(hour.models) == [H100]


def test_simulated_gpus_are_booked_apart_and_judged_alone_only() -> None:
    def mixed(minute: int) -> list[dict[str, Any]]:
        return [busy("real"), *([idle("sim", simulated=True)] if minute < 120 else [])]

    def simulated(minute: int) -> list[dict[str, Any]]:
        return [idle("sim", simulated=True)]

    emits = said(recorded(range(60), mixed), FOUR_USD)
    alone = said(recorded(range(60), simulated), FOUR_USD)

    assert [(u.simulated, u.idle.gpu_hours) for u in of(Usage, emits)] == [(False, 0), (True, 1)]
    assert {w.simulated for w in of(Waste, emits)} == {False}
    assert {t.simulated for t in of(Trend, emits)} == {False}
    assert of(Opportunity, emits) == []
    assert {w.simulated for w in of(Waste, alone)} == {True}
    assert {o.simulated for o in of(Opportunity, alone)} == {True}


@pytest.mark.parametrize(
    "last_real", [pytest.param(59, id="both run on"), pytest.param(4, id="the real one ended")]
)
def test_the_running_hour_of_simulated_gpus_is_told_beside_real_ones(last_real: int) -> None:
    def mixed(minute: int) -> list[dict[str, Any]]:
        return [*([busy("r")] if minute <= last_real else []), idle("s", simulated=True)]

    emits = said(recorded(range(30), mixed), FOUR_USD)

    wastes = [of(Waste, emits, scope)[-1] for scope in ("pool", "fleet")]
    assert [waste.simulated for waste in wastes] == [False, False]
    real_minutes = min(last_real + 1, 30)
    for waste in wastes:
        assert waste.figures.gpu_hours == pytest.approx(real_minutes / 60)
        told = {hour.simulated: hour for hour in waste.hours}
        assert told[False].active.gpu_hours == pytest.approx(real_minutes / 60)
        assert told[True].idle.gpu_hours == pytest.approx(30 / 60)


def test_hours_of_simulated_gpus_are_told_while_of_the_real_ones_only_trends_are_left() -> None:
    def mixed(minute: int) -> list[dict[str, Any]]:
        return [*([busy("r")] if minute < 25 * 60 else []), idle("s", simulated=True)]

    minutes = [*range(0, 28 * 60, 20), *range(28 * 60, 28 * 60 + 5)]

    last = of(Waste, said(recorded(minutes, mixed), FOUR_USD))[-1]

    assert last.since == last.hours[0].hour_at
    assert (last.simulated, last.figures.gpus, last.figures.usd) == (False, None, None)
    assert {hour.simulated for hour in last.hours} == {True}


def test_real_and_simulated_gpus_together_share_the_hour() -> None:
    def both(minute: int) -> list[dict[str, Any]]:
        return [busy("a"), busy("b", simulated=True)]

    hours = of(Usage, said(recorded(range(61), both), FOUR_USD))
    together = figures(hours)

    assert [hour.simulated for hour in hours] == [False, True]
    assert together.gpus == pytest.approx(2)
    assert together.usd_per_hour == pytest.approx(2 * 4)
    assert together.waste_usd_per_month == 0


def test_opportunities_are_ranked_and_never_count_a_gpu_twice() -> None:
    minutes = [*range(0, 24 * 60, 20), *range(24 * 60, 25 * 60)]

    emits = said(recorded(minutes, eight), FOUR_USD)

    last = of(Opportunity, emits)[-1]
    assert [one.kind for one in last.savings] == ["release_idle", "pack_under_used", "unload_held"]
    assert [one.gpus for one in last.savings] == [2, 2, 1]
    assert [one.saving_usd_per_month for one in last.savings] == pytest.approx(
        [8 * 730, 8 * 730, 4 * 730]
    )
    assert [one.score for one in last.savings] == pytest.approx([8 * 730, 2 * 730, 2 * 730])
    assert last.savings[0].parts == ["n1-i0", "n1-i1"]
    assert last.saving_usd_per_month == pytest.approx(20 * 730)
    wasted = of(Waste, emits)[-1].figures.waste_usd_per_month
    assert (last.saving_usd_per_month or 0.0) <= (wasted or 0.0)
    assert of(Opportunity, emits, "node") == []  # they are the pool's


@pytest.mark.parametrize(
    ("gap", "told_at"),
    [pytest.param(0, 30, id="on end"), pytest.param(1, 51, id="a minute without samples")],
)
def test_idle_is_told_after_half_an_hour_on_end(gap: int, told_at: int) -> None:
    minutes = [*range(20), *range(20 + gap, 60)]

    first = of(Opportunity, said(recorded(minutes, eight), FOUR_USD))[0]

    assert first.decided_at.minute == told_at


def test_idle_and_held_minutes_are_not_counted_together() -> None:
    def changing(minute: int) -> list[dict[str, Any]]:
        return [idle("a") if minute < 20 else held("a"), busy("b")]

    first = of(Opportunity, said(recorded(range(60), changing), FOUR_USD))[0]

    assert first.decided_at.minute == 50
    assert [one.kind for one in first.savings] == ["unload_held"]


@pytest.mark.parametrize(
    ("usd", "told"), [pytest.param(0.1, True, id="just"), pytest.param(0.09, False, id="less")]
)
def test_a_saving_below_the_least_is_not_told(usd: float, told: bool) -> None:
    cheap = HandlersSettings(prices=PriceSettings(rules=(PriceRule(usd_per_gpu_hour=usd),)))

    emits = said(recorded(range(40), lambda _: [idle("a")]), cheap)

    assert bool(of(Opportunity, emits)) is told


def test_gpus_are_packed_by_the_busiest_hour_of_a_day() -> None:
    def peaking(minute: int) -> list[dict[str, Any]]:
        return [busy(f"b{i}", 0.65 if 600 <= minute < 660 else 0.1) for i in range(8)]

    def flat(minute: int) -> list[dict[str, Any]]:
        return [busy(f"b{i}", 0.1) for i in range(8)]

    def short(minute: int) -> list[dict[str, Any]]:
        return [] if minute < 120 else flat(minute)

    def fewer(minute: int) -> list[dict[str, Any]]:
        return flat(minute)[:3] if minute >= 24 * 60 else flat(minute)

    def packed(what: Any) -> list[int]:
        emits = said(recorded(range(0, 25 * 60, 20), what), FOUR_USD)
        return [one.gpus for told in of(Opportunity, emits)[-1:] for one in told.savings]

    assert packed(peaking) == []
    assert packed(flat) == [6]  # 8 * (1 - 0.1 / 0.7) = 6.86
    assert packed(short) == []
    assert packed(fewer) == [2]  # one of those at work now stays


def test_a_node_in_no_pool_has_opportunities_of_its_own() -> None:
    emits = said(recorded(range(60), lambda _: [idle("a", pool=None)]), FOUR_USD)

    assert of(Opportunity, emits) == []
    assert [one.kind for one in of(Opportunity, emits, "node")[-1].savings] == ["release_idle"]


def test_one_saturated_gpu_among_idle_ones_is_told_without_money() -> None:
    def skewed(minute: int) -> list[dict[str, Any]]:
        return [busy("full", 0.97), *(busy(f"b{i}", 0.1) for i in range(3))]

    found = {
        one.kind: one for one in of(Opportunity, said(recorded(range(60), skewed)))[-1].savings
    }

    assert found["rebalance"].parts == ["n1-full"]
    assert found["rebalance"].saving_usd_per_month is None


@pytest.mark.parametrize(
    ("full", "others", "told"),
    [
        pytest.param(0.9, (0.4, 0.59), True, id="just full beside a mean just below half"),
        pytest.param(0.9, (0.4, 0.6), False, id="a mean of half is no room"),
        pytest.param(0.899, (0.0, 0.0), False, id="not full"),
        pytest.param(0.95, (), False, id="alone"),
    ],
)
def test_work_is_badly_spread_from_here_on(
    full: float, others: tuple[float, ...], told: bool
) -> None:
    gpus = [busy("f", full), *(busy(f"o{ratio}", ratio) for ratio in others)]

    opportunities = of(Opportunity, said(recorded(range(12), lambda _: gpus), FOUR_USD))

    assert [saving.kind for one in opportunities for saving in one.savings] == ["rebalance"] * told


def test_what_was_worth_telling_and_is_no_more_is_taken_back() -> None:
    def freed(minute: int) -> list[dict[str, Any]]:
        return [busy("a"), idle("b") if minute < 45 else busy("b")]

    told = of(Opportunity, said(recorded(range(60), freed), FOUR_USD))

    assert [one.kind for one in told[0].savings] == ["release_idle"]
    assert told[-1].savings == []


def test_a_trend_says_that_its_history_is_too_short_and_then_where_it_goes() -> None:
    def growing(minute: int) -> list[dict[str, Any]]:
        return [busy("a", 0.2 + 0.5 * minute / (30 * 60))]

    stream = recorded(range(0, 30 * 60, 20), growing)

    trends = of(Trend, said(stream, FOUR_USD))

    lines = {line.metric: line for line in trends[4].lines}
    assert lines["utilization_ratio"].direction == "unknown"
    assert "hours known: 5, a slope needs 24" in lines["utilization_ratio"].text
    lines = {line.metric: line for line in trends[-1].lines}
    assert lines["utilization_ratio"].direction == "rising"
    assert lines["utilization_ratio"].slope_per_day == pytest.approx(0.5 * 24 / 30, rel=0.01)
    assert lines["usd_per_hour"].direction == "steady"
    assert "tokens_per_second" not in lines


@pytest.mark.parametrize(
    ("hours", "points"),
    [pytest.param(25, 26, id="a day is kept"), pytest.param(5, 1, id="less is not")],
)
def test_the_trend_of_a_pool_at_zero_for_some_hours(hours: int, points: int) -> None:
    def pausing(minute: int) -> list[dict[str, Any]]:
        is_off = hours * 60 <= minute < (hours + 4) * 60
        return [busy("a", pool="batch" if is_off else "chat")]

    trends = of(Trend, said(recorded(range(0, (hours + 5) * 60 + 21, 20), pausing), FOUR_USD))

    last = [trend for trend in trends if trend.id == "chat"][-1]
    assert {line.points for line in last.lines if line.metric == "usd_per_hour"} == {points}


@pytest.mark.parametrize(("scope", "key"), [("node", "n1"), ("fleet", FLEET)])
def test_a_large_groups_minute_is_judged_beforehand_in_equal_shares(
    scope: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = recorded(range(25), eight)
    at_once = of(Waste, said(stream, FOUR_USD), scope)
    monkeypatch.setattr(spending, "LARGE_GPUS", 7)
    shares: list[int] = []
    judge, judge_some = GpuMinutes._judge, GpuMinutes.judge_some
    judged = Counter[int]()

    def counting(minutes: GpuMinutes, *arguments: Any) -> Any:
        judged[id(minutes)] += 1
        return judge(minutes, *arguments)

    def sharing(minutes: GpuMinutes, settings: Any, count: int) -> None:
        before = judged[id(minutes)]
        judge_some(minutes, settings, count)
        shares.append(judged[id(minutes)] - before)

    monkeypatch.setattr(GpuMinutes, "_judge", counting)
    monkeypatch.setattr(GpuMinutes, "judge_some", sharing)
    of_scope = [one for one in handlers(FOUR_USD) if one.scope == scope]
    slot = Slot(0, 1, of_scope, Watermark(sequence=0, ns=0))
    emits = [emit for routed in stream for emit in slot.feed(routed)]
    emits += slot.advance(minute_end(stream))

    assert at_once
    assert of(Waste, emits, scope) == at_once
    steps = turn_of(key) + 1
    assert steps > 1
    assert sum(shares) == 25 * 8
    assert max(shares) == math.ceil(8 / steps)


@pytest.mark.parametrize("seconds", [0, 2, 4], ids=lambda seconds: f"after-{seconds}s")
@pytest.mark.parametrize("minute", [10, 59, 60, 61, 95])
@pytest.mark.parametrize("large", [0, 1000], ids=["large", "small"])
def test_a_process_that_takes_over_says_the_same(
    large: int, minute: int, seconds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spending, "LARGE_GPUS", large)

    def three(minute: int) -> list[dict[str, Any]]:
        gone = [busy("c", node="gone")] if minute < 5 else []
        return [idle("a"), busy("b", 0.3), {"engine": True, "tokens_per_second": 2000.0}, *gone]

    stream = recorded(range(130), three)
    whole = said(stream, FOUR_USD)
    cut_ns = (stream[0].now.ns // MINUTE_NS + minute) * MINUTE_NS + seconds * SECOND_NS
    cut = next(i for i, routed in enumerate(stream) if routed.now.ns >= cut_ns)

    before = Slot(0, 1, handlers(FOUR_USD), Watermark(sequence=0, ns=0))
    first = [emit for routed in stream[:cut] for emit in before.feed(routed)]
    first += before.advance(cut_ns)
    watermark = Watermark.decode(before.watermark().encode())
    after = Slot(0, 1, handlers(FOUR_USD), watermark)
    second = [
        emit for routed in stream if routed.now.ns >= after.start_ns for emit in after.feed(routed)
    ]
    second += after.advance(minute_end(stream))

    def encoded(emits: Sequence[Emit]) -> list[bytes]:
        return [msgspec.json.encode((emit.message_id, emit.message)) for emit in emits]

    assert encoded([*first, *second]) == encoded(whole)


def test_state_beyond_its_room_is_left_out_of_the_snapshot() -> None:
    small = msgspec.structs.replace(
        FOUR_USD, waste=msgspec.structs.replace(FOUR_USD.waste, snapshot_bytes=0)
    )
    slot = Slot(0, 1, handlers(small), Watermark(sequence=0, ns=0))
    for routed in recorded(range(5), eight):
        slot.feed(routed)

    snapshots = slot.watermark().snapshots

    assert {len(msgspec.msgpack.decode(one)) for one in snapshots.values()} == {0}


def test_many_resting_gpus_cost_a_snapshot_no_hours_and_no_other_group() -> None:
    def fleet(minute: int) -> list[dict[str, Any]]:
        many = [idle(f"{number}-{'x' * 50}", pool="large") for number in range(30)]
        return [*many, busy("a", pool="small")]

    def kept(snapshot_bytes: int) -> dict[str, tuple[int, int]]:
        waste = msgspec.structs.replace(FOUR_USD.waste, snapshot_bytes=snapshot_bytes)
        settings = msgspec.structs.replace(FOUR_USD, waste=waste)
        of_pools = [one for one in handlers(settings) if one.scope == "pool"]
        slot = Slot(0, 1, of_pools, Watermark(sequence=0, ns=0))
        for routed in recorded(range(15), fleet):
            slot.feed(routed)
        (snapshot,) = slot.watermark().snapshots.values()
        memories = msgspec.msgpack.decode(snapshot, type=list[spending._Memory])
        ledgers = {one.key: one.real for one in memories if one.real is not None}
        return {k: (one.hours[0].minutes, len(one.streaks.resting)) for k, one in ledgers.items()}

    assert kept(10_000) == {"large": (14, 30), "small": (14, 0)}
    assert kept(1_500) == {"large": (14, 0), "small": (14, 0)}
    assert kept(100) == {}


def test_a_group_that_measures_nothing_is_forgotten() -> None:
    def leaving(minute: int) -> list[dict[str, Any]]:
        return [busy("a", node="n1", pool="gone")] if minute < 5 else [busy("b", node="n2")]

    slot = Slot(0, 1, handlers(FOUR_USD), Watermark(sequence=0, ns=0))
    for routed in recorded(range(190), leaving):
        slot.feed(routed)

    kept = {
        name: [memory[0] for memory in msgspec.msgpack.decode(one)]
        for name, one in slot.watermark().snapshots.items()
    }
    assert kept["node.waste_node"] == ["n2"]
    assert kept["pool.waste_pool"] == ["chat"]


def test_a_flood_of_names_is_bounded() -> None:
    few = msgspec.structs.replace(FOUR_USD, max_nodes=1, slots=1)

    def flood(minute: int) -> list[dict[str, Any]]:
        return [busy("g", node=f"n{minute}-{index}", pool=None) for index in range(600)]

    slot = Slot(0, 1, handlers(few), Watermark(sequence=0, ns=0))
    emits = [emit for routed in recorded(range(2), flood) for emit in slot.feed(routed)]

    (fleet,) = of(Waste, emits, "fleet")
    assert fleet.figures.gpu_hours == pytest.approx(600 / 60)
    counted = {handler.name: len(handler._groups) for handler in slot.handlers}  # type: ignore[attr-defined]
    assert counted == {"waste_node": 1000, "waste_pool": 0, "waste_fleet": 1}
