"""A cheaper model of GPU: what fits, what it saves, and when nothing is said."""

import math
import random
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from handlers.prices import BUILT_IN as PRICES
from handlers.prices import PriceList, PriceRule, PriceSettings
from handlers.rightsizing.gpu_models import BUILT_IN, GpuModel, GpuModels, GpuModelSettings
from handlers.rightsizing.handler import GpuAdviceHandler
from handlers.rightsizing.node_loads import Measured
from handlers.rightsizing.peaks import (
    STEPS,
    UNKNOWN,
    History,
    Part,
    Peaks,
    gpu_facts,
    host_facts,
    packed,
    part_of,
)
from handlers.rightsizing.right_size import RightSize, right_sizes
from handlers.settings import GpuAdviceSettings, HandlersSettings, RightSizeSettings
from handlers.slots import Routed, Slot, Watermark
from schemas.metrics import GpuMetrics, HostMetrics
from schemas.protocols import Emit
from schemas.scaling import Decision, Recommendation
from schemas.units import instant, to_ns
from tests.support.fleets import H100, minute_end, recorded
from tests.support.samples import at, gpu, host

GB = 10**9
DAY = 144


def history(*ratios: float | None) -> History:
    """The last windows of a day, all before them as the first."""
    values = bytes(packed(ratio) for ratio in ratios)
    return History(values[:1] * (DAY - len(values)) + values)


def measured(
    memory: History,
    bandwidth: History,
    tensor: History,
    *,
    node: str = "n1",
    gpu: str = "g0",
    busy: float | None = 0.5,
    is_silent: bool = False,
    **part: Any,
) -> Measured:
    signals = {
        "memory": memory, "busy": history(busy), "bandwidth": bandwidth, "tensor": tensor
    }  # fmt: skip
    fields = {"name": H100, "memory_bytes": 80 * GB, **part}
    return Measured(Part(node, gpu, **fields), lambda signal: signals[signal], is_silent)


SMALL = measured(history(0.25), history(0.2), history(0.1))


def found(*gpus: Measured, prices: PriceSettings | None = None, **settings: Any) -> list[RightSize]:
    return right_sizes(
        gpus,
        "chat",
        GpuModels(GpuModelSettings()),
        PriceList(prices or PriceSettings()),
        RightSizeSettings(**settings),
        active_ratio=0.05,
    )


def test_the_cheapest_model_that_fits_with_headroom_and_its_saving() -> None:
    (one,) = found(SMALL, measured(history(0.5), history(0.2), history(0.1), gpu="g1"))

    change = one.change
    # 40 GB · 1.15 = 46 of 48; 3,350 · 0.2 · 1.15 = 770.5 of 864; 989 · 0.1 · 1.15 = 113.7 of 362.
    assert (change.gpu_from, change.gpu_to, change.gpus) == (H100, "NVIDIA L40S", 2)
    assert change.memory_needed_bytes == pytest.approx(46 * GB)
    assert change.memory_needed_bytes_per_second == pytest.approx(770.5 * GB)
    assert change.tensor_needed_flops == pytest.approx(113.735e12)
    assert (change.usd_per_hour_from, change.usd_per_hour_to) == (7.98, 2.80)
    assert one.saving_usd_per_hour == pytest.approx(5.18)
    assert one.is_older  # 8.9 below 9.0
    assert one.known_ratio == 1
    assert change.source == "NVIDIA data sheet, 2026-11-21; price: RunPod, 2026-03-01"


@pytest.mark.parametrize(
    ("memory", "bandwidth", "tensor", "model"),
    [
        pytest.param(0.25, 0.2, 0.1, "NVIDIA L40S", id="fits"),
        pytest.param(0.525, 0.2, 0.1, "NVIDIA A100-SXM4-80GB", id="memory: 48.3 of 48 GB"),
        pytest.param(0.25, 0.225, 0.1, "NVIDIA A100-SXM4-40GB", id="bandwidth: 867 of 864 GB/s"),
        pytest.param(0.25, 0.2, 0.32, "NVIDIA H100 PCIe", id="rate: 364 of 362 TFLOPS"),
        pytest.param(0.25, 0.2, 0.27, "NVIDIA L40S", id="rate: 307 of 362 TFLOPS"),
        pytest.param(0.25, 0.6, 0.1, "NVIDIA H100 NVL", id="only a model with more bandwidth"),
        pytest.param(0.85, 0.9, 0.1, "NVIDIA H100 NVL", id="nearly all of it: 78.2 of 94 GB"),
        pytest.param(0.25, 0.9, 0.8, None, id="nothing cheaper fits"),
    ],
)
def test_each_of_memory_bandwidth_and_rate_must_fit(
    memory: float, bandwidth: float, tensor: float, model: str | None
) -> None:
    sizes = found(measured(history(memory), history(bandwidth), history(tensor)))

    assert [one.change.gpu_to for one in sizes] == ([] if model is None else [model])


