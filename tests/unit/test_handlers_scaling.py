import random
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from handlers.decisions.book import DecisionBook
from handlers.scaling.demand import Expected
from handlers.scaling.gpu_facts import GpuFacts
from handlers.scaling.handler import ScalingHandler
from handlers.settings import ScalingSettings
from handlers.spending.gpu_prices import PricedGpus
from handlers.utilization.gpu_busy import GpuBusy
from schemas.engines import EngineMetrics
from schemas.message import Message
from schemas.protocols import Emit, Moment
from schemas.scaling import Decision, HeldAdvice, Recommendation
from schemas.units import instant, to_ns
from tests.support.advice import decision, delivered, step
from tests.support.samples import START_NS, at, engine

BUSY = {"waiting": 10, "kv": 0.9, "running": 60, "running_max": 64}
FINE = {"waiting": 4, "kv": 0.8, "running": 50, "running_max": 64}
IDLE = {"waiting": 0, "kv": 0.1, "running": 3, "running_max": 64}


def loaded(name: str, load: Mapping[str, Any]) -> EngineMetrics:
    return engine(name, **load)


def trace(
    start: float, end: float, replicas: int, load: Mapping[str, Any], step: float = 5.0
) -> list[tuple[float, EngineMetrics]]:
    """Every replica reports every `step` seconds in [start, end], one tenth after the other."""
    return [
        (second * step + start + index / 10, loaded(f"e{index}", load))
        for second in range(int((end - start) / step) + 1)
        for index in range(replicas)
    ]


class Player:
    """Plays traces into one handler, with a tick every 5 s before the messages."""

    def __init__(
        self,
        settings: ScalingSettings | None = None,
        p90: float | None = None,
        book: DecisionBook | None = None,
        gpus: GpuFacts | None = None,
    ) -> None:
        expected = None if p90 is None else Expected(p90, 900.0)
        self.book = book or DecisionBook()
        self.handler = ScalingHandler(
            settings or ScalingSettings(), lambda pool, ns: expected, self.book, gpus
        )
        self.sequence = 0
        self.emits: list[tuple[float, Emit]] = []
        self._tick = 0

    def play(self, steps: Iterable[tuple[float, EngineMetrics]]) -> "Player":
        for second, message in steps:
            self.tick_to(second)
            self.sequence += 1
            emits = self.handler.handle(message, at(second, self.sequence))
            self.emits += [(second, emit) for emit in emits]
        return self

    def hear(self, second: float, message: Message) -> "Player":
        """The book hears what was stored at that second."""
        self.book.heard(delivered(message, at(second).ns))
        return self

    def tick_to(self, second: float) -> None:
        while self._tick * 5 <= second:
            emits = self.handler.tick(at(self._tick * 5, self.sequence))
            self.emits += [(self._tick * 5, emit) for emit in emits]
            self._tick += 1

    @property
    def advice(self) -> list[Recommendation]:
        return [e.message for _, e in self.emits if isinstance(e.message, Recommendation)]

    @property
    def told(self) -> list[tuple[float, HeldAdvice]]:
        return [(s, e.message) for s, e in self.emits if isinstance(e.message, HeldAdvice)]

    @property
    def held(self) -> list[HeldAdvice]:
        return [held for _, held in self.told]

    @property
    def verdicts(self) -> list[tuple[str, str]]:
        decisions = [e.message for _, e in self.emits if isinstance(e.message, Decision)]
        return [(d.verdict, d.recommendation_id) for d in decisions]


def test_the_message_that_completes_the_hold_brings_the_advice() -> None:
    player = Player().play(trace(0, 29.9, 2, BUSY))
    assert player.emits == []

    player.play([(30, loaded("e0", BUSY))])

    ((second, emit),) = player.emits
    advice = emit.message
    assert isinstance(advice, Recommendation)
    assert (second, advice.replicas_from, advice.replicas_to) == (30, 2, 4)  # ceil(2 * 10 / 5)
    assert advice.recommendation_id == f"chat.scale_up.{START_NS + 30 * 10**9}" == emit.message_id
    assert (advice.action, advice.reason, advice.risk) == ("scale_up", "requests_waiting", "low")
    assert advice.effective_after_seconds == 120.0
    assert advice.saving_usd_per_hour is None
    assert advice.confidence_ratio == 1.0
    assert "from 2 to 4 replicas" in advice.text
    assert "requests waiting 10.00 per replica (target 5)" in advice.text


def test_evidence_names_values_thresholds_engines_and_messages() -> None:
    (advice,) = Player().play(trace(0, 30, 2, BUSY)).advice

    assert [(e.signal, round(e.value, 3), e.threshold) for e in advice.evidence] == [
        ("requests_waiting", 10.0, 5.0),
        ("kv_cache_usage_ratio", 0.9, 0.85),
        ("capacity_usage_ratio", 0.938, 0.80),  # 60 of 64
    ]
    assert {tuple(e.engines) for e in advice.evidence} == {("e0", "e1")}
    assert {(e.stream_from, e.stream_to, e.window_seconds) for e in advice.evidence} == {
        (1, 13, 30.0)
    }


@pytest.mark.parametrize("silence", [0.0, 400.0], ids=["at-once", "after-a-silence"])
def test_who_begins_later_names_the_same_messages(silence: float) -> None:
    # Within a second of each other: which of them is the first of its second must not matter.
    calm = trace(0, 499.9, 1, FINE, step=0.3)
    steps = [*calm, *trace(500 + silence, 540 + silence, 1, BUSY, step=0.3)]

    def begins(skipped: int) -> int:
        (advice,) = Player().play(steps[skipped:]).advice
        assert advice.evidence[0].stream_from is not None
        return advice.evidence[0].stream_from + skipped

    late = len(calm) if silence else 100
    assert {begins(skipped) for skipped in (0, 1, 2, late)} == {begins(0)}


def test_the_messages_of_the_evidence_replayed_give_the_same_advice() -> None:
    # Engines that report seldom: a replay must begin early enough to have heard them all.
    steps = [
        (start + 7.0 * index, loaded(f"e{index}", FINE if start < 400 else BUSY))
        for start in range(0, 460, 20)
        for index in range(3)
    ]
    player = Player().play(steps)
    (advice,) = player.advice
    first, last = advice.evidence[0].stream_from, advice.evidence[0].stream_to
    assert first is not None
    assert last is not None
    assert first > 1

    replayed = ScalingHandler(ScalingSettings())
    emits = [
        emit
        for sequence, (second, message) in enumerate(steps, 1)
        if first <= sequence <= last
        for emit in replayed.handle(message, at(second, sequence))
    ]

    assert [emit.message for emit in emits] == [advice]


