"""All handlers together on what no fleet should send: nulls, duplicates, clocks apart."""

import random
from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from handlers import default_handlers
from handlers.settings import HandlersSettings, ScalingSettings
from handlers.slots import Routed, replay
from schemas.analysis import Alert, Utilization
from schemas.engines import CacheMetrics
from schemas.message import Message
from schemas.protocols import Emit, Moment
from schemas.scaling import HeldAdvice, Recommendation
from schemas.spending import Waste
from schemas.units import instant
from tests.support.mixed_hour import recorded
from tests.support.samples import START_NS, at, engine, gpu, host

M = TypeVar("M", bound=Message)

COUNTS_ALL = HandlersSettings(
    scaling=ScalingSettings(
        gpu_busy_target_ratio=0.7,
        prompt_target_tokens_per_second=100.0,
        generation_target_tokens_per_second=100.0,
        ttft_target_seconds=1.0,
        itl_target_seconds=0.1,
    )
)


def said(messages: Sequence[Routed], settings: HandlersSettings = COUNTS_ALL) -> list[Emit]:
    return replay(messages, lambda: default_handlers(settings))


def of(kind: type[M], emits: Sequence[Emit]) -> list[M]:
    return [emit.message for emit in emits if isinstance(emit.message, kind)]


def decided(emits: Sequence[Emit]) -> list[tuple[object, ...]]:
    return [
        (one.action, one.pool, one.replicas_from, one.replicas_to)
        for one in of(Recommendation, emits)
    ]


def test_nulls_everywhere_are_no_load_no_alert_and_no_advice() -> None:
    messages: list[Routed] = []
    for second in range(0, 2400, 5):
        samples = [
            *(host(node, pool="chat") for node in ("n1", "n2")),
            *(gpu("g0", node, pool="chat") for node in ("n1", "n2")),
            *(engine("e0", node) for node in ("n1", "n2")),
            CacheMetrics(instance="c1", namespace="kv", observed_at=instant(START_NS)),
        ]
        for place, sample in enumerate(samples):
            messages.append(Routed(sample, at(second + place / 10, len(messages) + 1)))

    emits = said(messages)

    assert of(Recommendation, emits) + of(HeldAdvice, emits) + of(Alert, emits) == []
    for use in of(Utilization, emits):
        assert (use.level, use.health, use.efficiency_ratio, use.resources) == (None,) * 3 + ([],)
    wastes = of(Waste, emits)
    assert wastes
    for waste in wastes:
        figures = waste.figures
        assert (figures.usd, figures.waste_usd, figures.waste_ratio) == (None,) * 3
        assert (figures.utilization_ratio, figures.tokens_per_second) == (None,) * 2


def test_what_comes_twice_decides_nothing_else() -> None:
    once = recorded()
    twice: list[Routed] = []
    for routed in once:
        for later_ns in (0, 1):
            now = Moment(routed.now.ns + later_ns, len(twice) + 1)
            twice.append(Routed(routed.message, now))

    expected, found = said(once), said(twice)

    assert len(decided(expected)) > 3
    assert decided(found) == decided(expected)
    subjects = [Counter(one.subject() for one in of(Alert, emits)) for emits in (expected, found)]
    assert subjects[0] == subjects[1]
    hours = [of(Waste, emits)[-1].figures.gpu_hours for emits in (expected, found)]
    assert abs(hours[0] - hours[1]) < 1e-9


def test_clocks_apart_change_nothing() -> None:
    rng = random.Random(5)
    right = recorded()
    apart = [
        Routed(
            msgspec.structs.replace(
                routed.message, observed_at=instant(routed.now.ns + rng.randint(-(10**14), 10**14))
            ),
            routed.now,
        )
        for routed in right
    ]

    expected, found = said(right), said(apart)

    assert [one.message for one in found] == [one.message for one in expected]
    assert [one.message_id for one in found] == [one.message_id for one in expected]