def test_the_p99_leaves_out_the_busiest_ten_minutes_of_a_day_but_not_two_of_them() -> None:
    once = measured(history(0.25), history(0.2), history(0.1, 1.0))
    twice = measured(history(0.25), history(0.2), history(0.1, 1.0, 1.0))

    assert [one.change.gpu_to for one in found(once)] == ["NVIDIA L40S"]
    assert found(twice) == []


def test_memory_must_hold_its_highest_sample_too() -> None:
    fits = measured(history(0.25, 0.6), history(0.2), history(0.1))  # 48 of 48 GB
    fails = measured(history(0.25, 0.605), history(0.2), history(0.1))
    # Its p99 is not the highest, its highest sample is.
    beside = found(measured(history(0.3), history(0.2), history(0.1), gpu="g1"), fails)

    assert [one.change.gpu_to for one in found(fits)] == ["NVIDIA L40S"]
    assert [one.change.gpu_to for one in found(fails)] == ["NVIDIA A100-SXM4-80GB"]
    assert [one.change.gpu_to for one in beside] == ["NVIDIA A100-SXM4-80GB"]
    assert [one.change.memory_needed_bytes for one in beside] == pytest.approx([48.4 * GB])


def test_a_model_whose_rate_is_not_known_is_not_advised_where_none_is_needed_either() -> None:
    # 82.8 GB: an RTX PRO 6000 has 96 and costs less, but who knows its rate.
    (one,) = found(measured(history(0.9), history(0.1), history(0.0)))

    assert one.change.gpu_to == "NVIDIA H100 NVL"


@pytest.mark.parametrize(
    ("busy", "is_found"),
    [
        pytest.param(0.045, False, id="idle"),
        pytest.param(0.05, True, id="just active"),
        pytest.param(None, True, id="not known to be idle"),
    ],
)
def test_gpus_that_are_idle_are_to_be_released_not_replaced(
    busy: float | None, is_found: bool
) -> None:
    one = measured(history(0.25), history(0.01), history(0.01), busy=busy)
    idle = measured(history(0.0), history(0.0), history(0.0), gpu="g1", busy=0.0)

    assert [size.change.gpus for size in found(one, idle)] == ([1] if is_found else [])


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(measured(history(None), history(0.2), history(0.1)), id="memory unknown"),
        pytest.param(measured(history(0.2), history(None), history(0.1)), id="bandwidth unknown"),
        pytest.param(measured(history(0.2), history(0.2), history(None)), id="rate unknown"),
        pytest.param(
            measured(history(0.2, *[None] * 15), history(0.2), history(0.1)), id="a tenth of gaps"
        ),
        pytest.param(
            measured(history(0.25), history(0.2), history(0.1), is_whole=False), id="with MIG"
        ),
        pytest.param(
            measured(history(0.25), history(0.2), history(0.1), memory_bytes=None), id="no size"
        ),
        pytest.param(
            measured(history(0.25), history(0.2), history(0.1), is_silent=True), id="silent"
        ),
    ],
)
def test_one_gpu_that_is_not_measured_keeps_its_model(other: Measured) -> None:
    assert found(SMALL, other) == []


def test_a_few_gaps_lower_the_confidence_alone() -> None:
    (one,) = found(measured(history(0.25, *[None] * 14), history(0.2), history(0.1)))

    assert one.known_ratio == pytest.approx(130 / 144)