def test_latency_above_its_target_brings_advice_that_says_so() -> None:
    slow = FINE | {"ttft_p95_seconds": 3.0}
    settings = ScalingSettings(ttft_target_seconds=2.0)

    (advice,) = Player(settings).play(trace(0, 30, 2, slow)).advice

    assert (advice.replicas_to, advice.reason) == (3, "ttft_p95_seconds")  # 2 * 3/2
    evidence = next(one for one in advice.evidence if one.signal == "ttft_p95_seconds")
    assert (evidence.value, evidence.threshold) == (3.0, 2.0)
    assert "ttft p95 seconds 3.00 per replica (target 2)" in advice.text
    assert advice.confidence_ratio == 1.0


def test_latency_near_its_target_keeps_the_replicas() -> None:
    settings = ScalingSettings(ttft_target_seconds=2.0)
    slow, quick = (IDLE | {"ttft_p95_seconds": seconds} for seconds in (1.9, 0.5))

    assert Player(settings).play(trace(0, 330, 4, slow)).advice == []
    (advice,) = Player(settings).play(trace(0, 330, 4, quick)).advice
    assert advice.replicas_to == 2
    assert [one.signal for one in advice.evidence if one.signal.startswith("ttft")] == [
        "ttft_p95_seconds"
    ]


FLOOD = BUSY | {"waiting": 25}


def test_tokens_above_their_target_bring_advice_that_says_so() -> None:
    fast = FINE | {"generation_tokens_per_second": 1500.0, "prompt_tokens_per_second": 50.0}
    settings = ScalingSettings(generation_target_tokens_per_second=1000.0)

    (advice,) = Player(settings).play(trace(0, 30, 2, fast)).advice

    assert (advice.replicas_to, advice.reason) == (3, "generation_tokens_per_second")  # 2 * 1.5
    assert "generation tokens per second 1500.00 per replica (target 1000)" in advice.text
    found = advice.evidence[-1]
    assert (found.signal, found.value, found.threshold, found.engines, found.sources) == (
        *("generation_tokens_per_second", 1500.0, 1000.0),
        *(["e0", "e1"], []),
    )
    assert Player().play(trace(0, 30, 2, fast)).advice == []


@pytest.mark.parametrize(
    ("rate", "target"),
    [
        pytest.param(100.0, 2, id="4 * 100 / 1000, and one to lose"),
        pytest.param(300.0, 3, id="4 * 300 / 1000 needs 2, and one to lose"),
        pytest.param(500.0, None, id="4 * 500 / 1000 = 2, and one to lose: a third of 4 goes"),
        pytest.param(600.0, None, id="4 * 600 / 1000 needs 3: none to lose"),
        pytest.param(None, None, id="not measured"),
    ],
)
def test_scale_down_leaves_what_carries_the_tokens(rate: float | None, target: int | None) -> None:
    settings = ScalingSettings(prompt_target_tokens_per_second=1000.0)
    if rate == 500.0:
        settings = ScalingSettings(prompt_target_tokens_per_second=1000.0, failures_survived=2)
    player = Player(settings).play(trace(0, 360, 4, IDLE | {"prompt_tokens_per_second": rate}))

    assert [one.replicas_to for one in player.advice] == ([] if target is None else [target])
    if target is not None:
        carried = next(e for e in player.advice[0].evidence if e.signal.endswith("d_projected"))
        assert carried.signal == "prompt_tokens_per_second_projected"
        assert rate is not None
        assert carried.value == 4 * rate / (target - 1)
    if rate is None:
        held = player.held[-1]
        assert held.reason == "unknown"
        assert held.text == "the load is low, but prompt_tokens_per_second is not measured"


@pytest.mark.parametrize(("is_reset", "seconds"), [(False, 300.0), (True, 500.0)])
def test_a_counter_that_was_reset_tells_nothing_for_a_moment(
    is_reset: bool, seconds: float
) -> None:
    settings = ScalingSettings(prompt_target_tokens_per_second=1000.0, failures_survived=0)
    steps = trace(0, 600, 2, IDLE | {"prompt_tokens_per_second": 400.0})
    if is_reset:
        at_reset = loaded("e0", IDLE | {"prompt_tokens_per_second": None})
        steps = [(second, at_reset if second == 200 else one) for second, one in steps]

    player = Player(settings).play(steps)

    assert [one.replicas_to for one in player.advice] == [1]
    first = next(second for second, e in player.emits if isinstance(e.message, Recommendation))
    assert seconds <= first <= seconds + 10


def gpus_at(busy: float | None, gpus: int = 4, **fields: Any) -> GpuFacts:
    """GPUs that are that busy; None: not measured."""
    found = None if busy is None else GpuBusy(gpus, gpus, busy * gpus, ("nvml_utilization",))
    return GpuFacts(busy=lambda pool: found, **fields)


BUSY_TARGET = ScalingSettings(gpu_busy_target_ratio=0.7)


def test_busy_gpus_bring_advice_that_names_what_measured_them() -> None:
    (advice,) = Player(BUSY_TARGET, gpus=gpus_at(0.95)).play(trace(0, 30, 2, FINE)).advice

    assert (advice.replicas_to, advice.reason) == (3, "gpu_busy_ratio")  # 2 * 0.95 / 0.7 = 2.7
    busiest = "Now: gpu busy ratio 0.95 (target 0.7) of 4 of 4 GPUs, by nvml_utilization; requests"
    assert busiest in advice.text
    found = advice.evidence[-1]
    assert (found.signal, found.value, found.threshold) == ("gpu_busy_ratio", 0.95, 0.7)
    assert (found.engines, found.sources) == ([], ["nvml_utilization"])
    assert (advice.confidence_ratio, advice.simulated) == (1.0, False)


def test_busy_gpus_ask_for_nothing_without_a_target_or_a_measurement() -> None:
    assert Player(gpus=gpus_at(1.0)).play(trace(0, 60, 2, FINE)).advice == []
    assert Player(BUSY_TARGET, gpus=gpus_at(None)).play(trace(0, 60, 2, FINE)).advice == []


