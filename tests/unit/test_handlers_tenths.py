"""Large groups, judged by tenths: a small group's parts are made to count as many."""

import random
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from handlers.settings import UtilizationSettings
from handlers.slots import FLEET, Routed, Slot, Watermark, turn_of
from handlers.utilization import means, tenths
from handlers.utilization.handler import UtilizationHandler
from handlers.utilization.means import HOSTS, ROWS, GroupParts, Part, sample
from handlers.utilization.tenths import Tenths
from schemas.analysis import Scope, Utilization
from schemas.protocols import Emit
from schemas.units import SECOND_NS, instant
from tests.support.samples import START_NS, at, engine, gpu, host

SPAN_NS = 60 * SECOND_NS
STEP_NS = SECOND_NS // 2


@pytest.fixture(autouse=True)
def few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenths, "LARGE_PARTS", 20)


def fleet(seconds: int, changing: float = 0.0) -> list[Routed]:
    """40 nodes with a GPU, ten of which have an engine, each heard every 5 s; some pause, or go.

    With `changing` one whose load is far from what it was half a minute ago is likelier.
    """
    rng = random.Random(1)
    stream: list[Routed] = []
    for second in range(seconds):
        for number in range(second % 5, 40, 5):
            node = f"n{number}"
            if number % 7 == 0 and (second // 40 + number) % 3 == 0:
                continue
            load = 0.3 + 0.1 * rng.random() + changing * (second // 30 % 2) * 0.6
            moment = at(second + number / 40, len(stream) + 1)
            stream.append(Routed(host(node, cpu=load, memory=0.4, pool="p"), moment))
            of_gpu: dict[str, Any] = {"utilization_ratio": load if number % 3 else None}
            moment = at(second + number / 40, len(stream) + 1)
            stream.append(Routed(gpu(node=node, pool="p", **of_gpu), moment))
            if number % 4 == 0:
                moment = at(second + number / 40, len(stream) + 1)
                stream.append(Routed(engine(node=node, pool="p", kv=load), moment))
    return stream


def slot(scope: Scope, watermark: Watermark | None = None, *, follows_busy: bool = False) -> Slot:
    handler = UtilizationHandler(UtilizationSettings(), scope, follows_busy=follows_busy)
    return Slot(0, 1, [handler], watermark or Watermark(sequence=0, ns=0))


def said(of: Slot, stream: Sequence[Routed]) -> list[Emit]:
    return [emit for routed in stream for emit in of.feed(routed)]


def encoded(emits: Sequence[Emit]) -> list[bytes]:
    return [msgspec.json.encode((emit.message_id, emit.message)) for emit in emits]


@pytest.mark.parametrize("changing", [0.0, 1.0], ids=["calm", "changing"])
@pytest.mark.parametrize("scope", ["pool", "fleet"])
def test_what_is_found_beforehand_is_what_is_found_at_once(
    scope: Scope, changing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = fleet(300, changing)
    beforehand = said(slot(scope), stream)
    monkeypatch.setattr(Tenths, "find", lambda self, ns: None)

    at_once = said(slot(scope), stream)

    assert len(beforehand) >= 4
    assert encoded(at_once) == encoded(beforehand)


@pytest.mark.parametrize("second", [150, 151, 153, 157, 158.5])
@pytest.mark.parametrize("changing", [0.0, 1.0], ids=["calm", "changing"])
def test_who_takes_over_says_the_same(second: float, changing: float) -> None:
    stream = fleet(300, changing)
    whole = said(slot("fleet"), stream)
    cut = next(place for place, one in enumerate(stream) if one.now.ns >= at(second).ns)

    before = slot("fleet")
    first = said(before, stream[:cut])
    after = slot("fleet", Watermark.decode(before.watermark().encode()))
    second_part = said(after, [one for one in stream if one.now.ns >= after.start_ns])

    assert second_part
    assert encoded([*first, *second_part]) == encoded(whole)


def test_a_mean_is_that_of_the_window_that_ended_at_the_last_step_of_its_tenth() -> None:
    parts: GroupParts = ({}, {}, {})
    of_group = Tenths(parts, ROWS, SPAN_NS)
    for number in range(50):
        source = (f"n{number}", "")
        part = parts[HOSTS][source] = Part(id=source[0], width=4)
        of_group.add(HOSTS, source, part)
        for second in range(100):
            part.add(sample(host(cpu=second / 100))[2], START_NS + second * SECOND_NS)

    found_means = of_group.means(START_NS + 90 * SECOND_NS)

    # Ended at 90 s, 89.5 s, ..., 85.5 s: the last sample, and the one 60 s before it, by the step.
    expected = [
        sum(range(last - 59, last + 1)) / 60 / 100 for last in (90, 89, 89, 88, 88, 87, 87, 86)
    ]
    found = {round(mean, 9) for mean in found_means["cpu"].values()}
    assert {round(mean, 9) for mean in expected} <= found
    assert found <= {round(mean, 9) for mean in (*expected, expected[-1] - 0.01)}
    assert len(found_means["cpu"]) == 50


def test_each_step_looks_at_a_tenth_of_the_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: dict[int, int] = {}
    at_judgements: list[int] = []
    means_of, of_tenths = means.means_of, Tenths.means

    def noting(parts: GroupParts, names: Any, oldest_ns: int, newest_ns: int, whole: Any) -> Any:
        looked[newest_ns] = looked.get(newest_ns, 0) + sum(map(len, parts))
        return means_of(parts, names, oldest_ns, newest_ns, whole)

    def judging(of: Tenths, now_ns: int) -> Any:
        before = sum(looked.values())
        found = of_tenths(of, now_ns)
        at_judgements.append(sum(looked.values()) - before)
        return found

    monkeypatch.setattr("handlers.utilization.tenths.means_of", noting)
    monkeypatch.setattr(Tenths, "means", judging)

    said(slot("fleet"), fleet(200, changing=1.0))

    assert len(at_judgements) > 20
    assert set(at_judgements) == {0}  # all was found before
    assert len(looked) > 150
    assert all(ns % STEP_NS == 0 for ns in looked)
    assert max(looked.values()) <= 25  # of 90


def test_a_calm_group_is_not_looked_at_where_its_judgement_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked: list[int] = []
    find = Tenths.find

    def noting(of: Tenths, ns: int) -> None:
        looked.append(ns)
        find(of, ns)

    monkeypatch.setattr(Tenths, "find", noting)

    said(slot("fleet"), fleet(300))

    assert 200 < len(looked) < 400  # of 600 steps: every other judgement, but some after a change


def test_the_first_judgement_of_a_large_group_has_what_was_heard_just_before() -> None:
    of, judged = slot("fleet"), turn_of(FLEET) / 2 or 5.0
    of_others = [f"n{n}" for n in range(90) if turn_of(f"n{n}") != turn_of(FLEET)]
    messages = [
        Routed(host(node, cpu=0.4), at(judged - 0.25, place))
        for place, node in enumerate(of_others, start=1)
    ]

    emits = [*said(of, messages), *of.advance(at(judged).ns)]

    found = [emit.message for emit in emits if isinstance(emit.message, Utilization)]
    assert [(one.nodes, one.level) for one in found] == [(len(of_others), "low")]
    assert found[0].decided_at == instant(at(judged).ns)


@pytest.mark.parametrize("scope", ["pool", "fleet"])
def test_parts_that_fall_silent_leave_a_large_group_until_it_is_small(scope: Scope) -> None:
    of = slot(scope)
    stream = fleet(100)
    last = 100 * SECOND_NS + START_NS
    kept = [
        Routed(host("n1", cpu=0.9, pool="p"), at(second, len(stream) + second))
        for second in range(100, 300, 5)
    ]
    emits = said(of, [*stream, *kept])

    found = [e.message for e in emits if isinstance(e.message, Utilization)]
    assert max(one.nodes for one in found) >= 35
    assert found[-1].decided_at.timestamp() * SECOND_NS > last
    assert found[-1].nodes == 1
    assert found[-1].resources[0].mean_ratio == pytest.approx(0.9)


def test_the_busy_gpus_of_a_large_pool_are_the_same_after_a_take_over() -> None:
    stream = fleet(300)
    cut = next(place for place, one in enumerate(stream) if one.now.ns >= at(152).ns)

    before = slot("pool", follows_busy=True)
    said(before, stream[:cut])
    after = slot("pool", Watermark.decode(before.watermark().encode()), follows_busy=True)
    said(before, stream[cut:])
    said(after, [one for one in stream if one.now.ns >= after.start_ns])

    busy = [one.handlers[0].busy("p") for one in (before, after)]  # type: ignore[attr-defined]
    assert busy[0] is not None
    assert busy[0] == busy[1]
