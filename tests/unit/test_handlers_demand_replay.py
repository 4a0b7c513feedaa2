"""All handlers with GPUs, tokens and prices in demand: same stream, same advice; after a take-over
too."""

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from handlers import default_handlers
from handlers.settings import HandlersSettings, ScalingSettings
from handlers.slots import Routed, Slot, Watermark, replay
from schemas.engines import EngineMetrics
from schemas.message import Message
from schemas.metrics import GpuMetrics
from schemas.protocols import Emit
from schemas.scaling import Decision, HeldAdvice, Recommendation
from tests.support.fleets import H100
from tests.support.samples import at, engine, gpu

SECONDS = 4800
SETTINGS = HandlersSettings(
    scaling=ScalingSettings(
        gpu_busy_target_ratio=0.7, prompt_target_tokens_per_second=2000.0, max_replicas=8
    )
)


def busy_of(second: int) -> float | None:
    """Up and down within 40 minutes; for a while not measured."""
    if 3000 <= second < 3100:
        return None
    return round(0.5 - 0.48 * math.cos(second / 2400 * 2 * math.pi), 3)


def recorded(**gpu_fields: Any) -> list[Routed]:
    """Four replicas with two GPUs each, their queues empty: only GPUs tell of the load."""
    messages: list[Routed] = []
    for second in range(0, SECONDS, 5):
        for number in range(4):
            node, ratio = f"n{number}", busy_of(second)
            source = {"utilization_source": "gpm_sm_activity" if number else "nvml_utilization"}
            fields: dict[str, Any] = {"utilization_ratio": ratio, "memory_utilization_ratio": 0.9}
            fields |= {"name": H100, "pool": "chat"} | source | gpu_fields
            samples = [
                *(gpu(f"{node}g{i}", node, **fields) for i in "01"),
                engine(
                    "e",
                    node,
                    waiting=0,
                    kv=0.1,
                    running=4,
                    prompt_tokens_per_second=100.0 + second % 7,
                ),
            ]
            for sample in samples:
                moment = at(second + len(messages) % 12 / 10, len(messages) + 1)
                messages.append(Routed(sample, moment))
    return messages


def fresh(watermark: Watermark) -> Slot:
    return Slot(0, 1, default_handlers(SETTINGS), watermark)


def advice(emits: Sequence[Emit]) -> list[Recommendation]:
    found = [emit.message for emit in emits if isinstance(emit.message, Recommendation)]
    return [one for one in found if one.action in ("scale_up", "scale_down")]


def said(emits: Sequence[Emit]) -> bytes:
    """Of scaling, to the last bit."""
    kinds = Recommendation | Decision | HeldAdvice
    return msgspec.json.encode([one.message for one in emits if isinstance(one.message, kinds)])


@pytest.fixture(scope="module")
def whole() -> list[Emit]:
    return replay(recorded(), lambda: default_handlers(SETTINGS))


def test_gpus_alone_bring_advice_both_ways_with_the_price_of_two(whole: list[Emit]) -> None:
    found = advice(whole)
    ups = [one for one in found if one.action == "scale_up"]
    downs = [one for one in found if one.action == "scale_down"]

    assert {one.reason for one in ups} == {"gpu_busy_ratio"}
    assert {one.saving_usd_per_hour for one in ups} == {-7.98, -15.96}  # 2 × 3.99 each
    assert downs
    for one in found:
        values = {each.signal: each for each in one.evidence}
        assert values["gpu_busy_ratio"].sources == ["gpm_sm_activity", "nvml_utilization"]
        assert values["prompt_tokens_per_second"].threshold == 2000.0
        if values.get("usd_per_replica_hour"):
            assert values["usd_per_replica_hour"].value == 7.98


def test_the_same_stream_gives_the_same_advice(whole: list[Emit]) -> None:
    again = replay(recorded(), lambda: default_handlers(SETTINGS))

    assert said(again) == said(whole)


@pytest.mark.parametrize("cuts", [7, 23])
def test_who_takes_over_says_the_same(whole: list[Emit], cuts: int) -> None:
    messages = recorded()
    first = fresh(Watermark(sequence=0, ns=0))
    told: list[Emit] = []
    for number in range(1, cuts + 1):
        cut = len(messages) * number // cuts
        for routed in messages:
            # As the runtime reads it: of GPUs the last minutes alone.
            is_engine = isinstance(routed.message, EngineMetrics)
            start_ns = first.start_ns if is_engine else first.whole_ns
            if start_ns <= routed.now.ns and routed.now.sequence <= cut:
                told += first.feed(routed)
        first = fresh(Watermark.decode(first.watermark().encode()))

    assert [emit.message_id for emit in told] == [emit.message_id for emit in whole]
    assert said(told) == said(whole)


def test_without_targets_nothing_of_it_is_said() -> None:
    found = advice(replay(recorded(), lambda: default_handlers(HandlersSettings())))

    assert {one.action for one in found} == {"scale_down"}  # the KV caches are nearly empty
    signals = {each.signal for one in found for each in one.evidence}
    assert not signals & {"gpu_busy_ratio", "prompt_tokens_per_second"}


def test_a_model_without_a_price_leaves_the_money_unknown() -> None:
    stream = recorded(name="AMD Instinct MI300X")

    found = advice(replay(stream, lambda: default_handlers(SETTINGS)))

    assert found
    assert {one.saving_usd_per_hour for one in found} == {None}


@pytest.mark.parametrize(
    "kinds",
    [
        pytest.param((EngineMetrics,), id="nobody tells of GPUs"),
        pytest.param((EngineMetrics, GpuMetrics), id="they tell, but of no utilization"),
    ],
)
def test_gpus_without_a_reading_keep_the_replicas(kinds: tuple[type[Message], ...]) -> None:
    stream = [one for one in recorded(utilization_ratio=None) if isinstance(one.message, kinds)]

    emits = replay(stream, lambda: default_handlers(SETTINGS))

    assert advice(emits) == []
    held = [emit.message for emit in emits if isinstance(emit.message, HeldAdvice)]
    assert {one.text for one in held} == {"the load is low, but gpu_busy_ratio is not measured"}


def test_the_messages_of_the_evidence_replayed_give_the_same_advice() -> None:
    stream = recorded(name="AMD Instinct MI300X")  # a price takes minutes more to be known
    whole = advice(replay(stream, lambda: default_handlers(SETTINGS)))
    first = next(one for one in whole if one.action == "scale_up" and one.supersedes is None)
    begin, end = first.evidence[0].stream_from, first.evidence[0].stream_to
    assert begin is not None
    assert end is not None
    assert begin > 1

    some = [routed for routed in stream if begin <= routed.now.sequence <= end]

    assert advice(replay(some, lambda: default_handlers(SETTINGS))) == [first]