@pytest.mark.parametrize(
    ("busy", "target"),
    [
        pytest.param(0.1, 2, id="4 * 0.1 / 0.7 needs 1, and one to lose"),
        pytest.param(0.3, 3, id="4 * 0.3 / 0.7 needs 2, and one to lose"),
        pytest.param(0.5, None, id="4 * 0.5 / 0.7 needs 3: none to lose"),
        pytest.param(None, None, id="not measured"),
    ],
)
def test_scale_down_leaves_what_carries_the_gpus_work(
    busy: float | None, target: int | None
) -> None:
    player = Player(BUSY_TARGET, gpus=gpus_at(busy)).play(trace(0, 360, 4, IDLE))

    assert [one.replicas_to for one in player.advice] == ([] if target is None else [target])
    if busy is None:
        assert player.held[-1].text == "the load is low, but gpu_busy_ratio is not measured"


def test_simulated_gpus_make_advice_simulated() -> None:
    found = GpuBusy(2, 2, 2.0, ("simulated",), simulated=True)
    facts = GpuFacts(busy=lambda pool: found)

    (advice,) = Player(BUSY_TARGET, gpus=facts).play(trace(0, 30, 2, FINE)).advice

    assert advice.simulated


def test_gpus_that_were_not_all_measured_lower_the_confidence() -> None:
    found = GpuBusy(8, 7, 7.0, ("nvml_utilization",))
    facts = GpuFacts(busy=lambda pool: found)

    (advice,) = Player(BUSY_TARGET, gpus=facts).play(trace(0, 30, 2, FINE)).advice

    assert advice.confidence_ratio == pytest.approx((3 + 7 / 8) / 4)


def test_evidence_begins_early_enough_for_the_gpus_window() -> None:
    def begin(window_seconds: float) -> int:
        facts = gpus_at(0.7, busy_window_ns=int(window_seconds * 10**9))
        player = Player(BUSY_TARGET, gpus=facts)
        rising = [*trace(0, 299.9, 1, FINE), *trace(300, 340, 1, BUSY)]
        player.play(rising)
        last = player.advice[-1].evidence[0]
        assert last.stream_from is not None
        assert last.stream_to is not None
        return last.stream_to - last.stream_from

    assert begin(65) - begin(0) == 13  # 65 s, a message each 5 s


def priced_at(usd: float | None, gpus: int | None) -> GpuFacts:
    """GPUs of a minute that ends each minute, as the money's handler closes them."""
    minutes = iter(range(10**6))

    def priced(pool: str, simulated: bool) -> PricedGpus | None:
        if simulated:
            return None
        end_ns = next(minutes) * 60 * 10**9
        return PricedGpus(end_ns + START_NS, gpus, usd, ("4 × T4 at 0.5 USD (list)",))

    return GpuFacts(priced=priced)


def test_a_replica_is_priced_by_its_gpus_where_no_price_is_given() -> None:
    idle = trace(0, 330, 2, {"waiting": 0, "kv": 0.0, "running": 0})
    settings = ScalingSettings(gpus_per_replica=4)
    (advice,) = Player(settings, gpus=priced_at(0.5, 8)).play(idle).advice

    assert advice.saving_usd_per_hour == 2.0
    assert advice.one_off_cost_usd == 0.0
    (found,) = [one for one in advice.evidence if one.signal == "usd_per_replica_hour"]
    assert (found.value, found.threshold, found.sources) == (
        *(2.0, None),
        ["4 × T4 at 0.5 USD (list)"],
    )
    assert advice.text.endswith(
        "A replica is priced at $2.00 an hour: 4 GPUs (by the settings) at $0.50, the mean of "
        "4 × T4 at 0.5 USD (list)."
    )


@pytest.mark.parametrize(
    ("settings", "facts", "saving"),
    [
        pytest.param({}, priced_at(0.5, 8), 2.0, id="8 GPUs by 2 replicas, seen"),
        pytest.param({}, priced_at(0.5, 9), None, id="no whole number"),
        pytest.param({}, priced_at(None, 8), None, id="no price"),
        pytest.param({}, GpuFacts(), None, id="no GPUs"),
        pytest.param({"usd_per_replica_hour": 7.0}, priced_at(0.5, 8), 7.0, id="given"),
    ],
)
def test_a_price_that_is_given_goes_first_and_none_is_invented(
    settings: dict[str, Any], facts: GpuFacts, saving: float | None
) -> None:
    idle = trace(0, 330, 2, {"waiting": 0, "kv": 0.0, "running": 0})
    player = Player(msgspec.convert(settings, ScalingSettings), gpus=facts).play(idle)

    (advice,) = player.advice
    assert advice.saving_usd_per_hour == saving
    is_derived = any(one.signal == "usd_per_replica_hour" for one in advice.evidence)
    assert is_derived == (saving == 2.0)


def test_a_derived_price_counts_in_what_is_worth_it() -> None:
    idle = trace(0, 400, 2, {"waiting": 0, "kv": 0.0, "running": 0})
    cheap = ScalingSettings(gpus_per_replica=1, least_saving_usd_per_hour=0.6)

    player = Player(cheap, gpus=priced_at(0.5, 2)).play(idle)

    assert [held.text for held in player.held if held.reason == "saving"] == [
        "it saves $0.50 an hour, less than $0.60"
    ]


def test_a_price_that_was_given_since_goes_before_what_was_seen() -> None:
    idle = trace(0, 290, 2, {"waiting": 0, "kv": 0.0, "running": 0})
    before = Player(gpus=priced_at(0.5, 8)).play(idle)
    after = Player(ScalingSettings(usd_per_replica_hour=7.0)).play(idle)
    after.handler.restore(before.handler.snapshot() or b"")

    after.play(trace(295, 330, 2, {"waiting": 0, "kv": 0.0, "running": 0}))

    assert [one.saving_usd_per_hour for one in after.advice] == [7.0]


def test_what_was_desired_with_gpus_is_not_kept_on_without_them() -> None:
    on = Player(BUSY_TARGET, gpus=gpus_at(0.95)).play(trace(0, 20, 2, FINE))
    off = Player()
    off.handler.restore(on.handler.snapshot() or b"")

    off.play(trace(25, 45, 2, FINE))

    assert b"fewest" in (on.handler.snapshot() or b"")
    assert b"fewest" not in (off.handler.snapshot() or b"")


def test_pools_of_both_kinds_of_engines_have_no_price_that_is_seen() -> None:
    idle: dict[str, Any] = {"waiting": 0, "kv": 0.0, "running": 0}
    steps = [
        (second, engine(name, simulated=name == "e1", **idle))
        for second in range(0, 335, 5)
        for name in ("e0", "e1")
    ]

    (advice,) = Player(gpus=priced_at(0.5, 8)).play(steps).advice

    assert advice.saving_usd_per_hour is None