def test_prices_go_by_the_labels_of_the_node() -> None:
    rules = (
        PriceRule(labels={"zone": "eu-*"}, gpu="H100", usd_per_gpu_hour=9.0),
        PriceRule(labels={"zone": "eu-*"}, gpu="L40S", usd_per_gpu_hour=2.0, source="contract"),
    )
    labelled = measured(history(0.25), history(0.2), history(0.1), labels={"zone": "eu-1"})

    (one,) = found(labelled, prices=PriceSettings(rules=rules))

    change = one.change
    assert (change.gpu_to, change.usd_per_hour_from) == ("NVIDIA A100-SXM4-40GB", 9.0)
    assert change.usd_per_hour_to == 1.99


def test_a_part_has_the_labels_of_its_last_sample() -> None:
    labels = {"zone": "eu-1"}

    assert part_of("n1", "g0", gpu_facts(gpu(labels=labels))).labels == labels
    assert part_of("n1", "", host_facts(host("n1", labels=labels))).labels == labels


@pytest.mark.parametrize(
    ("part", "prices"),
    [
        pytest.param({"name": None}, None, id="no name"),
        pytest.param({"name": "AMD Instinct MI300X"}, None, id="a model that is not known"),
        pytest.param({}, PriceSettings(built_in=False), id="no price at all"),
        pytest.param(
            {},
            PriceSettings(built_in=False, rules=(PriceRule(gpu="H100", usd_per_gpu_hour=4.0),)),
            id="no price of another model",
        ),
        pytest.param(
            {}, PriceSettings(rules=(PriceRule(usd_per_gpu_hour=2.0),)), id="one price for all"
        ),
    ],
)
def test_without_figures_or_prices_nothing_is_said(
    part: dict[str, Any], prices: PriceSettings | None
) -> None:
    gpu = measured(history(0.25), history(0.2), history(0.1), **part)

    assert found(gpu, prices=prices) == []


def test_what_saves_too_little_is_not_said() -> None:
    assert found(SMALL, least_saving_usd_per_hour=2.58)
    assert found(SMALL, least_saving_usd_per_hour=2.60) == []
    assert found(SMALL, least_saving_ratio=0.66) == []


def test_each_model_of_a_pool_is_judged_by_itself() -> None:
    other = measured(
        history(0.2), history(0.2), history(0.1), gpu="g1", name="NVIDIA L4", memory_bytes=24 * GB
    )

    sizes = found(SMALL, other)

    # 24 GB · 0.2 · 1.15 = 5.5 of 16; 300 · 0.2 · 1.15 = 69 of 320.
    assert [(one.change.gpu_from, one.change.gpu_to) for one in sizes] == [
        (H100, "NVIDIA L40S"),
        ("NVIDIA L4", "Tesla T4"),
    ]


def test_models_of_the_settings_come_before_the_built_in_ones() -> None:
    mine = GpuModel(gpu="L40S", name="NVIDIA L40S", memory_bytes=24e9, memory_bytes_per_second=1e12)
    models = GpuModels(GpuModelSettings(rules=(mine,)))

    assert models.find("NVIDIA L40S") is mine
    assert [one for one in models if one.name == "NVIDIA L40S"] == [mine]
    assert list(GpuModels(GpuModelSettings(rules=(mine,), built_in=False))) == [mine]
    with pytest.raises(ValueError, match="no regular expression"):
        GpuModel(gpu="(", name="x", memory_bytes=1.0, memory_bytes_per_second=1.0)


def test_every_built_in_model_is_found_by_its_own_name_and_has_a_price() -> None:
    models, prices = GpuModels(GpuModelSettings()), PriceList(PriceSettings())

    assert list(models) == list(BUILT_IN)
    assert [one.gpu for one in BUILT_IN] == [price.gpu for price in PRICES]
    assert all(prices.find(one.name, "n1", None, ()) for one in BUILT_IN)
    assert all((one.source, one.as_of) != ("settings", None) for one in BUILT_IN)


def test_shares_are_rounded_up_and_a_minute_counts_by_its_mean_but_memory_by_its_highest() -> None:
    peaks = Peaks(("memory", "busy"), 6)
    for memory, busy in ((0.1, 0.2), (0.501, 0.4), (0.3, None)):
        peaks.add(memory, busy)
    peaks.close_minute()
    peaks.add(None, 0.1)
    peaks.close_minute()
    peaks.close_window(3)

    assert peaks.history("memory", 3).values == bytes([UNKNOWN] * 5 + [101])
    assert peaks.history("busy", 3).values[-1] == 60
    assert (packed(0.0), packed(1.0), packed(2.0), packed(None)) == (0, STEPS, STEPS, UNKNOWN)


