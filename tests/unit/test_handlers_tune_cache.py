"""Advice on caches by replay: each condition, its expected effect, and when it says nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pytest

from handlers.cache_tuning.handler import TuneCacheHandler
from handlers.settings import TuneCacheSettings
from handlers.slots import Routed, Slot, Watermark
from schemas.engines import CacheMetrics
from schemas.protocols import Emit
from schemas.scaling import Decision, Recommendation
from schemas.units import instant
from tests.support.samples import at

MIB = 1024 * 1024
WINDOW = 300
HOUR = 12 * WINDOW
FULL: dict[str, Any] = {"used_bytes": 95 * MIB, "limit_bytes": 100 * MIB, "entries": 950}
GOOD = {"hits_total": 900.0, "misses_total": 100.0, "evictions_total": 0.0}
THRASH = {
    "hits_total": 300.0,
    "misses_total": 700.0,
    "evictions_total": 500.0,
    "evictions_returned_total": 450.0,
}


def cache(
    seconds: float, instance: str = "c1", namespace: str = "default", **fields: Any
) -> CacheMetrics:
    return msgspec.convert(
        {
            "instance": instance,
            "namespace": namespace,
            "observed_at": instant(at(seconds).ns),
            **fields,
        },
        CacheMetrics,
    )


def counting(
    start: float,
    end: float,
    per_window: Mapping[str, float],
    *,
    step: float = 30.0,
    base: Mapping[str, float] | None = None,
    **fixed: Any,
) -> list[tuple[float, CacheMetrics]]:
    """A cache whose counters rise evenly, by so much a window."""
    samples = []
    for number in range(int((end - start) / step)):
        second = start + number * step
        rise = second / WINDOW if base is None else (second - start) / WINDOW
        counters = {
            name: (base or {}).get(name, 0.0) + amount * rise for name, amount in per_window.items()
        }
        totals = {
            name: value if "seconds" in name else round(value) for name, value in counters.items()
        }
        samples.append((second, cache(second, **{**fixed, **totals})))
    return samples


def routed(samples: Sequence[tuple[float, CacheMetrics]]) -> list[Routed]:
    ordered = sorted(samples, key=lambda one: one[0])
    return [
        Routed(message, at(second, number))
        for number, (second, message) in enumerate(ordered, start=1)
    ]


def slot(settings: TuneCacheSettings | None = None, since: Watermark | None = None) -> Slot:
    handler = TuneCacheHandler(settings or TuneCacheSettings())
    return Slot(0, 1, [handler], since or Watermark(sequence=0, ns=0))


def said(
    samples: Sequence[tuple[float, CacheMetrics]], settings: TuneCacheSettings | None = None
) -> list[Emit]:
    one = slot(settings)
    return [emit for message in routed(samples) for emit in one.feed(message)]


def advice(emits: Sequence[Emit]) -> list[Recommendation]:
    return [emit.message for emit in emits if isinstance(emit.message, Recommendation)]


def verdicts(emits: Sequence[Emit]) -> list[tuple[str, str]]:
    return [
        (emit.message.verdict, emit.message.reason)
        for emit in emits
        if isinstance(emit.message, Decision)
    ]


def causes(one: Recommendation) -> list[str]:
    return [change.cause for change in one.cache_changes]


def test_thrash_is_told_after_three_windows_with_its_expected_hit_ratio() -> None:
    # Of the first window no begin is known.
    early = said(counting(0, 4 * WINDOW, THRASH, **FULL))
    emits = said(counting(0, HOUR, THRASH, **FULL))

    assert early == []
    (one,) = advice(emits)
    assert (one.action, one.pool, one.reason, one.risk) == (
        "tune_cache",
        "default",
        "thrash",
        "low",
    )
    assert one.recommendation_id == f"default.tune_cache.{at(4 * WINDOW).ns}"
    assert causes(one) == ["thrash", "low_hit_ratio"]  # full, too, which the first says better
    thrash = one.cache_changes[0]
    assert thrash.now == pytest.approx(0.3)
    assert thrash.expected == pytest.approx((300 + 450) / 1000)
    assert thrash.formula == "(hits 300 + misses that would be hits 450) / lookups 1000"
    assert one.text.startswith(
        "Tune the cache of default. c1 (thrash): 0.90 lookups of what it evicted for each "
        "eviction, above 0.25. Give it more room (max_size_mb), or a policy that keeps what comes "
        "back (eviction_policy). "
    )
    assert "Hit ratio now 30.0%, then up to 75.0%: (hits 300 + misses" in one.text
    assert (one.replicas_from, one.replicas_to, one.saving_usd_per_hour) == (1, 1, None)


@pytest.mark.parametrize(
    ("counters", "fixed", "text"),
    [
        pytest.param(
            {},
            {"is_enabled": False, "hit_ratio": 0.8},
            "it is switched off. Switch it on",
            id="off",
        ),
        pytest.param(
            {"hits_total": 490.0, "misses_total": 510.0},
            {},
            "49.0% of what is looked up is found, below 50%. Look at what is asked for",
            id="low",
        ),
        pytest.param(
            {"evictions_total": 100.0},
            {"usage_ratio": 0.95, "source": "lmcache", "namespace": "lmcache"},
            "95.0% of its RAM is used, above 90%, and it evicts. Give it more room: it",
            id="LMCache",
        ),
    ],
)
def test_what_is_measured_and_what_to_change_are_said_in_words(
    counters: dict[str, float], fixed: dict[str, Any], text: str
) -> None:
    (one,) = advice(said(counting(0, HOUR, counters, **fixed)))

    assert f"c1 ({one.reason}): {text}" in one.text


def test_evidence_names_the_messages_and_fields_of_the_windows_that_confirmed_it() -> None:
    stream = counting(0, HOUR, THRASH, **FULL)
    (one,) = advice(said(stream))

    first = one.evidence[0]
    assert (first.signal, first.value, first.threshold) == ("returned_by_evicted_ratio", 0.9, 0.25)
    assert first.subject == "metrics.cache.c1"
    assert first.fields == ["evictions_returned_total", "evictions_total"]
    # 10 samples a window; from the last one before the first of the three.
    assert (first.stream_from, first.stream_to) == (10, 40)


@pytest.mark.parametrize(
    ("counters", "fixed", "cause", "now", "expected"),
    [
        pytest.param(
            {"hits_total": 490.0, "misses_total": 510.0}, {}, "low_hit_ratio", 0.49, None, id="low"
        ),
        pytest.param(
            {"lookup_tokens_total": 8000.0, "hit_tokens_total": 800.0},
            {"source": "lmcache", "namespace": "lmcache"},
            "low_hit_ratio",
            0.1,
            None,
            id="low by tokens",
        ),
        pytest.param(
            {**GOOD, "evictions_total": 1000.0, "evictions_returned_total": 50.0},
            FULL,
            "nearly_full",
            0.9,
            0.95,
            id="full",
        ),
        pytest.param(
            {"evictions_total": 100.0},
            {"usage_ratio": 0.95, "source": "lmcache", "namespace": "lmcache"},
            "nearly_full",
            None,
            None,
            id="full, nothing else known",
        ),
        pytest.param(
            {**GOOD, "evictions_total": 1000.0, "restores_total": 260.0},
            {},
            "thrash",
            0.9,
            1.0,
            id="thrash by what the archive answered; no more than all misses",
        ),
        pytest.param(
            {**GOOD, "expired_lookups_total": 80.0, "expired_lookups_late_seconds_total": 4000.0},
            {},
            "ttl_short",
            0.9,
            0.98,
            id="ttl too short",
        ),
        pytest.param(
            {**GOOD, "expired_idle_byte_seconds_total": 300.0 * 30 * MIB},
            FULL,
            "ttl_long",
            30.0 * MIB,
            0.0,
            id="ttl too long",
        ),
        pytest.param({}, {"is_enabled": False, "hit_ratio": 0.8}, "off", 0.0, 0.8, id="off"),
        pytest.param({}, {"is_enabled": False}, "off", 0.0, None, id="off, never used"),
    ],
)
def test_each_condition_with_its_effect(
    counters: dict[str, float],
    fixed: dict[str, Any],
    cause: str,
    now: float | None,
    expected: float | None,
) -> None:
    (one,) = advice(said(counting(0, HOUR, counters, **fixed)))

    assert causes(one) == [cause]
    (change,) = one.cache_changes
    assert change.now == (None if now is None else pytest.approx(now, rel=0.01))
    assert change.expected == (None if expected is None else pytest.approx(expected, rel=0.01))
    assert bool(change.formula) == (expected is not None)


@pytest.mark.parametrize(
    ("counters", "fixed"),
    [
        pytest.param({}, {}, id="nulls everywhere"),
        pytest.param({"hits_total": 40.0, "misses_total": 59.0}, {}, id="too few lookups"),
        pytest.param({"hits_total": 500.0, "misses_total": 500.0}, {}, id="exactly half"),
        pytest.param(
            {**GOOD, "evictions_total": 1000.0, "evictions_returned_total": 10.0},
            FULL,
            id="full, and more room would gain 1 % of the lookups",
        ),
        pytest.param(GOOD, FULL, id="full, and nothing leaves"),
        pytest.param(
            {**GOOD, "evictions_total": 99.0, "evictions_returned_total": 19.0}, {}, id="few left"
        ),
        pytest.param(
            {**GOOD, "expired_idle_byte_seconds_total": 300.0 * 30 * MIB},
            {**FULL, "used_bytes": 50 * MIB},
            id="idle, where there is room",
        ),
        pytest.param(GOOD, {"used_bytes": MIB, "limit_bytes": 0}, id="a limit of 0"),
    ],
)
def test_what_is_fine_or_not_known_brings_nothing(
    counters: dict[str, float], fixed: dict[str, Any]
) -> None:
    assert said(counting(0, HOUR, counters, **fixed)) == []


def test_a_ratio_that_wavers_around_the_threshold_is_told_once() -> None:
    samples: list[tuple[float, CacheMetrics]] = []
    hits = misses = 0
    for number in range(60):
        low = number < 6 or number % 2 == 0
        hits, misses = hits + (480 if low else 520), misses + (520 if low else 480)
        second = number * WINDOW + 290.0
        samples.append((second, cache(second, hits_total=hits, misses_total=misses)))

    emits = said(samples)

    assert len(advice(emits)) == 1
    assert verdicts(emits) == []


@pytest.mark.parametrize(("hits", "ends"), [(540, False), (560, True)], ids=["0.54", "0.56"])
def test_a_condition_ends_beyond_a_margin(hits: int, ends: bool) -> None:
    low = counting(0, 4 * WINDOW, {"hits_total": 400.0, "misses_total": 600.0})
    later = counting(
        4 * WINDOW,
        12 * WINDOW,
        {"hits_total": hits, "misses_total": 1000.0 - hits},
        base={"hits_total": 1600.0, "misses_total": 2400.0},
    )

    emits = said([*low, *later])

    assert len(advice(emits)) == 1
    assert bool(verdicts(emits)) == ends


def test_one_bad_window_between_good_ones_is_not_told() -> None:
    counters = [0, 0]
    samples = []
    for number in range(30):
        bad = number % 3 != 0
        counters = [counters[0] + (100 if bad else 900), counters[1] + (900 if bad else 100)]
        second = number * WINDOW + 290.0
        samples.append((second, cache(second, hits_total=counters[0], misses_total=counters[1])))

    assert said(samples) == []


def test_advice_ends_when_the_condition_does() -> None:
    bad = counting(0, 6 * WINDOW, THRASH, **FULL)
    counted = {name: 6 * amount for name, amount in THRASH.items()}
    none = dict.fromkeys(THRASH, 0.0)
    good = counting(6 * WINDOW, 14 * WINDOW, {**none, **GOOD}, base=counted, **FULL)

    emits = said([*bad, *good])

    assert len(advice(emits)) == 1
    assert verdicts(emits) == [("expired", "nothing of it holds any more")]


def test_a_cache_that_starts_anew_is_judged_anew() -> None:
    first = counting(0, 2.5 * WINDOW, THRASH, **FULL)
    again = counting(2.5 * WINDOW, 5.5 * WINDOW, THRASH, base={}, **FULL)

    assert said([*first, *again]) == []


def test_advice_on_a_cache_that_starts_anew_ends_until_it_is_found_again() -> None:
    first = counting(0, 5 * WINDOW, THRASH, **FULL)
    again = counting(5 * WINDOW, 12 * WINDOW, THRASH, base={}, **FULL)

    emits = said([*first, *again])

    one, other = advice(emits)
    assert one.decided_at == instant(at(4 * WINDOW).ns)
    # The window with the start, its begin in the next one, and three that confirm it.
    assert other.decided_at == instant(at(9 * WINDOW).ns)
    assert verdicts(emits) == [("expired", "nothing of it holds any more")]


def test_advice_on_a_cache_that_vanished_is_withdrawn() -> None:
    gone = counting(0, 6 * WINDOW, THRASH, **FULL)
    other = counting(0, HOUR, GOOD, instance="c2", namespace="other")

    emits = said([*gone, *other])

    assert [one.pool for one in advice(emits)] == ["default"]
    assert verdicts(emits) == [("expired", "nothing of it holds any more")]


def test_another_cache_of_the_pool_supersedes_the_advice() -> None:
    first = counting(0, HOUR, THRASH, pool="chat", **FULL)
    second = counting(4 * WINDOW, HOUR, THRASH, base={}, instance="c2", pool="chat", **FULL)

    emits = said([*first, *second])

    one, both = advice(emits)
    assert (one.pool, both.pool, both.supersedes) == ("chat", "chat", one.recommendation_id)
    assert {change.instance for change in both.cache_changes} == {"c1", "c2"}
    assert both.replicas_to == 2
    assert verdicts(emits) == [("superseded", f"by {both.recommendation_id}")]


def test_advice_that_still_holds_is_given_anew_after_it_expired() -> None:
    settings = TuneCacheSettings(expires_after_seconds=1800.0)

    emits = said(counting(0, 12 * WINDOW, THRASH, **FULL), settings)

    first, second = advice(emits)
    assert second.decided_at == first.expires_at
    assert verdicts(emits) == [("expired", "not carried out in time")]


def test_what_is_simulated_stays_so_and_confidence_is_what_the_counters_can_tell() -> None:
    (one,) = advice(said(counting(0, HOUR, THRASH, simulated=True, **FULL)))

    assert one.simulated
    # Known: thrash, nearly_full, low_hit_ratio; neither TTL nor the switch is.
    assert one.confidence_ratio == pytest.approx(3 / 6)


def test_a_new_owner_goes_on_where_the_old_one_stopped() -> None:
    stream = routed(
        [
            *counting(0, 2 * HOUR, THRASH, **FULL),
            *counting(7, 2 * HOUR, GOOD, instance="c2", namespace="other"),
        ]
    )
    whole = slot()
    expected = [emit for message in stream for emit in whole.feed(message)]

    told: list[Emit] = []
    owner = slot()
    for cut, message in enumerate(stream):
        if cut % 7 == 6:
            owner = slot(since=owner.watermark())
            for earlier in stream[:cut]:
                if earlier.now.ns >= owner.start_ns:
                    told += owner.feed(earlier)
        told += owner.feed(message)

    assert advice(expected)
    assert told == expected