def test_a_flood_is_not_waited_for_the_whole_hold() -> None:
    calm, flood = trace(0, 60, 1, FINE, 1.0), trace(61, 80, 1, FLOOD, 1.0)

    (advice,) = Player().play([*calm, *flood]).advice

    assert advice.decided_at == instant(at(66).ns)  # the last calm sample is 6 s old
    assert (advice.replicas_from, advice.replicas_to) == (1, 5)  # ceil(25 / 5)
    assert "too much load for 6 s" in advice.text
    assert {one.window_seconds for one in advice.evidence} == {6.0}


def test_a_flood_is_waited_for_until_every_engine_was_heard() -> None:
    (advice,) = Player().play(trace(0, 60, 2, FLOOD)).advice

    assert advice.decided_at == instant(at(30).ns)


@pytest.mark.parametrize(
    "flood",
    [
        pytest.param(trace(61, 65, 1, FLOOD, 1.0), id="5 s of it"),
        pytest.param(trace(61, 85, 1, BUSY, 1.0), id="twice the target"),
        pytest.param(
            [
                *trace(61, 64, 1, FLOOD, 1.0),
                *trace(65, 65, 1, FINE, 1.0),
                *trace(66, 70, 1, FLOOD, 1.0),
            ],
            id="a break",
        ),
    ],
)
def test_less_than_a_flood_waits(flood: list[tuple[float, EngineMetrics]]) -> None:
    assert Player().play([*trace(0, 60, 1, FINE, 1.0), *flood]).advice == []


def test_fine_load_gives_no_advice() -> None:
    assert Player().play(trace(0, 900, 3, FINE)).emits == []


def test_standing_advice_is_not_repeated() -> None:
    player = Player().play(trace(0, 590, 2, BUSY))

    assert len(player.advice) == 1


def test_expired_advice_is_closed_once_and_then_given_anew() -> None:
    player = Player().play(trace(0, 700, 2, BUSY))

    first, second = player.advice
    assert player.verdicts == [("expired", first.recommendation_id)]
    assert to_ns(first.expires_at) == at(30 + 600).ns
    assert second.supersedes is None
    assert second.recommendation_id != first.recommendation_id


def test_expiry_comes_from_a_tick_when_the_stream_is_silent_and_then_nothing() -> None:
    player = Player().play(trace(0, 30, 2, BUSY))

    player.tick_to(3600)

    assert [verdict for verdict, _ in player.verdicts] == ["expired"]


def test_a_higher_need_supersedes_after_the_hold() -> None:
    worse = BUSY | {"waiting": 20}
    player = Player().play(trace(0, 31, 1, BUSY) + trace(35, 100, 1, worse))

    first, second = player.advice
    assert (first.replicas_to, second.replicas_to) == (2, 4)
    assert second.supersedes == first.recommendation_id
    assert to_ns(second.decided_at) - to_ns(first.decided_at) >= 30 * 10**9
    assert player.verdicts == [("superseded", first.recommendation_id)]


def test_a_lower_need_does_not_lower_standing_advice() -> None:
    less = BUSY | {"waiting": 7}
    player = Player().play(trace(0, 31, 2, BUSY) + trace(35, 300, 2, less))

    assert [advice.replicas_to for advice in player.advice] == [4]


def test_reaching_the_target_ends_the_advice() -> None:
    player = Player().play(trace(0, 31, 2, BUSY) + trace(35, 800, 4, FINE))

    assert len(player.advice) == 1
    assert player.verdicts == []


def test_the_same_target_is_not_advised_again_while_replicas_may_still_start() -> None:
    reached_and_lost = trace(0, 31, 2, BUSY) + trace(35, 70, 4, FINE) + trace(75, 149.9, 2, BUSY)
    player = Player().play(reached_and_lost)
    assert [advice.replicas_to for advice in player.advice] == [4]

    player.play(trace(150, 155, 2, BUSY))

    assert [advice.replicas_to for advice in player.advice] == [4, 4]


def test_scale_down_only_after_its_longer_hold() -> None:
    player = Player().play(trace(0, 299.9, 4, IDLE))
    assert player.advice == []

    player.play(trace(300, 300, 4, IDLE))

    (advice,) = player.advice
    # kv 0.1 * 4 / 0.85 = 0.47 → 1 replica, and one to lose.
    assert (advice.action, advice.replicas_from, advice.replicas_to) == ("scale_down", 4, 2)
    assert (advice.risk, advice.reason) == ("medium", "spare_capacity")
    projected = {e.signal: e.value for e in advice.evidence if e.signal.endswith("_projected")}
    assert projected == {
        "requests_waiting_projected": 0.0,
        "kv_cache_usage_ratio_projected": pytest.approx(0.4),
        "capacity_usage_ratio_projected": pytest.approx(12 / 64),
    }
    assert "2 replicas carry the load of now, also with 1 of them lost" in advice.text


def test_one_busy_moment_within_the_hold_keeps_the_replicas() -> None:
    steps = trace(0, 200, 4, IDLE) + trace(201, 202, 4, FINE) + trace(205, 500, 4, IDLE)

    assert Player().play(steps).advice == []


def test_scale_down_takes_the_next_count_that_survives_a_loss() -> None:
    load = {"waiting": 0, "kv": 0.45, "running": 1, "running_max": 64}
    (advice,) = Player().play(trace(0, 300.9, 5, load)).advice

    # HPA wants ceil(2.25 / 0.85) = 3, of which one may be lost.
    assert advice.replicas_to == 4


def test_scale_down_is_held_where_the_loss_of_one_would_be_too_much_and_says_so() -> None:
    load = {"waiting": 0, "kv": 0.6, "running": 10, "running_max": 64}
    player = Player().play(trace(0, 340, 4, load))

    # HPA wants ceil(2.4 / 0.85) = 3, and one more to lose: as many as there are.
    assert player.advice == []
    assert [(held.reason, held.replicas_to) for held in player.held] == [
        ("hold", 3),
        ("failure", 3),
    ]
    last = player.held[-1]
    assert (last.action, last.replicas_from, last.simulated) == ("scale_down", 4, False)
    assert "needs 3 replicas within the targets, and 1 more" in last.text