# From the stream: an hour of history.

HOUR = HandlersSettings(gpu_advice=GpuAdviceSettings(history_hours=1))


def used(gpu_id: str, bandwidth: float | None = 0.2, **fields: Any) -> dict[str, Any]:
    return {
        "gpu_id": gpu_id,
        "name": H100,
        "pool": "chat",
        "memory_total_bytes": 80 * GB,
        "memory_utilization_ratio": 0.25,
        "utilization_ratio": 0.5,
        "dram_activity_ratio": bandwidth,
        "tensor_activity_ratio": 0.1,
        **fields,
    }


def slot(settings: HandlersSettings = HOUR, since: Watermark | None = None) -> Slot:
    return Slot(0, 1, [GpuAdviceHandler(settings)], since or Watermark(sequence=0, ns=0))


def said(stream: Sequence[Routed], settings: HandlersSettings = HOUR) -> list[Emit]:
    one = slot(settings)
    emits = [emit for routed in stream for emit in one.feed(routed)]
    return [*emits, *one.advance(minute_end(stream))]


def advice(emits: Sequence[Emit]) -> list[Recommendation]:
    return [emit.message for emit in emits if isinstance(emit.message, Recommendation)]


def verdicts(emits: Sequence[Emit]) -> list[tuple[str, str]]:
    decisions = [emit.message for emit in emits if isinstance(emit.message, Decision)]
    return [(one.verdict, one.reason) for one in decisions]


def test_advice_comes_once_a_whole_history_was_found_three_times() -> None:
    early = said(recorded(range(60), lambda _: [used("g0"), used("g1")]))
    (one,) = advice(said(recorded(range(180), lambda _: [used("g0"), used("g1")])))

    assert early == []
    assert (one.action, one.pool, one.reason, one.risk) == (
        "right_size",
        "chat",
        "cheaper_model_fits",
        "high",
    )
    assert at(70 * 60).ns <= to_ns(one.decided_at) < at(81 * 60).ns
    assert one.saving_usd_per_hour == pytest.approx(2 * (3.99 - 1.40))
    assert one.one_off_cost_usd == pytest.approx(2 * 1.40 / 6)  # 600 s
    assert one.payback_hours == pytest.approx(2 * 1.40 / 6 / 5.18)
    assert (one.replicas_from, one.replicas_to, one.confidence_ratio) == (2, 2, 1.0)
    assert "Replace 2 × NVIDIA H100 80GB HBM3 of pool chat by NVIDIA L40S" in one.text
    assert "$7.98/h → $2.80/h. It is of an older generation" in one.text


def test_evidence_names_the_gpu_and_the_ten_minutes_of_its_p99() -> None:
    def hot(minute: int) -> list[dict[str, Any]]:
        return [used("g0"), used("g1", 0.22 if 50 <= minute < 60 else 0.2)]

    (one,) = advice(said(recorded(range(100), hot)))

    memory, bandwidth, _ = one.evidence
    assert memory.value == pytest.approx(20 * GB)
    assert memory.threshold == pytest.approx(48 * GB / 1.15)
    assert bandwidth.subject == "rollup.gpu.n1-g1"
    assert bandwidth.fields == ["dram_activity_ratio"]
    assert bandwidth.value == pytest.approx(0.22 * 3350 * GB)
    assert bandwidth.measured_from is not None
    assert bandwidth.measured_to == instant(to_ns(bandwidth.measured_from) + 600 * 10**9)
    assert at(40 * 60).ns < to_ns(bandwidth.measured_from) < at(60 * 60).ns
    assert bandwidth.window_seconds == 3600


def test_a_pool_of_one_and_a_pool_without_gpus() -> None:
    assert len(advice(said(recorded(range(180), lambda _: [used("g0")])))) == 1
    hosts = [Routed(host(memory=0.5, pool="chat"), at(60.0 * n, n + 1)) for n in range(180)]
    assert said(hosts) == []