def test_a_rise_that_is_expected_keeps_the_replicas() -> None:
    steps = trace(0, 300, 4, IDLE)
    calm, rising = Player(p90=12.0), Player(p90=400.0)

    advised = calm.play(steps).advice
    held = rising.play(trace(0, 340, 4, IDLE)).held

    # The KV cache used to 0.4 by 12 requests, 400 of them: 13.3 / 0.85 → 16 replicas.
    assert [advice.replicas_to for advice in advised] == [2]
    assert "12 requests in flight (p90 of the next 900 s)" in advised[0].text
    assert advised[0].evidence[-1].signal == "requests_in_flight_p90"
    assert rising.advice == []
    assert "400 requests in flight (p90 of the next 900 s) needs 16 replicas" in held[-1].text


CACHED = {
    "kv_cache_capacity_tokens": 200_000,
    "prefix_cache_hit_ratio": 0.6,
    "prompt_tokens_per_second": 20_000.0,
}


def test_scale_down_prices_the_kv_cache_that_is_lost() -> None:
    settings = ScalingSettings(usd_per_replica_hour=3.6)
    (advice,) = Player(settings).play(trace(0, 300, 4, IDLE | CACHED)).advice

    # 2 of 4 go, each with 0.1 * 200,000 * 0.6 tokens; a replica computes 20,000 * 0.4 a second.
    assert advice.one_off_cost_usd == pytest.approx(24_000 / 8_000 * 0.001)
    assert advice.payback_hours == pytest.approx(24_000 / 8_000 / 3600 / 2)
    assert advice.evidence[-1].signal == "kv_cache_tokens_lost"
    assert advice.evidence[-1].value == pytest.approx(24_000.0)
    assert "24,000 tokens of KV cache have to be computed anew: 3.0 s of one" in advice.text


def test_without_a_price_the_payback_of_the_cache_is_known_all_the_same() -> None:
    (advice,) = Player().play(trace(0, 300, 4, IDLE | CACHED)).advice

    assert (advice.saving_usd_per_hour, advice.one_off_cost_usd) == (None, None)
    assert advice.payback_hours == pytest.approx(1.5 / 3600)


@pytest.mark.parametrize("unmeasured", list(CACHED))
def test_a_cache_that_is_not_measured_costs_null_and_the_advice_says_so(unmeasured: str) -> None:
    settings = ScalingSettings(usd_per_replica_hour=3.6)
    load = IDLE | CACHED | {unmeasured: None}

    (advice,) = Player(settings).play(trace(0, 300, 4, load)).advice

    assert (advice.one_off_cost_usd, advice.payback_hours) == (None, None)
    assert f"{unmeasured} is not measured" in advice.text


def test_the_last_known_hit_ratio_counts_while_no_prompt_comes() -> None:
    quiet = IDLE | CACHED | {"prefix_cache_hit_ratio": None, "prompt_tokens_per_second": None}
    steps = trace(0, 150, 4, IDLE | CACHED) + trace(155, 300, 4, quiet)

    (advice,) = Player().play(steps).advice

    assert advice.payback_hours == pytest.approx(1.5 / 3600)


def test_a_pool_at_rest_goes_to_one_replica_without_a_spare() -> None:
    rest = {"waiting": 0, "kv": 0.0, "running": 0, "running_max": 64}
    (advice,) = Player().play(trace(0, 300, 3, rest)).advice

    assert (advice.replicas_to, advice.risk) == (1, "high")
    assert "1 replica carries the load of now, without a spare" in advice.text


def test_a_pool_of_one_is_left_alone() -> None:
    assert Player().play(trace(0, 900, 1, IDLE)).emits == []


def test_what_is_held_is_told_when_it_changes_and_when_it_ends() -> None:
    load = {"waiting": 0, "kv": 0.6, "running": 10, "running_max": 64}
    player = Player().play(trace(0, 1000, 4, load) + trace(1005, 1100, 4, FINE))
    player.tick_to(1200)

    told = [(second, held.reason) for second, held in player.told]
    # Once it has lasted for 30 s; again after ten minutes.
    assert told == [(35, "hold"), (335, "failure"), (935, "failure"), (1040, None)]


def test_what_is_held_ends_with_the_pool() -> None:
    load = {"waiting": 0, "kv": 0.6, "running": 10, "running_max": 64}
    player = Player().play(trace(0, 400, 4, load))
    player.tick_to(700)

    assert [held.reason for held in player.held] == ["hold", "failure", None]


def test_a_missing_signal_is_named_as_what_holds_a_scale_down() -> None:
    player = Player().play(trace(0, 60, 3, {"kv": 0.1}))

    assert [(held.reason, held.text) for held in player.held] == [
        ("unknown", "the load is low, but requests_waiting is not measured")
    ]


def test_a_pool_is_scaled_down_only_so_often_within_an_hour() -> None:
    player = Player(ScalingSettings(downs_per_hour_max=2))
    for start in (0, 600, 1200):  # each time somebody brings it up again
        player.play(trace(start, start + 350, 8, IDLE, step=15))
        player.play(trace(start + 360, start + 500, 2, FINE, step=15))

    assert [advice.replicas_to for advice in player.advice] == [2, 2]
    assert [held.text for held in player.held if held.reason == "churn"] == [
        "it was scaled down 2 times within the last hour"
    ]

    player.play(trace(1715, 4300, 2, FINE, step=15))
    player.play(trace(4315, 4665, 8, IDLE, step=15))  # an hour after the first

    assert len(player.advice) == 3


def test_what_is_kept_of_a_pool_outlives_a_restart() -> None:
    load = {"waiting": 0, "kv": 0.6, "running": 10, "running_max": 64}
    steps = trace(0, 350, 8, IDLE) + trace(355, 400, 2, FINE) + trace(405, 800, 4, load)
    cut = next(place for place, (second, _) in enumerate(steps) if second >= 760)
    first, second = Player(), Player()
    first.play(steps[:cut])
    second.play(steps[:cut])

    second.handler.restore(first.handler.snapshot() or b"")
    second.emits.clear()
    second.play(steps[cut:])

    assert first.held[-1].reason == "failure"
    assert second.emits == []  # told by the first
    assert second.handler.snapshot() == first.play(steps[cut:]).handler.snapshot()


NORMAL = {"waiting": 1, "kv": 0.7, "running": 40, "running_max": 64}


def test_down_ends_once_the_load_is_back_and_comes_again_after_its_hold() -> None:
    idle, back, again = trace(0, 301, 4, IDLE), trace(305, 345, 4, NORMAL), trace(350, 700, 4, IDLE)
    player = Player().play(idle)
    (one,) = player.advice

    player.play(back)
    (end,) = [e.message for _, e in player.emits if isinstance(e.message, Decision)]
    player.play(again)

    # 4 * 0.7 / 0.85 = 3.3 → 4, and one to lose: 5 > 2, from 305.1 on.
    assert (end.recommendation_id, end.verdict) == (one.recommendation_id, "expired")
    assert end.reason == "the load is too much by now for what would be left"
    assert at(335).ns <= to_ns(end.decided_at) < at(340).ns
    second = player.advice[1]
    assert (second.action, second.supersedes) == ("scale_down", None)
    assert to_ns(second.decided_at) >= at(345 + 300).ns  # none of 300 s asked for more


def test_moments_of_load_do_not_end_down_advice() -> None:
    moments = [*trace(305, 325, 4, NORMAL), *trace(330, 340, 4, IDLE), *trace(345, 365, 4, NORMAL)]

    player = Player().play([*trace(0, 301, 4, IDLE), *moments, *trace(370, 400, 4, IDLE)])

    assert (len(player.advice), player.verdicts) == (1, [])


def test_down_that_was_ended_is_not_given_again_before_its_hold() -> None:
    # 4 * 0.3 / 0.85 → 2, which HPA would still do with; but with one lost it takes 3.
    more = IDLE | {"kv": 0.3}
    steps = [*trace(0, 301, 4, IDLE), *trace(305, 345, 4, more), *trace(350, 620, 4, IDLE)]

    player = Player().play(steps)

    first, second = player.advice
    assert (first.replicas_to, second.replicas_to) == (2, 2)
    assert player.verdicts == [("expired", first.recommendation_id)]
    assert to_ns(second.decided_at) == to_ns(first.decided_at) + 300 * 10**9


def test_up_ends_once_nothing_has_asked_for_it_in_the_longer_hold() -> None:
    steps = [*trace(0, 31, 2, BUSY), *trace(35, 380, 2, FINE)]

    player = Player().play(steps)

    (one,) = player.advice
    assert player.verdicts == [("expired", one.recommendation_id)]
    (end,) = [e.message for _, e in player.emits if isinstance(e.message, Decision)]
    assert end.reason == "the load does not ask for it any more"
    # Until 330 s the last 300 s have some of the load of 30 s in them.
    assert at(360).ns <= to_ns(end.decided_at) <= at(370).ns


def test_up_supersedes_standing_down_at_its_own_hold() -> None:
    player = Player().play(trace(0, 301, 4, IDLE) + trace(305, 320, 4, FLOOD))

    assert [advice.action for advice in player.advice] == ["scale_down", "scale_up"]
    assert [verdict for verdict, _ in player.verdicts] == ["superseded"]


@pytest.mark.parametrize(
    "load",
    [
        pytest.param({}, id="nothing measured"),
        pytest.param({"waiting": 0}, id="only the queue"),
        pytest.param({"kv": 0.1}, id="only the KV cache"),
    ],
)
def test_unknown_load_never_scales_down(load: dict[str, float]) -> None:
    assert Player().play(trace(0, 900, 3, load)).advice == []


def test_an_unknown_stretch_starts_the_hold_anew() -> None:
    steps = trace(0, 20, 1, BUSY) + trace(21, 26, 1, {}) + trace(30, 50, 1, BUSY)

    assert Player().play(steps).emits == []


def test_silence_starts_the_hold_anew() -> None:
    assert Player().play(trace(0, 25, 2, BUSY) + trace(60, 85, 2, BUSY)).emits == []


def test_a_vanished_engine_is_no_replica() -> None:
    player = Player().play(trace(0, 60, 3, FINE) + trace(65, 130, 2, BUSY))

    assert [(a.replicas_from, a.replicas_to) for a in player.advice] == [(2, 4)]


def test_silence_does_not_fulfil_standing_down_advice() -> None:
    player = Player().play(trace(0, 301, 4, IDLE) + trace(340, 896, 4, IDLE))
    player.tick_to(900)

    assert len(player.advice) == 1
    assert [verdict for verdict, _ in player.verdicts] == ["expired"]


@pytest.mark.parametrize("signal", ["waiting", "kv", "running"])
def test_a_noisy_signal_around_the_target_gives_no_advice(signal: str) -> None:
    rng = random.Random(3)
    centre = {"waiting": 5, "kv": 0.85, "running": 51}[signal]
    steps = [
        (second, loaded(message.engine, FINE | {signal: type(centre)(centre * noise)}))
        for second, message in trace(0, 3600, 3, FINE)
        for noise in [min(1.17, max(0.5, rng.gauss(1.0, 0.25)))]
    ]

    assert Player().play(steps).emits == []


def test_limits_hold_whatever_the_load() -> None:
    settings = ScalingSettings(max_replicas=3, min_replicas=2)
    flood = BUSY | {"waiting": 10**9}
    up = Player(settings).play(trace(0, 31, 2, flood)).advice
    down = Player(settings).play(trace(0, 301, 3, IDLE)).advice

    assert ([a.replicas_to for a in up], [a.replicas_to for a in down]) == ([3], [2])
    assert up[0].text.endswith(" but max_replicas is 3.")


@pytest.mark.parametrize(
    ("settings", "replicas", "target"),
    [
        pytest.param({}, 1, 5, id="4 more"),
        pytest.param({}, 6, 12, id="twice as many"),
        pytest.param({"up_most_ratio": 1.5, "up_most_replicas": 1}, 3, 5, id="rounded up"),
        pytest.param({"min_replicas": 9}, 2, 9, id="not below the minimum"),
        pytest.param({"max_replicas": 4}, 2, 4, id="not above the maximum"),
    ],
)
def test_a_long_queue_asks_for_so_many_more_at_once(
    settings: dict[str, Any], replicas: int, target: int
) -> None:
    queue = BUSY | {"waiting": 500}

    (advice,) = Player(ScalingSettings(**settings)).play(trace(0, 60, replicas, queue)).advice

    limit = "max_replicas is 4" if "max_replicas" in settings else "no more are advised at once"
    assert advice.replicas_to == target
    assert advice.text.endswith(f" The load asks for {100 * replicas}, but {limit}.")


def test_a_pool_at_its_limit_is_told_that_more_is_asked_for() -> None:
    settings = ScalingSettings(max_replicas=3)
    player = Player(settings).play(trace(0, 90, 3, BUSY))

    assert player.advice == []
    (held,) = player.held
    assert (held.action, held.replicas_to, held.reason) == ("scale_up", 6, "limit")
    assert held.text == "max_replicas is 3"