def test_nulls_everywhere_are_no_advice() -> None:
    silent = {"gpu_id": "g0", "pool": "chat"}

    instance = {**silent, "gpu_id": "m", "parent": "g0"}

    assert said(recorded(range(180), lambda _: [silent, instance])) == []


def test_a_node_that_vanished_holds_up_the_advice_for_two_hours_and_a_new_gpu_does() -> None:
    def changing(minute: int) -> list[dict[str, Any]]:
        needy = [used("big", node="n2", tensor_activity_ratio=0.9)] if minute < 100 else []
        fresh = [used("new", node="n3")] if minute >= 300 else []
        return [used("g0"), *needy, *fresh]

    emits = said(recorded(range(450), changing))

    first, second = advice(emits)
    assert (first.replicas_from, second.replicas_from) == (1, 2)
    assert at(220 * 60).ns < to_ns(first.decided_at) < at(270 * 60).ns
    assert second.supersedes is None
    assert verdicts(emits) == [("expired", "nothing of it holds any more")]


def test_a_pool_at_zero_is_forgotten_and_its_advice_withdrawn() -> None:
    stream = recorded(range(120), lambda _: [used("g0")])
    other = recorded(range(400), lambda _: [used("x", None, pool="other")])
    merged = sorted([*stream, *other], key=lambda one: one.now.ns)
    merged = [Routed(one.message, type(one.now)(one.now.ns, n)) for n, one in enumerate(merged, 1)]

    emits = said(merged)

    assert len(advice(emits)) == 1
    assert [verdict for verdict, _ in verdicts(emits)] == ["expired"]


def test_simulated_gpus_are_advised_on_only_alone() -> None:
    needy = used("g0", tensor_activity_ratio=0.9)
    alone = said(recorded(range(180), lambda _: [used("s", simulated=True)]))
    beside = said(recorded(range(180), lambda _: [used("s", simulated=True), needy]))

    assert [one.simulated for one in advice(alone)] == [True]
    assert [one.simulated for one in advice(beside)] == []


def test_a_gap_in_the_stream_is_a_gap_in_the_history() -> None:
    minutes = [minute for minute in range(200) if not 60 <= minute < 80]

    (one,) = advice(said(recorded(minutes, lambda _: [used("g0")])))

    # The gap has to leave the hour first.
    assert to_ns(one.decided_at) >= at(140 * 60).ns


def test_a_new_owner_goes_on_where_the_old_one_stopped() -> None:
    def wandering(minute: int) -> list[dict[str, Any]]:
        return [used("g0", 0.2 + minute % 7 / 200), used("g1", node="n2")]

    stream = recorded(range(160), wandering)
    expected = said(stream)

    told: list[Emit] = []
    owner = slot()
    for cut, routed in enumerate(stream):
        if cut % 83 == 82:
            owner = slot(since=Watermark.decode(owner.watermark().encode()))
            for earlier in stream[:cut]:
                if earlier.now.ns >= owner.start_ns:
                    told += owner.feed(earlier)
        told += owner.feed(routed)
    told += owner.advance(minute_end(stream))

    assert advice(expected)
    assert told == expected


@pytest.mark.parametrize(
    "message",
    [pytest.param(gpu("g0", pool="chat"), id="gpu"), pytest.param(host(pool="chat"), id="host")],
)
def test_no_message_is_kept(message: GpuMetrics | HostMetrics) -> None:
    handler = GpuAdviceHandler(HandlersSettings())
    before = sys.getrefcount(message)

    handler.handle(message, at(0))

    assert sys.getrefcount(message) == before


@pytest.mark.parametrize("seed", range(10))
def test_peak_and_p99_are_those_of_all_windows_in_order(seed: int) -> None:
    rng = random.Random(seed)
    windows, most = rng.choice(((144, 200), (1008, 200), (7, 3), (1, 0)))
    values = bytes(rng.choice((UNKNOWN, *range(most + 1))) for _ in range(windows)) + b"\0"
    ranked = sorted(value for value in values if value != UNKNOWN)

    history = History(values)

    assert history.known_ratio == len(ranked) / len(values)
    assert history.peak == ranked[-1] / STEPS
    assert history.p99 == ranked[math.ceil(0.99 * len(ranked)) - 1] / STEPS