@pytest.mark.parametrize("load", [BUSY, FINE], ids=["busy", "fine"])
def test_a_pool_above_the_limit_is_not_advised_to_shrink_for_it(load: Mapping[str, Any]) -> None:
    player = Player(ScalingSettings(max_replicas=10)).play(trace(0, 330, 20, load))

    assert [held.action for held in player.held if held.action != "scale_up"] == []
    assert player.advice == []


def test_below_the_minimum_is_brought_up() -> None:
    (advice,) = Player(ScalingSettings(min_replicas=2)).play(trace(0, 31, 1, IDLE)).advice

    assert (advice.replicas_from, advice.replicas_to) == (1, 2)
    assert advice.reason == "min_replicas"
    assert "from 1 to 2 replicas: below min_replicas (2) for 30 s. Now:" in advice.text


def test_a_load_that_asks_for_the_minimum_itself_is_the_reason() -> None:
    (advice,) = Player(ScalingSettings(min_replicas=2)).play(trace(0, 31, 1, BUSY)).advice

    assert (advice.replicas_to, advice.reason) == (2, "requests_waiting")
    assert ": too much load for 30 s." in advice.text


FLOOD = {"waiting": 500, "kv": 1.0, "running": 64, "running_max": 64}


def ordered(player: Player, second: float) -> Player:
    """The last advice was carried out."""
    return player.hear(second, step(player.advice[-1], "succeeded"))


@pytest.mark.parametrize("is_told", [True, False], ids=["told", "not-told"])
def test_the_first_that_serves_does_not_double_what_is_still_starting(*, is_told: bool) -> None:
    player = Player().play(trace(0, 35, 4, FLOOD))
    if is_told:
        ordered(player, 36)
    player.play(trace(40, 80, 4, FLOOD)).play(trace(85, 110, 5, FLOOD))
    player.play(trace(115, 135, 7, FLOOD))

    assert [one.replicas_to for one in player.advice] == [8]

    player.play(trace(140, 148, 8, FLOOD))

    assert [(one.replicas_from, one.replicas_to) for one in player.advice[1:]] == [(8, 16)]


def test_what_has_not_come_in_its_time_is_not_waited_for() -> None:
    player = ordered(Player().play(trace(0, 35, 4, FLOOD)), 36)
    player.play(trace(40, 155, 5, FLOOD))

    assert len(player.advice) == 1

    player.play(trace(160, 165, 5, FLOOD))

    assert [(one.replicas_from, one.replicas_to) for one in player.advice[1:]] == [(5, 10)]


def test_a_load_that_grows_is_not_held_up_by_what_is_starting() -> None:
    player = Player().play(trace(0, 35, 2, BUSY)).play(trace(40, 75, 3, FLOOD))

    assert [one.replicas_to for one in player.advice] == [4, 6]


def test_advice_that_was_rejected_has_ordered_nothing() -> None:
    settings = ScalingSettings(rejected_hold_seconds=1)
    player = Player(settings).play(trace(0, 35, 4, FLOOD))
    player.hear(36, decision(player.advice[0], "rejected"))

    player.play(trace(40, 45, 5, FLOOD))

    assert [one.replicas_to for one in player.advice] == [8, 10]


@pytest.mark.parametrize(
    ("load", "replicas", "end", "saving"),
    [
        pytest.param(BUSY, 2, 31, -5.0, id="two more cost"),
        pytest.param(IDLE, 4, 301, 5.0, id="two fewer save"),
    ],
)
def test_money_needs_a_price(
    load: dict[str, float], replicas: int, end: float, saving: float
) -> None:
    settings = ScalingSettings(usd_per_replica_hour=2.5)

    (advice,) = Player(settings).play(trace(0, end, replicas, load)).advice

    assert advice.saving_usd_per_hour == saving


def test_confidence_is_fresh_replicas_times_measured_values() -> None:
    no_capacity = {"waiting": 20, "kv": 0.9}
    steps = trace(0, 30, 4, no_capacity)
    late = [step for step in steps if step[1].engine != "e3" or step[0] < 12]

    (advice,) = Player().play(late).advice

    assert advice.confidence_ratio == pytest.approx(3 / 4 * 2 / 3)  # e3 silent for 19.7 s


def test_pools_are_apart_and_simulated_is_carried_on() -> None:
    steps = [
        (second + offset, msgspec.structs.replace(message, pool=pool, simulated=pool == "b"))
        for second, message in trace(0, 31, 2, BUSY)
        for offset, pool in ((0.0, "a"), (0.01, "b"))
    ]

    advice = Player().play(steps).advice

    assert [(a.pool, a.simulated, a.replicas_from) for a in advice] == [
        ("a", False, 2),
        ("b", True, 2),
    ]


@pytest.mark.parametrize(
    ("load", "replicas", "given", "again"),
    [
        pytest.param(BUSY, 2, 30.0, 3640.0, id="up"),
        pytest.param(IDLE, 4, 300.0, 3910.0, id="down"),
    ],
)
def test_rejected_advice_is_not_repeated_for_a_while_and_says_so(
    load: dict[str, float], replicas: int, given: float, again: float
) -> None:
    player = Player().play(trace(0, given + 5, replicas, load))
    (rejected,) = player.advice
    player.hear(given + 10, decision(rejected, "rejected"))

    player.play(trace(given + 10, again, replicas, load, step=10))

    first, second = player.advice
    assert to_ns(second.decided_at) >= at(given + 10 + 3600).ns
    assert second.supersedes is None
    assert player.verdicts == []  # it neither expires nor is it superseded
    assert {held.reason for held in player.held} >= {"rejected"}
    held = next(held for held in player.held if held.reason == "rejected")
    assert (held.action, held.replicas_to) == (first.action, first.replicas_to)
    assert "was rejected at 2027-01-15 08:" in held.text


def test_more_than_was_rejected_is_advised_at_once() -> None:
    player = Player(ScalingSettings(up_most_replicas=6)).play(trace(0, 35, 2, BUSY))
    player.hear(36, decision(player.advice[0], "rejected"))

    player.play(trace(40, 200, 2, BUSY) + trace(205, 260, 2, BUSY | {"waiting": 20}))

    # 2 → 4 was rejected; with 20 waiting at one, and then at both, it is 2 → 6 and 2 → 8.
    assert [advice.replicas_to for advice in player.advice] == [4, 6, 8]


def test_a_lost_replica_asks_for_more_than_was_rejected() -> None:
    load = {"waiting": 8, "kv": 0.9, "running": 60, "running_max": 64}
    player = Player(ScalingSettings(panic_ratio=3.0)).play(trace(0, 100, 3, load))
    player.hear(101, decision(player.advice[-1], "rejected"))

    player.play(trace(105, 200, 2, load | {"waiting": 12}))

    # 3 * 8 / 5 → 5 was rejected; then two carry what three did: 2 * 12 / 5.
    last, rejected = player.advice[-1], player.advice[-2]
    assert (rejected.replicas_from, rejected.replicas_to) == (3, 5)
    assert (last.replicas_from, last.replicas_to) == (2, 5)


def test_a_rejection_of_one_direction_leaves_the_other() -> None:
    player = Player().play(trace(0, 301, 4, IDLE))
    player.hear(302, decision(player.advice[0], "rejected"))

    player.play(trace(305, 340, 4, BUSY))

    assert [advice.action for advice in player.advice] == ["scale_down", "scale_up"]
    assert player.verdicts == []


def test_advice_that_was_carried_out_does_not_expire_and_its_hold_counts_from_then() -> None:
    player = Player().play(trace(0, 35, 2, BUSY))
    player.hear(100, step(player.advice[0], "succeeded"))

    player.play(trace(40, 640, 2, BUSY))

    # New replicas may start until 100 + 120; else it would have expired at 30 + 600.
    assert player.verdicts == []
    assert [to_ns(advice.decided_at) for advice in player.advice] == [at(30).ns, at(220).ns]


def test_after_an_execution_a_pool_settles_before_it_is_scaled_down_further() -> None:
    less = {"waiting": 0, "kv": 0.05, "running": 1, "running_max": 64}
    player = Player().play(trace(0, 301, 8, IDLE))
    player.hear(310, step(player.advice[0], "succeeded"))

    player.play(trace(315, 609.9, 8, less))
    assert len(player.advice) == 1
    assert player.held[-1].reason == "settling"

    player.play(trace(610, 615, 8, less))
    assert [to_ns(advice.decided_at) for advice in player.advice][1] == at(610).ns


def test_a_pool_settles_too_when_nobody_said_that_it_was_scaled_down() -> None:
    less = {"waiting": 0, "kv": 0.0, "running": 0, "running_max": 64}
    player = Player().play(trace(0, 301, 8, IDLE))
    player.play(trace(305, 800, player.advice[0].replicas_to, less))

    first, second = player.advice
    # Two replicas were all that was left 30 s after the other six had last been heard.
    assert to_ns(second.decided_at) >= at(330 + 300).ns
    assert (first.replicas_to, second.replicas_to) == (2, 1)


def test_carried_out_advice_does_not_expire_when_the_stream_is_silent() -> None:
    player = Player().play(trace(0, 35, 2, BUSY))
    player.hear(100, step(player.advice[0], "succeeded"))

    player.tick_to(900)

    assert player.verdicts == []


def test_a_dry_run_or_a_failure_leaves_the_advice_standing() -> None:
    player = Player().play(trace(0, 35, 2, BUSY))
    (advice,) = player.advice
    player.hear(40, step(advice, "failed")).hear(41, step(advice, "succeeded", dry_run=True))

    player.play(trace(45, 700, 2, BUSY))

    assert player.verdicts == [("expired", advice.recommendation_id)]


def test_decisions_are_not_acted_on_before_the_instant_at_which_they_were_stored() -> None:
    live = Player().play(trace(0, 100, 2, BUSY))
    rejection = decision(live.advice[0], "rejected")
    executed = step(live.advice[0], "succeeded", idempotency_key="other")
    live.hear(101, rejection).hear(900, executed).play(trace(105, 4000, 2, BUSY, step=15))

    replayed = Player().hear(101, rejection).hear(900, executed)
    replayed.play(trace(0, 100, 2, BUSY) + trace(105, 4000, 2, BUSY, step=15))

    assert len(live.advice) == 2
    assert replayed.emits == live.emits


def test_a_rejection_outlives_a_restart() -> None:
    steps = trace(0, 1500, 2, BUSY, step=15)
    first = Player().play(steps[:10])
    first.hear(70, decision(first.advice[0], "rejected")).play(steps[10:100])
    second = Player(book=first.book).play(steps[50:100])  # the window that is replayed
    second.emits.clear()

    second.handler.restore(first.handler.snapshot() or b"")
    second.play(steps[100:])

    assert len(first.advice) == 1
    assert second.advice == []


def test_late_samples_of_an_agent_whose_clock_is_off_are_judged_by_the_streams() -> None:
    hour = timedelta(hours=1)
    off = [
        (second, msgspec.structs.replace(message, observed_at=message.observed_at + shift))
        for place, (second, message) in enumerate(trace(0, 301, 4, IDLE))
        for shift in [hour if place % 2 else -hour]
    ]

    assert Player().play(off).advice == Player().play(trace(0, 301, 4, IDLE)).advice


def test_restored_advice_still_stands_and_still_expires() -> None:
    before = Player().play(trace(0, 31, 2, BUSY))
    after = Player()
    after.play(trace(0, 31, 2, BUSY))
    after.emits.clear()
    after.handler.restore(before.handler.snapshot() or b"")

    after.play(trace(35, 640, 2, BUSY))

    assert after.verdicts == [("expired", before.advice[0].recommendation_id)]
    assert len(after.advice) == 1  # the one after the expiry


def test_restored_advice_expires_without_a_single_message() -> None:
    before = Player().play(trace(0, 31, 2, BUSY))
    after = ScalingHandler(ScalingSettings())
    after.restore(before.handler.snapshot() or b"")

    emits = [e for second in range(35, 700, 5) for e in after.tick(Moment(at(second).ns, 0))]

    assert [emit.message_id for emit in emits] == [f"{before.advice[0].recommendation_id}.expired"]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"min_replicas": 3, "max_replicas": 2}, "min_replicas must not be above"),
        ({"expires_after_seconds": 60.0}, "at least startup_lead_seconds"),
        ({"tolerance": 0.1}, "unknown field `tolerance`"),
        ({"prompt_target_tokens_per_second": 0.0}, "`float` >= 0.001"),
        ({"generation_target_tokens_per_second": -1.0}, "`float` >= 0.001"),
        ({"gpu_busy_target_ratio": 1.1}, "`float` <= 1.0"),
        ({"gpu_busy_target_ratio": 0.0}, "`float` >= 0.001"),
        ({"gpus_per_replica": 0}, "`int` >= 1"),
        ({"gpus_per_replica": 1.5}, "Expected `int"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    settings: dict[str, float], text: str
) -> None:
    with pytest.raises(msgspec.ValidationError, match=text):
        msgspec.convert(settings, ScalingSettings)
